/* SPDX-License-Identifier: MIT
 * Bringing tensors into the backend: mapped where the type allows, else converted by all cores. */
#include "model/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/upload.h"

enum { CHUNK = 1 << 15 }; /* elements converted at once: stays in the second-level cache */

/* Index of the first value that is not finite, or -1. Vectorises: a float is not finite where its exponent is all ones.
 */
static int64_t first_not_finite(const void *data, px_dtype type, int64_t count) {
  uint32_t bad = 0;
  if (type == PX_F32) {
    const uint32_t *u = data;
    for (int64_t i = 0; i < count; i++) bad |= (u[i] & 0x7f800000u) == 0x7f800000u;
    for (int64_t i = 0; bad && i < count; i++)
      if ((u[i] & 0x7f800000u) == 0x7f800000u) return i;
  } else {
    uint16_t mask = type == PX_F16 ? 0x7c00 : 0x7f80;
    const uint16_t *u = data;
    for (int64_t i = 0; i < count; i++) bad |= (u[i] & mask) == mask;
    for (int64_t i = 0; bad && i < count; i++)
      if ((u[i] & mask) == mask) return i;
  }
  return -1;
}

static px_status not_finite(const px_named_tensor *t, int64_t index, px_error *err) {
  return px_fail(
      err, PX_BAD_FILE,
      "%s: tensor %s holds a value that is not finite (first at element %lld); the file is damaged, get it again",
      t->tensor.view->file, t->tensor.view->name, (long long)index);
}

/* One canonical row range into dst, file order; returns the first bad index or -1. */
static int64_t convert(const px_canonical *t, int64_t src_at, int64_t count, px_dtype dtype, void *dst) {
  const px_dtype_info *info = px_dtype_get(t->view->dtype);
  px_dequant_args args = {.src_type = t->view->dtype,
                          .dst_type = dtype,
                          .count = count,
                          .src = (const char *)t->view->data + src_at / info->block_elements * info->block_bytes,
                          .dst = dst};
  px_dequant_cpu(&args);
  return first_not_finite(dst, dtype, count);
}

/* What is converted at once: a permuted tensor moves row by row (a row is a whole number of blocks, or the reader would
 * have refused it). */
static int64_t unit_of(const px_canonical *t) { return t->permute_heads ? (t->dims == 1 ? 1 : t->cols) : CHUNK; }

/* Converts the units [first, end) of a tensor to host memory at dst: canonical rows, but a transposed matrix stays as the
 * file has it. Returns the first element that is not finite, or INT64_MAX. */
static int64_t convert_units(const px_canonical *t, int64_t first, int64_t end, px_dtype dtype, char *dst) {
  int64_t total = px_tensor_elements(t->view), unit = unit_of(t), bad = INT64_MAX;
  int64_t rows = t->dims == 1 ? t->cols : t->rows;
  size_t element = px_dtype_bytes(dtype, 1);
#pragma omp parallel for schedule(static) reduction(min : bad)
  for (int64_t u = first; u < end; u++) {
    int64_t at = u * unit, from = at, count = total - at < unit ? total - at : unit;
    if (t->permute_heads) {
      int64_t head_dim = rows / t->permute_heads, half = head_dim / 2, in_head = u % head_dim;
      from = (u - in_head + 2 * (in_head % half) + in_head / half) * unit;
    }
    int64_t found = convert(t, from, count, dtype, dst + (size_t)(at - first * unit) * element);
    if (found >= 0 && at + found < bad) bad = at + found;
  }
  return bad;
}

/* The whole tensor, to the backend's memory at dst; where that is none of the host's, in pieces by way of `u`. */
static px_status convert_all(px_upload *u, const px_named_tensor *named, px_dtype dtype, char *dst, px_error *err) {
  const px_canonical *t = &named->tensor;
  size_t element = px_dtype_bytes(dtype, 1);
  int64_t total = px_tensor_elements(t->view), unit = unit_of(t), units = (total + unit - 1) / unit, bad = INT64_MAX;
  int64_t piece = u->be ? PX_UPLOAD_BYTES / (unit * (int64_t)element) : units;
  if (piece == 0 && units) return px_fail(err, PX_BAD_FILE, "%s: a row of %s has more than %d MiB", t->view->file, t->view->name, PX_UPLOAD_BYTES >> 20);
  for (int64_t first = 0; first < units && bad == INT64_MAX; first += piece) {
    int64_t end = units - first < piece ? units : first + piece, last = end * unit < total ? end * unit : total;
    char *at = dst + (size_t)(first * unit) * element, *host = u->be ? px_upload_piece(u) : at;
    if (!host) return px_backend_status(u->be, err);
    bad = convert_units(t, first, end, dtype, host);
    if (u->be) px_upload_send(u, at, (size_t)(last - first * unit) * element);
  }
  px_map_forget(t->view->data, t->view->bytes);
  return bad != INT64_MAX ? not_finite(named, bad, err) : PX_OK;
}

