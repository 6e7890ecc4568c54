/* SPDX-License-Identifier: MIT
 * The parts of a run together: virtual tokens side by side in one segment, gradients in one arena, tensors in one list.
 * Keys, values and their gradients are layer-major, [layers][key, value][tokens][width], so that the gradients of a layer are
 * one run; PEFT's order exists in files alone. */
#include "tune/tune.h"

#include <stdlib.h>

#include "tune/prefix.h"

static const px_part_ops *const part_ops[PX_PART_KINDS] = {
    [PX_PART_PREFIX] = &px_part_prefix, [PX_PART_PROMPT] = &px_part_prompt, [PX_PART_LORA] = &px_part_lora,    [PX_PART_IA3] = &px_part_ia3,
    [PX_PART_NORM] = &px_part_weights,  [PX_PART_BIAS] = &px_part_weights,  [PX_PART_TOP] = &px_part_weights, [PX_PART_FULL] = &px_part_weights,
};

/* ---- what parts ask for ---- */

px_status px_part_add(px_part *p, const px_param *param, px_error *err) {
  px_tune *t = p->tune;
  if (t->param_count == t->param_capacity) {
    int32_t capacity = t->param_capacity ? 2 * t->param_capacity : 64;
    px_param *grown = realloc(t->params, (size_t)capacity * sizeof *grown);
    if (!grown) return px_fail(err, PX_NO_MEMORY, "no memory");
    t->params = grown;
    t->param_capacity = capacity;
  }
  px_param *to = &t->params[t->param_count++];
  *to = *param;
  to->name = px_arena_strdup(&t->arena, param->name);
  to->lr_scale = p->lr_scale;
  to->part = p->number;
  if (param->module) to->module = px_arena_strdup(&t->arena, param->module);
  to->count = 1;
  for (int i = 0; i < to->dims; i++) to->count *= to->shape[i];
  return to->name && (to->module || !param->module) ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory");
}

float *px_part_floats(px_part *p, int64_t count, px_error *err) {
  px_tune *t = p->tune;
  size_t bytes = (size_t)count * sizeof(float);
  float *memory = px_backend_alloc(t->be, bytes);
  if (!memory) {
    if (px_backend_status(t->be, err) == PX_OK) px_fail(err, PX_NO_MEMORY, "no memory");
    return NULL;
  }
  px_backend_zero(t->be, memory, bytes);
  return memory;
}

void px_part_write(px_part *p, float *to, const float *from, int64_t count) {
  if (!p->tune->spec.restored) px_backend_write(p->tune->be, to, from, (size_t)count * sizeof *from);
}

void px_part_reach(px_part *p, int32_t layer, px_stop stop) {
  px_reach *r = &p->tune->hooks.reach;
  if (layer < r->layer)
    *r = (px_reach){layer, stop};
  else if (layer == r->layer && stop > r->stop)
    r->stop = stop;
}

/* ---- opening ---- */

/* A prefix keeps its numbers beside its gradients, which are the segments'. */
size_t px_tune_bytes(const px_tune *t) {
  bool trains = !t->spec.used;
  int64_t moments = trains && !t->spec.plain_descent ? 2 : 0, virtual = t->slices * t->slice, own = 0;
  for (int i = 0; i < t->part_count; i++) own += t->parts[i].grad_count;
  size_t copies = px_dtype_bytes(t->dtype, (size_t)(virtual + (t->dtype == PX_F32 ? 0 : own)));
  return (size_t)((virtual + own) * (1 + moments + (trains ? 1 : 0))) * sizeof(float) + copies;
}

/* Refused with numbers before anything is allocated; a machine that runs out later may be killed without a word. */
static px_status check_room(const px_tune *t, px_error *err) {
  int64_t available = px_backend_free_bytes(t->be);
  size_t need = px_tune_bytes(t);
  if (available < 0 || need <= (size_t)available) return PX_OK;
  return px_fail(err, PX_NO_MEMORY,
                 "what is trained needs %.2f GB (values, gradients%s) and %.2f GB are free: %sfewer layers (top:K) or a part like lora:R or prefix:N need far less",
                 (double)need / 1e9, t->spec.plain_descent ? "" : ", two moments", (double)available / 1e9,
                 t->spec.plain_descent ? "" : "--optimizer sgd needs about half; ");
}

/* The virtual tokens of all parts, their gradients, and those of every part, in one arena. */
static px_status make_segments(px_tune *t, px_error *err) {
  t->width = (int64_t)t->config->kv_heads * t->config->head_dim;
  t->slice = t->tokens * t->width;
  t->slices = 2 * (int64_t)t->config->layers;
  int64_t all = t->slices * t->slice;
  bool trains = !t->spec.used;
  PX_TRY(check_room(t, err));
  t->grad_count = px_part_room(all);
  for (int i = 0; i < t->part_count; i++) t->grad_count += px_part_room(t->parts[i].grad_count);
  if (trains) t->grads = px_backend_alloc(t->be, (size_t)t->grad_count * sizeof(float));
  if (all) t->kv = px_backend_alloc(t->be, px_dtype_bytes(t->dtype, (size_t)all));
  PX_TRY(px_backend_status(t->be, err));
  if (all) px_backend_zero(t->be, t->kv, px_dtype_bytes(t->dtype, (size_t)all));
  if (!trains) return PX_OK;
  px_tune_zero_grads(t);
  t->segment_grads = t->grads;
  float *at = t->grads + px_part_room(all);
  for (int i = 0; i < t->part_count; i++) {
    t->parts[i].grads = at;
    at += px_part_room(t->parts[i].grad_count);
  }
  return PX_OK;
}

