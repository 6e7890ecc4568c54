/* SPDX-License-Identifier: MIT
 * The tokenizer in a GGUF file's metadata. It names its split rule where tokenizer.json spells it out. */
#include <stdlib.h>
#include <string.h>

#include "format/gguf.h"
#include "text/tokenizer_internal.h"

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };

/* ---- split rules by name ---- */

typedef struct named_rule {
  const char *pre, *split;
  bool nfc, digits;
  px_split_rule rule;
} named_rule;

/* Names that llama.cpp's converter writes for vocabularies whose rule is one of ours. */
static const named_rule rules[] = {
    {"gpt-2", "gpt-2", false, false, PX_SPLIT_GPT2},         {"phi-2", "gpt-2", false, false, PX_SPLIT_GPT2},
    {"gpt-neox", "gpt-neox", true, false, PX_SPLIT_GPT2},    {"olmo", "gpt-neox", true, false, PX_SPLIT_GPT2},
    {"smollm", "smollm", false, true, PX_SPLIT_GPT2},        {"starcoder", "starcoder", false, true, PX_SPLIT_GPT2},
    {"refact", "starcoder", false, true, PX_SPLIT_GPT2},     {"codeshell", "starcoder", false, true, PX_SPLIT_GPT2},
    {"qwen2", "qwen2", true, false, PX_SPLIT_QWEN2},         {"deepseek-r1-qwen", "qwen2", true, false, PX_SPLIT_QWEN2},
    {"llama-bpe", "llama-3", false, false, PX_SPLIT_LLAMA3}, {"llama3", "llama-3", false, false, PX_SPLIT_LLAMA3},
    {"llama-v3", "llama-3", false, false, PX_SPLIT_LLAMA3},
};

static px_status set_rule(px_tokenizer *tok, px_gguf *g, px_error *err) {
  const char *pre, *arch;
  PX_TRY(px_gguf_str(g, "general.architecture", "", &arch, err));
  PX_TRY(px_gguf_str(g, "tokenizer.ggml.pre", strcmp(arch, "gpt2") == 0 ? "gpt-2" : "", &pre, err));
  if (!*pre)
    return px_fail(err, PX_BAD_FILE,
                   "%s: tokenizer.ggml.pre is missing: without the name of its split rule the vocabulary cannot be "
                   "used; convert the model again",
                   g->path);
  for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
    if (strcmp(rules[i].pre, pre) != 0) continue;
    tok->info.split = rules[i].split;
    /* Llama 3 takes a word that is a token as it is, without asking the merges. */
    tok->ignore_merges = rules[i].rule == PX_SPLIT_LLAMA3;
    if (rules[i].nfc) PX_TRY(px_build_normal(tok, (px_normal_step){.kind = PX_NORMAL_NFC}, NULL, NULL, err));
    if (rules[i].digits) PX_TRY(px_build_pre_rule(tok, PX_SPLIT_DIGIT, err));
    PX_TRY(px_build_pre_rule(tok, rules[i].rule, err));
    PX_TRY(px_build_pre_bytes(tok, false, err));
    return px_build_decode(tok, (px_decode_step){.kind = PX_DECODE_BYTES}, NULL, NULL, err);
  }
  return px_fail(
      err, PX_BAD_FILE,
      "%s: tokenizer.ggml.pre is \"%.60s\", which is not supported (supported: gpt-2, gpt-neox, olmo, phi-2, "
      "smollm, starcoder, refact, codeshell, qwen2, deepseek-r1-qwen, llama-bpe)",
      g->path, pre);
}

/* ---- SentencePiece ---- */

static px_status get_bool(px_gguf *g, const char *key, bool fallback, bool *out, px_error *err) {
  const px_gguf_value *v = px_gguf_find(g, key);
  if (v && v->type != PX_GGUF_BOOL)
    return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" must be true or false", g->path, key);
  *out = v ? v->raw[0] != 0 : fallback;
  return PX_OK;
}

typedef struct scored_merge {
  double score;
  int32_t token, left, right;
  uint32_t left_bytes;
} scored_merge;

static int compare(double a, double b) { return a < b ? -1 : a > b; }

/* The order of the merges in the tokenizer.json that transformers made of Llama 2's scores: best score first, the cuts
 * of one token by the ids of their parts. */
static int by_score(const void *pa, const void *pb) {
  const scored_merge *a = pa, *b = pb;
  int by = compare(b->score, a->score);
  if (!by) by = compare(a->token, b->token);
  if (!by) by = compare(a->left, b->left);
  return by ? by : compare(a->right, b->right);
}

/* Control tokens and bytes are no text: nothing merges into or from them. */
static int32_t find_normal(const px_tokenizer *tok, const px_gguf_value *types, const char *text, size_t count) {
  int32_t id = px_vocab_find(&tok->vocab, text, count);
  return id >= 0 && (!types || px_gguf_array_int(types, (size_t)id) == TYPE_NORMAL) ? id : -1;
}

