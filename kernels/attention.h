/* SPDX-License-Identifier: MIT
 * Attention over [shared prefix | own tokens], forward, backward and decode.
 *
 * Sequence s has queries q[q_offsets[s] .. q_offsets[s+1]) and keys k[k_offsets[s] .. k_offsets[s+1]), lengths nq and
 * nk, and reads the segment segments[adapter[s]] (adapter[s] == -1: none), whose P keys and values are stored once.
 * For query i (0-based in its sequence), head h, kv head g = h / (heads / kv_heads): s_j = scale * <q_i, key_j> over
 * the P segment keys, all visible, and own keys j with, where d = nk - nq,
 *   full:                  all j
 *   causal:                j <= i + d
 *   window W > 0 (causal): also j > i + d - W   (never hides the segment)
 *
 *   lse_i = log sum_j exp(s_j)      o_i = sum_j exp(s_j - lse_i) value_j
 *
 * A query without any visible key: o = 0, lse = -inf.
 * Backward, with D_i = <do_i, o_i>, p = exp(s - lse), ds = p (<do_i, value_j> - D_i):
 *   dq_i = scale sum_j ds_j key_j   dkey_j = scale sum_i ds_j q_i   dvalue_j = sum_i p_j do_i
 * sums over all query heads of a kv head, and for a segment over all sequences that name it.
 *
 * Shapes, outermost first: q, o, dq, do [rows, heads, head_dim] with row stride in elements (heads are adjacent);
 * k, v, dk, dv [rows, kv_heads, head_dim] likewise; segment k, v [len, kv_heads, head_dim] in `dtype` with
 * segment.stride; segment dk, dv float32 [len, kv_heads, head_dim] with segment.grad_stride; lse [heads, q rows]
 * float32, natural log.
 * On a device, segments of bf16 or f16 with head_dim a multiple of 8 begin at multiples of 16 bytes and have strides that are
 * multiples of 8 and below 2^31, as every row of a prefix has.
 * Limits: head_dim 1..256, heads % kv_heads == 0, dtype f32, bf16 or f16, offsets ascending from 0, adapter[s] <
 * segment_count. All keys and values of a sequence are finite, hidden ones too: a hidden pair counts as p = 0, which a
 * NaN survives.
 * Arithmetic: products and sums in float32. bf16, f16: probabilities (and ds) may be rounded to that type before they meet
 * the values (keys, queries). f16 has no exponents to spare: a result, or a ds, beyond 65504 is infinite, and below 6e-8
 * is lost; callers scale dout as they do for any f16 backward pass.
 * scratch is for backends that do a call in parts (px_backend_attention_bytes); nothing here reads it. NULL: none.
 * Aliasing: none; q, k, v may be columns of one tensor, likewise dq, dk, dv.
 * Determinism: bits depend on the arguments alone, never on the number of threads. o and lse of a sequence are the same
 * bits alone and in any batch, in forward and in decode (equal to each other to rounding). In backward the rows of the
 * batch are cut into chunks that the arguments fix; gradients of keys that several chunks share are partial sums added
 * in order. o, lse, dq, dk, dv are assigned (dk, dv also for keys that no query sees); segment gradients accumulate. */
#ifndef PX_KERNELS_ATTENTION_H
#define PX_KERNELS_ATTENTION_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

/* Partial sums that gradients of shared keys are made of, at most. */
enum { PX_ATTN_SPLITS = 8 };

typedef enum px_mask { PX_MASK_FULL = 0, PX_MASK_CAUSAL = 1 } px_mask;

typedef struct px_kv_segment {
  const void *k, *v; /* [len, kv_heads, head_dim] */
  int64_t stride;    /* elements from one row to the next */
  int32_t len;       /* 0 is allowed: same as no segment */
  float *dk, *dv;    /* backward only: accumulated; both NULL: not wanted */
  int64_t grad_stride;
} px_kv_segment;

typedef struct px_attn_shape {
  px_dtype dtype;
  int32_t heads, kv_heads, head_dim;
  float scale;
  px_mask mask;
  int32_t window; /* 0: none; else own keys a query sees, itself included */
  int32_t seqs;
  int32_t q_rows, k_rows;   /* q_offsets[seqs], k_offsets[seqs] (decode: q_rows alone): the host may not read those */
  const int32_t *q_offsets; /* [seqs + 1] */
  const int32_t *k_offsets; /* [seqs + 1]; may be the same array */
  const int32_t *adapter;   /* [seqs], index into segments or -1; NULL: none */
  const px_kv_segment *segments;
  int32_t segment_count;
  int32_t segment_rows; /* no less than the sum of all len: the host may not read those */
  int32_t longest;      /* no sequence has more queries or own keys: a hint for other engines; 0: nobody knows */
} px_attn_shape;

