/* SPDX-License-Identifier: MIT
 * One token per row: a block per row does what sample_cpu.c says. Masses are whole numbers, exp(d) in units of 2^-shift
 * with shift chosen so that a row's sum fits 63 bits: their sums know no order, so threads may add them as they come.
 */
#include "kernels/device.cuh"
#include "kernels/sample.h"

enum { SAMPLE_THREADS = 256, BUCKETS = 2048, LEVELS = 3 };

typedef unsigned long long mass;

/* A place in the descending order: the tokens up to it have a smaller key, or this key and an id up to `id`. */
struct place {
  uint32_t key;
  int64_t id;
};

struct descent;

struct sample_shared {
  float *scratch; /* [32] */
  uint32_t *count;
  mass *weight;     /* [BUCKETS] both */
  int64_t *segment; /* [SAMPLE_THREADS + 1] */
  int64_t *result;  /* [4] */
  descent *found;
};

struct row_state {
  const float *d;
  int64_t vocab;
  double unit; /* 2^shift */
};

/* The bits of -d: they ascend where d descends; -0 is 0. */
PX_DEVICE uint32_t key_of(float d) {
  uint32_t u;
  d = -d;
  memcpy(&u, &d, 4);
  return u & 0x7fffffffu;
}
PX_DEVICE bool kept(place cut, uint32_t key, int64_t id) { return key < cut.key || (key == cut.key && id <= cut.id); }
PX_DEVICE mass mass_of(const row_state &row, float d) { return (mass)((double)expf(d) * row.unit); }

PX_DEVICE int64_t block_sum(const sample_shared &m, int64_t x) {
  if (threadIdx.x == 0) m.result[3] = 0;
  __syncthreads();
  atomicAdd(reinterpret_cast<mass *>(&m.result[3]), (mass)x);
  __syncthreads();
  int64_t sum = m.result[3];
  __syncthreads();
  return sum;
}

PX_DEVICE mass mass_up_to(const sample_shared &m, const row_state &row, place cut) {
  mass sum = 0;
  for (int64_t i = threadIdx.x; i < row.vocab; i += SAMPLE_THREADS)
    if (kept(cut, key_of(row.d[i]), i)) sum += mass_of(row, row.d[i]);
  return (mass)block_sum(m, (int64_t)sum);
}

/* Counts and masses of the buckets that one more part of the key makes of the tokens that agree in the parts before. */
PX_DEVICE void fill(const sample_shared &m, const row_state &row, uint32_t prefix, int known, int low, int bits) {
  for (int i = (int)threadIdx.x; i < BUCKETS; i += SAMPLE_THREADS) {
    m.count[i] = 0;
    m.weight[i] = 0;
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < row.vocab; i += SAMPLE_THREADS) {
    uint32_t key = key_of(row.d[i]);
    if (known && key >> (32 - known) != prefix) continue;
    uint32_t at = key >> low & ((1u << bits) - 1);
    atomicAdd(&m.count[at], 1u);
    atomicAdd(&m.weight[at], mass_of(row, row.d[i]));
  }
  __syncthreads();
}

/* Id of the nth token (from 1) with this key. Each thread counts a run of ids. */
PX_DEVICE int64_t nth_of_key(const sample_shared &m, const row_state &row, uint32_t key, int64_t n) {
  int64_t run = (row.vocab + SAMPLE_THREADS - 1) / SAMPLE_THREADS, from = run * threadIdx.x;
  int64_t to = from + run < row.vocab ? from + run : row.vocab, mine = 0;
  for (int64_t i = from; i < to; i++) mine += key_of(row.d[i]) == key;
  m.segment[threadIdx.x] = mine;
  if (threadIdx.x == 0) m.result[2] = row.vocab - 1;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int64_t i = 0, sum = 0; i < SAMPLE_THREADS; i++) {
      int64_t here = m.segment[i];
      m.segment[i] = sum;
      sum += here;
    }
  __syncthreads();
  int64_t before = m.segment[threadIdx.x];
  if (before < n && n <= before + mine)
    for (int64_t i = from; i < to; i++)
      if (key_of(row.d[i]) == key && ++before == n) m.result[2] = i;
  __syncthreads();
  int64_t id = m.result[2];
  __syncthreads();
  return id;
}

/* Where a search stands: the tokens before the bucket it goes down into, and the bucket. */
struct descent {
  int64_t passed;
  mass sum, one; /* one: the mass of a token where all of the bucket are equal */
  uint32_t prefix;
  int32_t in_bucket;
};

/* The bucket at which `count` tokens are passed or their mass reaches `wanted`, else the last that has mass. */
PX_DEVICE descent walk(const sample_shared &m, descent at, int width, int64_t count, mass wanted, bool beyond) {
  descent found = at;
  int last = 0;
  for (int i = 0; i < 1 << width; i++) {
    if (m.count[i] == 0) continue;
    mass then = at.sum + m.weight[i];
    bool here = at.passed + m.count[i] >= count || (beyond ? then > wanted : then >= wanted);
    if (here || m.weight[i] > 0) {
      last = i;
      found = at;
    }
    if (here) break;
    at.passed += m.count[i];
    at.sum = then;
  }
  found.in_bucket = (int32_t)m.count[last];
  found.one = m.count[last] ? m.weight[last] / m.count[last] : 0;
  found.prefix = at.prefix << width | (uint32_t)last;
  return found;
}

