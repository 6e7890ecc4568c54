/* SPDX-License-Identifier: MIT
 * Rules of the public header that hold for every call: options of older and newer callers, NULL, errors, statuses. */
#include "helpers/api.h"

#include <unistd.h>

#include "helpers/byte_tokenizer.h"
#include "helpers/golden.h"
#include "helpers/run_folder.h"
#include "helpers/tiny_model.h"

static char root[64];
static pfx_model *model;
static pfx_tokenizer *tokenizer;

static int set_up(void **state) {
  (void)state;
  pfx_error err = {0};
  px_error inner = {0};
  px_tokenizer *bytes = NULL;
  snprintf(root, sizeof root, "/tmp/pfx_api_XXXXXX");
  assert_non_null(mkdtemp(root));
  tiny_model_write(root,
                   (tiny_model){.layers = 2,
                                .dim = 32,
                                .heads = 4,
                                .kv_heads = 2,
                                .head_dim = 8,
                                .ffn_dim = 48,
                                .vocab = BYTE_VOCAB,
                                .context = 64},
                   1);
  assert_int_equal(byte_tokenizer_open(root, (byte_tokenizer_options){.add_bos = true}, &bytes, &inner), PX_OK);
  px_tokenizer_close(bytes);
  pfx_model_options o = pfx_model_options_init();
  o.dtype = PFX_DTYPE_F32;
  API_OK(pfx_model_open(root, &o, &model, &err));
  API_OK(pfx_tokenizer_open(root, &tokenizer, &err));
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  pfx_tokenizer_close(tokenizer);
  pfx_model_close(model);
  run_remove(root);
  return 0;
}

static void the_version_is_one(void **state) {
  (void)state;
  char text[32];
  snprintf(text, sizeof text, "%d.%d.%d", PFX_VERSION_MAJOR, PFX_VERSION_MINOR, PFX_VERSION_PATCH);
  assert_string_equal(pfx_version(), text);
  assert_non_null(strstr(pfx_libraries(), "PCRE2 "));
}

static void statuses_are_pinned(void **state) {
  (void)state;
  static const char *const names[] = {"PFX_OK",        "PFX_FAILED",    "PFX_INVALID",   "PFX_BAD_FILE",
                                      "PFX_MISMATCH",  "PFX_NO_MEMORY", "PFX_NO_DEVICE", "PFX_IO",
                                      "PFX_CANCELLED", "PFX_NOT_FINITE"};
  for (int i = 0; i < 10; i++) assert_string_equal(pfx_status_name((pfx_status)i), names[i]);
  assert_string_equal(pfx_status_name((pfx_status)10), "unknown status");
  assert_string_equal(pfx_status_name((pfx_status)-1), "unknown status");
}

static void null_can_be_released(void **state) {
  (void)state;
  pfx_free(NULL);
  pfx_model_close(NULL);
  pfx_tokenizer_close(NULL);
  pfx_adapter_close(NULL);
  pfx_trainer_destroy(NULL);
  pfx_generator_destroy(NULL);
}

/* struct_bytes that was never set, or is garbage: the name of the struct and what to do. */
static void options_must_be_initialised(void **state) {
  (void)state;
  static const size_t wrong[] = {0, 1, 7, 1 << 20, SIZE_MAX};
  pfx_error err;
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    pfx_model *m = NULL;
    pfx_trainer *t = NULL;
    pfx_generator *g = NULL;
    pfx_eval_result result;
    pfx_model_options model_options = {.struct_bytes = wrong[i]};
    pfx_train_options train_options = {.struct_bytes = wrong[i]};
    pfx_generator_options generator_options = {.struct_bytes = wrong[i]};
    pfx_request request = {.struct_bytes = wrong[i]};
    pfx_eval_options eval_options = {.struct_bytes = wrong[i]};
    pfx_probe_options probe_options = {.struct_bytes = wrong[i]};
    API_FAILS(pfx_model_open(root, &model_options, &m, &err), PFX_INVALID,
              "pfx_model_options: struct_bytes is not set: begin with pfx_model_options_init()");
    API_FAILS(pfx_trainer_create(model, tokenizer, &train_options, &t, &err), PFX_INVALID,
              "pfx_train_options: struct_bytes is not set: begin with pfx_train_options_init()");
    API_FAILS(pfx_trainer_resume(model, tokenizer, root, &train_options, &t, &err), PFX_INVALID,
              "pfx_train_options: struct_bytes is not set: begin with pfx_train_options_init()");
    API_FAILS(pfx_generator_create(model, tokenizer, &generator_options, &g, &err), PFX_INVALID,
              "pfx_generator_options: struct_bytes is not set: begin with pfx_generator_options_init()");
    API_FAILS(pfx_eval_wait(model, tokenizer, NULL, &eval_options, &result, &err), PFX_INVALID,
              "pfx_eval_options: struct_bytes is not set: begin with pfx_eval_options_init()");
    API_FAILS(pfx_probe_wait(model, tokenizer, NULL, &probe_options, &err), PFX_INVALID,
              "pfx_probe_options: struct_bytes is not set: begin with pfx_probe_options_init()");
    assert_null(m);
    assert_null(t);
    assert_null(g);
    API_OK(pfx_generator_create(model, tokenizer, NULL, &g, &err));
    API_FAILS(pfx_generator_add(g, &request, &err), PFX_INVALID,
              "pfx_request: struct_bytes is not set: begin with pfx_request_init()");
    pfx_generator_destroy(g);
  }
}

