/* SPDX-License-Identifier: MIT
 * The mirror of forward.c: from the gradient of the last residual (dx) back to what is trained.
 *   da = dx Wdown^T   dgate, dup = act'(da)   dm = norm2'(dgate Wgate^T + dup Wup^T) + dx
 *   do = dm Wo^T      dq, dk, dv, dprefix = attention'(do)   dq, dk = rotary^-1
 *   dx' = norm1'(dq Wq^T + dk Wk^T + dv Wv^T) + dm
 * A frozen linear layer needs no saved input, and one that is trained or has a low-rank delta makes its own anew. The pass
 * ends where nothing below is trained: with a prefix alone, at layer 0's prefix gradient. Gradients are those of the summed
 * loss. */
#include "model/stack.h"

/* dx = norm'(n) + dx, and the gradients of the norm's parameters where `g` has places for them. dx NULL: those alone. */
static void norm_bwd(px_stack *s, const px_norm_weight *w, const px_norm_weight *g, const void *x, const float *rstd, const float *mean, void *dx) {
  const px_config *c = s->config;
  px_buffers *b = s->buffers;
  px_op_norm_bwd(s->be, &(px_norm_bwd_args){.kind = c->norm,
                                            .dtype = s->weights->dtype,
                                            .weight_type = PX_F32,
                                            .rows = s->batch.tokens,
                                            .heads = 1,
                                            .dim = c->dim,
                                            .dy = b->n,
                                            .x = x,
                                            .weight = w->weight,
                                            .rstd = rstd,
                                            .mean = mean,
                                            .dresidual = dx,
                                            .dx = dx,
                                            .dy_stride = c->dim,
                                            .x_stride = c->dim,
                                            .dx_stride = c->dim,
                                            .dw = g ? px_grad(g->weight) : NULL,
                                            .db = g ? px_grad(g->bias) : NULL});
}

/* A norm's output once more, from what it read. */
static void *norm_again(px_stack *s, const px_norm_weight *w, const void *x) {
  const px_config *c = s->config;
  px_op_norm_fwd(s->be, &(px_norm_fwd_args){.kind = c->norm,
                                            .dtype = s->weights->dtype,
                                            .weight_type = PX_F32,
                                            .rows = s->batch.tokens,
                                            .heads = 1,
                                            .dim = c->dim,
                                            .eps = (float)c->norm_eps,
                                            .x = x,
                                            .weight = w->weight,
                                            .bias = w->bias,
                                            .y = s->buffers->n_again,
                                            .x_stride = c->dim,
                                            .y_stride = c->dim});
  return s->buffers->n_again;
}

static void *activation_again(px_stack *s, const px_layer_saves *save) {
  const px_config *c = s->config;
  px_op_act_fwd(s->be, &(px_act_fwd_args){.kind = c->act,
                                          .dtype = s->weights->dtype,
                                          .rows = s->batch.tokens,
                                          .dim = c->ffn_dim,
                                          .gate = save->gate,
                                          .up = save->up,
                                          .y = s->buffers->act_again,
                                          .in_stride = c->ffn_dim,
                                          .y_stride = c->ffn_dim});
  return s->buffers->act_again;
}

static const px_layer_weights *layer_grads(const px_stack *s, int layer) {
  const px_weights *g = px_stack_grads(s);
  return g ? &g->layers[layer] : NULL;
}

