/* SPDX-License-Identifier: MIT */
#include "generate/score_text.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "text/space.h"

/* --- words --- */

static int add_word(px_words *w, size_t start, size_t end) {
  if (end == start) return 0;
  if (px_reserve(&w->words, &w->cap, w->count + 1, sizeof *w->words) != 0) return -1;
  w->words[w->count++] = (px_word){.start = start, .bytes = end - start};
  return 0;
}

/* Words are what white space separates in w->text from `start` on. */
static int split_words(px_words *w, size_t start) {
  if (w->text.failed) return -1;
  size_t word = start;
  for (size_t at = start; at < w->text.len;) {
    size_t n = px_space_at(w->text.data + at, w->text.len - at);
    if (n && add_word(w, word, at) != 0) return -1;
    at += n ? n : 1;
    if (n) word = at;
  }
  return add_word(w, word, w->text.len);
}

/* In place, left to right, as Python's str.replace; `to` is not longer than `from`. */
static void replace(char *text, size_t *count, const char *from, const char *to) {
  size_t from_bytes = strlen(from), to_bytes = strlen(to), out = 0;
  for (size_t at = 0; at < *count;) {
    if (*count - at >= from_bytes && memcmp(text + at, from, from_bytes) == 0) {
      memcpy(text + out, to, to_bytes);
      out += to_bytes;
      at += from_bytes;
    } else {
      text[out++] = text[at++];
    }
  }
  *count = out;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_point(char c) { return c == '.' || c == ','; }
/* [\{-\~\[-\` -\&\(-\+\:-\@\/] of the tokenizer's first expression. */
static bool is_symbol(char c) {
  return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') || (c >= '(' && c <= '+') ||
         (c >= ':' && c <= '@') || c == '/';
}

/* The four substitutions run one after another, each left to right without overlap. They look at bytes: the classes
 * hold ASCII only, so a byte of a longer character is just "no digit". */
static void put_spaced(px_buf *out, bool before, char a, bool between, char b, bool after) {
  if (before) px_buf_append(out, " ", 1);
  px_buf_append(out, &a, 1);
  if (between) px_buf_append(out, " ", 1);
  px_buf_append(out, &b, 1);
  if (after) px_buf_append(out, " ", 1);
}

static void substitute(const char *text, size_t count, int step, px_buf *out) {
  for (size_t at = 0; at < count; at++) {
    char a = text[at], b = at + 1 < count ? text[at + 1] : 0;
    bool pair = at + 1 < count;
    if (step == 0 && is_symbol(a)) {
      px_buf_append(out, (char[]){' ', a, ' '}, 3);
    } else if (step == 1 && pair && !is_digit(a) && is_point(b)) {
      put_spaced(out, false, a, true, b, true);
      at++;
    } else if (step == 2 && pair && is_point(a) && !is_digit(b)) {
      put_spaced(out, true, a, true, b, false);
      at++;
    } else if (step == 3 && pair && is_digit(a) && b == '-') {
      put_spaced(out, false, a, true, b, true);
      at++;
    } else {
      px_buf_append(out, &a, 1);
    }
  }
}

int px_words_add_13a(px_words *w, const char *text) {
  static const char *const plain[][2] = {{"<skipped>", ""}, {"-\n", ""},   {"\n", " "},  {"&quot;", "\""},
                                         {"&amp;", "&"},    {"&lt;", "<"}, {"&gt;", ">"}};
  size_t count = strlen(text), start = w->text.len;
  for (size_t n; (n = px_space_before(text, count)) > 0;) count -= n;
  px_buf from = {0}, to = {0};
  px_buf_append(&from, text, count);
  if (!from.failed && count)
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) replace(from.data, &from.len, plain[i][0], plain[i][1]);
  px_buf_append(&to, " ", 1);
  px_buf_append(&to, from.data ? from.data : "", from.len);
  px_buf_append(&to, " ", 1);
  for (int step = 0; step < 4 && !from.failed && !to.failed; step++) {
    px_buf swap = from;
    from = to;
    to = swap;
    to.len = 0;
    substitute(from.data, from.len, step, &to);
  }
  bool failed = from.failed || to.failed;
  if (!failed) px_buf_append(&w->text, to.data, to.len);
  px_buf_free(&from);
  px_buf_free(&to);
  return failed ? -1 : split_words(w, start);
}

/* Python's lower() turns just two characters outside ASCII into ASCII: U+212A KELVIN SIGN into k, U+0130 into i and a
 * combining dot. Whatever else stands outside separates words. */
int px_words_add_rouge(px_words *w, const char *text) {
  size_t start = w->text.len;
  for (const char *s = text; *s; s++) {
    char c = *s;
    if (c >= 'A' && c <= 'Z') c = (char)(c - 'A' + 'a');
    if (strncmp(s, "\xe2\x84\xaa", 3) == 0) {
      c = 'k';
      s += 2;
    } else if (strncmp(s, "\xc4\xb0", 2) == 0) {
      px_buf_append(&w->text, "i", 1);
      s += 1;
      c = ' ';
    }
    bool word = (c >= 'a' && c <= 'z') || is_digit(c);
    px_buf_append(&w->text, word ? &c : " ", 1);
  }
  return split_words(w, start);
}

static int compare_words(const void *a, const void *b, void *arg) {
  const px_words *w = arg;
  const px_word *x = &w->words[*(const size_t *)a], *y = &w->words[*(const size_t *)b];
  int order = memcmp(w->text.data + x->start, w->text.data + y->start, x->bytes < y->bytes ? x->bytes : y->bytes);
  return order ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

int px_words_number(px_words *w) {
  if (w->count == 0) return 0;
  size_t *order = px_calloc(w->count, sizeof *order);
  if (!order || px_reserve(&w->numbers, &w->number_cap, w->count, sizeof *w->numbers) != 0) {
    free(order);
    return -1;
  }
  for (size_t i = 0; i < w->count; i++) order[i] = i;
  qsort_r(order, w->count, sizeof *order, compare_words, w);
  uint32_t number = 0;
  for (size_t i = 0; i < w->count; i++) {
    if (i && compare_words(&order[i], &order[i - 1], w) != 0) number++;
    w->numbers[order[i]] = number;
  }
  free(order);
  return 0;
}

void px_words_clear(px_words *w) { w->count = w->text.len = 0; }

void px_words_free(px_words *w) {
  px_buf_free(&w->text);
  free(w->words);
  free(w->numbers);
  *w = (px_words){0};
}

/* --- characters --- */

/* One code point of s[0, count); *bytes that it took. A maximal subpart of an invalid sequence is one U+FFFD. */
static uint32_t decode(const unsigned char *s, size_t count, size_t *bytes) {
  uint32_t c = s[0], low = 0x80, high = 0xbf;
  size_t more = c < 0x80 ? 0 : c >= 0xc2 && c <= 0xdf ? 1 : c >= 0xe0 && c <= 0xef ? 2 : c >= 0xf0 && c <= 0xf4 ? 3 : 9;
  *bytes = 1;
  if (more == 0) return c;
  if (more == 9) return 0xfffd;
  if (c == 0xe0) low = 0xa0;
  if (c == 0xed) high = 0x9f;
  if (c == 0xf0) low = 0x90;
  if (c == 0xf4) high = 0x8f;
  c &= 0x3fu >> more;
  for (size_t i = 0; i < more; i++, (*bytes)++) {
    if (*bytes >= count || s[*bytes] < low || s[*bytes] > high) return 0xfffd;
    c = c << 6 | (s[*bytes] & 0x3fu);
    low = 0x80;
    high = 0xbf;
  }
  return c;
}

int px_characters_add(uint32_t **points, size_t *count, size_t *cap, const char *text) {
  size_t left = strlen(text);
  while (left) {
    size_t n = px_space_at(text, left);
    if (n == 0) {
      if (px_reserve(points, cap, *count + 1, sizeof **points) != 0) return -1;
      (*points)[(*count)++] = decode((const unsigned char *)text, left, &n);
    }
    text += n;
    left -= n;
  }
  return 0;
}
