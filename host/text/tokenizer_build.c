/* SPDX-License-Identifier: MIT
 * Putting a tokenizer together from what any of the file formats says. */
#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "text/tokenizer_internal.h"

/* ---- the byte alphabet of GPT-2: printable Latin-1 stands for itself, the others follow from U+0100 on ---- */

uint32_t px_byte_char(uint8_t b) {
  if (b <= 32) return 256u + b;
  if (b >= 127 && b <= 160) return 256u + 33u + (b - 127u);
  return b == 173 ? 323u : b;
}

int px_char_byte(uint32_t c) {
  if ((c >= 33 && c <= 126) || (c >= 161 && c <= 255 && c != 173)) return (int)c;
  if (c >= 256 && c <= 288) return (int)c - 256;
  if (c >= 289 && c <= 322) return (int)c - 289 + 127;
  return c == 323 ? 173 : -1;
}

void px_byte_spell(px_buf *out, uint8_t byte) {
  uint32_t c = px_byte_char(byte); /* below U+0800 */
  char text[2] = {(char)(c < 0x80 ? c : 0xC0 | c >> 6), (char)(0x80 | (c & 63))};
  px_buf_append(out, text, c < 0x80 ? 1 : 2);
}

/* ---- tokens ---- */

static px_status grow_flags(px_tokenizer *tok, int32_t before, px_error *err) {
  if (tok->vocab.size == before) return PX_OK;
  size_t cap = tok->vocab.offset_cap; /* grows in step with the vocabulary's own tables */
  uint8_t *flags = realloc(tok->flags, cap);
  if (!flags) return px_fail(err, PX_NO_MEMORY, "no memory for %zu tokens", cap);
  memset(flags + before, 0, cap - (size_t)before);
  tok->flags = flags;
  return PX_OK;
}

px_status px_build_token(px_tokenizer *tok, const char *name, const char *text, size_t count, int32_t id,
                         bool last_wins, px_error *err) {
  int32_t before = tok->vocab.size;
  if (px_utf8_valid(text, count) != count)
    return px_fail(err, PX_BAD_FILE, "%s: token %d is not valid UTF-8", name, id);
  PX_TRY(px_vocab_add(&tok->vocab, name, text, count, id, last_wins, err));
  PX_TRY(grow_flags(tok, before, err));
  tok->flags[id] |= TOKEN_MODEL;
  return PX_OK;
}

px_status px_build_added(px_tokenizer *tok, const char *name, const px_added *token, px_error *err) {
  if (token->bytes == 0) return PX_OK; /* as `tokenizers` does */
  if (token->bytes > MAX_ADDED_BYTES)
    return px_fail(err, PX_BAD_FILE, "%s: added token %d is %u bytes long, the most is %d", name, token->id,
                   token->bytes, MAX_ADDED_BYTES);
  int32_t before = tok->vocab.size, known = px_vocab_find(&tok->vocab, token->text, token->bytes);
  if (known < 0) {
    if (px_utf8_valid(token->text, token->bytes) != token->bytes)
      return px_fail(err, PX_BAD_FILE, "%s: added token %d is not valid UTF-8", name, token->id);
    PX_TRY(px_vocab_add(&tok->vocab, name, token->text, token->bytes, token->id, false, err));
    PX_TRY(grow_flags(tok, before, err));
    known = token->id;
  }
  if (known != token->id)
    return px_fail(err, PX_BAD_FILE, "%s: added token \"%.60s\" has id %d, but the vocabulary gives it %d", name,
                   token->text, token->id, known);
  if (tok->flags[known] & TOKEN_ADDED) return PX_OK; /* the first description counts */
  if (px_reserve(&tok->added, &tok->added_cap, tok->added_count + 1, sizeof *tok->added))
    return px_fail(err, PX_NO_MEMORY, "%s: no memory for the added tokens", name);
  px_added *a = &tok->added[tok->added_count];
  *a = *token;
  if (!(a->text = malloc((size_t)a->bytes + 1)))
    return px_fail(err, PX_NO_MEMORY, "%s: no memory for the added tokens", name);
  memcpy(a->text, token->text, a->bytes);
  a->text[a->bytes] = 0;
  tok->added_count++;
  tok->flags[known] |= TOKEN_ADDED | (token->special ? TOKEN_SPECIAL : 0);
  return PX_OK;
}

