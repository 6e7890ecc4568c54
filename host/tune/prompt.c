/* SPDX-License-Identifier: MIT
 * Prompt tuning (Lester et al. 2021): rows at the embedding, in front of the real tokens and behind a prefix. They depend on
 * nothing after them, so they run through the model once per step, as a sequence of their own; the keys and values that
 * they leave in every layer are the adapter's segment, and its gradient flows back through them once. */
#include <math.h>
#include <stdlib.h>

#include "tune/adapter.h"
#include "tune/prefix.h"

typedef struct prompt_part {
  float *host;                 /* initial rows, while it opens */
  float *memory, *rows;        /* [N, dim], with its moments */
  void *cast;                  /* rows in compute dtype */
  px_buffers buffers;
  px_stack stack;
  px_hooks hooks;
  px_kv_segment *segments;     /* what prompt rows read: the prefix alone */
  float **dk, **dv;            /* [layers] where the segment's gradient of the rows stands */
} prompt_part;

/* ---- where it starts ---- */

/* Rows of the embedding table as float32. */
static px_status embeddings(px_part *part, const int32_t *ids, int32_t count, float *out, px_error *err) {
  px_tune *t = part->tune;
  int64_t dim = t->config->dim;
  const px_weight *w = &t->model->weights.embed;
  size_t bytes = px_dtype_bytes(w->dtype, (size_t)dim);
  void *row = malloc(bytes + 1);
  if (!row) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int32_t i = 0; i < count; i++) {
    px_backend_read(t->be, row, (const char *)w->data + (size_t)ids[i] * bytes, bytes);
    for (int64_t j = 0; j < dim; j++) out[i * dim + j] = w->dtype == PX_F32 ? ((float *)row)[j] : px_bf16_to_f32(((uint16_t *)row)[j]);
  }
  free(row);
  return px_backend_status(t->be, err);
}

/* Normal numbers as large as the vocabulary's rows are. */
static px_status random_rows(px_part *part, uint64_t seed, float *out, px_error *err) {
  enum { SAMPLED = 64 };
  int64_t dim = part->tune->config->dim, n = part->tokens * dim;
  int32_t ids[SAMPLED];
  double sum = 0;
  float *rows = px_calloc((size_t)(SAMPLED * dim), sizeof *rows);
  if (!rows) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int i = 0; i < SAMPLED; i++) ids[i] = (int32_t)px_below(0, PX_STREAM_INIT, 3, (uint64_t)i, (uint64_t)part->tune->config->vocab);
  px_status status = embeddings(part, ids, SAMPLED, rows, err);
  for (int64_t i = 0; i < SAMPLED * dim; i++) sum += (double)rows[i] * (double)rows[i];
  free(rows);
  float size = (float)sqrt(sum / (double)(SAMPLED * dim));
  for (int64_t i = 0; i < n; i++) out[i] = size * px_normal(seed, PX_STREAM_INIT, 2, (uint64_t)i);
  return status;
}

static px_status prompt_measure(px_part *part, const px_part_start *start, px_error *err) {
  prompt_part *p = part->own = px_calloc(1, sizeof *p);
  const px_part_spec *spec = part->spec;
  px_ids ids = {0};
  if (!p) return px_fail(err, PX_NO_MEMORY, "no memory");
  part->tokens = spec->size;
  px_status status = PX_OK;
  bool words = !start->spec->restored && (spec->init == PX_INIT_TEXT || spec->init == PX_INIT_DATA || spec->init == PX_INIT_VOCAB);
  if (words && spec->init == PX_INIT_TEXT) status = px_part_text_ids(part, start, &ids, err);
  if (words && spec->init == PX_INIT_DATA) status = px_part_row_ids(part, start, &ids, err);
  for (int32_t i = 0; words && spec->init == PX_INIT_VOCAB && status == PX_OK && i < spec->size; i++)
    status = px_ids_push(&ids, (int32_t)px_below(start->seed, PX_STREAM_INIT, 2, (uint64_t)i, (uint64_t)part->tune->config->vocab), err);
  if (words && status == PX_OK) part->tokens = (int32_t)ids.len;
  if (status == PX_OK && part->tokens < 1) status = px_fail(err, PX_INVALID, "a prompt needs at least one virtual token");
  int64_t n = part->tokens * (int64_t)part->tune->config->dim;
  if (status == PX_OK) p->host = px_calloc((size_t)n, sizeof *p->host);
  if (status == PX_OK && !p->host) status = px_fail(err, PX_NO_MEMORY, "no memory");
  if (status == PX_OK && words) status = embeddings(part, ids.data, part->tokens, p->host, err);
  if (status == PX_OK && spec->init == PX_INIT_RANDOM && !start->spec->restored) status = random_rows(part, start->seed, p->host, err);
  px_ids_free(&ids);
  part->grad_count = n;
  return status;
}

