/* SPDX-License-Identifier: MIT
 * What the decode kernels share: how the work is cut, and how its parts become one.
 *
 *   own keys of a sequence    [ part 0 ][ part 1 ][ part 2 ]      its rows (query, head of the group) alone
 *   a segment                 [ part 0 ][ part 1 ]                rows of all sequences that name it, a tile at a time
 *
 * A block meets a tile of rows of one kv head with parts of one of the two, and leaves for each row and part the sum of
 * weight * value, the best score and the sum of weights in the workspace; the merge adds a row's parts in order. The
 * cuts follow from the sequence and the shape alone, so a row's bits know nothing of the batch. How many blocks a
 * sequence gets (turns) follows from the batch: a block takes every turns-th part. */
#ifndef PX_KERNELS_ATTENTION_DECODE_CUH
#define PX_KERNELS_ATTENTION_DECODE_CUH

#include "kernels/attention_tile.cuh"

enum {
  PX_DECODE_THREADS = 128,
  PX_DECODE_WARPS = PX_DECODE_THREADS / PX_WARP,
  PX_DECODE_OWN_KEYS = 256,     /* of a part, at least: partial sums are a thirtieth of what is read then */
  PX_DECODE_SEGMENT_KEYS = 128, /* the same for a segment, whose rows are many */
  PX_DECODE_KEYS = 64           /* parts are whole tiles of the tensor-core kernel */
};

/* Score statistics of a row in a part; best in natural units, -inf where it saw nothing. */
struct alignas(8) px_decode_mass {
  float best, sum;
};

struct px_decode_problem {
  px_attn_decode_args a;
  px_decode_mass *mass; /* [q_rows * heads][slots]: parts of the segment, then own parts */
  float *o;             /* [q_rows * heads][slots][px_decode_width] */
  int32_t segment_parts, own_parts;
  int32_t segment_turns, own_turns; /* blocks of a sequence and kv head */
};

/* Floats of a row of partial sums. */
PX_DEVICE int px_decode_width(int dim) { return (dim + 3) / 4 * 4; }

PX_DEVICE int64_t px_decode_slot(const px_decode_problem &p, int query, int head, int slot) {
  return ((int64_t)query * p.a.shape.heads + head) * (p.segment_parts + p.own_parts) + slot;
}

/* Keys [begin, end) in parts of `keys`, at most `most` of them. */
struct px_decode_cut {
  int begin, end, keys, parts;
};
PX_DEVICE px_decode_cut px_decode_cut_of(int begin, int end, int most, int least) {
  int keys = (end - begin + most - 1) / most;
  keys = keys <= least ? least : (keys + PX_DECODE_KEYS - 1) / PX_DECODE_KEYS * PX_DECODE_KEYS;
  return {begin, end, keys, end > begin ? (end - begin + keys - 1) / keys : 0};
}
/* The own keys that any query of a sequence sees. */
PX_DEVICE px_decode_cut px_decode_own_cut(const px_decode_problem &p, int seq) {
  const px_attn_shape &s = p.a.shape;
  int nq = s.q_offsets[seq + 1] - s.q_offsets[seq], nk = p.a.kv_lens[seq], begin, end, unused;
  px_visible(s, 0, nq, nk, &begin, &unused);
  px_visible(s, nq - 1, nq, nk, &unused, &end);
  return px_decode_cut_of(begin, end, p.own_parts, PX_DECODE_OWN_KEYS);
}
PX_DEVICE px_decode_cut px_decode_segment_cut(const px_decode_problem &p, const px_kv_segment *segment) {
  return px_decode_cut_of(0, segment ? segment->len : 0, p.segment_parts, PX_DECODE_SEGMENT_KEYS);
}

/* What a block does: rows [rank, rank_end) of those that the keys are for, against every turns-th part. */
struct px_decode_work {
  const px_kv_segment *segment; /* NULL: own keys */
  px_decode_cut cut;
  int seq, turn, turns, slot; /* slot: of part 0 */
  int before;                 /* rows of earlier sequences that name the segment */
  int rank, rank_end;
};

