/* SPDX-License-Identifier: MIT
 * Time of every operation at the sizes of real models, in percent of what the device reaches in a large product and in
 * a copy, which are measured first. Run by gpu_check.sh; works on every device.
 *   ops_bench --device D [--csv FILE] [--from POINT] [--budget-s S] [--tiny]
 * Prints the number of the first point that was left out, when the budget ended the run, as "next N". */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "backend/backend.h"

enum { MOST_SAMPLES = 100, LEAST_SAMPLES = 5, MOST_SECONDS = 3, PATTERN = 1 << 20 };

typedef struct bench {
  px_backend *be;
  FILE *csv;
  bool tiny;
  double begin, budget;
  int number, from, left; /* points so far; the first to run; the first left out, -1: none */
  double peak_flops, peak_bytes;
} bench;

static px_error err;

static void need(px_status status) {
  if (status == PX_OK) return;
  fprintf(stderr, "ops_bench: %s\n", err.message);
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Backend memory of random numbers in [-1, 1), never zeros: products of zeros draw less power and run faster. */
static void *filled(bench *b, px_dtype type, int64_t count) {
  static uint16_t half[PATTERN];
  static float whole[PATTERN];
  uint32_t state = 12345;
  for (int i = 0; whole[0] == 0 && i < PATTERN; i++) {
    state = state * 1664525u + 1013904223u;
    whole[i] = (float)(int32_t)(state | 1) * 0x1p-31f;
    half[i] = px_f32_to_bf16(whole[i]);
  }
  size_t e = px_dtype_bytes(type, 1);
  char *p = px_backend_alloc(b->be, (size_t)(count + 8) * e);
  for (int64_t at = 0; p && at < count; at += PATTERN) {
    size_t bytes = (size_t)(count - at < PATTERN ? count - at : PATTERN) * e;
    px_backend_write(b->be, p + (size_t)at * e, type == PX_F32 ? (void *)whole : half, bytes);
  }
  need(px_backend_status(b->be, &err));
  return p;
}

static int by_size(const void *x, const void *y) {
  double a = *(const double *)x, b = *(const double *)y;
  return a < b ? -1 : a > b;
}

typedef void operation(bench *b, const void *args);

/* Median seconds of one call; *samples: how many were taken, each of enough calls to hide the clock. */
static double seconds_of(bench *b, operation *run, const void *args, int *samples, double *least) {
  double taken[MOST_SAMPLES], start = now();
  run(b, args);
  px_backend_wait(b->be);
  need(px_backend_status(b->be, &err));
  double one = now() - start;
  int calls = b->tiny || one > 1e-3 ? 1 : (int)(1e-3 / one) + 1;
  for (int i = 0; i < (b->tiny ? 0 : 3); i++) run(b, args);
  px_backend_wait(b->be);
  start = now();
  int n = 0;
  while (n < (b->tiny ? 1 : LEAST_SAMPLES) || (!b->tiny && n < MOST_SAMPLES && now() - start < MOST_SECONDS)) {
    double t = now();
    for (int i = 0; i < calls; i++) run(b, args);
    px_backend_wait(b->be);
    taken[n++] = (now() - t) / calls;
  }
  need(px_backend_status(b->be, &err));
  qsort(taken, (size_t)n, sizeof *taken, by_size);
  *samples = n;
  *least = taken[0];
  return taken[n / 2];
}

/* Whether the next point is to be run. */
static bool due(bench *b) {
  int number = b->number++;
  if (number < b->from) return false;
  if (b->left < 0 && now() - b->begin > b->budget) b->left = number;
  return b->left < 0;
}

static void report(bench *b, const char *name, px_cost cost, operation *run, const void *args) {
  int samples;
  double least, s = seconds_of(b, run, args, &samples, &least);
  double flops = cost.operations / s, bytes = cost.bytes / s;
  double compute = b->peak_flops ? 100 * flops / b->peak_flops : 0,
         memory = b->peak_bytes ? 100 * bytes / b->peak_bytes : 0;
  printf("%3d %-46s %10.1f us %8.1f TFLOP/s %5.1f %%  %7.1f GB/s %5.1f %%\n", b->number - 1, name, s * 1e6,
         flops * 1e-12, compute, bytes * 1e-9, memory);
  fflush(stdout);
  if (!b->csv) return;
  fprintf(b->csv, "%d,\"%s\",%s,%.3f,%.3f,%d,%.6g,%.6g,%.2f,%.2f\n", b->number - 1, name, b->be->device, s * 1e6,
          least * 1e6, samples, cost.operations, cost.bytes, compute, memory);
  fflush(b->csv);
}

/* ---- ceilings ---- */

static void run_gemm(bench *b, const void *args) { px_op_gemm(b->be, args); }

static void run_copy(bench *b, const void *args) {
  char *const *p = args;
  size_t bytes = b->tiny ? 1 << 16 : 1 << 30;
  px_backend_copy(b->be, p[0], p[1], bytes);
}

static void ceilings(bench *b) {
  int64_t n = b->tiny ? 64 : 8192;
  px_gemm_args g = {.m = n, .n = n, .k = n, .lda = n, .ldb = n, .ldc = n, .type = PX_BF16, .c_type = PX_BF16};
  void *memory[3] = {filled(b, PX_BF16, n * n), filled(b, PX_BF16, n * n), filled(b, PX_BF16, n * n)};
  g.a = memory[0], g.b = memory[1], g.c = memory[2], g.trans_b = true;
  int samples;
  double least, s = seconds_of(b, run_gemm, &g, &samples, &least);
  b->peak_flops = 2.0 * (double)n * (double)n * (double)n / s;
  for (int i = 0; i < 3; i++) px_backend_free(b->be, memory[i]);
  int64_t count = (b->tiny ? 1 << 16 : 1 << 30) / 4;
  char *copy[2] = {filled(b, PX_F32, count), filled(b, PX_F32, count)};
  s = seconds_of(b, run_copy, copy, &samples, &least);
  b->peak_bytes = 2.0 * 4.0 * (double)count / s;
  for (int i = 0; i < 2; i++) px_backend_free(b->be, copy[i]);
  printf("ceilings on %s: %.1f TFLOP/s in a bfloat16 product of %lld, %.1f GB/s in a copy (read and written)\n",
         b->be->device, b->peak_flops * 1e-12, (long long)n, b->peak_bytes * 1e-9);
}

/* ---- attention ---- */

typedef struct heads {
  const char *name;
  int heads, kv_heads, dim;
} heads;

static void run_attn_fwd(bench *b, const void *args) { px_op_attn_fwd(b->be, args); }
static void run_attn_bwd(bench *b, const void *args) { px_op_attn_bwd(b->be, args); }

static void *on_device(bench *b, const void *host, size_t bytes) {
  void *p = px_backend_alloc(b->be, bytes);
  px_backend_write(b->be, p, host, bytes);
  need(px_backend_status(b->be, &err));
  return p;
}

/* Memory of one shape, on the device; the host's copies of its arrays, which the costs read. */
typedef struct problem {
  char *memory[8]; /* qkv, its gradient, o, dout, segment k and v, their gradients, lse, workspace */
  void *arrays[3];
  int32_t *offsets, *adapter;
  px_kv_segment segment;
  px_attn_fwd_args fwd, host_fwd;
  px_attn_bwd_args bwd, host_bwd;
} problem;

static px_attn_shape make_memory(bench *b, problem *p, heads h, int seqs, int rows, int prefix) {
  int64_t q = (int64_t)h.heads * h.dim, kv = (int64_t)h.kv_heads * h.dim;
  int64_t counts[6] = {rows * (q + 2 * kv), rows * (q + 2 * kv), rows * q, rows * q, 2 * prefix * kv, 0};
  for (int i = 0; i < 5; i++) p->memory[i] = filled(b, PX_BF16, counts[i]);
  p->memory[5] = filled(b, PX_F32, 2 * prefix * kv);
  p->memory[6] = filled(b, PX_F32, (int64_t)rows * h.heads);
  p->segment = (px_kv_segment){.k = p->memory[4],
                               .v = p->memory[4] + 2 * prefix * kv,
                               .stride = kv,
                               .len = prefix,
                               .dk = (float *)p->memory[5],
                               .dv = (float *)p->memory[5] + prefix * kv,
                               .grad_stride = kv};
  px_attn_shape shape = {.dtype = PX_BF16,
                         .heads = h.heads,
                         .kv_heads = h.kv_heads,
                         .head_dim = h.dim,
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
                         .segment_rows = prefix};
  p->memory[7] = px_backend_alloc(b->be, px_attn_bwd_workspace(&shape, rows, prefix));
  p->arrays[0] = on_device(b, p->offsets, ((size_t)seqs + 1) * 4);
  p->arrays[1] = on_device(b, p->adapter, (size_t)seqs * 4);
  p->arrays[2] = on_device(b, &p->segment, sizeof p->segment);
  return shape;
}

static void make_arguments(problem *p, px_attn_shape host, int64_t q, int64_t kv) {
  px_attn_shape s = host;
  s.q_offsets = s.k_offsets = p->arrays[0], s.adapter = p->arrays[1], s.segments = p->arrays[2];
  int64_t width = q + 2 * kv;
  char *x = p->memory[0], *dx = p->memory[1];
  p->fwd = (px_attn_fwd_args){.shape = s, .q = x, .k = x + 2 * q, .v = x + 2 * (q + kv), .o = p->memory[2]};
  p->fwd.q_stride = p->fwd.k_stride = p->fwd.v_stride = width;
  p->fwd.o_stride = q;
  p->fwd.lse = (float *)p->memory[6];
  p->bwd = (px_attn_bwd_args){.shape = s, .q = x, .k = x + 2 * q, .v = x + 2 * (q + kv), .o = p->memory[2]};
  p->bwd.q_stride = p->bwd.k_stride = p->bwd.v_stride = width;
  p->bwd.dq_stride = p->bwd.dk_stride = p->bwd.dv_stride = width;
  p->bwd.o_stride = p->bwd.dout_stride = q;
  p->bwd.dout = p->memory[3], p->bwd.lse = p->fwd.lse, p->bwd.workspace = p->memory[7];
  p->bwd.dq = dx, p->bwd.dk = dx + 2 * q, p->bwd.dv = dx + 2 * (q + kv);
  p->host_fwd = p->fwd, p->host_bwd = p->bwd;
  p->host_fwd.shape = p->host_bwd.shape = host;
}

static void attention(bench *b, heads h, int tokens, int length, int prefix) {
  if (b->tiny) tokens = 24, length = length > 12 ? 12 : length, prefix = prefix > 3 ? 3 : prefix;
  bool forward = due(b), backward = due(b);
  if (!forward && !backward) return;
  int seqs = tokens / length, rows = seqs * length, last = b->number;
  problem p = {.offsets = malloc(((size_t)seqs + 1) * 4), .adapter = calloc((size_t)seqs, 4)};
  for (int i = 0; i <= seqs; i++) p.offsets[i] = i * length;
  make_arguments(&p, make_memory(b, &p, h, seqs, rows, prefix), (int64_t)h.heads * h.dim, (int64_t)h.kv_heads * h.dim);
  char name[128];
  snprintf(name, sizeof name, "attention forward %s N%d T%d x%d", h.name, prefix, length, seqs);
  b->number = last - 1; /* what report prints */
  if (forward) report(b, name, px_attn_fwd_cost(&p.host_fwd), run_attn_fwd, &p.fwd);
  snprintf(name, sizeof name, "attention backward %s N%d T%d x%d", h.name, prefix, length, seqs);
  b->number = last;
  if (backward) report(b, name, px_attn_bwd_cost(&p.host_bwd), run_attn_bwd, &p.bwd);
  for (int i = 0; i < 8; i++) px_backend_free(b->be, p.memory[i]);
  for (int i = 0; i < 3; i++) px_backend_free(b->be, p.arrays[i]);
  free(p.offsets), free(p.adapter);
}

/* ---- decode ---- */

enum { MOST_CACHES = 16, PAGE_TOKENS = 16 };

/* One token for each sequence, by turns against caches that together are larger than any on the device: between two
 * steps of a model every other layer's keys pass by. */
typedef struct decode_problem {
  px_attn_decode_args args[MOST_CACHES];
  int caches, turn;
} decode_problem;

static void run_decode(bench *b, const void *args) {
  decode_problem *p = (decode_problem *)(uintptr_t)args;
  px_op_attn_decode(b->be, &p->args[p->turn++ % p->caches]);
}

/* `seqs` sequences of `keys` own keys, and one segment of `prefix` for all of them. */
static void decode(bench *b, heads h, int seqs, int keys, int prefix) {
  if (b->tiny) seqs = 3, keys = 40, prefix = prefix ? 5 : 0;
  if (!due(b)) return;
  int pages = (keys + PAGE_TOKENS - 1) / PAGE_TOKENS, all = seqs * pages, made = 0;
  int64_t q = (int64_t)h.heads * h.dim, kv = (int64_t)h.kv_heads * h.dim, cache = (int64_t)all * PAGE_TOKENS * kv;
  int32_t *offsets = calloc((size_t)seqs + 1, 4), *adapter = calloc((size_t)seqs, 4), *lens = calloc((size_t)seqs, 4),
          *table = calloc((size_t)all, 4);
  for (int i = 0; i < seqs; i++) offsets[i + 1] = i + 1, lens[i] = keys;
  for (int i = 0; i < all; i++) table[i] = (int32_t)((int64_t)i * 7919 % all); /* 7919 is prime: every page once */
  void *memory[2 * MOST_CACHES + 10];
  px_kv_segment segment = {.stride = kv, .len = prefix};
  segment.k = memory[made++] = filled(b, PX_BF16, (prefix + 1) * kv);
  segment.v = memory[made++] = filled(b, PX_BF16, (prefix + 1) * kv);
  px_attn_shape host = {.dtype = PX_BF16,
                        .heads = h.heads,
                        .kv_heads = h.kv_heads,
                        .head_dim = h.dim,
                        .scale = 0.125f,
                        .mask = PX_MASK_CAUSAL,
                        .seqs = seqs,
                        .q_rows = seqs,
                        .q_offsets = offsets,
                        .adapter = adapter,
                        .segments = &segment,
                        .segment_count = 1,
                        .segment_rows = prefix},
                shape = host;
  shape.q_offsets = memory[made++] = on_device(b, offsets, ((size_t)seqs + 1) * 4);
  shape.adapter = memory[made++] = on_device(b, adapter, (size_t)seqs * 4);
  shape.segments = memory[made++] = on_device(b, &segment, sizeof segment);
  px_attn_decode_args a = {
      .shape = shape, .q_stride = q, .o_stride = q, .max_blocks = pages, .page_tokens = PAGE_TOKENS};
  a.q = memory[made++] = filled(b, PX_BF16, seqs * q);
  a.o = memory[made++] = filled(b, PX_BF16, seqs * q);
  a.kv_lens = memory[made++] = on_device(b, lens, (size_t)seqs * 4);
  a.block_table = memory[made++] = on_device(b, table, (size_t)all * 4);
  a.workspace = memory[made++] = px_backend_alloc(b->be, px_attn_decode_workspace(&shape, seqs));
  decode_problem p = {.caches = b->tiny ? 2 : (int)((512 << 20) / (4 * cache)) + 1};
  if (p.caches > MOST_CACHES) p.caches = MOST_CACHES;
  for (int i = 0; i < p.caches; i++) {
    a.k_cache = memory[made++] = filled(b, PX_BF16, cache);
    a.v_cache = memory[made++] = filled(b, PX_BF16, cache);
    p.args[i] = a;
  }
  char name[128];
  snprintf(name, sizeof name, "decode %s N%d T%d x%d", h.name, prefix, keys, seqs);
  a.shape = host, a.kv_lens = lens;
  report(b, name, px_attn_decode_cost(&a), run_decode, &p);
  while (made > 0) px_backend_free(b->be, memory[--made]);
  free(offsets), free(adapter), free(lens), free(table);
}

/* ---- products and passes ---- */

static void product(bench *b, const char *what, int64_t m, int64_t n, int64_t k, bool transposed) {
  if (!due(b)) return;
  if (b->tiny) m = 16, n = 32, k = 24;
  px_gemm_args g = {.m = m,
                    .n = n,
                    .k = k,
                    .lda = k,
                    .ldb = transposed ? k : n,
                    .ldc = n,
                    .type = PX_BF16,
                    .c_type = PX_BF16,
                    .trans_b = transposed,
                    .b_frozen = true};
  void *memory[3] = {filled(b, PX_BF16, m * k), filled(b, PX_BF16, n * k), filled(b, PX_BF16, m * n)};
  g.a = memory[0], g.b = memory[1], g.c = memory[2];
  char name[128];
  snprintf(name, sizeof name, "product %s %lldx%lldx%lld", what, (long long)m, (long long)n, (long long)k);
  report(b, name, px_gemm_cost(&g), run_gemm, &g);
  for (int i = 0; i < 3; i++) px_backend_free(b->be, memory[i]);
}

static void run_norm(bench *b, const void *args) { px_op_norm_fwd(b->be, args); }
static void run_act(bench *b, const void *args) { px_op_act_fwd(b->be, args); }
static void run_act_bwd(bench *b, const void *args) { px_op_act_bwd(b->be, args); }
static void run_loss(bench *b, const void *args) { px_op_loss(b->be, args); }

static void passes(bench *b, int64_t rows, int dim, int hidden, int64_t vocab) {
  if (b->tiny) rows = 8, dim = 64, hidden = 96, vocab = 300;
  void *x = filled(b, PX_BF16, rows * dim), *r = filled(b, PX_BF16, rows * dim), *y = filled(b, PX_BF16, rows * dim);
  float *w = filled(b, PX_F32, dim), *rstd = filled(b, PX_F32, rows);
  px_norm_fwd_args n = {.kind = PX_NORM_RMS,
                        .dtype = PX_BF16,
                        .weight_type = PX_F32,
                        .rows = rows,
                        .heads = 1,
                        .dim = dim,
                        .eps = 1e-5f,
                        .x = x,
                        .residual = r,
                        .sum = x,
                        .weight = w,
                        .y = y,
                        .x_stride = dim,
                        .y_stride = dim,
                        .rstd = rstd};
  char name[128];
  snprintf(name, sizeof name, "norm + residual %lldx%d", (long long)rows, dim);
  if (due(b)) report(b, name, px_norm_fwd_cost(&n), run_norm, &n);
  void *gate = filled(b, PX_BF16, 2 * rows * hidden), *out = filled(b, PX_BF16, rows * hidden);
  px_act_fwd_args a = {.kind = PX_ACT_SILU,
                       .dtype = PX_BF16,
                       .rows = rows,
                       .dim = hidden,
                       .gate = gate,
                       .up = (char *)gate + 2 * hidden,
                       .y = out,
                       .in_stride = 2 * hidden,
                       .y_stride = hidden};
  snprintf(name, sizeof name, "silu gate forward %lldx%d", (long long)rows, hidden);
  if (due(b)) report(b, name, px_act_fwd_cost(&a), run_act, &a);
  px_act_bwd_args ab = {.kind = PX_ACT_SILU,
                        .dtype = PX_BF16,
                        .rows = rows,
                        .dim = hidden,
                        .gate = gate,
                        .up = (char *)gate + 2 * hidden,
                        .dy = out,
                        .dgate = gate,
                        .dup = (char *)gate + 2 * hidden,
                        .in_stride = 2 * hidden,
                        .dy_stride = hidden,
                        .d_stride = 2 * hidden};
  snprintf(name, sizeof name, "silu gate backward %lldx%d", (long long)rows, hidden);
  if (due(b)) report(b, name, px_act_bwd_cost(&ab), run_act_bwd, &ab);
  int64_t labelled = b->tiny ? 4 : 2048;
  int32_t *host = calloc((size_t)labelled, 4), *targets = on_device(b, host, (size_t)labelled * 4);
  px_loss_args l = {.dtype = PX_BF16,
                    .rows = labelled,
                    .vocab = vocab,
                    .stride = vocab,
                    .logits = filled(b, PX_BF16, labelled * vocab),
                    .targets = targets,
                    .row_loss = rstd,
                    .write_grad = true};
  snprintf(name, sizeof name, "loss and its gradient %lldx%lld", (long long)labelled, (long long)vocab);
  if (due(b) && labelled <= rows) report(b, name, px_loss_cost(&l), run_loss, &l);
  void *all[] = {x, r, y, w, rstd, gate, out, targets, l.logits};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) px_backend_free(b->be, all[i]);
  free(host);
}

