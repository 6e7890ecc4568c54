/* SPDX-License-Identifier: MIT
 * Weights of the model as trainable parts: all norms, all biases, the top layers, or everything. The model itself is shared
 * and stays as it is: the run has a copy of its table of weights in which trained ones are replaced by float32 masters, or, where
 * the model computes in bfloat16, by copies of them that are made anew each step. A tensor that two parts name belongs to the
 * larger one. */
#include <stdlib.h>

#include "tune/weights_part.h"

/* ---- what there is ---- */

typedef struct walker {
  const px_config *c;
  px_weights *w, *g;
  px_tensor_slot *list;
  int count, capacity;
  px_arena *arena;
  bool failed;
} walker;

static void push(walker *k, const px_tensor_slot *slot, const char *template, const char *suffix) {
  if (px_reserve_slots(&k->list, &k->capacity, k->count + 1) != 0) {
    k->failed = true;
    return;
  }
  px_tensor_slot *to = &k->list[k->count++];
  *to = *slot;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  const char *module = px_arena_printf(k->arena, template, slot->layer);
#pragma GCC diagnostic pop
  to->name = module ? px_arena_printf(k->arena, "%s.%s", module, suffix) : NULL;
  k->failed |= !to->name;
}

/* A matrix (or three that are one in the file) and its bias. wanted_bias: one that is absent could be made. */
static void walk_linear(walker *k, const char *template, int layer, int site, px_weight *const w[3], px_weight *const g[3], int parts, bool wanted_bias) {
  px_tensor_slot m = {.kind = PX_SLOT_MATRIX, .layer = layer, .site = site, .dtype = w[0]->dtype, .parts = parts}, b = m;
  int64_t out = 0, in = w[0]->in;
  bool in_out = w[0]->layout == PX_LAYOUT_IN_OUT;
  for (int i = 0; i < parts; i++) {
    m.weight[i] = w[i];
    m.at[i] = &w[i]->data;
    m.grad[i] = &g[i]->data;
    m.offset[i] = in_out ? out : out * w[i]->ld;
    b.at[i] = &w[i]->bias;
    b.grad[i] = &g[i]->bias;
    b.offset[i] = out;
    out += w[i]->out;
  }
  m.dims = 2;
  m.shape[0] = in_out ? in : out;
  m.shape[1] = in_out ? out : in;
  m.transposed = k->c->conv1d && layer >= 0 && !in_out;
  push(k, &m, template, "weight");
  b.kind = PX_SLOT_BIAS;
  b.dims = 1;
  b.shape[0] = out;
  b.absent = !w[0]->bias;
  if (w[0]->bias || wanted_bias) push(k, &b, template, "bias");
}

static void walk_one(walker *k, const char *template, int layer, int site, px_weight *w, px_weight *g, bool wanted_bias) {
  px_weight *const ws[3] = {w}, *const gs[3] = {g};
  walk_linear(k, template, layer, site, ws, gs, 1, wanted_bias);
}

static void walk_norm(walker *k, const char *template, int layer, int place, px_norm_weight *w, px_norm_weight *g, int64_t dim) {
  if (!template || !w->weight) return;
  px_tensor_slot s = {.kind = PX_SLOT_NORM, .layer = layer, .site = place, .dtype = PX_F32, .parts = 1, .dims = 1, .shape = {dim}};
  s.at[0] = (const void **)&w->weight;
  s.grad[0] = (const void **)&g->weight;
  push(k, &s, template, "weight");
  s.is_bias = true;
  s.at[0] = (const void **)&w->bias;
  s.grad[0] = (const void **)&g->bias;
  if (w->bias) push(k, &s, template, "bias");
}

/* Families whose transformers classes have a place for biases that a checkpoint may lack. */
static bool holds_attention_bias(const px_config *c) { return strcmp(c->family, "llama") == 0 || strcmp(c->family, "qwen3") == 0; }
static bool holds_mlp_bias(const px_config *c) { return strcmp(c->family, "llama") == 0; }

