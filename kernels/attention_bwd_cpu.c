/* SPDX-License-Identifier: MIT
 * Backward. The tiles of rows of all sequences, in order, are cut into at most CHUNKS ranges (chunks); a task is one
 * chunk and kv head and walks its tiles in order. Gradients of own keys have one writer, but where a sequence is cut:
 * each later chunk then keeps sums of its own for it. Segments' gradients are sums per chunk. Both are added in the
 * order of chunks. */
#include "kernels/attention_tile_cpu.h"

enum { CHUNKS = PX_ATTN_SPLITS };

/* Float32 sums of gradients of keys and values: row j of kv head g at [j * stride + g * dim]. */
typedef struct sums {
  float *dk, *dv;
  int64_t k_stride, v_stride;
} sums;

typedef struct bwd {
  const px_attn_bwd_args *a;
  int64_t width, tiles, chunks, key_rows, segment_rows;
  float *segment_sums, *own_sums;
} bwd;

static int64_t rows_total(const px_attn_shape *s) {
  int64_t rows = 0;
  for (int32_t i = 0; i < s->segment_count && s->segments; i++) rows += s->segments[i].len;
  return rows;
}

static int64_t tiles_of(const px_attn_shape *s, int32_t seq) {
  int64_t size = px_tile_size(s->head_dim),
          rows = (int64_t)(s->q_offsets[seq + 1] - s->q_offsets[seq]) * (s->heads / s->kv_heads);
  return (rows + size - 1) / size;
}

size_t px_attn_bwd_workspace(const px_attn_shape *shape, int64_t rows, int64_t segment_rows_total) {
  int64_t width = (int64_t)shape->kv_heads * shape->head_dim, more = rows * (CHUNKS * 2 * width);
  /* On a device: <do, o> of every row and head, and PX_ATTN_SPLITS partial gradients of the segments. */
  if (more < rows * shape->heads) more = rows * shape->heads;
  return (size_t)(CHUNKS * 2 * width * segment_rows_total + more) * sizeof(float) + 64;
}

static bwd plan(const px_attn_bwd_args *a) {
  const px_attn_shape *s = &a->shape;
  bwd b = {.a = a,
           .width = (int64_t)s->kv_heads * s->head_dim,
           .key_rows = s->k_offsets[s->seqs],
           .segment_rows = rows_total(s)};
  for (int32_t i = 0; i < s->seqs; i++) b.tiles += tiles_of(s, i);
  b.chunks = b.tiles < CHUNKS ? b.tiles : CHUNKS;
  b.segment_sums = a->workspace;
  b.own_sums = b.segment_sums + CHUNKS * 2 * b.width * b.segment_rows;
  return b;
}

static int64_t chunk_start(const bwd *b, int64_t chunk) { return b->tiles * chunk / b->chunks; }

static sums sums_of_segment(const bwd *b, int64_t chunk, int32_t id) {
  const px_attn_shape *s = &b->a->shape;
  int64_t row = chunk * 2 * b->segment_rows;
  for (int32_t i = 0; i < id; i++) row += 2 * s->segments[i].len;
  float *dk = b->segment_sums + row * b->width;
  return (sums){.dk = dk, .dv = dk + s->segments[id].len * b->width, .k_stride = b->width, .v_stride = b->width};
}

/* Sums of own keys, at row `row`: the output itself where it is float32 and the chunk has the sequence's first tile. */
static sums sums_of_own(const bwd *b, int64_t chunk, bool first_tile, int64_t row) {
  const px_attn_bwd_args *a = b->a;
  if (first_tile && a->shape.dtype == PX_F32)
    return (sums){.dk = (float *)a->dk + row * a->dk_stride,
                  .dv = (float *)a->dv + row * a->dv_stride,
                  .k_stride = a->dk_stride,
                  .v_stride = a->dv_stride};
  /* Chunk 0 never goes on with a sequence: its place serves the first tiles of all. */
  float *dk = b->own_sums + ((first_tile ? 0 : chunk) * 2 * b->key_rows + row) * b->width;
  return (sums){.dk = dk, .dv = dk + b->key_rows * b->width, .k_stride = b->width, .v_stride = b->width};
}

static void clear(const sums *to, int64_t rows, int64_t head, int64_t dim) {
  for (int64_t j = 0; j < rows; j++) {
    memset(to->dk + j * to->k_stride + head * dim, 0, (size_t)dim * sizeof(float));
    memset(to->dv + j * to->v_stride + head * dim, 0, (size_t)dim * sizeof(float));
  }
}

