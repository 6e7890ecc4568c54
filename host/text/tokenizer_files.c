/* SPDX-License-Identifier: MIT
 * vocab.json + merges.txt, and the files that stand beside a tokenizer in a model folder. */
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "format/json.h"
#include "text/tokenizer_internal.h"

enum { MAX_MERGES_BYTES = 1 << 28, MAX_TEMPLATE_BYTES = 1 << 20 };

/* ---- vocabulary and merges apart ---- */

static px_status read_merge_lines(px_tokenizer *tok, const char *path, const char *text, size_t bytes, px_error *err) {
  size_t number = 0;
  for (size_t at = 0; at < bytes;) {
    const char *line = text + at, *newline = memchr(line, '\n', bytes - at);
    size_t count = newline ? (size_t)(newline - line) : bytes - at;
    at += count + 1;
    if (count && line[count - 1] == '\r') count--;
    if (count == 0 || (count >= 8 && memcmp(line, "#version", 8) == 0)) continue;
    PX_TRY(px_build_merge_line(tok, path, number++, line, count, err));
  }
  return PX_OK;
}

px_status px_tokenizer_from_pair(px_tokenizer *tok, const char *vocab, const char *merges, px_error *err) {
  json_t *root;
  const char *token;
  const json_t *id;
  px_status status = PX_OK;
  PX_TRY(px_json_read(vocab, &root, err));
  if (!json_is_object(root))
    status = px_fail(err, PX_BAD_FILE, "%s: the vocabulary must be an object of tokens and ids", vocab);
  json_object_foreach(root, token, id) {
    json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
    if (value < 0 || value >= MAX_TOKEN_ID)
      status = px_fail(err, PX_BAD_FILE, "%s: the id of token \"%.60s\" must be an integer in 0..%d", vocab, token,
                       MAX_TOKEN_ID - 1);
    else
      status = px_build_token(tok, vocab, token, strlen(token), (int32_t)value, false, err);
    if (status != PX_OK) break;
  }
  json_decref(root);
  px_buf text = {0};
  if (status == PX_OK) status = px_file_read(merges, MAX_MERGES_BYTES, &text, err);
  if (status == PX_OK) status = read_merge_lines(tok, merges, text.data, text.len, err);
  px_buf_free(&text);
  return status;
}

/* The split rule of a vocabulary pair follows from the class that transformers would use. */
static px_status pair_rule(px_tokenizer *tok, const char *name, const json_t *config, px_error *err) {
  const char *class;
  bool space;
  PX_TRY(px_json_str(config, name, "tokenizer_class", "GPT2Tokenizer", &class, err));
  PX_TRY(px_json_bool(config, name, "add_prefix_space", false, &space, err));
  if (strcmp(class, "GPT2Tokenizer") == 0 || strcmp(class, "GPT2TokenizerFast") == 0) {
    PX_TRY(px_build_pre_bytes(tok, space, err));
    PX_TRY(px_build_pre_rule(tok, PX_SPLIT_GPT2, err));
  } else if (strcmp(class, "Qwen2Tokenizer") == 0 || strcmp(class, "Qwen2TokenizerFast") == 0) {
    PX_TRY(px_build_normal(tok, (px_normal_step){.kind = PX_NORMAL_NFC}, NULL, NULL, err));
    PX_TRY(px_build_pre_rule(tok, PX_SPLIT_QWEN2, err));
    PX_TRY(px_build_pre_bytes(tok, space, err));
  } else {
    return px_fail(err, PX_BAD_FILE,
                   "%s: tokenizer_class \"%.60s\" with vocab.json and merges.txt is not supported (supported: "
                   "GPT2Tokenizer, Qwen2Tokenizer): save a tokenizer.json",
                   name, class);
  }
  return px_build_decode(tok, (px_decode_step){.kind = PX_DECODE_BYTES}, NULL, NULL, err);
}

/* ---- special tokens ---- */

/* A token by its spelling, made a special added token where it is none yet. */
static px_status add_special(px_tokenizer *tok, const char *name, const char *content, int32_t *id, px_error *err) {
  *id = px_vocab_find(&tok->vocab, content, strlen(content));
  if (*id < 0) return px_fail(err, PX_BAD_FILE, "%s: special token \"%.60s\" is not in the vocabulary", name, content);
  px_added a = {.text = (char *)(uintptr_t)content, .bytes = (uint32_t)strlen(content), .id = *id, .special = true};
  return px_build_added(tok, name, &a, err);
}

/* "bos_token": "<s>" or {"content": "<s>", ...}; absent or null leaves *id. */
static px_status read_special(px_tokenizer *tok, const char *name, const json_t *object, const char *key, int32_t *id,
                              px_error *err) {
  const json_t *value = json_object_get(object, key);
  if (json_is_object(value)) value = json_object_get(value, "content");
  if (!value || json_is_null(value)) return PX_OK;
  if (!json_is_string(value)) return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" must be a string", name, key);
  return add_special(tok, name, json_string_value(value), id, err);
}