static void keep(void *user, uint64_t row, const char *bytes, size_t count, pfx_finish finish) {
  (void)row, (void)finish;
  size_t used = strlen(user);
  assert_true(used + count < 1000);
  memcpy((char *)user + used, bytes, count);
  ((char *)user)[used + count] = 0;
}

static void generate(const pfx_request *request) {
  pfx_error err = {0};
  pfx_generator *g = NULL;
  API_OK(pfx_generator_create(model, tokenizer, NULL, &g, &err));
  API_OK(pfx_generator_add(g, request, &err));
  API_OK(pfx_generator_run_wait(g, NULL, NULL, &err));
  pfx_generator_destroy(g);
}

/* A caller that was built when the struct ended earlier: what lies beyond is not read, and the defaults hold. */
static void an_older_caller_gets_defaults(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_model *m = NULL;
  pfx_model_info info;
  pfx_model_options o;
  memset(&o, 0xff, sizeof o); /* no pointer, no number that could be used */
  o.struct_bytes = offsetof(pfx_model_options, threads);
  o.dtype = PFX_DTYPE_F32;
  API_OK(pfx_model_open(root, &o, &m, &err));
  pfx_model_info_get(m, &info);
  assert_int_equal(info.dtype, PFX_DTYPE_F32);
  assert_true(info.threads >= 1);
  pfx_model_close(m);

  char whole[1000] = "", older[1000] = "";
  pfx_request now = pfx_request_init(), then;
  now.prompt = "abc";
  now.max_tokens = 20;
  memset(&then, 0xff, sizeof then);
  memcpy(&then, &now, offsetof(pfx_request, temperature));
  then.struct_bytes = offsetof(pfx_request, temperature);
  then.text = keep; /* beyond its end: never called */
  generate(&then);
  now.text = keep;
  now.user = whole;
  generate(&now);
  assert_true(strlen(whole) >= 20);
  then = now;
  then.struct_bytes = sizeof then;
  then.user = older;
  generate(&then);
  assert_string_equal(older, whole);
}

/* A caller that knows fields which this library does not. */
static void a_newer_caller_is_understood(void **state) {
  (void)state;
  pfx_error err = {0};
  struct {
    pfx_model_options known;
    char unknown[100];
  } o = {.known = pfx_model_options_init()};
  o.known.struct_bytes = sizeof o;
  pfx_model *m = NULL;
  API_OK(pfx_model_open(root, &o.known, &m, &err));
  pfx_model_close(m);
}

static void zero_is_zero_and_values_are_checked(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_generator *g = NULL;
  pfx_trainer *t = NULL;
  API_OK(pfx_generator_create(model, tokenizer, NULL, &g, &err));
  pfx_request good = pfx_request_init(), r;
  good.prompt = "abc";
  r = good, r.max_tokens = 0;
  API_FAILS(pfx_generator_add(g, &r, &err), PFX_INVALID, "max_tokens is 0, must be at least 1");
  r = good, r.top_p = 0;
  API_FAILS(pfx_generator_add(g, &r, &err), PFX_INVALID,
            "temperature and top-k must not be negative, top-p must be in (0, 1], min-p in [0, 1], the repetition "
            "penalty positive");
  r = good, r.repetition_penalty = 0;
  API_FAILS(pfx_generator_add(g, &r, &err), PFX_INVALID,
            "temperature and top-k must not be negative, top-p must be in (0, 1], min-p in [0, 1], the repetition "
            "penalty positive");
  pfx_generator_destroy(g);

  pfx_train_options train = pfx_train_options_init(), o;
  train.data = train.out = "nowhere";
  o = train, o.epochs = 0;
  API_FAILS(pfx_trainer_create(model, tokenizer, &o, &t, &err), PFX_INVALID,
            "--steps 0 and --epochs 0: there is nothing to do");
  o = train, o.clip = 0;
  API_FAILS(pfx_trainer_create(model, tokenizer, &o, &t, &err), PFX_INVALID,
            "--clip 0 would leave nothing of a gradient: -1 turns clipping off");
  o = train, o.accumulate = 0;
  API_FAILS(pfx_trainer_create(model, tokenizer, &o, &t, &err), PFX_INVALID, "--accumulate must be at least 1");
  o = train, o.beta1 = 0;
  API_FAILS(pfx_trainer_create(model, tokenizer, &o, &t, &err), PFX_INVALID,
            "beta1 and beta2 must be in (0, 1), eps positive");
  o = train, o.batch_rows = -1;
  API_FAILS(pfx_trainer_create(model, tokenizer, &o, &t, &err), PFX_INVALID,
            "--batch-rows, --batch-tokens, --reparam, --stop-after and --patience must not be negative");
  o = train, o.schedule = (pfx_schedule)3;
  API_FAILS(pfx_trainer_create(model, tokenizer, &o, &t, &err), PFX_INVALID, "schedule 3 is not known");
  o = train, o.rows.on_long = (pfx_on_long)-1;
  API_FAILS(pfx_trainer_create(model, tokenizer, &o, &t, &err), PFX_INVALID, "on_long -1 is not known");
  assert_null(t);
}

