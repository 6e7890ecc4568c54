/* SPDX-License-Identifier: MIT
 * Decode on tensor cores: bfloat16 or float16, head_dim a multiple of 8. attention_decode.cuh says how the work is cut.
 *
 *   shared memory:  Q (stays)  |  a ring of STAGES tiles of 64 keys:  K 0, V 0, K 1, V 1, ...
 *
 *   wait for a tile of the ring; ask for the one STAGES - 1 ahead
 *     a K:  S = Q K^T, masked, softmax (registers)          a V:  O += P V
 *
 * Few rows (a sequence's own, 16 at the most): the four warps take 16 keys of a tile each, which they load themselves,
 * and wait for no one. Many rows: warps take 16 rows each. A product pads 4 rows to 16 and still does a fraction of
 * what memory leaves time for (docs/kernels.md). */
#include "kernels/attention_decode.cuh"
#include "kernels/attention_mma.cuh"

enum { KEYS = PX_DECODE_KEYS };

template <int DIM>
struct tile_of {
  enum {
    STAGES = DIM > 128  ? 2
             : DIM > 64 ? 3
                        : 4,   /* what 99 KB have room for, and two or three blocks in more */
    SPLIT = DIM > 128 ? 2 : 1, /* warps that share many rows */
    ROWS = 64 / SPLIT,
    STRIDE = DIM + PX_MMA_PAD
  };
};

/* The softmax so far of a warp's 16 rows; lane l holds rows l / 4 and l / 4 + 8. */
template <int DIM>
struct softmax_state {
  float best[2], sum[2], o[1][DIM / 8][4];
};

/* Scores of keys [key, key + 8 N) become weights exp2(score - best); what came before is scaled to the new best. Keys
 * from `end` on count for nothing. `scale`: to log2 units. */
template <int DIM, int N>
PX_DEVICE void soften(float (*c)[4], const px_decode_row *rows, int key, int end, float scale,
                      softmax_state<DIM> &state) {
  int g = (int)threadIdx.x % PX_WARP / 4, t = (int)threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int from = rows[8 * h + g].from - key, to = (rows[8 * h + g].to < end ? rows[8 * h + g].to : end) - key;
    float best = state.best[h];
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int at = 8 * n + 2 * t + e;
        float &x = c[n][2 * h + e];
        x = at >= from && at < to ? x * scale : -INFINITY;
        best = fmaxf(best, x);
      }
    best = fmaxf(best, __shfl_xor_sync(PX_ALL_LANES, best, 1));
    best = fmaxf(best, __shfl_xor_sync(PX_ALL_LANES, best, 2));
    float base = best == -INFINITY ? 0.0f : best, kept = px_exp2(state.best[h] - base), sum = 0;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float &x = c[n][2 * h + e];
        x = px_exp2(x - base);
        sum += x;
      }
    state.best[h] = best;
    state.sum[h] = state.sum[h] * kept + sum;
#pragma unroll
    for (int i = 0; i < DIM / 8; i++) {
      state.o[0][i][2 * h] *= kept;
      state.o[0][i][2 * h + 1] *= kept;
    }
  }
}

/* A warp's 16 rows of a tile of keys. offset: of key l % 16 in lane l. */
template <int DIM>
PX_DEVICE void load_keys(px_word16 *tile, const px_word16 *rows, int64_t offset, int count, int dim) {
  constexpr int WORDS = DIM / 8;
  int lane = (int)threadIdx.x % PX_WARP;
#pragma unroll(DIM > 128 ? 1 : 4)
  for (int i = 0; i < 16 * WORDS; i += PX_WARP) {
    int j = (i + lane) / WORDS, d = (i + lane) % WORDS * 8;
    int64_t at = __shfl_sync(PX_ALL_LANES, offset, j);
    bool there = j < count && d < dim;
    px_copy16(tile + j * tile_of<DIM>::STRIDE + d, there ? rows + at + d : NULL, there);
  }
}

struct memory_of {
  px_word16 *q, *ring;
  px_decode_row *rows;
  px_decode_mass *masses; /* [warps][16] */
};

/* The tile's rows meet keys [begin, end). */
template <typename E, int DIM, int SPLIT>
PX_DEVICE void stream(const memory_of &m, const px_decode_keys<px_word16> &keys, int begin, int end, int count, int dim,
                      float scale, softmax_state<DIM> &state) {
  constexpr int N = KEYS / SPLIT / 8, STRIDE = tile_of<DIM>::STRIDE, STAGES = tile_of<DIM>::STAGES;
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP;
  int units = 2 * ((end - begin + KEYS - 1) / KEYS), mine = warp % SPLIT * (KEYS / SPLIT), first = warp / SPLIT * 16;
  int asked = 0, write = 0, read = 0;
  int64_t offset = 0;
  auto ask = [&] { /* the next tile into the ring */
                   if (asked < units) {
                     int at = begin + asked / 2 * KEYS + warp * 16;
                     if (asked % 2 == 0) offset = at + lane % 16 < end ? px_decode_at(keys, at + lane % 16) : 0;
                     load_keys<DIM>(m.ring + (write * KEYS + warp * 16) * STRIDE, asked % 2 ? keys.v : keys.k, offset,
                                    end - at, dim);
                     asked++;
                     write = write + 1 == STAGES ? 0 : write + 1;
                   }
                   px_commit_copies();
  };
  auto next = [&] { /* the tile that has come */
                    px_wait_copies<STAGES - 2>();
                    if (SPLIT == PX_DECODE_WARPS)
                      __syncwarp();
                    else
                      __syncthreads();
                    ask();
                    const px_word16 *tile = m.ring + (read * KEYS + mine) * STRIDE;
                    read = read + 1 == STAGES ? 0 : read + 1;
                    return tile;
  };
  for (int i = 0; i < STAGES - 1; i++) ask();
  for (int at = begin; at < end; at += KEYS) {
    float c[1][N][4];
    const px_word16 *tile = next();
    if (first < count) {
      px_mma_clear<1, N>(c);
      px_mma_rows_by_rows<E, DIM, 1, N>(c, m.q, first, tile);
      soften<DIM, N>(c[0], m.rows + first, at + mine, end, scale * 1.44269504f, state);
    }
    tile = next();
    if (first < count) px_mma_weighted<E, DIM, 1, N, DIM / 8>(state.o, c, tile, 0);
  }
}

