/* SPDX-License-Identifier: MIT
 * Data files -> rows, by the rules of docs/formats.md, with a tokenizer whose ids can be read off. */
#include "text/rows.h"

#include <omp.h>
#include <unistd.h>

#include "core/file.h"
#include "core/hash.h"
#include "helpers/byte_tokenizer.h"
#include "helpers/test.h"

static char folder[] = "/tmp/pfx_rows_XXXXXX";
static char path[64];
static px_tokenizer *plain, *with_bos;
static px_error err;

static int set_up(void **state) {
  (void)state;
  if (!mkdtemp(folder)) return -1;
  snprintf(path, sizeof path, "%s/F", folder);
  if (chdir(folder) != 0) return -1;
  if (byte_tokenizer_open(folder, (byte_tokenizer_options){.add_bos = true}, &with_bos, &err) != PX_OK ||
      byte_tokenizer_open(folder, (byte_tokenizer_options){0}, &plain, &err) != PX_OK) {
    fprintf(stderr, "%s\n", err.message);
    return -1;
  }
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  px_tokenizer_close(plain);
  px_tokenizer_close(with_bos);
  unlink("F");
  unlink("tokenizer.json");
  unlink("tokenizer_config.json");
  return rmdir(folder);
}

static px_status read_bytes(const char *text, size_t bytes, const px_tokenizer *tok, px_row_options o, px_rows *out) {
  assert_int_equal(px_file_write("F", text, bytes, &err), PX_OK);
  return px_rows_read("F", tok, &o, NULL, out, &err);
}

static px_status read_text(const char *text, const px_tokenizer *tok, px_row_options o, px_rows *out) {
  return read_bytes(text, strlen(text), tok, o, out);
}

/* A row as text: the byte of an id, or [id] from 256 on; what scores stands behind a ' mark. */
static const char *shown(const px_rows *rows, size_t row) {
  static char text[4096];
  char *at = text;
  for (uint64_t i = rows->offsets[row]; i < rows->offsets[row + 1]; i++) {
    if (px_row_scores(rows, i)) *at++ = '\'';
    if (rows->ids[i] < 256)
      *at++ = (char)rows->ids[i];
    else
      at += sprintf(at, "[%d]", rows->ids[i]);
  }
  *at = 0;
  return text;
}

#define ASSERT_ROW(row, text, prompt, number)       \
  do {                                              \
    assert_string_equal(shown(&rows, row), text);   \
    assert_int_equal(rows.prompt_len[row], prompt); \
    assert_int_equal(rows.line[row], number);       \
  } while (0)

static void prompt_rows(void **state) {
  (void)state;
  px_rows rows;
  const char *text = "{\"prompt\": \"ab\", \"completion\": \" cd\"}\n{\"prompt\": \"\", \"completion\": \"xy\"}\n";
  ASSERT_OK(read_text(text, plain, (px_row_options){0}, &rows));
  assert_int_equal(rows.count, 2);
  ASSERT_ROW(0, "ab' 'c'd'[257]", 2, 1);
  ASSERT_ROW(1, "x'y'[257]", 0, 2); /* nothing stands before the x */
  assert_int_equal(rows.scored_tokens, 6);
  assert_int_equal(rows.longest, 6);
  char digest[65];
  px_sha256_of(text, strlen(text), digest);
  assert_string_equal(rows.digest, digest);
  px_rows_free(&rows);

  ASSERT_OK(read_text(text, with_bos, (px_row_options){0}, &rows));
  ASSERT_ROW(0, "[256]ab' 'c'd'[257]", 3, 1);
  ASSERT_ROW(1, "[256]'x'y'[257]", 1, 2);
  px_rows_free(&rows);

  ASSERT_OK(read_text(text, with_bos, (px_row_options){.no_bos = true, .no_end = true}, &rows));
  ASSERT_ROW(0, "ab' 'c'd", 2, 1);
  px_rows_free(&rows);

  ASSERT_OK(read_text(text, with_bos, (px_row_options){.loss_all = true}, &rows));
  ASSERT_ROW(0, "[256]'a'b' 'c'd'[257]", 3, 1);
  px_rows_free(&rows);

  /* a prompt that spells the begin token has it once */
  ASSERT_OK(read_text("{\"prompt\": \"<s>a\", \"completion\": \"b\"}", with_bos, (px_row_options){0}, &rows));
  ASSERT_ROW(0, "[256]a'b'[257]", 2, 1);
  px_rows_free(&rows);
}