/* ---- the pass over the rows ---- */

/* What the rows read of other parts: everything but themselves. */
static px_status make_hooks(px_part *part, prompt_part *p, px_error *err) {
  px_tune *t = part->tune;
  int layers = t->config->layers;
  p->hooks = t->hooks;
  p->hooks.segments = NULL;
  p->hooks.segment_rows = 0;
  p->hooks.reach = (px_reach){0, PX_STOP_INPUT};
  if (part->first_token == 0) return PX_OK;
  px_kv_segment *host = px_calloc((size_t)layers, sizeof *host);
  p->segments = px_backend_alloc(t->be, (size_t)layers * sizeof *host);
  if (!host || !p->segments) {
    free(host);
    return px_fail(err, PX_NO_MEMORY, "no memory");
  }
  px_backend_read(t->be, host, t->segments, (size_t)layers * sizeof *host);
  for (int l = 0; l < layers; l++) host[l].len -= part->tokens; /* they stand at the end */
  px_backend_write(t->be, p->segments, host, (size_t)layers * sizeof *host);
  free(host);
  p->hooks.segments = p->segments;
  p->hooks.segment_rows = part->first_token;
  return px_backend_status(t->be, err);
}

/* The rows' keys and values are made where the segment has them. */
static px_status place_keys(px_part *part, prompt_part *p, px_error *err) {
  px_tune *t = part->tune;
  int layers = t->config->layers;
  size_t element = px_dtype_bytes(t->dtype, 1);
  p->dk = px_arena_alloc(&t->arena, (size_t)layers, sizeof *p->dk);
  p->dv = px_arena_alloc(&t->arena, (size_t)layers, sizeof *p->dv);
  if (!p->dk || !p->dv) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int l = 0; l < layers; l++) {
    int64_t at = 2 * l * t->slice + part->first_token * t->width, grad_at = 2 * (layers - 1 - l) * t->slice + part->first_token * t->width;
    p->buffers.layers[l].k = (char *)t->kv + (size_t)at * element;
    p->buffers.layers[l].v = (char *)t->kv + (size_t)(at + t->slice) * element;
    if (!px_part_trains(part)) continue;
    p->dk[l] = t->segment_grads + grad_at;
    p->dv[l] = t->segment_grads + grad_at + t->slice;
  }
  return PX_OK;
}

