/* SPDX-License-Identifier: MIT */
#include "kernels/activation.h"

#include "helpers/kernel.h"

static double f(int kind, double x) {
  switch (kind) {
    case PX_ACT_SILU:
      return x / (1 + exp(-x));
    case PX_ACT_GELU_TANH:
      return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case PX_ACT_GELU_ERF:
      return 0.5 * x * (1 + erf(x / sqrt(2)));
    case PX_ACT_RELU:
      return x > 0 ? x : 0;
    default:
      return tanh(x);
  }
}

/* The slope by a central difference of fourth order: no formula is repeated here. */
static double slope(int kind, double x) {
  const double h = 1e-3;
  if (kind == PX_ACT_RELU) return x > 0;
  return (8 * (f(kind, x + h) - f(kind, x - h)) - (f(kind, x + 2 * h) - f(kind, x - 2 * h))) / (12 * h);
}

static void one_case(int kind, px_dtype type, int64_t rows, int64_t dim, bool gated) {
  int64_t gap = gap_of(rows), in = dim + gap, out = dim + 2 * gap, d = dim + 3 * gap, n = rows * dim;
  void *gate = numbers(type, rows, dim, in, 1, 8), *up = gated ? numbers(type, rows, dim, in, 2, 1) : NULL;
  void *dy = numbers(type, rows, dim, out, 3, 1), *y = poison(type, rows, out), *dgate = poison(type, rows, d),
       *dup = gated ? poison(type, rows, d) : NULL;
  px_act_fwd_args a = {kind, type, rows, dim, gate, up, y, in, out};
  px_act_bwd_args b = {kind, type, rows, dim, gate, up, dy, dgate, dup, in, out, d};
  assert_null(px_act_fwd_check(&a));
  assert_null(px_act_bwd_check(&b));
  assert_int_equal(px_act_fwd_cpu(&a), 0);
  assert_int_equal(px_act_bwd_cpu(&b), 0);
  double *wy = doubles(n), *wg = doubles(n), *wu = doubles(n);
  for (int64_t i = 0; i < n; i++) {
    int64_t at = i / dim * in + i % dim;
    double g = (double)px_get(gate, type, at), u = up ? (double)px_get(up, type, at) : 1,
           dyi = (double)px_get(dy, type, i / dim * out + i % dim);
    wy[i] = f(kind, g) * u;
    wg[i] = dyi * slope(kind, g) * u;
    wu[i] = dyi * f(kind, g);
  }
  /* 1 + tanh and 1 + erf cancel for negative x. */
  expect_near_of(1, "y", type, y, wy, rows, dim, out, tolerance_of(type, TOL_F32_FUNCTION));
  expect_near_of(1, "dgate", type, dgate, wg, rows, dim, d, tolerance_of(type, TOL_F32_FUNCTION));
  if (gated) expect_near_of(1, "dup", type, dup, wu, rows, dim, d, tolerance_of(type, TOL_F32_FUNCTION));
  free(wy), free(wg), free(wu);
  guarded_free(gate), guarded_free(dy), guarded_free(y), guarded_free(dgate);
  if (gated) guarded_free(up), guarded_free(dup);
}

static void equals_float64_and_finite_differences(void **state) {
  (void)state;
  for (int kind = 0; kind < 5; kind++)
    for (int m = 0; m < 4; m++)
      for (int d = 0; d < TEST_DIMS_COUNT; d++)
        for (int r = 0; r < (d < 3 ? TEST_ROWS_COUNT : 4); r++)
          one_case(kind, TEST_TYPES[m & 1], TEST_ROWS[r], TEST_DIMS[d], m >> 1);
}

static void bits_do_not_move(void **state) {
  (void)state;
  enum { ROWS = 257, DIM = 576, N = ROWS * DIM };
  for (int m = 0; m < 10; m++) {
    int kind = m / 2;
    px_dtype type = TEST_TYPES[m & 1];
    size_t size = px_dtype_bytes(type, 1), bytes = N * size, at = 131 * DIM * size;
    char *gate = numbers(type, ROWS, DIM, DIM, 1, 4), *up = numbers(type, ROWS, DIM, DIM, 2, 1),
         *dy = numbers(type, ROWS, DIM, DIM, 3, 1);
    char *y[3], *dg[3], *du[3];
    for (int t = 0; t < 3; t++) {
      omp_set_num_threads(t + 1);
      y[t] = guarded(bytes), dg[t] = guarded(bytes), du[t] = guarded(bytes);
      px_act_fwd_cpu(&(px_act_fwd_args){kind, type, ROWS, DIM, gate, up, y[t], DIM, DIM});
      px_act_bwd_cpu(&(px_act_bwd_args){kind, type, ROWS, DIM, gate, up, dy, dg[t], du[t], DIM, DIM, DIM});
      assert_memory_equal(y[t], y[0], bytes);
      assert_memory_equal(dg[t], dg[0], bytes);
      assert_memory_equal(du[t], du[0], bytes);
    }
    omp_set_num_threads(2);
    px_act_fwd_cpu(&(px_act_fwd_args){kind, type, 1, DIM, gate + at, up + at, y[1], DIM, DIM});
    assert_memory_equal(y[1], y[0] + at, DIM * size);
    memcpy(y[1], gate, bytes); /* y in the place of gate; dgate of gate and dup of up */
    px_act_fwd_cpu(&(px_act_fwd_args){kind, type, ROWS, DIM, y[1], up, y[1], DIM, DIM});
    assert_memory_equal(y[1], y[0], bytes);
    px_act_bwd_cpu(&(px_act_bwd_args){kind, type, ROWS, DIM, gate, up, dy, gate, up, DIM, DIM, DIM});
    assert_memory_equal(gate, dg[0], bytes);
    assert_memory_equal(up, du[0], bytes);
    for (int t = 0; t < 3; t++) guarded_free(y[t]), guarded_free(dg[t]), guarded_free(du[t]);
    guarded_free(gate), guarded_free(up), guarded_free(dy);
  }
}

static void refusals(void **state) {
  (void)state;
  float p[64];
  px_act_fwd_args a = {PX_ACT_SILU, PX_F32, 2, 8, p, p, p, 8, 8};
  assert_null(px_act_fwd_check(&a));
#define F(change) REFUSED(px_act_fwd_check, a, px_act_fwd_args, change)
  F(b->kind = 5);
  F(b->dtype = PX_F16);
  F(b->rows = -1);
  F(b->dim = -1);
  F(b->gate = NULL);
  F(b->y = NULL);
  F(b->in_stride = 7);
  F(b->y_stride = 7);
  px_act_bwd_args g = {PX_ACT_SILU, PX_F32, 2, 8, p, p, p, p, p, 8, 8, 8};
  assert_null(px_act_bwd_check(&g));
#define G(change) REFUSED(px_act_bwd_check, g, px_act_bwd_args, change)
  G(b->kind = 5);
  G(b->dtype = PX_F16);
  G(b->rows = -1);
  G(b->dim = -1);
  G(b->gate = NULL);
  G(b->dy = NULL);
  G(b->dgate = NULL);
  G(b->dup = NULL);
  G(b->up = NULL);
  G(b->in_stride = 7);
  G(b->dy_stride = 7);
  G(b->d_stride = 7);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(equals_float64_and_finite_differences),
      cmocka_unit_test(bits_do_not_move),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
