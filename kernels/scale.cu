/* SPDX-License-Identifier: MIT
 * Learned scales by adapter id. FWD and dx: a block per row. ds: a block per 32 columns; its eight warps take every eighth
 * row of a run of sequences with one adapter, and their sums are added in order at the run's end. */
#include "kernels/device.cuh"
#include "kernels/scale.h"

enum { SCALE_WARPS = 8 };

PX_DEVICE int sequence_of(const int32_t *offsets, int seqs, int64_t row) {
  int low = 0, high = seqs - 1;
  while (low < high) {
    int middle = low + (high - low + 1) / 2;
    if (offsets[middle] <= row)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

/* ---- kernels ---- */

template <typename T, int N>
PX_KERNEL(256)
scale_kernel(px_scale_fwd_args a) {
  int32_t id = a.adapter[sequence_of(a.offsets, a.seqs, blockIdx.x)];
  const float *s = id < 0 || id >= a.count ? NULL : a.s[id];
  const T *x = static_cast<const T *>(a.x) + blockIdx.x * a.x_stride;
  T *y = static_cast<T *>(a.y) + blockIdx.x * a.y_stride;
  for (int64_t i = px_first_word() * N; i < a.dim; i += px_words_apart() * N) {
    float u[N];
    px_load<N>(x + i, u);
#pragma unroll
    for (int j = 0; j < N; j++) u[j] *= s ? s[i + j] : 1.0f;
    px_store<N>(y + i, u);
  }
}

template <typename T>
PX_KERNEL(SCALE_WARPS *PX_WARP)
scale_gradient_kernel(px_scale_bwd_args a) {
  PX_SHARED(float, sums, SCALE_WARPS * PX_WARP);
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP;
  int64_t column = (int64_t)blockIdx.x * PX_WARP + lane;
  const T *x = static_cast<const T *>(a.x) + column, *dy = static_cast<const T *>(a.dy) + column;
  for (int32_t q = 0, end; q < a.seqs; q = end) {
    int32_t id = a.adapter[q];
    for (end = q + 1; end < a.seqs && a.adapter[end] == id;) end++;
    float *ds = id < 0 || id >= a.count || !a.s[id] ? NULL : a.ds[id];
    if (!ds) continue; /* the same for the whole block */
    float sum = 0;
    for (int64_t t = a.offsets[q] + warp; column < a.dim && t < a.offsets[end]; t += SCALE_WARPS)
      sum += px_to_float(dy[t * a.stride]) * px_to_float(x[t * a.stride]);
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && column < a.dim) {
      float all = ds[column];
      for (int w = 0; w < SCALE_WARPS; w++) all += sums[w * PX_WARP + lane];
      ds[column] = all;
    }
    __syncthreads();
  }
}

/* ---- launchers ---- */

int px_scale_fwd_cuda(const px_scale_fwd_args *a, void *stream) {
  if (a->rows == 0 || a->dim == 0) return 0;
  PX_FOR_TYPE(a->dtype, T, {
    constexpr int W = 16 / (int)sizeof(T);
    bool words =
        a->dim % W == 0 && px_aligned(a->x, a->x_stride, W, sizeof(T)) && px_aligned(a->y, a->y_stride, W, sizeof(T));
    PX_FOR_WORD(
        words, T, N,
        PX_LAUNCH((scale_kernel<T, N>), px_row_grid(a->rows, a->dim / N), px_row_threads(a->dim / N), 0, stream, *a));
  });
  return PX_LAUNCHED();
}

int px_scale_bwd_cuda(const px_scale_bwd_args *a, void *stream) {
  if (a->rows == 0 || a->dim == 0) return 0;
  if (a->ds)
    PX_FOR_TYPE(a->dtype, T,
                PX_LAUNCH(scale_gradient_kernel<T>, px_blocks(a->dim, PX_WARP), SCALE_WARPS * PX_WARP, 0, stream, *a));
  int code = PX_LAUNCHED();
  if (code) return code;
  px_scale_fwd_args f = {a->dtype, a->seqs, a->count, a->rows, a->dim, a->offsets, a->adapter, a->s, a->dy, a->dx, a->stride, a->stride};
  return px_scale_fwd_cuda(&f, stream);
}
