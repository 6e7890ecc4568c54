/* SPDX-License-Identifier: MIT
 * Block-quantised weights (GGUF's types) -> f32 or bf16, element for element what ggml's reference computes in float32.
 * src is `count` elements in blocks of src_type (also F32 F16 BF16: a plain cast), not necessarily aligned; all cores. */
#ifndef PX_KERNELS_DEQUANT_H
#define PX_KERNELS_DEQUANT_H

#include "core/types.h"

typedef struct px_dequant_args {
  px_dtype src_type, dst_type;
  int64_t count;
  const void *src;
  void *dst;
} px_dequant_args;

const char *px_dequant_check(const px_dequant_args *a);
int px_dequant_cpu(const px_dequant_args *a);

#endif
