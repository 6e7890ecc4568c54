/* SPDX-License-Identifier: MIT
 * Decode: the launcher, the merge of a row's parts, and the general kernel in float32 arithmetic for any head_dim up to
 * 256. attention_decode.cuh says how the work is cut.
 *
 * The general kernel keeps nothing but its results in shared memory: K and V go from global memory to registers, KEYS of a
 * warp's at a time, N elements a lane. Scores of ROWS rows and KEYS keys are one value a lane (ROWS * KEYS = 32):
 *
 *   products [ROWS * KEYS] of a lane's dims  ->  31 exchanges  ->  lane r * KEYS + u: the score of row r and key u
 *   weights, one a lane                      ->  shuffles      ->  o[r] += weight * value, a lane's dims each */
#include "kernels/attention_decode.cuh"

enum { MOST_SLOTS = 160 };

/* x[i] summed over the warp, for lane i (HALF 16 first); the same tree of sums for every i. */
template <int HALF>
PX_DEVICE float sum_for_lane(float *x) {
  bool upper = (int)threadIdx.x & HALF;
#pragma unroll
  for (int i = 0; i < HALF; i++) {
    float keep = upper ? x[i + HALF] : x[i], give = upper ? x[i] : x[i + HALF];
    x[i] = keep + __shfl_xor_sync(PX_ALL_LANES, give, HALF);
  }
  if constexpr (HALF > 1) return sum_for_lane<HALF / 2>(x);
  return x[0];
}

/* A lane's dims of a row, N side by side at (lane + 32 i) * N; zero beyond dim and where `there` is false. */
template <int N, int CHUNKS, typename T>
PX_DEVICE void load_row(const T *row, bool there, bool words, int dim, float *out) {
  int lane = (int)threadIdx.x % PX_WARP;
#pragma unroll
  for (int i = 0; i < CHUNKS; i++) {
    int d = (lane + PX_WARP * i) * N;
    if (there && d < dim && words) {
      px_load<N>(row + d, out + i * N);
    } else {
#pragma unroll
      for (int j = 0; j < N; j++) out[i * N + j] = there && d < dim ? px_to_float(row[d + j]) : 0.0f;
    }
  }
}

/* What a warp has of its rows: sums of its dims, and lane r * KEYS + u the statistics of row r. */
template <int ROWS, int SIZE>
struct running {
  float o[ROWS][SIZE], best, sum;
};

/* KEYS keys from `key` on meet the rows. offset: lane from + u has where key u lies. */
template <typename T, int ROWS, int N, int CHUNKS>
PX_DEVICE void meet(const px_decode_keys<T> &keys, int key, int end, int64_t offset, int from, bool words, int dim,
                    float scale, int count, const px_decode_row &row, const float (*q)[N * CHUNKS],
                    running<ROWS, N * CHUNKS> &state) {
  constexpr int KEYS = PX_WARP / ROWS, SIZE = N * CHUNKS;
  float rows[KEYS][SIZE], x[PX_WARP];
  int mine = key + (int)threadIdx.x % KEYS;
#pragma unroll
  for (int u = 0; u < KEYS; u++) {
    int64_t at = __shfl_sync(PX_ALL_LANES, offset, from + u);
    load_row<N, CHUNKS>(keys.k + at, key + u < end, words, dim, rows[u]);
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int u = 0; u < KEYS; u++) {
      float &sum = x[r * KEYS + u];
      sum = 0;
      if (r >= count) continue;
#pragma unroll
      for (int d = 0; d < SIZE; d++) sum += q[r][d] * rows[u][d];
    }
#pragma unroll
  for (int u = 0; u < KEYS; u++) {
    int64_t at = __shfl_sync(PX_ALL_LANES, offset, from + u);
    load_row<N, CHUNKS>(keys.v + at, key + u < end, words, dim, rows[u]);
  }
  float score = scale * sum_for_lane<PX_WARP / 2>(x);
  if (mine >= end || mine < row.from || mine >= row.to) score = -INFINITY;
  float best = fmaxf(state.best, score);
#pragma unroll
  for (int lanes = 1; lanes < KEYS; lanes *= 2) best = fmaxf(best, __shfl_xor_sync(PX_ALL_LANES, best, lanes));
  float base = best == -INFINITY ? 0.0f : best, kept = expf(state.best - base), weight = expf(score - base);
  float sum = weight;
#pragma unroll
  for (int lanes = 1; lanes < KEYS; lanes *= 2) sum += __shfl_xor_sync(PX_ALL_LANES, sum, lanes);
  state.best = best;
  state.sum = state.sum * kept + sum;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float by = __shfl_sync(PX_ALL_LANES, kept, r * KEYS), of[KEYS];
#pragma unroll
    for (int u = 0; u < KEYS; u++) of[u] = __shfl_sync(PX_ALL_LANES, weight, r * KEYS + u);
    if (r >= count) continue;
#pragma unroll
    for (int d = 0; d < SIZE; d++) {
      state.o[r][d] *= by;
#pragma unroll
      for (int u = 0; u < KEYS; u++) state.o[r][d] += of[u] * rows[u][d];
    }
  }
}

