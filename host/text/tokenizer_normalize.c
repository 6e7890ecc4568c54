/* SPDX-License-Identifier: MIT
 * UTF-8 repair and the normalizers. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/tokenizer_internal.h"

/* ---- UTF-8 ---- */

size_t px_utf8_step(const char *text, size_t count, bool *ok, bool *cut) {
  const unsigned char *p = (const unsigned char *)text;
  unsigned char c = p[0], low = 0x80, high = 0xBF;
  size_t need = c < 0x80 ? 1 : c < 0xC2 ? 0 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF5 ? 4 : 0;
  *ok = *cut = false;
  if (need == 0) return 1;
  if (c == 0xE0) low = 0xA0;
  if (c == 0xED) high = 0x9F;
  if (c == 0xF0) low = 0x90;
  if (c == 0xF4) high = 0x8F;
  size_t got = 1;
  while (got < need && got < count && p[got] >= low && p[got] <= high) got++, low = 0x80, high = 0xBF;
  *ok = got == need;
  *cut = !*ok && got == count;
  return got;
}

size_t px_utf8_valid(const char *text, size_t count) {
  size_t at = 0;
  while (at < count) {
    uint64_t eight;
    if (at + 8 <= count && (memcpy(&eight, text + at, 8), (eight & 0x8080808080808080u) == 0)) {
      at += 8;
      continue;
    }
    bool ok, cut;
    size_t step = px_utf8_step(text + at, count - at, &ok, &cut);
    if (!ok) break;
    at += step;
  }
  return at;
}

void px_utf8_repair(px_buf *out, const char *text, size_t count) {
  for (size_t at = 0; at < count;) {
    size_t good = px_utf8_valid(text + at, count - at);
    px_buf_append(out, text + at, good);
    at += good;
    if (at == count) break;
    bool ok, cut;
    at += px_utf8_step(text + at, count - at, &ok, &cut);
    px_buf_append(out, "\xEF\xBF\xBD", 3);
  }
}

/* ---- NFC ---- */

/* `tokenizers` normalizes by Unicode 9: marks of later versions do not move there, and nothing composes over them. Text
 * must become what a model was trained on, so the same holds here. Ranges of marks newer than that. */
