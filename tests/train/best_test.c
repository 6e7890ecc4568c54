/* SPDX-License-Identifier: MIT
 * Validation: what it measures, which adapter is kept, when patience ends a run. */
#include "helpers/test.h"

#include <math.h>

#include "helpers/run_folder.h"
#include "helpers/used_prefix.h"
#include "train/evaluate.h"
#include "tune/adapter.h"

static run_place place;
static char contrary[128], few[128];

/* Rows of the same tokens as those of training, in an order that contradicts them. */
static void write_contrary(const char *path) {
  px_error err = {0};
  px_buf text = {0};
  for (int r = 0; r < 9; r++) {
    px_buf_puts(&text, "{\"ids\": [");
    for (int t = 0; t < 8; t++) px_buf_printf(&text, "%s%d", t ? ", " : "", 3 + (11 * r + 50 - 7 * t + 100) % 100);
    px_buf_puts(&text, "], \"labels\": [-100");
    for (int t = 1; t < 8; t++) px_buf_printf(&text, ", %d", 3 + (11 * r + 50 - 7 * t + 100) % 100);
    px_buf_puts(&text, "]}\n");
  }
  ASSERT_OK(px_file_write(path, text.data, text.len, &err));
  px_buf_free(&text);
}

static int set_up(void **state) {
  (void)state;
  run_place_open(&place, "llama_tied", 1);
  snprintf(contrary, sizeof contrary, "%s/contrary.jsonl", place.root);
  write_contrary(contrary);
  snprintf(few, sizeof few, "%s/few.jsonl", place.root);
  run_write_rows(few, 4, 5);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  run_place_close(&place);
  return 0;
}

/* A run whose validation gets better, as it learns which tokens there are, and then worse, as it learns their order. */
static px_train_options overlearning(const char *name) {
  px_train_options o = run_options(&place, name);
  o.valid = contrary;
  o.steps = 60;
  o.lr = 1;
  o.schedule = PX_SCHEDULE_CONSTANT;
  o.data = few;
  o.eval_every = 2;
  o.save_every = 7;
  return o;
}

static px_train_result train(const px_train_options *o) {
  px_error err = {0};
  px_train_result result;
  ASSERT_OK(px_train_run(place.model, NULL, o, NULL, &result, &err));
  return result;
}

static bool same_file(const char *a_dir, const char *a_name, const char *b_dir, const char *b_name) {
  px_buf a = {0}, b = {0};
  run_read(a_dir, a_name, &a);
  run_read(b_dir, b_name, &b);
  bool same = a.len == b.len && memcmp(a.data, b.data, a.len) == 0;
  px_buf_free(&a);
  px_buf_free(&b);
  return same;
}

static double loss_of(const char *dir, const char *data) {
  px_error err = {0};
  px_rows rows;
  px_prefix prefix;
  px_adapter *a;
  px_eval_result result;
  px_backend *be;
  ASSERT_OK(px_backend_open_cpu(&(px_backend_options){.threads = 1}, &be, &err));
  ASSERT_OK(px_rows_read(data, NULL, &(px_row_options){.vocab_size = 128}, NULL, &rows, &err));
  ASSERT_OK(px_adapter_open(dir, &a, &err));
  ASSERT_OK(px_prefix_open(px_model_config(place.model), be, PX_F32, a->values, a->tokens, &prefix, &err));
  px_hooks hooks = {.segments = prefix.segments, .adapters = 1, .segment_rows = prefix.tokens};
  ASSERT_OK(px_eval_loss(place.model, be, &rows, &hooks, a->tokens, NULL, &result, &err));
  px_prefix_close(&prefix, be);
  px_adapter_close(a);
  px_rows_free(&rows);
  px_backend_close(be);
  return result.loss;
}

/* The adapter in the output folder is the one of the smallest validation loss, bit for bit that of a run that stopped
 * there; the checkpoint's is the last. */
