/* SPDX-License-Identifier: MIT
 * The merging step of byte-pair encoding: a word of starting symbols -> token ids. Lowest rank first, leftmost among
 * equals, as Sennrich et al. (2016) define it and `tokenizers` computes it. */
#ifndef PX_TEXT_BPE_H
#define PX_TEXT_BPE_H

#include <stdint.h>

#include "core/error.h"
#include "core/memory.h"
#include "text/tokenizer.h"

/* Immutable once built; any number of threads may read it. {0} is an empty table. */
typedef struct px_bpe {
  struct px_bpe_merge *slots; /* open addressing by pair */
  size_t slot_mask;
  uint64_t *joins; /* open addressing: pairs of starting symbols that some merge can join */
  size_t join_mask;
} px_bpe;

/* One merge: `left` and `right` become `result`; the smallest rank goes first. */
typedef struct px_bpe_rule {
  int32_t left, right, result;
} px_bpe_rule;

/* A pair of neighbouring starting symbols over which merges reach. */
typedef struct px_bpe_join {
  int32_t left, right;
} px_bpe_join;

/* Rule i has rank i; of equal pairs the last rule counts. `joins` must name every pair (x, y) of starting symbols such
 * that some rule has a left token that can end in x and a right token that can start with y: between other
 * neighbours a word falls apart into pieces that are merged one by one, which keeps long words cheap. */
px_status px_bpe_build(px_bpe *bpe, const px_bpe_rule *rules, size_t rule_count, const px_bpe_join *joins,
                       size_t join_count, px_error *err);
void px_bpe_free(px_bpe *bpe);
/* The merges that count, in rank order (of equal pairs one is left). *rules is the caller's to free. */
px_status px_bpe_rules(const px_bpe *bpe, px_bpe_rule **rules, size_t *count, px_error *err);

/* Scratch memory of one caller, kept between words. {0} is empty. */
typedef struct px_bpe_work {
  struct px_bpe_node *nodes;
  size_t node_cap;
  uint64_t *heap;
  size_t heap_cap;
} px_bpe_work;
void px_bpe_work_free(px_bpe_work *work);

/* Appends the ids of one word of `count` starting symbols (count < 2^31). O(n log n) for any word. */
px_status px_bpe_word(const px_bpe *bpe, px_bpe_work *work, const int32_t *symbols, size_t count, px_ids *ids,
                      px_error *err);

#endif