static void walk_layer(walker *k, int l) {
  const px_config *c = k->c;
  const px_names *n = c->hf;
  px_layer_weights *w = &k->w->layers[l], *g = &k->g->layers[l];
  bool attention = holds_attention_bias(c), mlp = holds_mlp_bias(c);
  walk_norm(k, n->norm1, l, PX_PLACE_NORM1, &w->norm1, &g->norm1, c->dim);
  if (n->qkv) {
    px_weight *const ws[3] = {&w->q, &w->k, &w->v}, *const gs[3] = {&g->q, &g->k, &g->v};
    walk_linear(k, n->qkv, l, PX_SITE_Q, ws, gs, 3, attention);
  } else {
    walk_one(k, n->q, l, PX_SITE_Q, &w->q, &g->q, attention);
    walk_one(k, n->k, l, PX_SITE_K, &w->k, &g->k, attention);
    walk_one(k, n->v, l, PX_SITE_V, &w->v, &g->v, attention);
  }
  walk_norm(k, n->q_norm, l, PX_PLACE_QK_NORM, &w->q_norm, &g->q_norm, c->head_dim);
  walk_norm(k, n->k_norm, l, PX_PLACE_QK_NORM, &w->k_norm, &g->k_norm, c->head_dim);
  walk_one(k, n->o, l, PX_SITE_O, &w->o, &g->o, attention);
  walk_norm(k, n->norm2, l, PX_PLACE_NORM2, &w->norm2, &g->norm2, c->dim);
  if (c->gated) walk_one(k, n->gate, l, PX_SITE_GATE, &w->gate, &g->gate, mlp);
  walk_one(k, n->up, l, PX_SITE_UP, &w->up, &g->up, mlp);
  walk_one(k, n->down, l, PX_SITE_DOWN, &w->down, &g->down, mlp);
}

px_status px_tensor_slots(const px_config *c, px_weights *w, px_weights *g, px_arena *arena, px_tensor_slot **out, int *count, px_error *err) {
  walker k = {.c = c, .w = w, .g = g, .arena = arena};
  px_tensor_slot embed = {.kind = PX_SLOT_MATRIX, .layer = -1, .site = PX_PLACE_EMBED, .dtype = w->dtype, .parts = c->tied ? 2 : 1, .dims = 2,
                          .shape = {c->vocab, c->dim}};
  embed.at[0] = &w->embed.data, embed.grad[0] = &g->embed.data, embed.weight[0] = &w->embed;
  embed.at[1] = &w->head.data, embed.grad[1] = &g->head.data, embed.weight[1] = &w->head;
  push(&k, &embed, c->hf->embed, "weight");
  if (c->learned_positions) {
    px_tensor_slot p = {.kind = PX_SLOT_MATRIX, .layer = -1, .site = PX_PLACE_EMBED, .dtype = w->dtype, .parts = 1, .dims = 2, .shape = {c->context, c->dim}};
    p.at[0] = &w->positions.data, p.grad[0] = &g->positions.data, p.weight[0] = &w->positions;
    push(&k, &p, c->hf->positions, "weight");
  }
  for (int l = 0; l < c->layers; l++) walk_layer(&k, l);
  walk_norm(&k, c->hf->final_norm, -1, PX_PLACE_END, &w->final_norm, &g->final_norm, c->dim);
  if (!c->tied) walk_one(&k, c->hf->head, -1, PX_PLACE_END, &w->head, &g->head, false);
  *out = k.list;
  *count = k.count;
  if (!k.failed) return PX_OK;
  free(k.list);
  *out = NULL;
  return px_fail(err, PX_NO_MEMORY, "no memory for the list of weights");
}

int64_t px_slot_count(const px_tensor_slot *s) { return s->shape[0] * (s->dims == 2 ? s->shape[1] : 1); }

/* Puts the tensor's numbers, or its gradient's, in their places in a table of weights. */
void px_slot_set(const px_tensor_slot *s, const void *data, px_dtype type, bool gradient) {
  for (int i = 0; i < s->parts; i++) {
    const void *part = data ? (const char *)data + px_dtype_bytes(type, (size_t)s->offset[i]) : NULL;
    *(gradient ? s->grad[i] : s->at[i]) = part;
  }
}

int px_reserve_slots(px_tensor_slot **list, int *capacity, int count) {
  size_t room = (size_t)*capacity;
  int code = px_reserve(list, &room, (size_t)count, sizeof **list);
  *capacity = (int)room;
  return code;
}

/* ---- which of it a part trains ---- */

static bool names(const px_config *c, const px_part_spec *p, const px_tensor_slot *s) {
  bool is_bias = s->kind == PX_SLOT_BIAS || s->is_bias;
  switch (p->kind) {
    case PX_PART_FULL: return !s->absent;
    case PX_PART_TOP:
      return !s->absent && (s->layer >= c->layers - p->size || (s->layer < 0 && s->kind == PX_SLOT_NORM));
    case PX_PART_NORM: return s->kind == PX_SLOT_NORM;
    default: return is_bias;
  }
}

