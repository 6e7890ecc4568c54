/* SPDX-License-Identifier: MIT
 * Norms: a warp per row where rows are short, else a block. A row is read from memory once; the passes after the first
 * find it in the cache. */
#include "kernels/column_sum.cuh"
#include "kernels/device.cuh"
#include "kernels/norm.h"

enum { NORM_THREADS = 128, NORM_WARPS = NORM_THREADS / PX_WARP, SHORT_ROW = 1024 };

/* Who works on a row: a warp or the block; sums are over all of them. */
template <bool BLOCK>
struct team {
  int rank, size;
  int64_t row;
  float *scratch;

  PX_DEVICE team of_thread(float *scratch) {
    int thread = (int)threadIdx.x;
    if (BLOCK) return {thread, NORM_THREADS, (int64_t)blockIdx.x, scratch};
    return {thread % PX_WARP, PX_WARP, (int64_t)blockIdx.x * NORM_WARPS + thread / PX_WARP, scratch};
  }
  PX_DEVICE float sum(const team &t, float x) { return BLOCK ? px_block_sum(x, t.scratch) : px_warp_sum(x); }
};

template <typename T, typename W, int N, bool BLOCK>
PX_KERNEL(NORM_THREADS)
fwd_kernel(px_norm_fwd_args a) {
  PX_SHARED(float, scratch, PX_WARP);
  team<BLOCK> me = team<BLOCK>::of_thread(scratch);
  bool live = me.row < a.rows * a.heads; /* of a warp or block altogether */
  int64_t t = live ? me.row / a.heads : 0, h = live ? me.row % a.heads : 0, at = t * a.x_stride + h * a.dim;
  const T *x = static_cast<const T *>(a.x) + at;
  const T *more = a.residual ? static_cast<const T *>(a.residual) + at : NULL;
  T *both = a.residual ? static_cast<T *>(a.sum) + at : NULL;
  float total = 0, squares = 0, mean = 0;
  for (int64_t i = me.rank * N; live && i < a.dim; i += me.size * N) {
    float u[N], v[N];
    px_load<N>(x + i, u);
    if (more) {
      px_load<N>(more + i, v);
#pragma unroll
      for (int j = 0; j < N; j++) u[j] = px_to_float(px_from_float<T>(u[j] + v[j]));
      px_store<N>(both + i, u);
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
      total += u[j];
      squares += u[j] * u[j];
    }
  }
  /* What a thread reads below it has itself written above. */
  const T *source = more ? both : x;
  float variance;
  if (a.kind == PX_NORM_LAYER) {
    mean = team<BLOCK>::sum(me, total) / (float)a.dim;
    float spread = 0;
    for (int64_t i = me.rank * N; live && i < a.dim; i += me.size * N) {
      float u[N];
      px_load<N>(source + i, u);
#pragma unroll
      for (int j = 0; j < N; j++) spread += (u[j] - mean) * (u[j] - mean);
    }
    variance = team<BLOCK>::sum(me, spread) / (float)a.dim;
  } else {
    variance = team<BLOCK>::sum(me, squares) / (float)a.dim;
  }
  float rstd = 1.0f / sqrtf(variance + a.eps);
  const W *weight = static_cast<const W *>(a.weight), *bias = static_cast<const W *>(a.bias);
  T *y = static_cast<T *>(a.y) + t * a.y_stride + h * a.dim;
  for (int64_t i = me.rank * N; live && i < a.dim; i += me.size * N) {
    float u[N], w[N], c[N];
    px_load<N>(source + i, u);
    px_load<N>(weight + i, w);
    if (bias) px_load<N>(bias + i, c);
#pragma unroll
    for (int j = 0; j < N; j++) {
      u[j] = (u[j] - mean) * rstd * w[j];
      if (bias) u[j] += c[j];
    }
    px_store<N>(y + i, u);
  }
  if (live && me.rank == 0 && a.rstd) a.rstd[me.row] = rstd;
  if (live && me.rank == 0 && a.mean) a.mean[me.row] = mean;
}

