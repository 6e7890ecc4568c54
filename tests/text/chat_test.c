/* SPDX-License-Identifier: MIT
 * Chat templates: text as transformers' apply_chat_template renders it, ids of that text, and which of them score. */
#include "text/chat.h"

#include <unistd.h>

#include "core/file.h"
#include "format/json.h"
#include "helpers/byte_tokenizer.h"
#include "helpers/test.h"
#include "text/rows_internal.h"

static char folder[] = "/tmp/pfx_chat_XXXXXX";
static px_error err;

static int set_up(void **state) {
  (void)state;
  return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state) {
  (void)state;
  static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
  char path[200];
  for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "%s/%s", folder, names[i]);
    unlink(path);
  }
  return rmdir(folder);
}

static json_t *golden(void) {
  char path[1000];
  json_t *list;
  snprintf(path, sizeof path, "%s/tests/golden/chat.json", TEST_SOURCE_DIR);
  ASSERT_OK(px_json_read(path, &list, &err));
  assert_true(json_array_size(list) == 5);
  return list;
}

static void join(const px_chat_piece *pieces, size_t count, px_buf *text) {
  text->len = 0;
  px_buf_append(text, "", 0);
  for (size_t i = 0; i < count; i++) px_buf_append(text, pieces[i].text, pieces[i].bytes);
}

static px_status render(px_template t, const px_tokenizer *tok, const json_t *list, bool header, px_arena *arena,
                        px_chat_piece **pieces, size_t *count) {
  px_chat_message *messages;
  size_t n;
  ASSERT_OK(px_row_messages("golden", 1, list, arena, &messages, &n, &err));
  return px_chat_render(t, tok, messages, n, header, arena, pieces, count, &err);
}

/* The ids are those of the joined text, whatever the pieces are cut into. */
static void check_ids(const px_tokenizer *tok, const px_chat_piece *pieces, size_t count, const px_buf *text) {
  px_ids whole = {0}, ids = {0}, part = {0};
  uint8_t *scores = NULL;
  size_t cap = 0;
  ASSERT_OK(px_tokenizer_encode(tok, text->data, text->len, 0, &whole, &err));
  ASSERT_OK(px_chat_encode(tok, pieces, count, &ids, &scores, &cap, &part, &err));
  assert_int_equal(ids.len, whole.len);
  assert_memory_equal(ids.data, whole.data, ids.len * sizeof *ids.data);
  ids.len = 0;
  ASSERT_OK(px_chat_encode(tok, pieces, count, &ids, NULL, NULL, NULL, &err));
  assert_int_equal(ids.len, whole.len);
  assert_memory_equal(ids.data, whole.data, ids.len * sizeof *ids.data);
  free(scores);
  px_ids_free(&whole);
  px_ids_free(&ids);
  px_ids_free(&part);
}

static void check_case(px_template t, const px_tokenizer *tok, const json_t *test, bool header, size_t *rendered) {
  px_arena arena = {0};
  px_chat_piece *pieces;
  size_t count;
  px_buf text = {0};
  const json_t *want = json_object_get(test, header ? "text_with_prompt" : "text");
  px_status status = render(t, tok, json_object_get(test, "messages"), header, &arena, &pieces, &count);
  if (json_is_null(want)) {
    assert_int_equal(status, PX_BAD_FILE);
  } else {
    assert_true(json_is_string(want));
    if (status != PX_OK) fail_msg("%s", err.message);
    join(pieces, count, &text);
    assert_string_equal(text.data, json_string_value(want));
    check_ids(tok, pieces, count, &text);
    ++*rendered;
  }
  px_buf_free(&text);
  px_arena_free(&arena);
}

