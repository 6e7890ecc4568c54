/* SPDX-License-Identifier: MIT
 * After a forward pass that kept every layer's queries and log-sum-exps, attention runs again over the virtual tokens alone
 * (no own keys): exp(their lse - lse of all) is their mass. Their values are one-hot then, so that the output is each one's
 * share of that mass, head_dim of them at a time. */
#include "train/look_inside.h"

#include <math.h>
#include <stdlib.h>

#include "train/batches.h"

enum { LOOK_TOKENS = 512 };

typedef struct looker {
  const px_model *model;
  px_backend *be;
  const px_look_options *options;
  px_batches batches;
  px_buffers buffers;
  const px_tune *tune;
  int32_t chunks;          /* one-hot passes a layer */
  px_kv_segment *segments; /* backend memory [layers][chunks] */
  int32_t *lens;           /* [layers] virtual tokens in the layer, host */
  void *one_hot;           /* backend memory [chunks][P, width] of the model's type */
  int32_t *no_keys;        /* backend memory [seqs + 1]: offsets of zero own keys */
  float *lse;              /* backend memory [heads, tokens] */
  void *host;              /* [tokens, widest] of the model's type */
  float *prefix_lse, *all_lse;
  bool *selected;          /* [tokens] the query counts */
  px_look *out;
} looker;

static float element(const void *p, px_dtype type, int64_t i) {
  return type == PX_F32 ? ((const float *)p)[i] : px_bf16_to_f32(((const uint16_t *)p)[i]);
}

static int64_t q_width(const px_config *c) { return (int64_t)c->heads * c->head_dim; }
static int64_t kv_width(const px_config *c) { return (int64_t)c->kv_heads * c->head_dim; }

/* Chunk n of the one-hot values: of a layer's virtual tokens from n * head_dim on, the t-th has a one at dimension
 * t - n * head_dim of every head. */
static px_status make_one_hot(looker *w, px_error *err) {
  int32_t tokens = w->tune->tokens;
  const px_config *c = px_model_config(w->model);
  px_dtype type = w->model->dtype;
  int64_t width = kv_width(c), count = w->chunks * tokens * width;
  size_t bytes = px_dtype_bytes(type, (size_t)count);
  void *host = px_calloc(bytes + 1, 1);
  w->one_hot = px_backend_alloc(w->be, bytes);
  if (!host || !w->one_hot) {
    free(host);
    px_status status = px_backend_status(w->be, err);
    return status != PX_OK ? status : px_fail(err, PX_NO_MEMORY, "no memory");
  }
  for (int32_t t = 0; t < tokens; t++)
    for (int32_t g = 0; g < c->kv_heads; g++) {
      int64_t at = ((int64_t)(t / c->head_dim) * tokens + t) * width + (int64_t)g * c->head_dim + t % c->head_dim;
      if (type == PX_F32)
        ((float *)host)[at] = 1;
      else
        ((uint16_t *)host)[at] = px_f32_to_bf16(1);
    }
  px_backend_write(w->be, w->one_hot, host, bytes);
  free(host);
  return px_backend_status(w->be, err);
}

/* The segments that the forward pass reads, with one-hot values instead of theirs. */
static px_status make_segments(looker *w, px_arena *arena, px_error *err) {
  int32_t layers = px_model_config(w->model)->layers;
  size_t chunk_bytes = px_dtype_bytes(w->model->dtype, (size_t)(w->tune->tokens * kv_width(px_model_config(w->model))));
  const px_kv_segment *own = w->tune->segments_host;
  px_kv_segment *host = px_arena_alloc(arena, (size_t)(layers * w->chunks), sizeof *host);
  w->lens = px_arena_alloc(arena, (size_t)layers, sizeof *w->lens);
  w->segments = px_backend_alloc(w->be, (size_t)(layers * w->chunks) * sizeof *host);
  if (!host || !w->lens || !w->segments) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int32_t l = 0; l < layers; l++) {
    w->lens[l] = own[l].len;
    w->out->first[l] = w->tune->tokens - own[l].len;
    for (int32_t n = 0; n < w->chunks; n++)
      host[l * w->chunks + n] = (px_kv_segment){
          .k = own[l].k, .v = (char *)w->one_hot + (size_t)n * chunk_bytes, .stride = own[l].stride, .len = own[l].len};
  }
  px_backend_write(w->be, w->segments, host, (size_t)(layers * w->chunks) * sizeof *host);
  return px_backend_status(w->be, err);
}

