/* SPDX-License-Identifier: MIT
 * Taking a run up again: after a kill at an awkward moment, from another place, for longer, with other settings where
 * they may be given again; and what is refused. */
#include "helpers/test.h"

#include <math.h>
#include <unistd.h>

#include "helpers/run_folder.h"

static run_place place;

static int set_up(void **state) {
  (void)state;
  run_place_open(&place, "llama_tied", 1);
  px_error err = {0};
  px_train_result result;
  px_train_options o = run_options(&place, "whole");
  ASSERT_OK(px_train_run(place.model, NULL, &o, NULL, &result, &err));
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  run_place_close(&place);
  return 0;
}

/* Steps 1 to `steps` of the run that "whole" did at once. */
static const char *begin(const char *name, int64_t steps) {
  px_error err = {0};
  px_train_result result;
  px_train_options o = run_options(&place, name);
  o.stop_after = steps;
  ASSERT_OK(px_train_run(place.model, NULL, &o, NULL, &result, &err));
  assert_int_equal(result.step, steps);
  assert_int_equal(result.finished, steps == 24);
  return o.out;
}

static px_train_result go_on(const char *dir, const px_resume_changes *changes) {
  px_error err = {0};
  px_train_result result;
  ASSERT_OK(px_train_resume(place.model, NULL, dir, changes, NULL, &result, &err));
  return result;
}

static void ends_as_the_whole(const char *dir) {
  assert_true(go_on(dir, NULL).finished);
  run_expect_same(run_path(&place, "whole"), dir);
}

/* A folder with a run.json goes on, one without begins: what `--resume auto` leans on. */
static void run_json_tells_a_run_from_an_empty_folder(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  char message[300];
  const char *dir = run_path(&place, "auto");
  ASSERT_OK(px_dir_make(dir, &err));
  snprintf(message, sizeof message, "%s has no run.json: it is no training folder", dir);
  ASSERT_FAILS(px_train_resume(place.model, NULL, dir, NULL, NULL, &result, &err), PX_BAD_FILE, message);
  for (int i = 0; i < 5; i++) { /* the same call again and again, as a cluster does it */
    char run_json[256];
    snprintf(run_json, sizeof run_json, "%s/run.json", dir);
    px_train_options o = run_options(&place, "auto");
    o.stop_after = 5;
    if (px_file_exists(run_json))
      go_on(dir, &(px_resume_changes){.stop_after = 5 * i + 5});
    else
      ASSERT_OK(px_train_run(place.model, NULL, &o, NULL, &result, &err));
  }
  run_expect_same(run_path(&place, "whole"), dir);
  ends_as_the_whole(dir); /* a finished run stays as it is */
}

static void append(const char *dir, const char *text) {
  char path[256];
  snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
  FILE *f = fopen(path, "a");
  assert_non_null(f);
  fputs(text, f);
  assert_int_equal(fclose(f), 0);
}

static void metrics_that_are_ahead_or_cut_are_repaired(void **state) {
  (void)state;
  static const char *const tails[] = {
      "{\"step\": 13, \"los",
      "{\"step\": 1",
      "{\"step\": 13, \"loss\": 1}\n{\"step\": 14, \"loss\": 2}\n",
      "{\"step\": 13, \"loss\": 1}\n{\"st",
      "\n\n",
      "}",
  };
  for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
    char name[32];
    snprintf(name, sizeof name, "tail_%zu", i);
    const char *dir = begin(name, 12);
    append(dir, tails[i]);
    ends_as_the_whole(dir);
  }
}

/* Killed before the first checkpoint: metrics, and the best adapter perhaps, are there, a state is not. */
static void without_a_checkpoint_a_run_begins_at_step_0(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  run_log log;
  run_log_init(&log);
  const char *dir = begin("before", 7);
  char checkpoint[256];
  snprintf(checkpoint, sizeof checkpoint, "%s/checkpoint", dir);
  run_remove(checkpoint);
  ASSERT_OK(px_train_resume(place.model, NULL, dir, NULL, &log.calls, &result, &err));
  assert_non_null(strstr(log.text.data, "no checkpoint yet: beginning at step 0 of 24"));
  assert_null(strstr(log.text.data, "not bit-exact"));
  run_expect_same(run_path(&place, "whole"), dir);
  px_buf_free(&log.text);
}

