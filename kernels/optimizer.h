/* SPDX-License-Identifier: MIT
 * Sum of squares and AdamW (Loshchilov and Hutter 2019) over a whole list of tensors, per group.
 * Gradients are float32 sums over labelled tokens; the division by their number n happens here, once.
 *   sum_sq: group.sum_sq = sum over the group's tensors and elements of g^2 (float64, fixed order; assigned)
 *   adamw:  norm = sqrt(group.sum_sq) / n; group.grad_norm = norm. A group is passed over, and every tensor of it stays
 * untouched, where n == 0 (group.skipped = PX_NOTHING_TO_DO), where group.loss_sum / n or norm is not finite (group.skipped =
 * PX_BAD_STEP), and as long as the host leaves PX_BAD_STEP there: steps that were asked for before anyone saw it change
 * nothing. Else group.skipped = PX_STEP_DONE, and with c = clip > 0 ? min(1, clip / (norm + 1e-6)) : 1,  g = c * grad / n,
 * t = group.step + 1, lr = group.lr * lr_scale: m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
 * value -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * value); then group.step = t. With sgd instead
 * value -= lr (g + weight_decay * value); there are no moments then, and m and v may be NULL.
 * A division by 1 - b^t is a product with 1 / (1 - b^t). What is the same for a whole tensor (c /
 * n, those factors) is float64, rounded once; element arithmetic is float32 in the order written. Shapes: every tensor
 * `count` elements, dense float32; tensors do not overlap. Determinism: parts of fixed length, summed in order, tensors
 * in the order of the list: the bits do not depend on the number of threads. (On a device the parts are interleaved, as
 * many as PX_SUM_SQ_PARTS; workspace is not read on the CPU.) */
#ifndef PX_KERNELS_OPTIMIZER_H
#define PX_KERNELS_OPTIMIZER_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

enum { PX_STEP_DONE = 0, PX_NOTHING_TO_DO, PX_BAD_STEP }; /* px_group.skipped */

/* Lives in backend memory; the host writes lr and tokens before a step and reads the rest after it. */
typedef struct px_group {
  double loss_sum; /* of the step so far, by `loss` */
  double sum_sq;   /* by sum_sq */
  int64_t tokens;  /* labelled tokens of the step, by the host */
  int64_t step;    /* updates done */
  float lr, clip;
  float grad_norm;
  int32_t skipped;
} px_group;

typedef struct px_opt_tensor {
  float *value, *grad, *m, *v;
  int64_t count;
  float weight_decay, lr_scale;
  int32_t group;
} px_opt_tensor;

typedef struct px_sum_sq_args {
  const px_opt_tensor *tensors;
  int32_t tensor_count, group_count;
  px_group *groups;
  double *workspace; /* px_sum_sq_workspace bytes */
} px_sum_sq_args;

typedef struct px_adamw_args {
  const px_opt_tensor *tensors;
  int32_t tensor_count, group_count;
  px_group *groups;
  float beta1, beta2, eps;
  bool sgd;
} px_adamw_args;

/* Sums that a group's sum of squares is made of on a device. */
enum { PX_SUM_SQ_PARTS = 256 };
static inline size_t px_sum_sq_workspace(int32_t group_count) {
  return (size_t)group_count * PX_SUM_SQ_PARTS * sizeof(double);
}

const char *px_sum_sq_check(const px_sum_sq_args *a);
const char *px_adamw_check(const px_adamw_args *a);
/* What the list holds; needs host memory. */
const char *px_sum_sq_check_arrays(const px_sum_sq_args *a);
const char *px_adamw_check_arrays(const px_adamw_args *a);
px_cost px_sum_sq_cost(const px_sum_sq_args *a);
px_cost px_adamw_cost(const px_adamw_args *a);
int px_sum_sq_cpu(const px_sum_sq_args *a);
int px_adamw_cpu(const px_adamw_args *a);
int px_adamw_cuda(const px_adamw_args *a, void *stream);
int px_sum_sq_cuda(const px_sum_sq_args *a, void *stream);

PX_C_END

#endif
