/* SPDX-License-Identifier: MIT
 * Folders and their side files, flags, streaming, hostile and long input, and every refusal with its message. */
#include "helpers/test.h"

#include <dirent.h>
#include <unistd.h>

#include "core/file.h"
#include "helpers/strings.h"
#include "text/tokenizer.h"

static px_error err;
static char dir[64];

/* ---- a folder of its own for every test ---- */

static int make_dir(void **state) {
  (void)state;
  strcpy(dir, "/tmp/pfx_tokenizer_XXXXXX");
  return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
  (void)state;
  DIR *d = opendir(dir);
  for (struct dirent *e; d && (e = readdir(d));) {
    char path[400];
    snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
    unlink(path);
  }
  if (d) closedir(d);
  return rmdir(dir);
}

static const char *put(const char *name, const char *text) {
  static char path[400];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  ASSERT_OK(px_file_write(path, text, strlen(text), &err));
  return path;
}

static px_tokenizer *open_path(const char *path) {
  px_tokenizer *tok = NULL;
  ASSERT_OK(px_tokenizer_open(path, &tok, &err));
  return tok;
}

static px_tokenizer *open_golden(const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/tests/golden/tokenizers/%s.json", TEST_SOURCE_DIR, name);
  return open_path(path);
}

static void check_ids(const px_tokenizer *tok, const char *text, int flags, const char *want) {
  px_ids ids = {0};
  px_buf have = {0};
  px_buf_puts(&have, "");
  ASSERT_OK(px_tokenizer_encode(tok, text, strlen(text), flags, &ids, &err));
  for (size_t i = 0; i < ids.len; i++) {
    const char *token = px_tokenizer_token(tok, ids.data[i]);
    px_buf_printf(&have, "%s%s", i ? "|" : "", token ? token : "?");
  }
  assert_string_equal(have.data, want);
  px_buf_free(&have);
  px_ids_free(&ids);
}

/* A small byte-level tokenizer.json; the parts are JSON. */
#define VOCAB                                                                                             \
  "\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4,\"\xC4\xA0\":5,\"<s>\":6,\"</s>\":7,\"<pad>\":8,\"\xC4\xA0" \
  "a\":9"
#define JSON(normalizer, pre, post, decoder, model)                                                                    \
  "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":6,\"content\":\"<s>\",\"special\":true}],\"normalizer\":" normalizer \
  ",\"pre_tokenizer\":" pre ",\"post_processor\":" post ",\"decoder\":" decoder ",\"model\":" model "}"
#define BPE(extra) "{\"type\":\"BPE\"," extra "\"vocab\":{" VOCAB "},\"merges\":[\"a b\",\"ab c\",\"\xC4\xA0 a\"]}"
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"
#define PLAIN JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, BPE(""))

/* ---- folders ---- */

static void folder_with_side_files(void **state) {
  (void)state;
  put("tokenizer.json", PLAIN);
  put("tokenizer_config.json",
      "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"</s>\",\"pad_token\":null,\"add_bos_token\":true,"
      "\"chat_template\":[{\"name\":\"tool\",\"template\":\"T\"},{\"name\":\"default\",\"template\":\"D\"}]}");
  put("special_tokens_map.json", "{\"eos_token\":\"<s>\",\"pad_token\":\"<pad>\"}");
  put("generation_config.json", "{\"eos_token_id\":[7,4]}");
  px_tokenizer *tok = open_path(dir);
  const px_tokenizer_info *info = px_tokenizer_info_get(tok);
  assert_int_equal(info->bos, 6);
  assert_int_equal(info->eos, 7); /* tokenizer_config.json has the last word */
  assert_int_equal(info->pad, 8);
  assert_true(info->add_bos);
  assert_int_equal(info->stop_count, 2);
  assert_int_equal(info->stop_ids[0], 7);
  assert_int_equal(info->stop_ids[1], 4);
  assert_string_equal(info->chat_template, "D");
  assert_string_equal(info->kind, "byte-level BPE");
  assert_string_equal(info->split, "gpt-2");
  assert_int_equal(info->vocab_size, 10);
  assert_int_equal(strlen(info->digest), 64);
  assert_true(px_tokenizer_is_special(tok, 7)); /* named as eos */
  assert_false(px_tokenizer_is_special(tok, 4));
  check_ids(tok, "abc</s>ab a", 0,
            "abc|</s>|ab|\xC4\xA0"
            "a");
  px_tokenizer_close(tok);
  put("chat_template.jinja", "J");
  tok = open_path(dir);
  assert_string_equal(px_tokenizer_info_get(tok)->chat_template, "J");
  px_tokenizer_close(tok);
}