/* to[key] += sum over rows of weight[key][row] x[row], for keys [from, from + n) of the key index. */
static void add_product(const px_tile_rows *r, const px_tile_keys *y, int64_t from, int64_t n, const float *weight,
                        const float *x, float *to, int64_t to_stride) {
  int64_t dim = y->shape->head_dim, stride = px_tile_stride(dim);
  if (dim == stride) {
    px_tile_sum_rows(r, y->prefix, from, n, dim, weight, x, to, to_stride);
    return;
  }
  float sum[PX_TILE_FLOATS];
  memset(sum, 0, (size_t)(n * stride) * sizeof(float));
  px_tile_sum_rows(r, y->prefix, from, n, stride, weight, x, sum, stride);
  for (int64_t j = 0; j < n; j++)
    for (int64_t d = 0; d < dim; d++) to[j * to_stride + d] += sum[j * stride + d];
}

/* A tile of rows: everything a tile of keys needs of it. */
typedef struct row_tile {
  px_tile_rows r;
  float q[PX_TILE_FLOATS], dout[PX_TILE_FLOATS], dq[PX_TILE_FLOATS]; /* [row][dim] */
  float q_t[PX_TILE_FLOATS], dout_t[PX_TILE_FLOATS];                 /* [dim][row]; q_t times scale */
  float lse[PX_TILE], delta[PX_TILE];
  int64_t fetched, fetch_end; /* rows of the next tile: see fetch_next */
} row_tile;

enum { FETCH_ROWS = 4 };

static void load_tile(const px_attn_bwd_args *a, row_tile *x) {
  const px_attn_shape *s = &a->shape;
  int64_t dim = s->head_dim, stride = px_tile_stride(dim), rows = s->q_offsets[s->seqs];
  px_tile_load_rows(&x->r, a->q, a->q_stride, s, x->q);
  px_tile_load_rows(&x->r, a->dout, a->dout_stride, s, x->dout);
  px_tile_transpose(&x->r, dim, s->scale, x->q, x->q_t);
  px_tile_transpose(&x->r, dim, 1.0f, x->dout, x->dout_t);
  for (int64_t i = 0; i < x->r.padded; i++) x->delta[i] = x->lse[i] = 0;
  for (int64_t i = 0; i < x->r.count; i++) {
    float sum = 0, lse = a->lse[x->r.head[i] * rows + x->r.query[i]], copy[PX_TILE_DIM];
    const float *o = px_row_in(a->o, s->dtype, x->r.query[i] * a->o_stride + x->r.head[i] * dim, dim, copy);
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < dim; d++) sum += x->dout[i * stride + d] * o[d];
    x->delta[i] = sum;
    x->lse[i] = lse == -INFINITY ? 0.0f : lse; /* such a row sees no key: every p is exp(-inf) */
  }
  memset(x->dq, 0, (size_t)(x->r.count * stride) * sizeof(float));
  x->fetched = x->r.query[x->r.count - 1] + 1;
  x->fetch_end = x->fetched + px_tile_size(dim) / (s->heads / s->kv_heads) + 1;
}

static void fetch(const void *x, px_dtype type, int64_t at, int64_t count) {
  const char *row = (const char *)x + px_dtype_bytes(type, at);
  for (size_t i = 0; i < px_dtype_bytes(type, count); i += 64) __builtin_prefetch(row + i, 0, 2);
}

/* Rows of a batch lie in the order in which they are worked on, whosever they are, and come from main memory once: those
 * after this tile's are asked for, a few at a time, while this one is computed. */
static void fetch_next(const px_attn_bwd_args *a, row_tile *x, int64_t head) {
  const px_attn_shape *s = &a->shape;
  int64_t group = s->heads / s->kv_heads, dim = s->head_dim, width = group * dim, rows = s->q_offsets[s->seqs],
          end = x->fetch_end < rows ? x->fetch_end : rows;
  for (int i = 0; i < FETCH_ROWS && x->fetched < end; i++, x->fetched++) {
    fetch(a->q, s->dtype, x->fetched * a->q_stride + head * width, width);
    fetch(a->dout, s->dtype, x->fetched * a->dout_stride + head * width, width);
    fetch(a->o, s->dtype, x->fetched * a->o_stride + head * width, width);
    if (s->k_offsets[s->seqs] != rows) continue;
    fetch(a->k, s->dtype, x->fetched * a->k_stride + head * dim, dim);
    fetch(a->v, s->dtype, x->fetched * a->v_stride + head * dim, dim);
  }
}

/* p and scale * ds in the places of the scores and of <dout, value>. */
static void probabilities(const row_tile *x, int64_t n, int64_t row_stride, float scale, float *s, float *dp) {
  for (int64_t j = 0; j < n; j++) {
    float *sj = s + j * row_stride, *dj = dp + j * row_stride;
#pragma omp simd
    for (int64_t i = 0; i < x->r.padded; i++) {
      float p = px_exp(sj[i] - x->lse[i]);
      sj[i] = p;
      dj[i] = scale * (p * (dj[i] - x->delta[i]));
    }
  }
}

