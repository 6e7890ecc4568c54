/* SPDX-License-Identifier: MIT */
#include "kernels/loss.h"
#include "kernels/math_cpu.h"

const char *px_loss_check(const px_loss_args *a) {
  if (a->rows < 0 || a->vocab < 1) return "rows or vocab is out of range";
  if (px_check_type(a->dtype)) return "the type must be f32 or bf16";
  if (a->stride < a->vocab) return "the stride is shorter than a row";
  if (a->rows && (!a->logits || !a->targets)) return "a pointer is missing";
  return a->loss_sum && a->group && a->loss_stride < 1 ? "loss_stride is missing" : NULL;
}

static float row_loss(const px_loss_args *a, int64_t t) {
  int64_t at = t * a->stride;
  float x[PX_PIECE], best = -INFINITY, sum = 0;
  for (int64_t from = 0; from < a->vocab; from += PX_PIECE) {
    int64_t n = a->vocab - from < PX_PIECE ? a->vocab - from : PX_PIECE;
    px_load_row(a->logits, a->dtype, at + from, n, x);
#pragma omp simd reduction(max : best)
    for (int64_t i = 0; i < n; i++) best = best > x[i] ? best : x[i];
  }
  if (!isfinite(best)) best = 0; /* infinities then give a NaN loss below */
  for (int64_t from = 0; from < a->vocab; from += PX_PIECE) {
    int64_t n = a->vocab - from < PX_PIECE ? a->vocab - from : PX_PIECE;
    float piece = 0;
    px_load_row(a->logits, a->dtype, at + from, n, x);
#pragma omp simd reduction(+ : piece)
    for (int64_t i = 0; i < n; i++) piece += px_exp(x[i] - best);
    sum += piece;
  }
  int32_t target = a->targets[t];
  float loss = logf(sum) + best - px_get(a->logits, a->dtype, at + target), scale = 1.0f / sum;
  if (!isfinite(sum)) loss = NAN;
  if (!a->write_grad) return loss;
  for (int64_t from = 0; from < a->vocab; from += PX_PIECE) {
    int64_t n = a->vocab - from < PX_PIECE ? a->vocab - from : PX_PIECE;
    px_load_row(a->logits, a->dtype, at + from, n, x);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] = px_exp(x[i] - best) * scale;
    if (target >= from && target < from + n) x[target - from] -= 1.0f;
    px_store_row(a->logits, a->dtype, at + from, n, x);
  }
  return loss;
}

int px_loss_cpu(const px_loss_args *a) {
  enum { ROWS = 256 }; /* losses wait on the stack until they are added in the order of t */
  for (int64_t first = 0; first < a->rows; first += ROWS) {
    int64_t count = a->rows - first < ROWS ? a->rows - first : ROWS;
    float losses[ROWS];
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++)
      losses[i] = a->targets[first + i] >= 0 && a->targets[first + i] < a->vocab ? row_loss(a, first + i) : NAN;
    for (int64_t i = 0; i < count; i++) {
      if (a->row_loss) a->row_loss[first + i] = losses[i];
      if (a->loss_sum) a->loss_sum[a->group ? a->group[first + i] * a->loss_stride : 0] += (double)losses[i];
    }
  }
  return 0;
}
