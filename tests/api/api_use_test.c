/* SPDX-License-Identifier: MIT
 * The whole library through its public header: train, go on, check, generate, measure; callbacks; and one model,
 * tokenizer and adapter shared by threads that do all of it at once. */
#include "helpers/api.h"

#include <math.h>
#include <pthread.h>

#include "core/file.h"
#include "helpers/byte_tokenizer.h"
#include "helpers/run_folder.h"
#include "helpers/tiny_model.h"

enum { STEPS = 12, THREADS = 3, PROMPTS = 5 };
static char root[64];
static pfx_model *model;
static pfx_tokenizer *tokenizer;

static const char *in_root(const char *name) {
  static _Thread_local char paths[8][128];
  static _Thread_local int next;
  char *path = paths[next++ % 8];
  snprintf(path, sizeof paths[0], "%s/%s", root, name);
  return path;
}

static int set_up(void **state) {
  (void)state;
  pfx_error err = {0};
  px_error inner = {0};
  px_tokenizer *bytes = NULL;
  px_buf rows = {0};
  snprintf(root, sizeof root, "/tmp/pfx_use_XXXXXX");
  assert_non_null(mkdtemp(root));
  tiny_model_write(root,
                   (tiny_model){.layers = 2,
                                .dim = 32,
                                .heads = 4,
                                .kv_heads = 2,
                                .head_dim = 8,
                                .ffn_dim = 48,
                                .vocab = BYTE_VOCAB,
                                .context = 96},
                   1);
  assert_int_equal(byte_tokenizer_open(root, (byte_tokenizer_options){0}, &bytes, &inner), PX_OK);
  px_tokenizer_close(bytes);
  for (int i = 0; i < 20; i++)
    px_buf_printf(&rows, "{\"prompt\": \"%c%c:\", \"completion\": \"%c%c\"}\n", 'a' + i, 'b' + i % 7, 'A' + i,
                  'B' + i % 7);
  assert_int_equal(px_file_write(in_root("rows.jsonl"), rows.data, rows.len, &inner), PX_OK);
  px_buf_free(&rows);
  pfx_model_options o = pfx_model_options_init();
  o.dtype = PFX_DTYPE_F32;
  o.threads = 1;
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

static pfx_train_options options(const char *name) {
  pfx_train_options o = pfx_train_options_init();
  o.data = in_root("rows.jsonl");
  o.valid = o.data;
  o.out = in_root(name);
  o.tune = "prefix:3";
  o.steps = STEPS;
  o.batch_rows = 4;
  o.eval_every = 4;
  return o;
}

static pfx_status train(const pfx_train_options *o, pfx_train_result *result, pfx_error *err) {
  pfx_trainer *t = NULL;
  pfx_status status = pfx_trainer_create(model, tokenizer, o, &t, err);
  if (status == PFX_OK) status = pfx_trainer_run_wait(t, result, err);
  pfx_trainer_destroy(t);
  return status;
}

static void same_adapter(const char *a, const char *b) {
  px_buf left = {0}, right = {0};
  run_read(a, "adapter_model.safetensors", &left);
  run_read(b, "adapter_model.safetensors", &right);
  assert_int_equal(left.len, right.len);
  assert_memory_equal(left.data, right.data, left.len);
  px_buf_free(&left);
  px_buf_free(&right);
}

typedef struct seen {
  int steps, validations, messages, stop_at;
  int64_t last;
} seen;

static void on_progress(void *user, const pfx_progress *p) {
  seen *s = user;
  assert_int_equal(p->steps, STEPS);
  assert_true(p->step >= s->last);
  if (p->step > s->last) s->steps++;
  s->validations += !isnan(p->valid_loss);
  s->last = p->step;
}

static bool on_asked(void *user) {
  seen *s = user;
  return s->stop_at && s->last >= s->stop_at;
}

static void on_message(void *user, int level, const char *message) {
  assert_true(level >= PFX_LOG_ERROR && level <= PFX_LOG_VERBOSE);
  assert_null(strchr(message, '\n'));
  ((seen *)user)->messages++;
}

static void a_run_reports_stops_and_goes_on(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_train_result result;
  pfx_trainer *t = NULL;
  seen s = {.stop_at = 5};
  pfx_train_options o = options("whole");
  API_OK(train(&o, &result, &err));
  assert_true(result.finished && !result.early_stopped);
  assert_int_equal(result.step, STEPS);
  assert_true(result.best_valid_loss <= result.last_valid_loss && result.best_valid_loss < result.first_valid_loss);
  assert_true(result.peak_bytes > 0 && result.tokens_per_s > 0);

  o = options("stopped");
  o.progress = on_progress, o.cancelled = on_asked, o.user = &s, o.log = on_message, o.log_user = &s;
  API_FAILS(train(&o, &result, &err), PFX_CANCELLED, "stopped after step 5 of 12; the state is saved");
  assert_false(result.finished);
  assert_int_equal(result.step, 5); /* filled on failure too */
  assert_int_equal(s.steps, 5);
  assert_int_equal(s.validations, 2); /* before the first step, and after the fourth */
  assert_true(s.messages > 0);        /* the buffer plan */
  s.stop_at = 0;
  pfx_train_options changes = pfx_train_options_init();
  changes.steps = 0, changes.epochs = 0;
  changes.progress = on_progress, changes.user = &s;
  API_OK(pfx_trainer_resume(model, tokenizer, o.out, &changes, &t, &err));
  API_OK(pfx_trainer_run_wait(t, &result, &err));
  pfx_trainer_destroy(t);
  assert_true(result.finished);
  assert_int_equal(s.steps, STEPS);
  same_adapter(in_root("whole"), in_root("stopped"));

  pfx_train_options repeated;
  char *path = NULL, *device = NULL, *recorded = NULL;
  void *memory = NULL;
  pfx_dtype dtype;
  int32_t threads;
  API_OK(pfx_run_read(o.out, &path, &device, &dtype, &threads, &err));
  assert_string_equal(path, root);
  assert_string_equal(device, "cpu");
  pfx_free(device);
  assert_int_equal(dtype, PFX_DTYPE_F32);
  assert_int_equal(threads, 1);
  API_OK(pfx_run_options(in_root("whole/run.json"), &repeated, &recorded, &memory, &err));
  assert_string_equal(recorded, path);
  repeated.out = in_root("repeated");
  API_OK(train(&repeated, &result, &err));
  same_adapter(in_root("whole"), in_root("repeated"));
  pfx_free(memory);
  pfx_free(path);
}

static void keep(void *user, uint64_t row, const char *bytes, size_t count, pfx_finish finish) {
  (void)finish;
  px_buf *text = (px_buf *)user + row;
  px_buf_append(text, bytes, count);
}

/* Every prompt with the frozen model and with the adapter, in one batch. */
static void generate(const pfx_adapter *adapter, px_buf texts[2 * PROMPTS]) {
  static const char *const prompts[PROMPTS] = {"ab:", "c", "The quick brown fox", "zz", "name[x]"};
  pfx_error err = {0};
  pfx_generator *g = NULL;
  int32_t id = -1;
  API_OK(pfx_generator_create(model, tokenizer, NULL, &g, &err));
  API_OK(pfx_generator_add_adapter(g, adapter, &id, &err));
  for (int i = 0; i < 2 * PROMPTS; i++) {
    pfx_request r = pfx_request_init();
    r.prompt = prompts[i / 2];
    r.adapter = i % 2 ? id : -1;
    r.row = (uint64_t)i;
    r.max_tokens = 24;
    r.temperature = i == 7 ? 1 : 0;
    r.text = keep;
    r.user = texts;
    API_OK(pfx_generator_add(g, &r, &err));
  }
  API_OK(pfx_generator_run_wait(g, NULL, NULL, &err));
  pfx_generator_stats stats;
  pfx_generator_stats_get(g, &stats);
  assert_true(stats.new_tokens > 0 && stats.new_tokens <= 2 * PROMPTS * 24);
  pfx_generator_destroy(g);
}

static bool always(void *user) { return ++*(int *)user > 3; }

static void generation_can_be_stopped(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_generator *g = NULL;
  px_buf text = {0};
  int asked = 0;
  pfx_request r = pfx_request_init();
  r.prompt = "ab:";
  r.text = keep;
  r.user = &text;
  API_OK(pfx_generator_create(model, tokenizer, NULL, &g, &err));
  API_OK(pfx_generator_add(g, &r, &err));
  API_FAILS(pfx_generator_run_wait(g, always, &asked, &err), PFX_CANCELLED, "generation was stopped");
  assert_true(text.len < 20);
  r.adapter = 0;
  API_FAILS(pfx_generator_add(g, &r, &err), PFX_INVALID, "adapter number 0 is not known");
  pfx_generator_destroy(g);
  px_buf_free(&text);
}

/* What one thread does with the shared handles; results are compared by the main thread. */
typedef struct work {
  int number;
  const pfx_adapter *adapter;
  px_buf texts[2 * PROMPTS];
  pfx_model_info info;
  pfx_eval_result measured;
  pfx_status status[4];
  pfx_error err;
} work;

static void *work_on(void *user) {
  work *w = user;
  char name[32];
  pfx_train_result result;
  pfx_eval_options e = pfx_eval_options_init();
  int32_t *ids = NULL;
  size_t count = 0;
  snprintf(name, sizeof name, "thread%d", w->number);
  pfx_train_options o = options(name);
  pfx_model_info_get(model, &w->info);
  w->status[0] = pfx_model_verify_wait(model, &w->err);
  w->status[1] = train(&o, &result, &w->err);
  generate(w->adapter, w->texts);
  e.data = in_root("rows.jsonl");
  w->status[2] = pfx_eval_wait(model, tokenizer, w->adapter, &e, &w->measured, &w->err);
  w->status[3] = pfx_tokenizer_encode(tokenizer, "shared", 6, &ids, &count, &w->err);
  pfx_free(ids);
  return NULL;
}

static void threads_share_what_is_immutable(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_adapter *adapter = NULL;
  pthread_t threads[THREADS];
  static work works[THREADS + 1]; /* the last one alone, before the others */
  pfx_train_result result;
  pfx_train_options o = options("start");
  API_OK(train(&o, &result, &err));
  API_OK(pfx_adapter_open(in_root("start"), &adapter, &err));
  for (int i = 0; i <= THREADS; i++) works[i] = (work){.number = i, .adapter = adapter};
  work_on(&works[THREADS]);
  for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&threads[i], NULL, work_on, &works[i]), 0);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i <= THREADS; i++) {
    work *w = &works[i], *alone = &works[THREADS];
    for (int k = 0; k < 4; k++)
      if (w->status[k] != PFX_OK) fail_msg("thread %d, call %d: %s", i, k, w->err.message);
    assert_true(w->info.parameters > 0 && w->info.parameters == alone->info.parameters);
    assert_true(w->measured.loss == alone->measured.loss);
    for (int k = 0; k < 2 * PROMPTS; k++) {
      assert_int_equal(w->texts[k].len, alone->texts[k].len);
      assert_memory_equal(w->texts[k].data, alone->texts[k].data, w->texts[k].len);
    }
    char name[32];
    snprintf(name, sizeof name, "thread%d", i);
    same_adapter(in_root(name), in_root("start"));
  }
  assert_true(works[0].texts[0].len != works[0].texts[1].len ||
              memcmp(works[0].texts[0].data, works[0].texts[1].data, works[0].texts[0].len) != 0); /* the prefix acts */
  for (int i = 0; i <= THREADS; i++)
    for (int k = 0; k < 2 * PROMPTS; k++) px_buf_free(&works[i].texts[k]);
  pfx_adapter_close(adapter);
}

