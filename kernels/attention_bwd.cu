/* SPDX-License-Identifier: MIT
 * The general backward kernels, for any head_dim up to 256, float32 arithmetic. In the order of their launch:
 *   delta     D = <do, o> of every query and head, into the workspace
 *   queries   dq: the forward's walk over the keys, with p and ds in place of the softmax
 *   keys      dk, dv: a tile of keys stays, the queries that see it stream by
 *   segments  the same for segment keys, in PX_ATTN_SPLITS parts of the rows; each part's sums go to the workspace
 *   join      segment gradients += the parts, in order
 * Nothing is added atomically, so every sum has one order. */
#include "kernels/attention_tile.cuh"

struct bwd_shared {
  float *x, *y;           /* the rows of this block: [rows][dim] twice */
  float *s, *t;           /* what streams by: [32][padded] twice */
  float *weights, *other; /* [rows][32] twice */
  int32_t *from, *to, *seq;
  float *lse, *delta;
};

enum { ROW_FACTS = PX_TILE_KEYS }; /* of from, to, seq, lse and delta: the tile's rows or what streams by, 32 at most */

template <int ROWS>
PX_DEVICE bwd_shared carve(float *memory, int dim) {
  constexpr int rows = PX_TILE_WARPS * ROWS;
  bwd_shared m;
  m.x = memory;
  m.y = m.x + rows * dim;
  m.s = m.y + rows * dim;
  m.t = m.s + PX_TILE_KEYS * px_padded(dim);
  m.weights = m.t + PX_TILE_KEYS * px_padded(dim);
  m.other = m.weights + rows * PX_TILE_KEYS;
  m.lse = m.other + rows * PX_TILE_KEYS;
  m.delta = m.lse + ROW_FACTS;
  m.from = reinterpret_cast<int32_t *>(m.delta + ROW_FACTS);
  m.to = m.from + ROW_FACTS;
  m.seq = m.to + ROW_FACTS;
  return m;
}

template <int ROWS>
static size_t bwd_shared_bytes(int dim) {
  size_t rows = PX_TILE_WARPS * ROWS;
  return sizeof(float) *
         (2 * rows * (size_t)dim + 2 * PX_TILE_KEYS * (size_t)(dim + 1) + 2 * rows * PX_TILE_KEYS + 5 * ROW_FACTS);
}

template <typename T>
PX_KERNEL(128)
delta_kernel(px_attn_bwd_problem p) {
  const px_attn_bwd_args &a = p.a;
  int lane = (int)threadIdx.x % PX_WARP, dim = a.shape.head_dim;
  int64_t row = (int64_t)blockIdx.x * 4 + threadIdx.x / PX_WARP, head = blockIdx.y;
  if (row >= a.shape.q_rows) return;
  const T *o = static_cast<const T *>(a.o) + row * a.o_stride + head * dim;
  const T *dout = static_cast<const T *>(a.dout) + row * a.dout_stride + head * dim;
  float sum = 0;
  for (int d = lane; d < dim; d += PX_WARP) sum += px_to_float(o[d]) * px_to_float(dout[d]);
  sum = px_warp_sum(sum);
  if (lane == 0) p.delta[head * a.shape.q_rows + row] = sum;
}

/* ---- dq ---- */

/* The warp's rows meet 32 keys (m.s) and values (m.t): dq += ds key. */
template <int ROWS, int CHUNKS>
PX_DEVICE void queries_meet(const bwd_shared &m, int first, int dim, float scale, const int *from, const int *to,
                            float dq[ROWS][CHUNKS]) {
  int lane = (int)threadIdx.x % PX_WARP;
  float scores[ROWS], dp[ROWS], *ds = m.weights + first * PX_TILE_KEYS;
  px_scores<ROWS>(m.x + first * dim, dim, m.s, dim, scores);
  px_scores<ROWS>(m.y + first * dim, dim, m.t, dim, dp);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    bool sees = lane >= from[r] && lane < to[r];
    float weight = sees ? expf(scale * scores[r] - m.lse[first + r]) : 0.0f;
    ds[r * PX_TILE_KEYS + lane] = sees ? scale * weight * (dp[r] - m.delta[first + r]) : 0.0f;
  }
  __syncwarp();
  px_add_weighted<ROWS, CHUNKS>(ds, m.s, px_padded(dim), dim, dq);
  __syncwarp();
}

