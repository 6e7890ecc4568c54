/* SPDX-License-Identifier: MIT
 * The prefix as a trainable part: plain (one tensor per layer) or reparameterised by a small network (Li and Liang 2021):
 *   z = E W1^T + b1     h = tanh(z)     prefix of (layer, key or value) s = h W2_s^T + b2_s (+ offset_s)
 * which runs once per step, whatever the number of rows. It may be on chosen layers alone, and its first virtual tokens may
 * be frozen (PEFT's CARTRIDGE). */
#include "tune/prefix.h"

#include <errno.h>
#include <stdlib.h>

/* Whether the gradients that attention makes are those of the trained tensors: no other part has virtual tokens. */
static bool alone(const px_part *p) { return p->tokens == p->tune->tokens; }

/* Floats of the backend memory, in this order. */
static int64_t lay_out(const px_part *part, px_prefix_part *p, float *base) {
  int64_t at = 0;
#define TAKE(field, count) \
  do {                     \
    (p->field) = base ? base + at : NULL; \
    at += (((count) + 15) & ~(int64_t)15); \
  } while (0)
  int64_t all = p->slices * p->slice, hidden = part->spec->reparam_hidden;
  TAKE(flat, all);
  if (!alone(part) && px_part_trains(part)) TAKE(own_grads, all);
  if (part->spec->dropout > 0) TAKE(dropped, all);
  if (hidden) {
    int64_t n = p->param_floats;
    TAKE(values, n);
    TAKE(param_grads, n);
    TAKE(z, part->tokens * hidden);
    TAKE(h, part->tokens * hidden);
    TAKE(dh, part->tokens * hidden);
    if (p->has_offset) TAKE(offset, all);
    if (px_part_moments(part)) TAKE(m, n);
    if (px_part_moments(part)) TAKE(v, n);
  } else {
    if (px_part_moments(part)) TAKE(m, all);
    if (px_part_moments(part)) TAKE(v, all);
  }
#undef TAKE
  return at;
}

/* Plain: a tensor per layer [2, P, width], or, where some virtual tokens are frozen, one for keys and one for values.
 * Gradients stand in reverse order, as the backward pass finishes layers. */
static px_status register_plain(px_part *part, px_prefix_part *p, px_error *err) {
  px_tune *t = part->tune;
  if (!px_part_trains(part)) return PX_OK;
  int64_t skip = part->spec->frozen * p->width;
  /* Frozen rows stand between trained ones: the state has all of them once more. */
  if (skip) t->fixed[t->fixed_count++] = (px_fixed){"prefix.values", p->flat, p->slices * p->slice};
  for (int l = 0; l < t->config->layers; l++) {
    if (!p->layers[l]) continue;
    for (int kv = 0; kv < (skip ? 2 : 1); kv++) {
      char name[64];
      int64_t at = (2 * l + kv) * p->slice + skip, grad_at = (2 * (t->config->layers - 1 - l) + kv) * p->slice + skip;
      px_param q = {.name = name, .dims = 3, .shape = {2, part->tokens, p->width}, .value = p->flat + at, .grad = p->segment_grads + grad_at,
                    .m = p->m ? p->m + at : NULL, .v = p->v ? p->v + at : NULL, .weight_decay = t->spec.weight_decay};
      if (skip) q = (px_param){.name = name, .dims = 2, .shape = {part->tokens - part->spec->frozen, p->width}, .value = q.value, .grad = q.grad,
                               .m = q.m, .v = q.v, .weight_decay = q.weight_decay};
      snprintf(name, sizeof name, skip ? kv ? "prefix.layers.%d.values" : "prefix.layers.%d.keys" : "prefix.layers.%d", l);
      PX_TRY(px_part_add(part, &q, err));
    }
  }
  return PX_OK;
}