static void a_moved_folder_goes_on(void **state) {
  (void)state;
  const char *dir = begin("here", 9), *there = run_path(&place, "there");
  assert_int_equal(rename(dir, there), 0);
  ends_as_the_whole(there);
}

static void other_save_points_change_no_bit(void **state) {
  (void)state;
  const char *dir = begin("saves", 9);
  go_on(dir, &(px_resume_changes){.save_every = 2, .stop_after = 17});
  ends_as_the_whole(dir);
}

static void a_time_limit_saves_and_stops(void **state) {
  (void)state;
  const char *dir = begin("time", 3);
  px_train_result result = go_on(dir, &(px_resume_changes){.max_seconds = 1e-9});
  assert_int_equal(result.step, 4);
  assert_false(result.finished);
  ends_as_the_whole(dir);
}

static void stop_after_a_step_that_is_done_does_nothing(void **state) {
  (void)state;
  const char *dir = begin("stopped", 9);
  assert_int_equal(go_on(dir, &(px_resume_changes){.stop_after = 4}).step, 9);
  ends_as_the_whole(dir);
}

static bool at_step_11(void *user) { return ++*(int *)user == 11; }

static void a_cancelled_run_is_saved_and_goes_on(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  int steps = 0;
  px_train_options o = run_options(&place, "cancelled");
  ASSERT_FAILS(px_train_run(place.model, NULL, &o, &(px_train_callbacks){.cancelled = at_step_11, .user = &steps},
                            &result, &err),
               PX_CANCELLED, "stopped after step 11 of 24; the state is saved");
  ends_as_the_whole(o.out);
}

/* A longer run is a new schedule from where it stands, which is said; what was done stays. */
static void a_longer_run_follows_a_new_schedule(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  run_line before[RUN_LINES], after[RUN_LINES];
  run_log log;
  run_log_init(&log);
  const char *dir = begin("longer", 24);
  assert_int_equal(run_metrics(dir, before), 24);
  ASSERT_OK(px_train_resume(place.model, NULL, dir, &(px_resume_changes){.steps = 40}, &log.calls, &result, &err));
  assert_int_equal(result.step, 40);
  assert_true(result.finished);
  assert_non_null(strstr(log.text.data,
                         "the run's length is given again (it was 24 steps): the learning rate follows a "
                         "new schedule from here"));
  assert_int_equal(run_metrics(dir, after), 40);
  assert_memory_equal(&before[10].loss, &after[10].loss, sizeof before[10].loss);
  for (int i = 0; i < 40; i++) { /* the usual rate of a prefix, 2 steps of warm-up */
    double lr = 3e-2 * (i < 2 ? (i + 1) / 2.0 : 1 - (i - 2) / (i < 24 ? 22.0 : 38.0));
    if (!(fabs(after[i].lr - lr) <= 1e-6 * lr)) fail_msg("step %d has lr %.9g, not %.9g", i + 1, after[i].lr, lr);
  }
  px_buf_free(&log.text);
  /* run.json knows: stopped inside the new schedule it goes on there. */
  const char *twin = begin("longer_twin", 24);
  go_on(twin, &(px_resume_changes){.steps = 40, .stop_after = 31});
  assert_int_equal(go_on(twin, NULL).step, 40);
  run_expect_same(dir, twin);
}

static void a_run_cannot_become_shorter_than_it_is(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  char message[300];
  const char *dir = begin("shorter", 12);
  snprintf(message, sizeof message, "%s has done 12 steps already: --steps 7 is less", dir);
  ASSERT_FAILS(px_train_resume(place.model, NULL, dir, &(px_resume_changes){.steps = 7}, NULL, &result, &err),
               PX_INVALID, message);
  ends_as_the_whole(dir); /* and nothing was changed */
}

