/* SPDX-License-Identifier: MIT
 * What a step is: which rows, which loss, which learning rate, and what the optimizer does with them; as metrics.jsonl
 * and the adapter tell it. */
#include "helpers/test.h"

#include <math.h>

#include "helpers/run_folder.h"
#include "helpers/tiny_model.h"
#include "helpers/tolerance.h"
#include "helpers/used_prefix.h"
#include "train/evaluate.h"
#include "tune/adapter.h"

static run_place place;

static int set_up(void **state) {
  (void)state;
  run_place_open(&place, "llama_tied", 1);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  run_place_close(&place);
  return 0;
}

static px_train_options plain_options(const char *name) {
  px_train_options o = run_options(&place, name);
  o.valid = NULL;
  o.eval_every = -1;
  return o;
}

/* Trains and reads the metrics; the options' folder must be new. */
static int train(const px_train_options *o, run_line lines[RUN_LINES]) {
  px_error err = {0};
  px_train_result result;
  ASSERT_OK(px_train_run(place.model, NULL, o, NULL, &result, &err));
  return run_metrics(o->out, lines);
}

static px_adapter *open_adapter(const char *dir) {
  px_error err = {0};
  px_adapter *a = NULL;
  ASSERT_OK(px_adapter_open(dir, &a, &err));
  return a;
}

static int64_t floats_of(const px_adapter *a) { return a->parts[0].tensors[0].shape[0] * a->parts[0].tensors[0].shape[1]; }

static double distance(const px_adapter *a, const px_adapter *b) {
  double difference = 0, norm = 0;
  assert_int_equal(floats_of(a), floats_of(b));
  for (int64_t i = 0; i < floats_of(a); i++) {
    difference += pow((double)a->values[i] - (double)b->values[i], 2);
    norm += pow((double)b->values[i], 2);
  }
  return sqrt(difference / norm);
}

/* Sum of the losses of a file's labelled tokens over their number, with an adapter. */
static double loss_with(const char *data, const px_adapter *a) {
  px_error err = {0};
  px_rows rows;
  px_prefix prefix;
  px_eval_result result;
  px_backend *be = NULL;
  ASSERT_OK(px_backend_open_cpu(&(px_backend_options){.threads = 1}, &be, &err));
  ASSERT_OK(px_rows_read(data, NULL, &(px_row_options){.vocab_size = 128}, NULL, &rows, &err));
  ASSERT_OK(px_prefix_open(px_model_config(place.model), be, PX_F32, a->values, a->tokens, &prefix, &err));
  px_hooks hooks = {.segments = prefix.segments, .adapters = 1, .segment_rows = prefix.tokens};
  ASSERT_OK(px_eval_loss(place.model, be, &rows, &hooks, a->tokens, NULL, &result, &err));
  px_prefix_close(&prefix, be);
  px_rows_free(&rows);
  px_backend_close(be);
  return result.loss;
}

/* 11 rows in batches of 4, 4 and 3 make one step with --accumulate 3: a whole epoch, of batches with different numbers
 * of labelled tokens. A mean of the batches' means would be another number, so would the loss after the update. */
static void the_loss_is_that_of_all_labelled_tokens_before_the_update(void **state) {
  (void)state;
  run_line lines[RUN_LINES];
  run_write_rows(run_path(&place, "eleven.jsonl"), 11, 3);
  px_train_options o = plain_options("loss");
  o.data = run_path(&place, "eleven.jsonl");
  o.accumulate = 3;
  o.steps = 4;
  o.warmup = 0;
  assert_int_equal(train(&o, lines), 4);
  for (int step = 1; step <= 3; step++) {
    char name[32];
    snprintf(name, sizeof name, "loss_%d", step);
    o.out = run_path(&place, name);
    o.stop_after = step;
    run_line ignored[RUN_LINES];
    assert_int_equal(train(&o, ignored), step);
    px_adapter *a = open_adapter(o.out);
    double want = loss_with(o.data, a), got = lines[step].loss;
    if (!(fabs(got - want) <= TOL_F32_BATCH * want))
      fail_msg("step %d: metrics.jsonl says %.9g, its rows have %.9g before it", step + 1, got, want);
    assert_true(fabs(lines[step - 1].loss - got) > 1e-3);
    px_adapter_close(a);
  }
}

static int64_t tokens_of(const char *data, size_t *longest) {
  px_error err = {0};
  px_rows rows;
  ASSERT_OK(px_rows_read(data, NULL, &(px_row_options){.vocab_size = 128}, NULL, &rows, &err));
  int64_t tokens = (int64_t)rows.offsets[rows.count];
  *longest = rows.longest;
  px_rows_free(&rows);
  return tokens;
}