typedef struct px_attn_fwd_args {
  px_attn_shape shape;
  const void *q, *k, *v;
  int64_t q_stride, k_stride, v_stride, o_stride;
  void *o;
  float *lse; /* NULL: not kept */
  void *scratch;
  size_t scratch_bytes;
} px_attn_fwd_args;

typedef struct px_attn_bwd_args {
  px_attn_shape shape;
  const void *q, *k, *v, *o, *dout;
  int64_t q_stride, k_stride, v_stride, o_stride, dout_stride, dq_stride, dk_stride, dv_stride;
  const float *lse;
  void *dq, *dk, *dv; /* all NULL: only the segments' gradients are wanted (the first layer of prefix tuning) */
  void *workspace;    /* px_attn_bwd_workspace bytes */
  void *scratch;
  size_t scratch_bytes;
} px_attn_bwd_args;

/* One to a few new tokens per sequence against a paged cache. Row t of page p: cache + (p * page_tokens + t) * row,
 * where row = kv_heads * head_dim. Sequence s holds kv_lens[s] tokens (the new ones included), token j in page
 * block_table[s * max_blocks + j / page_tokens]. Causal, lower right; shape.k_offsets is not used.
 * Only pages that the table names up to kv_lens[s] are read. */
typedef struct px_attn_decode_args {
  px_attn_shape shape;
  const void *q;
  void *o;
  int64_t q_stride, o_stride;
  const void *k_cache, *v_cache;
  const int32_t *block_table;
  const int32_t *kv_lens;
  int32_t max_blocks, page_tokens;
  void *workspace; /* px_attn_decode_workspace bytes */
} px_attn_decode_args;

/* What is wrong with the arguments (a constant text), or NULL. */
const char *px_attn_fwd_check(const px_attn_fwd_args *a);
const char *px_attn_bwd_check(const px_attn_bwd_args *a);
const char *px_attn_decode_check(const px_attn_decode_args *a);
/* Whether q_rows and k_rows are what the offsets say (decode reads no k_offsets); needs host memory. */
const char *px_attn_check_arrays(const px_attn_shape *shape, bool decode);
/* Bytes of workspace: an upper bound from what the buffer plan knows (the arrays in *shape are not read). `rows` bounds
 * the query rows and the own key rows alike. */
size_t px_attn_bwd_workspace(const px_attn_shape *shape, int64_t rows, int64_t segment_rows_total);
size_t px_attn_decode_workspace(const px_attn_shape *shape, int64_t q_rows);
/* Decode cuts the own keys of a sequence, and its segment, into parts that are worked on at the same time and merged in
 * order: at most so many. With one sequence that makes 512 pieces of work for a device, fewer where kv_heads are few. */
static inline int32_t px_attn_own_parts(int32_t kv_heads) {
  return kv_heads <= 4 ? 128 : kv_heads >= 64 ? 8 : 512 / kv_heads;
}
static inline int32_t px_attn_segment_parts(int32_t kv_heads) { return px_attn_own_parts(kv_heads) / 4; }
/* These read the arrays of the shape, so they must be in host memory. Segments count as read once, whoever names them.
 */
px_cost px_attn_fwd_cost(const px_attn_fwd_args *a);
px_cost px_attn_bwd_cost(const px_attn_bwd_args *a);
px_cost px_attn_decode_cost(const px_attn_decode_args *a);

int px_attn_fwd_cpu(const px_attn_fwd_args *a);
int px_attn_bwd_cpu(const px_attn_bwd_args *a);
int px_attn_decode_cpu(const px_attn_decode_args *a);
int px_attn_fwd_cuda(const px_attn_fwd_args *a, void *stream);
int px_attn_bwd_cuda(const px_attn_bwd_args *a, void *stream);
int px_attn_decode_cuda(const px_attn_decode_args *a, void *stream);

/* The same in plain loops: the specification, for tests. No workspace is used. */
int px_attn_fwd_plain_cpu(const px_attn_fwd_args *a);
int px_attn_bwd_plain_cpu(const px_attn_bwd_args *a);
int px_attn_decode_plain_cpu(const px_attn_decode_args *a);

PX_C_END

#endif
