/* SPDX-License-Identifier: MIT
 * The frozen weights of a model, in the layout its file has wherever that can be computed with. */
#ifndef PX_MODEL_WEIGHTS_H
#define PX_MODEL_WEIGHTS_H

#include "backend/backend.h"
#include "format/gguf.h"
#include "format/safetensors.h"
#include "model/config.h"

typedef enum px_layout { PX_LAYOUT_OUT_IN = 0, PX_LAYOUT_IN_OUT = 1 } px_layout;
typedef enum px_residency { PX_RESIDENT_BACKEND = 0, PX_RESIDENT_MAPPED = 1 } px_residency;

/* A frozen matrix [out, in] (or its transpose) with an optional bias [out], all of `dtype`. Never a bare pointer: scales and
 * group belong to block formats that compute without widening. */
typedef struct px_weight {
  const void *data; /* NULL: the model has no such weight */
  px_dtype dtype;
  const void *scales;
  int32_t group;
  px_layout layout;
  px_residency residency;
  int64_t out, in, ld; /* ld: elements from one row of the layout to the next */
  const void *bias;
  bool trained; /* data changes from step to step: nobody may keep a copy of it */
} px_weight;

/* A norm's parameters [dim], always float32. weight NULL: absent. */
typedef struct px_norm_weight {
  const float *weight, *bias;
} px_norm_weight;

typedef struct px_layer_weights {
  px_norm_weight norm1, norm2, q_norm, k_norm;
  px_weight q, k, v, o, gate, up, down;
} px_layer_weights;

/* Where tensors come from: a Hugging Face folder or a GGUF file, under canonical names. */
typedef struct px_source {
  char *path;
  bool is_gguf;
  px_gguf gguf;
  px_tensor_list list; /* a folder's tensors */
  px_config config;
  px_arena arena;
} px_source;

/* A tensor of the source under its Hugging Face name and orientation. permute_rows: the file's rows of each head are
 * interleaved pairs; transpose: the file holds the transposed matrix. */
typedef struct px_canonical {
  const px_tensor_view *view;
  int64_t rows, cols; /* canonical shape; rows 1 for vectors */
  int dims;
  int32_t permute_heads; /* 0: not permuted */
  bool transpose;
} px_canonical;

/* Also the places of their gradients (px_hooks.grads): float32, NULL where none is wanted. */
typedef struct px_weights {
  px_dtype dtype; /* of matrices */
  px_weight embed, positions, head; /* embed [vocab, dim]; head may be embed itself */
  px_norm_weight final_norm;
  px_layer_weights *layers;
  void **owned; /* backend memory to free */
  size_t owned_count, owned_capacity;
  size_t mapped_bytes, owned_bytes;
  px_arena arena;
} px_weights;

px_status px_source_open(const char *path, px_source *source, px_error *err);
void px_source_close(px_source *source);

/* Every tensor that the config calls for, sorted by canonical name ("<name>.weight", "<name>.bias"); missing ones and
 * wrong shapes are PX_BAD_FILE by name. Memory is the source's. */
typedef struct px_named_tensor {
  const char *name;
  px_canonical tensor;
} px_named_tensor;
px_status px_source_tensors(px_source *source, px_named_tensor **out, size_t *count, px_error *err);
/* The value at a canonical index, as float32 before any cast. */
float px_canonical_value(const px_canonical *t, int64_t index);
/* Canonical rows [first, first + count) as float32, by all cores; a vector is one row. A transposed matrix is only read
 * whole (PX_INVALID otherwise), and takes memory of its size meanwhile. */
px_status px_canonical_rows(const px_canonical *t, int64_t first, int64_t count, float *out, px_error *err);

/* Loads into the backend with `dtype` (f32 or bf16) for matrices. Tensors of that very type are mapped, not copied, on a
 * host-visible backend, and are then not searched for NaN; all converted ones are: PX_BAD_FILE with name and index. */
px_status px_weights_load(px_source *source, px_backend *be, px_dtype dtype, px_weights *out, px_error *err);
/* Searches mapped tensors for values that are not finite. */
px_status px_source_verify(const px_source *source, px_error *err);
void px_weights_free(px_weights *w, px_backend *be);

#endif