/* `tokens` are the real tokens of the step: no prefix, no padding; an epoch's steps hold every token once. */
static void an_epoch_holds_every_token_once(void **state) {
  (void)state;
  run_line lines[RUN_LINES];
  size_t longest;
  px_train_options o = plain_options("epoch");
  o.steps = 0;
  o.epochs = 1;
  int count = train(&o, lines);
  assert_int_equal(count, 10); /* 37 rows, 4 a batch */
  int64_t sum = 0;
  for (int i = 0; i < count; i++) sum += lines[i].tokens;
  assert_int_equal(sum, tokens_of(o.data, &longest));
}

static void batches_by_tokens_stay_below_their_limit(void **state) {
  (void)state;
  run_line lines[RUN_LINES];
  size_t longest;
  const int64_t limits[] = {30, 1};
  for (int i = 0; i < 2; i++) {
    px_train_options o = plain_options(i ? "tokens_1" : "tokens_30");
    o.batch_rows = 0;
    o.batch_tokens = limits[i];
    o.steps = 0;
    o.epochs = 2;
    int count = train(&o, lines);
    int64_t sum = 0, all = tokens_of(o.data, &longest);
    assert_true(longest > 1 && longest <= 30);
    for (int l = 0; l < count; l++) {
      if (i == 0) assert_in_range(lines[l].tokens, 1, 30); /* a row that is longer than the limit goes alone */
      sum += lines[l].tokens;
    }
    assert_int_equal(sum, 2 * all);
    if (i == 1) assert_int_equal(count, 2 * 37);
    if (i == 0) assert_true(count < 37);
  }
}

static void accumulated_batches_equal_one_large_batch(void **state) {
  (void)state;
  run_line large[RUN_LINES], small[RUN_LINES];
  run_write_rows(run_path(&place, "even.jsonl"), 36, 4);
  px_train_options o = plain_options("large");
  const char *data = o.data = run_path(&place, "even.jsonl");
  o.batch_rows = 12;
  const char *first = o.out;
  assert_int_equal(train(&o, large), 24);
  o = plain_options("small");
  o.data = data;
  o.batch_rows = 3;
  o.accumulate = 4;
  assert_int_equal(train(&o, small), 24);
  for (int i = 0; i < 24; i++) {
    assert_int_equal(small[i].tokens, large[i].tokens);
    if (!(fabs(small[i].loss - large[i].loss) <= TOL_F32_TRAINED * large[i].loss) ||
        !(fabs(small[i].grad_norm - large[i].grad_norm) <= TOL_F32_TRAINED * large[i].grad_norm))
      fail_msg("step %d: loss %.9g and gradient %.9g, in one batch %.9g and %.9g", i + 1, small[i].loss,
               small[i].grad_norm, large[i].loss, large[i].grad_norm);
  }
  px_adapter *a = open_adapter(first), *b = open_adapter(o.out);
  double far = distance(b, a);
  if (!(far <= TOL_F32_TRAINED)) fail_msg("the prefixes differ by %.3g after 24 steps", far);
  px_adapter_close(a);
  px_adapter_close(b);
}

static void the_learning_rate_follows_its_schedule(void **state) {
  (void)state;
  static const char *const names[] = {"lr_linear", "lr_cosine", "lr_constant"};
  run_line lines[RUN_LINES];
  for (int s = 0; s < 3; s++) {
    px_train_options o = plain_options(names[s]);
    o.schedule = (px_schedule)s;
    o.warmup = 4;
    o.lr = 0.02;
    assert_int_equal(train(&o, lines), 24);
    for (int i = 0; i < 24; i++) {
      double share = (i - 4) / 20.0;
      double want = i < 4    ? 0.02 * (i + 1) / 4
                    : s == 0 ? 0.02 * (1 - share)
                    : s == 1 ? 0.01 * (1 + cos(share * acos(-1)))
                             : 0.02;
      if (!(fabs(lines[i].lr - want) <= 1e-6 * want)) fail_msg("%s: step %d has %.9g", names[s], i + 1, lines[i].lr);
    }
  }
}

/* One step with decay differs from one without by lr * decay * the values it began with, for every trained tensor. */
static void weight_decay_pulls_towards_zero(void **state) {
  (void)state;
  const double lr = 0.01, decay = 0.5;
  run_line lines[RUN_LINES];
  px_adapter *after[3];
  for (int i = 0; i < 3; i++) { /* where it began, plain, with decay */
    static const char *const names[] = {"decay_start", "decay_none", "decay_half"};
    px_train_options o = plain_options(names[i]);
    o.steps = 1;
    o.warmup = 0;
    o.lr = i == 0 ? 1e-30 : lr;
    o.weight_decay = i == 2 ? decay : 0;
    train(&o, lines);
    after[i] = open_adapter(o.out);
  }
  double moved = 0;
  for (int64_t i = 0; i < floats_of(after[0]); i++) {
    double start = (double)after[0]->values[i], none = (double)after[1]->values[i], half = (double)after[2]->values[i];
    moved = fmax(moved, fabs(start));
    if (!(fabs(none - half - lr * decay * start) <= 3e-7 * (fabs(start) + lr))) /* four roundings */
      fail_msg("value %lld: %.9g began at %.9g and is %.9g with decay", (long long)i, none, start, half);
  }
  assert_true(lr * decay * moved > 1e-5);
  for (int i = 0; i < 3; i++) px_adapter_close(after[i]);
}