static px_status open_looker(looker *w, const px_rows *rows, px_arena *arena, px_error *err) {
  const px_config *c = px_model_config(w->model);
  int32_t virtual = w->tune->tokens;
  w->chunks = (virtual + c->head_dim - 1) / c->head_dim;
  PX_TRY(px_batches_open(rows, &(px_batch_options){.batch_tokens = LOOK_TOKENS}, &w->batches, err));
  px_batch_extent x = px_batches_walk(&w->batches, (px_cursor){0}, px_batches_per_epoch(&w->batches, 0));
  px_plan_request request = {.dtype = w->model->dtype, .tokens = x.most_tokens, .seqs = x.most_rows, .labels = x.most_labels,
                             .positions = virtual + (int64_t)rows->longest, .segment_rows = virtual,
                             .logit_rows = 1, .backward = true, .attached = w->tune->hooks.attached};
  PX_TRY(px_buffers_open(c, w->be, &request, &w->buffers, err));
  size_t lse_count = (size_t)(c->heads * x.most_tokens);
  w->lse = px_backend_alloc(w->be, lse_count * sizeof(float));
  w->no_keys = px_backend_alloc(w->be, ((size_t)x.most_rows + 1) * sizeof *w->no_keys);
  w->host = px_arena_alloc(arena, (size_t)((x.most_tokens > virtual ? x.most_tokens : virtual) * q_width(c)), sizeof(float));
  w->prefix_lse = px_arena_alloc(arena, lse_count, sizeof(float));
  w->all_lse = px_arena_alloc(arena, lse_count, sizeof(float));
  w->selected = px_arena_alloc(arena, (size_t)x.most_tokens, sizeof *w->selected);
  PX_TRY(px_backend_status(w->be, err));
  if (!w->host || !w->prefix_lse || !w->all_lse || !w->selected) return px_fail(err, PX_NO_MEMORY, "no memory");
  px_backend_zero(w->be, w->no_keys, ((size_t)x.most_rows + 1) * sizeof *w->no_keys);
  PX_TRY(make_one_hot(w, err));
  return make_segments(w, arena, err);
}

static void close_looker(looker *w) {
  px_backend_free(w->be, w->lse);
  px_backend_free(w->be, w->no_keys);
  px_backend_free(w->be, w->one_hot);
  px_backend_free(w->be, w->segments);
  px_batches_close(&w->batches);
  px_buffers_close(&w->buffers, w->be);
}

/* The queries whose prediction scores, or all. */
static int64_t select_queries(looker *w) {
  const px_batch *b = &w->batches.batch;
  int64_t count = 0;
  for (int32_t t = 0; t < b->tokens; t++) w->selected[t] = w->options->all_tokens;
  for (int32_t i = 0; i < b->labels; i++) w->selected[b->label_rows[i]] = true;
  for (int32_t t = 0; t < b->tokens; t++) count += w->selected[t];
  return count;
}

/* What an even spread over the visible keys would give the virtual tokens of a layer. */
static void add_even(looker *w, int layer) {
  const px_batch *b = &w->batches.batch;
  int32_t window = px_model_config(w->model)->windows[layer];
  for (int32_t s = 0; s < b->seqs; s++)
    for (int32_t t = b->offsets[s]; t < b->offsets[s + 1]; t++) {
      int32_t own = t - b->offsets[s] + 1;
      if (window && own > window) own = window;
      if (w->selected[t]) w->out->even[layer] += (double)w->lens[layer] / (double)(w->lens[layer] + own);
    }
}

