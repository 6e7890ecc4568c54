/* SPDX-License-Identifier: MIT
 * What an adapter changes in its base's weights, in numbers: one entry for each tensor of the model that a part meets. */
#ifndef PX_TUNE_CHANGES_H
#define PX_TUNE_CHANGES_H

#include "tune/adapter.h"

/* An IA3 scale is far from one where it differs by more than this. */
#define PX_FAR_FROM_ONE 0.1

typedef struct px_change {
  px_part_kind part;
  const char *module; /* Hugging Face's name: "model.layers.3.self_attn.q_proj" */
  const char *role;   /* "weight" or "bias" of the module that is changed */
  const char *column; /* short and the same in every layer: "q_proj", "q_proj.bias", "attn.c_proj" where "c_proj" alone is two */
  int32_t layer;      /* -1: of none */
  /* IA3's scales */
  double mean, smallest, largest, far;
  /* Of every other part: Euclidean (Frobenius) length of what is added, and of the model's own tensor; relative -1: the model
   * has none, or zeros. */
  double length, base_length, relative;
} px_change;

/* Parts in the adapter's order, the tensors of each in the order of the forward pass. Prefixes and prompts have none. The base is the
 * model as it is opened, in the type that it computes in. Memory is the arena's. Every tensor must fit (px_adapter_fits): one
 * that does not is PX_MISMATCH by name. */
px_status px_adapter_changes(const px_adapter *adapter, const px_model *model, px_backend *be, px_arena *arena, px_change **out, size_t *count,
                             px_error *err);

#endif
