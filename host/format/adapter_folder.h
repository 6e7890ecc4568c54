/* SPDX-License-Identifier: MIT
 * A prefix adapter on disk: PEFT's folder (adapter_config.json + adapter_model.safetensors). */
#ifndef PX_FORMAT_ADAPTER_FOLDER_H
#define PX_FORMAT_ADAPTER_FOLDER_H

#include "format/safetensors.h"

/* What the JSON says; strings are owned by the arena of the px_adapter_folder (reading) or the caller (writing). */
typedef struct px_adapter_config {
  const char *peft_type; /* "PREFIX_TUNING", or "CARTRIDGE" when read */
  const char *base_model; /* base_model_name_or_path; NULL is null */
  const char *revision;   /* NULL is null */
  const char *task_type;  /* "CAUSAL_LM" */
  const char *init_weights; /* NULL is null, or "zero" */
  int64_t virtual_tokens, layers, heads, token_dim;
  int64_t hidden_size;    /* encoder_hidden_size; 0 is null */
  int64_t frozen_tokens;  /* CARTRIDGE's num_frozen_tokens */
} px_adapter_config;

typedef struct px_adapter_folder {
  px_adapter_config config;
  const px_tensor_view *prompt_embeddings; /* [virtual_tokens, 2*layers*token_dim], F32, F16 or BF16 */
  px_tensor_list tensors;                  /* owns all of it */
  px_meta *metadata;                       /* the pfx.* keys alone; none where PEFT wrote the file */
  size_t metadata_count;
} px_adapter_folder;

/* Reads DIR (or DIR/<name> when DIR itself holds none and exactly one sub-folder does). Everything is checked against
 * everything: shapes, counts, types, NaN. A pickle, another peft_type or an unknown non-default field is refused by
 * name with what to do. */
px_status px_adapter_folder_open(const char *path, px_adapter_folder *out, px_error *err);
void px_adapter_folder_close(px_adapter_folder *folder);

/* Makes the folder and writes both files atomically, each; adapter_config.json with the keys and bytes that PEFT 0.21
 * writes ("peft_version" is that of the format followed). `values` is [P, 2*L*token_dim] float32, and finite.
 * `metadata` are the pfx.* strings in any order ("format": "pt" is added); none for --no-fingerprint. */
px_status px_adapter_folder_write(const char *path, const px_adapter_config *config, const float *values,
                                  const px_meta *metadata, size_t metadata_count, px_error *err);

#endif
