/* SPDX-License-Identifier: MIT
 * Inside the tune room: the buffers of the prefix part, its initial values, and PEFT's order of them. */
#ifndef PX_TUNE_PREFIX_H
#define PX_TUNE_PREFIX_H

#include "core/random.h"
#include "tune/part.h"

/* A slice is the keys or the values of one layer: [P, width]. All pointers are backend memory, float32. */
typedef struct px_prefix_part {
  int64_t width, slice, slices, param_floats;
  bool has_offset, partial;
  bool *layers;         /* [layers] which have it */
  float *initial;       /* host memory, while it opens */
  int32_t first_param;  /* of the network, in the tune's list */
  float *memory;        /* all of the below, but segment_grads */
  float *flat;          /* [slices][P, width]; the trained tensors themselves where there is no network */
  float *segment_grads; /* the same, layers in reverse: the tune's, or own_grads */
  float *own_grads;     /* where other parts have virtual tokens too */
  float *dropped;
  float *values, *param_grads, *m, *v, *z, *h, *dh, *offset;
  float *e, *w1, *b1, *w2, *b2, *de, *dw1, *db1, *dw2, *db2; /* inside values and param_grads */
} px_prefix_part;

bool px_prefix_has_layer(const px_part *part, int layer);
/* part->tokens, and for text and adapter inits their keys and values, layer-major (malloc; else NULL). */
px_status px_prefix_initial(px_part *part, const px_part_start *start, float **values, px_error *err);
/* Writes the initial values of all trained tensors (and the offset). */
px_status px_prefix_fill(px_part *part, const float *initial, uint64_t seed, px_error *err);
/* Layer-major backend memory (layers in reverse order where `reversed`), slices `apart`, to PEFT's [P, 2 * layers * width]. */
px_status px_prefix_to_peft(px_part *part, const float *source, int64_t apart, bool reversed, float *values, px_error *err);
/* PEFT's order into the trained tensors. */
px_status px_prefix_from_peft(px_part *part, const float *values, px_error *err);
/* Keys (after rotary embedding) and values that the model computes for ids, layer-major float32 [layers][2][count][width]. */
px_status px_prefix_of_text(const px_model *model, px_backend *be, const int32_t *ids, int32_t count, float *out, px_error *err);
/* The ids of the text that a part begins from. PX_INVALID where it does not have `size` tokens (0: any). ids: px_ids_free. */
px_status px_part_text_ids(px_part *part, const px_part_start *start, px_ids *ids, px_error *err);
/* The first `count` tokens of the rows, from the first again where they are too few. */
px_status px_part_row_ids(px_part *part, const px_part_start *start, px_ids *ids, px_error *err);
/* Index in layer-major order <-> PEFT's order, for one element. */
static inline int64_t px_peft_index(int64_t token, int64_t slice, int64_t j, int64_t slices, int64_t width) {
  return (token * slices + slice) * width + j;
}

#endif
