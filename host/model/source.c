/* SPDX-License-Identifier: MIT
 * Opening a model's files and finding its tensors under canonical names. */
#include <stdio.h>
#include <stdlib.h>

#include "model/weights.h"

static px_status open_folder(px_source *s, px_error *err) {
  char *path = px_arena_printf(&s->arena, "%s/config.json", s->path);
  if (!path) return px_fail(err, PX_NO_MEMORY, "no memory");
  if (!px_file_exists(path)) return px_fail(err, PX_BAD_FILE, "%s has no config.json: it is no model folder", s->path);
  json_t *json = NULL;
  PX_TRY(px_json_read(path, &json, err));
  px_status status = px_config_from_json(json, path, &s->arena, &s->config, err);
  json_decref(json);
  PX_TRY(status);
  return px_safetensors_open_folder(s->path, &s->list, err);
}

px_status px_source_open(const char *path, px_source *s, px_error *err) {
  *s = (px_source){0};
  s->path = px_arena_strdup(&s->arena, path);
  px_status status;
  if (!s->path) {
    status = px_fail(err, PX_NO_MEMORY, "no memory");
  } else if (!px_file_exists(path)) {
    status = px_fail(err, PX_BAD_FILE, "%s: no such file or folder", path);
  } else if (px_file_is_dir(path)) {
    status = open_folder(s, err);
  } else {
    s->is_gguf = true;
    status = px_gguf_open(path, &s->gguf, err);
    if (status == PX_OK) status = px_config_from_gguf(&s->gguf, &s->arena, &s->config, err);
  }
  if (status != PX_OK) px_source_close(s);
  return status;
}

void px_source_close(px_source *s) {
  if (s->is_gguf) px_gguf_close(&s->gguf);
  px_tensor_list_close(&s->list);
  px_arena_free(&s->arena);
  *s = (px_source){0};
}

/* Collects what the config calls for. */
typedef struct collector {
  px_source *source;
  px_named_tensor *items;
  size_t count, capacity;
  px_status status;
  px_error *err;
} collector;

static const px_tensor_view *find(const px_source *s, const char *name) {
  const px_tensor_view *view = px_tensor_find(s->is_gguf ? &s->gguf.tensors : &s->list, name);
  const char *prefix = s->config.hf->optional_prefix;
  if (!view && !s->is_gguf && prefix && strncmp(name, prefix, strlen(prefix)) == 0)
    view = px_tensor_find(&s->list, name + strlen(prefix));
  return view;
}

static void shape_text(const px_tensor_view *view, char *text, size_t bytes) {
  size_t used = (size_t)snprintf(text, bytes, "[");
  for (int i = 0; i < view->dims && used < bytes; i++)
    used += (size_t)snprintf(text + used, bytes - used, i ? ", %lld" : "%lld", (long long)view->shape[i]);
  if (used < bytes) snprintf(text + used, bytes - used, "]");
}

