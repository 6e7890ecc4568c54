/* SPDX-License-Identifier: MIT
 * The bootstrap of pfx compare against cases whose answer is known, and the metrics against sums worked out by hand. */
#include "cli/compare_stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "helpers/test.h"

enum { ROWS = 400, DRAWS = 4000 };

/* Standard normal by the sum of twelve uniform numbers, good enough for a spread. */
static double noise(uint64_t *state) {
  double sum = 0;
  for (int i = 0; i < 12; i++) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    sum += (double)(*state >> 11) * 0x1p-53;
  }
  return sum - 6;
}

static compare_units rows_with(double shift, double spread, uint64_t seed, double common) {
  compare_units u = {.count = ROWS, .list = calloc(ROWS, sizeof(compare_unit))};
  uint64_t own = seed, shared = 99;
  assert_non_null(u.list);
  for (int i = 0; i < ROWS; i++) {
    u.list[i][UNIT_TOKENS] = 1;
    u.list[i][UNIT_LOSS] = 5 + shift + common * noise(&shared) + spread * noise(&own);
  }
  return u;
}

/* The mean of n numbers has the standard error s / sqrt(n): the interval must be about 2 * 1.96 times as wide. */
static void test_width_of_an_interval(void **state) {
  (void)state;
  compare_units u = rows_with(0, 1, 7, 0);
  compare_sample sample = {.seeds = {&u}, .seed_count = 1};
  compare_bootstrap b;
  double mean = 0, squares = 0, low, high;
  for (int i = 0; i < ROWS; i++) mean += u.list[i][UNIT_LOSS] / ROWS;
  for (int i = 0; i < ROWS; i++) squares += (u.list[i][UNIT_LOSS] - mean) * (u.list[i][UNIT_LOSS] - mean);
  assert_true(compare_bootstrap_run(&sample, 1, DRAWS, 1, &b));
  compare_interval(&b, 0, COMPARE_LOSS, 0.95, &low, &high);
  double wanted = 2 * 1.96 * sqrt(squares / ROWS / ROWS);
  assert_true(low < mean && mean < high);
  assert_true(fabs((high - low) / wanted - 1) < 0.08); /* 4,000 draws leave the ends a few percent */
  compare_interval(&b, 0, COMPARE_BLEU, 0.95, &low, &high);
  assert_true(isnan(low) && isnan(high));
  free(b.values);
  free(u.list);
}

/* What both methods find hard in the same rows cancels: the interval of the difference is that of its own noise. */
static void test_a_difference_is_paired(void **state) {
  (void)state;
  compare_units a = rows_with(0.1, 0.1, 3, 2), b = rows_with(0, 0.1, 4, 2), c = rows_with(0, 0.1, 5, 2);
  compare_sample samples[3] = {{.seeds = {&a}, .seed_count = 1}, {.seeds = {&b}, .seed_count = 1}, {.seeds = {&c}, .seed_count = 1}};
  compare_bootstrap boot;
  double low, high, own_low, own_high;
  assert_true(compare_bootstrap_run(samples, 3, DRAWS, 1, &boot));
  compare_interval_of_difference(&boot, 0, 1, COMPARE_LOSS, 0.95, &low, &high);
  assert_true(low > 0.07 && high < 0.13);
  compare_interval_of_difference(&boot, 1, 2, COMPARE_LOSS, 0.95, &low, &high);
  assert_true(low < 0 && high > 0 && high - low < 0.05);
  compare_interval(&boot, 0, COMPARE_LOSS, 0.95, &own_low, &own_high);
  assert_true(own_high - own_low > 0.3); /* 2 * 1.96 * 2 / sqrt(400) */
  compare_interval_of_difference(&boot, 0, 0, COMPARE_LOSS, 0.95, &low, &high);
  assert_true(low == 0 && high == 0);
  free(boot.values);
  free(a.list);
  free(b.list);
  free(c.list);
}