static bool is_mine(const px_part *part, const px_tensor_slot *s) {
  static const px_part_kind larger_first[] = {PX_PART_FULL, PX_PART_TOP, PX_PART_NORM, PX_PART_BIAS};
  for (size_t i = 0; i < sizeof larger_first / sizeof *larger_first; i++) {
    const px_part_spec *p = px_tune_part(&part->tune->spec, larger_first[i]);
    if (p && names(part->tune->config, p, s)) return p->kind == part->spec->kind;
  }
  return false;
}

/* ---- the run's own table of weights ---- */

/* A table of the same shape; the layers are the arena's. */
static px_status copy_table(const px_config *c, const px_weights *from, px_weights *to, px_arena *arena, px_error *err) {
  *to = *from;
  to->layers = px_arena_alloc(arena, (size_t)c->layers, sizeof *to->layers);
  if (!to->layers) return px_fail(err, PX_NO_MEMORY, "no memory");
  if (from->layers) memcpy(to->layers, from->layers, (size_t)c->layers * sizeof *to->layers);
  to->owned = NULL;
  to->owned_count = to->owned_capacity = 0;
  to->arena = (px_arena){0};
  return PX_OK;
}

static px_status make_tables(px_tune *t, px_error *err) {
  if (t->hooks_weights.layers) return PX_OK;
  PX_TRY(copy_table(t->config, &t->model->weights, &t->hooks_weights, &t->arena, err));
  return copy_table(t->config, &(px_weights){0}, &t->hooks_grads, &t->arena, err);
}

typedef struct weights_part {
  px_tensor_slot *slots; /* of the whole model; mine are marked by a place in memory */
  int slot_count;
  float *memory;         /* values, then m, then v */
  void *copies;          /* of the values, in the model's type; NULL: they serve themselves */
} weights_part;

static px_status weights_measure(px_part *part, const px_part_start *start, px_error *err) {
  (void)start;
  px_tune *t = part->tune;
  weights_part *p = part->own = px_calloc(1, sizeof *p);
  if (!p) return px_fail(err, PX_NO_MEMORY, "no memory");
  if (part->spec->kind == PX_PART_TOP && part->spec->size > t->config->layers)
    return px_fail(err, PX_INVALID, "top:%d: this model has %d layers", part->spec->size, t->config->layers);
  PX_TRY(make_tables(t, err));
  PX_TRY(px_tensor_slots(t->config, &t->hooks_weights, &t->hooks_grads, &t->arena, &p->slots, &p->slot_count, err));
  for (int i = 0; i < p->slot_count; i++) {
    px_tensor_slot *s = &p->slots[i];
    s->place = is_mine(part, s) ? part->grad_count : -1;
    if (s->place >= 0) part->grad_count += px_part_room(px_slot_count(s));
  }
  if (part->grad_count > 0) return PX_OK;
  bool covered = part->spec->kind != PX_PART_BIAS || (t->config->qkv_bias || holds_attention_bias(t->config));
  return px_fail(err, PX_INVALID, covered ? "%s: another part trains all that it names" : "%s: a model of the family %s has none, and transformers has no place for any",
                 px_part_kind_name(part->spec->kind), t->config->family);
}

/* How far down the gradient of a tensor lies. */
static void reach(px_part *part, const px_tensor_slot *s) {
  if (s->site == PX_PLACE_EMBED) px_part_reach(part, 0, PX_STOP_INPUT);
  if (s->layer < 0) return;
  bool projection = s->site <= PX_SITE_V || s->site == PX_PLACE_QK_NORM;
  px_part_reach(part, s->layer, s->site == PX_PLACE_NORM1 ? PX_STOP_NORM : projection ? PX_STOP_PROJECTIONS : PX_STOP_SEGMENTS);
}

