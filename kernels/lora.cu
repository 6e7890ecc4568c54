/* SPDX-License-Identifier: MIT
 * Products with a small matrix by adapter id, in tiles of 32 by 16 sums that a warp holds in registers (4 by 4 a lane).
 * A long sum (a narrow result, and weight gradients) is dealt out to the warps of a block, 16 terms at a time, and the
 * warps' parts are added in their order; where the sum is short, each warp has a tile of its own. A tile of rows goes
 * over the adapters that its rows name, each matrix once. */
#include "kernels/device.cuh"
#include "kernels/lora.h"

enum {
  TALL = 32, /* sums of a tile along the side whose elements lie side by side in a store, or that is the longer one */
  FLAT = 16,
  TERMS = 16, /* of a sum, in shared memory at a time */
  WARPS = 8,
  LORA_THREADS = WARPS * PX_WARP,
  STAGE = TERMS * (TALL + FLAT), /* floats in shared memory, a warp */
  LONG_SUM = 128,                /* terms from which on a sum is dealt out */
  NOBODY = -2                    /* the id of a row that is not there */
};
typedef px_vec<float, 4> four;

PX_DEVICE int sequence_of(const px_lora_args &a, int64_t row) {
  int low = 0, high = a.seqs - 1;
  while (low < high) {
    int middle = low + (high - low + 1) / 2;
    if (a.offsets[middle] <= row)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

/* An id of mat_count or more is the caller's mistake: nothing is written then. */
PX_DEVICE bool ids_are_good(const px_lora_args &a) {
  int bad = 0;
  for (int s = (int)threadIdx.x; s < a.seqs; s += (int)blockDim.x) bad |= a.adapter[s] >= a.mat_count;
  PX_SHARED(float, scratch, PX_WARP);
  return px_block_sum((float)bad, scratch) == 0;
}

/* Elements that lie one after the other, as a matrix for the loads below: element (r, k) at r * stride + k, or, where
 * `across`, at k * stride + r. `words`: rows begin where words of 16 bytes may. */
template <typename E>
struct source {
  const E *at;
  int64_t stride;
  bool words;
};

template <int N, typename E>
PX_DEVICE bool are_words(const E *p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % (N * sizeof(E)) == 0 && stride % N == 0;
}

/* W elements, `there` of which exist; zeros for the others. */
template <int W, typename E>
PX_DEVICE void load_some(const E *p, int64_t there, bool words, float *out) {
  if (there >= W && words) {
    px_load<W>(p, out);
    return;
  }
#pragma unroll
  for (int i = 0; i < W; i++) out[i] = i < there ? px_to_float(p[i]) : 0.0f;
}

/* to[k][r] = scale * element (r, k) for R by TERMS of them; zeros from `rows` and `terms` on and in rows that are not
 * in `live`. By one warp. */
template <int R, bool across, typename E>
PX_DEVICE void stage(float *to, source<E> from, int64_t rows, int64_t terms, uint32_t live, float scale) {
  constexpr int W = 16 / (int)sizeof(E);
  for (int i = (int)threadIdx.x % PX_WARP; i < R * TERMS / W; i += PX_WARP) {
    float x[W];
    int r = across ? i % (R / W) * W : i % R, k = across ? i / (R / W) : i / R * W;
    if (across) {
      load_some<W>(from.at + k * from.stride + r, k < terms ? rows - r : 0, from.words, x);
#pragma unroll
      for (int e = 0; e < W; e++) to[k * R + r + e] = scale * x[e];
    } else {
      load_some<W>(from.at + r * from.stride + k, r < rows && (live >> r & 1) ? terms - k : 0, from.words, x);
#pragma unroll
      for (int e = 0; e < W; e++) to[(k + e) * R + r] = scale * x[e];
    }
  }
}

/* A lane's sums: tall 4 * (lane % 8) + i, flat 4 * (lane / 8) + j. */
PX_DEVICE void multiply(const float *at, float sum[4][4]) {
  int lane = (int)threadIdx.x % PX_WARP;
#pragma unroll 4
  for (int k = 0; k < TERMS; k++) {
    float tall[4], flat[4];
    px_load<4>(at + k * TALL + 4 * (lane % 8), tall);
    px_load<4>(at + TERMS * TALL + k * FLAT + 4 * (lane / 8), flat);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) sum[i][j] += tall[i] * flat[j];
  }
}

/* What the warps have of one tile, each in its own stage, as [tall][flat]; sum_of adds them in order. */
PX_DEVICE void leave(float *at, float sum[4][4]) {
  int lane = (int)threadIdx.x % PX_WARP;
#pragma unroll
  for (int i = 0; i < 4; i++) px_store<4>(at + (4 * (lane % 8) + i) * FLAT + 4 * (lane / 8), sum[i]);
}
PX_DEVICE float sum_of(const float *stages, int element) {
  float sum = 0;
#pragma unroll
  for (int w = 0; w < WARPS; w++) sum += stages[w * STAGE + element];
  return sum;
}

/* The finished sum goes where it belongs. */
template <typename T>
PX_DEVICE void put(T *at, float sum, float scale, bool accumulate) {
  *at = px_from_float<T>(accumulate ? px_to_float(*at) + scale * sum : scale * sum);
}

/* One matrix and one tile of rows, as the product sees them: y = scale * sum over `terms` of given * matrix. */
template <typename T, typename W>
struct product {
  source<T> given;  /* from the tile's first row */
  source<W> matrix; /* across in DX */
  T *result;
  int64_t result_stride, terms, columns, written; /* columns that the matrix has, and those that are written */
  float scale;
  bool accumulate;
};

template <typename T, typename W, bool fwd>
PX_DEVICE product<T, W> product_of(const px_lora_args &a, int32_t id, int64_t row) {
  T *x = static_cast<T *>(a.x) + row * a.x_stride, *y = static_cast<T *>(a.y) + row * a.y_stride;
  product<T, W> p;
  p.given = {fwd ? x : y, fwd ? a.x_stride : a.y_stride, false};
  p.given.words = are_words<16 / sizeof(T)>(p.given.at, p.given.stride);
  p.result = fwd ? y : x;
  p.result_stride = fwd ? a.y_stride : a.x_stride;
  p.written = fwd ? a.y_dim : a.x_dim;
  p.matrix = {NULL, 0, false};
  p.terms = p.columns = 0;
  p.scale = 0;
  p.accumulate = a.accumulate;
  if (id < 0) return p;
  const px_lora_matrix &m = a.mats[id];
  p.matrix = {static_cast<const W *>(m.w), m.in, are_words<16 / sizeof(W)>(static_cast<const W *>(m.w), m.in)};
  p.terms = fwd ? m.in : m.out;
  p.columns = fwd ? m.out : m.in;
  p.scale = m.scale;
  return p;
}

/* The matrix from column `c` and term `k` on. */
template <typename W, bool fwd>
PX_DEVICE source<W> part_of(source<W> m, int64_t c, int64_t k) {
  m.at += fwd ? c * m.stride + k : k * m.stride + c;
  return m;
}

/* A long sum: 32 rows by 16 columns of a block. */
template <typename T, typename W, bool fwd>
PX_DEVICE void narrow_tile(const product<T, W> &p, uint32_t live, float *stages) {
  int warp = (int)threadIdx.x / PX_WARP;
  int64_t column = (int64_t)blockIdx.y * FLAT;
  float sum[4][4] = {}, *mine = stages + warp * STAGE;
  for (int64_t k = warp * TERMS; k < p.terms; k += WARPS * TERMS) {
    source<T> given = p.given;
    given.at += k;
    stage<TALL, false>(mine, given, TALL, p.terms - k, live, 1);
    stage<FLAT, !fwd>(mine + TERMS * TALL, part_of<W, fwd>(p.matrix, column, k), p.columns - column, p.terms - k, ~0u, 1);
    __syncwarp();
    multiply(mine, sum);
    __syncwarp();
  }
  leave(mine, sum);
  __syncthreads();
  for (int e = (int)threadIdx.x; e < TALL * FLAT; e += LORA_THREADS) {
    int64_t r = e / FLAT, c = column + e % FLAT;
    bool has = c < p.columns;
    if (!(live >> r & 1) || c >= p.written || (p.accumulate && !has)) continue;
    put(p.result + r * p.result_stride + c, has ? sum_of(stages, e) : 0.0f, p.scale, p.accumulate);
  }
  __syncthreads();
}

/* A short sum: 32 rows by 128 columns of a block, 16 rows by 32 columns of a warp. */
template <typename T, typename W, bool fwd>
PX_DEVICE void wide_tile(const product<T, W> &p, uint32_t live, float *stages) {
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP, row = warp / 4 * FLAT;
  int64_t column = (int64_t)blockIdx.y * 4 * TALL + warp % 4 * TALL;
  float sum[4][4] = {}, *mine = stages + warp * STAGE;
  live = live >> row & 0xffffu;
  for (int64_t k = 0; live && column < p.columns && k < p.terms; k += TERMS) {
    source<T> given = p.given;
    given.at += row * given.stride + k;
    stage<FLAT, false>(mine + TERMS * TALL, given, FLAT, p.terms - k, live, 1);
    stage<TALL, !fwd>(mine, part_of<W, fwd>(p.matrix, column, k), p.columns - column, p.terms - k, ~0u, 1);
    __syncwarp();
    multiply(mine, sum);
    __syncwarp();
  }
  column += 4 * (lane % 8);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int r = 4 * (lane / 8) + j;
    T *out = p.result + (row + r) * p.result_stride + column;
    float old[4] = {};
    if (!(live >> r & 1)) continue;
    if (column + 4 <= p.columns && are_words<4>(out, 0)) {
      if (p.accumulate) px_load<4>(out, old);
#pragma unroll
      for (int i = 0; i < 4; i++) old[i] = p.accumulate ? old[i] + p.scale * sum[i][j] : p.scale * sum[i][j];
      px_store<4>(out, old);
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      bool has = column + i < p.columns;
      if (column + i < p.written && (has || !p.accumulate)) put(out + i, has ? sum[i][j] : 0.0f, p.scale, p.accumulate);
    }
  }
}

