/* SPDX-License-Identifier: MIT
 * tokenizer.json. Every part is either understood or refused by name. */
#include <stdlib.h>
#include <string.h>

#include "format/json.h"
#include "text/tokenizer_internal.h"

typedef struct reader {
  px_tokenizer *tok;
  const char *path;
  px_error *err;
} reader;

static px_status refuse(reader *r, const char *part, const char *what, const char *supported) {
  return px_fail(r->err, PX_BAD_FILE, "%s: %s \"%.60s\" is not supported (supported: %s)", r->path, part, what,
                 supported);
}

/* The "type" of a part; an object is required. */
static px_status type_of(reader *r, const char *part, const json_t *object, const char **type) {
  if (!json_is_object(object)) return px_fail(r->err, PX_BAD_FILE, "%s: %s must be an object", r->path, part);
  PX_TRY(px_json_str(object, r->path, "type", NULL, type, r->err));
  return *type ? PX_OK : px_fail(r->err, PX_BAD_FILE, "%s: field \"type\" of %s is missing", r->path, part);
}

static px_status list_of(reader *r, const char *part, const json_t *object, const char *key, const json_t **list) {
  *list = json_object_get(object, key);
  return json_is_array(*list)
             ? PX_OK
             : px_fail(r->err, PX_BAD_FILE, "%s: field \"%s\" of %s must be a list", r->path, key, part);
}

static px_status get_bool(reader *r, const json_t *object, const char *key, bool fallback, bool *out) {
  return px_json_bool(object, r->path, key, fallback, out, r->err);
}

static px_status get_str(reader *r, const json_t *object, const char *key, const char *fallback, const char **out) {
  return px_json_str(object, r->path, key, fallback, out, r->err);
}

/* {"String": s} or {"Regex": s}. */
static px_status get_pattern(reader *r, const char *part, const json_t *object, const json_t **text, bool *regex) {
  const json_t *pattern = json_object_get(object, "pattern");
  *text = json_object_get(pattern, "String");
  *regex = !*text;
  if (*regex) *text = json_object_get(pattern, "Regex");
  return json_is_string(*text)
             ? PX_OK
             : px_fail(r->err, PX_BAD_FILE, "%s: field \"pattern\" of %s must be a String or a Regex", r->path, part);
}

/* ---- normalizer ---- */

static px_status read_normalizer(reader *r, const json_t *object, int depth) {
  const char *type, *text;
  const json_t *list, *pattern;
  bool regex;
  if (!object || json_is_null(object)) return PX_OK;
  PX_TRY(type_of(r, "normalizer", object, &type));
  if (strcmp(type, "Sequence") == 0 && depth < 4) {
    PX_TRY(list_of(r, "normalizer", object, "normalizers", &list));
    for (size_t i = 0; i < json_array_size(list); i++) PX_TRY(read_normalizer(r, json_array_get(list, i), depth + 1));
    return PX_OK;
  }
  if (strcmp(type, "NFC") == 0)
    return px_build_normal(r->tok, (px_normal_step){.kind = PX_NORMAL_NFC}, NULL, NULL, r->err);
  if (strcmp(type, "Prepend") == 0) {
    PX_TRY(get_str(r, object, "prepend", "", &text));
    return px_build_normal(r->tok, (px_normal_step){.kind = PX_NORMAL_PREPEND}, NULL, text, r->err);
  }
  if (strcmp(type, "Replace") == 0) {
    PX_TRY(get_pattern(r, "normalizer Replace", object, &pattern, &regex));
    PX_TRY(get_str(r, object, "content", "", &text));
    if (regex) return refuse(r, "normalizer", "Replace with a Regex", "Replace with a String");
    if (json_string_length(pattern) == 0)
      return refuse(r, "normalizer", "Replace of an empty String", "Replace with a String");
    return px_build_normal(r->tok, (px_normal_step){.kind = PX_NORMAL_REPLACE}, json_string_value(pattern), text,
                           r->err);
  }
  if (strcmp(type, "Strip") == 0) {
    px_normal_step step = {.kind = PX_NORMAL_STRIP};
    PX_TRY(get_bool(r, object, "strip_left", true, &step.left));
    PX_TRY(get_bool(r, object, "strip_right", true, &step.right));
    return px_build_normal(r->tok, step, NULL, NULL, r->err);
  }
  return refuse(r, "normalizer", type, "NFC, Prepend, Replace, Strip, Sequence");
}

/* ---- pre_tokenizer ---- */

