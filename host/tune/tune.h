/* SPDX-License-Identifier: MIT
 * What is trainable. Parts (prefix, prompt, lora, ia3, bias, norm, top, full) register float32 tensors (value, gradient, two
 * moments) in one list and fill the hooks that the model reads; optimizer, clipping and checkpoint run over the list and
 * know nothing else. Any parts go together. */
#ifndef PX_TUNE_TUNE_H
#define PX_TUNE_TUNE_H

#include "model/model.h"
#include "text/tokenizer.h"
#include "tune/adapter.h"
#include "tune/spec.h"

typedef struct px_param {
  const char *name;       /* as in the state file: "prefix.layers.3", "lora.model.layers.0.self_attn.q_proj.A", ... */
  int64_t shape[3];
  int dims;
  int64_t count;
  float *value, *grad, *m, *v; /* backend memory */
  float weight_decay, lr_scale;
  int32_t group;
  /* In an adapter's files: the module and what it is of it ("lora_A"); a prefix is one tensor there, role NULL. A matrix that
   * is transposed there; IA3's vectors have two dimensions there. */
  int32_t part;
  const char *module, *role;
  bool transposed, column, row;
} px_param;

/* A float32 tensor that is not trained and belongs to the state all the same. */
typedef struct px_fixed {
  const char *name;
  float *value;
  int64_t count;
} px_fixed;

struct px_part;

typedef struct px_tune {
  px_backend *be;
  const px_model *model;
  const px_config *config;
  px_dtype dtype;          /* of the model */
  px_tune_spec spec;       /* without its texts */
  int32_t tokens;          /* virtual tokens of all parts: what a row's first position is */
  px_param *params;
  int32_t param_count, param_capacity;
  px_fixed fixed[4];
  int32_t fixed_count;
  px_opt_tensor *list;     /* backend memory: what adamw and sum_sq take */
  px_hooks hooks;
  px_weights hooks_weights, hooks_grads; /* what the hooks point to where weights are trained */
  /* Keys and values that every layer attends to first, slices (keys, values) of layers in order: [slices][tokens, width]. */
  int64_t width, slice, slices;
  void *kv;                /* of dtype */
  px_kv_segment *segments; /* backend memory [layers]; adapter id 0 */
  px_kv_segment *segments_host; /* the same */
  float *segment_grads;    /* as kv, layers in reverse: as the backward pass finishes them */
  float *grads;            /* the one gradient arena (of segments and of everything trained), backend memory */
  int64_t grad_count;
  struct px_part *parts;
  int32_t part_count;
  px_arena arena;
} px_tune;

/* Allocates and initialises from (seed). Text and data init run the model; `tok` may be NULL otherwise. */
px_status px_tune_open(const px_model *model, px_backend *be, const px_tokenizer *tok, const px_tune_spec *spec, uint64_t seed,
                       px_tune **out, px_error *err);
void px_tune_close(px_tune *tune);

/* Before a step's forward: trained tensors -> what the model reads (flattening, dropout, casts, the pass over prompt rows).
 * step: its number, in backend memory (masks of dropout follow from it and seed); NULL: not training, no dropout. Once per
 * step, never per row. */
void px_tune_begin_step(px_tune *tune, uint64_t seed, const int64_t *step);
/* Zeroes the gradient arena (before a step's first batch). */
void px_tune_zero_grads(px_tune *tune);
/* After a step's last backward: segment gradients -> gradients of the trained tensors. */
void px_tune_end_step(px_tune *tune, uint64_t seed, const int64_t *step);

/* Virtual tokens of the prefix; 0: there is none. */
int32_t px_tune_prefix_tokens(const px_tune *tune);
/* Virtual tokens of a part, in the order of --tune. */
int32_t px_tune_part_tokens(const px_tune *tune, int32_t part);
/* "prefix:20+lora:8", in the arena; NULL: no memory. */
const char *px_tune_summary(const px_tune *tune, px_arena *arena);
/* Backend memory of what is trained: values, gradients, moments, copies in the model's type. */
size_t px_tune_bytes(const px_tune *tune);
/* Numbers that are trained. */
int64_t px_tune_trainable(const px_tune *tune);

/* exchange.c. The parts of an adapter as a spec, its texts in the arena (free nothing of it); and their values into the tune
 * that was opened with it. PX_MISMATCH: something that pfx has no place for. */
px_status px_tune_spec_of(const px_adapter *adapter, px_arena *arena, px_tune_spec *out, px_error *err);
px_status px_tune_load(px_tune *tune, const px_adapter *adapter, px_error *err);
/* Both, for use (begin_step is done): the hooks are ready. trained: with gradients, as a run has them. */
px_status px_tune_open_adapter(const px_model *model, px_backend *be, const px_adapter *adapter, bool trained, px_tune **out, px_error *err);
/* A trained tensor, or its gradient, as an adapter's file has it; its numbers are the arena's. role must be there. */
px_status px_tune_read(px_tune *tune, const px_param *param, bool gradient, px_arena *arena, px_part_tensor *out, px_error *err);
/* Writes the parts as an adapter: one as its own folder, several as a hybrid. PX_NOT_FINITE names what is not. */
px_status px_tune_save(px_tune *tune, const char *dir, const char *base_name, const px_meta *metadata, size_t count, px_error *err);

/* The prefix as PEFT stores it, [P, 2 * layers * kv_heads * head_dim] float32, host memory of the caller. There is one. */
px_status px_tune_export(px_tune *tune, float *values, px_error *err);
/* The gradient of that (after px_tune_end_step: prompt rows read the prefix too), without dropout, same layout: for probe. */
px_status px_tune_export_grad(px_tune *tune, float *values, px_error *err);

#endif