/* Blocks: tiles of rows, tiles of columns, and a share of the adapters that a tile's rows name. */
template <typename T, typename W, bool fwd, bool wide>
PX_KERNEL_BLOCKS(LORA_THREADS, 3)
product_kernel(px_lora_args a) {
  PX_SHARED(four, stages, WARPS * STAGE / 4);
  PX_SHARED(int32_t, ids, TALL);
  int lane = (int)threadIdx.x % PX_WARP;
  int64_t first = (int64_t)blockIdx.x * TALL;
  if (!ids_are_good(a)) return;
  if (threadIdx.x < TALL) {
    int64_t row = first + threadIdx.x;
    bool there = row >= a.offsets[0] && row < a.offsets[a.seqs];
    int32_t id = there ? a.adapter[sequence_of(a, row)] : NOBODY;
    ids[threadIdx.x] = id < -1 && there ? -1 : id;
  }
  __syncthreads();
  int32_t mine = ids[lane];
  uint32_t left = __ballot_sync(PX_ALL_LANES, mine != NOBODY);
  for (unsigned turn = 0; left; turn++) {
    int32_t id = ids[__ffs((int)left) - 1];
    uint32_t live = __ballot_sync(PX_ALL_LANES, mine == id);
    left &= ~live;
    if (turn % gridDim.z != blockIdx.z || (id < 0 && a.accumulate)) continue;
    product<T, W> p = product_of<T, W, fwd>(a, id, first);
    if (wide)
      wide_tile<T, W, fwd>(p, live, stages[0].v);
    else
      narrow_tile<T, W, fwd>(p, live, stages[0].v);
  }
}

