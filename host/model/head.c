/* SPDX-License-Identifier: MIT
 * Labelled rows to logits, loss and their gradient. Rows without a label never reach the vocabulary product; logits exist
 * in chunks, and become their own gradient in place. */
#include "model/stack.h"

static void *row(void *base, px_dtype dtype, int64_t index, int64_t width) {
  return (char *)base + px_dtype_bytes(dtype, (size_t)(index * width));
}

static void gather(px_stack *s, const void *from, void *to) {
  int64_t dim = s->config->dim;
  px_op_gather_rows(s->be, &(px_rows_args){.dtype = s->weights->dtype, .rows = s->batch.labels, .all_rows = s->batch.tokens, .dim = dim,
                                           .x_stride = dim, .y_stride = dim, .index = s->batch.label_rows, .x = from, .y = to});
}

void px_head_fwd(px_stack *s) {
  const px_config *c = s->config;
  px_buffers *b = s->buffers;
  gather(s, b->layers[c->layers - 1].mid, b->head_x);
  gather(s, s->delta, b->head_n);
  px_op_norm_fwd(s->be, &(px_norm_fwd_args){.kind = c->norm, .dtype = s->weights->dtype, .weight_type = PX_F32, .rows = s->batch.labels,
                                            .heads = 1, .dim = c->dim, .eps = (float)c->norm_eps, .x = b->head_x, .residual = b->head_n,
                                            .sum = b->head_x, .weight = px_stack_weights(s)->final_norm.weight,
                                            .bias = px_stack_weights(s)->final_norm.bias, .y = b->head_n, .x_stride = c->dim, .y_stride = c->dim,
                                            .rstd = b->head_rstd, .mean = c->norm == PX_NORM_LAYER ? b->head_mean : NULL});
}

static void logits(px_stack *s, int64_t from, int64_t count, void *out, px_dtype out_type) {
  const px_weight *w = &px_stack_weights(s)->head;
  px_op_gemm(s->be, &(px_gemm_args){.m = count, .n = w->out, .k = w->in, .a = row(s->buffers->head_n, w->dtype, from, w->in),
                                    .lda = w->in, .b = w->data, .ldb = w->ld, .trans_b = true, .c = out, .ldc = w->out, .type = w->dtype,
                                    .c_type = out_type, .bias_type = PX_F32, .b_frozen = !w->trained});
}

void px_head_logits(px_stack *s, int64_t from, int64_t count, float *out) { logits(s, from, count, out, PX_F32); }

/* From the gradient of the normed labelled rows to dx, zero on all other rows. */
static void head_norm_bwd(px_stack *s) {
  const px_config *c = s->config;
  px_buffers *b = s->buffers;
  const px_weights *g = px_stack_grads(s);
  px_op_norm_bwd(s->be, &(px_norm_bwd_args){.kind = c->norm, .dtype = s->weights->dtype, .weight_type = PX_F32, .rows = s->batch.labels,
                                            .heads = 1, .dim = c->dim, .dy = b->head_dn, .x = b->head_x,
                                            .weight = px_stack_weights(s)->final_norm.weight, .rstd = b->head_rstd,
                                            .mean = c->norm == PX_NORM_LAYER ? b->head_mean : NULL, .dx = b->head_dn,
                                            .dy_stride = c->dim, .x_stride = c->dim, .dx_stride = c->dim,
                                            .dw = g ? px_grad(g->final_norm.weight) : NULL, .db = g ? px_grad(g->final_norm.bias) : NULL});
  px_op_scatter_rows(s->be, &(px_rows_args){.dtype = s->weights->dtype, .rows = s->batch.labels, .all_rows = s->batch.tokens,
                                            .dim = c->dim, .x_stride = c->dim, .y_stride = c->dim, .index = s->batch.label_rows,
                                            .x = b->head_dn, .y = b->dx});
}

/* dW += (gradient of the logits)^T (normed rows), of one chunk. */
static void head_weight_grad(px_stack *s, const px_weight *w, int64_t from, int64_t count) {
  const px_weights *g = px_stack_grads(s);
  if (!g || !g->head.data) return;
  px_op_gemm(s->be, &(px_gemm_args){.m = w->out, .n = w->in, .k = count, .a = s->buffers->logits, .lda = w->out, .trans_a = true,
                                    .b = row(s->buffers->head_n, w->dtype, from, w->in), .ldb = w->in, .c = px_grad(g->head.data), .ldc = w->in,
                                    .type = w->dtype, .c_type = PX_F32, .bias_type = PX_F32, .accumulate = true});
}

void px_head_loss(px_stack *s, px_group *groups, bool with_grad) {
  const px_weight *w = &px_stack_weights(s)->head;
  px_buffers *b = s->buffers;
  int64_t chunk = b->plan.request.logit_rows;
  px_dtype type = b->plan.request.backward ? w->dtype : PX_F32;
  for (int64_t from = 0; from < s->batch.labels; from += chunk) {
    int64_t count = s->batch.labels - from < chunk ? s->batch.labels - from : chunk;
    logits(s, from, count, b->logits, type);
    px_op_loss(s->be, &(px_loss_args){.dtype = type, .rows = count, .vocab = w->out, .stride = w->out, .logits = b->logits,
                                      .targets = s->batch.targets + from,
                                      .group = s->batch.label_group ? s->batch.label_group + from : NULL, .row_loss = b->row_loss + from,
                                      .loss_sum = groups ? &groups->loss_sum : NULL, .loss_stride = sizeof *groups / sizeof(double),
                                      .write_grad = with_grad});
    if (with_grad) head_weight_grad(s, w, from, count);
    if (with_grad)
      px_op_gemm(s->be, &(px_gemm_args){.m = count, .n = w->in, .k = w->out, .a = b->logits, .lda = w->out, .b = w->data, .ldb = w->ld,
                                        .c = row(b->head_dn, w->dtype, from, w->in), .ldc = w->in, .type = w->dtype, .c_type = w->dtype,
                                        .bias_type = PX_F32, .b_frozen = !w->trained});
  }
  if (with_grad) head_norm_bwd(s);
}
