/* SPDX-License-Identifier: MIT
 * The test that needs no peer: a prefix made of the keys and values of a real leading text acts as that text. It pins
 * rotary embedding, layout, mask, grouped heads, adapter ids and positions at once, for every family. */
#include "helpers/test.h"

#include <stdlib.h>
#include <unistd.h>

#include "helpers/golden.h"
#include "helpers/pass.h"
#include "helpers/tiny_model.h"
#include "helpers/tolerance.h"
#include "tune/prefix.h"

static const char *const families[] = {"gpt2",       "gpt2_wide",    "llama_tied",   "llama3_new",
                                       "llama3_old", "llama_linear", "llama_bf16",   "llama_f16",
                                       "mistral",    "qwen2",        "qwen2_window", "qwen3"};

typedef struct bench {
  px_model *model;
  px_backend *be;
} bench;

static bench open_bench(const char *path) {
  px_error err = {0};
  bench b;
  ASSERT_OK(px_model_open(path, &(px_model_options){.dtype = PX_F32, .threads = 2}, &b.model, &err));
  ASSERT_OK(px_backend_open_cpu(&(px_backend_options){.threads = 2}, &b.be, &err));
  return b;
}

static void close_bench(bench *b) {
  px_backend_close(b->be);
  px_model_close(b->model);
}

/* Row r is text r and then its rest. Prefix r holds the keys and values of text r; the rests go in one batch, and
 * their logits, up to position `until` of the whole, are those of the whole rows. A text of length 0 is no prefix at
 * all: adapter -1. Returns the largest difference of the logits behind `until`, relative to the largest. */
static double compare(bench *b, const char *name, int rows, const int32_t *texts, const int32_t *rests, int until) {
  px_error err = {0};
  int32_t lens[PASS_ADAPTERS], wholes[PASS_ADAPTERS], vocab = px_model_config(b->model)->vocab;
  for (int r = 0; r < rows; r++) wholes[r] = (lens[r] = texts[r]) + rests[r];
  pass_rows whole = pass_rows_make(b->model, rows, wholes, 5), rest = pass_rows_make(b->model, rows, rests, 0);
  pass_prefixes prefixes;
  pass_prefixes_open(b->model, b->be, rows, lens, 1, &prefixes);
  for (int r = 0; r < rows; r++) {
    memcpy(rest.ids + rest.offsets[r], whole.ids + whole.offsets[r] + texts[r], (size_t)rests[r] * 4);
    rest.first[r] = texts[r];
    rest.adapter[r] = texts[r] ? r : -1;
    if (!texts[r]) continue;
    float *values = calloc((size_t)pass_prefix_floats(&prefixes, r), sizeof *values);
    ASSERT_OK(px_prefix_of_text(b->model, b->be, whole.ids + whole.offsets[r], texts[r], values, &err));
    px_backend_write(b->be, prefixes.values[r], values, (size_t)pass_prefix_floats(&prefixes, r) * sizeof *values);
    free(values);
  }
  float *want = pass_logits(b->model, b->be, &whole, NULL), *got = pass_logits(b->model, b->be, &rest, &prefixes.hooks);
  double behind = 0;
  for (int r = 0; r < rows; r++) {
    const float *w = want + (int64_t)(whole.offsets[r] + texts[r]) * vocab, *g = got + (int64_t)rest.offsets[r] * vocab;
    int same = until - texts[r] < rests[r] ? until - texts[r] : rests[r];
    double error = pass_distance(g, w, (int64_t)same * vocab);
    if (!(error <= TOL_F32_PREFIX_TEXT))
      fail_msg("%s: after a text of %d tokens the logits of %d differ by %.3g of the largest", name, texts[r], same,
               error);
    if (same < rests[r]) {
      double far =
          pass_distance(g + (int64_t)same * vocab, w + (int64_t)same * vocab, (int64_t)(rests[r] - same) * vocab);
      if (far > behind) behind = far;
    }
  }
  free(want);
  free(got);
  pass_prefixes_close(&prefixes);
  pass_rows_free(&whole);
  pass_rows_free(&rest);
  return behind;
}

/* Texts and rests of one token among them, and a row without a prefix. */
static void a_prefix_of_a_text_acts_as_the_text(void **state) {
  (void)state;
  static const int32_t texts[] = {5, 1, 0, 17, 9, 12}, rests[] = {7, 12, 9, 1, 2, 11};
  for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
    char path[512];
    bench b = open_bench(golden_path(families[i], "", path));
    compare(&b, families[i], 6, texts, rests, 1 << 20);
    close_bench(&b);
  }
}

/* Under a window a query loses sight of a text and never of a prefix, so they agree exactly as long as the window
 * reaches back to the first token, and must differ behind it. */
static void under_a_window_they_agree_while_it_reaches_the_start(void **state) {
  (void)state;
  static const int32_t texts[] = {6, 20}, rests[] = {40, 30};
  static const struct {
    const char *name;
    int window;
  } cases[] = {{"mistral", 24}, {"qwen2_window", 26}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char path[512];
    bench b = open_bench(golden_path(cases[i].name, "", path));
    double behind = compare(&b, cases[i].name, 2, texts, rests, cases[i].window);
    if (!(behind > 1e-3)) fail_msg("%s: no window was at work (%.3g)", cases[i].name, behind);
    close_bench(&b);
  }
}

static void a_prefix_of_2048_tokens_acts_as_its_text(void **state) {
  (void)state;
  static const int32_t texts[] = {2048, 1}, rests[] = {9, 3};
  char folder[] = "/tmp/pfx_prefix_text_XXXXXX", path[64];
  assert_non_null(mkdtemp(folder));
  tiny_model_write(folder, (tiny_model){2, 48, 6, 2, 8, 64, 60, 4096}, 3);
  bench b = open_bench(folder);
  compare(&b, "a random llama", 2, texts, rests, 1 << 20);
  close_bench(&b);
  snprintf(path, sizeof path, "%s/config.json", folder), unlink(path);
  snprintf(path, sizeof path, "%s/model.safetensors", folder), unlink(path);
  rmdir(folder);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_prefix_of_a_text_acts_as_the_text),
      cmocka_unit_test(under_a_window_they_agree_while_it_reaches_the_start),
      cmocka_unit_test(a_prefix_of_2048_tokens_acts_as_its_text),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