/* hf and gguf are templates; layer -1: none. rows x cols is the canonical shape (rows 0: a vector). */
static void want(collector *c, const char *hf, const char *gguf, int layer, const char *suffix, int64_t rows, int64_t cols,
                 int32_t permute_heads) {
  if (c->status != PX_OK) return;
  px_source *s = c->source;
  char name[256], file_name[256];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  int used = snprintf(name, sizeof name, hf, layer);
  int file_used = snprintf(file_name, sizeof file_name, s->is_gguf ? gguf : hf, layer);
#pragma GCC diagnostic pop
  snprintf(name + used, sizeof name - (size_t)used, "%s", suffix);
  snprintf(file_name + file_used, sizeof file_name - (size_t)file_used, "%s", suffix);
  const px_tensor_view *view = find(s, file_name);
  if (!view) {
    c->status = px_fail(c->err, PX_BAD_FILE, "%s: tensor %s is missing; the model is incomplete, get it again", s->path, file_name);
    return;
  }
  bool vector = rows == 0;
  bool transpose = s->is_gguf && s->config.conv1d && !vector && cols != 0 && strcmp(hf, s->config.hf->embed) != 0 &&
                   (!s->config.hf->positions || strcmp(hf, s->config.hf->positions) != 0) && strcmp(hf, s->config.hf->head) != 0;
  int64_t file_rows = transpose ? cols : rows, file_cols = transpose ? rows : cols;
  bool fits = vector ? view->dims == 1 && view->shape[0] == cols
                     : view->dims == 2 && view->shape[0] == file_rows && view->shape[1] == file_cols;
  if (!fits) {
    char shape[128];
    shape_text(view, shape, sizeof shape);
    if (vector)
      c->status = px_fail(c->err, PX_BAD_FILE, "%s: tensor %s has shape %s, the model needs [%lld]", view->file, file_name, shape, (long long)cols);
    else
      c->status = px_fail(c->err, PX_BAD_FILE, "%s: tensor %s has shape %s, the model needs [%lld, %lld]", view->file, file_name, shape,
                          (long long)file_rows, (long long)file_cols);
    return;
  }
  if (view->dtype == PX_I32 || view->dtype == PX_I64 || view->dtype == PX_U8) {
    c->status = px_fail(c->err, PX_BAD_FILE, "%s: tensor %s has type %s, weights must be f32, f16, bf16 or a GGUF block type", view->file,
                        file_name, px_dtype_name(view->dtype));
    return;
  }
  if (px_reserve(&c->items, &c->capacity, c->count + 1, sizeof *c->items) != 0) {
    c->status = px_fail(c->err, PX_NO_MEMORY, "no memory");
    return;
  }
  c->items[c->count++] = (px_named_tensor){
      .name = px_arena_strdup(&s->arena, name),
      .tensor = {.view = view, .rows = vector ? 1 : rows, .cols = cols, .dims = vector ? 1 : 2,
                 .permute_heads = s->is_gguf && s->config.gguf_permuted ? permute_heads : 0, .transpose = transpose}};
}

static void want_norm(collector *c, const char *hf, const char *gguf, int layer, int64_t dim) {
  want(c, hf, gguf, layer, ".weight", 0, dim, 0);
  if (c->source->config.norm == PX_NORM_LAYER) want(c, hf, gguf, layer, ".bias", 0, dim, 0);
}

static void want_linear(collector *c, const char *hf, const char *gguf, int layer, int64_t out, int64_t in, bool bias, int32_t permute) {
  bool in_out = c->source->config.conv1d;
  want(c, hf, gguf, layer, ".weight", in_out ? in : out, in_out ? out : in, permute);
  if (bias) want(c, hf, gguf, layer, ".bias", 0, out, permute);
}

static void want_layer(collector *c, int l) {
  const px_config *g = &c->source->config;
  const px_names *h = g->hf, *f = g->gguf;
  int64_t a = (int64_t)g->heads * g->head_dim, kv = (int64_t)g->kv_heads * g->head_dim;
  want_norm(c, h->norm1, f->norm1, l, g->dim);
  if (h->qkv) {
    want_linear(c, h->qkv, f->qkv, l, a + 2 * kv, g->dim, g->qkv_bias, 0);
  } else {
    want_linear(c, h->q, f->q, l, a, g->dim, g->qkv_bias, g->heads);
    want_linear(c, h->k, f->k, l, kv, g->dim, g->qkv_bias, g->kv_heads);
    want_linear(c, h->v, f->v, l, kv, g->dim, g->qkv_bias, 0);
  }
  if (g->qk_norm) {
    want(c, h->q_norm, f->q_norm, l, ".weight", 0, g->head_dim, 0);
    want(c, h->k_norm, f->k_norm, l, ".weight", 0, g->head_dim, 0);
  }
  want_linear(c, h->o, f->o, l, g->dim, a, g->o_bias, 0);
  want_norm(c, h->norm2, f->norm2, l, g->dim);
  if (g->gated) want_linear(c, h->gate, f->gate, l, g->ffn_dim, g->dim, g->mlp_bias, 0);
  want_linear(c, h->up, f->up, l, g->ffn_dim, g->dim, g->mlp_bias, 0);
  want_linear(c, h->down, f->down, l, g->dim, g->ffn_dim, g->mlp_bias, 0);
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const px_named_tensor *)a)->name, ((const px_named_tensor *)b)->name);
}

