/* SPDX-License-Identifier: MIT
 * Activations, plain (up == NULL: y = f(gate)) and gated (y = f(gate) * up), forward and backward.
 *   silu: x / (1 + exp(-x))    gelu_tanh: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
 *   gelu_erf: 0.5 x (1 + erf(x / sqrt 2))    relu: max(x, 0)    tanh: tanh(x)
 * Backward: dgate = dy f'(gate) [* up],  dup = dy f(gate). dgate may be gate, dup may be up, y may be gate; dy may be
 * neither. Shapes: all [rows, dim], f32 or bf16, with row strides in elements. Limits: none on rows and dim. Arithmetic
 * float32, one rounding; exp, tanh and erf within 2 ulp. Determinism: an element depends on its own inputs alone.
 * Outputs are assigned. */
#ifndef PX_KERNELS_ACTIVATION_H
#define PX_KERNELS_ACTIVATION_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

typedef enum px_act_kind {
  PX_ACT_SILU = 0,
  PX_ACT_GELU_TANH = 1,
  PX_ACT_GELU_ERF = 2,
  PX_ACT_RELU = 3,
  PX_ACT_TANH = 4
} px_act_kind;

typedef struct px_act_fwd_args {
  px_act_kind kind;
  px_dtype dtype;
  int64_t rows, dim;
  const void *gate, *up;
  void *y;
  int64_t in_stride, y_stride; /* gate and up share a stride */
} px_act_fwd_args;

typedef struct px_act_bwd_args {
  px_act_kind kind;
  px_dtype dtype;
  int64_t rows, dim;
  const void *gate, *up, *dy;
  void *dgate, *dup; /* dup NULL where up is */
  int64_t in_stride, dy_stride, d_stride;
} px_act_bwd_args;

const char *px_act_fwd_check(const px_act_fwd_args *a);
const char *px_act_bwd_check(const px_act_bwd_args *a);
px_cost px_act_fwd_cost(const px_act_fwd_args *a);
px_cost px_act_bwd_cost(const px_act_bwd_args *a);
int px_act_fwd_cpu(const px_act_fwd_args *a);
int px_act_bwd_cpu(const px_act_bwd_args *a);
int px_act_fwd_cuda(const px_act_fwd_args *a, void *stream);
int px_act_bwd_cuda(const px_act_bwd_args *a, void *stream);

PX_C_END

#endif