static px_status read_split(reader *r, const json_t *object) {
  static const char *const behaviors[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
  const char *behavior;
  const json_t *pattern;
  bool regex, invert;
  int how = -1;
  PX_TRY(get_pattern(r, "pre_tokenizer Split", object, &pattern, &regex));
  PX_TRY(get_str(r, object, "behavior", "", &behavior));
  PX_TRY(get_bool(r, object, "invert", false, &invert));
  for (int i = 0; i < 5; i++)
    if (strcmp(behavior, behaviors[i]) == 0) how = i;
  if (how < 0)
    return refuse(r, "pre_tokenizer Split behavior", behavior,
                  "Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous");
  PX_TRY(px_build_pre_rule(r->tok, PX_SPLIT_GPT2, r->err));
  px_splitter *s = &r->tok->pre[r->tok->pre_count - 1].splitter;
  px_status status = regex ? px_split_open(s, json_string_value(pattern), json_string_length(pattern), false, r->err)
                           : px_split_open_literal(s, json_string_value(pattern), json_string_length(pattern), r->err);
  s->behavior = (px_split_behavior)how;
  s->invert = invert;
  return status == PX_OK ? PX_OK : px_fail_in(r->err, status, "%s", r->path);
}

static px_status read_metaspace(reader *r, const json_t *object, const char **replacement, px_prepend *prepend,
                                bool *split) {
  const char *scheme;
  bool old;
  PX_TRY(get_str(r, object, "replacement", "\xE2\x96\x81", replacement));
  PX_TRY(get_bool(r, object, "add_prefix_space", true, &old)); /* before prepend_scheme there was this */
  PX_TRY(get_str(r, object, "prepend_scheme", old ? "always" : "never", &scheme));
  PX_TRY(get_bool(r, object, "split", true, split));
  if (strcmp(scheme, "always") == 0)
    *prepend = PX_PREPEND_ALWAYS;
  else if (strcmp(scheme, "first") == 0)
    *prepend = PX_PREPEND_FIRST;
  else if (strcmp(scheme, "never") == 0)
    *prepend = PX_PREPEND_NEVER;
  else
    return refuse(r, "Metaspace prepend_scheme", scheme, "always, first, never");
  size_t at = 0, count = strlen(*replacement);
  if (count) px_utf8_next(*replacement, &at);
  if (count == 0 || at != count) return refuse(r, "Metaspace replacement", *replacement, "one character");
  return PX_OK;
}

static px_status read_pre_tokenizer(reader *r, const json_t *object, int depth) {
  px_tokenizer *tok = r->tok;
  const char *type;
  bool flag, regex;
  if (!object || json_is_null(object)) return PX_OK;
  PX_TRY(type_of(r, "pre_tokenizer", object, &type));
  if (strcmp(type, "Sequence") == 0 && depth < 4) {
    const json_t *list;
    PX_TRY(list_of(r, "pre_tokenizer", object, "pretokenizers", &list));
    for (size_t i = 0; i < json_array_size(list); i++)
      PX_TRY(read_pre_tokenizer(r, json_array_get(list, i), depth + 1));
    return PX_OK;
  }
  if (tok->byte_level) return refuse(r, "a pre_tokenizer behind ByteLevel,", type, "ByteLevel as the last one");
  if (strcmp(type, "ByteLevel") == 0) {
    PX_TRY(get_bool(r, object, "add_prefix_space", true, &flag));
    PX_TRY(get_bool(r, object, "use_regex", true, &regex));
    PX_TRY(px_build_pre_bytes(tok, flag, r->err));
    return regex ? px_build_pre_rule(tok, PX_SPLIT_GPT2, r->err) : PX_OK;
  }
  if (strcmp(type, "Digits") == 0) {
    PX_TRY(get_bool(r, object, "individual_digits", false, &flag));
    return px_build_pre_rule(tok, flag ? PX_SPLIT_DIGIT : PX_SPLIT_DIGITS, r->err);
  }
  if (strcmp(type, "Split") == 0) return read_split(r, object);
  if (strcmp(type, "Metaspace") == 0) {
    const char *replacement;
    px_pre_step step = {.kind = PX_PRE_METASPACE};
    PX_TRY(read_metaspace(r, object, &replacement, &step.prepend, &step.split));
    memcpy(step.replacement, replacement, strlen(replacement));
    PX_TRY(px_build_pre_rule(tok, PX_SPLIT_GPT2, r->err));
    tok->pre[tok->pre_count - 1] = step;
    return PX_OK;
  }
  return refuse(r, "pre_tokenizer", type, "ByteLevel, Digits, Split, Metaspace, Sequence");
}

/* ---- decoder ---- */

static px_status read_strip(reader *r, const json_t *object) {
  const char *content;
  int64_t start, stop;
  PX_TRY(get_str(r, object, "content", " ", &content));
  PX_TRY(px_json_int(object, r->path, "start", 0, &start, r->err));
  PX_TRY(px_json_int(object, r->path, "stop", 0, &stop, r->err));
  px_tokenizer *tok = r->tok;
  if (start < 0 || start > 1 || stop != 0 || !*content || tok->decode_count == 0 ||
      tok->decode[tok->decode_count - 1].kind != PX_DECODE_FUSE)
    return refuse(r, "decoder", "Strip", "behind Fuse, with start 0 or 1 and stop 0");
  return px_build_decode(tok, (px_decode_step){.kind = PX_DECODE_STRIP, .left = start}, content, NULL, r->err);
}

static px_status read_decoder(reader *r, const json_t *object, int depth) {
  px_tokenizer *tok = r->tok;
  const char *type, *text;
  const json_t *list, *pattern;
  bool regex, ignored;
  if (!object || json_is_null(object)) return PX_OK;
  PX_TRY(type_of(r, "decoder", object, &type));
  if (strcmp(type, "Sequence") == 0 && depth < 4) {
    PX_TRY(list_of(r, "decoder", object, "decoders", &list));
    for (size_t i = 0; i < json_array_size(list); i++) PX_TRY(read_decoder(r, json_array_get(list, i), depth + 1));
    return PX_OK;
  }
  px_decode_kind last = tok->decode_count ? tok->decode[tok->decode_count - 1].kind : 0;
  if (last == PX_DECODE_BYTES || last == PX_DECODE_STRIP || (last == PX_DECODE_FUSE && strcmp(type, "Strip") != 0))
    return refuse(r, "a decoder behind ByteLevel, Fuse or Strip,", type, "Strip behind Fuse");
  if (strcmp(type, "ByteLevel") == 0) {
    if (last) return refuse(r, "a decoder in front of", type, "ByteLevel alone");
    return px_build_decode(tok, (px_decode_step){.kind = PX_DECODE_BYTES}, NULL, NULL, r->err);
  }
  if (strcmp(type, "Replace") == 0) {
    PX_TRY(get_pattern(r, "decoder Replace", object, &pattern, &regex));
    PX_TRY(get_str(r, object, "content", "", &text));
    if (regex || json_string_length(pattern) == 0)
      return refuse(r, "decoder", "Replace with a Regex", "Replace with a String");
    return px_build_decode(tok, (px_decode_step){.kind = PX_DECODE_REPLACE}, json_string_value(pattern), text, r->err);
  }
  if (strcmp(type, "ByteFallback") == 0)
    return px_build_decode(tok, (px_decode_step){.kind = PX_DECODE_BYTE_FALLBACK}, NULL, NULL, r->err);
  if (strcmp(type, "Fuse") == 0)
    return px_build_decode(tok, (px_decode_step){.kind = PX_DECODE_FUSE}, NULL, NULL, r->err);
  if (strcmp(type, "Strip") == 0) return read_strip(r, object);
  if (strcmp(type, "Metaspace") == 0) {
    px_decode_step step = {.kind = PX_DECODE_METASPACE};
    if (last) return refuse(r, "a decoder in front of", type, "Metaspace alone");
    PX_TRY(read_metaspace(r, object, &text, &step.prepend, &ignored));
    return px_build_decode(tok, step, text, NULL, r->err);
  }
  return refuse(r, "decoder", type, "ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace, Sequence");
}

/* ---- post_processor: only whether a begin token stands in front ---- */

static px_status read_post_processor(reader *r, const json_t *object, int depth) {
  const char *type;
  const json_t *list;
  if (!object || json_is_null(object)) return PX_OK;
  PX_TRY(type_of(r, "post_processor", object, &type));
  if (strcmp(type, "Sequence") == 0 && depth < 4) {
    PX_TRY(list_of(r, "post_processor", object, "processors", &list));
    for (size_t i = 0; i < json_array_size(list); i++)
      PX_TRY(read_post_processor(r, json_array_get(list, i), depth + 1));
    return PX_OK;
  }
  if (strcmp(type, "ByteLevel") == 0) return PX_OK; /* offsets only */
  if (strcmp(type, "TemplateProcessing") != 0)
    return refuse(r, "post_processor", type, "ByteLevel, TemplateProcessing, Sequence");
  PX_TRY(list_of(r, "post_processor", object, "single", &list));
  const json_t *front = json_object_get(json_array_get(list, 0), "SpecialToken");
  if (!front) return PX_OK;
  const char *token = json_string_value(json_object_get(front, "id"));
  const json_t *ids =
      token ? json_object_get(json_object_get(json_object_get(object, "special_tokens"), token), "ids") : NULL;
  const json_t *second = json_array_get(list, 1);
  if (!json_is_array(ids) || json_array_size(ids) != 1 || !json_is_integer(json_array_get(ids, 0)) ||
      json_object_get(second, "SpecialToken"))
    return refuse(r, "post_processor", "TemplateProcessing", "one begin token in front of the text");
  json_int_t id = json_integer_value(json_array_get(ids, 0));
  if (id < 0 || id >= MAX_TOKEN_ID)
    return px_fail(r->err, PX_BAD_FILE, "%s: post_processor: token id %lld is out of range", r->path, (long long)id);
  r->tok->info.bos = (int32_t)id;
  r->tok->info.add_bos = true;
  return PX_OK;
}

/* ---- model ---- */

static px_status check_model(reader *r, const json_t *model) {
  static const char *const known[] = {"type",
                                      "dropout",
                                      "unk_token",
                                      "continuing_subword_prefix",
                                      "end_of_word_suffix",
                                      "fuse_unk",
                                      "byte_fallback",
                                      "ignore_merges",
                                      "vocab",
                                      "merges"};
  const char *type, *text, *key;
  const json_t *value;
  double dropout;
  PX_TRY(get_str(r, model, "type", json_object_get(model, "merges") ? "BPE" : "", &type));
  if (strcmp(type, "BPE") != 0) return refuse(r, "model type", type, "BPE");
  json_object_foreach((json_t *)(uintptr_t)model, key, value) {
    bool found = false;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) found |= strcmp(key, known[i]) == 0;
    if (!found) return px_fail(r->err, PX_BAD_FILE, "%s: field \"%.60s\" of the model is not supported", r->path, key);
  }
  PX_TRY(px_json_num(model, r->path, "dropout", 0, &dropout, r->err));
  if (dropout != 0) return px_fail(r->err, PX_BAD_FILE, "%s: a model with dropout is not supported", r->path);
  PX_TRY(get_str(r, model, "continuing_subword_prefix", "", &text));
  if (*text)
    return px_fail(r->err, PX_BAD_FILE, "%s: continuing_subword_prefix \"%.60s\" is not supported", r->path, text);
  PX_TRY(get_str(r, model, "end_of_word_suffix", "", &text));
  if (*text) return px_fail(r->err, PX_BAD_FILE, "%s: end_of_word_suffix \"%.60s\" is not supported", r->path, text);
  PX_TRY(get_bool(r, model, "fuse_unk", false, &r->tok->fuse_unk));
  PX_TRY(get_bool(r, model, "byte_fallback", false, &r->tok->byte_fallback));
  return get_bool(r, model, "ignore_merges", false, &r->tok->ignore_merges);
}

