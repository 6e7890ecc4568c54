/* SPDX-License-Identifier: MIT
 * Spelling <-> id, and the added tokens that are found in the text as they stand. */
#include <stdlib.h>
#include <string.h>

#include "text/tokenizer_internal.h"

/* ---- vocabulary ---- */

static size_t hash_of(const char *text, size_t count) {
  uint64_t h = count * 0x9E3779B97F4A7C15u;
  for (; count >= 8; text += 8, count -= 8) {
    uint64_t w;
    memcpy(&w, text, 8);
    h = (h ^ w) * 0xFF51AFD7ED558CCDu;
    h ^= h >> 32;
  }
  uint64_t w = 0;
  memcpy(&w, text, count);
  h = (h ^ w) * 0xFF51AFD7ED558CCDu;
  return (size_t)(h ^ (h >> 29));
}

/* The slot of a spelling, or the free one where it would stand. */
static size_t slot_of(const px_vocab *v, const char *text, size_t count) {
  size_t at = hash_of(text, count) & v->slot_mask;
  for (;; at = (at + 1) & v->slot_mask) {
    int32_t id = v->slots[at];
    if (id < 0 || (v->length[id] == count && memcmp(px_vocab_text(v, id), text, count) == 0)) return at;
  }
}

int32_t px_vocab_find(const px_vocab *v, const char *text, size_t count) {
  return v->slots && count <= v->longest ? v->slots[slot_of(v, text, count)] : -1;
}

static bool grow_slots(px_vocab *v) {
  if (v->slots && 2 * (v->slot_used + 1) <= v->slot_mask) return true;
  size_t size = v->slots ? 2 * (v->slot_mask + 1) : 1024, old_size = v->slots ? v->slot_mask + 1 : 0;
  int32_t *old = v->slots;
  int32_t *fresh = malloc(size * sizeof *fresh);
  if (!fresh) return false;
  memset(fresh, 0xff, size * sizeof *fresh);
  v->slots = fresh;
  v->slot_mask = size - 1;
  for (size_t i = 0; i < old_size; i++)
    if (old[i] >= 0) fresh[slot_of(v, px_vocab_text(v, old[i]), v->length[old[i]])] = old[i];
  free(old);
  return true;
}

px_status px_vocab_add(px_vocab *v, const char *name, const char *text, size_t count, int32_t id, bool last_wins,
                       px_error *err) {
  if (id < 0 || id >= MAX_TOKEN_ID)
    return px_fail(err, PX_BAD_FILE, "%s: token id %d is not in 0..%d", name, id, MAX_TOKEN_ID - 1);
  if (count > UINT32_MAX / 4) return px_fail(err, PX_BAD_FILE, "%s: token %d is %zu bytes long", name, id, count);
  size_t had = (size_t)v->size, need = (size_t)id + 1;
  if (!grow_slots(v) || px_reserve(&v->offset, &v->offset_cap, need, sizeof *v->offset) ||
      px_reserve(&v->length, &v->length_cap, need, sizeof *v->length))
    return px_fail(err, PX_NO_MEMORY, "%s: no memory for token %d", name, id);
  if (need > had) {
    memset(v->offset + had, 0, (need - had) * sizeof *v->offset);
    memset(v->length + had, 0, (need - had) * sizeof *v->length);
    v->size = (int32_t)need;
  }
  if (v->offset[id]) return px_fail(err, PX_BAD_FILE, "%s: token id %d is given twice", name, id);
  size_t slot = slot_of(v, text, count);
  if (v->slots[slot] >= 0 && !last_wins)
    return px_fail(err, PX_BAD_FILE, "%s: tokens %d and %d have the same spelling", name, v->slots[slot], id);
  v->slot_used += v->slots[slot] < 0;
  v->offset[id] = v->text.len + 1;
  v->length[id] = (uint32_t)count;
  px_buf_append(&v->text, text, count);
  px_buf_append(&v->text, "", 1);
  if (v->text.failed) return px_fail(err, PX_NO_MEMORY, "%s: no memory for token %d", name, id);
  v->slots[slot] = id;
  if (count > v->longest) v->longest = (uint32_t)count;
  return PX_OK;
}

void px_vocab_free(px_vocab *v) {
  px_buf_free(&v->text);
  free(v->offset);
  free(v->length);
  free(v->slots);
  *v = (px_vocab){0};
}

/* ---- added tokens in the text ---- */

