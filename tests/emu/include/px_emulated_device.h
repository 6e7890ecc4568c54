/* SPDX-License-Identifier: MIT
 * The words of kernels/device.cuh on a CPU: a kernel is a function, a thread a fiber (emu_grid.cpp), shared memory one
 * block's memory, poisoned at its start. One grid runs at a time. */
#ifndef PX_EMULATED_DEVICE_H
#define PX_EMULATED_DEVICE_H

#include <cuda_runtime_api.h>

#include <math.h>
#include <string.h>

#include <functional>
#include <tuple>

namespace px_emu {

struct thread {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
extern thread *now; /* the thread that runs */

/* Enqueues a grid; wrong dimensions or too much shared memory set the runtime's error. */
void launch(const void *kernel, const char *name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            std::function<void()> body);
void allow_shared(const void *kernel, size_t bytes);

/* The block's own memory for a variable: `key` is the address of something that the variable alone has. */
void *static_shared(const void *key, size_t bytes);
void *dynamic_shared();

void sync_threads();
/* All lanes of `mask` meet; each leaves `bytes` (SLOT at most); returns where they lie, SLOT bytes a lane. */
enum { SLOT = 32 };
const unsigned char *meet(const char *what, unsigned mask, const void *mine, size_t bytes);

template <typename T>
T shuffle(const char *what, unsigned mask, T x, int from) {
  T out;
  memcpy(&out, meet(what, mask, &x, sizeof x) + SLOT * (from & 31), sizeof out);
  return out;
}
inline int lane() {
  return (int)((now->thread.x + now->block_dim.x * (now->thread.y + now->block_dim.y * now->thread.z)) % 32);
}

/* Asynchronous copies of the running thread: the destination is poisoned now and written at the wait that covers it. */
void async_copy(void *to, const void *from, size_t bytes, size_t zeros);
void async_commit();
void async_wait(int groups_left);

/* Arguments are copied at the launch, as the real one does. */
template <typename... P, typename... A>
void launch_kernel(void (*kernel)(P...), const char *name, dim3 grid, dim3 block, size_t shared_bytes, void *stream,
                   A &&...args) {
  std::tuple<P...> copy(static_cast<P>(args)...);
  launch(reinterpret_cast<const void *>(kernel), name, grid, block, shared_bytes, static_cast<cudaStream_t>(stream),
         [kernel, copy] { std::apply(kernel, copy); });
}

}  // namespace px_emu

#define PX_KERNEL(bounds) static void
#define PX_KERNEL_BLOCKS(bounds, blocks) static void
#define PX_DEVICE static inline
#define PX_SHARED(type, name, count)      \
  static const char px_key_of_##name = 0; \
  type(&name)[count] =                    \
      *reinterpret_cast<type(*)[count]>(px_emu::static_shared(&px_key_of_##name, sizeof(type) * (count)))
#define PX_DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(px_emu::dynamic_shared())
#define PX_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                     \
  do {                                                                                                                \
    auto *const px_kernel_ = kernel;                                                                                  \
    px_emu::launch_kernel(px_kernel_, #kernel, dim3(grid), dim3(block), (size_t)(shared_bytes), stream, __VA_ARGS__); \
  } while (0)
#define PX_ALLOW_SHARED(kernel, bytes)                                                 \
  do {                                                                                 \
    auto *const px_kernel_ = kernel;                                                   \
    px_emu::allow_shared(reinterpret_cast<const void *>(px_kernel_), (size_t)(bytes)); \
  } while (0)

#define threadIdx (px_emu::now->thread)
#define blockIdx (px_emu::now->block)
#define blockDim (px_emu::now->block_dim)
#define gridDim (px_emu::now->grid_dim)
#define __restrict__

static inline void __syncthreads() { px_emu::sync_threads(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { px_emu::meet("__syncwarp", mask, "", 0); }
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T x, int lanes) {
  return px_emu::shuffle("__shfl_xor_sync", mask, x, px_emu::lane() ^ lanes);
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T x, int from) {
  return px_emu::shuffle("__shfl_sync", mask, x, from);
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T x, unsigned lanes) {
  int from = px_emu::lane() - (int)lanes;
  return px_emu::shuffle("__shfl_up_sync", mask, x, from < 0 ? px_emu::lane() : from);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T x, unsigned lanes) {
  int from = px_emu::lane() + (int)lanes;
  return px_emu::shuffle("__shfl_down_sync", mask, x, from > 31 ? px_emu::lane() : from);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
  int yes = predicate != 0;
  const unsigned char *all = px_emu::meet("__ballot_sync", mask, &yes, sizeof yes);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++) {
    if (!(mask >> i & 1)) continue;
    int one;
    memcpy(&one, all + px_emu::SLOT * i, sizeof one);
    bits |= (unsigned)(one != 0) << i;
  }
  return bits;
}
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline void __threadfence() {}

template <typename T>
static inline T atomicAdd(T *at, T x) {
  T before = *at;
  *at = before + x;
  return before;
}
template <typename T>
static inline T atomicMax(T *at, T x) {
  T before = *at;
  *at = before < x ? x : before;
  return before;
}
template <typename T>
static inline T atomicMin(T *at, T x) {
  T before = *at;
  *at = x < before ? x : before;
  return before;
}
template <typename T>
static inline T atomicOr(T *at, T x) {
  T before = *at;
  *at = before | x;
  return before;
}

static inline float __uint_as_float(unsigned u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline unsigned __float_as_uint(float f) {
  unsigned u;
  memcpy(&u, &f, 4);
  return u;
}
namespace px_emu {

/* Half a register as a number; E is px_bf16 or px_f16, which device.cuh defines later. */
template <typename E>
static inline float half_of(uint32_t word, int half) {
  E x;
  x.bits = (uint16_t)(half ? word >> 16 : word);
  return px_to_float(x);
}
static inline void ldmatrix(uint32_t *out, const void *row, bool transposed) {
  if ((uintptr_t)row % 16) __builtin_trap();
  const unsigned char *rows = meet(transposed ? "ldmatrix.trans" : "ldmatrix", 0xffffffffu, row, 16);
  int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; i++)
    for (int half = 0; half < 2; half++) {
      int r = transposed ? 2 * t + half : g, c = transposed ? g : 2 * t + half;
      memcpy((char *)&out[i] + 2 * half, rows + SLOT * (8 * i + r) + 2 * c, 2);
    }
}
template <typename E>
static inline void mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
  uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned char *all = meet("mma", 0xffffffffu, mine, sizeof mine);
  int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; i++) { /* c[i]: row g or g + 8, column 2t or 2t + 1 */
    int n = 2 * t + (i & 1);
    for (int k = 0; k < 16; k++) {
      uint32_t x, y;
      memcpy(&x, all + SLOT * (4 * g + k % 8 / 2) + 4 * (i / 2 + 2 * (k / 8)), 4);
      memcpy(&y, all + SLOT * (4 * n + k % 8 / 2) + 4 * (4 + k / 8), 4);
      c[i] += half_of<E>(x, k & 1) * half_of<E>(y, k & 1);
    }
  }
}

}  // namespace px_emu

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }

#endif
