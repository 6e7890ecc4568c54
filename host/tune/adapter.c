/* SPDX-License-Identifier: MIT */
#include "tune/adapter.h"

#include <math.h>
#include <stdlib.h>

#include "core/hash.h"
#include "core/version.h"
#include "text/chat.h"

px_status px_adapter_open(const char *path, px_adapter **out, px_error *err) {
  *out = NULL;
  px_adapter *a = px_calloc(1, sizeof *a);
  if (!a) return px_fail(err, PX_NO_MEMORY, "no memory");
  px_status status = px_adapter_folder_open(path, &a->folder, err);
  if (status != PX_OK) {
    free(a);
    return status;
  }
  const px_tensor_view *t = a->folder.prompt_embeddings;
  a->tokens = (int32_t)t->shape[0];
  int64_t count = px_tensor_elements(t);
  a->path = strdup(path);
  a->values = malloc((size_t)count * sizeof(float) + 1);
  if (!a->values || !a->path) {
    px_adapter_close(a);
    return px_fail(err, PX_NO_MEMORY, "no memory for %s", path);
  }
  px_dequant_cpu(&(px_dequant_args){.src_type = t->dtype, .dst_type = PX_F32, .count = count, .src = t->data, .dst = a->values});
  *out = a;
  return PX_OK;
}

void px_adapter_close(px_adapter *a) {
  if (!a) return;
  px_adapter_folder_close(&a->folder);
  free(a->values);
  free(a->path);
  free(a);
}

static const char *meta(const px_adapter *a, const char *key) { return px_meta_get(a->folder.metadata, a->folder.metadata_count, key); }

static px_status shapes_fit(const px_adapter *a, const px_config *c, px_error *err) {
  const px_adapter_config *f = &a->folder.config;
  const char *path = a->folder.prompt_embeddings->file;
  if (f->layers != c->layers)
    return px_fail(err, PX_MISMATCH, "%s is for a model of %lld layers, this one has %d", path, (long long)f->layers, c->layers);
  if (f->token_dim != (int64_t)c->kv_heads * c->head_dim)
    return px_fail(err, PX_MISMATCH, "%s holds keys and values of %lld numbers a layer, this model's have %lld (%d heads of %d)", path,
                   (long long)f->token_dim, (long long)c->kv_heads * c->head_dim, c->kv_heads, c->head_dim);
  if (f->heads != c->kv_heads)
    return px_fail(err, PX_MISMATCH, "%s is for %lld key/value heads, this model has %d", path, (long long)f->heads, c->kv_heads);
  if (a->tokens >= c->context)
    return px_fail(err, PX_MISMATCH, "%s has %d virtual tokens, which leaves no room in this model's context of %d", path, a->tokens, c->context);
  return PX_OK;
}

/* How far the base weights are from the ones the adapter was trained on, in words. */
static px_status other_weights(const px_adapter *a, const px_model *model, px_error *err) {
  const char *path = a->folder.prompt_embeddings->file, *text = meta(a, "pfx.samples");
  px_buf raw = {0};
  if (!text || px_base64_decode(&raw, text) != 0 || raw.len != sizeof model->fingerprint.samples) {
    px_buf_free(&raw);
    return px_fail(err, PX_MISMATCH, "%s was trained on other weights than %s (base digests differ); --force uses it all the same", path,
                   model->source.path);
  }
  float trained[PX_FINGERPRINT_SAMPLES];
  memcpy(trained, raw.data, sizeof trained);
  px_buf_free(&raw);
  double distance = px_fingerprint_distance(model->fingerprint.samples, trained, PX_FINGERPRINT_SAMPLES);
  const char *cause = distance < 0.003  ? "a copy in another floating-point type"
                      : distance < 0.15 ? "a quantised or further trained copy"
                                        : "another model of the same shape";
  return px_fail(err, PX_MISMATCH, "%s was trained on other weights than %s: sampled weights differ by %.2g (relative L2), likely %s; --force uses it all the same",
                 path, model->source.path, distance, cause);
}

