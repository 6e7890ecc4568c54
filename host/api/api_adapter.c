/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "api/handles.h"

pfx_status pfx_adapter_open(const char *path, pfx_adapter **adapter, pfx_error *err) {
  *adapter = NULL;
  pfx_adapter *a = px_calloc(1, sizeof *a);
  if (!a) return px_api_status(px_fail(px_api_error(err), PX_NO_MEMORY, "no memory"));
  px_status status = px_adapter_open(path, &a->adapter, px_api_error(err));
  if (status != PX_OK) {
    free(a);
    return px_api_status(status);
  }
  *adapter = a;
  return PFX_OK;
}

void pfx_adapter_close(pfx_adapter *adapter) {
  if (!adapter) return;
  px_adapter_close(adapter->adapter);
  free(adapter);
}

void pfx_adapter_info_get(const pfx_adapter *adapter, pfx_adapter_info *info) {
  const px_adapter *a = adapter->adapter;
  const px_adapter_part *prefix = px_adapter_find(a, PX_PART_PREFIX);
  const px_adapter_config *c = prefix ? &prefix->config : &a->parts[0].config;
  *info = (pfx_adapter_info){.path = a->path, .kind = a->kind, .virtual_tokens = a->tokens, .base_model = c->base_model,
                             .base = px_adapter_meta(a, "pfx.base"), .arch = px_adapter_meta(a, "pfx.arch"),
                             .training = px_adapter_meta(a, "pfx.training")};
  if (!prefix) return;
  info->layers = (int32_t)c->layers;
  info->kv_heads = (int32_t)c->heads;
  info->head_dim = (int32_t)(c->token_dim / c->heads);
}

pfx_status pfx_adapter_check(const pfx_adapter *adapter, const pfx_model *model, const pfx_tokenizer *tokenizer, bool force, pfx_fit *fit,
                             char **warning, pfx_error *err) {
  px_fit inner = PX_FIT_UNVERIFIED;
  px_buf text = {0};
  px_status status = px_adapter_fits(adapter->adapter, model->model, tokenizer ? tokenizer->tok : NULL, force, &inner, warning ? &text : NULL,
                                     px_api_error(err));
  if (status == PX_OK) status = px_adapter_attaches(adapter->adapter, model->model, px_api_error(err));
  *fit = (pfx_fit)inner;
  if (warning) *warning = text.data;
  return px_api_status(status);
}

static void put(void *base, pfx_kv_type type, int64_t at, float value) {
  if (type == PFX_KV_F32)
    ((float *)base)[at] = value;
  else
    ((uint16_t *)base)[at] = type == PFX_KV_BF16 ? px_f32_to_bf16(value) : px_f32_to_f16(value);
}

pfx_status pfx_adapter_write_kv(const pfx_adapter *adapter, int32_t layer, const pfx_kv_target *target, void *stream, pfx_error *err) {
  pfx_kv_target t = pfx_kv_target_init();
  if (px_api_options(&t, sizeof t, target, "pfx_kv_target", err) != PFX_OK) return PFX_INVALID;
  const px_adapter *a = adapter->adapter;
  if (px_adapter_must_be_prefix(a, px_api_error(err)) != PX_OK) return PFX_INVALID;
  const px_adapter_config *c = &a->parts[0].config;
  int64_t dim = c->token_dim / c->heads, slices = 2 * c->layers;
  px_error *e = px_api_error(err);
  if (stream) return px_api_status(px_fail(e, PX_INVALID, "stream must be NULL on the CPU"));
  if (layer < 0 || layer >= c->layers) return px_api_status(px_fail(e, PX_INVALID, "layer %d is out of range (0 to %lld)", layer, (long long)c->layers - 1));
  if (!t.k || !t.v) return px_api_status(px_fail(e, PX_INVALID, "the target has no memory for keys or values"));
  if (t.type > PFX_KV_BF16 || t.rotary > PFX_ROTARY_INTERLEAVED) return px_api_status(px_fail(e, PX_INVALID, "the target's type or rotary layout is not known"));
  if (t.first_head < 0 || t.head_count < 1 || (int64_t)t.first_head + t.head_count > c->heads)
    return px_api_status(px_fail(e, PX_INVALID, "%d heads from head %d on are out of range (the prefix has %lld)", t.head_count, t.first_head,
                                 (long long)c->heads));
  if (t.block_table && t.block_tokens < 1) return px_api_status(px_fail(e, PX_INVALID, "a block table needs block_tokens"));
  for (int64_t token = 0; token < a->tokens; token++) {
    int64_t slot = t.block_table ? (int64_t)t.block_table[token / t.block_tokens] * t.block_tokens + token % t.block_tokens : token;
    for (int64_t h = 0; h < t.head_count; h++)
      for (int64_t d = 0; d < dim; d++) {
        /* Position d of the target is dimension `from` of the halves layout; values are not rotated. */
        int64_t from = t.rotary == PFX_ROTARY_INTERLEAVED ? (d % 2) * (dim / 2) + d / 2 : d;
        int64_t at = slot * t.token_stride + h * t.head_stride + d, head = (t.first_head + h) * dim;
        put(t.k, t.type, at, a->values[(token * slices + 2 * layer) * c->token_dim + head + from]);
        put(t.v, t.type, at, a->values[(token * slices + 2 * layer + 1) * c->token_dim + head + d]);
      }
  }
  return PFX_OK;
}
