/* SPDX-License-Identifier: MIT
 * The index space of keys is [segment | own]: key j < P is the segment's row j, else own row j - P. A task is one
 * (sequence, kv head) or a part of one; its tiles of keys and values are brought to float32 once for all query heads. */
#include "kernels/attention.h"
#include "kernels/math_cpu.h"

enum { KEYS = 32, MAX_DIM = 256, CHUNKS = 8 };

static const char *check_shape(const px_attn_shape *s, bool needs_k_offsets) {
  if (px_check_type(s->dtype)) return "the type must be f32 or bf16";
  if (s->head_dim < 1 || s->head_dim > MAX_DIM) return "head_dim must be from 1 to 256";
  if (s->heads < 1 || s->kv_heads < 1 || s->heads % s->kv_heads) return "heads must be a multiple of kv_heads";
  if (s->seqs < 0 || s->window < 0 || s->segment_count < 0) return "a count is negative";
  if (s->window && s->mask != PX_MASK_CAUSAL) return "a window needs the causal mask";
  if (s->seqs && (!s->q_offsets || (needs_k_offsets && !s->k_offsets))) return "offsets are missing";
  return s->adapter && s->segment_count && !s->segments ? "segments are missing" : NULL;
}

const char *px_attn_fwd_check(const px_attn_fwd_args *a) {
  const char *wrong = check_shape(&a->shape, true);
  if (wrong) return wrong;
  int64_t q = (int64_t)a->shape.heads * a->shape.head_dim, kv = (int64_t)a->shape.kv_heads * a->shape.head_dim;
  if (a->q_stride < q || a->o_stride < q || a->k_stride < kv || a->v_stride < kv) return "a stride is shorter than its row";
  return a->shape.seqs && (!a->q || !a->k || !a->v || !a->o) ? "a pointer is missing" : NULL;
}

const char *px_attn_bwd_check(const px_attn_bwd_args *a) {
  const char *wrong = check_shape(&a->shape, true);
  if (wrong) return wrong;
  int64_t q = (int64_t)a->shape.heads * a->shape.head_dim, kv = (int64_t)a->shape.kv_heads * a->shape.head_dim;
  if (a->q_stride < q || a->o_stride < q || a->dout_stride < q || a->k_stride < kv || a->v_stride < kv) return "a stride is shorter than its row";
  if (a->dq && (a->dq_stride < q || a->dk_stride < kv || a->dv_stride < kv)) return "a stride is shorter than its row";
  if (!a->dq != !a->dk || !a->dq != !a->dv) return "dq, dk and dv go together";
  return a->shape.seqs && (!a->q || !a->k || !a->v || !a->o || !a->dout || !a->lse || !a->workspace) ? "a pointer is missing" : NULL;
}

const char *px_attn_decode_check(const px_attn_decode_args *a) {
  const char *wrong = check_shape(&a->shape, false);
  if (wrong) return wrong;
  int64_t q = (int64_t)a->shape.heads * a->shape.head_dim;
  if (a->q_stride < q || a->o_stride < q) return "a stride is shorter than its row";
  if (a->page_tokens < 1 || a->max_blocks < 1) return "page_tokens or max_blocks is out of range";
  return a->shape.seqs && (!a->q || !a->o || !a->k_cache || !a->v_cache || !a->block_table || !a->kv_lens) ? "a pointer is missing" : NULL;
}

static const px_kv_segment *segment_of(const px_attn_shape *s, int32_t seq) {
  int32_t id = s->adapter ? s->adapter[seq] : -1;
  return id >= 0 && id < s->segment_count && s->segments[id].len > 0 ? &s->segments[id] : NULL;
}

/* Own keys [first, end) that query i sees, of nk, nq queries. */
static void visible(const px_attn_shape *s, int64_t i, int64_t nq, int64_t nk, int64_t *first, int64_t *end) {
  *first = 0;
  *end = nk;
  if (s->mask != PX_MASK_CAUSAL) return;
  *end = i + nk - nq + 1;
  if (*end < 0) *end = 0;
  if (s->window && *end - s->window > 0) *first = *end - s->window;
}