static void the_best_adapter_is_kept(void **state) {
  (void)state;
  run_line lines[RUN_LINES];
  px_train_options o = overlearning("best");
  px_train_result r = train(&o);
  int count = run_metrics(o.out, lines), best = -1;
  assert_int_equal(count, 60);
  for (int i = 0; i < count; i++) {
    assert_int_equal(!isnan(lines[i].valid_loss), i % 2 == 1); /* every second step was measured */
    if (!isnan(lines[i].valid_loss) && (best < 0 || lines[i].valid_loss < lines[best].valid_loss)) best = i;
  }
  assert_true(best > 1 && best < 58);
  assert_int_equal(r.best_step, best + 1);
  assert_true(r.best_valid_loss < r.first_valid_loss && r.best_valid_loss < r.last_valid_loss);
  assert_true(fabs(r.best_valid_loss - lines[best].valid_loss) < 1e-8 * r.best_valid_loss);
  assert_true(loss_of(o.out, contrary) == r.best_valid_loss);
  assert_true(loss_of(run_path(&place, "best/checkpoint"), contrary) == r.last_valid_loss);
  px_train_options twin = overlearning("best_twin");
  twin.stop_after = best + 1;
  twin.no_fingerprint = true; /* pfx.training names the step: compare the values alone */
  train(&twin);
  px_train_options again = overlearning("best_again");
  again.no_fingerprint = true;
  train(&again);
  assert_true(same_file(again.out, "adapter_model.safetensors", twin.out, "checkpoint/adapter_model.safetensors"));
}

static void patience_counts_validations_since_the_best(void **state) {
  (void)state;
  for (int patience = 1; patience <= 3; patience += 2) {
    px_train_options o = overlearning(patience == 1 ? "patience_1" : "patience_3");
    o.patience = patience;
    px_train_result r = train(&o);
    assert_true(r.early_stopped && r.finished);
    assert_int_equal(r.step, r.best_step + 2 * patience);
    assert_true(loss_of(o.out, contrary) == r.best_valid_loss);
  }
}

/* The first loss is that of the start, before any update and without dropout. */
static void the_first_loss_is_that_of_the_start(void **state) {
  (void)state;
  px_train_options still = run_options(&place, "still");
  still.steps = 1;
  still.warmup = 0;
  still.lr = 1e-30;
  px_train_result start = train(&still);
  px_train_options o = run_options(&place, "moving");
  o.prefix_dropout = 0.5;
  px_train_result r = train(&o);
  assert_true(r.first_valid_loss == start.first_valid_loss && r.first_valid_loss == start.last_valid_loss);
  assert_true(loss_of(still.out, place.valid) == r.first_valid_loss);
}

/* Validation rows or none, the output folder holds an adapter: the last one as long as none was measured. */
static void there_is_always_an_adapter(void **state) {
  (void)state;
  px_train_options never = run_options(&place, "never"), none = run_options(&place, "none"),
                   early = run_options(&place, "early");
  never.eval_every = -1;
  none.valid = NULL;
  early.stop_after = 3;
  const px_train_options *all[] = {&never, &none, &early};
  for (int i = 0; i < 3; i++) {
    px_train_result r = train(all[i]);
    assert_true(isnan(r.best_valid_loss));
    assert_true(
        same_file(all[i]->out, "adapter_model.safetensors", all[i]->out, "checkpoint/adapter_model.safetensors"));
  }
}

/* How often one looks changes nothing that is learned. */
static void validation_does_not_disturb_training(void **state) {
  (void)state;
  px_train_options often = run_options(&place, "often"), rarely = run_options(&place, "rarely");
  often.eval_every = 1;
  rarely.valid = NULL;
  often.prefix_dropout = rarely.prefix_dropout = 0.1;
  train(&often);
  train(&rarely);
  run_line a[RUN_LINES], b[RUN_LINES];
  assert_int_equal(run_metrics(often.out, a), run_metrics(rarely.out, b));
  for (int i = 0; i < 24; i++) assert_true(a[i].loss == b[i].loss && a[i].grad_norm == b[i].grad_norm);
  assert_true(
      same_file(often.out, "checkpoint/adapter_model.safetensors", rarely.out, "checkpoint/adapter_model.safetensors"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_best_adapter_is_kept),
      cmocka_unit_test(patience_counts_validations_since_the_best),
      cmocka_unit_test(the_first_loss_is_that_of_the_start),
      cmocka_unit_test(there_is_always_an_adapter),
      cmocka_unit_test(validation_does_not_disturb_training),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