/* A part of the keys, of which each warp takes every fourth 32. */
template <typename T, int ROWS, int N, int CHUNKS>
PX_DEVICE void stream(const px_decode_keys<T> &keys, int begin, int end, int dim, float scale, int count,
                      const px_decode_row &row, const float (*q)[N * CHUNKS], running<ROWS, N * CHUNKS> &state) {
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP;
  bool words = reinterpret_cast<uintptr_t>(keys.k) % (N * sizeof(T)) == 0 &&
               reinterpret_cast<uintptr_t>(keys.v) % (N * sizeof(T)) == 0 && keys.stride % N == 0;
  for (int tile = begin + warp * PX_WARP; tile < end; tile += PX_DECODE_THREADS) {
    int64_t offset = tile + lane < end ? px_decode_at(keys, tile + lane) : 0;
    for (int j = 0; j < PX_WARP && tile + j < end; j += PX_WARP / ROWS)
      meet<T, ROWS, N, CHUNKS>(keys, tile + j, end, offset, j, words, dim, scale, count, row, q, state);
  }
}

template <typename T, int ROWS, int N, int CHUNKS>
PX_KERNEL(PX_DECODE_THREADS)
decode_kernel(px_decode_problem p) {
  constexpr int KEYS = PX_WARP / ROWS, SIZE = N * CHUNKS;
  PX_DYNAMIC_SHARED(float, sums); /* [warps][ROWS][width] */
  PX_SHARED(px_decode_row, rows, ROWS);
  PX_SHARED(px_decode_mass, masses, PX_DECODE_WARPS * ROWS);
  const px_attn_shape &s = p.a.shape;
  PX_SHARED(px_decode_work, work, 1);
  PX_SHARED(px_decode_keys<T>, keys, 1);
  if (!px_decode_begin<T, ROWS>(p, work, keys)) return;
  const px_decode_work &w = work[0];
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP, width = px_decode_width(s.head_dim);
  for (int rank = w.rank; rank < w.rank_end; rank += ROWS) {
    int count = px_decode_fill<ROWS>(p, w, rank, rows);
    px_decode_row mine = rows[lane / KEYS];
    float q[ROWS][SIZE];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      load_row<N, CHUNKS>(static_cast<const T *>(p.a.q) + rows[r].query * p.a.q_stride + rows[r].head * s.head_dim,
                          r < count, true, s.head_dim, q[r]);
    for (int part = w.turn; part < w.cut.parts; part += w.turns) {
      running<ROWS, SIZE> state = {};
      state.best = -INFINITY;
      int begin = w.cut.begin + part * w.cut.keys;
      int end = w.cut.end - begin < w.cut.keys ? w.cut.end : begin + w.cut.keys;
      stream<T, ROWS, N, CHUNKS>(keys[0], begin, end, s.head_dim, s.scale, count, mine, q, state);
#pragma unroll
      for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
          int d = (lane + PX_WARP * i) * N;
          if (d < width) px_store<N>(sums + (warp * ROWS + r) * width + d, state.o[r] + i * N);
        }
      if (lane % KEYS == 0) masses[warp * ROWS + lane / KEYS] = {state.best, state.sum};
      px_decode_store<PX_DECODE_WARPS, ROWS>(p, rows, count, w.slot + part, masses, sums, width);
    }
  }
}

/* o of one query and head: its parts in order, every fourth by one warp, then the four. */
template <typename T>
PX_KERNEL_BLOCKS(PX_DECODE_THREADS, 8)
merge_kernel(px_decode_problem p) {
  PX_SHARED(float, weights, MOST_SLOTS);
  PX_SHARED(float, sums, PX_DECODE_WARPS * 256);
  const px_attn_shape &s = p.a.shape;
  int query = (int)(blockIdx.x / s.heads), head = (int)(blockIdx.x % s.heads), dim = s.head_dim;
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP, width = px_decode_width(dim);
  int seq = query < s.seqs ? query : 0; /* as a rule: then the search's loads, one after the other, are saved */
  if (s.q_offsets[seq] > query || s.q_offsets[seq + 1] <= query) seq = px_sequence_of(s.q_offsets, s.seqs, query);
  int before = px_decode_segment_cut(p, px_segment_of(s, seq)).parts;
  int parts = before + px_decode_own_cut(p, seq).parts;
  int64_t first = px_decode_slot(p, query, head, 0);
  auto at = [&](int i) { return first + (i < before ? i : p.segment_parts + i - before); };
  float best = -INFINITY, mass = 0;
  for (int i = lane; i < parts; i += PX_WARP) best = fmaxf(best, p.mass[at(i)].best);
  best = px_warp_max(best);
  float base = best == -INFINITY ? 0.0f : best;
  for (int i = lane; i < parts; i += PX_WARP) {
    px_decode_mass m = p.mass[at(i)];
    float weight = expf(m.best - base);
    mass += weight * m.sum;
    if (i % PX_DECODE_WARPS == warp) weights[i] = weight;
  }
  mass = px_warp_sum(mass);
  __syncwarp();
  float o[2][4] = {};
#pragma unroll 4
  for (int i = warp; i < parts; i += PX_DECODE_WARPS) {
    const float *part = p.o + at(i) * width;
    float weight = weights[i], x[4];
#pragma unroll
    for (int c = 0; c < 2; c++) {
      int d = (lane + PX_WARP * c) * 4;
      if (d >= width) continue;
      px_load<4>(part + d, x);
#pragma unroll
      for (int j = 0; j < 4; j++) o[c][j] += weight * x[j];
    }
  }
#pragma unroll
  for (int c = 0; c < 2; c++) px_store<4>(sums + warp * 256 + (lane + PX_WARP * c) * 4, o[c]);
  __syncthreads();
  float share = mass > 0 ? 1.0f / mass : 0.0f;
  T *out = static_cast<T *>(p.a.o) + (int64_t)query * p.a.o_stride + (int64_t)head * dim;
  for (int d = (int)threadIdx.x; d < dim; d += PX_DECODE_THREADS) {
    float sum = sums[d];
#pragma unroll
    for (int x = 1; x < PX_DECODE_WARPS; x++) sum += sums[256 * x + d];
    out[d] = px_from_float<T>(sum * share);
  }
}