/* Where own keys of a sequence stand: dense rows, or pages. */
typedef struct key_source {
  const px_attn_shape *shape;
  const px_kv_segment *segment;
  const void *k, *v;
  int64_t k_stride, v_stride, first_row; /* dense */
  const int32_t *blocks;                 /* paged: NULL for dense */
  int32_t page_tokens;
  int64_t prefix;                        /* P */
} key_source;

/* Keys (or values) [from, from + n) of kv head g in float32: out[n][head_dim]. */
static void load_keys(const key_source *s, int64_t g, int64_t from, int64_t n, bool values, float *out) {
  int64_t dim = s->shape->head_dim;
  px_dtype type = s->shape->dtype;
  for (int64_t j = 0; j < n; j++) {
    int64_t key = from + j, own = key - s->prefix;
    if (key < s->prefix) {
      px_load_row(values ? s->segment->v : s->segment->k, type, key * s->segment->stride + g * dim, dim, out + j * dim);
      continue;
    }
    int64_t row = s->blocks ? (int64_t)s->blocks[own / s->page_tokens] * s->page_tokens + own % s->page_tokens : s->first_row + own;
    px_load_row(values ? s->v : s->k, type, row * (values ? s->v_stride : s->k_stride) + g * dim, dim, out + j * dim);
  }
}

