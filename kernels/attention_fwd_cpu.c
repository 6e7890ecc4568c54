/* SPDX-License-Identifier: MIT
 * Forward and decode: online softmax over tiles of keys (Milakov and Gimelshein 2018, Dao et al. 2022). */
#include "kernels/attention_tile_cpu.h"

/* Sums of a tile of rows so far: o = sum p v, with p = exp(s - best), sum = sum p. */
typedef struct partial {
  float best[PX_TILE], sum[PX_TILE];
  float o[PX_TILE_FLOATS];
} partial;

/* s[key][row] becomes p; best and sum move on; shrink is what the sums so far are multiplied by. */
static void softmax_tile(int64_t n, int64_t rows, int64_t row_stride, float *s, partial *x, float *shrink) {
  float top[PX_TILE], base[PX_TILE], sum[PX_TILE];
  for (int64_t i = 0; i < rows; i++) top[i] = x->best[i];
  for (int64_t j = 0; j < n; j++) {
#pragma omp simd
    for (int64_t i = 0; i < rows; i++) top[i] = s[j * row_stride + i] > top[i] ? s[j * row_stride + i] : top[i];
  }
#pragma omp simd
  for (int64_t i = 0; i < rows; i++) {
    base[i] = top[i] == -INFINITY ? 0.0f : top[i]; /* a row that has seen nothing yet */
    shrink[i] = px_exp(x->best[i] - base[i]);
    x->best[i] = top[i];
    sum[i] = x->sum[i] * shrink[i];
  }
  for (int64_t j = 0; j < n; j++) {
#pragma omp simd
    for (int64_t i = 0; i < rows; i++) {
      float p = px_exp(s[j * row_stride + i] - base[i]);
      s[j * row_stride + i] = p;
      sum[i] += p;
    }
  }
  for (int64_t i = 0; i < rows; i++) x->sum[i] = sum[i];
}

/* All rows of a tile against keys [from, to). */
static void rows_fwd(const px_tile_keys *y, const px_tile_rows *r, int64_t from, int64_t to, const float *q,
                     partial *x) {
  int64_t dim = y->shape->head_dim, tile = px_tile_size(dim), stride = px_tile_stride(dim),
          seen = y->prefix + r->max_end, key_stride;
  float copy[PX_TILE_FLOATS], s[PX_TILE * PX_TILE], shrink[PX_TILE];
  for (int64_t i = 0; i < r->padded; i++) x->best[i] = -INFINITY, x->sum[i] = 0;
  memset(x->o, 0, (size_t)(r->count * stride) * sizeof(float));
  for (to = to < seen ? to : seen; from < to; from += tile) {
    int64_t n = to - from < tile ? to - from : tile;
    if (!px_tile_reached(r, y->prefix, from, n)) continue;
    const float *keys = px_tile_keys_at(y, from, n, false, copy, &key_stride);
    px_tile_scores(r, y->prefix, from, n, dim, keys, key_stride, q, s);
    px_tile_mask(r, y->prefix, from, n, s, tile);
    softmax_tile(n, r->padded, tile, s, x, shrink);
    for (int64_t i = 0; i < r->count; i++) {
      float by = shrink[i], *o = x->o + i * stride;
      if (by == 1.0f) continue;
#pragma omp simd
      for (int64_t d = 0; d < stride; d++) o[d] *= by;
    }
    keys = px_tile_keys_at(y, from, n, true, copy, &key_stride);
    px_tile_sum_keys(r, y->prefix, from, n, dim, s, keys, key_stride, x->o);
  }
}

static void load_queries(const px_tile_rows *r, const px_attn_shape *s, const void *q, int64_t q_stride, float *out) {
  float rows[PX_TILE_FLOATS];
  px_tile_load_rows(r, q, q_stride, s, rows);
  px_tile_transpose(r, s->head_dim, s->scale, rows, out);
}

