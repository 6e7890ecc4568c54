/* SPDX-License-Identifier: MIT
 * What the points of ops_bench share: numbered points within a budget, memory that goes when a point is done, and one
 * way to time an operation and to print its share of the device's limits. */
#ifndef PX_BENCH_OPS_H
#define PX_BENCH_OPS_H

#include <stdio.h>

#include "backend/backend.h"

enum { MOST_MEMORY = 96 };

typedef struct bench {
  px_backend *be;
  FILE *csv;
  const char *only; /* NULL: every point; else those whose name holds it */
  bool tiny;
  double begin, budget;
  int number, from, left; /* points so far; the first to run; the first left out, -1: none */
  double peak_flops, peak_bytes;
  void *memory[MOST_MEMORY];
  int memory_count;
  bool seen[PX_OP_COUNT];
} bench;

typedef struct point {
  int number;
  char name[96];
} point;

/* A model's widths. */
typedef struct shape {
  const char *name;
  int heads, kv_heads, head_dim, dim, hidden;
  int64_t vocab;
  bool gpt2; /* layer norm, GELU without a gate, learned positions; else RMS norm, SiLU with a gate, rotary positions */
} shape;

/* Ends the program where an operation or the device failed. */
void need(bench *b, px_status status);

/* Backend memory until `release`: random numbers in [-1, 1), never zeros (products of zeros draw less power and run
 * faster), zeros, a copy of the host's, or anything. */
void *filled(bench *b, px_dtype type, int64_t count);
void *zeros(bench *b, size_t bytes);
void *on_device(bench *b, const void *host, size_t bytes);
void *scratch(bench *b, size_t bytes);
void release(bench *b);

/* Whether the next point is to be run; its number and name go to *p. */
bool due(bench *b, point *p, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Times operation `op` with `args` and prints its row; `turns` sets of arguments are taken by turns. */
void report(bench *b, const point *p, int op, px_cost cost, const void *args);
void report_turns(bench *b, const point *p, int op, px_cost cost, const void *const *args, int turns);
/* The large product and the device copy that percentages are of. */
void measure_ceilings(bench *b);

/* ops_attention.c */
void bench_attention(bench *b, const shape *m, int tokens, int length, int prefix);
void bench_decode(bench *b, const shape *m, int seqs, int keys, int prefix);
/* ops_rows.c: what a step does with rows of activations */
void bench_products(bench *b, const shape *m, int64_t tokens);
void bench_head(bench *b, const shape *m, int64_t labelled);
void bench_rows(bench *b, const shape *m, int64_t tokens);
/* ops_weights.c: adapters, optimizer, sampling, conversions, the cache */
void bench_optimizer(bench *b, const char *what, int64_t elements);
void bench_lora(bench *b, const shape *m, int64_t tokens);
void bench_scale(bench *b, const shape *m, int64_t tokens);
void bench_reparam(bench *b, const shape *m, int64_t prefix, int64_t hidden);
void bench_embed_bwd(bench *b, const shape *m, int64_t tokens);
void bench_sample(bench *b, const shape *m, int64_t rows);
void bench_kv_write(bench *b, const shape *m, int64_t rows);
void bench_conversions(bench *b, int64_t rows, int64_t dim);

#endif
