/* SPDX-License-Identifier: MIT */
#include "kernels/optimizer.h"

#include "helpers/golden.h"
#include "helpers/kernel.h"

enum { MOST = 4 };

/* Up to four tensors of numbers, their moments as after some steps, and their groups. */
typedef struct problem {
  px_opt_tensor tensors[MOST];
  px_group groups[MOST];
  int count, group_count;
} problem;

static float *positive(int64_t count, uint64_t seed) {
  float *p = numbers(PX_F32, 1, count, count, seed, 0.1f);
  for (int64_t i = 0; i < count; i++) p[i] = fabsf(p[i]);
  return p;
}

static problem make(int count, const int64_t *sizes, int group_count) {
  problem p = {.count = count, .group_count = group_count};
  for (int i = 0; i < count; i++) {
    uint64_t seed = 10 * (uint64_t)i;
    p.tensors[i] = (px_opt_tensor){.value = numbers(PX_F32, 1, sizes[i], sizes[i], seed + 1, 1),
                                   .grad = numbers(PX_F32, 1, sizes[i], sizes[i], seed + 2, 9),
                                   .m = numbers(PX_F32, 1, sizes[i], sizes[i], seed + 3, 0.3f),
                                   .v = positive(sizes[i], seed + 4),
                                   .count = sizes[i],
                                   .weight_decay = i % 2 ? 0.1f : 0,
                                   .lr_scale = i < 2 ? 1 : 0.5f,
                                   .group = i % group_count};
  }
  for (int g = 0; g < group_count; g++)
    p.groups[g] = (px_group){.loss_sum = 30, .tokens = 11 + g, .step = 4 + 3 * g, .lr = 3e-2f, .clip = g ? 0 : 1};
  return p;
}

static void release(problem *p) {
  for (int i = 0; i < p->count; i++) {
    guarded_free(p->tensors[i].value);
    guarded_free(p->tensors[i].grad);
    guarded_free(p->tensors[i].m);
    guarded_free(p->tensors[i].v);
  }
}

static void sum_sq(problem *p) {
  px_sum_sq_args a = {p->tensors, p->count, p->group_count, p->groups, guarded(px_sum_sq_workspace(p->group_count))};
  assert_null(px_sum_sq_check(&a));
  assert_null(px_sum_sq_check_arrays(&a));
  assert_int_equal(px_sum_sq_cpu(&a), 0);
  guarded_free(a.workspace);
}

static px_adamw_args arguments(problem *p) {
  return (px_adamw_args){.tensors = p->tensors,
                         .tensor_count = p->count,
                         .group_count = p->group_count,
                         .groups = p->groups,
                         .beta1 = 0.9f,
                         .beta2 = 0.999f,
                         .eps = 1e-8f};
}

static void update(problem *p) {
  sum_sq(p);
  px_adamw_args a = arguments(p);
  assert_null(px_adamw_check(&a));
  assert_null(px_adamw_check_arrays(&a));
  assert_int_equal(px_adamw_cpu(&a), 0);
}

/* Against the formula in float64, with clipping and decay; what moments there are stays as it is. */
static void plain_descent_is_its_formula(void **state) {
  (void)state;
  enum { TOKENS = 5 };
  static const int64_t sizes[] = {4099, 7};
  problem p = make(2, sizes, 1);
  p.groups[0] = (px_group){.tokens = TOKENS, .clip = 0.5f, .lr = 0.3f};
  double sum = 0, *want[2];
  for (int i = 0; i < 2; i++) {
    p.tensors[i].weight_decay = i ? 0 : 0.1f;
    for (int64_t e = 0; e < sizes[i]; e++) sum += (double)p.tensors[i].grad[e] * (double)p.tensors[i].grad[e];
  }
  double norm = sqrt(sum) / TOKENS, clip = fmin(1, 0.5 / (norm + 1e-6));
  for (int i = 0; i < 2; i++) {
    want[i] = doubles(sizes[i]);
    for (int64_t e = 0; e < sizes[i]; e++) {
      double v = (double)p.tensors[i].value[e], decay = (double)p.tensors[i].weight_decay;
      want[i][e] = v - (double)(0.3f * p.tensors[i].lr_scale) * ((double)p.tensors[i].grad[e] * clip / TOKENS + decay * v);
    }
  }
  float *m = p.tensors[1].m;
  float before = m[3];
  sum_sq(&p);
  px_adamw_args a = arguments(&p);
  a.sgd = true;
  px_opt_tensor kept = p.tensors[0];
  p.tensors[0].m = p.tensors[0].v = NULL;
  assert_null(px_adamw_check_arrays(&a));
  assert_int_equal(px_adamw_cpu(&a), 0);
  p.tensors[0] = kept;
  assert_int_equal(p.groups[0].step, 1);
  assert_true(m[3] == before);
  for (int i = 0; i < 2; i++) {
    expect_near("value", PX_F32, p.tensors[i].value, want[i], 1, sizes[i], sizes[i], TOL_F32_FUNCTION);
    free(want[i]);
  }
  release(&p);
}

