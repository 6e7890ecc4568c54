/* SPDX-License-Identifier: MIT
 * Attention as attention.h words it, in plain loops: slow, and what the fast path is held against. Scores are computed
 * again wherever they are needed, and every output element has one writer, so nothing needs memory of its own. */
#include "kernels/attention.h"
#include "kernels/math_cpu.h"

enum { MAX_DIM = 256 };

/* One sequence and kv head: [segment | own] keys. */
typedef struct keys_of {
  const px_attn_shape *shape;
  const px_kv_segment *segment; /* NULL: none */
  int64_t prefix, own, queries, kv_head;
  const void *k, *v;
  int64_t k_stride, v_stride, first_row;
  const int32_t *blocks; /* pages; NULL: dense rows */
  int32_t page_tokens;
} keys_of;

static const px_kv_segment *segment_of(const px_attn_shape *s, int32_t seq) {
  int32_t id = s->adapter ? s->adapter[seq] : -1;
  return id >= 0 && id < s->segment_count ? &s->segments[id] : NULL;
}

static bool sees(const keys_of *y, int64_t query, int64_t key) {
  int64_t own = key - y->prefix, last = query + y->own - y->queries;
  if (own < 0 || y->shape->mask == PX_MASK_FULL) return true;
  return own <= last && (y->shape->window == 0 || own > last - y->shape->window);
}

static void key_row(const keys_of *y, int64_t key, bool value, float *out) {
  int64_t dim = y->shape->head_dim, own = key - y->prefix;
  if (own < 0) {
    px_load_row(value ? y->segment->v : y->segment->k, y->shape->dtype, key * y->segment->stride + y->kv_head * dim,
                dim, out);
    return;
  }
  int64_t row = y->first_row + own;
  if (y->blocks) row = (int64_t)y->blocks[own / y->page_tokens] * y->page_tokens + own % y->page_tokens;
  px_load_row(value ? y->v : y->k, y->shape->dtype, row * (value ? y->v_stride : y->k_stride) + y->kv_head * dim, dim,
              out);
}

static float dot(const float *x, const float *y, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

static float score(const keys_of *y, const float *q, int64_t key) {
  float k[MAX_DIM];
  key_row(y, key, false, k);
  return y->shape->scale * dot(q, k, y->shape->head_dim);
}

/* o of one query; returns lse. */
static float query_fwd(const keys_of *y, int64_t query, const float *q, float *o) {
  int64_t dim = y->shape->head_dim, all = y->prefix + y->own;
  float best = -INFINITY, sum = 0, v[MAX_DIM];
  for (int64_t i = 0; i < dim; i++) o[i] = 0;
  for (int64_t j = 0; j < all; j++)
    if (sees(y, query, j)) best = fmaxf(best, score(y, q, j));
  if (best == -INFINITY) return best;
  for (int64_t j = 0; j < all; j++) {
    if (!sees(y, query, j)) continue;
    float p = expf(score(y, q, j) - best);
    key_row(y, j, true, v);
    sum += p;
    for (int64_t i = 0; i < dim; i++) o[i] += p * v[i];
  }
  for (int64_t i = 0; i < dim; i++) o[i] /= sum;
  return best + logf(sum);
}

static keys_of dense_keys(const px_attn_shape *s, int32_t seq, int64_t kv_head, const void *k, int64_t k_stride,
                          const void *v, int64_t v_stride) {
  keys_of y = {.shape = s,
               .segment = segment_of(s, seq),
               .own = s->k_offsets[seq + 1] - s->k_offsets[seq],
               .kv_head = kv_head,
               .queries = s->q_offsets[seq + 1] - s->q_offsets[seq],
               .k = k,
               .v = v,
               .k_stride = k_stride,
               .v_stride = v_stride,
               .first_row = s->k_offsets[seq]};
  y.prefix = y.segment ? y.segment->len : 0;
  return y;
}

int px_attn_fwd_plain_cpu(const px_attn_fwd_args *a) {
  const px_attn_shape *s = &a->shape;
  int64_t dim = s->head_dim, group = s->heads / s->kv_heads;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int32_t seq = 0; seq < s->seqs; seq++)
    for (int32_t h = 0; h < s->heads; h++) {
      keys_of y = dense_keys(s, seq, h / group, a->k, a->k_stride, a->v, a->v_stride);
      for (int64_t i = 0; i < y.queries; i++) {
        int64_t row = s->q_offsets[seq] + i;
        float q[MAX_DIM], o[MAX_DIM];
        px_load_row(a->q, s->dtype, row * a->q_stride + h * dim, dim, q);
        float lse = query_fwd(&y, i, q, o);
        px_store_row(a->o, s->dtype, row * a->o_stride + h * dim, dim, o);
        if (a->lse) a->lse[(int64_t)h * s->q_offsets[s->seqs] + row] = lse;
      }
    }
  return 0;
}

