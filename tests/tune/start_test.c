/* SPDX-License-Identifier: MIT
 * Where a prefix starts: at exactly the keys and values of a text, of the first rows or of another adapter, also below
 * a network, whose last layer then starts at zero; and what is said where lengths do not agree. */
#include "helpers/test.h"

#include <ftw.h>
#include <unistd.h>

#include "core/file.h"
#include "helpers/byte_tokenizer.h"
#include "helpers/pass.h"
#include "helpers/tiny_model.h"
#include "helpers/used_prefix.h"
#include "tune/adapter.h"
#include "tune/prefix.h"

static const char text[] = "Keys, values.";
enum { TEXT_BYTES = sizeof text - 1, HIDDEN = 11 };

static char root[] = "/tmp/pfx_start_XXXXXX", begin_folder[64];
static px_model *model;
static px_backend *be;
static px_tokenizer *plain, *with_begin; /* without and with a begin token */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
  (void)st, (void)type, (void)walk;
  return remove(path);
}

static int set_up(void **state) {
  (void)state;
  px_error err = {0};
  assert_non_null(mkdtemp(root));
  snprintf(begin_folder, sizeof begin_folder, "%s/begin", root);
  ASSERT_OK(px_dir_make(begin_folder, &err));
  tiny_model_write(root, (tiny_model){3, 40, 6, 2, 8, 56, BYTE_VOCAB, 64}, 21);
  ASSERT_OK(px_model_open(root, &(px_model_options){.dtype = PX_F32, .threads = 2}, &model, &err));
  ASSERT_OK(px_backend_open_cpu(&(px_backend_options){.threads = 2}, &be, &err));
  ASSERT_OK(byte_tokenizer_open(root, (byte_tokenizer_options){0}, &plain, &err));
  ASSERT_OK(byte_tokenizer_open(begin_folder, (byte_tokenizer_options){.add_bos = true}, &with_begin, &err));
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  px_tokenizer_close(plain);
  px_tokenizer_close(with_begin);
  px_backend_close(be);
  px_model_close(model);
  return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static int64_t floats_of(int32_t tokens) {
  const px_config *c = px_model_config(model);
  return (int64_t)tokens * 2 * c->layers * c->kv_heads * c->head_dim;
}

/* The part that --tune and --init name, at its start. */
static px_tune *open_tune(const char *tune, const char *init, int reparam, const px_tokenizer *tok, uint64_t seed) {
  px_error err = {0};
  px_tune_spec spec;
  px_tune *t;
  ASSERT_OK(px_tune_parse(tune, init, reparam, &spec, &err));
  ASSERT_OK(px_tune_open(model, be, tok, &spec, seed, &t, &err));
  px_tune_spec_free(&spec);
  return t;
}

static px_status try_tune(const char *tune, const char *init, const px_tokenizer *tok, px_error *err) {
  px_tune_spec spec;
  px_tune *t = NULL;
  PX_TRY(px_tune_parse(tune, init, 0, &spec, err));
  px_status status = px_tune_open(model, be, tok, &spec, 0, &t, err);
  px_tune_spec_free(&spec);
  px_tune_close(t);
  return status;
}

static float *export(px_tune *t) {
  px_error err = {0};
  float *values = calloc((size_t)floats_of(t->tokens), sizeof *values);
  ASSERT_OK(px_tune_export(t, values, &err));
  return values;
}

static bool same(const float *a, const float *b, int32_t tokens) {
  return memcmp(a, b, (size_t)floats_of(tokens) * sizeof *a) == 0;
}

/* The keys and values of ids, in PEFT's order: token, layer, key before value. */
static float *values_of(const int32_t *ids, int32_t count) {
  px_error err = {0};
  const px_config *c = px_model_config(model);
  int64_t width = (int64_t)c->kv_heads * c->head_dim;
  float *by_layer = calloc((size_t)floats_of(count), sizeof *by_layer),
        *out = calloc((size_t)floats_of(count), sizeof *out);
  ASSERT_OK(px_prefix_of_text(model, be, ids, count, by_layer, &err));
  for (int32_t t = 0; t < count; t++)
    for (int l = 0; l < c->layers; l++)
      for (int value = 0; value < 2; value++)
        memcpy(out + ((int64_t)(t * c->layers + l) * 2 + value) * width,
               by_layer + ((int64_t)(2 * l + value) * count + t) * width, (size_t)width * sizeof *out);
  free(by_layer);
  return out;
}

/* The same of [begin] text. */
static float *text_values(bool begin) {
  int32_t ids[TEXT_BYTES + 1], count = 0;
  if (begin) ids[count++] = BYTE_BOS;
  for (int i = 0; i < TEXT_BYTES; i++) ids[count++] = (unsigned char)text[i];
  return values_of(ids, count);
}

/* What attention reads after px_tune_begin_step, against the values in PEFT's order. */
static void expect_read(px_tune *t, const float *values, bool training) {
  px_error err = {0};
  px_prefix prefix;
  static const int64_t first = 0;
  px_tune_begin_step(t, 0, training ? &first : NULL);
  ASSERT_OK(px_backend_status(be, &err));
  ASSERT_OK(px_prefix_open(t->config, be, PX_F32, values, t->tokens, &prefix, &err));
  size_t bytes = (size_t)(t->tokens * t->config->kv_heads * t->config->head_dim) * sizeof(float);
  float *got = malloc(bytes), *want = malloc(bytes);
  for (int l = 0; l < t->config->layers; l++)
    for (int value = 0; value < 2; value++) {
      px_kv_segment segment;
      px_backend_read(be, &segment, &t->segments[l], sizeof segment);
      px_backend_read(be, got, value ? segment.v : segment.k, bytes);
      px_backend_read(be, want, value ? prefix.segments[l].v : prefix.segments[l].k, bytes);
      assert_memory_equal(got, want, bytes);
    }
  free(got);
  free(want);
  px_prefix_close(&prefix, be);
}

static void a_text_starts_at_its_keys_and_values(void **state) {
  (void)state;
  const struct {
    const px_tokenizer *tok;
    bool begin;
  } cases[] = {{plain, false}, {with_begin, true}};
  for (int i = 0; i < 2; i++) {
    float *want = text_values(cases[i].begin);
    px_tune *t = open_tune("prefix", "text:Keys, values.", 0, cases[i].tok, 1);
    assert_int_equal(t->tokens, TEXT_BYTES + cases[i].begin);
    float *got = export(t);
    assert_true(same(got, want, t->tokens));
    expect_read(t, want, true);
    px_tune_close(t);
    free(got);
    free(want);
  }
}

static void a_text_in_a_file_is_the_same_text(void **state) {
  (void)state;
  px_error err = {0};
  char path[128], init[160], tune[160];
  snprintf(path, sizeof path, "%s/start.txt", root);
  snprintf(init, sizeof init, "text-file:%s", path);
  snprintf(tune, sizeof tune, "prefix:%d:init=@%s", TEXT_BYTES, path);
  ASSERT_OK(px_file_write(path, text, TEXT_BYTES, &err));
  float *want = text_values(false);
  px_tune *forms[] = {open_tune("prefix", init, 0, plain, 1), open_tune(tune, NULL, 0, plain, 1)};
  for (int i = 0; i < 2; i++) {
    float *got = export(forms[i]);
    assert_true(same(got, want, TEXT_BYTES));
    free(got);
    px_tune_close(forms[i]);
  }
  free(want);
}

static const px_param *param(const px_tune *t, const char *name) {
  for (int i = 0; i < t->param_count; i++)
    if (strcmp(t->params[i].name, name) == 0) return &t->params[i];
  fail_msg("no trained tensor is called %s", name);
  return NULL;
}

static bool all_zero(const px_param *p) {
  float *host = malloc((size_t)p->count * sizeof *host);
  px_backend_read(be, host, p->value, (size_t)p->count * sizeof *host);
  bool zero = true;
  for (int64_t i = 0; i < p->count; i++) zero = zero && host[i] == 0;
  free(host);
  return zero;
}

/* Below a network the start is a fixed offset, whatever the seed: the network's last layer is zero, the others are not,
 * so that it can learn; a bias of one then moves every value by one and leaves the offset alone. */
static void below_a_network_the_start_is_a_fixed_offset(void **state) {
  (void)state;
  float *want = text_values(true);
  for (uint64_t seed = 1; seed <= 2; seed++) {
    px_tune *t = open_tune("prefix:14", "text:Keys, values.", HIDDEN, with_begin, seed);
    float *got = export(t);
    assert_true(same(got, want, t->tokens));
    expect_read(t, want, true);
    assert_true(all_zero(param(t, "reparam.linear2.weight")) && all_zero(param(t, "reparam.linear2.bias")));
    assert_false(all_zero(param(t, "reparam.embedding")) || all_zero(param(t, "reparam.linear1.weight")));
    const px_param *bias = param(t, "reparam.linear2.bias");
    float *ones = malloc((size_t)bias->count * sizeof *ones);
    for (int64_t i = 0; i < bias->count; i++) ones[i] = 1;
    px_backend_write(be, bias->value, ones, (size_t)bias->count * sizeof *ones);
    float *moved = export(t), *again = export(t);
    for (int64_t i = 0; i < floats_of(t->tokens); i++) assert_true(moved[i] == want[i] + 1.0f);
    assert_true(same(moved, again, t->tokens));
    free(ones);
    free(moved);
    free(again);
    free(got);
    px_tune_close(t);
  }
  free(want);
}

static void a_length_must_be_the_text_s(void **state) {
  (void)state;
  px_error err;
  ASSERT_FAILS(
      try_tune("prefix:20", "text:Keys, values.", plain, &err), PX_INVALID,
      "prefix:20 does not fit its initial text, which has 13 tokens: write prefix:13, or leave the number out");
  ASSERT_FAILS(
      try_tune("prefix:13", "text:Keys, values.", with_begin, &err), PX_INVALID,
      "prefix:13 does not fit its initial text, which has 14 tokens: write prefix:14, or leave the number out");
  ASSERT_FAILS(try_tune("prefix", "text:", plain, &err), PX_INVALID, "the initial text is empty");
  ASSERT_FAILS(try_tune("prefix", "text:x", NULL, &err), PX_INVALID,
               "--init text needs the model's tokenizer, and the model has none");
  ASSERT_FAILS(
      try_tune("prefix", "text:0123456789012345678901234567890123456789012345678901234567890123456", plain, &err),
      PX_INVALID, "the initial text has 67 tokens, the model's context is 64");
}

/* The first tokens of the rows, and all of them again where they are fewer; the default. */
static void the_rows_are_a_start(void **state) {
  (void)state;
  px_error err = {0};
  static const int32_t ids[] = {7, 250, 31, 99, 4}, again[] = {7, 250, 31, 99, 4, 7, 250, 31, 99, 4, 7, 250};
  static const struct {
    const char *tune;
    int32_t tokens;
    int reparam;
  } cases[] = {{"prefix:3", 3, 0}, {"prefix:5", 5, 0}, {"prefix:12", 12, 0}, {"prefix:12", 12, HIDDEN}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    px_tune_spec spec;
    px_tune *t = NULL;
    ASSERT_OK(px_tune_parse(cases[i].tune, i % 2 ? "data" : NULL, cases[i].reparam, &spec, &err));
    ASSERT_FAILS(px_tune_open(model, be, NULL, &spec, 0, &t, &err), PX_INVALID, "--init data needs rows and prefix:N");
    spec.data_ids = ids;
    spec.data_tokens = 5;
    ASSERT_OK(px_tune_open(model, be, NULL, &spec, 0, &t, &err));
    px_tune_spec_free(&spec);
    px_tune_begin_step(t, 0, NULL);
    float *want = values_of(again, cases[i].tokens), *got = export(t);
    assert_true(same(want, got, cases[i].tokens));
    expect_read(t, want, false);
    free(want);
    free(got);
    px_tune_close(t);
  }
}

/* A tokenizer of another model: its begin token, 256, is no token of this one. */
static void a_token_outside_the_vocabulary_is_refused(void **state) {
  (void)state;
  px_error err = {0};
  px_model *small = NULL;
  px_tune *t = NULL;
  char folder[64];
  snprintf(folder, sizeof folder, "%s/small", root);
  ASSERT_OK(px_dir_make(folder, &err));
  tiny_model_write(folder, (tiny_model){1, 16, 2, 1, 8, 16, BYTE_BOS, 64}, 1);
  ASSERT_OK(px_model_open(folder, &(px_model_options){.dtype = PX_F32, .threads = 1}, &small, &err));
  px_tune_spec spec = {.parts = {{.init = PX_INIT_TEXT, .init_value = (char[]){"x"}}}, .part_count = 1};
  ASSERT_FAILS(px_tune_open(small, be, with_begin, &spec, 0, &t, &err), PX_INVALID,
               "the initial text has a token with id 256, outside the model's vocabulary of 256 tokens");
  ASSERT_OK(px_tune_open(small, be, plain, &spec, 0, &t, &err));
  px_tune_close(t);
  px_model_close(small);
}

/* A prefix as PEFT's folder. */
static px_status write_prefix(const char *path, const px_model *of, const char *base_name, const float *values, int32_t tokens,
                           const px_meta *metadata, size_t count, px_error *err) {
  const px_config *c = px_model_config(of);
  px_adapter_config config = {.peft_type = "PREFIX_TUNING", .base_model = base_name, .task_type = "CAUSAL_LM", .virtual_tokens = tokens,
                              .layers = c->layers, .heads = c->kv_heads, .token_dim = (int64_t)c->kv_heads * c->head_dim,
                              .hidden_size = (int64_t)c->kv_heads * c->head_dim};
  const px_part_tensor tensor = {.module = "", .role = "prompt_embeddings", .dims = 2,
                                 .shape = {tokens, 2 * config.layers * config.token_dim}, .values = values};
  const px_adapter_part part = {.kind = PX_PART_PREFIX, .config = config, .tensors = &tensor, .tensor_count = 1};
  return px_adapter_part_write(path, &part, metadata, count, err);
}

static void write_adapter(const char *path, const float *values, int32_t tokens, bool fingerprint) {
  px_error err = {0};
  px_arena arena = {0};
  px_meta *meta = NULL;
  size_t count = 0;
  if (fingerprint) ASSERT_OK(px_adapter_metadata(model, plain, "none", "{\"step\": 7}", &arena, &meta, &count, &err));
  ASSERT_OK(write_prefix(path, model, "a/model", values, tokens, meta, count, &err));
  px_arena_free(&arena);
}

static void an_adapter_starts_where_it_ended(void **state) {
  (void)state;
  px_error err = {0};
  char path[128], init[160], message[400];
  snprintf(path, sizeof path, "%s/adapter", root);
  snprintf(init, sizeof init, "adapter:%s", path);
  px_tune *first = open_tune("prefix:5", "random", 0, NULL, 3);
  float *want = export(first);
  write_adapter(path, want, 5, true);
  for (int reparam = 0; reparam <= HIDDEN; reparam += HIDDEN) {
    px_tune *t = open_tune("prefix", init, reparam, NULL, 4);
    assert_int_equal(t->tokens, 5);
    float *got = export(t);
    assert_true(same(got, want, 5));
    expect_read(t, want, true);
    free(got);
    px_tune_close(t);
  }
  snprintf(message, sizeof message, "prefix:6 does not fit its initial adapter %s, which has 5 virtual tokens", path);
  ASSERT_FAILS(try_tune("prefix:6", init, NULL, &err), PX_INVALID, message);
  free(want);
  px_tune_close(first);
}

/* The bytes of both files of an adapter. */
static px_buf bytes_of(const char *path) {
  px_error err = {0};
  px_buf all = {0};
  char file[200];
  snprintf(file, sizeof file, "%s/adapter_model.safetensors", path);
  ASSERT_OK(px_file_read(file, 1 << 24, &all, &err));
  snprintf(file, sizeof file, "%s/adapter_config.json", path);
  ASSERT_OK(px_file_read(file, 1 << 24, &all, &err));
  return all;
}

/* Every bit of a trained prefix survives, subnormal numbers and the sign of zero too, and a folder that is read and
 * written again has the same bytes. */
static void an_adapter_survives_reading_and_writing(void **state) {
  (void)state;
  px_error err = {0};
  char paths[2][128];
  px_tune *t = open_tune("prefix:4", "random", HIDDEN, NULL, 8);
  float *values = export(t);
  values[0] = -0.0f, values[1] = 1e-42f, values[2] = 3.4e38f, values[3] = 0.1f;
  for (int fingerprint = 0; fingerprint < 2; fingerprint++) {
    px_adapter *a = NULL;
    for (int i = 0; i < 2; i++) snprintf(paths[i], sizeof paths[i], "%s/round_%d_%d", root, fingerprint, i);
    write_adapter(paths[0], values, 4, fingerprint);
    ASSERT_OK(px_adapter_open(paths[0], &a, &err));
    assert_int_equal(a->tokens, 4);
    assert_true(same(a->values, values, 4));
    assert_true((a->parts[0].metadata_count > 0) == fingerprint);
    ASSERT_OK(write_prefix(paths[1], model, a->parts[0].config.base_model, a->values, a->tokens, a->parts[0].metadata,
                               a->parts[0].metadata_count, &err));
    px_adapter_close(a);
    px_buf x = bytes_of(paths[0]), y = bytes_of(paths[1]);
    assert_int_equal(x.len, y.len);
    assert_memory_equal(x.data, y.data, x.len);
    px_buf_free(&x);
    px_buf_free(&y);
  }
  free(values);
  px_tune_close(t);
}

static void zero_is_zero_and_random_is_the_seed_s(void **state) {
  (void)state;
  px_tune *parts[] = {open_tune("prefix:6", "zero", 0, NULL, 1), open_tune("prefix:6", "random", 0, NULL, 1),
                      open_tune("prefix:6", "random", 0, NULL, 1), open_tune("prefix:6", "random", 0, NULL, 2)};
  float *values[4];
  for (int i = 0; i < 4; i++) values[i] = export(parts[i]);
  for (int64_t i = 0; i < floats_of(6); i++) assert_true(values[0][i] == 0);
  assert_true(same(values[1], values[2], 6));
  assert_false(same(values[1], values[3], 6));
  for (int i = 0; i < 4; i++) {
    free(values[i]);
    px_tune_close(parts[i]);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_text_starts_at_its_keys_and_values),
      cmocka_unit_test(a_text_in_a_file_is_the_same_text),
      cmocka_unit_test(below_a_network_the_start_is_a_fixed_offset),
      cmocka_unit_test(a_length_must_be_the_text_s),
      cmocka_unit_test(the_rows_are_a_start),
      cmocka_unit_test(a_token_outside_the_vocabulary_is_refused),
      cmocka_unit_test(an_adapter_starts_where_it_ended),
      cmocka_unit_test(an_adapter_survives_reading_and_writing),
      cmocka_unit_test(zero_is_zero_and_random_is_the_seed_s),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
