/* SPDX-License-Identifier: MIT
 * One token per row: a block per row does what sample_cpu.c says. Masses are whole numbers, exp(d) in units of 2^-shift
 * with shift chosen so that a row's sum fits 63 bits: their sums know no order, so threads may add them as they come.
 * A row is passed over for its largest, then once to turn logits into d and to count tokens and masses by d in steps of 1/64,
 * then once for each place that is looked for: the tokens of one step, few as a rule, go into a list in shared memory. Where a step
 * has more of them than the list takes, it is searched by the digits of their bits, a pass over the row for each. */
#include "kernels/device.cuh"
#include "kernels/sample.h"

enum {
  SAMPLE_THREADS = 256,
  SCAN = 16,
  STEPS = 2048, /* of d; what is 32 or more below the best is in the last */
  STEPS_OF_ONE = 64,
  DIGITS = 256,
  LIST = 512 /* tokens of one step */
};

typedef unsigned long long mass;

/* A place in the descending order: the tokens up to it have a smaller key, or this key and an id up to `id`; their mass. */
struct place {
  uint32_t key;
  int64_t id;
  mass up_to;
};

/* Where a search stands: tokens and their mass before the bucket it goes down into, and the bucket. */
struct descent {
  int64_t passed;
  mass sum, one; /* one: the mass of a token where all of the bucket are equal */
  int32_t bucket, in_bucket;
};

struct sample_shared {
  float *scratch;           /* [32] */
  uint32_t *steps, *digits; /* tokens: [STEPS], [DIGITS] */
  mass *step_mass, *digit_mass;
  mass *part_count, *part_mass; /* [SAMPLE_THREADS + SCAN]: of each thread, of each SCAN threads */
  uint32_t *keys;               /* [LIST] the three of them */
  int32_t *ids;
  mass *masses;
  int64_t *result; /* [4] */
  descent *found;
  place *chosen;
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
/* Never ascends where d does. */
PX_DEVICE int step_of(float d) { return (int)fminf(-d * (float)STEPS_OF_ONE, (float)(STEPS - 1)); }
PX_DEVICE bool kept(place cut, uint32_t key, int64_t id) { return key < cut.key || (key == cut.key && id <= cut.id); }
PX_DEVICE mass mass_of(const row_state &row, float d) { return (mass)((double)expf(d) * row.unit); }

/* f(id, value) for every token of a row, in words of 16 bytes where it begins at one. */
template <typename F>
PX_DEVICE void for_tokens(const float *z, int64_t vocab, F f) {
  int64_t whole = reinterpret_cast<uintptr_t>(z) % 16 == 0 ? vocab / 4 * 4 : 0;
  for (int64_t i = 4 * (int64_t)threadIdx.x; i < whole; i += 4 * SAMPLE_THREADS) {
    float x[4];
    px_load<4>(z + i, x);
#pragma unroll
    for (int j = 0; j < 4; j++) f(i + j, x[j]);
  }
  for (int64_t i = whole + threadIdx.x; i < vocab; i += SAMPLE_THREADS) f(i, z[i]);
}

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
  for_tokens(row.d, row.vocab, [&](int64_t i, float d) {
    if (kept(cut, key_of(d), i)) sum += mass_of(row, d);
  });
  return (mass)block_sum(m, (int64_t)sum);
}

/* Sums over the threads before this one: SCAN threads add SCAN others each. */
PX_DEVICE void scan(const sample_shared &m, mass *count, mass *weight) {
  int thread = (int)threadIdx.x, group = thread / SCAN;
  mass *counts = m.part_count + SAMPLE_THREADS, *masses = m.part_mass + SAMPLE_THREADS;
  m.part_count[thread] = *count;
  m.part_mass[thread] = *weight;
  __syncthreads();
  if (thread < SCAN) {
    mass c = 0, w = 0;
    for (int i = thread * SCAN; i < (thread + 1) * SCAN; i++) {
      c += m.part_count[i];
      w += m.part_mass[i];
    }
    counts[thread] = c;
    masses[thread] = w;
  }
  __syncthreads();
  *count = *weight = 0;
  for (int i = 0; i < group; i++) {
    *count += counts[i];
    *weight += masses[i];
  }
  for (int i = group * SCAN; i < thread; i++) {
    *count += m.part_count[i];
    *weight += m.part_mass[i];
  }
}

/* The bucket at which `count` tokens are passed or their mass reaches `wanted` (exceeds it where `beyond`), else the last that has mass.
 * EACH buckets are a thread's. */
