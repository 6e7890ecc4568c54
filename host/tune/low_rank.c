/* SPDX-License-Identifier: MIT
 * LoRA (Hu et al. 2021): behind a projection, y += scale (dropout(x) A^T) B^T with A [r, in], B [out, r], scale alpha / r, or
 * alpha / sqrt(r) where rank-stabilised (Kalajdzievski 2023). The delta of the whole matrix is never formed. GPT-2 has one A for
 * q, k and v, whose B is one matrix too: three sites share the one and have a third of the other. */
#include <math.h>
#include <stdlib.h>

#include "core/random.h"
#include "tune/part.h"

typedef struct low_rank_part {
  bool sites[PX_SITES];
  float scale;
  float *memory;           /* values, then m, then v */
  px_lora_matrix *matrices; /* backend memory: A and B of every layer and site */
  px_low_rank *list;       /* [layers * PX_SITES] the hooks' */
} low_rank_part;

/* Whether the site's A is an earlier one's. */
static bool shares(const px_config *c, int site) { return c->hf->qkv && (site == PX_SITE_K || site == PX_SITE_V); }
static int64_t whole_out(const px_config *c, px_site site) {
  return c->hf->qkv && site == PX_SITE_Q ? px_site_out(c, PX_SITE_Q) + 2 * px_site_out(c, PX_SITE_K) : px_site_out(c, site);
}

/* Numbers of A and B of a layer, each at 64 bytes. */
static int64_t layer_floats(const px_part *part, const low_rank_part *p) {
  const px_config *c = part->tune->config;
  int64_t r = part->spec->size, all = 0;
  for (int s = 0; s < PX_SITES; s++)
    if (p->sites[s] && !shares(c, s)) all += px_part_room(r * px_site_in(c, (px_site)s)) + px_part_room(r * whole_out(c, (px_site)s));
  return all;
}

static px_status low_rank_measure(px_part *part, const px_part_start *start, px_error *err) {
  (void)start;
  const px_config *c = part->tune->config;
  low_rank_part *p = part->own = px_calloc(1, sizeof *p);
  if (!p) return px_fail(err, PX_NO_MEMORY, "no memory");
  PX_TRY(px_part_sites(c, "lora", part->spec->targets ? part->spec->targets : c->hf->qkv ? "qkv" : "q,v", p->sites, err));
  int32_t r = part->spec->size;
  float alpha = part->spec->alpha > 0 ? part->spec->alpha : 2 * (float)r;
  p->scale = (float)((double)alpha / (part->spec->rslora ? sqrt((double)r) : (double)r));
  for (int s = 0; s < PX_SITES; s++) {
    int64_t in = px_site_in(c, (px_site)s), out = whole_out(c, (px_site)s);
    if (p->sites[s] && !shares(c, s) && r > (in < out ? in : out))
      return px_fail(err, PX_INVALID, "lora:%d: the rank is more than the %lld x %lld matrix of %s has", r, (long long)out, (long long)in, c->family);
  }
  part->grad_count = c->layers * layer_floats(part, p);
  return PX_OK;
}

/* A uniform within 1 / sqrt(in), as PyTorch's linear layers begin; B zero, so that a run starts at the model itself. */
static px_status fill(px_part *part, float *to, int64_t count, int64_t in, uint64_t seed, uint64_t *index, px_error *err) {
  float *host = px_calloc((size_t)count, sizeof *host), bound = (float)(1.0 / sqrt((double)in));
  if (!host) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int64_t i = 0; i < count; i++) host[i] = bound * (2 * px_uniform(px_philox(seed, PX_STREAM_INIT, 4, (*index)++).v[0]) - 1);
  px_part_write(part, to, host, count);
  free(host);
  return PX_OK;
}

