/* SPDX-License-Identifier: MIT
 * Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
 * SC 2011). A value depends on (seed, stream, index) alone, so it is the same on every backend, for every
 * thread count, and after a resume. */
#ifndef PX_CORE_RANDOM_H
#define PX_CORE_RANDOM_H

#include "core/types.h"

/* Who draws; streams never overlap. Values are part of exact resume: only append. */
typedef enum px_stream {
  PX_STREAM_INIT = 1,
  PX_STREAM_SHUFFLE = 2,
  PX_STREAM_PREFIX_DROPOUT = 3,
  PX_STREAM_SAMPLE = 4,
  PX_STREAM_DROPOUT = 5,
  PX_STREAM_SHOTS = 6,
} px_stream;

typedef struct px_u32x4 {
  uint32_t v[4];
} px_u32x4;

PX_HD px_u32x4 px_philox(uint64_t seed, uint32_t stream, uint32_t step, uint64_t index) {
  uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = step, c3 = stream;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  px_u32x4 r = {{c0, c1, c2, c3}};
  return r;
}

/* Uniform in [0, 1) with 24 bits: exactly representable in float32. */
PX_HD float px_uniform(uint32_t bits) { return (float)(bits >> 8) * 5.9604644775390625e-8f; }

PX_C_BEGIN

/* Standard normal, host only, computed in float64 (Box-Muller) and rounded once. */
float px_normal(uint64_t seed, uint32_t stream, uint32_t step, uint64_t index);
/* Uniform integer in [0, n) without bias beyond 2^-32; n > 0. */
uint64_t px_below(uint64_t seed, uint32_t stream, uint32_t step, uint64_t index, uint64_t n);

PX_C_END

#endif
