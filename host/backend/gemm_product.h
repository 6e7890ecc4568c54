/* SPDX-License-Identifier: MIT
 * The product library behind the CPU backend: one file with oneDNN, one without; the build takes one of them. */
#ifndef PX_BACKEND_GEMM_PRODUCT_H
#define PX_BACKEND_GEMM_PRODUCT_H

#include "backend/backend.h"

typedef struct px_product px_product;

/* The library's state for one backend, whose log and memory accounting it uses; NULL when memory is out. The library
 * itself starts at the first product. */
px_product *px_product_open(px_backend *be);
void px_product_close(px_product *p);
/* 0, or the library's error code (px_product_error_text). Arguments have passed px_gemm_check. */
int px_product_gemm(px_product *p, const px_gemm_args *a);
/* Memory [from, from + bytes) is about to be freed: what is remembered of frozen weights in it is dropped. */
void px_product_forget(px_product *p, const void *from, size_t bytes);
bool px_product_is_no_memory(int code);
const char *px_product_error_text(int code);
const char *px_product_name(const px_product *p);
bool px_product_has_bf16(const px_product *p);

#endif
