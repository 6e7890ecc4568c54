/* SPDX-License-Identifier: MIT
 * One token per row from float32 logits. In this order:
 *   1. repetition penalty (Keskar et al. 2019), once for every distinct id of the history: z > 0 ? z / penalty : z *
 * penalty
 *   2. temperature == 0: the largest logit, nothing else applies. Otherwise d = (z - largest z) / temperature, and
 * tokens stand in descending order of d, ties by ascending id; every filter keeps a leading part of what the one before
 * left:
 *   3. top-k: the first top_k        4. top-p: the shortest part whose share of the mass exp(d) reaches top_p
 *   5. min-p: those with d >= log(min_p), that is at least min_p times as probable as the best
 *   6. one draw: u = px_uniform(px_philox(seed, PX_STREAM_SAMPLE, position, row).v[0]); the first token whose
 * cumulative mass exceeds u times the mass of all that is left. Shapes: logits [rows, vocab] with `stride` floats from
 * row to row, ids [rows]. History ids outside [0, vocab) are ignored. Limits: vocab in [1, 2^31). -inf is a token that
 * is never drawn; a row with NaN or +inf, or with nothing above -inf, gives -1. Aliasing: the logits are overwritten.
 * Arithmetic: d and exp float32, masses float64. Determinism: a row's token depends on its own logits and parameters
 * alone: not on the batch, nor on the threads. */
#ifndef PX_KERNELS_SAMPLE_H
#define PX_KERNELS_SAMPLE_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

typedef struct px_sample_row {
  float temperature, top_p, min_p, repetition_penalty; /* 0, 1, 0, 1: off */
  int32_t top_k;                                       /* 0: off */
  uint64_t seed, row;                                  /* row: the prompt's own number, so batch order cannot matter */
  uint32_t position;
  const int32_t *history; /* ids the penalty applies to */
  int32_t history_count;
} px_sample_row;

typedef struct px_sample_args {
  int64_t rows, vocab, stride;
  float *logits; /* may be overwritten */
  const px_sample_row *params;
  int32_t *ids; /* [rows] out */
} px_sample_args;

const char *px_sample_check(const px_sample_args *a);
const char *px_sample_check_arrays(const px_sample_args *a); /* what params holds; needs host memory */
px_cost px_sample_cost(const px_sample_args *a);
int px_sample_cpu(const px_sample_args *a);
int px_sample_cuda(const px_sample_args *a, void *stream);

PX_C_END

#endif
