/* SPDX-License-Identifier: MIT
 * What the CPU kernels share: functions and roundings without branches, so that loops over them become vector code
 * without relaxed arithmetic, and rows in and out of float32. Errors are against float64, in units of the last place
 * (ulp) of float32, measured by tests/kernels/math_test.c. The polynomials are minimax fits made for this file. */
#ifndef PX_KERNELS_MATH_CPU_H
#define PX_KERNELS_MATH_CPU_H

#include <math.h>

#include "core/types.h"

/* exp(x) within 1.5 ulp; 0 where the result would be smaller than the smallest normal (below -87.3365), infinity above
 * 88.7228, NaN stays NaN. */
static inline float px_exp(float x) {
  const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number and leaves that in the low bits */
  float t = x * 1.44269504088896341f + magic, n = t - magic;
  float r = x - n * 0.693145751953125f; /* ln 2 in two parts, the first of few bits: the product is exact */
  r = r - n * 1.428606820309417e-6f;
  float p = 1.979013991e-4f;
  p = p * r + 1.394486916e-3f;
  p = p * r + 8.333498336e-3f;
  p = p * r + 4.166629216e-2f;
  p = p * r + 1.666666586e-1f;
  p = p * r + 5.000000068e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits, whole; /* 2^n p: n added to the exponent; beyond the range it is replaced below */
  memcpy(&bits, &p, 4);
  memcpy(&whole, &t, 4);
  bits += whole << 23;
  float y;
  memcpy(&y, &bits, 4);
  y = x < -87.33654f ? 0.0f : y;
  y = x > 88.72283f ? INFINITY : y;
  return x != x ? x : y;
}

static inline float px_sigmoid(float x) { return 1.0f / (1.0f + px_exp(-x)); }

/* tanh(x) within 2 ulp, odd, NaN stays NaN: a polynomial near 0, elsewhere 1 - 2 / (exp(2|x|) + 1). */
static inline float px_tanh(float x) {
  float a = fabsf(x), z = x * x, p = -5.704978360e-3f;
  p = p * z + 2.063907873e-2f;
  p = p * z - 5.373971215e-2f;
  p = p * z + 1.333144216e-1f;
  p = p * z - 3.333328194e-1f;
  float small = p * z * x + x, big = copysignf(1.0f - 2.0f / (px_exp(2.0f * a) + 1.0f), x);
  return a < 0.625f ? small : big;
}

/* erf(x) within 2 ulp, odd, NaN stays NaN: a polynomial near 0, elsewhere 1 - exp(a fit of log erfc). */
static inline float px_erf(float x) {
  float a = fabsf(x), z = x * x, p = 8.185090447e-5f;
  p = p * z - 8.097702631e-4f;
  p = p * z + 5.196952010e-3f;
  p = p * z - 2.685770506e-2f;
  p = p * z + 1.128366400e-1f;
  p = p * z - 3.761263161e-1f;
  p = p * z + 1.283791664e-1f;
  float small = p * x + x;
  float t = a < 4.0f ? a : 4.0f, q = -2.144559243e-5f; /* erf(4) is 1 in float32 */
  q = q * t + 4.385302184e-4f;
  q = q * t - 4.190857010e-3f;
  q = q * t + 2.517181173e-2f;
  q = q * t - 1.083615567e-1f;
  q = q * t - 6.332724102e-1f;
  q = q * t - 1.129552043e+0f;
  q = q * t + 1.824604938e-4f;
  float big = copysignf(1.0f - px_exp(q), x);
  return a >= 0.95f ? big : small; /* NaN takes the polynomial */
}

/* px_f32_to_bf16 without a branch. */
static inline uint16_t px_round_bf16(float f) {
  uint32_t u, nan;
  memcpy(&u, &f, 4);
  nan = (u & 0x7fffffffu) > 0x7f800000u;
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
  return (uint16_t)(nan ? quiet : rounded);
}

