/* SPDX-License-Identifier: MIT
 * Embedding: y[t] = table[ids[t]] + position_table[positions[t]] (the second only where given), rounded once to dtype.
 * Backward: dtable[ids[t]] += dy[t], dposition[positions[t]] += dy[t], float32, in the order of t for every row.
 * ids in [0, table_rows); tables [rows, dim] in table_type; y, dy [rows, dim], dense. */
#ifndef PX_KERNELS_EMBED_H
#define PX_KERNELS_EMBED_H

#include "core/types.h"

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
int px_embed_fwd_cpu(const px_embed_fwd_args *a);
int px_embed_bwd_cpu(const px_embed_bwd_args *a);

#endif
