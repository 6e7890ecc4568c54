/* SPDX-License-Identifier: MIT
 * A projection of a layer, and what may be attached to it: a low-rank delta, a scale, a gradient of its weight.
 *   y  = s (x W^T + b + c B^T),   c = scale dropout(x) A^T            (s in front of DOWN: x = s x0)
 *   dy0 = s dy    dW += dy0^T x   db += sum dy0   dB += dy0^T c   dc = dy0 B   dA += dc^T dropout(x)   dx = dy0 W + dropout(dc A)
 * With nothing attached it is one product. */
#include "core/random.h"
#include "model/stack.h"

/* Dropout masks of different layers and sites begin far apart in the counter. */
enum { MASK_BITS = 40 };

static const px_weight *weight_in(const px_weights *w, int layer, px_site site) {
  const px_layer_weights *l = &w->layers[layer];
  const px_weight *const sites[PX_SITES] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
  return sites[site];
}

static const px_weight *weight_of(const px_stack *s, int layer, px_site site) { return weight_in(px_stack_weights(s), layer, site); }

static const px_low_rank *low_rank_of(const px_stack *s, int layer, px_site site) {
  if (!s->hooks || !s->hooks->low_rank || !s->batch.adapter) return NULL;
  const px_low_rank *l = &s->hooks->low_rank[layer * PX_SITES + site];
  return l->a ? l : NULL;
}

static const px_scaling *scaling_of(const px_stack *s, int layer, px_site site) {
  if (!s->hooks || !s->hooks->scales || !s->batch.adapter) return NULL;
  const px_scaling *c = &s->hooks->scales[layer * PX_SITES + site];
  return c->s ? c : NULL;
}

/* Where the gradient of the weight goes; NULL: it is not trained. */
static const px_weight *grad_of(const px_stack *s, int layer, px_site site) {
  const px_weights *g = px_stack_grads(s);
  const px_weight *w = g ? weight_in(g, layer, site) : NULL;
  return w && (w->data || w->bias) ? w : NULL;
}

bool px_site_is_plain(const px_stack *s, int layer, px_site site) { return !low_rank_of(s, layer, site) && !scaling_of(s, layer, site); }

bool px_site_needs_input(const px_stack *s, int layer, px_site site) {
  const px_weight *g = grad_of(s, layer, site);
  return low_rank_of(s, layer, site) || (g && g->data) || (site == PX_SITE_DOWN && scaling_of(s, layer, site));
}

/* ---- forward ---- */

static px_lora_args lora(const px_stack *s, px_lora_mode mode, const px_lora_matrix *m, const void *x, int64_t x_dim, const void *y, int64_t y_dim) {
  return (px_lora_args){.mode = mode,
                        .dtype = s->weights->dtype,
                        .w_type = PX_F32,
                        .seqs = s->batch.seqs,
                        .rows = s->batch.tokens,
                        .offsets = s->batch.offsets,
                        .adapter = s->batch.adapter,
                        .mats = m,
                        .mat_count = s->hooks->adapters,
                        .x = (void *)(uintptr_t)x,
                        .y = (void *)(uintptr_t)y,
                        .x_stride = x_dim,
                        .y_stride = y_dim,
                        .x_dim = x_dim,
                        .y_dim = y_dim};
}

static void multiply(px_stack *s, const px_lora_args *args) { px_op_lora_by_id(s->be, args); }

static void drop(px_stack *s, int layer, const px_low_rank *l, int64_t dim, const void *x, void *y) {
  px_op_dropout(s->be, &(px_dropout_args){.dtype = s->weights->dtype,
                                          .rows = s->batch.tokens,
                                          .dim = dim,
                                          .x_stride = dim,
                                          .y_stride = dim,
                                          .p = s->hooks->dropout,
                                          .seed = s->hooks->seed,
                                          .index0 = (uint64_t)(layer * PX_SITES + l->mask) << MASK_BITS,
                                          .stream = PX_STREAM_DROPOUT,
                                          .step_at = s->hooks->step,
                                          .x = x,
                                          .y = y});
}

