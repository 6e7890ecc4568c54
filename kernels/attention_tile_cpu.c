/* SPDX-License-Identifier: MIT */
#include "kernels/attention_tile_cpu.h"

/* Vectors of the compiler's own extension: as wide as the machine the build is for. */
#ifdef __AVX512F__
enum { LANES = 16, VECTORS = 4, BLOCK = 6 }; /* 24 of 32 registers accumulate */
#else
enum { LANES = 8, VECTORS = 2, BLOCK = 6 }; /* 12 of 16 */
#endif
typedef float vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

const px_kv_segment *px_tile_segment(const px_attn_shape *s, int32_t seq) {
  int32_t id = s->adapter ? s->adapter[seq] : -1;
  return id >= 0 && id < s->segment_count && s->segments[id].len > 0 ? &s->segments[id] : NULL;
}

px_tile_keys px_tile_dense_keys(const px_attn_shape *s, int32_t seq, int64_t head, const void *k, int64_t k_stride,
                                const void *v, int64_t v_stride) {
  const px_kv_segment *segment = px_tile_segment(s, seq);
  px_tile_keys y = {.shape = s,
                    .segment = segment,
                    .prefix = segment ? segment->len : 0,
                    .head = head,
                    .k = k,
                    .v = v,
                    .own = s->k_offsets[seq + 1] - s->k_offsets[seq],
                    .k_stride = k_stride,
                    .v_stride = v_stride,
                    .first_row = s->k_offsets[seq]};
  return y;
}

/* Own keys [first, end) that one query sees. */
static void visible(const px_attn_shape *s, int64_t query, int64_t queries, int64_t own, int32_t *first, int32_t *end) {
  *first = 0;
  *end = (int32_t)own;
  if (s->mask != PX_MASK_CAUSAL) return;
  int64_t last = query + own - queries + 1;
  *end = (int32_t)(last > 0 ? last : 0);
  if (s->window && last > s->window) *first = (int32_t)(last - s->window);
}

void px_tile_rows_set(px_tile_rows *r, const px_tile_keys *y, int64_t block, int64_t q0, int64_t queries) {
  const px_attn_shape *s = y->shape;
  int64_t group = s->heads / s->kv_heads, size = px_tile_size(s->head_dim), at = block * size,
          left = queries * group - at;
  r->count = left < 0 ? 0 : left < size ? left : size;
  r->padded = (r->count + PX_TILE_ALIGN - 1) / PX_TILE_ALIGN * PX_TILE_ALIGN;
  r->min_first = r->min_end = INT32_MAX;
  r->max_first = r->max_end = 0;
  for (int64_t i = 0; i < r->padded; i++) {
    r->first[i] = r->end[i] = 0;
    if (i >= r->count) continue;
    int64_t query = (at + i) / group;
    r->query[i] = q0 + query;
    r->head[i] = y->head * group + (at + i) % group;
    visible(s, query, queries, y->own, &r->first[i], &r->end[i]);
    r->min_first = r->first[i] < r->min_first ? r->first[i] : r->min_first;
    r->max_first = r->first[i] > r->max_first ? r->first[i] : r->max_first;
    r->min_end = r->end[i] < r->min_end ? r->end[i] : r->min_end;
    r->max_end = r->end[i] > r->max_end ? r->end[i] : r->max_end;
  }
}

static void load(const void *x, px_dtype type, int64_t at, int64_t dim, int64_t stride, float *out) {
  px_load_row(x, type, at, dim, out);
  for (int64_t i = dim; i < stride; i++) out[i] = 0;
}

/* Keys that lie as a product reads them: float32, no padding, in one piece. */
static const float *keys_in_place(const px_tile_keys *y, int64_t from, int64_t n, bool values, int64_t *stride) {
  int64_t dim = y->shape->head_dim, own = from - y->prefix;
  if (y->shape->dtype != PX_F32 || dim != px_tile_stride(dim)) return NULL;
  if (own >= 0 && !y->blocks) {
    *stride = values ? y->v_stride : y->k_stride;
    return (const float *)(values ? y->v : y->k) + (y->first_row + own) * *stride + y->head * dim;
  }
  if (own + n > 0) return NULL;
  *stride = y->segment->stride;
  return (const float *)(values ? y->segment->v : y->segment->k) + from * *stride + y->head * dim;
}

