/* SPDX-License-Identifier: MIT
 * Every family against float64 results of PEFT on transformers (tests/golden/README.md): logits, loss, prefix gradients. */
#include "helpers/test.h"

#include <dirent.h>
#include <math.h>
#include <unistd.h>

#include "helpers/golden.h"
#include "train/evaluate.h"

/* Tolerances of float32 against float64, as the project promises them. */
static const double LOGITS = 2e-5; /* of the largest logit */
static const double LOSS = 2e-6;   /* relative */
static const double GRADS = 1e-5;  /* relative L2 */

/* Probes the case's rows and compares with tensors called prefix + name. */
static void compare(const char *name, const char *golden_file, const char *adapter_name) {
  px_error err = {0};
  char path[512], out[] = "/tmp/pfx_golden_XXXXXX";
  px_model *model = NULL;
  px_adapter *adapter = NULL;
  px_tensor_list golden, probe;
  px_rows rows;
  int fd = mkstemp(out);
  assert_true(fd >= 0);
  close(fd);
  ASSERT_OK(px_model_open(golden_path(name, "", path), &(px_model_options){.dtype = PX_F32}, &model, &err));
  ASSERT_OK(px_safetensors_open(golden_path(name, golden_file, path), &golden, NULL, NULL, &err));
  golden_rows(&golden, &rows);
  if (adapter_name) ASSERT_OK(px_adapter_open(golden_path(name, adapter_name, path), &adapter, &err));
  ASSERT_OK(px_probe(model, model->be, &rows, adapter, NULL, out, &err));
  ASSERT_OK(px_safetensors_open(out, &probe, NULL, NULL, &err));

  const char *prefix = adapter ? "adapter." : "";
  golden_near_largest(name, &probe, "logits", &golden, prefix, LOGITS);
  snprintf(path, sizeof path, "%sloss", prefix);
  const float *want = golden_floats(&golden, path), *got = golden_floats(&probe, "loss");
  double expected = (double)want[0] + (double)want[1];
  if (fabs((double)got[0] - expected) > LOSS * expected) fail_msg("%s: loss %.9g, want %.9g", name, (double)got[0], expected);
  if (adapter && px_tensor_find(&golden, "adapter.grad")) {
    double error = golden_relative_l2(&probe, "grad.prompt_embeddings", &golden, "adapter.grad");
    if (!(error <= GRADS)) fail_msg("%s: prefix gradient differs by %.3g (relative L2)", name, error);
  }
  px_tensor_list_close(&golden);
  px_tensor_list_close(&probe);
  px_rows_free(&rows);
  px_adapter_close(adapter);
  px_model_close(model);
  unlink(out);
}

static const char *const cases[] = {"gpt2",       "gpt2_wide", "llama_tied", "llama3_new", "llama3_old",   "llama_linear",
                                    "llama_bf16", "llama_f16", "mistral",    "qwen2",      "qwen2_window", "qwen3"};

static void frozen_models_equal_transformers(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) compare(cases[i], "golden.safetensors", NULL);
}

static void prefixes_equal_peft(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) compare(cases[i], "golden.safetensors", "adapter");
}

static void the_prefix_stays_visible_beyond_the_window(void **state) {
  (void)state;
  compare("mistral", "golden_window.safetensors", NULL);
  compare("mistral", "golden_window.safetensors", "adapter");
  compare("qwen2_window", "golden_window.safetensors", "adapter");
}

static void other_adapter_folders_of_peft_load(void **state) {
  (void)state;
  compare("llama_tied", "golden_adapter_named.safetensors", "adapter_named");
  compare("llama_tied", "golden_adapter_projection.safetensors", "adapter_projection");
  compare("llama_tied", "golden_adapter_cartridge.safetensors", "adapter_cartridge");
  compare("llama_tied", "golden_adapter_zero.safetensors", "adapter_zero");
  compare("llama_tied", "golden_adapter_bf16.safetensors", "adapter_bf16");
  compare("llama_tied", "golden_adapter_f16.safetensors", "adapter_f16");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(frozen_models_equal_transformers),
      cmocka_unit_test(prefixes_equal_peft),
      cmocka_unit_test(the_prefix_stays_visible_beyond_the_window),
      cmocka_unit_test(other_adapter_folders_of_peft_load),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
