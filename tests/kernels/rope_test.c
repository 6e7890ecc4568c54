/* SPDX-License-Identifier: MIT */
#include "helpers/kernel.h"

#include "kernels/rope.h"

typedef struct rope_case {
  px_rope_args a;
  float *cos, *sin;
  int32_t *positions;
} rope_case;

enum { TABLE = 300 };

static rope_case make(px_dtype type, int64_t rows, int heads, int head_dim, int rot_dim) {
  int half = rot_dim / 2;
  int64_t width = (int64_t)heads * head_dim, stride = width + gap_of(rows);
  rope_case c = {.cos = guarded((size_t)(TABLE * half) * 4),
                 .sin = guarded((size_t)(TABLE * half) * 4),
                 .positions = guarded((size_t)rows * 4)};
  for (int64_t i = 0; i < TABLE * half; i++) {
    double angle = (double)(i / half) * pow(10000, -(double)(i % half) / half);
    c.cos[i] = (float)cos(angle);
    c.sin[i] = (float)sin(angle);
  }
  for (int64_t t = 0; t < rows; t++) c.positions[t] = (int32_t)((t * 37) % TABLE);
  c.a = (px_rope_args){.dtype = type,
                       .rows = rows,
                       .stride = stride,
                       .heads = heads,
                       .head_dim = head_dim,
                       .rot_dim = rot_dim,
                       .x = numbers(type, rows, width, stride, 1, 2),
                       .positions = c.positions,
                       .cos = c.cos,
                       .sin = c.sin,
                       .table_rows = TABLE};
  return c;
}

static void release(rope_case *c) {
  guarded_free(c->a.x);
  guarded_free(c->cos);
  guarded_free(c->sin);
  guarded_free(c->positions);
}

static double *turned(const rope_case *c) {
  const px_rope_args *a = &c->a;
  int64_t dim = (int64_t)a->heads * a->head_dim;
  int half = a->rot_dim / 2;
  double *want = doubles(a->rows * dim);
  for (int64_t t = 0; t < a->rows; t++)
    for (int64_t i = 0; i < dim; i++) {
      int64_t j = i % a->head_dim, at = t * a->stride + i;
      double x = (double)px_get(a->x, a->dtype, at);
      want[t * dim + i] = x;
      if (j >= a->rot_dim) continue;
      int64_t table = (int64_t)a->positions[t] * half + j % half;
      double other = (double)px_get(a->x, a->dtype, j < half ? at + half : at - half), sine = (double)a->sin[table];
      if (a->inverse) sine = -sine;
      want[t * dim + i] = x * (double)a->cos[table] + (j < half ? -other : other) * sine;
    }
  return want;
}

static void equations_hold_and_the_inverse_undoes(void **state) {
  (void)state;
  static const int dims[][2] = {{2, 2},   {8, 8},     {24, 24},   {64, 64}, {64, 32},
                                {80, 20}, {128, 128}, {256, 256}, {7, 6},   {5, 0}};
  for (int type = 0; type < 2; type++)
    for (int d = 0; d < 10; d++)
      for (int r = 0; r < TEST_ROWS_COUNT; r++)
        for (int inverse = 0; inverse < 2; inverse++) {
          rope_case c = make(TEST_TYPES[type], TEST_ROWS[r], 1 + d % 4, dims[d][0], dims[d][1]);
          int64_t dim = (int64_t)c.a.heads * c.a.head_dim;
          double *before = doubles(c.a.rows * dim);
          for (int64_t i = 0; i < c.a.rows * dim; i++)
            before[i] = (double)px_get(c.a.x, c.a.dtype, i / dim * c.a.stride + i % dim);
          c.a.inverse = inverse;
          double *want = turned(&c);
          assert_null(px_rope_check(&c.a));
          assert_int_equal(px_rope_cpu(&c.a), 0);
          expect_near("x", c.a.dtype, c.a.x, want, c.a.rows, dim, c.a.stride, tolerance_of(c.a.dtype, TOL_F32_ELEMENT));
          c.a.inverse = !inverse;
          assert_int_equal(px_rope_cpu(&c.a), 0);
          expect_near("x", c.a.dtype, c.a.x, before, c.a.rows, dim, c.a.stride,
                      2 * tolerance_of(c.a.dtype, 2 * TOL_F32_ELEMENT));
          free(before);
          free(want);
          release(&c);
        }
}

static void a_position_outside_the_table_is_refused(void **state) {
  (void)state;
  static const int32_t wrong[] = {-1, TABLE, INT32_MAX};
  for (int i = 0; i < 3; i++) {
    rope_case c = make(PX_F32, 9, 2, 16, 16);
    float before[32];
    memcpy(before, (float *)c.a.x + 4 * c.a.stride, sizeof before);
    c.positions[4] = wrong[i];
    assert_int_equal(px_rope_cpu(&c.a), BAD_INDEX);
    assert_memory_equal((float *)c.a.x + 4 * c.a.stride, before, sizeof before);
    release(&c);
  }
}

static void bits_do_not_depend_on_threads(void **state) {
  (void)state;
  for (int type = 0; type < 2; type++) {
    rope_case run[3];
    for (int t = 0; t < 3; t++) {
      run[t] = make(TEST_TYPES[type], 257, 9, 64, 64);
      omp_set_num_threads(t + 1);
      assert_int_equal(px_rope_cpu(&run[t].a), 0);
    }
    omp_set_num_threads(2);
    size_t bytes = (size_t)(257 * run[0].a.stride) * px_dtype_bytes(TEST_TYPES[type], 1);
    assert_memory_equal(run[0].a.x, run[1].a.x, bytes);
    assert_memory_equal(run[0].a.x, run[2].a.x, bytes);
    for (int t = 0; t < 3; t++) release(&run[t]);
  }
}

static void refusals(void **state) {
  (void)state;
  rope_case c = make(PX_F32, 1, 2, 8, 8);
  assert_null(px_rope_check(&c.a));
  REFUSED(px_rope_check, c.a, px_rope_args, b->rot_dim = 7);
  REFUSED(px_rope_check, c.a, px_rope_args, b->rot_dim = 10);
  REFUSED(px_rope_check, c.a, px_rope_args, b->rot_dim = -2);
  REFUSED(px_rope_check, c.a, px_rope_args, b->head_dim = 257);
  REFUSED(px_rope_check, c.a, px_rope_args, b->heads = 0);
  REFUSED(px_rope_check, c.a, px_rope_args, b->rows = -1);
  REFUSED(px_rope_check, c.a, px_rope_args, b->table_rows = -1);
  REFUSED(px_rope_check, c.a, px_rope_args, b->dtype = PX_F16);
  REFUSED(px_rope_check, c.a, px_rope_args, b->stride = 15);
  REFUSED(px_rope_check, c.a, px_rope_args, b->positions = NULL);
  REFUSED(px_rope_check, c.a, px_rope_args, b->cos = NULL);
  release(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(equations_hold_and_the_inverse_undoes),
      cmocka_unit_test(a_position_outside_the_table_is_refused),
      cmocka_unit_test(bits_do_not_depend_on_threads),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