PX_DEVICE int px_decode_rows_of(const px_attn_shape &s, int seq) {
  return (s.q_offsets[seq + 1] - s.q_offsets[seq]) * (s.heads / s.kv_heads);
}

/* Blocks of a launch along x: turns of every sequence at its segment, then turns at its own keys. A tile of a segment's
 * rows falls to the sequence that its first row is of; the others have nothing to do. */
template <int TILE>
PX_DEVICE px_decode_work px_decode_work_of(const px_decode_problem &p) {
  const px_attn_shape &s = p.a.shape;
  int x = (int)blockIdx.x, lane = (int)threadIdx.x % PX_WARP, first = s.seqs * p.segment_turns;
  px_decode_work w = {};
  if (x >= first) {
    w.turns = p.own_turns;
    w.seq = (x - first) / w.turns;
    w.turn = (x - first) % w.turns;
    w.slot = p.segment_parts;
    w.rank_end = px_decode_rows_of(s, w.seq);
    if (w.rank_end > 0) w.cut = px_decode_own_cut(p, w.seq);
    return w;
  }
  w.turns = p.segment_turns;
  w.seq = x / w.turns;
  w.turn = x % w.turns;
  w.segment = px_segment_of(s, w.seq);
  w.cut = px_decode_segment_cut(p, w.segment);
  if (w.turn >= w.cut.parts) return w;
  int id = s.adapter[w.seq], before = 0;
  for (int seq = lane; seq < w.seq; seq += PX_WARP)
    if (s.adapter[seq] == id) before += px_decode_rows_of(s, seq);
  for (int lanes = PX_WARP / 2; lanes > 0; lanes /= 2) before += __shfl_xor_sync(PX_ALL_LANES, before, lanes);
  w.before = before;
  w.rank = (before + TILE - 1) / TILE * TILE;
  w.rank_end = before + px_decode_rows_of(s, w.seq);
  return w;
}

/* A row of the tile: its query and head, and the keys [from, to) that it sees; beyond the last row none. */
struct px_decode_row {
  int32_t query, head, from, to;
};

/* Rows [rank, rank + TILE) of the work into shared memory, for all threads; returns their number. */
template <int TILE>
PX_DEVICE int px_decode_fill(const px_decode_problem &p, const px_decode_work &w, int rank, px_decode_row *rows) {
  const px_attn_shape &s = p.a.shape;
  int lane = (int)threadIdx.x % PX_WARP, group = s.heads / s.kv_heads, head = (int)blockIdx.y * group;
  int q0 = s.q_offsets[w.seq], count = w.rank_end - rank < TILE ? w.rank_end - rank : TILE;
  for (int r = (int)threadIdx.x; r < TILE; r += PX_DECODE_THREADS) {
    px_decode_row row = {};
    if (!w.segment && r < count) {
      int query = (rank + r) / group, nq = s.q_offsets[w.seq + 1] - q0;
      row = {q0 + query, head + (rank + r) % group, 0, 0};
      px_visible(s, query, nq, p.a.kv_lens[w.seq], &row.from, &row.to);
    }
    rows[r] = row;
  }
  __syncthreads();
  if (w.segment) { /* sequences from w.seq on, a warp of them at a time; all warps count, the first one writes */
    int at = w.before, id = s.adapter[w.seq];
    for (int base = w.seq; base < s.seqs && at < rank + TILE; base += PX_WARP) {
      int seq = base + lane, n = seq < s.seqs && s.adapter[seq] == id ? px_decode_rows_of(s, seq) : 0, sum = n;
      for (int lanes = 1; lanes < PX_WARP; lanes *= 2) {
        int left = __shfl_sync(PX_ALL_LANES, sum, lane < lanes ? lane : lane - lanes);
        if (lane >= lanes) sum += left;
      }
      int first = at + sum - n, r = first > rank ? first : rank;
      for (; (int)threadIdx.x < PX_WARP && r < first + n && r < rank + TILE; r++)
        rows[r - rank] = {s.q_offsets[seq] + (r - first) / group, head + (r - first) % group, 0, w.segment->len};
      at += __shfl_sync(PX_ALL_LANES, sum, PX_WARP - 1);
    }
    count = at - rank < TILE ? at - rank : TILE;
  }
  __syncthreads();
  return count;
}

