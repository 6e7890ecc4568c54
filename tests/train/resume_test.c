/* SPDX-License-Identifier: MIT
 * A run that is stopped or killed ends with the same bytes as one that never was; a tiny golden model, rows of ids. */
#include "helpers/test.h"

#include <ftw.h>
#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file.h"
#include "core/random.h"
#include "helpers/golden.h"
#include "train/trainer.h"

static char root[64], data_path[128], valid_path[128];
static px_model *model;

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
  (void)st, (void)type, (void)walk;
  return remove(path);
}

/* Rows that repeat a pattern, so that there is something to learn. */
static void write_rows(const char *path, int rows, uint32_t salt) {
  px_error err = {0};
  px_buf text = {0};
  for (int r = 0; r < rows; r++) {
    int length = 3 + (int)px_below(1, 99, salt, (uint64_t)r, 9),
        first = 3 + (int)px_below(2, 99, salt, (uint64_t)r, 50);
    px_buf_puts(&text, "{\"ids\": [");
    for (int t = 0; t < length; t++) px_buf_printf(&text, "%s%d", t ? ", " : "", 3 + (first + 2 * t) % 100);
    px_buf_puts(&text, "], \"labels\": [-100");
    for (int t = 1; t < length; t++) px_buf_printf(&text, ", %d", 3 + (first + 2 * t) % 100);
    px_buf_puts(&text, "]}\n");
  }
  ASSERT_OK(px_file_write(path, text.data, text.len, &err));
  px_buf_free(&text);
}

static int set_up(void **state) {
  (void)state;
  px_error err = {0};
  char path[512];
  snprintf(root, sizeof root, "/tmp/pfx_resume_XXXXXX");
  assert_non_null(mkdtemp(root));
  snprintf(data_path, sizeof data_path, "%s/train.jsonl", root);
  snprintf(valid_path, sizeof valid_path, "%s/valid.jsonl", root);
  write_rows(data_path, 37, 1);
  write_rows(valid_path, 9, 2);
  ASSERT_OK(px_model_open(golden_path("llama_tied", "", path), &(px_model_options){.dtype = PX_F32, .threads = 2},
                          &model, &err));
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  px_model_close(model);
  return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static const char *in_root(const char *name) {
  static char paths[8][192];
  static int next;
  char *path = paths[next++ % 8];
  snprintf(path, 192, "%s/%s", root, name);
  return path;
}

static px_train_options options_for(const char *name) {
  return (px_train_options){.model_path = model->source.path,
                            .data = data_path,
                            .valid = valid_path,
                            .out = in_root(name),
                            .tune = "prefix:5",
                            .steps = 24,
                            .batch_rows = 4,
                            .warmup = 2,
                            .eval_every = 6,
                            .save_every = 5,
                            .seed = 7};
}

/* The bytes of a file; of metrics.jsonl without its timings. */
static void read_comparable(const char *dir, const char *name, px_buf *out) {
  px_error err = {0};
  char path[256];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  ASSERT_OK(px_file_read(path, 1u << 30, out, &err));
  if (strcmp(name, "metrics.jsonl") != 0) return;
  px_buf kept = {0};
  for (char *line = out->data; line && *line;) {
    char *end = strchr(line, '\n');
    size_t len = end ? (size_t)(end - line) : strlen(line);
    char *timings = memmem(line, len, ", \"tokens_per_s\"", 16), *valid = memmem(line, len, ", \"valid_loss\"", 14);
    assert_non_null(timings);
    px_buf_append(&kept, line, (size_t)(timings - line));
    if (valid) px_buf_append(&kept, valid, len - (size_t)(valid - line));
    px_buf_puts(&kept, "\n");
    line = end ? end + 1 : NULL;
  }
  px_buf_free(out);
  *out = kept;
}

static void assert_same_run(const char *a, const char *b) {
  static const char *const files[] = {"adapter_model.safetensors", "adapter_config.json",
                                      "checkpoint/adapter_model.safetensors", "checkpoint/pfx_state.safetensors",
                                      "metrics.jsonl"};
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    px_buf x = {0}, y = {0};
    read_comparable(a, files[i], &x);
    read_comparable(b, files[i], &y);
    if (x.len != y.len || memcmp(x.data, y.data, x.len) != 0) fail_msg("%s of %s and %s differ", files[i], a, b);
    px_buf_free(&x);
    px_buf_free(&y);
  }
}

