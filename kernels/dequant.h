/* SPDX-License-Identifier: MIT
 * Block-quantised weights (GGUF's types) -> f32 or bf16, element for element what ggml's reference computes in float32.
 * src is `count` elements in whole blocks of src_type (also F32 F16 BF16: a plain cast), at any alignment; dst [count]
 * dense and aligned. The layouts stand in dequant_cpu.c. Aliasing: none. Arithmetic float32, then one rounding to
 * dst_type. Determinism: an element depends on its own block alone. dst is assigned. */
#ifndef PX_KERNELS_DEQUANT_H
#define PX_KERNELS_DEQUANT_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

typedef struct px_dequant_args {
  px_dtype src_type, dst_type;
  int64_t count;
  const void *src;
  void *dst;
} px_dequant_args;

const char *px_dequant_check(const px_dequant_args *a);
px_cost px_dequant_cost(const px_dequant_args *a);
int px_dequant_cpu(const px_dequant_args *a);
int px_dequant_cuda(const px_dequant_args *a, void *stream);

PX_C_END

#endif
