/* SPDX-License-Identifier: MIT
 * Learned scales by adapter id against float64: sequences of every length, without an adapter, with one that has no scales. */
#include "helpers/kernel.h"
#include "kernels/scale.h"

enum { SEQS = 6, COUNT = 3 };

typedef struct problem {
  px_dtype type;
  int64_t rows, dim;
  int32_t *offsets, *adapter;
  float **s, **ds; /* s[1] is NULL: an adapter without scales */
} problem;

static problem open_problem(px_dtype type, int64_t rows, int64_t dim) {
  static const int32_t ids[SEQS] = {0, 0, -1, 2, 1, 0};
  problem p = {type, rows, dim, guarded((SEQS + 1) * 4), guarded(SEQS * 4), guarded(COUNT * sizeof(float *)), guarded(COUNT * sizeof(float *))};
  for (int q = 0; q <= SEQS; q++) p.offsets[q] = (int32_t)(q == SEQS ? rows : rows * q * q / (SEQS * SEQS));
  for (int q = 0; q < SEQS; q++) p.adapter[q] = ids[q];
  for (int i = 0; i < COUNT; i++) {
    p.s[i] = i == 1 ? NULL : numbers(PX_F32, 1, dim, dim, 10 + (uint64_t)i, 1);
    p.ds[i] = numbers(PX_F32, 1, dim, dim, 20 + (uint64_t)i, 1);
  }
  return p;
}

static void close_problem(problem *p) {
  for (int i = 0; i < COUNT; i++) {
    if (p->s[i]) guarded_free(p->s[i]);
    guarded_free(p->ds[i]);
  }
  guarded_free(p->s);
  guarded_free(p->ds);
  guarded_free(p->offsets);
  guarded_free(p->adapter);
}

static int32_t id_of(const problem *p, int64_t t) {
  int q = 0;
  while (t >= p->offsets[q + 1]) q++;
  return p->adapter[q];
}

static double scale_at(const problem *p, int64_t t, int64_t j) {
  int32_t id = id_of(p, t);
  return id < 0 || !p->s[id] ? 1 : (double)p->s[id][j];
}

static void forward(problem *p, bool in_place) {
  int64_t stride = p->dim + gap_of(p->rows);
  void *x = numbers(p->type, p->rows, p->dim, stride, 1, 1), *y = in_place ? x : poison(p->type, p->rows, stride);
  double *want = doubles(p->rows * p->dim);
  for (int64_t t = 0; t < p->rows; t++)
    for (int64_t j = 0; j < p->dim; j++) want[t * p->dim + j] = (double)px_get(x, p->type, t * stride + j) * scale_at(p, t, j);
  px_scale_fwd_args a = {.dtype = p->type, .seqs = SEQS, .count = COUNT, .rows = p->rows, .dim = p->dim, .offsets = p->offsets, .adapter = p->adapter,
                         .s = (const float *const *)p->s, .x = x, .y = y, .x_stride = stride, .y_stride = stride};
  assert_null(px_scale_fwd_check(&a));
  assert_int_equal(px_scale_fwd_cpu(&a), 0);
  expect_near("y", p->type, y, want, p->rows, p->dim, stride, tolerance_of(p->type, TOL_F32_ELEMENT));
  free(want);
  if (!in_place) guarded_free(y);
  guarded_free(x);
}

static void backward(problem *p, bool in_place) {
  int64_t stride = p->dim + gap_of(p->rows), dim = p->dim;
  void *x = numbers(p->type, p->rows, dim, stride, 1, 1), *dy = numbers(p->type, p->rows, dim, stride, 2, 1);
  void *dx = in_place ? dy : poison(p->type, p->rows, stride);
  double *want = doubles(p->rows * dim), *sums = doubles(COUNT * dim);
  for (int i = 0; i < COUNT; i++)
    for (int64_t j = 0; j < dim; j++) sums[i * dim + j] = (double)p->ds[i][j];
  for (int64_t t = 0; t < p->rows; t++)
    for (int64_t j = 0; j < dim; j++) {
      double d = (double)px_get(dy, p->type, t * stride + j);
      int32_t id = id_of(p, t);
      want[t * dim + j] = d * scale_at(p, t, j);
      if (id >= 0 && p->s[id]) sums[id * dim + j] += d * (double)px_get(x, p->type, t * stride + j);
    }
  px_scale_bwd_args a = {.dtype = p->type, .seqs = SEQS, .count = COUNT, .rows = p->rows, .dim = dim, .offsets = p->offsets, .adapter = p->adapter,
                         .s = (const float *const *)p->s, .ds = p->ds, .x = x, .dy = dy, .dx = dx, .stride = stride};
  assert_null(px_scale_bwd_check(&a));
  assert_int_equal(px_scale_bwd_cpu(&a), 0);
  expect_near("dx", p->type, dx, want, p->rows, dim, stride, tolerance_of(p->type, TOL_F32_ELEMENT));
  for (int i = 0; i < COUNT; i++) /* sums of products of bfloat16 are float32 sums too */
    expect_near_of((double)p->rows / 3, "ds", PX_F32, p->ds[i], sums + i * dim, 1, dim, dim, TOL_F32_SUM);
  free(want);
  free(sums);
  if (!in_place) guarded_free(dx);
  guarded_free(dy);
  guarded_free(x);
}

