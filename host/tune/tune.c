/* SPDX-License-Identifier: MIT
 * The prefix as a trainable part: plain (one tensor per layer) or reparameterised by a small network (Li and Liang 2021):
 *   z = E W1^T + b1     h = tanh(z)     prefix of (layer, key or value) s = h W2_s^T + b2_s (+ offset_s)
 * which runs once per step, whatever the number of rows. Everything is kept layer-major, [layers][key, value][P][width],
 * so that the gradients of a layer are one run; PEFT's order exists in files alone. */
#include "tune/tune.h"

#include <math.h>
#include <stdlib.h>

#include "core/random.h"
#include "tune/prefix.h"

/* Floats of the backend memory, in this order. */
static int64_t lay_out(px_tune *t, px_prefix_part *p, float *base) {
  int64_t at = 0;
#define TAKE(field, count) \
  do {                     \
    (p->field) = base ? base + at : NULL; \
    at += (((count) + 15) & ~(int64_t)15); \
  } while (0)
  int64_t all = p->slices * p->slice, hidden = t->spec.reparam_hidden;
  TAKE(flat, all);
  TAKE(segment_grads, all);
  if (t->spec.dropout > 0) TAKE(dropped, all);
  if (hidden) {
    int64_t n = p->param_floats;
    TAKE(values, n);
    TAKE(param_grads, n);
    TAKE(z, t->tokens * hidden);
    TAKE(h, t->tokens * hidden);
    TAKE(dh, t->tokens * hidden);
    if (p->has_offset) TAKE(offset, all);
    TAKE(m, n);
    TAKE(v, n);
  } else {
    TAKE(m, all);
    TAKE(v, all);
  }
#undef TAKE
  return at;
}

static void add_param(px_tune *t, const char *name, int dims, const int64_t *shape, float *value, float *grad, float *m, float *v) {
  px_param *p = &t->params[t->param_count++];
  *p = (px_param){.name = name, .dims = dims, .count = 1, .value = value, .grad = grad, .m = m, .v = v, .weight_decay = t->spec.weight_decay};
  for (int i = 0; i < dims; i++) {
    p->shape[i] = shape[i];
    p->count *= shape[i];
  }
}

/* Plain: a tensor per layer [2, P, width]; its gradients stand in reverse order, as the backward pass finishes layers. */
static void register_plain(px_tune *t, px_prefix_part *p) {
  int64_t layer = 2 * p->slice, shape[3] = {2, t->tokens, p->width};
  for (int l = 0; l < t->config->layers; l++) {
    int64_t at = l * layer, grad_at = (t->config->layers - 1 - l) * layer;
    add_param(t, px_arena_printf(&p->arena, "prefix.layers.%d", l), 3, shape, p->flat + at, p->segment_grads + grad_at, p->m + at, p->v + at);
  }
}

static void register_reparam(px_tune *t, px_prefix_part *p) {
  int64_t h = t->spec.reparam_hidden, w = p->width, out = p->slices * w;
  const struct {
    const char *name;
    int dims;
    int64_t shape[2];
    float **value, **grad;
  } tensors[] = {
      {"reparam.embedding", 2, {t->tokens, w}, &p->e, &p->de},  {"reparam.linear1.weight", 2, {h, w}, &p->w1, &p->dw1},
      {"reparam.linear1.bias", 1, {h, 0}, &p->b1, &p->db1},     {"reparam.linear2.weight", 2, {out, h}, &p->w2, &p->dw2},
      {"reparam.linear2.bias", 1, {out, 0}, &p->b2, &p->db2},
  };
  int64_t at = 0;
  for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
    *tensors[i].value = p->values + at;
    *tensors[i].grad = p->param_grads + at;
    add_param(t, tensors[i].name, tensors[i].dims, tensors[i].shape, p->values + at, p->param_grads + at, p->m + at, p->v + at);
    at += (t->params[t->param_count - 1].count + 15) & ~(int64_t)15;
  }
}

static int64_t reparam_floats(const px_tune *t, const px_prefix_part *p) {
  int64_t h = t->spec.reparam_hidden, counts[] = {t->tokens * p->width, h * p->width, h, p->slices * p->width * h, p->slices * p->width}, all = 0;
  for (int i = 0; i < 5; i++) all += (counts[i] + 15) & ~(int64_t)15;
  return all;
}

/* Keys and values in compute dtype with their gradients, as attention takes them. */
static px_status make_segments(px_tune *t, px_prefix_part *p, px_error *err) {
  int layers = t->config->layers;
  size_t element = px_dtype_bytes(t->dtype, 1), bytes = (size_t)layers * sizeof(px_kv_segment);
  p->kv = px_backend_alloc(t->be, (size_t)(p->slices * p->slice) * element);
  t->segments = px_backend_alloc(t->be, bytes);
  px_kv_segment *host = px_calloc((size_t)layers, sizeof *host);
  if (!p->kv || !t->segments || !host) {
    free(host);
    px_status s = px_backend_status(t->be, err);
    return s != PX_OK ? s : px_fail(err, PX_NO_MEMORY, "no memory");
  }
  for (int l = 0; l < layers; l++) {
    char *k = (char *)p->kv + (size_t)(2 * l * p->slice) * element;
    float *dk = p->segment_grads + 2 * (layers - 1 - l) * p->slice;
    host[l] = (px_kv_segment){.k = k, .v = k + (size_t)p->slice * element, .stride = p->width, .len = t->tokens, .dk = dk,
                              .dv = dk + p->slice, .grad_stride = p->width};
  }
  px_backend_write(t->be, t->segments, host, bytes);
  free(host);
  t->hooks = (px_hooks){.segments = t->segments, .adapters = 1, .segment_rows = t->tokens};
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
                              .weight_decay = p->weight_decay, .lr_scale = 1, .group = p->group};
  }
  px_backend_write(t->be, t->list, host, bytes);
  free(host);
  return px_backend_status(t->be, err);
}

