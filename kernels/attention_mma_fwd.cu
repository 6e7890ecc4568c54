/* SPDX-License-Identifier: MIT
 * Forward attention on tensor cores: bfloat16 or float16, training and prefill.
 *
 *   a block: 64 * MT rows (query, head of the group) of one kv head, four warps of 16 * MT rows
 *
 *     wait for K                              shared memory: Q (stays), K, V
 *     load V          ->  while  S = Q K^T, masked, softmax      (registers)
 *     wait for V
 *     load the next K ->  while  O += P V                        (registers)
 *
 * Sums and maxima of a row live in the four lanes that hold it and meet at its end. */
#include "kernels/attention_mma.cuh"

enum { WARPS = 4, THREADS = WARPS * PX_WARP };

/* Keys of a tile: what two such tiles and the rows leave room for in 99 KB, and in registers. */
template <int DIM>
struct tile_of {
  enum { KEYS = DIM > 128 ? 32 : 64 };
};

struct mma_fwd_problem {
  px_attn_shape s;
  const void *q;
  void *o;
  float *lse;
  int64_t q_stride, o_stride;
  px_mma_keys keys;
};

template <int DIM, int MT>
static size_t fwd_bytes() {
  return sizeof(px_word16) * (DIM + PX_MMA_PAD) * (64 * MT + 2 * tile_of<DIM>::KEYS) + sizeof(px_mma_row) * 64 * MT;
}

/* The softmax so far of a warp's rows; lane l holds rows l / 4 and l / 4 + 8 of every 16. */
template <int DIM, int MT>
struct softmax_state {
  float best[MT][2], mass[MT][2], o[MT][DIM / 8][4];
};

/* scores become weights exp2(score - best); what came before is scaled to the new best. `scale`: to log2 units. */
template <int DIM, int MT, int N>
PX_DEVICE void soften(float (*c)[N][4], const px_mma_walk<8 * N> &w, const px_mma_row *rows, int first, float scale,
                      softmax_state<DIM, MT> &state) {
  int g = (int)threadIdx.x % PX_WARP / 4, t = (int)threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int from, to;
      px_mma_sees<8 * N>(w, rows, first + 16 * m + 8 * h + g, &from, &to);
      float best = state.best[m][h];
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          int key = 8 * n + 2 * t + e;
          float &x = c[m][n][2 * h + e];
          x = key >= from && key < to ? x * scale : -INFINITY;
          best = fmaxf(best, x);
        }
      best = fmaxf(best, __shfl_xor_sync(PX_ALL_LANES, best, 1));
      best = fmaxf(best, __shfl_xor_sync(PX_ALL_LANES, best, 2));
      float base = best == -INFINITY ? 0.0f : best, kept = px_exp2(state.best[m][h] - base), sum = 0;
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float &x = c[m][n][2 * h + e];
          x = px_exp2(x - base);
          sum += x;
        }
      state.best[m][h] = best;
      state.mass[m][h] = state.mass[m][h] * kept + sum;
#pragma unroll
      for (int i = 0; i < DIM / 8; i++) {
        state.o[m][i][2 * h] *= kept;
        state.o[m][i][2 * h + 1] *= kept;
      }
    }
}

/* Whether any of the warp's rows belongs to where the walk is. */
template <int MT, int KEYS>
PX_DEVICE bool concerns(const px_mma_walk<KEYS> &w, const px_mma_row *rows, int first, int count) {
  int from = 0, to = 0;
  int r = first + (int)threadIdx.x % PX_WARP % (16 * MT);
  if (r < count) px_mma_sees<KEYS>(w, rows, r, &from, &to);
  return __any_sync(PX_ALL_LANES, from < to);
}