/* Keys [begin, end) from k and v (row 0 at the kv head) for rows [run, run_end): all of them, or each its own part. */
template <typename T, int ROWS, int CHUNKS>
PX_DEVICE void queries_stream(const bwd_shared &m, const T *k, int64_t k_stride, const T *v, int64_t v_stride,
                              int begin, int end, int run, int run_end, bool own, int dim, float scale,
                              float dq[ROWS][CHUNKS]) {
  int first = (int)threadIdx.x / PX_WARP * ROWS;
  for (int at = begin / PX_TILE_KEYS * PX_TILE_KEYS; at < end; at += PX_TILE_KEYS) {
    int count = end - at < PX_TILE_KEYS ? end - at : PX_TILE_KEYS;
    __syncthreads();
    px_rows_to_shared(m.s, px_padded(dim), PX_TILE_KEYS, count, dim, [&](int j) { return k + (at + j) * k_stride; });
    px_rows_to_shared(m.t, px_padded(dim), PX_TILE_KEYS, count, dim, [&](int j) { return v + (at + j) * v_stride; });
    __syncthreads();
    int from[ROWS], to[ROWS];
    bool any = false;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      bool in = first + r >= run && first + r < run_end;
      from[r] = in && own ? m.from[first + r] - at : 0;
      to[r] = !in ? 0 : own ? m.to[first + r] - at : count;
      any |= to[r] > 0 && from[r] < PX_TILE_KEYS && from[r] < to[r];
    }
    if (any) queries_meet<ROWS, CHUNKS>(m, first, dim, scale, from, to, dq);
  }
}

template <typename T, int ROWS, int CHUNKS>
PX_KERNEL(PX_TILE_THREADS)
queries_kernel(px_attn_bwd_problem p) {
  PX_DYNAMIC_SHARED(float, memory);
  const px_attn_bwd_args &a = p.a;
  const px_attn_shape &s = a.shape;
  int dim = s.head_dim, group = s.heads / s.kv_heads, kv_head = (int)blockIdx.y, tile = PX_TILE_WARPS * ROWS;
  int64_t base = (int64_t)blockIdx.x * tile, all = (int64_t)s.q_rows * group, at_head = (int64_t)kv_head * dim;
  int count = all - base < tile ? (int)(all - base) : tile;
  bwd_shared m = carve<ROWS>(memory, dim);
  for (int r = (int)threadIdx.x; r < count; r += PX_TILE_THREADS) {
    int row = (int)((base + r) / group), seq = px_sequence_of(s.q_offsets, s.seqs, row);
    int64_t head = (int64_t)kv_head * group + (base + r) % group;
    m.seq[r] = seq;
    px_visible(s, row - s.q_offsets[seq], s.q_offsets[seq + 1] - s.q_offsets[seq],
               s.k_offsets[seq + 1] - s.k_offsets[seq], &m.from[r], &m.to[r]);
    m.lse[r] = a.lse[head * s.q_rows + row];
    m.delta[r] = p.delta[head * s.q_rows + row];
  }
  px_rows_to_shared(m.x, dim, tile, count, dim, [&](int r) {
    return static_cast<const T *>(a.q) + (base + r) / group * a.q_stride +
           ((int64_t)kv_head * group + (base + r) % group) * dim;
  });
  px_rows_to_shared(m.y, dim, tile, count, dim, [&](int r) {
    return static_cast<const T *>(a.dout) + (base + r) / group * a.dout_stride +
           ((int64_t)kv_head * group + (base + r) % group) * dim;
  });
  __syncthreads();

  float dq[ROWS][CHUNKS];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) dq[r][i] = 0;
  for (int run = 0, end; run < count; run = end) {
    for (end = run + 1; end < count && m.seq[end] == m.seq[run];) end++;
    int seq = m.seq[run];
    const px_kv_segment *segment = px_segment_of(s, seq);
    if (segment)
      queries_stream<T, ROWS, CHUNKS>(m, static_cast<const T *>(segment->k) + at_head, segment->stride,
                                      static_cast<const T *>(segment->v) + at_head, segment->stride, 0, segment->len,
                                      run, end, false, dim, s.scale, dq);
    queries_stream<T, ROWS, CHUNKS>(m, static_cast<const T *>(a.k) + s.k_offsets[seq] * a.k_stride + at_head,
                                    a.k_stride, static_cast<const T *>(a.v) + s.k_offsets[seq] * a.v_stride + at_head,
                                    a.v_stride, m.from[run], m.to[end - 1], run, end, true, dim, s.scale, dq);
  }

  int lane = (int)threadIdx.x % PX_WARP, first = (int)threadIdx.x / PX_WARP * ROWS;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (first + r >= count) continue;
    T *out = static_cast<T *>(a.dq) + (base + first + r) / group * a.dq_stride +
             ((int64_t)kv_head * group + (base + first + r) % group) * dim;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
      if (lane + PX_WARP * i < dim) out[lane + PX_WARP * i] = px_from_float<T>(dq[r][i]);
  }
}

