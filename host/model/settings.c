/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdio.h>

#include "model/family.h"

static const char *gguf_key(const px_settings *s, const char *key, char text[128]) {
  snprintf(text, 128, "%s.%s", s->arch, key);
  return text;
}

px_status px_settings_int(const px_settings *s, px_key key, int64_t fallback, int64_t min, int64_t max, int32_t *out, px_error *err) {
  const int64_t absent = fallback == 0 && min > 0 ? INT64_MIN : fallback; /* a field that must be there */
  int64_t value = absent;
  char full[128];
  const char *name = key.hf;
  if (s->json) {
    PX_TRY(px_json_int(s->json, s->path, key.hf, absent, &value, err));
  } else if (key.gguf) {
    name = gguf_key(s, key.gguf, full);
    PX_TRY(px_gguf_int(s->gguf, name, absent, &value, err));
  }
  if (value == INT64_MIN) return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" is missing", s->path, name);
  if (value < min || value > max)
    return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" is %lld, must be between %lld and %lld", s->path, name, (long long)value,
                   (long long)min, (long long)max);
  *out = (int32_t)value;
  return PX_OK;
}

px_status px_settings_num(const px_settings *s, px_key key, double fallback, double *out, px_error *err) {
  char full[128];
  *out = fallback;
  if (s->json) return px_json_num(s->json, s->path, key.hf, fallback, out, err);
  return key.gguf ? px_gguf_num(s->gguf, gguf_key(s, key.gguf, full), fallback, out, err) : PX_OK;
}

px_status px_settings_bool(const px_settings *s, const char *key, bool fallback, bool *out, px_error *err) {
  *out = fallback;
  return s->json ? px_json_bool(s->json, s->path, key, fallback, out, err) : PX_OK;
}

px_status px_settings_must(const px_settings *s, const char *key, bool value, px_error *err) {
  bool got = value;
  PX_TRY(px_settings_bool(s, key, value, &got, err));
  if (got != value) return px_fail(err, PX_BAD_FILE, "%s: \"%s\": %s is not supported", s->path, key, got ? "true" : "false");
  return PX_OK;
}

px_status px_settings_act(const px_settings *s, const char *key, const char *fallback, px_act_kind *out, px_error *err) {
  static const struct {
    const char *name;
    px_act_kind kind;
  } table[] = {{"silu", PX_ACT_SILU},         {"swish", PX_ACT_SILU},    {"gelu_new", PX_ACT_GELU_TANH},
               {"gelu_pytorch_tanh", PX_ACT_GELU_TANH}, {"gelu", PX_ACT_GELU_ERF}, {"relu", PX_ACT_RELU}};
  const char *name = fallback;
  if (s->json) PX_TRY(px_json_str(s->json, s->path, key, fallback, &name, err));
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)
    if (strcmp(table[i].name, name) == 0) {
      *out = table[i].kind;
      return PX_OK;
    }
  return px_fail(err, PX_BAD_FILE, "%s: activation \"%s\" is not supported (silu, gelu_new, gelu_pytorch_tanh, gelu, relu are)", s->path, name);
}

/* config.json: `rope_parameters` (transformers 5), or rope_theta and rope_scaling. */
static px_status rope_from_json(const px_settings *s, px_rope_config *r, px_error *err) {
  const json_t *parameters = json_object_get(s->json, "rope_parameters");
  const json_t *scaling = json_is_object(parameters) ? parameters : json_object_get(s->json, "rope_scaling");
  PX_TRY(px_json_num(s->json, s->path, "rope_theta", 10000.0, &r->theta, err));
  double share = 1.0;
  PX_TRY(px_json_num(s->json, s->path, "partial_rotary_factor", 1.0, &share, err));
  const char *type = "default";
  if (json_is_object(scaling)) {
    PX_TRY(px_json_num(scaling, s->path, "rope_theta", r->theta, &r->theta, err));
    PX_TRY(px_json_num(scaling, s->path, "partial_rotary_factor", share, &share, err));
    PX_TRY(px_json_str(scaling, s->path, "type", type, &type, err));
    PX_TRY(px_json_str(scaling, s->path, "rope_type", type, &type, err));
  }
  if (share != 1.0) return px_fail(err, PX_BAD_FILE, "%s: \"partial_rotary_factor\": %g is not supported (1 is)", s->path, share);
  r->type = PX_ROPE_DEFAULT;
  if (strcmp(type, "default") == 0) return PX_OK;
  PX_TRY(px_json_num(scaling, s->path, "factor", 0, &r->factor, err));
  if (strcmp(type, "linear") == 0) {
    r->type = PX_ROPE_LINEAR;
  } else if (strcmp(type, "llama3") == 0) {
    r->type = PX_ROPE_LLAMA3;
    PX_TRY(px_json_num(scaling, s->path, "low_freq_factor", 0, &r->low_freq_factor, err));
    PX_TRY(px_json_num(scaling, s->path, "high_freq_factor", 0, &r->high_freq_factor, err));
    PX_TRY(px_json_num(scaling, s->path, "original_max_position_embeddings", 0, &r->original_context, err));
    if (r->low_freq_factor <= 0 || r->high_freq_factor <= r->low_freq_factor || r->original_context <= 0)
      return px_fail(err, PX_BAD_FILE,
                     "%s: rotary type \"llama3\" needs low_freq_factor < high_freq_factor and original_max_position_embeddings", s->path);
  } else {
    return px_fail(err, PX_BAD_FILE, "%s: rotary type \"%s\" is not supported (default, linear, llama3 are)", s->path, type);
  }
  if (!(r->factor > 0)) return px_fail(err, PX_BAD_FILE, "%s: rotary type \"%s\" needs a positive \"factor\"", s->path, type);
  return PX_OK;
}

