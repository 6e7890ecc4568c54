/* SPDX-License-Identifier: MIT
 * One pass: both parts read once, the result written once, in words of 16 bytes where rows allow it; a block a row. */
#include "kernels/attention_merge.h"

#include "kernels/device.cuh"

/* ---- kernels ---- */

/* The parts' shares of a row's head, and its joined statistics. */
PX_DEVICE float shares_of(const px_attn_merge_args &m, int64_t row, int64_t head, float *of_a, float *of_b) {
  *of_a = m.a.o ? 1.0f : 0.0f;
  *of_b = 1.0f;
  if (!m.b.lse) return 0.0f;
  float x = m.a.o ? m.a.lse[row * m.a.lse_row + head * m.a.lse_head] : -INFINITY;
  float y = m.b.lse[row * m.b.lse_row + head * m.b.lse_head], most = fmaxf(x, y);
  if (most == -INFINITY) {
    *of_a = *of_b = 0.0f;
    return -INFINITY;
  }
  float ea = expf(x - most), eb = expf(y - most);
  *of_a = ea / (ea + eb);
  *of_b = eb / (ea + eb);
  return most + logf(ea + eb);
}

/* N divides head_dim, so a word lies in one head. */
template <typename T, int N>
PX_KERNEL(256)
join_kernel(px_attn_merge_args m) {
  int64_t row = blockIdx.x;
  const T *a = static_cast<const T *>(m.a.o) + row * m.a.o_stride, *b = static_cast<const T *>(m.b.o) + row * m.b.o_stride;
  T *o = static_cast<T *>(m.o) + row * m.o_stride;
  for (int64_t i = px_first_word() * N; i < (int64_t)m.heads * m.head_dim; i += px_words_apart() * N) {
    int64_t head = i / m.head_dim;
    float of_a, of_b, u[N], v[N], lse = shares_of(m, row, head, &of_a, &of_b);
    if (m.lse && i % m.head_dim == 0) m.lse[row * m.lse_row + head * m.lse_head] = lse;
#pragma unroll
    for (int j = 0; j < N; j++) u[j] = v[j] = 0.0f;
    if (of_a > 0.0f) px_load<N>(a + i, u);
    if (of_b > 0.0f) px_load<N>(b + i, v);
#pragma unroll
    for (int j = 0; j < N; j++) u[j] = of_a * u[j] + of_b * v[j];
    px_store<N>(o + i, u);
  }
}

PX_KERNEL(256) ragged_kernel(px_attn_ragged_args a) {
  int64_t first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, apart = (int64_t)gridDim.x * blockDim.x;
  for (int64_t s = first; s <= a.slots; s += apart) {
    int64_t from = a.offsets[s < a.seqs ? s : a.seqs];
    if (s < a.slots) a.lens[s] = s < a.seqs ? (int32_t)(a.offsets[s + 1] - from) : 0;
    for (int n = 0; n < a.tensors; n++) a.starts[n * (int64_t)(a.slots + 1) + s] = from * a.strides[n];
  }
  if (!a.lse) return;
  for (int64_t i = first; i < (int64_t)a.rows * a.heads; i += apart)
    a.stats[i] = a.lse[i % a.heads * a.rows + i / a.heads];
}

/* ---- launchers ---- */

int px_attn_merge_cuda(const px_attn_merge_args *a, void *stream) {
  if (a->rows == 0) return 0;
  int64_t width = (int64_t)a->heads * a->head_dim;
  PX_FOR_ATTN_TYPE(a->dtype, T, {
    constexpr int W = 16 / (int)sizeof(T);
    bool words = a->head_dim % W == 0 && px_aligned(a->a.o, a->a.o_stride, W, sizeof(T)) &&
                 px_aligned(a->b.o, a->b.o_stride, W, sizeof(T)) && px_aligned(a->o, a->o_stride, W, sizeof(T));
    PX_FOR_WORD(words, T, N,
                PX_LAUNCH((join_kernel<T, N>), px_row_grid(a->rows, width / N), px_row_threads(width / N), 0, stream, *a));
  });
  return PX_LAUNCHED();
}

int px_attn_ragged_cuda(const px_attn_ragged_args *a, void *stream) {
  int64_t moved = a->lse ? (int64_t)a->rows * a->heads : 0, items = moved > a->slots + 1 ? moved : a->slots + 1;
  unsigned blocks = px_blocks(items, 256);
  PX_LAUNCH(ragged_kernel, dim3(blocks < 4096 ? blocks : 4096), 256, 0, stream, *a);
  return PX_LAUNCHED();
}
