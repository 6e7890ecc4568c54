/* SPDX-License-Identifier: MIT
 * Attention in two parts. The prefix part is done by our own kernels (it is one dense problem over all rows), the own tokens
 * of each sequence by another engine, which need not know prefixes:
 *   forward   (o_a, lse_a) = own kernels over the segments   (o_b, lse_b) = engine   o, lse = merge of the two
 *   backward  each part with the merged o and lse, which makes its gradients exact; dq = dq_a + dq_b
 * (kernels/attention_merge.h has the equations.) What the engine does not take is done by our own kernels as a whole, and
 * said once. All memory is the caller's; nothing is allocated, nothing waits: a call may be recorded. */
#ifndef PX_BACKEND_ATTENTION_SPLIT_H
#define PX_BACKEND_ATTENTION_SPLIT_H

#include "backend/backend.h"

/* An engine's call was not taken: nothing was enqueued. */
enum { PX_ATTN_REFUSED = -999 };

/* Another attention: without segments, on the backend's device. Arguments and results are kernels/attention.h's, with
 * `scratch` and `scratch_bytes` for the engine alone. */
typedef struct px_attn_engine {
  char name[48]; /* "cuDNN 9.19.0" */
  void *own;
  bool lse_by_rows; /* fwd leaves lse as [rows, heads] instead of [heads, rows]; bwd reads it as everybody does */
  /* Scratch for calls of this shape up to so many rows; 0 where it takes none of them. */
  size_t (*scratch_bytes)(void *own, const px_attn_shape *shape, int64_t rows, bool backward);
  /* 0, a cudaError_t, or a number below PX_ATTN_REFUSED that error_text knows; PX_ATTN_REFUSED: *why says why. */
  int (*fwd)(void *own, const px_attn_fwd_args *a, void *stream, const char **why);
  int (*bwd)(void *own, const px_attn_bwd_args *a, void *stream, const char **why);
  const char *(*error_text)(void *own, int code);
  void (*close)(void *own); /* NULL: nothing to close */
} px_attn_engine;

typedef struct px_attn_split {
  px_backend *be; /* borrowed; for its log */
  px_attn_engine engine;
  bool said[2]; /* what the engine does not take: forward, backward */
} px_attn_split;

void px_attn_split_close(px_attn_split *s); /* NULL is fine */
/* px_backend_attention_bytes of a backend whose attention is done in parts. */
size_t px_attn_split_bytes(const px_attn_split *s, const px_attn_shape *shape, int64_t rows, bool backward);
/* Results as px_attn_fwd_cuda and px_attn_bwd_cuda, or an engine's code. */
int px_attn_split_fwd(px_attn_split *s, const px_attn_fwd_args *a, void *stream);
int px_attn_split_bwd(px_attn_split *s, const px_attn_bwd_args *a, void *stream);

#endif