static void models_stand_side_by_side(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_model *other = NULL;
  pfx_adapter *adapter = NULL;
  pfx_eval_result before, with, after;
  pfx_eval_options e = pfx_eval_options_init();
  pfx_train_result result;
  pfx_train_options o = options("side");
  e.data = in_root("rows.jsonl");
  API_OK(pfx_eval_wait(model, tokenizer, NULL, &e, &before, &err));
  pfx_model_options bf16 = pfx_model_options_init();
  bf16.dtype = PFX_DTYPE_BF16;
  API_OK(pfx_model_open(root, &bf16, &other, &err));
  API_OK(pfx_eval_wait(other, tokenizer, NULL, &e, &with, &err));
  assert_true(with.loss != before.loss && fabs(with.loss - before.loss) < 0.02 * before.loss);
  API_OK(train(&o, &result, &err));
  API_OK(pfx_adapter_open(in_root("side"), &adapter, &err));
  API_OK(pfx_eval_wait(other, tokenizer, adapter, &e, &with, &err)); /* trained on one, used on the other */
  assert_true(with.loss < before.loss);
  pfx_model_close(other);
  API_OK(pfx_eval_wait(model, tokenizer, NULL, &e, &after, &err));
  assert_true(after.loss == before.loss);
  assert_int_equal(after.tokens, before.tokens);
  pfx_adapter_close(adapter);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_run_reports_stops_and_goes_on),
      cmocka_unit_test(generation_can_be_stopped),
      cmocka_unit_test(threads_share_what_is_immutable),
      cmocka_unit_test(models_stand_side_by_side),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