typedef struct loader {
  px_source *source;
  px_backend *be;
  px_upload upload; /* closed where the backend's memory is the host's */
  px_weights *w;
  px_named_tensor *tensors;
  size_t count;
  px_status status;
  px_error *err;
} loader;

static const px_named_tensor *lookup(const loader *l, const char *template, int layer, const char *suffix) {
  char name[256];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  int used = snprintf(name, sizeof name, template, layer);
#pragma GCC diagnostic pop
  snprintf(name + used, sizeof name - (size_t)used, "%s", suffix);
  size_t low = 0, high = l->count;
  while (low < high) {
    size_t mid = (low + high) / 2;
    int order = strcmp(l->tensors[mid].name, name);
    if (order == 0) return &l->tensors[mid];
    if (order < 0)
      low = mid + 1;
    else
      high = mid;
  }
  return NULL;
}

static const void *load_tensor(loader *l, const px_named_tensor *t, px_dtype dtype, px_residency *residency) {
  if (l->status != PX_OK) return NULL;
  const px_tensor_view *v = t->tensor.view;
  /* safetensors promises 8 bytes; every kernel takes a tensor that is aligned as C wants its elements to be. */
  bool aligned = (uintptr_t)v->data % px_dtype_bytes(dtype, 1) == 0;
  if (v->dtype == dtype && !t->tensor.permute_heads && l->be->host_visible && aligned) {
    *residency = PX_RESIDENT_MAPPED;
    l->w->mapped_bytes += v->bytes;
    return v->data;
  }
  size_t bytes = px_dtype_bytes(dtype, (size_t)px_tensor_elements(v));
  void *memory = px_backend_alloc(l->be, bytes);
  if (!memory || px_reserve(&l->w->owned, &l->w->owned_capacity, l->w->owned_count + 1, sizeof(void *)) != 0) {
    px_backend_free(l->be, memory);
    l->status = px_backend_status(l->be, l->err);
    if (l->status == PX_OK) l->status = px_fail(l->err, PX_NO_MEMORY, "no memory");
    return NULL;
  }
  l->w->owned[l->w->owned_count++] = memory;
  l->w->owned_bytes += bytes;
  *residency = PX_RESIDENT_BACKEND;
  l->status = convert_all(&l->upload, t, dtype, memory, l->err);
  return memory;
}

static const void *load_vector(loader *l, const char *template, int layer, const char *suffix, px_dtype dtype) {
  px_residency residency;
  const px_named_tensor *t = template ? lookup(l, template, layer, suffix) : NULL;
  return t ? load_tensor(l, t, dtype, &residency) : NULL;
}

static px_norm_weight load_norm(loader *l, const char *template, int layer) {
  return (px_norm_weight){load_vector(l, template, layer, ".weight", PX_F32), load_vector(l, template, layer, ".bias", PX_F32)};
}

static px_weight load_linear(loader *l, const char *template, int layer) {
  const px_named_tensor *t = template ? lookup(l, template, layer, ".weight") : NULL;
  if (!t) return (px_weight){0};
  px_weight w = {.dtype = l->w->dtype};
  const px_canonical *c = &t->tensor;
  bool conv1d = l->source->config.conv1d && layer >= 0;
  w.layout = conv1d && !c->transpose ? PX_LAYOUT_IN_OUT : PX_LAYOUT_OUT_IN;
  w.out = conv1d ? c->cols : c->rows;
  w.in = conv1d ? c->rows : c->cols;
  w.ld = w.layout == PX_LAYOUT_IN_OUT ? w.out : w.in;
  w.data = load_tensor(l, t, w.dtype, &w.residency);
  w.bias = load_vector(l, template, layer, ".bias", w.dtype);
  return w;
}