/* Without an error record a call says the same by its status, and hands out nothing. */
static void the_error_record_may_be_missing(void **state) {
  (void)state;
  pfx_model *m = (pfx_model *)root;
  pfx_tokenizer *tok = (pfx_tokenizer *)root;
  pfx_adapter *a = (pfx_adapter *)root;
  pfx_trainer *t = NULL;
  pfx_generator *g = NULL;
  pfx_train_result result;
  pfx_train_options train = pfx_train_options_init(), from;
  pfx_request request = pfx_request_init();
  char path[512], *text = root, *model_path = root, *device = root;
  void *memory = root;
  pfx_dtype dtype;
  int32_t threads, *ids;
  size_t count;
  char **prompts;
  assert_int_equal(pfx_model_open("nowhere", NULL, &m, NULL), PFX_BAD_FILE);
  assert_int_equal(pfx_model_open(NULL, NULL, &m, NULL), PFX_INVALID);
  assert_int_equal(pfx_tokenizer_open("nowhere", &tok, NULL), PFX_BAD_FILE);
  assert_int_equal(pfx_adapter_open("nowhere", &a, NULL), PFX_BAD_FILE);
  assert_int_equal(pfx_adapter_open(golden_path("llama_tied", "config.json", path), &a, NULL), PFX_BAD_FILE);
  assert_int_equal(pfx_run_read("nowhere", &model_path, &device, &dtype, &threads, NULL), PFX_BAD_FILE);
  assert_int_equal(pfx_run_options("nowhere", &from, &text, &memory, NULL), PFX_BAD_FILE);
  assert_null(m);
  assert_null(tok);
  assert_null(a);
  assert_null(model_path);
  assert_null(text);
  assert_null(memory);
  text = root;
  assert_int_equal(pfx_inspect_wait("nowhere", true, false, &text, NULL), PFX_BAD_FILE);
  assert_null(text);
  assert_int_equal(pfx_prompts_read("nowhere", &prompts, &count, NULL), PFX_BAD_FILE);
  assert_null(prompts);
  assert_int_equal(pfx_tokenizer_decode(tokenizer, (const int32_t[]){-1}, 1, false, &text, NULL, NULL), PFX_INVALID);
  assert_null(text);
  assert_int_equal(pfx_tokenizer_encode(tokenizer, "", 0, &ids, &count, NULL), PFX_OK);
  assert_int_equal(count, 0);
  pfx_free(ids);
  train.data = "nowhere";
  train.out = "/proc/no/such/folder";
  assert_int_equal(pfx_trainer_create(model, tokenizer, &train, &t, NULL), PFX_OK);
  assert_int_equal(pfx_trainer_run_wait(t, &result, NULL), PFX_IO);
  assert_int_equal(result.step, 0);
  pfx_trainer_destroy(t);
  assert_int_equal(pfx_generator_create(model, NULL, NULL, &g, NULL), PFX_OK);
  request.prompt = "text";
  assert_int_equal(pfx_generator_add(g, &request, NULL), PFX_INVALID);
  pfx_generator_destroy(g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_version_is_one),
      cmocka_unit_test(statuses_are_pinned),
      cmocka_unit_test(null_can_be_released),
      cmocka_unit_test(options_must_be_initialised),
      cmocka_unit_test(an_older_caller_gets_defaults),
      cmocka_unit_test(a_newer_caller_is_understood),
      cmocka_unit_test(zero_is_zero_and_values_are_checked),
      cmocka_unit_test(the_error_record_may_be_missing),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