/* o and lse of the warp's rows; o goes through the warp's part of Q's tile so that it leaves in words of 16 bytes. */
template <typename E, int DIM, int MT>
PX_DEVICE void finish(const mma_fwd_problem &a, px_word16 *tile, int first, int64_t base, int count, int kv_head,
                      softmax_state<DIM, MT> &state) {
  const px_attn_shape &s = a.s;
  int lane = (int)threadIdx.x % PX_WARP, g = lane / 4, t = lane % 4, group = s.heads / s.kv_heads;
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float mass = state.mass[m][h];
      mass += __shfl_xor_sync(PX_ALL_LANES, mass, 1);
      mass += __shfl_xor_sync(PX_ALL_LANES, mass, 2);
      int r = first + 16 * m + 8 * h + g;
      float share = mass > 0 ? 1.0f / mass : 0.0f;
#pragma unroll
      for (int i = 0; i < DIM / 8; i++) {
        uint32_t pair = px_pack<E>(state.o[m][i][2 * h] * share, state.o[m][i][2 * h + 1] * share);
        *reinterpret_cast<uint32_t *>(tile + r * (DIM + PX_MMA_PAD) + 8 * i + 2 * t) = pair;
      }
      if (a.lse && t == 0 && r < count) {
        int64_t row = (base + r) / group, head = (int64_t)kv_head * group + (base + r) % group;
        a.lse[head * s.q_rows + row] = mass > 0 ? state.best[m][h] * 0.69314718f + logf(mass) : -INFINITY;
      }
    }
  __syncwarp();
  for (int i = lane; i < 16 * MT * (DIM / 8); i += PX_WARP) {
    int r = first + i / (DIM / 8), d = i % (DIM / 8) * 8;
    if (r >= count || d >= s.head_dim) continue;
    int64_t row = (base + r) / group, head = (int64_t)kv_head * group + (base + r) % group;
    px_word16 *out = static_cast<px_word16 *>(a.o) + row * a.o_stride + head * s.head_dim + d;
    *reinterpret_cast<px_vec<px_word16, 8> *>(out) =
        *reinterpret_cast<const px_vec<px_word16, 8> *>(tile + r * (DIM + PX_MMA_PAD) + d);
  }
}

template <typename E, int DIM, int MT>
PX_KERNEL(THREADS)
mma_fwd_kernel(mma_fwd_problem a) {
  constexpr int KEYS = tile_of<DIM>::KEYS, ROWS = 64 * MT, N = KEYS / 8;
  PX_DYNAMIC_SHARED(px_word16, memory);
  px_word16 *q = memory, *k = q + ROWS * (DIM + PX_MMA_PAD), *v = k + KEYS * (DIM + PX_MMA_PAD);
  px_mma_row *rows = reinterpret_cast<px_mma_row *>(v + KEYS * (DIM + PX_MMA_PAD));
  PX_SHARED(px_mma_walk<KEYS>, walks, 2);
  const px_attn_shape &s = a.s;
  int group = s.heads / s.kv_heads, kv_head = (int)blockIdx.y, dim = s.head_dim;
  /* Later tiles of a sequence meet more keys: they begin first. */
  int64_t base = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS, all = (int64_t)s.q_rows * group;
  int count = all - base < ROWS ? (int)(all - base) : ROWS, first = (int)threadIdx.x / PX_WARP * 16 * MT;
  for (int r = (int)threadIdx.x; r < count; r += THREADS) rows[r] = px_mma_row_of(s, (int)((base + r) / group));
  px_mma_load<DIM, ROWS, THREADS>(q, count, dim, [&](int r) {
    int64_t row = (base + r) / group, head = (int64_t)kv_head * group + (base + r) % group;
    return static_cast<const px_word16 *>(a.q) + row * a.q_stride + head * dim;
  });
  __syncthreads();

  softmax_state<DIM, MT> state;
  px_mma_clear<MT, DIM / 8>(state.o);
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      state.best[m][h] = -INFINITY;
      state.mass[m][h] = 0;
    }
  if (threadIdx.x == 0) {
    walks[0] = {};
    px_mma_next<KEYS>(walks[0], s, a.keys, kv_head, rows, count);
  }
  __syncthreads();
  if (!walks[0].over) px_mma_load_keys<DIM, KEYS, THREADS>(k, walks[0], walks[0].k, walks[0].k_stride, dim);
  px_commit_copies();
  for (int turn = 0; !walks[turn].over; turn ^= 1) {
    const px_mma_walk<KEYS> &w = walks[turn], &next = walks[turn ^ 1];
    px_wait_copies<0>();
    __syncthreads();
    px_mma_load_keys<DIM, KEYS, THREADS>(v, w, w.v, w.v_stride, dim);
    px_commit_copies();
    if (threadIdx.x == 0) {
      walks[turn ^ 1] = w;
      px_mma_next<KEYS>(walks[turn ^ 1], s, a.keys, kv_head, rows, count);
    }
    bool mine = concerns<MT, KEYS>(w, rows, first, count);
    float c[MT][N][4];
    if (mine) {
      px_mma_clear<MT, N>(c);
      px_mma_rows_by_rows<E, DIM, MT, N>(c, q, first, k);
      soften<DIM, MT, N>(c, w, rows, first, s.scale * 1.44269504f, state);
    }
    px_wait_copies<0>();
    __syncthreads();
    if (!next.over) px_mma_load_keys<DIM, KEYS, THREADS>(k, next, next.k, next.k_stride, dim);
    px_commit_copies();
    if (mine) px_mma_weighted<E, DIM, MT, N, DIM / 8>(state.o, c, v, 0);
  }
  px_wait_copies<0>();
  __syncthreads(); /* a tile that meets no key has come here at once: Q is still being written by others */
  finish<E, DIM, MT>(a, q, first, base, count, kv_head, state);
}

