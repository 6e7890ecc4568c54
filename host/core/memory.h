/* SPDX-License-Identifier: MIT
 * Host memory: checked allocation, an arena for things that die together, a growable byte buffer. */
#ifndef PX_CORE_MEMORY_H
#define PX_CORE_MEMORY_H

#include <stddef.h>

#include "core/error.h"

/* An arena hands out zeroed memory that is freed all at once. Not thread-safe. {0} is an empty arena. */
typedef struct px_arena {
  struct px_arena_block *last;
  size_t used_bytes;
} px_arena;

/* Zeroed, aligned to 64 bytes; NULL when memory is out. A count of 0 returns a valid pointer. */
void *px_arena_alloc(px_arena *arena, size_t count, size_t element_bytes);
char *px_arena_strdup(px_arena *arena, const char *text);
char *px_arena_strndup(px_arena *arena, const char *text, size_t bytes);
char *px_arena_printf(px_arena *arena, const char *format, ...) PX_PRINTF(2, 3);
void px_arena_free(px_arena *arena);

/* A growable run of bytes, always followed by a NUL that is not counted. {0} is empty. */
typedef struct px_buf {
  char *data;
  size_t len, cap;
  int failed; /* an append found no memory; later appends do nothing: look once at the end */
} px_buf;

void px_buf_append(px_buf *buf, const void *bytes, size_t count);
void px_buf_puts(px_buf *buf, const char *text);
void px_buf_printf(px_buf *buf, const char *format, ...) PX_PRINTF(2, 3);
void *px_buf_grow(px_buf *buf, size_t count); /* room for `count` more bytes, counted at once; NULL if none */
void px_buf_free(px_buf *buf);

/* calloc with overflow check; free() releases. NULL when memory is out. */
void *px_calloc(size_t count, size_t element_bytes);
/* Grows *array so that it holds at least `need` elements (doubling); 0 on success, -1 when memory is out. */
int px_reserve(void *array_pointer, size_t *capacity, size_t need, size_t element_bytes);

#endif
