/* SPDX-License-Identifier: MIT
 * Backward attention on tensor cores: bfloat16 or float16. The passes of attention_bwd.cu, which launches delta and join:
 *   queries   16 query rows a warp stay (Q, dO), keys stream by:       S, dP -> dS;      dQ += dS K
 *   keys      16 key rows a warp stay (K, V), queries stream by:       S', dP' -> P', dS'; dV += P' dO, dK += dS' Q
 *   segments  the same for segment keys, in parts; a part's float32 sums go to the workspace
 * What streams by is in shared memory twice where the device has room (STAGES 2), so that the next tile comes while
 * this one is met. Every sum has one order: nothing is added atomically. */
#include "kernels/attention_mma.cuh"

struct query_stats {
  float lse, delta; /* lse in log2 units */
};

PX_DEVICE query_stats stats_of(const px_attn_bwd_problem &p, int64_t row, int64_t head) {
  int64_t i = head * p.a.shape.q_rows + row;
  return {p.a.lse[i] * 1.44269504f, p.delta[i]};
}

/* exp2(scale s - lse) where seen, else 0; dp becomes ds, not yet scaled. */
PX_DEVICE void weigh(float &s, float &dp, bool sees, float scale, query_stats stats) {
  s = sees ? px_exp2(s * scale - stats.lse) : 0.0f;
  dp = sees ? s * (dp - stats.delta) : 0.0f;
}

/* ---- queries ---- */

template <int DIM>
struct queries_tile {
  enum { WARPS = DIM > 128 ? 2 : 4, THREADS = WARPS * PX_WARP, ROWS = 16 * WARPS, KEYS = DIM > 128 ? 32 : 64 };
  static size_t bytes(int stages) {
    return sizeof(px_word16) * (DIM + PX_MMA_PAD) * (2 * ROWS + 2 * KEYS * (size_t)stages) + sizeof(px_mma_row) * ROWS;
  }
};

/* dq of the warp's rows, through its part of Q's tile. */
template <typename E, int DIM>
PX_DEVICE void queries_finish(const px_attn_bwd_args &a, px_word16 *tile, int first, int64_t base, int count, int kv_head,
                              const float (*dq)[4]) {
  const px_attn_shape &s = a.shape;
  int lane = (int)threadIdx.x % PX_WARP, g = lane / 4, t = lane % 4, group = s.heads / s.kv_heads;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < DIM / 8; i++)
#pragma unroll
    for (int h = 0; h < 2; h++)
      *reinterpret_cast<uint32_t *>(tile + (first + g + 8 * h) * (DIM + PX_MMA_PAD) + 8 * i + 2 * t) =
          px_pack<E>(dq[i][2 * h] * s.scale, dq[i][2 * h + 1] * s.scale);
  __syncwarp();
  for (int i = lane; i < 16 * (DIM / 8); i += PX_WARP) {
    int r = first + i / (DIM / 8), d = i % (DIM / 8) * 8;
    if (r >= count || d >= s.head_dim) continue;
    int64_t row = (base + r) / group, head = (int64_t)kv_head * group + (base + r) % group;
    px_word16 *out = static_cast<px_word16 *>(a.dq) + row * a.dq_stride + head * s.head_dim + d;
    *reinterpret_cast<px_vec<px_word16, 8> *>(out) =
        *reinterpret_cast<const px_vec<px_word16, 8> *>(tile + r * (DIM + PX_MMA_PAD) + d);
  }
}

