/* SPDX-License-Identifier: MIT
 * Texts as sequences of numbers for the metrics of score.h. */
#ifndef PX_GENERATE_SCORE_TEXT_H
#define PX_GENERATE_SCORE_TEXT_H

#include <stddef.h>
#include <stdint.h>

#include "core/memory.h"

/* A word of a text that a px_buf holds. */
typedef struct px_word {
  size_t start, bytes;
} px_word;

/* Words of several texts in one buffer, and after px_words_number the number of each: equal words, equal numbers. */
typedef struct px_words {
  px_buf text;
  px_word *words;
  uint32_t *numbers;
  size_t count, cap, number_cap;
} px_words;

/* Appends the words of sacrebleu's 13a tokenizer, or of rouge-score's. -1 when memory is out. */
int px_words_add_13a(px_words *w, const char *text);
int px_words_add_rouge(px_words *w, const char *text);
int px_words_number(px_words *w);
void px_words_clear(px_words *w);
void px_words_free(px_words *w);

/* Code points of the text without white space, appended. -1 when memory is out. */
int px_characters_add(uint32_t **points, size_t *count, size_t *cap, const char *text);

#endif
