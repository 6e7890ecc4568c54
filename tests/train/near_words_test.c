/* SPDX-License-Identifier: MIT
 * Nearest vocabulary words: against all cosines in float64. (The keys' side is tested through the command.) */
#include "train/near_words.h"

#include <math.h>

#include "helpers/golden.h"
#include "helpers/kernel.h"

enum { ROWS = 6, TOP = 4 };

static double cosine_of(const float *a, const float *b, int64_t width) {
  double dot = 0, aa = 0, bb = 0;
  for (int64_t i = 0; i < width; i++) {
    dot += (double)a[i] * (double)b[i];
    aa += (double)a[i] * (double)a[i];
    bb += (double)b[i] * (double)b[i];
  }
  return dot / sqrt(aa * bb);
}

/* Row 0 is word 17's own, turned round it is row 1; row 2 is zero; the others are random. */
static float *make_rows(const float *embedding, int64_t dim) {
  float *rows = calloc((size_t)(ROWS * dim), sizeof *rows);
  assert_non_null(rows);
  for (int64_t i = 0; i < dim; i++) {
    rows[i] = 3 * embedding[17 * dim + i];
    rows[dim + i] = -embedding[17 * dim + i];
    for (int r = 3; r < ROWS; r++) rows[r * dim + i] = number((uint64_t)r, i);
  }
  return rows;
}

static void check_row(const float *row, const float *embedding, const px_config *c, const px_near_word *words, double usual) {
  double sum = 0, last = 2;
  for (int32_t v = 0; v < c->vocab; v++) {
    double cosine = cosine_of(row, embedding + (int64_t)v * c->dim, c->dim);
    int taken = 0;
    sum += cosine;
    for (int k = 0; k < TOP; k++) taken |= words[k].id == v;
    if (!taken) assert_true(cosine <= (double)words[TOP - 1].cosine + 1e-6);
  }
  assert_true(fabs(usual - sum / c->vocab) < 1e-6);
  for (int k = 0; k < TOP; k++) {
    assert_true(words[k].id >= 0 && words[k].id < c->vocab);
    assert_true(fabs((double)words[k].cosine - cosine_of(row, embedding + (int64_t)words[k].id * c->dim, c->dim)) < 1e-6);
    assert_true((double)words[k].cosine <= last);
    last = (double)words[k].cosine;
  }
}

static void nearest_of_rows(void **state) {
  (void)state;
  static const char *const cases[] = {"llama_tied", "gpt2", "qwen3"};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    px_error err = {0};
    char path[512];
    px_model *model = NULL;
    px_near_word words[ROWS * TOP];
    double usual[ROWS];
    ASSERT_OK(px_model_open(golden_path(cases[i], "", path), &(px_model_options){.dtype = PX_F32, .threads = 2}, &model, &err));
    const px_config *c = px_model_config(model);
    const float *embedding = model->weights.embed.data;
    float *rows = make_rows(embedding, c->dim);
    ASSERT_OK(px_near_embeddings(model, model->be, rows, ROWS, TOP, words, usual, &err));
    assert_int_equal(words[0].id, 17);
    assert_true((double)words[0].cosine > 0.999999);
    for (int k = 0; k < TOP; k++) {
      assert_int_not_equal(words[TOP + k].id, 17);
      assert_int_equal(words[2 * TOP + k].id, -1);
    }
    assert_true(usual[2] == 0);
    for (int r = 0; r < ROWS; r++)
      if (r != 2) check_row(rows + r * c->dim, embedding, c, words + (int64_t)r * TOP, usual[r]);
    free(rows);
    px_model_close(model);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(nearest_of_rows)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