static void equals_transformers(void **state) {
  (void)state;
  json_t *list = golden(), *entry, *test;
  size_t i, k, rendered = 0;
  json_array_foreach(list, i, entry) {
    px_template t;
    ASSERT_OK(px_template_parse(json_string_value(json_object_get(entry, "template")), &t, &err));
    px_tokenizer *tok;
    byte_tokenizer_options o = {.bos = json_string_value(json_object_get(entry, "bos")),
                                .eos = json_string_value(json_object_get(entry, "eos"))};
    ASSERT_OK(byte_tokenizer_open(folder, o, &tok, &err));
    json_array_foreach(json_object_get(entry, "cases"), k, test) {
      check_case(t, tok, test, false, &rendered);
      check_case(t, tok, test, true, &rendered);
    }
    px_tokenizer_close(tok);
  }
  assert_true(rendered > 100);
  json_decref(list);
}

static bool has_token(const json_t *tokenizer, const char *token) {
  const json_t *list = json_object_get(tokenizer, "added_tokens");
  for (size_t i = 0; i < json_array_size(list); i++)
    if (strcmp(json_string_value(json_object_get(json_array_get(list, i), "content")), token) == 0) return true;
  return false;
}

/* Opens a tokenizer of tests/golden, with the begin and end tokens of a template where it has them. */
static px_tokenizer *small_tokenizer(const char *name, const json_t *entry) {
  char path[1000];
  json_t *tokenizer;
  px_buf bytes = {0};
  const char *bos = json_string_value(json_object_get(entry, "bos")),
             *eos = json_string_value(json_object_get(entry, "eos"));
  snprintf(path, sizeof path, "%s/tests/golden/tokenizers/%s", TEST_SOURCE_DIR, name);
  ASSERT_OK(px_json_read(path, &tokenizer, &err));
  ASSERT_OK(px_json_dump(tokenizer, &bytes, &err));
  snprintf(path, sizeof path, "%s/tokenizer.json", folder);
  ASSERT_OK(px_file_write(path, bytes.data, bytes.len, &err));
  bytes.len = 0;
  if (has_token(tokenizer, bos) && has_token(tokenizer, eos))
    px_buf_printf(&bytes, "{\"bos_token\": \"%s\", \"eos_token\": \"%s\"}", bos, eos);
  else
    px_buf_puts(&bytes, "{}");
  snprintf(path, sizeof path, "%s/tokenizer_config.json", folder);
  ASSERT_OK(px_file_write(path, bytes.data, bytes.len, &err));
  px_buf_free(&bytes);
  json_decref(tokenizer);
  px_tokenizer *tok;
  ASSERT_OK(px_tokenizer_open(folder, &tok, &err));
  return tok;
}

static size_t check_all_ids(px_template t, const px_tokenizer *tok, const json_t *cases) {
  size_t checked = 0;
  for (size_t k = 0; k < json_array_size(cases); k++) {
    px_arena arena = {0};
    px_chat_piece *pieces;
    size_t count;
    px_buf text = {0};
    if (render(t, tok, json_object_get(json_array_get(cases, k), "messages"), true, &arena, &pieces, &count) == PX_OK) {
      join(pieces, count, &text);
      check_ids(tok, pieces, count, &text);
      checked++;
    }
    px_buf_free(&text);
    px_arena_free(&arena);
  }
  return checked;
}

/* All templates with a tokenizer that merges across words, and two that put spaces in front of a text. */
static void ids_of_pieces(void **state) {
  (void)state;
  static const char *const files[] = {"small_llama3.json", "small_spm.json", "small_metaspace.json"};
  json_t *list = golden();
  for (size_t f = 0; f < 3; f++) {
    for (size_t i = 0; i < json_array_size(list); i++) {
      const json_t *entry = json_array_get(list, i), *cases = json_object_get(entry, "cases");
      px_template t;
      ASSERT_OK(px_template_parse(json_string_value(json_object_get(entry, "template")), &t, &err));
      px_tokenizer *tok = small_tokenizer(files[f], entry);
      size_t checked = check_all_ids(t, tok, cases);
      const px_tokenizer_info *info = px_tokenizer_info_get(tok);
      bool complete = info->bos >= 0 && info->eos >= 0;
      if (complete || t == PX_TEMPLATE_CHATML || t == PX_TEMPLATE_SMOLLM2) assert_true(checked >= 6);
      px_tokenizer_close(tok);
    }
  }
  json_decref(list);
}

