/* SPDX-License-Identifier: MIT
 * 20,000 generated strings, encoded and decoded, against digests of what the `tokenizers` library makes of them
 * (tests/golden/tokenizers/README.md), and llama.cpp's published cases for its vocabulary files. */
#include "helpers/test.h"

#include <unistd.h>

#include "core/file.h"
#include "core/hash.h"
#include "helpers/strings.h"
#include "text/tokenizer.h"

enum { STRINGS = 20000, GROUP = 100 };

/* Opens the tokenizer, or skips the test where its file is absent. */
static px_tokenizer *open_or_skip(const char *path) {
  px_error err;
  px_tokenizer *tok = NULL;
  if (!px_file_exists(path)) {
    print_message("skipped: no %s\n", path);
    skip();
  }
  ASSERT_OK(px_tokenizer_open(path, &tok, &err));
  return tok;
}

/* Ids, text, and text of the reversed ids of one group of strings. */
static void digest_group(const px_tokenizer *tok, uint32_t first, px_sha256 h[3]) {
  px_error err;
  px_buf string = {0}, text = {0};
  px_ids ids = {0};
  for (uint32_t i = first; i < first + GROUP; i++) {
    string.len = text.len = ids.len = 0;
    px_test_string(1, i, &string);
    ASSERT_OK(px_tokenizer_encode(tok, string.data ? string.data : "", string.len, 0, &ids, &err));
    size_t count = ids.len;
    ASSERT_OK(px_ids_push(&ids, -1, &err));
    px_sha256_add(&h[0], ids.data, ids.len * sizeof *ids.data);
    ASSERT_OK(px_tokenizer_decode(tok, ids.data, count, false, &text, &err));
    px_buf_append(&text, "", 1);
    px_sha256_add(&h[1], text.data, text.len);
    text.len = 0;
    for (size_t k = 0; k < count / 2; k++) {
      int32_t id = ids.data[k];
      ids.data[k] = ids.data[count - 1 - k];
      ids.data[count - 1 - k] = id;
    }
    ASSERT_OK(px_tokenizer_decode(tok, ids.data, count, true, &text, &err));
    px_buf_append(&text, "", 1);
    px_sha256_add(&h[2], text.data, text.len);
  }
  px_buf_free(&string);
  px_buf_free(&text);
  px_ids_free(&ids);
}

/* Takes the tokenizer. */
static void check_tokenizer(const char *name, px_tokenizer *tok) {
  px_error err;
  px_arena arena = {0};
  px_buf want = {0};
  ASSERT_OK(px_file_read(px_arena_printf(&arena, "%s/tests/golden/tokenizers/%s.digests", TEST_SOURCE_DIR, name),
                         1 << 20, &want, &err));
  const char *line = want.data;
  int wrong = 0;
  for (uint32_t first = 0; first < STRINGS; first += GROUP) {
    px_sha256 h[3];
    char hex[3][65], have[80];
    for (int k = 0; k < 3; k++) px_sha256_start(&h[k]);
    digest_group(tok, first, h);
    for (int k = 0; k < 3; k++) px_sha256_end(&h[k], hex[k]);
    int length = snprintf(have, sizeof have, "%.16s %.16s %.16s\n", hex[0], hex[1], hex[2]);
    assert_true((size_t)(want.data + want.len - line) >= (size_t)length);
    if (memcmp(line, have, (size_t)length) != 0) {
      wrong++;
      print_message("%s: strings %u..%u: want %.50s, have %.50s\n", name, first, first + GROUP - 1, line, have);
    }
    line += length;
  }
  assert_int_equal(line - want.data, want.len);
  assert_int_equal(wrong, 0);
  px_tokenizer_close(tok);
  px_buf_free(&want);
  px_arena_free(&arena);
}

static void check_digests(const char *name, const char *path) { check_tokenizer(name, open_or_skip(path)); }

/* The same digests, and the tokenizer's own, from the files that pfx writes for it. */
static void check_written(const char *name, const char *path) {
  px_error err;
  char dir[] = "/tmp/pfx_tokenizer_XXXXXX", file[64];
  px_tokenizer *tok = open_or_skip(path), *again = NULL;
  assert_non_null(mkdtemp(dir));
  ASSERT_OK(px_tokenizer_write(tok, dir, 512, &err));
  ASSERT_OK(px_tokenizer_open(dir, &again, &err));
  const px_tokenizer_info *a = px_tokenizer_info_get(tok), *b = px_tokenizer_info_get(again);
  assert_string_equal(a->digest, b->digest);
  assert_string_equal(a->kind, b->kind);
  assert_int_equal(a->bos, b->bos);
  assert_int_equal(a->add_bos, b->add_bos);
  if (a->chat_template) assert_string_equal(a->chat_template, b->chat_template);
  px_tokenizer_close(tok);
  for (int i = 0; i < 2; i++) {
    snprintf(file, sizeof file, "%s/%s", dir, i ? "tokenizer.json" : "tokenizer_config.json");
    assert_int_equal(unlink(file), 0);
  }
  assert_int_equal(rmdir(dir), 0);
  check_tokenizer(name, again);
}

