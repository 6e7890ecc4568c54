/* SPDX-License-Identifier: MIT
 * How sure a difference is: the paired bootstrap (Efron 1979; for texts Koehn 2004). Rows are drawn again and again with
 * replacement, the same ones for every method; what a score does over the draws says how far chance could have moved it. */
#ifndef PFX_CLI_COMPARE_STATS_H
#define PFX_CLI_COMPARE_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum compare_metric { COMPARE_LOSS, COMPARE_BLEU, COMPARE_CHRF, COMPARE_ROUGE_L, COMPARE_EXACT, COMPARE_METRICS } compare_metric;

/* A unit is a row, or all rows with one prompt. It holds what it adds to the sums from which each metric follows. */
enum {
  UNIT_LOSS = 0,    /* sum over labelled tokens */
  UNIT_TOKENS = 1,
  UNIT_TEXTS = 2,   /* 1 where a text was generated */
  UNIT_ROUGE = 3,
  UNIT_EXACT = 4,
  UNIT_LENGTHS = 5, /* BLEU: words of the text, of the reference */
  UNIT_MATCHED = 7, /* BLEU: by order */
  UNIT_WORDS = 11,
  UNIT_CHRF = 15,   /* six orders: of the text, of the reference, of both */
  UNIT_FIELDS = 33
};
typedef double compare_unit[UNIT_FIELDS];

typedef struct compare_units {
  size_t count;
  compare_unit *list;
} compare_units;

/* NaN where nothing was measured. */
double compare_metric_of(compare_metric metric, const compare_unit sums);

/* One method: the same units measured with each of its seeds. */
typedef struct compare_sample {
  const compare_units *seeds[32];
  int seed_count;
} compare_sample;

/* values[(method * COMPARE_METRICS + metric) * draws + draw] */
typedef struct compare_bootstrap {
  int methods, draws;
  double *values;
} compare_bootstrap;

/* Draws rows, and seeds where there are several. One without seeds, or without as many units as the first, has NaN.
 * false: no memory. The caller frees `values`. */
bool compare_bootstrap_run(const compare_sample *methods, int count, int draws, uint64_t seed, compare_bootstrap *out);
/* The middle `share` (0.95) of a method's values, or of the differences a - b. */
void compare_interval(const compare_bootstrap *b, int method, compare_metric metric, double share, double *low, double *high);
void compare_interval_of_difference(const compare_bootstrap *b, int method_a, int method_b, compare_metric metric, double share, double *low,
                                    double *high);

#endif
