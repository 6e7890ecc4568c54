/* SPDX-License-Identifier: MIT
 * The reference product: float32 accumulation in the order of k. */
#include "kernels/gemm.h"

const char *px_gemm_check(const px_gemm_args *a) {
  if (a->m < 0 || a->n < 0 || a->k < 0) return "a dimension is negative";
  if (a->type != PX_F32 && a->type != PX_BF16) return "a and b must be f32 or bf16";
  if (a->c_type != a->type && a->c_type != PX_F32) return "c must be of a's type or f32";
  if (a->bias && a->bias_type != PX_F32 && a->bias_type != a->c_type) return "bias must be f32 or of c's type";
  if (a->m == 0 || a->n == 0) return NULL;
  if (a->ldc < a->n || (a->k && (a->lda < (a->trans_a ? a->m : a->k) || a->ldb < (a->trans_b ? a->k : a->n))))
    return "a leading dimension is shorter than its row";
  if (!a->c || (a->k && (!a->a || !a->b))) return "a pointer is missing";
  return NULL;
}

static float get(const void *p, px_dtype type, int64_t i) { return type == PX_F32 ? ((const float *)p)[i] : px_bf16_to_f32(((const uint16_t *)p)[i]); }

static void put(void *p, px_dtype type, int64_t i, float v) {
  if (type == PX_F32)
    ((float *)p)[i] = v;
  else
    ((uint16_t *)p)[i] = px_f32_to_bf16(v);
}

enum { TILE = 64 };

int px_gemm_plain_cpu(const px_gemm_args *a) {
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t i = 0; i < a->m; i++)
    for (int64_t j0 = 0; j0 < a->n; j0 += TILE) {
      int64_t width = a->n - j0 < TILE ? a->n - j0 : TILE;
      float sum[TILE] = {0};
      for (int64_t k = 0; k < a->k; k++) {
        float x = get(a->a, a->type, a->trans_a ? k * a->lda + i : i * a->lda + k);
        if (a->trans_b)
          for (int64_t j = 0; j < width; j++) sum[j] += x * get(a->b, a->type, (j0 + j) * a->ldb + k);
        else
          for (int64_t j = 0; j < width; j++) sum[j] += x * get(a->b, a->type, k * a->ldb + j0 + j);
      }
      for (int64_t j = 0; j < width; j++) {
        float v = sum[j];
        if (a->bias) v += get(a->bias, a->bias_type, j0 + j);
        if (a->accumulate) v += get(a->c, a->c_type, i * a->ldc + j0 + j);
        put(a->c, a->c_type, i * a->ldc + j0 + j, v);
      }
    }
  return 0;
}