static void twenty_steps_follow_torch(void **state) {
  (void)state;
  enum { STEPS = 20, TOKENS = 37 };
  px_error err;
  char path[512];
  px_tensor_list golden;
  static const int64_t sizes[] = {40, 7};
  const float *grads[2], *values[2];
  ASSERT_OK(px_safetensors_open(golden_path("", "adamw.safetensors", path), &golden, NULL, NULL, &err));
  problem p = make(2, sizes, 1);
  p.groups[0] = (px_group){.tokens = TOKENS, .clip = 1};
  for (int i = 0; i < 2; i++) {
    char name[16];
    snprintf(name, sizeof name, "start.%d", i);
    memcpy(p.tensors[i].value, golden_floats(&golden, name), (size_t)sizes[i] * sizeof(float));
    snprintf(name, sizeof name, "grads.%d", i);
    grads[i] = golden_floats(&golden, name);
    snprintf(name, sizeof name, "values.%d", i);
    values[i] = golden_floats(&golden, name);
    memset(p.tensors[i].m, 0, (size_t)sizes[i] * sizeof(float));
    memset(p.tensors[i].v, 0, (size_t)sizes[i] * sizeof(float));
    p.tensors[i].weight_decay = i ? 0 : 0.1f;
  }
  const float *norms = golden_floats(&golden, "norms");
  int clipped = 0;
  for (int step = 0; step < STEPS; step++) {
    for (int i = 0; i < 2; i++) memcpy(p.tensors[i].grad, grads[i] + step * sizes[i], (size_t)sizes[i] * sizeof(float));
    p.groups[0].lr = 3e-2f * (1 - (float)step / STEPS);
    update(&p);
    assert_int_equal(p.groups[0].skipped, 0);
    assert_int_equal(p.groups[0].step, step + 1);
    assert_true(fabsf(p.groups[0].grad_norm - norms[step]) <= (float)TOL_F32_FUNCTION * norms[step]);
    clipped += norms[step] > 1;
    for (int i = 0; i < 2; i++) {
      double want[40];
      for (int64_t e = 0; e < sizes[i]; e++) want[e] = (double)values[i][step * sizes[i] + e];
      expect_near("value", PX_F32, p.tensors[i].value, want, 1, sizes[i], sizes[i], TOL_F32_ADAMW);
    }
  }
  assert_in_range(clipped, 1, STEPS - 1); /* both kinds of step are there */
  release(&p);
  px_tensor_list_close(&golden);
}

/* One step from moments that are not zero, tensors of awkward sizes, against the contract's formula in float64. */
static void equals_the_formula_in_float64(void **state) {
  (void)state;
  static const int64_t sizes[] = {4097, 1, 0, 70001};
  for (int groups = 1; groups <= 3; groups += 2) {
    problem p = make(4, sizes, groups);
    double *values[MOST], *ms[MOST], *vs[MOST], sums[MOST] = {0};
    for (int i = 0; i < 4; i++)
      for (int64_t e = 0; e < sizes[i]; e++)
        sums[p.tensors[i].group] += (double)p.tensors[i].grad[e] * (double)p.tensors[i].grad[e];
    for (int i = 0; i < 4; i++) {
      const px_opt_tensor *t = &p.tensors[i];
      const px_group *g = &p.groups[t->group];
      double n = (double)g->tokens, norm = sqrt(sums[t->group]) / n, step = (double)(g->step + 1);
      double clip = g->clip > 0 ? fmin(1, (double)g->clip / (norm + 1e-6)) : 1;
      values[i] = doubles(sizes[i]), ms[i] = doubles(sizes[i]), vs[i] = doubles(sizes[i]);
      for (int64_t e = 0; e < sizes[i]; e++) {
        double x = clip * (double)t->grad[e] / n, b1 = (double)0.9f, b2 = (double)0.999f,
               lr = (double)(g->lr * t->lr_scale);
        double m = b1 * (double)t->m[e] + (1 - b1) * x, v = b2 * (double)t->v[e] + (1 - b2) * x * x,
               w = (double)t->value[e];
        ms[i][e] = m, vs[i][e] = v;
        values[i][e] = w - lr * (m / (1 - pow(b1, step)) / (sqrt(v / (1 - pow(b2, step))) + (double)1e-8f) +
                                 (double)t->weight_decay * w);
      }
    }
    update(&p);
    for (int g = 0; g < groups; g++) {
      double norm = sqrt(sums[g]) / (double)p.groups[g].tokens;
      assert_true(fabs(p.groups[g].sum_sq - sums[g]) <= 1e-12 * sums[g]);
      assert_true(fabs((double)p.groups[g].grad_norm - norm) <= (double)TOL_F32_ELEMENT * norm);
      assert_int_equal(p.groups[g].step, 4 + 3 * g + 1);
    }
    for (int i = 0; i < 4; i++) {
      expect_near("m", PX_F32, p.tensors[i].m, ms[i], 1, sizes[i], sizes[i], TOL_F32_ADAMW);
      expect_near("v", PX_F32, p.tensors[i].v, vs[i], 1, sizes[i], sizes[i], TOL_F32_ADAMW);
      expect_near("value", PX_F32, p.tensors[i].value, values[i], 1, sizes[i], sizes[i], TOL_F32_ADAMW);
      free(values[i]), free(ms[i]), free(vs[i]);
    }
    release(&p);
  }
}

