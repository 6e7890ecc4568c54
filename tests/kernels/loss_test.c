/* SPDX-License-Identifier: MIT */
#include "helpers/kernel.h"

#include "kernels/loss.h"

typedef struct problem {
  px_loss_args a;
  int32_t *targets, *group;
  double sums[2 * 3]; /* two doubles a group: the sum, and something that must not change */
} problem;

static void make(problem *p, px_dtype type, int64_t rows, int64_t vocab, float scale) {
  int64_t stride =
      (rows % 2 ? (vocab + 7) / 8 * 8 : vocab) + gap_of(rows); /* the vocabulary itself need not be words */
  *p = (problem){
      .targets = guarded((size_t)rows * 4), .group = guarded((size_t)rows * 4), .sums = {1, 77, 2, 77, 3, 77}};
  for (int64_t t = 0; t < rows; t++) {
    p->targets[t] = (int32_t)((t * 7919) % vocab);
    p->group[t] = (int32_t)(t % 3);
  }
  p->a = (px_loss_args){.dtype = type,
                        .rows = rows,
                        .vocab = vocab,
                        .stride = stride,
                        .logits = numbers(type, rows, vocab, stride, 1, scale),
                        .targets = p->targets,
                        .group = p->group,
                        .row_loss = poison(PX_F32, 1, rows),
                        .loss_sum = p->sums,
                        .loss_stride = 2,
                        .write_grad = true};
}

static void release(problem *p) {
  guarded_free(p->a.logits);
  guarded_free(p->targets);
  guarded_free(p->group);
  guarded_free(p->a.row_loss);
}

/* loss of each row, and the gradient where grad is given; float64 */
static void reference(const problem *p, double *loss, double *grad) {
  const px_loss_args *a = &p->a;
  for (int64_t t = 0; t < a->rows; t++) {
    double largest = -INFINITY, sum = 0;
    for (int64_t j = 0; j < a->vocab; j++)
      largest = fmax(largest, (double)px_get(a->logits, a->dtype, t * a->stride + j));
    for (int64_t j = 0; j < a->vocab; j++) sum += exp((double)px_get(a->logits, a->dtype, t * a->stride + j) - largest);
    double lse = largest + log(sum);
    loss[t] = lse - (double)px_get(a->logits, a->dtype, t * a->stride + p->targets[t]);
    for (int64_t j = 0; grad && j < a->vocab; j++)
      grad[t * a->vocab + j] = exp((double)px_get(a->logits, a->dtype, t * a->stride + j) - lse) - (j == p->targets[t]);
  }
}

static void losses_and_gradients_hold(void **state) {
  (void)state;
  static const int64_t vocabs[] = {1, 2, 7, 511, 512, 513, 5000};
  static const float scales[] = {1, 30, 3000};
  for (int type = 0; type < 2; type++)
    for (int v = 0; v < 7; v++)
      for (int r = 0; r < TEST_ROWS_COUNT; r++)
        for (int s = 0; s < 3; s++) {
          if (SLOWER > 1 && s != 1 && TEST_ROWS[r] * vocabs[v] > 100000) continue; /* a million fibers for a scale */
          problem p;
          make(&p, TEST_TYPES[type], TEST_ROWS[r], vocabs[v], scales[s]);
          int64_t rows = p.a.rows;
          double *loss = doubles(rows), *grad = doubles(rows * p.a.vocab), sums[3] = {1, 2, 3};
          reference(&p, loss, grad);
          assert_null(px_loss_check(&p.a));
          assert_int_equal(px_loss_cpu(&p.a), 0);
          expect_near_of((double)scales[s], "loss", PX_F32, p.a.row_loss, loss, 1, rows, rows, TOL_F32_SOFTMAX);
          expect_near_of(1, "gradient", p.a.dtype, p.a.logits, grad, rows, p.a.vocab, p.a.stride,
                         tolerance_of(p.a.dtype, TOL_F32_SOFTMAX));
          for (int64_t t = 0; t < rows; t++) sums[t % 3] += (double)p.a.row_loss[t];
          for (int g = 0; g < 3; g++) {
            assert_true(fabs(p.sums[2 * g] - sums[g]) <= 1e-6 * sums[g]);
            assert_true(p.sums[2 * g + 1] == 77);
          }
          free(loss);
          free(grad);
          release(&p);
        }
}

