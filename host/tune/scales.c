/* SPDX-License-Identifier: MIT
 * IA3 (Liu et al. 2022): a learned vector behind a projection, y *= s, and in front of the feed-forward's last one, x *= s. They
 * begin at one. GPT-2 has one vector for q, k and v together. */
#include <stdlib.h>

#include "tune/part.h"

typedef struct scales_part {
  bool sites[PX_SITES];
  float *memory;   /* values, then m, then v */
  float **vectors; /* backend memory: of every layer and site the vector, then its gradient */
  px_scaling *list;
} scales_part;

static int64_t length(const px_config *c, int site) { return site == PX_SITE_DOWN ? c->ffn_dim : px_site_out(c, (px_site)site); }
static bool shares(const px_config *c, int site) { return c->hf->qkv && (site == PX_SITE_K || site == PX_SITE_V); }
static int64_t whole_length(const px_config *c, int site) {
  return c->hf->qkv && site == PX_SITE_Q ? px_site_out(c, PX_SITE_Q) + 2 * px_site_out(c, PX_SITE_K) : length(c, site);
}

static px_status scales_measure(px_part *part, const px_part_start *start, px_error *err) {
  (void)start;
  const px_config *c = part->tune->config;
  scales_part *p = part->own = px_calloc(1, sizeof *p);
  if (!p) return px_fail(err, PX_NO_MEMORY, "no memory");
  PX_TRY(px_part_sites(c, "ia3", part->spec->targets ? part->spec->targets : c->hf->qkv ? "qkv,down" : "k,v,down", p->sites, err));
  for (int s = 0; s < PX_SITES; s++)
    if (p->sites[s] && !shares(c, s)) part->grad_count += c->layers * px_part_room(whole_length(c, s));
  return PX_OK;
}

static px_status open_layer(px_part *part, scales_part *p, int layer, int64_t *at, float **host, px_error *err) {
  px_tune *t = part->tune;
  const px_config *c = t->config;
  int64_t all = part->grad_count, from = 0;
  for (int s = 0; s < PX_SITES; s++) {
    if (!p->sites[s]) continue;
    if (!shares(c, s)) {
      const char *module = px_site_module(c, layer, (px_site)s, &t->arena);
      from = *at;
      *at += px_part_room(whole_length(c, s));
      px_param q = {.name = module ? px_arena_printf(&t->arena, "ia3.%s", module) : NULL, .dims = 1, .shape = {whole_length(c, s)}, .module = module,
                    .role = "ia3_l", .row = s == PX_SITE_DOWN, .column = s != PX_SITE_DOWN};
      px_part_places(part, p->memory, all, from, &q);
      if (!q.name) return px_fail(err, PX_NO_MEMORY, "no memory");
      PX_TRY(px_part_add(part, &q, err));
    }
    size_t entry = 2 * (size_t)(layer * PX_SITES + s);
    host[entry] = p->memory + from;
    if (px_part_trains(part)) host[entry + 1] = part->grads + from;
    p->list[layer * PX_SITES + s] = (px_scaling){.s = (const float *const *)p->vectors + entry, .ds = (float *const *)p->vectors + entry + 1};
    if (c->hf->qkv && s <= PX_SITE_V) from += length(c, s);
  }
  return PX_OK;
}

static px_status ones(px_part *part, float *to, int64_t count, px_error *err) {
  float *host = px_calloc((size_t)count, sizeof *host);
  if (!host) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int64_t i = 0; i < count; i++) host[i] = 1;
  px_part_write(part, to, host, count);
  free(host);
  return PX_OK;
}

static px_status scales_open(px_part *part, const px_part_start *start, px_error *err) {
  (void)start;
  px_tune *t = part->tune;
  const px_config *c = t->config;
  scales_part *p = part->own;
  size_t count = (size_t)c->layers * PX_SITES;
  float **host = px_calloc(2 * count, sizeof *host);
  p->memory = px_part_floats(part, px_part_kept(part, part->grad_count), err);
  p->vectors = px_backend_alloc(t->be, 2 * count * sizeof *host);
  p->list = px_arena_alloc(&t->arena, count, sizeof *p->list);
  px_status status = host && p->memory && p->vectors && p->list ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory for ia3");
  int64_t at = 0;
  for (int l = 0; status == PX_OK && l < c->layers; l++) status = open_layer(part, p, l, &at, host, err);
  if (status == PX_OK) px_backend_write(t->be, p->vectors, host, 2 * count * sizeof *host);
  free(host);
  if (status == PX_OK) status = ones(part, p->memory, part->grad_count, err);
  PX_TRY(status);
  t->hooks.scales = p->list;
  for (int s = 0; s < PX_SITES; s++) t->hooks.attached.scaled[s] = p->sites[s];
  px_part_reach(part, 0, p->sites[PX_SITE_Q] || p->sites[PX_SITE_K] || p->sites[PX_SITE_V] ? PX_STOP_PROJECTIONS : PX_STOP_SEGMENTS);
  return px_backend_status(t->be, err);
}

static void scales_close(px_part *part) {
  scales_part *p = part->own;
  px_backend_free(part->tune->be, p->memory);
  px_backend_free(part->tune->be, p->vectors);
  free(p);
}

static px_status scales_describe(px_part *part, px_adapter_config *out, px_error *err) {
  const scales_part *p = part->own;
  px_tune *t = part->tune;
  *out = (px_adapter_config){.peft_type = "IA3", .task_type = "CAUSAL_LM", .fan_in_fan_out = t->config->conv1d};
  bool last[PX_SITES] = {[PX_SITE_DOWN] = p->sites[PX_SITE_DOWN]};
  PX_TRY(px_site_names(t->config, p->sites, &t->arena, &out->target_modules, err));
  return px_site_names(t->config, last, &t->arena, &out->feedforward_modules, err);
}

const px_part_ops px_part_ia3 = {scales_measure, scales_open, scales_close, scales_describe, NULL, NULL};
