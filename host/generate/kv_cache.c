/* SPDX-License-Identifier: MIT */
#include "generate/kv_cache.h"

#include <stdlib.h>

size_t px_page_bytes(const px_config *c, px_dtype dtype) {
  return (size_t)c->layers * 2 * PX_PAGE_TOKENS * px_dtype_bytes(dtype, (size_t)c->kv_heads * (size_t)c->head_dim);
}

px_status px_page_pool_open(const px_config *c, px_backend *be, px_dtype dtype, int32_t pages, px_page_pool *pool, px_error *err) {
  *pool = (px_page_pool){.page_count = pages, .free_count = pages, .layers = c->layers, .bytes = (size_t)pages * px_page_bytes(c, dtype)};
  pool->k = px_calloc((size_t)c->layers, sizeof *pool->k);
  pool->v = px_calloc((size_t)c->layers, sizeof *pool->v);
  pool->free_pages = px_calloc((size_t)pages, sizeof *pool->free_pages);
  if (!pool->k || !pool->v || !pool->free_pages) {
    px_page_pool_close(pool, be);
    return px_fail(err, PX_NO_MEMORY, "no memory");
  }
  size_t layer_bytes = pool->bytes / (2 * (size_t)c->layers);
  for (int l = 0; l < c->layers; l++) {
    pool->k[l] = px_backend_alloc(be, layer_bytes);
    pool->v[l] = px_backend_alloc(be, layer_bytes);
  }
  for (int32_t p = 0; p < pages; p++) pool->free_pages[p] = pages - 1 - p;
  px_status status = px_backend_status(be, err);
  if (status != PX_OK) px_page_pool_close(pool, be);
  return status;
}

void px_page_pool_close(px_page_pool *pool, px_backend *be) {
  for (int l = 0; l < pool->layers; l++) {
    if (pool->k) px_backend_free(be, pool->k[l]);
    if (pool->v) px_backend_free(be, pool->v[l]);
  }
  free(pool->k);
  free(pool->v);
  free(pool->free_pages);
  *pool = (px_page_pool){0};
}

int32_t px_page_take(px_page_pool *pool) { return pool->free_count ? pool->free_pages[--pool->free_count] : -1; }

void px_page_give(px_page_pool *pool, int32_t page) { pool->free_pages[pool->free_count++] = page; }