/* ---- dk and dv: of own keys, and of segments ---- */

/* The gradients of a warp's keys. */
template <int ROWS, int CHUNKS>
struct key_sums {
  float dk[ROWS][CHUNKS], dv[ROWS][CHUNKS];
};

template <int ROWS, int CHUNKS>
PX_DEVICE void clear(key_sums<ROWS, CHUNKS> &sums) {
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) sums.dk[r][i] = sums.dv[r][i] = 0;
}

/* The warp's keys meet 32 queries (m.s) with their output gradients (m.t). Key `number + r` is met by the lane's query
 * where it lies in [m.from[lane], m.to[lane]); m.seq[lane] < 0: by none. */
template <int ROWS, int CHUNKS>
PX_DEVICE void keys_meet(const bwd_shared &m, int first, int number, int dim, float scale,
                         key_sums<ROWS, CHUNKS> &sums) {
  int lane = (int)threadIdx.x % PX_WARP;
  float scores[ROWS], dp[ROWS], *weights = m.weights + first * PX_TILE_KEYS, *ds = m.other + first * PX_TILE_KEYS;
  px_scores<ROWS>(m.x + first * dim, dim, m.s, dim, scores);
  px_scores<ROWS>(m.y + first * dim, dim, m.t, dim, dp);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    bool sees = m.seq[lane] >= 0 && number + r >= m.from[lane] && number + r < m.to[lane];
    float weight = sees ? expf(scale * scores[r] - m.lse[lane]) : 0.0f;
    weights[r * PX_TILE_KEYS + lane] = weight;
    ds[r * PX_TILE_KEYS + lane] = sees ? scale * weight * (dp[r] - m.delta[lane]) : 0.0f;
  }
  __syncwarp();
  px_add_weighted<ROWS, CHUNKS>(weights, m.t, px_padded(dim), dim, sums.dv);
  px_add_weighted<ROWS, CHUNKS>(ds, m.s, px_padded(dim), dim, sums.dk);
  __syncwarp();
}