static bool is_newer_mark(int32_t c) {
  static const struct {
    int32_t first, last;
  } ranges[] = {{0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},
                {0x9FE, 0x9FE},     {0xC3C, 0xC3C},     {0xD3B, 0xD3C},
                {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},
                {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27},
                {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
                {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
                {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11930} /* composes to U+11938 */,
                {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
                {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99},
                {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97},
                {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F},
                {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF},
                {0x1E4EC, 0x1E4EF}};
  size_t low = 0, high = sizeof ranges / sizeof *ranges;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (c > ranges[middle].last)
      low = middle + 1;
    else
      high = middle;
  }
  return low < sizeof ranges / sizeof *ranges && c >= ranges[low].first;
}

static unsigned class_of(int32_t c) {
  unsigned class = (unsigned)utf8proc_get_property(c)->combining_class & 255;
  return class && !is_newer_mark(c) ? class : 0;
}

/* Canonical order of one run of marks: a stable sort by combining class, linear however long the run is. */
static bool sort_marks(int32_t *c, size_t count) {
  bool sorted = true;
  for (size_t i = 1; sorted && i < count; i++) sorted = class_of(c[i - 1]) <= class_of(c[i]);
  if (sorted) return true;
  size_t start[257] = {0};
  int32_t *copy = malloc(count * sizeof *copy);
  if (!copy) return false;
  memcpy(copy, c, count * sizeof *copy);
  for (size_t i = 0; i < count; i++) start[class_of(c[i]) + 1]++;
  for (int k = 1; k < 257; k++) start[k] += start[k - 1];
  for (size_t i = 0; i < count; i++) c[start[class_of(copy[i])]++] = copy[i];
  free(copy);
  return true;
}

static bool compose(px_buf *out, int32_t *c, size_t count) {
  for (size_t start = 0, end; start < count; start = end) {
    /* U+11A7 stands right below the final jamo and is none; utf8proc 2.8 swallows it behind a syllable. */
    for (end = start + 1; end < count && c[end] != 0x11A7 && !is_newer_mark(c[end]);) end++;
    utf8proc_ssize_t left =
        utf8proc_normalize_utf32(c + start, (utf8proc_ssize_t)(end - start), UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    if (left < 0) return false;
    for (utf8proc_ssize_t i = 0; i < left; i++) {
      utf8proc_uint8_t encoded[4];
      px_buf_append(out, encoded, (size_t)utf8proc_encode_char(c[start + (size_t)i], encoded));
    }
  }
  return true;
}

/* Appends the NFC of one stretch of text. */
static bool nfc_stretch(px_buf *codes, px_buf *out, const char *text, size_t bytes) {
  codes->len = 0;
  for (size_t at = 0; at < bytes;) {
    utf8proc_int32_t c = (utf8proc_int32_t)px_utf8_next(text, &at), parts[32];
    int boundary = 0;
    utf8proc_ssize_t got = 1;
    if (c == 0x11938) /* newer, too */
      parts[0] = c;
    else
      got = utf8proc_decompose_char(c, parts, 32, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
    if (got < 1 || got > 32) return false;
    px_buf_append(codes, parts, (size_t)got * sizeof *parts);
  }
  if (codes->failed) return false;
  int32_t *c = (int32_t *)(void *)codes->data;
  size_t count = codes->len / sizeof *c;
  for (size_t i = 0; i < count;) {
    size_t end = i;
    while (end < count && class_of(c[end]) != 0) end++;
    if (end > i + 1 && !sort_marks(c + i, end - i)) return false;
    i = end + 1;
  }
  return compose(out, c, count);
}

/* Characters below U+0300 never change and never join what stands before them: the text falls apart in front of each,
 * and only stretches with something else (lead bytes from 0xCC on) are worked on. */
static bool nfc(px_buf *codes, px_buf *out, const char *text, size_t bytes) {
  const unsigned char *p = (const unsigned char *)text;
  for (size_t at = 0; at < bytes;) {
    size_t high = at, last = at;
    while (high < bytes && p[high] < 0xCC) {
      if ((p[high] & 0xC0) != 0x80) last = high;
      high++;
    }
    if (high == bytes) {
      px_buf_append(out, text + at, bytes - at);
      break;
    }
    px_buf_append(out, text + at, last - at);
    size_t end = high;
    while (end < bytes && (p[end] >= 0xCC || (p[end] & 0xC0) == 0x80)) end++;
    if (!nfc_stretch(codes, out, text + last, end - last)) return false;
    at = end;
  }
  return true;
}

/* ---- the others ---- */

static void replace_all(px_buf *out, const px_normal_step *step, const char *text, size_t bytes) {
  for (size_t at = 0; at < bytes;) {
    const char *found = step->from_bytes == 1 ? memchr(text + at, step->from[0], bytes - at)
                                              : memmem(text + at, bytes - at, step->from, step->from_bytes);
    size_t end = found ? (size_t)(found - text) : bytes;
    px_buf_append(out, text + at, end - at);
    if (!found) break;
    px_buf_append(out, step->to, step->to_bytes);
    at = end + step->from_bytes;
  }
}

static void strip(const px_normal_step *step, const char **text, size_t *bytes) {
  const char *start = *text, *end = *text + *bytes;
  while (step->left && start < end) {
    size_t at = 0;
    if (!px_char_is_space(px_utf8_next(start, &at))) break;
    start += at;
  }
  while (step->right && end > start) {
    const char *last = end - 1;
    while (((unsigned char)*last & 0xC0) == 0x80) last--;
    size_t at = 0;
    if (!px_char_is_space(px_utf8_next(last, &at))) break;
    end = last;
  }
  *text = start;
  *bytes = (size_t)(end - start);
}

px_status px_normalize(const px_normal_step *steps, int count, bool no_prepend, const char *text, size_t bytes,
                       px_buf scratch[2], const char **out, size_t *out_bytes, px_error *err) {
  px_buf codes = {0};
  bool good = true;
  int side = 0;
  for (int i = 0; i < count && good; i++) {
    const px_normal_step *step = &steps[i];
    if (step->kind == PX_NORMAL_STRIP) {
      strip(step, &text, &bytes);
      continue;
    }
    if (step->kind == PX_NORMAL_PREPEND && (no_prepend || bytes == 0)) continue;
    px_buf *to = &scratch[side ^= 1];
    to->len = 0;
    px_buf_append(to, "", 0); /* never NULL */
    if (step->kind == PX_NORMAL_NFC) good = nfc(&codes, to, text, bytes);
    if (step->kind == PX_NORMAL_REPLACE) replace_all(to, step, text, bytes);
    if (step->kind == PX_NORMAL_PREPEND) {
      px_buf_append(to, step->to, step->to_bytes);
      px_buf_append(to, text, bytes);
    }
    good = good && !to->failed;
    text = to->data;
    bytes = to->len;
  }
  px_buf_free(&codes);
  *out = text;
  *out_bytes = bytes;
  return good ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory to normalize %zu bytes of text", bytes);
}
