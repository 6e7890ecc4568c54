/* SPDX-License-Identifier: MIT
 * Embedding: y[t] = table[ids[t]] + position_table[positions[t]] (the second only where given), rounded once to dtype.
 * Backward: dtable[ids[t]] += dy[t], dposition[positions[t]] += dy[t], float32, in the order of t for every row.
 * Shapes: ids, positions [rows]; table [table_rows, dim] and position_table [position_rows, dim] in table_type; y, dy
 * [rows, dim] in dtype; dtable, dposition as the tables, float32; all dense.
 * Limits: an id outside [0, table_rows) or a position outside [0, position_rows), where one is used, fails with code 1;
 * such rows are passed over. Aliasing: none. Arithmetic float32. Determinism: the bits do not depend on the number of
 * threads. y is assigned, gradients accumulate. */
#ifndef PX_KERNELS_EMBED_H
#define PX_KERNELS_EMBED_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

typedef struct px_embed_fwd_args {
  px_dtype dtype, table_type;
  int64_t rows, dim, table_rows, position_rows;
  const int32_t *ids, *positions;
  const void *table, *position_table; /* position_table may be NULL */
  void *y;
} px_embed_fwd_args;

typedef struct px_embed_bwd_args {
  px_dtype dtype;
  int64_t rows, dim, table_rows, position_rows;
  const int32_t *ids, *positions;
  const void *dy;
  float *dtable, *dposition; /* NULL: not wanted */
} px_embed_bwd_args;

const char *px_embed_fwd_check(const px_embed_fwd_args *a);
const char *px_embed_bwd_check(const px_embed_bwd_args *a);
px_cost px_embed_fwd_cost(const px_embed_fwd_args *a);
px_cost px_embed_bwd_cost(const px_embed_bwd_args *a);
int px_embed_fwd_cpu(const px_embed_fwd_args *a);
int px_embed_bwd_cpu(const px_embed_bwd_args *a);
int px_embed_fwd_cuda(const px_embed_fwd_args *a, void *stream);
int px_embed_bwd_cuda(const px_embed_bwd_args *a, void *stream);

PX_C_END

#endif