static void feed_forward_bwd(px_stack *s, int layer) {
  const px_config *c = s->config;
  const px_layer_weights *w = &px_stack_weights(s)->layers[layer], *g = layer_grads(s, layer);
  const px_layer_saves *save = &s->buffers->layers[layer];
  px_buffers *b = s->buffers;
  bool needs_act = px_site_needs_input(s, layer, PX_SITE_DOWN);
  bool needs_n = px_site_needs_input(s, layer, PX_SITE_UP) || (c->gated && px_site_needs_input(s, layer, PX_SITE_GATE));
  px_site_bwd(s, layer, PX_SITE_DOWN, b->dx, needs_act ? activation_again(s, save) : NULL, b->act, false);
  /* The saved gate and up become their gradients in place: nothing reads them again. */
  px_op_act_bwd(s->be, &(px_act_bwd_args){.kind = c->act,
                                          .dtype = s->weights->dtype,
                                          .rows = s->batch.tokens,
                                          .dim = c->ffn_dim,
                                          .gate = save->gate,
                                          .up = save->up,
                                          .dy = b->act,
                                          .dgate = save->gate,
                                          .dup = save->up,
                                          .in_stride = c->ffn_dim,
                                          .dy_stride = c->ffn_dim,
                                          .d_stride = c->ffn_dim});
  const void *n = needs_n ? norm_again(s, &w->norm2, save->mid) : NULL;
  if (c->gated) px_site_bwd(s, layer, PX_SITE_GATE, save->gate, n, b->n, false);
  px_site_bwd(s, layer, PX_SITE_UP, c->gated ? save->up : save->gate, n, b->n, c->gated);
  norm_bwd(s, &w->norm2, g ? &g->norm2 : NULL, save->mid, save->rstd2, save->mean2, b->dx);
}

/* Back through the rotary embedding and, where the family has them, the q/k norms; in place. */
static void queries_and_keys_bwd(px_stack *s, int layer) {
  const px_config *c = s->config;
  const px_layer_weights *w = &px_stack_weights(s)->layers[layer], *g = layer_grads(s, layer);
  const px_layer_saves *save = &s->buffers->layers[layer];
  px_buffers *b = s->buffers;
  px_dtype type = s->weights->dtype;
  for (int key = 0; key < 2; key++) {
    int32_t heads = key ? c->kv_heads : c->heads;
    int64_t width = (int64_t)heads * c->head_dim;
    void *d = key ? b->dk : b->dq;
    if (!c->learned_positions)
      px_op_rope(s->be, &(px_rope_args){.dtype = type,
                                        .rows = s->batch.tokens,
                                        .stride = width,
                                        .heads = heads,
                                        .head_dim = c->head_dim,
                                        .rot_dim = c->head_dim,
                                        .x = d,
                                        .positions = s->batch.positions,
                                        .cos = b->cos_table,
                                        .sin = b->sin_table,
                                        .table_rows = b->plan.request.positions,
                                        .inverse = true});
    if (c->qk_norm)
      px_op_norm_bwd(s->be, &(px_norm_bwd_args){.kind = PX_NORM_RMS,
                                                .dtype = type,
                                                .weight_type = PX_F32,
                                                .rows = s->batch.tokens,
                                                .heads = heads,
                                                .dim = c->head_dim,
                                                .dy = d,
                                                .x = key ? save->k_raw : save->q_raw,
                                                .weight = key ? w->k_norm.weight : w->q_norm.weight,
                                                .rstd = save->qk_rstd + (key ? (int64_t)s->batch.tokens * c->heads : 0),
                                                .dx = d,
                                                .dy_stride = width,
                                                .x_stride = width,
                                                .dx_stride = width,
                                                .dw = !g ? NULL : px_grad(key ? g->k_norm.weight : g->q_norm.weight)});
  }
}

/* dk and dv += what came from elsewhere: dheads is free by now. */
static void add_more(px_stack *s, const float *more, void *d) {
  px_buffers *b = s->buffers;
  px_dtype type = s->weights->dtype;
  int64_t count = (int64_t)s->batch.tokens * s->config->kv_heads * s->config->head_dim;
  const void *add = more;
  if (type != PX_F32) {
    px_op_cast(s->be, &(px_cast_args){.x_type = PX_F32, .y_type = type, .rows = 1, .dim = count, .x_stride = count, .y_stride = count, .x = more, .y = b->dheads});
    add = b->dheads;
  }
  px_op_add(s->be, &(px_add_args){.dtype = type, .rows = 1, .dim = count, .a_stride = count, .b_stride = count, .y_stride = count, .a = d, .b = add, .y = d});
}