static px_status read_vocab(reader *r, const json_t *vocab) {
  const char *token;
  const json_t *id;
  if (!json_is_object(vocab))
    return px_fail(r->err, PX_BAD_FILE, "%s: the vocabulary must be an object of tokens and ids", r->path);
  json_object_foreach((json_t *)(uintptr_t)vocab, token, id) {
    json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
    if (value < 0 || value >= MAX_TOKEN_ID)
      return px_fail(r->err, PX_BAD_FILE, "%s: the id of token \"%.60s\" must be an integer in 0..%d", r->path, token,
                     MAX_TOKEN_ID - 1);
    PX_TRY(px_build_token(r->tok, r->path, token, strlen(token), (int32_t)value, false, r->err));
  }
  return PX_OK;
}

static px_status read_merges(reader *r, const json_t *merges) {
  if (!json_is_array(merges))
    return px_fail(r->err, PX_BAD_FILE, "%s: field \"merges\" of the model must be a list", r->path);
  for (size_t i = 0; i < json_array_size(merges); i++) {
    const json_t *m = json_array_get(merges, i);
    const json_t *a = json_array_get(m, 0), *b = json_array_get(m, 1);
    if (json_is_string(m)) {
      PX_TRY(px_build_merge_line(r->tok, r->path, i, json_string_value(m), json_string_length(m), r->err));
    } else if (json_array_size(m) == 2 && json_is_string(a) && json_is_string(b)) {
      PX_TRY(px_build_merge(r->tok, r->path, i, json_string_value(a), json_string_length(a), json_string_value(b),
                            json_string_length(b), r->err));
    } else {
      return px_fail(r->err, PX_BAD_FILE, "%s: merge %zu must be two tokens", r->path, i);
    }
  }
  return PX_OK;
}

