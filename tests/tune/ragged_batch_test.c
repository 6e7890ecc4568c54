/* SPDX-License-Identifier: MIT
 * A batch is the sum of its rows: loss and prefix gradients of 1 and of 300 ragged rows, with prefixes of 0, 1 and
 * 2,048 tokens and several of them at once, equal those of the rows taken one by one. */
#include "helpers/test.h"

#include <math.h>
#include <unistd.h>

#include "core/random.h"
#include "helpers/pass.h"
#include "helpers/tiny_model.h"
#include "helpers/tolerance.h"

enum { ROWS = 300, LONGEST = 19 };

static px_model *model;
static px_backend *be;
static char folder[] = "/tmp/pfx_ragged_XXXXXX";

static int set_up(void **state) {
  (void)state;
  px_error err = {0};
  assert_non_null(mkdtemp(folder));
  tiny_model_write(folder, (tiny_model){3, 48, 6, 2, 8, 64, 60, 4096}, 9);
  ASSERT_OK(px_model_open(folder, &(px_model_options){.dtype = PX_F32, .threads = 2}, &model, &err));
  ASSERT_OK(px_backend_open_cpu(&(px_backend_options){.threads = 2}, &be, &err));
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  char path[64];
  px_backend_close(be);
  px_model_close(model);
  snprintf(path, sizeof path, "%s/config.json", folder), unlink(path);
  snprintf(path, sizeof path, "%s/model.safetensors", folder), unlink(path);
  return rmdir(folder);
}

/* Ragged rows, one in seven of one token; row r has adapter r % (adapters + 1) - 1, or, where `all`, adapter 0. */
static pass_rows ragged(int32_t count, const pass_prefixes *p, bool all) {
  int32_t lengths[ROWS];
  for (int32_t r = 0; r < count; r++)
    lengths[r] = r % 7 == 4 ? 1 : 2 + (int32_t)px_below(4, 95, 0, (uint64_t)r, LONGEST - 1);
  pass_rows rows = pass_rows_make(model, count, lengths, 6);
  for (int32_t r = 0; r < count; r++) {
    rows.adapter[r] = all ? 0 : r % (p->adapters + 1) - 1;
    rows.first[r] = rows.adapter[r] < 0 ? 0 : p->lens[rows.adapter[r]];
  }
  return rows;
}

static void expect_near(const char *what, double got, double want) {
  if (!(fabs(got - want) <= TOL_F32_BATCH * fabs(want))) fail_msg("%s is %.9g, the rows give %.9g", what, got, want);
}

/* The batch at once and row by row; sums of the single rows in float64. */
static void expect_sum_of_rows(int32_t count, int32_t adapters, const int32_t *lens) {
  pass_prefixes p;
  pass_prefixes_open(model, be, adapters, lens, 3, &p);
  pass_rows rows = ragged(count, &p, adapters == 1);
  double row_loss[ROWS], sum = 0, *sums[PASS_ADAPTERS];
  for (int a = 0; a < adapters; a++) sums[a] = calloc((size_t)pass_prefix_floats(&p, a) + 1, sizeof **sums);
  double loss = pass_loss(model, be, &rows, &p.hooks, true, row_loss);
  float *grads[PASS_ADAPTERS];
  for (int a = 0; a < adapters; a++) grads[a] = pass_prefix_grad(&p, a);
  for (int32_t r = 0; r < count; r++) {
    pass_rows one = pass_rows_slice(&rows, r, 1);
    pass_prefixes_zero_grads(&p);
    double alone = pass_tokens(&one) > 1 ? pass_loss(model, be, &one, &p.hooks, true, NULL) : 0;
    expect_near("the loss of a row of the batch", row_loss[r], alone);
    sum += alone;
    for (int a = 0; a < adapters; a++) {
      float *grad = pass_prefix_grad(&p, a);
      bool own = rows.adapter[r] == a && pass_tokens(&one) > 1;
      for (int64_t i = 0; i < pass_prefix_floats(&p, a); i++) {
        if (!own && grad[i] != 0) fail_msg("row %d left a gradient in prefix %d, which it does not name", r, a);
        sums[a][i] += (double)grad[i];
      }
      free(grad);
    }
    pass_rows_free(&one);
  }
  expect_near("the loss of the batch", loss, sum);
  for (int a = 0; a < adapters; a++) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < pass_prefix_floats(&p, a); i++) {
      difference += ((double)grads[a][i] - sums[a][i]) * ((double)grads[a][i] - sums[a][i]);
      norm += sums[a][i] * sums[a][i];
    }
    if (lens[a]) assert_true(norm > 0);
    if (!(sqrt(difference) <= TOL_F32_BATCH * sqrt(norm)))
      fail_msg("the gradient of prefix %d (%d tokens) differs by %.3g from its rows'", a, lens[a],
               sqrt(difference / norm));
    free(grads[a]);
    free(sums[a]);
  }
  pass_rows_free(&rows);
  pass_prefixes_close(&p);
}

