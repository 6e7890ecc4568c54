/* SPDX-License-Identifier: MIT
 * Prefix dropout: one mask a step on keys and values, shared by all rows, a function of (seed, step, index) alone. */
#include "helpers/test.h"

#include <math.h>

#include "core/random.h"
#include "helpers/golden.h"
#include "helpers/pass.h"
#include "helpers/tolerance.h"
#include "tune/prefix.h"

static const float P = 0.3f;
enum { TOKENS = 6 };

static px_model *model;
static px_backend *be;

static int set_up(void **state) {
  (void)state;
  px_error err = {0};
  char path[512];
  ASSERT_OK(px_model_open(golden_path("llama_tied", "", path), &(px_model_options){.dtype = PX_F32, .threads = 2},
                          &model, &err));
  ASSERT_OK(px_backend_open_cpu(&(px_backend_options){.threads = 2}, &be, &err));
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  px_backend_close(be);
  px_model_close(model);
  return 0;
}

static px_tune *open_tune(int reparam, float dropout) {
  px_error err = {0};
  px_tune *t;
  px_tune_spec spec = {.parts = {{.size = TOKENS, .reparam_hidden = reparam, .dropout = dropout}}, .part_count = 1};
  ASSERT_OK(px_tune_open(model, be, NULL, &spec, 17, &t, &err));
  return t;
}

static int64_t floats_of(const px_tune *t) {
  return (int64_t)t->tokens * 2 * t->config->layers * t->config->kv_heads * t->config->head_dim;
}

/* What attention reads, [layers][key, value][P][width]; free(). */
static float *read_step(px_tune *t, uint64_t seed, uint32_t step, bool training) {
  px_error err = {0};
  int64_t slice = floats_of(t) / (2 * t->config->layers);
  float *out = calloc((size_t)floats_of(t), sizeof *out);
  const int64_t at = step;
  px_tune_begin_step(t, seed, training ? &at : NULL);
  for (int l = 0; l < t->config->layers; l++) {
    px_kv_segment s;
    px_backend_read(be, &s, &t->segments[l], sizeof s);
    px_backend_read(be, out + 2 * l * slice, s.k, (size_t)slice * sizeof *out);
    px_backend_read(be, out + (2 * l + 1) * slice, s.v, (size_t)slice * sizeof *out);
  }
  ASSERT_OK(px_backend_status(be, &err));
  return out;
}

static void the_mask_is_of_seed_step_and_index(void **state) {
  (void)state;
  static const struct {
    uint64_t seed;
    uint32_t step;
  } cases[] = {{1, 0}, {1, 1}, {2, 0}, {1ull << 40, 7}};
  for (int reparam = 0; reparam <= 9; reparam += 9) {
    px_tune *t = open_tune(reparam, P);
    int64_t count = floats_of(t), kept = 0;
    float *whole = read_step(t, 1, 0, false);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
      float *got = read_step(t, cases[c].seed, cases[c].step, true);
      for (int64_t i = 0; i < count; i++) {
        px_u32x4 x = px_philox(cases[c].seed, PX_STREAM_PREFIX_DROPOUT, cases[c].step, (uint64_t)i);
        bool keep = px_uniform(x.v[0]) >= P;
        double want = keep ? (double)whole[i] / (1 - (double)P) : 0;
        kept += keep;
        if (!(fabs((double)got[i] - want) <= TOL_F32_ELEMENT * fabs(want)))
          fail_msg("seed %llu step %u index %lld: %.9g, not %.9g", (unsigned long long)cases[c].seed, cases[c].step,
                   (long long)i, (double)got[i], want);
      }
      float *again = read_step(t, cases[c].seed, cases[c].step, true);
      assert_memory_equal(got, again, (size_t)count * sizeof *got);
      free(got);
      free(again);
    }
    assert_true(fabs((double)kept / (4 * (double)count) - 0.7) < 0.03); /* 2,592 draws: 3 standard deviations */
    free(whole);
    px_tune_close(t);
  }
}

/* Without --prefix-dropout, and outside training with it, the prefix is whole. */
static void evaluation_has_no_mask(void **state) {
  (void)state;
  px_tune *with = open_tune(0, P), *without = open_tune(0, 0);
  float *a = read_step(with, 5, 3, false), *b = read_step(without, 5, 3, true), *c = read_step(with, 5, 3, true);
  assert_memory_equal(a, b, (size_t)floats_of(with) * sizeof *a);
  assert_memory_not_equal(a, c, (size_t)floats_of(with) * sizeof *a);
  free(a);
  free(b);
  free(c);
  px_tune_close(with);
  px_tune_close(without);
}

/* Equal rows see equal prefixes, and the batch is the one of a prefix that holds the masked values. */
static void all_rows_share_the_mask(void **state) {
  (void)state;
  px_tune *t = open_tune(0, P);
  static const int32_t lengths[] = {6, 6, 6};
  pass_rows rows = pass_rows_make(model, 3, lengths, 4);
  for (int r = 0; r < 3; r++) {
    memcpy(rows.ids + rows.offsets[r], rows.ids, 6 * sizeof *rows.ids);
    rows.adapter[r] = 0;
    rows.first[r] = TOKENS;
  }
  float *masked = read_step(t, 8, 2, true);
  pass_prefixes p;
  pass_prefixes_open(model, be, 1, (int32_t[]){TOKENS}, 1, &p);
  px_backend_write(be, p.values[0], masked, (size_t)floats_of(t) * sizeof *masked);
  double losses[3], want[3];
  pass_loss(model, be, &rows, &t->hooks, false, losses);
  pass_loss(model, be, &rows, &p.hooks, false, want);
  for (int r = 0; r < 3; r++) assert_true(losses[r] == losses[0] && losses[r] == want[r]);
  free(masked);
  pass_prefixes_close(&p);
  pass_rows_free(&rows);
  px_tune_close(t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_mask_is_of_seed_step_and_index),
      cmocka_unit_test(evaluation_has_no_mask),
      cmocka_unit_test(all_rows_share_the_mask),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
