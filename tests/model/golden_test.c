/* SPDX-License-Identifier: MIT
 * Every family against float64 results of PEFT on transformers (tests/golden/README.md): logits, loss, prefix
 * gradients. */
#include "helpers/test.h"

#include <dirent.h>
#include <math.h>
#include <unistd.h>

#include "helpers/each_device.h"
#include "helpers/golden.h"
#include "train/evaluate.h"

/* Tolerances of float32 against float64, as the project promises them. */
static const double LOGITS = 2e-5; /* of the largest logit */
static const double LOSS = 2e-6;   /* relative */
static const double GRADS = 1e-5;  /* relative L2 */

/* Probes the case's rows and compares with tensors called prefix + name. */
static void compare_model(const char *name, const char *model_folder, const char *model_file, const char *golden_file,
                          const char *adapter_name) {
  px_error err = {0};
  char path[512], out[] = "/tmp/pfx_golden_XXXXXX";
  px_model *model = NULL;
  px_adapter *adapter = NULL;
  px_tensor_list golden, probe;
  px_rows rows;
  int fd = mkstemp(out);
  assert_true(fd >= 0);
  close(fd);
  ASSERT_OK(px_model_open(golden_path(model_folder, model_file, path),
                          &(px_model_options){.device = device, .dtype = PX_F32}, &model, &err));
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
  if (fabs((double)got[0] - expected) > LOSS * expected)
    fail_msg("%s: loss %.9g, want %.9g", name, (double)got[0], expected);
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

static void compare(const char *name, const char *golden_file, const char *adapter_name) {
  compare_model(name, name, "", golden_file, adapter_name);
}

static const char *const cases[] = {"gpt2",       "gpt2_wide",    "llama_tied",   "llama3_new",
                                    "llama3_old", "llama_linear", "llama_bf16",   "llama_f16",
                                    "mistral",    "qwen2",        "qwen2_window", "qwen3"};

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

static const char *const gguf_cases[] = {"gpt2", "llama3_old", "llama_bf16", "llama_linear", "qwen2", "qwen3"};
enum { GGUF_CASES = sizeof gguf_cases / sizeof *gguf_cases };

/* The same models as GGUF files: rows un-permuted, matrices transposed back, rotary factors as divisors. */
static void gguf_files_give_the_same_results(void **state) {
  (void)state;
  char file[64];
  for (size_t i = 0; i < GGUF_CASES; i++) {
    snprintf(file, sizeof file, "%s.gguf", gguf_cases[i]);
    compare_model(gguf_cases[i], "gguf", file, "golden.safetensors", NULL);
    compare_model(gguf_cases[i], "gguf", file, "golden.safetensors", "adapter");
  }
}

static void fingerprint_of(const char *folder, const char *file, px_fingerprint *out) {
  px_error err = {0};
  px_source source;
  char path[512];
  ASSERT_OK(px_source_open(golden_path(folder, file, path), &source, &err));
  ASSERT_OK(px_fingerprint_make(&source, out, &err));
  px_source_close(&source);
}

/* Neither the container, nor GGUF's permutation, nor shards change what a model is; every weight does. */
static void a_fingerprint_is_of_the_weights(void **state) {
  (void)state;
  px_fingerprint folder, gguf, other;
  char file[64];
  for (size_t i = 0; i < GGUF_CASES; i++) {
    snprintf(file, sizeof file, "%s.gguf", gguf_cases[i]);
    fingerprint_of(gguf_cases[i], "", &folder);
    fingerprint_of("gguf", file, &gguf);
    assert_string_equal(folder.arch, gguf.arch);
    assert_string_equal(folder.base, gguf.base);
    assert_memory_equal(folder.samples, gguf.samples, sizeof folder.samples);
  }
  fingerprint_of("llama_tied", "", &other);
  assert_string_not_equal(folder.arch, other.arch);
  assert_string_not_equal(folder.base, other.base);
}

/* bfloat16: no further from float64 than twice what torch itself is on the case (recorded in the golden file). */
static void bfloat16_errs_at_most_twice_as_much_as_torch(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    px_error err = {0};
    char path[512], out[] = "/tmp/pfx_golden_XXXXXX";
    px_model *model = NULL;
    px_adapter *adapter = NULL;
    px_tensor_list golden, probe;
    px_meta *meta = NULL;
    size_t meta_count = 0;
    px_rows rows;
    int fd = mkstemp(out);
    assert_true(fd >= 0);
    close(fd);
    ASSERT_OK(px_model_open(golden_path(cases[i], "", path), &(px_model_options){.device = device, .dtype = PX_BF16},
                            &model, &err));
    ASSERT_OK(
        px_safetensors_open(golden_path(cases[i], "golden.safetensors", path), &golden, &meta, &meta_count, &err));
    golden_rows(&golden, &rows);
    ASSERT_OK(px_adapter_open(golden_path(cases[i], "adapter", path), &adapter, &err));
    ASSERT_OK(px_probe(model, model->be, &rows, adapter, NULL, out, &err));
    ASSERT_OK(px_safetensors_open(out, &probe, NULL, NULL, &err));
    double logits = golden_relative_l2(&probe, "logits", &golden, "adapter.logits"),
           torch_logits = atof(px_meta_get(meta, meta_count, "bf16.logits_error"));
    double grad = golden_relative_l2(&probe, "grad.prompt_embeddings", &golden, "adapter.grad"),
           torch_grad = atof(px_meta_get(meta, meta_count, "bf16.grad_error"));
    if (!(logits <= 2 * torch_logits))
      fail_msg("%s: logits err by %.3g, torch by %.3g", cases[i], logits, torch_logits);
    if (!(grad <= 2 * torch_grad)) fail_msg("%s: gradients err by %.3g, torch by %.3g", cases[i], grad, torch_grad);
    px_tensor_list_close(&golden);
    px_tensor_list_close(&probe);
    px_rows_free(&rows);
    px_adapter_close(adapter);
    px_model_close(model);
    unlink(out);
  }
}

