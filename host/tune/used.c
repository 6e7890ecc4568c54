/* SPDX-License-Identifier: MIT */
#include "tune/used.h"

#include <stdlib.h>

enum { PLAIN_SET = -1 }; /* the model's own weights */

/* The tables by adapter id, made anew when one comes: small beside what they point to. */
typedef struct tables {
  px_kv_segment *segments;  /* backend memory [layers * count] */
  px_lora_matrix *matrices; /* backend memory [layers * PX_SITES * 2 * count] */
  const float **vectors;    /* backend memory [layers * PX_SITES * count] */
  px_low_rank *low_rank;    /* [layers * PX_SITES] */
  px_scaling *scales;
  px_hooks hooks;
} tables;

struct px_used {
  const px_model *model;
  px_backend *be;
  px_tune **tunes;
  int32_t count;
  tables t;
  px_hooks own; /* the hooks that were asked for last, with their weights */
};

px_status px_used_open(const px_model *model, px_backend *be, px_used **out, px_error *err) {
  *out = px_calloc(1, sizeof **out);
  if (!*out) return px_fail(err, PX_NO_MEMORY, "no memory");
  **out = (px_used){.model = model, .be = be};
  return PX_OK;
}

static void free_tables(px_used *u, tables *t) {
  px_backend_free(u->be, t->segments);
  px_backend_free(u->be, t->matrices);
  px_backend_free(u->be, t->vectors);
  free(t->low_rank);
  free(t->scales);
  *t = (tables){0};
}

void px_used_close(px_used *u) {
  if (!u) return;
  for (int32_t i = 0; i < u->count; i++) px_tune_close(u->tunes[i]);
  free_tables(u, &u->t);
  free(u->tunes);
  free(u);
}

/* ---- the tables ---- */

static px_status no_memory(px_used *u, px_error *err) {
  px_status status = px_backend_status(u->be, err);
  return status != PX_OK ? status : px_fail(err, PX_NO_MEMORY, "no memory for an adapter");
}

static px_status make_segments(px_used *u, tables *t, px_error *err) {
  int layers = px_model_config(u->model)->layers;
  size_t bytes = (size_t)layers * (size_t)u->count * sizeof(px_kv_segment);
  for (int32_t a = 0; a < u->count; a++) t->hooks.segment_rows += u->tunes[a]->tokens;
  if (t->hooks.segment_rows == 0) return PX_OK;
  px_kv_segment *host = px_calloc(1, bytes);
  t->segments = px_backend_alloc(u->be, bytes);
  if (!host || !t->segments) {
    free(host);
    return no_memory(u, err);
  }
  for (int l = 0; l < layers; l++)
    for (int32_t a = 0; a < u->count; a++)
      if (u->tunes[a]->segments_host) host[l * u->count + a] = u->tunes[a]->segments_host[l];
  px_backend_write(u->be, t->segments, host, bytes);
  free(host);
  t->hooks.segments = t->segments;
  return PX_OK;
}

/* The matrices of all adapters at a place, side by side. A and B of an adapter without any are empty. */
static px_status make_low_rank(px_used *u, tables *t, px_error *err) {
  int places = px_model_config(u->model)->layers * PX_SITES;
  size_t count = (size_t)u->count, bytes = 2 * (size_t)places * count * sizeof(px_lora_matrix);
  bool any = false;
  for (int32_t a = 0; a < u->count; a++) any |= u->tunes[a]->hooks.low_rank != NULL;
  if (!any) return PX_OK;
  px_lora_matrix *host = px_calloc(1, bytes);
  t->low_rank = px_calloc((size_t)places, sizeof *t->low_rank);
  t->matrices = px_backend_alloc(u->be, bytes);
  if (!host || !t->low_rank || !t->matrices) {
    free(host);
    return no_memory(u, err);
  }
  for (int p = 0; p < places; p++) {
    size_t at = 2 * (size_t)p * count;
    for (int32_t a = 0; a < u->count; a++) {
      const px_low_rank *l = u->tunes[a]->hooks.low_rank ? &u->tunes[a]->hooks.low_rank[p] : NULL;
      if (!l || !l->a) continue;
      px_backend_read(u->be, &host[at + (size_t)a], l->a, sizeof *host);
      px_backend_read(u->be, &host[at + count + (size_t)a], l->b, sizeof *host);
      if (l->rank > t->low_rank[p].rank) t->low_rank[p].rank = l->rank;
    }
    if (t->low_rank[p].rank) {
      t->low_rank[p].a = t->matrices + at;
      t->low_rank[p].b = t->matrices + at + count;
    }
    int32_t *most = &t->hooks.attached.rank[p % PX_SITES];
    if (t->low_rank[p].rank > *most) *most = t->low_rank[p].rank;
  }
  px_backend_write(u->be, t->matrices, host, bytes);
  free(host);
  t->hooks.low_rank = t->low_rank;
  return PX_OK;
}