/* A tile of rows against keys [from, from + n): all of them the segment's or all own, row 0 of `to` being key `from`.
 */
static void keys_bwd(const px_attn_bwd_args *a, const px_tile_keys *y, row_tile *x, int64_t from, int64_t n,
                     const sums *to, bool want_dq) {
  int64_t dim = y->shape->head_dim, tile = px_tile_size(dim);
  int64_t k_stride, v_stride;
  float k_copy[PX_TILE_FLOATS], v_copy[PX_TILE_FLOATS], s[PX_TILE * PX_TILE], dp[PX_TILE * PX_TILE];
  const float *k = px_tile_keys_at(y, from, n, false, k_copy, &k_stride),
              *v = px_tile_keys_at(y, from, n, true, v_copy, &v_stride);
  px_tile_scores(&x->r, y->prefix, from, n, dim, k, k_stride, x->q_t, s);
  fetch_next(a, x, y->head);
  px_tile_scores(&x->r, y->prefix, from, n, dim, v, v_stride, x->dout_t, dp);
  px_tile_mask(&x->r, y->prefix, from, n, s, tile);
  fetch_next(a, x, y->head);
  probabilities(x, n, tile, y->shape->scale, s, dp);
  if (to->dk) {
    fetch_next(a, x, y->head);
    add_product(&x->r, y, from, n, dp, x->q, to->dk + y->head * dim, to->k_stride);
    add_product(&x->r, y, from, n, s, x->dout, to->dv + y->head * dim, to->v_stride);
  }
  if (want_dq) px_tile_sum_keys(&x->r, y->prefix, from, n, dim, dp, k, k_stride, x->dq);
}

/* Keys [from, to) of the key index; sums are of its first key, `base`. */
static void range_bwd(const px_attn_bwd_args *a, const px_tile_keys *y, row_tile *x, int64_t from, int64_t to,
                      const sums *base, bool want_dq) {
  int64_t tile = px_tile_size(y->shape->head_dim);
  for (int64_t at = from; at < to; at += tile) {
    int64_t n = to - at < tile ? to - at : tile;
    if (!px_tile_reached(&x->r, y->prefix, at, n)) continue;
    sums here = *base;
    if (here.dk) {
      here.dk += (at - from) * here.k_stride;
      here.dv += (at - from) * here.v_stride;
    }
    keys_bwd(a, y, x, at, n, &here, want_dq);
  }
}

static bool wanted(const px_kv_segment *segment) { return segment && segment->dk && segment->dv; }

/* Tiles [first, end) of one sequence, in one chunk. */
static void sequence_bwd(const bwd *b, int64_t chunk, int32_t seq, int64_t head, int64_t first, int64_t end) {
  const px_attn_bwd_args *a = b->a;
  const px_attn_shape *s = &a->shape;
  px_tile_keys y = px_tile_dense_keys(s, seq, head, a->k, a->k_stride, a->v, a->v_stride);
  sums segment = {0}, own = {0};
  if (wanted(y.segment)) segment = sums_of_segment(b, chunk, s->adapter[seq]);
  if (a->dq) {
    own = sums_of_own(b, chunk, first == 0, y.first_row);
    clear(&own, y.own, head, s->head_dim);
  }
  for (int64_t tile = first; tile < end; tile++) {
    row_tile x;
    px_tile_rows_set(&x.r, &y, tile, s->q_offsets[seq], s->q_offsets[seq + 1] - s->q_offsets[seq]);
    load_tile(a, &x);
    if (a->dq || segment.dk) range_bwd(a, &y, &x, 0, y.prefix, &segment, a->dq != NULL);
    if (!a->dq) continue;
    range_bwd(a, &y, &x, y.prefix, y.prefix + (x.r.max_end < y.own ? x.r.max_end : y.own), &own, true);
    for (int64_t i = 0; i < x.r.count; i++)
      px_store_row(a->dq, s->dtype, x.r.query[i] * a->dq_stride + x.r.head[i] * s->head_dim, s->head_dim,
                   x.dq + i * px_tile_stride(s->head_dim));
  }
}

/* The tiles of sequence `seq`, whose first is number `start`, that lie in the chunk: [*first, *end) of its own tiles.
 */
static bool part_of_chunk(const bwd *b, int64_t chunk, int32_t seq, int64_t start, int64_t *first, int64_t *end) {
  int64_t from = chunk_start(b, chunk), to = chunk_start(b, chunk + 1), tiles = tiles_of(&b->a->shape, seq);
  *first = from > start ? from - start : 0;
  *end = to - start < tiles ? to - start : tiles;
  return *first < *end;
}