/* o and lse of a tile of rows. lse may be NULL. */
static void store(const px_tile_rows *r, const px_attn_shape *s, partial *x, void *o, int64_t o_stride, float *lse,
                  int64_t lse_rows) {
  int64_t dim = s->head_dim, stride = px_tile_stride(dim);
  for (int64_t i = 0; i < r->count; i++) {
    float *row = x->o + i * stride, inverse = x->sum[i] != 0 ? 1.0f / x->sum[i] : 0.0f;
#pragma omp simd
    for (int64_t d = 0; d < stride; d++) row[d] *= inverse;
    px_store_row(o, s->dtype, r->query[i] * o_stride + r->head[i] * dim, dim, row);
    if (lse) lse[r->head[i] * lse_rows + r->query[i]] = x->sum[i] != 0 ? x->best[i] + logf(x->sum[i]) : -INFINITY;
  }
}

static void block_fwd(const px_attn_fwd_args *a, int32_t seq, int64_t head, int64_t block) {
  const px_attn_shape *s = &a->shape;
  px_tile_keys y = px_tile_dense_keys(s, seq, head, a->k, a->k_stride, a->v, a->v_stride);
  px_tile_rows r;
  px_tile_rows_set(&r, &y, block, s->q_offsets[seq], s->q_offsets[seq + 1] - s->q_offsets[seq]);
  if (r.count == 0) return;
  float q[PX_TILE_FLOATS];
  partial x;
  load_queries(&r, s, a->q, a->q_stride, q);
  rows_fwd(&y, &r, 0, y.prefix + y.own, q, &x);
  store(&r, s, &x, a->o, a->o_stride, a->lse, s->q_offsets[s->seqs]);
}

static int64_t most_blocks(const px_attn_shape *s) {
  int64_t longest = 0, size = px_tile_size(s->head_dim);
  for (int32_t i = 0; i < s->seqs; i++) {
    int64_t n = s->q_offsets[i + 1] - s->q_offsets[i];
    longest = n > longest ? n : longest;
  }
  return (longest * (s->heads / s->kv_heads) + size - 1) / size;
}

int px_attn_fwd_cpu(const px_attn_fwd_args *a) {
  const px_attn_shape *s = &a->shape;
  if (s->seqs == 0) return 0;
  int64_t blocks = most_blocks(s);
#pragma omp parallel for collapse(3) schedule(dynamic, 1)
  for (int32_t seq = 0; seq < s->seqs; seq++)
    for (int32_t g = 0; g < s->kv_heads; g++)
      for (int64_t block = 0; block < blocks; block++) block_fwd(a, seq, g, blocks - 1 - block); /* the longest first */
  return 0;
}

/* ---- Decode: keys of a long sequence are cut into parts, which only the length of that sequence decides. ---- */

enum { PART = 512, PARTS = 8 };

static int64_t part_keys(int64_t all) {
  int64_t keys = (all + PARTS - 1) / PARTS;
  return keys <= PART ? PART : (keys + PX_TILE - 1) / PX_TILE * PX_TILE;
}

/* Floats per (query row, head, part): o, best, sum. */
static int64_t part_floats(int64_t dim) { return dim + 2; }

static float *part_of(const px_attn_decode_args *a, int64_t query, int64_t head, int64_t part) {
  const px_attn_shape *s = &a->shape;
  return (float *)a->workspace + ((query * s->heads + head) * PARTS + part) * part_floats(s->head_dim);
}

static px_tile_keys paged_keys(const px_attn_decode_args *a, int32_t seq, int64_t head) {
  const px_attn_shape *s = &a->shape;
  const px_kv_segment *segment = px_tile_segment(s, seq);
  int64_t row = (int64_t)s->kv_heads * s->head_dim;
  px_tile_keys y = {.shape = s,
                    .segment = segment,
                    .prefix = segment ? segment->len : 0,
                    .own = a->kv_lens[seq],
                    .head = head,
                    .k = a->k_cache,
                    .v = a->v_cache,
                    .k_stride = row,
                    .v_stride = row,
                    .blocks = a->block_table + (int64_t)seq * a->max_blocks,
                    .page_tokens = a->page_tokens};
  return y;
}