/* Where the virtual tokens of a layer begin: a prefix may leave layers out. */
static int32_t first_token(const px_tune *t, int layer) {
  const px_part *p = t->part_count ? &t->parts[0] : NULL;
  for (int i = 0; i < t->part_count; i++)
    if (t->parts[i].ops == &px_part_prefix) p = &t->parts[i];
  return p && p->ops == &px_part_prefix && !px_prefix_has_layer(p, layer) ? p->tokens : 0;
}

/* Keys and values in compute dtype with their gradients, as attention takes them. */
static px_status write_segments(px_tune *t, px_error *err) {
  int layers = t->config->layers;
  if (t->tokens == 0) return PX_OK;
  size_t element = px_dtype_bytes(t->dtype, 1), bytes = (size_t)layers * sizeof(px_kv_segment);
  t->segments = px_backend_alloc(t->be, bytes);
  px_kv_segment *host = t->segments_host = px_arena_alloc(&t->arena, (size_t)layers, sizeof *host);
  if (!t->segments || !host) {
    px_status s = px_backend_status(t->be, err);
    return s != PX_OK ? s : px_fail(err, PX_NO_MEMORY, "no memory");
  }
  for (int l = 0; l < layers; l++) {
    int64_t skip = first_token(t, l) * t->width;
    char *k = (char *)t->kv + (size_t)(2 * l * t->slice + skip) * element;
    float *dk = t->segment_grads ? t->segment_grads + 2 * (layers - 1 - l) * t->slice + skip : NULL;
    host[l] = (px_kv_segment){.k = k, .v = k + (size_t)t->slice * element, .stride = t->width, .len = t->tokens - first_token(t, l), .dk = dk,
                              .dv = dk ? dk + t->slice : NULL, .grad_stride = t->width};
  }
  px_backend_write(t->be, t->segments, host, bytes);
  t->hooks.segments = t->segments;
  t->hooks.segment_rows = t->tokens;
  return PX_OK;
}

static px_status make_list(px_tune *t, px_error *err) {
  size_t bytes = (size_t)t->param_count * sizeof(px_opt_tensor);
  px_opt_tensor *host = px_calloc((size_t)t->param_count, sizeof *host);
  t->list = px_backend_alloc(t->be, bytes);
  if (!host || !t->list) {
    free(host);
    return px_fail(err, PX_NO_MEMORY, "no memory");
  }
  for (int i = 0; i < t->param_count; i++) {
    const px_param *p = &t->params[i];
    host[i] = (px_opt_tensor){.value = p->value, .grad = p->grad, .m = p->m, .v = p->v, .count = p->count,
                              .weight_decay = p->weight_decay, .lr_scale = p->lr_scale, .group = p->group};
  }
  px_backend_write(t->be, t->list, host, bytes);
  free(host);
  return px_backend_status(t->be, err);
}

/* The learning rate of a run is its first part's; the others' stand in proportion to it. */
static float lr_scale(const px_tune_spec *spec, int part) {
  const px_part_spec *first = &spec->parts[0], *own = &spec->parts[part];
  double base = first->lr > 0 ? first->lr : px_part_usual_lr(first), lr = own->lr > 0 ? own->lr : px_part_usual_lr(own);
  return (float)(lr / base);
}

static px_status open_parts(px_tune *t, const px_part_start *start, px_error *err) {
  for (int i = 0; i < t->spec.part_count; i++) {
    px_part *p = &t->parts[i];
    *p = (px_part){.ops = part_ops[t->spec.parts[i].kind], .tune = t, .spec = &t->spec.parts[i], .number = i, .lr_scale = lr_scale(&t->spec, i)};
    t->part_count++;
    bool from_adapter = start->adapter && p->spec->init == PX_INIT_ADAPTER && p->spec->kind != PX_PART_PREFIX;
    if (from_adapter) PX_TRY(px_part_settle(p, start->adapter, err));
    PX_TRY(p->ops->measure(p, start, err));
  }
  for (int k = 0; k < 2; k++) /* a prefix comes before prompt rows, wherever they stand in --tune */
    for (int i = 0; i < t->part_count; i++) {
      px_part *p = &t->parts[i];
      if ((p->ops == &px_part_prefix) != (k == 0)) continue;
      p->first_token = t->tokens;
      t->tokens += p->tokens;
    }
  PX_TRY(make_segments(t, err));
  t->hooks = (px_hooks){.adapters = 1, .reach = {t->config->layers, PX_STOP_SEGMENTS}};
  px_part *prompt = NULL; /* last: its pass over the model needs everybody's hooks */
  for (int i = 0; i < t->part_count; i++) {
    if (t->parts[i].ops == &px_part_prompt)
      prompt = &t->parts[i];
    else
      PX_TRY(t->parts[i].ops->open(&t->parts[i], start, err));
  }
  PX_TRY(write_segments(t, err));
  if (prompt) PX_TRY(prompt->ops->open(prompt, start, err));
  for (int i = 0; start->adapter && i < t->part_count; i++) { /* a prefix has begun there already */
    const px_part_spec *s = t->parts[i].spec;
    if (s->init == PX_INIT_ADAPTER && s->kind != PX_PART_PREFIX) PX_TRY(px_part_load(&t->parts[i], px_adapter_find(start->adapter, s->kind), err));
  }
  return PX_OK;
}