px_status px_trie_add(px_trie *t, const char *text, size_t count, int32_t token, px_error *err) {
  if (!t->nodes) memset(t->root, 0xff, sizeof t->root);
  int32_t node = -1;
  for (size_t i = 0; i < count; i++) {
    uint8_t byte = (uint8_t)text[i];
    int32_t child = node < 0 ? t->root[byte] : t->nodes[node].first_child;
    while (node >= 0 && child >= 0 && t->nodes[child].byte != byte) child = t->nodes[child].sibling;
    if (child < 0) {
      if (t->count >= INT32_MAX / 2 || px_reserve(&t->nodes, &t->cap, t->count + 1, sizeof *t->nodes))
        return px_fail(err, PX_NO_MEMORY, "no memory for the added tokens");
      child = (int32_t)t->count++;
      t->nodes[child] = (px_trie_node){
          .first_child = -1, .sibling = node < 0 ? -1 : t->nodes[node].first_child, .token = -1, .byte = byte};
      if (node < 0)
        t->root[byte] = child;
      else
        t->nodes[node].first_child = child;
    }
    node = child;
  }
  if (node >= 0 && t->nodes[node].token < 0) t->nodes[node].token = token;
  return PX_OK;
}

/* The longest added token at `at`: its index, and where it ends; -1: none. */
static int32_t match_at(const px_trie *t, const char *text, size_t count, size_t at, size_t *end) {
  int32_t found = -1, node = t->root[(uint8_t)text[at]];
  while (node >= 0) {
    at++;
    if (t->nodes[node].token >= 0) found = t->nodes[node].token, *end = at;
    if (at == count) break;
    node = t->nodes[node].first_child;
    while (node >= 0 && t->nodes[node].byte != (uint8_t)text[at]) node = t->nodes[node].sibling;
  }
  return found;
}

static uint32_t char_before(const char *text, size_t end, size_t *start) {
  *start = end - 1;
  while (((unsigned char)text[*start] & 0xC0) == 0x80) --*start;
  size_t at = *start;
  return px_utf8_next(text, &at);
}

static bool stands_alone(const px_added_scan *s, size_t start, size_t end) {
  size_t ignored, at = end;
  return (start == 0 || !px_char_is_word(char_before(s->text, start, &ignored))) &&
         (end == s->count || !px_char_is_word(px_utf8_next(s->text, &at)));
}

/* End of the white space from `at` on. Matches inside one run ask again and again: the run is measured once. */
static size_t space_end(px_added_scan *s, size_t at) {
  if (at >= s->space_start && at <= s->space_end) return s->space_end;
  s->space_start = at;
  for (size_t next = at; next < s->count; at = next)
    if (!px_char_is_space(px_utf8_next(s->text, &next))) break;
  return s->space_end = at;
}

void px_added_start(px_added_scan *s, const px_trie *trie, const px_added *added, const char *text, size_t count,
                    bool skip_special) {
  *s = (px_added_scan){.trie = trie,
                       .added = added,
                       .text = text,
                       .count = count,
                       .skip_special = skip_special,
                       .space_start = SIZE_MAX,
                       .queued = {.id = -1}};
}

bool px_added_next(px_added_scan *s, px_added_part *part) {
  if (s->queued.id >= 0) {
    *part = s->queued;
    s->queued.id = -1;
    return true;
  }
  while (s->trie->nodes && s->search < s->count) {
    size_t start = s->search, end = 0;
    int32_t index = match_at(s->trie, s->text, s->count, start, &end);
    if (index < 0) {
      s->search++;
      continue;
    }
    s->search = end;
    const px_added *token = &s->added[index];
    if ((s->skip_special && token->special) || (token->single_word && !stands_alone(s, start, end))) continue;
    if (token->lstrip) {
      size_t before;
      while (start > s->delivered && px_char_is_space(char_before(s->text, start, &before))) start = before;
      if (start < s->delivered) start = s->delivered;
    }
    if (token->rstrip) end = space_end(s, end);
    if (start >= end) continue; /* white space that the token before took */
    size_t from = s->delivered;
    s->delivered = end;
    *part = (px_added_part){.start = start, .end = end, .id = token->id};
    if (from < start) {
      s->queued = *part;
      *part = (px_added_part){.start = from, .end = start, .id = -1};
    }
    return true;
  }
  if (s->done || s->delivered == s->count) return false;
  s->done = true;
  *part = (px_added_part){.start = s->delivered, .end = s->count, .id = -1};
  return true;
}