static void three_hundred_ragged_rows_are_the_sum_of_their_rows(void **state) {
  (void)state;
  expect_sum_of_rows(ROWS, 1, (int32_t[]){7});
  expect_sum_of_rows(ROWS, 1, (int32_t[]){1});
}

static void a_prefix_of_2048_tokens_sums_over_its_rows(void **state) {
  (void)state;
  expect_sum_of_rows(12, 1, (int32_t[]){2048});
}

static void several_prefixes_share_a_batch(void **state) {
  (void)state;
  expect_sum_of_rows(60, 4, (int32_t[]){3, 1, 0, 40});
}

/* One row: the batch's own bits, whatever else the process has computed. */
static void a_batch_of_one_row_repeats_exactly(void **state) {
  (void)state;
  pass_prefixes p;
  pass_prefixes_open(model, be, 1, (int32_t[]){5}, 3, &p);
  pass_rows rows = ragged(1, &p, true);
  double first = pass_loss(model, be, &rows, &p.hooks, true, NULL);
  float *a = pass_prefix_grad(&p, 0);
  pass_prefixes_zero_grads(&p);
  assert_true(first == pass_loss(model, be, &rows, &p.hooks, true, NULL));
  float *b = pass_prefix_grad(&p, 0);
  assert_memory_equal(a, b, (size_t)pass_prefix_floats(&p, 0) * sizeof *a);
  free(a);
  free(b);
  pass_rows_free(&rows);
  pass_prefixes_close(&p);
}

/* A prefix of length 0 is no prefix, bit for bit, however it is said. */
static void a_prefix_of_length_zero_is_none(void **state) {
  (void)state;
  pass_prefixes p;
  pass_prefixes_open(model, be, 2, (int32_t[]){0, 6}, 3, &p);
  pass_rows rows = ragged(40, &p, true); /* all name adapter 0, of length 0 */
  double with = pass_loss(model, be, &rows, &p.hooks, false, NULL);
  float *logits = pass_logits(model, be, &rows, &p.hooks);
  for (int32_t r = 0; r < rows.count; r++) rows.adapter[r] = -1;
  double without = pass_loss(model, be, &rows, &p.hooks, false, NULL),
         frozen = pass_loss(model, be, &rows, NULL, false, NULL);
  float *plain = pass_logits(model, be, &rows, NULL);
  assert_true(with == without && without == frozen);
  assert_memory_equal(logits, plain,
                      (size_t)pass_tokens(&rows) * (size_t)px_model_config(model)->vocab * sizeof *plain);
  free(logits);
  free(plain);
  pass_rows_free(&rows);
  pass_prefixes_close(&p);
}

/* A row of one token has nothing to predict: with it or without it, loss and gradient are the same. */
static void rows_of_one_token_add_nothing(void **state) {
  (void)state;
  static const int32_t with[] = {1, 9, 1, 1, 5, 1}, without[] = {9, 5};
  pass_prefixes p;
  pass_prefixes_open(model, be, 1, (int32_t[]){5}, 3, &p);
  pass_rows six = pass_rows_make(model, 6, with, 1), two = pass_rows_make(model, 2, without, 1);
  memcpy(two.ids, six.ids + six.offsets[1], 9 * sizeof *two.ids);
  memcpy(two.ids + 9, six.ids + six.offsets[4], 5 * sizeof *two.ids);
  for (int r = 0; r < 6; r++) six.adapter[r] = 0, six.first[r] = 5;
  for (int r = 0; r < 2; r++) two.adapter[r] = 0, two.first[r] = 5;
  double row_loss[6], all = pass_loss(model, be, &six, &p.hooks, true, row_loss);
  float *a = pass_prefix_grad(&p, 0);
  pass_prefixes_zero_grads(&p);
  expect_near("the loss", all, pass_loss(model, be, &two, &p.hooks, true, NULL));
  float *b = pass_prefix_grad(&p, 0);
  for (int r = 0; r < 6; r++) assert_true((row_loss[r] == 0) == (with[r] == 1));
  assert_true(pass_relative_l2(a, b, pass_prefix_floats(&p, 0)) <= TOL_F32_BATCH);
  free(a);
  free(b);
  pass_rows_free(&six);
  pass_rows_free(&two);
  pass_prefixes_close(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(three_hundred_ragged_rows_are_the_sum_of_their_rows),
      cmocka_unit_test(a_prefix_of_2048_tokens_sums_over_its_rows),
      cmocka_unit_test(several_prefixes_share_a_batch),
      cmocka_unit_test(a_batch_of_one_row_repeats_exactly),
      cmocka_unit_test(a_prefix_of_length_zero_is_none),
      cmocka_unit_test(rows_of_one_token_add_nothing),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
