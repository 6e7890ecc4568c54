/* SPDX-License-Identifier: MIT
 * ops_bench: what a training step does with rows of activations, at a model's widths, in bfloat16. */
#include <stdlib.h>

#include "ops.h"

/* ---- products ---- */

/* A product of `m` rows with a frozen weight [n, k] in Hugging Face's orientation (forward), or [k, n] (backward). GPT-2's
 * have a bias in the forward pass, and the one into the feed-forward network makes its GELU. */
static void product(bench *b, const char *what, const shape *s, int64_t m, int64_t n, int64_t k, bool forward) {
  point p;
  bool biased = s->gpt2 && forward && n != s->vocab, gelu = biased && n == s->hidden;
  if (!due(b, &p, "product %s %s %lldx%lldx%lld", s->name, what, (long long)m, (long long)n, (long long)k)) return;
  px_gemm_args g = {.m = m,
                    .n = n,
                    .k = k,
                    .lda = k,
                    .ldb = forward ? k : n,
                    .ldc = n,
                    .type = PX_BF16,
                    .c_type = PX_BF16,
                    .ldg = n,
                    .bias_type = PX_BF16,
                    .trans_b = forward,
                    .b_frozen = true};
  g.a = filled(b, PX_BF16, m * k), g.b = filled(b, PX_BF16, n * k), g.c = scratch(b, (size_t)(m * n) * 2);
  if (biased) g.bias = filled(b, PX_BF16, n);
  if (gelu) g.gelu = scratch(b, (size_t)(m * n) * 2);
  report(b, &p, PX_OP_gemm, px_gemm_cost(&g), &g);
  release(b);
}

/* As the engine multiplies: each weight of the model by itself. */
void bench_products(bench *b, const shape *s, int64_t tokens) {
  int64_t own = (int64_t)s->heads * s->head_dim, kv = (int64_t)s->kv_heads * s->head_dim;
  if (b->tiny) tokens = tokens < 8 ? tokens : 8;
  product(b, "q", s, tokens, own, s->dim, true);
  if (kv != own) product(b, "k or v", s, tokens, kv, s->dim, true);
  product(b, "ffn in", s, tokens, s->hidden, s->dim, true);
  product(b, "ffn out", s, tokens, s->dim, s->hidden, true);
  if (!b->tiny && tokens < 256) return; /* generation has no backward pass */
  product(b, "d q", s, tokens, s->dim, own, false);
  if (kv != own) product(b, "d k or v", s, tokens, s->dim, kv, false);
  product(b, "d ffn in", s, tokens, s->dim, s->hidden, false);
  product(b, "d ffn out", s, tokens, s->hidden, s->dim, false);
}

void bench_head(bench *b, const shape *s, int64_t labelled) {
  if (b->tiny) labelled = 4;
  product(b, "head", s, labelled, s->vocab, s->dim, true);
  product(b, "d head", s, labelled, s->dim, s->vocab, false);
  point p;
  if (!due(b, &p, "loss and its gradient %s %lldx%lld", s->name, (long long)labelled, (long long)s->vocab)) return;
  int32_t *targets = calloc((size_t)labelled, sizeof *targets);
  for (int64_t i = 0; i < labelled; i++) targets[i] = (int32_t)(i * 7919 % s->vocab);
  px_loss_args l = {.dtype = PX_BF16, .rows = labelled, .vocab = s->vocab, .stride = s->vocab, .write_grad = true};
  l.logits = filled(b, PX_BF16, labelled * s->vocab);
  l.targets = on_device(b, targets, (size_t)labelled * sizeof *targets);
  l.row_loss = scratch(b, (size_t)labelled * sizeof(float));
  l.loss_sum = zeros(b, sizeof(double)), l.loss_stride = 1;
  report(b, &p, PX_OP_loss, px_loss_cost(&l), &l);
  release(b);
  free(targets);
}

/* ---- norms ---- */

