/* SPDX-License-Identifier: MIT */
#include "train/near_words.h"

#include <math.h>
#include <stdlib.h>

enum { WORDS_AT_ONCE = 1024 };

/* Vectors that look for their nearest words, and the best found so far. */
typedef struct search {
  int64_t width;
  int32_t count, top, vocab;
  const float *rows; /* [count, width] */
  px_near_word *words;
  double *usual;
} search;

static double length(const float *x, int64_t width) {
  double squares = 0;
  for (int64_t i = 0; i < width; i++) squares += (double)x[i] * (double)x[i];
  return sqrt(squares);
}

static void begin(search *s) {
  for (int64_t i = 0; i < (int64_t)s->count * s->top; i++) s->words[i] = (px_near_word){-1, -2};
  for (int32_t r = 0; r < s->count; r++) s->usual[r] = 0;
}

static void offer(px_near_word *best, int32_t top, px_near_word word) {
  int32_t at = top;
  while (at > 0 && word.cosine > best[at - 1].cosine) at--;
  for (int32_t i = top - 1; i > at; i--) best[i] = best[i - 1];
  if (at < top) best[at] = word;
}

/* Words [first, first + count) have the vectors of `chunk` [count, width]. */
static void take(search *s, const float *chunk, int32_t first, int32_t count, double *lengths) {
  for (int32_t v = 0; v < count; v++) lengths[v] = length(chunk + v * s->width, s->width);
#pragma omp parallel for
  for (int32_t r = 0; r < s->count; r++) {
    const float *row = s->rows + r * s->width;
    double own = length(row, s->width);
    for (int32_t v = 0; own > 0 && v < count; v++) {
      const float *x = chunk + v * s->width;
      double dot = 0;
      for (int64_t i = 0; i < s->width; i++) dot += (double)x[i] * (double)row[i];
      double cosine = lengths[v] > 0 ? dot / (own * lengths[v]) : 0;
      s->usual[r] += cosine / s->vocab;
      offer(s->words + (int64_t)r * s->top, s->top, (px_near_word){first + v, (float)cosine});
    }
  }
}

static void to_floats(const void *from, px_dtype type, int64_t count, float *out) {
  for (int64_t i = 0; i < count; i++) out[i] = type == PX_F32 ? ((const float *)from)[i] : px_bf16_to_f32(((const uint16_t *)from)[i]);
}

/* Backend memory of the model's type as floats. */
static void read_floats(px_backend *be, px_dtype type, const void *from, int64_t count, void *raw, float *out) {
  px_backend_read(be, raw, from, px_dtype_bytes(type, (size_t)count));
  to_floats(raw, type, count, out);
}

px_status px_near_embeddings(const px_model *model, px_backend *be, const float *rows, int32_t count, int32_t top,
                             px_near_word *words, double *usual, px_error *err) {
  const px_config *c = px_model_config(model);
  const px_weight *embed = &model->weights.embed;
  search s = {.width = c->dim, .count = count, .top = top, .vocab = c->vocab, .rows = rows, .words = words, .usual = usual};
  px_arena arena = {0};
  void *raw = px_arena_alloc(&arena, (size_t)WORDS_AT_ONCE * (size_t)c->dim, sizeof(float));
  float *chunk = px_arena_alloc(&arena, (size_t)WORDS_AT_ONCE * (size_t)c->dim, sizeof *chunk);
  double *lengths = px_arena_alloc(&arena, WORDS_AT_ONCE, sizeof *lengths);
  px_status status = raw && chunk && lengths ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory");
  begin(&s);
  for (int32_t first = 0; status == PX_OK && first < c->vocab; first += WORDS_AT_ONCE) {
    int32_t n = c->vocab - first < WORDS_AT_ONCE ? c->vocab - first : WORDS_AT_ONCE;
    const char *from = (const char *)embed->data + px_dtype_bytes(embed->dtype, (size_t)((int64_t)first * c->dim));
    read_floats(be, embed->dtype, from, (int64_t)n * c->dim, raw, chunk);
    status = px_backend_status(be, err);
    if (status == PX_OK) take(&s, chunk, first, n, lengths);
  }
  px_arena_free(&arena);
  return status;
}