static void begin_token_by_the_rules(void **state) {
  (void)state;
#define TEMPLATE                                                                                                   \
  "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{" \
  "\"id\":\"A\",\"type_id\":0}}],"                                                                                 \
  "\"pair\":[],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[6],\"tokens\":[\"<s>\"]}}}"
  put("tokenizer.json", JSON("null", BYTE_LEVEL, TEMPLATE, BYTE_LEVEL, BPE("")));
  px_tokenizer *tok = open_path(dir); /* the post-processor says so */
  assert_true(px_tokenizer_info_get(tok)->add_bos);
  assert_int_equal(px_tokenizer_info_get(tok)->bos, 6);
  px_tokenizer_close(tok);
  put("tokenizer_config.json", "{\"add_bos_token\":false}"); /* said explicitly */
  tok = open_path(dir);
  assert_false(px_tokenizer_info_get(tok)->add_bos);
  px_tokenizer_close(tok);
  put("tokenizer.json", PLAIN);
  put("tokenizer_config.json", "{\"add_bos_token\":true}"); /* but there is none */
  tok = open_path(dir);
  assert_false(px_tokenizer_info_get(tok)->add_bos);
  px_tokenizer_close(tok);
}

static void eos_from_the_models_config(void **state) {
  (void)state;
  put("tokenizer.json", PLAIN);
  put("config.json", "{\"bos_token_id\":6,\"eos_token_id\":[7,8]}");
  px_tokenizer *tok = open_path(dir);
  const px_tokenizer_info *info = px_tokenizer_info_get(tok);
  assert_int_equal(info->bos, 6);
  assert_int_equal(info->eos, 7);
  assert_int_equal(info->stop_count, 2);
  px_tokenizer_close(tok);
}

static void vocabulary_and_merges_apart(void **state) {
  (void)state;
  put("vocab.json", "{" VOCAB ",\"<|endoftext|>\":10}");
  put("merges.txt", "#version: 0.2\na b\nab c\n\xC4\xA0 a\n");
  px_tokenizer *tok = open_path(dir);
  assert_int_equal(px_tokenizer_info_get(tok)->eos, 10);
  check_ids(tok, "abc a<|endoftext|>b", 0,
            "abc|\xC4\xA0"
            "a|<|endoftext|>|b");
  px_tokenizer *gpt2 = tok;
  put("tokenizer_config.json", "{\"tokenizer_class\":\"Qwen2Tokenizer\"}");
  tok = open_path(dir);
  assert_string_equal(px_tokenizer_info_get(tok)->split, "qwen2");
  assert_string_not_equal(px_tokenizer_info_get(tok)->digest, px_tokenizer_info_get(gpt2)->digest);
  px_tokenizer_close(tok);
  px_tokenizer_close(gpt2);
  put("tokenizer_config.json", "{\"tokenizer_class\":\"BertTokenizer\"}");
  char want[400];
  snprintf(
      want, sizeof want,
      "%s/tokenizer_config.json: tokenizer_class \"BertTokenizer\" with vocab.json and merges.txt is not supported "
      "(supported: GPT2Tokenizer, Qwen2Tokenizer): save a tokenizer.json",
      dir);
  ASSERT_FAILS(px_tokenizer_open(dir, &tok, &err), PX_BAD_FILE, want);
}