static px_status register_reparam(px_part *part, px_prefix_part *p, px_error *err) {
  px_tune *t = part->tune;
  int64_t h = part->spec->reparam_hidden, w = p->width, out = p->slices * w;
  const struct {
    const char *name;
    int dims;
    int64_t shape[2];
    float **value, **grad;
  } tensors[] = {
      {"reparam.embedding", 2, {part->tokens, w}, &p->e, &p->de}, {"reparam.linear1.weight", 2, {h, w}, &p->w1, &p->dw1},
      {"reparam.linear1.bias", 1, {h, 0}, &p->b1, &p->db1},       {"reparam.linear2.weight", 2, {out, h}, &p->w2, &p->dw2},
      {"reparam.linear2.bias", 1, {out, 0}, &p->b2, &p->db2},
  };
  int64_t at = 0;
  p->first_param = t->param_count;
  for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
    *tensors[i].value = p->values + at;
    *tensors[i].grad = p->param_grads + at;
    px_param q = {.name = tensors[i].name, .dims = tensors[i].dims, .shape = {tensors[i].shape[0], tensors[i].shape[1]}, .value = p->values + at,
                  .grad = p->param_grads + at, .m = p->m ? p->m + at : NULL, .v = p->v ? p->v + at : NULL, .weight_decay = t->spec.weight_decay};
    PX_TRY(px_part_add(part, &q, err));
    at += px_part_room(t->params[t->param_count - 1].count);
  }
  if (p->has_offset) t->fixed[t->fixed_count++] = (px_fixed){"reparam.offset", p->offset, p->slices * p->slice};
  return PX_OK;
}

static int64_t reparam_floats(const px_part *part, const px_prefix_part *p) {
  int64_t h = part->spec->reparam_hidden, counts[] = {part->tokens * p->width, h * p->width, h, p->slices * p->width * h, p->slices * p->width}, all = 0;
  for (int i = 0; i < 5; i++) all += px_part_room(counts[i]);
  return all;
}

bool px_prefix_has_layer(const px_part *part, int layer) { return ((const px_prefix_part *)part->own)->layers[layer]; }

/* "0-5,10" -> which layers; NULL: all. */
static px_status read_layers(const char *text, int layers, bool *out, px_error *err) {
  for (int l = 0; l < layers; l++) out[l] = !text;
  for (const char *at = text; at && *at;) {
    char *end = NULL;
    errno = 0;
    long first = strtol(at, &end, 10), last = first;
    bool good = end != at && !errno && *at != '-' && *at != '+';
    if (good && *end == '-') {
      at = end + 1;
      last = strtol(at, &end, 10);
      good = end != at && *at != '-' && *at != '+';
    }
    if (!good || (*end && *end != ',') || (*end == ',' && !end[1]))
      return px_fail(err, PX_INVALID, "layers=%s: write numbers and ranges, as in layers=0-5,10", text);
    if (first < 0 || last < first || last >= layers)
      return px_fail(err, PX_INVALID, "layers=%s: this model has layers 0 to %d", text, layers - 1);
    for (long l = first; l <= last; l++) out[l] = true;
    at = *end ? end + 1 : end;
  }
  return PX_OK;
}

static px_status prefix_measure(px_part *part, const px_part_start *start, px_error *err) {
  px_tune *t = part->tune;
  px_prefix_part *p = part->own = px_calloc(1, sizeof *p);
  if (!p) return px_fail(err, PX_NO_MEMORY, "no memory");
  p->layers = px_arena_alloc(&t->arena, (size_t)t->config->layers, sizeof *p->layers);
  if (!p->layers) return px_fail(err, PX_NO_MEMORY, "no memory");
  PX_TRY(read_layers(part->spec->layers, t->config->layers, p->layers, err));
  for (int l = 0; l < t->config->layers; l++) p->partial |= !p->layers[l];
  if (p->partial && part->spec->reparam_hidden)
    return px_fail(err, PX_INVALID, "layers and reparam exclude each other: the network makes a prefix for every layer");
  if (p->partial && part->spec->frozen)
    return px_fail(err, PX_INVALID, "layers and frozen exclude each other: PEFT's CARTRIDGE, which says what is frozen, is on every layer");
  PX_TRY(px_prefix_initial(part, start, &p->initial, err));
  if (part->spec->frozen >= part->tokens)
    return px_fail(err, PX_INVALID, "frozen=%d leaves nothing of %d virtual tokens to train", part->spec->frozen, part->tokens);
  p->width = (int64_t)t->config->kv_heads * t->config->head_dim;
  p->slice = part->tokens * p->width;
  p->slices = 2 * (int64_t)t->config->layers;
  p->has_offset = part->spec->reparam_hidden && part->spec->init != PX_INIT_RANDOM && part->spec->init != PX_INIT_ZERO;
  p->param_floats = part->spec->reparam_hidden ? reparam_floats(part, p) : 0;
  return PX_OK;
}

static px_status prefix_open(px_part *part, const px_part_start *start, px_error *err) {
  px_prefix_part *p = part->own;
  p->memory = px_part_floats(part, lay_out(part, p, NULL), err);
  if (!p->memory) return PX_NO_MEMORY;
  lay_out(part, p, p->memory);
  p->segment_grads = p->own_grads ? p->own_grads : part->tune->segment_grads;
  PX_TRY(part->spec->reparam_hidden ? register_reparam(part, p, err) : register_plain(part, p, err));
  px_status status = px_prefix_fill(part, p->initial, start->seed, err);
  free(p->initial);
  p->initial = NULL;
  for (int l = part->tune->config->layers - 1; l >= 0; l--)
    if (p->layers[l]) px_part_reach(part, l, PX_STOP_SEGMENTS);
  return status;
}

