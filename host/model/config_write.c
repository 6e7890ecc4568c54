/* SPDX-License-Identifier: MIT
 * config.json of a model that comes from a GGUF file. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/model_write.h"

/* The shortest decimal that is this float32 again: 1e-05 where a GGUF file has 9.99999974e-06. */
static double shortest(double value) {
  char text[40];
  for (int digits = 1; digits < 10; digits++) {
    snprintf(text, sizeof text, "%.*g", digits, value);
    if ((float)strtod(text, NULL) == (float)value) return strtod(text, NULL);
  }
  return value;
}

/* ---- llama3's settings from the divisors ----
 * A frequency f is divided by 1 where it turns often in the original context, by `factor` where it turns seldom, and between
 * them 1/divisor = (1 - s)/factor + s with s a straight line in f from 0 at low to 1 at high. Only the ratios of low, high and
 * the original context matter, so the context can be what it usually is. */

enum { USUAL_CONTEXT = 8192 };

/* Points (turns, s) of each frequency, ordered by falling turns. Sets the line's ends. */
static void fit_line(const double *turns, const double *s, int count, double *low, double *high) {
  int first = 0, last = count - 1; /* of the frequencies between the ends */
  while (first < count && s[first] > 1 - 1e-6) first++;
  while (last >= 0 && s[last] < 1e-6) last--;
  if (first > last) { /* none: the line runs between the last plain and the first divided one */
    *high = first > 0 ? turns[first - 1] : 2 * turns[0];
    *low = last + 1 < count ? turns[last + 1] : turns[count - 1] / 2;
    return;
  }
  double slope;
  if (first < last) {
    slope = (s[first] - s[last]) / (turns[first] - turns[last]);
  } else { /* one point: any line through it that is steep enough for its neighbours */
    double up = first > 0 ? (1 - s[first]) / (turns[first - 1] - turns[first]) : 0,
           down = last + 1 < count ? s[first] / (turns[first] - turns[last + 1]) : s[first] / turns[first];
    slope = up > down ? up : down;
  }
  *low = turns[last] - s[last] / slope;
  *high = turns[last] + (1 - s[last]) / slope;
}

/* The settings that Llama 3 has, exactly, where the fit has found them to rounding. */
static double nice(double value) { return fabs(value - round(value)) < 1e-3 * value ? round(value) : value; }

static bool gives_divisors(const px_config *c, const px_rope_config *r) {
  px_config fitted = *c;
  float want[128], have[128];
  px_rope_frequencies(c, want);
  fitted.rope = *r;
  px_rope_frequencies(&fitted, have);
  for (int i = 0; i < c->head_dim / 2; i++)
    if (!(fabsf(have[i] - want[i]) <= 2e-6f * want[i])) return false;
  return true;
}

static bool fit_llama3(const px_config *c, px_rope_config *out) {
  int count = c->head_dim / 2;
  double turns[128] = {0}, s[128] = {0}, factor = 1, low = 0, high = 0;
  for (int i = 0; i < count; i++) factor = fmax(factor, (double)c->rope.divisors[i]);
  for (int i = 0; i < count; i++) {
    turns[i] = USUAL_CONTEXT * pow(c->rope.theta, -2.0 * i / c->head_dim) / 6.283185307179586476925;
    s[i] = factor > 1 ? (1 / (double)c->rope.divisors[i] - 1 / factor) / (1 - 1 / factor) : 1;
  }
  fit_line(turns, s, count, &low, &high);
  *out = (px_rope_config){.type = PX_ROPE_LLAMA3, .theta = c->rope.theta, .factor = nice(factor), .low_freq_factor = nice(low),
                          .high_freq_factor = nice(high), .original_context = USUAL_CONTEXT};
  if (gives_divisors(c, out)) return true;
  out->factor = factor;
  out->low_freq_factor = low;
  out->high_freq_factor = high;
  return low > 0 && gives_divisors(c, out);
}

static px_status put_rope(const px_config *c, const char *path, json_t *o, px_error *err) {
  px_rope_config r = c->rope;
  json_t *scaling = NULL;
  if (r.type == PX_ROPE_LLAMA3 && r.divisors && !fit_llama3(c, &r))
    return px_fail(err, PX_BAD_FILE, "%s: its rope_freqs.weight are not those of llama3 scaling, which config.json cannot express", path);
  if (r.type == PX_ROPE_LINEAR) scaling = json_pack("{s:s s:s s:f}", "rope_type", "linear", "type", "linear", "factor", r.factor);
  if (r.type == PX_ROPE_LLAMA3)
    scaling = json_pack("{s:s s:f s:f s:f s:I}", "rope_type", "llama3", "factor", r.factor, "low_freq_factor", r.low_freq_factor, "high_freq_factor",
                        r.high_freq_factor, "original_max_position_embeddings", (json_int_t)r.original_context);
  json_object_set_new(o, "rope_theta", json_real(r.theta));
  json_object_set_new(o, "rope_scaling", scaling ? scaling : json_null());
  return PX_OK;
}

