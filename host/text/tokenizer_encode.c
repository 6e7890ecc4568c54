/* SPDX-License-Identifier: MIT
 * Text -> ids: repair, added tokens, normalizers, added tokens again, words, merges. */
#include <stdlib.h>
#include <string.h>

#include "text/tokenizer_internal.h"

#define MAX_TEXT ((size_t)1 << 30)

typedef struct encoder {
  const px_tokenizer *tok;
  int flags;
  px_ids *ids;
  px_error *err;
  px_bpe_work bpe;
  px_split_work split;
  px_buf normal[2], step[MAX_STEPS], spelled;
  int32_t *symbols;
  size_t symbol_cap;
} encoder;

/* ---- one word ---- */

/* ignore_merges: a word that is a token stays whole. */
static int32_t whole_word(encoder *e, const char *text, size_t count) {
  const px_tokenizer *tok = e->tok;
  int32_t id = -1;
  if (!tok->byte_level) {
    id = px_vocab_find(&tok->vocab, text, count);
  } else if (count <= tok->vocab.longest) {
    e->spelled.len = 0;
    for (size_t i = 0; i < count; i++) px_byte_spell(&e->spelled, (uint8_t)text[i]);
    if (!e->spelled.failed) id = px_vocab_find(&tok->vocab, e->spelled.data, e->spelled.len);
  }
  return id >= 0 && (tok->flags[id] & TOKEN_MODEL) ? id : -1;
}

static int32_t symbol_of(const px_tokenizer *tok, uint32_t c, const char *text, size_t count) {
  if (c < BMP) return tok->char_symbol[c];
  int32_t id = px_vocab_find(&tok->vocab, text, count);
  return id >= 0 && (tok->flags[id] & TOKEN_MODEL) ? id : -1;
}

static bool all_bytes(const px_tokenizer *tok, const char *text, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (tok->byte_symbol[(uint8_t)text[i]] < 0) return false;
  return true;
}

/* The starting symbols of a word in e->symbols (which holds `count`); returns how many. A character that the
 * vocabulary lacks becomes its bytes, else the unknown token (once for a run with fuse_unk), else nothing. */
static size_t start_symbols(encoder *e, const char *text, size_t count) {
  const px_tokenizer *tok = e->tok;
  size_t n = 0;
  bool unknown = false;
  for (size_t at = 0, next; at < count; at = next) {
    int32_t id;
    next = at;
    if (tok->byte_level) {
      id = tok->byte_symbol[(uint8_t)text[next++]];
    } else {
      uint32_t c = px_utf8_next(text, &next);
      id = symbol_of(tok, c, text + at, next - at);
    }
    if (id >= 0) {
      if (unknown) e->symbols[n++] = tok->unk;
      unknown = false;
      e->symbols[n++] = id;
    } else if (!tok->byte_level && tok->byte_fallback && all_bytes(tok, text + at, next - at)) {
      for (size_t i = at; i < next; i++) e->symbols[n++] = tok->byte_symbol[(uint8_t)text[i]];
    } else if (tok->unk >= 0) {
      if (unknown && !tok->fuse_unk) e->symbols[n++] = tok->unk;
      unknown = true;
    }
  }
  if (unknown) e->symbols[n++] = tok->unk;
  return n;
}

static px_status encode_word(encoder *e, const char *text, size_t count) {
  const px_tokenizer *tok = e->tok;
  if (tok->ignore_merges) {
    int32_t id = whole_word(e, text, count);
    if (id >= 0) return px_ids_push(e->ids, id, e->err);
  }
  if (px_reserve(&e->symbols, &e->symbol_cap, count, sizeof *e->symbols))
    return px_fail(e->err, PX_NO_MEMORY, "no memory for a word of %zu bytes", count);
  size_t n = start_symbols(e, text, count);
  return n ? px_bpe_word(&tok->bpe, &e->bpe, e->symbols, n, e->ids, e->err) : PX_OK;
}

/* ---- pre-tokenizers ---- */

static px_status run_steps(encoder *e, int index, const char *text, size_t count, bool first);

static px_status run_split(encoder *e, int index, const char *text, size_t count, bool first) {
  px_split_run run;
  px_split_start(&run, &e->tok->pre[index].splitter, &e->split, text, count);
  for (;;) {
    size_t start, end;
    PX_TRY(px_split_next(&run, &start, &end, e->err));
    if (start == end) return PX_OK;
    PX_TRY(run_steps(e, index + 1, text + start, end - start, first && start == 0));
  }
}

