/* SPDX-License-Identifier: MIT
 * ops_bench: memory, points, timing and the ceilings. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "train/run.h"

enum { MOST_SAMPLES = 100, LEAST_SAMPLES = 5, MOST_SECONDS = 3, PATTERN = 1 << 20 };

static px_error err;

void need(bench *b, px_status status) {
  if (status == PX_OK) status = px_backend_status(b->be, &err);
  if (status == PX_OK) return;
  fprintf(stderr, "ops_bench: %s\n", err.message);
  exit(1);
}

/* ---- memory ---- */

void *scratch(bench *b, size_t bytes) {
  void *p = px_backend_alloc(b->be, bytes + 64);
  need(b, PX_OK);
  if (b->memory_count == MOST_MEMORY) exit(1);
  return b->memory[b->memory_count++] = p;
}

void *filled(bench *b, px_dtype type, int64_t count) {
  static uint16_t half[PATTERN];
  static float whole[PATTERN];
  uint32_t state = 12345;
  for (int i = 0; whole[PATTERN - 1] == 0 && i < PATTERN; i++) {
    state = state * 1664525u + 1013904223u;
    whole[i] = (float)(int32_t)(state | 1) * 0x1p-31f;
    half[i] = px_f32_to_bf16(whole[i]);
  }
  size_t e = px_dtype_bytes(type, 1);
  char *p = scratch(b, (size_t)count * e);
  for (int64_t at = 0; at < count; at += PATTERN) {
    size_t bytes = (size_t)(count - at < PATTERN ? count - at : PATTERN) * e;
    px_backend_write(b->be, p + (size_t)at * e, type == PX_F32 ? (void *)whole : half, bytes);
  }
  need(b, PX_OK);
  return p;
}

void *zeros(bench *b, size_t bytes) {
  void *p = scratch(b, bytes);
  px_backend_zero(b->be, p, bytes);
  return p;
}

void *on_device(bench *b, const void *host, size_t bytes) {
  void *p = scratch(b, bytes);
  px_backend_write(b->be, p, host, bytes);
  need(b, PX_OK);
  return p;
}

void release(bench *b) {
  while (b->memory_count > 0) px_backend_free(b->be, b->memory[--b->memory_count]);
}

/* ---- timing ---- */

typedef void operation(px_backend *be, const void *args);

/* Every operation of the table as a function of one type. */
#define RUN(slot, args, check) \
  static void run_##slot(px_backend *be, const void *a) { px_op_##slot(be, (const args *)a); }
PX_OPERATIONS(RUN)
#undef RUN

static operation *const operations[PX_OP_COUNT] = {
#define RUN(slot, args, check) run_##slot,
    PX_OPERATIONS(RUN)
#undef RUN
};

typedef struct timing {
  double median, least; /* seconds of one call */
  int samples;          /* each of enough calls to hide the clock */
} timing;

static int by_size(const void *x, const void *y) {
  double a = *(const double *)x, b = *(const double *)y;
  return a < b ? -1 : a > b;
}

static timing seconds_of(bench *b, operation *run, const void *const *args, int turns) {
  double taken[MOST_SAMPLES], start = px_clock();
  run(b->be, args[0]);
  px_backend_wait(b->be);
  need(b, PX_OK);
  double one = px_clock() - start;
  int calls = b->tiny || one > 1e-3 ? 1 : (int)(1e-3 / one) + 1, turn = 0, n = 0;
  for (int i = 0; i < (b->tiny || one > 1 ? 0 : 3); i++) run(b->be, args[turn++ % turns]);
  px_backend_wait(b->be);
  start = px_clock();
  while (n < (b->tiny ? 1 : LEAST_SAMPLES) || (!b->tiny && n < MOST_SAMPLES && px_clock() - start < MOST_SECONDS)) {
    double t = px_clock();
    for (int i = 0; i < calls; i++) run(b->be, args[turn++ % turns]);
    px_backend_wait(b->be);
    taken[n++] = (px_clock() - t) / calls;
  }
  need(b, PX_OK);
  qsort(taken, (size_t)n, sizeof *taken, by_size);
  return (timing){.median = taken[n / 2], .least = taken[0], .samples = n};
}

/* ---- points ---- */

bool due(bench *b, point *p, const char *format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(p->name, sizeof p->name, format, list);
  va_end(list);
  p->number = b->number++;
  if (p->number < b->from || (b->only && !strstr(p->name, b->only))) return false;
  if (b->left < 0 && px_clock() - b->begin > b->budget) b->left = p->number;
  if (b->left >= 0) printf("left out %3d %s\n", p->number, p->name);
  return b->left < 0;
}

void report_turns(bench *b, const point *p, int op, px_cost cost, const void *const *args, int turns) {
  timing t = seconds_of(b, operations[op], args, turns);
  double flops = cost.operations / t.median, bytes = cost.bytes / t.median;
  double compute = 100 * flops / b->peak_flops, memory = 100 * bytes / b->peak_bytes;
  printf("%3d %-48s %10.1f us %8.1f TFLOP/s %5.1f %%  %7.1f GB/s %5.1f %%\n", p->number, p->name, t.median * 1e6,
         flops * 1e-12, compute, bytes * 1e-9, memory);
  fflush(stdout);
  b->seen[op] = true;
  if (!b->csv) return;
  fprintf(b->csv, "%d,\"%s\",%s,%.3f,%.3f,%d,%.6g,%.6g,%.2f,%.2f\n", p->number, p->name, b->be->device, t.median * 1e6,
          t.least * 1e6, t.samples, cost.operations, cost.bytes, compute, memory);
  fflush(b->csv);
}

void report(bench *b, const point *p, int op, px_cost cost, const void *args) {
  report_turns(b, p, op, cost, &args, 1);
}

/* ---- ceilings ---- */

typedef struct copy_args {
  void *to;
  const void *from;
  size_t bytes;
} copy_args;

static void run_copy(px_backend *be, const void *args) {
  const copy_args *a = args;
  px_backend_copy(be, a->to, a->from, a->bytes);
}

void measure_ceilings(bench *b) {
  int64_t n = b->tiny ? 64 : b->be->host_visible ? 4096 : 8192;
  px_gemm_args g = {.m = n, .n = n, .k = n, .lda = n, .ldb = n, .ldc = n, .type = PX_BF16, .c_type = PX_BF16, .trans_b = true};
  g.a = filled(b, PX_BF16, n * n), g.b = filled(b, PX_BF16, n * n), g.c = scratch(b, (size_t)(n * n) * 2);
  const void *args = &g;
  b->peak_flops = px_gemm_cost(&g).operations / seconds_of(b, operations[PX_OP_gemm], &args, 1).median;
  release(b);
  int64_t count = (b->tiny ? 1 << 16 : 1 << 30) / 4;
  copy_args c = {.bytes = (size_t)count * 4};
  c.from = filled(b, PX_F32, count), c.to = filled(b, PX_F32, count), args = &c;
  b->peak_bytes = 2 * (double)c.bytes / seconds_of(b, run_copy, &args, 1).median;
  release(b);
  printf("ceilings on %s: %.1f TFLOP/s in a bfloat16 product of %lld, %.1f GB/s in a copy (read and written)\n",
         b->be->device, b->peak_flops * 1e-12, (long long)n, b->peak_bytes * 1e-9);
}