static px_status read_specials(px_tokenizer *tok, const char *name, const json_t *object, px_error *err) {
  if (tok->info.bos < 0 || json_is_string(json_object_get(object, "bos_token")) ||
      json_is_object(json_object_get(object, "bos_token")))
    PX_TRY(read_special(tok, name, object, "bos_token", &tok->info.bos, err));
  PX_TRY(read_special(tok, name, object, "eos_token", &tok->info.eos, err));
  return read_special(tok, name, object, "pad_token", &tok->info.pad, err);
}

/* added_tokens_decoder: {"0": {"content": ..., ...}}. What tokenizer.json has is left as it is. */
static px_status read_added_decoder(px_tokenizer *tok, const char *name, const json_t *map, px_error *err) {
  const char *key;
  const json_t *item;
  if (!json_is_object(map)) return PX_OK;
  json_object_foreach((json_t *)(uintptr_t)map, key, item) {
    const char *content;
    char *end;
    px_added a = {0};
    long long id = strtoll(key, &end, 10);
    if (*end || end == key || id < 0 || id >= MAX_TOKEN_ID || !json_is_object(item))
      return px_fail(err, PX_BAD_FILE, "%s: field \"added_tokens_decoder\" must map ids to tokens", name);
    PX_TRY(px_json_str(item, name, "content", "", &content, err));
    PX_TRY(px_json_bool(item, name, "special", false, &a.special, err));
    PX_TRY(px_json_bool(item, name, "single_word", false, &a.single_word, err));
    PX_TRY(px_json_bool(item, name, "lstrip", false, &a.lstrip, err));
    PX_TRY(px_json_bool(item, name, "rstrip", false, &a.rstrip, err));
    PX_TRY(px_json_bool(item, name, "normalized", !a.special, &a.normalized, err));
    size_t bytes = strlen(content);
    a.text = (char *)(uintptr_t)content;
    a.bytes = bytes > MAX_ADDED_BYTES ? MAX_ADDED_BYTES + 1 : (uint32_t)bytes;
    a.id = (int32_t)id;
    PX_TRY(px_build_added(tok, name, &a, err));
  }
  return PX_OK;
}

/* added_tokens.json of old folders: {"<token>": id}. */
static px_status read_added_map(px_tokenizer *tok, const char *name, const json_t *map, px_error *err) {
  const char *content;
  const json_t *id;
  json_object_foreach((json_t *)(uintptr_t)map, content, id) {
    json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
    size_t bytes = strlen(content);
    if (value < 0 || value >= MAX_TOKEN_ID || bytes > MAX_ADDED_BYTES)
      return px_fail(err, PX_BAD_FILE, "%s: added token \"%.60s\" has no proper id", name, content);
    px_added a = {
        .text = (char *)(uintptr_t)content, .bytes = (uint32_t)bytes, .id = (int32_t)value, .normalized = true};
    PX_TRY(px_build_added(tok, name, &a, err));
  }
  return PX_OK;
}

/* ---- chat template ---- */

static px_status set_template(px_tokenizer *tok, const char *text, px_error *err) {
  free(tok->chat_template);
  tok->chat_template = strdup(text);
  return tok->chat_template ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory for the chat template");
}

/* A string, or a list of {"name", "template"}: the one called "default", else the only one. */
static px_status read_template(px_tokenizer *tok, const char *name, const json_t *value, px_error *err) {
  if (!value || json_is_null(value)) return PX_OK;
  if (json_is_string(value)) return set_template(tok, json_string_value(value), err);
  const char *found = NULL;
  for (size_t i = 0; i < json_array_size(value); i++) {
    const json_t *item = json_array_get(value, i);
    const char *which = json_string_value(json_object_get(item, "name")),
               *text = json_string_value(json_object_get(item, "template"));
    if (which && text && (strcmp(which, "default") == 0 || json_array_size(value) == 1)) found = text;
  }
  if (!json_is_array(value))
    return px_fail(err, PX_BAD_FILE, "%s: field \"chat_template\" must be a string or a list", name);
  return found ? set_template(tok, found, err) : PX_OK;
}

static px_status read_template_file(px_tokenizer *tok, const char *path, px_error *err) {
  if (!px_file_exists(path)) return PX_OK;
  px_buf text = {0};
  px_status status = px_file_read(path, MAX_TEMPLATE_BYTES, &text, err);
  if (status == PX_OK) status = set_template(tok, text.data ? text.data : "", err);
  px_buf_free(&text);
  return status;
}

/* ---- all of it ---- */