/* With a token for each byte what scores is exactly the text of the assistant pieces. */
static void what_scores(void **state) {
  (void)state;
  json_t *list = golden(), *entry, *test;
  size_t i, k, checked = 0;
  px_tokenizer *tok;
  ASSERT_OK(byte_tokenizer_open(folder, (byte_tokenizer_options){0}, &tok, &err));
  json_array_foreach(list, i, entry) {
    px_template t;
    ASSERT_OK(px_template_parse(json_string_value(json_object_get(entry, "template")), &t, &err));
    json_array_foreach(json_object_get(entry, "cases"), k, test) {
      px_arena arena = {0};
      px_chat_piece *pieces;
      size_t count, cap = 0;
      px_ids ids = {0}, part = {0}, scored = {0};
      px_buf want = {0}, got = {0};
      uint8_t *scores = NULL;
      if (render(t, tok, json_object_get(test, "messages"), false, &arena, &pieces, &count) == PX_OK) {
        ASSERT_OK(px_chat_encode(tok, pieces, count, &ids, &scores, &cap, &part, &err));
        for (size_t n = 0; n < ids.len; n++)
          if (scores[n]) ASSERT_OK(px_ids_push(&scored, ids.data[n], &err));
        ASSERT_OK(px_tokenizer_decode(tok, scored.data, scored.len, false, &got, &err));
        px_buf_append(&got, "", 0);
        px_buf_append(&want, "", 0);
        for (size_t n = 0; n < count; n++)
          if (pieces[n].assistant) px_buf_append(&want, pieces[n].text, pieces[n].bytes);
        assert_string_equal(got.data, want.data);
        checked += scored.len > 0;
      }
      free(scores);
      px_ids_free(&ids);
      px_ids_free(&part);
      px_ids_free(&scored);
      px_buf_free(&want);
      px_buf_free(&got);
      px_arena_free(&arena);
    }
  }
  assert_true(checked > 20);
  px_tokenizer_close(tok);
  json_decref(list);
}

static void names(void **state) {
  (void)state;
  static const char *const known[] = {"none", "chatml", "smollm2", "llama-2", "llama-3", "mistral"};
  px_template t;
  for (int i = 0; i < 6; i++) {
    ASSERT_OK(px_template_parse(known[i], &t, &err));
    assert_int_equal(t, i);
    assert_string_equal(px_template_name(t), known[i]);
  }
  assert_null(px_template_name((px_template)6));
  assert_null(px_template_name((px_template)-1));
  ASSERT_FAILS(px_template_parse("vicuna", &t, &err), PX_INVALID,
               "unknown chat template \"vicuna\"; known: chatml, smollm2, llama-2, llama-3, mistral, none");
}

static void detection(void **state) {
  (void)state;
  px_tokenizer *tok;
  px_template t = PX_TEMPLATE_MISTRAL;
  ASSERT_OK(byte_tokenizer_open(folder, (byte_tokenizer_options){0}, &tok, &err));
  ASSERT_OK(px_template_detect(tok, &t, &err));
  assert_int_equal(t, PX_TEMPLATE_NONE);
  px_tokenizer_close(tok);
  ASSERT_OK(byte_tokenizer_open(folder, (byte_tokenizer_options){.chat_template = "{{ messages }}"}, &tok, &err));
  ASSERT_FAILS(
      px_template_detect(tok, &t, &err), PX_BAD_FILE,
      "the tokenizer's chat template (SHA-256 f24189f08c85a1eb...) is none that is known byte for byte; if one "
      "renders the same text, name it: --template chatml, smollm2, llama-2, llama-3 or mistral");
  px_tokenizer_close(tok);
}

