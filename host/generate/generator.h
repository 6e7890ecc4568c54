/* SPDX-License-Identifier: MIT
 * Generation: a paged key/value cache, a sampler, and a scheduler that mixes rows with different adapters in one batch.
 * One thread at a time. Nothing is computed twice: a prompt is read once, then each new token once. */
#ifndef PX_GENERATE_GENERATOR_H
#define PX_GENERATE_GENERATOR_H

#include "text/tokenizer.h"
#include "tune/adapter.h"
#include "tune/tune.h"

typedef struct px_generator px_generator;

typedef struct px_sampling {
  int32_t max_tokens;                                  /* 0: 256 */
  float temperature, top_p, min_p, repetition_penalty; /* 0 (greedy), 0 = 1 (off), 0, 0 = 1 (off) */
  int32_t top_k;                                       /* 0: off */
  uint64_t seed;
  const char *const *stop;                             /* texts that end generation and are cut off; borrowed until done */
  int32_t stop_count;
} px_sampling;

typedef enum px_finish { PX_FINISH_NONE = 0, PX_FINISH_STOP_TOKEN, PX_FINISH_STOP_TEXT, PX_FINISH_LENGTH, PX_FINISH_CONTEXT } px_finish;

typedef struct px_generator_options {
  int32_t max_rows;         /* sequences computed at once; 0: 16 */
  int64_t cache_bytes;      /* of the key/value cache; 0: what max_rows rows of the context, at most 1 GiB, need */
  px_log log;
  bool profile;
} px_generator_options;

px_status px_generator_open(const px_model *model, const px_tokenizer *tok, const px_generator_options *options, px_generator **out, px_error *err);
void px_generator_close(px_generator *g);

/* Makes an adapter usable; returns its number (-1 stands for the frozen model everywhere). The adapter must outlive g. */
px_status px_generator_add_adapter(px_generator *g, const px_adapter *adapter, int32_t *id, px_error *err);

/* Queues one prompt. `row` is its number in the random stream, so batch order cannot matter. The text callback gets
 * complete UTF-8 pieces as they appear (stop texts never shown); NULL: none. */
typedef struct px_request {
  const int32_t *ids; /* copied */
  int32_t count;
  int32_t adapter;    /* -1: none */
  uint64_t row;
  px_sampling sampling;
  void (*text)(void *user, uint64_t row, const char *bytes, size_t count, px_finish finish); /* last call: finish != NONE */
  void (*token)(void *user, uint64_t row, int32_t id); /* every new token but a stop token; NULL: none */
  void *user;
} px_request;
px_status px_generator_add(px_generator *g, const px_request *request, px_error *err);

/* Computes until nothing is queued or `cancelled` (may be NULL) says so (PX_CANCELLED). */
px_status px_generator_run(px_generator *g, bool (*cancelled)(void *user), void *user, px_error *err);

typedef struct px_generator_stats {
  int64_t prompt_tokens, new_tokens;
  double prefill_seconds, decode_seconds;
  size_t cache_bytes;
} px_generator_stats;
px_generator_stats px_generator_stats_get(const px_generator *g);

#endif