static px_status rope_from_gguf(const px_settings *s, px_config *c, px_error *err) {
  px_rope_config *r = &c->rope;
  char key[128];
  const char *type = "none";
  int64_t rotated = c->head_dim;
  PX_TRY(px_gguf_num(s->gguf, gguf_key(s, "rope.freq_base", key), 10000.0, &r->theta, err));
  PX_TRY(px_gguf_int(s->gguf, gguf_key(s, "rope.dimension_count", key), rotated, &rotated, err));
  if (rotated != c->head_dim)
    return px_fail(err, PX_BAD_FILE, "%s: %s %lld differs from the head size %d, which is not supported", s->path, key,
                   (long long)rotated, c->head_dim);
  PX_TRY(px_gguf_str(s->gguf, gguf_key(s, "rope.scaling.type", key), type, &type, err));
  r->type = PX_ROPE_DEFAULT;
  if (strcmp(type, "linear") == 0) {
    r->type = PX_ROPE_LINEAR;
    PX_TRY(px_gguf_num(s->gguf, gguf_key(s, "rope.scaling.factor", key), 0, &r->factor, err));
    if (!(r->factor > 0)) return px_fail(err, PX_BAD_FILE, "%s: %s must be positive", s->path, key);
  } else if (strcmp(type, "none") != 0) {
    return px_fail(err, PX_BAD_FILE, "%s: rotary type \"%s\" is not supported (none, linear, and llama3's rope_freqs are)", s->path, type);
  }
  const px_tensor_view *freqs = px_tensor_find(&s->gguf->tensors, "rope_freqs.weight");
  if (!freqs) return PX_OK;
  if (freqs->dtype != PX_F32 || px_tensor_elements(freqs) != c->head_dim / 2)
    return px_fail(err, PX_BAD_FILE, "%s: tensor rope_freqs.weight must hold %d F32 values", s->path, c->head_dim / 2);
  float *divisors = px_arena_alloc(s->arena, (size_t)c->head_dim / 2, sizeof *divisors);
  if (!divisors) return px_fail(err, PX_NO_MEMORY, "no memory");
  memcpy(divisors, freqs->data, freqs->bytes);
  r->type = PX_ROPE_LLAMA3;
  r->divisors = divisors;
  return PX_OK;
}

px_status px_settings_rope(const px_settings *s, px_config *c, px_error *err) {
  PX_TRY(s->json ? rope_from_json(s, &c->rope, err) : rope_from_gguf(s, c, err));
  if (!(c->rope.theta > 0)) return px_fail(err, PX_BAD_FILE, "%s: the rotary base must be positive", s->path);
  return PX_OK;
}

/* layer_types, where given, decides per layer. */
static px_status window_layers(const px_settings *s, px_config *c, const json_t *types, int32_t window, px_error *err) {
  if (!json_is_array(types) || (int64_t)json_array_size(types) != c->layers)
    return px_fail(err, PX_BAD_FILE, "%s: field \"layer_types\" must list %d layers", s->path, c->layers);
  for (int l = 0; l < c->layers; l++) {
    const char *type = json_string_value(json_array_get(types, (size_t)l));
    if (type && strcmp(type, "sliding_attention") == 0)
      c->windows[l] = window;
    else if (type && strcmp(type, "full_attention") == 0)
      c->windows[l] = 0;
    else
      return px_fail(err, PX_BAD_FILE, "%s: layer type \"%s\" is not supported (full_attention, sliding_attention are)", s->path, type ? type : "?");
  }
  return PX_OK;
}

px_status px_settings_windows(const px_settings *s, px_config *c, bool always, px_error *err) {
  c->windows = px_arena_alloc(s->arena, (size_t)c->layers, sizeof *c->windows);
  if (!c->windows) return px_fail(err, PX_NO_MEMORY, "no memory");
  bool use = always;
  int32_t window = 0, first = 0;
  PX_TRY(px_settings_int(s, (px_key){"sliding_window", "attention.sliding_window"}, 0, 0, 1 << 30, &window, err));
  if (!always) PX_TRY(px_settings_bool(s, "use_sliding_window", false, &use, err));
  if (!use || window == 0) return PX_OK;
  const json_t *types = s->json ? json_object_get(s->json, "layer_types") : NULL;
  if (types && !json_is_null(types)) return window_layers(s, c, types, window, err);
  if (!always) PX_TRY(px_settings_int(s, (px_key){"max_window_layers", NULL}, 28, 0, 1 << 30, &first, err));
  for (int l = first; l < c->layers; l++) c->windows[l] = window; /* transformers: layers from max_window_layers on */
  return PX_OK;
}
