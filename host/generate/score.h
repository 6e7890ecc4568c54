/* SPDX-License-Identifier: MIT
 * How close generated texts are to their references: BLEU, chrF, ROUGE-L and exact match, each from 0 to 100 and equal
 * to what the reference programs print (sacrebleu 2.6, rouge-score 0.1.2). Knows texts only, no model.
 *
 * BLEU (Papineni et al. 2002; sacrebleu's default: `BLEU|nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp`). Texts are
 *   cut by the 13a tokenizer of mteval. Over the whole corpus, n = 1..4: p_n = clipped matches / n-grams of the
 *   hypotheses, a match counts at most as often as in the reference that has it most. An order without a match gets
 *   1 / (2^k n-grams) for the k-th such order. BLEU = 100 min(1, exp(1 - r / c)) (p_1 p_2 p_3 p_4)^(1/4), c tokens of
 * the hypotheses, r the sum of the reference lengths closest to each (the shorter on a tie). chrF (Popovic 2015; chrF2:
 * n = 1..6 characters without white space, no words, beta = 2). Each item counts with the reference that gives it the
 * best score, the first on a tie; counts are summed over the corpus. Precision and recall are means over the orders
 * that both sides have; chrF = 100 (1 + beta^2) P R / (beta^2 P + R). ROUGE-L (Lin 2004): words are runs of [a-z0-9] of
 * the lower-cased text, no stemming; F1 of the longest common subsequence with the best reference; the mean over the
 * items. Exact match: share of items equal to a reference, without white space at the ends of both. */
#ifndef PX_GENERATE_SCORE_H
#define PX_GENERATE_SCORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

typedef struct px_score_item {
  const char *hypothesis; /* UTF-8; what is none counts as U+FFFD */
  const char *const *references;
  size_t reference_count; /* at least one */
} px_score_item;

typedef struct px_scores {
  double bleu, chrf, rouge_l, exact_match;
} px_scores;

enum { PX_BLEU_ORDER = 4, PX_CHRF_ORDER = 6 };

/* What an item adds to the scores. BLEU and chrF of any choice of items follow from the sums of these, ROUGE-L and exact
 * match from their means. */
typedef struct px_score_parts {
  uint64_t hypothesis_words, reference_words;                  /* BLEU: lengths */
  uint64_t matched_words[PX_BLEU_ORDER], words[PX_BLEU_ORDER]; /* by order */
  uint64_t characters[PX_CHRF_ORDER][3];                       /* chrF: of hypothesis, reference, both */
  double rouge_l;                                              /* 0 to 1 */
  bool exact;
} px_score_parts;

/* On all cores; the result does not depend on their number. No item, or an item without a reference: PX_INVALID.
 * parts [count]; NULL: not wanted. */
px_status px_score_texts(const px_score_item *items, size_t count, px_score_parts *parts, px_scores *out, px_error *err);

#endif