/* Output columns [from, from + out) of a fused projection. */
static px_weight part_of(const px_weight *w, int64_t from, int64_t out) {
  px_weight p = *w;
  if (!w->data) return p;
  int64_t offset = w->layout == PX_LAYOUT_IN_OUT ? from : from * w->ld;
  p.data = (const char *)w->data + px_dtype_bytes(w->dtype, (size_t)offset);
  p.out = out;
  if (w->bias) p.bias = (const char *)w->bias + px_dtype_bytes(w->dtype, (size_t)from);
  return p;
}

static void load_layer(loader *l, int i) {
  const px_config *c = &l->source->config;
  const px_names *n = c->hf;
  int64_t a = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
  px_layer_weights *out = &l->w->layers[i];
  out->norm1 = load_norm(l, n->norm1, i);
  if (n->qkv) {
    px_weight qkv = load_linear(l, n->qkv, i);
    out->q = part_of(&qkv, 0, a);
    out->k = part_of(&qkv, a, kv);
    out->v = part_of(&qkv, a + kv, kv);
  } else {
    out->q = load_linear(l, n->q, i);
    out->k = load_linear(l, n->k, i);
    out->v = load_linear(l, n->v, i);
  }
  out->q_norm.weight = load_vector(l, n->q_norm, i, ".weight", PX_F32);
  out->k_norm.weight = load_vector(l, n->k_norm, i, ".weight", PX_F32);
  out->o = load_linear(l, n->o, i);
  out->norm2 = load_norm(l, n->norm2, i);
  out->gate = load_linear(l, n->gate, i);
  out->up = load_linear(l, n->up, i);
  out->down = load_linear(l, n->down, i);
}

px_status px_weights_load(px_source *source, px_backend *be, px_dtype dtype, px_weights *w, px_error *err) {
  *w = (px_weights){.dtype = dtype};
  const px_config *c = &source->config;
  loader l = {.source = source, .be = be, .w = w, .err = err};
  PX_TRY(px_source_tensors(source, &l.tensors, &l.count, err));
  w->layers = px_arena_alloc(&w->arena, (size_t)c->layers, sizeof *w->layers);
  if (!w->layers) return px_fail(err, PX_NO_MEMORY, "no memory");
  if (!be->host_visible) px_upload_open(&l.upload, be);
  w->embed = load_linear(&l, c->hf->embed, -1);
  w->positions = load_linear(&l, c->hf->positions, -1);
  for (int i = 0; i < c->layers && l.status == PX_OK; i++) load_layer(&l, i);
  w->final_norm = load_norm(&l, c->hf->final_norm, -1);
  w->head = c->tied ? w->embed : load_linear(&l, c->hf->head, -1);
  px_upload_close(&l.upload);
  if (l.status == PX_OK) l.status = px_backend_status(be, err);
  if (l.status != PX_OK) px_weights_free(w, be);
  return l.status;
}

static px_status verify(const px_named_tensor *named, px_error *err) {
  const px_canonical *t = &named->tensor;
  int64_t total = px_tensor_elements(t->view), chunks = (total + CHUNK - 1) / CHUNK, bad = INT64_MAX;
#pragma omp parallel for schedule(static) reduction(min : bad)
  for (int64_t c = 0; c < chunks; c++) {
    float values[CHUNK];
    int64_t at = c * CHUNK, found = convert(t, at, total - at < CHUNK ? total - at : CHUNK, PX_F32, values);
    if (found >= 0 && at + found < bad) bad = at + found;
  }
  px_map_forget(t->view->data, t->view->bytes);
  return bad != INT64_MAX ? not_finite(named, bad, err) : PX_OK;
}

px_status px_source_verify(const px_source *source, px_error *err) {
  px_source own = *source; /* the list of tensors goes into an arena of this call: threads share the source */
  own.arena = (px_arena){0};
  px_named_tensor *tensors = NULL;
  size_t count = 0;
  px_status status = px_source_tensors(&own, &tensors, &count, err);
  for (size_t i = 0; status == PX_OK && i < count; i++) status = verify(&tensors[i], err);
  px_arena_free(&own.arena);
  return status;
}

void px_weights_free(px_weights *w, px_backend *be) {
  for (size_t i = 0; i < w->owned_count; i++) px_backend_free(be, w->owned[i]);
  free(w->owned);
  px_arena_free(&w->arena);
  *w = (px_weights){0};
}