static px_status make_scales(px_used *u, tables *t, px_error *err) {
  int places = px_model_config(u->model)->layers * PX_SITES;
  size_t count = (size_t)u->count, bytes = (size_t)places * count * sizeof(float *);
  bool any = false;
  for (int32_t a = 0; a < u->count; a++) any |= u->tunes[a]->hooks.scales != NULL;
  if (!any) return PX_OK;
  const float **host = px_calloc(1, bytes);
  t->scales = px_calloc((size_t)places, sizeof *t->scales);
  t->vectors = px_backend_alloc(u->be, bytes);
  if (!host || !t->scales || !t->vectors) {
    free(host);
    return no_memory(u, err);
  }
  for (int p = 0; p < places; p++) {
    size_t at = (size_t)p * count;
    for (int32_t a = 0; a < u->count; a++) {
      const px_scaling *s = u->tunes[a]->hooks.scales ? &u->tunes[a]->hooks.scales[p] : NULL;
      if (!s || !s->s) continue;
      px_backend_read(u->be, &host[at + (size_t)a], s->s, sizeof *host);
      t->scales[p].s = t->vectors + at;
      t->hooks.attached.scaled[p % PX_SITES] = true;
    }
  }
  px_backend_write(u->be, t->vectors, host, bytes);
  free(host);
  t->hooks.scales = t->scales;
  return PX_OK;
}

px_status px_used_add(px_used *u, const px_adapter *adapter, int32_t *id, px_error *err) {
  px_tune **grown = realloc(u->tunes, (size_t)(u->count + 1) * sizeof *grown);
  if (!grown) return px_fail(err, PX_NO_MEMORY, "no memory");
  u->tunes = grown;
  PX_TRY(px_tune_open_adapter(u->model, u->be, adapter, false, &grown[u->count], err));
  u->count++;
  tables t = {.hooks = {.adapters = u->count}};
  px_status status = make_segments(u, &t, err);
  if (status == PX_OK) status = make_low_rank(u, &t, err);
  if (status == PX_OK) status = make_scales(u, &t, err);
  if (status == PX_OK) status = px_backend_status(u->be, err);
  if (status != PX_OK) {
    free_tables(u, &t);
    px_tune_close(u->tunes[--u->count]);
    return status;
  }
  free_tables(u, &u->t);
  u->t = t;
  *id = u->count - 1;
  return PX_OK;
}

/* ---- asking ---- */

int32_t px_used_count(const px_used *u) { return u->count; }
int32_t px_used_tokens(const px_used *u, int32_t id) { return id < 0 ? 0 : u->tunes[id]->tokens; }
int32_t px_used_set(const px_used *u, int32_t id) { return id >= 0 && u->tunes[id]->hooks.weights ? id : PLAIN_SET; }

const px_hooks *px_used_hooks(px_used *u, int32_t set) {
  if (u->count == 0) return NULL;
  u->own = u->t.hooks;
  if (set >= 0) u->own.weights = u->tunes[set]->hooks.weights;
  return &u->own;
}
