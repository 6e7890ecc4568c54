/* SPDX-License-Identifier: MIT
 * ops_bench: attention over a shared prefix and own tokens, and decode over pages. */
#include <stdlib.h>

#include "ops.h"

/* ---- forward and backward of a batch of equally long sequences ---- */

/* Memory of one shape on the device; the costs read the host's copies of its arrays. */
typedef struct problem {
  px_attn_shape host, device;
  px_kv_segment segment;
  int32_t *offsets, *adapter;
  char *qkv, *gradient, *o, *dout;
  int64_t q, kv; /* widths */
} problem;

static void make_problem(bench *b, problem *p, const shape *m, int seqs, int length, int prefix) {
  int rows = seqs * length;
  p->q = (int64_t)m->heads * m->head_dim, p->kv = (int64_t)m->kv_heads * m->head_dim;
  p->offsets = calloc((size_t)seqs + 1, sizeof *p->offsets);
  p->adapter = calloc((size_t)seqs, sizeof *p->adapter);
  for (int i = 0; i <= seqs; i++) p->offsets[i] = i * length;
  p->qkv = filled(b, PX_BF16, rows * (p->q + 2 * p->kv));
  p->gradient = filled(b, PX_BF16, rows * (p->q + 2 * p->kv));
  p->o = filled(b, PX_BF16, rows * p->q);
  p->dout = filled(b, PX_BF16, rows * p->q);
  p->segment = (px_kv_segment){.stride = p->kv, .len = prefix, .grad_stride = p->kv};
  p->segment.k = filled(b, PX_BF16, prefix * p->kv);
  p->segment.v = filled(b, PX_BF16, prefix * p->kv);
  p->segment.dk = filled(b, PX_F32, prefix * p->kv);
  p->segment.dv = filled(b, PX_F32, prefix * p->kv);
  p->host = (px_attn_shape){.dtype = PX_BF16,
                            .heads = m->heads,
                            .kv_heads = m->kv_heads,
                            .head_dim = m->head_dim,
                            .scale = 0.125f,
                            .mask = PX_MASK_CAUSAL,
                            .seqs = seqs,
                            .q_rows = rows,
                            .k_rows = rows,
                            .q_offsets = p->offsets,
                            .k_offsets = p->offsets,
                            .adapter = p->adapter,
                            .segments = &p->segment,
                            .segment_count = 1,
                            .segment_rows = prefix,
                            .longest = length};
  p->device = p->host;
  p->device.q_offsets = p->device.k_offsets = on_device(b, p->offsets, ((size_t)seqs + 1) * sizeof *p->offsets);
  p->device.adapter = on_device(b, p->adapter, (size_t)seqs * sizeof *p->adapter);
  p->device.segments = on_device(b, &p->segment, sizeof p->segment);
}

void bench_attention(bench *b, const shape *m, int tokens, int length, int prefix) {
  if (b->tiny) tokens = 24, length = length > 12 ? 12 : length, prefix = prefix > 3 ? 3 : prefix;
  int seqs = tokens / length, rows = seqs * length;
  const char *engine = b->be->attention == PX_ATTENTION_CUDNN ? " cudnn" : "";
  point forward, backward;
  bool go = due(b, &forward, "attention forward %s N%d T%d x%d%s", m->name, prefix, length, seqs, engine);
  bool back = due(b, &backward, "attention backward %s N%d T%d x%d%s", m->name, prefix, length, seqs, engine);
  if (!go && !back) return;
  problem p;
  make_problem(b, &p, m, seqs, length, prefix);
  int64_t width = p.q + 2 * p.kv;
  px_attn_fwd_args f = {.shape = p.device, .q_stride = width, .k_stride = width, .v_stride = width, .o_stride = p.q};
  f.q = p.qkv, f.k = p.qkv + 2 * p.q, f.v = p.qkv + 2 * (p.q + p.kv), f.o = p.o;
  f.lse = scratch(b, (size_t)rows * (size_t)m->heads * sizeof(float));
  px_attn_bwd_args d = {.shape = p.device, .q = f.q, .k = f.k, .v = f.v, .o = p.o, .dout = p.dout, .lse = f.lse};
  d.q_stride = d.k_stride = d.v_stride = d.dq_stride = d.dk_stride = d.dv_stride = width;
  d.o_stride = d.dout_stride = p.q;
  d.dq = p.gradient, d.dk = p.gradient + 2 * p.q, d.dv = p.gradient + 2 * (p.q + p.kv);
  d.workspace = scratch(b, px_attn_bwd_workspace(&p.host, rows, prefix));
  size_t most = px_backend_attention_bytes(b->be, &p.host, rows, false), more = px_backend_attention_bytes(b->be, &p.host, rows, true);
  f.scratch_bytes = d.scratch_bytes = most > more ? most : more;
  if (f.scratch_bytes) f.scratch = d.scratch = scratch(b, f.scratch_bytes);
  px_attn_fwd_args host_f = f;
  px_attn_bwd_args host_d = d;
  host_f.shape = host_d.shape = p.host;
  px_op_attn_fwd(b->be, &f); /* the backward pass reads its output and log-sum-exp */
  if (go) report(b, &forward, PX_OP_attn_fwd, px_attn_fwd_cost(&host_f), &f);
  if (back) report(b, &backward, PX_OP_attn_bwd, px_attn_bwd_cost(&host_d), &d);
  release(b);
  free(p.offsets), free(p.adapter);
}

