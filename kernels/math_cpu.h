/* SPDX-License-Identifier: MIT
 * What the CPU kernels share: rows in and out of float32, and an exponential that compilers vectorise.
 * Everything is branch-free, so that loops over it become vector code without relaxed arithmetic. */
#ifndef PX_KERNELS_MATH_CPU_H
#define PX_KERNELS_MATH_CPU_H

#include <math.h>

#include "core/types.h"

/* exp(x), relative error below 2e-7; 0 below -87.3, infinity above 88.7, NaN stays. Cody-Waite reduction, degree 6. */
static inline float px_exp(float x) {
  float clamped = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;
  float n = __builtin_rintf(clamped * 1.44269504088896341f);
  float r = clamped - n * 0.693145751953125f;
  r = r - n * 1.428606820309417e-6f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  /* 2^n in two factors, so that neither leaves the normal range. */
  int32_t whole = (int32_t)n, half = whole / 2;
  uint32_t b0 = (uint32_t)(half + 127) << 23, b1 = (uint32_t)(whole - half + 127) << 23;
  float s0, s1;
  memcpy(&s0, &b0, 4);
  memcpy(&s1, &b1, 4);
  float y = p * s0 * s1;
  y = x < -103.9f ? 0.0f : y;
  return x != x ? x : y;
}

static inline float px_sigmoid(float x) { return 1.0f / (1.0f + px_exp(-x)); }

/* Through the exponential of -2|x|: exact to a few units in the last place away from 0, odd, and x itself near 0. */
static inline float px_tanh(float x) {
  float a = x < 0 ? -x : x, e = px_exp(-2.0f * a), big = (1.0f - e) / (1.0f + e), x2 = x * x;
  float small = x * (1.0f + x2 * (-0.333333333f + x2 * (0.133333333f + x2 * (-0.0539682540f + x2 * 0.0218694885f))));
  float y = x < 0 ? -big : big;
  return a < 0.25f ? small : y;
}

static inline float px_get(const void *p, px_dtype type, int64_t i) {
  return type == PX_F32 ? ((const float *)p)[i] : type == PX_BF16 ? px_bf16_to_f32(((const uint16_t *)p)[i]) : px_f16_to_f32(((const uint16_t *)p)[i]);
}

static inline void px_put(void *p, px_dtype type, int64_t i, float v) {
  if (type == PX_F32)
    ((float *)p)[i] = v;
  else
    ((uint16_t *)p)[i] = type == PX_BF16 ? px_f32_to_bf16(v) : px_f32_to_f16(v);
}

/* px_f32_to_bf16 without a branch. */
static inline uint16_t px_round_bf16(float f) {
  uint32_t u, nan;
  memcpy(&u, &f, 4);
  nan = (u & 0x7fffffffu) > 0x7f800000u;
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
  return (uint16_t)(nan ? quiet : rounded);
}

static inline void px_load_row(const void *row, px_dtype type, int64_t at, int64_t count, float *out) {
  if (type == PX_F32) {
    memcpy(out, (const float *)row + at, (size_t)count * sizeof(float));
  } else if (type == PX_BF16) {
    const uint16_t *x = (const uint16_t *)row + at;
    for (int64_t i = 0; i < count; i++) out[i] = px_bf16_to_f32(x[i]);
  } else {
    const uint16_t *x = (const uint16_t *)row + at;
    for (int64_t i = 0; i < count; i++) out[i] = px_f16_to_f32(x[i]);
  }
}

static inline void px_store_row(void *row, px_dtype type, int64_t at, int64_t count, const float *in) {
  if (type == PX_F32) {
    memcpy((float *)row + at, in, (size_t)count * sizeof(float));
  } else if (type == PX_BF16) {
    uint16_t *y = (uint16_t *)row + at;
    for (int64_t i = 0; i < count; i++) y[i] = px_round_bf16(in[i]);
  } else {
    uint16_t *y = (uint16_t *)row + at;
    for (int64_t i = 0; i < count; i++) y[i] = px_f32_to_f16(in[i]);
  }
}

/* Rows are worked on in pieces of this many floats on the stack. */
enum { PX_PIECE = 512 };

static inline const char *px_check_type(px_dtype t) { return t == PX_F32 || t == PX_BF16 ? NULL : "the type must be f32 or bf16"; }

#endif