/* Queries [row, row + count) of one head into shared memory, with what `facts` says of each. */
template <typename T, typename Facts>
PX_DEVICE void load_queries(const px_attn_bwd_problem &p, const bwd_shared &m, int64_t row, int count, int64_t head,
                            Facts facts) {
  const px_attn_bwd_args &a = p.a;
  int dim = a.shape.head_dim;
  __syncthreads();
  if (threadIdx.x < PX_TILE_KEYS) {
    int j = (int)threadIdx.x;
    bool in = j < count;
    m.seq[j] = -1;
    m.from[j] = m.to[j] = 0;
    if (in) facts(j, row + j);
    m.lse[j] = in ? a.lse[head * a.shape.q_rows + row + j] : 0.0f;
    m.delta[j] = in ? p.delta[head * a.shape.q_rows + row + j] : 0.0f;
  }
  px_rows_to_shared(m.s, px_padded(dim), PX_TILE_KEYS, count, dim,
                    [&](int j) { return static_cast<const T *>(a.q) + (row + j) * a.q_stride + head * dim; });
  px_rows_to_shared(m.t, px_padded(dim), PX_TILE_KEYS, count, dim,
                    [&](int j) { return static_cast<const T *>(a.dout) + (row + j) * a.dout_stride + head * dim; });
  __syncthreads();
}

/* A tile of flat key rows; those of one sequence after the other. */
template <typename T, int ROWS, int CHUNKS>
PX_KERNEL(PX_TILE_THREADS)
keys_kernel(px_attn_bwd_problem p) {
  PX_DYNAMIC_SHARED(float, memory);
  const px_attn_bwd_args &a = p.a;
  const px_attn_shape &s = a.shape;
  int dim = s.head_dim, group = s.heads / s.kv_heads, kv_head = (int)blockIdx.y, tile = PX_TILE_WARPS * ROWS;
  int warp_first = (int)threadIdx.x / PX_WARP * ROWS, base = (int)blockIdx.x * tile;
  int end = s.k_rows - base < tile ? s.k_rows : base + tile;
  bwd_shared m = carve<ROWS>(memory, dim);
  px_rows_to_shared(m.x, dim, tile, end - base, dim, [&](int r) {
    return static_cast<const T *>(a.k) + (int64_t)(base + r) * a.k_stride + (int64_t)kv_head * dim;
  });
  px_rows_to_shared(m.y, dim, tile, end - base, dim, [&](int r) {
    return static_cast<const T *>(a.v) + (int64_t)(base + r) * a.v_stride + (int64_t)kv_head * dim;
  });
  key_sums<ROWS, CHUNKS> sums;
  clear(sums);
  for (int seq = px_sequence_of(s.k_offsets, s.seqs, base); seq < s.seqs && s.k_offsets[seq] < end; seq++) {
    int q0 = s.q_offsets[seq], nq = s.q_offsets[seq + 1] - q0, k0 = s.k_offsets[seq], nk = s.k_offsets[seq + 1] - k0;
    int low = base > k0 ? base - k0 : 0, high = end - k0 < nk ? end - k0 : nk; /* keys of the sequence in this tile */
    int begin = 0, last = nq;                                                  /* queries that see any of them */
    if (low >= high) continue;
    if (s.mask == PX_MASK_CAUSAL) begin = low - (nk - nq) > 0 ? low - (nk - nq) : 0;
    if (s.window && high - 1 + s.window - (nk - nq) < nq) last = high - 1 + s.window - (nk - nq);
    for (int g = 0; g < group; g++)
      for (int at = begin; at < last; at += PX_TILE_KEYS) {
        int count = last - at < PX_TILE_KEYS ? last - at : PX_TILE_KEYS;
        load_queries<T>(p, m, q0 + at, count, (int64_t)kv_head * group + g, [&](int j, int64_t row) {
          m.seq[j] = seq;
          px_visible(s, (int)row - q0, nq, nk, &m.from[j], &m.to[j]);
        });
        keys_meet<ROWS, CHUNKS>(m, warp_first, base + warp_first - k0, dim, s.scale, sums);
      }
  }
  int lane = (int)threadIdx.x % PX_WARP;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    int64_t row = base + warp_first + r;
    if (row >= end) continue;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      int d = lane + PX_WARP * i;
      if (d >= dim) continue;
      static_cast<T *>(a.dk)[row * a.dk_stride + (int64_t)kv_head * dim + d] = px_from_float<T>(sums.dk[r][i]);
      static_cast<T *>(a.dv)[row * a.dv_stride + (int64_t)kv_head * dim + d] = px_from_float<T>(sums.dv[r][i]);
    }
  }
}