px_status px_adapter_fits(const px_adapter *a, const px_model *model, const px_tokenizer *tok, bool force, px_fit *fit, px_buf *warning,
                          px_error *err) {
  *fit = PX_FIT_UNVERIFIED;
  PX_TRY(shapes_fit(a, px_model_config(model), err));
  const char *mode = meta(a, "pfx.position_mode"), *arch = meta(a, "pfx.arch"), *base = meta(a, "pfx.base");
  if (mode && strcmp(mode, "after-prefix") != 0)
    return px_fail(err, PX_MISMATCH, "%s counts positions in the mode \"%s\", which pfx does not have", a->folder.prompt_embeddings->file, mode);
  const char *digest = meta(a, "pfx.tokenizer");
  if (warning && tok && digest && strcmp(digest, px_tokenizer_info_get(tok)->digest) != 0)
    px_buf_printf(warning, "the adapter was trained with another tokenizer than this model's");
  const char *trained = meta(a, "pfx.template");
  px_template own;
  if (warning && tok && trained && strcmp(trained, "none") != 0 && px_template_detect(tok, &own, NULL) == PX_OK &&
      strcmp(trained, px_template_name(own)) != 0)
    px_buf_printf(warning, "%sthe adapter was trained with the chat template %s, this model has %s", warning->len ? "; " : "", trained,
                  px_template_name(own));
  if (!base) return PX_OK;
  if (strcmp(base, model->fingerprint.base) == 0) {
    *fit = PX_FIT_VERIFIED;
    return PX_OK;
  }
  *fit = PX_FIT_FORCED;
  if (force) return PX_OK;
  if (arch && strcmp(arch, model->fingerprint.arch) != 0)
    return px_fail(err, PX_MISMATCH, "%s was trained on a model of another architecture than %s; --force uses it all the same",
                   a->folder.prompt_embeddings->file, model->source.path);
  return other_weights(a, model, err);
}

px_status px_adapter_metadata(const px_model *model, const px_tokenizer *tok, const char *template_name, const char *training,
                              px_arena *arena, px_meta **out, size_t *count, px_error *err) {
  px_buf samples = {0};
  px_base64_append(&samples, model->fingerprint.samples, sizeof model->fingerprint.samples);
  const px_meta all[] = {
      {"pfx.arch", model->fingerprint.arch},
      {"pfx.base", model->fingerprint.base},
      {"pfx.position_mode", "after-prefix"},
      {"pfx.samples", samples.data ? samples.data : ""},
      {"pfx.template", template_name ? template_name : "none"},
      {"pfx.tokenizer", tok ? px_tokenizer_info_get(tok)->digest : "none"},
      {"pfx.training", training ? training : "{}"},
      {"pfx.version", PX_VERSION},
      {"pfx.window", "real-tokens"},
  };
  *count = sizeof all / sizeof *all;
  *out = px_arena_alloc(arena, *count, sizeof **out);
  for (size_t i = 0; *out && i < *count; i++) (*out)[i] = (px_meta){all[i].key, px_arena_strdup(arena, all[i].value)};
  bool failed = !*out || samples.failed;
  px_buf_free(&samples);
  return failed ? px_fail(err, PX_NO_MEMORY, "no memory") : PX_OK;
}

px_status px_adapter_write(const char *path, const px_model *model, const char *base_name, const float *values, int32_t tokens,
                           const px_meta *metadata, size_t count, px_error *err) {
  const px_config *c = px_model_config(model);
  px_adapter_config config = {.peft_type = "PREFIX_TUNING", .base_model = base_name, .task_type = "CAUSAL_LM", .virtual_tokens = tokens,
                              .layers = c->layers, .heads = c->kv_heads, .token_dim = (int64_t)c->kv_heads * c->head_dim,
                              .hidden_size = (int64_t)c->kv_heads * c->head_dim};
  return px_adapter_folder_write(path, &config, values, metadata, count, err);
}