/* The warp's rows meet a tile of keys: dq += ds key. */
template <typename E, int DIM, int KEYS>
PX_DEVICE void queries_meet(const px_mma_walk<KEYS> &w, const px_mma_row *rows, int first, int count, float scale,
                            const px_word16 *q, const px_word16 *dout, const px_word16 *k, const px_word16 *v,
                            const query_stats *stats, float (*dq)[DIM / 8][4]) {
  constexpr int N = KEYS / 8;
  int lane = (int)threadIdx.x % PX_WARP, from[2], to[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int r = first + lane / 4 + 8 * h;
    from[h] = to[h] = 0;
    if (r < count) px_mma_sees<KEYS>(w, rows, r, &from[h], &to[h]);
  }
  if (!__any_sync(PX_ALL_LANES, from[0] < to[0] || from[1] < to[1])) return;
  float s[1][N][4], dp[1][N][4];
  px_mma_clear<1, N>(s);
  px_mma_clear<1, N>(dp);
  px_mma_rows_by_rows<E, DIM, 1, N>(s, q, first, k);
  px_mma_rows_by_rows<E, DIM, 1, N>(dp, dout, first, v);
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int key = 8 * n + 2 * (lane % 4) + j % 2, h = j / 2;
      weigh(s[0][n][j], dp[0][n][j], key >= from[h] && key < to[h], scale, stats[h]);
    }
  px_mma_weighted<E, DIM, 1, N, DIM / 8>(dq, dp, k, 0);
}

template <typename E, int DIM, int STAGES>
PX_KERNEL((queries_tile<DIM>::THREADS))
mma_queries_kernel(px_attn_bwd_problem p) {
  constexpr int ROWS = queries_tile<DIM>::ROWS, KEYS = queries_tile<DIM>::KEYS, THREADS = queries_tile<DIM>::THREADS;
  constexpr int ROW = DIM + PX_MMA_PAD;
  PX_DYNAMIC_SHARED(px_word16, memory);
  PX_SHARED(px_mma_walk<KEYS>, walks, 2);
  px_word16 *q = memory, *dout = q + ROWS * ROW, *keys = dout + ROWS * ROW; /* keys: K, V of every stage */
  px_mma_row *rows = reinterpret_cast<px_mma_row *>(keys + 2 * KEYS * STAGES * ROW);
  const px_attn_bwd_args &a = p.a;
  const px_attn_shape &s = a.shape;
  int group = s.heads / s.kv_heads, kv_head = (int)blockIdx.y, dim = s.head_dim, lane = (int)threadIdx.x % PX_WARP;
  int64_t base = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS, all = (int64_t)s.q_rows * group;
  int count = all - base < ROWS ? (int)(all - base) : ROWS, first = (int)threadIdx.x / PX_WARP * 16;
  px_mma_keys own = {a.k, a.v, a.k_stride, a.v_stride};
  for (int r = (int)threadIdx.x; r < count; r += THREADS) rows[r] = px_mma_row_of(s, (int)((base + r) / group));
  query_stats stats[2] = {};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int r = first + lane / 4 + 8 * h;
    if (r < count) stats[h] = stats_of(p, (base + r) / group, (int64_t)kv_head * group + (base + r) % group);
  }
  px_mma_load<DIM, ROWS, THREADS>(q, count, dim, [&](int r) {
    return static_cast<const px_word16 *>(a.q) + (base + r) / group * a.q_stride +
           ((int64_t)kv_head * group + (base + r) % group) * dim;
  });
  px_mma_load<DIM, ROWS, THREADS>(dout, count, dim, [&](int r) {
    return static_cast<const px_word16 *>(a.dout) + (base + r) / group * a.dout_stride +
           ((int64_t)kv_head * group + (base + r) % group) * dim;
  });
  auto load = [&](int stage, const px_mma_walk<KEYS> &w) {
    if (!w.over) {
      px_mma_load_keys<DIM, KEYS, THREADS>(keys + 2 * stage * KEYS * ROW, w, w.k, w.k_stride, dim);
      px_mma_load_keys<DIM, KEYS, THREADS>(keys + (2 * stage + 1) * KEYS * ROW, w, w.v, w.v_stride, dim);
    }
    px_commit_copies();
  };
  __syncthreads();
  if (threadIdx.x == 0) {
    walks[0] = {};
    px_mma_next<KEYS>(walks[0], s, own, kv_head, rows, count);
  }
  __syncthreads();

  float dq[1][DIM / 8][4];
  px_mma_clear<1, DIM / 8>(dq);
  load(0, walks[0]);
  for (int turn = 0; !walks[turn].over; turn ^= 1) {
    const px_mma_walk<KEYS> &w = walks[turn];
    const px_word16 *k = keys + (STAGES == 2 ? turn : 0) * 2 * KEYS * ROW;
    if (threadIdx.x == 0) {
      walks[turn ^ 1] = w;
      px_mma_next<KEYS>(walks[turn ^ 1], s, own, kv_head, rows, count);
    }
    if (STAGES == 2) {
      __syncthreads(); /* the other stage has been met by all, and the next walk is known */
      load(turn ^ 1, walks[turn ^ 1]);
    }
    px_wait_copies<STAGES - 1>();
    __syncthreads();
    queries_meet<E, DIM, KEYS>(w, rows, first, count, s.scale * 1.44269504f, q, dout, k, k + KEYS * ROW, stats, dq);
    if (STAGES == 1) {
      __syncthreads();
      load(0, walks[turn ^ 1]);
    }
  }
  px_wait_copies<0>();
  __syncthreads(); /* a tile that meets no key has come here at once: Q is still being written by others */
  queries_finish<E, DIM>(a, q, first, base, count, kv_head, dq[0]);
}

