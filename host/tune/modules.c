/* SPDX-License-Identifier: MIT */
#include "tune/modules.h"

#include <string.h>

enum { PER_LAYER = 11, OTHERS = 4 };

static void add(px_modules *m, const char *template, px_module module) {
  if (!template) return;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  module.name = px_arena_printf(&m->arena, template, module.layer);
#pragma GCC diagnostic pop
  m->items[m->count++] = module;
}

static void add_norm(px_modules *m, const char *template, const px_config *c, int32_t layer, int64_t dim) {
  bool bias = c->norm == PX_NORM_LAYER;
  add(m, template, (px_module){.kind = PX_MODULE_NORM, .layer = layer, .out = dim, .bias = bias, .may_bias = bias});
}

static void add_linear(px_modules *m, const char *template, const px_config *c, int32_t layer, int64_t out, int64_t in, bool bias,
                       bool may_bias) {
  add(m, template, (px_module){.kind = PX_MODULE_LINEAR, .layer = layer, .out = out, .in = in, .in_out = c->conv1d, .bias = bias,
                               .may_bias = bias || may_bias});
}

static void add_layer(px_modules *m, const px_config *c, int32_t l) {
  const px_names *n = c->hf;
  int64_t a = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
  /* What transformers' own classes have a switch for. */
  bool llama = strcmp(c->family, "llama") == 0, attention = llama || strcmp(c->family, "qwen3") == 0;
  add_norm(m, n->norm1, c, l, c->dim);
  if (n->qkv) {
    add_linear(m, n->qkv, c, l, a + 2 * kv, c->dim, c->qkv_bias, false);
  } else {
    add_linear(m, n->q, c, l, a, c->dim, c->qkv_bias, attention);
    add_linear(m, n->k, c, l, kv, c->dim, c->qkv_bias, attention);
    add_linear(m, n->v, c, l, kv, c->dim, c->qkv_bias, attention);
  }
  if (c->qk_norm) {
    add_norm(m, n->q_norm, c, l, c->head_dim);
    add_norm(m, n->k_norm, c, l, c->head_dim);
  }
  add_linear(m, n->o, c, l, c->dim, a, c->o_bias, attention);
  add_norm(m, n->norm2, c, l, c->dim);
  if (c->gated) add_linear(m, n->gate, c, l, c->ffn_dim, c->dim, c->mlp_bias, llama);
  add_linear(m, n->up, c, l, c->ffn_dim, c->dim, c->mlp_bias, llama);
  add_linear(m, n->down, c, l, c->dim, c->ffn_dim, c->mlp_bias, llama);
}

px_status px_modules_of(const px_config *c, px_modules *out, px_error *err) {
  *out = (px_modules){0};
  out->items = px_arena_alloc(&out->arena, (size_t)c->layers * PER_LAYER + OTHERS, sizeof *out->items);
  if (!out->items) return px_fail(err, PX_NO_MEMORY, "no memory for the names of a model's modules");
  add(out, c->hf->embed, (px_module){.kind = PX_MODULE_EMBEDDING, .layer = -1, .out = c->vocab, .in = c->dim});
  if (c->learned_positions)
    add(out, c->hf->positions, (px_module){.kind = PX_MODULE_EMBEDDING, .layer = -1, .out = c->context, .in = c->dim});
  for (int32_t l = 0; l < c->layers; l++) add_layer(out, c, l);
  add_norm(out, c->hf->final_norm, c, -1, c->dim);
  if (!c->tied) add(out, c->hf->head, (px_module){.kind = PX_MODULE_HEAD, .layer = -1, .out = c->vocab, .in = c->dim});
  for (size_t i = 0; i < out->count; i++)
    if (!out->items[i].name) {
      px_modules_free(out);
      return px_fail(err, PX_NO_MEMORY, "no memory for the names of a model's modules");
    }
  return PX_OK;
}

void px_modules_free(px_modules *modules) {
  px_arena_free(&modules->arena);
  *modules = (px_modules){0};
}

const px_module *px_module_find(const px_modules *modules, const char *name) {
  for (size_t i = 0; i < modules->count; i++)
    if (strcmp(modules->items[i].name, name) == 0) return &modules->items[i];
  return NULL;
}

int px_module_weight_shape(const px_module *m, int64_t shape[2]) {
  shape[0] = m->in_out ? m->in : m->out;
  shape[1] = m->in_out ? m->out : m->in;
  return m->kind == PX_MODULE_NORM ? 1 : 2;
}
