/* SPDX-License-Identifier: MIT
 * Adapters of every kind on one model in one generator: what a row says is what it says alone, and what a forward pass over its
 * whole text says; trained weights run beside the others without a mixture. */
#include "helpers/test.h"

#include <math.h>

#include "generate/generator.h"
#include "helpers/golden.h"
#include "helpers/pass.h"

static const char *const folders[] = {"prompt", "lora", "top", "ia3", "hybrid", "norm", "lora_all", "prefix_layers", "cartridge"};
enum { FOLDERS = sizeof folders / sizeof *folders, NEW = 6, PROMPT = 5 };

typedef struct made {
  int32_t ids[FOLDERS + 1][NEW];
  int count[FOLDERS + 1];
} made;

static void take_id(void *user, uint64_t row, int32_t id) {
  made *m = user;
  m->ids[row][m->count[row]++] = id;
}

static void prompt_of(int row, int32_t ids[PROMPT]) {
  for (int i = 0; i < PROMPT; i++) ids[i] = 3 + (row * 7 + i * 5) % 30;
}

static void add(px_generator *g, int row, int32_t adapter, made *m) {
  px_error err = {0};
  int32_t ids[PROMPT];
  prompt_of(row, ids);
  px_request r = {.ids = ids, .count = PROMPT, .adapter = adapter, .row = (uint64_t)row, .sampling = {.max_tokens = NEW}, .token = take_id, .user = m};
  ASSERT_OK(px_generator_add(g, &r, &err));
}

/* The greedy token that a plain pass over the text so far prefers, and by how much. */
static void expect_greedy(const px_model *model, const px_adapter *adapter, int row, const int32_t *ids, const char *what) {
  px_error err = {0};
  px_tune *used = NULL;
  if (adapter) ASSERT_OK(px_tune_open_adapter(model, model->be, adapter, false, &used, &err));
  int32_t length = PROMPT + NEW - 1, vocab = px_model_config(model)->vocab;
  pass_rows rows = pass_rows_make(model, 1, &length, 1);
  prompt_of(row, rows.ids);
  for (int i = 0; i < NEW - 1; i++) rows.ids[PROMPT + i] = ids[i];
  rows.adapter[0] = used ? 0 : -1;
  rows.first[0] = used ? used->tokens : 0;
  float *logits = pass_logits(model, model->be, &rows, used ? &used->hooks : NULL);
  for (int t = 0; t < NEW; t++) {
    const float *row_logits = logits + (PROMPT - 1 + t) * vocab;
    int32_t best = 0;
    for (int32_t v = 1; v < vocab; v++)
      if (row_logits[v] > row_logits[best]) best = v;
    if (best != ids[t] && !(row_logits[best] - row_logits[ids[t]] < 1e-4f * fabsf(row_logits[best])))
      fail_msg("%s: token %d is %d, a pass over the text prefers %d", what, t, ids[t], best);
  }
  free(logits);
  pass_rows_free(&rows);
  px_tune_close(used);
}

static void one_family(const char *family) {
  px_error err = {0};
  char place[64], path[512], what[96];
  px_model *model = NULL;
  px_adapter *adapters[FOLDERS];
  px_generator *g = NULL;
  made together = {0};
  snprintf(place, sizeof place, "parts/%s", family);
  ASSERT_OK(px_model_open(golden_path(place, "", path), &(px_model_options){.dtype = PX_F32, .threads = 1}, &model, &err));
  ASSERT_OK(px_generator_open(model, NULL, &(px_generator_options){.max_rows = 4}, &g, &err));
  for (int a = 0; a < FOLDERS; a++) {
    int32_t id;
    ASSERT_OK(px_adapter_open(golden_path(place, folders[a], path), &adapters[a], &err));
    ASSERT_OK(px_generator_add_adapter(g, adapters[a], &id, &err));
    assert_int_equal(id, a);
  }
  for (int a = 0; a <= FOLDERS; a++) add(g, a, a == FOLDERS ? -1 : a, &together);
  ASSERT_OK(px_generator_run(g, NULL, NULL, &err));
  px_generator_close(g);
  for (int a = 0; a <= FOLDERS; a++) {
    made alone = {0};
    int32_t id = -1;
    ASSERT_OK(px_generator_open(model, NULL, &(px_generator_options){.max_rows = 1}, &g, &err));
    if (a < FOLDERS) ASSERT_OK(px_generator_add_adapter(g, adapters[a], &id, &err));
    add(g, a, id, &alone);
    ASSERT_OK(px_generator_run(g, NULL, NULL, &err));
    px_generator_close(g);
    snprintf(what, sizeof what, "%s %s", family, a < FOLDERS ? folders[a] : "frozen");
    assert_int_equal(together.count[a], NEW);
    for (int t = 0; t < NEW; t++)
      if (together.ids[a][t] != alone.ids[a][t]) fail_msg("%s: token %d is %d in the batch, %d alone", what, t, together.ids[a][t], alone.ids[a][t]);
    expect_greedy(model, a < FOLDERS ? adapters[a] : NULL, a, alone.ids[a], what);
  }
  for (int a = 0; a < FOLDERS; a++) px_adapter_close(adapters[a]);
  px_model_close(model);
}

static void a_row_says_the_same_in_any_company(void **state) {
  (void)state;
  static const char *const families[] = {"gpt2", "llama", "mistral", "qwen2", "qwen3"};
  for (size_t i = 0; i < sizeof families / sizeof *families; i++) one_family(families[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(a_row_says_the_same_in_any_company)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
