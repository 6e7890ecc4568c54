/* SPDX-License-Identifier: MIT */
#include "cli/compare_stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLEU_ORDER = 4, CHRF_ORDER = 6 };

/* docs/formats.md and the reference programs: sacrebleu's BLEU with exponential smoothing, chrF2. */
static double bleu_of(const compare_unit sums) {
  if (sums[UNIT_MATCHED] == 0 || sums[UNIT_WORDS + BLEU_ORDER - 1] == 0) return 0;
  double smooth = 1, logs = 0;
  for (int n = 0; n < BLEU_ORDER; n++) {
    double matched = sums[UNIT_MATCHED + n], total = sums[UNIT_WORDS + n];
    if (matched == 0) smooth *= 2;
    logs += log(matched > 0 ? 100 * matched / total : 100 / (smooth * total));
  }
  double ratio = sums[UNIT_LENGTHS + 1] / sums[UNIT_LENGTHS];
  return (ratio > 1 ? exp(1 - ratio) : 1) * exp(logs / BLEU_ORDER);
}

static double chrf_of(const compare_unit sums) {
  double precision = 0, recall = 0;
  int orders = 0;
  for (int n = 0; n < CHRF_ORDER; n++) {
    const double *of = sums + UNIT_CHRF + (size_t)3 * n;
    if (of[0] == 0 || of[1] == 0) continue;
    precision += of[2] / of[0];
    recall += of[2] / of[1];
    orders++;
  }
  if (orders == 0 || precision + recall == 0) return 0;
  precision /= orders;
  recall /= orders;
  return 100 * 5 * precision * recall / (4 * precision + recall);
}

double compare_metric_of(compare_metric metric, const compare_unit sums) {
  if (metric == COMPARE_LOSS) return sums[UNIT_TOKENS] > 0 ? sums[UNIT_LOSS] / sums[UNIT_TOKENS] : NAN;
  if (sums[UNIT_TEXTS] == 0) return NAN;
  switch (metric) {
    case COMPARE_BLEU:
      return bleu_of(sums);
    case COMPARE_CHRF:
      return chrf_of(sums);
    case COMPARE_ROUGE_L:
      return sums[UNIT_ROUGE] / sums[UNIT_TEXTS];
    case COMPARE_EXACT:
      return sums[UNIT_EXACT] / sums[UNIT_TEXTS];
    default:
      return NAN;
  }
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t next(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static size_t below(uint64_t *state, size_t n) { return (size_t)((double)(next(state) >> 11) * 0x1p-53 * (double)n); }

static void add_up(const compare_units *units, const double *weights, int fields, compare_unit sums) {
  memset(sums, 0, sizeof(compare_unit));
  for (size_t i = 0; i < units->count; i++) {
    if (weights[i] == 0) continue;
    for (int f = 0; f < fields; f++) sums[f] += weights[i] * units->list[i][f];
  }
}

static bool has_texts(const compare_units *units) {
  for (size_t i = 0; i < units->count; i++)
    if (units->list[i][UNIT_TEXTS] > 0) return true;
  return false;
}

/* One draw of one method: the mean over the seeds that were drawn. `luck` picks the same seed for all methods that have as
 * many, because equal seeds saw equal rows in equal order. */
static void draw_method(const compare_sample *m, size_t units, const double *weights, const double *luck, double values[COMPARE_METRICS]) {
  double sums[32][COMPARE_METRICS];
  bool fits = m->seed_count > 0;
  for (int s = 0; s < m->seed_count; s++) fits = fits && m->seeds[s]->count == units;
  for (int k = 0; k < COMPARE_METRICS; k++) values[k] = fits ? 0 : NAN;
  if (!fits) return;
  for (int s = 0; s < m->seed_count; s++) {
    compare_unit total;
    add_up(m->seeds[s], weights, has_texts(m->seeds[s]) ? UNIT_FIELDS : 2, total);
    for (int k = 0; k < COMPARE_METRICS; k++) sums[s][k] = compare_metric_of((compare_metric)k, total);
  }
  for (int s = 0; s < m->seed_count; s++) {
    int drawn = (int)(luck[s] * m->seed_count);
    for (int k = 0; k < COMPARE_METRICS; k++) values[k] += sums[drawn][k] / m->seed_count;
  }
}

static size_t unit_count(const compare_sample *methods, int count) {
  for (int i = 0; i < count; i++)
    if (methods[i].seed_count) return methods[i].seeds[0]->count;
  return 0;
}

bool compare_bootstrap_run(const compare_sample *methods, int count, int draws, uint64_t seed, compare_bootstrap *out) {
  size_t units = unit_count(methods, count);
  *out = (compare_bootstrap){.methods = count, .draws = draws};
  out->values = calloc((size_t)count * COMPARE_METRICS * (size_t)draws + 1, sizeof *out->values);
  double *weights = calloc(units + 1, sizeof *weights), luck[32];
  if (!out->values || !weights) {
    free(out->values);
    free(weights);
    out->values = NULL;
    return false;
  }
  uint64_t state = seed;
  for (int d = 0; d < draws; d++) {
    memset(weights, 0, units * sizeof *weights);
    for (size_t i = 0; i < units; i++) weights[below(&state, units)] += 1;
    for (int s = 0; s < 32; s++) luck[s] = (double)(next(&state) >> 11) * 0x1p-53;
    for (int m = 0; m < count; m++) {
      double values[COMPARE_METRICS];
      draw_method(&methods[m], units, weights, luck, values);
      for (int k = 0; k < COMPARE_METRICS; k++) out->values[((size_t)m * COMPARE_METRICS + (size_t)k) * (size_t)draws + (size_t)d] = values[k];
    }
  }
  free(weights);
  return true;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void middle(double *values, int count, double share, double *low, double *high) {
  *low = *high = NAN;
  for (int i = 0; i < count; i++)
    if (!isfinite(values[i])) return;
  if (count == 0) return;
  qsort(values, (size_t)count, sizeof *values, ascending);
  double cut = (1 - share) / 2 * (count - 1);
  *low = values[(int)floor(cut)];
  *high = values[count - 1 - (int)floor(cut)];
}

static const double *values_of(const compare_bootstrap *b, int method, compare_metric metric) {
  return b->values + ((size_t)method * COMPARE_METRICS + (size_t)metric) * (size_t)b->draws;
}

void compare_interval(const compare_bootstrap *b, int method, compare_metric metric, double share, double *low, double *high) {
  double *copy = malloc(((size_t)b->draws + 1) * sizeof *copy);
  *low = *high = NAN;
  if (!copy) return;
  memcpy(copy, values_of(b, method, metric), (size_t)b->draws * sizeof *copy);
  middle(copy, b->draws, share, low, high);
  free(copy);
}

void compare_interval_of_difference(const compare_bootstrap *b, int method_a, int method_b, compare_metric metric, double share, double *low,
                                    double *high) {
  const double *x = values_of(b, method_a, metric), *y = values_of(b, method_b, metric);
  double *copy = malloc(((size_t)b->draws + 1) * sizeof *copy);
  *low = *high = NAN;
  if (!copy) return;
  for (int i = 0; i < b->draws; i++) copy[i] = x[i] - y[i];
  middle(copy, b->draws, share, low, high);
  free(copy);
}
