/* SPDX-License-Identifier: MIT
 * The general forward kernel, for any head_dim up to 256, float32 arithmetic. attention_tile.cuh has the
 * picture. */
#include "kernels/attention_tile.cuh"

struct fwd_problem {
  px_attn_shape s;
  const void *q, *k, *v;
  void *o;
  float *lse;
  int64_t q_stride, k_stride, v_stride, o_stride;
};

/* What a row of the tile is; in shared memory. */
struct fwd_row {
  int32_t seq, from, to; /* own keys that it sees; -1: the row is beyond the end */
};

template <typename T>
struct key_source {
  const T *k, *v; /* row 0 at the kv head */
  int64_t k_stride, v_stride;
};

/* The softmax so far of a warp's rows. */
template <int ROWS, int CHUNKS>
struct running {
  float best[ROWS], mass[ROWS], o[ROWS][CHUNKS];
};

struct fwd_shared {
  float *q, *k, *v, *weights; /* [rows][dim] [32][padded] [32][dim] [rows][32] */
  fwd_row *rows;
};

template <int ROWS>
PX_DEVICE fwd_shared carve(float *memory, int dim) {
  fwd_shared m;
  m.q = memory;
  m.k = m.q + PX_TILE_WARPS * ROWS * dim;
  m.v = m.k + PX_TILE_KEYS * px_padded(dim);
  m.weights = m.v + PX_TILE_KEYS * dim;
  m.rows = reinterpret_cast<fwd_row *>(m.weights + PX_TILE_WARPS * ROWS * PX_TILE_KEYS);
  return m;
}

template <int ROWS>
static size_t fwd_shared_bytes(int dim) {
  size_t rows = PX_TILE_WARPS * ROWS;
  return sizeof(float) * (rows * (size_t)dim + PX_TILE_KEYS * (size_t)(2 * dim + 1) + rows * PX_TILE_KEYS) +
         rows * sizeof(fwd_row);
}

/* A tile of 32 keys, of which row r of the warp sees [from[r], to[r]), meets the warp's rows. */
template <int ROWS, int CHUNKS>
PX_DEVICE void meet(const fwd_shared &m, int first, int dim, float scale, const int *from, const int *to,
                    running<ROWS, CHUNKS> &state) {
  int lane = (int)threadIdx.x % PX_WARP;
  float scores[ROWS];
  float *weights = m.weights + first * PX_TILE_KEYS;
  px_scores<ROWS>(m.q + first * dim, dim, m.k, dim, scores);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float x = lane >= from[r] && lane < to[r] ? scale * scores[r] : -INFINITY;
    float best = fmaxf(state.best[r], px_warp_max(x));
    float p = x == -INFINITY ? 0.0f : expf(x - best), kept = state.best[r] == best ? 1.0f : expf(state.best[r] - best);
    state.best[r] = best;
    state.mass[r] = state.mass[r] * kept + px_warp_sum(p);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) state.o[r][i] *= kept;
    weights[r * PX_TILE_KEYS + lane] = p;
  }
  __syncwarp();
  px_add_weighted<ROWS, CHUNKS>(weights, m.v, dim, dim, state.o);
  __syncwarp();
}

/* Keys [begin, end) of a source, which rows [run, run_end) of the tile see: all of them (own false), or each its part.
 */
template <typename T, int ROWS, int CHUNKS>
PX_DEVICE void stream(const fwd_shared &m, const key_source<T> &keys, int begin, int end, int run, int run_end,
                      bool own, int dim, float scale, running<ROWS, CHUNKS> &state) {
  int first = (int)threadIdx.x / PX_WARP * ROWS;
  for (int at = begin / PX_TILE_KEYS * PX_TILE_KEYS; at < end; at += PX_TILE_KEYS) {
    int count = end - at < PX_TILE_KEYS ? end - at : PX_TILE_KEYS;
    __syncthreads();
    px_rows_to_shared(m.k, px_padded(dim), PX_TILE_KEYS, count, dim,
                      [&](int j) { return keys.k + (int64_t)(at + j) * keys.k_stride; });
    px_rows_to_shared(m.v, dim, PX_TILE_KEYS, count, dim,
                      [&](int j) { return keys.v + (int64_t)(at + j) * keys.v_stride; });
    __syncthreads();
    int from[ROWS], to[ROWS];
    bool any = false;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      bool in = first + r >= run && first + r < run_end;
      from[r] = in && own ? m.rows[first + r].from - at : 0;
      to[r] = !in ? 0 : own ? m.rows[first + r].to - at : count;
      any |= to[r] > 0 && from[r] < PX_TILE_KEYS && from[r] < to[r];
    }
    if (any) meet<ROWS, CHUNKS>(m, first, dim, scale, from, to, state);
  }
}

