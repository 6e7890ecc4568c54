/* SPDX-License-Identifier: MIT
 * Block-quantised weights to float32 or bfloat16: a thread per element. The layouts stand in dequant_cpu.c; a block may
 * begin at any address, so its fields are read byte by byte. */
#include "kernels/dequant.h"
#include "kernels/device.cuh"

enum { DEQUANT_THREADS = 256 };

PX_DEVICE float half_at(const uint8_t *p) { return px_f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }

/* Q4_0, Q4_1, Q5_0, Q5_1: element i of a block of 32. */
PX_DEVICE float small(const uint8_t *b, bool five, bool with_min, int i) {
  float d = half_at(b), m = with_min ? half_at(b + 2) : 0;
  const uint8_t *high = b + (with_min ? 4 : 2), *q = five ? high + 4 : high;
  int v = i < 16 ? q[i] & 15 : q[i - 16] >> 4;
  if (five) v |= (high[i / 8] >> (i % 8) & 1) << 4;
  if (!with_min) v -= five ? 16 : 8;
  return (float)v * d + m;
}

/* Q4_K, Q5_K: element i of a block of 256. */
PX_DEVICE float q45_k(const uint8_t *b, bool five, int i) {
  const uint8_t *s = b + 4, *h = b + 16, *q = b + (five ? 48 : 16);
  int j = i / 32, at = i % 32, scale, min;
  if (j < 4) {
    scale = s[j] & 63;
    min = s[j + 4] & 63;
  } else {
    scale = (s[j + 4] & 15) | (s[j - 4] >> 6 << 4);
    min = (s[j + 4] >> 4) | (s[j] >> 6 << 4);
  }
  int v = j & 1 ? q[j / 2 * 32 + at] >> 4 : q[j / 2 * 32 + at] & 15;
  if (five) v |= (h[at] >> j & 1) << 4;
  float ds = half_at(b) * (float)scale, dm = half_at(b + 2) * (float)min;
  return ds * (float)v - dm;
}

/* Q6_K: element i of a block of 256. */
PX_DEVICE float q6_k(const uint8_t *b, int i) {
  int n = i / 128, part = i % 128 / 32, at = i % 32;
  const uint8_t *l = b + 64 * n, *h = b + 128 + 32 * n;
  int8_t scale = (int8_t)b[192 + 8 * n + 2 * part + at / 16];
  int low = part < 2 ? l[at + 32 * (part & 1)] & 15 : l[at + 32 * (part & 1)] >> 4;
  int v = (low | (h[at] >> (2 * part) & 3) << 4) - 32;
  return half_at(b + 208) * (float)scale * (float)v;
}

PX_DEVICE float element(px_dtype type, const uint8_t *b, int i) {
  switch (type) {
    case PX_F32: {
      uint32_t bits = b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
      float f;
      memcpy(&f, &bits, 4);
      return f;
    }
    case PX_F16:
      return half_at(b);
    case PX_BF16:
      return px_bf16_to_f32((uint16_t)(b[0] | b[1] << 8));
    case PX_Q8_0:
      return (float)(int8_t)b[2 + i] * half_at(b);
    case PX_Q4_0:
      return small(b, false, false, i);
    case PX_Q4_1:
      return small(b, false, true, i);
    case PX_Q5_0:
      return small(b, true, false, i);
    case PX_Q5_1:
      return small(b, true, true, i);
    case PX_Q4_K:
      return q45_k(b, false, i);
    case PX_Q5_K:
      return q45_k(b, true, i);
    default:
      return q6_k(b, i);
  }
}

template <typename T>
PX_KERNEL(DEQUANT_THREADS)
dequant_kernel(px_dequant_args a, int block_elements, int block_bytes) {
  int64_t e = (int64_t)blockIdx.x * DEQUANT_THREADS + threadIdx.x;
  if (e >= a.count) return;
  const uint8_t *b = static_cast<const uint8_t *>(a.src) + e / block_elements * block_bytes;
  static_cast<T *>(a.dst)[e] = px_from_float<T>(element(a.src_type, b, (int)(e % block_elements)));
}

int px_dequant_cuda(const px_dequant_args *a, void *stream) {
  if (a->count == 0) return 0;
  const px_dtype_info *info = px_dtype_get(a->src_type);
  PX_FOR_TYPE(a->dst_type, T,
              PX_LAUNCH(dequant_kernel<T>, px_blocks(a->count, DEQUANT_THREADS), DEQUANT_THREADS, 0, stream, *a,
                        info->block_elements, info->block_bytes));
  return PX_LAUNCHED();
}