static void all_points(bench *b) { /* in the order of what they are worth to know */
  static const heads models[] = {{"gpt2-medium", 16, 16, 64}, {"llama-3-8b", 32, 8, 128}, {"qwen2.5-0.5b", 14, 2, 64}};
  static const int lengths[] = {1024, 55, 512, 2048}, prefixes[] = {100, 10, 50, 200, 2048};
  for (int i = 0; i < 3; i++) attention(b, models[i], 16384, 1024, 100);
  for (int i = 0; i < 2; i++) attention(b, models[i], 16384, 55, 100);
  product(b, "qkv 8b", 16384, 6144, 4096, true);
  product(b, "down 8b", 16384, 4096, 14336, true);
  product(b, "dgate 8b", 16384, 4096, 28672, false);
  product(b, "qkv gpt2-medium", 16384, 3072, 1024, true);
  product(b, "head gpt2-medium", 2048, 50257, 1024, true);
  product(b, "qkv 8b, 512 rows", 512, 6144, 4096, true);
  passes(b, 16384, 4096, 14336, 128256);
  passes(b, 16384, 1024, 4096, 50257);
  static const struct {
    int model, seqs, keys, prefix;
  } decodes[] = {{1, 64, 1024, 100}, {0, 64, 512, 100},  {2, 64, 1024, 100}, {1, 1, 8192, 100},
                 {1, 16, 4096, 0},   {1, 64, 512, 2048}, {2, 1, 32768, 0},   {1, 4, 300, 20}};
  for (size_t i = 0; i < sizeof decodes / sizeof *decodes; i++)
    decode(b, models[decodes[i].model], decodes[i].seqs, decodes[i].keys, decodes[i].prefix);
  for (int t = 0; t < 4; t++)
    for (int n = 0; n < 5; n++)
      for (int i = 0; i < 3; i++) attention(b, models[i], 16384, lengths[t], prefixes[n]);
}

