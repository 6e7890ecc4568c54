/* SPDX-License-Identifier: MIT
 * Regular expressions of tokenizer.json, written for Oniguruma (Ruby syntax), translated for PCRE2. The two differ in
 * what \s, \w, \h, \v and $ mean, in property names and in some quantifiers; what would change its meaning in
 * silence is refused. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "text/split.h"

enum {
  MATCH_LIMIT = 1000000,
  HEAP_LIMIT_KIB = 64 * 1024,
  STACK_BYTES = 1 << 25,
  STACK_START = 32 * 1024,
  MAX_PATTERN = 1 << 16
};

/* White_Space and its complement as they stand inside a class: \s of PCRE2 with UCP also takes U+180E. */
#define SPACES "\\x09-\\x0D\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define NO_SPACES                                                                                             \
  "\\x00-\\x08\\x0E-\\x1F\\x21-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}\\x{200B}-\\x{2027}" \
  "\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}"
/* \w is Alphabetic, marks, decimal digits, connectors; outside a class also superscripts and fractions of Latin-1. */
#define WORDS                                                                                                     \
  "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{" \
  "1F189}"
#define LATIN1_WORDS "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"

typedef struct translation {
  const char *in;
  size_t count, at;
  px_buf out;
  px_error *err;
  int depth, caseless; /* open groups; of these the outermost that ignores case, 0: the whole pattern, -1: none */
  char before;         /* the plain letter just written, else 0 */
} translation;

static px_status refuse(translation *t, const char *what) {
  return px_fail(t->err, PX_BAD_FILE, "split pattern \"%.*s\": %s at offset %zu is not supported",
                 t->count > 300 ? 300 : (int)t->count, t->in, what, t->at);
}

static bool is_hex(char c) { return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'f'); }

/* Does PCRE2 know this property? */
static bool property_compiles(const char *name, size_t count, const char *prefix) {
  char pattern[80];
  int code;
  PCRE2_SIZE where;
  int bytes = snprintf(pattern, sizeof pattern, "\\p{%s%.*s}", prefix, (int)count, name);
  if (bytes < 0 || (size_t)bytes >= sizeof pattern) return false;
  pcre2_code *probe =
      pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &where, NULL);
  pcre2_code_free(probe);
  return probe != NULL;
}

/* \p{Name}, \P{Name}, \p{^Name}; t->at is at the brace. A script is meant exactly (not its extensions). */
static px_status translate_property(translation *t, bool negated) {
  if (t->at >= t->count || t->in[t->at] != '{') return refuse(t, "a property without braces");
  size_t start = t->at + 1, end = start;
  while (end < t->count && t->in[end] != '}') end++;
  if (end >= t->count) return refuse(t, "an unclosed property");
  if (start < end && t->in[start] == '^') negated = !negated, start++;
  const char *name = t->in + start;
  size_t length = end - start;
  if (length == 0 || length > 40) return refuse(t, "this property");
  for (size_t i = 0; i < length; i++)
    if (!((name[i] | 32) >= 'a' && (name[i] | 32) <= 'z') && !(name[i] >= '0' && name[i] <= '9') && name[i] != '_' &&
        name[i] != ' ')
      return refuse(t, "this property");
  const char *prefix = length > 2 && property_compiles(name, length, "sc:") ? "sc:" : "";
  if (!property_compiles(name, length, prefix)) return refuse(t, "this property");
  px_buf_printf(&t->out, "\\%c{%s%.*s}", negated ? 'P' : 'p', prefix, (int)length, name);
  t->at = end + 1;
  return PX_OK;
}

/* \xHH, \x{H...}, \uHHHH; t->at is behind the letter. */
static px_status translate_code(translation *t, char letter) {
  size_t digits = 0, start = t->at;
  bool braces = letter == 'x' && t->at < t->count && t->in[t->at] == '{';
  if (braces) start = ++t->at;
  while (t->at < t->count && is_hex(t->in[t->at]) && digits < (braces ? 6 : letter == 'x' ? 2 : 4)) t->at++, digits++;
  if (digits == 0 || (letter == 'u' && digits != 4)) return refuse(t, "this character code");
  if (braces && (t->at >= t->count || t->in[t->at++] != '}')) return refuse(t, "this character code");
  px_buf_printf(&t->out, "\\x{%.*s}", (int)digits, t->in + start);
  return PX_OK;
}

/* Escapes that stand for a set of characters. Inside a class a hyphen beside one would make a range of its edge. */
static px_status translate_set(translation *t, char c, bool in_class) {
  const char *set = c == 's'   ? SPACES
                    : c == 'S' ? NO_SPACES
                    : c == 'h' ? "0-9a-fA-F"
                    : in_class ? WORDS
                               : WORDS LATIN1_WORDS;
  t->at += 2;
  if (!in_class) {
    px_buf_printf(&t->out, c == 'W' ? "[^%s]" : "[%s]", set);
    return PX_OK;
  }
  if (c == 'W') return refuse(t, "\\W inside a class");
  bool before = t->at >= 4 && t->in[t->at - 3] == '-' && t->in[t->at - 4] != '[' && t->in[t->at - 4] != '\\';
  bool behind = t->at + 1 < t->count && t->in[t->at] == '-' && t->in[t->at + 1] != ']';
  if (before || behind) return refuse(t, "a hyphen beside a set");
  px_buf_puts(&t->out, set);
  return PX_OK;
}