/* "eos_token_id": 2, [2, 7] or null. */
static px_status read_stops(px_tokenizer *tok, const char *name, const json_t *config, px_error *err) {
  const json_t *value = json_object_get(config, "eos_token_id");
  size_t count = json_is_array(value) ? json_array_size(value) : value && !json_is_null(value);
  for (size_t i = 0; i < count; i++) {
    const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
    if (!json_is_integer(id))
      return px_fail(err, PX_BAD_FILE, "%s: field \"eos_token_id\" must be an id or a list of ids", name);
    PX_TRY(px_build_stop(tok, json_integer_value(id), err));
  }
  return PX_OK;
}

static int32_t first_id(const json_t *config, const char *key, const px_tokenizer *tok) {
  const json_t *value = json_object_get(config, key);
  if (json_is_array(value)) value = json_array_get(value, 0);
  json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
  return id >= 0 && id < tok->vocab.size && px_vocab_text(&tok->vocab, (int32_t)id) ? (int32_t)id : -1;
}

typedef struct side_files {
  char *config_path, *specials_path, *added_path, *generation_path, *model_path, *template_path;
  json_t *config, *specials, *added, *generation, *model; /* NULL where there is no such file */
} side_files;

static px_status read_optional(const char *path, json_t **out, px_error *err) {
  if (!px_file_exists(path)) return PX_OK;
  PX_TRY(px_json_read(path, out, err));
  return json_is_object(*out) ? PX_OK : px_fail(err, PX_BAD_FILE, "%s: must be an object", path);
}

static px_status use_side_files(px_tokenizer *tok, const side_files *f, bool vocab_pair, px_error *err) {
  const char *name = f->config_path;
  if (vocab_pair) {
    PX_TRY(pair_rule(tok, name, f->config, err));
    PX_TRY(read_added_map(tok, f->added_path, f->added, err));
  }
  PX_TRY(read_added_decoder(tok, name, json_object_get(f->config, "added_tokens_decoder"), err));
  PX_TRY(read_specials(tok, f->specials_path, f->specials, err));
  PX_TRY(read_specials(tok, name, f->config, err));                         /* the newer file has the last word */
  if (vocab_pair && px_vocab_find(&tok->vocab, "<|endoftext|>", 13) >= 0) { /* the defaults of these classes */
    int32_t id;
    PX_TRY(add_special(tok, name, "<|endoftext|>", &id, err));
    if (tok->info.eos < 0) tok->info.eos = id;
  }
  PX_TRY(px_json_bool(f->config, name, "add_bos_token", tok->info.add_bos, &tok->info.add_bos, err));
  if (tok->info.bos < 0) tok->info.bos = first_id(f->model, "bos_token_id", tok);
  if (tok->info.eos < 0) tok->info.eos = first_id(f->generation, "eos_token_id", tok);
  if (tok->info.eos < 0) tok->info.eos = first_id(f->model, "eos_token_id", tok);
  PX_TRY(px_build_stop(tok, tok->info.eos, err));
  PX_TRY(f->generation ? read_stops(tok, f->generation_path, f->generation, err)
                       : read_stops(tok, f->model_path, f->model, err));
  PX_TRY(read_template(tok, name, json_object_get(f->config, "chat_template"), err));
  return read_template_file(tok, f->template_path, err);
}

px_status px_tokenizer_side_files(px_tokenizer *tok, const char *dir, bool vocab_pair, px_error *err) {
  px_arena arena = {0};
  side_files f = {.config_path = px_arena_printf(&arena, "%s/tokenizer_config.json", dir),
                  .specials_path = px_arena_printf(&arena, "%s/special_tokens_map.json", dir),
                  .added_path = px_arena_printf(&arena, "%s/added_tokens.json", dir),
                  .generation_path = px_arena_printf(&arena, "%s/generation_config.json", dir),
                  .model_path = px_arena_printf(&arena, "%s/config.json", dir),
                  .template_path = px_arena_printf(&arena, "%s/chat_template.jinja", dir)};
  px_status status = PX_OK;
  if (!f.config_path || !f.specials_path || !f.added_path || !f.generation_path || !f.model_path || !f.template_path)
    status = px_fail(err, PX_NO_MEMORY, "no memory for a tokenizer");
  if (status == PX_OK) status = read_optional(f.config_path, &f.config, err);
  if (status == PX_OK) status = read_optional(f.specials_path, &f.specials, err);
  if (status == PX_OK) status = read_optional(f.added_path, &f.added, err);
  if (status == PX_OK) status = read_optional(f.generation_path, &f.generation, err);
  if (status == PX_OK) status = read_optional(f.model_path, &f.model, err);
  if (status == PX_OK) status = use_side_files(tok, &f, vocab_pair, err);
  json_decref(f.config);
  json_decref(f.specials);
  json_decref(f.added);
  json_decref(f.generation);
  json_decref(f.model);
  px_arena_free(&arena);
  return status;
}