static void folders_without_a_tokenizer(void **state) {
  (void)state;
  px_tokenizer *tok;
  char want[600];
  snprintf(want, sizeof want, "%s: there is no tokenizer.json, and no vocab.json with merges.txt", dir);
  ASSERT_FAILS(px_tokenizer_open(dir, &tok, &err), PX_BAD_FILE, want);
  assert_null(tok);
  put("tokenizer.model", "x");
  snprintf(want, sizeof want,
           "%s/tokenizer.model: a tokenizer.model alone is not supported: convert it to tokenizer.json "
           "(transformers' save_pretrained of the fast tokenizer writes it)",
           dir);
  ASSERT_FAILS(px_tokenizer_open(dir, &tok, &err), PX_BAD_FILE, want);
}

/* ---- refusals ---- */

static void unknown_parts_are_refused_by_name(void **state) {
  (void)state;
  static const struct {
    const char *json, *message;
  } cases[] = {
      {"[]", "this is no tokenizer.json"},
      {"{}", "field \"model\" is missing: this is no tokenizer.json"},
      {JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"type\":\"Unigram\",\"vocab\":[]}"),
       "model type \"Unigram\" is not supported (supported: BPE)"},
      {JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"type\":\"WordPiece\",\"vocab\":{}}"),
       "model type \"WordPiece\" is not supported (supported: BPE)"},
      {JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, BPE("\"dropout\":0.1,")), "a model with dropout is not supported"},
      {JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, BPE("\"end_of_word_suffix\":\"</w>\",")),
       "end_of_word_suffix \"</w>\" is not supported"},
      {JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, BPE("\"continuing_subword_prefix\":\"##\",")),
       "continuing_subword_prefix \"##\" is not supported"},
      {JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, BPE("\"magic\":1,")),
       "field \"magic\" of the model is not supported"},
      {JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, BPE("\"unk_token\":\"<unk>\",")),
       "unk_token \"<unk>\" is not in the vocabulary"},
      {JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}"),
       "merge 0 (\"a\" \"b\") uses or makes a token that the vocabulary lacks"},
      {JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}"),
       "merge 0 must be two tokens with one space between"},
      {JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}"),
       "token id 0 is given twice"},
      {JSON("null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"type\":\"BPE\",\"vocab\":{\"a\":4194304},\"merges\":[]}"),
       "the id of token \"a\" must be an integer in 0..4194303"},
      {JSON("{\"type\":\"BertNormalizer\"}", BYTE_LEVEL, "null", BYTE_LEVEL, BPE("")),
       "normalizer \"BertNormalizer\" is not supported (supported: NFC, Prepend, Replace, Strip, Sequence)"},
      {JSON("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"x\"},\"content\":\"\"}", BYTE_LEVEL, "null", BYTE_LEVEL,
            BPE("")),
       "normalizer \"Replace with a Regex\" is not supported (supported: Replace with a String)"},
      {JSON("null", "{\"type\":\"Whitespace\"}", "null", BYTE_LEVEL, BPE("")),
       "pre_tokenizer \"Whitespace\" is not supported (supported: ByteLevel, Digits, Split, Metaspace, Sequence)"},
      {JSON("null", "{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL ",{\"type\":\"Digits\"}]}", "null",
            BYTE_LEVEL, BPE("")),
       "a pre_tokenizer behind ByteLevel, \"Digits\" is not supported (supported: ByteLevel as the last one)"},
      {JSON("null", "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\bx\"},\"behavior\":\"Isolated\"}", "null",
            BYTE_LEVEL, BPE("")),
       "split pattern \"\\bx\": this escape at offset 0 is not supported"},
      {JSON("null", BYTE_LEVEL, "{\"type\":\"BertProcessing\"}", BYTE_LEVEL, BPE("")),
       "post_processor \"BertProcessing\" is not supported (supported: ByteLevel, TemplateProcessing, Sequence)"},
      {JSON("null", BYTE_LEVEL, "null", "{\"type\":\"WordPiece\"}", BPE("")),
       "decoder \"WordPiece\" is not supported (supported: ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace, "
       "Sequence)"},
      {JSON("null", BYTE_LEVEL, "null", "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}", BPE("")),
       "decoder \"Strip\" is not supported (supported: behind Fuse, with start 0 or 1 and stop 0)"},
      {"{\"added_tokens\":[{\"id\":1,\"content\":\"a\"}],\"model\":" BPE("") "}",
       "added token \"a\" has id 1, but the vocabulary gives it 0"},
      {"{\"surprise\":{},\"model\":" BPE("") "}", "field \"surprise\" is not supported"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    px_tokenizer *tok;
    char want[1000];
    const char *path = put("tokenizer.json", cases[i].json);
    snprintf(want, sizeof want, "%s: %s", path, cases[i].message);
    ASSERT_FAILS(px_tokenizer_open(path, &tok, &err), PX_BAD_FILE, want);
    assert_null(tok);
  }
}

