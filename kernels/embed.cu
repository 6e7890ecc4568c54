/* SPDX-License-Identifier: MIT
 * Embedding: a block per row. Backward: a thread owns a column of both tables, so that rows add up in their order. */
#include "kernels/device.cuh"
#include "kernels/embed.h"

PX_DEVICE bool inside(int32_t index, int64_t rows) { return index >= 0 && index < rows; }

template <typename T, typename W, int N>
PX_KERNEL(256)
fwd_kernel(px_embed_fwd_args a) {
  int32_t id = a.ids[blockIdx.x], position = a.position_table ? a.positions[blockIdx.x] : 0;
  if (!inside(id, a.table_rows) || (a.position_table && !inside(position, a.position_rows))) return;
  const W *row = static_cast<const W *>(a.table) + id * a.dim;
  const W *more = a.position_table ? static_cast<const W *>(a.position_table) + position * a.dim : NULL;
  T *y = static_cast<T *>(a.y) + blockIdx.x * a.dim;
  for (int64_t i = px_first_word() * N; i < a.dim; i += px_words_apart() * N) {
    float u[N], v[N];
    px_load<N>(row + i, u);
    if (more) {
      px_load<N>(more + i, v);
#pragma unroll
      for (int j = 0; j < N; j++) u[j] += v[j];
    }
    px_store<N>(y + i, u);
  }
}

template <typename T>
PX_KERNEL(64)
bwd_kernel(px_embed_bwd_args a) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.dim) return;
  for (int64_t t = 0; t < a.rows; t++) {
    if ((a.dtable && !inside(a.ids[t], a.table_rows)) || (a.dposition && !inside(a.positions[t], a.position_rows)))
      continue;
    float dy = px_to_float(static_cast<const T *>(a.dy)[t * a.dim + i]);
    if (a.dtable) a.dtable[a.ids[t] * a.dim + i] += dy;
    if (a.dposition) a.dposition[a.positions[t] * a.dim + i] += dy;
  }
}

template <typename T, typename W>
static void launch_fwd(const px_embed_fwd_args *a, void *stream) {
  constexpr int WORD = 16 / (int)sizeof(T);
  bool words = a->dim % WORD == 0 && px_aligned(a->table, a->dim, WORD, sizeof(W)) &&
               px_aligned(a->position_table, a->dim, WORD, sizeof(W)) && px_aligned(a->y, a->dim, WORD, sizeof(T));
  PX_FOR_WORD(
      words, T, N,
      PX_LAUNCH((fwd_kernel<T, W, N>), px_row_grid(a->rows, a->dim / N), px_row_threads(a->dim / N), 0, stream, *a));
}

int px_embed_fwd_cuda(const px_embed_fwd_args *a, void *stream) {
  if (a->rows == 0 || a->dim == 0) return 0;
  if (a->dtype == PX_F32 && a->table_type == PX_F32)
    launch_fwd<float, float>(a, stream);
  else if (a->dtype == PX_F32)
    launch_fwd<float, px_bf16>(a, stream);
  else if (a->table_type == PX_F32)
    launch_fwd<px_bf16, float>(a, stream);
  else
    launch_fwd<px_bf16, px_bf16>(a, stream);
  return PX_LAUNCHED();
}

int px_embed_bwd_cuda(const px_embed_bwd_args *a, void *stream) {
  if (a->rows == 0 || a->dim == 0 || (!a->dtable && !a->dposition)) return 0;
  PX_FOR_TYPE(a->dtype, T, PX_LAUNCH(bwd_kernel<T>, px_blocks(a->dim, 64), 64, 0, stream, *a));
  return PX_LAUNCHED();
}
