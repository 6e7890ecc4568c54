/* SPDX-License-Identifier: MIT
 * Tokens to the last residual, in mathematical order. With u_0 = embedding:
 *   h = norm1(u)           q, k, v = h Wq, h Wk, h Wv      (q, k normed per head where the family does)
 *   q, k = rotary(q, k)    o = attention(q, [prefix keys | k], [prefix values | v])
 *   m = u + o Wo           g = norm2(m)                    u' = m + (act(g Wgate) * (g Wup)) Wdown
 * The two additions are done by the norm that follows them: `delta` is what it has to add. */
#include "model/stack.h"

static int64_t q_width(const px_config *c) { return (int64_t)c->heads * c->head_dim; }
static int64_t kv_width(const px_config *c) { return (int64_t)c->kv_heads * c->head_dim; }

px_status px_stack_check(const px_stack *s, const px_batch *b, px_error *err) {
  const px_plan_request *r = &s->buffers->plan.request;
  if (b->tokens > r->tokens || b->seqs > r->seqs || b->labels > r->labels)
    return px_fail(err, PX_INVALID, "a batch of %d tokens, %d rows, %d labels exceeds the plan of %lld, %lld, %lld",
                   b->tokens, b->seqs, b->labels, (long long)r->tokens, (long long)r->seqs, (long long)r->labels);
  for (int32_t t = 0; t < b->tokens; t++)
    if (b->positions[t] < 0 || b->positions[t] >= r->positions)
      return px_fail(err, PX_INVALID, "position %d exceeds the plan of %lld", b->positions[t], (long long)r->positions);
  return PX_OK;
}

void px_stack_bind(px_stack *s, int32_t tokens, int32_t seqs, int32_t labels) {
  const px_buffers *d = s->buffers;
  s->batch = (px_batch){.tokens = tokens,
                        .seqs = seqs,
                        .labels = labels,
                        .ids = d->ids,
                        .positions = d->positions,
                        .offsets = d->offsets,
                        .adapter = d->adapter,
                        .label_rows = d->label_rows,
                        .targets = d->targets};
}

px_status px_stack_begin(px_stack *s, const px_batch *b, px_error *err) {
  PX_TRY(px_stack_check(s, b, err));
  px_buffers *d = s->buffers;
  size_t tokens = (size_t)b->tokens * 4, labels = (size_t)b->labels * 4;
  px_backend_write(s->be, d->ids, b->ids, tokens);
  px_backend_write(s->be, d->positions, b->positions, tokens);
  px_backend_write(s->be, d->offsets, b->offsets, ((size_t)b->seqs + 1) * 4);
  if (b->adapter) px_backend_write(s->be, d->adapter, b->adapter, (size_t)b->seqs * 4);
  if (b->labels) px_backend_write(s->be, d->label_rows, b->label_rows, labels);
  if (b->targets && b->labels) px_backend_write(s->be, d->targets, b->targets, labels);
  if (b->label_group && b->labels) px_backend_write(s->be, d->label_group, b->label_group, labels);
  px_stack_bind(s, b->tokens, b->seqs, b->labels);
  if (!b->adapter) s->batch.adapter = NULL;
  if (!b->targets) s->batch.targets = NULL;
  if (b->label_group) s->batch.label_group = d->label_group;
  return PX_OK;
}

px_attn_shape px_stack_attention(const px_stack *s, int layer) {
  const px_config *c = s->config;
  px_attn_shape shape = {.dtype = s->buffers->plan.request.dtype,
                         .heads = c->heads,
                         .kv_heads = c->kv_heads,
                         .head_dim = c->head_dim,
                         .mask = PX_MASK_CAUSAL,
                         .window = c->windows[layer],
                         .seqs = s->batch.seqs,
                         .q_rows = s->batch.tokens,
                         .k_rows = s->batch.tokens,
                         .q_offsets = s->batch.offsets,
                         .k_offsets = s->batch.offsets,
                         .longest = (int32_t)s->buffers->plan.request.row_tokens};
  shape.scale = (float)(1.0 / __builtin_sqrt((double)c->head_dim));
  if (s->hooks && s->hooks->segments && s->batch.adapter) {
    shape.adapter = s->batch.adapter;
    shape.segments = s->hooks->segments + (int64_t)layer * s->hooks->adapters;
    shape.segment_count = s->hooks->adapters;
    shape.segment_rows = s->hooks->segment_rows;
  }
  return shape;
}