/* ---- the rest ---- */

static const char *act_name(px_act_kind act) {
  return act == PX_ACT_SILU ? "silu" : act == PX_ACT_GELU_TANH ? "gelu_new" : act == PX_ACT_GELU_ERF ? "gelu" : "relu";
}

static json_t *gpt2(const px_config *c) {
  return json_pack("{s:[s] s:s s:i s:i s:i s:i s:i s:i s:f s:s}", "architectures", "GPT2LMHeadModel", "model_type", "gpt2", "n_layer", c->layers, "n_embd",
                   c->dim, "n_head", c->heads, "n_positions", c->context, "n_inner", c->ffn_dim, "vocab_size", c->vocab, "layer_norm_epsilon",
                   shortest(c->norm_eps), "activation_function", act_name(c->act));
}

static json_t *llama_like(const px_config *c, const char *class) {
  return json_pack("{s:[s] s:s s:i s:i s:i s:i s:i s:i s:i s:i s:f s:s}", "architectures", class, "model_type", c->family, "num_hidden_layers", c->layers,
                   "hidden_size", c->dim, "intermediate_size", c->ffn_dim, "num_attention_heads", c->heads, "num_key_value_heads", c->kv_heads, "head_dim",
                   c->head_dim, "max_position_embeddings", c->context, "vocab_size", c->vocab, "rms_norm_eps", shortest(c->norm_eps), "hidden_act",
                   act_name(c->act));
}

static px_status family_json(const px_config *c, const char *path, json_t **out, px_error *err) {
  json_t *o;
  bool llama = strcmp(c->family, "llama") == 0, qwen2 = strcmp(c->family, "qwen2") == 0;
  if (strcmp(c->family, "gpt2") == 0) {
    o = gpt2(c);
  } else {
    if ((!llama && c->mlp_bias) || (qwen2 && c->o_bias))
      return px_fail(err, PX_BAD_FILE, "%s: has biases that %s of transformers lacks; such a model cannot be written", path, c->family);
    o = llama_like(c, llama ? "LlamaForCausalLM" : qwen2 ? "Qwen2ForCausalLM" : "Qwen3ForCausalLM");
    if (!qwen2) json_object_set_new(o, "attention_bias", json_boolean(c->qkv_bias || c->o_bias));
    if (llama) json_object_set_new(o, "mlp_bias", json_boolean(c->mlp_bias));
    px_status status = put_rope(c, path, o, err);
    if (status != PX_OK) {
      json_decref(o);
      return status;
    }
  }
  *out = o;
  return o ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory for config.json");
}

static void put_id(json_t *o, const char *key, int32_t id) { json_object_set_new(o, key, id >= 0 ? json_integer(id) : json_null()); }

/* One id, or the list of all that end a text. */
static void put_stops(json_t *o, const px_tokenizer_info *info) {
  if (info->stop_count < 2) {
    put_id(o, "eos_token_id", info->stop_count ? info->stop_ids[0] : info->eos);
    return;
  }
  json_t *list = json_array();
  for (int i = 0; i < info->stop_count; i++) json_array_append_new(list, json_integer(info->stop_ids[i]));
  json_object_set_new(o, "eos_token_id", list);
}

px_status px_config_to_json(const px_config *c, const char *path, const px_tokenizer *tok, px_dtype dtype, json_t **out, px_error *err) {
  json_t *o = NULL;
  *out = NULL;
  PX_TRY(family_json(c, path, &o, err));
  const px_tokenizer_info *info = tok ? px_tokenizer_info_get(tok) : NULL;
  put_id(o, "bos_token_id", info ? info->bos : -1);
  put_id(o, "eos_token_id", info ? info->eos : -1);
  put_id(o, "pad_token_id", info ? info->pad : -1);
  json_object_set_new(o, "tie_word_embeddings", json_boolean(c->tied));
  json_object_set_new(o, "torch_dtype", json_string(dtype == PX_F32 ? "float32" : dtype == PX_BF16 ? "bfloat16" : "float16"));
  *out = o;
  return PX_OK;
}

px_status px_generation_to_json(const px_tokenizer *tok, json_t **out, px_error *err) {
  const px_tokenizer_info *info = px_tokenizer_info_get(tok);
  *out = json_object();
  if (!*out) return px_fail(err, PX_NO_MEMORY, "no memory for generation_config.json");
  if (info->bos >= 0) put_id(*out, "bos_token_id", info->bos);
  put_stops(*out, info);
  if (info->pad >= 0) put_id(*out, "pad_token_id", info->pad);
  return PX_OK;
}
