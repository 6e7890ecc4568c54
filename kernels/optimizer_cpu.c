/* SPDX-License-Identifier: MIT */
#include "kernels/math_cpu.h"
#include "kernels/optimizer.h"

static const char *check(const px_opt_tensor *tensors, int32_t count, const px_group *groups, int32_t group_count) {
  if (count < 0 || group_count < 0) return "a count is negative";
  if ((count && !tensors) || (group_count && !groups)) return "a pointer is missing";
  for (int32_t i = 0; i < count; i++) {
    if (tensors[i].group < 0 || tensors[i].group >= group_count) return "a tensor's group is out of range";
    if (tensors[i].count < 0 || (tensors[i].count && !tensors[i].grad)) return "a tensor has no gradient";
  }
  return NULL;
}

const char *px_sum_sq_check(const px_sum_sq_args *a) { return check(a->tensors, a->tensor_count, a->groups, a->group_count); }
const char *px_adamw_check(const px_adamw_args *a) {
  if (!(a->beta1 >= 0 && a->beta1 < 1 && a->beta2 >= 0 && a->beta2 < 1 && a->eps > 0)) return "beta1, beta2 or eps is out of range";
  return check(a->tensors, a->tensor_count, a->groups, a->group_count);
}

enum { PART = 4096, PARTS_AT_ONCE = 256 };

/* Sums of parts of fixed length, added in order: the same bits for any number of threads. */
static double tensor_sum_sq(const px_opt_tensor *t) {
  double total = 0;
  int64_t parts = (t->count + PART - 1) / PART;
  for (int64_t first = 0; first < parts; first += PARTS_AT_ONCE) {
    double sums[PARTS_AT_ONCE];
    int64_t here = parts - first < PARTS_AT_ONCE ? parts - first : PARTS_AT_ONCE;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < here; p++) {
      int64_t at = (first + p) * PART, n = t->count - at < PART ? t->count - at : PART;
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < n; i++) sum += (double)t->grad[at + i] * (double)t->grad[at + i];
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

int px_adamw_cpu(const px_adamw_args *a) {
  for (int32_t g = 0; g < a->group_count; g++) {
    px_group *group = &a->groups[g];
    double n = (double)group->tokens, norm = sqrt(group->sum_sq) / n;
    group->grad_norm = (float)norm;
    group->skipped = !(group->tokens > 0 && isfinite(norm) && isfinite(group->loss_sum / n));
  }
  for (int32_t i = 0; i < a->tensor_count; i++) {
    const px_opt_tensor *t = &a->tensors[i];
    const px_group *group = &a->groups[t->group];
    if (group->skipped) continue;
    double step = (double)(group->step + 1);
    float norm = group->grad_norm, clip = group->clip > 0 && group->clip / (norm + 1e-6f) < 1 ? group->clip / (norm + 1e-6f) : 1.0f;
    float scale = clip / (float)group->tokens, lr = group->lr * t->lr_scale;
    float c1 = (float)(1.0 / (1.0 - pow((double)a->beta1, step))), c2 = (float)(1.0 / (1.0 - pow((double)a->beta2, step)));
    float b1 = a->beta1, b2 = a->beta2, eps = a->eps, decay = t->weight_decay;
#pragma omp parallel for simd schedule(static)
    for (int64_t j = 0; j < t->count; j++) {
      float grad = t->grad[j] * scale;
      float m = b1 * t->m[j] + (1.0f - b1) * grad, v = b2 * t->v[j] + (1.0f - b2) * grad * grad;
      t->m[j] = m;
      t->v[j] = v;
      t->value[j] -= lr * (m * c1 / (sqrtf(v * c2) + eps) + decay * t->value[j]);
    }
  }
  for (int32_t g = 0; g < a->group_count; g++) a->groups[g].step += !a->groups[g].skipped;
  return 0;
}