static px_status open_slot(px_part *part, weights_part *p, const px_tensor_slot *s, px_error *err) {
  px_tune *t = part->tune;
  int64_t count = px_slot_count(s), all = part->grad_count;
  float *value = p->memory + s->place;
  const char *dot = strrchr(s->name, '.');
  px_param q = {.name = px_arena_printf(&t->arena, "weight.%s", s->name), .dims = s->dims, .shape = {s->shape[0], s->shape[1]},
                .weight_decay = s->kind == PX_SLOT_MATRIX ? t->spec.weight_decay : 0, .role = dot + 1, .transposed = s->transposed};
  q.module = px_arena_printf(&t->arena, "%.*s", (int)(dot - s->name), s->name);
  px_part_places(part, p->memory, all, s->place, &q);
  if (!q.name || !q.module) return px_fail(err, PX_NO_MEMORY, "no memory");
  PX_TRY(px_part_add(part, &q, err));
  if (!t->spec.restored && !s->absent)
    px_op_cast(t->be, &(px_cast_args){.x_type = s->dtype, .y_type = PX_F32, .rows = 1, .dim = count, .x_stride = count, .y_stride = count,
                                      .x = *s->at[0], .y = value});
  bool copied = p->copies && s->dtype != PX_F32;
  px_slot_set(s, copied ? (char *)p->copies + px_dtype_bytes(t->dtype, (size_t)s->place) : (const void *)value, copied ? t->dtype : PX_F32, false);
  if (q.grad) px_slot_set(s, q.grad, PX_F32, true);
  for (int i = 0; i < s->parts && s->kind == PX_SLOT_MATRIX; i++) {
    s->weight[i]->trained = true;
    if (s->layer >= 0) t->hooks.attached.trained[s->site + i] = true;
  }
  reach(part, s);
  return PX_OK;
}

static px_status weights_open(px_part *part, const px_part_start *start, px_error *err) {
  (void)start;
  px_tune *t = part->tune;
  weights_part *p = part->own;
  p->memory = px_part_floats(part, px_part_kept(part, part->grad_count), err);
  if (!p->memory) return PX_NO_MEMORY;
  if (t->dtype != PX_F32) {
    p->copies = px_backend_alloc(t->be, px_dtype_bytes(t->dtype, (size_t)part->grad_count));
    if (!p->copies) return px_backend_status(t->be, err);
  }
  for (int i = 0; i < p->slot_count; i++)
    if (p->slots[i].place >= 0) PX_TRY(open_slot(part, p, &p->slots[i], err));
  t->hooks.weights = &t->hooks_weights;
  if (px_part_trains(part)) t->hooks.grads = &t->hooks_grads;
  return px_backend_status(t->be, err);
}

static void weights_close(px_part *part) {
  weights_part *p = part->own;
  px_backend_free(part->tune->be, p->memory);
  px_backend_free(part->tune->be, p->copies);
  free(p->slots);
  free(p);
}

static void weights_begin_step(px_part *part, uint64_t seed, const int64_t *step) {
  (void)seed;
  (void)step;
  weights_part *p = part->own;
  int64_t n = part->grad_count;
  if (p->copies)
    px_op_cast(part->tune->be, &(px_cast_args){.x_type = PX_F32, .y_type = part->tune->dtype, .rows = 1, .dim = n, .x_stride = n, .y_stride = n,
                                               .x = p->memory, .y = p->copies});
}

/* Norms are PEFT's LN_TUNING, by their modules' names; the others are deltas of pfx's own. */
static px_status weights_describe(px_part *part, px_adapter_config *out, px_error *err) {
  px_tune *t = part->tune;
  bool norms = part->spec->kind == PX_PART_NORM;
  *out = (px_adapter_config){.peft_type = norms ? "LN_TUNING" : "PFX_DELTA", .task_type = "CAUSAL_LM",
                             .top_layers = part->spec->kind == PX_PART_TOP ? part->spec->size : 0};
  if (!norms) return PX_OK;
  const weights_part *p = part->own;
  const px_names *n = t->config->hf;
  bool qk = t->config->qk_norm, all = true;
  const char *const ends[] = {n->norm1, n->norm2, qk ? n->q_norm : NULL, qk ? n->k_norm : NULL, n->final_norm};
  const char **list = px_arena_alloc(&t->arena, (size_t)p->slot_count + sizeof ends / sizeof *ends, sizeof *list);
  if (!list) return px_fail(err, PX_NO_MEMORY, "no memory");
  out->target_modules.items = list;
  for (int i = 0; i < p->slot_count; i++) all &= p->slots[i].kind != PX_SLOT_NORM || p->slots[i].place >= 0;
  for (size_t i = 0; all && i < sizeof ends / sizeof *ends; i++)
    if (ends[i]) list[out->target_modules.count++] = strrchr(ends[i], '.') + 1;
  /* A larger part has some of them: a name's end would name these, too. */
  for (int i = 0; !all && i < t->param_count; i++) {
    const px_param *q = &t->params[i];
    if (q->part == part->number && strcmp(q->role, "weight") == 0) list[out->target_modules.count++] = q->module;
  }
  return PX_OK;
}

const px_part_ops px_part_weights = {weights_measure, weights_open, weights_close, weights_describe, weights_begin_step, NULL};