static bool drops(const px_stack *s) { return s->hooks->dropout > 0 && s->hooks->step; }

static void scale(px_stack *s, const px_scaling *c, int64_t dim, const void *x, void *y) {
  px_op_scale_fwd(s->be, &(px_scale_fwd_args){.dtype = s->weights->dtype,
                                              .seqs = s->batch.seqs,
                                              .rows = s->batch.tokens,
                                              .dim = dim,
                                              .offsets = s->batch.offsets,
                                              .adapter = s->batch.adapter,
                                              .s = c->s,
                                              .count = s->hooks->adapters,
                                              .x = x,
                                              .y = y,
                                              .x_stride = dim,
                                              .y_stride = dim});
}

/* dx = s dy and, where it is wanted, ds += sum dy x. dx may be dy. */
static void scale_bwd(px_stack *s, const px_scaling *c, int64_t dim, const void *x, const void *dy, void *dx) {
  px_op_scale_bwd(s->be, &(px_scale_bwd_args){.dtype = s->weights->dtype,
                                              .seqs = s->batch.seqs,
                                              .rows = s->batch.tokens,
                                              .dim = dim,
                                              .offsets = s->batch.offsets,
                                              .adapter = s->batch.adapter,
                                              .s = c->s,
                                              .ds = c->ds,
                                              .count = s->hooks->adapters,
                                              .x = x,
                                              .dy = dy,
                                              .dx = dx,
                                              .stride = dim});
}

void px_site_fwd(px_stack *s, int layer, px_site site, const void *x, void *y, void *gelu) {
  const px_weight *w = weight_of(s, layer, site);
  const px_low_rank *l = low_rank_of(s, layer, site);
  const px_scaling *c = site == PX_SITE_DOWN ? NULL : scaling_of(s, layer, site);
  const px_layer_saves *save = &s->buffers->layers[layer];
  void *product = c && save->raw[site] ? save->raw[site] : y;
  px_op_gemm(s->be, &(px_gemm_args){.m = s->batch.tokens,
                                    .n = w->out,
                                    .k = w->in,
                                    .a = x,
                                    .lda = w->in,
                                    .b = w->data,
                                    .ldb = w->ld,
                                    .trans_b = w->layout == PX_LAYOUT_OUT_IN,
                                    .c = product,
                                    .ldc = w->out,
                                    .bias = w->bias,
                                    .bias_type = w->dtype,
                                    .gelu = gelu,
                                    .ldg = w->out,
                                    .type = w->dtype,
                                    .c_type = w->dtype,
                                    .b_frozen = !w->trained});
  if (l) {
    if (drops(s)) drop(s, layer, l, w->in, x, s->buffers->dropped);
    px_lora_args down = lora(s, PX_LORA_FWD, l->a, drops(s) ? s->buffers->dropped : x, w->in, save->low[site], l->rank);
    px_lora_args up = lora(s, PX_LORA_FWD, l->b, save->low[site], l->rank, product, w->out);
    up.accumulate = true;
    multiply(s, &down);
    multiply(s, &up);
  }
  if (c) scale(s, c, w->out, product, y);
}

void px_down_input(px_stack *s, int layer, void *act) {
  const px_scaling *c = scaling_of(s, layer, PX_SITE_DOWN);
  if (c) scale(s, c, s->config->ffn_dim, act, act);
}

/* ---- backward ---- */