static px_status merges_from_scores(px_tokenizer *tok, px_gguf *g, const px_gguf_value *scores,
                                    const px_gguf_value *types, px_error *err) {
  scored_merge *list = NULL;
  size_t count = 0, cap = 0;
  px_status status = PX_OK;
  for (int32_t id = 0; id < tok->vocab.size && status == PX_OK; id++) {
    const char *text = px_vocab_text(&tok->vocab, id);
    size_t bytes = tok->vocab.length[id], at = 0;
    if (bytes == 0 || find_normal(tok, types, text, bytes) != id) continue;
    for (px_utf8_next(text, &at); at < bytes; px_utf8_next(text, &at)) {
      int32_t left = find_normal(tok, types, text, at), right = find_normal(tok, types, text + at, bytes - at);
      if (left < 0 || right < 0) continue;
      if (px_reserve(&list, &cap, count + 1, sizeof *list)) {
        status = px_fail(err, PX_NO_MEMORY, "%s: no memory for the merges", g->path);
        break;
      }
      double score = px_gguf_array_num(scores, (size_t)id);
      list[count++] = (scored_merge){score, id, left, right, (uint32_t)at};
    }
  }
  if (count) qsort(list, count, sizeof *list, by_score);
  for (size_t i = 0; i < count && status == PX_OK; i++) {
    const char *text = px_vocab_text(&tok->vocab, list[i].token);
    size_t bytes = tok->vocab.length[list[i].token], left = list[i].left_bytes;
    status = px_build_merge(tok, g->path, i, text, left, text + left, bytes - left, err);
  }
  free(list);
  return status;
}

static px_status set_sentencepiece(px_tokenizer *tok, px_gguf *g, px_error *err) {
  bool space = true, squeeze = false;
  PX_TRY(get_bool(g, "tokenizer.ggml.add_space_prefix", true, &space, err));
  PX_TRY(get_bool(g, "tokenizer.ggml.remove_extra_whitespaces", false, &squeeze, err));
  if (squeeze)
    return px_fail(err, PX_BAD_FILE, "%s: tokenizer.ggml.remove_extra_whitespaces is not supported", g->path);
  tok->byte_fallback = tok->fuse_unk = true;
  tok->info.split = "none";
  if (space) PX_TRY(px_build_normal(tok, (px_normal_step){.kind = PX_NORMAL_PREPEND}, NULL, "\xE2\x96\x81", err));
  PX_TRY(px_build_normal(tok, (px_normal_step){.kind = PX_NORMAL_REPLACE}, " ", "\xE2\x96\x81", err));
  PX_TRY(px_build_decode(tok, (px_decode_step){.kind = PX_DECODE_REPLACE}, "\xE2\x96\x81", " ", err));
  PX_TRY(px_build_decode(tok, (px_decode_step){.kind = PX_DECODE_BYTE_FALLBACK}, NULL, NULL, err));
  PX_TRY(px_build_decode(tok, (px_decode_step){.kind = PX_DECODE_FUSE}, NULL, NULL, err));
  return space ? px_build_decode(tok, (px_decode_step){.kind = PX_DECODE_STRIP, .left = 1}, " ", NULL, err) : PX_OK;
}

/* ---- the vocabulary ---- */

static px_status find_array(const px_gguf *g, const char *key, bool strings, size_t count, const px_gguf_value **out,
                            px_error *err) {
  const px_gguf_value *v = *out = px_gguf_find(g, key);
  if (!v) return PX_OK;
  if (v->type != PX_GGUF_ARRAY || (strings != (v->element_type == PX_GGUF_STRING)) || v->element_type == PX_GGUF_ARRAY)
    return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" must be a list of %s", g->path, key,
                   strings ? "strings" : "numbers");
  if (count != SIZE_MAX && v->count != count)
    return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" has %zu entries for %zu tokens", g->path, key, v->count, count);
  return PX_OK;
}

static px_status read_tokens(px_tokenizer *tok, const px_gguf *g, const px_gguf_value *tokens,
                             const px_gguf_value *types, px_error *err) {
  if (tokens->count > MAX_TOKEN_ID)
    return px_fail(err, PX_BAD_FILE, "%s: %zu tokens are more than %d", g->path, tokens->count, MAX_TOKEN_ID);
  for (size_t i = 0; i < tokens->count; i++) {
    px_gguf_string s = tokens->strings[i];
    PX_TRY(px_build_token(tok, g->path, s.data, s.len, (int32_t)i, true, err));
    if (types && px_gguf_array_int(types, i) == TYPE_UNUSED) tok->flags[i] |= TOKEN_UNUSED;
  }
  for (size_t i = 0; types && i < tokens->count; i++) {
    int64_t type = px_gguf_array_int(types, i);
    px_gguf_string s = tokens->strings[i];
    bool special = type == TYPE_CONTROL || (type == TYPE_UNKNOWN && !tok->byte_level);
    if ((!special && type != TYPE_USER_DEFINED) || s.len > MAX_ADDED_BYTES ||
        px_vocab_find(&tok->vocab, s.data, s.len) != (int32_t)i)
      continue;
    px_added added = {.text = (char *)(uintptr_t)px_vocab_text(&tok->vocab, (int32_t)i),
                      .bytes = (uint32_t)s.len,
                      .id = (int32_t)i,
                      .special = special};
    PX_TRY(px_build_added(tok, g->path, &added, err));
  }
  return PX_OK;
}

