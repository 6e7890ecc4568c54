/* SPDX-License-Identifier: MIT
 * Products with a small matrix by adapter id. FWD and DX: a block per row, a warp per sum (FWD) or a thread per column
 * (DX). DW: a thread per element of a matrix goes over the rows of its sequences in order. */
#include "kernels/device.cuh"
#include "kernels/lora.h"

enum { LORA_THREADS = 128, LORA_WARPS = LORA_THREADS / PX_WARP };

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

/* The finished sum goes where it belongs. */
template <typename T>
PX_DEVICE void put(T *at, float sum, float scale, bool accumulate) {
  *at = px_from_float<T>(accumulate ? px_to_float(*at) + scale * sum : scale * sum);
}

template <typename T, typename W>
PX_KERNEL(LORA_THREADS)
product_kernel(px_lora_args a) {
  int64_t row = blockIdx.x;
  bool good = ids_are_good(a), fwd = a.mode == PX_LORA_FWD;
  if (!good || row < a.offsets[0] || row >= a.offsets[a.seqs]) return;
  int32_t id = a.adapter[sequence_of(a, row)];
  const px_lora_matrix *m = id < 0 ? NULL : &a.mats[id];
  T *x = static_cast<T *>(a.x) + row * a.x_stride, *y = static_cast<T *>(a.y) + row * a.y_stride;
  int64_t live = m ? (fwd ? m->out : m->in) : 0, written = fwd ? a.y_dim : a.x_dim;
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP;
  for (int64_t j = warp; fwd && j < live; j += LORA_WARPS) {
    const W *w = static_cast<const W *>(m->w) + j * m->in;
    float sum = 0;
    for (int i = lane; i < m->in; i += PX_WARP) sum += px_to_float(x[i]) * px_to_float(w[i]);
    sum = px_warp_sum(sum);
    if (lane == 0) put(&y[j], sum, m->scale, a.accumulate);
  }
  for (int64_t i = threadIdx.x; !fwd && i < live; i += LORA_THREADS) {
    const W *w = static_cast<const W *>(m->w) + i;
    float sum = 0;
    for (int64_t j = 0; j < m->out; j++) sum += px_to_float(y[j]) * px_to_float(w[j * m->in]);
    put(&x[i], sum, m->scale, a.accumulate);
  }
  T *out = fwd ? y : x;
  for (int64_t i = live + threadIdx.x; !a.accumulate && i < written; i += LORA_THREADS) out[i] = px_from_float<T>(0.0f);
}

template <typename T>
PX_KERNEL(LORA_THREADS)
gradient_kernel(px_lora_args a) {
  int32_t id = (int32_t)blockIdx.y;
  if (!ids_are_good(a)) return;
  const px_lora_matrix m = a.mats[id];
  int64_t all = (int64_t)m.in * m.out;
  for (int64_t e = (int64_t)blockIdx.x * LORA_THREADS + threadIdx.x; e < all; e += (int64_t)gridDim.x * LORA_THREADS) {
    int64_t j = e / m.in, i = e % m.in;
    float sum = m.dw[e];
    for (int32_t s = 0; s < a.seqs; s++) {
      if (a.adapter[s] != id) continue;
      for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; t++)
        sum += m.scale * px_to_float(static_cast<const T *>(a.y)[t * a.y_stride + j]) *
               px_to_float(static_cast<const T *>(a.x)[t * a.x_stride + i]);
    }
    m.dw[e] = sum;
  }
}

int px_lora_cuda(const px_lora_args *a, void *stream) {
  if (a->seqs == 0 || a->rows == 0) return 0;
  if (a->mode == PX_LORA_DW) {
    int64_t blocks = (a->x_dim * a->y_dim + LORA_THREADS - 1) / LORA_THREADS;
    if (a->mat_count == 0 || blocks == 0) return 0;
    dim3 grid((unsigned)(blocks < 1024 ? blocks : 1024), (unsigned)a->mat_count);
    PX_FOR_TYPE(a->dtype, T, PX_LAUNCH(gradient_kernel<T>, grid, LORA_THREADS, 0, stream, *a));
    return PX_LAUNCHED();
  }
  if (a->dtype == PX_F32)
    PX_LAUNCH((product_kernel<float, float>), (unsigned)a->rows, LORA_THREADS, 0, stream, *a);
  else if (a->w_type == PX_F32)
    PX_LAUNCH((product_kernel<px_bf16, float>), (unsigned)a->rows, LORA_THREADS, 0, stream, *a);
  else
    PX_LAUNCH((product_kernel<px_bf16, px_bf16>), (unsigned)a->rows, LORA_THREADS, 0, stream, *a);
  return PX_LAUNCHED();
}