/* ---- GGUF ---- */

static void gguf_bytes(px_buf *b, const void *bytes, size_t count) { px_buf_append(b, bytes, count); }
static void gguf_text(px_buf *b, const char *text) {
  uint64_t count = strlen(text);
  gguf_bytes(b, &count, 8);
  gguf_bytes(b, text, count);
}
static void gguf_string(px_buf *b, const char *key, const char *text) {
  uint32_t type = 8;
  gguf_text(b, key);
  gguf_bytes(b, &type, 4);
  gguf_text(b, text);
}
static void gguf_strings(px_buf *b, const char *key, const char *const *texts, uint64_t count) {
  uint32_t types[2] = {9, 8};
  gguf_text(b, key);
  gguf_bytes(b, types, 8);
  gguf_bytes(b, &count, 8);
  for (uint64_t i = 0; i < count; i++) gguf_text(b, texts[i]);
}
static void gguf_numbers(px_buf *b, const char *key, uint32_t type, const void *numbers, uint64_t count) {
  uint32_t types[2] = {9, type};
  gguf_text(b, key);
  gguf_bytes(b, types, 8);
  gguf_bytes(b, &count, 8);
  gguf_bytes(b, numbers, count * 4);
}
static void gguf_u32(px_buf *b, const char *key, uint32_t value) {
  uint32_t type = 4;
  gguf_text(b, key);
  gguf_bytes(b, &type, 4);
  gguf_bytes(b, &value, 4);
}
static const char *gguf_file(const px_buf *values, uint64_t count) {
  static char path[100];
  px_buf b = {0};
  uint32_t version = 3;
  uint64_t tensors = 0;
  gguf_bytes(&b, "GGUF", 4);
  gguf_bytes(&b, &version, 4);
  gguf_bytes(&b, &tensors, 8);
  gguf_bytes(&b, &count, 8);
  gguf_bytes(&b, values->data, values->len);
  snprintf(path, sizeof path, "%s/m.gguf", dir);
  ASSERT_OK(px_file_write(path, b.data, b.len, &err));
  px_buf_free(&b);
  return path;
}

static void gguf_fails(const char *model, const char *pre, const char *message) {
  static const char *const tokens[] = {"a", "b"};
  px_buf b = {0};
  px_tokenizer *tok;
  char want[600];
  uint64_t count = 2;
  gguf_string(&b, "tokenizer.ggml.model", model);
  gguf_strings(&b, "tokenizer.ggml.tokens", tokens, 2);
  if (pre) gguf_string(&b, "tokenizer.ggml.pre", pre), count++;
  const char *path = gguf_file(&b, count);
  snprintf(want, sizeof want, "%s: %s", path, message);
  ASSERT_FAILS(px_tokenizer_open(path, &tok, &err), PX_BAD_FILE, want);
  px_buf_free(&b);
}