static void bits_do_not_depend_on_threads(void **state) {
  (void)state;
  static const int64_t sizes[] = {300007, 5, 4096, 1200000};
  problem first = make(4, sizes, 2);
  omp_set_num_threads(1);
  update(&first);
  for (int threads = 2; threads <= 5; threads += 3) {
    problem p = make(4, sizes, 2);
    omp_set_num_threads(threads);
    update(&p);
    assert_memory_equal(first.groups, p.groups, sizeof *p.groups * 2);
    for (int i = 0; i < 4; i++) {
      assert_memory_equal(first.tensors[i].value, p.tensors[i].value, (size_t)sizes[i] * sizeof(float));
      assert_memory_equal(first.tensors[i].v, p.tensors[i].v, (size_t)sizes[i] * sizeof(float));
    }
    release(&p);
  }
  omp_set_num_threads(2);
  release(&first);
}

/* Tensors that begin one element after a word of 16 bytes: other loads, the same bits. */
static void parts_of_any_alignment(void **state) {
  (void)state;
  static const int64_t size = 70001, longer = 70002;
  problem p = make(1, &size, 1), q = make(1, &longer, 1);
  px_opt_tensor *at = &q.tensors[0], *from = &p.tensors[0];
  float **to[] = {&at->value, &at->grad, &at->m, &at->v}, *const source[] = {from->value, from->grad, from->m, from->v};
  for (int i = 0; i < 4; i++) memcpy(++*to[i], source[i], (size_t)size * sizeof(float));
  at->count = size;
  p.groups[0].clip = q.groups[0].clip = 0; /* the sums of squares may be added in another order */
  update(&p);
  update(&q);
  for (int i = 0; i < 4; i++) assert_memory_equal(*to[i], source[i], (size_t)size * sizeof(float));
  for (int i = 0; i < 4; i++) --*to[i];
  assert_true(fabs(p.groups[0].sum_sq - q.groups[0].sum_sq) <= 1e-12 * p.groups[0].sum_sq);
  release(&p);
  release(&q);
}

/* A group whose step is not finite, or has no labelled token, keeps every bit; the others go on. */
static void a_bad_group_is_left_untouched(void **state) {
  (void)state;
  static const int64_t sizes[] = {50, 50, 50, 50};
  for (int fault = 0; fault < 5; fault++) {
    problem p = make(4, sizes, 2), as_it_was = make(4, sizes, 2);
    if (fault == 0) p.tensors[2].grad[7] = NAN;
    if (fault == 1) p.tensors[0].grad[49] = INFINITY;
    if (fault == 2) p.groups[0].loss_sum = (double)NAN;
    if (fault == 3) p.groups[0].loss_sum = (double)INFINITY;
    if (fault == 4) p.groups[0].tokens = 0;
    update(&p);
    assert_int_equal(p.groups[0].skipped, fault == 4 ? PX_NOTHING_TO_DO : PX_BAD_STEP);
    assert_int_equal(p.groups[0].step, 4);
    assert_int_equal(p.groups[1].skipped, 0);
    assert_int_equal(p.groups[1].step, 8);
    for (int i = 0; i < 4; i++) {
      size_t bytes = (size_t)sizes[i] * sizeof(float);
      bool same = memcmp(p.tensors[i].value, as_it_was.tensors[i].value, bytes) == 0 &&
                  memcmp(p.tensors[i].m, as_it_was.tensors[i].m, bytes) == 0 &&
                  memcmp(p.tensors[i].v, as_it_was.tensors[i].v, bytes) == 0;
      assert_int_equal(same, i % 2 == 0);
    }
    for (int i = 0; i < 4; i++) memcpy(p.tensors[i].grad, as_it_was.tensors[i].grad, (size_t)sizes[i] * sizeof(float));
    p.groups[0].loss_sum = 1, p.groups[0].tokens = 1;
    if (fault < 4) { /* a good step after a bad one that nobody has seen yet */
      update(&p);
      assert_int_equal(p.groups[0].skipped, PX_BAD_STEP);
      assert_int_equal(p.groups[0].step, 4);
      assert_memory_equal(p.tensors[0].value, as_it_was.tensors[0].value, (size_t)sizes[0] * sizeof(float));
      p.groups[0].skipped = PX_STEP_DONE;
    }
    update(&p);
    assert_int_equal(p.groups[0].skipped, PX_STEP_DONE);
    assert_int_equal(p.groups[0].step, 5);
    release(&p);
    release(&as_it_was);
  }
}