static px_status make_stack(px_part *part, prompt_part *p, px_error *err) {
  px_tune *t = part->tune;
  int32_t n = part->tokens;
  PX_TRY(make_hooks(part, p, err));
  px_plan_request request = {.dtype = t->dtype, .tokens = n, .seqs = 1, .positions = part->first_token + (int64_t)n, .segment_rows = part->first_token,
                             .backward = px_part_trains(part), .attached = t->hooks.attached};
  PX_TRY(px_buffers_open(t->config, t->be, &request, &p->buffers, err));
  PX_TRY(place_keys(part, p, err));
  p->stack = (px_stack){.be = t->be, .config = t->config, .weights = &t->model->weights, .hooks = &p->hooks, .buffers = &p->buffers,
                        .rows = p->cast, .row_count = n, .drows = part->grads, .dk_more = p->dk, .dv_more = p->dv};
  int32_t *numbers = px_calloc((size_t)n * 2, sizeof *numbers), offsets[2] = {0, n}, adapter = 0;
  if (!numbers) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int32_t i = 0; i < n; i++) {
    numbers[i] = i;
    numbers[n + i] = part->first_token + i;
  }
  px_status status = px_stack_begin(&p->stack, &(px_batch){.tokens = n, .seqs = 1, .ids = numbers, .positions = numbers + n, .offsets = offsets,
                                                           .adapter = &adapter}, err);
  free(numbers);
  return status != PX_OK ? status : px_backend_status(t->be, err);
}

static px_status prompt_open(px_part *part, const px_part_start *start, px_error *err) {
  (void)start;
  prompt_part *p = part->own;
  px_tune *t = part->tune;
  int64_t n = part->grad_count, room = px_part_room(n);
  p->memory = px_part_floats(part, px_part_kept(part, room), err);
  if (!p->memory) return PX_NO_MEMORY;
  p->rows = p->memory;
  px_part_write(part, p->rows, p->host, n);
  free(p->host);
  p->host = NULL;
  p->cast = p->rows;
  if (t->dtype != PX_F32) p->cast = px_backend_alloc(t->be, px_dtype_bytes(t->dtype, (size_t)n));
  if (!p->cast) return px_backend_status(t->be, err);
  px_param q = {.name = "prompt", .dims = 2, .shape = {part->tokens, t->config->dim}, .weight_decay = t->spec.weight_decay, .module = "",
                .role = "prompt_embeddings"};
  px_part_places(part, p->memory, room, 0, &q);
  PX_TRY(px_part_add(part, &q, err));
  px_part_reach(part, 0, PX_STOP_SEGMENTS);
  return make_stack(part, p, err);
}

static void prompt_close(px_part *part) {
  prompt_part *p = part->own;
  px_backend *be = part->tune->be;
  if (p->cast != p->rows) px_backend_free(be, p->cast);
  px_backend_free(be, p->memory);
  px_backend_free(be, p->segments);
  if (p->buffers.memory) px_buffers_close(&p->buffers, be);
  free(p->host);
  free(p);
}

static void prompt_begin_step(px_part *part, uint64_t seed, const int64_t *step) {
  prompt_part *p = part->own;
  int64_t n = part->grad_count;
  p->hooks.seed = seed;
  p->hooks.step = step;
  if (p->cast != p->rows)
    px_op_cast(part->tune->be, &(px_cast_args){.x_type = PX_F32, .y_type = part->tune->dtype, .rows = 1, .dim = n, .x_stride = n, .y_stride = n,
                                               .x = p->rows, .y = p->cast});
  px_stack_fwd(&p->stack);
}

/* What all sequences of the step want of the rows' keys and values is there: nothing is wanted of their last residual. */
static void prompt_end_step(px_part *part, uint64_t seed, const int64_t *step) {
  (void)seed;
  (void)step;
  prompt_part *p = part->own;
  px_backend_zero(part->tune->be, p->buffers.dx, px_dtype_bytes(part->tune->dtype, (size_t)part->grad_count));
  px_stack_bwd(&p->stack);
}

static px_status prompt_describe(px_part *part, px_adapter_config *out, px_error *err) {
  (void)err;
  const px_config *c = part->tune->config;
  *out = (px_adapter_config){.peft_type = "PROMPT_TUNING", .task_type = "CAUSAL_LM", .virtual_tokens = part->tokens, .layers = c->layers,
                             .heads = c->heads, .token_dim = c->dim};
  return PX_OK;
}

const px_part_ops px_part_prompt = {prompt_measure, prompt_open, prompt_close, prompt_describe, prompt_begin_step, prompt_end_step};