/* Every block type of GGUF, value for value. */
static void quantised_blocks_are_exact(void **state) {
  (void)state;
  px_error err = {0};
  char path[512];
  px_gguf gguf;
  px_tensor_list want;
  ASSERT_OK(px_gguf_open(golden_path("gguf", "quants.gguf", path), &gguf, &err));
  ASSERT_OK(px_safetensors_open(golden_path("gguf", "quants.safetensors", path), &want, NULL, NULL, &err));
  assert_int_equal(gguf.tensors.count, 8);
  for (size_t i = 0; i < gguf.tensors.count; i++) {
    const px_tensor_view *t = &gguf.tensors.items[i];
    float got[3 * 512];
    px_dequant_args args = {.src_type = t->dtype, .dst_type = PX_F32, .count = 3 * 512, .src = t->data, .dst = got};
    assert_null(px_dequant_check(&args));
    assert_int_equal(px_dequant_cpu(&args), 0);
    const float *expected = golden_floats(&want, t->name);
    for (int j = 0; j < 3 * 512; j++)
      if (got[j] != expected[j]) fail_msg("%s[%d]: %.9g, want %.9g", t->name, j, (double)got[j], (double)expected[j]);
  }
  px_tensor_list_close(&want);
  px_gguf_close(&gguf);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(frozen_models_equal_transformers),
      cmocka_unit_test(prefixes_equal_peft),
      cmocka_unit_test(the_prefix_stays_visible_beyond_the_window),
      cmocka_unit_test(other_adapter_folders_of_peft_load),
      cmocka_unit_test(gguf_files_give_the_same_results),
      cmocka_unit_test(a_fingerprint_is_of_the_weights),
      cmocka_unit_test(bfloat16_errs_at_most_twice_as_much_as_torch),
      cmocka_unit_test(quantised_blocks_are_exact),
  };
  RETURN_FROM_EACH_DEVICE(tests);
}
