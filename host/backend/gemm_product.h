/* SPDX-License-Identifier: MIT
 * The product library behind the CPU backend: one file with oneDNN, one without. */
#ifndef PX_BACKEND_GEMM_PRODUCT_H
#define PX_BACKEND_GEMM_PRODUCT_H

#include "backend/backend.h"

typedef struct px_product px_product;

/* NULL when memory is out. */
px_product *px_product_open(int threads);
void px_product_close(px_product *p);
/* 0, or the library's error code. */
int px_product_gemm(px_product *p, const px_gemm_args *a);
const char *px_product_name(const px_product *p);
bool px_product_has_bf16(const px_product *p);

#endif