template <typename E, int DIM, int MT>
static void launch(const mma_fwd_problem &a, void *stream) {
  size_t bytes = fwd_bytes<DIM, MT>();
  dim3 grid(px_blocks((int64_t)a.s.q_rows * (a.s.heads / a.s.kv_heads), 64 * MT), (unsigned)a.s.kv_heads);
  PX_ALLOW_SHARED((mma_fwd_kernel<E, DIM, MT>), bytes);
  PX_LAUNCH((mma_fwd_kernel<E, DIM, MT>), grid, THREADS, bytes, stream, a);
}

template <typename E>
static void launch_any(const mma_fwd_problem &a, void *stream) {
  /* Tiles of 128 rows read each key half as often; they pay where they are enough for the device. */
  int64_t tiles = (int64_t)px_blocks((int64_t)a.s.q_rows * (a.s.heads / a.s.kv_heads), 128) * a.s.kv_heads;
  bool large = tiles >= px_multiprocessors();
  PX_MMA_FOR_DIM(a.s.head_dim, DIM, {
    if (DIM <= 128 && large)
      launch<E, DIM, DIM <= 128 ? 2 : 1>(a, stream);
    else
      launch<E, DIM, 1>(a, stream);
  });
}

bool px_attn_fwd_mma(const px_attn_fwd_args *a, void *stream) {
  if (!px_mma_takes(a->shape) || !px_mma_rows(a->q, a->q_stride) || !px_mma_rows(a->k, a->k_stride) ||
      !px_mma_rows(a->v, a->v_stride) || !px_mma_rows(a->o, a->o_stride))
    return false;
  mma_fwd_problem p = {};
  p.s = a->shape;
  p.q = a->q, p.o = a->o, p.lse = a->lse, p.q_stride = a->q_stride, p.o_stride = a->o_stride;
  p.keys.k = a->k, p.keys.v = a->v, p.keys.k_stride = a->k_stride, p.keys.v_stride = a->v_stride;
  PX_MMA_FOR_TYPE(p.s.dtype, E, launch_any<E>(p, stream));
  return true;
}