template <int EACH>
PX_DEVICE descent walk(const sample_shared &m, const uint32_t *tokens, const mass *masses, descent at, int64_t count, mass wanted,
                       bool beyond) {
  int first = (int)threadIdx.x * EACH;
  mass passed = 0, sum = 0;
  for (int i = first; i < first + EACH; i++) {
    passed += tokens[i];
    sum += masses[i];
  }
  if (threadIdx.x == 0) {
    m.result[0] = SAMPLE_THREADS * EACH; /* the first that reaches */
    m.result[1] = 0;                     /* the last that has mass */
  }
  scan(m, &passed, &sum);
  passed += (mass)at.passed;
  sum += at.sum;
  mass passed_before[EACH], sum_before[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    passed_before[i] = passed;
    sum_before[i] = sum;
    if (tokens[first + i] == 0) continue;
    passed += tokens[first + i];
    sum += masses[first + i];
    if ((int64_t)passed >= count || (beyond ? sum > wanted : sum >= wanted))
      atomicMin(reinterpret_cast<mass *>(&m.result[0]), (mass)(first + i));
    else if (masses[first + i] > 0)
      atomicMax(reinterpret_cast<mass *>(&m.result[1]), (mass)(first + i));
  }
  __syncthreads();
  int bucket = (int)(m.result[0] < SAMPLE_THREADS * EACH ? m.result[0] : m.result[1]);
#pragma unroll
  for (int i = 0; i < EACH; i++)
    if (bucket == first + i) {
      m.found->passed = (int64_t)passed_before[i];
      m.found->sum = sum_before[i];
      m.found->one = tokens[bucket] ? masses[bucket] / tokens[bucket] : 0;
      m.found->bucket = bucket;
      m.found->in_bucket = (int32_t)tokens[bucket];
    }
  __syncthreads();
  at = *m.found;
  __syncthreads();
  return at;
}

/* Turns logits into d; counts and masses of the steps. */
PX_DEVICE void take_steps(const sample_shared &m, const row_state &row, float *z, float peak, float temperature) {
  for (int i = (int)threadIdx.x; i < STEPS; i += SAMPLE_THREADS) {
    m.steps[i] = 0;
    m.step_mass[i] = 0;
  }
  __syncthreads();
  for_tokens(z, row.vocab, [&](int64_t i, float x) {
    float d = (x - peak) / temperature;
    z[i] = d;
    atomicAdd(&m.steps[step_of(d)], 1u);
    atomicAdd(&m.step_mass[step_of(d)], mass_of(row, d));
  });
  __syncthreads();
}

/* The tokens of a step into the list, in any order. */
PX_DEVICE void list_step(const sample_shared &m, const row_state &row, int bucket) {
  if (threadIdx.x == 0) {
    m.result[0] = LIST; /* the first rank that reaches */
    m.result[1] = 0;    /* the last that has mass */
    m.result[2] = 0;
  }
  __syncthreads();
  for_tokens(row.d, row.vocab, [&](int64_t i, float d) {
    if (step_of(d) != bucket) return;
    mass at = atomicAdd(reinterpret_cast<mass *>(&m.result[2]), (mass)1);
    m.keys[at] = key_of(d);
    m.ids[at] = (int32_t)i;
    m.masses[at] = mass_of(row, d);
  });
  __syncthreads();
}

/* The place in a step that the list takes: every token counts those before it. */
PX_DEVICE place find_in_list(const sample_shared &m, const row_state &row, descent step, int64_t count, mass wanted, bool beyond) {
  int64_t rank[LIST / SAMPLE_THREADS];
  mass up_to[LIST / SAMPLE_THREADS];
  list_step(m, row, step.bucket);
#pragma unroll
  for (int e = 0; e < LIST / SAMPLE_THREADS; e++) {
    int i = (int)threadIdx.x + e * SAMPLE_THREADS;
    rank[e] = LIST;
    if (i >= step.in_bucket) continue;
    rank[e] = 0;
    up_to[e] = step.sum + m.masses[i];
    for (int j = 0; j < step.in_bucket; j++) {
      bool before = m.keys[j] < m.keys[i] || (m.keys[j] == m.keys[i] && m.ids[j] < m.ids[i]);
      rank[e] += before;
      up_to[e] += before ? m.masses[j] : 0;
    }
    if (step.passed + rank[e] + 1 >= count || (beyond ? up_to[e] > wanted : up_to[e] >= wanted))
      atomicMin(reinterpret_cast<mass *>(&m.result[0]), (mass)rank[e]);
    else if (m.masses[i] > 0)
      atomicMax(reinterpret_cast<mass *>(&m.result[1]), (mass)rank[e]);
  }
  __syncthreads();
  int64_t chosen = m.result[0] < LIST ? m.result[0] : m.result[1];
#pragma unroll
  for (int e = 0; e < LIST / SAMPLE_THREADS; e++) {
    int i = (int)threadIdx.x + e * SAMPLE_THREADS;
    if (rank[e] == chosen) *m.chosen = {m.keys[i], m.ids[i], up_to[e]};
  }
  __syncthreads();
  place p = *m.chosen;
  __syncthreads();
  return p;
}