static void another_patience_lets_a_stopped_run_go_on(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  px_train_options o = run_options(&place, "patience");
  o.steps = 200;
  o.lr = 5; /* far too much */
  o.eval_every = 2;
  o.patience = 2;
  ASSERT_OK(px_train_run(place.model, NULL, &o, NULL, &result, &err));
  assert_true(result.early_stopped && result.finished);
  int64_t stopped = result.step;
  assert_int_equal(go_on(o.out, NULL).step, stopped);
  result = go_on(o.out, &(px_resume_changes){.patience = 1000});
  assert_int_equal(result.step, 200);
  assert_false(result.early_stopped);
}

/* A loss that is not finite stops the run with the step named, in the state before it: bit for bit that of a run that
 * stopped there; going on says the same again. */
static void a_loss_that_is_not_finite_leaves_the_last_good_state(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  px_train_options o = run_options(&place, "infinite"), good = run_options(&place, "finite");
  char message[200];
  o.warmup = 12; /* the rate passes what float32 can bear somewhere on the way */
  o.lr = 1e38;
  o.clip = -1;
  o.save_every = good.save_every = -1;
  good.warmup = o.warmup, good.lr = o.lr, good.clip = o.clip;
  assert_int_equal(px_train_run(place.model, NULL, &o, NULL, &result, &err), PX_NOT_FINITE);
  good.stop_after = result.step;
  snprintf(message, sizeof message,
           "step %lld: the %s is not finite; no tensor was changed. Try a smaller --lr, more --warmup, or --dtype f32",
           (long long)result.step + 1, strstr(err.message, "the loss") ? "loss" : "gradient norm");
  assert_string_equal(err.message, message);
  ASSERT_FAILS(px_train_resume(place.model, NULL, o.out, NULL, NULL, &result, &err), PX_NOT_FINITE, message);
  ASSERT_OK(px_train_run(place.model, NULL, &good, NULL, &result, &err));
  run_expect_same(good.out, o.out);
}

static void damaged_states_are_refused(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  char path[256], message[600];
  const char *dir = begin("damaged", 6);
  snprintf(path, sizeof path, "%s/checkpoint/pfx_state.safetensors", dir);
  px_buf good = {0};
  ASSERT_OK(px_file_read(path, 1 << 24, &good, &err));
  /* The state of a run with another prefix. */
  px_train_options o = run_options(&place, "damaged_other");
  o.tune = "prefix:6";
  o.stop_after = 6;
  ASSERT_OK(px_train_run(place.model, NULL, &o, NULL, &result, &err));
  px_buf other = {0};
  run_read(o.out, "checkpoint/pfx_state.safetensors", &other);
  ASSERT_OK(px_file_write(path, other.data, other.len, &err));
  snprintf(message, sizeof message, "%s: tensor prefix.layers.0.value is missing or has another size than this run's",
           path);
  ASSERT_FAILS(px_train_resume(place.model, NULL, dir, NULL, NULL, &result, &err), PX_BAD_FILE, message);
  /* Half a state: only a broken disk leaves one. */
  ASSERT_OK(px_file_write(path, good.data, good.len / 2, &err));
  assert_int_equal(px_train_resume(place.model, NULL, dir, NULL, NULL, &result, &err), PX_BAD_FILE);
  assert_non_null(strstr(err.message, path));
  ASSERT_OK(px_file_write(path, good.data, good.len, &err));
  ends_as_the_whole(dir);
  px_buf_free(&good);
  px_buf_free(&other);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(run_json_tells_a_run_from_an_empty_folder),
      cmocka_unit_test(metrics_that_are_ahead_or_cut_are_repaired),
      cmocka_unit_test(without_a_checkpoint_a_run_begins_at_step_0),
      cmocka_unit_test(a_moved_folder_goes_on),
      cmocka_unit_test(other_save_points_change_no_bit),
      cmocka_unit_test(a_time_limit_saves_and_stops),
      cmocka_unit_test(stop_after_a_step_that_is_done_does_nothing),
      cmocka_unit_test(a_cancelled_run_is_saved_and_goes_on),
      cmocka_unit_test(a_longer_run_follows_a_new_schedule),
      cmocka_unit_test(a_run_cannot_become_shorter_than_it_is),
      cmocka_unit_test(another_patience_lets_a_stopped_run_go_on),
      cmocka_unit_test(a_loss_that_is_not_finite_leaves_the_last_good_state),
      cmocka_unit_test(damaged_states_are_refused),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
