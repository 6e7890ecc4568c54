/* SPDX-License-Identifier: MIT */
#include "tune/changes.h"

#include <math.h>
#include <stdlib.h>

#include "tune/merge.h"
#include "tune/weights_part.h"

typedef struct job {
  const px_adapter *adapter;
  const px_model *model;
  px_backend *be;
  px_arena *arena;
  px_tensor_slot *slots;
  int slot_count;
  void *piece;        /* numbers of the model, as it keeps them */
  size_t *met;        /* of each part: tensors that found their place */
  px_change *changes;
  size_t count, capacity;
} job;

/* Weights come from a device in pieces of so many numbers. */
enum { PIECE = 1 << 18 };

/* ---- lengths ---- */

static double number_of(const void *data, px_dtype type, int64_t i) {
  if (type == PX_F32) return (double)((const float *)data)[i];
  uint16_t half = ((const uint16_t *)data)[i];
  return (double)(type == PX_BF16 ? px_bf16_to_f32(half) : px_f16_to_f32(half));
}

/* The index in the adapter's tensor of the model's number i: GPT-2's matrices may be kept turned around. */
static int64_t place_of(const px_tensor_slot *s, int64_t i) {
  return s->transposed ? i % s->shape[1] * s->shape[0] + i / s->shape[1] : i;
}

/* Sums of squares of the model's tensor and, where `new` is given, of its difference from that. */
static px_status measure(const job *j, const px_tensor_slot *s, const float *new, double *base, double *change, px_error *err) {
  int64_t all = px_slot_count(s);
  *base = *change = 0;
  for (int64_t first = 0; first < all; first += PIECE) {
    int64_t n = all - first < PIECE ? all - first : PIECE;
    if (!s->absent) {
      px_backend_read(j->be, j->piece, (const char *)*s->at[0] + px_dtype_bytes(s->dtype, (size_t)first), px_dtype_bytes(s->dtype, (size_t)n));
      PX_TRY(px_backend_status(j->be, err));
    }
    for (int64_t i = 0; i < n; i++) {
      double old = s->absent ? 0 : number_of(j->piece, s->dtype, i), difference = new ? (double)new[place_of(s, first + i)] - old : 0;
      *base += old * old;
      *change += difference * difference;
    }
  }
  return PX_OK;
}

/* sum over the long side of x[i] x[k], for the r vectors of a factor: A's rows, or B's columns. */
static double inner(const px_part_tensor *t, bool rows, int64_t i, int64_t k) {
  int64_t r = t->shape[rows ? 0 : 1], n = t->shape[rows ? 1 : 0];
  double sum = 0;
  for (int64_t e = 0; e < n; e++)
    sum += (double)t->values[rows ? i * n + e : e * r + i] * (double)t->values[rows ? k * n + e : e * r + k];
  return sum;
}

/* |B A|^2 = tr((B^T B)(A A^T)), both of them r x r: the delta itself is as large as the weight and never formed. */
static double product_square(const px_part_tensor *a, const px_part_tensor *b) {
  int64_t r = a->shape[0];
  double sum = 0;
  for (int64_t i = 0; i < r; i++)
    for (int64_t k = 0; k <= i; k++) sum += (i == k ? 1 : 2) * inner(a, true, i, k) * inner(b, false, i, k);
  return fmax(sum, 0);
}

static void measure_scales(const px_part_tensor *t, px_change *c) {
  int64_t n = t->shape[0] * t->shape[1], far = 0;
  c->smallest = c->largest = (double)t->values[0];
  for (int64_t i = 0; i < n; i++) {
    double v = (double)t->values[i];
    c->mean += v / (double)n;
    c->smallest = fmin(c->smallest, v);
    c->largest = fmax(c->largest, v);
    far += fabs(v - 1) > PX_FAR_FROM_ONE;
  }
  c->far = (double)far / (double)n;
  c->relative = -1;
}

/* ---- which tensor of the adapter meets which of the model ---- */

static px_status misfit(const px_adapter_part *p, const px_part_tensor *t, px_error *err) {
  return px_fail(err, PX_MISMATCH, "%s: %s of %s does not fit the model: check the adapter with it first (pfx check)", p->file, t->role, t->module);
}

static int64_t numbers_in(const px_part_tensor *t) { return t->shape[0] * (t->dims == 2 ? t->shape[1] : 1); }

/* The part's change of one tensor of the model, if it has one: *c is filled in, and *tensors says how many of the part's took part. */
static px_status change_of(const job *j, const px_adapter_part *p, const px_tensor_slot *s, px_change *c, size_t *tensors, px_error *err) {
  const px_part_tensor *a = NULL, *b = NULL;
  double base = 0, change = 0;
  bool matrix = s->kind == PX_SLOT_MATRIX;
  *tensors = 0;
  if (p->kind == PX_PART_IA3) {
    if (!matrix || !(a = px_part_find(p, c->module, "ia3_l"))) return PX_OK;
    *tensors = 1;
    measure_scales(a, c);
    return PX_OK;
  }
  if (p->kind == PX_PART_LORA) {
    if (!matrix || !(a = px_part_find(p, c->module, "lora_A")) || !(b = px_part_find(p, c->module, "lora_B"))) return PX_OK;
    *tensors = 2;
    if (a->shape[1] * b->shape[0] != px_slot_count(s) || a->shape[0] != b->shape[1]) return misfit(p, a, err);
    PX_TRY(measure(j, s, NULL, &base, &change, err));
    c->length = fabs(px_lora_scale(&p->config)) * sqrt(product_square(a, b));
  } else {
    if (!(a = px_part_find(p, c->module, c->role))) return PX_OK;
    *tensors = 1;
    if (numbers_in(a) != px_slot_count(s)) return misfit(p, a, err);
    PX_TRY(measure(j, s, a->values, &base, &change, err));
    c->length = sqrt(change);
  }
  c->base_length = sqrt(base);
  c->relative = base > 0 ? c->length / c->base_length : -1;
  return PX_OK;
}