/* Counts and masses by one digit of the tokens of a step whose digits before it are `prefix`. */
PX_DEVICE void take_digits(const sample_shared &m, const row_state &row, int bucket, uint32_t prefix, int low) {
  m.digits[threadIdx.x] = 0;
  m.digit_mass[threadIdx.x] = 0;
  __syncthreads();
  for_tokens(row.d, row.vocab, [&](int64_t, float d) {
    uint32_t key = key_of(d);
    if (step_of(d) != bucket || (uint64_t)key >> (low + 8) != prefix) return;
    atomicAdd(&m.digits[key >> low & (DIGITS - 1)], 1u);
    atomicAdd(&m.digit_mass[key >> low & (DIGITS - 1)], mass_of(row, d));
  });
  __syncthreads();
}

/* Id of the nth token (from 1) with this key. Each thread counts a run of ids. */
PX_DEVICE int64_t nth_of_key(const sample_shared &m, const row_state &row, uint32_t key, int64_t n) {
  int64_t run = (row.vocab + SAMPLE_THREADS - 1) / SAMPLE_THREADS, from = run * threadIdx.x;
  int64_t to = from + run < row.vocab ? from + run : row.vocab, mine = 0;
  for (int64_t i = from; i < to; i++) mine += key_of(row.d[i]) == key;
  if (threadIdx.x == 0) m.result[2] = row.vocab - 1;
  mass before = (mass)mine, nothing = 0;
  scan(m, &before, &nothing);
  if ((int64_t)before < n && n <= (int64_t)before + mine)
    for (int64_t i = from; i < to; i++)
      if (key_of(row.d[i]) == key && (int64_t)++before == n) m.result[2] = i;
  __syncthreads();
  int64_t id = m.result[2];
  __syncthreads();
  return id;
}

/* The place in a step of any number of tokens. */
PX_DEVICE place find_by_digits(const sample_shared &m, const row_state &row, descent step, int64_t count, mass wanted, bool beyond) {
  descent at = step;
  uint32_t key = 0;
  for (int low = 24; low >= 0; low -= 8) {
    take_digits(m, row, step.bucket, key, low);
    at = walk<1>(m, m.digits, m.digit_mass, at, count, wanted, beyond);
    key = key << 8 | (uint32_t)at.bucket;
  }
  int64_t n = count - at.passed < at.in_bucket ? count - at.passed : at.in_bucket;
  if (at.one > 0) { /* the fewest tokens that reach the mass */
    mass missing = wanted > at.sum ? wanted - at.sum : 0, whole = missing / at.one;
    mass needed = beyond || missing % at.one ? whole + 1 : whole;
    if (needed < 1) needed = 1;
    if (needed < (mass)n) n = (int64_t)needed;
  }
  if (n < 1) n = 1;
  place p = {key, nth_of_key(m, row, key, n), at.sum + (mass)n * at.one};
  return p;
}

/* The first place at which `count` tokens are passed or their mass reaches `wanted` (exceeds it where `beyond`); see
 * sample_cpu.c. */
PX_DEVICE place descend(const sample_shared &m, const row_state &row, int64_t count, mass wanted, bool beyond) {
  const descent top = {0, 0, 0, 0, 0};
  descent step = walk<STEPS / SAMPLE_THREADS>(m, m.steps, m.step_mass, top, count, wanted, beyond);
  return step.in_bucket > LIST ? find_by_digits(m, row, step, count, wanted, beyond)
                               : find_in_list(m, row, step, count, wanted, beyond);
}

