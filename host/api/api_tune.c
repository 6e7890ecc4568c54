/* SPDX-License-Identifier: MIT */
#include "api/handles.h"

pfx_status pfx_tune_describe(const char *tune, int32_t part, pfx_tune_part *out, int32_t *count, pfx_error *err) {
  px_tune_spec spec;
  memset(out, 0, sizeof *out);
  *count = 0;
  px_status status = px_tune_parse(tune, NULL, 0, &spec, px_api_error(err));
  if (status != PX_OK) return px_api_status(status);
  *count = 1;
  if (part == 0) {
    snprintf(out->name, sizeof out->name, "prefix");
    out->virtual_tokens = spec.prefix_tokens;
    out->lr = spec.lr;
    spec.lr = 0;
    out->usual_lr = px_tune_usual_lr(&spec);
  }
  px_tune_spec_free(&spec);
  return part >= 0 && part < *count ? PFX_OK
                                    : px_api_status(px_fail(px_api_error(err), PX_INVALID, "--tune %s has %d part%s", tune, *count,
                                                            *count == 1 ? "" : "s"));
}
