/* SPDX-License-Identifier: MIT
 * Plain types that every room may use, the kernels included: element types and their conversions. */
#ifndef PX_CORE_TYPES_H
#define PX_CORE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define PX_HD static __host__ __device__ inline
#else
#define PX_HD static inline
#endif

/* Around what kernels, which are C++, and host code share. */
#ifdef __cplusplus
#define PX_C_BEGIN extern "C" {
#define PX_C_END }
#else
#define PX_C_BEGIN
#define PX_C_END
#endif

/* Element types of tensors that take part in arithmetic. Values are stable (written into states). */
typedef enum px_dtype {
  PX_F32 = 0,
  PX_F16 = 1,
  PX_BF16 = 2,
  PX_I32 = 3,
  PX_I64 = 4,
  PX_U8 = 5,
  /* Block-quantised types, as GGUF stores them; only ever input of `dequant`. */
  PX_Q8_0 = 16,
  PX_Q4_0 = 17,
  PX_Q4_1 = 18,
  PX_Q5_0 = 19,
  PX_Q5_1 = 20,
  PX_Q4_K = 21,
  PX_Q5_K = 22,
  PX_Q6_K = 23,
} px_dtype;

/* Bytes and elements of one block; plain types are blocks of one element. */
typedef struct px_dtype_info {
  const char *name;
  int block_elements;
  int block_bytes;
} px_dtype_info;

PX_C_BEGIN

/* NULL for a value that is no px_dtype. */
const px_dtype_info *px_dtype_get(px_dtype t);
const char *px_dtype_name(px_dtype t); /* "f32"; "?" if unknown */
/* Bytes of `elements` elements; 0 where `elements` is no multiple of the block. */
size_t px_dtype_bytes(px_dtype t, size_t elements);

PX_C_END

PX_HD float px_bf16_to_f32(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

/* Round to nearest even; NaN stays a (quiet) NaN. */
PX_HD uint16_t px_f32_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

PX_HD float px_f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 31u, man = h & 0x3ffu, u;
  if (exp == 31u) {
    u = sign | 0x7f800000u | (man << 13);
  } else if (exp != 0) {
    u = sign | ((exp + 112u) << 23) | (man << 13);
  } else if (man == 0) {
    u = sign;
  } else { /* subnormal: man * 2^-24 */
    float f = (float)man * 5.9604644775390625e-8f;
    memcpy(&u, &f, 4);
    u |= sign;
  }
  float f;
  memcpy(&f, &u, 4);
  return f;
}

/* Round to nearest even, overflow to infinity. */
PX_HD uint16_t px_f32_to_f16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  uint32_t sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
  if (mag > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (mag >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
  if (mag < 0x33000001u) return (uint16_t)sign;
  if (mag < 0x38800000u) { /* subnormal half */
    uint32_t shift = 126u - (mag >> 23), man = (mag & 0x7fffffu) | 0x800000u;
    uint32_t half = man >> shift, rest = man & ((1u << shift) - 1u), mid = 1u << (shift - 1u);
    return (uint16_t)(sign | (half + (rest > mid || (rest == mid && (half & 1u)))));
  }
  uint32_t r = mag - 0x38000000u;
  return (uint16_t)(sign | ((r + 0xfffu + ((r >> 13) & 1u)) >> 13));
}

#endif
