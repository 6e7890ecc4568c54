/* SPDX-License-Identifier: MIT
 * Matrix product: c[m, n] = sum_k A[m, k] B[k, n] (+ bias[n]) (+ c where accumulate), accumulated in float32, rounded
 * once. A is a[m, k] with leading dimension lda, or a[k, m] where trans_a; B is b[k, n], or b[n, k] where trans_b (a
 * weight in Hugging Face's [out, in] orientation); all row-major, leading dimensions in elements. Types: a and b of one
 * type, f32 or bf16; c of that type or f32; bias f32 or c's type (bias_type). A dimension of 0: k == 0 gives bias (or
 * 0, or c); m or n == 0 does nothing. gelu[m, n] = gelu_tanh(c), of c's type, taken of c before or after its rounding:
 * px_op_gemm makes it where it is asked for, the kernels below do not. Determinism: row i of c depends on row i of a alone (bits are independent of m
 * and of the number of threads) when a is not transposed; docs/exactness.md says what pins it. Aliasing: c overlaps
 * nothing. */
#ifndef PX_KERNELS_GEMM_H
#define PX_KERNELS_GEMM_H

#include "core/types.h"
#include "kernels/activation.h"
#include "kernels/cost.h"

PX_C_BEGIN

typedef struct px_gemm_args {
  int64_t m, n, k;
  const void *a, *b;
  void *c;
  const void *bias; /* NULL: none */
  void *gelu;       /* NULL: not wanted; else no accumulate, and row stride ldg */
  int64_t lda, ldb, ldc, ldg;
  px_dtype type, c_type, bias_type;
  bool trans_a, trans_b;
  bool accumulate; /* c += */
  bool b_frozen;   /* b never changes while the backend is open: it may be packed once and remembered by its address */
} px_gemm_args;

/* The activation alone, of a c that is there. */
static inline px_act_fwd_args px_gemm_gelu(const px_gemm_args *a) {
  px_act_fwd_args act = {PX_ACT_GELU_TANH, a->c_type, a->m, a->n, a->c, NULL, a->gelu, a->ldc, a->ldg};
  return act;
}

const char *px_gemm_check(const px_gemm_args *a);
px_cost px_gemm_cost(const px_gemm_args *a);
int px_gemm_plain_cpu(
    const px_gemm_args *a); /* the reference: float32 accumulation in the order of k, OpenMP over rows */
/* On the device, in the same order of k: what cuBLASLt refuses, and k == 0. */
int px_gemm_plain_cuda(const px_gemm_args *a, void *stream);
/* c += bias alone, after a product without it (a second rounding where c is bf16). */
int px_gemm_bias_cuda(const px_gemm_args *a, void *stream);

PX_C_END

#endif
