/* SPDX-License-Identifier: MIT
 * What the tensor-core attention kernels share: bfloat16 or float16 (E), head_dim a multiple of 8, rows aligned to 16 bytes. DIM is
 * head_dim rounded up to a size that is compiled; what lies beyond head_dim is zero in shared memory.
 *
 * Tiles lie in shared memory as [rows][DIM + 8] elements: the 16 bytes of padding put the eight rows that an ldmatrix
 * reads at once into different banks, for every DIM here. A warp owns 16 rows (or some times 16) of a product; sums
 * stay in registers in the layout of px_mma's C, which for the next product is its A without any exchange. */
#ifndef PX_KERNELS_ATTENTION_MMA_CUH
#define PX_KERNELS_ATTENTION_MMA_CUH

#include "kernels/attention_tile.cuh"

/* An element of either type where it is only moved. */
using px_word16 = uint16_t;

/* Whether the tensor-core kernels take this problem; the rows are checked by the caller with px_mma_rows. */
static inline bool px_mma_takes(const px_attn_shape &s) { return s.dtype != PX_F32 && s.head_dim % 8 == 0; }
static inline bool px_mma_rows(const void *p, int64_t stride) {
  return px_aligned(p, stride, 8, sizeof(px_word16)) && stride <= INT32_MAX;
}

enum { PX_MMA_PAD = 8 };

/* 16-byte words of `count` rows into a tile of ROWS rows; rows and words beyond become zero. row(j): address of row j.
 * All of THREADS threads; the caller commits. */
template <int DIM, int ROWS, int THREADS, typename Row>
PX_DEVICE void px_mma_load(px_word16 *tile, int count, int dim, Row row) {
  constexpr int WORDS = DIM / 8;
#pragma unroll 4
  for (int i = (int)threadIdx.x; i < ROWS * WORDS; i += THREADS) {
    int j = i / WORDS, d = i % WORDS * 8;
    bool there = j < count && d < dim;
    px_copy16(tile + j * (DIM + PX_MMA_PAD) + d, there ? row(j) + d : NULL, there);
  }
}

/* Rows [row, row + 16), columns [column, column + 16) of a tile as A. */
template <int DIM>
PX_DEVICE void px_mma_a(uint32_t *a, const px_word16 *tile, int row, int column) {
  int lane = (int)threadIdx.x % PX_WARP;
  px_ldmatrix(a, tile + (row + lane % 16) * (DIM + PX_MMA_PAD) + column + lane / 16 * 8);
}
/* B of two products side by side, from rows of the tile that are B's columns: b[0], b[1] for tile rows [row, row + 8),
 * b[2], b[3] for the eight after; tile columns [column, column + 16) are what is summed over. */
template <int DIM>
PX_DEVICE void px_mma_b(uint32_t *b, const px_word16 *tile, int row, int column) {
  int lane = (int)threadIdx.x % PX_WARP;
  px_ldmatrix(b, tile + (row + lane / 16 * 8 + lane % 8) * (DIM + PX_MMA_PAD) + column + lane / 8 % 2 * 8);
}
/* The same where the tile's rows [row, row + 16) are summed over, and columns [column, column + 16) are B's columns. */
template <int DIM>
PX_DEVICE void px_mma_b_transposed(uint32_t *b, const px_word16 *tile, int row, int column) {
  int lane = (int)threadIdx.x % PX_WARP;
  px_ldmatrix_transposed(b, tile + (row + lane % 16) * (DIM + PX_MMA_PAD) + column + lane / 16 * 8);
}

