/* SPDX-License-Identifier: MIT
 * Rows -> batches: a seeded shuffle per epoch and packing without padding. A pure function of (rows, options, cursor), so
 * a place in a run is one cursor and resume is exact. */
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

/* Where the next batch begins: index `row` into the order of `epoch`. */
typedef struct px_cursor {
  uint32_t epoch;
  uint64_t row;
} px_cursor;

/* One thread at a time. The rows are borrowed. */
typedef struct px_batches {
  const px_rows *rows;
  px_batch_options options;
  uint32_t *row_labels;   /* [rows] tokens that score */
  uint32_t *order;        /* [rows] of order_epoch */
  int64_t order_epoch;    /* -1: none yet */
  px_batch batch;         /* of the last px_batches_next, host memory owned here */
  uint32_t *batch_rows;   /* [batch.seqs] index of each sequence's row */
  int32_t *memory;
  size_t capacity, rows_capacity;
} px_batches;

/* What a stretch of batches holds: sums, and the most in any one of them. */
typedef struct px_batch_extent {
  int64_t tokens, rows, labels;
  int64_t most_tokens, most_rows, most_labels;
} px_batch_extent;

px_status px_batches_open(const px_rows *rows, const px_batch_options *options, px_batches *out, px_error *err);
void px_batches_close(px_batches *b);
/* Fills b->batch with the rows at *cursor (positions start at first_position; adapter id `adapter`, -1: none) and moves the
 * cursor. The end of an epoch ends a batch. */
px_status px_batches_next(px_batches *b, px_cursor *cursor, int32_t first_position, int32_t adapter, px_error *err);
/* Walks `count` batches from the cursor on without filling any. */
px_batch_extent px_batches_walk(px_batches *b, px_cursor cursor, uint64_t count);
/* The same, or, where `count` is too long to be walked, no less in `most_`; the sums are then those of a part. */
px_batch_extent px_batches_bound(px_batches *b, px_cursor cursor, uint64_t count);
/* Batches of one epoch. */
uint64_t px_batches_per_epoch(px_batches *b, uint32_t epoch);

#endif
