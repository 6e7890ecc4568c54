/* SPDX-License-Identifier: MIT
 * Time and rate of attention at the sizes of prefix tuning. Rates count the operations of the formula on visible pairs
 * alone. Build: cc -O3 -march=native -fopenmp -D_GNU_SOURCE -I. -Ihost bench/attention_bench.c build/release/libpfx.a
 * -lm Run with OMP_NUM_THREADS set; the table is best of several runs. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/random.h"
#include "kernels/attention.h"

typedef struct bench_case {
  const char *name;
  px_dtype dtype;
  int seqs, tokens, prefix, heads, kv_heads, dim;
} bench_case;

static void *filled(px_dtype type, int64_t count, uint32_t stream) {
  size_t e = type == PX_F32 ? 4 : 2;
  char *x = aligned_alloc(64, ((size_t)count * e + 63) & ~(size_t)63);
  for (int64_t i = 0; i < count; i++) {
    float v = px_uniform(px_philox(1, stream, 0, (uint64_t)i).v[0]) - 0.5f;
    if (type == PX_F32)
      ((float *)x)[i] = v;
    else
      ((uint16_t *)x)[i] = px_f32_to_bf16(v);
  }
  return x;
}

static px_attn_shape shape_of(const bench_case *c, const int32_t *offsets, const int32_t *adapter,
                              const px_kv_segment *segment) {
  return (px_attn_shape){.dtype = c->dtype,
                         .heads = c->heads,
                         .kv_heads = c->kv_heads,
                         .head_dim = c->dim,
                         .scale = 0.125f,
                         .mask = PX_MASK_CAUSAL,
                         .seqs = c->seqs,
                         .q_rows = offsets[c->seqs],
                         .k_rows = offsets[c->seqs],
                         .q_offsets = offsets,
                         .k_offsets = offsets,
                         .adapter = adapter,
                         .segments = segment,
                         .segment_count = 1,
                         .segment_rows = c->prefix};
}

static void bench(const bench_case *c) {
  int64_t rows = (int64_t)c->seqs * c->tokens, q_width = (int64_t)c->heads * c->dim,
          kv_width = (int64_t)c->kv_heads * c->dim;
  int64_t width = q_width + 2 * kv_width, e = c->dtype == PX_F32 ? 4 : 2;
  int32_t *offsets = malloc(((size_t)c->seqs + 1) * 4), *adapter = calloc((size_t)c->seqs, 4);
  for (int i = 0; i <= c->seqs; i++) offsets[i] = i * c->tokens;
  char *qkv = filled(c->dtype, rows * width, 1), *dqkv = filled(c->dtype, rows * width, 2);
  px_kv_segment segment = {.k = filled(c->dtype, c->prefix * kv_width + 1, 3),
                           .v = filled(c->dtype, c->prefix * kv_width + 1, 4),
                           .stride = kv_width,
                           .len = c->prefix,
                           .dk = calloc((size_t)(c->prefix * kv_width + 1), 4),
                           .dv = calloc((size_t)(c->prefix * kv_width + 1), 4),
                           .grad_stride = kv_width};
  px_attn_shape s = shape_of(c, offsets, adapter, &segment);
  px_attn_fwd_args f = {.shape = s,
                        .q = qkv,
                        .k = qkv + q_width * e,
                        .v = qkv + (q_width + kv_width) * e,
                        .q_stride = width,
                        .k_stride = width,
                        .v_stride = width,
                        .o_stride = q_width,
                        .o = filled(c->dtype, rows * q_width, 5),
                        .lse = malloc((size_t)(rows * c->heads) * 4)};
  px_attn_bwd_args b = {
      .shape = s,
      .q = f.q,
      .k = f.k,
      .v = f.v,
      .o = f.o,
      .dout = filled(c->dtype, rows * q_width, 6),
      .q_stride = width,
      .k_stride = width,
      .v_stride = width,
      .o_stride = q_width,
      .dout_stride = q_width,
      .dq_stride = width,
      .dk_stride = width,
      .dv_stride = width,
      .lse = f.lse,
      .dq = dqkv,
      .dk = dqkv + q_width * e,
      .dv = dqkv + (q_width + kv_width) * e,
      .workspace = aligned_alloc(64, (px_attn_bwd_workspace(&s, rows, c->prefix) + 63) & ~(size_t)63)};
  double best[2] = {1e9, 1e9};
  for (int i = 0; i < 20; i++) {
    double t0 = omp_get_wtime();
    px_attn_fwd_cpu(&f);
    double t1 = omp_get_wtime();
    px_attn_bwd_cpu(&b);
    double t2 = omp_get_wtime();
    best[0] = t1 - t0 < best[0] ? t1 - t0 : best[0];
    best[1] = t2 - t1 < best[1] ? t2 - t1 : best[1];
  }
  double pairs = (double)c->seqs * c->heads * ((double)c->tokens * c->prefix + 0.5 * c->tokens * (c->tokens + 1));
  printf("%-34s forward %8.3f ms %6.1f GFLOP/s   backward %8.3f ms %6.1f GFLOP/s\n", c->name, best[0] * 1e3,
         4e-9 * pairs * c->dim / best[0], best[1] * 1e3, 10e-9 * pairs * c->dim / best[1]);
}

int main(void) {
  bench_case cases[] = {{"16 x 55, prefix 20, 9/3 x 64 f32", PX_F32, 16, 55, 20, 9, 3, 64},
                        {"16 x 55, prefix 20, 9/3 x 64 bf16", PX_BF16, 16, 55, 20, 9, 3, 64},
                        {"1 x 1024, prefix 20, 9/3 x 64 f32", PX_F32, 1, 1024, 20, 9, 3, 64},
                        {"16 x 55, prefix 2048, 9/3 x 64 f32", PX_F32, 16, 55, 2048, 9, 3, 64},
                        {"4 x 128, prefix 20, 8/8 x 128 f32", PX_F32, 4, 128, 20, 8, 8, 128}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) bench(&cases[i]);
  return 0;
}
