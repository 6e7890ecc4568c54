/* SPDX-License-Identifier: MIT
 * Sums down the columns of many rows, without atomics: a block takes 32 neighbouring columns; each of its threads adds N of them in
 * every DOWNth row, in order, and what the threads have of a column is then added by halves. The order follows from the
 * shape alone. */
#ifndef PX_KERNELS_COLUMN_SUM_CUH
#define PX_KERNELS_COLUMN_SUM_CUH

#include "kernels/device.cuh"

enum { PX_SUM_COLUMNS = 32, PX_SUM_THREADS = 512 };

/* Where a thread stands; N: the elements of a word. */
template <int N>
struct px_down {
  static constexpr int ACROSS = PX_SUM_COLUMNS / N, DOWN = PX_SUM_THREADS / ACROSS, FLOATS = DOWN * PX_SUM_COLUMNS;
  PX_DEVICE int column() { return (int)threadIdx.x % ACROSS * N; }
  PX_DEVICE int row() { return (int)threadIdx.x / ACROSS; }
};

/* The sum of column threadIdx.x, for the first 32 threads; parts: px_down<N>::FLOATS in shared memory, free again after the call. */
template <int N>
PX_DEVICE float px_sum_down(const float *sum, float *parts) {
  float *mine = parts + px_down<N>::row() * PX_SUM_COLUMNS + px_down<N>::column();
#pragma unroll
  for (int j = 0; j < N; j++) mine[j] = sum[j];
  for (int half = px_down<N>::FLOATS / 2; half >= PX_SUM_COLUMNS; half /= 2) {
    __syncthreads();
    for (int e = (int)threadIdx.x; e < half; e += PX_SUM_THREADS) parts[e] += parts[e + half];
  }
  __syncthreads();
  float all = threadIdx.x < PX_SUM_COLUMNS ? parts[threadIdx.x] : 0;
  __syncthreads();
  return all;
}

#endif