/* c[m][n] += X Y^T: 16 * MT rows of `x` from `row` on, N * 8 rows of `y` from the first on, over DIM columns. */
template <typename E, int DIM, int MT, int N>
PX_DEVICE void px_mma_rows_by_rows(float (*c)[N][4], const px_word16 *x, int row, const px_word16 *y) {
#pragma unroll 2 /* all of them at once cost more registers than there are */
  for (int d = 0; d < DIM; d += 16) {
    uint32_t a[MT][4], b[4];
#pragma unroll
    for (int m = 0; m < MT; m++) px_mma_a<DIM>(a[m], x, row + 16 * m, d);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      px_mma_b<DIM>(b, y, n * 8, d);
#pragma unroll
      for (int m = 0; m < MT; m++) {
        px_mma<E>(c[m][n], a[m], b[0], b[1]);
        px_mma<E>(c[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/* sums[m][i] += W Y: W [16 * MT][K * 8] in C's layout, rounded to E, Y the tile's rows from the first on, columns
 * [column, column + 8 * I). */
template <typename E, int DIM, int MT, int K, int I>
PX_DEVICE void px_mma_weighted(float (*sums)[I][4], const float (*w)[K][4], const px_word16 *y, int column) {
#pragma unroll
  for (int k = 0; k < K; k += 2) {
    uint32_t a[MT][4], b[4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int j = 0; j < 4; j++) a[m][j] = px_pack<E>(w[m][k + j / 2][2 * (j % 2)], w[m][k + j / 2][2 * (j % 2) + 1]);
#pragma unroll
    for (int i = 0; i < I; i += 2) {
      px_mma_b_transposed<DIM>(b, y, k * 8, column + i * 8);
#pragma unroll
      for (int m = 0; m < MT; m++) {
        px_mma<E>(sums[m][i], a[m], b[0], b[1]);
        px_mma<E>(sums[m][i + 1], a[m], b[2], b[3]);
      }
    }
  }
}

template <int MT, int N>
PX_DEVICE void px_mma_clear(float (*c)[N][4]) {
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int j = 0; j < 4; j++) c[m][n][j] = 0;
}

/* A tile's rows of (query, head of the group) pairs: what each is, in shared memory. */
struct px_mma_row {
  int32_t seq, id, from, to; /* id: of the segment, -1 for none; own keys [from, to) that it sees */
};

PX_DEVICE px_mma_row px_mma_row_of(const px_attn_shape &s, int query) {
  int seq = px_sequence_of(s.q_offsets, s.seqs, query), nq = s.q_offsets[seq + 1] - s.q_offsets[seq];
  const px_kv_segment *segment = px_segment_of(s, seq);
  px_mma_row row = {seq, segment ? (int)(segment - s.segments) : -1, 0, 0};
  px_visible(s, query - s.q_offsets[seq], nq, s.k_offsets[seq + 1] - s.k_offsets[seq], &row.from, &row.to);
  return row;
}

/* Where own keys lie. */
struct px_mma_keys {
  const void *k, *v;
  int64_t k_stride, v_stride;
};

/* One stretch after the other of the keys that a tile of rows meets, KEYS at a time: first the segments (rows side by
 * side that name one meet it together), then each sequence's own keys. The order of a row's keys is the same in
 * whatever tile the row lies, so its bits are. Begin with {}. */
template <int KEYS>
struct px_mma_walk {
  const px_word16 *k, *v; /* row 0 of the stretch at the kv head */
  int k_stride, v_stride;
  int run, run_end; /* rows of the tile that the stretch is for */
  int at, end;      /* now: keys [at, at + KEYS), less those from `end` on */
  bool own, over;   /* over: all keys are done */
};

/* The next KEYS keys for `count` rows, or over. One thread does this for its block, a step ahead. */
template <int KEYS>
PX_DEVICE void px_mma_next(px_mma_walk<KEYS> &w, const px_attn_shape &s, const px_mma_keys &keys, int kv_head,
                           const px_mma_row *rows, int count) {
  int64_t head = (int64_t)kv_head * s.head_dim;
  w.at += KEYS;
  while (w.at >= w.end) {
    if (w.run_end >= count) {
      if (w.own) {
        w.over = true;
        return;
      }
      w.own = true;
      w.run_end = 0;
    }
    w.run = w.run_end;
    const px_mma_row first = rows[w.run];
    do w.run_end++;
    while (w.run_end < count && (w.own ? rows[w.run_end].seq == first.seq : rows[w.run_end].id == first.id));
    w.at = w.end = 0;
    if (!w.own && first.id >= 0) {
      const px_kv_segment &segment = s.segments[first.id];
      w.k = static_cast<const px_word16 *>(segment.k) + head;
      w.v = static_cast<const px_word16 *>(segment.v) + head;
      w.k_stride = w.v_stride = (int)segment.stride;
      w.end = segment.len;
    } else if (w.own) { /* later queries see later keys: the first row's first and the last row's last bound them all */
      int64_t base = s.k_offsets[first.seq];
      w.k = static_cast<const px_word16 *>(keys.k) + base * keys.k_stride + head;
      w.v = static_cast<const px_word16 *>(keys.v) + base * keys.v_stride + head;
      w.k_stride = (int)keys.k_stride;
      w.v_stride = (int)keys.v_stride;
      w.at = first.from / KEYS * KEYS;
      w.end = rows[w.run_end - 1].to;
    }
  }
}

/* Keys (or values: `rows` and `stride` say which) of where the walk is, into a tile. */
template <int DIM, int KEYS, int THREADS>
PX_DEVICE void px_mma_load_keys(px_word16 *tile, const px_mma_walk<KEYS> &w, const px_word16 *rows, int stride, int dim) {
  px_mma_load<DIM, KEYS, THREADS>(tile, w.end - w.at, dim, [&](int j) { return rows + (w.at + j) * (int64_t)stride; });
}

/* Which of the walk's KEYS row r of the tile sees: [*from, *to). */
template <int KEYS>
PX_DEVICE void px_mma_sees(const px_mma_walk<KEYS> &w, const px_mma_row *rows, int r, int *from, int *to) {
  bool in = r >= w.run && r < w.run_end;
  *from = in && w.own ? rows[r].from - w.at : 0;
  *to = !in ? 0 : (w.own ? rows[r].to : w.end) - w.at;
  if (*to > KEYS) *to = KEYS;
  if (*from < 0) *from = 0;
  if (*from > *to) *from = *to = 0;
}

/* Calls body with E the type of the elements. */
#define PX_MMA_FOR_TYPE(dtype, E, ...) \
  do {                                 \
    if ((dtype) == PX_F16) {           \
      using E = px_f16;                \
      __VA_ARGS__;                     \
    } else {                           \
      using E = px_bf16;               \
      __VA_ARGS__;                     \
    }                                  \
  } while (0)

/* Calls body with DIM a constant that holds head_dim. */
#define PX_MMA_FOR_DIM(dim, DIM, ...) \
  do {                                \
    if ((dim) <= 64) {                \
      constexpr int DIM = 64;         \
      __VA_ARGS__;                    \
    } else if ((dim) <= 80) {         \
      constexpr int DIM = 80;         \
      __VA_ARGS__;                    \
    } else if ((dim) <= 96) {         \
      constexpr int DIM = 96;         \
      __VA_ARGS__;                    \
    } else if ((dim) <= 128) {        \
      constexpr int DIM = 128;        \
      __VA_ARGS__;                    \
    } else {                          \
      constexpr int DIM = 256;        \
      __VA_ARGS__;                    \
    }                                 \
  } while (0)

#endif
