/* SPDX-License-Identifier: MIT
 * What every CUDA kernel is written in: launches, shared memory, rows of float32 and bfloat16, sums over a warp and a
 * block, and all inline PTX. The emulator (tests/emu) compiles the same files for the CPU with PX_EMULATED and gives
 * these names its own meaning, so kernels use nothing of CUDA's that is not named here.
 *
 *   PX_KERNEL(bounds) name(...)        a kernel; bounds: the largest block it is launched with
 *   PX_SHARED(type, name, count)       static shared memory: an array
 *   PX_DYNAMIC_SHARED(type, name)      the launch's dynamic shared memory, aligned to 16 bytes
 *   PX_LAUNCH(kernel, grid, block, shared_bytes, stream, args...)
 *   threadIdx blockIdx blockDim gridDim, __syncthreads, __syncwarp, __shfl_xor_sync, __shfl_sync, __ballot_sync,
 *   atomicAdd (int, unsigned, unsigned long long), atomicMax, expf logf and the like. */
#ifndef PX_KERNELS_DEVICE_CUH
#define PX_KERNELS_DEVICE_CUH

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef PX_EMULATED
#include <px_emulated_device.h>
#else
#include <cuda_runtime.h>
#define PX_KERNEL(bounds) __global__ void __launch_bounds__(bounds, 1)
#define PX_DEVICE static __device__ __forceinline__
#define PX_SHARED(type, name, count) __shared__ type name[count]
#define PX_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(16) unsigned char px_dynamic_shared_[]; \
  type *const name = reinterpret_cast<type *>(px_dynamic_shared_)
#define PX_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                              \
  do {                                                                                         \
    auto *const px_kernel_ = kernel;                                                           \
    px_kernel_<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
  } while (0)
/* A kernel that wants more than 48 KB of dynamic shared memory asks first. */
#define PX_ALLOW_SHARED(kernel, bytes) \
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes))
#endif

#include "core/random.h"
#include "core/types.h"

/* The outcome of the launches before it, as the launcher's result. */
#define PX_LAUNCHED() static_cast<int>(cudaGetLastError())

enum { PX_WARP = 32 };
#define PX_ALL_LANES 0xffffffffu

/* ---- element types: `float` and `px_bf16` (px_f16 in casts alone); kernels are templates over them ---- */

struct px_bf16 {
  uint16_t bits;
};
struct px_f16 {
  uint16_t bits;
};

PX_DEVICE float px_to_float(float x) { return x; }
PX_DEVICE float px_to_float(px_bf16 x) { return px_bf16_to_f32(x.bits); }
PX_DEVICE float px_to_float(px_f16 x) { return px_f16_to_f32(x.bits); }

template <typename T>
struct px_element;
template <>
struct px_element<float> {
  PX_DEVICE float round(float x) { return x; }
};
template <>
struct px_element<px_bf16> {
  PX_DEVICE px_bf16 round(float x) {
#ifdef PX_EMULATED
    return {px_f32_to_bf16(x)};
#else
    px_bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
  }
};
template <>
struct px_element<px_f16> {
  PX_DEVICE px_f16 round(float x) { return {px_f32_to_f16(x)}; }
};
template <typename T>
PX_DEVICE T px_from_float(float x) {
  return px_element<T>::round(x);
}

/* Several elements that move as one word (16 bytes at the most). */
template <typename T, int N>
struct alignas(sizeof(T) * N) px_vec {
  T v[N];
};

/* N elements from and to float32; p is aligned to N elements. */
template <int N, typename T>
PX_DEVICE void px_load(const T *p, float *out) {
  px_vec<T, N> w = *reinterpret_cast<const px_vec<T, N> *>(p);
#pragma unroll
  for (int i = 0; i < N; i++) out[i] = px_to_float(w.v[i]);
}
template <int N, typename T>
PX_DEVICE void px_store(T *p, const float *in) {
  px_vec<T, N> w;
#pragma unroll
  for (int i = 0; i < N; i++) w.v[i] = px_from_float<T>(in[i]);
  *reinterpret_cast<px_vec<T, N> *>(p) = w;
}

