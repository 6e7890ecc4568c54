/* SPDX-License-Identifier: MIT
 * A named tensor in a file (or to be put into one), and a list of them. */
#ifndef PX_FORMAT_TENSORS_H
#define PX_FORMAT_TENSORS_H

#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "core/types.h"

enum { PX_MAX_DIMS = 4 };

/* A borrowed view. shape is outermost first, in C order (GGUF's is reversed on reading). */
typedef struct px_tensor_view {
  const char *name;
  px_dtype dtype;
  int dims;
  int64_t shape[PX_MAX_DIMS];
  const void *data; /* mapped, little-endian, not necessarily aligned to its type */
  size_t bytes;
  const char *file; /* where it stands, for messages */
} px_tensor_view;

typedef struct px_tensor_list {
  px_tensor_view *items; /* sorted by name (strcmp) */
  size_t count;
  px_arena arena;  /* owns items, names, file names */
  px_map *maps;    /* the files behind the views */
  size_t map_count;
} px_tensor_list;

/* NULL when absent. */
const px_tensor_view *px_tensor_find(const px_tensor_list *list, const char *name);
int64_t px_tensor_elements(const px_tensor_view *t);
void px_tensor_list_close(px_tensor_list *list);

/* For the readers of this room. Sorts by name; PX_BAD_FILE when a name is there twice. */
px_status px_tensor_list_sort(px_tensor_list *list, px_error *err);
/* Bytes of a tensor of this shape; false when a dimension is negative, or the size overflows (also where another
 * dimension is 0). */
bool px_tensor_bytes(px_dtype dtype, int dims, const int64_t *shape, size_t *bytes);
/* UTF-8 without control characters: fit to stand in a one-line message. */
bool px_name_is_plain(const char *text, size_t count);

#endif
