/* SPDX-License-Identifier: MIT
 * Rows -> batches: a seeded shuffle per epoch and packing without padding. A pure function of (rows, options, seed), so a
 * position is one number and resume is exact. */
#ifndef PX_TRAIN_BATCHES_H
#define PX_TRAIN_BATCHES_H

#include "model/stack.h"
#include "text/rows.h"

typedef struct px_batch_options {
  int32_t batch_rows;   /* rows a batch; 0: by tokens */
  int64_t batch_tokens; /* tokens a batch at most (at least one row); 0: by rows */
  bool shuffle;
  uint64_t seed;
} px_batch_options;

/* Where the next batch begins. */
typedef struct px_cursor {
  uint32_t epoch;
  uint64_t row; /* index into the epoch's order */
} px_cursor;

typedef struct px_batches {
  const px_rows *rows;
  px_batch_options options;
  uint32_t *order;    /* [rows] of order_epoch */
  uint32_t order_epoch;
  bool order_valid;
  px_batch batch;     /* of the last call, host memory owned here */
  int32_t *memory;
  size_t capacity;
  uint32_t *batch_rows; /* row index of each sequence of the batch */
} px_batches;

px_status px_batches_open(const px_rows *rows, const px_batch_options *options, px_batches *out, px_error *err);
void px_batches_close(px_batches *b);
/* Fills b->batch for the rows at *cursor (positions start at `first_position`; adapter id `adapter`, -1 none) and moves
 * the cursor; an epoch's end ends the batch, the next begins a new epoch. */
px_status px_batches_next(px_batches *b, px_cursor *cursor, int32_t first_position, int32_t adapter, px_error *err);
/* Most tokens, rows and labels of any batch from *cursor on over `count` batches (walks the order; no rows are read). */
px_status px_batches_limits(px_batches *b, px_cursor cursor, uint64_t count, int64_t *tokens, int64_t *rows, int64_t *labels, px_error *err);
/* Batches in one epoch. */
px_status px_batches_per_epoch(px_batches *b, uint32_t epoch, uint64_t *count, px_error *err);

#endif