static void attention_bwd(px_stack *s, int layer, bool own) {
  const px_config *c = s->config;
  const px_layer_saves *save = &s->buffers->layers[layer];
  px_buffers *b = s->buffers;
  int64_t width = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
  px_op_attn_bwd(s->be, &(px_attn_bwd_args){.shape = px_stack_attention(s, layer),
                                            .q = save->q,
                                            .k = save->k,
                                            .v = save->v,
                                            .o = save->o,
                                            .dout = b->dheads,
                                            .q_stride = width,
                                            .k_stride = kv,
                                            .v_stride = kv,
                                            .o_stride = width,
                                            .dout_stride = width,
                                            .dq_stride = width,
                                            .dk_stride = kv,
                                            .dv_stride = kv,
                                            .lse = save->lse,
                                            .dq = own ? b->dq : NULL,
                                            .dk = own ? b->dk : NULL,
                                            .dv = own ? b->dv : NULL,
                                            .workspace = b->attn_workspace,
                                            .scratch = b->attn_scratch,
                                            .scratch_bytes = b->attn_scratch_bytes});
  if (own && s->dk_more) add_more(s, s->dk_more[layer], b->dk);
  if (own && s->dv_more) add_more(s, s->dv_more[layer], b->dv);
}

/* The projections of queries, keys and values, and, where it is wanted, the norm and the residual below them. */
static void projections_bwd(px_stack *s, int layer, px_stop stop) {
  const px_layer_weights *w = &px_stack_weights(s)->layers[layer], *g = layer_grads(s, layer);
  const px_layer_saves *save = &s->buffers->layers[layer];
  px_buffers *b = s->buffers;
  bool needs_n = px_site_needs_input(s, layer, PX_SITE_Q) || px_site_needs_input(s, layer, PX_SITE_K) || px_site_needs_input(s, layer, PX_SITE_V);
  const void *n = needs_n ? norm_again(s, &w->norm1, save->x) : NULL;
  void *dn = stop >= PX_STOP_NORM ? b->n : NULL;
  px_site_bwd(s, layer, PX_SITE_Q, b->dq, n, dn, false);
  px_site_bwd(s, layer, PX_SITE_K, b->dk, n, dn, true);
  px_site_bwd(s, layer, PX_SITE_V, b->dv, n, dn, true);
  if (stop >= PX_STOP_NORM) norm_bwd(s, &w->norm1, g ? &g->norm1 : NULL, save->x, save->rstd1, save->mean1, stop >= PX_STOP_INPUT ? b->dx : NULL);
}

void px_layer_bwd(px_stack *s, int layer) {
  px_buffers *b = s->buffers;
  px_reach reach = s->hooks ? s->hooks->reach : (px_reach){0};
  px_stop stop = layer > reach.layer ? PX_STOP_INPUT : reach.stop;
  feed_forward_bwd(s, layer);
  px_site_bwd(s, layer, PX_SITE_O, b->dx, b->layers[layer].o, b->dheads, false);
  attention_bwd(s, layer, stop > PX_STOP_SEGMENTS);
  if (stop > PX_STOP_SEGMENTS) {
    queries_and_keys_bwd(s, layer);
    projections_bwd(s, layer, stop);
  }
  if (s->layer_done) s->layer_done(s->layer_done_user, layer);
}

/* Back to the rows of the embedding and, where they are learned, of the positions. */
static void embed_bwd(px_stack *s) {
  const px_config *c = s->config;
  const px_weights *g = px_stack_grads(s);
  float *table = s->rows ? s->drows : g ? px_grad(g->embed.data) : NULL;
  float *positions = g && c->learned_positions ? px_grad(g->positions.data) : NULL;
  if (!table && !positions) return;
  px_op_embed_bwd(s->be, &(px_embed_bwd_args){.dtype = s->weights->dtype,
                                              .rows = s->batch.tokens,
                                              .dim = c->dim,
                                              .table_rows = s->rows ? s->row_count : c->vocab,
                                              .position_rows = c->learned_positions ? c->context : 0,
                                              .ids = s->batch.ids,
                                              .positions = s->batch.positions,
                                              .dy = s->buffers->dx,
                                              .dtable = table,
                                              .dposition = positions});
}

void px_stack_bwd(px_stack *s) {
  px_reach reach = s->hooks ? s->hooks->reach : (px_reach){0};
  for (int layer = s->config->layers - 1; layer >= reach.layer; layer--) px_layer_bwd(s, layer);
  if (reach.layer == 0 && reach.stop == PX_STOP_INPUT) embed_bwd(s);
}