static px_status read_model(reader *r, const json_t *model) {
  const char *unk;
  if (!json_is_object(model))
    return px_fail(r->err, PX_BAD_FILE, "%s: field \"model\" is missing: this is no tokenizer.json", r->path);
  PX_TRY(check_model(r, model));
  PX_TRY(read_vocab(r, json_object_get(model, "vocab")));
  PX_TRY(get_str(r, model, "unk_token", NULL, &unk));
  if (unk && *unk) {
    r->tok->unk = px_vocab_find(&r->tok->vocab, unk, strlen(unk));
    if (r->tok->unk < 0)
      return px_fail(r->err, PX_BAD_FILE, "%s: unk_token \"%.60s\" is not in the vocabulary", r->path, unk);
  }
  return read_merges(r, json_object_get(model, "merges"));
}

static px_status read_added(reader *r, const json_t *list) {
  if (!list || json_is_null(list)) return PX_OK;
  if (!json_is_array(list)) return px_fail(r->err, PX_BAD_FILE, "%s: field \"added_tokens\" must be a list", r->path);
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *item = json_array_get(list, i);
    const char *content;
    int64_t id;
    px_added a = {0};
    if (!json_is_object(item)) return px_fail(r->err, PX_BAD_FILE, "%s: added token %zu must be an object", r->path, i);
    PX_TRY(get_str(r, item, "content", "", &content));
    PX_TRY(px_json_int(item, r->path, "id", -1, &id, r->err));
    PX_TRY(get_bool(r, item, "special", false, &a.special));
    PX_TRY(get_bool(r, item, "single_word", false, &a.single_word));
    PX_TRY(get_bool(r, item, "lstrip", false, &a.lstrip));
    PX_TRY(get_bool(r, item, "rstrip", false, &a.rstrip));
    PX_TRY(get_bool(r, item, "normalized", !a.special, &a.normalized));
    if (id < 0 || id >= MAX_TOKEN_ID)
      return px_fail(r->err, PX_BAD_FILE, "%s: the id of added token \"%.60s\" is out of range", r->path, content);
    size_t bytes = strlen(content);
    a.text = (char *)(uintptr_t)content; /* copied */
    a.bytes = bytes > MAX_ADDED_BYTES ? MAX_ADDED_BYTES + 1 : (uint32_t)bytes;
    a.id = (int32_t)id;
    PX_TRY(px_build_added(r->tok, r->path, &a, r->err));
  }
  return PX_OK;
}

