/* SPDX-License-Identifier: MIT */
#include "api/handles.h"

pfx_status pfx_tune_describe(const char *tune, int32_t part, pfx_tune_part *out, int32_t *count, pfx_error *err) {
  px_tune_spec spec;
  memset(out, 0, sizeof *out);
  *count = 0;
  px_status status = px_tune_parse(tune, NULL, 0, &spec, px_api_error(err));
  if (status != PX_OK) return px_api_status(status);
  *count = spec.part_count;
  if (part >= 0 && part < spec.part_count) {
    px_part_spec *p = &spec.parts[part];
    snprintf(out->name, sizeof out->name, "%s", px_part_kind_name(p->kind));
    out->virtual_tokens = p->kind == PX_PART_PREFIX || p->kind == PX_PART_PROMPT ? p->size : 0;
    out->lr = p->lr;
    out->usual_lr = px_part_usual_lr(p);
  } else {
    status = px_fail(px_api_error(err), PX_INVALID, "--tune %s has %d part%s", tune, spec.part_count, spec.part_count == 1 ? "" : "s");
  }
  px_tune_spec_free(&spec);
  return px_api_status(status);
}
