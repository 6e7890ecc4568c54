/* SPDX-License-Identifier: MIT */
#include "helpers/byte_tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

static const char *const added[] = {"<s>",
                                    "</s>",
                                    "<|im_start|>",
                                    "<|im_end|>",
                                    "<|start_header_id|>",
                                    "<|end_header_id|>",
                                    "<|eot_id|>",
                                    "<|begin_of_text|>"};

/* GPT-2's printable stand-in for a byte, as UTF-8. */
static void byte_char(int byte, char out[4]) {
  int c = byte;
  bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  if (!printable) c = byte < 0x21 ? 256 + byte : byte < 0xa1 ? 256 + 33 + byte - 0x7f : 256 + 67;
  if (c < 0x80) {
    out[0] = (char)c;
    out[1] = 0;
  } else {
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    out[2] = 0;
  }
}

static json_t *make_tokenizer(bool add_bos) {
  json_t *vocab = json_object(), *list = json_array();
  for (int i = 0; i < 256; i++) {
    char text[4];
    byte_char(i, text);
    json_object_set_new(vocab, text, json_integer(i));
  }
  for (int i = 0; i < BYTE_VOCAB - 256; i++)
    json_array_append_new(list, json_pack("{s:i s:s s:b s:b s:b s:b s:b}", "id", 256 + i, "content", added[i],
                                          "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1));
  json_t *byte_level =
      json_pack("{s:s s:b s:b s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1);
  json_t *post = !add_bos ? json_null()
                          : json_pack("{s:s s:[{s:{s:s s:i}} {s:{s:s s:i}}] s:[] s:{s:{s:s s:[i] s:[s]}}}", "type",
                                      "TemplateProcessing", "single", "SpecialToken", "id", "<s>", "type_id", 0,
                                      "Sequence", "id", "A", "type_id", 0, "pair", "special_tokens", "<s>", "id", "<s>",
                                      "ids", BYTE_BOS, "tokens", "<s>");
  json_t *model = json_pack("{s:s s:n s:n s:n s:n s:b s:b s:o s:[]}", "type", "BPE", "dropout", "unk_token",
                            "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
                            "vocab", vocab, "merges");
  return json_pack("{s:s s:n s:n s:o s:n s:O s:o s:o s:o}", "version", "1.0", "truncation", "padding", "added_tokens",
                   list, "normalizer", "pre_tokenizer", byte_level, "post_processor", post, "decoder", byte_level,
                   "model", model);
}

static px_status write_json(const char *folder, const char *name, json_t *value, px_error *err) {
  char path[600];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  char *text = json_dumps(value, 0);
  json_decref(value);
  if (!text) return px_fail(err, PX_FAILED, "%s: the test's JSON is broken", name);
  px_status status = px_file_write(path, text, strlen(text), err);
  free(text);
  return status;
}

px_status byte_tokenizer_open(const char *folder, byte_tokenizer_options o, px_tokenizer **out, px_error *err) {
  json_t *config = json_pack("{s:s s:s s:s*}", "bos_token", o.bos ? o.bos : "<s>", "eos_token", o.eos ? o.eos : "</s>",
                             "chat_template", o.chat_template);
  PX_TRY(write_json(folder, "tokenizer.json", make_tokenizer(o.add_bos), err));
  PX_TRY(write_json(folder, "tokenizer_config.json", config, err));
  return px_tokenizer_open(folder, out, err);
}
