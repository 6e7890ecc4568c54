/* SPDX-License-Identifier: MIT
 * What a tuning method adds to the frozen model: plain data that tune fills and forward and backward read. All of it may be
 * absent ({0} is the frozen model), and all of it may be there at once.
 *   segments   extra keys and values in front of a layer's own
 *   low_rank   y += scale (dropout(x) A^T) B^T behind a projection
 *   scales     y *= s behind a projection, x *= s in front of the feed-forward's last one (IA3)
 *   weights    other weights in place of the model's, grads their gradients
 * Where a projection has several of them:  y = s (x W^T + b + scale dropout(x) A^T B^T). */
#ifndef PX_MODEL_HOOKS_H
#define PX_MODEL_HOOKS_H

#include "kernels/attention.h"
#include "kernels/lora.h"

/* The projections of a layer. */
typedef enum px_site { PX_SITE_Q = 0, PX_SITE_K, PX_SITE_V, PX_SITE_O, PX_SITE_GATE, PX_SITE_UP, PX_SITE_DOWN, PX_SITES } px_site;

typedef struct px_low_rank {
  const px_lora_matrix *a, *b; /* [adapters] in backend memory: [rank, in] and [out, rank]; a NULL: nothing here */
  int32_t rank;                /* of the adapter that has most */
  int32_t mask;                /* which of the layer's dropout masks: sites that share A share it */
} px_low_rank;

typedef struct px_scaling {
  const float *const *s; /* [adapters] in backend memory: [out], in front of DOWN [in]; NULL: nothing here */
  float *const *ds;      /* [adapters] accumulated; NULL: not wanted */
} px_scaling;

/* Buffers that the above needs, as the plan must know them. */
typedef struct px_attached {
  int32_t rank[PX_SITES];
  bool scaled[PX_SITES];
  bool trained[PX_SITES]; /* a weight's gradient needs the projection's input */
  bool dropout;
} px_attached;

/* How far down the backward pass has to go: through all layers above `layer` and, in that one, as far as `stop`. */
typedef enum px_stop {
  PX_STOP_SEGMENTS = 0, /* gradients of keys and values that are shared */
  PX_STOP_PROJECTIONS,  /* what is attached to q, k and v */
  PX_STOP_NORM,         /* the weights of the first norm */
  PX_STOP_INPUT,        /* the layer's input: the embedding's gradient in layer 0 */
} px_stop;
typedef struct px_reach {
  int32_t layer;
  px_stop stop;
} px_reach;

struct px_weights;

typedef struct px_hooks {
  /* Extra keys and values: segments[layer * adapters + id], in backend memory like all that they point to. A sequence
   * reads the ones of its adapter id. NULL: none. */
  const px_kv_segment *segments;
  int32_t adapters;
  int32_t segment_rows; /* of all adapters together, in a layer */
  const px_low_rank *low_rank; /* [layers * PX_SITES] host memory; NULL: none */
  const px_scaling *scales;    /* likewise */
  float dropout;               /* of low_rank; masks follow from seed and *step. step NULL: none (not training) */
  uint64_t seed;
  const int64_t *step;
  px_attached attached;
  const struct px_weights *weights; /* NULL: the model's */
  const struct px_weights *grads;   /* float32 gradients in the places of trained weights; accumulated. NULL: none */
  px_reach reach;
} px_hooks;

#endif
