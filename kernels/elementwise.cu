/* SPDX-License-Identifier: MIT
 * Small passes over rows: each reads and writes memory once, in words of 16 bytes where the rows allow it. */
#include "kernels/column_sum.cuh"
#include "kernels/device.cuh"
#include "kernels/elementwise.h"

/* ---- kernels ---- */

template <typename T, int N>
PX_KERNEL(256)
add_kernel(px_add_args a) {
  const T *x = static_cast<const T *>(a.a) + blockIdx.x * a.a_stride;
  const T *more = static_cast<const T *>(a.b) + blockIdx.x * a.b_stride;
  T *y = static_cast<T *>(a.y) + blockIdx.x * a.y_stride;
  for (int64_t i = px_first_word() * N; i < a.dim; i += px_words_apart() * N) {
    float u[N], v[N];
    px_load<N>(x + i, u);
    px_load<N>(more + i, v);
#pragma unroll
    for (int j = 0; j < N; j++) u[j] += v[j];
    px_store<N>(y + i, u);
  }
}

template <typename T, int N>
PX_KERNEL(256)
dropout_kernel(px_dropout_args a) {
  const T *x = static_cast<const T *>(a.x) + blockIdx.x * a.x_stride;
  T *y = static_cast<T *>(a.y) + blockIdx.x * a.y_stride;
  float keep = 1.0f / (1.0f - a.p);
  uint32_t step = a.step_at ? (uint32_t)*a.step_at : a.step;
  uint64_t index = a.index0 + (uint64_t)blockIdx.x * (uint64_t)a.dim;
  for (int64_t i = px_first_word() * N; i < a.dim; i += px_words_apart() * N) {
    float u[N];
    px_load<N>(x + i, u);
#pragma unroll
    for (int j = 0; j < N; j++) {
      float drawn = px_uniform(px_philox(a.seed, a.stream, step, index + (uint64_t)(i + j)).v[0]);
      u[j] = drawn >= a.p ? u[j] * keep : 0.0f;
    }
    px_store<N>(y + i, u);
  }
}

template <typename X, typename Y, int N>
PX_KERNEL(256)
cast_kernel(px_cast_args a) {
  const X *x = static_cast<const X *>(a.x) + blockIdx.x * a.x_stride;
  Y *y = static_cast<Y *>(a.y) + blockIdx.x * a.y_stride;
  for (int64_t i = px_first_word() * N; i < a.dim; i += px_words_apart() * N) {
    float u[N];
    px_load<N>(x + i, u);
    px_store<N>(y + i, u);
  }
}

/* Rows as they are. index NULL: row i comes from row i; gather: from row index[i]; scatter: row i comes from the row
 * whose index it is, or is zero (found by halving: the index ascends). */
enum { ROWS_SAME, ROWS_GATHER, ROWS_SCATTER };

template <typename W>
PX_KERNEL(256)
rows_kernel(px_rows_args a, int mode, int64_t words, int64_t x_words, int64_t y_words) {
  int64_t from = blockIdx.x;
  if (mode == ROWS_GATHER) from = a.index[blockIdx.x];
  if (mode == ROWS_SCATTER) {
    int64_t low = 0, high = a.rows;
    while (low < high) {
      int64_t middle = (low + high) / 2;
      if (a.index[middle] < (int64_t)blockIdx.x)
        low = middle + 1;
      else
        high = middle;
    }
    from = low < a.rows && a.index[low] == (int64_t)blockIdx.x ? low : -1;
  }
  const W *x = static_cast<const W *>(a.x) + from * x_words;
  W *y = static_cast<W *>(a.y) + blockIdx.x * y_words;
  for (int64_t i = px_first_word(); i < words; i += px_words_apart()) y[i] = from < 0 ? W{} : x[i];
}

template <typename T, int N>
PX_KERNEL(PX_SUM_THREADS)
col_sum_kernel(px_col_sum_args a) {
  using down = px_down<N>;
  PX_SHARED(float, parts, down::FLOATS);
  int64_t i = (int64_t)blockIdx.x * PX_SUM_COLUMNS + down::column();
  const T *x = static_cast<const T *>(a.x) + i;
  float sum[N] = {};
  if (i < a.dim) {
#pragma unroll 4
    for (int64_t t = down::row(); t < a.rows; t += down::DOWN) {
      float u[N];
      px_load<N>(x + t * a.x_stride, u);
#pragma unroll
      for (int j = 0; j < N; j++) sum[j] += u[j];
    }
  }
  float all = px_sum_down<N>(sum, parts);
  i = (int64_t)blockIdx.x * PX_SUM_COLUMNS + threadIdx.x;
  if (threadIdx.x < PX_SUM_COLUMNS && i < a.dim) a.out[i] += all;
}

/* ---- launchers ---- */

int px_add_cuda(const px_add_args *a, void *stream) {
  if (a->rows == 0 || a->dim == 0) return 0;
  PX_FOR_TYPE(a->dtype, T, {
    constexpr int W = 16 / (int)sizeof(T);
    bool words = a->dim % W == 0 && px_aligned(a->a, a->a_stride, W, sizeof(T)) &&
                 px_aligned(a->b, a->b_stride, W, sizeof(T)) && px_aligned(a->y, a->y_stride, W, sizeof(T));
    PX_FOR_WORD(
        words, T, N,
        PX_LAUNCH((add_kernel<T, N>), px_row_grid(a->rows, a->dim / N), px_row_threads(a->dim / N), 0, stream, *a));
  });
  return PX_LAUNCHED();
}

