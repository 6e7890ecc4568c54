/* SPDX-License-Identifier: MIT
 * Any bytes as a safetensors file: refused, or every tensor lies inside them and no two share a byte. */
#include <stdlib.h>
#include <string.h>

#include "format/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  px_tensor_list list;
  px_meta *metadata;
  size_t count, used = 0, text = 0;
  px_error err = {0};
  px_status status = px_safetensors_parse("fuzz", data, size, &list, &metadata, &count, &err);
  if (status != PX_OK) {
    if (status != PX_BAD_FILE || !err.message[0] || strchr(err.message, '\n') || list.arena.last) abort();
    return 0;
  }
  for (size_t i = 0; i < list.count; i++) {
    const px_tensor_view *t = &list.items[i];
    if ((const uint8_t *)t->data < data || t->bytes > (size_t)(data + size - (const uint8_t *)t->data)) abort();
    if (px_tensor_find(&list, t->name) != t) abort();
    if (px_dtype_bytes(t->dtype, (size_t)px_tensor_elements(t)) != t->bytes) abort();
    used += t->bytes;
  }
  for (size_t i = 0; i < count; i++) text += strlen(metadata[i].key) + strlen(metadata[i].value);
  uint64_t header;
  memcpy(&header, data, sizeof header);
  if (used != size - 8 - header || text > size) abort();
  px_tensor_list_close(&list);
  return 0;
}

/* Mutates the header alone, half of the time, and keeps its length right: most inputs would end there otherwise. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
  uint64_t header = 0;
  if (size > 8) memcpy(&header, data, sizeof header);
  if (seed % 2 || header == 0 || header > size - 8) return LLVMFuzzerMutate(data, size, max_size);
  size_t tail = size - 8 - (size_t)header;
  uint8_t *copy = malloc(tail + 1);
  if (!copy) return size;
  memcpy(copy, data + 8 + header, tail);
  header = LLVMFuzzerMutate(data + 8, (size_t)header, max_size - 8 - tail);
  memcpy(data, &header, sizeof header);
  memcpy(data + 8 + header, copy, tail);
  free(copy);
  return 8 + (size_t)header + tail;
}
