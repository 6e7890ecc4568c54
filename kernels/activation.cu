/* SPDX-License-Identifier: MIT
 * Activations: each pass reads and writes memory once, in words of 16 bytes where the rows allow it. */
#include "kernels/activation.h"
#include "kernels/device.cuh"

/* ---- device helpers ---- */

PX_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* f(x) and f'(x), which share the costly part. */
template <int KIND>
PX_DEVICE void value_and_slope(float x, float *f, float *d) {
  const float c = 0.7978845608028654f, cubic = 0.044715f;
  if (KIND == PX_ACT_SILU) {
    float s = sigmoid(x);
    *f = x * s;
    *d = s * (1.0f + x * (1.0f - s));
  } else if (KIND == PX_ACT_GELU_TANH) {
    float t = tanhf(c * (x + cubic * x * x * x));
    *f = 0.5f * x * (1.0f + t);
    *d = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * c * (1.0f + 3.0f * cubic * x * x);
  } else if (KIND == PX_ACT_GELU_ERF) {
    float e = 0.5f * (1.0f + erff(x * 0.70710678118654752f));
    *f = x * e;
    *d = e + x * 0.3989422804014327f * expf(-0.5f * x * x);
  } else if (KIND == PX_ACT_TANH) {
    *f = tanhf(x);
    *d = 1.0f - *f * *f;
  } else {
    *f = x > 0 ? x : 0;
    *d = x > 0 ? 1.0f : 0.0f;
  }
}

/* ---- kernels ---- */

template <int KIND, typename T, int N>
PX_KERNEL(256)
fwd_kernel(px_act_fwd_args a) {
  const T *gate = static_cast<const T *>(a.gate) + blockIdx.x * a.in_stride;
  const T *up = a.up ? static_cast<const T *>(a.up) + blockIdx.x * a.in_stride : NULL;
  T *y = static_cast<T *>(a.y) + blockIdx.x * a.y_stride;
  for (int64_t i = px_first_word() * N; i < a.dim; i += px_words_apart() * N) {
    float x[N], u[N];
    px_load<N>(gate + i, x);
    if (up) px_load<N>(up + i, u);
#pragma unroll
    for (int j = 0; j < N; j++) {
      float f, d;
      value_and_slope<KIND>(x[j], &f, &d);
      x[j] = up ? f * u[j] : f;
    }
    px_store<N>(y + i, x);
  }
}

template <int KIND, typename T, int N>
PX_KERNEL(256)
bwd_kernel(px_act_bwd_args a) {
  const T *gate = static_cast<const T *>(a.gate) + blockIdx.x * a.in_stride;
  const T *up = a.up ? static_cast<const T *>(a.up) + blockIdx.x * a.in_stride : NULL;
  const T *dy = static_cast<const T *>(a.dy) + blockIdx.x * a.dy_stride;
  T *dgate = static_cast<T *>(a.dgate) + blockIdx.x * a.d_stride;
  T *dup = up ? static_cast<T *>(a.dup) + blockIdx.x * a.d_stride : NULL;
  for (int64_t i = px_first_word() * N; i < a.dim; i += px_words_apart() * N) {
    float x[N], u[N], g[N];
    px_load<N>(gate + i, x);
    px_load<N>(dy + i, g);
    if (up) px_load<N>(up + i, u);
#pragma unroll
    for (int j = 0; j < N; j++) {
      float f, d;
      value_and_slope<KIND>(x[j], &f, &d);
      x[j] = d * (up ? g[j] * u[j] : g[j]);
      u[j] = f * g[j];
    }
    px_store<N>(dgate + i, x);
    if (up) px_store<N>(dup + i, u);
  }
}

/* ---- launchers ---- */

template <int KIND>
static void launch_fwd(const px_act_fwd_args *a, void *stream) {
  PX_FOR_TYPE(a->dtype, T, {
    constexpr int W = 16 / (int)sizeof(T);
    bool words = a->dim % W == 0 && px_aligned(a->gate, a->in_stride, W, sizeof(T)) &&
                 px_aligned(a->up, a->in_stride, W, sizeof(T)) && px_aligned(a->y, a->y_stride, W, sizeof(T));
    PX_FOR_WORD(words, T, N,
                PX_LAUNCH((fwd_kernel<KIND, T, N>), px_row_grid(a->rows, a->dim / N), px_row_threads(a->dim / N), 0,
                          stream, *a));
  });
}

template <int KIND>
static void launch_bwd(const px_act_bwd_args *a, void *stream) {
  PX_FOR_TYPE(a->dtype, T, {
    constexpr int W = 16 / (int)sizeof(T);
    bool words = a->dim % W == 0 && px_aligned(a->gate, a->in_stride, W, sizeof(T)) &&
                 px_aligned(a->up, a->in_stride, W, sizeof(T)) && px_aligned(a->dy, a->dy_stride, W, sizeof(T)) &&
                 px_aligned(a->dgate, a->d_stride, W, sizeof(T)) && px_aligned(a->dup, a->d_stride, W, sizeof(T));
    PX_FOR_WORD(words, T, N,
                PX_LAUNCH((bwd_kernel<KIND, T, N>), px_row_grid(a->rows, a->dim / N), px_row_threads(a->dim / N), 0,
                          stream, *a));
  });
}

int px_act_fwd_cuda(const px_act_fwd_args *a, void *stream) {
  if (a->rows == 0 || a->dim == 0) return 0;
  switch (a->kind) {
    case PX_ACT_SILU:
      launch_fwd<PX_ACT_SILU>(a, stream);
      break;
    case PX_ACT_GELU_TANH:
      launch_fwd<PX_ACT_GELU_TANH>(a, stream);
      break;
    case PX_ACT_GELU_ERF:
      launch_fwd<PX_ACT_GELU_ERF>(a, stream);
      break;
    case PX_ACT_TANH:
      launch_fwd<PX_ACT_TANH>(a, stream);
      break;
    default:
      launch_fwd<PX_ACT_RELU>(a, stream);
      break;
  }
  return PX_LAUNCHED();
}

int px_act_bwd_cuda(const px_act_bwd_args *a, void *stream) {
  if (a->rows == 0 || a->dim == 0) return 0;
  switch (a->kind) {
    case PX_ACT_SILU:
      launch_bwd<PX_ACT_SILU>(a, stream);
      break;
    case PX_ACT_GELU_TANH:
      launch_bwd<PX_ACT_GELU_TANH>(a, stream);
      break;
    case PX_ACT_GELU_ERF:
      launch_bwd<PX_ACT_GELU_ERF>(a, stream);
      break;
    case PX_ACT_TANH:
      launch_bwd<PX_ACT_TANH>(a, stream);
      break;
    default:
      launch_bwd<PX_ACT_RELU>(a, stream);
      break;
  }
  return PX_LAUNCHED();
}
