/* SPDX-License-Identifier: MIT */
#include "model/config.h"

#include <math.h>
#include <stdlib.h>

#include "model/family.h"

static px_status finish(const px_family *family, const px_settings *s, px_config *c, px_error *err) {
  *c = (px_config){.family = family->name, .hf = family->hf, .gguf = family->gguf};
  PX_TRY(family->config(c, s, err));
  if (c->head_dim > 256) return px_fail(err, PX_BAD_FILE, "%s: head size %d is not supported (up to 256 is)", s->path, c->head_dim);
  if (!c->windows) c->windows = px_arena_alloc(s->arena, (size_t)c->layers, sizeof *c->windows);
  if (!c->windows) return px_fail(err, PX_NO_MEMORY, "no memory");
  if (!(c->norm_eps > 0 && c->norm_eps < 1)) return px_fail(err, PX_BAD_FILE, "%s: the norm's epsilon %g is not in (0, 1)", s->path, c->norm_eps);
  return PX_OK;
}

px_status px_config_from_json(const json_t *json, const char *path, px_arena *arena, px_config *config, px_error *err) {
  const char *type = NULL;
  PX_TRY(px_json_str(json, path, "model_type", NULL, &type, err));
  if (!type) return px_fail(err, PX_BAD_FILE, "%s: field \"model_type\" is missing", path);
  const px_family *family = px_family_find(type);
  if (!family)
    return px_fail(err, PX_BAD_FILE, "%s: model type \"%s\" is not supported (gpt2, llama, mistral, qwen2, qwen3 are)", path, type);
  px_settings s = {.path = path, .arch = type, .json = json, .arena = arena};
  return finish(family, &s, config, err);
}

px_status px_config_from_gguf(px_gguf *gguf, px_arena *arena, px_config *config, px_error *err) {
  const char *arch = NULL;
  PX_TRY(px_gguf_str(gguf, "general.architecture", NULL, &arch, err));
  if (!arch) return px_fail(err, PX_BAD_FILE, "%s: field \"general.architecture\" is missing", gguf->path);
  const px_family *family = px_family_find(arch);
  if (!family || strcmp(arch, "mistral") == 0)
    return px_fail(err, PX_BAD_FILE, "%s: architecture \"%s\" is not supported (gpt2, llama, qwen2, qwen3 are)", gguf->path, arch);
  px_settings s = {.path = gguf->path, .arch = arch, .gguf = gguf, .arena = arena};
  PX_TRY(finish(family, &s, config, err));
  const px_tensor_view *embed = px_tensor_find(&gguf->tensors, "token_embd.weight");
  if (!embed || embed->dims != 2) return px_fail(err, PX_BAD_FILE, "%s: tensor token_embd.weight is missing", gguf->path);
  if (embed->shape[0] > 1 << 30) return px_fail(err, PX_BAD_FILE, "%s: tensor token_embd.weight is too large", gguf->path);
  config->vocab = (int32_t)embed->shape[0];
  /* GGUF has no flag for a tied head: it is tied where the file has none, or the embedding's own bytes again. */
  const px_tensor_view *head = px_tensor_find(&gguf->tensors, "output.weight");
  config->tied = !head || (head->bytes == embed->bytes && head->dtype == embed->dtype && memcmp(head->data, embed->data, head->bytes) == 0);
  if (px_tensor_find(&gguf->tensors, "blk.0.attn_q.bias")) config->qkv_bias = true;
  if (px_tensor_find(&gguf->tensors, "blk.0.attn_output.bias")) config->o_bias = true;
  if (px_tensor_find(&gguf->tensors, "blk.0.ffn_down.bias")) config->mlp_bias = true;
  return PX_OK;
}

void px_rope_frequencies(const px_config *c, float *inv_freq) {
  const px_rope_config *r = &c->rope;
  for (int i = 0; i < c->head_dim / 2; i++) {
    double f = 1.0 / pow(r->theta, 2.0 * i / c->head_dim);
    if (r->type == PX_ROPE_LINEAR) {
      f /= r->factor;
    } else if (r->type == PX_ROPE_LLAMA3 && r->divisors) {
      f /= (double)r->divisors[i];
    } else if (r->type == PX_ROPE_LLAMA3) {
      double turns = r->original_context * f / 6.283185307179586476925; /* over the original context */
      double smooth = (turns - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
      smooth = smooth < 0 ? 0 : smooth > 1 ? 1 : smooth;
      f = (1 - smooth) * f / r->factor + smooth * f;
    }
    inv_freq[i] = (float)f;
  }
}

void px_rope_tables(const px_config *c, int64_t positions, float *cos_table, float *sin_table) {
  int half = c->head_dim / 2;
  float inv_freq[128];
  px_rope_frequencies(c, inv_freq);
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < positions; p++)
    for (int i = 0; i < half; i++) {
      double angle = (double)((float)p * inv_freq[i]); /* the float32 product, as transformers has it */
      cos_table[p * half + i] = (float)cos(angle);
      sin_table[p * half + i] = (float)sin(angle);
    }
}
