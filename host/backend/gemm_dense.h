/* SPDX-License-Identifier: MIT
 * Matrices without gaps between their rows, for product libraries that are fast, or exact, with those only. */
#ifndef PX_BACKEND_GEMM_DENSE_H
#define PX_BACKEND_GEMM_DENSE_H

#include "backend/backend.h"

/* Where copies lie; grows as needed. Zero to begin with. */
typedef struct px_dense {
  void *memory;
  size_t bytes;
} px_dense;

/* *out is the product *a on matrices without gaps: the same pointers where there are none, else copies in *d (of c only
 * where it accumulates). with_b false: b is left as it is. False: done; true: memory is out. */
bool px_dense_open(px_backend *be, px_dense *d, const px_gemm_args *a, bool with_b, px_gemm_args *out);
/* After the product: c goes where *a wants it. */
void px_dense_close(const px_gemm_args *a, const px_gemm_args *out);
void px_dense_free(px_backend *be, px_dense *d);

#endif
