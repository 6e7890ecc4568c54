/* SPDX-License-Identifier: MIT
 * Cross-entropy over a chunk of logits, which become their gradient in place.
 *   loss_t = log sum_j exp(z_tj) - z_t,target    row_loss[t] = loss_t;   loss_sum[group[t]] += loss_t (float64, order
 * of t) write_grad: z_tj <- exp(z_tj - lse_t) - [j == target]   (the gradient of the *sum* of losses), rounded to dtype
 * Shapes: z [rows, vocab] with `stride` from row to row, f32 or bf16; targets, group, row_loss [rows].
 * A target of -1: the row is there to fill a batch up; its loss is 0 and so is its gradient, whatever it holds.
 * Limits: vocab >= 1; any other target outside [0, vocab), or a row that holds NaN or +inf or nothing above -inf, gives a NaN
 * loss (a target of -inf gives +inf); the gradient of such a row is not defined. Aliasing: the gradient takes the place
 * of z. Arithmetic: exp and sums float32, largest logit subtracted. Determinism: a row depends on itself alone,
 * loss_sum adds in the order of t; nothing depends on the number of threads. row_loss is assigned, loss_sum
 * accumulates. */
#ifndef PX_KERNELS_LOSS_H
#define PX_KERNELS_LOSS_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

enum { PX_NO_TARGET = -1 };

typedef struct px_loss_args {
  px_dtype dtype;
  int64_t rows, vocab, stride;
  void *logits;
  const int32_t *targets; /* [rows], in [0, vocab), or PX_NO_TARGET */
  const int32_t *group;   /* [rows]; NULL: group 0 */
  float *row_loss;        /* [rows]; NULL: not wanted */
  double *loss_sum;       /* [groups], accumulates; NULL: not wanted */
  int64_t loss_stride;    /* doubles from one group's sum to the next (they may stand inside px_group) */
  bool write_grad;
} px_loss_args;

const char *px_loss_check(const px_loss_args *a);
px_cost px_loss_cost(const px_loss_args *a);
int px_loss_cpu(const px_loss_args *a);
int px_loss_cuda(const px_loss_args *a, void *stream);

PX_C_END

#endif