/* ---- keys and segments ---- */

/* SHARE warps have the same 16 keys and a part of the columns each, where a warp's registers do not hold both sums. */
template <int DIM>
struct keys_tile {
  enum { SHARE = DIM > 128 ? 2 : 1, THREADS = 128, KEYS = 64 / SHARE, ROWS = DIM <= 96 ? 64 : 32, I = DIM / 8 / SHARE };
  static size_t bytes(int stages) {
    return sizeof(px_word16) * (DIM + PX_MMA_PAD) * (2 * KEYS + 2 * ROWS * (size_t)stages) +
           (sizeof(int2) + sizeof(query_stats)) * ROWS * (size_t)stages;
  }
};

template <int DIM>
struct keys_shared {
  enum { ROW = DIM + PX_MMA_PAD, ROWS = keys_tile<DIM>::ROWS };
  px_word16 *k, *v, *queries; /* queries: Q, dO of every stage */
  int2 *seen;               /* of every stage: keys [x, y) that a query sees */
  query_stats *stats;
};

template <int DIM, int STAGES>
PX_DEVICE keys_shared<DIM> carve(px_word16 *memory) {
  using T = keys_tile<DIM>;
  keys_shared<DIM> m;
  m.k = memory;
  m.v = m.k + T::KEYS * (DIM + PX_MMA_PAD);
  m.queries = m.v + T::KEYS * (DIM + PX_MMA_PAD);
  m.seen = reinterpret_cast<int2 *>(m.queries + 2 * T::ROWS * STAGES * (DIM + PX_MMA_PAD));
  m.stats = reinterpret_cast<query_stats *>(m.seen + T::ROWS * STAGES);
  return m;
}

/* The gradients of a warp's 16 keys, I * 8 columns. */
template <int I>
struct key_sums {
  float dk[1][I][4], dv[1][I][4];
};

/* Which queries meet a tile of own keys: sequence after sequence, head after head, ROWS rows at a time. */
template <int ROWS>
struct own_walk {
  int base, end;        /* the tile's keys, flat rows */
  int seq, g, at, last; /* queries [at, last) of the sequence see any of them */
  int begin, q0, k0, nq, nk;
  bool over;

