/* SPDX-License-Identifier: MIT
 * A run that is stopped or killed ends with the same bytes as one that never was; a tiny golden model, rows of ids. */
#include "helpers/test.h"

#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/random.h"
#include "helpers/golden.h"
#include "helpers/run_folder.h"

static run_place place;
static px_model *model; /* place's */

static int set_up(void **state) {
  (void)state;
  run_place_open(&place, "llama_tied", 2);
  model = place.model;
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  run_place_close(&place);
  return 0;
}

/* All steps at once and half of them twice end with the same bytes. */
static void halves_of(int steps, const char *name, px_train_options options) {
  px_error err = {0};
  px_train_result result;
  char whole[64], halves[64];
  options.steps = steps;
  options.eval_every = steps / 5;
  options.save_every = steps * 3 / 10;
  snprintf(whole, sizeof whole, "%s_whole", name);
  snprintf(halves, sizeof halves, "%s_halves", name);
  options.out = run_path(&place, whole);
  ASSERT_OK(px_train_run(model, NULL, &options, NULL, &result, &err));
  assert_true(result.finished);
  assert_true(result.best_valid_loss < result.first_valid_loss);
  options.out = run_path(&place, halves);
  options.stop_after = steps / 2;
  ASSERT_OK(px_train_run(model, NULL, &options, NULL, &result, &err));
  assert_int_equal(result.step, steps / 2);
  assert_false(result.finished);
  ASSERT_OK(px_train_resume(model, NULL, options.out, NULL, NULL, &result, &err));
  assert_true(result.finished);
  run_expect_same(run_path(&place, whole), run_path(&place, halves));
}

static void halves_equal_the_whole(const char *name, px_train_options options) { halves_of(100, name, options); }

static void a_plain_prefix_resumes_exactly(void **state) {
  (void)state;
  halves_equal_the_whole("plain", run_options(&place, "x"));
}

static void a_reparameterised_prefix_resumes_exactly(void **state) {
  (void)state;
  px_train_options o = run_options(&place, "x");
  o.reparam = 24;
  o.lr = 1e-2;
  halves_equal_the_whole("reparam", o);
}

/* What the offset was made from may be gone: the state holds it. */
static void a_start_below_a_network_resumes_exactly(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  char init[200];
  px_train_options start = run_options(&place, "start"), o = run_options(&place, "offset_whole");
  ASSERT_OK(px_train_run(model, NULL, &start, NULL, &result, &err));
  const char *whole = o.out;
  snprintf(init, sizeof init, "adapter:%s", start.out);
  o.tune = "prefix";
  o.init = init;
  o.reparam = 24;
  ASSERT_OK(px_train_run(model, NULL, &o, NULL, &result, &err));
  assert_true(result.best_valid_loss < result.first_valid_loss);
  o.out = run_path(&place, "offset_halves");
  o.stop_after = 12;
  ASSERT_OK(px_train_run(model, NULL, &o, NULL, &result, &err));
  run_remove(start.out);
  ASSERT_OK(px_train_resume(model, NULL, o.out, NULL, NULL, &result, &err));
  run_expect_same(whole, o.out);
}

static void dropout_accumulation_and_token_batches_resume_exactly(void **state) {
  (void)state;
  px_train_options o = run_options(&place, "x");
  o.prefix_dropout = 0.2;
  o.weight_decay = 0.1;
  o.accumulate = 3;
  o.batch_rows = 0;
  o.batch_tokens = 25;
  o.schedule = PX_SCHEDULE_COSINE;
  halves_equal_the_whole("mixed", o);
}

/* Every part, and parts together. */
static void every_part_resumes_exactly(void **state) {
  (void)state;
  static const char *const tunes[] = {"prompt:3", "lora:2:dropout=0.2", "ia3", "norm", "bias", "top:1:lr=1e-3", "full:lr=1e-3", "prefix:4:frozen=1",
                                      "prefix:3:layers=0,2", "prefix:3:lr=1e-2+prompt:2+lora:2:targets=all:lr=1e-3+ia3+norm+bias"};
  char name[32];
  for (size_t i = 0; i < sizeof tunes / sizeof *tunes; i++) {
    px_train_options o = run_options(&place, "x");
    o.tune = tunes[i];
    o.lr = 0;
    o.accumulate = 1 + (int)i % 2;
    o.weight_decay = 0.01;
    snprintf(name, sizeof name, "part%zu", i);
    halves_of(20, name, o);
  }
}

static void plain_descent_resumes_exactly(void **state) {
  (void)state;
  px_train_options o = run_options(&place, "x");
  o.sgd = true;
  o.tune = "prefix:4:lr=1+lora:2:lr=0.1";
  halves_of(20, "sgd", o);
}