static void prefix_close(px_part *part) {
  px_prefix_part *p = part->own;
  px_backend_free(part->tune->be, p->memory);
  free(p->initial);
  free(p);
}

/* The network, forward: flat = what the prefix is. */
static void flatten(const px_part *part, px_prefix_part *p) {
  const px_tune *t = part->tune;
  int64_t hidden = part->spec->reparam_hidden, rows = part->tokens;
  px_op_gemm(t->be, &(px_gemm_args){.m = rows, .n = hidden, .k = p->width, .a = p->e, .lda = p->width, .b = p->w1, .ldb = p->width,
                                    .trans_b = true, .c = p->z, .ldc = hidden, .bias = p->b1});
  px_op_act_fwd(t->be, &(px_act_fwd_args){.kind = PX_ACT_TANH, .rows = rows, .dim = hidden, .gate = p->z, .y = p->h, .in_stride = hidden,
                                          .y_stride = hidden});
  for (int64_t s = 0; s < p->slices; s++)
    px_op_gemm(t->be, &(px_gemm_args){.m = rows, .n = p->width, .k = hidden, .a = p->h, .lda = hidden, .b = p->w2 + s * p->width * hidden,
                                      .ldb = hidden, .trans_b = true, .c = p->flat + s * p->slice, .ldc = p->width,
                                      .bias = p->b2 + s * p->width});
  if (p->has_offset) {
    int64_t all = p->slices * p->slice;
    px_op_add(t->be, &(px_add_args){.rows = 1, .dim = all, .a_stride = all, .b_stride = all, .y_stride = all, .a = p->flat, .b = p->offset,
                                    .y = p->flat});
  }
}

static void prefix_begin_step(px_part *part, uint64_t seed, const int64_t *step) {
  px_prefix_part *p = part->own;
  px_tune *t = part->tune;
  int64_t all = p->slices * p->slice;
  if (part->spec->reparam_hidden) flatten(part, p);
  const float *source = p->flat;
  if (step && part->spec->dropout > 0) {
    px_op_dropout(t->be, &(px_dropout_args){.rows = 1, .dim = all, .x_stride = all, .y_stride = all, .p = part->spec->dropout, .seed = seed,
                                            .stream = PX_STREAM_PREFIX_DROPOUT, .step_at = step, .x = p->flat, .y = p->dropped});
    source = p->dropped;
  }
  if (alone(part))
    px_op_cast(t->be, &(px_cast_args){.x_type = PX_F32, .y_type = t->dtype, .rows = 1, .dim = all, .x_stride = all, .y_stride = all,
                                      .x = source, .y = t->kv});
  else /* between the virtual tokens of other parts */
    px_op_cast(t->be, &(px_cast_args){.x_type = PX_F32, .y_type = t->dtype, .rows = p->slices, .dim = p->slice, .x_stride = p->slice,
                                      .y_stride = t->slice, .x = source, .y = t->kv});
}

/* The network, backward: from the gradients of all slices. */
static void unflatten(const px_part *part, px_prefix_part *p) {
  const px_tune *t = part->tune;
  int64_t hidden = part->spec->reparam_hidden, rows = part->tokens, layers = t->config->layers;
  px_backend_zero(t->be, p->param_grads, (size_t)p->param_floats * sizeof(float));
  for (int64_t s = 0; s < p->slices; s++) {
    const float *g = p->segment_grads + (2 * (layers - 1 - s / 2) + s % 2) * p->slice;
    px_op_gemm(t->be, &(px_gemm_args){.m = p->width, .n = hidden, .k = rows, .a = g, .lda = p->width, .trans_a = true, .b = p->h,
                                      .ldb = hidden, .c = p->dw2 + s * p->width * hidden, .ldc = hidden});
    px_op_col_sum(t->be, &(px_col_sum_args){.rows = rows, .dim = p->width, .x_stride = p->width, .x = g, .out = p->db2 + s * p->width});
    px_op_gemm(t->be, &(px_gemm_args){.m = rows, .n = hidden, .k = p->width, .a = g, .lda = p->width, .b = p->w2 + s * p->width * hidden,
                                      .ldb = hidden, .c = p->dh, .ldc = hidden, .accumulate = s > 0});
  }
  px_op_act_bwd(t->be, &(px_act_bwd_args){.kind = PX_ACT_TANH, .rows = rows, .dim = hidden, .gate = p->z, .dy = p->dh, .dgate = p->z,
                                          .in_stride = hidden, .dy_stride = hidden, .d_stride = hidden});
  px_op_gemm(t->be, &(px_gemm_args){.m = hidden, .n = p->width, .k = rows, .a = p->z, .lda = hidden, .trans_a = true, .b = p->e,
                                    .ldb = p->width, .c = p->dw1, .ldc = p->width});
  px_op_col_sum(t->be, &(px_col_sum_args){.rows = rows, .dim = hidden, .x_stride = hidden, .x = p->z, .out = p->db1});
  px_op_gemm(t->be, &(px_gemm_args){.m = rows, .n = p->width, .k = hidden, .a = p->z, .lda = hidden, .b = p->w1, .ldb = p->width,
                                    .c = p->de, .ldc = p->width});
}