/* ---- merges ---- */

static int32_t model_token(const px_tokenizer *tok, const char *text, size_t count) {
  int32_t id = px_vocab_find(&tok->vocab, text, count);
  return id >= 0 && (tok->flags[id] & TOKEN_MODEL) ? id : -1;
}

px_status px_build_merge(px_tokenizer *tok, const char *name, size_t number, const char *left, size_t left_count,
                         const char *right, size_t right_count, px_error *err) {
  char both[512];
  size_t count = left_count + right_count;
  px_bpe_rule rule = {model_token(tok, left, left_count), model_token(tok, right, right_count), -1};
  if (rule.left >= 0 && rule.right >= 0 && count <= tok->vocab.longest) {
    char *text = count <= sizeof both ? both : malloc(count);
    if (!text) return px_fail(err, PX_NO_MEMORY, "%s: no memory for merge %zu", name, number);
    memcpy(text, left, left_count);
    memcpy(text + left_count, right, right_count);
    rule.result = model_token(tok, text, count);
    if (text != both) free(text);
  }
  if (rule.result < 0) {
    return px_fail(err, PX_BAD_FILE,
                   "%s: merge %zu (\"%.*s\" \"%.*s\") uses or makes a token that the vocabulary lacks", name, number,
                   left_count > 60 ? 60 : (int)left_count, left, right_count > 60 ? 60 : (int)right_count, right);
  }
  if (px_reserve(&tok->rules, &tok->rule_cap, tok->rule_count + 1, sizeof *tok->rules))
    return px_fail(err, PX_NO_MEMORY, "%s: no memory for merge %zu", name, number);
  tok->rules[tok->rule_count++] = rule;
  return PX_OK;
}

px_status px_build_merge_line(px_tokenizer *tok, const char *name, size_t number, const char *line, size_t count,
                              px_error *err) {
  const char *space = memchr(line, ' ', count);
  size_t left = space ? (size_t)(space - line) : 0, right = space ? count - left - 1 : 0;
  if (left == 0 || right == 0 || memchr(space + 1, ' ', right))
    return px_fail(err, PX_BAD_FILE, "%s: merge %zu must be two tokens with one space between", name, number);
  return px_build_merge(tok, name, number, line, left, space + 1, right, err);
}

/* ---- steps ---- */

static px_status too_many(px_error *err, const char *what) {
  return px_fail(err, PX_BAD_FILE, "a %s of more than %d steps is not supported", what, MAX_STEPS);
}

static px_status copy_text(char **out, size_t *bytes, const char *text, px_error *err) {
  if (!text) return PX_OK;
  *bytes = strlen(text);
  return (*out = strdup(text)) ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory for a tokenizer");
}

px_status px_build_pre_rule(px_tokenizer *tok, px_split_rule rule, px_error *err) {
  if (tok->pre_count == MAX_STEPS) return too_many(err, "pre_tokenizer");
  tok->pre[tok->pre_count++] = (px_pre_step){.kind = PX_PRE_SPLIT, .splitter = {.rule = rule}};
  return PX_OK;
}

px_status px_build_pre_bytes(px_tokenizer *tok, bool add_prefix_space, px_error *err) {
  tok->byte_level = true;
  if (!add_prefix_space) return PX_OK;
  if (tok->pre_count == MAX_STEPS) return too_many(err, "pre_tokenizer");
  tok->pre[tok->pre_count++] = (px_pre_step){.kind = PX_PRE_BYTES, .add_prefix_space = true};
  return PX_OK;
}

