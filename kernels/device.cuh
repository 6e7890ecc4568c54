/* SPDX-License-Identifier: MIT
 * What every CUDA kernel is written in: launches, shared memory, rows of float32 and bfloat16, sums over a warp and a
 * block, and all inline PTX. The emulator (tests/emu) compiles the same files for the CPU with PX_EMULATED and gives
 * these names its own meaning, so kernels use nothing of CUDA's that is not named here.
 *
 *   PX_KERNEL(bounds) name(...)        a kernel; bounds: the largest block it is launched with
 *   PX_KERNEL_BLOCKS(bounds, blocks)   the same, with registers for so many blocks at once
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
#define PX_KERNEL_BLOCKS(bounds, blocks) __global__ void __launch_bounds__(bounds, blocks)
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

/* The most shared memory that a block of the current device can have. */
static inline size_t px_most_shared() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return (size_t)bytes;
}

#include "core/random.h"
#include "core/types.h"

/* The outcome of the launches before it, as the launcher's result. */
#define PX_LAUNCHED() static_cast<int>(cudaGetLastError())

enum { PX_WARP = 32 };
#define PX_ALL_LANES 0xffffffffu

/* ---- element types: `float` and `px_bf16` (px_f16 in casts and attention alone); kernels are templates over them ---- */

struct px_bf16 {
  uint16_t bits;
};
struct px_f16 {
  uint16_t bits;
};

PX_DEVICE float px_to_float(float x) { return x; }
PX_DEVICE float px_to_float(px_bf16 x) { return px_bf16_to_f32(x.bits); }
PX_DEVICE float px_to_float(px_f16 x) {
#ifdef PX_EMULATED
  return px_f16_to_f32(x.bits);
#else
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#endif
}

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
  PX_DEVICE px_f16 round(float x) {
#ifdef PX_EMULATED
    return {px_f32_to_f16(x)};
#else
    px_f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
  }
};
template <typename T>
PX_DEVICE T px_from_float(float x) {
  return px_element<T>::round(x);
}

template <typename E>
constexpr bool px_is_f16 = false;
template <>
constexpr bool px_is_f16<px_f16> = true;

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

/* ---- tensor cores: products of a warp, 16 x 8 x 16, bfloat16 or float16 (E), float32 sums (mma.sync, from sm_80 on) ----
 * Lane l holds, with g = l / 4 and t = l % 4, of
 *   A [16][16]: a[0] row g, a[1] row g + 8, columns 2t and 2t + 1; a[2], a[3] the same rows, columns 2t + 8 and 2t + 9
 *   B [16][8]:  b0 rows 2t and 2t + 1 of column g; b1 rows 2t + 8 and 2t + 9
 *   C [16][8]:  c[0], c[1] row g, columns 2t and 2t + 1; c[2], c[3] row g + 8
 * (PTX ISA, "Matrix fragments for mma.m16n8k16"); the lower half of a register is the first of two. */
#define PX_MMA_OF(type)                                                                                            \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                              \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                              \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
template <typename E>
PX_DEVICE void px_mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
#ifdef PX_EMULATED
  px_emu::mma<E>(c, a, b0, b1);
#else
  if constexpr (px_is_f16<E>) PX_MMA_OF("f16");
  else PX_MMA_OF("bf16");
#endif
}

/* Four 8 x 8 matrices from shared memory: lane l names row l % 8 of matrix l / 8 (16 bytes, aligned); out[i] is of
 * matrix i row g, columns 2t and 2t + 1; transposed: column g, rows 2t and 2t + 1. */
PX_DEVICE void px_ldmatrix(uint32_t *out, const void *row) {
#ifdef PX_EMULATED
  px_emu::ldmatrix(out, row, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"((uint32_t)__cvta_generic_to_shared(row)));
#endif
}
PX_DEVICE void px_ldmatrix_transposed(uint32_t *out, const void *row) {
#ifdef PX_EMULATED
  px_emu::ldmatrix(out, row, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"((uint32_t)__cvta_generic_to_shared(row)));
#endif
}

/* 16 bytes from global to shared memory, zeros where `there` is false (`global` is then not read); they are there for
 * the thread that copied after px_wait_copies<n>() with at most n groups committed since, for others a barrier later. */
PX_DEVICE void px_copy16(void *shared, const void *global, bool there) {
#ifdef PX_EMULATED
  px_emu::async_copy(shared, global, there ? 16 : 0, there ? 0 : 16);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
               "l"(global), "r"(there ? 16 : 0)
               : "memory");
#endif
}
PX_DEVICE void px_commit_copies() {
#ifdef PX_EMULATED
  px_emu::async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int GROUPS_LEFT>
PX_DEVICE void px_wait_copies() {
#ifdef PX_EMULATED
  px_emu::async_wait(GROUPS_LEFT);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
#endif
}

/* Two float32 as elements of E, rounded to nearest; x in the lower half. */
template <typename E>
PX_DEVICE uint32_t px_pack(float x, float y) {
#ifdef PX_EMULATED
  return px_from_float<E>(x).bits | (uint32_t)px_from_float<E>(y).bits << 16;
#else
  uint32_t both;
  if constexpr (px_is_f16<E>) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(y), "f"(x));
  else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(y), "f"(x));
  return both;
#endif
}

/* 2^x to 2 in the last place or so (ex2.approx); 0 for -infinity. */
PX_DEVICE float px_exp2(float x) {
#ifdef PX_EMULATED
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

/* ---- launchers ---- */

static inline int px_multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

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

/* The same for attention, which has float16 too. */
#define PX_FOR_ATTN_TYPE(dtype, T, ...)         \
  do {                                          \
    if ((dtype) == PX_F16) {                    \
      using T = px_f16;                         \
      __VA_ARGS__;                              \
    } else {                                    \
      PX_FOR_TYPE(dtype, T, __VA_ARGS__);       \
    }                                           \
  } while (0)

#endif
