/* SPDX-License-Identifier: MIT
 * The same models as GGUF files (tests/golden/gguf): the same logits and gradients as their Hugging Face folders, the
 * same fingerprint, and every quantised type against the values that the gguf package reads. */
#include "helpers/test.h"

#include <math.h>
#include <unistd.h>

#include "format/gguf.h"
#include "helpers/golden.h"
#include "kernels/dequant.h"
#include "train/evaluate.h"

static const char *const cases[] = {"gpt2", "llama3_old", "llama_bf16", "llama_linear", "qwen2", "qwen3"};
enum { CASES = sizeof cases / sizeof *cases };

static px_model *open_model(const char *folder, const char *name) {
  px_error err = {0};
  char path[512];
  px_model *model = NULL;
  ASSERT_OK(px_model_open(golden_path(folder, name, path), &(px_model_options){.dtype = PX_F32}, &model, &err));
  return model;
}

static px_model *open_gguf(const char *name) {
  char file[64];
  snprintf(file, sizeof file, "%s.gguf", name);
  return open_model("gguf", file);
}

static void results_equal_the_folder(void **state) {
  (void)state;
  for (size_t i = 0; i < CASES; i++) {
    px_error err = {0};
    char path[512], out[] = "/tmp/pfx_gguf_golden_XXXXXX";
    px_adapter *adapter = NULL;
    px_tensor_list golden, probe;
    px_rows rows;
    int fd = mkstemp(out);
    assert_true(fd >= 0);
    close(fd);
    px_model *model = open_gguf(cases[i]);
    ASSERT_OK(px_safetensors_open(golden_path(cases[i], "golden.safetensors", path), &golden, NULL, NULL, &err));
    ASSERT_OK(px_adapter_open(golden_path(cases[i], "adapter", path), &adapter, &err));
    golden_rows(&golden, &rows);
    ASSERT_OK(px_probe(model, model->be, &rows, adapter, NULL, out, &err));
    ASSERT_OK(px_safetensors_open(out, &probe, NULL, NULL, &err));
    /* The tolerances of golden_test.c. */
    golden_near_largest(cases[i], &probe, "logits", &golden, "adapter.", 2e-5);
    double error = golden_relative_l2(&probe, "grad.prompt_embeddings", &golden, "adapter.grad");
    if (!(error <= 1e-5)) fail_msg("%s: prefix gradient differs by %.3g (relative L2)", cases[i], error);
    px_tensor_list_close(&probe);
    px_tensor_list_close(&golden);
    px_rows_free(&rows);
    px_adapter_close(adapter);
    px_model_close(model);
    unlink(out);
  }
}

/* An adapter trained on the folder is recognised on the GGUF file and the other way round. */
static void fingerprint_equals_the_folder(void **state) {
  (void)state;
  for (size_t i = 0; i < CASES; i++) {
    px_model *gguf = open_gguf(cases[i]), *folder = open_model(cases[i], "");
    if (memcmp(gguf->fingerprint.samples, folder->fingerprint.samples, sizeof gguf->fingerprint.samples))
      fail_msg("%s: other samples", cases[i]);
    if (strcmp(gguf->fingerprint.arch, folder->fingerprint.arch)) fail_msg("%s: another pfx.arch", cases[i]);
    if (strcmp(gguf->fingerprint.base, folder->fingerprint.base)) fail_msg("%s: another pfx.base", cases[i]);
    px_model_close(gguf);
    px_model_close(folder);
  }
}

/* Values are d * q or d * q - m in float32: one rounding more or less, where the compiler fuses, is allowed. */
static void quantised_types_equal_the_gguf_package(void **state) {
  (void)state;
  px_error err = {0};
  char path[512];
  px_gguf gguf;
  px_tensor_list values;
  ASSERT_OK(px_gguf_open(golden_path("gguf", "quants.gguf", path), &gguf, &err));
  ASSERT_OK(px_safetensors_open(golden_path("gguf", "quants.safetensors", path), &values, NULL, NULL, &err));
  assert_int_equal(gguf.tensors.count, 8);
  for (size_t i = 0; i < gguf.tensors.count; i++) {
    const px_tensor_view *t = &gguf.tensors.items[i];
    const float *want = golden_floats(&values, t->name);
    int64_t count = px_tensor_elements(t);
    assert_int_equal(count, 3 * 512);
    float *got = px_calloc((size_t)count, sizeof *got);
    px_dequant_args args = {.src_type = t->dtype, .dst_type = PX_F32, .count = count, .src = t->data, .dst = got};
    assert_null(px_dequant_check(&args));
    assert_int_equal(px_dequant_cpu(&args), 0);
    for (int64_t first = 0; first < count; first += 32) {
      float largest = 0;
      for (int64_t e = first; e < first + 32; e++) largest = fmaxf(largest, fabsf(want[e]));
      for (int64_t e = first; e < first + 32; e++)
        if (!(fabsf(got[e] - want[e]) <= 0x1p-22f * largest))
          fail_msg("%s element %lld is %.9g, want %.9g", t->name, (long long)e, (double)got[e], (double)want[e]);
    }
    free(got);
  }
  px_tensor_list_close(&values);
  px_gguf_close(&gguf);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(results_equal_the_folder),
      cmocka_unit_test(fingerprint_equals_the_folder),
      cmocka_unit_test(quantised_types_equal_the_gguf_package),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
