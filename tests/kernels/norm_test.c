/* SPDX-License-Identifier: MIT */
#include "kernels/norm.h"

#include "helpers/kernel.h"

enum { EPS_INVERSE = 100000 };

/* y of one row in float64; also u's mean and 1 / deviation. */
static void reference_row(px_norm_kind kind, const double *u, const double *w, const double *b, int64_t dim, double *y,
                          double *mean, double *rstd) {
  double m = 0, v = 0;
  for (int64_t i = 0; i < dim && kind == PX_NORM_LAYER; i++) m += u[i] / (double)dim;
  for (int64_t i = 0; i < dim; i++) v += (u[i] - m) * (u[i] - m) / (double)dim;
  *mean = m;
  *rstd = 1 / sqrt(v + 1.0 / EPS_INVERSE);
  for (int64_t i = 0; i < dim; i++) y[i] = (u[i] - m) * *rstd * w[i] + (b ? b[i] : 0);
}

static void reference_bwd(px_norm_kind kind, const double *u, const double *w, const double *dy, int64_t dim,
                          double *dx, double *n) {
  double mean, rstd, mean_g = 0, mean_gn = 0;
  reference_row(kind, u, w, NULL, dim, dx, &mean, &rstd);
  for (int64_t i = 0; i < dim; i++) {
    n[i] = (u[i] - mean) * rstd;
    mean_g += dy[i] * w[i] / (double)dim;
    mean_gn += dy[i] * w[i] * n[i] / (double)dim;
  }
  for (int64_t i = 0; i < dim; i++)
    dx[i] = rstd * (dy[i] * w[i] - (kind == PX_NORM_LAYER ? mean_g : 0) - n[i] * mean_gn);
}

typedef struct setting {
  px_norm_kind kind;
  px_dtype type, weight_type;
  int64_t rows;
  int32_t heads, dim;
  bool residual, bias;
} setting;

static void forward_case(setting s) {
  int64_t row = (int64_t)s.heads * s.dim, gap = gap_of(s.rows), stride = row + gap, y_stride = row + 2 * gap,
          n = s.rows * row;
  void *x = numbers(s.type, s.rows, row, stride, 1, 2),
       *r = s.residual ? numbers(s.type, s.rows, row, stride, 2, 1) : NULL;
  void *sum = s.residual ? poison(s.type, s.rows, stride) : NULL, *y = poison(s.type, s.rows, y_stride);
  void *w = numbers(s.weight_type, 1, s.dim, s.dim, 3, 1),
       *b = s.bias ? numbers(s.weight_type, 1, s.dim, s.dim, 4, 1) : NULL;
  float *rstd = guarded((size_t)(s.rows * s.heads) * 4), *mean = guarded((size_t)(s.rows * s.heads) * 4);
  px_norm_fwd_args a = {s.kind, s.type, s.weight_type, s.rows,   s.heads, s.dim, 1.0f / EPS_INVERSE, x, r, sum, w,
                        b,      y,      stride,        y_stride, rstd,    mean};
  assert_null(px_norm_fwd_check(&a));
  assert_int_equal(px_norm_fwd_cpu(&a), 0);
  double *u = doubles(n), *want = doubles(n), *wd = doubles(s.dim), *bd = doubles(s.dim);
  for (int32_t i = 0; i < s.dim; i++)
    wd[i] = (double)px_get(w, s.weight_type, i), bd[i] = b ? (double)px_get(b, s.weight_type, i) : 0;
  for (int64_t i = 0; i < n; i++) {
    int64_t at = i / row * stride + i % row;
    float v = px_get(x, s.type, at) + (r ? px_get(r, s.type, at) : 0);
    u[i] = (double)(s.type == PX_BF16 ? px_bf16_to_f32(px_f32_to_bf16(v)) : v);
  }
  if (sum) expect_near("sum", s.type, sum, u, s.rows, row, stride, 0);
  for (int64_t i = 0; i < s.rows * s.heads; i++) {
    double m, v;
    reference_row(s.kind, u + i * s.dim, wd, b ? bd : NULL, s.dim, want + i * s.dim, &m, &v);
    assert_true(fabs((double)rstd[i] - v) <= TOL_F32_SUM * v);
    if (s.kind == PX_NORM_LAYER) assert_true(fabs((double)mean[i] - m) <= TOL_F32_SUM);
  }
  expect_near("y", s.type, y, want, s.rows, row, y_stride, tolerance_of(s.type, TOL_F32_SUM));
  free(u), free(want), free(wd), free(bd);
  void *all[] = {x, y, w, rstd, mean, r, sum, b};
  for (int i = 0; i < 8; i++)
    if (all[i]) guarded_free(all[i]);
}

