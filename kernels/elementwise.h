/* SPDX-License-Identifier: MIT
 * Small passes over rows: add, dropout, cast, column sums, gather and scatter of rows.
 * Shapes: everything is [rows, dim], f32 or bf16, with row strides in elements. Arithmetic float32, one rounding.
 * Aliasing: only where said. Determinism: an element depends on its own inputs alone, col_sum adds in an order that
 * follows from the shape and, on a device, the alignment (on the CPU that of t); nothing depends on the number of threads. Outputs are assigned,
 * but for col_sum, which accumulates. */
#ifndef PX_KERNELS_ELEMENTWISE_H
#define PX_KERNELS_ELEMENTWISE_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

/* y = a + b. y may be a or b. */
typedef struct px_add_args {
  px_dtype dtype;
  int64_t rows, dim, a_stride, b_stride, y_stride;
  const void *a, *b;
  void *y;
} px_add_args;

/* y = x keep / (1 - p), keep decided by px_philox(seed, stream, step, index0 + t * dim + j) word 0: px_uniform(word) >=
 * p. Forward and backward are the same pass. y may be x. p in [0, 1). */
typedef struct px_dropout_args {
  px_dtype dtype;
  int64_t rows, dim, x_stride, y_stride;
  float p;
  uint64_t seed, index0;
  uint32_t stream, step;
  const int64_t *step_at; /* where given, the step stands there, in backend memory: known only when it is done */
  const void *x;
  void *y;
} px_dropout_args;

/* y = (y_type) x; f32, f16, bf16 in any direction, to nearest even; NaN stays NaN (the bits of one that stays in its
 * type). y may be x where both types are of one size. */
typedef struct px_cast_args {
  px_dtype x_type, y_type;
  int64_t rows, dim, x_stride, y_stride;
  const void *x;
  void *y;
} px_cast_args;

/* out[j] += sum_t x[t, j], float32, fixed order. */
typedef struct px_col_sum_args {
  px_dtype dtype;
  int64_t rows, dim, x_stride;
  const void *x;
  float *out;
} px_col_sum_args;

/* gather: y[i] = x[index[i]]. scatter: y[index[i]] = x[i], all other rows of y become zero; index ascending, distinct.
 * `rows` counts the index; `all_rows` the other side; the index is not checked. y is not x. */
typedef struct px_rows_args {
  px_dtype dtype;
  int64_t rows, all_rows, dim, x_stride, y_stride;
  const int32_t *index;
  const void *x;
  void *y;
} px_rows_args;

const char *px_add_check(const px_add_args *a);
const char *px_dropout_check(const px_dropout_args *a);
const char *px_cast_check(const px_cast_args *a);
const char *px_col_sum_check(const px_col_sum_args *a);
const char *px_gather_rows_check(const px_rows_args *a);
const char *px_scatter_rows_check(const px_rows_args *a);
px_cost px_add_cost(const px_add_args *a);
px_cost px_dropout_cost(const px_dropout_args *a);
px_cost px_cast_cost(const px_cast_args *a);
px_cost px_col_sum_cost(const px_col_sum_args *a);
px_cost px_gather_rows_cost(const px_rows_args *a);
px_cost px_scatter_rows_cost(const px_rows_args *a);
int px_add_cpu(const px_add_args *a);
int px_dropout_cpu(const px_dropout_args *a);
int px_cast_cpu(const px_cast_args *a);
int px_col_sum_cpu(const px_col_sum_args *a);
int px_gather_rows_cpu(const px_rows_args *a);
int px_scatter_rows_cpu(const px_rows_args *a);
int px_add_cuda(const px_add_args *a, void *stream);
int px_dropout_cuda(const px_dropout_args *a, void *stream);
int px_cast_cuda(const px_cast_args *a, void *stream);
int px_col_sum_cuda(const px_col_sum_args *a, void *stream);
int px_gather_rows_cuda(const px_rows_args *a, void *stream);
int px_scatter_rows_cuda(const px_rows_args *a, void *stream);

PX_C_END

#endif
