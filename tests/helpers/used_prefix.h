/* SPDX-License-Identifier: MIT
 * A prefix in PEFT's layout as attention takes it, made apart from the parts that training and use share: what they make is held
 * against it. */
#ifndef PX_TESTS_USED_PREFIX_H
#define PX_TESTS_USED_PREFIX_H

#include "tune/prefix.h"

/* Keys and values in compute dtype. */
typedef struct px_prefix {
  px_kv_segment *segments; /* [layers] host-side array in backend memory, adapter id 0 */
  void *memory;
  int32_t tokens;
} px_prefix;
px_status px_prefix_open(const px_config *config, px_backend *be, px_dtype dtype, const float *values, int32_t tokens, px_prefix *out, px_error *err);
void px_prefix_close(px_prefix *prefix, px_backend *be);

#endif