static void backward_case(setting s) {
  int64_t row = (int64_t)s.heads * s.dim, gap = gap_of(s.rows), stride = row + gap, dy_stride = row + 2 * gap,
          dx_stride = row + 3 * gap, n = s.rows * row;
  void *x = numbers(s.type, s.rows, row, stride, 1, 2), *dy = numbers(s.type, s.rows, row, dy_stride, 5, 1);
  void *y = poison(s.type, s.rows, row), *dx = poison(s.type, s.rows, dx_stride),
       *w = numbers(s.weight_type, 1, s.dim, s.dim, 3, 1);
  void *dr = s.residual ? numbers(s.type, s.rows, row, dx_stride, 6, 1) : NULL;
  float *rstd = guarded((size_t)(s.rows * s.heads) * 4), *mean = guarded((size_t)(s.rows * s.heads) * 4);
  float *dw = numbers(PX_F32, 1, s.dim, s.dim, 8, 1), *db = numbers(PX_F32, 1, s.dim, s.dim, 9, 1);
  px_norm_fwd_args f = {s.kind, s.type, s.weight_type, s.rows, s.heads, s.dim, 1.0f / EPS_INVERSE, x, NULL, NULL, w,
                        NULL,   y,      stride,        row,    rstd,    mean};
  assert_int_equal(px_norm_fwd_cpu(&f), 0);
  px_norm_bwd_args a = {s.kind, s.type, s.weight_type, s.rows, s.heads,   s.dim, dy, x, w, rstd, mean,
                        dr,     dx,     dy_stride,     stride, dx_stride, dw,    db};
  assert_null(px_norm_bwd_check(&a));
  assert_int_equal(px_norm_bwd_cpu(&a), 0);
  double *u = doubles(s.dim), *g = doubles(s.dim), *wd = doubles(s.dim), *nd = doubles(s.dim), *want = doubles(n);
  double *want_w = doubles(s.dim), *want_b = doubles(s.dim);
  for (int32_t i = 0; i < s.dim; i++) {
    wd[i] = (double)px_get(w, s.weight_type, i);
    want_w[i] = (double)number(8, i);
    want_b[i] = (double)number(9, i);
  }
  for (int64_t r = 0; r < s.rows * s.heads; r++) {
    int64_t t = r / s.heads, at = r % s.heads * s.dim;
    for (int32_t i = 0; i < s.dim; i++)
      u[i] = (double)px_get(x, s.type, t * stride + at + i), g[i] = (double)px_get(dy, s.type, t * dy_stride + at + i);
    reference_bwd(s.kind, u, wd, g, s.dim, want + r * s.dim, nd);
    for (int32_t i = 0; i < s.dim; i++) {
      if (dr) want[r * s.dim + i] += (double)px_get(dr, s.type, t * dx_stride + at + i);
      want_w[i] += g[i] * nd[i];
      want_b[i] += g[i];
    }
  }
  /* Of one element, rms cancels to rstd^3 eps dy: only the size of what cancels bounds the error there. */
  if (s.dim > 1) expect_near("dx", s.type, dx, want, s.rows, row, dx_stride, tolerance_of(s.type, 2 * TOL_F32_SUM));
  expect_near("dw", PX_F32, dw, want_w, 1, s.dim, s.dim, 4 * TOL_F32_SUM);
  expect_near("db", PX_F32, db, want_b, 1, s.dim, s.dim, 4 * TOL_F32_SUM);
  free(u), free(g), free(wd), free(nd), free(want), free(want_w), free(want_b);
  void *all[] = {x, dy, y, dx, w, rstd, mean, dw, db, dr};
  for (int i = 0; i < 10; i++)
    if (all[i]) guarded_free(all[i]);
}

