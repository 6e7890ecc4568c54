/* SPDX-License-Identifier: MIT */
#include "core/memory.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64, BLOCK_BYTES = 1 << 16 };

struct px_arena_block {
  struct px_arena_block *previous;
  size_t used, cap;
  char pad[ALIGN - sizeof(void *) - 2 * sizeof(size_t)];
};
_Static_assert(sizeof(struct px_arena_block) == ALIGN, "block header keeps the alignment");

void *px_arena_alloc(px_arena *arena, size_t count, size_t element_bytes) {
  if (element_bytes && count > (SIZE_MAX / 2) / element_bytes) return NULL;
  size_t need = (count * element_bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
  if (need == 0) need = ALIGN;
  struct px_arena_block *block = arena->last;
  if (!block || block->cap - block->used < need) {
    size_t cap = need > BLOCK_BYTES ? need : BLOCK_BYTES;
    block = aligned_alloc(ALIGN, sizeof *block + cap);
    if (!block) return NULL;
    *block = (struct px_arena_block){.previous = arena->last, .cap = cap};
    arena->last = block;
  }
  void *p = (char *)(block + 1) + block->used;
  block->used += need;
  arena->used_bytes += need;
  return memset(p, 0, need);
}

char *px_arena_strndup(px_arena *arena, const char *text, size_t bytes) {
  char *copy = px_arena_alloc(arena, bytes + 1, 1);
  if (copy) memcpy(copy, text, bytes);
  return copy;
}

char *px_arena_strdup(px_arena *arena, const char *text) { return px_arena_strndup(arena, text, strlen(text)); }

char *px_arena_printf(px_arena *arena, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int bytes = vsnprintf(NULL, 0, format, args);
  va_end(args);
  char *text = bytes < 0 ? NULL : px_arena_alloc(arena, (size_t)bytes + 1, 1);
  if (!text) return NULL;
  va_start(args, format);
  vsnprintf(text, (size_t)bytes + 1, format, args);
  va_end(args);
  return text;
}

void px_arena_free(px_arena *arena) {
  while (arena->last) {
    struct px_arena_block *previous = arena->last->previous;
    free(arena->last);
    arena->last = previous;
  }
  arena->used_bytes = 0;
}

void *px_buf_grow(px_buf *buf, size_t count) {
  if (buf->failed) return NULL;
  if (count > SIZE_MAX / 4 - buf->len) {
    buf->failed = 1;
    return NULL;
  }
  size_t need = buf->len + count + 1;
  if (need > buf->cap) {
    size_t cap = buf->cap ? buf->cap : 64;
    while (cap < need) cap *= 2;
    char *data = realloc(buf->data, cap);
    if (!data) {
      buf->failed = 1;
      return NULL;
    }
    buf->data = data;
    buf->cap = cap;
  }
  char *at = buf->data + buf->len;
  buf->len += count;
  buf->data[buf->len] = 0;
  return at;
}

void px_buf_append(px_buf *buf, const void *bytes, size_t count) {
  void *at = px_buf_grow(buf, count);
  if (at && count) memcpy(at, bytes, count);
}

void px_buf_puts(px_buf *buf, const char *text) { px_buf_append(buf, text, strlen(text)); }

void px_buf_printf(px_buf *buf, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int bytes = vsnprintf(NULL, 0, format, args);
  va_end(args);
  char *at = bytes < 0 ? NULL : px_buf_grow(buf, (size_t)bytes);
  if (!at) return;
  va_start(args, format);
  vsnprintf(at, (size_t)bytes + 1, format, args);
  va_end(args);
}

void px_buf_free(px_buf *buf) {
  free(buf->data);
  *buf = (px_buf){0};
}

void *px_calloc(size_t count, size_t element_bytes) { return calloc(count ? count : 1, element_bytes ? element_bytes : 1); }

int px_reserve(void *array_pointer, size_t *capacity, size_t need, size_t element_bytes) {
  if (need <= *capacity) return 0;
  size_t cap = *capacity ? *capacity : 16;
  while (cap < need) {
    if (cap > SIZE_MAX / 2) return -1;
    cap *= 2;
  }
  if (cap > SIZE_MAX / 2 / element_bytes) return -1;
  void *old;
  memcpy(&old, array_pointer, sizeof old);
  void *fresh = realloc(old, cap * element_bytes);
  if (!fresh) return -1;
  memcpy(array_pointer, &fresh, sizeof fresh);
  *capacity = cap;
  return 0;
}
