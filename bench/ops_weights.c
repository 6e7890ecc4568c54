/* SPDX-License-Identifier: MIT
 * ops_bench: what a step and a run do beside the rows of activations: optimizer, adapters, the network behind a
 * prefix, gradients of tables, sampling, the cache, conversions of weights. */
#include <stdlib.h>

#include "ops.h"

/* ---- optimizer ---- */

void bench_optimizer(bench *b, const char *what, int64_t elements) {
  if (b->tiny) elements = 3000;
  point sum, update;
  bool go = due(b, &sum, "sum of squares %s, %lld elements", what, (long long)elements);
  bool also = due(b, &update, "AdamW %s, %lld elements", what, (long long)elements);
  if (!go && !also) return;
  size_t bytes = (size_t)elements * sizeof(float);
  px_opt_tensor t = {.count = elements, .lr_scale = 1, .weight_decay = 0.01f};
  t.value = filled(b, PX_F32, elements), t.grad = filled(b, PX_F32, elements), t.m = zeros(b, bytes), t.v = zeros(b, bytes);
  px_group group = {.tokens = 100, .lr = 1e-4f, .clip = 1};
  px_sum_sq_args s = {.tensors = on_device(b, &t, sizeof t), .tensor_count = 1, .group_count = 1};
  s.groups = on_device(b, &group, sizeof group), s.workspace = scratch(b, px_sum_sq_workspace(1));
  px_adamw_args a = {.tensors = s.tensors, .tensor_count = 1, .group_count = 1, .groups = s.groups, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f};
  px_op_sum_sq(b->be, &s);
  px_sum_sq_args host_s = {.tensors = &t, .tensor_count = 1};
  px_adamw_args host_a = {.tensors = &t, .tensor_count = 1};
  if (go) report(b, &sum, PX_OP_sum_sq, px_sum_sq_cost(&host_s), &s);
  if (also) report(b, &update, PX_OP_adamw, px_adamw_cost(&host_a), &a);
  release(b);
}

/* ---- low-rank adapters: rank 16, four of them, sixteen sequences ---- */

void bench_lora(bench *b, const shape *m, int64_t tokens) {
  enum { SEQS = 16, ADAPTERS = 4, RANK = 16 };
  if (b->tiny) tokens = SEQS;
  static const char *const modes[] = {"low-rank product", "low-rank input gradient", "low-rank weight gradient"};
  int32_t offsets[SEQS + 1], adapter[SEQS];
  for (int i = 0; i <= SEQS; i++) offsets[i] = (int32_t)(tokens * i / SEQS);
  for (int i = 0; i < SEQS; i++) adapter[i] = i % ADAPTERS;
  for (int mode = PX_LORA_FWD; mode <= PX_LORA_DW; mode++) {
    point p;
    if (!due(b, &p, "%s %s %lldx%d rank %d", modes[mode], m->name, (long long)tokens, m->dim, RANK)) continue;
    px_lora_matrix mats[ADAPTERS];
    for (int i = 0; i < ADAPTERS; i++) {
      mats[i] = (px_lora_matrix){.in = m->dim, .out = RANK, .scale = 2};
      mats[i].w = filled(b, PX_F32, (int64_t)m->dim * RANK), mats[i].dw = zeros(b, (size_t)m->dim * RANK * sizeof(float));
    }
    px_lora_args a = {.mode = (px_lora_mode)mode, .dtype = PX_BF16, .w_type = PX_F32, .seqs = SEQS, .rows = tokens};
    a.x = filled(b, PX_BF16, tokens * m->dim), a.y = filled(b, PX_BF16, tokens * RANK);
    a.x_stride = a.x_dim = m->dim, a.y_stride = a.y_dim = RANK;
    a.offsets = offsets, a.adapter = adapter, a.mats = mats, a.mat_count = ADAPTERS;
    px_cost cost = px_lora_cost(&a); /* of the host's arrays */
    a.offsets = on_device(b, offsets, sizeof offsets), a.adapter = on_device(b, adapter, sizeof adapter);
    a.mats = on_device(b, mats, sizeof mats);
    report(b, &p, PX_OP_lora_by_id, cost, &a);
    release(b);
  }
}

/* ---- learned scales, two of them, sixteen sequences ---- */