/* Rows [run, run_end) of the tile belong to one sequence: its segment, then its own keys. */
template <typename T, int ROWS, int CHUNKS>
PX_DEVICE void meet_sequence(const fwd_problem &a, const fwd_shared &m, int run, int run_end, int kv_head,
                             running<ROWS, CHUNKS> &state) {
  const px_attn_shape &s = a.s;
  int seq = m.rows[run].seq, dim = s.head_dim;
  const px_kv_segment *segment = px_segment_of(s, seq);
  if (segment) {
    int64_t head = (int64_t)kv_head * dim;
    key_source<T> keys = {static_cast<const T *>(segment->k) + head, static_cast<const T *>(segment->v) + head,
                          segment->stride, segment->stride};
    stream<T, ROWS, CHUNKS>(m, keys, 0, segment->len, run, run_end, false, dim, s.scale, state);
  }
  int64_t base = s.k_offsets[seq], head = (int64_t)kv_head * dim;
  key_source<T> keys = {static_cast<const T *>(a.k) + base * a.k_stride + head,
                        static_cast<const T *>(a.v) + base * a.v_stride + head, a.k_stride, a.v_stride};
  /* Later queries see later keys: the first row's first key and the last row's last bound them all. */
  stream<T, ROWS, CHUNKS>(m, keys, m.rows[run].from, m.rows[run_end - 1].to, run, run_end, true, dim, s.scale, state);
}

template <typename T, int ROWS, int CHUNKS>
PX_KERNEL(PX_TILE_THREADS)
fwd_kernel(fwd_problem a) {
  PX_DYNAMIC_SHARED(float, memory);
  const px_attn_shape &s = a.s;
  int dim = s.head_dim, group = s.heads / s.kv_heads, kv_head = (int)blockIdx.y, tile = PX_TILE_WARPS * ROWS;
  int64_t base = (int64_t)blockIdx.x * tile, all = (int64_t)s.q_rows * group;
  int count = all - base < tile ? (int)(all - base) : tile;
  fwd_shared m = carve<ROWS>(memory, dim);
  for (int r = (int)threadIdx.x; r < count; r += PX_TILE_THREADS) {
    int row = (int)((base + r) / group), seq = px_sequence_of(s.q_offsets, s.seqs, row);
    int nk = s.k_offsets[seq + 1] - s.k_offsets[seq];
    m.rows[r].seq = seq;
    px_visible(s, row - s.q_offsets[seq], s.q_offsets[seq + 1] - s.q_offsets[seq], nk, &m.rows[r].from, &m.rows[r].to);
  }
  px_rows_to_shared(m.q, dim, tile, count, dim, [&](int r) {
    int64_t row = (base + r) / group, head = (int64_t)kv_head * group + (base + r) % group;
    return static_cast<const T *>(a.q) + row * a.q_stride + head * dim;
  });
  __syncthreads();

  running<ROWS, CHUNKS> state;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    state.best[r] = -INFINITY;
    state.mass[r] = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) state.o[r][i] = 0;
  }
  for (int run = 0, end; run < count; run = end) {
    for (end = run + 1; end < count && m.rows[end].seq == m.rows[run].seq;) end++;
    meet_sequence<T, ROWS, CHUNKS>(a, m, run, end, kv_head, state);
  }

  int lane = (int)threadIdx.x % PX_WARP, first = (int)threadIdx.x / PX_WARP * ROWS;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (first + r >= count) continue;
    int64_t row = (base + first + r) / group, head = (int64_t)kv_head * group + (base + first + r) % group;
    T *o = static_cast<T *>(a.o) + row * a.o_stride + head * dim;
    float share = state.mass[r] > 0 ? 1.0f / state.mass[r] : 0.0f;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
      if (lane + PX_WARP * i < dim) o[lane + PX_WARP * i] = px_from_float<T>(state.o[r][i] * share);
    if (a.lse && lane == 0) a.lse[head * s.q_rows + row] = state.best[r] + logf(state.mass[r]);
  }
}

static int launch(const fwd_problem &a, void *stream) {
  const px_attn_shape &s = a.s;
  int64_t rows = (int64_t)s.q_rows * (s.heads / s.kv_heads);
  PX_FOR_HEAD_DIM(s.head_dim, CHUNKS, ROWS, PX_FOR_ATTN_TYPE(s.dtype, T, {
                    size_t bytes = fwd_shared_bytes<ROWS>(s.head_dim);
                    PX_ALLOW_SHARED((fwd_kernel<T, ROWS, CHUNKS>), bytes);
                    dim3 grid(px_blocks(rows, PX_TILE_WARPS * ROWS), (unsigned)s.kv_heads);
                    PX_LAUNCH((fwd_kernel<T, ROWS, CHUNKS>), grid, PX_TILE_THREADS, bytes, stream, a);
                  }));
  return PX_LAUNCHED();
}

int px_attn_fwd_cuda(const px_attn_fwd_args *a, void *stream) {
  if (a->shape.seqs == 0 || a->shape.q_rows == 0) return 0;
  if (px_attn_fwd_mma(a, stream)) return PX_LAUNCHED();
  fwd_problem p = {};
  p.s = a->shape;
  p.q = a->q, p.k = a->k, p.v = a->v, p.o = a->o, p.lse = a->lse;
  p.q_stride = a->q_stride, p.k_stride = a->k_stride, p.v_stride = a->v_stride, p.o_stride = a->o_stride;
  return launch(p, stream);
}
