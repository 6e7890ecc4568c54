/* SPDX-License-Identifier: MIT
 * pfx_inspect_adapter_wait as a program uses it: defaults, older callers, what is refused, and arrays that agree with each
 * other. (The numbers themselves: tests/cli/inspect_check.py.) */
#include <pfx/pfx.h>

#include <math.h>
#include <unistd.h>

#include "helpers/api.h"
#include "helpers/golden.h"
#include "helpers/test.h"

typedef struct opened {
  pfx_model *model;
  pfx_adapter *adapter;
  char data[64];
} opened;

static int open_all(void **state) {
  static opened all;
  pfx_error err = {0};
  char path[512];
  pfx_model_options o = pfx_model_options_init();
  o.dtype = PFX_DTYPE_F32;
  o.threads = 2;
  strcpy(all.data, "/tmp/pfx-look-XXXXXX");
  int fd = mkstemp(all.data);
  static const char row[] = "{\"ids\": [5, 6, 7, 8, 9, 10], \"labels\": [-100, -100, 7, 8, 9, 10]}\n";
  if (fd < 0 || write(fd, row, sizeof row - 1) != (ssize_t)(sizeof row - 1) || close(fd) != 0) return -1;
  if (pfx_model_open(golden_path("qwen2", "", path), &o, &all.model, &err) != PFX_OK) return -1;
  if (pfx_adapter_open(golden_path("qwen2", "adapter", path), &all.adapter, &err) != PFX_OK) return -1;
  *state = &all;
  return 0;
}

static int close_all(void **state) {
  opened *all = *state;
  pfx_adapter_close(all->adapter);
  pfx_model_close(all->model);
  return unlink(all->data);
}

static void measures(void **state) {
  opened *all = *state;
  pfx_error err = {0};
  const pfx_inspection *seen = NULL;
  pfx_inspect_options o = pfx_inspect_options_init();
  o.data = all->data;
  API_OK(pfx_inspect_adapter_wait(all->model, NULL, all->adapter, &o, &seen, &err));
  assert_int_equal(seen->rows, 1);
  assert_int_equal(seen->tokens, 6);
  assert_int_equal(seen->queries, 4);
  assert_int_equal(seen->prefix_tokens, seen->virtual_tokens);
  assert_int_equal(seen->words, 5);
  assert_false(seen->built_in);
  for (int l = 0; l < seen->layers; l++) {
    double mass = 0, share = 0;
    assert_int_equal(seen->first_token[l], 0);
    for (int h = 0; h < seen->heads; h++) mass += seen->mass[l * seen->heads + h] / seen->heads;
    for (int t = 0; t < seen->virtual_tokens; t++) {
      share += seen->slot_mass[l * seen->virtual_tokens + t];
      assert_true(seen->slot_peak[l * seen->virtual_tokens + t] >= seen->slot_mass[l * seen->virtual_tokens + t]);
    }
    assert_true(mass > 0 && mass < 1 && fabs(mass - share) < 1e-6);
    assert_true(seen->even[l] > 0 && seen->even[l] < 1);
    assert_true(seen->lengths[l].prefix_key > 0 && seen->lengths[l].real_value > 0);
  }
  for (int t = 0; t < seen->virtual_tokens; t++)
    for (int k = 0; k < seen->words; k++) {
      const pfx_near_word *w = &seen->near_words[t * seen->words + k];
      assert_true(w->id >= 0 && w->text == NULL && fabs((double)w->cosine) <= 1.000001);
      if (k) assert_true(w->cosine <= w[-1].cosine);
    }
  pfx_inspection_free(seen);
  pfx_inspection_free(NULL);
}

