/* SPDX-License-Identifier: MIT
 * Greedy text equals transformers' and PEFT's for every family, alone and in a batch, bit for bit; the frozen model and
 * adapters share a batch; sampling does not depend on the batch. */
#include "helpers/test.h"

#include "generate/generator.h"
#include "helpers/each_device.h"
#include "helpers/golden.h"

enum { PROMPTS = 3, NEW = 12, MOST = 64 };

typedef struct made {
  int32_t ids[MOST][NEW + 4];
  int count[MOST];
  px_finish finish[MOST];
} made;

static void take_id(void *user, uint64_t row, int32_t id) {
  made *m = user;
  m->ids[row][m->count[row]++] = id;
}

static void take_text(void *user, uint64_t row, const char *bytes, size_t count, px_finish finish) {
  (void)bytes, (void)count;
  made *m = user;
  m->finish[row] = finish;
}

static const int32_t *ints(const px_tensor_list *list, const char *name) {
  const px_tensor_view *t = px_tensor_find(list, name);
  assert_non_null(t);
  assert_int_equal(t->dtype, PX_I32);
  return t->data;
}

static px_request request_of(const px_tensor_list *golden, int prompt, uint64_t row, int32_t adapter, made *m) {
  const int32_t *offsets = ints(golden, "greedy.offsets");
  return (px_request){.ids = ints(golden, "greedy.prompts") + offsets[prompt],
                      .count = offsets[prompt + 1] - offsets[prompt],
                      .adapter = adapter,
                      .row = row,
                      .sampling = {.max_tokens = NEW},
                      .text = take_text,
                      .token = take_id,
                      .user = m};
}

static void greedy_equals_the_golden_text(void **state) {
  (void)state;
  static const char *const cases[] = {"gpt2",       "gpt2_wide",    "llama_tied",   "llama3_new",
                                      "llama3_old", "llama_linear", "llama_bf16",   "llama_f16",
                                      "mistral",    "qwen2",        "qwen2_window", "qwen3"};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    px_error err = {0};
    char path[512];
    px_model *model = NULL;
    px_adapter *adapter = NULL;
    px_generator *g = NULL;
    px_tensor_list golden;
    made together = {0};
    int32_t id;
    ASSERT_OK(px_model_open(golden_path(cases[i], "", path), &(px_model_options){.device = device, .dtype = PX_F32},
                            &model, &err));
    ASSERT_OK(px_safetensors_open(golden_path(cases[i], "golden.safetensors", path), &golden, NULL, NULL, &err));
    ASSERT_OK(px_adapter_open(golden_path(cases[i], "adapter", path), &adapter, &err));
    ASSERT_OK(px_generator_open(model, NULL, &(px_generator_options){.max_rows = 4}, &g, &err));
    ASSERT_OK(px_generator_add_adapter(g, adapter, &id, &err));
    for (int p = 0; p < 2 * PROMPTS; p++) { /* frozen and with the adapter, in one batch */
      px_request r = request_of(&golden, p % PROMPTS, (uint64_t)p, p < PROMPTS ? -1 : id, &together);
      ASSERT_OK(px_generator_add(g, &r, &err));
    }
    ASSERT_OK(px_generator_run(g, NULL, NULL, &err));
    for (int p = 0; p < 2 * PROMPTS; p++) {
      const int32_t *want = ints(&golden, p < PROMPTS ? "greedy.ids" : "adapter.greedy.ids") + (p % PROMPTS) * NEW;
      assert_int_equal(together.count[p], NEW);
      assert_int_equal(together.finish[p], PX_FINISH_LENGTH);
      for (int t = 0; t < NEW; t++)
        if (together.ids[p][t] != want[t])
          fail_msg("%s, prompt %d, token %d: %d, want %d", cases[i], p, t, together.ids[p][t], want[t]);
    }
    px_generator_close(g);
    px_adapter_close(adapter);
    px_tensor_list_close(&golden);
    px_model_close(model);
  }
}

static void sampling_belongs_to_seed_and_row(void **state) {
  (void)state;
  px_error err = {0};
  char path[512];
  px_model *model = NULL;
  px_tensor_list golden;
  made forward = {0}, backward = {0};
  ASSERT_OK(px_model_open(golden_path("qwen2", "", path), &(px_model_options){.device = device, .dtype = PX_F32},
                          &model, &err));
  ASSERT_OK(px_safetensors_open(golden_path("qwen2", "golden.safetensors", path), &golden, NULL, NULL, &err));
  for (int pass = 0; pass < 2; pass++) {
    px_generator *g = NULL;
    ASSERT_OK(px_generator_open(model, NULL, &(px_generator_options){.max_rows = pass ? 16 : 1}, &g, &err));
    for (int k = 0; k < 12; k++) {
      int row = pass ? 11 - k : k;
      px_request r = request_of(&golden, row % PROMPTS, (uint64_t)row, -1, pass ? &backward : &forward);
      r.sampling.temperature = 1.5f;
      r.sampling.top_p = 0.9f;
      r.sampling.seed = 5;
      ASSERT_OK(px_generator_add(g, &r, &err));
    }
    ASSERT_OK(px_generator_run(g, NULL, NULL, &err));
    px_generator_close(g);
  }
  assert_memory_equal(forward.ids, backward.ids, sizeof forward.ids);
  assert_memory_not_equal(forward.ids[0], forward.ids[3], sizeof forward.ids[0]); /* same prompt, another row */
  px_tensor_list_close(&golden);
  px_model_close(model);
}

static void limits_are_said_with_numbers(void **state) {
  (void)state;
  px_error err = {0};
  char path[512];
  px_model *model = NULL;
  px_generator *g = NULL;
  made m = {0};
  int32_t ids[48] = {3};
  ASSERT_OK(px_model_open(golden_path("gpt2", "", path), &(px_model_options){.device = device, .dtype = PX_F32}, &model,
                          &err));
  ASSERT_OK(px_generator_open(model, NULL, &(px_generator_options){0}, &g, &err));
  px_request r = {.ids = ids,
                  .count = 48,
                  .adapter = -1,
                  .sampling = {.max_tokens = NEW},
                  .text = take_text,
                  .token = take_id,
                  .user = &m};
  ASSERT_FAILS(px_generator_add(g, &r, &err), PX_INVALID,
               "a prompt of 48 tokens leaves no room in the model's context of 48 (0 of it taken by the prefix)");
  r.count = 45; /* three tokens, then the context is full */
  ASSERT_OK(px_generator_add(g, &r, &err));
  ASSERT_OK(px_generator_run(g, NULL, NULL, &err));
  assert_int_equal(m.count[0], 3);
  assert_int_equal(m.finish[0], PX_FINISH_CONTEXT);
  r.count = 0;
  assert_int_equal(px_generator_add(g, &r, &err), PX_INVALID);
  ids[0] = 97;
  r.count = 1;
  ASSERT_FAILS(px_generator_add(g, &r, &err), PX_INVALID, "token id 97 is outside the model's vocabulary of 97");
  px_generator_close(g);
  px_model_close(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(greedy_equals_the_golden_text),
      cmocka_unit_test(sampling_belongs_to_seed_and_row),
      cmocka_unit_test(limits_are_said_with_numbers),
  };
  RETURN_FROM_EACH_DEVICE(tests);
}