int px_attn_decode_plain_cpu(const px_attn_decode_args *a) {
  const px_attn_shape *s = &a->shape;
  int64_t dim = s->head_dim, group = s->heads / s->kv_heads, cache_row = (int64_t)s->kv_heads * dim;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int32_t seq = 0; seq < s->seqs; seq++)
    for (int32_t h = 0; h < s->heads; h++) {
      keys_of y = {.shape = s,
                   .segment = segment_of(s, seq),
                   .own = a->kv_lens[seq],
                   .kv_head = h / group,
                   .k = a->k_cache,
                   .queries = s->q_offsets[seq + 1] - s->q_offsets[seq],
                   .v = a->v_cache,
                   .k_stride = cache_row,
                   .v_stride = cache_row,
                   .blocks = a->block_table + (int64_t)seq * a->max_blocks,
                   .page_tokens = a->page_tokens};
      y.prefix = y.segment ? y.segment->len : 0;
      for (int64_t i = 0; i < y.queries; i++) {
        int64_t row = s->q_offsets[seq] + i;
        float q[MAX_DIM], o[MAX_DIM];
        px_load_row(a->q, s->dtype, row * a->q_stride + h * dim, dim, q);
        query_fwd(&y, i, q, o);
        px_store_row(a->o, s->dtype, row * a->o_stride + h * dim, dim, o);
      }
    }
  return 0;
}

/* ---- Backward ---- */

typedef struct query_state {
  float q[MAX_DIM], dout[MAX_DIM], lse, delta;
} query_state;

static void load_query(const px_attn_bwd_args *a, int64_t row, int64_t head, query_state *x) {
  int64_t dim = a->shape.head_dim;
  float o[MAX_DIM];
  px_load_row(a->q, a->shape.dtype, row * a->q_stride + head * dim, dim, x->q);
  px_load_row(a->dout, a->shape.dtype, row * a->dout_stride + head * dim, dim, x->dout);
  px_load_row(a->o, a->shape.dtype, row * a->o_stride + head * dim, dim, o);
  x->delta = dot(x->dout, o, dim);
  x->lse = a->lse[head * a->shape.q_offsets[a->shape.seqs] + row];
}

/* p and scale * ds of one pair; false where the query does not see the key. */
static bool pair(const keys_of *y, const query_state *x, int64_t query, int64_t key, float *p, float *ds) {
  float v[MAX_DIM];
  if (!sees(y, query, key)) return false;
  key_row(y, key, true, v);
  *p = expf(score(y, x->q, key) - x->lse);
  *ds = y->shape->scale * *p * (dot(x->dout, v, y->shape->head_dim) - x->delta);
  return true;
}

/* What the queries of one sequence add to the gradient of one key. */
static void key_bwd(const px_attn_bwd_args *a, const keys_of *y, int32_t seq, int64_t key, float *dk, float *dv) {
  int64_t dim = a->shape.head_dim, group = a->shape.heads / a->shape.kv_heads;
  for (int64_t i = 0; i < y->queries; i++)
    for (int64_t h = y->kv_head * group; h < (y->kv_head + 1) * group; h++) {
      query_state x;
      float p, ds;
      load_query(a, a->shape.q_offsets[seq] + i, h, &x);
      if (!pair(y, &x, i, key, &p, &ds)) continue;
      for (int64_t c = 0; c < dim; c++) {
        dk[c] += ds * x.q[c];
        dv[c] += p * x.dout[c];
      }
    }
}

static void segment_bwd(const px_attn_bwd_args *a, int32_t id, int64_t kv_head) {
  const px_attn_shape *s = &a->shape;
  int64_t dim = s->head_dim;
  for (int64_t j = 0; j < s->segments[id].len; j++)
    for (int32_t seq = 0; seq < s->seqs; seq++) {
      if (!s->adapter || s->adapter[seq] != id) continue;
      keys_of y = dense_keys(s, seq, kv_head, a->k, a->k_stride, a->v, a->v_stride);
      int64_t at = j * s->segments[id].grad_stride + kv_head * dim;
      key_bwd(a, &y, seq, j, s->segments[id].dk + at, s->segments[id].dv + at);
    }
}

static void own_bwd(const px_attn_bwd_args *a, int32_t seq, int64_t kv_head) {
  const px_attn_shape *s = &a->shape;
  int64_t dim = s->head_dim, group = s->heads / s->kv_heads;
  keys_of y = dense_keys(s, seq, kv_head, a->k, a->k_stride, a->v, a->v_stride);
  for (int64_t j = 0; j < y.own; j++) {
    float dk[MAX_DIM] = {0}, dv[MAX_DIM] = {0};
    key_bwd(a, &y, seq, y.prefix + j, dk, dv);
    px_store_row(a->dk, s->dtype, (s->k_offsets[seq] + j) * a->dk_stride + kv_head * dim, dim, dk);
    px_store_row(a->dv, s->dtype, (s->k_offsets[seq] + j) * a->dv_stride + kv_head * dim, dim, dv);
  }
  for (int64_t i = 0; i < y.queries; i++)
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
      int64_t row = s->q_offsets[seq] + i;
      float dq[MAX_DIM] = {0}, k[MAX_DIM], p, ds;
      query_state x;
      load_query(a, row, h, &x);
      for (int64_t j = 0; j < y.prefix + y.own; j++) {
        if (!pair(&y, &x, i, j, &p, &ds)) continue;
        key_row(&y, j, false, k);
        for (int64_t c = 0; c < dim; c++) dq[c] += ds * k[c];
      }
      px_store_row(a->dq, s->dtype, row * a->dq_stride + h * dim, dim, dq);
    }
}

int px_attn_bwd_plain_cpu(const px_attn_bwd_args *a) {
  const px_attn_shape *s = &a->shape;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int32_t id = 0; id < s->segment_count; id++)
    for (int32_t g = 0; g < s->kv_heads; g++)
      if (s->segments[id].dk && s->segments[id].dv) segment_bwd(a, id, g);
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int32_t seq = 0; seq < s->seqs; seq++)
    for (int32_t g = 0; g < s->kv_heads; g++)
      if (a->dq) own_bwd(a, seq, g);
  return 0;
}