static void logits_stay_where_no_gradient_is_wanted(void **state) {
  (void)state;
  problem p, same;
  make(&p, PX_F32, 9, 700, 5);
  make(&same, PX_F32, 9, 700, 5);
  p.a.write_grad = false;
  p.a.group = NULL;
  assert_int_equal(px_loss_cpu(&p.a), 0);
  assert_memory_equal(p.a.logits, same.a.logits, 9 * 703 * sizeof(float));
  double sum = 1;
  for (int t = 0; t < 9; t++) sum += (double)p.a.row_loss[t];
  assert_true(fabs(p.sums[0] - sum) < 1e-5);
  assert_true(p.sums[2] == 2);
  p.a.loss_sum = NULL;
  float *row_loss = p.a.row_loss;
  p.a.row_loss = NULL; /* nothing is wanted: nothing happens */
  assert_int_equal(px_loss_cpu(&p.a), 0);
  p.a.row_loss = row_loss;
  release(&p);
  release(&same);
}

/* A large finite logit, one of -inf, and rows that have no loss. */
static void the_ends_of_the_number_line(void **state) {
  (void)state;
  problem p;
  make(&p, PX_F32, 7, 600, 1);
  float *z = p.a.logits;
  int64_t stride = p.a.stride;
  for (int64_t j = 0; j < 600; j++) z[0 * stride + j] = j == p.targets[0] ? 3e38f : -3e38f;
  for (int64_t j = 0; j < 600; j++) z[1 * stride + j] = -INFINITY;
  z[2 * stride + 5] = NAN;
  z[3 * stride + 599] = INFINITY;
  z[4 * stride + p.targets[4]] = -INFINITY;
  z[5 * stride + (p.targets[5] + 1) % 600] = -INFINITY;
  p.targets[6] = 600;
  assert_int_equal(px_loss_cpu(&p.a), 0);
  assert_true(p.a.row_loss[0] == 0);
  assert_true(isnan(p.a.row_loss[1]));
  assert_true(isnan(p.a.row_loss[2]));
  assert_true(isnan(p.a.row_loss[3]));
  assert_true(isinf(p.a.row_loss[4]) && p.a.row_loss[4] > 0);
  assert_true(isfinite(p.a.row_loss[5]));
  assert_true(isnan(p.a.row_loss[6]));
  assert_true(z[5 * stride + (p.targets[5] + 1) % 600] == 0);
  release(&p);
}

/* Rows without a target take no part, whatever they hold. */
static void rows_that_fill_up_count_for_nothing(void **state) {
  (void)state;
  for (int type = 0; type < 2; type++)
    for (int with_grad = 0; with_grad < 2; with_grad++) {
      problem p, q;
      make(&p, TEST_TYPES[type], 5, 519, 1), make(&q, TEST_TYPES[type], 5, 519, 1);
      p.a.write_grad = q.a.write_grad = with_grad;
      p.targets[1] = p.targets[4] = PX_NO_TARGET;
      size_t element = px_dtype_bytes(p.a.dtype, 1), row = (size_t)p.a.stride * element;
      memset((char *)p.a.logits + 4 * row, 0xff, 519 * element); /* NaN */
      assert_int_equal(px_loss_cpu(&p.a), 0);
      assert_int_equal(px_loss_cpu(&q.a), 0);
      for (int64_t t = 0; t < 5; t++) {
        bool fills = t == 1 || t == 4;
        assert_true(fills ? p.a.row_loss[t] == 0 : p.a.row_loss[t] == q.a.row_loss[t]);
        for (int64_t j = 0; with_grad && j < p.a.vocab; j++) {
          float got = px_get(p.a.logits, p.a.dtype, t * p.a.stride + j),
                other = px_get(q.a.logits, q.a.dtype, t * q.a.stride + j);
          assert_true(fills ? got == 0 : got == other);
        }
      }
      assert_true(p.sums[2] == 2); /* group 1 is rows 1 and 4 */
      assert_true(p.sums[0] == q.sums[0] && p.sums[4] == q.sums[4]);
      release(&p), release(&q);
    }
}