template <typename T, typename W, int N, bool BLOCK>
PX_KERNEL(NORM_THREADS)
bwd_kernel(px_norm_bwd_args a) {
  PX_SHARED(float, scratch, PX_WARP);
  team<BLOCK> me = team<BLOCK>::of_thread(scratch);
  bool live = me.row < a.rows * a.heads;
  int64_t t = live ? me.row / a.heads : 0, h = live ? me.row % a.heads : 0;
  const T *x = static_cast<const T *>(a.x) + t * a.x_stride + h * a.dim;
  const T *dy = static_cast<const T *>(a.dy) + t * a.dy_stride + h * a.dim;
  const W *weight = static_cast<const W *>(a.weight);
  float rstd = live ? a.rstd[me.row] : 0, mean = live && a.kind == PX_NORM_LAYER ? a.mean[me.row] : 0;
  float sum_g = 0, sum_gn = 0;
  for (int64_t i = me.rank * N; live && i < a.dim; i += me.size * N) {
    float g[N], u[N], w[N];
    px_load<N>(dy + i, g);
    px_load<N>(x + i, u);
    px_load<N>(weight + i, w);
#pragma unroll
    for (int j = 0; j < N; j++) {
      float gw = g[j] * w[j];
      sum_g += gw;
      sum_gn += gw * ((u[j] - mean) * rstd);
    }
  }
  float c_n = team<BLOCK>::sum(me, sum_gn) / (float)a.dim, c_g = 0;
  if (a.kind == PX_NORM_LAYER) c_g = team<BLOCK>::sum(me, sum_g) / (float)a.dim;
  const T *more = a.dresidual ? static_cast<const T *>(a.dresidual) + t * a.dx_stride + h * a.dim : NULL;
  T *dx = static_cast<T *>(a.dx) + t * a.dx_stride + h * a.dim;
  for (int64_t i = me.rank * N; live && i < a.dim; i += me.size * N) {
    float g[N], u[N], w[N], r[N];
    px_load<N>(dy + i, g);
    px_load<N>(x + i, u);
    px_load<N>(weight + i, w);
    if (more) px_load<N>(more + i, r);
#pragma unroll
    for (int j = 0; j < N; j++) {
      g[j] = rstd * (g[j] * w[j] - c_g - (u[j] - mean) * rstd * c_n);
      if (more) g[j] += r[j];
    }
    px_store<N>(dx + i, g);
  }
}

/* Gradients of weight and bias, each where it is wanted: 32 columns of a block (column_sum.cuh). */
template <typename T, int N>
PX_KERNEL(PX_SUM_THREADS)
weight_kernel(px_norm_bwd_args a) {
  using down = px_down<N>;
  PX_SHARED(float, parts, down::FLOATS);
  int64_t i = (int64_t)blockIdx.x * PX_SUM_COLUMNS + down::column();
  float dw[N] = {}, db[N] = {};
  for (int64_t r = down::row(); i < a.dim && r < a.rows * a.heads; r += down::DOWN) {
    int64_t t = r / a.heads, h = r % a.heads;
    float g[N], u[N], rstd = a.rstd[r], mean = a.kind == PX_NORM_LAYER ? a.mean[r] : 0;
    px_load<N>(static_cast<const T *>(a.dy) + t * a.dy_stride + h * a.dim + i, g);
    px_load<N>(static_cast<const T *>(a.x) + t * a.x_stride + h * a.dim + i, u);
#pragma unroll
    for (int j = 0; j < N; j++) {
      dw[j] += g[j] * ((u[j] - mean) * rstd);
      db[j] += g[j];
    }
  }
  float all_dw = px_sum_down<N>(dw, parts), all_db = a.db ? px_sum_down<N>(db, parts) : 0;
  i = (int64_t)blockIdx.x * PX_SUM_COLUMNS + threadIdx.x;
  if (threadIdx.x >= PX_SUM_COLUMNS || i >= a.dim) return;
  if (a.dw) a.dw[i] += all_dw;
  if (a.db) a.db[i] += all_db;
}