  PX_DEVICE void enter(own_walk &w, const px_attn_shape &s) {
    for (;; w.seq++) {
      w.over = w.seq >= s.seqs || s.k_offsets[w.seq] >= w.end;
      if (w.over) return;
      w.q0 = s.q_offsets[w.seq], w.nq = s.q_offsets[w.seq + 1] - w.q0;
      w.k0 = s.k_offsets[w.seq], w.nk = s.k_offsets[w.seq + 1] - w.k0;
      int low = w.base > w.k0 ? w.base - w.k0 : 0, high = w.end - w.k0 < w.nk ? w.end - w.k0 : w.nk;
      w.begin = 0, w.last = w.nq;
      if (s.mask == PX_MASK_CAUSAL && low > w.nk - w.nq) w.begin = low - (w.nk - w.nq);
      if (s.window && high - 1 + s.window - (w.nk - w.nq) < w.nq) w.last = high - 1 + s.window - (w.nk - w.nq);
      if (low < high && w.begin < w.last) break;
    }
    w.g = 0;
    w.at = w.begin;
  }
  PX_DEVICE void next(own_walk &w, const px_attn_shape &s) {
    w.at += ROWS;
    if (w.at < w.last) return;
    w.at = w.begin;
    if (++w.g < s.heads / s.kv_heads) return;
    w.seq++;
    enter(w, s);
  }
  PX_DEVICE int first_row(const own_walk &w) { return w.q0 + w.at; }
  PX_DEVICE int rows(const own_walk &w) { return w.last - w.at < ROWS ? w.last - w.at : ROWS; }
  PX_DEVICE int key_number(const own_walk &w) { return w.base - w.k0; } /* of the tile's first key */
  PX_DEVICE int2 sees(const own_walk &w, const px_attn_shape &s, int j) {
    int2 keys;
    px_visible(s, w.at + j, w.nq, w.nk, &keys.x, &keys.y);
    return keys;
  }
};

/* Which queries meet a tile of segment `id`: of rows [at, end) those that name it, all heads. */
template <int ROWS>
struct segment_walk {
  int id, from, len; /* from: the tile's first key */
  int at, end, g;
  bool over;

  PX_DEVICE void enter(segment_walk &w, const px_attn_shape &s) { /* most tiles belong to one adapter altogether */
    for (; w.at < w.end; w.at += ROWS) {
      int to = w.at + rows(w);
      for (int seq = px_sequence_of(s.q_offsets, s.seqs, w.at); seq < s.seqs && s.q_offsets[seq] < to; seq++)
        if (s.adapter[seq] == w.id && s.q_offsets[seq + 1] > w.at) return;
    }
    w.over = true;
  }
  PX_DEVICE void next(segment_walk &w, const px_attn_shape &s) {
    if (++w.g < s.heads / s.kv_heads) return;
    w.g = 0;
    w.at += ROWS;
    enter(w, s);
  }
  PX_DEVICE int first_row(const segment_walk &w) { return w.at; }
  PX_DEVICE int rows(const segment_walk &w) { return w.end - w.at < ROWS ? w.end - w.at : ROWS; }
  PX_DEVICE int key_number(const segment_walk &w) { return w.from; }
  PX_DEVICE int2 sees(const segment_walk &w, const px_attn_shape &s, int j) {
    int2 keys = {0, s.adapter[px_sequence_of(s.q_offsets, s.seqs, w.at + j)] == w.id ? w.len : 0};
    return keys;
  }
};

/* The queries where the walk is into a stage. */
template <int DIM, typename Walk>
PX_DEVICE void load_queries(const px_attn_bwd_problem &p, const keys_shared<DIM> &m, int stage, const Walk &w,
                            int kv_head) {
  using T = keys_tile<DIM>;
  const px_attn_bwd_args &a = p.a;
  const px_attn_shape &s = a.shape;
  if (!w.over) {
    int64_t row = Walk::first_row(w), head = (int64_t)kv_head * (s.heads / s.kv_heads) + w.g;
    int count = Walk::rows(w), dim = s.head_dim, j = (int)threadIdx.x;
    if (j < T::ROWS) {
      m.seen[stage * T::ROWS + j] = j < count ? Walk::sees(w, s, j) : int2{0, 0};
      m.stats[stage * T::ROWS + j] = j < count ? stats_of(p, row + j, head) : query_stats{0, 0};
    }
    px_word16 *q = m.queries + 2 * stage * T::ROWS * (DIM + PX_MMA_PAD), *dout = q + T::ROWS * (DIM + PX_MMA_PAD);
    px_mma_load<DIM, T::ROWS, T::THREADS>(
        q, count, dim, [&](int i) { return static_cast<const px_word16 *>(a.q) + (row + i) * a.q_stride + head * dim; });
    px_mma_load<DIM, T::ROWS, T::THREADS>(dout, count, dim, [&](int i) {
      return static_cast<const px_word16 *>(a.dout) + (row + i) * a.dout_stride + head * dim;
    });
  }
  px_commit_copies();
}