static px_status read_root(reader *r, const json_t *root) {
  static const char *const known[] = {"version",       "truncation",     "padding", "added_tokens", "normalizer",
                                      "pre_tokenizer", "post_processor", "decoder", "model"};
  const char *key;
  const json_t *value;
  if (!json_is_object(root)) return px_fail(r->err, PX_BAD_FILE, "%s: this is no tokenizer.json", r->path);
  PX_TRY(read_normalizer(r, json_object_get(root, "normalizer"), 0));
  PX_TRY(read_pre_tokenizer(r, json_object_get(root, "pre_tokenizer"), 0));
  PX_TRY(read_decoder(r, json_object_get(root, "decoder"), 0));
  PX_TRY(read_post_processor(r, json_object_get(root, "post_processor"), 0));
  PX_TRY(read_model(r, json_object_get(root, "model")));
  PX_TRY(read_added(r, json_object_get(root, "added_tokens")));
  json_object_foreach((json_t *)(uintptr_t)root, key, value) {
    bool found = json_is_null(value);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) found |= strcmp(key, known[i]) == 0;
    if (!found) return px_fail(r->err, PX_BAD_FILE, "%s: field \"%.60s\" is not supported", r->path, key);
  }
  return PX_OK;
}

px_status px_tokenizer_from_json(px_tokenizer *tok, const char *path, px_error *err) {
  json_t *root;
  PX_TRY(px_json_read(path, &root, err));
  reader r = {.tok = tok, .path = path, .err = err};
  px_status status = read_root(&r, root);
  json_decref(root);
  return status;
}
