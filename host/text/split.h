/* SPDX-License-Identifier: MIT
 * Finding the words in a text before byte-pair encoding. The rules that models in use have are scanned by hand, any
 * other regular expression of a tokenizer.json by PCRE2. All text here is valid UTF-8. */
#ifndef PX_TEXT_SPLIT_H
#define PX_TEXT_SPLIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

typedef enum px_split_rule {
  PX_SPLIT_GPT2 = 0, /* GPT-2's pattern, also what ByteLevel does by itself */
  PX_SPLIT_QWEN2,    /* digits one by one, contractions in any case */
  PX_SPLIT_LLAMA3,   /* as QWEN2 with up to three digits */
  PX_SPLIT_DIGIT,    /* every numeric character */
  PX_SPLIT_DIGITS,   /* runs of numeric characters */
  PX_SPLIT_LITERAL,  /* a fixed string */
  PX_SPLIT_REGEX,
} px_split_rule;

/* What becomes of a match. */
typedef enum px_split_behavior {
  PX_SPLIT_ISOLATED = 0,
  PX_SPLIT_REMOVED,
  PX_SPLIT_MERGED_WITH_PREVIOUS,
  PX_SPLIT_MERGED_WITH_NEXT,
  PX_SPLIT_CONTIGUOUS,
} px_split_behavior;

/* Immutable after opening. */
typedef struct px_splitter {
  px_split_rule rule;
  px_split_behavior behavior;
  bool invert;
  char *text; /* the literal, or the pattern as the file has it; NULL for the others; owned */
  size_t text_bytes;
  void *code; /* REGEX: compiled */
} px_splitter;

/* A pattern in the syntax of tokenizer.json (Oniguruma). Known ones become their rule, others are translated for
 * PCRE2; what cannot be translated with the same meaning is PX_BAD_FILE naming the construct. `force_regex` skips the
 * known ones (tests compare the two). Behaviour and invert are the caller's to set. */
px_status px_split_open(px_splitter *s, const char *pattern, size_t count, bool force_regex, px_error *err);
px_status px_split_open_literal(px_splitter *s, const char *text, size_t count, px_error *err);
void px_split_close(px_splitter *s);
/* The pattern that px_split_open makes this rule of; NULL: there is none. */
const char *px_split_pattern(px_split_rule rule);

/* Per caller: match data and stack of PCRE2. {0} is empty. */
typedef struct px_split_work {
  void *match, *context, *stack;
} px_split_work;
void px_split_work_free(px_split_work *work);

/* Pieces of a text, one after the other; together they are the text (less what REMOVED drops). None is empty. */
typedef struct px_split_run {
  const px_splitter *splitter;
  px_split_work *work;
  const char *text;
  size_t count, position;                /* everything before is delivered */
  size_t search, match_start, match_end; /* the next match; match_start == count: none is left */
  size_t last_end;                       /* of the last match, SIZE_MAX before the first */
  bool have_match;
} px_split_run;
void px_split_start(px_split_run *run, const px_splitter *splitter, px_split_work *work, const char *text,
                    size_t count);
/* *piece_end == *piece_start: there are no more. */
px_status px_split_next(px_split_run *run, size_t *piece_start, size_t *piece_end, px_error *err);

/* Code point at text[*at], which moves behind it. The text is valid UTF-8 and *at < its length. */
uint32_t px_utf8_next(const char *text, size_t *at);
bool px_char_is_space(uint32_t c);  /* White_Space */
bool px_char_is_letter(uint32_t c); /* L */
bool px_char_is_number(uint32_t c); /* N */
bool px_char_is_word(uint32_t c);   /* \w of the Rust regex crate */

/* split_regex.c */
px_status px_regex_compile(const char *pattern, size_t count, void **code, px_error *err);
void px_regex_free(void *code);
/* The first match at or after `from`; *start == SIZE_MAX: none. */
px_status px_regex_find(const void *code, px_split_work *work, const char *text, size_t count, size_t from,
                        size_t *start, size_t *end, px_error *err);

#endif
