/* SPDX-License-Identifier: MIT */
#include "kernels/optimizer.h"

#include "kernels/math_cpu.h"

static const char *check(const px_opt_tensor *tensors, int32_t count, const px_group *groups, int32_t group_count) {
  if (count < 0 || group_count < 0) return "a count is negative";
  return (count && !tensors) || (group_count && !groups) ? "a pointer is missing" : NULL;
}

static const char *check_arrays(const px_opt_tensor *tensors, int32_t count, int32_t group_count, bool update, bool moments) {
  for (int32_t i = 0; i < count; i++) {
    const px_opt_tensor *t = &tensors[i];
    if (t->group < 0 || t->group >= group_count) return "a tensor's group is out of range";
    if (t->count < 0 || (t->count && !t->grad)) return "a tensor has no gradient";
    if (update && t->count && (!t->value || (moments && (!t->m || !t->v)))) return "a tensor has no value or moments";
  }
  return NULL;
}

const char *px_sum_sq_check(const px_sum_sq_args *a) {
  if (a->group_count > 0 && !a->workspace) return "the workspace is missing";
  return check(a->tensors, a->tensor_count, a->groups, a->group_count);
}
const char *px_sum_sq_check_arrays(const px_sum_sq_args *a) {
  return check_arrays(a->tensors, a->tensor_count, a->group_count, false, false);
}

const char *px_adamw_check(const px_adamw_args *a) {
  if (!(a->beta1 >= 0 && a->beta1 < 1 && a->beta2 >= 0 && a->beta2 < 1)) return "beta1 and beta2 must be in [0, 1)";
  if (!(a->eps > 0)) return "eps must be above 0";
  return check(a->tensors, a->tensor_count, a->groups, a->group_count);
}
const char *px_adamw_check_arrays(const px_adamw_args *a) {
  return check_arrays(a->tensors, a->tensor_count, a->group_count, true, !a->sgd);
}

static double elements(const px_opt_tensor *tensors, int32_t count) {
  double n = 0;
  for (int32_t i = 0; i < count; i++) n += (double)tensors[i].count;
  return n;
}

px_cost px_sum_sq_cost(const px_sum_sq_args *a) {
  double n = elements(a->tensors, a->tensor_count);
  return (px_cost){.bytes = 4 * n, .operations = 2 * n};
}

px_cost px_adamw_cost(const px_adamw_args *a) {
  double n = elements(a->tensors, a->tensor_count);
  return a->sgd ? (px_cost){.bytes = 12 * n, .operations = 5 * n} : (px_cost){.bytes = 28 * n, .operations = 17 * n};
}

enum { PART = 4096, PARTS_AT_ONCE = 256 };

/* Sums of parts of fixed length, added in order: the same bits for any number of threads. */
static double tensor_sum_sq(const px_opt_tensor *t) {
  double total = 0;
  int64_t parts = (t->count + PART - 1) / PART;
  for (int64_t first = 0; first < parts; first += PARTS_AT_ONCE) {
    double sums[PARTS_AT_ONCE];
    int64_t here = parts - first < PARTS_AT_ONCE ? parts - first : PARTS_AT_ONCE;
#pragma omp parallel for schedule(static) if (here * PART >= PX_PARALLEL_MIN)
    for (int64_t p = 0; p < here; p++) {
      int64_t at = (first + p) * PART, n = t->count - at < PART ? t->count - at : PART;
      const float *g = t->grad + at;
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < n; i++) sum += (double)g[i] * (double)g[i];
      sums[p] = sum;
    }
    for (int64_t p = 0; p < here; p++) total += sums[p];
  }
  return total;
}

int px_sum_sq_cpu(const px_sum_sq_args *a) {
  for (int32_t g = 0; g < a->group_count; g++) a->groups[g].sum_sq = 0;
  for (int32_t i = 0; i < a->tensor_count; i++) a->groups[a->tensors[i].group].sum_sq += tensor_sum_sq(&a->tensors[i]);
  return 0;
}

/* What is the same for all elements of a tensor. */
typedef struct factors {
  float scale, lr, b1, b2, correct1, correct2, eps, decay;
} factors;

static factors factors_of(const px_adamw_args *a, const px_opt_tensor *t) {
  const px_group *group = &a->groups[t->group];
  double step = (double)(group->step + 1), n = (double)group->tokens, norm = sqrt(group->sum_sq) / n, clip = 1;
  if (group->clip > 0 && (double)group->clip / (norm + 1e-6) < 1) clip = (double)group->clip / (norm + 1e-6);
  return (factors){.scale = (float)(clip / n),
                   .lr = group->lr * t->lr_scale,
                   .b1 = a->beta1,
                   .b2 = a->beta2,
                   .correct1 = (float)(1.0 / (1.0 - pow((double)a->beta1, step))),
                   .correct2 = (float)(1.0 / (1.0 - pow((double)a->beta2, step))),
                   .eps = a->eps,
                   .decay = t->weight_decay};
}

static void update_part(float *value, const float *grad, float *first, float *second, int64_t count, factors f) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) {
    float g = grad[i] * f.scale;
    float m = f.b1 * first[i] + (1.0f - f.b1) * g, v = f.b2 * second[i] + (1.0f - f.b2) * g * g;
    first[i] = m;
    second[i] = v;
    value[i] -= f.lr * (m * f.correct1 / (sqrtf(v * f.correct2) + f.eps) + f.decay * value[i]);
  }
}

static void sgd_part(float *value, const float *grad, int64_t count, factors f) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) value[i] -= f.lr * (grad[i] * f.scale + f.decay * value[i]);
}

/* Parts of fixed length, so that an element takes the same path for any number of threads. */
static void update_tensor(const px_opt_tensor *t, factors f, bool sgd) {
#pragma omp parallel for schedule(static) if (t->count >= PX_PARALLEL_MIN)
  for (int64_t at = 0; at < t->count; at += PART) {
    int64_t n = t->count - at < PART ? t->count - at : PART;
    if (sgd)
      sgd_part(t->value + at, t->grad + at, n, f);
    else
      update_part(t->value + at, t->grad + at, t->m + at, t->v + at, n, f);
  }
}

int px_adamw_cpu(const px_adamw_args *a) {
  for (int32_t g = 0; g < a->group_count; g++) {
    px_group *group = &a->groups[g];
    double n = (double)group->tokens, norm = sqrt(group->sum_sq) / n;
    group->grad_norm = (float)norm;
    if (group->skipped == PX_BAD_STEP) continue;
    group->skipped = group->tokens <= 0                                ? PX_NOTHING_TO_DO
                     : isfinite(norm) && isfinite(group->loss_sum / n) ? PX_STEP_DONE
                                                                       : PX_BAD_STEP;
  }
  for (int32_t i = 0; i < a->tensor_count; i++) {
    const px_opt_tensor *t = &a->tensors[i];
    if (a->groups[t->group].skipped) continue;
    update_tensor(t, factors_of(a, t), a->sgd);
  }
  for (int32_t g = 0; g < a->group_count; g++) a->groups[g].step += !a->groups[g].skipped;
  return 0;
}