/* The summed length of the heads' vectors in [rows, kv_heads, head_dim], over the number of heads. */
static double lengths(looker *w, const void *from, int64_t rows) {
  const px_config *c = px_model_config(w->model);
  double sum = 0;
  px_backend_read(w->be, w->host, from, px_dtype_bytes(w->model->dtype, (size_t)(rows * kv_width(c))));
  for (int64_t i = 0; i < rows * c->kv_heads; i++) {
    double squares = 0;
    for (int32_t d = 0; d < c->head_dim; d++) {
      double x = (double)element(w->host, w->model->dtype, i * c->head_dim + d);
      squares += x * x;
    }
    sum += sqrt(squares);
  }
  return sum / c->kv_heads;
}

/* w->host holds the shares of the layer's virtual tokens from `first` on, [tokens, heads, head_dim]. */
static void add_shares(looker *w, int layer, int32_t first) {
  const px_config *c = px_model_config(w->model);
  px_look *out = w->out;
  int64_t tokens = w->batches.batch.tokens;
  int32_t count = w->lens[layer] - first < c->head_dim ? w->lens[layer] - first : c->head_dim;
  for (int64_t t = 0; t < tokens; t++)
    for (int32_t h = 0; w->selected[t] && h < c->heads; h++) {
      double mass = fmin(1, exp((double)w->prefix_lse[h * tokens + t] - (double)w->all_lse[h * tokens + t]));
      if (first == 0) out->mass[(int64_t)layer * c->heads + h] += mass;
      for (int32_t i = 0; i < count; i++) {
        double share = mass * (double)element(w->host, w->model->dtype, (t * c->heads + h) * c->head_dim + i);
        int64_t slot = (int64_t)layer * out->tokens + out->first[layer] + first + i;
        out->slot_mass[slot] += share / c->heads;
        out->slot_peak[slot] = fmax(out->slot_peak[slot], share);
      }
    }
}

static void look_at_layer(looker *w, px_stack *s, int layer) {
  const px_config *c = px_model_config(w->model);
  const px_layer_saves *b = &w->buffers.layers[layer];
  int64_t tokens = w->batches.batch.tokens;
  size_t lse_bytes = (size_t)(tokens * c->heads) * sizeof(float);
  w->out->norms[layer].real_key += lengths(w, b->k, tokens);
  w->out->norms[layer].real_value += lengths(w, b->v, tokens);
  if (w->lens[layer] == 0) return;
  add_even(w, layer);
  px_backend_read(w->be, w->all_lse, b->lse, lse_bytes);
  for (int32_t n = 0; n < w->chunks; n++) {
    px_attn_fwd_args a = {.shape = px_stack_attention(s, layer), .q = b->q, .k = b->k, .v = b->v, .q_stride = q_width(c),
                          .k_stride = kv_width(c), .v_stride = kv_width(c), .o_stride = q_width(c), .o = w->buffers.dheads,
                          .lse = w->lse};
    a.shape.mask = PX_MASK_FULL;
    a.shape.window = 0;
    a.shape.k_rows = 0;
    a.shape.k_offsets = w->no_keys;
    a.shape.segments = w->segments + layer * w->chunks + n;
    a.shape.segment_count = 1;
    a.shape.segment_rows = w->lens[layer];
    px_op_attn_fwd(w->be, &a);
    if (n == 0) px_backend_read(w->be, w->prefix_lse, w->lse, lse_bytes);
    px_backend_read(w->be, w->host, w->buffers.dheads, px_dtype_bytes(w->model->dtype, (size_t)(tokens * q_width(c))));
    add_shares(w, layer, n * c->head_dim);
  }
}

