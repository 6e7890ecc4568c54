/* SPDX-License-Identifier: MIT
 * Rotary embedding in place: a block per row, a thread turns N pairs at a time. */
#include "kernels/device.cuh"
#include "kernels/rope.h"

template <typename T, int N>
PX_KERNEL(256)
rope_kernel(px_rope_args a) {
  int half = a.rot_dim / 2, words = half / N, position = a.positions[blockIdx.x];
  if (position < 0 || position >= a.table_rows) return;
  const float *cosines = a.cos + (int64_t)position * half, *sines = a.sin + (int64_t)position * half;
  T *row = static_cast<T *>(a.x) + blockIdx.x * a.stride;
  for (int64_t u = px_first_word(); u < (int64_t)a.heads * words; u += px_words_apart()) {
    int i = (int)(u % words) * N;
    T *x = row + u / words * a.head_dim + i;
    float low[N], high[N], c[N], s[N], y[N], z[N];
    px_load<N>(x, low);
    px_load<N>(x + half, high);
    px_load<N>(cosines + i, c);
    px_load<N>(sines + i, s);
#pragma unroll
    for (int j = 0; j < N; j++) {
      float turned = a.inverse ? -s[j] : s[j];
      y[j] = low[j] * c[j] - high[j] * turned;
      z[j] = high[j] * c[j] + low[j] * turned;
    }
    px_store<N>(x, y);
    px_store<N>(x + half, z);
  }
}

int px_rope_cuda(const px_rope_args *a, void *stream) {
  if (a->rows == 0 || a->rot_dim == 0) return 0;
  PX_FOR_TYPE(a->dtype, T, {
    constexpr int W = 16 / (int)sizeof(T);
    bool words = a->rot_dim / 2 % W == 0 && a->head_dim % W == 0 && px_aligned(a->x, a->stride, W, sizeof(T)) &&
                 px_aligned(a->cos, 0, W, sizeof(float)) && px_aligned(a->sin, 0, W, sizeof(float));
    PX_FOR_WORD(words, T, N, {
      int64_t all = (int64_t)a->heads * (a->rot_dim / 2 / N);
      PX_LAUNCH((rope_kernel<T, N>), px_row_grid(a->rows, all), px_row_threads(all), 0, stream, *a);
    });
  });
  return PX_LAUNCHED();
}