/* ---- launchers ---- */

template <typename T, typename W>
static void launch_fwd(const px_norm_fwd_args *a, void *stream) {
  constexpr int WORD = 16 / (int)sizeof(T);
  int64_t rows = a->rows * a->heads;
  bool words = a->dim % WORD == 0 && px_aligned(a->x, a->x_stride, WORD, sizeof(T)) &&
               px_aligned(a->residual, a->x_stride, WORD, sizeof(T)) &&
               px_aligned(a->sum, a->x_stride, WORD, sizeof(T)) && px_aligned(a->y, a->y_stride, WORD, sizeof(T)) &&
               px_aligned(a->weight, 0, WORD, sizeof(W)) && px_aligned(a->bias, 0, WORD, sizeof(W));
  PX_FOR_WORD(words, T, N, {
    if (a->dim <= SHORT_ROW)
      PX_LAUNCH((fwd_kernel<T, W, N, false>), px_blocks(rows, NORM_WARPS), NORM_THREADS, 0, stream, *a);
    else
      PX_LAUNCH((fwd_kernel<T, W, N, true>), px_blocks(rows, 1), NORM_THREADS, 0, stream, *a);
  });
}

template <typename T, typename W>
static void launch_bwd(const px_norm_bwd_args *a, void *stream) {
  constexpr int WORD = 16 / (int)sizeof(T);
  int64_t rows = a->rows * a->heads;
  bool words = a->dim % WORD == 0 && px_aligned(a->x, a->x_stride, WORD, sizeof(T)) &&
               px_aligned(a->dy, a->dy_stride, WORD, sizeof(T)) && px_aligned(a->dx, a->dx_stride, WORD, sizeof(T)) &&
               px_aligned(a->dresidual, a->dx_stride, WORD, sizeof(T)) && px_aligned(a->weight, 0, WORD, sizeof(W));
  PX_FOR_WORD(words, T, N, {
    if (a->dim <= SHORT_ROW)
      PX_LAUNCH((bwd_kernel<T, W, N, false>), px_blocks(rows, NORM_WARPS), NORM_THREADS, 0, stream, *a);
    else
      PX_LAUNCH((bwd_kernel<T, W, N, true>), px_blocks(rows, 1), NORM_THREADS, 0, stream, *a);
  });
}

template <typename T>
static void launch_weight(const px_norm_bwd_args *a, void *stream) {
  constexpr int WORD = 16 / (int)sizeof(T);
  bool words = a->dim % WORD == 0 && px_aligned(a->x, a->x_stride, WORD, sizeof(T)) && px_aligned(a->dy, a->dy_stride, WORD, sizeof(T));
  PX_FOR_WORD(words, T, N, PX_LAUNCH((weight_kernel<T, N>), px_blocks(a->dim, PX_SUM_COLUMNS), PX_SUM_THREADS, 0, stream, *a));
}

int px_norm_fwd_cuda(const px_norm_fwd_args *a, void *stream) {
  if (a->rows == 0) return 0;
  if (a->dtype == PX_F32)
    launch_fwd<float, float>(a, stream);
  else if (a->weight_type == PX_F32)
    launch_fwd<px_bf16, float>(a, stream);
  else
    launch_fwd<px_bf16, px_bf16>(a, stream);
  return PX_LAUNCHED();
}

int px_norm_bwd_cuda(const px_norm_bwd_args *a, void *stream) {
  if (a->rows == 0) return 0;
  if (a->dw || a->db) /* before dx, which may take the place of dy */
    PX_FOR_TYPE(a->dtype, T, launch_weight<T>(a, stream));
  if (!a->dx) return PX_LAUNCHED();
  if (a->dtype == PX_F32)
    launch_bwd<float, float>(a, stream);
  else if (a->weight_type == PX_F32)
    launch_bwd<px_bf16, float>(a, stream);
  else
    launch_bwd<px_bf16, px_bf16>(a, stream);
  return PX_LAUNCHED();
}
