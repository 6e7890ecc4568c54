/* SPDX-License-Identifier: MIT
 * Split rules: the scanners against PCRE2 on generated strings, behaviours and translated patterns against what the
 * `tokenizers` library gives, and what is refused. */
#include "helpers/test.h"

#include "helpers/strings.h"
#include "text/split.h"
#include "text/tokenizer_internal.h"

static px_error err;

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA3_WITH(digits)                                                  \
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" digits \
  "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* The pieces, with | between. */
static void pieces(const px_splitter *s, const char *text, size_t count, px_buf *out) {
  px_split_work work = {0};
  px_split_run run;
  out->len = 0;
  px_buf_puts(out, "");
  px_split_start(&run, s, &work, text, count);
  for (size_t start, end;;) {
    ASSERT_OK(px_split_next(&run, &start, &end, &err));
    if (start == end) break;
    if (out->len) px_buf_puts(out, "|");
    px_buf_append(out, text + start, end - start);
  }
  px_split_work_free(&work);
}

static void same_pieces(const char *pattern, px_split_rule rule) {
  px_splitter scan, regex;
  px_buf string = {0}, text = {0}, have = {0}, want = {0};
  ASSERT_OK(px_split_open(&scan, pattern, strlen(pattern), false, &err));
  ASSERT_OK(px_split_open(&regex, pattern, strlen(pattern), true, &err));
  assert_int_equal(scan.rule, rule);
  assert_int_equal(regex.rule, PX_SPLIT_REGEX);
  for (uint32_t i = 0; i < 5000; i++) {
    string.len = text.len = 0;
    px_test_string(3, i, &string);
    if (i % 3 == 0) px_buf_puts(&string, "it's I'LL they'\xC5\xBF 'Re'VE'm");
    px_utf8_repair(&text, string.data, string.len);
    pieces(&scan, text.data ? text.data : "", text.len, &have);
    pieces(&regex, text.data ? text.data : "", text.len, &want);
    assert_string_equal(have.data, want.data);
  }
  px_split_close(&scan);
  px_split_close(&regex);
  px_buf_free(&string);
  px_buf_free(&text);
  px_buf_free(&have);
  px_buf_free(&want);
}

static void scanners_equal_patterns(void **state) {
  (void)state;
  same_pieces(GPT2, PX_SPLIT_GPT2);
  same_pieces(LLAMA3_WITH(""), PX_SPLIT_QWEN2);
  same_pieces(LLAMA3_WITH("{1,3}"), PX_SPLIT_LLAMA3);
  same_pieces("\\p{N}", PX_SPLIT_DIGIT);
}

static void check(px_splitter *s, const char *text, const char *want) {
  px_buf have = {0};
  pieces(s, text, strlen(text), &have);
  assert_string_equal(have.data, want);
  px_buf_free(&have);
}

static void behaviours(void **state) {
  (void)state;
  static const char *const want[5][2][2] = {
      {{"-|a|-|-|b|-|c|-|-", "1|a|22|b|3| |44"}, {"-|a|-|-|b|-|c|-|-", "1|a|22|b|3| |44"}},
      {{"a|b|c", "a|b| "}, {"-|-|-|-|-|-", "1|22|3|44"}},
      {{"-|a-|-|b-|c-|-", "1|a22|b3| 44"}, {"-a|-|-b|-c|-|-", "1a|22b|3 |44"}},
      {{"-a|-|-b|-c|-|-", "1a|22b|3 |44"}, {"-|a-|-|b-|c-|-", "1|a22|b3| 44"}},
      {{"-|a|--|b|-|c|--", "1|a|22|b|3| |44"}, {"-|a|--|b|-|c|--", "1|a|22|b|3| |44"}},
  };
  for (int how = 0; how < 5; how++) {
    for (int invert = 0; invert < 2; invert++) {
      px_splitter literal, regex;
      ASSERT_OK(px_split_open_literal(&literal, "-", 1, &err));
      ASSERT_OK(px_split_open(&regex, "\\d+", 3, false, &err));
      literal.behavior = regex.behavior = (px_split_behavior)how;
      literal.invert = regex.invert = invert;
      check(&literal, "-a--b-c--", want[how][invert][0]);
      check(&regex, "1a22b3 44", want[how][invert][1]);
      px_split_close(&literal);
      px_split_close(&regex);
    }
  }
}

