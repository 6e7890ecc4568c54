/* SPDX-License-Identifier: MIT */
#include "helpers/kernel.h"

#include "kernels/elementwise.h"

typedef void (*shape_test)(px_dtype type, int64_t rows, int64_t dim);

static void each_shape(shape_test test) {
  for (int type = 0; type < 2; type++)
    for (int r = 0; r < TEST_ROWS_COUNT; r++)
      for (int d = 0; d < TEST_DIMS_COUNT; d++) test(TEST_TYPES[type], TEST_ROWS[r], TEST_DIMS[d]);
}

static double *values(px_dtype type, const void *x, int64_t rows, int64_t dim, int64_t stride) {
  double *v = doubles(rows * dim);
  for (int64_t e = 0; e < rows * dim; e++) v[e] = (double)px_get(x, type, e / dim * stride + e % dim);
  return v;
}

static void add_one(px_dtype type, int64_t rows, int64_t dim) {
  for (int place = 0; place < 3; place++) { /* y apart, y is a, y is b */
    void *a = numbers(type, rows, dim, dim + gap_of(rows), 1, 1),
         *b = numbers(type, rows, dim, dim + gap_of(rows), 2, 1), *y = poison(type, rows, dim + gap_of(rows));
    double *want = values(type, a, rows, dim, dim + gap_of(rows)),
           *more = values(type, b, rows, dim, dim + gap_of(rows));
    for (int64_t e = 0; e < rows * dim; e++) want[e] += more[e];
    px_add_args args = {.dtype = type,
                        .rows = rows,
                        .dim = dim,
                        .a_stride = dim + gap_of(rows),
                        .b_stride = dim + gap_of(rows),
                        .y_stride = dim + gap_of(rows),
                        .a = a,
                        .b = b,
                        .y = place == 0   ? y
                             : place == 1 ? a
                                          : b};
    assert_null(px_add_check(&args));
    assert_int_equal(px_add_cpu(&args), 0);
    expect_near("y", type, args.y, want, rows, dim, dim + gap_of(rows), tolerance_of(type, TOL_F32_ELEMENT));
    free(want);
    free(more);
    guarded_free(a);
    guarded_free(b);
    guarded_free(y);
  }
}

static void dropout_one(px_dtype type, int64_t rows, int64_t dim) {
  static const float shares[] = {0, 0.25f, 0.9f};
  for (int s = 0; s < 3; s++) {
    void *x = numbers(type, rows, dim, dim + gap_of(rows), 1, 1), *y = poison(type, rows, dim + gap_of(rows));
    double *want = values(type, x, rows, dim, dim + gap_of(rows));
    for (int64_t e = 0; e < rows * dim; e++)
      want[e] = px_uniform(px_philox(99, 4, 12, 1000 + (uint64_t)e).v[0]) >= shares[s]
                    ? want[e] / (1 - (double)shares[s])
                    : 0;
    px_dropout_args args = {.dtype = type,
                            .rows = rows,
                            .dim = dim,
                            .x_stride = dim + gap_of(rows),
                            .y_stride = dim + gap_of(rows),
                            .p = shares[s],
                            .seed = 99,
                            .index0 = 1000,
                            .stream = 4,
                            .step = 12,
                            .x = x,
                            .y = y};
    assert_null(px_dropout_check(&args));
    assert_int_equal(px_dropout_cpu(&args), 0);
    expect_near("y", type, y, want, rows, dim, dim + gap_of(rows), tolerance_of(type, TOL_F32_ELEMENT));
    int64_t *step = guarded(sizeof *step);
    *step = 12;
    args.step = 7, args.step_at = step; /* the one in memory counts */
    args.y = x;                         /* in place, on the same numbers */
    assert_int_equal(px_dropout_cpu(&args), 0);
    guarded_free(step);
    assert_memory_equal(x, y, (size_t)(rows * (dim + gap_of(rows))) * px_dtype_bytes(type, 1));
    free(want);
    guarded_free(x);
    guarded_free(y);
  }
}