int main(int argc, char **argv) {
  static const struct option options[] = {{"device", 1, NULL, 'd'},   {"csv", 1, NULL, 'c'},  {"from", 1, NULL, 'f'},
                                          {"budget-s", 1, NULL, 'b'}, {"tiny", 0, NULL, 't'}, {0}};
  const char *device = "cuda", *csv = NULL;
  bench b = {.begin = now(), .budget = 1e9, .left = -1};
  for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    if (c == 'd') device = optarg;
    if (c == 'c') csv = optarg;
    if (c == 'f') b.from = atoi(optarg);
    if (c == 'b') b.budget = atof(optarg);
    if (c == 't') b.tiny = true;
    if (c == '?') return 2;
  }
  need(px_backend_open(&(px_backend_options){.device = device}, &b.be, &err));
  if (csv && !(b.csv = fopen(csv, b.from ? "a" : "w"))) {
    fprintf(stderr, "ops_bench: cannot write %s\n", csv);
    return 1;
  }
  if (b.csv && !b.from)
    fputs("point,operation,device,median_us,least_us,samples,operations,bytes,percent_of_product,percent_of_copy\n",
          b.csv);
  ceilings(&b);
  all_points(&b);
  if (b.left >= 0) printf("next %d\n", b.left);
  px_backend_close(b.be);
  return b.csv && fclose(b.csv) ? 1 : 0;
}
