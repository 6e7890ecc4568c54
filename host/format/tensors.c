/* SPDX-License-Identifier: MIT */
#include "format/tensors.h"

#include <stdlib.h>
#include <string.h>

static int by_name(const void *a, const void *b) {
  return strcmp(((const px_tensor_view *)a)->name, ((const px_tensor_view *)b)->name);
}

const px_tensor_view *px_tensor_find(const px_tensor_list *list, const char *name) {
  if (list->count == 0) return NULL;
  px_tensor_view key = {.name = name};
  return bsearch(&key, list->items, list->count, sizeof key, by_name);
}

int64_t px_tensor_elements(const px_tensor_view *t) {
  int64_t elements = 1;
  for (int i = 0; i < t->dims; i++) elements *= t->shape[i];
  return elements;
}

px_status px_tensor_list_sort(px_tensor_list *list, px_error *err) {
  if (list->count) qsort(list->items, list->count, sizeof *list->items, by_name);
  for (size_t i = 1; i < list->count; i++) {
    const px_tensor_view *a = &list->items[i - 1], *b = &list->items[i];
    if (strcmp(a->name, b->name) != 0) continue;
    if (strcmp(a->file, b->file) == 0)
      return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\" is there twice", a->file, a->name);
    return px_fail(err, PX_BAD_FILE, "tensor \"%s\" is in both %s and %s; remove one of them", a->name, a->file,
                   b->file);
  }
  return PX_OK;
}

bool px_tensor_bytes(px_dtype dtype, int dims, const int64_t *shape, size_t *bytes) {
  const px_dtype_info *info = px_dtype_get(dtype);
  int64_t elements = 1;
  bool empty = false;
  for (int i = 0; i < dims; i++) {
    empty |= shape[i] == 0;
    /* A dimension of zero does not excuse the others: partial products, such as strides, must fit too. */
    if (shape[i] < 0 || __builtin_mul_overflow(elements, shape[i] ? shape[i] : 1, &elements)) return false;
  }
  if (!info || elements > INT64_MAX / 8) return false; /* no type takes more than 8 bytes an element */
  *bytes = empty ? 0 : px_dtype_bytes(dtype, (size_t)elements);
  return true;
}

bool px_name_is_plain(const char *text, size_t count) {
  const unsigned char *s = (const unsigned char *)text;
  for (size_t i = 0; i < count;) {
    unsigned c = s[i++];
    if (c < 0x20 || c == 0x7f) return false;
    if (c < 0x80) continue;
    if (c < 0xc2 || c > 0xf4) return false;
    size_t more = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    if (count - i < more) return false;
    /* The second byte excludes overlong forms, surrogates and what lies above U+10FFFF. */
    unsigned low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    if (s[i] < low || s[i] > high) return false;
    for (size_t k = 1; k < more; k++)
      if ((s[i + k] & 0xc0) != 0x80) return false;
    i += more;
  }
  return true;
}

void px_tensor_list_close(px_tensor_list *list) {
  for (size_t i = 0; i < list->map_count; i++) px_map_close(&list->maps[i]);
  px_arena_free(&list->arena);
  *list = (px_tensor_list){0};
}
