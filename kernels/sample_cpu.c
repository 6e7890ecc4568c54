/* SPDX-License-Identifier: MIT
 * Nothing is sorted and nothing is moved. Once the best logit is subtracted and the temperature divided out, every
 * value is d <= 0, and the bits of -d, as an unsigned number, ascend exactly where d descends: a radix descent over
 * those bits (11, 11, 10), with a count and a mass per bucket, finds the place in the descending order where a count or
 * a mass is reached. */
#include "kernels/sample.h"

#include "core/random.h"
#include "kernels/math_cpu.h"

const char *px_sample_check(const px_sample_args *a) {
  if (a->rows < 0 || a->vocab < 1 || a->vocab > INT32_MAX) return "rows or vocab is out of range";
  if (a->stride < a->vocab) return "the stride is shorter than a row";
  return a->rows && (!a->logits || !a->params || !a->ids) ? "a pointer is missing" : NULL;
}

const char *px_sample_check_arrays(const px_sample_args *a) {
  for (int64_t t = 0; t < a->rows; t++) {
    const px_sample_row *p = &a->params[t];
    if (!(p->temperature >= 0 && p->temperature < INFINITY)) return "the temperature must be 0 or more";
    if (!(p->top_p > 0)) return "top_p must be above 0";
    if (!(p->min_p >= 0 && p->min_p <= 1)) return "min_p must be in [0, 1]";
    if (!(p->repetition_penalty > 0 && p->repetition_penalty < INFINITY))
      return "the repetition penalty must be above 0";
    if (p->top_k < 0) return "top_k must be 0 or more";
    if (p->history_count < 0 || (p->history_count && !p->history)) return "the history is missing";
  }
  return NULL;
}

px_cost px_sample_cost(const px_sample_args *a) {
  double n = (double)a->rows * (double)a->vocab;
  return (px_cost){.bytes = 4 * n, .operations = 4 * n};
}

/* Every token of the history once, however often it occurs: a bit per id, in windows that fit the stack. */
static void penalise(const px_sample_row *p, float *z, int64_t vocab) {
  enum { WINDOW = 1 << 16 };
  if (p->repetition_penalty == 1.0f || p->history_count == 0) return;
  for (int64_t from = 0; from < vocab; from += WINDOW) {
    uint64_t seen[WINDOW / 64] = {0};
    for (int32_t h = 0; h < p->history_count; h++) {
      int64_t id = p->history[h], bit = id - from;
      if (bit < 0 || bit >= WINDOW || id >= vocab || (seen[bit / 64] >> (bit % 64) & 1)) continue;
      seen[bit / 64] |= UINT64_C(1) << (bit % 64);
      z[id] = z[id] > 0 ? z[id] / p->repetition_penalty : z[id] * p->repetition_penalty;
    }
  }
}

/* The largest logit; NaN where one is NaN. A compiler may begin a reduction at -FLT_MAX, so -inf is told apart. */
static float largest(const float *z, int64_t vocab) {
  float best = -INFINITY;
  int nan = 0, token = 0;
#pragma omp simd reduction(max : best) reduction(| : nan, token)
  for (int64_t i = 0; i < vocab; i++) {
    best = z[i] > best ? z[i] : best;
    nan |= z[i] != z[i];
    token |= z[i] > -INFINITY;
  }
  return nan ? NAN : token ? best : -INFINITY;
}

static inline uint32_t key_of(float d) {
  uint32_t u;
  d = -d;
  memcpy(&u, &d, 4);
  return u & 0x7fffffffu; /* -0 is 0 */
}

/* A place in the descending order: the tokens up to it have a smaller key, or this key and an id up to `id`. */
typedef struct place {
  uint32_t key;
  int64_t id;
} place;

static inline bool kept(place cut, uint32_t key, int64_t id) {
  return key < cut.key || (key == cut.key && id <= cut.id);
}

static double mass_of(const float *d, int64_t vocab, place cut) {
  double mass = 0;
  for (int64_t i = 0; i < vocab; i++)
    if (kept(cut, key_of(d[i]), i)) mass += (double)px_exp(d[i]);
  return mass;
}

/* Counts and masses of the buckets that one more part of the key makes of the tokens that agree in the parts before it.
 */
