/* SPDX-License-Identifier: MIT */
#include "helpers/run_folder.h"

#include <ftw.h>
#include <jansson.h>
#include <math.h>
#include <unistd.h>

#include "core/random.h"
#include "helpers/golden.h"
#include "helpers/test.h"

void run_place_open(run_place *place, const char *golden_model, int threads) {
  px_error err = {0};
  char path[512];
  /* Runs flush what they save to disk; a folder in memory takes the disk's time out of the tests. */
  snprintf(place->root, sizeof place->root, "%s/pfx_train_XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
  assert_non_null(mkdtemp(place->root));
  snprintf(place->data, sizeof place->data, "%s/train.jsonl", place->root);
  snprintf(place->valid, sizeof place->valid, "%s/valid.jsonl", place->root);
  run_write_rows(place->data, 37, 1);
  run_write_rows(place->valid, 9, 2);
  ASSERT_OK(px_model_open(golden_path(golden_model, "", path), &(px_model_options){.dtype = PX_F32, .threads = threads},
                          &place->model, &err));
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
  (void)st, (void)type, (void)walk;
  return remove(path);
}

void run_remove(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

void run_place_close(run_place *place) {
  px_model_close(place->model);
  run_remove(place->root);
}

const char *run_path(const run_place *place, const char *name) {
  static char paths[8][192];
  static int next;
  char *path = paths[next++ % 8];
  snprintf(path, 192, "%s/%s", place->root, name);
  return path;
}

void run_write_rows(const char *path, int rows, uint32_t salt) {
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

px_train_options run_options(const run_place *place, const char *name) {
  return (px_train_options){.model_path = place->model->source.path,
                            .data = place->data,
                            .valid = place->valid,
                            .out = run_path(place, name),
                            .tune = "prefix:5",
                            .steps = 24,
                            .batch_rows = 4,
                            .warmup = 2,
                            .eval_every = 6,
                            .save_every = 5,
                            .seed = 7};
}

void run_read(const char *dir, const char *name, px_buf *out) {
  px_error err = {0};
  char path[256];
  px_buf all = {0};
  snprintf(path, sizeof path, "%s/%s", dir, name);
  ASSERT_OK(px_file_read(path, 1u << 30, &all, &err));
  bool metrics = strcmp(name, "metrics.jsonl") == 0;
  if (!metrics) px_buf_append(out, all.data, all.len);
  for (char *line = all.data; metrics && line && *line;) {
    char *end = strchr(line, '\n');
    size_t len = end ? (size_t)(end - line) : strlen(line);
    char *timings = memmem(line, len, ", \"tokens_per_s\"", 16), *valid = memmem(line, len, ", \"valid_loss\"", 14);
    assert_non_null(timings);
    px_buf_append(out, line, (size_t)(timings - line));
    if (valid) px_buf_append(out, valid, len - (size_t)(valid - line));
    px_buf_puts(out, "\n");
    line = end ? end + 1 : NULL;
  }
  px_buf_free(&all);
}

static bool has(const char *dir, const char *name) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  return px_file_exists(path);
}

static void expect_same_file(const char *a, const char *b, const char *name) {
  px_buf x = {0}, y = {0};
  run_read(a, name, &x);
  run_read(b, name, &y);
  if (x.len != y.len || memcmp(x.data, y.data, x.len) != 0) fail_msg("%s of %s and %s differ", name, a, b);
  px_buf_free(&x);
  px_buf_free(&y);
}

void run_expect_same(const char *a, const char *b) {
  static const char *const files[] = {"adapter_model.safetensors", "adapter_config.json", "pfx.json", "pfx_delta.safetensors",
                                      "config.json", "model.safetensors"};
  static const char *const always[] = {"checkpoint/pfx_state.safetensors", "metrics.jsonl"};
  char name[96];
  int compared = 0;
  for (size_t i = 0; i < sizeof always / sizeof *always; i++) expect_same_file(a, b, always[i]);
  for (int place = 0; place < 2; place++)
    for (int part = -1; part < PX_PART_KINDS; part++)
      for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(name, sizeof name, "%s%s%s%s", place ? "checkpoint/" : "", part < 0 ? "" : px_part_kind_name((px_part_kind)part), part < 0 ? "" : "/",
                 files[i]);
        if (!has(a, name) && !has(b, name)) continue;
        expect_same_file(a, b, name);
        compared++;
      }
  assert_true(compared >= 3); /* an adapter in two places, or a model in one */
}

static double number_of(const json_t *line, const char *key, bool needed) {
  const json_t *value = json_object_get(line, key);
  if (needed && !value) fail_msg("metrics.jsonl: a line lacks \"%s\"", key);
  return json_is_number(value) ? json_number_value(value) : NAN;
}

int run_metrics(const char *dir, run_line out[RUN_LINES]) {
  px_error err = {0};
  px_buf text = {0};
  char path[256];
  int count = 0;
  snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
  ASSERT_OK(px_file_read(path, 1 << 24, &text, &err));
  for (char *line = text.data; line && *line; count++) {
    char *end = strchr(line, '\n');
    if (!end) fail_msg("%s: line %d is cut", path, count + 1);
    json_t *json = json_loadb(line, (size_t)(end - line), 0, NULL);
    if (!json) fail_msg("%s: line %d is no JSON: %.*s", path, count + 1, (int)(end - line), line);
    assert_true(count < RUN_LINES);
    out[count] = (run_line){.step = json_integer_value(json_object_get(json, "step")),
                            .tokens = json_integer_value(json_object_get(json, "tokens")),
                            .loss = number_of(json, "loss", true),
                            .lr = number_of(json, "lr", true),
                            .grad_norm = number_of(json, "grad_norm", true),
                            .valid_loss = number_of(json, "valid_loss", false)};
    number_of(json, "tokens_per_s", true), number_of(json, "seconds", true), number_of(json, "peak_bytes", true);
    assert_int_equal(out[count].step, count + 1);
    json_decref(json);
    line = end + 1;
  }
  px_buf_free(&text);
  return count;
}

static void keep_message(void *user, int level, const char *message) {
  run_log *log = user;
  (void)level;
  px_buf_printf(&log->text, "%s\n", message);
}

void run_log_init(run_log *log) {
  *log = (run_log){0};
  log->calls = (px_train_callbacks){.user = log, .log = {keep_message, log}};
}
