/* SPDX-License-Identifier: MIT
 * SmolLM2-135M-Instruct from its GGUF file against transformers in float64 on the same dequantised weights
 * (tests/golden/README.md). Skipped where the model is not in the cache folder. */
#include "helpers/test.h"

#include <math.h>
#include <unistd.h>

#include "helpers/golden.h"
#include "train/evaluate.h"

static const double LOGITS = 1e-4; /* of the largest logit of the row */
static const double LOSS = 1e-5;   /* relative */

static bool model_path(char path[512]) {
  char cache[400];
  snprintf(cache, sizeof cache, "%s/.cache", test_env("HOME", "."));
  snprintf(path, 512, "%s/pfx/SmolLM2-135M-Instruct.Q4_1.gguf", test_env("XDG_CACHE_HOME", cache));
  return access(path, R_OK) == 0;
}

static const px_tensor_view *tensor(const px_tensor_list *list, const char *name) {
  const px_tensor_view *t = px_tensor_find(list, name);
  if (!t) fail_msg("tensor %s is missing", name);
  return t;
}

/* Rows of `ids` [1 or M, count] against the logits at those ids, of the last tokens of each text. */
static double worst_logit(const px_tensor_list *golden, const px_tensor_list *probe, const char *ids_name,
                          const char *logits_name) {
  const px_tensor_view *want = tensor(golden, logits_name), *all = tensor(probe, "logits");
  const int32_t *offsets = tensor(golden, "offsets")->data, *ids = tensor(golden, ids_name)->data;
  const float *largest = golden_floats(golden, "largest"), *values = want->data, *got = all->data;
  int64_t texts = tensor(golden, "offsets")->shape[0] - 1, last = want->shape[0] / texts, count = want->shape[1];
  int64_t id_stride = tensor(golden, ids_name)->dims == 2 ? count : 0, vocab = all->shape[1];
  double worst = 0;
  for (int64_t row = 0; row < texts * last; row++) {
    int64_t token = offsets[row / last + 1] - last + row % last;
    for (int64_t i = 0; i < count; i++) {
      double difference = (double)got[token * vocab + ids[row * id_stride + i]] - (double)values[row * count + i];
      worst = fmax(worst, isnan(difference) ? INFINITY : fabs(difference) / (double)largest[row]);
    }
  }
  return worst;
}

static void logits_and_loss_equal_transformers(void **state) {
  (void)state;
  px_error err = {0};
  char path[512], out[] = "/tmp/pfx_smollm2_XXXXXX";
  if (!model_path(path)) skip();
  px_model *model = NULL;
  px_tensor_list golden, probe;
  px_rows rows;
  int fd = mkstemp(out);
  assert_true(fd >= 0);
  close(fd);
  ASSERT_OK(px_model_open(path, &(px_model_options){.dtype = PX_F32}, &model, &err));
  ASSERT_OK(px_safetensors_open(golden_path("smollm2", "golden.safetensors", path), &golden, NULL, NULL, &err));
  golden_rows(&golden, &rows);
  ASSERT_OK(px_probe(model, model->be, &rows, NULL, NULL, out, &err));
  ASSERT_OK(px_safetensors_open(out, &probe, NULL, NULL, &err));
  double best = worst_logit(&golden, &probe, "best.ids", "best.logits");
  double fixed = worst_logit(&golden, &probe, "fixed.ids", "fixed.logits");
  if (!(best <= LOGITS && fixed <= LOGITS)) fail_msg("logits differ by %.3g and %.3g of the largest", best, fixed);
  const float *want = golden_floats(&golden, "loss");
  double expected = (double)want[0] + (double)want[1], got = (double)golden_floats(&probe, "loss")[0];
  if (!(fabs(got - expected) <= LOSS * expected)) fail_msg("loss %.9g, want %.9g", got, expected);
  px_tensor_list_close(&probe);
  px_tensor_list_close(&golden);
  px_rows_free(&rows);
  px_model_close(model);
  unlink(out);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(logits_and_loss_equal_transformers)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
