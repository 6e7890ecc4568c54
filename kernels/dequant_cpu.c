/* SPDX-License-Identifier: MIT
 * Block layouts as GGUF stores them (little-endian):
 *   Q8_0 {f16 d; i8 q[32]}: d q      Q4_0 {f16 d; u8 q[16]}: d (q - 8)      Q4_1 {f16 d, m; u8 q[16]}: d q + m
 *   Q5_0, Q5_1: as Q4 with a fifth bit from u32 h        (low nibbles are the first half of a block, high ones the
 * second) Q4_K {f16 d, min; u8 s[12]; u8 q[128]}: 8 groups of 32, 6-bit scales and minima: d s q - min m Q5_K {..; u8
 * h[32]; u8 q[128]}: with a fifth bit     Q6_K {u8 l[128], h[64]; i8 s[16]; f16 d}: d s (q - 32) */
#include "kernels/dequant.h"

#include "kernels/math_cpu.h"

const char *px_dequant_check(const px_dequant_args *a) {
  const px_dtype_info *info = px_dtype_get(a->src_type);
  if (!info || a->src_type == PX_I32 || a->src_type == PX_I64 || a->src_type == PX_U8)
    return "the source is no type of weights";
  if (px_check_type(a->dst_type)) return "the target must be f32 or bf16";
  if (a->count < 0 || a->count % info->block_elements) return "the count is no multiple of the block";
  return a->count && (!a->src || !a->dst) ? "a pointer is missing" : NULL;
}

px_cost px_dequant_cost(const px_dequant_args *a) {
  double n = (double)a->count;
  return (px_cost){
      .bytes = (double)px_dtype_bytes(a->src_type, (size_t)a->count) + n * (double)px_dtype_bytes(a->dst_type, 1),
      .operations = 2 * n};
}

static float half_at(const uint8_t *p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return px_f16_to_f32(h);
}

static void q4(const uint8_t *b, bool with_min, float *y) {
  float d = half_at(b), m = with_min ? half_at(b + 2) : 0;
  const uint8_t *q = b + (with_min ? 4 : 2);
  int offset = with_min ? 0 : 8;
  for (int i = 0; i < 16; i++) {
    y[i] = (float)((q[i] & 15) - offset) * d + m;
    y[i + 16] = (float)((q[i] >> 4) - offset) * d + m;
  }
}

static void q5(const uint8_t *b, bool with_min, float *y) {
  float d = half_at(b), m = with_min ? half_at(b + 2) : 0;
  const uint8_t *h = b + (with_min ? 4 : 2), *q = h + 4;
  uint32_t bits;
  memcpy(&bits, h, 4);
  int offset = with_min ? 0 : 16;
  for (int i = 0; i < 16; i++) {
    y[i] = (float)((int)((q[i] & 15) | ((bits >> i & 1) << 4)) - offset) * d + m;
    y[i + 16] = (float)((int)((q[i] >> 4) | ((bits >> (i + 16) & 1) << 4)) - offset) * d + m;
  }
}

static void q8(const uint8_t *b, float *y) {
  float d = half_at(b);
  const int8_t *q = (const int8_t *)(b + 2);
  for (int i = 0; i < 32; i++) y[i] = (float)q[i] * d;
}

/* The 6-bit scale and minimum of group j. */
static void k_scale(const uint8_t *s, int j, int *scale, int *min) {
  if (j < 4) {
    *scale = s[j] & 63;
    *min = s[j + 4] & 63;
  } else {
    *scale = (s[j + 4] & 15) | (s[j - 4] >> 6 << 4);
    *min = (s[j + 4] >> 4) | (s[j] >> 6 << 4);
  }
}

static void q45_k(const uint8_t *b, bool five, float *y) {
  float d = half_at(b), dmin = half_at(b + 2);
  const uint8_t *s = b + 4, *h = b + 16, *q = b + (five ? 48 : 16);
  for (int j = 0; j < 8; j++) {
    int scale, min;
    k_scale(s, j, &scale, &min);
    float ds = d * (float)scale, dm = dmin * (float)min;
    for (int i = 0; i < 32; i++) {
      int v = j & 1 ? q[j / 2 * 32 + i] >> 4 : q[j / 2 * 32 + i] & 15;
      if (five) v |= (h[i] >> j & 1) << 4;
      y[j * 32 + i] = ds * (float)v - dm;
    }
  }
}

static void q6_k(const uint8_t *b, float *y) {
  const int8_t *s = (const int8_t *)(b + 192);
  float d = half_at(b + 208);
  for (int n = 0; n < 2; n++) {
    const uint8_t *l = b + 64 * n, *h = b + 128 + 32 * n;
    for (int i = 0; i < 32; i++)
      for (int part = 0; part < 4; part++) {
        int low = part < 2 ? l[i + 32 * (part & 1)] & 15 : l[i + 32 * (part & 1)] >> 4;
        int v = (low | (h[i] >> (2 * part) & 3) << 4) - 32;
        y[128 * n + 32 * part + i] = d * (float)s[8 * n + 2 * part + i / 16] * (float)v;
      }
  }
}

static void block(px_dtype type, const uint8_t *b, float *y) {
  switch (type) {
    case PX_Q8_0:
      q8(b, y);
      break;
    case PX_Q4_0:
      q4(b, false, y);
      break;
    case PX_Q4_1:
      q4(b, true, y);
      break;
    case PX_Q5_0:
      q5(b, false, y);
      break;
    case PX_Q5_1:
      q5(b, true, y);
      break;
    case PX_Q4_K:
      q45_k(b, false, y);
      break;
    case PX_Q5_K:
      q45_k(b, true, y);
      break;
    default:
      q6_k(b, y);
      break;
  }
}

/* Elements [at, at + n) with n a multiple of the block; plain types are not necessarily aligned. */
static void piece(const px_dequant_args *a, const px_dtype_info *info, int64_t at, int64_t n, float *y) {
  const uint8_t *src = (const uint8_t *)a->src + (size_t)(at / info->block_elements) * (size_t)info->block_bytes;
  if (info->block_elements > 1) {
    for (int64_t i = 0; i < n; i += info->block_elements, src += info->block_bytes) block(a->src_type, src, y + i);
  } else if (a->src_type == PX_F32) {
    memcpy(y, src, (size_t)n * 4);
  } else {
    uint16_t h[PX_PIECE];
    memcpy(h, src, (size_t)n * 2);
    px_load_row(h, a->src_type, 0, n, y);
  }
}

int px_dequant_cpu(const px_dequant_args *a) {
  const px_dtype_info *info = px_dtype_get(a->src_type);
#pragma omp parallel for schedule(static) if (a->count >= PX_PARALLEL_MIN)
  for (int64_t at = 0; at < a->count; at += PX_PIECE) {
    float y[PX_PIECE];
    int64_t n = a->count - at < PX_PIECE ? a->count - at : PX_PIECE;
    piece(a, info, at, n, y);
    px_store_row(a->dst, a->dst_type, at, n, y);
  }
  return 0;
}
