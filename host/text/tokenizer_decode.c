/* SPDX-License-Identifier: MIT
 * Ids -> text. Whole and streaming decoding are one code path, so that they cannot differ. */
#include <string.h>

#include "text/tokenizer_internal.h"

#define REPLACEMENT "\xEF\xBF\xBD"

static bool has_step(const px_tokenizer *tok, px_decode_kind kind) {
  for (int i = 0; i < tok->decode_count; i++)
    if (tok->decode[i].kind == kind) return true;
  return false;
}

/* Text that is final, through the steps behind Fuse: one character may be stripped at the very start. */
static void emit(px_decoder *d, const char *text, size_t count, px_buf *out) {
  if (count == 0) return;
  const px_decode_step *last = d->tok->decode_count ? &d->tok->decode[d->tok->decode_count - 1] : NULL;
  if (!d->started && last && last->kind == PX_DECODE_STRIP && last->left && count >= last->from_bytes &&
      memcmp(text, last->from, last->from_bytes) == 0) {
    text += last->from_bytes;
    count -= last->from_bytes;
  }
  d->started = true;
  px_buf_append(out, text, count);
}

/* ---- ByteLevel ---- */

/* Characters of the byte alphabet are bytes; a token with any other character stands for itself. */
static void append_bytes(px_buf *out, const char *text, size_t count) {
  size_t before = out->len;
  for (size_t at = 0; at < count;) {
    int byte = px_char_byte(px_utf8_next(text, &at));
    if (byte < 0) {
      out->len = before;
      px_buf_append(out, text, count);
      return;
    }
    char b = (char)byte;
    px_buf_append(out, &b, 1);
  }
}

/* Moves what is decided from d->pending to *out; the start of a character that may still be completed stays. */
static void flush_bytes(px_decoder *d, bool at_end, px_buf *out) {
  px_buf *p = &d->pending;
  size_t at = 0;
  while (at < p->len) {
    size_t good = px_utf8_valid(p->data + at, p->len - at);
    px_buf_append(out, p->data + at, good);
    at += good;
    if (at == p->len) break;
    bool ok, cut;
    size_t bad = px_utf8_step(p->data + at, p->len - at, &ok, &cut);
    if (cut && !at_end) break;
    px_buf_append(out, REPLACEMENT, 3);
    at += bad;
  }
  if (at) memmove(p->data, p->data + at, p->len - at);
  p->len -= at;
}

/* ---- Replace, ByteFallback, Fuse, Strip; Metaspace ---- */

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c |= 32;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of "<0xNN>", or -1. */
static int fallback_byte(const char *text, size_t count) {
  if (count != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
  int high = hex_digit(text[3]), low = hex_digit(text[4]);
  return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* A run of byte tokens is one text if all of it is valid, else one U+FFFD a byte: it is known at its end only. */
static void flush_fallback(px_decoder *d, px_buf *out) {
  px_buf *p = &d->pending;
  if (px_utf8_valid(p->data ? p->data : "", p->len) == p->len)
    emit(d, p->data, p->len, out);
  else
    for (size_t i = 0; i < p->len; i++) emit(d, REPLACEMENT, 3, out);
  p->len = 0;
}

static void replace_all(px_buf *text, const px_decode_step *step) {
  const char *found = memmem(text->data, text->len, step->from, step->from_bytes);
  if (!found) return;
  px_buf out = {0};
  size_t at = 0;
  for (; found; found = memmem(text->data + at, text->len - at, step->from, step->from_bytes)) {
    size_t end = (size_t)(found - text->data);
    px_buf_append(&out, text->data + at, end - at);
    px_buf_append(&out, step->to, step->to_bytes);
    at = end + step->from_bytes;
  }
  px_buf_append(&out, text->data + at, text->len - at);
  out.failed |= text->failed;
  px_buf_free(text);
  *text = out;
}

static void put_steps(px_decoder *d, const char *token, size_t count, px_buf *out) {
  const px_tokenizer *tok = d->tok;
  px_buf text = {0};
  px_buf_append(&text, token, count);
  for (int i = 0; i < tok->decode_count && !text.failed; i++) {
    const px_decode_step *step = &tok->decode[i];
    if (step->kind == PX_DECODE_REPLACE) replace_all(&text, step);
    if (step->kind == PX_DECODE_METASPACE) {
      px_decode_step mark = *step; /* the marks of the first token are dropped, all others are spaces */
      mark.to = " ";
      mark.to_bytes = d->started || step->prepend == PX_PREPEND_NEVER ? 1 : 0;
      replace_all(&text, &mark);
      d->started = true;
    }
    if (step->kind == PX_DECODE_BYTE_FALLBACK) {
      int byte = fallback_byte(text.data, text.len);
      char b = (char)byte;
      if (byte >= 0) {
        px_buf_append(&d->pending, &b, 1);
        px_buf_free(&text);
        return;
      }
      flush_fallback(d, out);
    }
  }
  emit(d, text.data, text.len, out);
  if (text.failed) out->failed = 1;
  px_buf_free(&text);
}

/* ---- public ---- */

px_status px_decoder_put(px_decoder *d, int32_t id, px_buf *out, px_error *err) {
  const px_tokenizer *tok = d->tok;
  const char *text = px_vocab_text(&tok->vocab, id);
  if (!text)
    return px_fail(err, PX_INVALID, "token id %d is not in the tokenizer's vocabulary of %d", id, tok->vocab.size);
  /* tokenizers 0.23 spells an added token that is `normalized` in its normalized form, and then fails to skip a special
   * one (Prepend makes "<s>" another string). Here an added token is its content, as in the versions before. */
  if (d->skip_special && (tok->flags[id] & TOKEN_SPECIAL)) return PX_OK;
  size_t count = tok->vocab.length[id];
  if (tok->decode_count == 0) { /* tokens with a space between, as `tokenizers` without a decoder */
    if (d->started) px_buf_append(out, " ", 1);
    d->started = true;
    px_buf_append(out, text, count);
  } else if (tok->decode[0].kind == PX_DECODE_BYTES) {
    append_bytes(&d->pending, text, count);
    flush_bytes(d, false, out);
  } else {
    put_steps(d, text, count, out);
  }
  return out->failed || d->pending.failed ? px_fail(err, PX_NO_MEMORY, "no memory for decoded text") : PX_OK;
}

px_status px_decoder_end(px_decoder *d, px_buf *out, px_error *err) {
  if (d->pending.len && d->tok->decode[0].kind == PX_DECODE_BYTES) flush_bytes(d, true, out);
  if (d->pending.len && has_step(d->tok, PX_DECODE_BYTE_FALLBACK)) flush_fallback(d, out);
  bool failed = out->failed || d->pending.failed;
  px_buf_free(&d->pending);
  d->started = false;
  return failed ? px_fail(err, PX_NO_MEMORY, "no memory for decoded text") : PX_OK;
}

px_status px_tokenizer_decode(const px_tokenizer *tok, const int32_t *ids, size_t count, bool skip_special, px_buf *out,
                              px_error *err) {
  px_decoder d = {.tok = tok, .skip_special = skip_special};
  px_status status = PX_OK;
  for (size_t i = 0; i < count && status == PX_OK; i++) status = px_decoder_put(&d, ids[i], out, err);
  px_buf rest = {0};
  px_status ended = px_decoder_end(&d, status == PX_OK ? out : &rest, status == PX_OK ? err : NULL);
  px_buf_free(&rest);
  return status != PX_OK ? status : ended;
}
