/* SPDX-License-Identifier: MIT */
#include "backend/product_choices.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

enum { MOST_CHOICES = 1 << 16, MOST_BYTES = 32 << 20 };
#define TITLE "pfx products 1: "

static int compare(const int64_t *a, const int64_t *b) {
  int i = 0;
  while (i < PX_CHOICE_KEY - 1 && a[i] == b[i]) i++;
  return (a[i] > b[i]) - (a[i] < b[i]);
}

/* Where the key is, or would be. */
static size_t place(const px_choices *c, const int64_t key[PX_CHOICE_KEY]) {
  size_t from = 0, to = c->count;
  while (from < to) {
    size_t middle = from + (to - from) / 2;
    if (compare(c->list[middle].key, key) < 0) from = middle + 1;
    else to = middle;
  }
  return from;
}

const px_choice *px_choices_find(const px_choices *c, const int64_t key[PX_CHOICE_KEY]) {
  size_t at = place(c, key);
  return at < c->count && compare(c->list[at].key, key) == 0 ? &c->list[at] : NULL;
}

px_status px_choices_put(px_choices *c, const px_choice *choice) {
  size_t at = place(c, choice->key);
  if (at == c->count || compare(c->list[at].key, choice->key) != 0) {
    if (c->count >= MOST_CHOICES || px_reserve(&c->list, &c->capacity, c->count + 1, sizeof *c->list))
      return PX_NO_MEMORY;
    memmove(&c->list[at + 1], &c->list[at], (c->count - at) * sizeof *c->list);
    c->count++;
  }
  c->list[at] = *choice;
  return PX_OK;
}

/* Decimal numbers, then hexadecimal ones, and nothing else up to `end`. */
static bool read_line(const char *at, const char *end, px_choice *out) {
  for (int i = 0; i < PX_CHOICE_KEY + PX_CHOICE_ALGO; i++) {
    bool is_key = i < PX_CHOICE_KEY;
    char *after;
    if (at >= end || *at == '\n' || *at == ' ') return false;
    if (is_key) out->key[i] = strtoll(at, &after, 10);
    else out->algo[i - PX_CHOICE_KEY] = strtoull(at, &after, 16);
    if (after == at || after > end) return false;
    at = after;
    if (at < end && *at++ != ' ') return false;
  }
  return at == end;
}

px_status px_choices_read(px_choices *c, const char *text, const char *identity) {
  size_t title = strlen(TITLE), name = strlen(identity);
  if (strncmp(text, TITLE, title) != 0 || strncmp(text + title, identity, name) != 0 || text[title + name] != '\n')
    return PX_OK;
  for (const char *line = text + title + name + 1, *end; *line; line = end + (*end == '\n')) {
    end = line + strcspn(line, "\n");
    px_choice choice;
    if (*end == '\n' && read_line(line, end, &choice) && px_choices_put(c, &choice) != PX_OK) return PX_NO_MEMORY;
  }
  return PX_OK;
}

void px_choices_print(const px_choices *c, const char *identity, px_buf *out) {
  px_buf_printf(out, TITLE "%s\n", identity);
  for (size_t i = 0; i < c->count; i++) {
    for (int k = 0; k < PX_CHOICE_KEY; k++) px_buf_printf(out, "%" PRId64 " ", c->list[i].key[k]);
    for (int k = 0; k < PX_CHOICE_ALGO; k++)
      px_buf_printf(out, "%" PRIx64 "%c", c->list[i].algo[k], k + 1 < PX_CHOICE_ALGO ? ' ' : '\n');
  }
}

void px_choices_free(px_choices *c) {
  free(c->list);
  *c = (px_choices){0};
}

char *px_choices_path(const char *identity, px_arena *arena) {
  const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  char *name = px_arena_strdup(arena, identity);
  for (char *p = name; p && *p; p++)
    if (!strchr("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.", *p)) *p = '-';
  if (!name) return NULL;
  if (cache && *cache) return px_arena_printf(arena, "%s/pfx/products/%s.txt", cache, name);
  return home && *home ? px_arena_printf(arena, "%s/.cache/pfx/products/%s.txt", home, name) : NULL;
}

px_status px_choices_load(px_choices *c, const char *path, const char *identity) {
  px_buf text = {0};
  px_error ignored;
  px_status status = PX_OK;
  if (px_file_exists(path) && px_file_read(path, MOST_BYTES, &text, &ignored) == PX_OK && text.data)
    status = px_choices_read(c, text.data, identity);
  px_buf_free(&text);
  return status;
}

px_status px_choices_save(const px_choices *c, const char *path, const char *identity, px_error *err) {
  px_choices all = {0};
  px_buf text = {0};
  px_status status = PX_OK;
  for (size_t i = 0; i < c->count && status == PX_OK; i++) status = px_choices_put(&all, &c->list[i]);
  if (status == PX_OK) status = px_choices_load(&all, path, identity);
  px_choices_print(&all, identity, &text);
  char *folder = strdup(path), *end = folder ? strrchr(folder, '/') : NULL;
  if (status != PX_OK || text.failed || !end) status = px_fail(err, PX_NO_MEMORY, "no memory for %s", path);
  if (status == PX_OK) {
    *end = 0;
    status = px_dir_make(folder, err);
  }
  if (status == PX_OK) status = px_file_write(path, text.data, text.len, err);
  free(folder);
  px_buf_free(&text);
  px_choices_free(&all);
  return status;
}
