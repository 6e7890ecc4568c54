/* SPDX-License-Identifier: MIT
 * The products that cuBLASLt does not take, in plain tiles of shared memory, and a bias after a product. */
#include "kernels/device.cuh"
#include "kernels/gemm.h"

enum { TILE = 16 };

template <typename T>
PX_DEVICE float element(const void *p, int64_t at) {
  return px_to_float(static_cast<const T *>(p)[at]);
}

PX_DEVICE float bias_of(const px_gemm_args &a, int64_t column) {
  if (!a.bias) return 0.0f;
  return a.bias_type == PX_F32 ? element<float>(a.bias, column) : element<px_bf16>(a.bias, column);
}

/* A block computes a tile of c; each thread one element, in the order of k. */
template <typename T, typename C>
PX_KERNEL(TILE *TILE)
plain_kernel(px_gemm_args a) {
  PX_SHARED(float, left, TILE *TILE);
  PX_SHARED(float, right, TILE *(TILE + 1));
  int x = (int)threadIdx.x % TILE, y = (int)threadIdx.x / TILE;
  int64_t i = (int64_t)blockIdx.x * TILE + y, columns = (a.n + TILE - 1) / TILE;
  for (int64_t tile = blockIdx.y; tile < columns; tile += gridDim.y) {
    int64_t j = tile * TILE + x;
    float sum = 0;
    for (int64_t from = 0; from < a.k; from += TILE) {
      int64_t k = from + x, row = tile * TILE + y;
      left[y * TILE + x] = i < a.m && k < a.k ? element<T>(a.a, a.trans_a ? k * a.lda + i : i * a.lda + k) : 0.0f;
      right[y * (TILE + 1) + x] =
          row < a.n && k < a.k ? element<T>(a.b, a.trans_b ? row * a.ldb + k : k * a.ldb + row) : 0.0f;
      __syncthreads();
#pragma unroll
      for (int step = 0; step < TILE; step++) sum += left[y * TILE + step] * right[x * (TILE + 1) + step];
      __syncthreads();
    }
    if (i >= a.m || j >= a.n) continue;
    C *c = static_cast<C *>(a.c) + i * a.ldc + j;
    sum += bias_of(a, j);
    *c = px_from_float<C>(a.accumulate ? px_to_float(*c) + sum : sum);
  }
}

template <typename C>
PX_KERNEL(256)
bias_kernel(px_gemm_args a) {
  int64_t i = blockIdx.x;
  C *c = static_cast<C *>(a.c) + i * a.ldc;
  for (int64_t j = threadIdx.x; j < a.n; j += blockDim.x) c[j] = px_from_float<C>(px_to_float(c[j]) + bias_of(a, j));
}

template <typename T, typename C>
static void launch_plain(const px_gemm_args *a, void *stream) {
  int64_t columns = (a->n + TILE - 1) / TILE;
  dim3 grid(px_blocks(a->m, TILE), (unsigned)(columns < 65535 ? columns : 65535));
  PX_LAUNCH((plain_kernel<T, C>), grid, TILE * TILE, 0, stream, *a);
}

int px_gemm_plain_cuda(const px_gemm_args *a, void *stream) {
  if (a->m == 0 || a->n == 0) return 0;
  if (a->type == PX_F32)
    launch_plain<float, float>(a, stream);
  else if (a->c_type == PX_F32)
    launch_plain<px_bf16, float>(a, stream);
  else
    launch_plain<px_bf16, px_bf16>(a, stream);
  return PX_LAUNCHED();
}

int px_gemm_bias_cuda(const px_gemm_args *a, void *stream) {
  if (a->m == 0 || a->n == 0 || !a->bias) return 0;
  PX_FOR_TYPE(a->c_type, C, PX_LAUNCH(bias_kernel<C>, (unsigned)a->m, 256, 0, stream, *a));
  return PX_LAUNCHED();
}
