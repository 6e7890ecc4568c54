/* SPDX-License-Identifier: MIT */
#include "backend/attention_engine.h"

#include <stdlib.h>

/* What was measured, by the beginning of a device's name (docs/gpu.md, "Attention"). The last line ends the table. */
static const struct {
  const char *device;
  px_attention engine;
} measured[] = {
    {NULL, PX_ATTENTION_FUSED},
};

static px_attention usual(const char *device) {
  int i = 0;
  while (measured[i].device && strncmp(device, measured[i].device, strlen(measured[i].device)) != 0) i++;
  return measured[i].engine;
}

px_status px_attention_open(px_backend *be, px_attention wanted, const char *device, px_attn_split **out, px_error *err) {
  px_attention engine = wanted == PX_ATTENTION_AUTO ? usual(device) : wanted;
  px_error why;
  *out = NULL;
  if (engine != PX_ATTENTION_CUDNN) return PX_OK;
  px_attn_split *s = calloc(1, sizeof *s);
  if (!s) return px_fail(err, PX_NO_MEMORY, "no memory for an attention engine");
  s->be = be;
  px_status status = be->emulated ? px_fail(&why, PX_NO_DEVICE, "an emulated device has no cuDNN") : px_attn_cudnn_open(be, &s->engine, &why);
  if (status == PX_OK) {
    *out = s;
    return PX_OK;
  }
  free(s);
  if (wanted == PX_ATTENTION_CUDNN) return px_fail(err, status, "--attention cudnn: %s; --attention fused needs nothing", why.message);
  px_log_message(&be->log, PX_LOG_VERBOSE, "attention by pfx's own kernels: %s", why.message);
  return PX_OK;
}
