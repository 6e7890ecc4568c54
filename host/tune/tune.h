/* SPDX-License-Identifier: MIT
 * What is trainable. A part registers float32 tensors (value, gradient, two moments) in one list; optimizer, clipping and
 * checkpoint run over that list and know nothing else. This release has one part: the prefix, plain or reparameterised. */
#ifndef PX_TUNE_TUNE_H
#define PX_TUNE_TUNE_H

#include "model/model.h"
#include "text/tokenizer.h"

typedef enum px_init { PX_INIT_RANDOM = 0, PX_INIT_ZERO, PX_INIT_TEXT, PX_INIT_ADAPTER, PX_INIT_DATA } px_init;

/* One part of --tune: NAME[:SIZE][:KEY=VALUE]... */
typedef struct px_tune_spec {
  int32_t prefix_tokens;  /* N; 0 with INIT_TEXT or INIT_ADAPTER: from there */
  px_init init;
  char *init_value;       /* the text, the file that holds it, or the adapter's folder (paths absolute where they exist); owned */
  bool init_file;         /* INIT_TEXT: init_value names a file */
  const int32_t *data_ids; /* INIT_DATA: the rows' tokens one after the other; borrowed until px_tune_open returns */
  int64_t data_tokens;
  bool force;             /* INIT_ADAPTER: an adapter of other weights will do */
  bool restored;          /* the values come from a checkpoint: no initial ones are computed; prefix_tokens is given */
  int32_t reparam_hidden; /* H; 0: the prefix is trained directly */
  double lr;              /* 0: the part's usual value */
  float dropout;          /* prefix dropout */
  float weight_decay;     /* of everything trained; a fixed offset is none of it */
} px_tune_spec;

/* Reads "prefix:20", "prefix:20:init=@file:lr=1e-2:reparam=512". PX_INVALID says what is allowed. `init` and `reparam`
 * (may be NULL / 0) are the short options of the only part. */
px_status px_tune_parse(const char *text, const char *init, int reparam, px_tune_spec *out, px_error *err);
void px_tune_spec_free(px_tune_spec *spec);
/* Where the part starts, as --init says it, in the arena; NULL: no memory. */
const char *px_tune_init_text(const px_tune_spec *spec, px_arena *arena);
double px_tune_usual_lr(const px_tune_spec *spec);

typedef struct px_param {
  const char *name;       /* as in the state file: "prefix.layers.3", "reparam.embedding", ... */
  int64_t shape[3];
  int dims;
  int64_t count;
  float *value, *grad, *m, *v; /* backend memory */
  float weight_decay;
  int32_t group;
} px_param;

typedef struct px_tune {
  px_backend *be;
  const px_config *config;
  px_dtype dtype;          /* of the keys and values that attention reads */
  px_tune_spec spec;
  int32_t tokens;          /* P */
  px_param *params;
  int32_t param_count;
  px_opt_tensor *list;     /* backend memory: what adamw and sum_sq take */
  px_hooks hooks;          /* reads `segments` */
  px_kv_segment *segments; /* backend memory [layers]; adapter id 0 */
  float *grads;            /* the one gradient arena (of segments and of everything trained), backend memory */
  int64_t grad_count;
  void *own;               /* the part's own buffers */
} px_tune;

/* Allocates and initialises from (seed). Text and data init run the model; `tok` may be NULL otherwise. */
px_status px_tune_open(const px_model *model, px_backend *be, const px_tokenizer *tok, const px_tune_spec *spec, uint64_t seed,
                       px_tune **out, px_error *err);
void px_tune_close(px_tune *tune);

/* Before a step's forward: trained tensors -> keys and values that attention reads (flattening, dropout, cast).
 * step: its number, in backend memory (dropout's mask follows from it); NULL: not training, no dropout. Once per step, never
 * per row. */
void px_tune_begin_step(px_tune *tune, uint64_t seed, const int64_t *step);
/* Zeroes the gradient arena (before a step's first batch). */
void px_tune_zero_grads(px_tune *tune);
/* After a step's last backward: segment gradients -> gradients of the trained tensors. */
void px_tune_end_step(px_tune *tune, uint64_t seed, const int64_t *step);

/* The prefix as PEFT stores it, [P, 2 * layers * kv_heads * head_dim] float32, host memory of the caller. */
px_status px_tune_export(px_tune *tune, float *values, px_error *err);
/* The gradient of that (after backward, before px_tune_end_step), same layout: for probe. */
px_status px_tune_export_grad(px_tune *tune, float *values, px_error *err);

/* A prefix that is only used: keys and values in compute dtype from PEFT's layout. */
typedef struct px_prefix {
  px_kv_segment *segments; /* [layers] host-side array in backend memory, adapter id 0 */
  void *memory;
  int32_t tokens;
} px_prefix;
px_status px_prefix_open(const px_config *config, px_backend *be, px_dtype dtype, const float *values, int32_t tokens, px_prefix *out, px_error *err);
void px_prefix_close(px_prefix *prefix, px_backend *be);

#endif