/* The metrics show the gradient before clipping, and clipping makes no difference to Adam's first step but does to what
 * follows. */
static void clipping_limits_the_gradient_s_norm(void **state) {
  (void)state;
  run_line none[RUN_LINES], hard[RUN_LINES];
  px_train_options o = plain_options("clip_none");
  o.clip = -1;
  train(&o, none);
  const char *first = o.out;
  o = plain_options("clip_hard");
  o.clip = 1e-3;
  train(&o, hard);
  assert_true(none[0].grad_norm == hard[0].grad_norm && none[0].grad_norm > 0.01);
  px_adapter *a = open_adapter(first), *b = open_adapter(o.out);
  assert_true(distance(a, b) > 1e-3);
  px_adapter_close(a);
  px_adapter_close(b);
}

/* A step whose rows have no labelled token changes nothing but the count of steps, and its line is JSON. */
static void a_step_without_a_label_changes_nothing(void **state) {
  (void)state;
  px_error err = {0};
  run_line lines[RUN_LINES];
  const char *data = run_path(&place, "unlabelled.jsonl");
  px_buf text = {0};
  px_buf_puts(&text, "{\"ids\": [5, 6, 7], \"labels\": [-100, 6, 7]}\n");
  for (int i = 0; i < 7; i++) px_buf_puts(&text, "{\"ids\": [8, 9, 3], \"labels\": [-100, -100, -100]}\n");
  ASSERT_OK(px_file_write(data, text.data, text.len, &err));
  px_buf_free(&text);
  px_train_options o = plain_options("unlabelled");
  o.data = data;
  o.batch_rows = 1;
  o.steps = 8;
  o.warmup = 0;
  assert_int_equal(train(&o, lines), 8);
  int labelled = 0;
  for (int i = 0; i < 8; i++) {
    assert_true(isnan(lines[i].loss) == isnan(lines[i].grad_norm));
    labelled += !isnan(lines[i].loss);
  }
  assert_int_equal(labelled, 1);
}

/* Prefixes of one and of 2,048 tokens learn and come back from their folders. */
static void prefixes_of_1_and_2048_tokens_learn(void **state) {
  (void)state;
  px_error err = {0};
  px_model *model = NULL;
  px_train_result result;
  const char *folder = run_path(&place, "long_model");
  ASSERT_OK(px_dir_make(folder, &err));
  tiny_model_write(folder, (tiny_model){2, 48, 6, 2, 8, 64, 128, 4096}, 5);
  ASSERT_OK(px_model_open(folder, &(px_model_options){.dtype = PX_F32, .threads = 1}, &model, &err));
  static const char *const tunes[] = {"prefix:1", "prefix:2048"};
  for (int i = 0; i < 2; i++) {
    px_train_options o = run_options(&place, tunes[i]);
    o.tune = tunes[i];
    o.model_path = folder;
    o.steps = 6;
    ASSERT_OK(px_train_run(model, NULL, &o, NULL, &result, &err));
    assert_true(result.best_valid_loss < result.first_valid_loss);
    px_adapter *a = open_adapter(o.out);
    px_fit fit;
    assert_int_equal(a->tokens, i ? 2048 : 1);
    ASSERT_OK(px_adapter_fits(a, model, NULL, false, &fit, NULL, &err));
    assert_int_equal(fit, PX_FIT_VERIFIED);
    px_adapter_close(a);
  }
  px_model_close(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_loss_is_that_of_all_labelled_tokens_before_the_update),
      cmocka_unit_test(an_epoch_holds_every_token_once),
      cmocka_unit_test(batches_by_tokens_stay_below_their_limit),
      cmocka_unit_test(accumulated_batches_equal_one_large_batch),
      cmocka_unit_test(the_learning_rate_follows_its_schedule),
      cmocka_unit_test(weight_decay_pulls_towards_zero),
      cmocka_unit_test(clipping_limits_the_gradient_s_norm),
      cmocka_unit_test(a_step_without_a_label_changes_nothing),
      cmocka_unit_test(prefixes_of_1_and_2048_tokens_learn),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