/* The float32 gradient against central differences of the float64 loss. */
static void gradient_is_the_slope_of_the_loss(void **state) {
  (void)state;
  problem p;
  make(&p, PX_F32, 3, 40, 2);
  double loss[3], up[3], down[3];
  float *z = p.a.logits, *copy = malloc((size_t)(3 * p.a.stride) * sizeof(float));
  const float step =
      0x1p-6f; /* exact in float32: truncation is the error, step^2 / 6 times a third derivative below 0.1 */
  memcpy(copy, z, (size_t)(3 * p.a.stride) * sizeof(float));
  reference(&p, loss, NULL);
  assert_int_equal(px_loss_cpu(&p.a), 0);
  float *grad = malloc((size_t)(3 * p.a.stride) * sizeof(float));
  memcpy(grad, z, (size_t)(3 * p.a.stride) * sizeof(float));
  for (int64_t e = 0; e < 3 * 40; e++) {
    int64_t at = e / 40 * p.a.stride + e % 40;
    memcpy(z, copy, (size_t)(3 * p.a.stride) * sizeof(float));
    z[at] = copy[at] + step;
    double width = (double)z[at];
    reference(&p, up, NULL);
    z[at] = copy[at] - step;
    width -= (double)z[at];
    reference(&p, down, NULL);
    double slope = (up[e / 40] - down[e / 40]) / width;
    if (fabs(slope - (double)grad[at]) > 1e-5)
      fail_msg("logit %d: slope %g, gradient %g", (int)e, slope, (double)grad[at]);
  }
  free(copy);
  free(grad);
  release(&p);
}

static void bits_do_not_depend_on_threads(void **state) {
  (void)state;
  for (int type = 0; type < 2; type++) {
    problem p[3];
    for (int t = 0; t < 3; t++) {
      make(&p[t], TEST_TYPES[type], 257, 1000, 3);
      omp_set_num_threads(t + 1);
      assert_int_equal(px_loss_cpu(&p[t].a), 0);
      assert_memory_equal(p[t].a.logits, p[0].a.logits,
                          (size_t)(257 * p[0].a.stride) * px_dtype_bytes(TEST_TYPES[type], 1));
      assert_memory_equal(p[t].a.row_loss, p[0].a.row_loss, 257 * sizeof(float));
      assert_memory_equal(p[t].sums, p[0].sums, sizeof p[0].sums);
    }
    omp_set_num_threads(2);
    for (int t = 0; t < 3; t++) release(&p[t]);
  }
}

static void refusals(void **state) {
  (void)state;
  problem p;
  make(&p, PX_F32, 4, 9, 1);
  assert_null(px_loss_check(&p.a));
  REFUSED(px_loss_check, p.a, px_loss_args, b->vocab = 0);
  REFUSED(px_loss_check, p.a, px_loss_args, b->rows = -1);
  REFUSED(px_loss_check, p.a, px_loss_args, b->stride = 8);
  REFUSED(px_loss_check, p.a, px_loss_args, b->dtype = PX_F16);
  REFUSED(px_loss_check, p.a, px_loss_args, b->logits = NULL);
  REFUSED(px_loss_check, p.a, px_loss_args, b->targets = NULL);
  release(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(losses_and_gradients_hold),
      cmocka_unit_test(logits_stay_where_no_gradient_is_wanted),
      cmocka_unit_test(the_ends_of_the_number_line),
      cmocka_unit_test(rows_that_fill_up_count_for_nothing),
      cmocka_unit_test(gradient_is_the_slope_of_the_loss),
      cmocka_unit_test(bits_do_not_depend_on_threads),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