void bench_scale(bench *b, const shape *m, int64_t tokens) {
  enum { SEQS = 16, ADAPTERS = 2 };
  if (b->tiny) tokens = SEQS;
  int32_t offsets[SEQS + 1], adapter[SEQS];
  for (int i = 0; i <= SEQS; i++) offsets[i] = (int32_t)(tokens * i / SEQS);
  for (int i = 0; i < SEQS; i++) adapter[i] = i % ADAPTERS;
  point fwd, bwd;
  bool go = due(b, &fwd, "scales %s %lldx%d", m->name, (long long)tokens, m->hidden);
  bool back = due(b, &bwd, "scales backward %s %lldx%d", m->name, (long long)tokens, m->hidden);
  if (!go && !back) return;
  float *s[ADAPTERS], *ds[ADAPTERS];
  for (int i = 0; i < ADAPTERS; i++) s[i] = filled(b, PX_F32, m->hidden), ds[i] = zeros(b, (size_t)m->hidden * sizeof(float));
  int64_t n = tokens * m->hidden;
  px_scale_fwd_args f = {.dtype = PX_BF16, .seqs = SEQS, .count = ADAPTERS, .rows = tokens, .dim = m->hidden, .x_stride = m->hidden, .y_stride = m->hidden};
  f.offsets = on_device(b, offsets, sizeof offsets), f.adapter = on_device(b, adapter, sizeof adapter);
  f.s = on_device(b, s, sizeof s), f.x = filled(b, PX_BF16, n), f.y = scratch(b, (size_t)n * 2);
  if (go) report(b, &fwd, PX_OP_scale_fwd, px_scale_fwd_cost(&f), &f);
  px_scale_bwd_args g = {.dtype = PX_BF16, .seqs = SEQS, .count = ADAPTERS, .rows = tokens, .dim = m->hidden, .stride = m->hidden};
  g.offsets = f.offsets, g.adapter = f.adapter, g.s = f.s, g.ds = on_device(b, ds, sizeof ds);
  g.x = f.x, g.dy = filled(b, PX_BF16, n), g.dx = f.y;
  if (back) report(b, &bwd, PX_OP_scale_bwd, px_scale_bwd_cost(&g), &g);
  release(b);
}

/* ---- the network behind a prefix, in float32: products of both passes, column sums; what a prefix passes through ---- */

static void wide_product(bench *b, const char *what, int64_t m, int64_t n, int64_t k, bool trans_a, bool trans_b) {
  point p;
  if (!due(b, &p, "product f32 %s %lldx%lldx%lld", what, (long long)m, (long long)n, (long long)k)) return;
  px_gemm_args g = {.m = m, .n = n, .k = k, .lda = trans_a ? m : k, .ldb = trans_b ? k : n, .ldc = n, .trans_a = trans_a, .trans_b = trans_b};
  g.a = filled(b, PX_F32, m * k), g.b = filled(b, PX_F32, n * k), g.c = zeros(b, (size_t)(m * n) * 4);
  g.accumulate = trans_a; /* gradients of weights */
  report(b, &p, PX_OP_gemm, px_gemm_cost(&g), &g);
  release(b);
}

static void prefix_passes(bench *b, const char *name, int64_t elements) {
  point cast, add, drop;
  bool casts = due(b, &cast, "cast f32 to bf16 prefix %s, %lld", name, (long long)elements);
  bool adds = due(b, &add, "add f32 prefix %s, %lld", name, (long long)elements);
  bool drops = due(b, &drop, "dropout f32 prefix %s, %lld", name, (long long)elements);
  if (!casts && !adds && !drops) return;
  int64_t n = elements;
  float *x = filled(b, PX_F32, n), *more = filled(b, PX_F32, n), *y = scratch(b, (size_t)n * 4);
  px_cast_args c = {.x_type = PX_F32, .y_type = PX_BF16, .rows = 1, .dim = n, .x_stride = n, .y_stride = n, .x = x, .y = y};
  if (casts) report(b, &cast, PX_OP_cast, px_cast_cost(&c), &c);
  px_add_args a = {.dtype = PX_F32, .rows = 1, .dim = n, .a_stride = n, .b_stride = n, .y_stride = n, .a = x, .b = more, .y = y};
  if (adds) report(b, &add, PX_OP_add, px_add_cost(&a), &a);
  px_dropout_args d = {.dtype = PX_F32, .rows = 1, .dim = n, .x_stride = n, .y_stride = n, .p = 0.1f, .seed = 7, .x = x, .y = y};
  if (drops) report(b, &drop, PX_OP_dropout, px_dropout_cost(&d), &d);
  release(b);
}

void bench_reparam(bench *b, const shape *m, int64_t prefix, int64_t hidden) {
  int64_t width = (int64_t)m->kv_heads * m->head_dim, layers = b->tiny ? 1 : 24;
  if (b->tiny) prefix = 3, hidden = 24;
  wide_product(b, "prefix network in", prefix, hidden, width, false, true);
  wide_product(b, "prefix network out", prefix, width, hidden, false, true);
  wide_product(b, "prefix network d out", prefix, hidden, width, false, false);
  wide_product(b, "prefix network d weights", width, hidden, prefix, true, false);
  point p;
  if (due(b, &p, "column sums f32 %lldx%lld", (long long)prefix, (long long)width)) {
    px_col_sum_args c = {.rows = prefix, .dim = width, .x_stride = width};
    c.x = filled(b, PX_F32, prefix * width), c.out = zeros(b, (size_t)width * 4);
    report(b, &p, PX_OP_col_sum, px_col_sum_cost(&c), &c);
    release(b);
  }
  prefix_passes(b, m->name, prefix * 2 * layers * width);
}

/* ---- gradients of the embedding ---- */