/* px_f16_to_f32 without a branch: the bits as a tiny float, times 2^112. */
static inline float px_widen_f16(uint16_t h) {
  uint32_t u = (uint32_t)(h & 0x7fffu) << 13;
  float f;
  memcpy(&f, &u, 4);
  f *= 0x1p112f;
  uint32_t special = u | 0x7f800000u;
  memcpy(&u, &f, 4);
  u = (h & 0x7c00u) == 0x7c00u ? special : u;
  u |= (uint32_t)(h & 0x8000u) << 16;
  memcpy(&f, &u, 4);
  return f;
}

/* px_f32_to_f16 without a branch. */
static inline uint16_t px_round_f16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  uint32_t sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
  uint32_t normal = (mag - 0x38000000u + 0xfffu + ((mag >> 13) & 1u)) >> 13;
  float magic = 0.5f, tiny; /* adding 0.5 lets the processor round a subnormal half: one unit of it is 2^-24 */
  uint32_t small;
  memcpy(&tiny, &mag, 4);
  tiny = (mag < 0x38800000u ? tiny : 0.0f) + magic;
  memcpy(&small, &tiny, 4);
  small -= 0x3f000000u;
  uint32_t r = mag < 0x38800000u ? small : normal;
  r = mag >= 0x477ff000u ? 0x7c00u : r;
  r = mag > 0x7f800000u ? 0x7e00u : r;
  return (uint16_t)(sign | r);
}

/* One element of an f32, bf16 or f16 row. */
static inline float px_get(const void *p, px_dtype type, int64_t i) {
  if (type == PX_F32) return ((const float *)p)[i];
  uint16_t h = ((const uint16_t *)p)[i];
  return type == PX_BF16 ? px_bf16_to_f32(h) : px_f16_to_f32(h);
}

static inline void px_put(void *p, px_dtype type, int64_t i, float v) {
  if (type == PX_F32)
    ((float *)p)[i] = v;
  else
    ((uint16_t *)p)[i] = type == PX_BF16 ? px_f32_to_bf16(v) : px_f32_to_f16(v);
}

/* Elements [at, at + count) of an f32, bf16 or f16 row to and from float32. */
static inline void px_load_row(const void *row, px_dtype type, int64_t at, int64_t count, float *out) {
  if (type == PX_F32) {
    memcpy(out, (const float *)row + at, (size_t)count * sizeof(float));
  } else if (type == PX_BF16) {
    const uint16_t *x = (const uint16_t *)row + at;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) out[i] = px_bf16_to_f32(x[i]);
  } else {
    const uint16_t *x = (const uint16_t *)row + at;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) out[i] = px_widen_f16(x[i]);
  }
}

static inline void px_store_row(void *row, px_dtype type, int64_t at, int64_t count, const float *in) {
  if (type == PX_F32) {
    memcpy((float *)row + at, in, (size_t)count * sizeof(float));
  } else if (type == PX_BF16) {
    uint16_t *y = (uint16_t *)row + at;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) y[i] = px_round_bf16(in[i]);
  } else {
    uint16_t *y = (uint16_t *)row + at;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) y[i] = px_round_f16(in[i]);
  }
}

/* The same without a copy where the row is float32: what px_row_in returns is read instead of `buffer`; what px_row_out
 * returns is written, and px_row_done stores it. An output may be written where an input of the same elements lies. */
static inline const float *px_row_in(const void *row, px_dtype type, int64_t at, int64_t count, float *buffer) {
  if (type == PX_F32) return (const float *)row + at;
  px_load_row(row, type, at, count, buffer);
  return buffer;
}

static inline float *px_row_out(void *row, px_dtype type, int64_t at, float *buffer) {
  return type == PX_F32 ? (float *)row + at : buffer;
}

static inline void px_row_done(void *row, px_dtype type, int64_t at, int64_t count, const float *buffer) {
  if (type != PX_F32) px_store_row(row, type, at, count, buffer);
}

/* Rows are worked on in pieces of this many floats on the stack. */
enum { PX_PIECE = 512 };

/* Below this many elements a pass stays on the calling thread: waking the others costs more than the work. The bits of
 * a pass depend on neither, since every sum runs in an order that its arguments alone decide. */
enum { PX_PARALLEL_MIN = 32768 };

static inline const char *px_check_type(px_dtype t) {
  return t == PX_F32 || t == PX_BF16 ? NULL : "the type must be f32 or bf16";
}

#endif