static px_status look_at_rows(looker *w, px_error *err) {
  px_look *out = w->out;
  px_stack s = {.be = w->be, .config = px_model_config(w->model), .weights = &w->model->weights, .hooks = &w->tune->hooks, .buffers = &w->buffers};
  px_cursor cursor = {0};
  uint64_t batch_count = px_batches_per_epoch(&w->batches, 0);
  for (uint64_t i = 0; i < batch_count && (w->options->most_tokens <= 0 || out->real_tokens < w->options->most_tokens); i++) {
    if (w->options->cancelled && w->options->cancelled(w->options->user)) return px_fail(err, PX_CANCELLED, "stopped");
    PX_TRY(px_batches_next(&w->batches, &cursor, w->tune->tokens, 0, err));
    out->rows += w->batches.batch.seqs;
    out->real_tokens += w->batches.batch.tokens;
    out->queries += select_queries(w);
    PX_TRY(px_stack_begin(&s, &w->batches.batch, err));
    px_stack_fwd(&s);
    for (int layer = 0; layer < out->layers; layer++) look_at_layer(w, &s, layer);
    PX_TRY(px_backend_status(w->be, err));
  }
  return out->queries ? PX_OK : px_fail(err, PX_BAD_FILE, "no token of these rows has a loss");
}

/* Sums to means; a mass that is no number has no meaning anywhere. */
static px_status finish(looker *w, px_error *err) {
  px_look *out = w->out;
  for (int l = 0; l < out->layers; l++) {
    double sum = 0;
    out->even[l] /= (double)out->queries;
    out->norms[l].real_key /= (double)out->real_tokens;
    out->norms[l].real_value /= (double)out->real_tokens;
    for (int h = 0; h < out->heads; h++) sum += out->mass[l * out->heads + h] /= (double)out->queries;
    for (int t = 0; t < out->tokens; t++) out->slot_mass[l * out->tokens + t] /= (double)out->queries;
    if (!isfinite(sum)) return px_fail(err, PX_NOT_FINITE, "the attention of layer %d is not finite: try --dtype f32", l);
    if (w->lens[l] == 0) continue;
    out->norms[l].prefix_key = lengths(w, w->tune->segments_host[l].k, w->lens[l]) / w->lens[l];
    out->norms[l].prefix_value = lengths(w, w->tune->segments_host[l].v, w->lens[l]) / w->lens[l];
  }
  return px_backend_status(w->be, err);
}

px_status px_look_inside(const px_model *model, px_backend *be, const px_rows *rows, const px_tune *tune, const px_look_options *options,
                         px_arena *arena, px_look *out, px_error *err) {
  const px_config *c = px_model_config(model);
  size_t layers = (size_t)c->layers, tokens = (size_t)tune->tokens;
  *out = (px_look){.layers = c->layers, .heads = c->heads, .tokens = tune->tokens};
  out->mass = px_arena_alloc(arena, layers * (size_t)c->heads, sizeof(double));
  out->slot_mass = px_arena_alloc(arena, layers * tokens, sizeof(double));
  out->slot_peak = px_arena_alloc(arena, layers * tokens, sizeof(double));
  out->even = px_arena_alloc(arena, layers, sizeof(double));
  out->norms = px_arena_alloc(arena, layers, sizeof *out->norms);
  out->first = px_arena_alloc(arena, layers, sizeof *out->first);
  if (!out->mass || !out->slot_mass || !out->slot_peak || !out->even || !out->norms || !out->first)
    return px_fail(err, PX_NO_MEMORY, "no memory");
  px_arena scratch = {0};
  looker w = {.model = model, .be = be, .options = options, .tune = tune, .out = out};
  px_status status = open_looker(&w, rows, &scratch, err);
  if (status == PX_OK) status = look_at_rows(&w, err);
  if (status == PX_OK) status = finish(&w, err);
  close_looker(&w);
  px_arena_free(&scratch);
  return status;
}
