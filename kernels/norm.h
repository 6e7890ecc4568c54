/* SPDX-License-Identifier: MIT
 * RMS norm and layer norm, with the residual addition fused in, forward and backward.
 * Row (t, h), h < heads, of x stands at x + t * x_stride + h * dim (heads is 1 but for q/k norms).
 *   u = x + residual (rounded to dtype, written to `sum`; without residual u = x)
 *   rms:   r = 1/sqrt(mean(u^2) + eps)                 y = u r w
 *   layer: m = mean(u), r = 1/sqrt(mean((u-m)^2)+eps)  y = (u - m) r w + b
 * Backward from dy, u, r, m: with g = dy w, n = (u - m) r (m = 0 for rms):
 *   dx = r (g - [layer: mean(g)] - n mean(g n)) + dresidual
 *   dw += sum_t dy n   db += sum_t dy   (float32, fixed order; NULL: not wanted)
 * Shapes: x, residual, sum, y, dy, dx, dresidual [rows, heads, dim] with row strides in elements; weight, bias, dw, db
 * [dim]; rstd, mean [rows, heads] float32. Limits: heads, dim >= 1; sum and residual go together. Aliasing: y may be x
 * or sum when nothing else reads them, sum may be x or residual, dx may be dy or dresidual of its stride. Arithmetic
 * float32, one rounding each of sum, y and dx; weights f32 or of the rows' type (weight_type). The variance of layer
 * norm is of the differences from the mean, in a pass of its own. Determinism: a row depends on itself alone, dw and db
 * add in a fixed order (on the CPU that of t); nothing depends on the number of threads. dw and db accumulate, all else is assigned. */
#ifndef PX_KERNELS_NORM_H
#define PX_KERNELS_NORM_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

typedef enum px_norm_kind { PX_NORM_RMS = 0, PX_NORM_LAYER = 1 } px_norm_kind;

typedef struct px_norm_fwd_args {
  px_norm_kind kind;
  px_dtype dtype, weight_type;
  int64_t rows; /* t */
  int32_t heads, dim;
  float eps;
  const void *x, *residual;  /* residual may be NULL; same stride as x */
  void *sum;                 /* NULL where residual is NULL; may be x or residual; same stride as x */
  const void *weight, *bias; /* [dim]; bias may be NULL */
  void *y;
  int64_t x_stride, y_stride;
  float *rstd, *mean; /* [rows, heads]; NULL: not kept; mean is for layer only */
} px_norm_fwd_args;

typedef struct px_norm_bwd_args {
  px_norm_kind kind;
  px_dtype dtype, weight_type;
  int64_t rows;
  int32_t heads, dim;
  const void *dy, *x; /* x is u above */
  const void *weight;
  const float *rstd, *mean;
  const void *dresidual; /* NULL: none; stride of dx */
  void *dx;              /* NULL: not wanted */
  int64_t dy_stride, x_stride, dx_stride;
  float *dw, *db; /* accumulate; NULL: not wanted */
} px_norm_bwd_args;

const char *px_norm_fwd_check(const px_norm_fwd_args *a);
const char *px_norm_bwd_check(const px_norm_bwd_args *a);
px_cost px_norm_fwd_cost(const px_norm_fwd_args *a);
px_cost px_norm_bwd_cost(const px_norm_bwd_args *a);
int px_norm_fwd_cpu(const px_norm_fwd_args *a);
int px_norm_bwd_cpu(const px_norm_bwd_args *a);
int px_norm_fwd_cuda(const px_norm_fwd_args *a, void *stream);
int px_norm_bwd_cuda(const px_norm_bwd_args *a, void *stream);

PX_C_END

#endif
