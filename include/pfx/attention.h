/* SPDX-License-Identifier: MIT
 *
 * pfx's attention for engines that keep their own model: forward, backward, decode over a paged cache, and writing keys and
 * values into its pages, on memory and a stream that are the caller's.
 *
 * A sequence attends to [segment | own tokens]. A segment is a block of keys and values that is stored once and read in
 * place by every sequence that names it: a learned prefix, a cached prompt. Nothing is concatenated or copied.
 *
 * Sequence s has queries q_offsets[s] .. q_offsets[s + 1] and own keys k_offsets[s] .. k_offsets[s + 1] of flat lists without
 * padding; nq and nk of them. With S its segment (none where segment_of[s] == -1), d = nk - nq, query i and own key j of the
 * sequence, query head h and key head h / (heads / kv_heads):
 *   visible:  all of S, and own j <= i + d;  with a window W also j > i + d - W (S is never hidden);  without `causal` all
 *   s_j = scale <q_i, key_j>      lse_i = log sum_j exp(s_j)      o_i = sum_j exp(s_j - lse_i) value_j
 * A query that sees nothing: o = 0, lse = -inf. Backward is the derivative of that (FlashAttention, Dao et al. 2022, its
 * equations with the keys of S among the others); a segment's gradient is summed over all sequences that name it.
 *
 * Shapes, outermost first, strides in elements from one row to the next:
 *   q, o, dout, dq   [query rows, heads, head_dim]        k, v, dk, dv   [own rows, kv_heads, head_dim]
 *   lse              [heads, query rows] float32, natural logarithm
 *   segment k, v     [length, kv_heads, head_dim]         segment dk, dv [length, kv_heads, head_dim] float32
 *   cache k, v       [pages, page_tokens, kv_heads, head_dim], dense
 * Types: all but lse, segment gradients and integers are of `type`; sums are float32. float32 products are exact (no TF32).
 * float16: results beyond 65504 are infinite, as of any float16 operation; scale dout where gradients are small.
 *
 * Rules
 * - Place. PFX_AT_CPU: pointers are host memory, `stream` is NULL, the call works until it is done, with OpenMP's threads.
 *   PFX_AT_CUDA: every pointer, and those inside the array of segments, is memory of the calling thread's current device;
 *   `stream` is a cudaStream_t (NULL: the default one). The call enqueues kernels and returns; it allocates nothing,
 *   synchronises nothing, reads no device memory, and may be captured in a CUDA graph.
 * - Memory is the caller's all the time and must stay until the stream has run. Outputs overlap no input.
 * - Threads. No state: any number of threads, each with memory of its own.
 * - Errors. As in pfx.h. The host cannot look at arrays on a device: that offsets ascend from 0, that numbers name what is
 *   there and that keys and values are finite is then the caller's promise. At PFX_AT_CPU offsets and names are checked.
 *   PFX_NO_DEVICE: this build has no CUDA, or a launch failed (err->native has CUDA's code).
 * - Bits depend on the arguments alone. o and lse of a sequence are the same bits alone and in any batch.
 */
#ifndef PFX_ATTENTION_H
#define PFX_ATTENTION_H

#include <pfx/pfx.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum pfx_place { PFX_AT_CPU = 0, PFX_AT_CUDA = 1 } pfx_place;
typedef enum pfx_attention_type { PFX_ATTENTION_F32 = 0, PFX_ATTENTION_BF16 = 1, PFX_ATTENTION_F16 = 2 } pfx_attention_type;

/* On a device, bfloat16 and float16 segments with head_dim a multiple of 8 begin at multiples of 16 bytes, and `stride` is a multiple
 * of 8. Arrays of it lie where the other pointers point to. */
typedef struct pfx_segment {
  const void *k, *v;
  int64_t stride;      /* elements; at least kv_heads * head_dim */
  int32_t length;      /* 0: as if there were none */
  float *dk, *dv;      /* backward adds to them; both NULL: not wanted */
  int64_t grad_stride; /* elements */
} pfx_segment;

typedef struct pfx_attention_shape {
  size_t struct_bytes;
  pfx_place place;
  pfx_attention_type type;
  int32_t heads, kv_heads, head_dim; /* head_dim 1 to 256, heads a multiple of kv_heads */
  float scale;                       /* 0: 1 / sqrt(head_dim) */
  bool causal;                       /* default true */
  int32_t window;                    /* 0: none; own keys that a query sees, itself included; needs causal */
  int32_t sequences;
  int32_t query_rows, own_rows;      /* q_offsets[sequences], k_offsets[sequences] (decode: query_rows alone) */
  const int32_t *q_offsets, *k_offsets; /* [sequences + 1]; may be the same array; decode reads no k_offsets */
  const int32_t *segment_of;         /* [sequences], -1: none; NULL: none at all */
  const pfx_segment *segments;       /* [segment_count] */
  int32_t segment_count;
  int32_t segment_rows;              /* no less than the sum of all lengths */
} pfx_attention_shape;

