/* SPDX-License-Identifier: MIT
 * One of two files implements this: backend_cuda.c, or backend_cuda_none.c where the build has no CUDA. */
#ifndef PX_BACKEND_BACKEND_CUDA_H
#define PX_BACKEND_BACKEND_CUDA_H

#include "backend/backend.h"

/* Attention's launchers, for callers with memory and streams of their own. */
typedef struct px_cuda_attention {
  int (*fwd)(const px_attn_fwd_args *a, void *stream);
  int (*bwd)(const px_attn_bwd_args *a, void *stream);
  int (*decode)(const px_attn_decode_args *a, void *stream);
  int (*kv_write)(const px_kv_write_args *a, void *stream);
  const char *(*error_text)(int code);
} px_cuda_attention;
const px_cuda_attention *px_cuda_attention_calls(void); /* NULL: not in this build */

px_status px_backend_open_cuda(int device, const px_backend_options *options, px_backend **out, px_error *err);

#endif