static void part_decode(const px_attn_decode_args *a, int32_t seq, int64_t head, int64_t part) {
  const px_attn_shape *s = &a->shape;
  int64_t dim = s->head_dim, stride = px_tile_stride(dim), q0 = s->q_offsets[seq], queries = s->q_offsets[seq + 1] - q0;
  px_tile_keys y = paged_keys(a, seq, head);
  int64_t all = y.prefix + y.own, keys = part_keys(all), rows = queries * (s->heads / s->kv_heads),
          size = px_tile_size(dim);
  if (part > 0 && part * keys >= all) return;
  for (int64_t block = 0; block * size < rows; block++) {
    px_tile_rows r;
    float q[PX_TILE_FLOATS];
    partial x;
    px_tile_rows_set(&r, &y, block, q0, queries);
    load_queries(&r, s, a->q, a->q_stride, q);
    rows_fwd(&y, &r, part * keys, (part + 1) * keys < all ? (part + 1) * keys : all, q, &x);
    if (all <= keys) {
      store(&r, s, &x, a->o, a->o_stride, NULL, 0);
      continue;
    }
    for (int64_t i = 0; i < r.count; i++) {
      float *out = part_of(a, r.query[i], r.head[i], part);
      memcpy(out, x.o + i * stride, (size_t)dim * sizeof(float));
      out[dim] = x.best[i];
      out[dim + 1] = x.sum[i];
    }
  }
}

/* The parts of one query and head, in order. */
static void join_parts(const px_attn_decode_args *a, int64_t parts, int64_t query, int64_t head) {
  const px_attn_shape *s = &a->shape;
  int64_t dim = s->head_dim;
  float best = -INFINITY, sum = 0, o[PX_TILE_DIM] = {0};
  for (int64_t p = 0; p < parts; p++) best = fmaxf(best, part_of(a, query, head, p)[dim]);
  for (int64_t p = 0; p < parts && best != -INFINITY; p++) {
    const float *part = part_of(a, query, head, p);
    float by = px_exp(part[dim] - best);
    sum += by * part[dim + 1];
    for (int64_t d = 0; d < dim; d++) o[d] += by * part[d];
  }
  float inverse = sum != 0 ? 1.0f / sum : 0.0f;
  for (int64_t d = 0; d < dim; d++) o[d] *= inverse;
  px_store_row(a->o, s->dtype, query * a->o_stride + head * dim, dim, o);
}

int px_attn_decode_cpu(const px_attn_decode_args *a) {
  const px_attn_shape *s = &a->shape;
  int64_t longest = 0;
  for (int32_t seq = 0; seq < s->seqs; seq++) {
    const px_kv_segment *segment = px_tile_segment(s, seq);
    int64_t all = a->kv_lens[seq] + (segment ? segment->len : 0), parts = (all + part_keys(all) - 1) / part_keys(all);
    longest = parts > longest ? parts : longest;
  }
  longest = longest ? longest : 1;
#pragma omp parallel
  {
#pragma omp for collapse(3) schedule(dynamic, 1)
    for (int32_t seq = 0; seq < s->seqs; seq++)
      for (int32_t g = 0; g < s->kv_heads; g++)
        for (int64_t part = 0; part < longest; part++) part_decode(a, seq, g, part);
    if (longest > 1) {
#pragma omp for collapse(2) schedule(static)
      for (int32_t seq = 0; seq < s->seqs; seq++)
        for (int32_t h = 0; h < s->heads; h++) {
          const px_kv_segment *segment = px_tile_segment(s, seq);
          int64_t all = a->kv_lens[seq] + (segment ? segment->len : 0),
                  parts = (all + part_keys(all) - 1) / part_keys(all);
          for (int64_t i = s->q_offsets[seq]; parts > 1 && i < s->q_offsets[seq + 1]; i++) join_parts(a, parts, i, h);
        }
    }
  }
  return 0;
}
