/* SPDX-License-Identifier: MIT
 * One update without a pause: its batches travel while earlier ones are worked on, everything is enqueued, and what came
 * of it is read when the caller asks, a step or two later. Where a backend records, the operations of a batch are
 * recorded the second time a batch of that size is seen and replayed from then on; batches are filled up to a few sizes
 * for it by a sequence without prefix and labels without target, which change nothing in the result.
 *   prefix -> keys and values;  for each batch: forward, loss, backward;  prefix gradient;  norm;  AdamW
 * One thread at a time. Same inputs, same bits: with and without recording, and wherever in a run a step stands. */
#ifndef PX_TRAIN_STEP_H
#define PX_TRAIN_STEP_H

#include "model/model.h"
#include "model/stack.h"
#include "tune/tune.h"

enum { PX_STEPS_IN_FLIGHT = 2 };

typedef struct px_step_options {
  const px_model *model; /* borrowed, as be and tune */
  px_backend *be;
  px_tune *tune;
  uint64_t seed;
  float beta1, beta2, eps;
  int64_t tokens, seqs, labels, positions; /* at most, of one batch; positions as in the plan */
  bool plain;                              /* record nothing */
} px_step_options;

typedef struct px_step px_step;

/* PX_NO_MEMORY with numbers where the plan does not fit. */
px_status px_step_open(const px_step_options *options, px_step **out, px_error *err);
void px_step_close(px_step *s); /* NULL is fine; waits for what is under way */
const px_plan *px_step_plan(const px_step *s);

/* How many steps may be under way at once. */
int px_step_depth(const px_step *s);
/* A step: begin, then its batches, of which the last one says so. control->tokens counts the labels of all of them. A batch
 * is the caller's again when add returns. PX_INVALID: a batch exceeds the plan; the step must not be gone on with. */
void px_step_begin(px_step *s, const px_control *control);
px_status px_step_add(px_step *s, const px_batch *batch, bool last, px_error *err);
/* Waits for the oldest step under way: what became of it. Later ones change nothing once *out says PX_BAD_STEP, until all
 * are finished and px_step_forgive is called. */
px_status px_step_finish(px_step *s, px_group *out, px_error *err);
void px_step_forgive(px_step *s);

#endif
