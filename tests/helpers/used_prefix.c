/* SPDX-License-Identifier: MIT */
#include "helpers/used_prefix.h"

#include <stdlib.h>

px_status px_prefix_open(const px_config *config, px_backend *be, px_dtype dtype, const float *values, int32_t tokens,
                         px_prefix *out, px_error *err) {
  *out = (px_prefix){.tokens = tokens};
  int64_t width = (int64_t)config->kv_heads * config->head_dim, slices = 2 * (int64_t)config->layers,
          all = slices * tokens * width;
  size_t element = px_dtype_bytes(dtype, 1);
  out->segments = px_calloc((size_t)config->layers, sizeof *out->segments);
  char *host = px_calloc((size_t)all, element);
  out->memory = px_backend_alloc(be, (size_t)all * element);
  px_status status = out->segments && host && out->memory
                         ? PX_OK
                         : px_fail(err, PX_NO_MEMORY, "no memory for a prefix of %d tokens", tokens);
  for (int64_t s = 0; status == PX_OK && s < slices; s++)
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t j = 0; j < width; j++) {
        float value = values[px_peft_index(t, s, j, slices, width)];
        int64_t at = (s * tokens + t) * width + j;
        if (dtype == PX_F32)
          ((float *)(void *)host)[at] = value;
        else
          ((uint16_t *)(void *)host)[at] = px_f32_to_bf16(value);
      }
  if (status == PX_OK) px_backend_write(be, out->memory, host, (size_t)all * element);
  for (int l = 0; status == PX_OK && l < config->layers; l++) {
    char *k = (char *)out->memory + (size_t)(2 * l * tokens * width) * element;
    out->segments[l] =
        (px_kv_segment){.k = k, .v = k + (size_t)(tokens * width) * element, .stride = width, .len = tokens};
  }
  free(host);
  if (status == PX_OK) status = px_backend_status(be, err);
  if (status != PX_OK) px_prefix_close(out, be);
  return status;
}

void px_prefix_close(px_prefix *prefix, px_backend *be) {
  px_backend_free(be, prefix->memory);
  free(prefix->segments);
  *prefix = (px_prefix){0};
}
