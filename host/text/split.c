/* SPDX-License-Identifier: MIT */
#include "text/split.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- characters ---- */

uint32_t px_utf8_next(const char *text, size_t *at) {
  const unsigned char *p = (const unsigned char *)text + *at;
  uint32_t c = p[0];
  if (c < 0x80) {
    *at += 1;
    return c;
  }
  if (c < 0xE0) {
    *at += 2;
    return (c & 31u) << 6 | (p[1] & 63u);
  }
  if (c < 0xF0) {
    *at += 3;
    return (c & 15u) << 12 | (p[1] & 63u) << 6 | (p[2] & 63u);
  }
  *at += 4;
  return (c & 7u) << 18 | (p[1] & 63u) << 12 | (p[2] & 63u) << 6 | (p[3] & 63u);
}

typedef enum class_of { OTHER = 0, LETTER, NUMBER, SPACE, NEWLINE /* \r \n: a SPACE too */ } class_of;

bool px_char_is_space(uint32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

bool px_char_is_letter(uint32_t c) {
  utf8proc_category_t g = utf8proc_category((utf8proc_int32_t)c);
  return g >= UTF8PROC_CATEGORY_LU && g <= UTF8PROC_CATEGORY_LO;
}

bool px_char_is_number(uint32_t c) {
  utf8proc_category_t g = utf8proc_category((utf8proc_int32_t)c);
  return g >= UTF8PROC_CATEGORY_ND && g <= UTF8PROC_CATEGORY_NO;
}

bool px_char_is_word(uint32_t c) {
  utf8proc_category_t g = utf8proc_category((utf8proc_int32_t)c);
  if (g >= UTF8PROC_CATEGORY_LU && g <= UTF8PROC_CATEGORY_NL) return true; /* L, M, Nd, Nl */
  if (g == UTF8PROC_CATEGORY_PC || c == 0x200C || c == 0x200D) return true;
  /* Other_Alphabetic beyond marks: circled and squared letters */
  return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
         (c >= 0x1F170 && c <= 0x1F189);
}

static class_of classify(uint32_t c) {
  if (c < 0x80) {
    if ((c | 32) >= 'a' && (c | 32) <= 'z') return LETTER;
    if (c >= '0' && c <= '9') return NUMBER;
    if (c == '\n' || c == '\r') return NEWLINE;
    return c == ' ' || (c >= 9 && c <= 13) ? SPACE : OTHER;
  }
  if (px_char_is_space(c)) return SPACE;
  utf8proc_category_t g = utf8proc_category((utf8proc_int32_t)c);
  if (g >= UTF8PROC_CATEGORY_LU && g <= UTF8PROC_CATEGORY_LO) return LETTER;
  return g >= UTF8PROC_CATEGORY_ND && g <= UTF8PROC_CATEGORY_NO ? NUMBER : OTHER;
}

static class_of class_at(const char *text, size_t at, size_t *after) {
  *after = at;
  return classify(px_utf8_next(text, after));
}

/* End of the run of class `wanted` that starts at `at`; at most `most` characters. */
static size_t run_end(const char *text, size_t count, size_t at, class_of wanted, size_t most) {
  for (size_t after; most-- && at < count && class_at(text, at, &after) == wanted;) at = after;
  return at;
}

/* ---- the known patterns; each covers any text without gaps ---- */

/* 's 't 're 've 'm 'll 'd after the apostrophe at `at`; 0 where there is none. */
static size_t contraction_end(const char *text, size_t count, size_t at, bool any_case) {
  if (at + 1 >= count || text[at] != '\'') return 0;
  unsigned char a = (unsigned char)text[at + 1], b = at + 2 < count ? (unsigned char)text[at + 2] : 0;
  if (any_case) {
    if (a == 0xC5 && b == 0xBF) return at + 3; /* U+017F folds to s */
    if (a < 0x80) a |= 32;
    if (b < 0x80) b |= 32;
  }
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return at + 2;
  return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? at + 3 : 0;
}

/* \s+(?!\S)|\s+ at white space: all of it at the end of the text, else all but its last character, else that. */
static size_t space_end(const char *text, size_t count, size_t at) {
  size_t end = at, last = at, after;
  while (end < count && class_at(text, end, &after) >= SPACE) last = end, end = after;
  return end == count || last == at ? end : last;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t gpt2_end(const char *text, size_t count, size_t at) {
  size_t end = contraction_end(text, count, at, false), after;
  if (end) return end;
  class_of first = class_at(text, at, &after);
  if (text[at] == ' ' && after < count) {
    size_t behind;
    class_of second = class_at(text, after, &behind);
    if (second < SPACE) return run_end(text, count, behind, second, SIZE_MAX);
  }
  return first < SPACE ? run_end(text, count, after, first, SIZE_MAX) : space_end(text, count, at);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}|
 * ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t llama3_end(const char *text, size_t count, size_t at, size_t digits) {
  size_t end = contraction_end(text, count, at, true), after;
  if (end) return end;
  class_of first = class_at(text, at, &after);
  if (first == LETTER) return run_end(text, count, after, LETTER, SIZE_MAX);
  if (first == NUMBER) return run_end(text, count, after, NUMBER, digits - 1);
  size_t behind = after;
  class_of second = after < count ? class_at(text, after, &behind) : NEWLINE;
  if (first != NEWLINE && second == LETTER) return run_end(text, count, behind, LETTER, SIZE_MAX);
  if (first == OTHER || (text[at] == ' ' && second == OTHER)) {
    end = run_end(text, count, after, OTHER, SIZE_MAX);
    while (end < count && (text[end] == '\r' || text[end] == '\n')) end++;
    return end;
  }
  size_t newline = 0; /* end of the last line break in this white space */
  for (end = at; end < count;) {
    class_of c = class_at(text, end, &behind);
    if (c < SPACE) break;
    end = behind;
    if (c == NEWLINE) newline = end;
  }
  return newline ? newline : space_end(text, count, at);
}

/* ---- matches ---- */

/* The first match at or after run->search. */
static px_status find_match(px_split_run *run, px_error *err) {
  const px_splitter *s = run->splitter;
  const char *text = run->text;
  size_t count = run->count, at = run->search, after;
  run->match_start = run->match_end = count;
  run->have_match = true;
  switch (s->rule) {
    case PX_SPLIT_GPT2:
    case PX_SPLIT_QWEN2:
    case PX_SPLIT_LLAMA3:
      if (at >= count) return PX_OK;
      run->match_start = at;
      run->match_end = s->rule == PX_SPLIT_GPT2 ? gpt2_end(text, count, at)
                                                : llama3_end(text, count, at, s->rule == PX_SPLIT_QWEN2 ? 1 : 3);
      break;
    case PX_SPLIT_DIGIT:
    case PX_SPLIT_DIGITS:
      while (at < count && class_at(text, at, &after) != NUMBER) at = after;
      if (at >= count) return PX_OK;
      run->match_start = at;
      run->match_end = run_end(text, count, at, NUMBER, s->rule == PX_SPLIT_DIGIT ? 1 : SIZE_MAX);
      break;
    case PX_SPLIT_LITERAL: {
      const char *found = at < count ? memmem(text + at, count - at, s->text, s->text_bytes) : NULL;
      if (!found) return PX_OK;
      run->match_start = (size_t)(found - text);
      run->match_end = run->match_start + s->text_bytes;
      break;
    }
    case PX_SPLIT_REGEX:
      for (;;) {
        size_t start = SIZE_MAX, end = 0;
        if (at <= count) PX_TRY(px_regex_find(s->code, run->work, text, count, at, &start, &end, err));
        if (start == SIZE_MAX) {
          run->search = count + 1;
          return PX_OK;
        }
        if (start == end && end == run->last_end) { /* an empty match right behind the last one does not count */
          if (at >= count)
            at++;
          else
            px_utf8_next(text, &at);
          continue;
        }
        run->match_start = start;
        run->match_end = end;
        break;
      }
      break;
  }
  run->search = run->last_end = run->match_end;
  return PX_OK;
}

void px_split_start(px_split_run *run, const px_splitter *splitter, px_split_work *work, const char *text,
                    size_t count) {
  *run = (px_split_run){.splitter = splitter, .work = work, .text = text, .count = count, .last_end = SIZE_MAX};
}

/* The next stretch that is, or is not, a match; never empty but at the end. */
static px_status next_stretch(px_split_run *run, size_t *start, size_t *end, bool *matched, px_error *err) {
  *start = *end = run->position;
  *matched = false;
  while (run->position < run->count) {
    if (!run->have_match) PX_TRY(find_match(run, err));
    if (run->match_start > run->position) {
      *end = run->position = run->match_start;
      break;
    }
    run->have_match = false;
    *end = run->position = run->match_end;
    *matched = true;
    if (*end > *start) break;
    *matched = false;
  }
  *matched ^= run->splitter->invert;
  return PX_OK;
}

px_status px_split_next(px_split_run *run, size_t *piece_start, size_t *piece_end, px_error *err) {
  size_t start, end, next_start, next_end;
  bool matched, next_matched;
  PX_TRY(next_stretch(run, &start, &end, &matched, err));
  px_split_behavior how = run->splitter->behavior;
  while (how == PX_SPLIT_REMOVED && matched && end > start) PX_TRY(next_stretch(run, &start, &end, &matched, err));
  while (how >= PX_SPLIT_MERGED_WITH_PREVIOUS && end > start) { /* does the stretch behind belong to this piece? */
    px_split_run before = *run;
    PX_TRY(next_stretch(run, &next_start, &next_end, &next_matched, err));
    bool joins = next_end > next_start && (how == PX_SPLIT_CONTIGUOUS             ? matched == next_matched
                                           : how == PX_SPLIT_MERGED_WITH_PREVIOUS ? !matched && next_matched
                                                                                  : matched && !next_matched);
    if (!joins) {
      *run = before;
      break;
    }
    end = next_end;
    if (how != PX_SPLIT_CONTIGUOUS) break;
  }
  *piece_start = start;
  *piece_end = end;
  return PX_OK;
}

/* ---- opening ---- */

static char *copy_of(const char *text, size_t count) {
  char *copy = malloc(count + 1);
  if (copy) memcpy(copy, text, count), copy[count] = 0;
  return copy;
}

/* Patterns that have a rule of their own; of a rule's spellings the first is the one to write. */
static const struct {
  px_split_rule rule;
  const char *pattern;
} known[] = {
    {PX_SPLIT_GPT2, "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {PX_SPLIT_GPT2, "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {PX_SPLIT_QWEN2,
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
     "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {PX_SPLIT_LLAMA3,
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
     "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {PX_SPLIT_DIGIT, "\\p{N}"},
};

const char *px_split_pattern(px_split_rule rule) {
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i].rule == rule) return known[i].pattern;
  return NULL;
}

px_status px_split_open(px_splitter *s, const char *pattern, size_t count, bool force_regex, px_error *err) {
  *s = (px_splitter){0};
  for (size_t i = 0; !force_regex && i < sizeof known / sizeof *known; i++) {
    if (strlen(known[i].pattern) != count || memcmp(known[i].pattern, pattern, count) != 0) continue;
    s->rule = known[i].rule;
    return PX_OK;
  }
  s->rule = PX_SPLIT_REGEX;
  if (!(s->text = copy_of(pattern, count))) return px_fail(err, PX_NO_MEMORY, "no memory for a split pattern");
  s->text_bytes = count;
  px_status status = px_regex_compile(pattern, count, &s->code, err);
  if (status != PX_OK) px_split_close(s);
  return status;
}

px_status px_split_open_literal(px_splitter *s, const char *text, size_t count, px_error *err) {
  *s = (px_splitter){.rule = PX_SPLIT_LITERAL, .text_bytes = count};
  if (count == 0) return px_fail(err, PX_BAD_FILE, "a split pattern is empty");
  if (!(s->text = copy_of(text, count))) return px_fail(err, PX_NO_MEMORY, "no memory for a split pattern");
  return PX_OK;
}

void px_split_close(px_splitter *s) {
  px_regex_free(s->code);
  free(s->text);
  *s = (px_splitter){0};
}