#define SHARED_WRITTEN(function, name, file)                                \
  static void function(void **state) {                                      \
    (void)state;                                                            \
    char path[4096];                                                        \
    snprintf(path, sizeof path, "%s/tokenizers/%s", TEST_SHARED_DIR, file); \
    check_written(name, path);                                              \
  }
#define SMALL_WRITTEN(name)                                                                    \
  static void written_##name(void **state) {                                                   \
    (void)state;                                                                               \
    char path[4096];                                                                           \
    snprintf(path, sizeof path, "%s/tests/golden/tokenizers/%s.json", TEST_SOURCE_DIR, #name); \
    check_written(#name, path);                                                                \
  }
#define SHARED_DIGESTS(function, name, file)                                \
  static void function(void **state) {                                      \
    (void)state;                                                            \
    char path[4096];                                                        \
    snprintf(path, sizeof path, "%s/tokenizers/%s", TEST_SHARED_DIR, file); \
    check_digests(name, path);                                              \
  }
#define SMALL_DIGESTS(name)                                                                    \
  static void name(void **state) {                                                             \
    (void)state;                                                                               \
    char path[4096];                                                                           \
    snprintf(path, sizeof path, "%s/tests/golden/tokenizers/%s.json", TEST_SOURCE_DIR, #name); \
    check_digests(#name, path);                                                                \
  }

SMALL_DIGESTS(small_llama3)
SMALL_DIGESTS(small_spm)
SMALL_DIGESTS(small_metaspace)
SHARED_DIGESTS(gpt2, "gpt2", "gpt2/tokenizer.json")
SHARED_DIGESTS(gpt2_folder, "gpt2", "gpt2")
SHARED_DIGESTS(gpt_neox, "gpt-neox", "gpt-neox/20B_tokenizer.json")
SHARED_DIGESTS(qwen3, "qwen3", "qwen3")
SHARED_DIGESTS(gguf_gpt2, "gguf_gpt-2", "gguf-vocab/ggml-vocab-gpt-2.gguf")
SHARED_DIGESTS(gguf_llama_spm, "gguf_llama-spm", "gguf-vocab/ggml-vocab-llama-spm.gguf")
SHARED_DIGESTS(gguf_starcoder, "gguf_starcoder", "gguf-vocab/ggml-vocab-starcoder.gguf")

SMALL_WRITTEN(small_llama3)
SMALL_WRITTEN(small_spm)
SHARED_WRITTEN(written_qwen3, "qwen3", "qwen3")
SHARED_WRITTEN(written_gguf_gpt2, "gguf_gpt-2", "gguf-vocab/ggml-vocab-gpt-2.gguf")
SHARED_WRITTEN(written_gguf_llama_spm, "gguf_llama-spm", "gguf-vocab/ggml-vocab-llama-spm.gguf")
SHARED_WRITTEN(written_gguf_starcoder, "gguf_starcoder", "gguf-vocab/ggml-vocab-starcoder.gguf")

static const char *smollm2_path(char *path, size_t size) {
  char fallback[2048];
  snprintf(fallback, sizeof fallback, "%s/.cache", test_env("HOME", ""));
  snprintf(path, size, "%s/pfx/SmolLM2-135M-Instruct.Q4_1.gguf", test_env("XDG_CACHE_HOME", fallback));
  return path;
}

static void gguf_smollm(void **state) {
  (void)state;
  char path[4096];
  check_digests("gguf_smollm", smollm2_path(path, sizeof path));
}

static void written_gguf_smollm(void **state) {
  (void)state;
  char path[4096];
  check_written("gguf_smollm", smollm2_path(path, sizeof path));
}

/* ---- llama.cpp's cases ---- */

static void check_cases(const char *cases, const char *tokenizer) {
  static const char between[] = "\n__ggml_vocab_test__\n";
  px_error err;
  px_arena arena = {0};
  px_buf in = {0}, out = {0};
  char path[4096]; /* not the arena: a skip leaves it unfreed */
  snprintf(path, sizeof path, "%s/tokenizers/%s", TEST_SHARED_DIR, tokenizer);
  px_tokenizer *tok = open_or_skip(path);
  ASSERT_OK(px_file_read(px_arena_printf(&arena, "%s/tokenizers/gguf-vocab/%s.inp", TEST_SHARED_DIR, cases), 1 << 20,
                         &in, &err));
  ASSERT_OK(px_file_read(px_arena_printf(&arena, "%s/tokenizers/gguf-vocab/%s.out", TEST_SHARED_DIR, cases), 1 << 20,
                         &out, &err));
  char *text = in.data, *line = out.data;
  int count = 0;
  for (char *next; text; text = next, count++) {
    char *end = strstr(text, between), *line_end = strchr(line, '\n');
    next = end ? end + strlen(between) : NULL;
    px_ids ids = {0};
    px_buf have = {0};
    ASSERT_OK(px_tokenizer_encode(tok, text, end ? (size_t)(end - text) : strlen(text), 0, &ids, &err));
    for (size_t i = 0; i < ids.len; i++) px_buf_printf(&have, " %d", ids.data[i]);
    if (line_end) *line_end = 0;
    if (strcmp(have.data ? have.data : "", line) != 0)
      fail_msg("%s, case %d: want%s, have%s", cases, count, line, have.data);
    line = line_end ? line_end + 1 : line + strlen(line);
    px_ids_free(&ids);
    px_buf_free(&have);
  }
  assert_int_equal(count, 47);
  px_tokenizer_close(tok);
  px_buf_free(&in);
  px_buf_free(&out);
  px_arena_free(&arena);
}

static void cases_gpt2(void **state) {
  (void)state;
  check_cases("ggml-vocab-gpt-2.gguf", "gguf-vocab/ggml-vocab-gpt-2.gguf");
}

static void cases_llama_spm(void **state) {
  (void)state;
  check_cases("ggml-vocab-llama-spm.gguf", "gguf-vocab/ggml-vocab-llama-spm.gguf");
}

static void cases_starcoder(void **state) {
  (void)state;
  check_cases("ggml-vocab-starcoder.gguf", "gguf-vocab/ggml-vocab-starcoder.gguf");
}

static void cases_qwen2(void **state) {
  (void)state;
  check_cases("ggml-vocab-qwen2.gguf", "qwen3/tokenizer.json");
}

static void smollm2_says_paris(void **state) {
  (void)state;
  static const int32_t want[] = {504, 3575, 282, 4649, 314};
  char path[4096];
  px_error err;
  px_ids ids = {0};
  px_tokenizer *tok = open_or_skip(smollm2_path(path, sizeof path));
  ASSERT_OK(px_tokenizer_encode(tok, "The capital of France is", 24, 0, &ids, &err));
  assert_int_equal(ids.len, 5);
  assert_memory_equal(ids.data, want, sizeof want);
  const px_tokenizer_info *info = px_tokenizer_info_get(tok);
  assert_int_equal(info->bos, 1);
  assert_int_equal(info->eos, 2);
  assert_false(info->add_bos);
  assert_string_equal(info->split, "smollm");
  assert_non_null(strstr(info->chat_template, "You are a helpful AI assistant named SmolLM"));
  px_ids_free(&ids);
  px_tokenizer_close(tok);
}

/* A GGUF and a folder that hold the same tokenizer have the same digest. */
static void digest_is_of_the_tokenizer(void **state) {
  (void)state;
  char path[4096];
  snprintf(path, sizeof path, "%s/tokenizers/gpt2", TEST_SHARED_DIR);
  px_tokenizer *folder = open_or_skip(path);
  snprintf(path, sizeof path, "%s/tokenizers/gguf-vocab/ggml-vocab-gpt-2.gguf", TEST_SHARED_DIR);
  px_tokenizer *gguf = open_or_skip(path);
  assert_string_equal(px_tokenizer_info_get(folder)->digest, px_tokenizer_info_get(gguf)->digest);
  snprintf(path, sizeof path, "%s/tokenizers/gguf-vocab/ggml-vocab-starcoder.gguf", TEST_SHARED_DIR);
  px_tokenizer *other = open_or_skip(path);
  assert_string_not_equal(px_tokenizer_info_get(other)->digest, px_tokenizer_info_get(gguf)->digest);
  px_tokenizer_close(folder);
  px_tokenizer_close(gguf);
  px_tokenizer_close(other);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(small_llama3),
      cmocka_unit_test(small_spm),
      cmocka_unit_test(small_metaspace),
      cmocka_unit_test(gpt2),
      cmocka_unit_test(gpt2_folder),
      cmocka_unit_test(gpt_neox),
      cmocka_unit_test(qwen3),
      cmocka_unit_test(gguf_gpt2),
      cmocka_unit_test(gguf_llama_spm),
      cmocka_unit_test(gguf_starcoder),
      cmocka_unit_test(gguf_smollm),
      cmocka_unit_test(written_small_llama3),
      cmocka_unit_test(written_small_spm),
      cmocka_unit_test(written_qwen3),
      cmocka_unit_test(written_gguf_gpt2),
      cmocka_unit_test(written_gguf_llama_spm),
      cmocka_unit_test(written_gguf_starcoder),
      cmocka_unit_test(written_gguf_smollm),
      cmocka_unit_test(cases_gpt2),
      cmocka_unit_test(cases_llama_spm),
      cmocka_unit_test(cases_starcoder),
      cmocka_unit_test(cases_qwen2),
      cmocka_unit_test(smollm2_says_paris),
      cmocka_unit_test(digest_is_of_the_tokenizer),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
