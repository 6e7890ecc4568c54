/* SPDX-License-Identifier: MIT
 * The key/value cache of a generator: pages of a fixed number of tokens, handed out one by one. */
#ifndef PX_GENERATE_KV_CACHE_H
#define PX_GENERATE_KV_CACHE_H

#include "model/stack.h"

enum { PX_PAGE_TOKENS = 16 };

typedef struct px_page_pool {
  void **k, **v;       /* per layer [pages * PX_PAGE_TOKENS, kv_heads * head_dim], backend memory */
  int32_t *free_pages; /* a stack */
  int32_t free_count, page_count;
  int layers;
  size_t bytes;
} px_page_pool;

px_status px_page_pool_open(const px_config *config, px_backend *be, px_dtype dtype, int32_t pages, px_page_pool *out, px_error *err);
void px_page_pool_close(px_page_pool *pool, px_backend *be);
/* Bytes of one page in all layers. */
size_t px_page_bytes(const px_config *config, px_dtype dtype);
/* -1 when none is left. */
int32_t px_page_take(px_page_pool *pool);
void px_page_give(px_page_pool *pool, int32_t page);

#endif