static inline pfx_attention_shape pfx_attention_shape_init(void) {
  pfx_attention_shape s;
  memset(&s, 0, sizeof s);
  s.struct_bytes = sizeof s;
  s.causal = true;
  return s;
}

/* In all structs below a stride of 0 stands for rows without gaps. */
typedef struct pfx_attention_forward_args {
  size_t struct_bytes;
  const void *q, *k, *v;
  void *o;
  float *lse; /* NULL: not wanted; backward needs it */
  int64_t q_stride, k_stride, v_stride, o_stride;
} pfx_attention_forward_args;

typedef struct pfx_attention_backward_args {
  size_t struct_bytes;
  const void *q, *k, *v, *o, *dout; /* o and lse as forward left them */
  const float *lse;
  void *dq, *dk, *dv;               /* all NULL: only the segments' gradients */
  void *workspace;                  /* pfx_attention_backward_workspace bytes, 256-byte aligned on a device */
  int64_t q_stride, k_stride, v_stride, o_stride, dout_stride, dq_stride, dk_stride, dv_stride;
} pfx_attention_backward_args;

/* One to a few new queries of each sequence, whose keys and values are in the cache already. Token j of sequence s stands
 * in page block_table[s * max_blocks + j / page_tokens] at j % page_tokens. Always causal. */
typedef struct pfx_attention_decode_args {
  size_t struct_bytes;
  const void *q;
  void *o;
  int64_t q_stride, o_stride;
  const void *k_cache, *v_cache;
  const int32_t *block_table; /* [sequences, max_blocks] */
  const int32_t *kv_lengths;  /* [sequences] tokens in the cache, the new ones included */
  int32_t max_blocks, page_tokens;
  void *workspace;            /* pfx_attention_decode_workspace bytes, 256-byte aligned on a device */
} pfx_attention_decode_args;

/* Row t of k and v goes to token slots[t] % page_tokens of page slots[t] / page_tokens of a cache; -1: nowhere. Slots are
 * distinct. Serves new tokens and a whole prefix alike. */
typedef struct pfx_attention_write_args {
  size_t struct_bytes;
  const void *k, *v;
  int64_t k_stride, v_stride;
  void *k_cache, *v_cache;
  const int64_t *slots; /* [own_rows] */
} pfx_attention_write_args;

#define PFX_ATTENTION_ARGS(name)                \
  static inline name name##_init(void) {        \
    name a;                                     \
    memset(&a, 0, sizeof a);                    \
    a.struct_bytes = sizeof a;                  \
    return a;                                   \
  }
PFX_ATTENTION_ARGS(pfx_attention_forward_args)
PFX_ATTENTION_ARGS(pfx_attention_backward_args)
PFX_ATTENTION_ARGS(pfx_attention_decode_args)
PFX_ATTENTION_ARGS(pfx_attention_write_args)
#undef PFX_ATTENTION_ARGS

PFX_API pfx_status pfx_attention_forward(const pfx_attention_shape *shape, const pfx_attention_forward_args *args, void *stream,
                                         pfx_error *err);
/* dq, dk, dv are assigned, segment gradients are added to. */
PFX_API pfx_status pfx_attention_backward(const pfx_attention_shape *shape, const pfx_attention_backward_args *args, void *stream,
                                          pfx_error *err);
PFX_API pfx_status pfx_attention_decode(const pfx_attention_shape *shape, const pfx_attention_decode_args *args, void *stream,
                                        pfx_error *err);
/* Of the shape: place, type, kv_heads, head_dim and own_rows, the rows that are written. */
PFX_API pfx_status pfx_attention_write(const pfx_attention_shape *shape, const pfx_attention_write_args *args, void *stream,
                                       pfx_error *err);

/* Bytes, enough for every call with this shape or with fewer rows, sequences and segment rows; arrays are not read. */
PFX_API pfx_status pfx_attention_backward_workspace(const pfx_attention_shape *shape, size_t *bytes, pfx_error *err);
PFX_API pfx_status pfx_attention_decode_workspace(const pfx_attention_shape *shape, size_t *bytes, pfx_error *err);

#ifdef __cplusplus
}
#endif

#endif
