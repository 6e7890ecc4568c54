/* SPDX-License-Identifier: MIT
 * Cross-entropy over a chunk of logits, which become their gradient in place.
 *   loss_t = log sum_j exp(z_tj) - z_t,target    row_loss[t] = loss_t;   loss_sum[group[t]] += loss_t (float64, order of t)
 *   write_grad: z_tj <- exp(z_tj - lse_t) - [j == target]   (the gradient of the *sum* of losses), rounded to dtype
 * z [rows, vocab] with stride; statistics float32; a row whose logits hold NaN or +inf gives a NaN loss. */
#ifndef PX_KERNELS_LOSS_H
#define PX_KERNELS_LOSS_H

#include "core/types.h"

typedef struct px_loss_args {
  px_dtype dtype;
  int64_t rows, vocab, stride;
  void *logits;
  const int32_t *targets; /* [rows], in [0, vocab) */
  const int32_t *group;   /* [rows]; NULL: group 0 */
  float *row_loss;        /* [rows]; NULL: not wanted */
  double *loss_sum;       /* [groups], accumulates; NULL: not wanted */
  int64_t loss_stride;    /* doubles from one group's sum to the next (they may stand inside px_group) */
  bool write_grad;
} px_loss_args;

const char *px_loss_check(const px_loss_args *a);
int px_loss_cpu(const px_loss_args *a);

#endif
