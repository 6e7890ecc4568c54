/* SPDX-License-Identifier: MIT
 * What the fast forward, backward and decode share. Work goes by tiles: PX_TILE-limited rows, where a row is one query
 * of one head of a kv head's group (query outermost), against as many keys of [segment | own]. Scores of a tile stand
 * transposed, s[key][row]: keys and values are then used as they lie in memory, and the softmax runs down the columns.
 * Tiles of keys start at multiples of the tile in the key index, and every element of a product is summed in the order
 * of its inner index: what a row gives depends on nothing but the row and its keys. */
#ifndef PX_KERNELS_ATTENTION_TILE_CPU_H
#define PX_KERNELS_ATTENTION_TILE_CPU_H

#include "kernels/attention.h"
#include "kernels/math_cpu.h"

enum { PX_TILE = 64, PX_TILE_FLOATS = 64 * 128, PX_TILE_DIM = 256, PX_TILE_ALIGN = 16 };

/* Rows and keys of a tile, so that any [tile][dim] fits PX_TILE_FLOATS. */
static inline int64_t px_tile_size(int64_t dim) { return dim <= 128 ? PX_TILE : PX_TILE / 2; }
/* Row stride of a [tile][dim] tile; the columns from dim on are zero. */
static inline int64_t px_tile_stride(int64_t dim) { return (dim + PX_TILE_ALIGN - 1) / PX_TILE_ALIGN * PX_TILE_ALIGN; }

/* The keys and values of one sequence and kv head. */
typedef struct px_tile_keys {
  const px_attn_shape *shape;
  const px_kv_segment *segment; /* NULL: none */
  int64_t prefix, own, head;    /* segment keys, own keys, kv head */
  const void *k, *v;
  int64_t k_stride, v_stride, first_row; /* dense */
  const int32_t *blocks;                 /* paged; NULL: dense */
  int32_t page_tokens;
} px_tile_keys;

/* The rows of a tile. Row r sees own keys [first[r], end[r]) and the whole segment. */
typedef struct px_tile_rows {
  int64_t count, padded; /* padded: a multiple of PX_TILE_ALIGN; rows from count on see nothing of their own */
  int64_t query[PX_TILE], head[PX_TILE];
  int32_t first[PX_TILE], end[PX_TILE];
  int32_t min_first, max_first, min_end, max_end;
} px_tile_rows;

px_tile_keys px_tile_dense_keys(const px_attn_shape *s, int32_t seq, int64_t head, const void *k, int64_t k_stride,
                                const void *v, int64_t v_stride);
const px_kv_segment *px_tile_segment(const px_attn_shape *s, int32_t seq);
/* Rows [block * tile, ...) of the `queries` queries, which start at row q0 of q. */
void px_tile_rows_set(px_tile_rows *r, const px_tile_keys *y, int64_t block, int64_t q0, int64_t queries);
/* Keys or values [from, from + n) as [n][*stride], float32, padded: as they lie where they are like that, else a copy in
 * `copy`. */
const float *px_tile_keys_at(const px_tile_keys *y, int64_t from, int64_t n, bool values, float *copy, int64_t *stride);
/* Rows of a [rows, heads, dim] tensor -> out[padded][stride], float32; rows from count on are zero. */
void px_tile_load_rows(const px_tile_rows *r, const void *x, int64_t x_stride, const px_attn_shape *s, float *out);
/* out[dim][tile] = scale * in[padded][stride], as px_tile_load_rows fills it; up to three rows more of out are written.
 */
void px_tile_transpose(const px_tile_rows *r, int64_t dim, float scale, const float *in, float *out);
/* The three products of a tile of rows and the keys [from, from + n) of the key index. Pairs that the mask hides are left
 * out where a block of them has no other: what they would add is zero.
 *   px_tile_scores:   out[key][row] = <keys[key], row>, rows_t as px_tile_transpose makes it; hidden ones are anything
 *                     finite
 *   px_tile_sum_keys: out[row] += sum over keys of weight[key][row] keys[key]
 *   px_tile_sum_rows: to[key] += sum over rows of weight[key][row] x[row]; dim is a multiple of PX_TILE_ALIGN */
void px_tile_scores(const px_tile_rows *r, int64_t prefix, int64_t from, int64_t n, int64_t dim, const float *keys,
                    int64_t key_stride, const float *rows_t, float *out);
void px_tile_sum_keys(const px_tile_rows *r, int64_t prefix, int64_t from, int64_t n, int64_t dim, const float *weight,
                      const float *keys, int64_t key_stride, float *out);
void px_tile_sum_rows(const px_tile_rows *r, int64_t prefix, int64_t from, int64_t n, int64_t dim, const float *weight,
                      const float *x, float *to, int64_t to_stride);
/* Does any row see any of the keys [from, from + n), and does every row see all of them? */
bool px_tile_reached(const px_tile_rows *r, int64_t prefix, int64_t from, int64_t n);
/* Sets s[key][row] to -infinity where the row does not see the key. */
void px_tile_mask(const px_tile_rows *r, int64_t prefix, int64_t from, int64_t n, float *s, int64_t s_row);

#endif