static void prefix_end_step(px_part *part, uint64_t seed, const int64_t *step) {
  px_prefix_part *p = part->own;
  px_tune *t = part->tune;
  int64_t layer = 2 * p->slice;
  if (!alone(part))
    px_op_cast(t->be, &(px_cast_args){.x_type = PX_F32, .y_type = PX_F32, .rows = p->slices, .dim = p->slice, .x_stride = t->slice,
                                      .y_stride = p->slice, .x = t->segment_grads, .y = p->own_grads});
  for (int l = 0; part->spec->dropout > 0 && l < t->config->layers; l++) { /* the same mask; gradients stand in reverse order */
    float *g = p->segment_grads + (t->config->layers - 1 - l) * layer;
    px_op_dropout(t->be, &(px_dropout_args){.rows = 1, .dim = layer, .x_stride = layer, .y_stride = layer, .p = part->spec->dropout,
                                            .seed = seed, .index0 = (uint64_t)(l * layer), .stream = PX_STREAM_PREFIX_DROPOUT,
                                            .step_at = step, .x = g, .y = g});
  }
  if (part->spec->reparam_hidden) unflatten(part, p);
}

static px_status prefix_describe(px_part *part, px_adapter_config *out, px_error *err) {
  const px_prefix_part *p = part->own;
  px_tune *t = part->tune;
  const px_config *c = t->config;
  *out = (px_adapter_config){.peft_type = p->partial ? "PFX_PREFIX_LAYERS" : part->spec->frozen ? "CARTRIDGE" : "PREFIX_TUNING", .task_type = "CAUSAL_LM",
                             .virtual_tokens = part->tokens, .layers = c->layers, .heads = c->kv_heads, .token_dim = p->width,
                             .hidden_size = p->width, .frozen_tokens = part->spec->frozen};
  if (!p->partial) return PX_OK;
  int32_t *chosen = px_arena_alloc(&t->arena, (size_t)c->layers, sizeof *chosen);
  if (!chosen) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int l = 0; l < c->layers; l++)
    if (p->layers[l]) chosen[out->chosen_count++] = l;
  out->chosen_layers = chosen;
  return PX_OK;
}

const px_part_ops px_part_prefix = {prefix_measure, prefix_open, prefix_close, prefix_describe, prefix_begin_step, prefix_end_step};

/* ---- what others ask of a prefix ---- */

static px_part *prefix_of(const px_tune *t) {
  for (int i = 0; i < t->part_count; i++)
    if (t->parts[i].ops == &px_part_prefix) return &t->parts[i];
  return NULL;
}

int32_t px_tune_prefix_tokens(const px_tune *t) {
  const px_part *part = prefix_of(t);
  return part ? part->tokens : 0;
}

px_status px_tune_export(px_tune *t, float *values, px_error *err) {
  px_part *part = prefix_of(t);
  if (!part) return px_fail(err, PX_INVALID, "there is no prefix among the parts");
  px_prefix_part *p = part->own;
  if (part->spec->reparam_hidden) flatten(part, p);
  return px_prefix_to_peft(part, p->flat, p->slice, false, values, err);
}

px_status px_tune_export_grad(px_tune *t, float *values, px_error *err) {
  px_part *part = prefix_of(t);
  if (!part) return px_fail(err, PX_INVALID, "there is no prefix among the parts");
  PX_TRY(px_prefix_to_peft(part, t->segment_grads, t->slice, true, values, err));
  memset(values, 0, (size_t)(part->spec->frozen * t->slices * t->width) * sizeof *values);
  return PX_OK;
}