/* The adapter that parts begin from; it is one for all. */
static px_status open_start(px_tune *t, const px_tokenizer *tok, px_adapter **out, px_error *err) {
  const px_part_spec *from = NULL;
  for (int i = 0; i < t->spec.part_count; i++)
    if (t->spec.parts[i].init == PX_INIT_ADAPTER) from = &t->spec.parts[i];
  if (!from || t->spec.restored) return PX_OK;
  px_fit fit;
  PX_TRY(px_adapter_open(from->init_value, out, err));
  return px_adapter_fits(*out, t->model, tok, t->spec.force, &fit, NULL, err);
}

px_status px_tune_open(const px_model *model, px_backend *be, const px_tokenizer *tok, const px_tune_spec *spec, uint64_t seed,
                       px_tune **out, px_error *err) {
  *out = NULL;
  px_tune *t = px_calloc(1, sizeof *t);
  if (!t) return px_fail(err, PX_NO_MEMORY, "no memory");
  *t = (px_tune){.be = be, .model = model, .config = px_model_config(model), .dtype = model->dtype, .spec = *spec};
  t->parts = px_calloc((size_t)spec->part_count + 1, sizeof *t->parts);
  px_part_start start = {.tok = tok, .spec = spec, .seed = seed};
  px_adapter *adapter = NULL;
  px_status status = t->parts ? open_start(t, tok, &adapter, err) : px_fail(err, PX_NO_MEMORY, "no memory");
  start.adapter = adapter;
  if (status == PX_OK) status = open_parts(t, &start, err);
  px_adapter_close(adapter);
  if (status == PX_OK && !spec->used) status = make_list(t, err);
  for (int i = 0; i < t->spec.part_count; i++) /* the caller's, as are the ids; not needed after this call */
    t->spec.parts[i].init_value = t->spec.parts[i].layers = t->spec.parts[i].targets = NULL;
  t->spec.data_ids = NULL;
  if (status != PX_OK) {
    px_tune_close(t);
    return status;
  }
  *out = t;
  return PX_OK;
}

void px_tune_close(px_tune *t) {
  if (!t) return;
  for (int i = 0; i < t->part_count; i++)
    if (t->parts[i].own) t->parts[i].ops->close(&t->parts[i]);
  px_backend_free(t->be, t->kv);
  px_backend_free(t->be, t->segments);
  px_backend_free(t->be, t->grads);
  px_backend_free(t->be, t->list);
  px_arena_free(&t->arena);
  free(t->parts);
  free(t->params);
  free(t);
}

/* ---- steps ---- */

void px_tune_zero_grads(px_tune *t) { px_backend_zero(t->be, t->grads, (size_t)t->grad_count * sizeof(float)); }

void px_tune_begin_step(px_tune *t, uint64_t seed, const int64_t *step) {
  t->hooks.seed = seed;
  t->hooks.step = step;
  for (int last = 0; last < 2; last++) /* the pass over prompt rows reads what the others make */
    for (int i = 0; i < t->part_count; i++)
      if (t->parts[i].ops->begin_step && (t->parts[i].ops == &px_part_prompt) == last) t->parts[i].ops->begin_step(&t->parts[i], seed, step);
}

void px_tune_end_step(px_tune *t, uint64_t seed, const int64_t *step) {
  for (int last = 1; last >= 0; last--)
    for (int i = 0; i < t->part_count; i++)
      if (t->parts[i].ops->end_step && (t->parts[i].ops == &px_part_prompt) == last) t->parts[i].ops->end_step(&t->parts[i], seed, step);
}

int32_t px_tune_part_tokens(const px_tune *t, int32_t part) { return t->parts[part].tokens; }

int64_t px_tune_trainable(const px_tune *t) {
  int64_t all = 0;
  for (int i = 0; i < t->param_count; i++) all += t->params[i].count;
  return all;
}

const char *px_tune_summary(const px_tune *t, px_arena *arena) {
  char *text = px_arena_strdup(arena, "");
  for (int i = 0; text && i < t->part_count; i++) {
    const px_part_spec *s = &t->spec.parts[i];
    int32_t size = t->parts[i].tokens ? t->parts[i].tokens : s->size;
    text = size ? px_arena_printf(arena, "%s%s%s:%d", text, i ? "+" : "", px_part_kind_name(s->kind), size)
                : px_arena_printf(arena, "%s%s%s", text, i ? "+" : "", px_part_kind_name(s->kind));
  }
  return text;
}
