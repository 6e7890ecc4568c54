/* SPDX-License-Identifier: MIT */
#include "helpers/tiny_model.h"

#include <math.h>

#include "core/file.h"
#include "core/random.h"
#include "format/safetensors.h"
#include "helpers/test.h"

enum { TINY_STREAM = 92, MOST_TENSORS = 100 };

typedef struct tiny_tensors {
  px_arena arena;
  px_tensor_view views[MOST_TENSORS];
  size_t count;
  uint64_t seed;
} tiny_tensors;

/* cols 0: a norm's weight. */
static void add(tiny_tensors *t, const char *name, int64_t rows, int64_t cols) {
  int64_t count = rows * (cols ? cols : 1);
  float *data = px_arena_alloc(&t->arena, (size_t)count, sizeof *data);
  assert_true(data && t->count < MOST_TENSORS);
  for (int64_t i = 0; i < count; i++) {
    float x = px_normal(t->seed, TINY_STREAM, (uint32_t)t->count, (uint64_t)i);
    data[i] = cols ? x / sqrtf((float)cols) : 1 + 0.1f * x;
  }
  t->views[t->count++] = (px_tensor_view){.name = px_arena_strdup(&t->arena, name),
                                          .dtype = PX_F32,
                                          .dims = cols ? 2 : 1,
                                          .shape = {rows, cols},
                                          .data = data,
                                          .bytes = (size_t)count * sizeof *data};
}

void tiny_model_write(const char *folder, tiny_model m, uint64_t seed) {
  px_error err = {0};
  char path[600], name[128];
  px_buf config = {0};
  px_buf_printf(&config,
                "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": \"silu\",\n"
                " \"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": %d, \"vocab_size\": %d,\n"
                " \"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"head_dim\": %d,\n"
                " \"max_position_embeddings\": %d, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0,\n"
                " \"tie_word_embeddings\": false}\n",
                m.dim, m.ffn_dim, m.layers, m.vocab, m.heads, m.kv_heads, m.head_dim, m.context);
  snprintf(path, sizeof path, "%s/config.json", folder);
  ASSERT_OK(px_file_write(path, config.data, config.len, &err));
  px_buf_free(&config);

  const int64_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  const struct {
    const char *name;
    int64_t rows, cols;
  } layer[] = {
      {"input_layernorm", m.dim, 0},       {"self_attn.q_proj", q, m.dim},    {"self_attn.k_proj", kv, m.dim},
      {"self_attn.v_proj", kv, m.dim},     {"self_attn.o_proj", m.dim, q},    {"post_attention_layernorm", m.dim, 0},
      {"mlp.gate_proj", m.ffn_dim, m.dim}, {"mlp.up_proj", m.ffn_dim, m.dim}, {"mlp.down_proj", m.dim, m.ffn_dim}};
  tiny_tensors t = {.seed = seed};
  add(&t, "model.embed_tokens.weight", m.vocab, m.dim);
  for (int l = 0; l < m.layers; l++)
    for (size_t i = 0; i < sizeof layer / sizeof *layer; i++) {
      snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, layer[i].name);
      add(&t, name, layer[i].rows, layer[i].cols);
    }
  add(&t, "model.norm.weight", m.dim, 0);
  add(&t, "lm_head.weight", m.vocab, m.dim);
  const px_meta meta[] = {{"format", "pt"}};
  snprintf(path, sizeof path, "%s/model.safetensors", folder);
  ASSERT_OK(px_safetensors_write(path, t.views, t.count, meta, 1, &err));
  px_arena_free(&t.arena);
}
