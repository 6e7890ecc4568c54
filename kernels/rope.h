/* SPDX-License-Identifier: MIT
 * Rotary embedding in place, halves layout (Su et al. 2021, as Hugging Face stores weights): for i < rot_dim / 2,
 * with c = cos[pos][i], s = sin[pos][i]:  x_i' = x_i c - x_{i+rot_dim/2} s,  x_{i+rot_dim/2}' = x_{i+rot_dim/2} c + x_i
 * s. inverse: s -> -s (the backward pass). Elements from rot_dim on stay. x [rows, heads, head_dim] with row stride;
 * cos, sin [table_rows, rot_dim / 2] float32. rot_dim even, <= head_dim <= 256. Arithmetic float32, one rounding. In
 * place; x overlaps nothing else. Bits depend on the arguments alone. A position outside the table: nonzero is returned
 * and that row stays as it was. */
#ifndef PX_KERNELS_ROPE_H
#define PX_KERNELS_ROPE_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

typedef struct px_rope_args {
  px_dtype dtype;
  int64_t rows, stride;
  int32_t heads, head_dim, rot_dim;
  void *x;
  const int32_t *positions; /* [rows], each in [0, table_rows) */
  const float *cos, *sin;
  int64_t table_rows;
  bool inverse;
} px_rope_args;

const char *px_rope_check(const px_rope_args *a);
px_cost px_rope_cost(const px_rope_args *a);
int px_rope_cpu(const px_rope_args *a);
int px_rope_cuda(const px_rope_args *a, void *stream);

PX_C_END

#endif