static void patterns_mean_what_they_mean_in_oniguruma(void **state) {
  (void)state;
  static const char *const cases[][3] = {
      {"a*", "baac", "b|aa|c"},
      {"^a|b$", "a\nab\n", "a|\n|a|b|\n"},
      {"\\w+", "a_\xC3\xA9\xCC\x81-1", "a_\xC3\xA9\xCC\x81|-|1"},
      {"\\h+", "xAFg9", "x|AF|g|9"},
      {"\\v",
       "a\x0B"
       "b\x0C"
       "c",
       "a|\x0B|b\x0C"
       "c"},
      {"[^\\S\\n]+",
       "a \t\nb\xE3\x80\x80"
       "c",
       "a| \t|\nb|\xE3\x80\x80|c"},
      {"\\s",
       "a\xE1\xA0\x8E"
       "b\xC2\x85",
       "a\xE1\xA0\x8E"
       "b|\xC2\x85"}, /* not U+180E */
      {"\\p{Han}+",
       "\xE6\xBC\xA2\xE5\xAD\x97\xE3\x80\x87\xE3\x80\x85"
       "a\xE3\x80\x81",
       "\xE6\xBC\xA2\xE5\xAD\x97\xE3\x80\x87\xE3\x80\x85|a\xE3\x80\x81"},
      {"\\p{Greek}+",
       "\xCE\xB1\xCE\xB2\xC2\xB7"
       "a",
       "\xCE\xB1\xCE\xB2|\xC2\xB7"
       "a"},
      {"\\p{^L}+", "a1b", "a|1|b"},
      {"\\d{1,2}", "12345", "12|34|5"},
      {"(?<=a)b", "abb", "a|b|b"},
      {"x{2,3}", "xxxxx", "xxx|xx"},
      {".", "a\nb", "a|\n|b"},
      {"\\p{Alphabetic}+",
       "a\xE2\x93\x90"
       "1",
       "a\xE2\x93\x90|1"},
      {"(?i)ab|\\d", "aB1x", "aB|1|x"},
      {"[-\\s]+", "a- -b", "a|- -|b"},
      {"\\W", "a\xC2\xB2-", "a\xC2\xB2|-"},
      {"[\\w]", "a\xC2\xB2", "a|\xC2\xB2"},
      {"\\u0061\\x62\\x{63}", "abcd", "abc|d"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    px_splitter s;
    ASSERT_OK(px_split_open(&s, cases[i][0], strlen(cases[i][0]), true, &err));
    check(&s, cases[i][1], cases[i][2]);
    px_split_close(&s);
  }
}

static void refusals_name_the_construct(void **state) {
  (void)state;
  static const char *const cases[][2] = {
      {"a{1,3}+", "split pattern \"a{1,3}+\": + after an interval at offset 6 is not supported"},
      {"[a[bc]]", "split pattern \"[a[bc]]\": a class inside a class at offset 2 is not supported"},
      {"[a&&b]", "split pattern \"[a&&b]\": an intersection of classes at offset 2 is not supported"},
      {"[[:alpha:]]", "split pattern \"[[:alpha:]]\": a class inside a class at offset 1 is not supported"},
      {"(a)\\1", "split pattern \"(a)\\1\": this escape at offset 3 is not supported"},
      {"\\bx", "split pattern \"\\bx\": this escape at offset 0 is not supported"},
      {"(?x: a)", "split pattern \"(?x: a)\": this kind of group at offset 0 is not supported"},
      {"a(?i)b", "split pattern \"a(?i)b\": this kind of group at offset 1 is not supported"},
      {"(?i:ss)",
       "split pattern \"(?i:ss)\": this pair of letters in a group that ignores case at offset 5 is not supported"},
      {"(?i:\xC3\x9F)",
       "split pattern \"(?i:\xC3\x9F)\": a character beyond ASCII in a group that ignores case at offset 4 is "
       "not supported"},
      {"\\p{Klingon}", "split pattern \"\\p{Klingon}\": this property at offset 2 is not supported"},
      {"[\\s-x]", "split pattern \"[\\s-x]\": a hyphen beside a set at offset 3 is not supported"},
      {"[a-\\w]", "split pattern \"[a-\\w]\": a hyphen beside a set at offset 5 is not supported"},
      {"[a", "split pattern \"[a\": an unclosed class at offset 2 is not supported"},
      {"", "a split pattern is empty"},
      {"(a", "split pattern \"(a\": missing closing parenthesis"},
      {"a)", "split pattern \"a)\": an unopened group at offset 1 is not supported"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    px_splitter s;
    ASSERT_FAILS(px_split_open(&s, cases[i][0], strlen(cases[i][0]), true, &err), PX_BAD_FILE, cases[i][1]);
    assert_null(s.code);
  }
}

/* A pattern that backtracks without end is stopped with a message, and long runs are no such case. */
static void long_runs_and_hostile_patterns(void **state) {
  (void)state;
  enum { COUNT = 2000000 };
  char *text = malloc(COUNT);
  assert_non_null(text);
  memset(text, ' ', COUNT);
  text[COUNT - 1] = 'x';
  const char *pattern = LLAMA3_WITH("");
  for (int forced = 0; forced < 2; forced++) {
    px_splitter s;
    px_split_work work = {0};
    px_split_run run;
    size_t start, end;
    ASSERT_OK(px_split_open(&s, pattern, strlen(pattern), forced, &err));
    px_split_start(&run, &s, &work, text, COUNT);
    ASSERT_OK(px_split_next(&run, &start, &end, &err));
    assert_int_equal(end, COUNT - 2);
    ASSERT_OK(px_split_next(&run, &start, &end, &err));
    assert_int_equal(end, COUNT);
    px_split_work_free(&work);
    px_split_close(&s);
  }
  px_splitter s;
  px_split_work work = {0};
  px_split_run run;
  size_t start, end;
  memset(text, 'a', COUNT);
  ASSERT_OK(px_split_open(&s, "(a+)+b", 6, false, &err));
  px_split_start(&run, &s, &work, text, COUNT);
  ASSERT_FAILS(px_split_next(&run, &start, &end, &err), PX_BAD_FILE,
               "the tokenizer's split pattern failed on this text: match limit exceeded");
  px_split_work_free(&work);
  px_split_close(&s);
  free(text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(scanners_equal_patterns),
      cmocka_unit_test(behaviours),
      cmocka_unit_test(patterns_mean_what_they_mean_in_oniguruma),
      cmocka_unit_test(refusals_name_the_construct),
      cmocka_unit_test(long_runs_and_hostile_patterns),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