/* Runs `whole` at once and `halves` in two, and compares. */
static void halves_equal_the_whole(const char *name, px_train_options options) {
  px_error err = {0};
  px_train_result result;
  char whole[64], halves[64];
  snprintf(whole, sizeof whole, "%s_whole", name);
  snprintf(halves, sizeof halves, "%s_halves", name);
  options.out = in_root(whole);
  ASSERT_OK(px_train_run(model, NULL, &options, NULL, &result, &err));
  assert_true(result.finished);
  assert_true(result.best_valid_loss < result.first_valid_loss);
  options.out = in_root(halves);
  options.stop_after = 12;
  ASSERT_OK(px_train_run(model, NULL, &options, NULL, &result, &err));
  assert_int_equal(result.step, 12);
  assert_false(result.finished);
  ASSERT_OK(px_train_resume(model, NULL, options.out, NULL, NULL, &result, &err));
  assert_true(result.finished);
  assert_same_run(in_root(whole), in_root(halves));
}

static void a_plain_prefix_resumes_exactly(void **state) {
  (void)state;
  halves_equal_the_whole("plain", options_for("x"));
}

static void a_reparameterised_prefix_resumes_exactly(void **state) {
  (void)state;
  px_train_options o = options_for("x");
  o.reparam = 24;
  o.lr = 1e-2;
  halves_equal_the_whole("reparam", o);
}

static void dropout_accumulation_and_token_batches_resume_exactly(void **state) {
  (void)state;
  px_train_options o = options_for("x");
  o.prefix_dropout = 0.2;
  o.accumulate = 3;
  o.batch_rows = 0;
  o.batch_tokens = 25;
  o.schedule = PX_SCHEDULE_COSINE;
  halves_equal_the_whole("mixed", o);
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
  px_train_options o = options_for("killed_whole");
  o.steps = 300;
  o.save_every = 2;
  o.eval_every = 40;
  o.no_fingerprint = true;
  ASSERT_OK(px_train_run(model, NULL, &o, NULL, &result, &err));
  char dir[192], whole[192];
  snprintf(dir, sizeof dir, "%s", in_root("killed"));
  snprintf(whole, sizeof whole, "%s", in_root("killed_whole"));
  o.out = dir;
  o.force = true; /* a kill before run.json leaves an empty folder or a temporary file */
  int kills = 0;
  for (int i = 0; kills < 50 && i < 400; i++) {
    if (!train_and_kill(&o, 5000 + (int)px_below(3, 99, 0, (uint64_t)i, 120000))) {
      kills++;
      continue;
    }
    assert_same_run(whole, dir); /* ended early: begin again for the kills that remain */
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
  }
  assert_int_equal(kills, 50);
  while (!train_and_kill(&o, 60000000)) {
  }
  assert_same_run(whole, dir);
  px_model_close(model);
  model = shared;
}

static void changed_data_is_refused(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  char other[128], message[1000], dir[192];
  snprintf(other, sizeof other, "%s/changing.jsonl", root);
  write_rows(other, 10, 5);
  px_train_options o = options_for("changed");
  o.data = other;
  o.stop_after = 5;
  snprintf(dir, sizeof dir, "%s", o.out);
  ASSERT_OK(px_train_run(model, NULL, &o, NULL, &result, &err));
  write_rows(other, 10, 6);
  snprintf(message, sizeof message,
           "%s has changed since %s began (its digest differs): an exact resume needs the same data", other, dir);
  ASSERT_FAILS(px_train_resume(model, NULL, dir, NULL, NULL, &result, &err), PX_MISMATCH, message);
}

static void a_loss_that_is_not_finite_changes_nothing(void **state) {
  (void)state;
  px_error err = {0};
  px_train_result result;
  px_train_options o = options_for("infinite");
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
  px_train_options o = options_for("occupied");
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
  px_train_options o = options_for("patience");
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
      cmocka_unit_test(dropout_accumulation_and_token_batches_resume_exactly),
      cmocka_unit_test(changed_data_is_refused),
      cmocka_unit_test(a_loss_that_is_not_finite_changes_nothing),
      cmocka_unit_test(an_occupied_folder_is_refused),
      cmocka_unit_test(patience_ends_a_run_that_gets_worse),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
