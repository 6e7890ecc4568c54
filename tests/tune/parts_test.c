/* SPDX-License-Identifier: MIT
 * Every part, alone and with others: its gradients are the slopes of the loss that training measures, in every family; a run
 * begins at the model itself; parts name what they train. */
#include "helpers/test.h"

#include <math.h>

#include "core/random.h"
#include "helpers/golden.h"
#include "helpers/pass.h"
#include "helpers/tolerance.h"
#include "tune/tune.h"

static const int64_t STEP = 3;
enum { SEED = 11, STREAM = 93 };

typedef struct problem {
  px_model *model;
  px_backend *be;
  px_tune *tune;
  pass_rows rows;
} problem;

static problem open_problem(const char *name, const char *tune) {
  static const int32_t lengths[] = {6, 1, 4, 9};
  static const int32_t ids[] = {5, 3, 9, 14, 2};
  px_error err = {0};
  char path[512];
  problem p;
  px_tune_spec spec;
  ASSERT_OK(px_model_open(golden_path(name, "", path), &(px_model_options){.dtype = PX_F32, .threads = 1}, &p.model, &err));
  ASSERT_OK(px_backend_open_cpu(&(px_backend_options){.threads = 1}, &p.be, &err));
  ASSERT_OK(px_tune_parse(tune, NULL, 0, &spec, &err));
  spec.data_ids = ids;
  spec.data_tokens = 5;
  ASSERT_OK(px_tune_open(p.model, p.be, NULL, &spec, SEED, &p.tune, &err));
  px_tune_spec_free(&spec);
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

/* Away from where a run starts, which is special: B of a low-rank delta is zero there, and so is A's gradient. */
static void move(problem *p) {
  for (int i = 0; i < p->tune->param_count; i++) {
    const px_param *q = &p->tune->params[i];
    float *values = calloc((size_t)q->count, sizeof *values);
    px_backend_read(p->be, values, q->value, (size_t)q->count * sizeof *values);
    for (int64_t j = 0; j < q->count; j++) values[j] += 0.1f * px_normal(SEED, STREAM, (uint32_t)i, (uint64_t)j);
    px_backend_write(p->be, q->value, values, (size_t)q->count * sizeof *values);
    free(values);
  }
}

static double loss(problem *p, bool with_grad) {
  px_tune_begin_step(p->tune, SEED, &STEP);
  return pass_loss(p->model, p->be, &p->rows, &p->tune->hooks, with_grad, NULL);
}

/* The derivative along a direction of length one: a central difference of fourth order, over steps that change the loss by a
 * tenth: rounding makes 1e-4 of the slope or of one, truncation less. */
static double difference(problem *p, const px_param *q, const float *direction, double size) {
  static const double at[] = {-2, -1, 1, 2}, weight[] = {1, -8, 8, -1};
  double step = fmin(0.05, 0.1 / size);
  size_t bytes = (size_t)q->count * sizeof(float);
  float *here = malloc(bytes), *there = malloc(bytes);
  double sum = 0;
  px_backend_read(p->be, here, q->value, bytes);
  for (int k = 0; k < 4; k++) {
    for (int64_t i = 0; i < q->count; i++) there[i] = (float)((double)here[i] + at[k] * step * (double)direction[i]);
    px_backend_write(p->be, q->value, there, bytes);
    sum += weight[k] * loss(p, false);
  }
  px_backend_write(p->be, q->value, here, bytes);
  free(here);
  free(there);
  return sum / (12 * step);
}

static void normalise(float *v, int64_t n) {
  double norm = 0;
  for (int64_t i = 0; i < n; i++) norm += (double)v[i] * (double)v[i];
  for (int64_t i = 0; i < n; i++) v[i] = (float)((double)v[i] / sqrt(norm));
}

static double inner(const float *a, const float *b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
  return sum;
}

/* Along the gradient itself, along a random direction, and along the elements whose gradient is zero, if any. */
static void compare(problem *p, const char *tune, const px_param *q, const float *grad) {
  float *direction = calloc((size_t)q->count, sizeof *direction);
  double size = sqrt(inner(grad, grad, q->count));
  if (!(size > 0)) fail_msg("%s: the gradient of %s is zero", tune, q->name);
  for (int kind = 0; kind < 3; kind++) {
    int64_t live = 0;
    for (int64_t i = 0; i < q->count; i++) {
      float normal = px_normal(SEED, STREAM, 1000, (uint64_t)i);
      direction[i] = kind == 0 ? grad[i] : kind == 1 || grad[i] == 0 ? normal : 0;
      live += direction[i] != 0;
    }
    if (live == 0) continue;
    normalise(direction, q->count);
    double slope = difference(p, q, direction, size), want = inner(grad, direction, q->count);
    if (!(fabs(slope - want) <= TOL_F32_DIFFERENCE * fmax(size, 1)))
      fail_msg("%s: the slope of %s along direction %d is %.6g, its gradient %.6g of length %.3g", tune, q->name, kind, slope, want, size);
  }
  free(direction);
}

static void check(const char *name, const char *tune) {
  char text[256];
  snprintf(text, sizeof text, "%s %s", name, tune);
  problem p = open_problem(name, tune);
  move(&p);
  px_tune_zero_grads(p.tune);
  loss(&p, true);
  px_tune_end_step(p.tune, SEED, &STEP);
  float **grads = calloc((size_t)p.tune->param_count, sizeof *grads);
  for (int i = 0; i < p.tune->param_count; i++) {
    grads[i] = calloc((size_t)p.tune->params[i].count, sizeof(float));
    px_backend_read(p.be, grads[i], p.tune->params[i].grad, (size_t)p.tune->params[i].count * sizeof(float));
  }
  for (int i = 0; i < p.tune->param_count; i++) {
    compare(&p, text, &p.tune->params[i], grads[i]);
    free(grads[i]);
  }
  free(grads);
  close_problem(&p);
}

static const char *const families[] = {"gpt2", "llama_tied", "llama_linear", "mistral", "qwen2", "qwen3"};
enum { FAMILIES = sizeof families / sizeof *families };

static void each_family(const char *tune) {
  for (int f = 0; f < FAMILIES; f++) check(families[f], tune);
}

static void prompt_rows(void **state) {
  (void)state;
  each_family("prompt:3");
}
static void low_rank_deltas(void **state) {
  (void)state;
  each_family("lora:2");
  each_family("lora:3:targets=all:alpha=5:rslora=1");
  check("llama_tied", "lora:2:targets=q,v,down:dropout=0.3");
  check("gpt2", "lora:2:targets=all:dropout=0.3");
  check("qwen3", "lora:2:targets=o");
}
static void learned_scales(void **state) {
  (void)state;
  each_family("ia3");
  check("qwen3", "ia3:targets=all");
  check("gpt2", "ia3:targets=all");
}
static void norms_and_biases(void **state) {
  (void)state;
  each_family("norm");
  check("gpt2", "bias");
  check("llama_tied", "bias");
  check("qwen2", "bias");
  check("qwen3", "bias");
}
static void top_layers(void **state) {
  (void)state;
  each_family("top:1");
  check("llama_tied", "top:2");
}
static void everything(void **state) {
  (void)state;
  each_family("full");
}
static void hybrids(void **state) {
  (void)state;
  each_family("prefix:2+lora:2");
  each_family("prompt:2+top:1");
  each_family("prompt:2+prefix:3");
  check("gpt2", "prefix:3+bias");
  check("llama_tied", "prefix:3:reparam=7+prompt:2+lora:2:targets=all+ia3+norm+bias+top:1");
  check("qwen3", "prefix:2+prompt:2+lora:2+ia3:targets=all+full");
  check("gpt2", "prefix:2:layers=1+prompt:2+ia3+lora:2:targets=all+top:1");
  check("mistral", "prefix:4:frozen=1+prompt:2");
}

/* Scales of one, a delta of zero, weights as they are: the loss of the first step is the frozen model's. */
static void runs_begin_at_the_model(void **state) {
  (void)state;
  static const char *const tunes[] = {"lora:2:targets=all", "ia3:targets=all", "norm", "bias", "top:1", "full"};
  for (int f = 0; f < FAMILIES; f++)
    for (size_t i = 0; i < sizeof tunes / sizeof *tunes; i++) {
      if (strcmp(families[f], "mistral") == 0 && strcmp(tunes[i], "bias") == 0) continue;
      problem p = open_problem(families[f], tunes[i]);
      double own = loss(&p, false), frozen = pass_loss(p.model, p.be, &p.rows, NULL, false, NULL);
      if (!(fabs(own - frozen) <= 1e-6 * frozen)) fail_msg("%s %s begins at a loss of %.9g, the model's is %.9g", families[f], tunes[i], own, frozen);
      close_problem(&p);
    }
}

static void refused(const char *name, const char *tune, const char *message) {
  px_error err = {0};
  char path[512];
  px_model *model;
  px_backend *be;
  px_tune *t;
  px_tune_spec spec;
  ASSERT_OK(px_model_open(golden_path(name, "", path), &(px_model_options){.dtype = PX_F32, .threads = 1}, &model, &err));
  ASSERT_OK(px_backend_open_cpu(&(px_backend_options){.threads = 1}, &be, &err));
  px_status status = px_tune_parse(tune, NULL, 0, &spec, &err);
  if (status == PX_OK) status = px_tune_open(model, be, NULL, &spec, SEED, &t, &err);
  assert_int_equal(status, PX_INVALID);
  if (!strstr(err.message, message)) fail_msg("%s: \"%s\" does not say \"%s\"", tune, err.message, message);
  px_tune_spec_free(&spec);
  px_backend_close(be);
  px_model_close(model);
}

static void bad_parts_are_refused(void **state) {
  (void)state;
  refused("gpt2", "pefix:3", "there is no part \"pefix\"; did you mean \"prefix\"?");
  refused("gpt2", "lora:2:alfa=3", "lora has no option \"alfa\"; did you mean \"alpha\"?");
  refused("gpt2", "lora", "what rank? Write lora:8");
  refused("gpt2", "ia3:3", "ia3 takes no number");
  refused("gpt2", "lora:2+lora:3", "lora is there twice");
  refused("gpt2", "lora:2:targets=q", "write targets=qkv");
  refused("gpt2", "lora:2:targets=gate", "gpt2 has no projection \"gate\": qkv, o, up, down and all are known");
  refused("qwen2", "lora:2:targets=c_attn", "qwen2 has no projection \"c_attn\"");
  refused("gpt2", "lora:25", "the rank is more than the 72 x 24 matrix");
  refused("gpt2", "top:3", "top:3: this model has 2 layers");
  refused("mistral", "bias", "bias: a model of the family mistral has none");
  refused("gpt2", "bias+norm+full", "full trains every weight already");
  refused("gpt2", "prefix:2:init=random:layers=0-2", "layers=0-2: this model has layers 0 to 1");
  refused("gpt2", "prefix:2:init=random:layers=1-", "write numbers and ranges");
  refused("gpt2", "prefix:2:init=random:frozen=2", "leaves nothing of 2 virtual tokens");
  refused("gpt2", "prefix:2:init=vocab", "init=vocab is for a prompt");
  refused("gpt2", "top:2+norm", "norm: another part trains all that it names");
  refused("gpt2", "lora:2+", "a part is missing at a +");
  refused("gpt2", "", "--tune is empty");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(prompt_rows),      cmocka_unit_test(low_rank_deltas),         cmocka_unit_test(learned_scales),
      cmocka_unit_test(norms_and_biases), cmocka_unit_test(top_layers),              cmocka_unit_test(everything),
      cmocka_unit_test(hybrids),          cmocka_unit_test(runs_begin_at_the_model), cmocka_unit_test(bad_parts_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
