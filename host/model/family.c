/* SPDX-License-Identifier: MIT
 * The model families: for each, one function that maps its config, and the names of its tensors.
 * A new family is one more function and one more row of `families`. */
#include "model/family.h"

#include <math.h>

static const px_names llama_hf = {
    .embed = "model.embed_tokens", .final_norm = "model.norm", .head = "lm_head",
    .norm1 = "model.layers.%d.input_layernorm", .q = "model.layers.%d.self_attn.q_proj",
    .k = "model.layers.%d.self_attn.k_proj", .v = "model.layers.%d.self_attn.v_proj",
    .q_norm = "model.layers.%d.self_attn.q_norm", .k_norm = "model.layers.%d.self_attn.k_norm",
    .o = "model.layers.%d.self_attn.o_proj", .norm2 = "model.layers.%d.post_attention_layernorm",
    .gate = "model.layers.%d.mlp.gate_proj", .up = "model.layers.%d.mlp.up_proj",
    .down = "model.layers.%d.mlp.down_proj",
};

static const px_names llama_gguf = {
    .embed = "token_embd", .final_norm = "output_norm", .head = "output",
    .norm1 = "blk.%d.attn_norm", .q = "blk.%d.attn_q", .k = "blk.%d.attn_k", .v = "blk.%d.attn_v",
    .q_norm = "blk.%d.attn_q_norm", .k_norm = "blk.%d.attn_k_norm", .o = "blk.%d.attn_output",
    .norm2 = "blk.%d.ffn_norm", .gate = "blk.%d.ffn_gate", .up = "blk.%d.ffn_up", .down = "blk.%d.ffn_down",
};

static const px_names gpt2_hf = {
    .embed = "transformer.wte", .positions = "transformer.wpe", .final_norm = "transformer.ln_f", .head = "lm_head",
    .norm1 = "transformer.h.%d.ln_1", .qkv = "transformer.h.%d.attn.c_attn", .o = "transformer.h.%d.attn.c_proj",
    .norm2 = "transformer.h.%d.ln_2", .up = "transformer.h.%d.mlp.c_fc", .down = "transformer.h.%d.mlp.c_proj",
    .optional_prefix = "transformer.",
};

static const px_names gpt2_gguf = {
    .embed = "token_embd", .positions = "position_embd", .final_norm = "output_norm", .head = "output",
    .norm1 = "blk.%d.attn_norm", .qkv = "blk.%d.attn_qkv", .o = "blk.%d.attn_output",
    .norm2 = "blk.%d.ffn_norm", .up = "blk.%d.ffn_up", .down = "blk.%d.ffn_down",
};

static px_status gpt2(px_config *c, const px_settings *s, px_error *err) {
  static const px_key keys[] = {
      {"n_layer", "block_count"}, {"n_embd", "embedding_length"}, {"n_head", "attention.head_count"},
      {"n_positions", "context_length"}, {"vocab_size", NULL}, {"n_inner", "feed_forward_length"},
  };
  PX_TRY(px_settings_int(s, keys[0], 0, 1, 1000, &c->layers, err));
  PX_TRY(px_settings_int(s, keys[1], 0, 1, 1 << 20, &c->dim, err));
  PX_TRY(px_settings_int(s, keys[2], 0, 1, 1 << 16, &c->heads, err));
  PX_TRY(px_settings_int(s, keys[3], 0, 1, 1 << 30, &c->context, err));
  PX_TRY(px_settings_int(s, keys[4], 0, s->json ? 1 : 0, 1 << 30, &c->vocab, err));
  PX_TRY(px_settings_int(s, keys[5], 4 * (int64_t)c->dim, 1, 1 << 22, &c->ffn_dim, err));
  PX_TRY(px_settings_num(s, (px_key){"layer_norm_epsilon", "attention.layer_norm_epsilon"}, 1e-5, &c->norm_eps, err));
  PX_TRY(px_settings_bool(s, "tie_word_embeddings", true, &c->tied, err));
  PX_TRY(px_settings_must(s, "scale_attn_weights", true, err));
  PX_TRY(px_settings_must(s, "scale_attn_by_inverse_layer_idx", false, err));
  PX_TRY(px_settings_must(s, "add_cross_attention", false, err));
  PX_TRY(px_settings_act(s, "activation_function", "gelu_new", &c->act, err));
  if (c->dim % c->heads) return px_fail(err, PX_BAD_FILE, "%s: n_embd %d is no multiple of n_head %d", s->path, c->dim, c->heads);
  c->kv_heads = c->heads;
  c->head_dim = c->dim / c->heads;
  c->norm = PX_NORM_LAYER;
  c->conv1d = c->qkv_bias = c->o_bias = c->mlp_bias = c->learned_positions = true;
  return PX_OK;
}