static float dot(const float *x, const float *y, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

static void axpy(float a, const float *x, float *y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

enum { QUERIES = 16 }; /* rows of (query, head of the group) worked on together */

typedef struct query_row {
  int64_t row, head, first, end; /* own keys it sees */
  float best, sum;
} query_row;

/* One block of query rows against all keys, online softmax. */
static void block_fwd(const key_source *src, int64_t g, query_row *r, int count, int64_t nk, const float *q, float *acc) {
  int64_t dim = src->shape->head_dim, all = src->prefix + nk;
  float k[KEYS * MAX_DIM], v[KEYS * MAX_DIM];
  for (int64_t from = 0; from < all; from += KEYS) {
    int64_t n = all - from < KEYS ? all - from : KEYS;
    bool any = false;
    for (int b = 0; b < count; b++)
      any |= from < src->prefix || (from < src->prefix + r[b].end && from + n > src->prefix + r[b].first);
    if (!any) continue;
    load_keys(src, g, from, n, false, k);
    load_keys(src, g, from, n, true, v);
    for (int b = 0; b < count; b++) {
      float s[KEYS], top = r[b].best;
      for (int64_t j = 0; j < n; j++) {
        int64_t own = from + j - src->prefix;
        s[j] = own < 0 || (own >= r[b].first && own < r[b].end) ? src->shape->scale * dot(q + b * dim, k + j * dim, dim) : -INFINITY;
        top = s[j] > top ? s[j] : top;
      }
      if (top == -INFINITY) continue;
      float shrink = r[b].best == -INFINITY ? 0.0f : px_exp(r[b].best - top);
      r[b].best = top;
      r[b].sum *= shrink;
      for (int64_t i = 0; shrink != 1.0f && i < dim; i++) acc[b * dim + i] *= shrink;
      for (int64_t j = 0; j < n; j++) {
        if (s[j] == -INFINITY) continue;
        float p = px_exp(s[j] - top);
        r[b].sum += p;
        axpy(p, v + j * dim, acc + b * dim, dim);
      }
    }
  }
}

/* All queries of one sequence and kv head, in blocks of a fixed size: bits do not depend on other sequences. */
static void sequence_fwd(const key_source *src, int64_t g, int64_t block, const void *q_base, int64_t q_stride, int64_t q0, int64_t nq,
                         int64_t nk, void *o_base, int64_t o_stride, float *lse, int64_t lse_rows) {
  const px_attn_shape *s = src->shape;
  int64_t dim = s->head_dim, group = s->heads / s->kv_heads, all_rows = nq * group;
  query_row r[QUERIES];
  float q[QUERIES * MAX_DIM], acc[QUERIES * MAX_DIM];
  int count = 0;
  for (int64_t at = block * QUERIES; at < all_rows && count < QUERIES; at++, count++) {
    int64_t i = at / group, head = g * group + at % group;
    r[count] = (query_row){.row = q0 + i, .head = head, .best = -INFINITY};
    visible(s, i, nq, nk, &r[count].first, &r[count].end);
    px_load_row(q_base, s->dtype, r[count].row * q_stride + head * dim, dim, q + count * dim);
    memset(acc + count * dim, 0, (size_t)dim * sizeof(float));
  }
  if (count == 0) return;
  block_fwd(src, g, r, count, nk, q, acc);
  for (int b = 0; b < count; b++) {
    float inverse = r[b].sum > 0 ? 1.0f / r[b].sum : 0.0f;
    for (int64_t i = 0; i < dim; i++) acc[b * dim + i] *= inverse;
    px_store_row(o_base, s->dtype, r[b].row * o_stride + r[b].head * dim, dim, acc + b * dim);
    if (lse) lse[r[b].head * lse_rows + r[b].row] = r[b].sum > 0 ? r[b].best + logf(r[b].sum) : -INFINITY;
  }
}

int px_attn_fwd_cpu(const px_attn_fwd_args *a) {
  const px_attn_shape *s = &a->shape;
  if (s->seqs == 0) return 0;
  int64_t rows = s->q_offsets[s->seqs], group = s->heads / s->kv_heads, longest = 0;
  for (int32_t q = 0; q < s->seqs; q++)
    longest = s->q_offsets[q + 1] - s->q_offsets[q] > longest ? s->q_offsets[q + 1] - s->q_offsets[q] : longest;
  int64_t blocks = (longest * group + QUERIES - 1) / QUERIES;
#pragma omp parallel for collapse(3) schedule(dynamic, 4)
  for (int32_t seq = 0; seq < s->seqs; seq++)
    for (int32_t g = 0; g < s->kv_heads; g++)
      for (int64_t block = 0; block < blocks; block++) {
        int64_t q0 = s->q_offsets[seq], nq = s->q_offsets[seq + 1] - q0, k0 = s->k_offsets[seq], nk = s->k_offsets[seq + 1] - k0;
        if (block * QUERIES >= nq * group) continue;
        const px_kv_segment *segment = segment_of(s, seq);
        key_source src = {.shape = s, .segment = segment, .k = a->k, .v = a->v, .k_stride = a->k_stride, .v_stride = a->v_stride,
                          .first_row = k0, .prefix = segment ? segment->len : 0};
        sequence_fwd(&src, g, block, a->q, a->q_stride, q0, nq, nk, a->o, a->o_stride, a->lse, rows);
      }
  return 0;
}

size_t px_attn_decode_workspace(const px_attn_shape *shape, int64_t q_rows) {
  (void)shape;
  (void)q_rows;
  return 64;
}

int px_attn_decode_cpu(const px_attn_decode_args *a) {
  const px_attn_shape *s = &a->shape;
  int64_t row = (int64_t)s->kv_heads * s->head_dim, group = s->heads / s->kv_heads;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int32_t seq = 0; seq < s->seqs; seq++)
    for (int32_t g = 0; g < s->kv_heads; g++) {
      const px_kv_segment *segment = segment_of(s, seq);
      key_source src = {.shape = s, .segment = segment, .k = a->k_cache, .v = a->v_cache, .k_stride = row, .v_stride = row,
                        .blocks = a->block_table + (int64_t)seq * a->max_blocks, .page_tokens = a->page_tokens,
                        .prefix = segment ? segment->len : 0};
      int64_t q0 = s->q_offsets[seq], nq = s->q_offsets[seq + 1] - q0;
      for (int64_t block = 0; block * QUERIES < nq * group; block++)
        sequence_fwd(&src, g, block, a->q, a->q_stride, q0, nq, a->kv_lens[seq], a->o, a->o_stride, NULL, 0);
    }
  return 0;
}

/* ---- Backward. Tasks are (chunk of sequences, kv head): own gradients have one writer, the segments' go to the chunk's
 * partial sums, which are added in order. ---- */

size_t px_attn_bwd_workspace(const px_attn_shape *shape, int64_t q_rows, int64_t segment_rows_total) {
  int64_t width = (int64_t)shape->kv_heads * shape->head_dim;
  int64_t floats = CHUNKS * segment_rows_total * 2 * width + q_rows * shape->heads + q_rows * 2 * width;
  return (size_t)floats * sizeof(float) + 64;
}

/* Rows of all segments before segment id. */
static int64_t segment_start(const px_attn_shape *s, int32_t id) {
  int64_t rows = 0;
  for (int32_t i = 0; i < id; i++) rows += s->segments[i].len;
  return rows;
}

typedef struct bwd_task {
  const px_attn_bwd_args *a;
  key_source src;
  int64_t g, q0, nq, k0, nk, lse_rows;
  float *dk_seg, *dv_seg;   /* [P, width] partial sums of this chunk, at this kv head; NULL without a segment */
  float *dk_own, *dv_own;   /* [rows, width] float32 */
  int64_t width;
} bwd_task;

/* One query row against one tile of keys: dq accumulates in dq_row. */
static void row_bwd(const bwd_task *t, const query_row *r, float lse, float delta, int64_t from, int64_t n, const float *k, const float *v,
                    const float *q, const float *dout, float *dq_row) {
  int64_t dim = t->src.shape->head_dim;
  float scale = t->src.shape->scale;
  for (int64_t j = 0; j < n; j++) {
    int64_t own = from + j - t->src.prefix;
    if (own >= 0 && (own < r->first || own >= r->end)) continue;
    float p = px_exp(scale * dot(q, k + j * dim, dim) - lse), ds = p * (dot(dout, v + j * dim, dim) - delta) * scale;
    float *dk = own < 0 ? t->dk_seg + (from + j) * t->width : t->dk_own + (t->k0 + own) * t->width + t->g * dim;
    float *dv = own < 0 ? t->dv_seg + (from + j) * t->width : t->dv_own + (t->k0 + own) * t->width + t->g * dim;
    axpy(ds, q, dk, dim);
    axpy(p, dout, dv, dim);
    if (dq_row) axpy(ds, k + j * dim, dq_row, dim);
  }
}

static void sequence_bwd(const bwd_task *t) {
  const px_attn_bwd_args *a = t->a;
  const px_attn_shape *s = &a->shape;
  int64_t dim = s->head_dim, group = s->heads / s->kv_heads, keys = t->src.prefix + (a->dq ? t->nk : 0);
  float k[KEYS * MAX_DIM], v[KEYS * MAX_DIM], q[QUERIES * MAX_DIM], dout[QUERIES * MAX_DIM], dq[QUERIES * MAX_DIM], o[MAX_DIM];
  for (int64_t block = 0; block * QUERIES < t->nq * group; block++) {
    query_row r[QUERIES];
    float lse[QUERIES], delta[QUERIES];
    int count = 0;
    for (int64_t at = block * QUERIES; at < t->nq * group && count < QUERIES; at++, count++) {
      int64_t i = at / group, head = t->g * group + at % group;
      r[count] = (query_row){.row = t->q0 + i, .head = head};
      visible(s, i, t->nq, t->nk, &r[count].first, &r[count].end);
      px_load_row(a->q, s->dtype, r[count].row * a->q_stride + head * dim, dim, q + count * dim);
      px_load_row(a->dout, s->dtype, r[count].row * a->dout_stride + head * dim, dim, dout + count * dim);
      px_load_row(a->o, s->dtype, r[count].row * a->o_stride + head * dim, dim, o);
      delta[count] = dot(dout + count * dim, o, dim);
      lse[count] = a->lse[head * t->lse_rows + r[count].row];
      memset(dq + count * dim, 0, (size_t)dim * sizeof(float));
    }
    for (int64_t from = 0; from < keys; from += KEYS) {
      int64_t n = keys - from < KEYS ? keys - from : KEYS;
      load_keys(&t->src, t->g, from, n, false, k);
      load_keys(&t->src, t->g, from, n, true, v);
      for (int b = 0; b < count; b++)
        if (lse[b] != -INFINITY)
          row_bwd(t, &r[b], lse[b], delta[b], from, n, k, v, q + b * dim, dout + b * dim, a->dq ? dq + b * dim : NULL);
    }
    for (int b = 0; a->dq && b < count; b++)
      px_store_row(a->dq, s->dtype, r[b].row * a->dq_stride + r[b].head * dim, dim, dq + b * dim);
  }
}

static void add_segments(const px_attn_bwd_args *a, const float *partial, int64_t segment_rows, int64_t width) {
  const px_attn_shape *s = &a->shape;
  for (int32_t id = 0; id < s->segment_count; id++) {
    const px_kv_segment *seg = &s->segments[id];
    int64_t start = segment_start(s, id);
    if (!seg->dk || !seg->dv) continue;
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < seg->len; j++)
      for (int c = 0; c < CHUNKS; c++) {
        const float *dk = partial + ((2 * c) * segment_rows + start + j) * width, *dv = partial + ((2 * c + 1) * segment_rows + start + j) * width;
        axpy(1.0f, dk, seg->dk + j * seg->grad_stride, width);
        axpy(1.0f, dv, seg->dv + j * seg->grad_stride, width);
      }
  }
}