/* The matrices of one layer: params, and what the model reads. at: numbers so far. */
static px_status open_layer(px_part *part, low_rank_part *p, int layer, int64_t *at, px_lora_matrix *host, uint64_t seed, uint64_t *index,
                            px_error *err) {
  px_tune *t = part->tune;
  const px_config *c = t->config;
  int64_t r = part->spec->size, all = part->grad_count, a_at = 0, b_at = 0;
  for (int s = 0; s < PX_SITES; s++) {
    if (!p->sites[s]) continue;
    int64_t in = px_site_in(c, (px_site)s), out = px_site_out(c, (px_site)s);
    if (!shares(c, s)) {
      const char *module = px_site_module(c, layer, (px_site)s, &t->arena);
      a_at = *at;
      b_at = a_at + px_part_room(r * in);
      *at = b_at + px_part_room(r * whole_out(c, (px_site)s));
      for (int k = 0; k < 2; k++) {
        int64_t from = k ? b_at : a_at;
        px_param q = {.name = module ? px_arena_printf(&t->arena, "lora.%s.%c", module, k ? 'B' : 'A') : NULL, .dims = 2,
                      .shape = {k ? whole_out(c, (px_site)s) : r, k ? r : in}, .weight_decay = t->spec.weight_decay, .module = module,
                      .role = k ? "lora_B" : "lora_A"};
        px_part_places(part, p->memory, all, from, &q);
        if (!q.name) return px_fail(err, PX_NO_MEMORY, "no memory");
        PX_TRY(px_part_add(part, &q, err));
      }
      PX_TRY(fill(part, p->memory + a_at, r * in, in, seed, index, err));
    }
    px_lora_matrix *a = &host[2 * (layer * PX_SITES + s)];
    a[0] = (px_lora_matrix){.w = p->memory + a_at, .dw = px_part_trains(part) ? part->grads + a_at : NULL, .in = (int32_t)in, .out = (int32_t)r, .scale = 1};
    a[1] = (px_lora_matrix){.w = p->memory + b_at, .dw = px_part_trains(part) ? part->grads + b_at : NULL, .in = (int32_t)r, .out = (int32_t)out, .scale = p->scale};
    p->list[layer * PX_SITES + s] = (px_low_rank){.a = p->matrices + (a - host), .b = p->matrices + (a + 1 - host), .rank = (int32_t)r,
                                                  .mask = shares(c, s) ? PX_SITE_Q : s};
    if (c->hf->qkv && s <= PX_SITE_V) b_at += r * out; /* the next third */
  }
  return PX_OK;
}

static px_status low_rank_open(px_part *part, const px_part_start *start, px_error *err) {
  px_tune *t = part->tune;
  const px_config *c = t->config;
  low_rank_part *p = part->own;
  size_t count = (size_t)c->layers * PX_SITES;
  px_lora_matrix *host = px_calloc(2 * count, sizeof *host);
  p->memory = px_part_floats(part, px_part_kept(part, part->grad_count), err);
  p->matrices = px_backend_alloc(t->be, 2 * count * sizeof *host);
  p->list = px_arena_alloc(&t->arena, count, sizeof *p->list);
  px_status status = host && p->memory && p->matrices && p->list ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory for lora:%d", part->spec->size);
  int64_t at = 0;
  uint64_t index = 0;
  for (int l = 0; status == PX_OK && l < c->layers; l++) status = open_layer(part, p, l, &at, host, start->seed, &index, err);
  if (status == PX_OK) px_backend_write(t->be, p->matrices, host, 2 * count * sizeof *host);
  free(host);
  PX_TRY(status);
  t->hooks.low_rank = p->list;
  t->hooks.dropout = part->spec->dropout;
  t->hooks.attached.dropout |= part->spec->dropout > 0;
  for (int s = 0; s < PX_SITES; s++)
    if (p->sites[s]) t->hooks.attached.rank[s] = part->spec->size;
  px_part_reach(part, 0, p->sites[PX_SITE_Q] || p->sites[PX_SITE_K] || p->sites[PX_SITE_V] ? PX_STOP_PROJECTIONS : PX_STOP_SEGMENTS);
  return px_backend_status(t->be, err);
}

static void low_rank_close(px_part *part) {
  low_rank_part *p = part->own;
  px_backend_free(part->tune->be, p->memory);
  px_backend_free(part->tune->be, p->matrices);
  free(p);
}

static px_status low_rank_describe(px_part *part, px_adapter_config *out, px_error *err) {
  const low_rank_part *p = part->own;
  px_tune *t = part->tune;
  const px_part_spec *s = part->spec;
  *out = (px_adapter_config){.peft_type = "LORA", .task_type = "CAUSAL_LM", .rank = s->size, .alpha = s->alpha > 0 ? (double)s->alpha : 2.0 * s->size,
                             .dropout = (double)s->dropout, .rank_stabilised = s->rslora, .fan_in_fan_out = t->config->conv1d};
  return px_site_names(t->config, p->sites, &t->arena, &out->target_modules, err);
}

const px_part_ops px_part_lora = {low_rank_measure, low_rank_open, low_rank_close, low_rank_describe, NULL, NULL};