/* The rows of part `split` of all query rows, all heads of the group, through the tile. */
template <typename T, int ROWS, int CHUNKS>
PX_DEVICE void segment_part(const px_attn_bwd_problem &p, const bwd_shared &m, px_segment_tile at, int split,
                            int splits, int kv_head, key_sums<ROWS, CHUNKS> &sums) {
  const px_attn_shape &s = p.a.shape;
  int group = s.heads / s.kv_heads, warp_first = (int)threadIdx.x / PX_WARP * ROWS;
  int begin = (int)((int64_t)s.q_rows * split / splits), end = (int)((int64_t)s.q_rows * (split + 1) / splits);
  for (int row = begin; row < end; row += PX_TILE_KEYS) {
    int count = end - row < PX_TILE_KEYS ? end - row : PX_TILE_KEYS;
    bool any = false; /* most tiles belong to one adapter altogether */
    for (int seq = px_sequence_of(s.q_offsets, s.seqs, row); seq < s.seqs && s.q_offsets[seq] < row + count; seq++)
      any |= s.adapter[seq] == at.id;
    for (int g = 0; any && g < group; g++) {
      load_queries<T>(p, m, row, count, (int64_t)kv_head * group + g, [&](int j, int64_t query) {
        int seq = px_sequence_of(s.q_offsets, s.seqs, (int)query);
        if (s.adapter[seq] != at.id) return;
        m.seq[j] = seq;
        m.to[j] = s.segments[at.id].len;
      });
      keys_meet<ROWS, CHUNKS>(m, warp_first, at.from + warp_first, s.head_dim, s.scale, sums);
    }
  }
}

template <typename T, int ROWS, int CHUNKS>
PX_KERNEL(PX_TILE_THREADS)
segments_kernel(px_attn_bwd_problem p, int splits) {
  PX_DYNAMIC_SHARED(float, memory);
  const px_attn_shape &s = p.a.shape;
  int dim = s.head_dim, kv_head = (int)blockIdx.y, split = (int)blockIdx.z, tile = PX_TILE_WARPS * ROWS;
  int lane = (int)threadIdx.x % PX_WARP, warp_first = (int)threadIdx.x / PX_WARP * ROWS;
  int64_t width = (int64_t)s.kv_heads * dim;
  bwd_shared m = carve<ROWS>(memory, dim);
  px_segment_tile at = px_segment_tile_of(s, blockIdx.x, tile);
  if (at.id < 0) return;
  const px_kv_segment &segment = s.segments[at.id];
  int count = segment.len - at.from < tile ? segment.len - at.from : tile;
  px_rows_to_shared(m.x, dim, tile, count, dim, [&](int r) {
    return static_cast<const T *>(segment.k) + (at.from + r) * segment.stride + (int64_t)kv_head * dim;
  });
  px_rows_to_shared(m.y, dim, tile, count, dim, [&](int r) {
    return static_cast<const T *>(segment.v) + (at.from + r) * segment.stride + (int64_t)kv_head * dim;
  });
  __syncthreads();
  key_sums<ROWS, CHUNKS> sums;
  clear(sums);
  segment_part<T, ROWS, CHUNKS>(p, m, at, split, splits, kv_head, sums);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (warp_first + r >= count) continue;
    int64_t row = 2 * split * at.all_rows + at.rows_before + at.from + warp_first + r;
    float *dk = p.partial + row * width + (int64_t)kv_head * dim, *dv = dk + at.all_rows * width;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
      if (lane + PX_WARP * i < dim) {
        dk[lane + PX_WARP * i] = sums.dk[r][i];
        dv[lane + PX_WARP * i] = sums.dv[r][i];
      }
  }
}

