/* SPDX-License-Identifier: MIT
 * What a tuning method adds to the frozen model: plain data that tune fills and forward and backward read. */
#ifndef PX_MODEL_HOOKS_H
#define PX_MODEL_HOOKS_H

#include "kernels/attention.h"

typedef struct px_hooks {
  /* Extra keys and values: segments[layer * adapters + id], in backend memory like all that they point to. A sequence
   * reads the ones of its adapter id. NULL: none. */
  const px_kv_segment *segments;
  int32_t adapters;
  int32_t segment_rows; /* of all adapters together, in a layer */
} px_hooks;

#endif