static void gguf_refusals(void **state) {
  (void)state;
  gguf_fails("bert", NULL, "tokenizer.ggml.model is \"bert\", which is not supported (supported: gpt2, llama)");
  gguf_fails("gpt2", "deepseek-llm",
             "tokenizer.ggml.pre is \"deepseek-llm\", which is not supported (supported: gpt-2, gpt-neox, olmo, phi-2, "
             "smollm, starcoder, refact, codeshell, qwen2, deepseek-r1-qwen, llama-bpe)");
  gguf_fails("gpt2", NULL,
             "tokenizer.ggml.pre is missing: without the name of its split rule the vocabulary cannot be used; convert "
             "the model again");
  gguf_fails("gpt2", "smollm", "field \"tokenizer.ggml.merges\" is missing");
  gguf_fails("llama", NULL, "field \"tokenizer.ggml.scores\" is missing");
}

static void gguf_sentencepiece(void **state) {
  (void)state;
  static const char *const tokens[] = {"<unk>",
                                       "<s>",
                                       "</s>",
                                       "<0x0A>",
                                       "\xE2\x96\x81",
                                       "a",
                                       "b",
                                       "ab",
                                       "\xE2\x96\x81"
                                       "ab",
                                       "<eot>",
                                       "s>",
                                       "</"};
  static const float scores[] = {0, 0, 0, 0, -3, -4, -5, -1, -2, 0, -6, -7};
  static const int32_t types[] = {2, 3, 3, 6, 1, 1, 1, 1, 1, 3, 1, 1};
  px_buf b = {0};
  gguf_string(&b, "tokenizer.ggml.model", "llama");
  gguf_strings(&b, "tokenizer.ggml.tokens", tokens, 12);
  gguf_numbers(&b, "tokenizer.ggml.scores", 6, scores, 12);
  gguf_numbers(&b, "tokenizer.ggml.token_type", 5, types, 12);
  gguf_u32(&b, "tokenizer.ggml.bos_token_id", 1);
  gguf_u32(&b, "tokenizer.ggml.eos_token_id", 2);
  gguf_u32(&b, "tokenizer.ggml.eot_token_id", 9);
  px_tokenizer *tok = open_path(gguf_file(&b, 7));
  const px_tokenizer_info *info = px_tokenizer_info_get(tok);
  assert_true(info->add_bos); /* a silent GGUF of this kind */
  assert_int_equal(info->stop_count, 2);
  assert_int_equal(info->stop_ids[1], 9);
  check_ids(tok, "ab ab\nab", 0,
            "\xE2\x96\x81"
            "ab|\xE2\x96\x81"
            "ab|<0x0A>|ab");
  check_ids(tok, "ab ab", PX_ENCODE_NO_DUMMY_SPACE,
            "ab|\xE2\x96\x81"
            "ab");
  check_ids(tok, "ab</s>ab", 0,
            "\xE2\x96\x81"
            "ab|</s>|\xE2\x96\x81"
            "ab");
  check_ids(tok, "ab</s>ab", PX_ENCODE_NO_DUMMY_SPACE,
            "ab|</s>|\xE2\x96\x81"
            "ab");
  check_ids(tok, "xx", 0, "\xE2\x96\x81|<unk>"); /* no bytes for x: one unknown for the run */
  /* Text never merges into a control token. */
  check_ids(tok, "b</s>", PX_ENCODE_NO_SPECIAL, "\xE2\x96\x81|b|<unk>");
  px_tokenizer_close(tok);
  px_buf_free(&b);
}

/* ---- flags, ids, streaming ---- */

static void special_tokens_as_ordinary_text(void **state) {
  (void)state;
  const char *path = put("tokenizer.json", PLAIN);
  px_tokenizer *tok = open_path(path);
  check_ids(tok, "a<s>b", 0, "a|<s>|b");
  check_ids(tok, "a<s>b", PX_ENCODE_NO_SPECIAL, "a|b"); /* < s > are not in this vocabulary */
  px_tokenizer_close(tok);
}