px_status px_source_tensors(px_source *s, px_named_tensor **out, size_t *count, px_error *err) {
  const px_config *g = &s->config;
  collector c = {.source = s, .err = err};
  want(&c, g->hf->embed, g->gguf->embed, -1, ".weight", g->vocab, g->dim, 0);
  if (g->learned_positions) want(&c, g->hf->positions, g->gguf->positions, -1, ".weight", g->context, g->dim, 0);
  for (int l = 0; l < g->layers; l++) want_layer(&c, l);
  want_norm(&c, g->hf->final_norm, g->gguf->final_norm, -1, g->dim);
  if (!g->tied) want(&c, g->hf->head, g->gguf->head, -1, ".weight", g->vocab, g->dim, 0);
  if (c.status == PX_OK) {
    px_named_tensor *copy = px_arena_alloc(&s->arena, c.count, sizeof *copy);
    if (copy) {
      memcpy(copy, c.items, c.count * sizeof *copy);
      qsort(copy, c.count, sizeof *copy, by_name);
      *out = copy;
      *count = c.count;
    } else {
      c.status = px_fail(err, PX_NO_MEMORY, "no memory");
    }
  }
  free(c.items);
  return c.status;
}

/* Row of the file that holds canonical row r of an interleaved q or k matrix: within a head, canonical row j * half + i
 * (half j, pair i) stands at 2 i + j. */
static int64_t file_row(const px_canonical *t, int64_t r, int64_t rows) {
  if (!t->permute_heads) return r;
  int64_t head_dim = rows / t->permute_heads, half = head_dim / 2, in_head = r % head_dim;
  return r - in_head + 2 * (in_head % half) + in_head / half;
}

float px_canonical_value(const px_canonical *t, int64_t index) {
  int64_t r = index / t->cols, c = index % t->cols, at;
  if (t->dims == 1)
    at = file_row(t, index, t->cols);
  else if (t->transpose)
    at = c * t->rows + r;
  else
    at = file_row(t, r, t->rows) * t->cols + c;
  const px_dtype_info *info = px_dtype_get(t->view->dtype);
  int64_t block = at / info->block_elements;
  float values[256];
  px_dequant_args args = {.src_type = t->view->dtype, .dst_type = PX_F32, .count = info->block_elements,
                          .src = (const char *)t->view->data + block * info->block_bytes, .dst = values};
  px_dequant_cpu(&args);
  return values[at % info->block_elements];
}

/* `count` elements from element `at` of the file on, where a block begins. */
static void decode(const px_canonical *t, int64_t at, int64_t count, float *out) {
  const px_dtype_info *info = px_dtype_get(t->view->dtype);
  px_dequant_args args = {.src_type = t->view->dtype, .dst_type = PX_F32, .count = count,
                          .src = (const char *)t->view->data + at / info->block_elements * info->block_bytes, .dst = out};
  px_dequant_cpu(&args);
}

static px_status transposed(const px_canonical *t, float *out, px_error *err) {
  float *file = malloc((size_t)(t->rows * t->cols) * sizeof *file);
  if (!file) return px_fail(err, PX_NO_MEMORY, "no memory to turn tensor %s round", t->view->name);
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < t->cols; c++) decode(t, c * t->rows, t->rows, file + c * t->rows);
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < t->rows; r++)
    for (int64_t c = 0; c < t->cols; c++) out[r * t->cols + c] = file[c * t->rows + r];
  free(file);
  return PX_OK;
}

px_status px_canonical_rows(const px_canonical *t, int64_t first, int64_t count, float *out, px_error *err) {
  if (t->transpose) {
    if (first != 0 || count != t->rows) return px_fail(err, PX_INVALID, "tensor %s is read whole or not at all", t->view->name);
    return transposed(t, out, err);
  }
  if (t->dims == 1) {
    if (!t->permute_heads) decode(t, 0, t->cols, out);
    for (int64_t i = 0; t->permute_heads && i < t->cols; i++) out[i] = px_canonical_value(t, i);
    return PX_OK;
  }
#pragma omp parallel for schedule(static)
  for (int64_t r = first; r < first + count; r++) decode(t, file_row(t, r, t->rows) * t->cols, t->cols, out + (r - first) * t->cols);
  return PX_OK;
}