static void test_shapes(void **state) {
  (void)state;
  for (int t = 0; t < 2; t++)
    for (int r = 0; r < TEST_ROWS_COUNT; r++)
      for (int d = 0; d < TEST_DIMS_COUNT; d++)
        for (int in_place = 0; in_place < 2; in_place++) {
          problem p = open_problem(TEST_TYPES[t], TEST_ROWS[r], TEST_DIMS[d]);
          forward(&p, in_place);
          backward(&p, in_place);
          close_problem(&p);
        }
}

/* Gradients that nobody wants are left alone. */
static void test_unwanted(void **state) {
  (void)state;
  problem p = open_problem(PX_F32, 9, 7);
  float *dy = numbers(PX_F32, 9, 7, 7, 2, 1), *dx = poison(PX_F32, 9, 7), *kept = p.ds[0];
  float before = kept[3];
  px_scale_bwd_args a = {.dtype = PX_F32, .seqs = SEQS, .count = COUNT, .rows = 9, .dim = 7, .offsets = p.offsets, .adapter = p.adapter,
                         .s = (const float *const *)p.s, .dy = dy, .dx = dx, .stride = 7};
  assert_null(px_scale_bwd_check(&a));
  assert_int_equal(px_scale_bwd_cpu(&a), 0);
  float *none[COUNT] = {0};
  float **list = guarded(sizeof none);
  memcpy(list, none, sizeof none);
  a.ds = list, a.x = dy;
  assert_int_equal(px_scale_bwd_cpu(&a), 0);
  assert_true(kept[3] == before);
  guarded_free(list);
  guarded_free(dy);
  guarded_free(dx);
  close_problem(&p);
}

static void test_refused(void **state) {
  (void)state;
  float x[8] = {0};
  int32_t offsets[2] = {0, 2}, adapter[1] = {0};
  const float *s[1] = {x};
  px_scale_fwd_args f = {.seqs = 1, .count = 1, .rows = 2, .dim = 4, .offsets = offsets, .adapter = adapter, .s = s, .x = x, .y = x, .x_stride = 4, .y_stride = 4};
  px_scale_bwd_args b_ = {.seqs = 1, .count = 1, .rows = 2, .dim = 4, .offsets = offsets, .adapter = adapter, .s = s, .dy = x, .dx = x, .stride = 4};
  assert_true(!px_scale_fwd_check(&f) && !px_scale_bwd_check(&b_));
  REFUSED(px_scale_fwd_check, f, px_scale_fwd_args, b->x_stride = 3);
  REFUSED(px_scale_fwd_check, f, px_scale_fwd_args, b->x = NULL);
  REFUSED(px_scale_fwd_check, f, px_scale_fwd_args, b->s = NULL);
  REFUSED(px_scale_fwd_check, f, px_scale_fwd_args, b->dtype = PX_F16);
  REFUSED(px_scale_fwd_check, f, px_scale_fwd_args, b->seqs = 0);
  REFUSED(px_scale_bwd_check, b_, px_scale_bwd_args, b->stride = 3);
  REFUSED(px_scale_bwd_check, b_, px_scale_bwd_args, b->dx = NULL);
  REFUSED(px_scale_bwd_check, b_, px_scale_bwd_args, b->ds = (float *const *)s);
}

#ifndef PX_TEST_CUDA
static void test_bad_id(void **state) {
  (void)state;
  float x[4] = {1, 2, 3, 4};
  int32_t offsets[2] = {0, 1}, adapter[1] = {1};
  const float *s[1] = {x};
  px_scale_fwd_args f = {.seqs = 1, .count = 1, .rows = 1, .dim = 4, .offsets = offsets, .adapter = adapter, .s = s, .x = x, .y = x, .x_stride = 4, .y_stride = 4};
  assert_int_equal(px_scale_fwd_cpu(&f), 1);
  assert_true(x[1] == 2);
}
#endif

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_shapes),
      cmocka_unit_test(test_unwanted),
      cmocka_unit_test(test_refused),
#ifndef PX_TEST_CUDA
      cmocka_unit_test(test_bad_id),
#endif
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