PX_KERNEL(128) join_kernel(px_attn_bwd_problem p, int splits) {
  const px_attn_shape &s = p.a.shape;
  int64_t width = (int64_t)s.kv_heads * s.head_dim, all = 0, before = 0;
  for (int i = 0; i < s.segment_count; i++) all += s.segments[i].len;
  for (int i = 0; i < s.segment_count; before += s.segments[i++].len) {
    const px_kv_segment &segment = s.segments[i];
    if (!segment.dk) continue;
    for (int64_t row = blockIdx.x; row < segment.len; row += gridDim.x)
      for (int64_t d = threadIdx.x; d < width; d += blockDim.x) {
        float dk = 0, dv = 0;
        for (int split = 0; split < splits; split++) {
          const float *part = p.partial + ((2 * split * all + before + row) * width + d);
          dk += part[0];
          dv += part[all * width];
        }
        segment.dk[row * segment.grad_stride + d] += dk;
        segment.dv[row * segment.grad_stride + d] += dv;
      }
  }
}

/* ---- launchers ---- */

enum { JOIN_BLOCKS = 256 };

template <typename T, int ROWS, int CHUNKS>
static void launch_all(const px_attn_bwd_problem &p, int splits, void *stream) {
  const px_attn_shape &s = p.a.shape;
  size_t bytes = bwd_shared_bytes<ROWS>(s.head_dim);
  unsigned tile = PX_TILE_WARPS * ROWS, kv_heads = (unsigned)s.kv_heads;
  if (p.a.dq) {
    PX_ALLOW_SHARED((queries_kernel<T, ROWS, CHUNKS>), bytes);
    dim3 grid(px_blocks((int64_t)s.q_rows * (s.heads / s.kv_heads), tile), kv_heads);
    PX_LAUNCH((queries_kernel<T, ROWS, CHUNKS>), grid, PX_TILE_THREADS, bytes, stream, p);
  }
  if (p.a.dq && s.k_rows > 0) {
    PX_ALLOW_SHARED((keys_kernel<T, ROWS, CHUNKS>), bytes);
    dim3 grid(px_blocks(s.k_rows, tile), kv_heads);
    PX_LAUNCH((keys_kernel<T, ROWS, CHUNKS>), grid, PX_TILE_THREADS, bytes, stream, p);
  }
  if (s.adapter && s.segment_count > 0) {
    PX_ALLOW_SHARED((segments_kernel<T, ROWS, CHUNKS>), bytes);
    dim3 grid(px_segment_blocks(s, (int)tile), kv_heads, (unsigned)splits);
    PX_LAUNCH((segments_kernel<T, ROWS, CHUNKS>), grid, PX_TILE_THREADS, bytes, stream, p, splits);
  }
}

int px_attn_bwd_cuda(const px_attn_bwd_args *a, void *stream) {
  const px_attn_shape &s = a->shape;
  if (s.seqs == 0 || (s.q_rows == 0 && s.k_rows == 0)) return 0;
  px_attn_bwd_problem p = {};
  p.a = *a;
  p.delta = static_cast<float *>(a->workspace);
  p.partial = p.delta + (int64_t)s.heads * s.q_rows;
  int splits = s.q_rows < PX_ATTN_SPLITS * PX_TILE_KEYS ? 1 : PX_ATTN_SPLITS;
  PX_FOR_ATTN_TYPE(s.dtype, T, {
    dim3 grid(px_blocks(s.q_rows, 4), (unsigned)s.heads);
    if (s.q_rows > 0) PX_LAUNCH(delta_kernel<T>, grid, 128, 0, stream, p);
    if (!px_attn_bwd_mma(p, splits, stream))
      PX_FOR_HEAD_DIM(s.head_dim, CHUNKS, ROWS, launch_all<T, ROWS, CHUNKS>(p, splits, stream));
  });
  if (s.adapter && s.segment_count > 0) PX_LAUNCH(join_kernel, JOIN_BLOCKS, 128, 0, stream, p, splits);
  return PX_LAUNCHED();
}
