/* SPDX-License-Identifier: MIT
 * The safetensors format: u64 little-endian header length, JSON header padded with spaces, data. */
#ifndef PX_FORMAT_SAFETENSORS_H
#define PX_FORMAT_SAFETENSORS_H

#include "format/tensors.h"

typedef struct px_meta {
  const char *key, *value;
} px_meta;

/* Opens one file: maps it, checks every offset, size, overlap and gap-free packing, dtype and UTF-8.
 * Accepts F32 F16 BF16 I32 I64 U8, and BOOL as U8 (mask buffers in old checkpoints); others are refused by name.
 * *metadata (may be NULL) gets the strings of __metadata__, sorted by key, owned by the list's arena;
 * *metadata_count (NULL where metadata is) their number. */
px_status px_safetensors_open(const char *path, px_tensor_list *list, px_meta **metadata, size_t *metadata_count,
                              px_error *err);
/* The same for bytes in memory, which must outlive the list. `name` stands in messages. */
px_status px_safetensors_parse(const char *name, const uint8_t *bytes, size_t count, px_tensor_list *list,
                               px_meta **metadata, size_t *metadata_count, px_error *err);

/* Opens a model folder's tensors: model.safetensors.index.json with its shards, else model.safetensors, else the
 * only *.safetensors in it. Refuses a shard or a tensor that the index names and the files lack, and a duplicate. */
px_status px_safetensors_open_folder(const char *folder, px_tensor_list *list, px_error *err);

/* Writes atomically, byte for byte what the `safetensors` Python package writes for these tensors and metadata
 * (order of tensors: by dtype alignment, largest first, then name; metadata keys as given, pass them sorted). */
px_status px_safetensors_write(const char *path, const px_tensor_view *tensors, size_t count, const px_meta *metadata,
                               size_t metadata_count, px_error *err);

/* The same without the data at hand: `put` is asked for each tensor in the order of the file (t is one of `tensors`, whose
 * `data` is not read) and writes exactly t->bytes with px_out_write. */
typedef px_status (*px_safetensors_put)(void *user, const px_tensor_view *t, px_out *out, px_error *err);
px_status px_safetensors_write_by(const char *path, const px_tensor_view *tensors, size_t count, const px_meta *metadata,
                                  size_t metadata_count, px_safetensors_put put, void *user, px_error *err);

/* Finds a metadata value; NULL when absent. */
const char *px_meta_get(const px_meta *metadata, size_t count, const char *key);

#endif