px_status px_tune_open(const px_model *model, px_backend *be, const px_tokenizer *tok, const px_tune_spec *spec, uint64_t seed,
                       px_tune **out, px_error *err) {
  *out = NULL;
  px_tune *t = px_calloc(1, sizeof *t);
  px_prefix_part *p = px_calloc(1, sizeof *p);
  if (!t || !p) {
    free(t);
    free(p);
    return px_fail(err, PX_NO_MEMORY, "no memory");
  }
  *t = (px_tune){.be = be, .config = px_model_config(model), .dtype = model->dtype, .spec = *spec, .own = p};
  t->spec.init_value = NULL; /* the caller's, as are the ids; not needed after this call */
  t->spec.data_ids = NULL;
  float *initial = NULL; /* [layers][2][P][width] from a text or an adapter */
  px_status status = px_prefix_initial(model, be, tok, spec, &t->tokens, &initial, err);
  if (status != PX_OK) goto fail;
  p->width = (int64_t)t->config->kv_heads * t->config->head_dim;
  p->slice = t->tokens * p->width;
  p->slices = 2 * (int64_t)t->config->layers;
  p->has_offset = spec->reparam_hidden && spec->init != PX_INIT_RANDOM && spec->init != PX_INIT_ZERO;
  p->param_floats = spec->reparam_hidden ? reparam_floats(t, p) : 0;
  int64_t floats = lay_out(t, p, NULL);
  p->memory = px_backend_alloc(be, (size_t)floats * sizeof(float));
  t->params = px_calloc((size_t)(spec->reparam_hidden ? 5 : t->config->layers), sizeof *t->params);
  if (!p->memory || !t->params) {
    status = px_backend_status(be, err);
    if (status == PX_OK) status = px_fail(err, PX_NO_MEMORY, "no memory");
    goto fail;
  }
  lay_out(t, p, p->memory);
  px_backend_zero(be, p->memory, (size_t)floats * sizeof(float));
  if (spec->reparam_hidden)
    register_reparam(t, p);
  else
    register_plain(t, p);
  t->grads = p->segment_grads;
  t->grad_count = p->slices * p->slice;
  status = px_prefix_fill(t, p, initial, seed, err);
  if (status == PX_OK) status = make_segments(t, p, err);
  if (status == PX_OK) status = make_list(t, err);
  if (status == PX_OK) {
    free(initial);
    *out = t;
    return PX_OK;
  }
fail:
  free(initial);
  px_tune_close(t);
  return status;
}

void px_tune_close(px_tune *t) {
  if (!t) return;
  px_prefix_part *p = t->own;
  px_backend_free(t->be, p->memory);
  px_backend_free(t->be, p->kv);
  px_backend_free(t->be, t->segments);
  px_backend_free(t->be, t->list);
  px_arena_free(&p->arena);
  free(p);
  free(t->params);
  free(t);
}

void px_tune_zero_grads(px_tune *t) { px_backend_zero(t->be, t->grads, (size_t)t->grad_count * sizeof(float)); }

/* The network, forward: flat = what the prefix is. */
static void flatten(px_tune *t, px_prefix_part *p) {
  int64_t hidden = t->spec.reparam_hidden, rows = t->tokens;
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

void px_tune_begin_step(px_tune *t, uint64_t seed, const int64_t *step) {
  px_prefix_part *p = t->own;
  int64_t all = p->slices * p->slice;
  if (t->spec.reparam_hidden) flatten(t, p);
  const float *source = p->flat;
  if (step && t->spec.dropout > 0) {
    px_op_dropout(t->be, &(px_dropout_args){.rows = 1, .dim = all, .x_stride = all, .y_stride = all, .p = t->spec.dropout, .seed = seed,
                                            .stream = PX_STREAM_PREFIX_DROPOUT, .step_at = step, .x = p->flat, .y = p->dropped});
    source = p->dropped;
  }
  px_op_cast(t->be, &(px_cast_args){.x_type = PX_F32, .y_type = t->dtype, .rows = 1, .dim = all, .x_stride = all, .y_stride = all,
                                    .x = source, .y = p->kv});
}

/* The network, backward: from the gradients of all slices. */
static void unflatten(px_tune *t, px_prefix_part *p) {
  int64_t hidden = t->spec.reparam_hidden, rows = t->tokens, layers = t->config->layers;
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

void px_tune_end_step(px_tune *t, uint64_t seed, const int64_t *step) {
  px_prefix_part *p = t->own;
  int64_t layer = 2 * p->slice;
  for (int l = 0; t->spec.dropout > 0 && l < t->config->layers; l++) { /* the same mask; gradients stand in reverse order */
    float *g = p->segment_grads + (t->config->layers - 1 - l) * layer;
    px_op_dropout(t->be, &(px_dropout_args){.rows = 1, .dim = layer, .x_stride = layer, .y_stride = layer, .p = t->spec.dropout,
                                            .seed = seed, .index0 = (uint64_t)(l * layer), .stream = PX_STREAM_PREFIX_DROPOUT,
                                            .step_at = step, .x = g, .y = g});
  }
  if (t->spec.reparam_hidden) unflatten(t, p);
}

px_status px_tune_export(px_tune *t, float *values, px_error *err) {
  px_prefix_part *p = t->own;
  if (t->spec.reparam_hidden) flatten(t, p);
  return px_prefix_to_peft(t, p->flat, false, values, err);
}

px_status px_tune_export_grad(px_tune *t, float *values, px_error *err) {
  px_prefix_part *p = t->own;
  return px_prefix_to_peft(t, p->segment_grads, true, values, err);
}