/* Spaces become the replacement, one is put in front by the scheme; pieces start at each replacement. */
static px_status run_metaspace(encoder *e, int index, const char *text, size_t count, bool first) {
  const px_pre_step *step = &e->tok->pre[index];
  size_t mark = strlen(step->replacement);
  px_buf *out = &e->step[index];
  out->len = 0;
  bool has = text[0] == ' ' || (count >= mark && memcmp(text, step->replacement, mark) == 0);
  bool wanted = step->prepend == PX_PREPEND_ALWAYS || (step->prepend == PX_PREPEND_FIRST && first);
  if (wanted && !has && !(first && (e->flags & PX_ENCODE_NO_DUMMY_SPACE))) px_buf_append(out, step->replacement, mark);
  for (size_t at = 0; at < count;) {
    const char *space = memchr(text + at, ' ', count - at);
    size_t end = space ? (size_t)(space - text) : count;
    px_buf_append(out, text + at, end - at);
    if (space) px_buf_append(out, step->replacement, mark);
    at = end + 1;
  }
  if (out->failed) return px_fail(e->err, PX_NO_MEMORY, "no memory for a text of %zu bytes", count);
  if (!step->split) return run_steps(e, index + 1, out->data, out->len, first);
  for (size_t start = 0; start < out->len;) {
    const char *next =
        start + 1 < out->len ? memmem(out->data + start + 1, out->len - start - 1, step->replacement, mark) : NULL;
    size_t end = next ? (size_t)(next - out->data) : out->len;
    PX_TRY(run_steps(e, index + 1, out->data + start, end - start, first && start == 0));
    start = end;
  }
  return PX_OK;
}

/* `text` is not empty; `first`: it is the start of the whole text. */
static px_status run_steps(encoder *e, int index, const char *text, size_t count, bool first) {
  if (index == e->tok->pre_count) return encode_word(e, text, count);
  switch (e->tok->pre[index].kind) {
    case PX_PRE_SPLIT:
      return run_split(e, index, text, count, first);
    case PX_PRE_METASPACE:
      return run_metaspace(e, index, text, count, first);
    case PX_PRE_BYTES:
      break;
  }
  if (text[0] == ' ' || (first && (e->flags & PX_ENCODE_NO_DUMMY_SPACE)))
    return run_steps(e, index + 1, text, count, first);
  px_buf *out = &e->step[index];
  out->len = 0;
  px_buf_append(out, " ", 1);
  px_buf_append(out, text, count);
  if (out->failed) return px_fail(e->err, PX_NO_MEMORY, "no memory for a text of %zu bytes", count);
  return run_steps(e, index + 1, out->data, out->len, first);
}

/* ---- the whole text ---- */

/* A stretch without raw added tokens. */
static px_status encode_stretch(encoder *e, const char *text, size_t count, bool first) {
  const px_tokenizer *tok = e->tok;
  PX_TRY(px_normalize(tok->normal, tok->normal_count, first && (e->flags & PX_ENCODE_NO_DUMMY_SPACE), text, count,
                      e->normal, &text, &count, e->err));
  px_added_scan scan;
  px_added_part part;
  px_added_start(&scan, &tok->normal_trie, tok->added, text, count, e->flags & PX_ENCODE_NO_SPECIAL);
  while (px_added_next(&scan, &part)) {
    if (part.id >= 0)
      PX_TRY(px_ids_push(e->ids, part.id, e->err));
    else
      PX_TRY(run_steps(e, 0, text + part.start, part.end - part.start, first && part.start == 0));
  }
  return PX_OK;
}

static px_status encode_text(encoder *e, const char *text, size_t count) {
  px_added_scan scan;
  px_added_part part;
  px_added_start(&scan, &e->tok->raw_trie, e->tok->added, text, count, e->flags & PX_ENCODE_NO_SPECIAL);
  while (px_added_next(&scan, &part)) {
    if (part.id >= 0)
      PX_TRY(px_ids_push(e->ids, part.id, e->err));
    else
      PX_TRY(encode_stretch(e, text + part.start, part.end - part.start, part.start == 0));
  }
  return PX_OK;
}

px_status px_tokenizer_encode(const px_tokenizer *tok, const char *bytes, size_t count, int flags, px_ids *ids,
                              px_error *err) {
  if (count == 0) return PX_OK;
  if (count > MAX_TEXT)
    return px_fail(err, PX_INVALID, "a text of %zu bytes is longer than 1 GiB: encode it in parts", count);
  encoder e = {.tok = tok, .flags = flags, .ids = ids, .err = err};
  px_buf repaired = {0};
  px_status status = PX_OK;
  if (px_utf8_valid(bytes, count) != count) {
    px_utf8_repair(&repaired, bytes, count);
    if (repaired.failed) status = px_fail(err, PX_NO_MEMORY, "no memory for a text of %zu bytes", count);
    bytes = repaired.data;
    count = repaired.len;
  }
  if (status == PX_OK) status = encode_text(&e, bytes, count);
  px_bpe_work_free(&e.bpe);
  px_split_work_free(&e.split);
  px_buf_free(&e.spelled);
  px_buf_free(&e.normal[0]);
  px_buf_free(&e.normal[1]);
  for (int i = 0; i < tok->pre_count; i++) px_buf_free(&e.step[i]);
  free(e.symbols);
  px_buf_free(&repaired);
  return status;
}
