/* SPDX-License-Identifier: MIT */
#include "kernels/activation.h"
#include "kernels/math_cpu.h"

const char *px_act_fwd_check(const px_act_fwd_args *a) {
  if ((unsigned)a->kind > PX_ACT_TANH) return "the activation is unknown";
  if (a->rows < 0 || a->dim < 0) return "rows or dim is negative";
  if (px_check_type(a->dtype)) return "the type must be f32 or bf16";
  if (a->in_stride < a->dim || a->y_stride < a->dim) return "a stride is shorter than its row";
  return a->rows && a->dim && (!a->gate || !a->y) ? "a pointer is missing" : NULL;
}

const char *px_act_bwd_check(const px_act_bwd_args *a) {
  if ((unsigned)a->kind > PX_ACT_TANH) return "the activation is unknown";
  if (a->rows < 0 || a->dim < 0) return "rows or dim is negative";
  if (px_check_type(a->dtype)) return "the type must be f32 or bf16";
  if (a->in_stride < a->dim || a->dy_stride < a->dim || a->d_stride < a->dim) return "a stride is shorter than its row";
  if (!a->up != !a->dup) return "up and dup go together";
  return a->rows && a->dim && (!a->gate || !a->dy || !a->dgate) ? "a pointer is missing" : NULL;
}

px_cost px_act_fwd_cost(const px_act_fwd_args *a) {
  double n = (double)a->rows * (double)a->dim, element = (double)px_dtype_bytes(a->dtype, 1);
  return (px_cost){.bytes = n * element * (a->up ? 3 : 2), .operations = n * (a->up ? 5 : 4)};
}

px_cost px_act_bwd_cost(const px_act_bwd_args *a) {
  double n = (double)a->rows * (double)a->dim, element = (double)px_dtype_bytes(a->dtype, 1);
  return (px_cost){.bytes = n * element * (a->up ? 5 : 3), .operations = n * (a->up ? 11 : 8)};
}

static const float GELU_C = 0.7978845608028654f, GELU_A = 0.044715f;

/* y = f(x) of a piece. */
static void value(px_act_kind kind, const float *x, int64_t n, float *y) {
  if (kind == PX_ACT_SILU) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * px_sigmoid(x[i]);
  } else if (kind == PX_ACT_GELU_TANH) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
      y[i] = 0.5f * x[i] * (1.0f + px_tanh(GELU_C * (x[i] + GELU_A * x[i] * x[i] * x[i])));
  } else if (kind == PX_ACT_GELU_ERF) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = 0.5f * x[i] * (1.0f + px_erf(x[i] * 0.70710678118654752f));
  } else if (kind == PX_ACT_TANH) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = px_tanh(x[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = x[i] > 0 ? x[i] : 0;
  }
}

/* f(x) and f'(x) of a piece, which share the costly part. */
static void value_and_slope(px_act_kind kind, const float *x, int64_t n, float *f, float *d) {
  if (kind == PX_ACT_SILU) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      float s = px_sigmoid(x[i]);
      f[i] = x[i] * s;
      d[i] = s * (1.0f + x[i] * (1.0f - s));
    }
  } else if (kind == PX_ACT_GELU_TANH) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      float t = px_tanh(GELU_C * (x[i] + GELU_A * x[i] * x[i] * x[i]));
      f[i] = 0.5f * x[i] * (1.0f + t);
      d[i] = 0.5f * (1.0f + t) + 0.5f * x[i] * (1.0f - t * t) * GELU_C * (1.0f + 3.0f * GELU_A * x[i] * x[i]);
    }
  } else if (kind == PX_ACT_GELU_ERF) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      float e = 0.5f * (1.0f + px_erf(x[i] * 0.70710678118654752f));
      f[i] = x[i] * e;
      d[i] = e + x[i] * 0.3989422804014327f * px_exp(-0.5f * x[i] * x[i]);
    }
  } else if (kind == PX_ACT_TANH) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      f[i] = px_tanh(x[i]);
      d[i] = 1.0f - f[i] * f[i];
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      f[i] = x[i] > 0 ? x[i] : 0;
      d[i] = x[i] > 0 ? 1.0f : 0.0f;
    }
  }
}

/* Elements [from, from + n) of row t. */
static void fwd_piece(const px_act_fwd_args *a, int64_t t, int64_t from, int64_t n) {
  float gate[PX_PIECE], f[PX_PIECE];
  int64_t at = t * a->in_stride + from, to = t * a->y_stride + from;
  const float *x = px_row_in(a->gate, a->dtype, at, n, gate);
  value(a->kind, x, n, a->up ? f : px_row_out(a->y, a->dtype, to, f));
  if (a->up) {
    const float *up = px_row_in(a->up, a->dtype, at, n, gate);
    float *y = px_row_out(a->y, a->dtype, to, f);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = f[i] * up[i];
  }
  px_row_done(a->y, a->dtype, to, n, f);
}

int px_act_fwd_cpu(const px_act_fwd_args *a) {
#pragma omp parallel for schedule(static) if (a->rows * a->dim >= PX_PARALLEL_MIN)
  for (int64_t t = 0; t < a->rows; t++)
    for (int64_t from = 0; from < a->dim; from += PX_PIECE)
      fwd_piece(a, t, from, a->dim - from < PX_PIECE ? a->dim - from : PX_PIECE);
  return 0;
}

static void bwd_piece(const px_act_bwd_args *a, int64_t t, int64_t from, int64_t n) {
  float b0[PX_PIECE], b1[PX_PIECE], b2[PX_PIECE], f[PX_PIECE], d[PX_PIECE];
  int64_t at = t * a->in_stride + from, to = t * a->d_stride + from;
  const float *x = px_row_in(a->gate, a->dtype, at, n, b0);
  const float *dy = px_row_in(a->dy, a->dtype, t * a->dy_stride + from, n, b1);
  value_and_slope(a->kind, x, n, f, d);
  float *dgate = px_row_out(a->dgate, a->dtype, to, d);
  if (a->up) {
    const float *up = px_row_in(a->up, a->dtype, at, n, b2);
    float *dup = px_row_out(a->dup, a->dtype, to, f);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      dgate[i] = d[i] * (dy[i] * up[i]);
      dup[i] = f[i] * dy[i];
    }
    px_row_done(a->dup, a->dtype, to, n, f);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) dgate[i] = d[i] * dy[i];
  }
  px_row_done(a->dgate, a->dtype, to, n, d);
}

int px_act_bwd_cpu(const px_act_bwd_args *a) {
#pragma omp parallel for schedule(static) if (a->rows * a->dim >= PX_PARALLEL_MIN)
  for (int64_t t = 0; t < a->rows; t++)
    for (int64_t from = 0; from < a->dim; from += PX_PIECE)
      bwd_piece(a, t, from, a->dim - from < PX_PIECE ? a->dim - from : PX_PIECE);
  return 0;
}
