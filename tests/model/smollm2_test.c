/* SPDX-License-Identifier: MIT
 * SmolLM2-135M-Instruct itself against transformers in float64 on the same dequantised weights: logits within 1e-4 of
 * the largest, and the loss. Skipped where the model is not in the cache (scripts/fetch_model.sh brings it). */
#include "helpers/test.h"

#include <math.h>
#include <unistd.h>

#include "helpers/golden.h"
#include "train/evaluate.h"

static const double LOGITS = 1e-4; /* of a row's largest: 30 layers of float32 */
static const double LOSS = 2e-6;

static const char *model_path(char *path) {
  const char *cache = getenv("XDG_CACHE_HOME");
  snprintf(path, 512, "%s%s/pfx/SmolLM2-135M-Instruct.Q4_1.gguf", cache && *cache ? cache : test_env("HOME", ""),
           cache && *cache ? "" : "/.cache");
  return path;
}

/* The rows of `got` that the golden file has: the last 3 tokens of each text. */
static void compare_rows(const px_tensor_list *golden, const px_tensor_list *got, const char *kind) {
  char name[32];
  snprintf(name, sizeof name, "%s.logits", kind);
  const px_tensor_view *want = px_tensor_find(golden, name), *logits = px_tensor_find(got, "logits"),
                       *offsets = px_tensor_find(golden, "offsets");
  snprintf(name, sizeof name, "%s.ids", kind);
  const px_tensor_view *ids = px_tensor_find(golden, name);
  assert_true(want && logits && offsets && ids);
  const float *largest = golden_floats(golden, "largest");
  int64_t columns = want->shape[1], vocab = logits->shape[1];
  for (int64_t m = 0; m < want->shape[0]; m++) {
    int64_t token = ((const int32_t *)offsets->data)[m / 3 + 1] - 3 + m % 3;
    for (int64_t j = 0; j < columns; j++) {
      int32_t id = ((const int32_t *)ids->data)[ids->dims == 2 ? m * columns + j : j];
      double x = (double)((const float *)logits->data)[token * vocab + id],
             y = (double)((const float *)want->data)[m * columns + j];
      if (!(fabs(x - y) <= LOGITS * (double)largest[m]))
        fail_msg("row %lld, token %d: logit %.7g, want %.7g", (long long)m, id, x, y);
    }
  }
}

static void smollm2_equals_transformers(void **state) {
  (void)state;
  px_error err = {0};
  char path[512], out[] = "/tmp/pfx_smollm2_XXXXXX";
  px_model *model = NULL;
  px_tensor_list golden, probe;
  px_rows rows;
  if (access(model_path(path), R_OK) != 0) skip();
  int fd = mkstemp(out);
  assert_true(fd >= 0);
  close(fd);
  ASSERT_OK(px_model_open(path, &(px_model_options){.dtype = PX_F32}, &model, &err));
  ASSERT_OK(px_safetensors_open(golden_path("smollm2", "golden.safetensors", path), &golden, NULL, NULL, &err));
  golden_rows(&golden, &rows);
  ASSERT_OK(px_probe(model, model->be, &rows, NULL, NULL, out, &err));
  ASSERT_OK(px_safetensors_open(out, &probe, NULL, NULL, &err));
  compare_rows(&golden, &probe, "best");
  compare_rows(&golden, &probe, "fixed");
  const float *want = golden_floats(&golden, "loss");
  double expected = (double)want[0] + (double)want[1], got = (double)golden_floats(&probe, "loss")[0];
  if (!(fabs(got - expected) <= LOSS * expected)) fail_msg("loss %.9g, want %.9g", got, expected);
  px_tensor_list_close(&golden);
  px_tensor_list_close(&probe);
  px_rows_free(&rows);
  px_model_close(model);
  unlink(out);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(smollm2_equals_transformers)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