enum { BUCKETS = 2048 };
typedef struct buckets {
  int64_t count[BUCKETS];
  double mass[BUCKETS];
} buckets;

static void fill(const float *d, int64_t vocab, uint32_t prefix, int known, int low, int bits, buckets *b) {
  memset(b, 0, sizeof *b);
  for (int64_t i = 0; i < vocab; i++) {
    uint32_t key = key_of(d[i]);
    if (known && key >> (32 - known) != prefix) continue;
    uint32_t at = key >> low & ((1u << bits) - 1);
    b->count[at]++;
    b->mass[at] += (double)px_exp(d[i]);
  }
}

/* The first place at which `count` tokens are passed or their mass reaches `mass` (exceeds it where `beyond`). A mass
 * that rounding keeps from being reached ends at the last token that has one. */
static place descend(const float *d, int64_t vocab, int64_t count, double mass, bool beyond) {
  static const int width[] = {11, 11, 10};
  buckets b;
  uint32_t prefix = 0;
  int64_t passed = 0;
  double sum = 0;
  for (int level = 0, known = 0; level < 3; known += width[level++]) {
    fill(d, vocab, prefix, known, 32 - known - width[level], width[level], &b);
    int last = 0; /* the bucket to go down into: the one that reaches, else the last that has mass */
    int64_t so_far = passed, before_last = passed; /* tokens, and their mass, before bucket i and before `last` */
    double mass_so_far = sum, mass_before_last = sum;
    for (int i = 0; i < 1 << width[level]; i++) {
      if (b.count[i] == 0) continue;
      double then = mass_so_far + b.mass[i];
      bool here = so_far + b.count[i] >= count || (beyond ? then > mass : then >= mass);
      if (here || b.mass[i] > 0) {
        last = i;
        before_last = so_far;
        mass_before_last = mass_so_far;
      }
      if (here) break;
      so_far += b.count[i];
      mass_so_far = then;
    }
    passed = before_last;
    sum = mass_before_last;
    prefix = prefix << width[level] | (uint32_t)last;
  }
  place p = {prefix, -1};
  for (int64_t i = 0; i < vocab; i++) {
    if (key_of(d[i]) != prefix) continue;
    p.id = i;
    sum += (double)px_exp(d[i]);
    if (++passed >= count || (beyond ? sum > mass : sum >= mass)) break;
  }
  return p;
}

static int32_t draw(const px_sample_row *p, float *z, int64_t vocab, float peak) {
#pragma omp simd
  for (int64_t i = 0; i < vocab; i++) z[i] = (z[i] - peak) / p->temperature;
  place cut = {UINT32_MAX, vocab}, found;
  if (p->top_k > 0 && p->top_k < vocab) cut = descend(z, vocab, p->top_k, INFINITY, false);
  if (p->top_p < 1.0f) {
    found = descend(z, vocab, INT64_MAX, (double)p->top_p * mass_of(z, vocab, cut), false);
    if (kept(cut, found.key, found.id)) cut = found;
  }
  if (p->min_p > 0) {
    found = (place){key_of(logf(p->min_p)), vocab};
    if (!kept(found, cut.key, cut.id)) cut = found;
  }
  float u = px_uniform(px_philox(p->seed, PX_STREAM_SAMPLE, p->position, p->row).v[0]);
  return (int32_t)descend(z, vocab, INT64_MAX, (double)u * mass_of(z, vocab, cut), true).id;
}

static int32_t sample_row(const px_sample_row *p, float *z, int64_t vocab) {
  float peak = largest(z, vocab);
  if (!isfinite(peak)) return -1;
  penalise(p, z, vocab);
  peak = largest(z, vocab);
  if (!isfinite(peak)) return -1;
  if (p->temperature > 0) return draw(p, z, vocab, peak);
  int64_t at = 0;
  while (z[at] != peak) at++;
  return (int32_t)at;
}

int px_sample_cpu(const px_sample_args *a) {
#pragma omp parallel for schedule(static) if (a->rows > 1 && a->rows * a->vocab >= PX_PARALLEL_MIN)
  for (int64_t t = 0; t < a->rows; t++) a->ids[t] = sample_row(&a->params[t], a->logits + t * a->stride, a->vocab);
  return 0;
}