/* A child trains (or goes on) and is killed after a while; true when it ended by itself. */
static bool train_and_kill(const px_train_options *options, int microseconds) {
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    px_error err = {0};
    px_train_result result;
    char run_json[256];
    snprintf(run_json, sizeof run_json, "%s/run.json", options->out);
    px_status s = px_file_exists(run_json) ? px_train_resume(model, NULL, options->out, NULL, NULL, &result, &err)
                                           : px_train_run(model, NULL, options, NULL, &result, &err);
    if (s != PX_OK) fprintf(stderr, "child: %s\n", err.message);
    _exit(s == PX_OK ? 0 : 1);
  }
  int status = 0;
  for (int waited = 0; waited < microseconds; waited += 500) {
    if (waitpid(child, &status, WNOHANG) == child) {
      assert_true(WIFEXITED(status));
      assert_int_equal(WEXITSTATUS(status), 0);
      return true;
    }
    usleep(500);
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return false;
}

/* Threads do not survive a fork, so the children of this test compute on one thread from a model of their own. */
static void fifty_kills_lose_nothing(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  char path[512];
  px_model *shared = model;
  ASSERT_OK(px_model_open(golden_path("llama_tied", "", path), &(px_model_options){.dtype = PX_F32, .threads = 1},
                          &model, &err));
  px_train_options o = run_options(&place, "killed_whole");
  o.steps = 300;
  o.save_every = 2;
  o.eval_every = 40;
  o.no_fingerprint = true;
  ASSERT_OK(px_train_run(model, NULL, &o, NULL, &result, &err));
  char dir[192], whole[192];
  snprintf(dir, sizeof dir, "%s", run_path(&place, "killed"));
  snprintf(whole, sizeof whole, "%s", run_path(&place, "killed_whole"));
  o.out = dir;
  o.force = true; /* a kill before run.json leaves an empty folder or a temporary file */
  int kills = 0;
  for (int i = 0; kills < 50 && i < 400; i++) {
    if (!train_and_kill(&o, 5000 + (int)px_below(3, 99, 0, (uint64_t)i, 120000))) {
      kills++;
      continue;
    }
    run_expect_same(whole, dir); /* ended early: begin again for the kills that remain */
    run_remove(dir);
  }
  assert_int_equal(kills, 50);
  while (!train_and_kill(&o, 60000000)) {
  }
  run_expect_same(whole, dir);
  px_model_close(model);
  model = shared;
}

static void changed_data_is_refused(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  char other[128], message[1000], dir[192];
  snprintf(other, sizeof other, "%s/changing.jsonl", place.root);
  run_write_rows(other, 10, 5);
  px_train_options o = run_options(&place, "changed");
  o.data = other;
  o.stop_after = 5;
  snprintf(dir, sizeof dir, "%s", o.out);
  ASSERT_OK(px_train_run(model, NULL, &o, NULL, &result, &err));
  run_write_rows(other, 10, 6);
  snprintf(message, sizeof message,
           "%s has changed since %s began (its digest differs): an exact resume needs the same data", other, dir);
  ASSERT_FAILS(px_train_resume(model, NULL, dir, NULL, NULL, &result, &err), PX_MISMATCH, message);
}

static void a_loss_that_is_not_finite_changes_nothing(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  px_train_options o = run_options(&place, "infinite");
  char dir[192];
  o.lr = 1e38;
  o.warmup = 0;
  o.clip = -1;
  o.eval_every = -1;
  snprintf(dir, sizeof dir, "%s", o.out);
  assert_int_equal(px_train_run(model, NULL, &o, NULL, &result, &err), PX_NOT_FINITE);
  assert_non_null(strstr(err.message, "is not finite; no tensor was changed"));
  assert_true(result.step < o.steps);
}

static void an_occupied_folder_is_refused(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  px_train_options o = run_options(&place, "occupied");
  char dir[192], message[600];
  snprintf(dir, sizeof dir, "%s", o.out);
  o.stop_after = 1;
  ASSERT_OK(px_train_run(model, NULL, &o, NULL, &result, &err));
  snprintf(message, sizeof message, "%s holds a run: --resume %s goes on with it, --force replaces it", dir, dir);
  ASSERT_FAILS(px_train_run(model, NULL, &o, NULL, &result, &err), PX_INVALID, message);
}

static void patience_ends_a_run_that_gets_worse(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  px_train_options o = run_options(&place, "patience");
  o.steps = 200;
  o.lr = 5;
  o.eval_every = 2;
  o.patience = 3;
  ASSERT_OK(px_train_run(model, NULL, &o, NULL, &result, &err));
  assert_true(result.early_stopped);
  assert_true(result.step < 200);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(fifty_kills_lose_nothing),
      cmocka_unit_test(a_plain_prefix_resumes_exactly),
      cmocka_unit_test(a_reparameterised_prefix_resumes_exactly),
      cmocka_unit_test(a_start_below_a_network_resumes_exactly),
      cmocka_unit_test(dropout_accumulation_and_token_batches_resume_exactly),
      cmocka_unit_test(every_part_resumes_exactly),
      cmocka_unit_test(plain_descent_resumes_exactly),
      cmocka_unit_test(changed_data_is_refused),
      cmocka_unit_test(a_loss_that_is_not_finite_changes_nothing),
      cmocka_unit_test(an_occupied_folder_is_refused),
      cmocka_unit_test(patience_ends_a_run_that_gets_worse),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
