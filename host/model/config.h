/* SPDX-License-Identifier: MIT
 * What a model is: its dimensions and choices, read from config.json (both dialects) or from GGUF metadata. */
#ifndef PX_MODEL_CONFIG_H
#define PX_MODEL_CONFIG_H

#include "format/gguf.h"
#include "format/json.h"
#include "kernels/activation.h"
#include "kernels/norm.h"

typedef enum px_rope_type { PX_ROPE_NONE = 0, PX_ROPE_DEFAULT, PX_ROPE_LINEAR, PX_ROPE_LLAMA3 } px_rope_type;

typedef struct px_rope_config {
  px_rope_type type;
  double theta, factor;                             /* factor: linear, llama3 */
  double low_freq_factor, high_freq_factor;         /* llama3 */
  double original_context;                          /* llama3 */
  const float *divisors;                            /* llama3 as GGUF gives it: [head_dim / 2]; NULL: from the factors */
} px_rope_config;

/* Names of a family's tensors in one kind of file. Templates with one %d where they belong to a layer, without the
 * final ".weight" or ".bias". NULL: the family has no such tensor. */
typedef struct px_names {
  const char *embed, *positions, *final_norm, *head;
  const char *norm1, *q, *k, *v, *qkv, *q_norm, *k_norm, *o, *norm2, *gate, *up, *down;
  const char *optional_prefix; /* may be missing from every name of a file */
} px_names;

typedef struct px_config {
  const char *family; /* "gpt2", "llama", "mistral", "qwen2", "qwen3" */
  const px_names *hf, *gguf;
  int32_t layers, dim, heads, kv_heads, head_dim, ffn_dim, vocab, context;
  double norm_eps;
  px_norm_kind norm;
  px_act_kind act;
  bool gated;             /* gate and up projections; else up alone */
  bool conv1d;            /* Hugging Face files hold [in, out] matrices */
  bool qkv_bias, o_bias, mlp_bias, qk_norm, learned_positions, tied;
  bool gguf_permuted;     /* q and k rows of GGUF files are interleaved */
  px_rope_config rope;
  int32_t *windows;       /* [layers]; 0: none */
} px_config;

/* `path` stands in messages. *config borrows from the arena. Anything unknown is PX_BAD_FILE by name. */
px_status px_config_from_json(const json_t *json, const char *path, px_arena *arena, px_config *config, px_error *err);
px_status px_config_from_gguf(px_gguf *gguf, px_arena *arena, px_config *config, px_error *err);

/* Inverse frequencies [head_dim / 2] in float32, as transformers computes them. */
void px_rope_frequencies(const px_config *config, float *inv_freq);
/* cos and sin [positions, head_dim / 2] of position * inv_freq. */
void px_rope_tables(const px_config *config, int64_t positions, float *cos_table, float *sin_table);

#endif