static void text_rows(void **state) {
  (void)state;
  px_rows rows;
  ASSERT_OK(read_text("{\"text\": \"abc\"}", plain, (px_row_options){0}, &rows));
  ASSERT_ROW(0, "a'b'c", 0, 1);
  px_rows_free(&rows);
  ASSERT_OK(read_text("{\"text\": \"abc\"}", with_bos, (px_row_options){0}, &rows));
  ASSERT_ROW(0, "[256]'a'b'c", 0, 1);
  px_rows_free(&rows);
}

static void ids_rows(void **state) {
  (void)state;
  px_rows rows;
  ASSERT_OK(read_text("{\"ids\": [5, 6, 7, 8], \"labels\": [5, -100, 7, 8]}", NULL, (px_row_options){.vocab_size = 9},
                      &rows));
  assert_int_equal(rows.scored_tokens, 2); /* the first token never scores */
  assert_int_equal(rows.ids[3], 8);
  assert_false(px_row_scores(&rows, 0) || px_row_scores(&rows, 1));
  assert_true(px_row_scores(&rows, 2) && px_row_scores(&rows, 3));
  px_rows_free(&rows);
}

static const char talk[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"},"
    " {\"role\": \"user\", \"content\": \"r\"}, {\"role\": \"assistant\", \"content\": \"bc\"}]}";

static void messages_rows(void **state) {
  (void)state;
  px_rows rows;
  ASSERT_OK(read_text(talk, plain, (px_row_options){.chat = PX_TEMPLATE_CHATML, .keep_text = true}, &rows));
  ASSERT_ROW(0, "[258]user\nq[259]\n[258]assistant\n'a'[259]\n[258]user\nr[259]\n[258]assistant\n'b'c'[259]\n", 20, 1);
  assert_string_equal(
      rows.prompts[0],
      "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
      "<|im_start|>assistant\n");
  assert_string_equal(rows.targets[0], "bc");
  assert_string_equal(rows.references[0][0], "bc");
  assert_null(rows.references[0][1]);
  px_rows_free(&rows);
  /* templates that write the begin token themselves: once, and not at all with no_bos */
  ASSERT_OK(read_text(talk, with_bos, (px_row_options){.chat = PX_TEMPLATE_LLAMA2}, &rows));
  ASSERT_ROW(0, "[256][INST] q [/INST]' 'a' '[257][256][INST] r [/INST]' 'b'c' '[257]", 17, 1);
  px_rows_free(&rows);
  ASSERT_OK(read_text(talk, with_bos, (px_row_options){.chat = PX_TEMPLATE_MISTRAL, .no_bos = true}, &rows));
  ASSERT_ROW(0, "[INST] q [/INST]'a'[257][INST] r [/INST]'b'c'[257]", 16, 1);
  px_rows_free(&rows);
  ASSERT_OK(read_text(talk, with_bos,
                      (px_row_options){.chat = PX_TEMPLATE_MISTRAL, .max_row_tokens = 20, .on_long = PX_LONG_CUT},
                      &rows));
  ASSERT_ROW(0, "[256][INST] q [/INST]'a'[257][", 17, 1);
  px_rows_free(&rows);
}

static void pairs(void **state) {
  (void)state;
  px_rows rows;
  /* split at the first bars, both sides trimmed of what Python calls white space, the prompt ends with a newline */
  const char *text = " name : A ||\tB || C \xc2\xa0\r\n\n  \r\nname : A||D\nq||";
  ASSERT_OK(read_text(text, plain, (px_row_options){.keep_text = true}, &rows));
  assert_int_equal(rows.count, 3);
  ASSERT_ROW(0, "name : A\n'B' '|'|' 'C'[257]", 9, 1);
  ASSERT_ROW(1, "name : A\n'D'[257]", 9, 4);
  ASSERT_ROW(2, "q\n'[257]", 2, 5);
  px_arena arena = {0};
  px_row_item *items;
  size_t count;
  ASSERT_OK(px_rows_items(&rows, &arena, &items, &count, &err));
  assert_int_equal(count, 2);
  assert_string_equal(items[0].prompt, "name : A\n");
  assert_int_equal(items[0].reference_count, 2);
  assert_string_equal(items[0].references[0], "B || C");
  assert_string_equal(items[0].references[1], "D");
  assert_string_equal(items[1].prompt, "q\n");
  assert_int_equal(items[1].row, 2);
  px_arena_free(&arena);
  px_rows_free(&rows);
}

static void own_references(void **state) {
  (void)state;
  px_rows rows;
  const char *text =
      "{\"prompt\": \"z\", \"completion\": \"1\", \"references\": [\"2\", \"\"]}\n"
      "{\"text\": \"no prompt\"}\n{\"prompt\": \"a\", \"completion\": \"3\"}\n{\"prompt\": \"z\", \"completion\": "
      "\"4\"}\n";
  ASSERT_OK(read_text(text, plain, (px_row_options){.keep_text = true}, &rows));
  assert_string_equal(rows.targets[0], "1");
  assert_null(rows.prompts[1]);
  px_arena arena = {0};
  px_row_item *items;
  size_t count;
  ASSERT_OK(px_rows_items(&rows, &arena, &items, &count, &err));
  assert_int_equal(count, 2);
  assert_string_equal(items[0].prompt, "z");
  assert_int_equal(items[0].reference_count, 3);
  assert_string_equal(items[0].references[1], "");
  assert_string_equal(items[0].references[2], "4");
  px_arena_free(&arena);
  px_rows_free(&rows);
}

static void file_shapes(void **state) {
  (void)state;
  px_rows rows;
  const char *text = "\xef\xbb\xbf\r\n  \n{\"text\": \"ab\"}\r\n\n\t{\"text\": \"cd\"}";
  ASSERT_OK(read_text(text, plain, (px_row_options){0}, &rows));
  assert_int_equal(rows.count, 2);
  ASSERT_ROW(0, "a'b", 0, 3);
  ASSERT_ROW(1, "c'd", 0, 5);
  px_rows_free(&rows);
}

static void long_rows(void **state) {
  (void)state;
  px_rows rows;
  const char *text =
      "{\"prompt\": \"ab\", \"completion\": \"cdef\"}\n{\"prompt\": \"abcd\", \"completion\": \"e\"}\n"
      "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"text\": \"abcdefgh\"}\n";
  px_row_options o = {.max_row_tokens = 4};
  ASSERT_FAILS(
      read_text(text, plain, o, &rows), PX_BAD_FILE,
      "F: line 1: the row has 7 tokens (2 before the first that scores), the limit is 4; --on-long cut shortens "
      "its end, --on-long drop leaves it out");
  o.on_long = PX_LONG_DROP;
  ASSERT_OK(read_text(text, plain, o, &rows));
  assert_int_equal(rows.count, 1);
  ASSERT_ROW(0, "a'b'[257]", 1, 3);
  assert_int_equal(rows.dropped, 3);
  px_rows_free(&rows);
  o.on_long = PX_LONG_CUT;
  ASSERT_OK(read_text(text, plain, o, &rows));
  assert_int_equal(rows.count, 4);
  ASSERT_ROW(0, "ab'c'd", 2, 1);    /* without the end token */
  ASSERT_ROW(1, "a'b'[257]", 1, 3); /* the prompt of line 2 alone fills a row: left out */
  ASSERT_ROW(2, "a'b'c'd", 0, 4);
  ASSERT_ROW(3, "e'f'g'h", 0, 4);
  assert_int_equal(rows.dropped, 1);
  assert_int_equal(rows.cut, 2);
  px_rows_free(&rows);
  /* a text in consecutive rows: no token is lost, each row has its begin token */
  ASSERT_OK(read_text("{\"text\": \"abcdefgh\"}", with_bos, o, &rows));
  assert_int_equal(rows.count, 3);
  ASSERT_ROW(0, "[256]'a'b'c", 0, 1);
  ASSERT_ROW(1, "[256]'d'e'f", 0, 1);
  ASSERT_ROW(2, "[256]'g'h", 0, 1);
  px_rows_free(&rows);
  o.on_long = PX_LONG_ERROR;
  ASSERT_FAILS(read_text("{\"text\": \"abcdefgh\"}", with_bos, o, &rows), PX_BAD_FILE,
               "F: line 1: the row has 9 tokens, the limit is 4; --on-long cut makes consecutive rows of it, --on-long "
               "drop leaves it out");
  o.on_long = PX_LONG_DROP;
  ASSERT_FAILS(read_text("{\"text\": \"abcdefgh\"}", with_bos, o, &rows), PX_BAD_FILE,
               "F: all 1 rows were left out, each is longer than 4 tokens");
  o.max_row_tokens = 1;
  ASSERT_FAILS(read_text(text, plain, o, &rows), PX_INVALID,
               "--max-row-tokens 1 leaves no token that could score; at least 2, or 0 for no limit");
}

#define KINDS "a row holds prompt and completion (and references), or text, or messages, or ids and labels"
#define T7 "{\"text\": \"ab\"}\n\n{\"text\": \"ab\"}\n{\"text\": \"ab\"}\n{\"text\": \"ab\"}\n{\"text\": \"ab\"}\n"

static void messages_of_errors(void **state) {
  (void)state;
  static const struct {
    const char *text, *message;
  } cases[] = {
      {"", "F: no rows, the file is empty; a data file holds one row in a line"},
      {"\n \r\n\t\n", "F: no rows, the file is blank; a data file holds one row in a line"},
      {"\nplain text\n",
       "F: line 2: neither a JSON object {...} nor source||target; a data file holds one row in a line"},
      {"[1]\n", "F: line 1: neither a JSON object {...} nor source||target; a data file holds one row in a line"},
      {T7 "{\"text\": }\n", "F: line 7, column 10: unexpected token near '}'"},
      {T7 "{\"text\": \"ab\"\n", "F: line 7, column 13: '}' expected near end of file"},
      {T7 "[1, 2]\n", "F: line 7: a row must be a JSON object {...}"},
      {T7 "a||b\n", "F: line 7, column 1: invalid token near 'a'"},
      {T7 "{}\n",
       "F: line 7: the row has none of the fields that pfx knows; it needs prompt and completion (and references), or text, or messages, "
       "or ids and labels"},
      {"a||b\n{\"text\": \"x\"}\n", "F: line 2: no \"||\" between source and target"},
      {"{\"prompt\": \"a\"}", "F: line 1: field \"completion\" is missing"},
      {"{\"completion\": \"a\"}", "F: line 1: field \"prompt\" is missing"},
      {"{\"prompt\": 5, \"completion\": \"a\"}", "F: line 1: field \"prompt\" must be a string"},
      {"{\"prompt\": \"a\", \"completion\": null}", "F: line 1: field \"completion\" must be a string"},
      {"{\"text\": [\"a\"]}", "F: line 1: field \"text\" must be a string"},
      {"{\"text\": \"\"}", "F: line 1: field \"text\" is empty"},
      {"{\"prompt\": \"a\", \"completion\": \"b\", \"references\": []}",
       "F: line 1: field \"references\" must be a list of strings, at least one"},
      {"{\"prompt\": \"a\", \"completion\": \"b\", \"references\": [\"c\", 1]}",
       "F: line 1: field \"references\" must be a list of strings, at least one"},
      {"{\"prompt\": \"a\", \"text\": \"b\"}", "F: line 1: fields \"prompt\" and \"text\" do not go together; " KINDS},
      {"{\"text\": \"a\", \"references\": [\"b\"]}",
       "F: line 1: fields \"text\" and \"references\" do not go together; " KINDS},
      {"{\"source\": \"a\", \"meta\": 1}",
       "F: line 1: the row has none of the fields that pfx knows; it needs prompt and completion (and references), or text, or "
       "messages, or ids and labels"},
      {"{\"ids\": [1, 2]}", "F: line 1: fields \"ids\" and \"labels\" must be lists of integers"},
      {"{\"ids\": [1, 2], \"labels\": [1]}", "F: line 1: 2 ids and 1 labels; labels are not shifted, one for each id"},
      {"{\"ids\": [1, 2.5], \"labels\": [1, 2]}", "F: line 1: ids[1] must be an integer"},
      {"{\"ids\": [1, 2], \"labels\": [1, \"2\"]}", "F: line 1: labels[1] must be an integer"},
      {"{\"ids\": [1, 264], \"labels\": [1, 264]}", "F: line 1: ids[1] is 264, outside the vocabulary of 264 tokens"},
      {"{\"ids\": [-1, 2], \"labels\": [-100, 2]}", "F: line 1: ids[0] is -1, outside the vocabulary of 264 tokens"},
      {"{\"ids\": [1, 2], \"labels\": [2, -100]}",
       "F: line 1: labels[0] is 2, it must be -100 or the id 1 (labels are not shifted)"},
      {"{\"ids\": [], \"labels\": []}", "F: line 1: the row is empty, it has no token"},
      {"{\"ids\": [1, 2], \"labels\": [1, -100]}\n{\"text\": \"a\"}\n",
       "F: no token scores in 2 rows: there is nothing to learn or to measure (the first token of a row never scores)"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
       "F: line 1: messages need a chat template and the tokenizer has none; name one with --template"},
  };
  px_rows rows;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    ASSERT_FAILS(read_text(cases[i].text, plain, (px_row_options){0}, &rows), PX_BAD_FILE, cases[i].message);
  ASSERT_FAILS(read_bytes("a\0||b", 5, plain, (px_row_options){0}, &rows), PX_BAD_FILE,
               "F: line 1: a NUL byte; the file is not text");
  ASSERT_FAILS(read_text("{\"text\": \"ab\"}", NULL, (px_row_options){0}, &rows), PX_BAD_FILE,
               "F: line 1: a row of text needs a tokenizer; without one only ids and labels");
  ASSERT_FAILS(read_text("a||b", plain, (px_row_options){.vocab_size = 257}, &rows), PX_BAD_FILE,
               "F: line 1: token \"</s>\" is 257, outside the model's vocabulary of 257 tokens");
  ASSERT_FAILS(px_rows_read("none", plain, &(px_row_options){0}, NULL, &rows, &err), PX_BAD_FILE,
               "cannot open none: No such file or directory");
}

static void messages_of_talks(void **state) {
  (void)state;
  static const struct {
    px_template chat;
    const char *text, *message;
  } cases[] = {
      {PX_TEMPLATE_CHATML, "{\"messages\": []}",
       "F: line 1: field \"messages\" must be a list of {\"role\", \"content\"}"},
      {PX_TEMPLATE_CHATML, "{\"messages\": [3]}",
       "F: line 1: message 1 must hold the strings \"role\" and \"content\""},
      {PX_TEMPLATE_CHATML, "{\"messages\": [{\"role\": \"user\"}]}",
       "F: line 1: message 1 must hold the strings \"role\" and \"content\""},
      {PX_TEMPLATE_CHATML, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\", \"weight\": 0}]}",
       "F: line 1: message 1: unknown field \"weight\"; it holds role and content"},
      {PX_TEMPLATE_CHATML, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
       "F: line 1: no message of the role assistant, nothing to learn"},
      {PX_TEMPLATE_CHATML, "{\"messages\": [{\"role\": \"bot\", \"content\": \"a\"}]}",
       "F: line 1: message 1: unknown role \"bot\"; system, user or assistant"},
      {PX_TEMPLATE_LLAMA2, "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}",
       "F: line 1: message 1: role assistant where the llama-2 template needs user (user and assistant take turns)"},
      {PX_TEMPLATE_MISTRAL, "{\"messages\": [{\"role\": \"system\", \"content\": \"a\"}]}",
       "F: line 1: message 1: the mistral template has no system message"},
  };
  px_rows rows;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    ASSERT_FAILS(read_text(cases[i].text, plain, (px_row_options){.chat = cases[i].chat}, &rows), PX_BAD_FILE,
                 cases[i].message);
}

/* A line whose parsed form would take gigabytes is refused before it is parsed. */
static void huge_lists(void **state) {
  (void)state;
  const size_t elements = (1 << 24) + 2;
  px_buf text = {0};
  px_buf_puts(&text, "{\"ids\": [");
  char *at = px_buf_grow(&text, 2 * elements);
  assert_non_null(at);
  for (size_t i = 0; i < elements; i++) memcpy(at + 2 * i, i + 1 < elements ? "1," : "1]", 2);
  px_buf_puts(&text, "}");
  px_rows rows;
  ASSERT_FAILS(read_bytes(text.data, text.len, plain, (px_row_options){0}, &rows), PX_BAD_FILE,
               "F: line 1: the row has 16777217 commas, more than 16777216; split it");
  px_buf_free(&text);
}

/* Rows and the error are the same with any number of threads; the first bad line by number is the one named. */
static void threads(void **state) {
  (void)state;
  px_buf text = {0};
  for (int i = 1; i <= 40000; i++) {
    bool bad = i == 9000 || i == 9001 || i == 39999;
    px_buf_printf(
        &text, bad ? "{\"prompt\": %d, \"completion\": \"y\"}\n" : "{\"prompt\": \"p%d\", \"completion\": \"c\"}\n", i);
  }
  px_rows rows, again;
  for (int n = 1; n <= 4; n++) {
    omp_set_num_threads(n);
    ASSERT_FAILS(read_bytes(text.data, text.len, plain, (px_row_options){0}, &rows), PX_BAD_FILE,
                 "F: line 9000: field \"prompt\" must be a string");
  }
  text.len = 0;
  for (int i = 1; i <= 40000; i++) px_buf_printf(&text, "{\"prompt\": \"p%d\", \"completion\": \"c\"}\n", i);
  px_row_options o = {.keep_text = true};
  omp_set_num_threads(1);
  ASSERT_OK(read_bytes(text.data, text.len, plain, o, &rows));
  omp_set_num_threads(3);
  ASSERT_OK(read_bytes(text.data, text.len, plain, o, &again));
  assert_int_equal(rows.count, 40000);
  assert_int_equal(again.count, 40000);
  uint64_t tokens = rows.offsets[rows.count];
  assert_memory_equal(rows.offsets, again.offsets, (rows.count + 1) * sizeof *rows.offsets);
  assert_memory_equal(rows.ids, again.ids, tokens * sizeof *rows.ids);
  assert_memory_equal(rows.scores, again.scores, (tokens + 7) / 8);
  assert_memory_equal(rows.line, again.line, rows.count * sizeof *rows.line);
  for (size_t i = 0; i < rows.count; i++) {
    char want[32];
    snprintf(want, sizeof want, "p%zu", i + 1);
    assert_string_equal(rows.prompts[i], want);
    assert_string_equal(again.prompts[i], want);
  }
  px_rows_free(&rows);
  px_rows_free(&again);
  px_buf_free(&text);
}

static void prompts(void **state) {
  (void)state;
  px_ids ids = {0};
  px_row_options o = {.chat = PX_TEMPLATE_LLAMA2};
  ASSERT_OK(px_prompt_ids(with_bos, &o, "ab", false, &ids, &err));
  ASSERT_OK(px_prompt_ids(with_bos, &o, "<s>c", false, &ids, &err));
  ASSERT_OK(px_prompt_ids(plain, &o, "d", false, &ids, &err));
  static const int32_t want[] = {256, 'a', 'b', 256, 'c', 'd'};
  assert_int_equal(ids.len, 6);
  assert_memory_equal(ids.data, want, sizeof want);
  ids.len = 0;
  ASSERT_OK(px_prompt_ids(with_bos, &o, " a", true, &ids, &err));
  static const int32_t chat[] = {256, '[', 'I', 'N', 'S', 'T', ']', ' ', 'a', ' ', '[', '/', 'I', 'N', 'S', 'T', ']'};
  assert_int_equal(ids.len, 17);
  assert_memory_equal(ids.data, chat, sizeof chat);
  ids.len = 0;
  o.no_bos = true;
  ASSERT_OK(px_prompt_ids(with_bos, &o, "a", true, &ids, &err));
  assert_int_equal(ids.data[0], '[');
  o.chat = PX_TEMPLATE_NONE;
  ASSERT_FAILS(px_prompt_ids(with_bos, &o, "a", true, &ids, &err), PX_INVALID,
               "no chat template is chosen; the tokenizer has none, name one with --template");
  px_ids_free(&ids);
}

static px_status read_prompts(const char *text, char ***list, size_t *count, px_arena *arena) {
  assert_int_equal(px_file_write("F", text, strlen(text), &err), PX_OK);
  return px_prompts_read("F", list, count, arena, &err);
}

static void prompt_files(void **state) {
  (void)state;
  px_arena arena = {0};
  char **list;
  size_t count;
  ASSERT_OK(
      read_prompts("\xef\xbb\xbf"
                   "one \r\n\n two||x\n{3}",
                   &list, &count, &arena));
  assert_int_equal(count, 3);
  assert_string_equal(list[0], "one ");
  assert_string_equal(list[1], " two||x");
  assert_string_equal(list[2], "{3}");
  ASSERT_OK(
      read_prompts("{\"prompt\": \"a\\nb\", \"completion\": \"c\"}\n"
                   "{\"messages\": [{\"role\": \"user\", \"content\": \"d\"}]}\n",
                   &list, &count, &arena));
  assert_int_equal(count, 2);
  assert_string_equal(list[0], "a\nb");
  assert_string_equal(list[1], "d");
  ASSERT_FAILS(read_prompts("{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n", &list, &count, &arena), PX_BAD_FILE,
               "F: line 2: field \"prompt\" is missing");
  ASSERT_FAILS(read_prompts("{\"prompt\": 1}", &list, &count, &arena), PX_BAD_FILE,
               "F: line 1: field \"prompt\" must be a string");
  ASSERT_FAILS(read_prompts(talk, &list, &count, &arena), PX_BAD_FILE,
               "F: line 1: as a prompt \"messages\" holds one message of the role user");
  ASSERT_FAILS(read_prompts("\n\n", &list, &count, &arena), PX_BAD_FILE, "F: no prompts in it");
  px_arena_free(&arena);
}

/* The test file of the paper's data: 4,693 rows that are 630 items. */
static void e2e(void **state) {
  (void)state;
  char file[1000];
  snprintf(file, sizeof file, "%s/data/e2e/test.txt", TEST_SHARED_DIR);
  if (!px_file_exists(file)) skip();
  px_rows rows;
  ASSERT_OK(px_rows_read(file, plain, &(px_row_options){.keep_text = true}, NULL, &rows, &err));
  assert_int_equal(rows.count, 4693);
  px_arena arena = {0};
  px_row_item *items;
  size_t count, references = 0;
  ASSERT_OK(px_rows_items(&rows, &arena, &items, &count, &err));
  assert_int_equal(count, 630);
  for (size_t i = 0; i < count; i++) references += items[i].reference_count;
  assert_int_equal(references, 4693);
  assert_string_equal(items[0].prompt, "name : Blue Spice | Type : coffee shop | area : city centre\n");
  assert_string_equal(items[0].references[0], "A coffee shop in the city centre area called Blue Spice .");
  px_arena_free(&arena);
  px_rows_free(&rows);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(prompt_rows),       cmocka_unit_test(text_rows),    cmocka_unit_test(ids_rows),
      cmocka_unit_test(messages_rows),     cmocka_unit_test(pairs),        cmocka_unit_test(own_references),
      cmocka_unit_test(file_shapes),       cmocka_unit_test(long_rows),    cmocka_unit_test(messages_of_errors),
      cmocka_unit_test(messages_of_talks), cmocka_unit_test(huge_lists),   cmocka_unit_test(threads),
      cmocka_unit_test(prompts),           cmocka_unit_test(prompt_files), cmocka_unit_test(e2e),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