const float *px_tile_keys_at(const px_tile_keys *y, int64_t from, int64_t n, bool values, float *copy,
                             int64_t *out_stride) {
  const float *in_place = keys_in_place(y, from, n, values, out_stride);
  if (in_place) return in_place;
  int64_t dim = y->shape->head_dim, stride = px_tile_stride(dim), row_stride = values ? y->v_stride : y->k_stride;
  px_dtype type = y->shape->dtype;
  *out_stride = stride;
  for (int64_t j = 0; j < n; j++) {
    int64_t own = from + j - y->prefix;
    if (own < 0) {
      load(values ? y->segment->v : y->segment->k, type, (from + j) * y->segment->stride + y->head * dim, dim, stride,
           copy + j * stride);
      continue;
    }
    int64_t row = y->blocks ? (int64_t)y->blocks[own / y->page_tokens] * y->page_tokens + own % y->page_tokens
                            : y->first_row + own;
    load(values ? y->v : y->k, type, row * row_stride + y->head * dim, dim, stride, copy + j * stride);
  }
  return copy;
}

void px_tile_load_rows(const px_tile_rows *r, const void *x, int64_t x_stride, const px_attn_shape *s, float *out) {
  int64_t dim = s->head_dim, stride = px_tile_stride(dim);
  for (int64_t i = 0; i < r->count; i++)
    load(x, s->dtype, r->query[i] * x_stride + r->head[i] * dim, dim, stride, out + i * stride);
  memset(out + r->count * stride, 0, (size_t)((r->padded - r->count) * stride) * sizeof(float));
}

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