/* What the keys of a chunk of words are computed in. */
typedef struct keys {
  const px_model *model;
  px_backend *be;
  int32_t *ids, *positions;  /* backend memory [WORDS_AT_ONCE] */
  int32_t *host_ids;
  void *memory, *x, *n, *k_raw, *k; /* backend memory */
  void *raw;
  float *chunk;              /* host [WORDS_AT_ONCE, width] */
  double *lengths;
} keys;

static px_status open_keys(keys *k, px_arena *arena, px_error *err) {
  const px_config *c = px_model_config(k->model);
  size_t width = (size_t)c->kv_heads * (size_t)c->head_dim, dim_bytes = px_dtype_bytes(k->model->dtype, (size_t)WORDS_AT_ONCE * (size_t)c->dim);
  size_t key_bytes = px_dtype_bytes(k->model->dtype, WORDS_AT_ONCE * width), id_bytes = WORDS_AT_ONCE * sizeof *k->ids;
  k->host_ids = px_arena_alloc(arena, WORDS_AT_ONCE, sizeof *k->host_ids);
  k->raw = px_arena_alloc(arena, WORDS_AT_ONCE * width, sizeof(float));
  k->chunk = px_arena_alloc(arena, WORDS_AT_ONCE * width, sizeof *k->chunk);
  k->lengths = px_arena_alloc(arena, WORDS_AT_ONCE, sizeof *k->lengths);
  if (!k->host_ids || !k->raw || !k->chunk || !k->lengths) return px_fail(err, PX_NO_MEMORY, "no memory");
  char *at = k->memory = px_backend_alloc(k->be, 2 * (id_bytes + dim_bytes + key_bytes));
  if (!at) return px_backend_status(k->be, err);
  k->ids = (int32_t *)(void *)at;
  k->positions = k->ids + WORDS_AT_ONCE;
  k->x = at + 2 * id_bytes;
  k->n = (char *)k->x + dim_bytes;
  k->k_raw = (char *)k->n + dim_bytes;
  k->k = (char *)k->k_raw + key_bytes;
  return PX_OK;
}

/* Keys of words [first, first + count) before the rotary embedding, into k->chunk. */
static px_status word_keys(keys *k, int32_t first, int32_t count, int32_t position, px_error *err) {
  const px_config *c = px_model_config(k->model);
  const px_weights *w = &k->model->weights;
  const px_layer_weights *layer = &w->layers[0];
  int64_t width = (int64_t)c->kv_heads * c->head_dim;
  for (int32_t i = 0; i < count; i++) k->host_ids[i] = first + i;
  px_backend_write(k->be, k->ids, k->host_ids, (size_t)count * sizeof *k->ids);
  for (int32_t i = 0; i < count; i++) k->host_ids[i] = position;
  px_backend_write(k->be, k->positions, k->host_ids, (size_t)count * sizeof *k->ids);
  px_op_embed_fwd(k->be, &(px_embed_fwd_args){.dtype = w->dtype, .table_type = w->dtype, .rows = count, .dim = c->dim, .table_rows = c->vocab,
                                              .position_rows = c->learned_positions ? c->context : 0, .ids = k->ids, .positions = k->positions,
                                              .table = w->embed.data, .position_table = w->positions.data, .y = k->x});
  px_op_norm_fwd(k->be, &(px_norm_fwd_args){.kind = c->norm, .dtype = w->dtype, .weight_type = PX_F32, .rows = count, .heads = 1,
                                            .dim = c->dim, .eps = (float)c->norm_eps, .x = k->x, .weight = layer->norm1.weight,
                                            .bias = layer->norm1.bias, .y = k->n, .x_stride = c->dim, .y_stride = c->dim});
  px_op_gemm(k->be, &(px_gemm_args){.m = count, .n = width, .k = c->dim, .a = k->n, .lda = c->dim, .b = layer->k.data, .ldb = layer->k.ld,
                                    .trans_b = layer->k.layout == PX_LAYOUT_OUT_IN, .c = c->qk_norm ? k->k_raw : k->k, .ldc = width,
                                    .bias = layer->k.bias, .bias_type = layer->k.dtype, .type = layer->k.dtype, .c_type = layer->k.dtype,
                                    .b_frozen = true});
  if (c->qk_norm)
    px_op_norm_fwd(k->be, &(px_norm_fwd_args){.kind = PX_NORM_RMS, .dtype = w->dtype, .weight_type = PX_F32, .rows = count,
                                              .heads = c->kv_heads, .dim = c->head_dim, .eps = (float)c->norm_eps, .x = k->k_raw,
                                              .x_stride = width, .weight = layer->k_norm.weight, .y = k->k, .y_stride = width});
  read_floats(k->be, w->dtype, k->k, count * width, k->raw, k->chunk);
  return px_backend_status(k->be, err);
}