/* The warp's results to where px_decode_store takes them, over the ring. */
template <int DIM>
PX_DEVICE void leave(const memory_of &m, const softmax_state<DIM> &state) {
  int lane = (int)threadIdx.x % PX_WARP, warp = (int)threadIdx.x / PX_WARP, g = lane / 4, t = lane % 4;
  float *sums = reinterpret_cast<float *>(m.ring) + warp * 16 * tile_of<DIM>::STRIDE;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = state.sum[h];
    sum += __shfl_xor_sync(PX_ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(PX_ALL_LANES, sum, 2);
    if (t == 0) m.masses[warp * 16 + 8 * h + g] = {state.best[h] * 0.69314718f, sum};
#pragma unroll
    for (int i = 0; i < DIM / 8; i++)
      px_store<2>(sums + (8 * h + g) * tile_of<DIM>::STRIDE + 8 * i + 2 * t, state.o[0][i] + 2 * h);
  }
}

/* Rows of the tile against the block's parts, SPLIT warps to the same 16 rows. */
template <typename E, int DIM, int SPLIT>
PX_DEVICE void meet(const px_decode_problem &p, const px_decode_work &w, const px_decode_keys<px_word16> &keys,
                    const memory_of &m, int count) {
  const px_attn_shape &s = p.a.shape;
  px_mma_load<DIM, 64 / SPLIT, PX_DECODE_THREADS>(m.q, count, s.head_dim, [&](int r) {
    return static_cast<const px_word16 *>(p.a.q) + m.rows[r].query * p.a.q_stride + m.rows[r].head * s.head_dim;
  });
  px_commit_copies();
  px_wait_copies<0>();
  __syncthreads();
  for (int part = w.turn; part < w.cut.parts; part += w.turns) {
    softmax_state<DIM> state;
    px_mma_clear<1, DIM / 8>(state.o);
    state.best[0] = state.best[1] = -INFINITY;
    state.sum[0] = state.sum[1] = 0;
    int begin = w.cut.begin + part * w.cut.keys;
    int end = w.cut.end - begin < w.cut.keys ? w.cut.end : begin + w.cut.keys;
    stream<E, DIM, SPLIT>(m, keys, begin, end, count, s.head_dim, s.scale, state);
    __syncthreads();
    leave<DIM>(m, state);
    px_decode_store<SPLIT, 16>(p, m.rows, count, w.slot + part, m.masses, reinterpret_cast<float *>(m.ring),
                               tile_of<DIM>::STRIDE);
  }
}

template <typename E, int DIM>
PX_KERNEL_BLOCKS(PX_DECODE_THREADS, (DIM > 96 ? 2 : 3))
mma_decode_kernel(px_decode_problem p) {
  constexpr int ROWS = tile_of<DIM>::ROWS;
  PX_DYNAMIC_SHARED(px_word16, memory);
  PX_SHARED(px_decode_row, rows, ROWS);
  PX_SHARED(px_decode_mass, masses, PX_DECODE_WARPS * 16);
  PX_SHARED(px_decode_work, work, 1);
  PX_SHARED(px_decode_keys<px_word16>, keys, 1);
  if (!px_decode_begin<px_word16, ROWS>(p, work, keys)) return;
  const px_decode_work &w = work[0];
  memory_of m = {memory, memory + ROWS * tile_of<DIM>::STRIDE, rows, masses};
  for (int rank = w.rank; rank < w.rank_end; rank += ROWS) {
    int count = px_decode_fill<ROWS>(p, w, rank, rows);
    if (!w.segment && w.rank_end <= 16)
      meet<E, DIM, PX_DECODE_WARPS>(p, w, keys[0], m, count);
    else
      meet<E, DIM, tile_of<DIM>::SPLIT>(p, w, keys[0], m, count);
  }
}

template <typename E>
static void launch(const px_decode_problem &p, dim3 grid, void *stream) {
  PX_MMA_FOR_DIM(p.a.shape.head_dim, DIM, {
    size_t bytes = sizeof(px_word16) * tile_of<DIM>::STRIDE * (tile_of<DIM>::ROWS + tile_of<DIM>::STAGES * KEYS);
    PX_ALLOW_SHARED((mma_decode_kernel<E, DIM>), bytes);
    PX_LAUNCH((mma_decode_kernel<E, DIM>), grid, PX_DECODE_THREADS, bytes, stream, p);
  });
}

bool px_attn_decode_mma(const px_decode_problem &p, dim3 grid, void *stream) {
  const px_attn_decode_args &a = p.a;
  int64_t row = (int64_t)a.shape.kv_heads * a.shape.head_dim;
  if (!px_mma_takes(a.shape) || !px_mma_rows(a.q, a.q_stride) || !px_mma_rows(a.k_cache, row) ||
      !px_mma_rows(a.v_cache, row))
    return false;
  PX_MMA_FOR_TYPE(a.shape.dtype, E, launch<E>(p, grid, stream));
  return true;
}