static void equals_float64(void **state) {
  (void)state;
  for (int r = 0; r < TEST_ROWS_COUNT; r++)
    for (int d = 0; d < TEST_DIMS_COUNT; d++)
      for (int m = 0; m < 8; m++) {
        px_dtype type = TEST_TYPES[m & 1];
        setting s = {(m >> 1) & 1 ? PX_NORM_LAYER : PX_NORM_RMS,
                     type,
                     (r & 1) ? type : PX_F32,
                     TEST_ROWS[r],
                     1,
                     (int32_t)TEST_DIMS[d],
                     m >> 2,
                     m >> 2};
        forward_case(s);
        backward_case(s);
      }
  for (int m = 0; m < 8; m++) { /* rows that a block of a device shares */
    int32_t dim = m & 4 ? 4096 : 1500;
    setting s = {m & 1 ? PX_NORM_LAYER : PX_NORM_RMS, TEST_TYPES[m >> 1 & 1], PX_F32, 3, 1, dim, true, true};
    forward_case(s);
    backward_case(s);
  }
  for (int m = 0; m < 4; m++) {
    setting s = {m & 1 ? PX_NORM_LAYER : PX_NORM_RMS, TEST_TYPES[m >> 1], PX_F32, 9, 3, 64, false, false};
    forward_case(s);
    backward_case(s);
  }
}

static void finite_differences(void **state) {
  (void)state;
  enum { DIM = 64 };
  for (int kind = 0; kind < 2; kind++)
    for (int64_t dim = 7; dim <= DIM; dim += DIM - 7) {
      float x[DIM], w[DIM], y[DIM], dy[DIM], dx[DIM], rstd, mean;
      double u[DIM], wd[DIM], out[DIM], want[DIM], m, v;
      for (int i = 0; i < dim; i++) u[i] = x[i] = number(1, i), wd[i] = w[i] = number(2, i), dy[i] = number(3, i);
      px_norm_fwd_args f = {.kind = kind,
                            .rows = 1,
                            .heads = 1,
                            .dim = (int32_t)dim,
                            .eps = 1.0f / EPS_INVERSE,
                            .x = x,
                            .weight = w,
                            .y = y,
                            .x_stride = dim,
                            .y_stride = dim,
                            .rstd = &rstd,
                            .mean = &mean};
      px_norm_fwd_cpu(&f);
      px_norm_bwd_args a = {.kind = kind,
                            .rows = 1,
                            .heads = 1,
                            .dim = (int32_t)dim,
                            .dy = dy,
                            .x = x,
                            .weight = w,
                            .rstd = &rstd,
                            .mean = &mean,
                            .dx = dx,
                            .dy_stride = dim,
                            .x_stride = dim,
                            .dx_stride = dim};
      px_norm_bwd_cpu(&a);
      for (int i = 0; i < dim; i++) {
        double kept = u[i], side[2];
        for (int k = 0; k < 2; k++) {
          u[i] = kept + (k ? 1e-5 : -1e-5);
          reference_row(kind, u, wd, NULL, dim, out, &m, &v);
          side[k] = 0;
          for (int j = 0; j < dim; j++) side[k] += out[j] * (double)dy[j];
        }
        u[i] = kept;
        want[i] = (side[1] - side[0]) / 2e-5;
      }
      expect_near("dx", PX_F32, dx, want, 1, dim, dim, TOL_DIFFERENCE + 2 * TOL_F32_SUM);
    }
}