/* The warp's keys, `number` and on in their sequence or segment, meet the queries of a stage. */
template <typename E, int DIM>
PX_DEVICE void keys_meet(const keys_shared<DIM> &m, int stage, int number, float scale,
                         key_sums<keys_tile<DIM>::I> &sums) {
  using T = keys_tile<DIM>;
  constexpr int N = T::ROWS / 8;
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP;
  int first = warp / T::SHARE * 16, column = warp % T::SHARE * (T::I * 8);
  const int2 *seen = m.seen + stage * T::ROWS;
  const query_stats *stats = m.stats + stage * T::ROWS;
  bool any = false;
  for (int j = lane; j < T::ROWS; j += PX_WARP) {
    int2 keys = seen[j];
    any |= keys.x < number + 16 && keys.y > number && keys.x < keys.y;
  }
  if (!__any_sync(PX_ALL_LANES, any)) return;
  const px_word16 *q = m.queries + 2 * stage * T::ROWS * (DIM + PX_MMA_PAD), *dout = q + T::ROWS * (DIM + PX_MMA_PAD);
  float c[1][N][4], dp[1][N][4];
  px_mma_clear<1, N>(c);
  px_mma_clear<1, N>(dp);
  px_mma_rows_by_rows<E, DIM, 1, N>(c, m.k, first, q);
  px_mma_rows_by_rows<E, DIM, 1, N>(dp, m.v, first, dout);
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      int2 keys = seen[8 * n + 2 * (lane % 4) + e];
      query_stats st = stats[8 * n + 2 * (lane % 4) + e];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int key = number + lane / 4 + 8 * h;
        weigh(c[0][n][2 * h + e], dp[0][n][2 * h + e], key >= keys.x && key < keys.y, scale, st);
      }
    }
  px_mma_weighted<E, DIM, 1, N, T::I>(sums.dv, c, dout, column);
  px_mma_weighted<E, DIM, 1, N, T::I>(sums.dk, dp, q, column);
}

/* All queries of the walk; the tile's keys and values are on their way, not yet committed. */
template <typename E, int DIM, int STAGES, typename Walk>
PX_DEVICE void meet_queries(const px_attn_bwd_problem &p, const keys_shared<DIM> &m, Walk w, int kv_head,
                            key_sums<keys_tile<DIM>::I> &sums) {
  using T = keys_tile<DIM>;
  const px_attn_shape &s = p.a.shape;
  int first = (int)threadIdx.x / PX_WARP / T::SHARE * 16;
  px_mma_clear<1, T::I>(sums.dk);
  px_mma_clear<1, T::I>(sums.dv);
  load_queries<DIM>(p, m, 0, w, kv_head);
  for (int turn = 0; !w.over; turn ^= STAGES - 1) {
    Walk next = w;
    Walk::next(next, s);
    if (STAGES == 2) {
      __syncthreads();
      load_queries<DIM>(p, m, turn ^ 1, next, kv_head);
    }
    px_wait_copies<STAGES - 1>();
    __syncthreads();
    keys_meet<E, DIM>(m, turn, Walk::key_number(w) + first, s.scale * 1.44269504f, sums);
    if (STAGES == 1) {
      __syncthreads();
      load_queries<DIM>(p, m, 0, next, kv_head);
    }
    w = next;
  }
  px_wait_copies<0>();
  __syncthreads(); /* the tiles may be filled again */
}