/* Where the keys of the work lie, at the block's kv head. */
template <typename T>
struct px_decode_keys {
  const T *k, *v;
  int64_t stride;
  const int32_t *blocks; /* NULL: a segment */
  int32_t page_tokens;
};
template <typename T>
PX_DEVICE px_decode_keys<T> px_decode_keys_of(const px_decode_problem &p, const px_decode_work &w) {
  const px_attn_shape &s = p.a.shape;
  int64_t head = (int64_t)blockIdx.y * s.head_dim;
  if (w.segment)
    return {static_cast<const T *>(w.segment->k) + head, static_cast<const T *>(w.segment->v) + head, w.segment->stride,
            NULL, 1};
  return {static_cast<const T *>(p.a.k_cache) + head, static_cast<const T *>(p.a.v_cache) + head,
          (int64_t)s.kv_heads * s.head_dim, p.a.block_table + (int64_t)w.seq * p.a.max_blocks, p.a.page_tokens};
}
/* Elements from row 0 to a key's row. */
template <typename T>
PX_DEVICE int64_t px_decode_at(const px_decode_keys<T> &keys, int key) {
  int64_t row = key;
  if (keys.blocks) row = (int64_t)keys.blocks[key / keys.page_tokens] * keys.page_tokens + key % keys.page_tokens;
  return row * keys.stride;
}

/* What the block does, in shared memory: registers are for sums. False: nothing. */
template <typename T, int TILE>
PX_DEVICE bool px_decode_begin(const px_decode_problem &p, px_decode_work *work, px_decode_keys<T> *keys) {
  px_decode_work w = px_decode_work_of<TILE>(p);
  if (w.turn >= w.cut.parts || w.rank >= w.rank_end) return false;
  if (threadIdx.x == 0) {
    *work = w;
    *keys = px_decode_keys_of<T>(p, w);
  }
  __syncthreads();
  return true;
}

/* The part of every row to the workspace, from shared memory: SPLIT warps met the same ROWS rows with different keys and
 * left masses [warp][ROWS] and sums [warp][ROWS][stride]. All threads; shared memory is free again afterwards. */
template <int SPLIT, int ROWS>
PX_DEVICE void px_decode_store(const px_decode_problem &p, const px_decode_row *rows, int count, int slot,
                               const px_decode_mass *masses, const float *sums, int stride) {
  int width = px_decode_width(p.a.shape.head_dim), words = width / 4;
  __syncthreads();
  for (int i = (int)threadIdx.x; i < count * words; i += PX_DECODE_THREADS) {
    int r = i / words, d = i % words * 4, first = r / ROWS * SPLIT * ROWS + r % ROWS;
    float best = -INFINITY, mass = 0, o[4] = {0, 0, 0, 0};
#pragma unroll
    for (int x = 0; x < SPLIT; x++) best = fmaxf(best, masses[first + x * ROWS].best);
#pragma unroll
    for (int x = 0; x < SPLIT; x++) {
      px_decode_mass m = masses[first + x * ROWS];
      float by = m.best == best ? 1.0f : expf(m.best - best), part[4];
      px_load<4>(sums + (int64_t)(first + x * ROWS) * stride + d, part);
      mass += by * m.sum;
#pragma unroll
      for (int j = 0; j < 4; j++) o[j] += by * part[j];
    }
    int64_t at = px_decode_slot(p, rows[r].query, rows[r].head, slot);
    px_store<4>(p.o + at * width + d, o);
    if (d == 0) p.mass[at] = {best, mass};
  }
  __syncthreads();
}

/* Tensor cores (attention_mma_decode.cu): false where they do not take the problem and nothing was launched. */
bool px_attn_decode_mma(const px_decode_problem &p, dim3 grid, void *stream);

#endif