px_status px_build_normal(px_tokenizer *tok, px_normal_step step, const char *from, const char *to, px_error *err) {
  if (tok->normal_count == MAX_STEPS) return too_many(err, "normalizer");
  px_normal_step *s = &tok->normal[tok->normal_count++];
  *s = step;
  PX_TRY(copy_text(&s->from, &s->from_bytes, from, err));
  return copy_text(&s->to, &s->to_bytes, to, err);
}

px_status px_build_decode(px_tokenizer *tok, px_decode_step step, const char *from, const char *to, px_error *err) {
  if (tok->decode_count == MAX_STEPS) return too_many(err, "decoder");
  px_decode_step *s = &tok->decode[tok->decode_count++];
  *s = step;
  PX_TRY(copy_text(&s->from, &s->from_bytes, from, err));
  return copy_text(&s->to, &s->to_bytes, to, err);
}

px_status px_build_stop(px_tokenizer *tok, int64_t id, px_error *err) {
  if (id < 0 || id >= INT32_MAX) return PX_OK;
  for (int i = 0; i < tok->info.stop_count; i++)
    if (tok->stop_ids[i] == (int32_t)id) return PX_OK;
  if (px_reserve(&tok->stop_ids, &tok->stop_cap, (size_t)tok->info.stop_count + 1, sizeof *tok->stop_ids))
    return px_fail(err, PX_NO_MEMORY, "no memory for a tokenizer");
  tok->stop_ids[tok->info.stop_count++] = (int32_t)id;
  tok->info.stop_ids = tok->stop_ids;
  return PX_OK;
}

/* ---- finishing ---- */

static px_status fill_byte_symbols(px_tokenizer *tok, const char *name, px_error *err) {
  px_buf text = {0};
  int lacking = -1;
  for (int b = 0; b < 256; b++) {
    text.len = 0;
    if (tok->byte_level)
      px_byte_spell(&text, (uint8_t)b);
    else
      px_buf_printf(&text, "<0x%02X>", b);
    tok->byte_symbol[b] = text.failed ? -1 : model_token(tok, text.data, text.len);
    if (tok->byte_symbol[b] < 0) lacking = b;
  }
  bool failed = text.failed;
  px_buf_free(&text);
  if (failed) return px_fail(err, PX_NO_MEMORY, "no memory for a tokenizer");
  if (tok->byte_level && tok->byte_fallback && lacking >= 0)
    return px_fail(err, PX_BAD_FILE,
                   "%s: byte_fallback in a byte-level vocabulary that lacks byte 0x%02X is not supported", name,
                   (unsigned)lacking);
  return PX_OK;
}

static px_status fill_char_symbols(px_tokenizer *tok, px_error *err) {
  if (tok->byte_level) return PX_OK;
  if (!(tok->char_symbol = malloc(BMP * sizeof *tok->char_symbol)))
    return px_fail(err, PX_NO_MEMORY, "no memory for a tokenizer");
  memset(tok->char_symbol, 0xff, BMP * sizeof *tok->char_symbol);
  for (int32_t id = 0; id < tok->vocab.size; id++) {
    size_t count = tok->vocab.length[id], at = 0;
    const char *text = px_vocab_text(&tok->vocab, id);
    if (!text || count == 0 || count > 3 || !(tok->flags[id] & TOKEN_MODEL)) continue;
    uint32_t c = px_utf8_next(text, &at);
    if (at == count && px_vocab_find(&tok->vocab, text, count) == id) tok->char_symbol[c] = id;
  }
  return PX_OK;
}

/* The starting symbols that a token can begin with (first) or end in: that of its first or last character, and the
 * token itself where it is one (a byte of the byte fallback, the unknown token). */