int px_attn_bwd_cpu(const px_attn_bwd_args *a) {
  const px_attn_shape *s = &a->shape;
  if (s->seqs == 0) return 0;
  int64_t width = (int64_t)s->kv_heads * s->head_dim, rows = s->q_offsets[s->seqs], key_rows = s->k_offsets[s->seqs];
  int64_t segment_rows = s->adapter && s->segments ? segment_start(s, s->segment_count) : 0;
  float *partial = a->workspace, *dk_own = partial + CHUNKS * 2 * segment_rows * width, *dv_own = dk_own + key_rows * width;
  int64_t per_chunk = (s->seqs + CHUNKS - 1) / CHUNKS;
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < CHUNKS * 2 * segment_rows; i++) memset(partial + i * width, 0, (size_t)width * sizeof(float));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (a->dq ? 2 * key_rows : 0); i++) memset(dk_own + i * width, 0, (size_t)width * sizeof(float));
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int chunk = 0; chunk < CHUNKS; chunk++)
      for (int32_t g = 0; g < s->kv_heads; g++)
        for (int64_t seq = chunk * per_chunk; seq < (chunk + 1) * per_chunk && seq < s->seqs; seq++) {
          const px_kv_segment *segment = segment_of(s, (int32_t)seq);
          int64_t start = segment ? segment_start(s, s->adapter[seq]) : 0;
          bwd_task t = {.a = a, .g = g, .q0 = s->q_offsets[seq], .nq = s->q_offsets[seq + 1] - s->q_offsets[seq], .k0 = s->k_offsets[seq],
                        .nk = s->k_offsets[seq + 1] - s->k_offsets[seq], .lse_rows = rows, .dk_own = dk_own, .dv_own = dv_own, .width = width,
                        .src = {.shape = s, .segment = segment, .k = a->k, .v = a->v, .k_stride = a->k_stride, .v_stride = a->v_stride,
                                .first_row = s->k_offsets[seq], .prefix = segment ? segment->len : 0}};
          if (segment) {
            t.dk_seg = partial + ((2 * chunk) * segment_rows + start) * width + g * s->head_dim;
            t.dv_seg = partial + ((2 * chunk + 1) * segment_rows + start) * width + g * s->head_dim;
          }
          sequence_bwd(&t);
        }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (a->dq ? key_rows : 0); i++) {
      px_store_row(a->dk, s->dtype, i * a->dk_stride, width, dk_own + i * width);
      px_store_row(a->dv, s->dtype, i * a->dv_stride, width, dv_own + i * width);
    }
  }
  if (segment_rows) add_segments(a, partial, segment_rows, width);
  return 0;
}
