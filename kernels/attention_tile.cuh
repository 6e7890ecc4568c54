/* SPDX-License-Identifier: MIT
 * What the general attention kernels share. A block of four warps owns a tile of rows (or keys) of one kv head; each
 * warp owns ROWS of them, their sums in registers, spread over the lanes. What they meet streams by in tiles of 32, one
 * for each lane, in shared memory as float32:
 *
 *            32 keys (a lane each)                 dims (lane, lane + 32, ...)
 *   rows  [ scores = <row, key> ]   ->  weights  ->  sums += weight * value
 *
 * A row of the forward pass is a pair (query, head of the group), so the heads that share keys share their loads. Rows
 * of a tile may belong to several sequences, which are met one after the other; a tile of keys begins at a multiple of
 * 32 of its own sequence, and rows that do not see it are left alone: a row's bits know nothing of the others. */
#ifndef PX_KERNELS_ATTENTION_TILE_CUH
#define PX_KERNELS_ATTENTION_TILE_CUH

#include "kernels/attention.h"
#include "kernels/device.cuh"

enum { PX_TILE_WARPS = 4, PX_TILE_THREADS = PX_TILE_WARPS * PX_WARP, PX_TILE_KEYS = 32 };

/* The tensor-core kernels (attention_mma_*.cu): false where they do not take the problem and nothing was launched. */
bool px_attn_fwd_mma(const px_attn_fwd_args *a, void *stream);

/* The backward kernels' problem and workspace. */
struct px_attn_bwd_problem {
  px_attn_bwd_args a;
  float *delta;   /* [heads][q_rows] */
  float *partial; /* [splits][2: dk, dv][segment rows][kv_heads * head_dim] */
};
bool px_attn_bwd_mma(const px_attn_bwd_problem &p, int splits, void *stream); /* all but delta and join */

/* Tiles of all segments, at most: their number is known on the device alone. */
static inline unsigned px_segment_blocks(const px_attn_shape &s, int size) {
  return (unsigned)(s.segment_rows / size + s.segment_count);
}

/* A padded row of shared memory: lanes that read one dim of 32 rows meet 32 banks. */
PX_DEVICE int px_padded(int dim) { return dim | 1; }

/* The sequence that holds a flat row: offsets[s] <= row < offsets[s + 1]. */
PX_DEVICE int px_sequence_of(const int32_t *offsets, int seqs, int row) {
  int low = 0, high = seqs - 1;
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (offsets[middle] <= row)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

/* The segment of a sequence; NULL: none, or an empty one. */
PX_DEVICE const px_kv_segment *px_segment_of(const px_attn_shape &s, int seq) {
  int id = s.adapter ? s.adapter[seq] : -1;
  if (id < 0 || id >= s.segment_count || s.segments[id].len == 0) return NULL;
  return &s.segments[id];
}

/* Own keys [from, to) of its sequence that a query sees; query: its number in the sequence of nq queries, nk keys. */
PX_DEVICE void px_visible(const px_attn_shape &s, int query, int nq, int nk, int *from, int *to) {
  int last = query + nk - nq;
  *from = 0;
  *to = nk;
  if (s.mask == PX_MASK_FULL) return;
  *to = last + 1 < nk ? last + 1 : nk;
  if (*to < 0) *to = 0;
  if (s.window && last - s.window + 1 > 0) *from = last - s.window + 1;
  if (*from > *to) *from = *to;
}

/* A tile of segment keys: which segment, its first key there, and the segment's first row among all segments' rows. */
struct px_segment_tile {
  int id, from;
  int64_t rows_before, all_rows;
};

/* Tile number `tile` of the segments whose gradient is wanted; id -1: there are not so many. */
PX_DEVICE px_segment_tile px_segment_tile_of(const px_attn_shape &s, int64_t tile, int size) {
  px_segment_tile found = {-1, 0, 0, 0};
  for (int i = 0; i < s.segment_count; i++) {
    int len = s.segments[i].len, tiles = s.segments[i].dk ? (len + size - 1) / size : 0;
    if (found.id < 0 && tile < tiles) {
      found.id = i;
      found.from = (int)tile * size;
      found.rows_before = found.all_rows;
    }
    tile -= tiles;
    found.all_rows += len;
  }
  return found;
}

/* `count` rows of `dim` elements into shared memory as float32, stride elements apart there, at most `most` rows; the
 * rest of the `most` rows becomes zero. row(j) is the address of row j. All threads of the block. */
template <typename Row>
PX_DEVICE void px_rows_to_shared(float *out, int stride, int most, int count, int dim, Row row) {
  for (int j = (int)threadIdx.x / PX_WARP; j < most; j += PX_TILE_WARPS) {
    for (int d = (int)threadIdx.x % PX_WARP; d < dim; d += PX_WARP)
      out[j * stride + d] = j < count ? px_to_float(row(j)[d]) : 0.0f;
  }
}

/* products[r] = <rows r of `row_at`, the lane's row of `tile`>; ROWS rows that lie `row_stride` apart. */
template <int ROWS>
PX_DEVICE void px_scores(const float *rows, int row_stride, const float *tile, int dim, float *products) {
  const float *mine = tile + (int)(threadIdx.x % PX_WARP) * px_padded(dim);
#pragma unroll
  for (int r = 0; r < ROWS; r++) products[r] = 0;
  for (int d = 0; d < dim; d++) {
    float x = mine[d];
#pragma unroll
    for (int r = 0; r < ROWS; r++) products[r] += rows[r * row_stride + d] * x;
  }
}

/* sums[r][i] += sum over the 32 rows j of the tile of weights[r][j] * tile[j][lane + 32 i]. */
template <int ROWS, int CHUNKS>
PX_DEVICE void px_add_weighted(const float *weights, const float *tile, int stride, int dim, float sums[ROWS][CHUNKS]) {
  int lane = (int)threadIdx.x % PX_WARP;
  for (int j = 0; j < PX_TILE_KEYS; j++) {
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      int d = lane + PX_WARP * i;
      float x = d < dim ? tile[j * stride + d] : 0.0f;
#pragma unroll
      for (int r = 0; r < ROWS; r++) sums[r][i] += weights[r * PX_TILE_KEYS + j] * x;
    }
  }
}

/* Calls body with CHUNKS (of 32 dims) and ROWS (of a warp) as constants: what a kernel is compiled for. */
#define PX_FOR_HEAD_DIM(dim, CHUNKS, ROWS, ...) \
  do {                                          \
    if ((dim) <= 32) {                          \
      constexpr int CHUNKS = 1, ROWS = 4;       \
      __VA_ARGS__;                              \
    } else if ((dim) <= 64) {                   \
      constexpr int CHUNKS = 2, ROWS = 4;       \
      __VA_ARGS__;                              \
    } else if ((dim) <= 128) {                  \
      constexpr int CHUNKS = 4, ROWS = 4;       \
      __VA_ARGS__;                              \
    } else {                                    \
      constexpr int CHUNKS = 8, ROWS = 2;       \
      __VA_ARGS__;                              \
    }                                           \
  } while (0)

#endif
