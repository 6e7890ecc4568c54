/* SPDX-License-Identifier: MIT
 * What attention in two parts needs: a join of the two, and the shape of a batch as engines that know ragged tensors
 * want it. Used by backends alone; the model asks for attention, not for the way it is done.
 *
 * Merge. For each query i and head h, a and b being results of the same queries over keys that they do not share:
 *   lse = log(exp(lse_a) + exp(lse_b))      o = exp(lse_a - lse) o_a + exp(lse_b - lse) o_b
 * which is attention over the keys of both. A part with lse = -inf has met no key: its o is not read. Both so: o = 0,
 * lse = -inf. Backward needs no join of its own: with the joined o and lse each part's gradients are exact, and dq is
 * the sum of the parts'. That sum is the same operation without statistics:
 *   a.lse and b.lse NULL:  o = o_a + o_b
 * and a.o NULL is a part without keys: o = o_b, lse = lse_b in the strides of the result.
 *
 * Ragged. For tensor n of rows that lie strides[n] elements apart, and sequence s of `slots` (those beyond seqs: empty):
 *   lens[s] = offsets[s + 1] - offsets[s]      starts[n][s] = offsets[s] * strides[n]      (s = 0 .. slots)
 * and, where given, stats[t, h] = lse[h, t].
 *
 * Shapes, outermost first: o [rows, heads, head_dim] of `dtype`, row stride in elements (heads are adjacent); lse of row
 * t and head h at t * lse_row + h * lse_head, float32, natural log; lens [slots] int32; starts [tensors][slots + 1]
 * int64; lse [heads, rows] and stats [rows, heads] float32.
 * Limits: dtype f32, bf16 or f16; head_dim 1..256; up to PX_RAGGED_TENSORS tensors; offsets ascending from 0.
 * Aliasing: merge: o may be a.o or b.o with its stride; the resulting lse is neither part's. Ragged: none.
 * Arithmetic: float32; o is rounded once.
 * Determinism: an element depends on its own row and head alone. All outputs are assigned. */
#ifndef PX_KERNELS_ATTENTION_MERGE_H
#define PX_KERNELS_ATTENTION_MERGE_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

enum { PX_RAGGED_TENSORS = 10 };

typedef struct px_attn_part {
  const void *o;
  const float *lse;
  int64_t o_stride, lse_row, lse_head;
} px_attn_part;

typedef struct px_attn_merge_args {
  px_dtype dtype;
  int32_t rows, heads, head_dim;
  px_attn_part a, b;
  void *o;
  float *lse; /* NULL: not kept */
  int64_t o_stride, lse_row, lse_head;
} px_attn_merge_args;

typedef struct px_attn_ragged_args {
  int32_t seqs, slots;
  const int32_t *offsets; /* [seqs + 1] */
  int32_t tensors;
  int64_t strides[PX_RAGGED_TENSORS];
  int32_t *lens;
  int64_t *starts;
  int32_t rows, heads; /* of lse; 0: none */
  const float *lse;
  float *stats;
} px_attn_ragged_args;

/* What is wrong with the arguments (a constant text), or NULL. */
const char *px_attn_merge_check(const px_attn_merge_args *a);
const char *px_attn_ragged_check(const px_attn_ragged_args *a);
px_cost px_attn_merge_cost(const px_attn_merge_args *a);
px_cost px_attn_ragged_cost(const px_attn_ragged_args *a);

int px_attn_merge_cpu(const px_attn_merge_args *a);
int px_attn_ragged_cpu(const px_attn_ragged_args *a);
int px_attn_merge_cuda(const px_attn_merge_args *a, void *stream);
int px_attn_ragged_cuda(const px_attn_ragged_args *a, void *stream);

PX_C_END

#endif
