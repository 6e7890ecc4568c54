/* SPDX-License-Identifier: MIT */
#include "core/random.h"

#include <math.h>

float px_normal(uint64_t seed, uint32_t stream, uint32_t step, uint64_t index) {
  px_u32x4 r = px_philox(seed, stream, step, index);
  double u1 = ((double)r.v[0] + 1.0) / 4294967297.0, u2 = (double)r.v[1] / 4294967296.0;
  return (float)(sqrt(-2.0 * log(u1)) * cos(6.283185307179586476925 * u2));
}

uint64_t px_below(uint64_t seed, uint32_t stream, uint32_t step, uint64_t index, uint64_t n) {
  px_u32x4 r = px_philox(seed, stream, step, index);
  uint64_t wide = (uint64_t)r.v[1] << 32 | r.v[0];
  return (uint64_t)(((unsigned __int128)wide * n) >> 64);
}