static void spellings_and_ids(void **state) {
  (void)state;
  px_tokenizer *tok = open_path(put("tokenizer.json", PLAIN));
  px_buf out = {0};
  int32_t bad[] = {0, 10};
  assert_string_equal(px_tokenizer_token(tok, 4), "abc");
  assert_null(px_tokenizer_token(tok, 10));
  assert_null(px_tokenizer_token(tok, -1));
  assert_int_equal(px_tokenizer_id(tok, "ab"), 3);
  assert_int_equal(px_tokenizer_id(tok, "ba"), -1);
  ASSERT_FAILS(px_tokenizer_decode(tok, bad, 2, false, &out, &err), PX_INVALID,
               "token id 10 is not in the tokenizer's vocabulary of 10");
  bad[1] = -5;
  ASSERT_FAILS(px_tokenizer_decode(tok, bad, 2, false, &out, &err), PX_INVALID,
               "token id -5 is not in the tokenizer's vocabulary of 10");
  px_buf_free(&out);
  px_tokenizer_close(tok);
}

/* What comes out of the stream is complete UTF-8 at every step, and all of it is the decoded text. */
static void check_stream(const px_tokenizer *tok, const px_ids *ids, bool skip) {
  px_buf whole = {0}, joined = {0}, part = {0};
  px_decoder d = {.tok = tok, .skip_special = skip};
  ASSERT_OK(px_tokenizer_decode(tok, ids->data, ids->len, skip, &whole, &err));
  for (size_t i = 0; i <= ids->len; i++) {
    part.len = 0;
    if (i < ids->len)
      ASSERT_OK(px_decoder_put(&d, ids->data[i], &part, &err));
    else
      ASSERT_OK(px_decoder_end(&d, &part, &err));
    for (size_t at = 0; at < part.len;) { /* whole characters only */
      unsigned char c = (unsigned char)part.data[at];
      size_t need = c < 0x80 ? 1 : c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
      assert_true(c < 0x80 || c >= 0xC2);
      for (size_t k = 1; k < need; k++)
        assert_true(at + k < part.len && ((unsigned char)part.data[at + k] & 0xC0) == 0x80);
      at += need;
    }
    px_buf_append(&joined, part.data ? part.data : "", part.len);
  }
  assert_int_equal(joined.len, whole.len);
  assert_memory_equal(joined.data ? joined.data : "", whole.data ? whole.data : "", whole.len);
  px_buf_free(&whole);
  px_buf_free(&joined);
  px_buf_free(&part);
}

static void streaming_equals_decode(void **state) {
  (void)state;
  static const char *const names[] = {"small_llama3", "small_spm", "small_metaspace"};
  for (size_t n = 0; n < 3; n++) {
    px_tokenizer *tok = open_golden(names[n]);
    int32_t size = px_tokenizer_info_get(tok)->vocab_size;
    uint64_t seed = 1;
    px_buf string = {0};
    for (uint32_t i = 0; i < 600; i++) {
      px_ids ids = {0};
      string.len = 0;
      px_test_string(4, i, &string);
      if (i % 2) {
        ASSERT_OK(px_tokenizer_encode(tok, string.data ? string.data : "", string.len, 0, &ids, &err));
      } else { /* any ids: broken characters, runs of bytes, special tokens; byte tokens more often */
        for (int k = 0; k < 40; k++) {
          seed = seed * 6364136223846793005u + 1442695040888963407u;
          int32_t id = (int32_t)((seed >> 33) % (uint64_t)(seed >> 32 & 1 ? 260 : size));
          ASSERT_OK(px_ids_push(&ids, id, &err));
        }
      }
      check_stream(tok, &ids, i % 3 == 0);
      px_ids_free(&ids);
    }
    px_buf_free(&string);
    px_tokenizer_close(tok);
  }
}

/* ---- long and hostile text ---- */

