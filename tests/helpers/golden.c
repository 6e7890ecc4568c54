/* SPDX-License-Identifier: MIT */
#include "helpers/golden.h"

#include <math.h>

#include "helpers/test.h"

const char *golden_path(const char *name, const char *file, char *path) {
  snprintf(path, 512, "%s/tests/golden/%s%s%s", TEST_SOURCE_DIR, name, *file ? "/" : "", file);
  return path;
}

static const px_tensor_view *need(const px_tensor_list *list, const char *name) {
  const px_tensor_view *t = px_tensor_find(list, name);
  if (!t) fail_msg("tensor %s is missing", name);
  return t;
}

const float *golden_floats(const px_tensor_list *list, const char *name) {
  const px_tensor_view *t = need(list, name);
  assert_int_equal(t->dtype, PX_F32);
  return t->data;
}

void golden_rows(const px_tensor_list *golden, px_rows *out) {
  const px_tensor_view *ids = need(golden, "ids"), *labels = need(golden, "labels"), *offsets = need(golden, "offsets");
  size_t tokens = (size_t)ids->shape[0];
  *out = (px_rows){.count = (size_t)offsets->shape[0] - 1};
  out->ids = calloc(tokens, sizeof *out->ids);
  out->scores = calloc(tokens / 8 + 1, 1);
  out->offsets = calloc(out->count + 1, sizeof *out->offsets);
  out->prompt_len = calloc(out->count, sizeof *out->prompt_len);
  out->line = calloc(out->count, sizeof *out->line);
  memcpy(out->ids, ids->data, tokens * sizeof *out->ids);
  const int32_t *at = offsets->data, *label = labels->data;
  for (size_t r = 0; r <= out->count; r++) out->offsets[r] = (uint64_t)at[r];
  for (size_t r = 0; r < out->count; r++) {
    size_t length = (size_t)(at[r + 1] - at[r]);
    if (length > out->longest) out->longest = length;
    for (int32_t t = at[r] + 1; t < at[r + 1]; t++)
      if (label[t] != -100) {
        out->scores[t >> 3] |= (uint8_t)(1u << (t & 7));
        out->scored_tokens++;
      }
  }
}

void golden_near_largest(const char *what, const px_tensor_list *got, const char *name, const px_tensor_list *want,
                         const char *prefix, double tolerance) {
  char full[128];
  snprintf(full, sizeof full, "%s%s", prefix, name);
  const px_tensor_view *w = need(want, full), *g = need(got, name);
  assert_int_equal(px_tensor_elements(w), px_tensor_elements(g));
  const float *x = g->data, *y = w->data;
  double largest = 0, worst = 0;
  for (int64_t i = 0; i < px_tensor_elements(w); i++) {
    largest = fmax(largest, fabs((double)y[i]));
    worst = isnan(x[i]) ? INFINITY : fmax(worst, fabs((double)x[i] - (double)y[i]));
  }
  if (!(worst <= tolerance * largest))
    fail_msg("%s: %s differs by %.3g of the largest (%.3g allowed)", what, full, worst / largest, tolerance);
}

double golden_relative_l2(const px_tensor_list *got, const char *name, const px_tensor_list *want,
                          const char *want_name) {
  const px_tensor_view *w = need(want, want_name), *g = need(got, name);
  assert_int_equal(px_tensor_elements(w), px_tensor_elements(g));
  const float *x = g->data, *y = w->data;
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < px_tensor_elements(w); i++) {
    difference += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    norm += (double)y[i] * (double)y[i];
  }
  return sqrt(difference / norm);
}