static void weight_grads(px_stack *s, const px_weight *w, const px_weight *g, const void *dy, const void *x) {
  bool out_in = w->layout == PX_LAYOUT_OUT_IN;
  if (g->data)
    px_op_gemm(s->be, &(px_gemm_args){.m = out_in ? w->out : w->in,
                                      .n = out_in ? w->in : w->out,
                                      .k = s->batch.tokens,
                                      .a = out_in ? dy : x,
                                      .lda = out_in ? w->out : w->in,
                                      .trans_a = true,
                                      .b = out_in ? x : dy,
                                      .ldb = out_in ? w->in : w->out,
                                      .c = px_grad(g->data),
                                      .ldc = w->ld,
                                      .type = w->dtype,
                                      .c_type = PX_F32,
                                      .bias_type = PX_F32,
                                      .accumulate = true});
  if (g->bias)
    px_op_col_sum(s->be, &(px_col_sum_args){.dtype = w->dtype, .rows = s->batch.tokens, .dim = w->out, .x_stride = w->out, .x = dy, .out = px_grad(g->bias)});
}

/* The gradients of A and B, and dx += dropout(dc A). */
static void low_rank_bwd(px_stack *s, int layer, px_site site, const px_low_rank *l, const px_weight *w, const void *dy, const void *x, void *dx) {
  px_buffers *b = s->buffers;
  void *low = b->layers[layer].low[site];
  bool dropping = drops(s);
  px_lora_args dlow = lora(s, PX_LORA_DX, l->b, b->dlow, l->rank, dy, w->out);
  px_lora_args db = lora(s, PX_LORA_DW, l->b, low, l->rank, dy, w->out);
  multiply(s, &dlow);
  multiply(s, &db);
  if (dropping) drop(s, layer, l, w->in, x, b->dropped);
  px_lora_args da = lora(s, PX_LORA_DW, l->a, dropping ? b->dropped : x, w->in, b->dlow, l->rank);
  multiply(s, &da);
  if (!dx) return;
  px_lora_args more = lora(s, PX_LORA_DX, l->a, dropping ? b->dropped : dx, w->in, b->dlow, l->rank);
  more.accumulate = !dropping;
  multiply(s, &more);
  if (!dropping) return;
  drop(s, layer, l, w->in, b->dropped, b->dropped);
  px_op_add(s->be, &(px_add_args){.dtype = w->dtype, .rows = s->batch.tokens, .dim = w->in, .a_stride = w->in, .b_stride = w->in, .y_stride = w->in,
                                  .a = dx, .b = b->dropped, .y = dx});
}

void px_site_bwd(px_stack *s, int layer, px_site site, void *dy, const void *x, void *dx, bool accumulate) {
  const px_weight *w = weight_of(s, layer, site), *g = grad_of(s, layer, site);
  const px_low_rank *l = low_rank_of(s, layer, site);
  const px_scaling *c = scaling_of(s, layer, site);
  if (c && site != PX_SITE_DOWN) { /* dx of the residual stream is not to be changed: n is free where O asks */
    void *scaled = site == PX_SITE_O ? s->buffers->n : dy;
    scale_bwd(s, c, w->out, s->buffers->layers[layer].raw[site], dy, scaled);
    dy = scaled;
  }
  if (dx)
    px_op_gemm(s->be, &(px_gemm_args){.m = s->batch.tokens,
                                      .n = w->in,
                                      .k = w->out,
                                      .a = dy,
                                      .lda = w->out,
                                      .b = w->data,
                                      .ldb = w->ld,
                                      .trans_b = w->layout == PX_LAYOUT_IN_OUT,
                                      .c = dx,
                                      .ldc = w->in,
                                      .type = w->dtype,
                                      .c_type = w->dtype,
                                      .bias_type = PX_F32,
                                      .accumulate = accumulate,
                                      .b_frozen = !w->trained});
  bool in_front = c && site == PX_SITE_DOWN;
  const void *input = x; /* of the product; x itself is what the scale in front of DOWN was given */
  if (in_front && (l || (g && g->data))) {
    input = s->buffers->act_scaled;
    scale(s, c, w->in, x, s->buffers->act_scaled);
  }
  if (l) low_rank_bwd(s, layer, site, l, w, dy, input, dx);
  if (g) weight_grads(s, w, g, dy, input);
  if (in_front) scale_bwd(s, c, w->in, x, dx, dx);
}
