/* SPDX-License-Identifier: MIT
 * Any bytes as a GGUF file: refused, or every value and every tensor lies inside them. */
#include <stdlib.h>
#include <string.h>

#include "format/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void inside(const uint8_t *data, size_t size, const void *at, size_t bytes) {
  const uint8_t *p = at;
  if (p < data || p > data + size || bytes > (size_t)(data + size - p)) abort();
}

static void read_value(px_gguf *g, const px_gguf_value *v, const uint8_t *data, size_t size) {
  int64_t whole;
  double number;
  const char *text;
  volatile double sink = 0;
  if (px_gguf_find(g, v->key) != v) abort();
  (void)px_gguf_int(g, v->key, 0, &whole, NULL);
  (void)px_gguf_num(g, v->key, 0, &number, NULL);
  if (px_gguf_str(g, v->key, NULL, &text, NULL) == PX_OK && strlen(text) != v->string.len) abort();
  if (v->type == PX_GGUF_STRING) return inside(data, size, v->string.data, v->string.len);
  if (v->element_type == PX_GGUF_ARRAY) return;
  for (size_t i = 0; i < v->count; i++) {
    if (v->element_type == PX_GGUF_STRING)
      inside(data, size, v->strings[i].data, v->strings[i].len);
    else
      sink = sink + px_gguf_array_num(v, i) + (double)px_gguf_array_int(v, i);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  px_gguf g;
  px_error err = {0};
  px_status status = px_gguf_parse("fuzz", data, size, &g, &err);
  if (status != PX_OK) {
    if (status != PX_BAD_FILE || !err.message[0] || strchr(err.message, '\n') || g.tensors.arena.last) abort();
    return 0;
  }
  for (size_t i = 0; i < g.value_count; i++) read_value(&g, &g.values[i], data, size);
  for (size_t i = 0; i < g.tensors.count; i++) {
    const px_tensor_view *t = &g.tensors.items[i];
    inside(data, size, t->data, t->bytes);
    if (px_tensor_find(&g.tensors, t->name) != t) abort();
    if (px_dtype_bytes(t->dtype, (size_t)px_tensor_elements(t)) != t->bytes) abort();
  }
  px_gguf_close(&g);
  return 0;
}