/* A tile of one matrix's gradient: x along its long side where `x_is_tall`, else y. Sequences of one adapter that follow
 * one another are one run of rows. */
template <typename T, bool x_is_tall>
PX_KERNEL_BLOCKS(LORA_THREADS, 3)
gradient_kernel(px_lora_args a) {
  PX_SHARED(four, stages, WARPS * STAGE / 4);
  const int32_t id = (int32_t)blockIdx.z;
  const px_lora_matrix m = a.mats[id];
  const int64_t i0 = (int64_t)blockIdx.x * (x_is_tall ? TALL : FLAT), j0 = (int64_t)blockIdx.y * (x_is_tall ? FLAT : TALL);
  if (!ids_are_good(a) || i0 >= m.in || j0 >= m.out) return;
  int warp = (int)threadIdx.x / PX_WARP;
  float sum[4][4] = {}, *mine = stages[0].v + warp * STAGE;
  source<T> x = {static_cast<const T *>(a.x) + i0, a.x_stride, false}, y = {static_cast<const T *>(a.y) + j0, a.y_stride, false};
  x.words = are_words<16 / sizeof(T)>(x.at, x.stride);
  y.words = are_words<16 / sizeof(T)>(y.at, y.stride);
  int turn = 0;
  for (int32_t s = 0; s < a.seqs; s++) {
    if (a.adapter[s] != id) continue;
    int64_t from = a.offsets[s];
    while (s + 1 < a.seqs && a.adapter[s + 1] == id) s++;
    for (int64_t to = a.offsets[s + 1]; from < to; from += TERMS, turn++) {
      if (turn % WARPS != warp) continue;
      source<T> xs = x, ys = y;
      xs.at += from * x.stride;
      ys.at += from * y.stride;
      float *flat = mine + TERMS * TALL;
      if (x_is_tall) {
        stage<TALL, true>(mine, xs, m.in - i0, to - from, ~0u, 1);
        stage<FLAT, true>(flat, ys, m.out - j0, to - from, ~0u, m.scale);
      } else {
        stage<TALL, true>(mine, ys, m.out - j0, to - from, ~0u, m.scale);
        stage<FLAT, true>(flat, xs, m.in - i0, to - from, ~0u, 1);
      }
      __syncwarp();
      multiply(mine, sum);
      __syncwarp();
    }
  }
  leave(mine, sum);
  __syncthreads();
  for (int e = (int)threadIdx.x; e < TALL * FLAT; e += LORA_THREADS) {
    int64_t tall = e / FLAT, flat = e % FLAT, i = i0 + (x_is_tall ? tall : flat), j = j0 + (x_is_tall ? flat : tall);
    if (i < m.in && j < m.out && turn) m.dw[j * m.in + i] += sum_of(stages[0].v, e);
  }
}