static void norms(bench *b, const shape *s, int64_t rows, int heads, int dim, const char *what) {
  bool full = heads == 1;
  point fwd, bwd, weights;
  bool go = due(b, &fwd, "norm%s forward %s %s%lldx%d", full ? " + residual" : "", s->name, what, (long long)rows, heads * dim);
  bool back = due(b, &bwd, "norm backward %s %s%lldx%d", s->name, what, (long long)rows, heads * dim);
  bool learned = full && due(b, &weights, "norm backward and weights %s %lldx%d", s->name, (long long)rows, dim);
  if (!go && !back && !learned) return;
  int64_t width = (int64_t)heads * dim, all = rows * width;
  px_norm_kind kind = s->gpt2 ? PX_NORM_LAYER : PX_NORM_RMS;
  px_norm_fwd_args f = {.kind = kind, .dtype = PX_BF16, .weight_type = PX_F32, .rows = rows, .heads = heads, .dim = dim, .eps = 1e-5f};
  f.x = filled(b, PX_BF16, all), f.y = scratch(b, (size_t)all * 2), f.weight = filled(b, PX_F32, dim);
  f.x_stride = f.y_stride = width;
  f.bias = s->gpt2 ? filled(b, PX_F32, dim) : NULL;
  f.rstd = scratch(b, (size_t)(rows * heads) * 4);
  f.mean = s->gpt2 ? scratch(b, (size_t)(rows * heads) * 4) : NULL;
  if (full) f.residual = filled(b, PX_BF16, all), f.sum = scratch(b, (size_t)all * 2);
  px_op_norm_fwd(b->be, &f); /* the backward pass reads its statistics */
  if (go) report(b, &fwd, PX_OP_norm_fwd, px_norm_fwd_cost(&f), &f);
  px_norm_bwd_args d = {.kind = kind, .dtype = PX_BF16, .weight_type = PX_F32, .rows = rows, .heads = heads, .dim = dim};
  d.dy = filled(b, PX_BF16, all), d.x = full ? f.sum : f.x, d.weight = f.weight, d.rstd = f.rstd, d.mean = f.mean;
  d.dresidual = full ? filled(b, PX_BF16, all) : NULL, d.dx = scratch(b, (size_t)all * 2);
  d.dy_stride = d.x_stride = d.dx_stride = width;
  if (back) report(b, &bwd, PX_OP_norm_bwd, px_norm_bwd_cost(&d), &d);
  d.dw = zeros(b, (size_t)dim * 4), d.db = s->gpt2 ? zeros(b, (size_t)dim * 4) : NULL;
  if (learned) report(b, &weights, PX_OP_norm_bwd, px_norm_bwd_cost(&d), &d);
  release(b);
}

/* ---- activations ---- */

static void activations(bench *b, const shape *s, int64_t rows) {
  const char *name = s->gpt2 ? "gelu" : "silu gate";
  point fwd, bwd;
  bool go = due(b, &fwd, "%s forward %s %lldx%d", name, s->name, (long long)rows, s->hidden);
  bool back = due(b, &bwd, "%s backward %s %lldx%d", name, s->name, (long long)rows, s->hidden);
  if (!go && !back) return;
  int64_t all = rows * s->hidden;
  px_act_kind kind = s->gpt2 ? PX_ACT_GELU_TANH : PX_ACT_SILU;
  px_act_fwd_args f = {.kind = kind, .dtype = PX_BF16, .rows = rows, .dim = s->hidden, .in_stride = s->hidden, .y_stride = s->hidden};
  f.gate = filled(b, PX_BF16, all), f.up = s->gpt2 ? NULL : filled(b, PX_BF16, all), f.y = scratch(b, (size_t)all * 2);
  if (go) report(b, &fwd, PX_OP_act_fwd, px_act_fwd_cost(&f), &f);
  px_act_bwd_args d = {.kind = kind, .dtype = PX_BF16, .rows = rows, .dim = s->hidden, .gate = f.gate, .up = f.up};
  d.in_stride = d.dy_stride = d.d_stride = s->hidden;
  d.dy = filled(b, PX_BF16, all), d.dgate = scratch(b, (size_t)all * 2), d.dup = s->gpt2 ? NULL : scratch(b, (size_t)all * 2);
  if (back) report(b, &bwd, PX_OP_act_bwd, px_act_bwd_cost(&d), &d);
  release(b);
}

/* ---- rotary embedding ---- */