static px_status translate_escape(translation *t, bool in_class) {
  static const struct {
    char letter;
    const char *pattern;
  } plain[] = {{'d', "\\p{Nd}"}, {'D', "\\P{Nd}"}, {'n', "\\n"},   {'r', "\\r"}, {'t', "\\t"}, {'f', "\\f"},
               {'v', "\\x0B"},   {'a', "\\x07"},   {'e', "\\x1B"}, {'A', "\\A"}, {'z', "\\z"}};
  if (t->at + 1 >= t->count) return refuse(t, "a lone backslash");
  char c = t->in[t->at + 1];
  if (c && strchr("sSwWh", c)) return translate_set(t, c, in_class);
  if (c && in_class && strchr("Az", c)) return refuse(t, "an anchor inside a class");
  if (c == 'p' || c == 'P' || c == 'x' || c == 'u') {
    t->at += 2;
    return c == 'p' || c == 'P' ? translate_property(t, c == 'P') : translate_code(t, c);
  }
  for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
    if (plain[i].letter != c) continue;
    px_buf_puts(&t->out, plain[i].pattern);
    t->at += 2;
    return PX_OK;
  }
  bool word = ((c | 32) >= 'a' && (c | 32) <= 'z') || (c >= '0' && c <= '9') || (unsigned char)c >= 0x80 || c == 0;
  if (word) return refuse(t, "this escape");
  px_buf_printf(&t->out, "\\%c", c);
  t->at += 2;
  return PX_OK;
}

static px_status translate_class(translation *t) {
  px_buf_puts(&t->out, "[");
  t->at++;
  if (t->at < t->count && t->in[t->at] == '^') px_buf_puts(&t->out, "^"), t->at++;
  if (t->at < t->count && t->in[t->at] == ']') return refuse(t, "a class that starts with ]");
  while (t->at < t->count && t->in[t->at] != ']') {
    char c = t->in[t->at];
    if (c == '[') return refuse(t, "a class inside a class");
    if (c == 0) return refuse(t, "a NUL character");
    if (c == '&' && t->at + 1 < t->count && t->in[t->at + 1] == '&') return refuse(t, "an intersection of classes");
    if (c == '\\') {
      PX_TRY(translate_escape(t, true));
    } else {
      px_buf_append(&t->out, &c, 1);
      t->at++;
    }
  }
  if (t->at >= t->count) return refuse(t, "an unclosed class");
  px_buf_puts(&t->out, "]");
  t->at++;
  return PX_OK;
}

/* "(?...": plain groups, look-around, atomic groups, and (?i: ...) keep their meaning. */
static px_status translate_group(translation *t) {
  static const char *const same[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
  const char *rest = t->in + t->at;
  size_t left = t->count - t->at;
  if (t->at == 0 && left >= 4 && memcmp(rest, "(?i)", 4) == 0) {
    px_buf_puts(&t->out, "(?i)");
    t->at += 4;
    t->caseless = 0;
    return PX_OK;
  }
  t->depth++;
  if (left < 2 || rest[1] != '?') {
    px_buf_puts(&t->out, "(?:"); /* nothing refers to the groups */
    t->at++;
    return PX_OK;
  }
  for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
    size_t length = strlen(same[i]);
    if (left < length || memcmp(rest, same[i], length) != 0) continue;
    px_buf_puts(&t->out, same[i]);
    if (rest[2] == 'i' && t->caseless < 0) t->caseless = t->depth;
    t->at += length;
    return PX_OK;
  }
  return refuse(t, "this kind of group");
}

static px_status translate_interval(translation *t) {
  size_t end = t->at + 1;
  while (end < t->count && ((t->in[end] >= '0' && t->in[end] <= '9') || t->in[end] == ',')) end++;
  if (end >= t->count || t->in[end] != '}' || end == t->at + 1 || t->in[t->at + 1] == ',')
    return refuse(t, "this brace");
  px_buf_append(&t->out, t->in + t->at, end + 1 - t->at);
  t->at = end + 1;
  /* Oniguruma repeats the whole interval; PCRE2 would make it possessive. */
  return t->at < t->count && t->in[t->at] == '+' ? refuse(t, "+ after an interval") : PX_OK;
}

/* Without regard to case Oniguruma lets one character stand for two letters and the other way round (a sharp s and
 * "ss"), PCRE2 does not. Where that could matter the pattern is refused. */
static px_status check_caseless(translation *t, char c) {
  static const char *const pairs[] = {"ss", "st", "ff", "fi", "fl"};
  char now = (char)((unsigned char)c < 0x80 ? c | 32 : 0);
  if ((unsigned char)c >= 0x80) return refuse(t, "a character beyond ASCII in a group that ignores case");
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
    if (t->before == pairs[i][0] && now == pairs[i][1])
      return refuse(t, "this pair of letters in a group that ignores case");
  t->before = now;
  return PX_OK;
}