/* The first place at which `count` tokens are passed or their mass reaches `wanted` (exceeds it where `beyond`); see
 * sample_cpu.c. */
PX_DEVICE place descend(const sample_shared &m, const row_state &row, int64_t count, mass wanted, bool beyond) {
  descent at = {0, 0, 0, 0, 0};
  for (int level = 0, known = 0; level < LEVELS; level++) {
    int width = level < 2 ? 11 : 10;
    fill(m, row, at.prefix, known, 32 - known - width, width);
    if (threadIdx.x == 0) *m.found = walk(m, at, width, count, wanted, beyond);
    __syncthreads();
    at = *m.found;
    known += width;
    __syncthreads();
  }
  int64_t n = count - at.passed < at.in_bucket ? count - at.passed : at.in_bucket;
  if (at.one > 0) { /* the fewest tokens that reach the mass */
    mass missing = wanted > at.sum ? wanted - at.sum : 0, whole = missing / at.one;
    mass needed = beyond || missing % at.one ? whole + 1 : whole;
    if (needed < 1) needed = 1;
    if (needed < (mass)n) n = (int64_t)needed;
  }
  place p = {at.prefix, nth_of_key(m, row, at.prefix, n < 1 ? 1 : n)};
  return p;
}

PX_DEVICE int32_t draw(const px_sample_row &p, const sample_shared &m, float *z, int64_t vocab, float peak) {
  for (int64_t i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) z[i] = (z[i] - peak) / p.temperature;
  int bits = 1;
  while (vocab >> bits) bits++;
  row_state row = {z, vocab, (double)((mass)1 << (62 - bits))};
  place cut = {0xffffffffu, vocab}, found;
  const mass never = ~(mass)0;
  __syncthreads();
  if (p.top_k > 0 && p.top_k < vocab) cut = descend(m, row, p.top_k, never, false);
  if (p.top_p < 1.0f) {
    found = descend(m, row, INT64_MAX, (mass)ceil((double)p.top_p * (double)mass_up_to(m, row, cut)), false);
    if (kept(cut, found.key, found.id)) cut = found;
  }
  if (p.min_p > 0) {
    found = {key_of(logf(p.min_p)), vocab};
    if (!kept(found, cut.key, cut.id)) cut = found;
  }
  float u = px_uniform(px_philox(p.seed, PX_STREAM_SAMPLE, p.position, p.row).v[0]);
  mass all = mass_up_to(m, row, cut);
  return (int32_t)descend(m, row, INT64_MAX, (mass)((double)u * (double)all), true).id;
}

/* The largest logit; NaN where one is NaN. */
PX_DEVICE float largest(const sample_shared &m, const float *z, int64_t vocab) {
  float best = -INFINITY;
  int64_t nan = 0;
  for (int64_t i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
    best = fmaxf(best, z[i]);
    nan += z[i] != z[i];
  }
  best = px_block_max(best, m.scratch);
  return block_sum(m, nan) ? NAN : best;
}

/* Every token of the history once: the first that names it does it. */
PX_DEVICE void penalise(const px_sample_row &p, float *z, int64_t vocab) {
  if (p.repetition_penalty == 1.0f) return;
  for (int h = (int)threadIdx.x; h < p.history_count; h += SAMPLE_THREADS) {
    int32_t id = p.history[h];
    bool again = id < 0 || id >= vocab;
    for (int before = 0; before < h && !again; before++) again = p.history[before] == id;
    if (!again) z[id] = z[id] > 0 ? z[id] / p.repetition_penalty : z[id] * p.repetition_penalty;
  }
}

PX_DEVICE int32_t first_equal(const sample_shared &m, const float *z, int64_t vocab, float peak) {
  if (threadIdx.x == 0) m.result[2] = vocab;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < vocab; i += SAMPLE_THREADS)
    if (z[i] == peak) {
      atomicMin(reinterpret_cast<mass *>(&m.result[2]), (mass)i);
      break;
    }
  __syncthreads();
  return (int32_t)m.result[2];
}

PX_KERNEL(SAMPLE_THREADS) sample_kernel(px_sample_args a) {
  PX_SHARED(float, scratch, PX_WARP);
  PX_SHARED(uint32_t, count, BUCKETS);
  PX_SHARED(mass, weight, BUCKETS);
  PX_SHARED(int64_t, segment, SAMPLE_THREADS);
  PX_SHARED(int64_t, result, 4);
  PX_SHARED(descent, found, 1);
  sample_shared m = {scratch, count, weight, segment, result, found};
  px_sample_row p = a.params[blockIdx.x];
  float *z = a.logits + blockIdx.x * a.stride;
  int32_t id = -1;
  float peak = largest(m, z, a.vocab);
  if (isfinite(peak)) { /* the same in every thread */
    penalise(p, z, a.vocab);
    __syncthreads();
    peak = largest(m, z, a.vocab);
    if (isfinite(peak)) id = p.temperature > 0 ? draw(p, m, z, a.vocab, peak) : first_equal(m, z, a.vocab, peak);
  }
  if (threadIdx.x == 0) a.ids[blockIdx.x] = id;
}

int px_sample_cuda(const px_sample_args *a, void *stream) {
  if (a->rows == 0) return 0;
  PX_LAUNCH(sample_kernel, (unsigned)a->rows, SAMPLE_THREADS, 0, stream, *a);
  return PX_LAUNCHED();
}
