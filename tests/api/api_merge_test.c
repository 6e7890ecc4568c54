/* SPDX-License-Identifier: MIT
 * pfx_merge_wait through the public header: what it says of its work, and what it refuses. */
#include "helpers/api.h"

#include <unistd.h>

#include "helpers/golden.h"
#include "helpers/run_folder.h"

static char root[64], out[96], model[512], adapter[512];

static int set_up(void **state) {
  (void)state;
  snprintf(root, sizeof root, "/tmp/pfx_api_merge_XXXXXX");
  assert_non_null(mkdtemp(root));
  snprintf(out, sizeof out, "%s/merged", root);
  golden_path("parts/qwen2", "", model);
  golden_path("parts/qwen2", "ia3", adapter);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  run_remove(root);
  return 0;
}

static void count_messages(void *user, int level, const char *message) {
  (void)message;
  ((int *)user)[level]++;
}

static void result_and_log(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_merge_result r = {0};
  pfx_merge_options o = pfx_merge_options_init();
  int counts[4] = {0};
  o.type = PFX_WEIGHT_BF16;
  o.log = count_messages;
  o.log_user = counts;
  API_OK(pfx_merge_wait(model, adapter, out, &o, &r, &err));
  assert_int_equal(r.tensors, 26);
  assert_int_equal(r.changed, 10); /* in both layers q, v with their biases, and down */
  assert_int_equal(r.files, 1);
  assert_int_equal(r.type, PFX_WEIGHT_BF16);
  assert_int_equal(r.fit, PFX_FIT_UNVERIFIED);
  assert_int_equal(counts[PFX_LOG_INFO], 1);
  assert_int_equal(counts[PFX_LOG_WARN], 0);
  pfx_model *merged = NULL;
  pfx_model_info info;
  API_OK(pfx_model_open(out, NULL, &merged, &err));
  pfx_model_info_get(merged, &info);
  assert_int_equal(info.parameters * 2, r.bytes);
  pfx_model_close(merged);
}

typedef struct watch {
  int calls, stop_after;
  uint64_t done, all;
} watch;

static void on_progress(void *user, uint64_t done, uint64_t all) {
  watch *w = user;
  assert_true(done > w->done && done <= all);
  w->calls++;
  w->done = done;
  w->all = all;
}

static bool on_ask(void *user) { return ((watch *)user)->calls == ((watch *)user)->stop_after; }

/* Progress ends at the whole; a stop between tensors leaves nothing. */
static void progress_and_cancel(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_merge_result r = {0};
  pfx_merge_options o = pfx_merge_options_init();
  watch w = {.stop_after = 7};
  char message[200];
  o.progress = on_progress;
  o.cancelled = on_ask;
  o.user = &w;
  snprintf(message, sizeof message, "stopped; %s was not written", out);
  API_FAILS(pfx_merge_wait(model, NULL, out, &o, &r, &err), PFX_CANCELLED, message);
  assert_int_equal(rmdir(root), 0);
  assert_int_equal(r.tensors, 0);
  w = (watch){.stop_after = -1};
  API_OK(pfx_merge_wait(model, NULL, out, &o, &r, &err)); /* the parent is made again */
  assert_int_equal(w.calls, r.tensors);
  assert_true(w.done == w.all && w.all == r.bytes);
}

static void defaults(void **state) {
  (void)state;
  pfx_error err = {0};
  API_OK(pfx_merge_wait(model, NULL, out, NULL, NULL, &err));
  API_FAILS(pfx_merge_wait(model, NULL, "", NULL, NULL, &err), PFX_INVALID, "the output folder has no name");
}

static void refused(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_merge_options o = pfx_merge_options_init();
  char message[800];
  API_FAILS(pfx_merge_wait(NULL, NULL, out, NULL, NULL, &err), PFX_INVALID, "a model and an output folder are needed");
  API_FAILS(pfx_merge_wait(model, NULL, NULL, NULL, NULL, &err), PFX_INVALID, "a model and an output folder are needed");
  o.type = (pfx_weight_type)9;
  API_FAILS(pfx_merge_wait(model, NULL, out, &o, NULL, &err), PFX_INVALID, "type 9 of the weights is not known");
  o = (pfx_merge_options){0};
  API_FAILS(pfx_merge_wait(model, NULL, out, &o, NULL, &err), PFX_INVALID,
            "pfx_merge_options: struct_bytes is not set: begin with pfx_merge_options_init()");
  golden_path("parts/qwen2", "prompt", adapter);
  snprintf(message, sizeof message,
           "%s holds a prompt (PROMPT_TUNING): rows in front of a text are no weights, so no model folder can hold them; use it with --adapter", adapter);
  API_FAILS(pfx_merge_wait(model, adapter, out, NULL, NULL, &err), PFX_INVALID, message);
  assert_int_equal(pfx_merge_wait(model, adapter, out, NULL, NULL, NULL), PFX_INVALID);
  assert_int_not_equal(access(out, F_OK), 0);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
  const struct CMUnitTest tests[] = {TEST(result_and_log), TEST(progress_and_cancel), TEST(defaults), TEST(refused)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
