/* SPDX-License-Identifier: MIT
 * Inside the use of cuBLASLt: plans, and which algorithm each takes. */
#ifndef PX_BACKEND_CUBLASLT_PLAN_H
#define PX_BACKEND_CUBLASLT_PLAN_H

#include "backend/cublaslt_api.h"
#include "backend/gemm_cublaslt.h"
#include "backend/product_choices.h"

enum { PX_LT_NO_MEMORY = 3 }; /* the library's own number for it */

/* What a plan depends on; compared as bytes, so it has no padding. */
typedef struct px_lt_shape {
  int64_t m, n, k, lda, ldb, ldc, ldg;
  int32_t align_a, align_b, align_c, align_bias, align_gelu; /* bytes; 0: there is none */
  int8_t type, c_type, bias_type, trans;
} px_lt_shape;

_Static_assert(sizeof(px_lt_shape) == 7 * 8 + 5 * 4 + 4, "no padding");

/* What the product does beside multiplying; what it does not is done by a kernel after it. */
enum { PX_LT_WITH_BIAS = 1, PX_LT_WITH_GELU = 2 };

typedef struct px_lt_plan {
  px_lt_shape key;
  void *desc, *a, *b, *c; /* in cuBLASLt's order */
  const void *bias, *aux; /* that desc points to now */
  int with;
  px_lt_algo algo;
  bool refused;
} px_lt_plan;

struct px_lt {
  px_backend *be;
  px_lt_api api;
  void *handle, *preference, *workspace;
  size_t workspace_bytes;
  px_lt_plan *plans;
  size_t plan_count, plan_capacity;
  bool warned;
  px_choices used;  /* by this backend, or by the run that it goes on with */
  px_choices known; /* of the device's file */
  bool unsaved;     /* choices that the file lacks */
  char name[48], identity[320];
};

/* Enqueues the product of a plan, with an algorithm, into c (and gelu). 0 or a cublasStatus_t. */
int px_lt_multiply(px_lt *lt, const px_gemm_args *a, px_lt_plan *p, const px_lt_algo *algo, void *c, cudaStream_t stream);

/* Names library and device, and reads what was chosen for the two before. */
px_status px_lt_remember(px_lt *lt, px_error *err);
/* Writes what is new to the device's file. */
void px_lt_keep(px_lt *lt);
/* Fills in p->algo. 0, a cudaError_t, or minus a cublasStatus_t. */
int px_lt_choose(px_lt *lt, const px_gemm_args *a, px_lt_plan *p, cudaStream_t stream);

#endif