static int edge_symbols(const px_tokenizer *tok, int32_t id, bool first, int32_t out[2]) {
  int count = 0;
  const char *text = px_vocab_text(&tok->vocab, id);
  size_t bytes = tok->vocab.length[id], start = 0, end = bytes;
  if (bytes == 0) return 0;
  if (first) {
    end = 0;
    px_utf8_next(text, &end);
  } else {
    start = bytes - 1;
    while (start > 0 && ((unsigned char)text[start] & 0xC0) == 0x80) start--;
  }
  int32_t symbol = model_token(tok, text + start, end - start);
  if (symbol >= 0) out[count++] = symbol;
  if (symbol != id && (id == tok->unk || (bytes == 6 && memcmp(text, "<0x", 3) == 0))) out[count++] = id;
  return count;
}

static px_status build_merges(px_tokenizer *tok, const char *name, px_error *err) {
  px_bpe_join *joins = NULL;
  size_t count = 0, cap = 0;
  px_status status = PX_OK;
  for (size_t i = 0; i < tok->rule_count && status == PX_OK; i++) {
    int32_t left[2], right[2];
    int lefts = edge_symbols(tok, tok->rules[i].left, false, left),
        rights = edge_symbols(tok, tok->rules[i].right, true, right);
    if (px_reserve(&joins, &cap, count + 4, sizeof *joins))
      status = px_fail(err, PX_NO_MEMORY, "%s: no memory for the merges", name);
    for (int l = 0; l < lefts && status == PX_OK; l++)
      for (int r = 0; r < rights; r++) joins[count++] = (px_bpe_join){left[l], right[r]};
  }
  if (status == PX_OK) status = px_bpe_build(&tok->bpe, tok->rules, tok->rule_count, joins, count, err);
  free(joins);
  return status;
}

static px_status build_tries(px_tokenizer *tok, px_error *err) {
  px_status status = PX_OK;
  for (size_t i = 0; i < tok->added_count && status == PX_OK; i++) {
    px_added *a = &tok->added[i];
    if (!a->normalized) {
      status = px_trie_add(&tok->raw_trie, a->text, a->bytes, (int32_t)i, err);
      continue;
    }
    px_buf scratch[2] = {{0}, {0}};
    const char *text;
    size_t bytes;
    status = px_normalize(tok->normal, tok->normal_count, false, a->text, a->bytes, scratch, &text, &bytes, err);
    if (status == PX_OK) status = px_trie_add(&tok->normal_trie, text, bytes, (int32_t)i, err);
    px_buf_free(&scratch[0]);
    px_buf_free(&scratch[1]);
  }
  return status;
}

static void digest_text(px_sha256 *h, const char *text, size_t count) {
  uint64_t length = count;
  px_sha256_add(h, &length, sizeof length);
  if (count) px_sha256_add(h, text, count);
}

static void digest_number(px_sha256 *h, int64_t value) { px_sha256_add(h, &value, sizeof value); }

/* Padding that only one of the file formats writes, and what no id depends on, stay outside. */
static void make_digest(px_tokenizer *tok) {
  px_sha256 h;
  px_sha256_start(&h);
  digest_text(&h, "pfx tokenizer 1", 15);
  digest_number(&h, tok->byte_level | tok->byte_fallback << 1 | tok->ignore_merges << 2);
  for (int32_t id = 0; id < tok->vocab.size; id++) {
    if (!px_vocab_text(&tok->vocab, id) || (tok->flags[id] & TOKEN_UNUSED)) continue;
    digest_number(&h, (int64_t)id << 8 | (tok->flags[id] & TOKEN_SPECIAL));
    digest_text(&h, px_vocab_text(&tok->vocab, id), tok->vocab.length[id]);
  }
  digest_number(&h, (int64_t)tok->rule_count);
  for (size_t i = 0; i < tok->rule_count; i++)
    digest_number(&h, (int64_t)tok->rules[i].left << 32 | tok->rules[i].right);
  for (int i = 0; i < tok->normal_count; i++) {
    const px_normal_step *s = &tok->normal[i];
    digest_number(&h, s->kind | s->left << 8 | s->right << 9);
    digest_text(&h, s->from, s->from_bytes);
    digest_text(&h, s->to, s->to_bytes);
  }
  for (int i = 0; i < tok->pre_count; i++) {
    const px_pre_step *s = &tok->pre[i];
    digest_number(&h, s->kind | s->add_prefix_space << 8 | s->split << 9 | s->splitter.invert << 10 |
                          (int)s->prepend << 12 | (int)s->splitter.rule << 16 | (int)s->splitter.behavior << 20);
    digest_text(&h, s->splitter.text, s->splitter.text_bytes);
    digest_text(&h, s->replacement, strlen(s->replacement));
  }
  digest_number(&h, tok->info.eos);
  digest_number(&h, tok->info.add_bos ? tok->info.bos : -1);
  px_sha256_end(&h, tok->info.digest);
}

