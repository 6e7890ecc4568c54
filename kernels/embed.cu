/* SPDX-License-Identifier: MIT
 * Embedding: a block per row, in words of 16 bytes. Backward: rows of one token meet in one block, which adds them in their
 * order. */
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

enum { BWD_THREADS = 256, BWD_WARPS = BWD_THREADS / PX_WARP, LISTED = 512 };

/* One of the two tables: rows of dy go to row keys[t] of it. */
struct target {
  const int32_t *keys;
  float *out;
};

PX_DEVICE bool counts(const px_embed_bwd_args &a, int64_t t) {
  return (!a.dtable || inside(a.ids[t], a.table_rows)) && (!a.dposition || inside(a.positions[t], a.position_rows));
}

/* Adds the listed rows of dy, in their order. */
template <typename T, int N>
PX_DEVICE void add_listed(const px_embed_bwd_args &a, float *row, const int32_t *list, int count) {
  for (int64_t c = (int64_t)threadIdx.x * N; c < a.dim; c += BWD_THREADS * N) {
    float sum[N];
    px_load<N>(row + c, sum);
#pragma unroll 4
    for (int k = 0; k < count; k++) {
      float dy[N];
      px_load<N>(static_cast<const T *>(a.dy) + list[k] * a.dim + c, dy);
#pragma unroll
      for (int j = 0; j < N; j++) sum[j] += dy[j];
    }
    px_store<N>(row + c, sum);
  }
}

/* A block for each row of dy. The first of those that name the same row of the table adds them all, in order; the others
 * have nothing to do. */
template <typename T, int N>
PX_KERNEL(BWD_THREADS)
bwd_kernel(px_embed_bwd_args a, target to) {
  PX_SHARED(float, scratch, PX_WARP);
  PX_SHARED(uint32_t, found, BWD_WARPS);
  PX_SHARED(int32_t, list, LISTED);
  const int64_t first = blockIdx.x;
  const int32_t key = to.keys[first];
  const int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP;
  if (!counts(a, first)) return;
  for (int64_t from = 0; from < first; from += 16 * BWD_THREADS) {
    bool earlier = false;
    for (int64_t t = from + threadIdx.x; t < first && t < from + 16 * BWD_THREADS; t += BWD_THREADS)
      earlier |= to.keys[t] == key && counts(a, t);
    if (px_block_sum(earlier ? 1.0f : 0.0f, scratch) > 0) return;
  }
  float *row = to.out + key * a.dim;
  int count = 0;
  for (int64_t from = first; from < a.rows; from += BWD_THREADS) {
    int64_t t = from + threadIdx.x;
    bool same = t < a.rows && to.keys[t] == key && counts(a, t);
    uint32_t lanes = __ballot_sync(PX_ALL_LANES, same);
    if (lane == 0) found[warp] = lanes;
    __syncthreads();
    int at = count + __popc(lanes & ((1u << lane) - 1));
    for (int w = 0; w < BWD_WARPS; w++) {
      at += w < warp ? __popc(found[w]) : 0;
      count += __popc(found[w]);
    }
    if (same) list[at] = (int32_t)t;
    __syncthreads();
    if (count <= LISTED - BWD_THREADS && from + BWD_THREADS < a.rows) continue;
    add_listed<T, N>(a, row, list, count);
    count = 0;
    __syncthreads();
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

static void launch_bwd(const px_embed_bwd_args *a, target to, void *stream) {
  PX_FOR_TYPE(a->dtype, T, {
    if (px_aligned(a->dy, a->dim, 4, sizeof(T)) && px_aligned(to.out, a->dim, 4, sizeof(float)))
      PX_LAUNCH((bwd_kernel<T, 4>), (unsigned)a->rows, BWD_THREADS, 0, stream, *a, to);
    else
      PX_LAUNCH((bwd_kernel<T, 1>), (unsigned)a->rows, BWD_THREADS, 0, stream, *a, to);
  });
}

int px_embed_bwd_cuda(const px_embed_bwd_args *a, void *stream) {
  if (a->rows == 0 || a->dim == 0 || (!a->dtable && !a->dposition)) return 0;
  target table = {a->ids, a->dtable}, positions = {a->positions, a->dposition};
  if (a->dtable) launch_bwd(a, table, stream);
  if (a->dposition) launch_bwd(a, positions, stream);
  return PX_LAUNCHED();
}