/* Everything that the llama-like families share. */
static px_status llama_like(px_config *c, const px_settings *s, px_error *err) {
  PX_TRY(px_settings_int(s, (px_key){"num_hidden_layers", "block_count"}, 0, 1, 1000, &c->layers, err));
  PX_TRY(px_settings_int(s, (px_key){"hidden_size", "embedding_length"}, 0, 1, 1 << 20, &c->dim, err));
  PX_TRY(px_settings_int(s, (px_key){"num_attention_heads", "attention.head_count"}, 0, 1, 1 << 16, &c->heads, err));
  PX_TRY(px_settings_int(s, (px_key){"num_key_value_heads", "attention.head_count_kv"}, c->heads, 1, c->heads, &c->kv_heads, err));
  PX_TRY(px_settings_int(s, (px_key){"head_dim", "attention.key_length"}, c->dim / c->heads, 1, 256, &c->head_dim, err));
  PX_TRY(px_settings_int(s, (px_key){"intermediate_size", "feed_forward_length"}, 0, 1, 1 << 22, &c->ffn_dim, err));
  PX_TRY(px_settings_int(s, (px_key){"max_position_embeddings", "context_length"}, 0, 1, 1 << 30, &c->context, err));
  PX_TRY(px_settings_int(s, (px_key){"vocab_size", NULL}, 0, s->json ? 1 : 0, 1 << 30, &c->vocab, err));
  PX_TRY(px_settings_num(s, (px_key){"rms_norm_eps", "attention.layer_norm_rms_epsilon"}, 1e-6, &c->norm_eps, err));
  PX_TRY(px_settings_bool(s, "tie_word_embeddings", false, &c->tied, err));
  PX_TRY(px_settings_act(s, "hidden_act", "silu", &c->act, err));
  PX_TRY(px_settings_rope(s, c, err));
  if (c->heads % c->kv_heads)
    return px_fail(err, PX_BAD_FILE, "%s: %d attention heads are no multiple of %d key/value heads", s->path, c->heads, c->kv_heads);
  if (c->head_dim % 2) return px_fail(err, PX_BAD_FILE, "%s: head_dim %d is odd, rotary embedding needs pairs", s->path, c->head_dim);
  c->norm = PX_NORM_RMS;
  c->gated = true;
  return PX_OK;
}

static px_status llama(px_config *c, const px_settings *s, px_error *err) {
  PX_TRY(llama_like(c, s, err));
  bool attention_bias = false;
  PX_TRY(px_settings_bool(s, "attention_bias", false, &attention_bias, err));
  PX_TRY(px_settings_bool(s, "mlp_bias", false, &c->mlp_bias, err));
  c->qkv_bias = c->o_bias = attention_bias;
  c->gguf_permuted = true;
  return PX_OK;
}

static px_status mistral(px_config *c, const px_settings *s, px_error *err) {
  PX_TRY(llama_like(c, s, err));
  return px_settings_windows(s, c, true, err);
}

static px_status qwen2(px_config *c, const px_settings *s, px_error *err) {
  PX_TRY(llama_like(c, s, err));
  c->qkv_bias = true;
  return px_settings_windows(s, c, false, err);
}

static px_status qwen3(px_config *c, const px_settings *s, px_error *err) {
  PX_TRY(llama_like(c, s, err));
  bool attention_bias = false;
  PX_TRY(px_settings_bool(s, "attention_bias", false, &attention_bias, err));
  c->qkv_bias = c->o_bias = attention_bias;
  c->qk_norm = true;
  return px_settings_windows(s, c, false, err);
}

static const px_family families[] = {
    {"gpt2", gpt2, &gpt2_hf, &gpt2_gguf},         {"llama", llama, &llama_hf, &llama_gguf},
    {"mistral", mistral, &llama_hf, &llama_gguf}, {"qwen2", qwen2, &llama_hf, &llama_gguf},
    {"qwen3", qwen3, &llama_hf, &llama_gguf},
};

const px_family *px_family_find(const char *name) {
  for (size_t i = 0; i < sizeof families / sizeof *families; i++)
    if (strcmp(families[i].name, name) == 0) return &families[i];
  return NULL;
}