/* What the rule is called where the file did not name it. */
static const char *split_name(const px_tokenizer *tok) {
  const px_pre_step *p = tok->pre;
  int n = tok->pre_count;
  for (int i = 0; i < n; i++) {
    if (p[i].kind == PX_PRE_METASPACE && p[i].split) return "custom";
    if (p[i].kind == PX_PRE_SPLIT && (p[i].splitter.behavior != PX_SPLIT_ISOLATED || p[i].splitter.invert))
      return "custom";
  }
  if (!tok->byte_level) return n == 0 || (n == 1 && p[0].kind == PX_PRE_METASPACE) ? "none" : "custom";
  bool nfc = tok->normal_count == 1 && tok->normal[0].kind == PX_NORMAL_NFC;
  if (n == 1 && p[0].kind == PX_PRE_SPLIT && (nfc || tok->normal_count == 0)) {
    if (p[0].splitter.rule == PX_SPLIT_GPT2) return nfc ? "gpt-neox" : "gpt-2";
    if (p[0].splitter.rule == PX_SPLIT_QWEN2) return "qwen2";
    if (p[0].splitter.rule == PX_SPLIT_LLAMA3) return "llama-3";
  }
  if (n == 2 && p[0].kind == PX_PRE_SPLIT && p[1].kind == PX_PRE_SPLIT && tok->normal_count == 0 &&
      p[0].splitter.rule == PX_SPLIT_DIGIT && p[1].splitter.rule == PX_SPLIT_GPT2)
    return "smollm";
  return n == 0 ? "none" : "custom";
}

px_status px_build_finish(px_tokenizer *tok, const char *name, px_error *err) {
  if (tok->vocab.size == 0) return px_fail(err, PX_BAD_FILE, "%s: the vocabulary is empty", name);
  int32_t *special[] = {&tok->info.bos, &tok->info.eos, &tok->info.pad};
  static const char *const what[] = {"bos", "eos", "pad"};
  for (int i = 0; i < 3; i++)
    if (*special[i] >= 0 && !px_vocab_text(&tok->vocab, *special[i]))
      return px_fail(err, PX_BAD_FILE, "%s: the %s token id %d is not in the vocabulary of %d", name, what[i],
                     *special[i], tok->vocab.size);
  tok->info.vocab_size = tok->vocab.size;
  tok->info.kind = tok->byte_level ? "byte-level BPE" : "SentencePiece BPE";
  if (!tok->info.split) tok->info.split = split_name(tok);
  tok->info.chat_template = tok->chat_template;
  if (tok->info.bos < 0) tok->info.add_bos = false;
  PX_TRY(fill_byte_symbols(tok, name, err));
  PX_TRY(fill_char_symbols(tok, err));
  PX_TRY(build_merges(tok, name, err));
  PX_TRY(build_tries(tok, err));
  make_digest(tok);
  free(tok->rules);
  tok->rules = NULL;
  tok->rule_count = tok->rule_cap = 0;
  return px_build_stop(tok, tok->info.eos, err);
}
