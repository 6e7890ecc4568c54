/* SPDX-License-Identifier: MIT */
#include "kernels/loss.h"

#include <string.h>

#include "kernels/math_cpu.h"

const char *px_loss_check(const px_loss_args *a) {
  if (a->rows < 0 || a->vocab < 1) return "rows or vocab is out of range";
  if (px_check_type(a->dtype)) return "the type must be f32 or bf16";
  if (a->stride < a->vocab) return "the stride is shorter than a row";
  if (a->rows && (!a->logits || !a->targets)) return "a pointer is missing";
  return a->loss_sum && a->group && a->loss_stride < 1 ? "loss_stride is missing" : NULL;
}

px_cost px_loss_cost(const px_loss_args *a) {
  double n = (double)a->rows * (double)a->vocab, element = (double)px_dtype_bytes(a->dtype, 1);
  return (px_cost){.bytes = n * element * (a->write_grad ? 2 : 1), .operations = n * (a->write_grad ? 5 : 4)};
}

static inline int64_t piece_of(const px_loss_args *a, int64_t from) {
  return a->vocab - from < PX_PIECE ? a->vocab - from : PX_PIECE;
}

/* The largest logit; NaN is passed over here and found by the sum. */
static float largest(const px_loss_args *a, int64_t at) {
  float x[PX_PIECE], best = -INFINITY;
  for (int64_t from = 0; from < a->vocab; from += PX_PIECE) {
    int64_t n = piece_of(a, from);
    px_load_row(a->logits, a->dtype, at + from, n, x);
#pragma omp simd reduction(max : best)
    for (int64_t i = 0; i < n; i++) best = x[i] > best ? x[i] : best;
  }
  return best;
}

/* sum exp(z - best); with `keep`, which needs f32, the terms take the place of the logits. */
static float sum_exp(const px_loss_args *a, int64_t at, float best, bool keep) {
  float x[PX_PIECE], sum = 0;
  for (int64_t from = 0; from < a->vocab; from += PX_PIECE) {
    int64_t n = piece_of(a, from);
    float piece = 0;
    px_load_row(a->logits, a->dtype, at + from, n, x);
#pragma omp simd reduction(+ : piece)
    for (int64_t i = 0; i < n; i++) {
      x[i] = px_exp(x[i] - best);
      piece += x[i];
    }
    if (keep) px_store_row(a->logits, PX_F32, at + from, n, x);
    sum += piece;
  }
  return sum;
}

/* Turns the logits, or the terms that sum_exp kept, into the gradient. */
static void write_gradient(const px_loss_args *a, int64_t at, float best, float scale, int32_t target) {
  float x[PX_PIECE];
  for (int64_t from = 0; from < a->vocab; from += PX_PIECE) {
    int64_t n = piece_of(a, from);
    px_load_row(a->logits, a->dtype, at + from, n, x);
    if (a->dtype == PX_F32) {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) x[i] *= scale;
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) x[i] = px_exp(x[i] - best) * scale;
    }
    if (target >= from && target < from + n) x[target - from] -= 1.0f;
    px_store_row(a->logits, a->dtype, at + from, n, x);
  }
}

static float row_loss(const px_loss_args *a, int64_t t) {
  int64_t at = t * a->stride;
  int32_t target = a->targets[t];
  if (target == PX_NO_TARGET) {
    size_t element = px_dtype_bytes(a->dtype, 1);
    if (a->write_grad) memset((char *)a->logits + (size_t)at * element, 0, (size_t)a->vocab * element);
    return 0;
  }
  if (target < 0 || target >= a->vocab) return NAN;
  float best = largest(a, at);
  if (!isfinite(best)) return NAN;
  float wanted = px_get(a->logits, a->dtype, at + target),
        sum = sum_exp(a, at, best, a->write_grad && a->dtype == PX_F32);
  if (a->write_grad) write_gradient(a, at, best, 1.0f / sum, target);
  return logf(sum) + (best - wanted);
}

int px_loss_cpu(const px_loss_args *a) {
  enum { ROWS = 256 }; /* losses wait on the stack until they are added in the order of t */
  for (int64_t first = 0; first < a->rows; first += ROWS) {
    int64_t count = a->rows - first < ROWS ? a->rows - first : ROWS;
    float losses[ROWS];
#pragma omp parallel for schedule(static) if (count * a->vocab >= PX_PARALLEL_MIN)
    for (int64_t i = 0; i < count; i++) losses[i] = row_loss(a, first + i);
    for (int64_t i = 0; i < count; i++) {
      if (a->row_loss) a->row_loss[first + i] = losses[i];
      if (a->loss_sum) a->loss_sum[a->group ? a->group[first + i] * a->loss_stride : 0] += (double)losses[i];
    }
  }
  return 0;
}