/* ---- names ---- */

/* "self_attn.q_proj" of "model.layers.3.self_attn.q_proj": what stands behind the layer's number. */
static const char *tail_of(const char *module, int layer) {
  char number[16];
  snprintf(number, sizeof number, ".%d.", layer);
  const char *at = layer >= 0 ? strstr(module, number) : NULL;
  return at ? at + strlen(number) : module;
}

static const char *last_of(const char *tail) {
  const char *dot = strrchr(tail, '.');
  return dot ? dot + 1 : tail;
}

/* Short names where they are one module's of the layer, whole ones otherwise (c_proj of GPT-2); of the end and the start the whole name. */
static const char *column_of(const job *j, const px_tensor_slot *s, const px_change *c) {
  const char *tail = tail_of(c->module, s->layer), *name = s->layer < 0 ? c->module : last_of(tail);
  for (int i = 0; s->layer >= 0 && i < j->slot_count; i++) {
    const px_tensor_slot *o = &j->slots[i];
    if (o->layer != s->layer) continue;
    const char *other = tail_of(o->name, o->layer), *role = strrchr(other, '.');
    size_t n = (size_t)(role - other);
    if (n == strlen(tail) && strncmp(other, tail, n) == 0) continue;
    size_t m = strlen(name);
    if (n > m && other[n - m - 1] == '.' && strncmp(other + n - m, name, m) == 0) name = tail;
  }
  return strcmp(c->role, "bias") == 0 ? px_arena_printf(j->arena, "%s.bias", name) : px_arena_strdup(j->arena, name);
}

/* ---- all of them ---- */

static px_status add(job *j, int part, const px_tensor_slot *s, px_error *err) {
  const px_adapter_part *p = &j->adapter->parts[part];
  const char *dot = strrchr(s->name, '.');
  px_change c = {.part = p->kind, .role = dot + 1, .layer = s->layer};
  c.module = px_arena_strndup(j->arena, s->name, (size_t)(dot - s->name));
  size_t tensors = 0;
  if (!c.module) return px_fail(err, PX_NO_MEMORY, "no memory");
  PX_TRY(change_of(j, p, s, &c, &tensors, err));
  if (!tensors) return PX_OK;
  j->met[part] += tensors;
  c.column = column_of(j, s, &c);
  if (!c.column || px_reserve(&j->changes, &j->capacity, j->count + 1, sizeof *j->changes) != 0) return px_fail(err, PX_NO_MEMORY, "no memory");
  j->changes[j->count++] = c;
  return PX_OK;
}

static px_status list(job *j, px_error *err) {
  const px_config *c = px_model_config(j->model);
  px_weights weights = j->model->weights, none = {0};
  /* The list of tensors points into a table of weights: into a copy, for the model is everybody's. */
  weights.layers = px_arena_alloc(j->arena, (size_t)c->layers, sizeof *weights.layers);
  none.layers = px_arena_alloc(j->arena, (size_t)c->layers, sizeof *none.layers);
  j->met = px_arena_alloc(j->arena, (size_t)j->adapter->part_count, sizeof *j->met);
  j->piece = px_calloc(PIECE, sizeof(float));
  if (!weights.layers || !none.layers || !j->met || !j->piece) return px_fail(err, PX_NO_MEMORY, "no memory");
  memcpy(weights.layers, j->model->weights.layers, (size_t)c->layers * sizeof *weights.layers);
  PX_TRY(px_tensor_slots(c, &weights, &none, j->arena, &j->slots, &j->slot_count, err));
  for (int i = 0; i < j->adapter->part_count; i++) {
    const px_adapter_part *p = &j->adapter->parts[i];
    if (p->kind == PX_PART_PREFIX || p->kind == PX_PART_PROMPT) continue;
    for (int s = 0; s < j->slot_count; s++) PX_TRY(add(j, i, &j->slots[s], err));
    if (j->met[i] != p->tensor_count)
      return px_fail(err, PX_MISMATCH, "%s: %zu of %zu tensors have a place in this model: check the adapter with it first (pfx check)", p->file, j->met[i],
                     p->tensor_count);
  }
  return PX_OK;
}

px_status px_adapter_changes(const px_adapter *adapter, const px_model *model, px_backend *be, px_arena *arena, px_change **out, size_t *count,
                             px_error *err) {
  job j = {.adapter = adapter, .model = model, .be = be, .arena = arena};
  px_status status = list(&j, err);
  *count = 0;
  *out = px_arena_alloc(arena, j.count + 1, sizeof **out);
  if (status == PX_OK && !*out) status = px_fail(err, PX_NO_MEMORY, "no memory");
  if (status == PX_OK && j.count > 0) memcpy(*out, j.changes, j.count * sizeof **out);
  if (status == PX_OK) *count = j.count;
  free(j.changes);
  free(j.slots);
  free(j.piece);
  return status;
}