static px_status read_merges(px_tokenizer *tok, px_gguf *g, const px_gguf_value *types, bool required, px_error *err) {
  const px_gguf_value *merges, *scores;
  PX_TRY(find_array(g, "tokenizer.ggml.merges", true, SIZE_MAX, &merges, err));
  if (merges) {
    for (size_t i = 0; i < merges->count; i++)
      PX_TRY(px_build_merge_line(tok, g->path, i, merges->strings[i].data, merges->strings[i].len, err));
    return PX_OK;
  }
  if (required) return px_fail(err, PX_BAD_FILE, "%s: field \"tokenizer.ggml.merges\" is missing", g->path);
  PX_TRY(find_array(g, "tokenizer.ggml.scores", false, (size_t)tok->vocab.size, &scores, err));
  if (!scores) return px_fail(err, PX_BAD_FILE, "%s: field \"tokenizer.ggml.scores\" is missing", g->path);
  return merges_from_scores(tok, g, scores, types, err);
}

static px_status read_id(px_tokenizer *tok, px_gguf *g, const char *key, int32_t *out, px_error *err) {
  int64_t id;
  PX_TRY(px_gguf_int(g, key, -1, &id, err));
  if (id == UINT32_MAX) id = -1; /* how some converters write "none" */
  if (id < -1 || id >= tok->vocab.size)
    return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" is %lld, and the vocabulary has %d tokens", g->path, key,
                   (long long)id, tok->vocab.size);
  *out = (int32_t)id;
  return PX_OK;
}

static px_status read_ids(px_tokenizer *tok, px_gguf *g, bool sentencepiece, px_error *err) {
  PX_TRY(read_id(tok, g, "tokenizer.ggml.bos_token_id", &tok->info.bos, err));
  PX_TRY(read_id(tok, g, "tokenizer.ggml.eos_token_id", &tok->info.eos, err));
  PX_TRY(read_id(tok, g, "tokenizer.ggml.padding_token_id", &tok->info.pad, err));
  if (sentencepiece) {
    PX_TRY(read_id(tok, g, "tokenizer.ggml.unknown_token_id", &tok->unk, err));
    if (tok->unk < 0) tok->unk = px_vocab_find(&tok->vocab, "<unk>", 5);
  }
  PX_TRY(px_build_stop(tok, tok->info.eos, err));
  static const char *const stops[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
  for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
    int32_t id = -1;
    PX_TRY(read_id(tok, g, stops[i], &id, err));
    PX_TRY(px_build_stop(tok, id, err));
  }
  return get_bool(g, "tokenizer.ggml.add_bos_token", sentencepiece, &tok->info.add_bos, err);
}

static px_status read_all(px_tokenizer *tok, px_gguf *g, px_error *err) {
  const char *model, *chat;
  const px_gguf_value *tokens, *types;
  PX_TRY(px_gguf_str(g, "tokenizer.ggml.model", "", &model, err));
  bool sentencepiece = strcmp(model, "llama") == 0;
  if (!*model)
    return px_fail(err, PX_BAD_FILE, "%s: there is no tokenizer in it (field \"tokenizer.ggml.model\")", g->path);
  if (!sentencepiece && strcmp(model, "gpt2") != 0)
    return px_fail(err, PX_BAD_FILE,
                   "%s: tokenizer.ggml.model is \"%.60s\", which is not supported (supported: gpt2, llama)", g->path,
                   model);
  PX_TRY(find_array(g, "tokenizer.ggml.tokens", true, SIZE_MAX, &tokens, err));
  if (!tokens) return px_fail(err, PX_BAD_FILE, "%s: field \"tokenizer.ggml.tokens\" is missing", g->path);
  PX_TRY(find_array(g, "tokenizer.ggml.token_type", false, tokens->count, &types, err));
  PX_TRY(sentencepiece ? set_sentencepiece(tok, g, err) : set_rule(tok, g, err));
  PX_TRY(read_tokens(tok, g, tokens, types, err));
  PX_TRY(read_merges(tok, g, types, !sentencepiece, err));
  PX_TRY(read_ids(tok, g, sentencepiece, err));
  PX_TRY(px_gguf_str(g, "tokenizer.chat_template", NULL, &chat, err));
  if (chat && !(tok->chat_template = strdup(chat)))
    return px_fail(err, PX_NO_MEMORY, "%s: no memory for the chat template", g->path);
  return PX_OK;
}

px_status px_tokenizer_from_gguf(px_tokenizer *tok, const char *path, px_error *err) {
  px_gguf g;
  PX_TRY(px_gguf_open(path, &g, err));
  px_status status = read_all(tok, &g, err);
  px_gguf_close(&g);
  return status;
}