static void rotary(bench *b, const shape *s, int64_t rows) {
  point p;
  if (!due(b, &p, "rope %s %lldx%d", s->name, (long long)rows, s->heads * s->head_dim)) return;
  enum { LENGTH = 1024 };
  int64_t width = (int64_t)s->heads * s->head_dim;
  int32_t *positions = calloc((size_t)rows, sizeof *positions);
  for (int64_t i = 0; i < rows; i++) positions[i] = (int32_t)(i % LENGTH);
  px_rope_args r = {.dtype = PX_BF16, .rows = rows, .stride = width, .heads = s->heads, .head_dim = s->head_dim};
  r.rot_dim = s->head_dim, r.table_rows = LENGTH;
  r.x = filled(b, PX_BF16, rows * width), r.positions = on_device(b, positions, (size_t)rows * sizeof *positions);
  r.cos = filled(b, PX_F32, LENGTH * s->head_dim / 2), r.sin = filled(b, PX_F32, LENGTH * s->head_dim / 2);
  report(b, &p, PX_OP_rope, px_rope_cost(&r), &r);
  release(b);
  free(positions);
}

/* ---- embedding, chosen rows ---- */

static void embedding(bench *b, const shape *s, int64_t rows) {
  point p;
  if (!due(b, &p, "embedding %s %lldx%d", s->name, (long long)rows, s->dim)) return;
  int32_t *ids = calloc((size_t)rows, sizeof *ids);
  for (int64_t i = 0; i < rows; i++) ids[i] = (int32_t)(i * 7919 % s->vocab);
  px_embed_fwd_args e = {.dtype = PX_BF16, .table_type = PX_BF16, .rows = rows, .dim = s->dim, .table_rows = s->vocab};
  e.ids = on_device(b, ids, (size_t)rows * sizeof *ids), e.table = filled(b, PX_BF16, s->vocab * s->dim);
  e.y = scratch(b, (size_t)(rows * s->dim) * 2);
  if (s->gpt2) {
    for (int64_t i = 0; i < rows; i++) ids[i] = (int32_t)(i % 1024);
    e.position_rows = 1024, e.position_table = filled(b, PX_BF16, 1024 * s->dim);
    e.positions = on_device(b, ids, (size_t)rows * sizeof *ids);
  }
  report(b, &p, PX_OP_embed_fwd, px_embed_fwd_cost(&e), &e);
  release(b);
  free(ids);
}

/* Every fourth row has a label. */
static void chosen_rows(bench *b, const shape *s, int64_t rows) {
  int64_t few = rows / 4;
  point out, back;
  bool gather = due(b, &out, "gather rows %s %lld of %lldx%d", s->name, (long long)few, (long long)rows, s->dim);
  bool scatter = due(b, &back, "scatter rows %s %lld of %lldx%d", s->name, (long long)few, (long long)rows, s->dim);
  if (!gather && !scatter) return;
  int32_t *index = calloc((size_t)few, sizeof *index);
  for (int64_t i = 0; i < few; i++) index[i] = (int32_t)(4 * i);
  px_rows_args r = {.dtype = PX_BF16, .rows = few, .all_rows = rows, .dim = s->dim, .x_stride = s->dim, .y_stride = s->dim};
  void *all = filled(b, PX_BF16, rows * s->dim), *part = filled(b, PX_BF16, few * s->dim);
  r.index = on_device(b, index, (size_t)few * sizeof *index), r.x = all, r.y = part;
  if (gather) report(b, &out, PX_OP_gather_rows, px_gather_rows_cost(&r), &r);
  r.x = part, r.y = all;
  if (scatter) report(b, &back, PX_OP_scatter_rows, px_scatter_rows_cost(&r), &r);
  release(b);
  free(index);
}

void bench_rows(bench *b, const shape *s, int64_t tokens) {
  if (b->tiny) tokens = 8;
  norms(b, s, tokens, 1, s->dim, "");
  activations(b, s, tokens);
  if (!s->gpt2) {
    rotary(b, s, tokens);
    norms(b, s, tokens, s->heads, s->head_dim, "query heads ");
  }
  embedding(b, s, tokens);
  chosen_rows(b, s, tokens);
}
