/* SPDX-License-Identifier: MIT */
#include "backend/attention_engine.h"

px_status px_attn_cudnn_open(px_backend *be, px_attn_engine *out, px_error *err) {
  (void)be;
  (void)out;
  return px_fail(err, PX_NO_DEVICE,
                 "this build of pfx knows no cuDNN: cudnn.h or cudnn_frontend.h was not found when it was made (docs/gpu.md)");
}
