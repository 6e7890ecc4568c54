/* SPDX-License-Identifier: MIT
 * The gradients that training uses, against finite differences of the loss that training measures: prefix values of
 * every layer (keys and values), and every tensor of the reparameterising network, with and without prefix dropout. */
#include "helpers/test.h"

#include <math.h>

#include "core/random.h"
#include "helpers/golden.h"
#include "helpers/pass.h"
#include "helpers/tolerance.h"
#include "tune/prefix.h"

static const int64_t STEP = 3;
enum { SEED = 11, COORDINATES = 3, STREAM = 93 };

typedef struct problem {
  px_model *model;
  px_backend *be;
  px_tune *tune;
  pass_rows rows;
} problem;

/* A trained part at a point where nothing is small: values about one. */
static problem open_problem(const char *name, int reparam, float dropout) {
  static const int32_t lengths[] = {6, 1, 4, 9};
  px_error err = {0};
  char path[512];
  problem p;
  px_tune_spec spec = {.parts = {{.size = 5, .init = PX_INIT_RANDOM, .reparam_hidden = reparam, .dropout = dropout}}, .part_count = 1};
  ASSERT_OK(
      px_model_open(golden_path(name, "", path), &(px_model_options){.dtype = PX_F32, .threads = 1}, &p.model, &err));
  ASSERT_OK(px_backend_open_cpu(&(px_backend_options){.threads = 1}, &p.be, &err));
  ASSERT_OK(px_tune_open(p.model, p.be, NULL, &spec, SEED, &p.tune, &err));
  for (int i = 0; i < p.tune->param_count && !reparam; i++) {
    const px_param *q = &p.tune->params[i];
    float *values = calloc((size_t)q->count, sizeof *values);
    for (int64_t j = 0; j < q->count; j++) values[j] = px_normal(SEED, STREAM, (uint32_t)i, (uint64_t)j);
    px_backend_write(p.be, q->value, values, (size_t)q->count * sizeof *values);
    free(values);
  }
  p.rows = pass_rows_make(p.model, 4, lengths, 2);
  for (int r = 0; r < 4; r++) {
    p.rows.adapter[r] = 0;
    p.rows.first[r] = p.tune->tokens;
  }
  return p;
}

static void close_problem(problem *p) {
  pass_rows_free(&p->rows);
  px_tune_close(p->tune);
  px_backend_close(p->be);
  px_model_close(p->model);
}

static double loss(problem *p, bool with_grad) {
  px_tune_begin_step(p->tune, SEED, &STEP);
  return pass_loss(p->model, p->be, &p->rows, &p->tune->hooks, with_grad, NULL);
}

/* The derivative along `direction` [count] from element `first` of a parameter: a central difference of fourth order.
 */
static double difference(problem *p, const px_param *q, int64_t first, int64_t count, const float *direction) {
  static const double step = 0.05, at[] = {-2, -1, 1, 2}, weight[] = {1, -8, 8, -1};
  size_t bytes = (size_t)count * sizeof(float);
  float *here = malloc(bytes), *there = malloc(bytes);
  double sum = 0;
  px_backend_read(p->be, here, q->value + first, bytes);
  for (int k = 0; k < 4; k++) {
    for (int64_t i = 0; i < count; i++) there[i] = (float)((double)here[i] + at[k] * step * (double)direction[i]);
    px_backend_write(p->be, q->value + first, there, bytes);
    sum += weight[k] * loss(p, false);
  }
  px_backend_write(p->be, q->value + first, here, bytes);
  free(here);
  free(there);
  return sum / (12 * step);
}

/* index -1: along the direction. */
static void expect_slope(const char *name, const px_param *q, int64_t index, double got, double want, double largest) {
  if (!(fabs(got - want) <= TOL_F32_DIFFERENCE * largest))
    fail_msg("%s: the slope of %s at %lld is %.6g, its gradient %.6g (the largest is %.3g)", name, q->name,
             (long long)index, got, want, largest);
}

/* Elements [first, first + count) of a parameter: a few of them one by one, and all at once along a random direction.
 */
static void compare(problem *p, const char *name, const px_param *q, const float *grad, int64_t first, int64_t count) {
  float *direction = calloc((size_t)count, sizeof *direction);
  double norm = 0, along = 0, largest = 0;
  for (int64_t i = 0; i < count; i++) {
    direction[i] = px_normal(SEED, STREAM, 1000, (uint64_t)(first + i));
    norm += (double)direction[i] * (double)direction[i];
    largest = fmax(largest, fabs((double)grad[first + i]));
  }
  for (int64_t i = 0; i < count; i++) {
    direction[i] = (float)((double)direction[i] / sqrt(norm));
    along += (double)direction[i] * (double)grad[first + i];
  }
  if (!(largest > 0)) fail_msg("%s: the gradient of %s is zero", name, q->name);
  expect_slope(name, q, -1, difference(p, q, first, count, direction), along, largest);
  for (int k = 0; k < COORDINATES; k++) {
    float one = 1;
    int64_t i = first + (int64_t)px_below(SEED, STREAM, 2000, (uint64_t)(first + k), (uint64_t)count);
    expect_slope(name, q, i, difference(p, q, i, 1, &one), (double)grad[i], largest);
  }
  free(direction);
}

static void check(const char *name, int reparam, float dropout) {
  problem p = open_problem(name, reparam, dropout);
  px_tune_zero_grads(p.tune);
  loss(&p, true);
  px_tune_end_step(p.tune, SEED, &STEP);
  float *grads[16] = {0};
  for (int i = 0; i < p.tune->param_count; i++) {
    grads[i] = calloc((size_t)p.tune->params[i].count, sizeof(float));
    px_backend_read(p.be, grads[i], p.tune->params[i].grad, (size_t)p.tune->params[i].count * sizeof(float));
  }
  for (int i = 0; i < p.tune->param_count; i++) {
    const px_param *q = &p.tune->params[i];
    int64_t half = reparam ? q->count : q->count / 2; /* keys and values apart */
    for (int64_t first = 0; first < q->count; first += half) compare(&p, name, q, grads[i], first, half);
    free(grads[i]);
  }
  close_problem(&p);
}

static void prefix_gradients_are_slopes_of_the_loss(void **state) {
  (void)state;
  check("gpt2", 0, 0);
  check("llama_tied", 0, 0);
  check("mistral", 0, 0);
  check("qwen3", 0, 0);
}

static void so_they_are_with_prefix_dropout(void **state) {
  (void)state;
  check("llama_tied", 0, 0.3f);
}

static void gradients_of_the_network_are_slopes_of_the_loss(void **state) {
  (void)state;
  check("llama_tied", 7, 0);
  check("gpt2", 40, 0.3f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(prefix_gradients_are_slopes_of_the_loss),
      cmocka_unit_test(so_they_are_with_prefix_dropout),
      cmocka_unit_test(gradients_of_the_network_are_slopes_of_the_loss),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
