/* SPDX-License-Identifier: MIT
 * A tokenizer as tokenizer.json and tokenizer_config.json, for vocabularies that came from a GGUF file. */
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "format/json.h"
#include "text/tokenizer_internal.h"

#define DUMP_FLAGS (JSON_INDENT(2))

typedef struct writer {
  const px_tokenizer *tok;
  px_error *err;
} writer;

static px_status no_memory(const writer *w) { return px_fail(w->err, PX_NO_MEMORY, "no memory to write a tokenizer"); }

static px_status cannot(const writer *w, const char *what) {
  return px_fail(w->err, PX_INVALID, "a tokenizer with %s cannot be written: copy its own files", what);
}

/* ---- parts: each returns a new object, NULL for what cannot be written (or without memory) ---- */

static json_t *byte_level(bool add_prefix_space, bool use_regex) {
  return json_pack("{s:s s:b s:b s:b}", "type", "ByteLevel", "add_prefix_space", add_prefix_space, "trim_offsets", 1, "use_regex", use_regex);
}

static json_t *literal(const char *text) { return json_pack("{s:s}", "String", text); }

static json_t *normal_step(const px_normal_step *s) {
  switch (s->kind) {
    case PX_NORMAL_NFC:
      return json_pack("{s:s}", "type", "NFC");
    case PX_NORMAL_PREPEND:
      return json_pack("{s:s s:s}", "type", "Prepend", "prepend", s->to);
    case PX_NORMAL_REPLACE:
      return json_pack("{s:s s:o s:s}", "type", "Replace", "pattern", literal(s->from), "content", s->to);
    case PX_NORMAL_STRIP:
      return json_pack("{s:s s:b s:b}", "type", "Strip", "strip_left", s->left, "strip_right", s->right);
  }
  return NULL;
}

static json_t *pre_step(const px_pre_step *s) {
  if (s->kind != PX_PRE_SPLIT || s->splitter.behavior != PX_SPLIT_ISOLATED || s->splitter.invert) return NULL;
  if (s->splitter.rule == PX_SPLIT_DIGIT || s->splitter.rule == PX_SPLIT_DIGITS)
    return json_pack("{s:s s:b}", "type", "Digits", "individual_digits", s->splitter.rule == PX_SPLIT_DIGIT);
  const char *pattern = px_split_pattern(s->splitter.rule);
  return pattern ? json_pack("{s:s s:{s:s} s:s s:b}", "type", "Split", "pattern", "Regex", pattern, "behavior", "Isolated", "invert", 0) : NULL;
}

static json_t *decode_step(const px_decode_step *s) {
  switch (s->kind) {
    case PX_DECODE_BYTES:
      return byte_level(true, true);
    case PX_DECODE_REPLACE:
      return json_pack("{s:s s:o s:s}", "type", "Replace", "pattern", literal(s->from), "content", s->to);
    case PX_DECODE_BYTE_FALLBACK:
      return json_pack("{s:s}", "type", "ByteFallback");
    case PX_DECODE_FUSE:
      return json_pack("{s:s}", "type", "Fuse");
    case PX_DECODE_STRIP:
      return json_pack("{s:s s:s s:I s:i}", "type", "Strip", "content", s->from, "start", (json_int_t)s->left, "stop", 0);
    case PX_DECODE_METASPACE:
      return NULL;
  }
  return NULL;
}

/* Takes `list`: null for none, the only one alone, else a Sequence. */
static json_t *sequence(json_t *list, const char *key) {
  json_t *only = json_array_get(list, 0);
  if (json_array_size(list) > 1) return json_pack("{s:s s:o}", "type", "Sequence", key, list);
  json_t *out = only ? json_incref(only) : json_null();
  json_decref(list);
  return out;
}

/* ---- the steps ---- */