int px_dropout_cuda(const px_dropout_args *a, void *stream) {
  if (a->rows == 0 || a->dim == 0) return 0;
  PX_FOR_TYPE(a->dtype, T, {
    constexpr int W = 16 / (int)sizeof(T);
    bool words =
        a->dim % W == 0 && px_aligned(a->x, a->x_stride, W, sizeof(T)) && px_aligned(a->y, a->y_stride, W, sizeof(T));
    PX_FOR_WORD(
        words, T, N,
        PX_LAUNCH((dropout_kernel<T, N>), px_row_grid(a->rows, a->dim / N), px_row_threads(a->dim / N), 0, stream, *a));
  });
  return PX_LAUNCHED();
}

/* Rows of bytes, in the widest word that all of it allows. */
static int move_rows(const px_rows_args *a, int mode, int64_t rows, size_t element, void *stream) {
  int64_t bytes = a->dim * (int64_t)element, x_bytes = a->x_stride * (int64_t)element,
          y_bytes = a->y_stride * (int64_t)element;
  uintptr_t all = reinterpret_cast<uintptr_t>(a->x) | reinterpret_cast<uintptr_t>(a->y) | (uintptr_t)bytes |
                  (uintptr_t)x_bytes | (uintptr_t)y_bytes;
  if (rows == 0 || a->dim == 0) return 0;
  if (all % 16 == 0)
    PX_LAUNCH(rows_kernel<uint4>, px_row_grid(rows, bytes / 16), px_row_threads(bytes / 16), 0, stream, *a, mode,
              bytes / 16, x_bytes / 16, y_bytes / 16);
  else if (all % 4 == 0)
    PX_LAUNCH(rows_kernel<uint32_t>, px_row_grid(rows, bytes / 4), px_row_threads(bytes / 4), 0, stream, *a, mode,
              bytes / 4, x_bytes / 4, y_bytes / 4);
  else
    PX_LAUNCH(rows_kernel<uint16_t>, px_row_grid(rows, bytes / 2), px_row_threads(bytes / 2), 0, stream, *a, mode,
              bytes / 2, x_bytes / 2, y_bytes / 2);
  return PX_LAUNCHED();
}

int px_gather_rows_cuda(const px_rows_args *a, void *stream) {
  return move_rows(a, ROWS_GATHER, a->rows, a->dtype == PX_F32 ? 4 : 2, stream);
}

int px_scatter_rows_cuda(const px_rows_args *a, void *stream) {
  return move_rows(a, ROWS_SCATTER, a->all_rows, a->dtype == PX_F32 ? 4 : 2, stream);
}

template <typename X, typename Y>
static int cast_rows(const px_cast_args *a, void *stream) {
  constexpr int W = 8;
  bool words = a->dim % W == 0 && px_aligned(a->x, a->x_stride, 16 / (int)sizeof(X), sizeof(X)) &&
               px_aligned(a->y, a->y_stride, 16 / (int)sizeof(Y), sizeof(Y)) && a->x_stride % W == 0 &&
               a->y_stride % W == 0 && reinterpret_cast<uintptr_t>(a->x) % (W * sizeof(X)) == 0 &&
               reinterpret_cast<uintptr_t>(a->y) % (W * sizeof(Y)) == 0;
  if (words)
    PX_LAUNCH((cast_kernel<X, Y, W>), px_row_grid(a->rows, a->dim / W), px_row_threads(a->dim / W), 0, stream, *a);
  else
    PX_LAUNCH((cast_kernel<X, Y, 1>), px_row_grid(a->rows, a->dim), px_row_threads(a->dim), 0, stream, *a);
  return PX_LAUNCHED();
}

template <typename X>
static int cast_to(const px_cast_args *a, void *stream) {
  if (a->y_type == PX_F32) return cast_rows<X, float>(a, stream);
  return a->y_type == PX_F16 ? cast_rows<X, px_f16>(a, stream) : cast_rows<X, px_bf16>(a, stream);
}

int px_cast_cuda(const px_cast_args *a, void *stream) {
  if (a->rows == 0 || a->dim == 0) return 0;
  if (a->x_type == a->y_type) { /* the bits as they are */
    px_rows_args same = {};
    same.rows = a->rows, same.dim = a->dim, same.x_stride = a->x_stride, same.y_stride = a->y_stride;
    same.x = a->x, same.y = a->y;
    return move_rows(&same, ROWS_SAME, a->rows, a->x_type == PX_F32 ? 4 : 2, stream);
  }
  if (a->x_type == PX_F32) return cast_to<float>(a, stream);
  return a->x_type == PX_F16 ? cast_to<px_f16>(a, stream) : cast_to<px_bf16>(a, stream);
}

int px_col_sum_cuda(const px_col_sum_args *a, void *stream) {
  if (a->rows == 0 || a->dim == 0) return 0;
  PX_FOR_TYPE(a->dtype, T, {
    constexpr int W = 16 / (int)sizeof(T);
    PX_FOR_WORD(a->dim % W == 0 && px_aligned(a->x, a->x_stride, W, sizeof(T)), T, N,
                PX_LAUNCH((col_sum_kernel<T, N>), px_blocks(a->dim, PX_SUM_COLUMNS), PX_SUM_THREADS, 0, stream, *a));
  });
  return PX_LAUNCHED();
}