/* Returns at once or the test times out: one letter, white space, marks in the wrong order, broken bytes, parts of
 * special tokens. What comes out is checked by decoding it. */
static void a_megabyte_of_anything(void **state) {
  (void)state;
  static const char *const units[] = {"a",    " ",          "\n",     "q\xCC\x95\xCC\xA7\xCC\xB4",
                                      "\xFF", "<|begin_of", "<s",     " \n",
                                      "1",    "[INST] ",    "<code>", "\xE2\x96\x81"};
  static const char *const names[] = {"small_llama3", "small_spm", "small_metaspace"};
  for (size_t n = 0; n < 3; n++) {
    px_tokenizer *tok = open_golden(names[n]);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
      px_buf text = {0}, back = {0};
      px_ids ids = {0};
      while (text.len < 1000000) px_buf_puts(&text, units[u]);
      ASSERT_OK(px_tokenizer_encode(tok, text.data, text.len, 0, &ids, &err));
      assert_true(ids.len > 0);
      ASSERT_OK(px_tokenizer_decode(tok, ids.data, ids.len, false, &back, &err));
      /* Exact where no added token takes white space away, and no byte is replaced. */
      if (units[u][0] != '\xFF' && units[u][0] != '[' && units[u][0] != '\xE2') {
        bool stripped = units[u][0] == ' ' && n == 2; /* Metaspace puts no mark before a text that starts with one */
        if (!stripped) assert_int_equal(back.len, text.len);
      }
      px_buf_free(&text);
      px_buf_free(&back);
      px_ids_free(&ids);
    }
    px_tokenizer_close(tok);
  }
}

/* Marks in front of each other in the wrong order: NFC sorts them, however many there are. */
static void nfc_of_a_long_run_of_marks(void **state) {
  (void)state;
  px_tokenizer *tok = open_path(
      put("tokenizer.json",
          "{\"normalizer\":{\"type\":\"NFC\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"\xC3\xA9\":0,\"\xCC\x81\":1,"
          "\"\xCC\xA7\":2,\"\xC8\xA9\":3,\"e\":4,\"\xEC\x9A\xB0\":5,\"\xE1\x86\xA7\":6},\"merges\":[]}}"));
  check_ids(tok, "e\xCC\x81", 0, "\xC3\xA9");
  check_ids(tok, "e\xCC\x81\xCC\xA7", 0, "\xC8\xA9|\xCC\x81");                /* the cedilla goes first */
  check_ids(tok, "\xEC\x9A\xB0\xE1\x86\xA7", 0, "\xEC\x9A\xB0|\xE1\x86\xA7"); /* U+11A7 is no final jamo */
  px_buf text = {0};
  px_ids ids = {0};
  px_buf_puts(&text, "e");
  for (int i = 0; i < 200000; i++) px_buf_puts(&text, "\xCC\x81\xCC\xA7");
  ASSERT_OK(px_tokenizer_encode(tok, text.data, text.len, 0, &ids, &err));
  assert_int_equal(ids.len, 400000);
  assert_int_equal(ids.data[0], 3);
  assert_int_equal(ids.data[199999], 2);
  assert_int_equal(ids.data[200000], 1);
  px_buf_free(&text);
  px_ids_free(&ids);
  px_tokenizer_close(tok);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
  const struct CMUnitTest tests[] = {
      TEST(folder_with_side_files),
      TEST(begin_token_by_the_rules),
      TEST(eos_from_the_models_config),
      TEST(vocabulary_and_merges_apart),
      TEST(folders_without_a_tokenizer),
      TEST(unknown_parts_are_refused_by_name),
      TEST(gguf_refusals),
      TEST(gguf_sentencepiece),
      TEST(special_tokens_as_ordinary_text),
      TEST(spellings_and_ids),
      cmocka_unit_test(streaming_equals_decode),
      cmocka_unit_test(a_megabyte_of_anything),
      TEST(nfc_of_a_long_run_of_marks),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
