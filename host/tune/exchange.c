/* SPDX-License-Identifier: MIT
 * Parts and adapters: what an adapter holds as parts that can be opened, their values in both directions. */
#include <math.h>
#include <stdlib.h>

#include "tune/prefix.h"

/* ---- an adapter's parts as a spec ---- */

/* Sites of the modules that the tensors name: "q,down". */
static char *sites_of(const px_adapter_part *part, px_arena *arena) {
  char *text = px_arena_strdup(arena, "");
  for (size_t i = 0; text && i < part->tensor_count; i++) {
    const char *module = part->tensors[i].module, *end = strrchr(module, '.');
    while (end && end > module && end[-1] != '.') end--; /* the last two components: c_proj alone is two of GPT-2's */
    if (end && !strstr(text, end)) text = px_arena_printf(arena, "%s%s%s", text, *text ? "," : "", end);
  }
  return text;
}

static char *layers_of(const px_adapter_config *c, px_arena *arena) {
  char *text = px_arena_strdup(arena, "");
  for (size_t i = 0; text && i < c->chosen_count; i++) text = px_arena_printf(arena, "%s%s%d", text, i ? "," : "", c->chosen_layers[i]);
  return text;
}

px_status px_tune_spec_of(const px_adapter *a, px_arena *arena, px_tune_spec *out, px_error *err) {
  *out = (px_tune_spec){0};
  for (int i = 0; i < a->part_count; i++) {
    const px_adapter_part *part = &a->parts[i];
    const px_adapter_config *c = &part->config;
    px_part_spec *p = &out->parts[out->part_count++];
    bool good = true;
    *p = (px_part_spec){.kind = part->kind, .init = PX_INIT_ZERO, .frozen = (int32_t)c->frozen_tokens};
    switch (part->kind) {
      case PX_PART_PREFIX:
        p->size = (int32_t)c->virtual_tokens;
        if (c->chosen_count) good = (p->layers = layers_of(c, arena)) != NULL;
        break;
      case PX_PART_PROMPT:
        p->size = (int32_t)c->virtual_tokens;
        break;
      case PX_PART_LORA:
        p->size = (int32_t)c->rank;
        p->alpha = (float)c->alpha;
        p->rslora = c->rank_stabilised;
        p->dropout = (float)c->dropout;
        good = (p->targets = sites_of(part, arena)) != NULL;
        break;
      case PX_PART_IA3:
        good = (p->targets = sites_of(part, arena)) != NULL;
        break;
      case PX_PART_TOP:
        p->size = (int32_t)c->top_layers;
        break;
      default:
        break;
    }
    if (!good) return px_fail(err, PX_NO_MEMORY, "no memory");
  }
  return PX_OK;
}

/* ---- values ---- */

/* rows x cols -> cols x rows */
static void transpose(const float *from, int64_t rows, int64_t cols, float *to) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < cols; j++) to[j * rows + i] = from[i * cols + j];
}

static const px_param *param_of(const px_tune *t, int part, const px_part_tensor *tensor) {
  for (int i = 0; i < t->param_count; i++) {
    const px_param *q = &t->params[i];
    if (q->part == part && q->role && strcmp(q->role, tensor->role) == 0 && strcmp(q->module, tensor->module) == 0) return q;
  }
  return NULL;
}

static void file_shape(const px_param *q, int *dims, int64_t shape[2]) {
  *dims = q->column || q->row ? 2 : q->dims;
  shape[0] = q->row ? 1 : q->transposed ? q->shape[1] : q->shape[0];
  shape[1] = q->row ? q->shape[0] : q->column ? 1 : q->transposed ? q->shape[0] : q->dims == 2 ? q->shape[1] : 0;
}

static px_status load_tensor(px_tune *t, int part, const px_part_tensor *tensor, const char *file, px_error *err) {
  const px_param *q = param_of(t, part, tensor);
  int dims;
  int64_t shape[2];
  if (!q) return px_fail(err, PX_MISMATCH, "%s: pfx has no place for %s.%s in this model", file, tensor->module, tensor->role);
  file_shape(q, &dims, shape);
  if (tensor->dims != dims || tensor->shape[0] != shape[0] || (dims == 2 && tensor->shape[1] != shape[1]))
    return px_fail(err, PX_MISMATCH, "%s: %s.%s has shape [%lld, %lld], pfx wants [%lld, %lld]: IA3 in front of a projection is for the last one of the feed-forward alone",
                   file, tensor->module, tensor->role, (long long)tensor->shape[0], (long long)(tensor->dims == 2 ? tensor->shape[1] : 1),
                   (long long)shape[0], (long long)(dims == 2 ? shape[1] : 1));
  if (!q->transposed) {
    px_backend_write(t->be, q->value, tensor->values, (size_t)q->count * sizeof(float));
    return PX_OK;
  }
  float *turned = px_calloc((size_t)q->count, sizeof *turned);
  if (!turned) return px_fail(err, PX_NO_MEMORY, "no memory");
  transpose(tensor->values, shape[0], shape[1], turned);
  px_backend_write(t->be, q->value, turned, (size_t)q->count * sizeof *turned);
  free(turned);
  return PX_OK;
}

px_status px_part_load(px_part *p, const px_adapter_part *part, px_error *err) {
  if (part->kind == PX_PART_PREFIX) return px_prefix_from_peft(p, part->tensors[0].values, err);
  for (size_t k = 0; k < part->tensor_count; k++) PX_TRY(load_tensor(p->tune, p->number, &part->tensors[k], part->file, err));
  return px_backend_status(p->tune->be, err);
}

px_status px_tune_load(px_tune *t, const px_adapter *a, px_error *err) {
  for (int i = 0; i < a->part_count; i++) PX_TRY(px_part_load(&t->parts[i], &a->parts[i], err));
  return PX_OK;
}