/* Bits: any number of threads, a row alone, and every aliasing that the contract allows. */
static void bits_do_not_move(void **state) {
  (void)state;
  enum { ROWS = 257, DIM = 576, N = ROWS * DIM };
  for (int m = 0; m < 4; m++) {
    px_norm_kind kind = m & 1 ? PX_NORM_LAYER : PX_NORM_RMS;
    px_dtype type = TEST_TYPES[m >> 1];
    size_t size = px_dtype_bytes(type, 1), bytes = N * size;
    char *x = numbers(type, ROWS, DIM, DIM, 1, 1), *r = numbers(type, ROWS, DIM, DIM, 2, 1),
         *w = numbers(PX_F32, 1, DIM, DIM, 3, 1);
    char *dy = numbers(type, ROWS, DIM, DIM, 4, 1), *dr = numbers(type, ROWS, DIM, DIM, 5, 1);
    char *sum[3], *y[3], *dx[3];
    float *dw[3], *db[3], *rstd = guarded(ROWS * 4), *mean = guarded(ROWS * 4);
    px_norm_fwd_args f = {kind, type, PX_F32, ROWS, 1, DIM, 1e-5f, x, r, NULL, w, NULL, NULL, DIM, DIM, rstd, mean};
    px_norm_bwd_args b = {kind, type, PX_F32, ROWS, 1,   DIM, dy,  NULL, w,
                          rstd, mean, dr,     NULL, DIM, DIM, DIM, NULL, NULL};
    for (int t = 0; t < 3; t++) {
      omp_set_num_threads(t + 1);
      f.sum = sum[t] = guarded(bytes), f.y = y[t] = guarded(bytes);
      px_norm_fwd_cpu(&f);
      b.x = sum[t], b.dx = dx[t] = guarded(bytes), b.dw = dw[t] = numbers(PX_F32, 1, DIM, DIM, 6, 1),
      b.db = db[t] = numbers(PX_F32, 1, DIM, DIM, 7, 1);
      px_norm_bwd_cpu(&b);
      assert_memory_equal(sum[t], sum[0], bytes);
      assert_memory_equal(y[t], y[0], bytes);
      assert_memory_equal(dx[t], dx[0], bytes);
      assert_memory_equal(dw[t], dw[0], DIM * 4);
      assert_memory_equal(db[t], db[0], DIM * 4);
    }
    omp_set_num_threads(2);
    size_t at = 131 * DIM * size;
    px_norm_fwd_args one = f;
    one.rows = 1, one.x = x + at, one.residual = r + at, one.sum = sum[1] + at, one.y = y[1] + at,
    one.rstd = one.mean = NULL;
    memset(y[1] + at, 0xff, DIM * size);
    px_norm_fwd_cpu(&one);
    assert_memory_equal(y[1], y[0], bytes);
    px_norm_bwd_args in_place = b; /* dx takes the place of dy, then of dresidual */
    in_place.dx = dy, in_place.dw = NULL, in_place.db = dw[1];
    memcpy(dx[1], dy, bytes);
    px_norm_bwd_cpu(&in_place);
    assert_memory_equal(dy, dx[0], bytes);
    in_place.dy = dx[1], in_place.dx = dr, in_place.db = NULL;
    px_norm_bwd_cpu(&in_place);
    assert_memory_equal(dr, dx[0], bytes);
    f.sum = x, f.y = y[1]; /* sum takes the place of x, then y the place of x without a residual */
    px_norm_fwd_cpu(&f);
    assert_memory_equal(x, sum[0], bytes);
    assert_memory_equal(y[1], y[0], bytes);
    f.residual = f.sum = NULL, f.y = x;
    px_norm_fwd_cpu(&f);
    assert_memory_equal(x, y[0], bytes);
    for (int t = 0; t < 3; t++)
      guarded_free(sum[t]), guarded_free(y[t]), guarded_free(dx[t]), guarded_free(dw[t]), guarded_free(db[t]);
    void *all[] = {x, r, w, dy, dr, rstd, mean};
    for (int i = 0; i < 7; i++) guarded_free(all[i]);
  }
}

static void refusals(void **state) {
  (void)state;
  float p[64];
  px_norm_fwd_args f = {PX_NORM_RMS, PX_F32, PX_F32, 2, 2, 8, 1e-5f, p, p, p, p, NULL, p, 16, 16, p, p};
  assert_null(px_norm_fwd_check(&f));
#define F(change) REFUSED(px_norm_fwd_check, f, px_norm_fwd_args, change)
  F(b->kind = 2);
  F(b->rows = -1);
  F(b->heads = 0);
  F(b->dim = 0);
  F(b->dtype = PX_F16);
  F(b->weight_type = PX_BF16);
  F(b->residual = NULL);
  F(b->sum = NULL);
  F(b->x = NULL);
  F(b->y = NULL);
  F(b->weight = NULL);
  F(b->x_stride = 15);
  F(b->y_stride = 15);
  px_norm_bwd_args g = {PX_NORM_LAYER, PX_F32, PX_F32, 2, 2, 8, p, p, p, p, p, p, p, 16, 16, 16, p, p};
  assert_null(px_norm_bwd_check(&g));
#define G(change) REFUSED(px_norm_bwd_check, g, px_norm_bwd_args, change)
  G(b->kind = 2);
  G(b->rows = -1);
  G(b->heads = 0);
  G(b->dim = 0);
  G(b->dtype = PX_I32);
  G(b->weight_type = PX_F16);
  G(b->dy = NULL);
  G(b->x = NULL);
  G(b->weight = NULL);
  G(b->rstd = NULL);
  G(b->mean = NULL);
  G(b->dy_stride = 15);
  G(b->x_stride = 15);
  G(b->dx_stride = 15);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(equals_float64),
      cmocka_unit_test(finite_differences),
      cmocka_unit_test(bits_do_not_move),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