static void norm(px_stack *s, const px_norm_weight *w, void *x, void *sum, float *rstd, float *mean, void *y) {
  const px_config *c = s->config;
  px_op_norm_fwd(s->be, &(px_norm_fwd_args){.kind = c->norm,
                                            .dtype = s->weights->dtype,
                                            .weight_type = PX_F32,
                                            .rows = s->batch.tokens,
                                            .heads = 1,
                                            .dim = c->dim,
                                            .eps = (float)c->norm_eps,
                                            .x = x,
                                            .residual = s->delta,
                                            .sum = s->delta ? sum : NULL,
                                            .weight = w->weight,
                                            .bias = w->bias,
                                            .y = y,
                                            .x_stride = c->dim,
                                            .y_stride = c->dim,
                                            .rstd = rstd,
                                            .mean = mean});
}

/* q and k through their norms where the family has them (raw -> final), then both through the rotary embedding. */
static void place_queries_and_keys(px_stack *s, int layer) {
  const px_config *c = s->config;
  const px_layer_weights *w = &px_stack_weights(s)->layers[layer];
  const px_layer_saves *b = &s->buffers->layers[layer];
  px_dtype type = s->weights->dtype;
  for (int key = 0; key < 2; key++) {
    int32_t heads = key ? c->kv_heads : c->heads;
    int64_t width = (int64_t)heads * c->head_dim;
    void *x = key ? b->k : b->q;
    if (c->qk_norm)
      px_op_norm_fwd(s->be,
                     &(px_norm_fwd_args){
                         .kind = PX_NORM_RMS,
                         .dtype = type,
                         .weight_type = PX_F32,
                         .rows = s->batch.tokens,
                         .heads = heads,
                         .dim = c->head_dim,
                         .eps = (float)c->norm_eps,
                         .x = key ? b->k_raw : b->q_raw,
                         .x_stride = width,
                         .weight = key ? w->k_norm.weight : w->q_norm.weight,
                         .y = x,
                         .y_stride = width,
                         .rstd = b->qk_rstd ? b->qk_rstd + (key ? (int64_t)s->batch.tokens * c->heads : 0) : NULL});
    if (!c->learned_positions)
      px_op_rope(s->be, &(px_rope_args){.dtype = type,
                                        .rows = s->batch.tokens,
                                        .stride = width,
                                        .heads = heads,
                                        .head_dim = c->head_dim,
                                        .rot_dim = c->head_dim,
                                        .x = x,
                                        .positions = s->batch.positions,
                                        .cos = s->buffers->cos_table,
                                        .sin = s->buffers->sin_table,
                                        .table_rows = s->buffers->plan.request.positions});
  }
}

static void attention(px_stack *s, int layer) {
  const px_config *c = s->config;
  const px_layer_saves *b = &s->buffers->layers[layer];
  int64_t width = q_width(c), kv = kv_width(c);
  px_kv_cache *cache = s->cache;
  if (cache)
    px_op_kv_write(s->be, &(px_kv_write_args){.dtype = s->weights->dtype,
                                              .rows = s->batch.tokens,
                                              .dim = kv,
                                              .k_stride = kv,
                                              .v_stride = kv,
                                              .k = b->k,
                                              .v = b->v,
                                              .k_cache = cache->k[layer],
                                              .v_cache = cache->v[layer],
                                              .slots = cache->slots});
  if (cache && !cache->fresh)
    px_op_attn_decode(s->be, &(px_attn_decode_args){.shape = px_stack_attention(s, layer),
                                                    .q = b->q,
                                                    .o = b->o,
                                                    .q_stride = width,
                                                    .o_stride = width,
                                                    .k_cache = cache->k[layer],
                                                    .v_cache = cache->v[layer],
                                                    .block_table = cache->block_table,
                                                    .kv_lens = cache->kv_lens,
                                                    .max_blocks = cache->max_blocks,
                                                    .page_tokens = cache->page_tokens,
                                                    .workspace = s->buffers->decode_workspace});
  else
    px_op_attn_fwd(s->be, &(px_attn_fwd_args){.shape = px_stack_attention(s, layer),
                                              .q = b->q,
                                              .k = b->k,
                                              .v = b->v,
                                              .q_stride = width,
                                              .k_stride = kv,
                                              .v_stride = kv,
                                              .o_stride = width,
                                              .o = b->o,
                                              .lse = b->lse,
                                              .scratch = s->buffers->attn_scratch,
                                              .scratch_bytes = s->buffers->attn_scratch_bytes});
}