/* ---- sums and maxima over a warp and a block ---- */

PX_DEVICE float px_warp_sum(float x) {
#pragma unroll
  for (int lanes = PX_WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(PX_ALL_LANES, x, lanes);
  return x;
}
PX_DEVICE float px_warp_max(float x) {
#pragma unroll
  for (int lanes = PX_WARP / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(PX_ALL_LANES, x, lanes));
  return x;
}
PX_DEVICE double px_warp_sum(double x) {
#pragma unroll
  for (int lanes = PX_WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(PX_ALL_LANES, x, lanes);
  return x;
}

/* Over a block of whole warps (32 at the most), for every thread; `scratch`: 32 values in shared memory, free again
 * after the call. The order is fixed: lanes by halves, then warps by halves. */
template <typename F>
PX_DEVICE F px_block_sum(F x, F *scratch) {
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP, warps = (int)blockDim.x / PX_WARP;
  x = px_warp_sum(x);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = px_warp_sum(lane < warps ? scratch[lane] : F(0));
  __syncthreads();
  return x;
}
PX_DEVICE float px_block_max(float x, float *scratch) {
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP, warps = (int)blockDim.x / PX_WARP;
  x = px_warp_max(x);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = px_warp_max(lane < warps ? scratch[lane] : -INFINITY);
  __syncthreads();
  return x;
}

/* ---- launchers ---- */

/* Blocks of `threads` for `items`, at most what a grid's x axis takes. */
static inline unsigned px_blocks(int64_t items, int64_t threads) { return (unsigned)((items + threads - 1) / threads); }

/* Whether rows at p with this stride (elements) can move in words of `count` elements. */
static inline bool px_aligned(const void *p, int64_t stride, int64_t count, size_t element_bytes) {
  return p == NULL || (reinterpret_cast<uintptr_t>(p) % ((size_t)count * element_bytes) == 0 && stride % count == 0);
}

/* A launch over rows in words of a few elements: a block per row along x, its words along y. */
static inline unsigned px_row_threads(int64_t words) {
  return words >= 256       ? 256u
         : words <= PX_WARP ? (unsigned)PX_WARP
                            : (unsigned)((words + PX_WARP - 1) / PX_WARP * PX_WARP);
}
static inline dim3 px_row_grid(int64_t rows, int64_t words) {
  int64_t blocks = (words + px_row_threads(words) - 1) / px_row_threads(words);
  return dim3((unsigned)rows, (unsigned)(blocks < 65535 ? blocks : 65535));
}
/* In such a kernel: for (int64_t i = px_first_word(); i < words; i += px_words_apart()) */
PX_DEVICE int64_t px_first_word() { return (int64_t)blockIdx.y * blockDim.x + threadIdx.x; }
PX_DEVICE int64_t px_words_apart() { return (int64_t)gridDim.y * blockDim.x; }

/* Calls body with N the elements of T in 16 bytes where `aligned`, else 1. */
#define PX_FOR_WORD(aligned, T, N, ...)      \
  do {                                       \
    if (aligned) {                           \
      constexpr int N = 16 / (int)sizeof(T); \
      __VA_ARGS__;                           \
    } else {                                 \
      constexpr int N = 1;                   \
      __VA_ARGS__;                           \
    }                                        \
  } while (0)

/* Calls body with T a type for the dtype of rows (f32 or bf16; the check function has refused others). */
#define PX_FOR_TYPE(dtype, T, ...) \
  do {                             \
    if ((dtype) == PX_F32) {       \
      using T = float;             \
      __VA_ARGS__;                 \
    } else {                       \
      using T = px_bf16;           \
      __VA_ARGS__;                 \
    }                              \
  } while (0)

#endif