template <typename T, int ROWS, int N, int CHUNKS>
static void launch(const px_decode_problem &p, dim3 grid, void *stream) {
  size_t bytes = sizeof(float) * PX_DECODE_WARPS * ROWS * (size_t)((p.a.shape.head_dim + 3) / 4 * 4);
  PX_LAUNCH((decode_kernel<T, ROWS, N, CHUNKS>), grid, PX_DECODE_THREADS, bytes, stream, p);
}

static void launch_general(const px_decode_problem &p, dim3 grid, void *stream) {
  const px_attn_shape &s = p.a.shape;
  bool words = s.dtype == PX_F32 && s.head_dim % 4 == 0 && px_aligned(p.a.q, p.a.q_stride, 4, 4) &&
               px_aligned(p.a.k_cache, 0, 4, 4) && px_aligned(p.a.v_cache, 0, 4, 4);
  if (words && s.head_dim <= 128)
    launch<float, 8, 4, 1>(p, grid, stream);
  else if (words)
    launch<float, 4, 4, 2>(p, grid, stream);
  else if (s.head_dim <= 64)
    PX_FOR_ATTN_TYPE(s.dtype, T, (launch<T, 8, 1, 2>(p, grid, stream)));
  else
    PX_FOR_ATTN_TYPE(s.dtype, T, (launch<T, 4, 1, 8>(p, grid, stream)));
}

/* The workspace in order, and blocks for the whole device: enough that the last ones to end are few, each with parts
 * enough to do that empty ones cost little. */
static px_decode_problem problem_of(const px_attn_decode_args *a) {
  const px_attn_shape &s = a->shape;
  px_decode_problem p = {};
  p.a = *a;
  p.own_parts = px_attn_own_parts(s.kv_heads);
  p.segment_parts = px_attn_segment_parts(s.kv_heads);
  uintptr_t at = (reinterpret_cast<uintptr_t>(a->workspace) + 15) / 16 * 16;
  size_t width = (size_t)(s.head_dim + 3) / 4 * 4;
  p.o = reinterpret_cast<float *>(at);
  p.mass = reinterpret_cast<px_decode_mass *>(p.o + (size_t)s.q_rows * (size_t)s.heads *
                                                        (size_t)(p.own_parts + p.segment_parts) * width);
  int64_t pairs = (int64_t)s.seqs * s.kv_heads, most = (16 * (int64_t)px_multiprocessors() + pairs - 1) / pairs;
  int64_t keys = (int64_t)a->max_blocks * a->page_tokens, rows = s.adapter && s.segment_count > 0 ? s.segment_rows : 0;
  if (s.window && (int64_t)s.window + s.q_rows < keys) keys = (int64_t)s.window + s.q_rows;
  auto turns = [most](int64_t n, int64_t least, int32_t parts) {
    int64_t x = (n + least - 1) / least;
    x = x < parts ? x : parts;
    return (int32_t)(x < most ? x : most);
  };
  p.own_turns = turns(keys, PX_DECODE_OWN_KEYS, p.own_parts);
  p.segment_turns = turns(rows, PX_DECODE_SEGMENT_KEYS, p.segment_parts);
  return p;
}

int px_attn_decode_cuda(const px_attn_decode_args *a, void *stream) {
  const px_attn_shape &s = a->shape;
  if (s.seqs == 0 || s.q_rows == 0) return 0;
  px_decode_problem p = problem_of(a);
  dim3 grid((unsigned)((int64_t)s.seqs * (p.segment_turns + p.own_turns)), (unsigned)s.kv_heads);
  if (!px_attn_decode_mma(p, grid, stream)) launch_general(p, grid, stream);
  PX_FOR_ATTN_TYPE(s.dtype, T, PX_LAUNCH(merge_kernel<T>, (unsigned)(s.q_rows * s.heads), PX_DECODE_THREADS, 0, stream, p));
  return PX_LAUNCHED();
}
