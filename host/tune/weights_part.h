/* SPDX-License-Identifier: MIT
 * Inside the tune room: the tensors of a model one by one, with their places in a table of weights and in one of gradients. */
#ifndef PX_TUNE_WEIGHTS_PART_H
#define PX_TUNE_WEIGHTS_PART_H

#include "tune/part.h"

typedef enum px_slot_kind { PX_SLOT_MATRIX = 0, PX_SLOT_BIAS, PX_SLOT_NORM } px_slot_kind;

/* Where a tensor stands, beside px_site: places that are no projections. */
enum { PX_PLACE_NORM1 = PX_SITES, PX_PLACE_QK_NORM, PX_PLACE_NORM2, PX_PLACE_EMBED, PX_PLACE_END };

typedef struct px_tensor_slot {
  const char *name;          /* Hugging Face's, "model.norm.weight" */
  px_slot_kind kind;
  bool is_bias;              /* a norm's */
  bool absent;               /* a bias that the model lacks */
  bool transposed;           /* the table has [out, in] where Hugging Face's file has [in, out] */
  int layer, site;           /* layer -1: of none */
  px_dtype dtype;
  int dims;
  int64_t shape[2];          /* as the table has it */
  int parts;                 /* places of one tensor: q, k and v of GPT-2; a tied head */
  const void **at[3], **grad[3];
  px_weight *weight[3];      /* matrices alone */
  int64_t offset[3];         /* elements from the tensor's start to the part's */
  int64_t place;             /* the caller's own */
} px_tensor_slot;

/* Every tensor of the table w, with g as the table of gradients (its layers are there). *out: free(). Names in the arena. */
px_status px_tensor_slots(const px_config *config, px_weights *w, px_weights *g, px_arena *arena, px_tensor_slot **out, int *count, px_error *err);
int64_t px_slot_count(const px_tensor_slot *slot);
void px_slot_set(const px_tensor_slot *slot, const void *data, px_dtype type, bool gradient);
int px_reserve_slots(px_tensor_slot **list, int *capacity, int count);

#endif
