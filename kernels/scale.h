/* SPDX-License-Identifier: MIT
 * Learned scales by adapter id per sequence (IA3, Liu et al. 2022). Rows [offsets[q], offsets[q+1]) belong to sequence q;
 * id = adapter[q] (-1: none); s[id] is a vector, or NULL: none; without one a row's scales are 1.
 *   FWD   y[t, j] = x[t, j] s[id][j]
 *   BWD   ds[id][j] += sum_t dy[t, j] x[t, j]     dx[t, j] = dy[t, j] s[id][j]
 * Shapes: x, y, dy, dx [rows, dim] in dtype with row strides; s, ds host-made arrays in backend memory of `count` vectors
 * float32 [dim]; offsets [seqs + 1] ascending, offsets[seqs] = rows. Limits: an id of `count` or more fails with code 1 on the
 * CPU; a device takes it for none. ds NULL, or an entry of it: not wanted. Aliasing: y may be x, dx may be dy.
 * Arithmetic float32, one rounding. Determinism: an element of y and dx depends on itself alone; ds adds in the order of t
 * on the CPU, on a device in a fixed order of eight interleaved sums. y and dx are assigned, ds accumulates. */
#ifndef PX_KERNELS_SCALE_H
#define PX_KERNELS_SCALE_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

typedef struct px_scale_fwd_args {
  px_dtype dtype;
  int32_t seqs, count;
  int64_t rows, dim; /* rows = offsets[seqs]: the host may not read that */
  const int32_t *offsets, *adapter;
  const float *const *s;
  const void *x;
  void *y;
  int64_t x_stride, y_stride;
} px_scale_fwd_args;

typedef struct px_scale_bwd_args {
  px_dtype dtype;
  int32_t seqs, count;
  int64_t rows, dim;
  const int32_t *offsets, *adapter;
  const float *const *s;
  float *const *ds;
  const void *x, *dy;
  void *dx;
  int64_t stride; /* of all three */
} px_scale_bwd_args;

const char *px_scale_fwd_check(const px_scale_fwd_args *a);
const char *px_scale_bwd_check(const px_scale_bwd_args *a);
px_cost px_scale_fwd_cost(const px_scale_fwd_args *a);
px_cost px_scale_bwd_cost(const px_scale_bwd_args *a);
int px_scale_fwd_cpu(const px_scale_fwd_args *a);
int px_scale_bwd_cpu(const px_scale_bwd_args *a);
int px_scale_fwd_cuda(const px_scale_fwd_args *a, void *stream);
int px_scale_bwd_cuda(const px_scale_bwd_args *a, void *stream);

PX_C_END

#endif
