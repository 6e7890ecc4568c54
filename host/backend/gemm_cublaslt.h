/* SPDX-License-Identifier: MIT
 * The CUDA backend's products, by cuBLASLt. */
#ifndef PX_BACKEND_GEMM_CUBLASLT_H
#define PX_BACKEND_GEMM_CUBLASLT_H

#include "backend/backend.h"

typedef struct px_lt px_lt;

/* Opens the library; `be` lends memory for the workspace. PX_NO_DEVICE says which library is missing or too old. */
px_status px_lt_open(px_backend *be, px_lt **out, px_error *err);
void px_lt_close(px_lt *lt);
/* 0, a cudaError_t, or minus a cublasStatus_t. Enqueues on `stream`; where the backend times products, the first product
 * of a shape waits for its candidates. */
int px_lt_gemm(px_lt *lt, const px_gemm_args *a, void *stream);
const char *px_lt_error_text(int status);
/* What was chosen by measurement, as text; also kept in the device's file. And to choose the same again. */
px_status px_lt_choices(px_lt *lt, px_buf *out);
px_status px_lt_repeat(px_lt *lt, const char *text);
const char *px_lt_name(const px_lt *lt); /* "cuBLASLt 13.0.2" */

#endif