static px_status search_keys(keys *k, search *s, int32_t position, px_error *err) {
  begin(s);
  for (int32_t first = 0; first < s->vocab; first += WORDS_AT_ONCE) {
    int32_t n = s->vocab - first < WORDS_AT_ONCE ? s->vocab - first : WORDS_AT_ONCE;
    PX_TRY(word_keys(k, first, n, position, err));
    take(s, k->chunk, first, n, k->lengths);
  }
  return PX_OK;
}

/* The rotary embedding undone: it turns all vectors of a position alike, so that cosines stay what they are and the
 * vocabulary need not be turned to every position. */
static void turn_back(const px_config *c, int32_t tokens, const float *cosines, const float *sines, float *rows) {
  int32_t half = c->head_dim / 2;
  for (int32_t t = 0; t < tokens; t++)
    for (int32_t g = 0; g < c->kv_heads; g++)
      for (int32_t i = 0; i < half; i++) {
        float *a = rows + ((int64_t)t * c->kv_heads + g) * c->head_dim + i, *b = a + half, x = *a, y = *b;
        float cosine = cosines[t * half + i], sine = sines[t * half + i];
        *a = x * cosine + y * sine;
        *b = y * cosine - x * sine;
      }
}

px_status px_near_first_keys(const px_model *model, px_backend *be, const float *values, int32_t tokens, int32_t top, px_near_word *words,
                             double *usual, px_error *err) {
  const px_config *c = px_model_config(model);
  int64_t width = (int64_t)c->kv_heads * c->head_dim;
  px_arena arena = {0};
  keys k = {.model = model, .be = be};
  float *rows = px_arena_alloc(&arena, (size_t)(tokens * width), sizeof *rows);
  size_t table = (size_t)tokens * (size_t)(c->head_dim / 2);
  float *cosines = px_arena_alloc(&arena, table, sizeof *cosines), *sines = px_arena_alloc(&arena, table, sizeof *sines);
  px_status status = rows && cosines && sines ? open_keys(&k, &arena, err) : px_fail(err, PX_NO_MEMORY, "no memory");
  if (status == PX_OK) {
    for (int32_t t = 0; t < tokens; t++)
      memcpy(rows + t * width, values + (int64_t)t * 2 * c->layers * width, (size_t)width * sizeof *rows);
    search s = {.width = width, .count = tokens, .top = top, .vocab = c->vocab, .rows = rows, .words = words, .usual = usual};
    if (!c->learned_positions) {
      px_rope_tables(c, tokens, cosines, sines);
      turn_back(c, tokens, cosines, sines, rows);
      status = search_keys(&k, &s, 0, err);
    }
    for (int32_t t = 0; c->learned_positions && status == PX_OK && t < tokens; t++) {
      search one = {.width = width, .count = 1, .top = top, .vocab = c->vocab, .rows = rows + t * width,
                    .words = words + (int64_t)t * top, .usual = usual + t};
      status = search_keys(&k, &one, t, err);
    }
  }
  px_backend_free(be, k.memory);
  px_arena_free(&arena);
  return status;
}