static px_status put_steps(const writer *w, json_t *root) {
  const px_tokenizer *tok = w->tok;
  json_t *normal = json_array(), *pre = json_array(), *decode = json_array();
  px_status status = normal && pre && decode ? PX_OK : no_memory(w);
  for (int i = 0; i < tok->normal_count && status == PX_OK; i++)
    if (json_array_append_new(normal, normal_step(&tok->normal[i]))) status = no_memory(w);
  /* GPT-2's pattern is what ByteLevel does by itself. */
  bool own = tok->byte_level && tok->pre_count && tok->pre[tok->pre_count - 1].kind == PX_PRE_SPLIT &&
             tok->pre[tok->pre_count - 1].splitter.rule == PX_SPLIT_GPT2;
  for (int i = 0; i < tok->pre_count - own && status == PX_OK; i++)
    if (json_array_append_new(pre, pre_step(&tok->pre[i]))) status = cannot(w, "a split rule that has no name");
  if (tok->byte_level && status == PX_OK && json_array_append_new(pre, byte_level(false, own))) status = no_memory(w);
  for (int i = 0; i < tok->decode_count && status == PX_OK; i++)
    if (json_array_append_new(decode, decode_step(&tok->decode[i]))) status = cannot(w, "a Metaspace decoder");
  if (status != PX_OK) {
    json_decref(normal);
    json_decref(pre);
    json_decref(decode);
    return status;
  }
  json_object_set_new(root, "normalizer", sequence(normal, "normalizers"));
  json_object_set_new(root, "pre_tokenizer", sequence(pre, "pretokenizers"));
  json_object_set_new(root, "post_processor", json_null()); /* its place in the file; filled in by put_begin */
  json_object_set_new(root, "decoder", sequence(decode, "decoders"));
  return PX_OK;
}

static json_t *special_item(const char *id) { return json_pack("{s:{s:s s:i}}", "SpecialToken", "id", id, "type_id", 0); }
static json_t *text_item(const char *id, int type) { return json_pack("{s:{s:s s:i}}", "Sequence", "id", id, "type_id", type); }

/* What stands in front of a text: the begin token, where rows have one. */
static px_status put_begin(const writer *w, json_t *root) {
  const px_tokenizer *tok = w->tok;
  json_t *list = json_array();
  if (tok->byte_level) json_array_append_new(list, byte_level(true, true));
  if (tok->info.add_bos) {
    const char *bos = px_vocab_text(&tok->vocab, tok->info.bos);
    json_array_append_new(list, json_pack("{s:s s:[o o] s:[o o o o] s:{s:{s:s s:[i] s:[s]}}}", "type", "TemplateProcessing", "single", special_item(bos),
                                          text_item("A", 0), "pair", special_item(bos), text_item("A", 0), special_item(bos), text_item("B", 1),
                                          "special_tokens", bos, "id", bos, "ids", (int)tok->info.bos, "tokens", bos));
  }
  size_t wanted = (size_t)tok->byte_level + (size_t)tok->info.add_bos;
  bool whole = list && json_array_size(list) == wanted;
  json_object_set_new(root, "post_processor", sequence(list, "processors"));
  return whole ? PX_OK : no_memory(w);
}

/* ---- tokens ---- */

static int by_id(const void *a, const void *b) {
  int32_t x = (*(const px_added *const *)a)->id, y = (*(const px_added *const *)b)->id;
  return (x > y) - (x < y);
}

static px_status put_added(const writer *w, json_t *root) {
  const px_tokenizer *tok = w->tok;
  json_t *list = json_array();
  const px_added **sorted = px_calloc(tok->added_count, sizeof *sorted);
  px_status status = list && sorted ? PX_OK : no_memory(w);
  for (size_t i = 0; sorted && i < tok->added_count; i++) sorted[i] = &tok->added[i];
  if (sorted && tok->added_count) qsort(sorted, tok->added_count, sizeof *sorted, by_id);
  for (size_t i = 0; i < tok->added_count && status == PX_OK; i++) {
    const px_added *a = sorted[i];
    json_t *item = json_pack("{s:i s:s s:b s:b s:b s:b s:b}", "id", (int)a->id, "content", a->text, "single_word", a->single_word, "lstrip", a->lstrip,
                             "rstrip", a->rstrip, "normalized", a->normalized, "special", a->special);
    if (json_array_append_new(list, item)) status = no_memory(w);
  }
  free(sorted);
  json_object_set_new(root, "added_tokens", list);
  return status;
}

/* Ids whose spelling is theirs alone; padding of the file stays out, as in tokenizer.json, unless a merge needs it. */
static json_t *make_vocab(const writer *w, const px_bpe_rule *rules, size_t count) {
  const px_tokenizer *tok = w->tok;
  json_t *vocab = json_object();
  uint8_t *merged = px_calloc((size_t)tok->vocab.size, 1);
  for (size_t i = 0; merged && i < count; i++) merged[rules[i].left] = merged[rules[i].right] = merged[rules[i].result] = 1;
  bool ok = vocab && merged;
  for (int32_t id = 0; id < tok->vocab.size && ok; id++) {
    const char *text = px_vocab_text(&tok->vocab, id);
    size_t bytes = tok->vocab.length[id];
    if (!text || px_vocab_find(&tok->vocab, text, bytes) != id || ((tok->flags[id] & TOKEN_UNUSED) && !merged[id])) continue;
    ok = json_object_set_new(vocab, text, json_integer(id)) == 0;
  }
  free(merged);
  if (ok) return vocab;
  json_decref(vocab);
  return NULL;
}

