/* SPDX-License-Identifier: MIT
 * Which algorithm a library's product of a shape is to use, as it was measured on a device: a table that is kept in a file
 * per device and in every checkpoint, so that a resumed run repeats the choice, and with it the bits. */
#ifndef PX_BACKEND_PRODUCT_CHOICES_H
#define PX_BACKEND_PRODUCT_CHOICES_H

#include <stdint.h>

#include "core/memory.h"

enum { PX_CHOICE_KEY = 8, PX_CHOICE_ALGO = 8 };

typedef struct px_choice {
  int64_t key[PX_CHOICE_KEY];    /* m n k lda ldb ldc, alignments, types and transposes */
  uint64_t algo[PX_CHOICE_ALGO]; /* the library's own bytes */
} px_choice;

/* {0} is empty. One thread at a time. */
typedef struct px_choices {
  px_choice *list; /* ascending by key, so that equal tables are equal text */
  size_t count, capacity;
} px_choices;

/* NULL: none. */
const px_choice *px_choices_find(const px_choices *c, const int64_t key[PX_CHOICE_KEY]);
/* Replaces one of the same key; PX_NO_MEMORY. */
px_status px_choices_put(px_choices *c, const px_choice *choice);
/* Reads what px_choices_print made, replacing choices of the same key. Text about another device or library (another
 * identity) gives nothing; a line that is damaged is passed over: a choice that is lost is only measured again. */
px_status px_choices_read(px_choices *c, const char *text, const char *identity);
/* A line that names the identity, then a line for each choice. identity: one line. */
void px_choices_print(const px_choices *c, const char *identity, px_buf *out);
void px_choices_free(px_choices *c);

/* Where the choices of an identity are kept: below XDG_CACHE_HOME, or ~/.cache. NULL: there is no such place. */
char *px_choices_path(const char *identity, px_arena *arena);
/* Adds what the file holds; one that is missing or unreadable holds nothing. */
px_status px_choices_load(px_choices *c, const char *path, const char *identity);
/* Writes the file's choices and those that it lacks; what another process chose first stays. */
px_status px_choices_save(const px_choices *c, const char *path, const char *identity, px_error *err);

#endif
