/* SPDX-License-Identifier: MIT
 * The vectorisable functions of kernels/math_cpu.h against libm in float64, and the roundings against core/types.h. */
#include <float.h>

#include "helpers/test.h"

#include "kernels/math_cpu.h"

static double ulps(float got, double want) {
  int exponent;
  frexp(want, &exponent);
  double unit = ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
  return fabs((double)got - want) / unit;
}

enum { BLOCK = 1024 };
typedef void (*block_fn)(const float *x, float *y);
#define BLOCK_OF(name)                                                     \
  static void name##_block(const float *x, float *y) {                     \
    _Pragma("omp simd") for (int i = 0; i < BLOCK; i++) y[i] = name(x[i]); \
  }
BLOCK_OF(px_exp)
BLOCK_OF(px_tanh)
BLOCK_OF(px_erf)
BLOCK_OF(px_sigmoid)

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* Every `step`-th float between 0 and `bound`, both signs, through the vector loop. */
static double worst(block_fn f, double (*want)(double), float low, float high) {
  double most = 0;
  float x[BLOCK], y[BLOCK];
  uint32_t at = 1, last;
  memcpy(&last, &(float){104.0f}, 4);
  while (at < last) {
    int n = 0;
    for (; n < BLOCK && at < last; n++, at += 2039) {
      memcpy(&x[n], &at, 4);
      if (n & 1) x[n] = -x[n];
    }
    while (n < BLOCK) x[n++] = 0.5f;
    f(x, y);
    for (int i = 0; i < BLOCK; i++)
      if (x[i] >= low && x[i] <= high) {
        double e = ulps(y[i], want((double)x[i]));
        if (!(e <= most)) most = e;
      }
  }
  return most;
}

static void functions_are_exact_to_a_few_ulp(void **state) {
  (void)state;
  double e[] = {worst(px_exp_block, exp, -87.3365f, 88.7228f), worst(px_tanh_block, tanh, -104, 104),
                worst(px_erf_block, erf, -104, 104), worst(px_sigmoid_block, sigmoid, -80, 80)};
  const double bound[] = {1.5, 2.0, 2.0, 2.5};
  for (int i = 0; i < 4; i++)
    if (!(e[i] <= bound[i])) fail_msg("function %d: %.3f ulp, allowed %.1f", i, e[i], bound[i]);
}

static void ends_of_the_range(void **state) {
  (void)state;
  assert_true(px_exp(-INFINITY) == 0 && px_exp(-104) == 0 && px_exp(INFINITY) == INFINITY && px_exp(89) == INFINITY &&
              px_exp(0) == 1);
  assert_true(px_exp(-1000) == 0 && px_exp(-1e30f) == 0 && px_exp(1e30f) == INFINITY);
  assert_true(px_exp(-87.3365f) >= FLT_MIN && px_exp(-87.33656f) == 0);
  assert_true(px_exp(88.72283f) < INFINITY && px_exp(88.72284f) == INFINITY);
  assert_true(px_tanh(INFINITY) == 1 && px_tanh(-INFINITY) == -1 && px_tanh(20) == 1 && px_tanh(0) == 0);
  assert_true(px_erf(INFINITY) == 1 && px_erf(-INFINITY) == -1 && px_erf(4.5f) == 1 && px_erf(0) == 0);
  assert_true(px_sigmoid(200) == 1 && px_sigmoid(-200) == 0 && px_sigmoid(0) == 0.5f);
  assert_true(isnan(px_exp(NAN)) && isnan(px_tanh(NAN)) && isnan(px_erf(NAN)) && isnan(px_sigmoid(NAN)));
}

/* The vector loop and one call alone give the same bits. */
static void alone_equals_vectorised(void **state) {
  (void)state;
  float x[BLOCK], y[BLOCK];
  for (int i = 0; i < BLOCK; i++) x[i] = (float)(i - 512) * 0.037f;
  block_fn all[] = {px_exp_block, px_tanh_block, px_erf_block};
  float (*one[])(float) = {px_exp, px_tanh, px_erf};
  for (int f = 0; f < 3; f++) {
    all[f](x, y);
    for (int i = 0; i < BLOCK; i++) {
      float alone = one[f](x[i]);
      assert_memory_equal(&alone, &y[i], 4);
    }
  }
}

static void roundings_equal_the_plain_ones(void **state) {
  (void)state;
  for (uint32_t h = 0; h < 65536; h++) {
    float a = px_f16_to_f32((uint16_t)h), b = px_widen_f16((uint16_t)h);
    assert_memory_equal(&a, &b, 4);
  }
  for (uint64_t u = 0; u <= UINT32_MAX; u += 251) {
    uint32_t bits = (uint32_t)u;
    float f;
    memcpy(&f, &bits, 4);
    if (px_round_bf16(f) != px_f32_to_bf16(f)) fail_msg("bf16 of 0x%08x", bits);
    if (px_round_f16(f) != px_f32_to_f16(f)) fail_msg("f16 of 0x%08x", bits);
  }
  /* Exact ties and their neighbours. */
  for (uint32_t h = 0; h < 65536; h++)
    for (int d = -1; d <= 1; d++) {
      uint32_t bf = (h << 16) + 0x8000u + (uint32_t)d, base;
      float f, w = px_f16_to_f32((uint16_t)h);
      memcpy(&f, &bf, 4);
      if (px_round_bf16(f) != px_f32_to_bf16(f)) fail_msg("bf16 of 0x%08x", bf);
      memcpy(&base, &w, 4);
      base += 0x1000u + (uint32_t)d;
      memcpy(&f, &base, 4);
      if (px_round_f16(f) != px_f32_to_f16(f)) fail_msg("f16 of 0x%08x", base);
      w = w + 2.98023223876953125e-8f * (float)d; /* half a unit of a subnormal half */
      if (px_round_f16(w) != px_f32_to_f16(w)) fail_msg("f16 near half 0x%04x", h);
    }
}

static void rows_go_in_and_out(void **state) {
  (void)state;
  uint16_t bf[9], hf[9];
  float x[9], y[9];
  for (int i = 0; i < 9; i++) x[i] = (float)i - 4.25f;
  px_store_row(bf, PX_BF16, 1, 8, x);
  px_store_row(hf, PX_F16, 1, 8, x);
  px_load_row(bf, PX_BF16, 1, 8, y);
  for (int i = 0; i < 8; i++)
    assert_true(y[i] == px_bf16_to_f32(px_f32_to_bf16(x[i])) && px_get(bf, PX_BF16, i + 1) == y[i]);
  px_load_row(hf, PX_F16, 1, 8, y);
  for (int i = 0; i < 8; i++) assert_true(y[i] == x[i] && px_get(hf, PX_F16, i + 1) == y[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(functions_are_exact_to_a_few_ulp),
      cmocka_unit_test(ends_of_the_range),
      cmocka_unit_test(alone_equals_vectorised),
      cmocka_unit_test(roundings_equal_the_plain_ones),
      cmocka_unit_test(rows_go_in_and_out),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
