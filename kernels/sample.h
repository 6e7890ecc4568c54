/* SPDX-License-Identifier: MIT
 * One token per row from float32 logits [rows, vocab], in this order: repetition penalty (Keskar et al. 2019: a token in
 * history: z > 0 ? z / penalty : z * penalty), then, when temperature > 0: z / temperature, top-k, top-p (smallest set whose
 * probability reaches top_p), min-p (at least min_p times the best), and one draw by
 * px_philox(seed, PX_STREAM_SAMPLE, position, row): u = px_uniform(word 0), the first token, by descending logit, whose
 * cumulative probability exceeds u. temperature == 0: the largest logit. Ties go to the smaller id. A row with NaN gives -1. */
#ifndef PX_KERNELS_SAMPLE_H
#define PX_KERNELS_SAMPLE_H

#include "core/types.h"

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
int px_sample_cpu(const px_sample_args *a);

#endif