static void feed_forward(px_stack *s, int layer) {
  const px_config *c = s->config;
  const px_layer_saves *b = &s->buffers->layers[layer];
  bool with_product = !c->gated && c->act == PX_ACT_GELU_TANH && px_site_is_plain(s, layer, PX_SITE_UP);
  if (c->gated) px_site_fwd(s, layer, PX_SITE_GATE, s->buffers->n, b->gate, NULL);
  px_site_fwd(s, layer, PX_SITE_UP, s->buffers->n, c->gated ? b->up : b->gate, with_product ? s->buffers->act : NULL);
  if (!with_product)
    px_op_act_fwd(s->be, &(px_act_fwd_args){.kind = c->act,
                                            .dtype = s->weights->dtype,
                                            .rows = s->batch.tokens,
                                            .dim = c->ffn_dim,
                                            .gate = b->gate,
                                            .up = b->up,
                                            .y = s->buffers->act,
                                            .in_stride = c->ffn_dim,
                                            .y_stride = c->ffn_dim});
  px_down_input(s, layer, s->buffers->act);
  px_site_fwd(s, layer, PX_SITE_DOWN, s->buffers->act, s->buffers->proj, NULL);
}

/* Input: buffers->layers[layer].x where delta is NULL, else the layer before's mid plus delta. Output: this layer's mid
 * plus delta. */
void px_layer_fwd(px_stack *s, int layer) {
  const px_config *c = s->config;
  const px_layer_weights *w = &px_stack_weights(s)->layers[layer];
  const px_layer_saves *b = &s->buffers->layers[layer];

  norm(s, &w->norm1, s->delta ? s->buffers->layers[layer - 1].mid : b->x, b->x, b->rstd1, b->mean1, s->buffers->n);
  px_site_fwd(s, layer, PX_SITE_Q, s->buffers->n, c->qk_norm ? b->q_raw : b->q, NULL);
  px_site_fwd(s, layer, PX_SITE_K, s->buffers->n, c->qk_norm ? b->k_raw : b->k, NULL);
  px_site_fwd(s, layer, PX_SITE_V, s->buffers->n, b->v, NULL);
  place_queries_and_keys(s, layer);
  attention(s, layer);
  px_site_fwd(s, layer, PX_SITE_O, b->o, s->buffers->proj, NULL);
  s->delta = s->buffers->proj;
  norm(s, &w->norm2, b->x, b->mid, b->rstd2, b->mean2, s->buffers->n);
  feed_forward(s, layer);
}

void px_stack_fwd(px_stack *s) {
  const px_config *c = s->config;
  const px_weights *w = px_stack_weights(s);
  px_op_embed_fwd(s->be, &(px_embed_fwd_args){.dtype = w->dtype,
                                              .table_type = w->dtype,
                                              .rows = s->batch.tokens,
                                              .dim = c->dim,
                                              .table_rows = s->rows ? s->row_count : c->vocab,
                                              .position_rows = c->learned_positions ? c->context : 0,
                                              .ids = s->batch.ids,
                                              .positions = s->batch.positions,
                                              .table = s->rows ? s->rows : w->embed.data,
                                              .position_table = w->positions.data,
                                              .y = s->buffers->layers[0].x});
  s->delta = NULL;
  for (int layer = 0; layer < c->layers; layer++) px_layer_fwd(s, layer);
}