/* Parts that change weights: no tokenizer, no rows; an adapter that nobody checked is refused, not read past its end. */
static void changes(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_model *model = NULL;
  pfx_adapter *adapter = NULL;
  const pfx_inspection *seen = NULL;
  char path[512];
  pfx_model_options o = pfx_model_options_init();
  o.dtype = PFX_DTYPE_F32;
  o.threads = 1;
  API_OK(pfx_model_open(golden_path("parts/llama", "", path), &o, &model, &err));
  API_OK(pfx_adapter_open(golden_path("parts/llama", "lora", path), &adapter, &err));
  API_OK(pfx_inspect_adapter_wait(model, NULL, adapter, NULL, &seen, &err));
  assert_int_equal(seen->virtual_tokens, 0);
  assert_int_equal(seen->layers, 2);
  assert_true(seen->mass == NULL && seen->near_words == NULL && seen->rows == 0 && seen->far_from_one == 0.1);
  assert_true(seen->change_count > 0);
  for (int64_t k = 0; k < seen->change_count; k++) {
    const pfx_change *c = &seen->changes[k];
    assert_string_equal(c->part, "lora");
    assert_string_equal(c->role, "weight");
    assert_true(c->layer >= 0 && c->layer < 2 && c->length > 0 && c->base_length > 0);
    assert_true(fabs(c->relative - c->length / c->base_length) < 1e-12);
  }
  pfx_inspection_free(seen);
  pfx_adapter_close(adapter);
  static const char *const others[] = {"lora", "top", "ia3"};
  for (size_t k = 0; k < sizeof others / sizeof *others; k++) {
    API_OK(pfx_adapter_open(golden_path("parts/gpt2", others[k], path), &adapter, &err));
    assert_int_equal(pfx_inspect_adapter_wait(model, NULL, adapter, NULL, &seen, &err), PFX_MISMATCH);
    assert_non_null(strstr(err.message, "check the adapter with it first (pfx check)"));
    assert_null(seen);
    pfx_adapter_close(adapter);
  }
  API_OK(pfx_adapter_open(golden_path("parts/qwen2", "top", path), &adapter, &err));
  assert_int_equal(pfx_inspect_adapter_wait(model, NULL, adapter, NULL, &seen, &err), PFX_MISMATCH);
  pfx_adapter_close(adapter);
  pfx_model_close(model);
}

/* A caller from before `html` was there: what lies behind its fields is not read. */
static void older_callers(void **state) {
  opened *all = *state;
  pfx_error err = {0};
  const pfx_inspection *seen = NULL;
  pfx_inspect_options o = pfx_inspect_options_init();
  o.struct_bytes = offsetof(pfx_inspect_options, words);
  o.data = all->data;
  o.words = -7;
  o.dead_below = 99;
  o.html = "/nowhere/at/all";
  API_OK(pfx_inspect_adapter_wait(all->model, NULL, all->adapter, &o, &seen, &err));
  assert_int_equal(seen->words, 5);
  assert_true(seen->dead_below == 0.01);
  pfx_inspection_free(seen);
}

static bool stop(void *user) {
  ++*(int *)user;
  return true;
}

static void refusals(void **state) {
  opened *all = *state;
  pfx_error err = {0};
  const pfx_inspection *seen = (const pfx_inspection *)&err;
  pfx_inspect_options o = pfx_inspect_options_init();
  o.struct_bytes = 0;
  API_FAILS(pfx_inspect_adapter_wait(all->model, NULL, all->adapter, &o, &seen, &err), PFX_INVALID,
            "pfx_inspect_options: struct_bytes is not set: begin with pfx_inspect_options_init()");
  assert_null(seen);
  API_FAILS(pfx_inspect_adapter_wait(all->model, NULL, all->adapter, NULL, &seen, &err), PFX_INVALID,
            "the model has no tokenizer for the built-in sentences: give --data a file of ids rows");
  o = pfx_inspect_options_init();
  o.data = all->data;
  int asked = 0;
  o.cancelled = stop;
  o.user = &asked;
  API_FAILS(pfx_inspect_adapter_wait(all->model, NULL, all->adapter, &o, &seen, &err), PFX_CANCELLED, "stopped");
  assert_int_equal(asked, 1);
  assert_null(seen);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(measures), cmocka_unit_test(changes), cmocka_unit_test(older_callers), cmocka_unit_test(refusals)};
  return cmocka_run_group_tests(tests, open_all, close_all);
}