PX_DEVICE int32_t draw(const px_sample_row &p, const sample_shared &m, float *z, int64_t vocab, float peak) {
  int bits = 1;
  while (vocab >> bits) bits++;
  row_state row = {z, vocab, (double)((mass)1 << (62 - bits))};
  const mass never = ~(mass)0;
  mass all = 0;
  take_steps(m, row, z, peak, p.temperature);
  for (int i = (int)threadIdx.x; i < STEPS; i += SAMPLE_THREADS) all += m.step_mass[i];
  place cut = {0xffffffffu, vocab, (mass)block_sum(m, (int64_t)all)}, found;
  if (p.top_k > 0 && p.top_k < vocab) cut = descend(m, row, p.top_k, never, false);
  if (p.top_p < 1.0f) {
    found = descend(m, row, INT64_MAX, (mass)ceil((double)p.top_p * (double)cut.up_to), false);
    if (kept(cut, found.key, found.id)) cut = found;
  }
  if (p.min_p > 0) {
    found = {key_of(logf(p.min_p)), vocab, 0};
    if (!kept(found, cut.key, cut.id)) {
      cut = found;
      cut.up_to = mass_up_to(m, row, cut);
    }
  }
  float u = px_uniform(px_philox(p.seed, PX_STREAM_SAMPLE, p.position, p.row).v[0]);
  return (int32_t)descend(m, row, INT64_MAX, (mass)((double)u * (double)cut.up_to), true).id;
}

/* The largest logit, NaN where one is NaN, and the first token that has it. */
PX_DEVICE float largest(const sample_shared &m, const float *z, int64_t vocab, int64_t *at) {
  float best = -INFINITY;
  int64_t nan = 0, first = vocab;
  for_tokens(z, vocab, [&](int64_t i, float x) {
    if (x > best) {
      best = x;
      first = i;
    }
    nan += x != x;
  });
  float all = px_block_max(best, m.scratch);
  if (threadIdx.x == 0) m.result[2] = vocab;
  __syncthreads();
  if (best == all && first < vocab) atomicMin(reinterpret_cast<mass *>(&m.result[2]), (mass)first);
  __syncthreads();
  *at = m.result[2];
  return block_sum(m, nan) ? NAN : all;
}

PX_DEVICE void penalise(const px_sample_row &p, float *z, int64_t vocab) {
  if (p.repetition_penalty == 1.0f) return;
  for (int h = (int)threadIdx.x; h < p.history_count; h += SAMPLE_THREADS) {
    int32_t id = p.history[h];
    bool again = id < 0 || id >= vocab;
    for (int before = 0; before < h && !again; before++) again = p.history[before] == id;
    if (!again) z[id] = z[id] > 0 ? z[id] / p.repetition_penalty : z[id] * p.repetition_penalty;
  }
}

PX_KERNEL(SAMPLE_THREADS) sample_kernel(px_sample_args a) {
  PX_SHARED(float, scratch, PX_WARP);
  PX_SHARED(uint32_t, steps, STEPS);
  PX_SHARED(mass, step_mass, STEPS);
  PX_SHARED(uint32_t, digits, DIGITS);
  PX_SHARED(mass, digit_mass, DIGITS);
  PX_SHARED(mass, part_count, SAMPLE_THREADS + SCAN);
  PX_SHARED(mass, part_mass, SAMPLE_THREADS + SCAN);
  PX_SHARED(uint32_t, keys, LIST);
  PX_SHARED(int32_t, ids, LIST);
  PX_SHARED(mass, masses, LIST);
  PX_SHARED(int64_t, result, 4);
  PX_SHARED(descent, found, 1);
  PX_SHARED(place, chosen, 1);
  sample_shared m = {scratch,   steps, digits, step_mass, digit_mass, part_count,
                     part_mass, keys,  ids,    masses,    result,     found, chosen};
  px_sample_row p = a.params[blockIdx.x];
  float *z = a.logits + blockIdx.x * a.stride;
  int32_t id = -1;
  int64_t first;
  float peak = largest(m, z, a.vocab, &first);
  if (isfinite(peak) && p.repetition_penalty != 1.0f && p.history_count > 0) { /* the same in every thread */
    penalise(p, z, a.vocab);
    __syncthreads();
    peak = largest(m, z, a.vocab, &first);
  }
  if (isfinite(peak)) id = p.temperature > 0 ? draw(p, m, z, a.vocab, peak) : (int32_t)first;
  if (threadIdx.x == 0) a.ids[blockIdx.x] = id;
}

int px_sample_cuda(const px_sample_args *a, void *stream) {
  if (a->rows == 0) return 0;
  PX_LAUNCH(sample_kernel, (unsigned)a->rows, SAMPLE_THREADS, 0, stream, *a);
  return PX_LAUNCHED();
}