/* ---- decode ---- */

enum { MOST_CACHES = 16, PAGE_TOKENS = 16 };

/* `seqs` sequences of `keys` own keys, and one segment of `prefix` for all of them: one token each, by turns against
 * caches that together are larger than any on the device, for between two steps of a model every other layer's keys
 * pass by. */
void bench_decode(bench *b, const shape *m, int seqs, int keys, int prefix) {
  if (b->tiny) seqs = 3, keys = 40, prefix = prefix ? 5 : 0;
  point p;
  if (!due(b, &p, "decode %s N%d T%d x%d", m->name, prefix, keys, seqs)) return;
  int pages = (keys + PAGE_TOKENS - 1) / PAGE_TOKENS, all = seqs * pages;
  int64_t q = (int64_t)m->heads * m->head_dim, kv = (int64_t)m->kv_heads * m->head_dim, cache = (int64_t)all * PAGE_TOKENS * kv;
  int32_t *offsets = calloc((size_t)seqs + 1, 4), *adapter = calloc((size_t)seqs, 4), *lens = calloc((size_t)seqs, 4),
          *table = calloc((size_t)all, 4);
  for (int i = 0; i < seqs; i++) offsets[i + 1] = i + 1, lens[i] = keys;
  for (int i = 0; i < all; i++) table[i] = (int32_t)((int64_t)i * 7919 % all); /* 7919 is prime: every page once */
  px_kv_segment segment = {.stride = kv, .len = prefix};
  segment.k = filled(b, PX_BF16, (prefix + 1) * kv), segment.v = filled(b, PX_BF16, (prefix + 1) * kv);
  px_attn_shape host = {.dtype = PX_BF16,
                        .heads = m->heads,
                        .kv_heads = m->kv_heads,
                        .head_dim = m->head_dim,
                        .scale = 0.125f,
                        .mask = PX_MASK_CAUSAL,
                        .seqs = seqs,
                        .q_rows = seqs,
                        .q_offsets = offsets,
                        .adapter = adapter,
                        .segments = &segment,
                        .segment_count = 1,
                        .segment_rows = prefix},
                device = host;
  device.q_offsets = on_device(b, offsets, ((size_t)seqs + 1) * 4);
  device.adapter = on_device(b, adapter, (size_t)seqs * 4);
  device.segments = on_device(b, &segment, sizeof segment);
  px_attn_decode_args a = {.shape = device, .q_stride = q, .o_stride = q, .max_blocks = pages, .page_tokens = PAGE_TOKENS};
  a.q = filled(b, PX_BF16, seqs * q), a.o = filled(b, PX_BF16, seqs * q);
  a.kv_lens = on_device(b, lens, (size_t)seqs * 4), a.block_table = on_device(b, table, (size_t)all * 4);
  a.workspace = scratch(b, px_attn_decode_workspace(&host, seqs));
  px_attn_decode_args turns[MOST_CACHES];
  const void *args[MOST_CACHES];
  int64_t wanted = b->tiny ? 2 : (512 << 20) / (4 * cache) + 1;
  int count = wanted < MOST_CACHES ? (int)wanted : MOST_CACHES;
  for (int i = 0; i < count; i++) {
    a.k_cache = filled(b, PX_BF16, cache), a.v_cache = filled(b, PX_BF16, cache);
    turns[i] = a, args[i] = &turns[i];
  }
  a.shape = host, a.kv_lens = lens; /* what the cost reads */
  report_turns(b, &p, PX_OP_attn_decode, px_attn_decode_cost(&a), args, count);
  release(b);
  free(offsets), free(adapter), free(lens), free(table);
}
