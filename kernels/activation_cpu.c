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

/* f and f' of a piece. */
static void value(px_act_kind kind, const float *x, int64_t n, float *f) {
  if (kind == PX_ACT_SILU) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) f[i] = x[i] * px_sigmoid(x[i]);
  } else if (kind == PX_ACT_GELU_TANH) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
      f[i] = 0.5f * x[i] * (1.0f + px_tanh(GELU_C * (x[i] + GELU_A * x[i] * x[i] * x[i])));
  } else if (kind == PX_ACT_GELU_ERF) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) f[i] = 0.5f * x[i] * (1.0f + px_erf(x[i] * 0.70710678118654752f));
  } else if (kind == PX_ACT_TANH) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) f[i] = px_tanh(x[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) f[i] = x[i] > 0 ? x[i] : 0;
  }
}

static void slope(px_act_kind kind, const float *x, int64_t n, float *d) {
  if (kind == PX_ACT_SILU) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      float s = px_sigmoid(x[i]);
      d[i] = s * (1.0f + x[i] * (1.0f - s));
    }
  } else if (kind == PX_ACT_GELU_TANH) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      float t = px_tanh(GELU_C * (x[i] + GELU_A * x[i] * x[i] * x[i]));
      d[i] = 0.5f * (1.0f + t) + 0.5f * x[i] * (1.0f - t * t) * GELU_C * (1.0f + 3.0f * GELU_A * x[i] * x[i]);
    }
  } else if (kind == PX_ACT_GELU_ERF) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
      d[i] = 0.5f * (1.0f + px_erf(x[i] * 0.70710678118654752f)) +
             x[i] * 0.3989422804014327f * px_exp(-0.5f * x[i] * x[i]);
  } else if (kind == PX_ACT_TANH) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      float t = px_tanh(x[i]);
      d[i] = 1.0f - t * t;
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) d[i] = x[i] > 0 ? 1.0f : 0.0f;
  }
}

int px_act_fwd_cpu(const px_act_fwd_args *a) {
#pragma omp parallel for schedule(static) if (a->rows * a->dim >= PX_PARALLEL_MIN)
  for (int64_t t = 0; t < a->rows; t++) {
    float x[PX_PIECE], f[PX_PIECE];
    for (int64_t from = 0; from < a->dim; from += PX_PIECE) {
      int64_t n = a->dim - from < PX_PIECE ? a->dim - from : PX_PIECE;
      px_load_row(a->gate, a->dtype, t * a->in_stride + from, n, x);
      value(a->kind, x, n, f);
      if (a->up) {
        px_load_row(a->up, a->dtype, t * a->in_stride + from, n, x);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) f[i] *= x[i];
      }
      px_store_row(a->y, a->dtype, t * a->y_stride + from, n, f);
    }
  }
  return 0;
}

int px_act_bwd_cpu(const px_act_bwd_args *a) {
#pragma omp parallel for schedule(static) if (a->rows * a->dim >= PX_PARALLEL_MIN)
  for (int64_t t = 0; t < a->rows; t++) {
    float x[PX_PIECE], up[PX_PIECE], dy[PX_PIECE], f[PX_PIECE];
    for (int64_t from = 0; from < a->dim; from += PX_PIECE) {
      int64_t n = a->dim - from < PX_PIECE ? a->dim - from : PX_PIECE, at = t * a->in_stride + from,
              to = t * a->d_stride + from;
      px_load_row(a->gate, a->dtype, at, n, x);
      px_load_row(a->dy, a->dtype, t * a->dy_stride + from, n, dy);
      if (a->up) px_load_row(a->up, a->dtype, at, n, up);
      if (a->up) {
        value(a->kind, x, n, f);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) f[i] *= dy[i];
        px_store_row(a->dup, a->dtype, to, n, f);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dy[i] *= up[i];
      }
      slope(a->kind, x, n, f);
#pragma omp simd
      for (int64_t i = 0; i < n; i++) f[i] *= dy[i];
      px_store_row(a->dgate, a->dtype, to, n, f);
    }
  }
  return 0;
}