/* Of 100 comparisons without a difference about five miss zero; far more or none would mean a wrong interval. */
static void test_coverage(void **state) {
  (void)state;
  int missed = 0;
  for (uint64_t i = 0; i < 100; i++) {
    compare_units a = rows_with(0, 1, 1000 + i, 1), b = rows_with(0, 1, 5000 + i, 1);
    compare_sample samples[2] = {{.seeds = {&a}, .seed_count = 1}, {.seeds = {&b}, .seed_count = 1}};
    compare_bootstrap boot;
    double low, high;
    assert_true(compare_bootstrap_run(samples, 2, 500, i, &boot));
    compare_interval_of_difference(&boot, 0, 1, COMPARE_LOSS, 0.95, &low, &high);
    missed += low > 0 || high < 0;
    free(boot.values);
    free(a.list);
    free(b.list);
  }
  assert_in_range(missed, 1, 13);
}

/* Seeds that differ widen the interval; seeds that are equal do not. */
static void test_seeds_are_drawn_too(void **state) {
  (void)state;
  compare_units a = rows_with(0, 0.1, 3, 0), near = rows_with(0, 0.1, 3, 0), far = rows_with(1, 0.1, 3, 0);
  compare_sample samples[2] = {{.seeds = {&a, &near}, .seed_count = 2}, {.seeds = {&a, &far}, .seed_count = 2}};
  compare_bootstrap boot;
  double low, high, wide_low, wide_high;
  assert_true(compare_bootstrap_run(samples, 2, DRAWS, 1, &boot));
  compare_interval(&boot, 0, COMPARE_LOSS, 0.95, &low, &high);
  compare_interval(&boot, 1, COMPARE_LOSS, 0.95, &wide_low, &wide_high);
  assert_true(high - low < 0.03);
  assert_true(wide_high - wide_low > 0.95);
  compare_bootstrap again;
  assert_true(compare_bootstrap_run(samples, 2, DRAWS, 1, &again));
  assert_memory_equal(boot.values, again.values, 2 * COMPARE_METRICS * DRAWS * sizeof(double));
  free(boot.values);
  free(again.values);
  free(a.list);
  free(near.list);
  free(far.list);
}

/* Papineni's formula by hand: 4 of 5 words, 2 of 4 pairs, 1 of 3, 1 of 2, and a reference that is one word longer. */
static void test_metrics(void **state) {
  (void)state;
  compare_unit u = {0};
  assert_true(isnan(compare_metric_of(COMPARE_LOSS, u)) && isnan(compare_metric_of(COMPARE_ROUGE_L, u)));
  u[UNIT_TEXTS] = 2;
  u[UNIT_ROUGE] = 90;
  u[UNIT_EXACT] = 100;
  u[UNIT_LENGTHS] = 5;
  u[UNIT_LENGTHS + 1] = 6;
  const double matched[] = {4, 2, 1, 1}, words[] = {5, 4, 3, 2};
  memcpy(u + UNIT_MATCHED, matched, sizeof matched);
  memcpy(u + UNIT_WORDS, words, sizeof words);
  u[UNIT_CHRF] = 10;
  u[UNIT_CHRF + 1] = 8;
  u[UNIT_CHRF + 2] = 6;
  double bleu = 100 * exp(1 - 6.0 / 5) * pow(4.0 / 5 * 2 / 4 * 1 / 3 * 1 / 2, 0.25), p = 0.6, r = 0.75;
  assert_true(fabs(compare_metric_of(COMPARE_BLEU, u) - bleu) < 1e-9);
  assert_true(fabs(compare_metric_of(COMPARE_CHRF, u) - 100 * 5 * p * r / (4 * p + r)) < 1e-9);
  assert_true(compare_metric_of(COMPARE_ROUGE_L, u) == 45 && compare_metric_of(COMPARE_EXACT, u) == 50);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_width_of_an_interval), cmocka_unit_test(test_a_difference_is_paired), cmocka_unit_test(test_coverage),
      cmocka_unit_test(test_seeds_are_drawn_too),  cmocka_unit_test(test_metrics),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