static int gradients(const px_lora_args *a, void *stream) {
  bool x_is_tall = a->x_dim >= a->y_dim;
  dim3 grid(px_blocks(a->x_dim, x_is_tall ? TALL : FLAT), px_blocks(a->y_dim, x_is_tall ? FLAT : TALL), (unsigned)a->mat_count);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  PX_FOR_TYPE(a->dtype, T, {
    if (x_is_tall)
      PX_LAUNCH((gradient_kernel<T, true>), grid, LORA_THREADS, 0, stream, *a);
    else
      PX_LAUNCH((gradient_kernel<T, false>), grid, LORA_THREADS, 0, stream, *a);
  });
  return PX_LAUNCHED();
}

template <typename T, typename W, bool fwd>
static int products(const px_lora_args *a, void *stream) {
  bool wide = (fwd ? a->x_dim : a->y_dim) < LONG_SUM;
  int32_t most = a->mat_count + 1 < TALL ? a->mat_count + 1 : TALL; /* adapters, or none, of a tile's rows */
  dim3 grid(px_blocks(a->rows, TALL), px_blocks(fwd ? a->y_dim : a->x_dim, wide ? 4 * TALL : FLAT), (unsigned)most);
  if (grid.y == 0) return 0;
  if (wide)
    PX_LAUNCH((product_kernel<T, W, fwd, true>), grid, LORA_THREADS, 0, stream, *a);
  else
    PX_LAUNCH((product_kernel<T, W, fwd, false>), grid, LORA_THREADS, 0, stream, *a);
  return PX_LAUNCHED();
}

int px_lora_cuda(const px_lora_args *a, void *stream) {
  bool fwd = a->mode == PX_LORA_FWD;
  if (a->seqs == 0 || a->rows == 0) return 0;
  if (a->mode == PX_LORA_DW) return gradients(a, stream);
  if (a->dtype == PX_F32) return fwd ? products<float, float, true>(a, stream) : products<float, float, false>(a, stream);
  if (a->w_type == PX_F32)
    return fwd ? products<px_bf16, float, true>(a, stream) : products<px_bf16, float, false>(a, stream);
  return fwd ? products<px_bf16, px_bf16, true>(a, stream) : products<px_bf16, px_bf16, false>(a, stream);
}