static px_status translate(translation *t) {
  while (t->at < t->count) {
    char c = t->in[t->at];
    if (t->caseless >= 0 && c == '\\' && t->at + 1 < t->count && strchr("pPxu", t->in[t->at + 1]))
      return refuse(t, "this escape in a group that ignores case");
    switch (c) {
      case '\\':
        PX_TRY(translate_escape(t, false));
        break;
      case '[':
        if (t->caseless >= 0) return refuse(t, "a class in a group that ignores case");
        PX_TRY(translate_class(t));
        break;
      case '(':
        PX_TRY(translate_group(t));
        break;
      case '{':
        PX_TRY(translate_interval(t));
        break;
      case 0:
        return refuse(t, "a NUL character");
      case ')':
        if (t->depth-- == t->caseless) t->caseless = -1;
        if (t->depth < 0) return refuse(t, "an unopened group");
        px_buf_append(&t->out, &c, 1);
        t->at++;
        break;
      default:
        if (t->caseless >= 0) {
          PX_TRY(check_caseless(t, c));
          px_buf_append(&t->out, &c, 1);
          t->at++;
          continue;
        }
        px_buf_append(&t->out, &c, 1);
        t->at++;
    }
    t->before = 0;
  }
  return t->out.failed ? px_fail(t->err, PX_NO_MEMORY, "no memory for a split pattern") : PX_OK;
}

px_status px_regex_compile(const char *pattern, size_t count, void **code, px_error *err) {
  *code = NULL;
  if (count == 0) return px_fail(err, PX_BAD_FILE, "a split pattern is empty");
  if (count > MAX_PATTERN)
    return px_fail(err, PX_BAD_FILE, "a split pattern of %zu bytes is longer than %d", count, MAX_PATTERN);
  translation t = {.in = pattern, .count = count, .err = err, .caseless = -1};
  px_status status = translate(&t);
  pcre2_compile_context *context = status == PX_OK ? pcre2_compile_context_create(NULL) : NULL;
  if (context) {
    int problem;
    PCRE2_SIZE where;
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)t.out.data, t.out.len, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE,
                                         &problem, &where, context);
    if (compiled) {
      pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE); /* without it the interpreter runs */
    } else {
      PCRE2_UCHAR text[200];
      pcre2_get_error_message(problem, text, sizeof text);
      status = px_fail(err, PX_BAD_FILE, "split pattern \"%.*s\": %s", count > 300 ? 300 : (int)count, pattern,
                       (const char *)text);
    }
    *code = compiled;
    pcre2_compile_context_free(context);
  } else if (status == PX_OK) {
    status = px_fail(err, PX_NO_MEMORY, "no memory for a split pattern");
  }
  px_buf_free(&t.out);
  return status;
}

void px_regex_free(void *code) { pcre2_code_free(code); }

void px_split_work_free(px_split_work *work) {
  pcre2_match_data_free(work->match);
  pcre2_match_context_free(work->context);
  pcre2_jit_stack_free(work->stack);
  *work = (px_split_work){0};
}

static px_status open_work(px_split_work *work, px_error *err) {
  if (work->match) return PX_OK;
  work->match = pcre2_match_data_create(1, NULL);
  work->context = pcre2_match_context_create(NULL);
  work->stack = pcre2_jit_stack_create(STACK_START, STACK_BYTES, NULL);
  if (!work->match || !work->context || !work->stack) {
    px_split_work_free(work);
    return px_fail(err, PX_NO_MEMORY, "no memory for matching a split pattern");
  }
  pcre2_jit_stack_assign(work->context, NULL, work->stack);
  pcre2_set_heap_limit(work->context, HEAP_LIMIT_KIB);
  return PX_OK;
}

px_status px_regex_find(const void *code, px_split_work *work, const char *text, size_t count, size_t from,
                        size_t *start, size_t *end, px_error *err) {
  *start = SIZE_MAX;
  PX_TRY(open_work(work, err));
  /* A pattern that steps back over a long run is fine, one that tries everything is stopped. */
  size_t limit = MATCH_LIMIT + 4 * (count - from);
  pcre2_set_match_limit(work->context, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
  /* The text was checked once; checking it again at every call would make long texts quadratic. */
  int got = pcre2_match(code, (PCRE2_SPTR)text, count, from, PCRE2_NO_UTF_CHECK, work->match, work->context);
  if (got == PCRE2_ERROR_NOMATCH) return PX_OK;
  if (got < 0) {
    PCRE2_UCHAR message[200];
    pcre2_get_error_message(got, message, sizeof message);
    return px_fail(err, PX_BAD_FILE, "the tokenizer's split pattern failed on this text: %s", (const char *)message);
  }
  const PCRE2_SIZE *range = pcre2_get_ovector_pointer(work->match);
  *start = range[0];
  *end = range[1];
  if (*end < *start) *end = *start; /* \K inside look-ahead, which translation refuses */
  return PX_OK;
}