static px_tokenizer *smollm2(void) {
  char path[1000], home[500];
  snprintf(home, sizeof home, "%s/.cache", test_env("HOME", "/root"));
  snprintf(path, sizeof path, "%s/pfx/SmolLM2-135M-Instruct.Q4_1.gguf", test_env("XDG_CACHE_HOME", home));
  px_tokenizer *tok = NULL;
  if (px_file_exists(path)) ASSERT_OK(px_tokenizer_open(path, &tok, &err));
  return tok;
}

/* A template forced on a tokenizer that lacks its tokens: <|eot_id|><|start_header_id|> is ordinary text, whose tokens
 * reach across the end of a turn, and how line ends before a turn are cut depends on what follows them. Such a token
 * belongs to what follows. */
static void borders_inside_tokens(void **state) {
  (void)state;
  px_tokenizer *tok = smollm2();
  if (!tok) skip();
  px_arena arena = {0};
  px_chat_piece *pieces;
  size_t count, cap = 0;
  const px_chat_message messages[] = {
      {"user", "Hi"}, {"assistant", "Hello there"}, {"user", "And"}, {"assistant", "Bye"}};
  px_ids ids = {0}, part = {0};
  px_buf text = {0};
  uint8_t *scores = NULL;
  ASSERT_OK(px_chat_render(PX_TEMPLATE_LLAMA3, tok, messages, 4, false, &arena, &pieces, &count, &err));
  ASSERT_OK(px_chat_encode(tok, pieces, count, &ids, &scores, &cap, &part, &err));
  for (size_t i = 0; i < ids.len; i++) {
    if (scores[i]) ASSERT_OK(px_tokenizer_decode(tok, &ids.data[i], 1, false, &text, &err));
    if (scores[i] && (i + 1 == ids.len || !scores[i + 1])) px_buf_puts(&text, "/");
  }
  assert_string_equal(text.data, "\n\nHello there<|eot_id|/Bye<|eot_id|>/");
  free(scores);
  px_ids_free(&ids);
  px_ids_free(&part);
  px_buf_free(&text);
  px_arena_free(&arena);
  px_tokenizer_close(tok);
}

/* The real model's own template is recognised; one byte more and it is not. */
static void the_real_template(void **state) {
  (void)state;
  px_tokenizer *real = smollm2(), *tok;
  if (!real) skip();
  px_template t;
  ASSERT_OK(px_template_detect(real, &t, &err));
  assert_int_equal(t, PX_TEMPLATE_SMOLLM2);
  px_buf text = {0};
  px_buf_printf(&text, "%s\n", px_tokenizer_info_get(real)->chat_template);
  ASSERT_OK(byte_tokenizer_open(folder, (byte_tokenizer_options){.chat_template = text.data}, &tok, &err));
  assert_int_equal(px_template_detect(tok, &t, &err), PX_BAD_FILE);
  px_tokenizer_close(tok);
  px_buf_free(&text);

  px_ids ids = {0};
  px_row_options o = {.chat = PX_TEMPLATE_SMOLLM2};
  ASSERT_OK(px_prompt_ids(real, &o, "Hi", true, &ids, &err));
  /* <|im_start|>system\nYou are ...<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n */
  static const int32_t want[] = {1,    9690,  198,   2683, 359, 253, 5356,  5646, 11173, 3365, 3511,
                                 308,  34519, 28,    7018, 411, 407, 19712, 8182, 2,     198,  1,
                                 4093, 198,   26843, 2,    198, 1,   520,   9531, 198};
  assert_int_equal(ids.len, sizeof want / sizeof *want);
  assert_memory_equal(ids.data, want, sizeof want);
  px_ids_free(&ids);
  px_tokenizer_close(real);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(equals_transformers),
      cmocka_unit_test(ids_of_pieces),
      cmocka_unit_test(what_scores),
      cmocka_unit_test(names),
      cmocka_unit_test(detection),
      cmocka_unit_test(the_real_template),
      cmocka_unit_test(borders_inside_tokens),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
