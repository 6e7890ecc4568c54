/* SPDX-License-Identifier: MIT
 * Text metrics against what sacrebleu and rouge-score print for the same texts. */
#include "generate/score.h"

#include <math.h>
#include <omp.h>

#include "format/json.h"
#include "helpers/test.h"

static px_error err;

static void assert_near(const char *set, const char *metric, double got, double want) {
  if (!(fabs(got - want) <= 1e-10))
    fail_msg("%s: %s is %.12g, wanted %.12g", set, metric, got, want); /* ten decimals */
}

static void assert_metric(const json_t *set, const char *metric, double got) {
  const json_t *want = json_object_get(set, metric);
  assert_true(json_is_number(want));
  assert_near(json_string_value(json_object_get(set, "name")), metric, got, json_number_value(want));
}

static px_score_item make_item(const json_t *item) {
  const json_t *list = json_object_get(item, "references");
  size_t count = json_array_size(list);
  const char **references = calloc(count + 1, sizeof *references);
  for (size_t i = 0; i < count; i++) references[i] = json_string_value(json_array_get(list, i));
  return (px_score_item){json_string_value(json_object_get(item, "prediction")), references, count};
}

static void check_set(const json_t *set) {
  const json_t *list = json_object_get(set, "items");
  size_t count = json_array_size(list);
  px_score_item *items = calloc(count, sizeof *items);
  px_scores s;
  for (size_t i = 0; i < count; i++) {
    items[i] = make_item(json_array_get(list, i));
    ASSERT_OK(px_score_texts(&items[i], 1, NULL, &s, &err));
    assert_metric(json_array_get(list, i), "rouge_l", s.rouge_l);
    assert_metric(json_array_get(list, i), "exact_match", s.exact_match);
  }
  for (int threads = 1; threads <= 3; threads++) {
    omp_set_num_threads(threads);
    ASSERT_OK(px_score_texts(items, count, NULL, &s, &err));
    assert_metric(set, "bleu", s.bleu);
    assert_metric(set, "chrf", s.chrf);
    assert_metric(set, "rouge_l", s.rouge_l);
    assert_metric(set, "exact_match", s.exact_match);
  }
  for (size_t i = 0; i < count; i++) free((void *)(uintptr_t)items[i].references);
  free(items);
}

static void equals_the_reference_programs(void **state) {
  (void)state;
  char path[1000];
  json_t *sets;
  snprintf(path, sizeof path, "%s/tests/golden/metrics.json", TEST_SOURCE_DIR);
  ASSERT_OK(px_json_read(path, &sets, &err));
  assert_true(json_array_size(sets) > 20);
  for (size_t i = 0; i < json_array_size(sets); i++) check_set(json_array_get(sets, i));
  json_decref(sets);
}

/* A text that is no UTF-8 is scored as with U+FFFD per maximal subpart. */
static void invalid_text(void **state) {
  (void)state;
  const char *replaced[] = {"a \xef\xbf\xbd b\xef\xbf\xbd"};
  px_scores s;
  ASSERT_OK(px_score_texts(&(px_score_item){"a \xf0\x9f\x98 b\xff", replaced, 1}, 1, NULL, &s, &err));
  assert_near("broken", "chrf", s.chrf, 100);
  assert_near("broken", "rouge_l", s.rouge_l, 100);
}

static void refusals(void **state) {
  (void)state;
  px_scores s;
  const char *one[] = {"a"};
  px_score_item items[] = {{"a", one, 1}, {"b", NULL, 0}};
  ASSERT_FAILS(px_score_texts(items, 0, NULL, &s, &err), PX_INVALID, "no texts to score");
  ASSERT_FAILS(px_score_texts(items, 2, NULL, &s, &err), PX_INVALID, "text 2 to score has no reference");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(equals_the_reference_programs),
      cmocka_unit_test(invalid_text),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
