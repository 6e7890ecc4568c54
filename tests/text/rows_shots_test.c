/* SPDX-License-Identifier: MIT
 * In-context examples: where they stand, what still scores, how many fit. */
#include <unistd.h>

#include "core/file.h"
#include "helpers/byte_tokenizer.h"
#include "helpers/test.h"
#include "text/rows.h"

static char folder[] = "/tmp/pfx_shots_XXXXXX";
static px_tokenizer *plain, *with_bos, *chat;
static px_error err;

static int set_up(void **state) {
  (void)state;
  if (!mkdtemp(folder) || chdir(folder) != 0) return -1;
  return byte_tokenizer_open(folder, (byte_tokenizer_options){.add_bos = true}, &with_bos, &err) != PX_OK ||
                 byte_tokenizer_open(folder, (byte_tokenizer_options){.eos = "<|im_end|>"}, &chat, &err) != PX_OK ||
                 byte_tokenizer_open(folder, (byte_tokenizer_options){0}, &plain, &err) != PX_OK
             ? -1
             : 0;
}

static int tear_down(void **state) {
  (void)state;
  px_tokenizer_close(plain);
  px_tokenizer_close(with_bos);
  px_tokenizer_close(chat);
  unlink("rows");
  unlink("shots");
  unlink("tokenizer.json");
  unlink("tokenizer_config.json");
  return rmdir(folder);
}

/* Reads `rows`, puts `shots` in front, and shows row 0 and 1: bytes, [id], a ' before what scores. */
static const char *shown(const char *rows_text, const char *shots_text, const px_tokenizer *tok, int32_t count, uint64_t seed, int64_t room,
                         px_shots *out) {
  static char text[1000];
  char *at = text;
  px_rows rows;
  const px_row_options o = {.keep_text = true, .chat = PX_TEMPLATE_CHATML};
  ASSERT_OK(px_file_write("rows", rows_text, strlen(rows_text), &err));
  ASSERT_OK(px_file_write("shots", shots_text, strlen(shots_text), &err));
  ASSERT_OK(px_rows_read("rows", tok, &o, NULL, &rows, &err));
  size_t scored = rows.scored_tokens, marks = 0, longest = 0;
  ASSERT_OK(px_rows_add_shots(&rows, "shots", count, seed, room, tok, &o, NULL, out, &err));
  for (size_t r = 0; r < rows.count; r++) {
    if (r) *at++ = '|';
    for (uint64_t i = rows.offsets[r]; i < rows.offsets[r + 1]; i++) {
      marks += px_row_scores(&rows, i);
      if (px_row_scores(&rows, i)) *at++ = '\'';
      at += sprintf(at, rows.ids[i] < 256 ? "%c" : "[%d]", rows.ids[i]);
    }
    size_t n = rows.offsets[r + 1] - rows.offsets[r];
    longest = n > longest ? n : longest;
    assert_true(px_row_scores(&rows, rows.offsets[r] + rows.prompt_len[r])); /* the first that scores follows the prompt */
  }
  *at = 0;
  assert_int_equal(marks, scored); /* examples score nothing, and the row what it did */
  assert_int_equal(rows.longest, longest);
  px_rows_free(&rows);
  return text;
}

#define ROW(p, c) "{\"prompt\": \"" p "\", \"completion\": \"" c "\"}\n"

static void test_where_they_stand(void **state) {
  (void)state;
  px_shots s;
  assert_string_equal(shown(ROW("a", "b") ROW("c", "d"), ROW("x", "y"), plain, 1, 0, 100, &s), "xy\n\na'b'[257]|xy\n\nc'd'[257]");
  assert_true(s.used == 1 && s.gaps);
  /* Behind the begin token, which examples do not repeat. */
  assert_string_equal(shown(ROW("a", "b"), ROW("x", "y"), with_bos, 1, 0, 100, &s), "[256]xy\n\na'b'[257]");
  /* A turn that its own end token closes needs no empty line. */
  const char *turns = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": \"y\"}]}\n";
  shown(ROW("a", "b"), turns, chat, 1, 0, 100, &s);
  assert_true(s.used == 1 && !s.gaps);
}

static void test_how_many_fit(void **state) {
  (void)state;
  px_shots s;
  const char *three = ROW("1", "1") ROW("2", "2") ROW("3", "3");
  /* Row 0 has 3 tokens, row 1 has 5; an example takes 4. */
  const char *text = shown(ROW("a", "b") ROW("abc", "d"), three, plain, 9, 0, 12, &s);
  assert_int_equal(strlen(text), strlen("11\n\n22\n\na'b'[257]|11\n\nabc'd'[257]"));
  assert_true(s.used == 1.5);
  shown(ROW("a", "b"), three, plain, 2, 0, 1000, &s);
  assert_true(s.used == 2);
  assert_string_equal(shown(ROW("a", "b"), three, plain, 3, 0, 2, &s), "a'b'[257]");
  assert_true(s.used == 0);
}

static void test_the_seed_decides(void **state) {
  (void)state;
  char many[4000] = "", first[200];
  px_shots s;
  for (int i = 0; i < 26; i++) sprintf(many + strlen(many), ROW("%c", "-"), 'A' + i);
  strcpy(first, shown(ROW("a", "b") ROW("c", "d"), many, plain, 4, 1, 100, &s));
  assert_string_equal(shown(ROW("a", "b") ROW("c", "d"), many, plain, 4, 1, 100, &s), first);
  assert_memory_equal(first, strchr(first, '|') + 1, 16); /* the same ones before every row */
  assert_string_not_equal(shown(ROW("a", "b") ROW("c", "d"), many, plain, 4, 2, 100, &s), first);
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < i; k++) assert_int_not_equal(first[4 * i], first[4 * k]); /* none twice */
}

static void test_bad(void **state) {
  (void)state;
  px_rows rows;
  px_shots s;
  const px_row_options o = {0};
  ASSERT_OK(px_file_write("rows", ROW("a", "b"), strlen(ROW("a", "b")), &err));
  ASSERT_OK(px_file_write("shots", "", 0, &err));
  ASSERT_OK(px_rows_read("rows", plain, &o, NULL, &rows, &err));
  ASSERT_FAILS(px_rows_add_shots(&rows, "shots", 0, 0, 9, plain, &o, NULL, &s, &err), PX_INVALID, "--shots must be at least 1");
  ASSERT_FAILS(px_rows_add_shots(&rows, "shots", 1, 0, 9, plain, &o, NULL, &s, &err), PX_BAD_FILE,
               "shots: no rows, the file is empty; a data file holds one row in a line");
  px_rows_free(&rows);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_where_they_stand), cmocka_unit_test(test_how_many_fit),
                                     cmocka_unit_test(test_the_seed_decides), cmocka_unit_test(test_bad)};
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
