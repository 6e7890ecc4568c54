/* SPDX-License-Identifier: MIT
 * Products with a small matrix chosen by adapter id per sequence (the two halves of a low-rank delta).
 * Rows [offsets[s], offsets[s+1]) belong to sequence s; id = adapter[s] (-1: the sequence takes no part); m = mats[id]:
 *   FWD   y[t, j] (+)= m.scale sum_i x[t, i] m.w[j, i]      x [rows, in], y [rows, out], m.w [out, in] f32 or dtype
 *   DX    x[t, i] (+)= m.scale sum_j y[t, j] m.w[j, i]      (x is written, y read)
 *   DW    m.dw[j, i] += m.scale sum_t y[t, j] x[t, i]       float32
 * Shapes: x [rows, x_dim] and y [rows, y_dim] with row strides, in <= x_dim and out <= y_dim. in and out may differ per
 * id; columns of the written side beyond them, and rows without an adapter, become zero unless accumulate, which leaves
 * them. Limits: offsets ascend; an adapter id of mat_count or more fails with code 1 and nothing is written. Aliasing:
 * none. Arithmetic float32, one rounding, scale applied to the finished sum (DW: to y). Determinism: a row depends on
 * itself and its matrix alone; DW adds the rows of an id in a fixed order (their own one on the CPU, by sixteens in eight
 * parts on a device). Nothing depends on the number of threads. DW accumulates. */
#ifndef PX_KERNELS_LORA_H
#define PX_KERNELS_LORA_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

typedef enum px_lora_mode { PX_LORA_FWD = 0, PX_LORA_DX = 1, PX_LORA_DW = 2 } px_lora_mode;

typedef struct px_lora_matrix {
  const void *w; /* [out, in] dense */
  float *dw;
  int32_t in, out;
  float scale;
} px_lora_matrix;

typedef struct px_lora_args {
  px_lora_mode mode;
  px_dtype dtype, w_type;
  int32_t seqs;
  int64_t rows; /* offsets[seqs]: the host may not read those */
  const int32_t *offsets, *adapter;
  const px_lora_matrix *mats;
  int32_t mat_count;
  void *x, *y;
  int64_t x_stride, y_stride, x_dim, y_dim; /* columns of x and y */
  bool accumulate;
} px_lora_args;

const char *px_lora_check(const px_lora_args *a);
const char *px_lora_check_arrays(const px_lora_args *a); /* what mats holds; needs host memory */
px_cost px_lora_cost(const px_lora_args *a);
int px_lora_cpu(const px_lora_args *a);
int px_lora_cuda(const px_lora_args *a, void *stream);

PX_C_END

#endif
