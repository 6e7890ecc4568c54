/* SPDX-License-Identifier: MIT */
#include "backend/attention_engine.h"

static px_status absent(px_error *err) {
  return px_fail(err, PX_NO_DEVICE,
                 "this build of pfx knows no cuDNN: cudnn.h or cudnn_frontend.h was not found when it was made (docs/gpu.md)");
}

px_status px_attn_cudnn_open(px_backend *be, px_attn_engine *out, px_error *err) {
  (void)be;
  (void)out;
  return absent(err);
}

px_status px_cudnn_library(void **out, px_error *err) {
  *out = NULL;
  return absent(err);
}

px_status px_attn_cudnn_properties(int device, char **out, size_t *bytes, px_error *err) {
  (void)device;
  *out = NULL;
  *bytes = 0;
  return absent(err);
}