/* What was not said follows the adapter: sizes, targets, and the scale that a low-rank delta was learned at. */
px_status px_part_settle(px_part *p, const px_adapter *a, px_error *err) {
  px_part_spec *own = &p->tune->spec.parts[p->number];
  px_tune_spec all;
  PX_TRY(px_tune_spec_of(a, &p->tune->arena, &all, err));
  const px_part_spec *there = px_tune_part(&all, own->kind);
  const char *name = px_part_kind_name(own->kind);
  if (!there) return px_fail(err, PX_INVALID, "--init adapter:%s: it is %s and has no %s to start from", a->path, a->kind, name);
  if (own->size && own->size != there->size)
    return px_fail(err, PX_INVALID, "%s:%d does not fit its initial adapter %s, which has %s:%d", name, own->size, a->path, name, there->size);
  own->size = there->size;
  if (!own->targets) own->targets = there->targets;
  if (own->alpha == 0) own->alpha = there->alpha, own->rslora = there->rslora;
  return PX_OK;
}

px_status px_tune_open_adapter(const px_model *model, px_backend *be, const px_adapter *adapter, bool trained, px_tune **out, px_error *err) {
  px_arena arena = {0};
  px_tune_spec spec;
  *out = NULL;
  px_status status = px_tune_spec_of(adapter, &arena, &spec, err);
  spec.used = !trained;
  if (status == PX_OK) status = px_tune_open(model, be, NULL, &spec, 0, out, err);
  if (status == PX_OK) status = px_tune_load(*out, adapter, err);
  if (status == PX_OK) px_tune_begin_step(*out, 0, NULL);
  if (status == PX_OK) status = px_backend_status(be, err);
  if (status != PX_OK) {
    px_tune_close(*out);
    *out = NULL;
  }
  px_arena_free(&arena);
  return status;
}

/* ---- writing ---- */

static px_status check_finite(const char *what, const float *values, int64_t count, const char *dir, px_error *err) {
  for (int64_t i = 0; i < count; i++)
    if (!isfinite(values[i])) return px_fail(err, PX_NOT_FINITE, "%s holds a value that is not finite; %s is left as it was", what, dir);
  return PX_OK;
}

px_status px_tune_read(px_tune *t, const px_param *q, bool gradient, px_arena *arena, px_part_tensor *out, px_error *err) {
  float *values = px_arena_alloc(arena, (size_t)q->count, sizeof *values), *turned = values;
  if (!values) return px_fail(err, PX_NO_MEMORY, "no memory for %s", q->name);
  px_backend_read(t->be, values, gradient ? q->grad : q->value, (size_t)q->count * sizeof *values);
  *out = (px_part_tensor){.module = q->module, .role = q->role};
  file_shape(q, &out->dims, out->shape);
  if (q->transposed) {
    turned = px_arena_alloc(arena, (size_t)q->count, sizeof *turned);
    if (!turned) return px_fail(err, PX_NO_MEMORY, "no memory for %s", q->name);
    transpose(values, q->shape[0], q->shape[1], turned);
  }
  out->values = turned;
  return px_backend_status(t->be, err);
}

static px_status save_part(px_part *p, const char *dir, const char *base_name, px_arena *arena, px_adapter_part *out, px_error *err) {
  px_tune *t = p->tune;
  *out = (px_adapter_part){.kind = p->spec->kind};
  PX_TRY(p->ops->describe(p, &out->config, err));
  out->config.base_model = base_name;
  px_part_tensor *list = px_arena_alloc(arena, (size_t)t->param_count + 1, sizeof *list);
  if (!list) return px_fail(err, PX_NO_MEMORY, "no memory to write %s", dir);
  out->tensors = list;
  if (p->spec->kind == PX_PART_PREFIX) {
    int64_t columns = t->slices * t->width;
    float *values = px_arena_alloc(arena, (size_t)(p->tokens * columns), sizeof *values);
    if (!values) return px_fail(err, PX_NO_MEMORY, "no memory to write %s", dir);
    PX_TRY(px_tune_export(t, values, err));
    PX_TRY(check_finite("the prefix", values, p->tokens * columns, dir, err));
    list[out->tensor_count++] = (px_part_tensor){.module = "", .role = "prompt_embeddings", .dims = 2, .shape = {p->tokens, columns}, .values = values};
  }
  for (int i = 0; i < t->param_count; i++) {
    const px_param *q = &t->params[i];
    if (q->part != p->number || !q->role) continue;
    px_part_tensor *tensor = &list[out->tensor_count++];
    PX_TRY(px_tune_read(t, q, false, arena, tensor, err));
    PX_TRY(check_finite(q->name, tensor->values, q->count, dir, err));
  }
  return PX_OK;
}

px_status px_tune_save(px_tune *t, const char *dir, const char *base_name, const px_meta *metadata, size_t count, px_error *err) {
  px_arena arena = {0};
  px_adapter_part parts[PX_PARTS_MOST];
  int n = 0;
  px_status status = PX_OK;
  for (int k = 0; k < 2; k++) /* in the order of positions: a prefix first */
    for (int i = 0; status == PX_OK && i < t->part_count; i++)
      if ((t->spec.parts[i].kind == PX_PART_PREFIX) == (k == 0)) status = save_part(&t->parts[i], dir, base_name, &arena, &parts[n++], err);
  if (status == PX_OK) status = px_backend_status(t->be, err);
  if (status == PX_OK)
    status = n == 1 ? px_adapter_part_write(dir, &parts[0], metadata, count, err) : px_adapter_hybrid_write(dir, parts, (size_t)n, metadata, count, err);
  px_arena_free(&arena);
  return status;
}