static void col_sum_one(px_dtype type, int64_t rows, int64_t dim) {
  void *x = numbers(type, rows, dim, dim + gap_of(rows), 1, 1);
  float *out = numbers(PX_F32, 1, dim, dim, 2, 1), *again = numbers(PX_F32, 1, dim, dim, 2, 1);
  double *want = values(PX_F32, out, 1, dim, dim);
  for (int64_t t = 0; t < rows; t++)
    for (int64_t j = 0; j < dim; j++) want[j] += (double)px_get(x, type, t * (dim + gap_of(rows)) + j);
  px_col_sum_args args = {.dtype = type, .rows = rows, .dim = dim, .x_stride = dim + gap_of(rows), .x = x, .out = out};
  assert_null(px_col_sum_check(&args));
  assert_int_equal(px_col_sum_cpu(&args), 0);
  expect_near("out", PX_F32, out, want, 1, dim, dim, TOL_F32_SUM);
  omp_set_num_threads(1);
  args.out = again;
  assert_int_equal(px_col_sum_cpu(&args), 0);
  omp_set_num_threads(2);
  assert_memory_equal(out, again, (size_t)dim * sizeof(float));
  free(want);
  guarded_free(x);
  guarded_free(out);
  guarded_free(again);
}

static void rows_one(px_dtype type, int64_t rows, int64_t dim) {
  int64_t all = 2 * rows + 3;
  int32_t *index = guarded((size_t)rows * 4);
  for (int64_t i = 0; i < rows; i++) index[i] = (int32_t)(2 * i + i % 2); /* ascending, distinct */
  void *x = numbers(type, all, dim, dim + gap_of(rows), 1, 1), *few = poison(type, rows, dim + gap_of(rows)),
       *back = poison(type, all, dim + gap_of(rows));
  double *from = values(type, x, all, dim, dim + gap_of(rows)), *gathered = doubles(rows * dim),
         *scattered = doubles(all * dim);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < dim; j++) gathered[i * dim + j] = scattered[index[i] * dim + j] = from[index[i] * dim + j];
  px_rows_args args = {.dtype = type,
                       .rows = rows,
                       .all_rows = all,
                       .dim = dim,
                       .x_stride = dim + gap_of(rows),
                       .y_stride = dim + gap_of(rows),
                       .index = index,
                       .x = x,
                       .y = few};
  assert_null(px_gather_rows_check(&args));
  assert_int_equal(px_gather_rows_cpu(&args), 0);
  expect_near("gathered", type, few, gathered, rows, dim, dim + gap_of(rows), 0);
  args.x = few;
  args.y = back;
  assert_null(px_scatter_rows_check(&args));
  assert_int_equal(px_scatter_rows_cpu(&args), 0);
  expect_near("scattered", type, back, scattered, all, dim, dim + gap_of(rows), 0);
  free(from);
  free(gathered);
  free(scattered);
  guarded_free(index);
  guarded_free(x);
  guarded_free(few);
  guarded_free(back);
}

static void sums(void **state) {
  (void)state;
  each_shape(add_one);
}
static void factors(void **state) {
  (void)state;
}
static void dropout_is_a_function_of_seed_stream_step_and_index(void **state) {
  (void)state;
  each_shape(dropout_one);
}
static void column_sums_accumulate_in_the_same_order_on_any_threads(void **state) {
  (void)state;
  each_shape(col_sum_one);
}
static void rows_are_gathered_and_scattered(void **state) {
  (void)state;
  each_shape(rows_one);
}

static void half_of_the_values_are_dropped_at_one_half(void **state) {
  (void)state;
  enum { N = 100000 };
  float *x = guarded(N * sizeof(float));
  for (int i = 0; i < N; i++) x[i] = 1;
  px_dropout_args args = {.rows = 1, .dim = N, .x_stride = N, .y_stride = N, .p = 0.5f, .seed = 1, .x = x, .y = x};
  assert_int_equal(px_dropout_cpu(&args), 0);
  int kept = 0;
  for (int i = 0; i < N; i++) {
    assert_true(x[i] == 0 || x[i] == 2);
    kept += x[i] == 2;
  }
  assert_in_range(kept, N / 2 - 800, N / 2 + 800); /* five standard deviations */
  guarded_free(x);
}