static px_status put_model(const writer *w, json_t *root) {
  const px_tokenizer *tok = w->tok;
  px_bpe_rule *rules = NULL;
  size_t count = 0;
  for (int32_t id = 0; id < tok->vocab.size; id++)
    if (tok->vocab.length[id] && memchr(px_vocab_text(&tok->vocab, id), 0, tok->vocab.length[id])) return cannot(w, "a token that holds U+0000");
  PX_TRY(px_bpe_rules(&tok->bpe, &rules, &count, w->err));
  json_t *vocab = make_vocab(w, rules, count), *merges = json_array();
  bool ok = vocab && merges;
  for (size_t i = 0; i < count && ok; i++)
    ok = json_array_append_new(merges, json_pack("[s s]", px_vocab_text(&tok->vocab, rules[i].left), px_vocab_text(&tok->vocab, rules[i].right))) == 0;
  free(rules);
  json_t *model = json_pack("{s:s s:n s:s? s:n s:n s:b s:b s:b}", "type", "BPE", "dropout", "unk_token", px_vocab_text(&tok->vocab, tok->unk),
                            "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", tok->fuse_unk, "byte_fallback", tok->byte_fallback,
                            "ignore_merges", tok->ignore_merges);
  ok = ok && model;
  json_object_set_new(model, "vocab", vocab);
  json_object_set_new(model, "merges", merges);
  json_object_set_new(root, "model", model);
  return ok ? PX_OK : no_memory(w);
}

/* ---- files ---- */

static px_status put_file(const writer *w, const char *dir, const char *name, json_t *root) {
  px_buf path = {0};
  px_buf_printf(&path, "%s/%s", dir, name);
  char *text = path.failed ? NULL : json_dumps(root, DUMP_FLAGS);
  px_status status = text ? px_file_write(path.data, text, strlen(text), w->err) : no_memory(w);
  free(text);
  px_buf_free(&path);
  return status;
}

/* A special token by name. One that the file holds as ordinary text keeps to its id (in config.json): transformers would
 * make it an added token, and text that spells it would get other ids. */
static void put_special(const writer *w, json_t *config, const char *key, int32_t id) {
  if (id >= 0 && (w->tok->flags[id] & TOKEN_ADDED)) json_object_set_new(config, key, json_string(px_vocab_text(&w->tok->vocab, id)));
}

static px_status write_config(const writer *w, const char *dir, int32_t context) {
  const px_tokenizer *tok = w->tok;
  json_t *config = json_pack("{s:s s:b s:b}", "tokenizer_class", "PreTrainedTokenizerFast", "add_bos_token", tok->info.add_bos,
                             "clean_up_tokenization_spaces", 0);
  if (!config) return no_memory(w);
  put_special(w, config, "bos_token", tok->info.bos);
  put_special(w, config, "eos_token", tok->info.eos);
  put_special(w, config, "pad_token", tok->info.pad);
  put_special(w, config, "unk_token", tok->unk);
  if (context > 0) json_object_set_new(config, "model_max_length", json_integer(context));
  if (tok->chat_template) json_object_set_new(config, "chat_template", px_json_text(tok->chat_template, strlen(tok->chat_template)));
  px_status status = put_file(w, dir, "tokenizer_config.json", config);
  json_decref(config);
  return status;
}

px_status px_tokenizer_write(const px_tokenizer *tok, const char *dir, int32_t context, px_error *err) {
  writer w = {.tok = tok, .err = err};
  json_t *root = json_pack("{s:s s:n s:n}", "version", "1.0", "truncation", "padding");
  px_status status = root ? put_added(&w, root) : no_memory(&w);
  if (status == PX_OK) status = put_steps(&w, root);
  if (status == PX_OK) status = put_begin(&w, root);
  if (status == PX_OK) status = put_model(&w, root);
  if (status == PX_OK) status = put_file(&w, dir, "tokenizer.json", root);
  json_decref(root);
  return status == PX_OK ? write_config(&w, dir, context) : status;
}