void bench_embed_bwd(bench *b, const shape *m, int64_t tokens) {
  if (b->tiny) tokens = 8;
  point p;
  if (!due(b, &p, "embedding gradient %s %lldx%d", m->name, (long long)tokens, m->dim)) return;
  int32_t *ids = calloc((size_t)tokens, sizeof *ids);
  for (int64_t i = 0; i < tokens; i++) ids[i] = (int32_t)(i * 7919 % m->vocab);
  px_embed_bwd_args e = {.dtype = PX_BF16, .rows = tokens, .dim = m->dim, .table_rows = m->vocab};
  e.ids = on_device(b, ids, (size_t)tokens * sizeof *ids), e.dy = filled(b, PX_BF16, tokens * m->dim);
  e.dtable = zeros(b, (size_t)m->vocab * (size_t)m->dim * sizeof(float));
  report(b, &p, PX_OP_embed_bwd, px_embed_bwd_cost(&e), &e);
  release(b);
  free(ids);
}

/* ---- generation ---- */

void bench_sample(bench *b, const shape *m, int64_t rows) {
  if (b->tiny) rows = 2;
  static const px_sample_row kinds[] = {{.top_p = 1, .repetition_penalty = 1},
                                        {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1, .top_k = 50, .seed = 3}};
  for (int i = 0; i < 2; i++) {
    point p;
    if (!due(b, &p, "sample %s %s %lldx%lld", i ? "top-k, top-p" : "greedy", m->name, (long long)rows, (long long)m->vocab)) continue;
    px_sample_row *params = calloc((size_t)rows, sizeof *params);
    for (int64_t row = 0; row < rows; row++) params[row] = kinds[i], params[row].row = (uint64_t)row;
    px_sample_args s = {.rows = rows, .vocab = m->vocab, .stride = m->vocab};
    s.logits = filled(b, PX_F32, rows * m->vocab), s.params = on_device(b, params, (size_t)rows * sizeof *params);
    s.ids = scratch(b, (size_t)rows * sizeof(int32_t));
    int64_t n = rows * m->vocab;
    px_add_args twice = {.dtype = PX_F32, .rows = 1, .dim = n, .a_stride = n, .b_stride = n, .y_stride = n, .a = s.logits, .b = s.logits, .y = (void *)(uintptr_t)s.logits};
    for (int k = 0; k < 3; k++) px_op_add(b->be, &twice); /* [-8, 8): some tokens are much likelier than others */
    report(b, &p, PX_OP_sample, px_sample_cost(&s), &s);
    release(b);
    free(params);
  }
}

void bench_kv_write(bench *b, const shape *m, int64_t rows) {
  if (b->tiny) rows = 8;
  int64_t width = (int64_t)m->kv_heads * m->head_dim, slots = 2 * rows;
  point p;
  if (!due(b, &p, "keys and values to the cache %s %lldx%lld", m->name, (long long)rows, (long long)width)) return;
  int64_t *places = calloc((size_t)rows, sizeof *places);
  for (int64_t i = 0; i < rows; i++) places[i] = 2 * i;
  px_kv_write_args w = {.dtype = PX_BF16, .rows = rows, .dim = width, .k_stride = width, .v_stride = width};
  w.k = filled(b, PX_BF16, rows * width), w.v = filled(b, PX_BF16, rows * width);
  w.k_cache = scratch(b, (size_t)(slots * width) * 2), w.v_cache = scratch(b, (size_t)(slots * width) * 2);
  w.slots = on_device(b, places, (size_t)rows * sizeof *places);
  report(b, &p, PX_OP_kv_write, px_kv_write_cost(&w), &w);
  release(b);
  free(places);
}

/* ---- conversions of weights ---- */

void bench_conversions(bench *b, int64_t rows, int64_t dim) {
  if (b->tiny) rows = 2, dim = 256;
  static const px_dtype types[] = {PX_Q4_1, PX_Q8_0, PX_Q4_K, PX_Q6_K};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    point p;
    if (!due(b, &p, "dequantise %s %lldx%lld", px_dtype_name(types[i]), (long long)rows, (long long)dim)) continue;
    px_dequant_args d = {.src_type = types[i], .dst_type = PX_BF16, .count = rows * dim};
    d.src = filled(b, PX_BF16, (int64_t)px_dtype_bytes(types[i], (size_t)(rows * dim)) / 2 + 1);
    d.dst = scratch(b, (size_t)(rows * dim) * 2);
    report(b, &p, PX_OP_dequant, px_dequant_cost(&d), &d);
    release(b);
  }
  point p;
  if (!due(b, &p, "cast f16 to bf16 %lldx%lld", (long long)rows, (long long)dim)) return;
  px_cast_args c = {.x_type = PX_F16, .y_type = PX_BF16, .rows = rows, .dim = dim, .x_stride = dim, .y_stride = dim};
  c.x = filled(b, PX_BF16, rows * dim), c.y = scratch(b, (size_t)(rows * dim) * 2);
  report(b, &p, PX_OP_cast, px_cast_cost(&c), &c);
  release(b);
}