/* Every bfloat16 and half number there is, and float32 numbers around every rounding boundary. */
static void casts_round_to_nearest_even(void **state) {
  (void)state;
  enum { ALL = 65536 };
  static const px_dtype small[] = {PX_BF16, PX_F16};
  uint16_t *bits = guarded(ALL * 2), *back = guarded(ALL * 2);
  float *wide = guarded(ALL * 4);
  for (int i = 0; i < ALL; i++) bits[i] = (uint16_t)i;
  for (int s = 0; s < 2; s++) {
    px_cast_args up = {.x_type = small[s],
                       .y_type = PX_F32,
                       .rows = 1,
                       .dim = ALL,
                       .x_stride = ALL,
                       .y_stride = ALL,
                       .x = bits,
                       .y = wide};
    px_cast_args down = {.x_type = PX_F32,
                         .y_type = small[s],
                         .rows = 1,
                         .dim = ALL,
                         .x_stride = ALL,
                         .y_stride = ALL,
                         .x = wide,
                         .y = back};
    assert_null(px_cast_check(&up));
    assert_int_equal(px_cast_cpu(&up), 0);
    assert_int_equal(px_cast_cpu(&down), 0);
    int exponent = s ? 10 : 7;
    for (int i = 0; i < ALL; i++) {
      bool nan = (i >> exponent & (s ? 31 : 255)) == (s ? 31 : 255) && (i & ((1 << exponent) - 1));
      if (nan ? !isnan(wide[i]) : back[i] != bits[i])
        fail_msg("type %d, bits %04x became %g and %04x", s, i, (double)wide[i], back[i]);
    }
    /* Halfway between i and i + 1 goes to the even one, a hair beside it to the nearer. */
    for (int i = 0; i < 0x7000; i++) {
      if ((i + 1) >> exponent >= (s ? 31 : 255)) break;
      float low = px_get(bits, small[s], i), high = px_get(bits, small[s], i + 1), half = low + (high - low) / 2;
      float near[3] = {nextafterf(half, low), half, nextafterf(half, high)};
      uint16_t got[3], want[3] = {(uint16_t)i, (uint16_t)(i + (i & 1)), (uint16_t)(i + 1)};
      px_cast_args one = {
          .x_type = PX_F32, .y_type = small[s], .rows = 3, .dim = 1, .x_stride = 1, .y_stride = 1, .x = near, .y = got};
      assert_int_equal(px_cast_cpu(&one), 0);
      for (int j = 0; j < 3; j++)
        if (got[j] != want[j]) fail_msg("%a became %04x, not %04x", (double)near[j], got[j], want[j]);
    }
  }
  guarded_free(bits);
  guarded_free(back);
  guarded_free(wide);
}

static void refusals(void **state) {
  (void)state;
  float x[16] = {0}, y[16];
  int32_t index[2] = {0, 1};
  px_add_args add = {.rows = 2, .dim = 4, .a_stride = 4, .b_stride = 4, .y_stride = 4, .a = x, .b = x, .y = y};
  px_dropout_args dropout = {.rows = 2, .dim = 4, .x_stride = 4, .y_stride = 4, .p = 0.5f, .x = x, .y = y};
  px_cast_args cast = {
      .x_type = PX_F32, .y_type = PX_BF16, .rows = 2, .dim = 4, .x_stride = 4, .y_stride = 4, .x = x, .y = y};
  px_col_sum_args sum = {.rows = 2, .dim = 4, .x_stride = 4, .x = x, .out = y};
  px_rows_args rows = {
      .rows = 2, .all_rows = 4, .dim = 4, .x_stride = 4, .y_stride = 4, .index = index, .x = x, .y = y};
  assert_true(!px_add_check(&add) && !px_dropout_check(&dropout) && !px_cast_check(&cast) &&
              !px_col_sum_check(&sum) && !px_gather_rows_check(&rows) && !px_scatter_rows_check(&rows));
  REFUSED(px_add_check, add, px_add_args, b->a = NULL);
  REFUSED(px_add_check, add, px_add_args, b->y_stride = 3);
  REFUSED(px_add_check, add, px_add_args, b->dtype = PX_F16);
  REFUSED(px_dropout_check, dropout, px_dropout_args, b->p = 1);
  REFUSED(px_dropout_check, dropout, px_dropout_args, b->p = -0.1f);
  REFUSED(px_dropout_check, dropout, px_dropout_args, b->p = NAN);
  REFUSED(px_cast_check, cast, px_cast_args, b->y = NULL);
  REFUSED(px_cast_check, cast, px_cast_args, b->rows = -1);
  REFUSED(px_col_sum_check, sum, px_col_sum_args, b->out = NULL);
  REFUSED(px_gather_rows_check, rows, px_rows_args, b->index = NULL);
  REFUSED(px_scatter_rows_check, rows, px_rows_args, b->index = NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sums),
      cmocka_unit_test(factors),
      cmocka_unit_test(dropout_is_a_function_of_seed_stream_step_and_index),
      cmocka_unit_test(half_of_the_values_are_dropped_at_one_half),
      cmocka_unit_test(column_sums_accumulate_in_the_same_order_on_any_threads),
      cmocka_unit_test(rows_are_gathered_and_scattered),
      cmocka_unit_test(casts_round_to_nearest_even),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