/* write(key of the tile, column, two sums of dk, two of dv) for every pair that the lane holds. */
template <int DIM, typename Write>
PX_DEVICE void for_each_sum(const key_sums<keys_tile<DIM>::I> &sums, int count, int dim, float scale, Write write) {
  using T = keys_tile<DIM>;
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP;
  int first = warp / T::SHARE * 16, column = warp % T::SHARE * (T::I * 8);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int r = first + lane / 4 + 8 * h;
    if (r >= count) break;
#pragma unroll
    for (int i = 0; i < T::I; i++) {
      int d = column + 8 * i + 2 * (lane % 4);
      if (d < dim)
        write(r, d, sums.dk[0][i][2 * h] * scale, sums.dk[0][i][2 * h + 1] * scale, sums.dv[0][i][2 * h],
              sums.dv[0][i][2 * h + 1]);
    }
  }
}

template <typename E, int DIM, int STAGES>
PX_KERNEL(128)
mma_keys_kernel(px_attn_bwd_problem p) {
  using T = keys_tile<DIM>;
  PX_DYNAMIC_SHARED(px_word16, memory);
  const px_attn_bwd_args &a = p.a;
  const px_attn_shape &s = a.shape;
  int kv_head = (int)blockIdx.y, dim = s.head_dim, base = (int)blockIdx.x * T::KEYS;
  int end = s.k_rows - base < T::KEYS ? s.k_rows : base + T::KEYS;
  int64_t head = (int64_t)kv_head * dim;
  keys_shared<DIM> m = carve<DIM, STAGES>(memory);
  px_mma_load<DIM, T::KEYS, T::THREADS>(
      m.k, end - base, dim, [&](int r) { return static_cast<const px_word16 *>(a.k) + (base + r) * a.k_stride + head; });
  px_mma_load<DIM, T::KEYS, T::THREADS>(
      m.v, end - base, dim, [&](int r) { return static_cast<const px_word16 *>(a.v) + (base + r) * a.v_stride + head; });
  own_walk<T::ROWS> w = {};
  w.base = base, w.end = end, w.seq = px_sequence_of(s.k_offsets, s.seqs, base);
  own_walk<T::ROWS>::enter(w, s);
  key_sums<T::I> sums;
  meet_queries<E, DIM, STAGES>(p, m, w, kv_head, sums);
  for_each_sum<DIM>(sums, end - base, dim, s.scale, [&](int r, int d, float k0, float k1, float v0, float v1) {
    px_word16 *dk = static_cast<px_word16 *>(a.dk) + (base + r) * a.dk_stride + head + d;
    px_word16 *dv = static_cast<px_word16 *>(a.dv) + (base + r) * a.dv_stride + head + d;
    *reinterpret_cast<uint32_t *>(dk) = px_pack<E>(k0, k1);
    *reinterpret_cast<uint32_t *>(dv) = px_pack<E>(v0, v1);
  });
}

template <typename E, int DIM, int STAGES>
PX_KERNEL(128)
mma_segments_kernel(px_attn_bwd_problem p, int splits) {
  using T = keys_tile<DIM>;
  PX_DYNAMIC_SHARED(px_word16, memory);
  const px_attn_shape &s = p.a.shape;
  int kv_head = (int)blockIdx.y, split = (int)blockIdx.z, dim = s.head_dim;
  int64_t head = (int64_t)kv_head * dim, width = (int64_t)s.kv_heads * dim;
  keys_shared<DIM> m = carve<DIM, STAGES>(memory);
  px_segment_tile at = px_segment_tile_of(s, blockIdx.x, T::KEYS);
  if (at.id < 0) return;
  const px_kv_segment &segment = s.segments[at.id];
  int count = segment.len - at.from < T::KEYS ? segment.len - at.from : T::KEYS;
  px_mma_load<DIM, T::KEYS, T::THREADS>(m.k, count, dim, [&](int r) {
    return static_cast<const px_word16 *>(segment.k) + (at.from + r) * segment.stride + head;
  });
  px_mma_load<DIM, T::KEYS, T::THREADS>(m.v, count, dim, [&](int r) {
    return static_cast<const px_word16 *>(segment.v) + (at.from + r) * segment.stride + head;
  });
  segment_walk<T::ROWS> w = {};
  w.id = at.id, w.from = at.from, w.len = segment.len;
  w.at = (int)((int64_t)s.q_rows * split / splits), w.end = (int)((int64_t)s.q_rows * (split + 1) / splits);
  segment_walk<T::ROWS>::enter(w, s);
  key_sums<T::I> sums;
  meet_queries<E, DIM, STAGES>(p, m, w, kv_head, sums);
  float *part = p.partial + (2 * split * at.all_rows + at.rows_before + at.from) * width + head;
  int64_t dv = at.all_rows * width;
  for_each_sum<DIM>(sums, count, dim, s.scale, [&](int r, int d, float k0, float k1, float v0, float v1) {
    float *out = part + r * width + d;
    out[0] = k0, out[1] = k1;
    out[dv] = v0, out[dv + 1] = v1;
  });
}

