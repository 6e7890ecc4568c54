/* SPDX-License-Identifier: MIT
 * New keys and values into a cache: row t of k and v goes to slot slots[t] of k_cache and v_cache ([slots, dim],
 * dense); slot = page * page_tokens + offset, so the same call serves contiguous and paged caches. Slots are distinct;
 * -1 skips. Bytes are copied as they are; k and v overlap neither cache; other slots stay. dtype f32, f16 or bf16. */
#ifndef PX_KERNELS_KV_WRITE_H
#define PX_KERNELS_KV_WRITE_H

#include "core/types.h"
#include "kernels/cost.h"

PX_C_BEGIN

typedef struct px_kv_write_args {
  px_dtype dtype;
  int64_t rows, dim, k_stride, v_stride; /* dim = kv_heads * head_dim */
  const void *k, *v;
  void *k_cache, *v_cache;
  const int64_t *slots;
} px_kv_write_args;

const char *px_kv_write_check(const px_kv_write_args *a);
px_cost px_kv_write_cost(const px_kv_write_args *a);
int px_kv_write_cpu(const px_kv_write_args *a);
int px_kv_write_cuda(const px_kv_write_args *a, void *stream);

PX_C_END

#endif
