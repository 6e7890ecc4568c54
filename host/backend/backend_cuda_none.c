/* SPDX-License-Identifier: MIT */
#include "backend/backend_cuda.h"

const px_cuda_attention *px_cuda_attention_calls(void) { return NULL; }

px_status px_backend_open_cuda(int device, const px_backend_options *options, px_backend **out, px_error *err) {
  (void)options;
  *out = NULL;
  return px_fail(err, PX_NO_DEVICE,
                 "device cuda:%d: this build of pfx has no CUDA; use --device cpu, or build with cmake -D PFX_CUDA=ON",
                 device);
}