static bool chunk_names(const bwd *b, int64_t chunk, int32_t id) {
  const px_attn_shape *s = &b->a->shape;
  int64_t start = 0, first, end;
  for (int32_t seq = 0; seq < s->seqs; start += tiles_of(s, seq), seq++)
    if (s->adapter && s->adapter[seq] == id && part_of_chunk(b, chunk, seq, start, &first, &end)) return true;
  return false;
}

static void chunk_bwd(const bwd *b, int64_t chunk, int64_t head) {
  const px_attn_shape *s = &b->a->shape;
  int64_t start = 0, first, end;
  for (int32_t id = 0; id < s->segment_count; id++) {
    if (s->segments[id].len == 0 || !wanted(&s->segments[id]) || !chunk_names(b, chunk, id)) continue;
    sums segment = sums_of_segment(b, chunk, id);
    clear(&segment, s->segments[id].len, head, s->head_dim);
  }
  for (int32_t seq = 0; seq < s->seqs; start += tiles_of(s, seq), seq++)
    if (part_of_chunk(b, chunk, seq, start, &first, &end)) sequence_bwd(b, chunk, seq, head, first, end);
}

static void add_row(float *to, const float *x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) to[i] += x[i];
}

/* Row j of one sequence: the sums of all its chunks, in order, rounded once. */
static void finish_own_row(const bwd *b, int32_t seq, int64_t start, int64_t j) {
  const px_attn_bwd_args *a = b->a;
  const px_attn_shape *s = &a->shape;
  int64_t row = s->k_offsets[seq] + j, first, end;
  sums to = sums_of_own(b, 0, true, row);
  if (tiles_of(s, seq) == 0) { /* keys without queries */
    memset(to.dk, 0, (size_t)b->width * sizeof(float));
    memset(to.dv, 0, (size_t)b->width * sizeof(float));
  }
  for (int64_t chunk = 1; chunk < b->chunks; chunk++) {
    if (!part_of_chunk(b, chunk, seq, start, &first, &end) || first == 0) continue;
    sums more = sums_of_own(b, chunk, false, row);
    add_row(to.dk, more.dk, b->width);
    add_row(to.dv, more.dv, b->width);
  }
  if (s->dtype == PX_F32) return;
  px_store_row(a->dk, s->dtype, row * a->dk_stride, b->width, to.dk);
  px_store_row(a->dv, s->dtype, row * a->dv_stride, b->width, to.dv);
}

static bool is_cut(const bwd *b, int32_t seq, int64_t start) {
  int64_t end = start + tiles_of(&b->a->shape, seq);
  for (int64_t chunk = 1; chunk < b->chunks; chunk++)
    if (chunk_start(b, chunk) > start && chunk_start(b, chunk) < end) return true;
  return false;
}

/* Inside a parallel region: all threads walk the sequences and share the rows of each. */
static void finish_own(const bwd *b) {
  const px_attn_shape *s = &b->a->shape;
  int64_t start = 0;
  for (int32_t seq = 0; seq < s->seqs; start += tiles_of(s, seq), seq++) {
    if (s->dtype == PX_F32 && tiles_of(s, seq) > 0 && !is_cut(b, seq, start)) continue; /* complete already */
#pragma omp for schedule(static) nowait
    for (int64_t j = 0; j < s->k_offsets[seq + 1] - s->k_offsets[seq]; j++) finish_own_row(b, seq, start, j);
  }
}

static void finish_segments(const bwd *b) {
  const px_attn_shape *s = &b->a->shape;
  for (int32_t id = 0; id < s->segment_count; id++) {
    const px_kv_segment *to = &s->segments[id];
    if (to->len == 0 || !wanted(to)) continue;
    for (int64_t chunk = 0; chunk < b->chunks; chunk++) {
      if (!chunk_names(b, chunk, id)) continue;
      sums from = sums_of_segment(b, chunk, id);
      /* Static and of one length: a row stays with its thread from chunk to chunk, so the order is kept. */
#pragma omp for schedule(static) nowait
      for (int64_t j = 0; j < to->len; j++) {
        add_row(to->dk + j * to->grad_stride, from.dk + j * b->width, b->width);
        add_row(to->dv + j * to->grad_stride, from.dv + j * b->width, b->width);
      }
    }
  }
}

int px_attn_bwd_cpu(const px_attn_bwd_args *a) {
  const px_attn_shape *s = &a->shape;
  if (s->seqs == 0) return 0;
  bwd b = plan(a);
#pragma omp parallel
  {
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int64_t chunk = 0; chunk < b.chunks; chunk++)
      for (int32_t g = 0; g < s->kv_heads; g++) chunk_bwd(&b, chunk, g);
    if (a->dq) finish_own(&b);
    finish_segments(&b);
  }
  return 0;
}
