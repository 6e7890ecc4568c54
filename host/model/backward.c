/* SPDX-License-Identifier: MIT
 * The mirror of forward.c, with frozen weights: from the gradient of the last residual (dx) back to the prefixes.
 *   da = dx Wdown^T   dgate, dup = act'(da)   dm = norm2'(dgate Wgate^T + dup Wup^T) + dx
 *   do = dm Wo^T      dq, dk, dv, dprefix = attention'(do)   dq, dk = rotary^-1
 *   dx' = norm1'(dq Wq^T + dk Wk^T + dv Wv^T) + dm
 * A frozen linear layer needs no saved input; layer 0 stops at the prefix gradient. Gradients are those of the summed
 * loss. */
#include "model/stack.h"

void px_linear_bwd(px_stack *s, const px_weight *w, const void *dy, int64_t dy_stride, void *dx, int64_t dx_stride,
                   bool accumulate) {
  px_op_gemm(s->be, &(px_gemm_args){.m = s->batch.tokens,
                                    .n = w->in,
                                    .k = w->out,
                                    .a = dy,
                                    .lda = dy_stride,
                                    .b = w->data,
                                    .ldb = w->ld,
                                    .trans_b = w->layout == PX_LAYOUT_IN_OUT,
                                    .c = dx,
                                    .ldc = dx_stride,
                                    .type = w->dtype,
                                    .c_type = w->dtype,
                                    .bias_type = PX_F32,
                                    .accumulate = accumulate,
                                    .b_frozen = true});
}

/* dx = norm'(n) + dx */
static void norm_bwd(px_stack *s, const px_norm_weight *w, const void *x, const float *rstd, const float *mean) {
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
                                            .dresidual = b->dx,
                                            .dx = b->dx,
                                            .dy_stride = c->dim,
                                            .x_stride = c->dim,
                                            .dx_stride = c->dim});
}

static void feed_forward_bwd(px_stack *s, int layer) {
  const px_config *c = s->config;
  const px_layer_weights *w = &s->weights->layers[layer];
  const px_layer_saves *save = &s->buffers->layers[layer];
  px_buffers *b = s->buffers;
  px_linear_bwd(s, &w->down, b->dx, c->dim, b->act, c->ffn_dim, false);
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
  if (c->gated) px_linear_bwd(s, &w->gate, save->gate, c->ffn_dim, b->n, c->dim, false);
  px_linear_bwd(s, &w->up, c->gated ? save->up : save->gate, c->ffn_dim, b->n, c->dim, c->gated);
  norm_bwd(s, &w->norm2, save->mid, save->rstd2, save->mean2);
}

/* Back through the rotary embedding and, where the family has them, the q/k norms; in place. */
static void queries_and_keys_bwd(px_stack *s, int layer) {
  const px_config *c = s->config;
  const px_layer_weights *w = &s->weights->layers[layer];
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
                                                .dx_stride = width});
  }
}

void px_layer_bwd(px_stack *s, int layer) {
  const px_config *c = s->config;
  const px_layer_weights *w = &s->weights->layers[layer];
  const px_layer_saves *save = &s->buffers->layers[layer];
  px_buffers *b = s->buffers;
  int64_t width = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
  bool last = layer == 0;

  feed_forward_bwd(s, layer);
  px_linear_bwd(s, &w->o, b->dx, c->dim, b->dheads, width, false);
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
                                            .dq = last ? NULL : b->dq,
                                            .dk = last ? NULL : b->dk,
                                            .dv = last ? NULL : b->dv,
                                            .workspace = b->attn_workspace});
  if (!last) {
    queries_and_keys_bwd(s, layer);
    px_linear_bwd(s, &w->q, b->dq, width, b->n, c->dim, false);
    px_linear_bwd(s, &w->k, b->dk, kv, b->n, c->dim, true);
    px_linear_bwd(s, &w->v, b->dv, kv, b->n, c->dim, true);
    norm_bwd(s, &w->norm1, save->x, save->rstd1, save->mean1);
  }
  if (s->layer_done) s->layer_done(s->layer_done_user, layer);
}

void px_stack_bwd(px_stack *s) {
  for (int layer = s->config->layers - 1; layer >= 0; layer--) px_layer_bwd(s, layer);
}
