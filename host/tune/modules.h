/* SPDX-License-Identifier: MIT
 * The modules of a model under their Hugging Face names: what an adapter of another program may name. */
#ifndef PX_TUNE_MODULES_H
#define PX_TUNE_MODULES_H

#include "model/config.h"

typedef enum px_module_kind { PX_MODULE_LINEAR = 0, PX_MODULE_NORM, PX_MODULE_EMBEDDING, PX_MODULE_HEAD } px_module_kind;

typedef struct px_module {
  const char *name; /* "model.layers.3.self_attn.q_proj" */
  px_module_kind kind;
  int32_t layer;   /* -1: none */
  int64_t out, in; /* of the projection, whatever its layout; a norm has `out` alone; an embedding [out, in] as stored */
  bool in_out;     /* the matrix is stored [in, out] (GPT-2's Conv1D) */
  bool bias;       /* the model has a bias here */
  bool may_bias;   /* it has, or transformers can hold one (attention_bias, mlp_bias) */
} px_module;

typedef struct px_modules {
  px_module *items; /* in the order of the forward pass; a tied head is left out */
  size_t count;
  px_arena arena;
} px_modules;

px_status px_modules_of(const px_config *config, px_modules *out, px_error *err);
void px_modules_free(px_modules *modules);
const px_module *px_module_find(const px_modules *modules, const char *name); /* NULL: the family has none */
/* Shape of its weight as Hugging Face files hold it; returns the number of dimensions. */
int px_module_weight_shape(const px_module *m, int64_t shape[2]);

#endif