/* Sums are assigned, and a group without tensors has none. */
static void sums_start_anew(void **state) {
  (void)state;
  static const int64_t sizes[] = {3};
  problem p = make(1, sizes, 1);
  p.group_count = 2;
  p.groups[0].sum_sq = 1e9, p.groups[1] = (px_group){.sum_sq = 5, .tokens = 1, .step = 2};
  for (int i = 0; i < 3; i++) p.tensors[0].grad[i] = (float)i;
  for (int again = 0; again < 2; again++) {
    sum_sq(&p);
    assert_true(p.groups[0].sum_sq == 5 && p.groups[1].sum_sq == 0);
  }
  release(&p);
  problem none = {0};
  update(&none);
}

static void refusals(void **state) {
  (void)state;
  static const int64_t sizes[] = {3, 4};
  problem p = make(2, sizes, 2);
  double *workspace = guarded(px_sum_sq_workspace(2));
  px_sum_sq_args s = {p.tensors, 2, 2, p.groups, workspace};
  px_adamw_args a = arguments(&p);
  REFUSED(px_sum_sq_check, s, px_sum_sq_args, b->tensor_count = -1);
  REFUSED(px_sum_sq_check, s, px_sum_sq_args, b->group_count = -1);
  REFUSED(px_sum_sq_check_arrays, s, px_sum_sq_args, b->group_count = 1);
  REFUSED(px_sum_sq_check, s, px_sum_sq_args, b->tensors = NULL);
  REFUSED(px_sum_sq_check, s, px_sum_sq_args, b->groups = NULL);
  REFUSED(px_sum_sq_check, s, px_sum_sq_args, b->workspace = NULL);
  guarded_free(workspace);
  REFUSED(px_adamw_check, a, px_adamw_args, b->beta1 = 1);
  REFUSED(px_adamw_check, a, px_adamw_args, b->beta2 = -0.1f);
  REFUSED(px_adamw_check, a, px_adamw_args, b->beta2 = NAN);
  REFUSED(px_adamw_check, a, px_adamw_args, b->eps = 0);
  px_opt_tensor good = p.tensors[1];
#define TENSOR_REFUSED(change)                                    \
  do {                                                            \
    p.tensors[1] = good;                                          \
    change;                                                       \
    if (!px_adamw_check_arrays(&a)) fail_msg("accepts " #change); \
  } while (0)
  TENSOR_REFUSED(p.tensors[1].group = 2);
  TENSOR_REFUSED(p.tensors[1].group = -1);
  TENSOR_REFUSED(p.tensors[1].count = -1);
  TENSOR_REFUSED(p.tensors[1].grad = NULL);
  TENSOR_REFUSED(p.tensors[1].value = NULL);
  TENSOR_REFUSED(p.tensors[1].m = NULL);
  TENSOR_REFUSED(p.tensors[1].v = NULL);
  p.tensors[1] = good;
  assert_null(px_adamw_check(&a));
  assert_null(px_adamw_check_arrays(&a));
  release(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(plain_descent_is_its_formula),
      cmocka_unit_test(twenty_steps_follow_torch),
      cmocka_unit_test(equals_the_formula_in_float64),
      cmocka_unit_test(bits_do_not_depend_on_threads),
      cmocka_unit_test(parts_of_any_alignment),
      cmocka_unit_test(a_bad_group_is_left_untouched),
      cmocka_unit_test(sums_start_anew),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