/* ---- launchers ---- */

template <typename E, int DIM, int STAGES>
static void launch_queries(const px_attn_bwd_problem &p, void *stream) {
  using T = queries_tile<DIM>;
  const px_attn_shape &s = p.a.shape;
  dim3 grid(px_blocks((int64_t)s.q_rows * (s.heads / s.kv_heads), T::ROWS), (unsigned)s.kv_heads);
  PX_ALLOW_SHARED((mma_queries_kernel<E, DIM, STAGES>), T::bytes(STAGES));
  PX_LAUNCH((mma_queries_kernel<E, DIM, STAGES>), grid, T::THREADS, T::bytes(STAGES), stream, p);
}

template <typename E, int DIM, int STAGES>
static void launch_keys(const px_attn_bwd_problem &p, int splits, void *stream) {
  using T = keys_tile<DIM>;
  const px_attn_shape &s = p.a.shape;
  size_t bytes = T::bytes(STAGES);
  if (p.a.dk && s.k_rows > 0) {
    PX_ALLOW_SHARED((mma_keys_kernel<E, DIM, STAGES>), bytes);
    dim3 grid(px_blocks(s.k_rows, T::KEYS), (unsigned)s.kv_heads);
    PX_LAUNCH((mma_keys_kernel<E, DIM, STAGES>), grid, T::THREADS, bytes, stream, p);
  }
  if (s.adapter && s.segment_count > 0) {
    PX_ALLOW_SHARED((mma_segments_kernel<E, DIM, STAGES>), bytes);
    dim3 grid(px_segment_blocks(s, T::KEYS), (unsigned)s.kv_heads, (unsigned)splits);
    PX_LAUNCH((mma_segments_kernel<E, DIM, STAGES>), grid, T::THREADS, bytes, stream, p, splits);
  }
}

template <typename E>
static void launch_any(const px_attn_bwd_problem &p, int splits, void *stream) {
  size_t most = px_most_shared() - 1024; /* the runtime keeps some, and static shared memory counts */
  PX_MMA_FOR_DIM(p.a.shape.head_dim, DIM, {
    if (p.a.dq && p.a.shape.q_rows > 0) {
      if (queries_tile<DIM>::bytes(2) <= most)
        launch_queries<E, DIM, 2>(p, stream);
      else
        launch_queries<E, DIM, 1>(p, stream);
    }
    if (keys_tile<DIM>::bytes(2) <= most)
      launch_keys<E, DIM, 2>(p, splits, stream);
    else
      launch_keys<E, DIM, 1>(p, splits, stream);
  });
}

bool px_attn_bwd_mma(const px_attn_bwd_problem &p, int splits, void *stream) {
  const px_attn_bwd_args &a = p.a;
  const px_attn_shape &s = a.shape;
  if (!px_mma_takes(s) || !px_mma_rows(a.q, a.q_stride) || !px_mma_rows(a.k, a.k_stride) ||
      !px_mma_rows(a.v, a.v_stride) || !px_mma_rows(a.dout, a.dout_stride) || !px_mma_rows(a.dq, a.dq_stride) ||
      !px_mma_rows(a.dk, a.dk_stride) || !px_mma_rows(a.dv, a.dv_stride))
    return false;
  PX_MMA_FOR_TYPE(s.dtype, E, launch_any<E>(p, splits, stream));
  return true;
}