/* Columns of four rows of four become rows. */
static inline void transpose_four(const float *in, int64_t in_row, float scale, float *out, int64_t out_row) {
  four a = *(const four *)in * scale, b = *(const four *)(in + in_row) * scale,
       c = *(const four *)(in + 2 * in_row) * scale, d = *(const four *)(in + 3 * in_row) * scale;
  four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  *(four *)out = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  *(four *)(out + out_row) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  ab = __builtin_shufflevector(a, b, 2, 6, 3, 7), cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *(four *)(out + 2 * out_row) = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  *(four *)(out + 3 * out_row) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

void px_tile_transpose(const px_tile_rows *r, int64_t dim, float scale, const float *in, float *out) {
  int64_t in_row = px_tile_stride(dim), out_row = px_tile_size(dim);
  for (int64_t d = 0; d < dim; d += 4)
    for (int64_t i = 0; i < r->padded; i += 4)
      transpose_four(in + i * in_row + d, in_row, scale, out + d * out_row + i, out_row);
}

/* m <= BLOCK rows and v <= VECTORS vectors of c, in registers: both are constants where this is inlined. */
static inline __attribute__((always_inline)) void block_product(int m, int v, int64_t inner, const float *a,
                                                                int64_t a_row, int64_t a_col, const float *b,
                                                                int64_t b_row, float *c, int64_t c_row,
                                                                bool accumulate) {
  vector sum[BLOCK][VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < m; i++)
#pragma GCC unroll 8
    for (int n = 0; n < v; n++) sum[i][n] = accumulate ? *(const vector *)(c + i * c_row + n * LANES) : (vector){0};
  for (int64_t k = 0; k < inner; k++) {
    vector row[VECTORS];
#pragma GCC unroll 8
    for (int n = 0; n < v; n++) row[n] = *(const vector *)(b + k * b_row + n * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
      float x = a[i * a_row + k * a_col];
#pragma GCC unroll 8
      for (int n = 0; n < v; n++) sum[i][n] += x * row[n];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < m; i++)
#pragma GCC unroll 8
    for (int n = 0; n < v; n++) *(vector *)(c + i * c_row + n * LANES) = sum[i][n];
}

#define ROWS_OF(v)                                                                                         \
  static void rows_##v(int64_t m, int64_t k, const float *a, int64_t a_row, int64_t a_col, const float *b, \
                       int64_t b_row, float *c, int64_t c_row, bool accumulate) {                          \
    for (; m >= BLOCK; m -= BLOCK, a += BLOCK * a_row, c += BLOCK * c_row)                                 \
      block_product(BLOCK, v, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);                         \
    switch (m) {                                                                                           \
      case 5:                                                                                              \
        block_product(5, v, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);                           \
        break;                                                                                             \
      case 4:                                                                                              \
        block_product(4, v, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);                           \
        break;                                                                                             \
      case 3:                                                                                              \
        block_product(3, v, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);                           \
        break;                                                                                             \
      case 2:                                                                                              \
        block_product(2, v, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);                           \
        break;                                                                                             \
      case 1:                                                                                              \
        block_product(1, v, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);                           \
        break;                                                                                             \
      default:                                                                                             \
        break;                                                                                             \
    }                                                                                                      \
  }
ROWS_OF(1)
ROWS_OF(2)
#ifdef __AVX512F__
ROWS_OF(3)
ROWS_OF(4)
#endif
#undef ROWS_OF

/* c[m][n] (+)= sum_k a[m * a_row + k * a_col] b[k * b_row + n]; n is a multiple of LANES. */
static void product(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_col, const float *b,
                    int64_t b_row, float *c, int64_t c_row, bool accumulate) {
  while (n > 0) {
    int64_t v = n / LANES < VECTORS ? n / LANES : VECTORS;
    switch (v) {
#ifdef __AVX512F__
      case 4:
        rows_4(m, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
        break;
      case 3:
        rows_3(m, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
        break;
#endif
      case 2:
        rows_2(m, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
        break;
      default:
        rows_1(m, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
        break;
    }
    n -= v * LANES;
    b += v * LANES;
    c += v * LANES;
  }
}

/* Every row sees all of the keys. */
static bool all_visible(const px_tile_rows *r, int64_t prefix, int64_t from, int64_t n) {
  return from + n <= prefix + r->min_end;
}

/* The first row that sees a key or one after it: later rows see no fewer. */
static int64_t first_row(const px_tile_rows *r, int64_t own_key, int64_t row) {
  while (row < r->count && r->end[row] <= own_key) row++;
  return row;
}

void px_tile_scores(const px_tile_rows *r, int64_t prefix, int64_t from, int64_t n, int64_t dim, const float *keys,
                    int64_t key_stride, const float *rows_t, float *out) {
  int64_t tile = px_tile_size(dim), row = 0, step = all_visible(r, prefix, from, n) ? n : BLOCK;
  for (int64_t j = 0; j < n; j += step) {
    int64_t m = n - j < step ? n - j : step;
    if (step != n) row = first_row(r, from + j - prefix, row);
    int64_t skip = row / PX_TILE_ALIGN * PX_TILE_ALIGN;
    product(m, r->padded - skip, dim, keys + j * key_stride, key_stride, 1, rows_t + skip, tile, out + j * tile + skip,
            tile, false);
    for (int64_t i = 0; i < m && skip; i++) memset(out + (j + i) * tile, 0, (size_t)skip * sizeof(float));
  }
}

void px_tile_sum_keys(const px_tile_rows *r, int64_t prefix, int64_t from, int64_t n, int64_t dim, const float *weight,
                      const float *keys, int64_t key_stride, float *out) {
  int64_t tile = px_tile_size(dim), stride = px_tile_stride(dim),
          step = all_visible(r, prefix, from, n) ? r->count : BLOCK;
  for (int64_t i = 0; i < r->count; i += step) {
    int64_t m = r->count - i < step ? r->count - i : step, seen = prefix + r->end[i + m - 1] - from;
    product(m, stride, seen < n ? seen : n, weight + i, 1, tile, keys, key_stride, out + i * stride, stride, true);
  }
}

void px_tile_sum_rows(const px_tile_rows *r, int64_t prefix, int64_t from, int64_t n, int64_t dim, const float *weight,
                      const float *x, float *to, int64_t to_stride) {
  int64_t tile = px_tile_size(dim), row = 0, step = all_visible(r, prefix, from, n) ? n : BLOCK;
  for (int64_t j = 0; j < n; j += step) {
    if (step != n) row = first_row(r, from + j - prefix, row);
    product(n - j < step ? n - j : step, dim, r->count - row, weight + j * tile + row, tile, 1, x + row * dim, dim,
            to + j * to_stride, to_stride, true);
  }
}

bool px_tile_reached(const px_tile_rows *r, int64_t prefix, int64_t from, int64_t n) {
  return from < prefix || (from < prefix + r->max_end && from + n > prefix + r->min_first);
}

void px_tile_mask(const px_tile_rows *r, int64_t prefix, int64_t from, int64_t n, float *s, int64_t s_row) {
  if (all_visible(r, prefix, from, n) && (r->max_first == 0 || from >= prefix + r->max_first || from + n <= prefix))
    return;
  for (int64_t j = from < prefix ? prefix - from : 0; j < n; j++) {
    int32_t own = (int32_t)(from + j - prefix);
    float *x = s + j * s_row;
#pragma omp simd
    for (int64_t i = 0; i < r->padded; i++) x[i] = own >= r->first[i] && own < r->end[i] ? x[i] : -INFINITY;
  }
}
