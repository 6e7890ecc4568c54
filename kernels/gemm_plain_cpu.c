/* SPDX-License-Identifier: MIT
 * The reference product. A tile of c is a sum over pieces of k, in order; the piece of a and of b that it meets are
 * widened to float32 on the stack first, so that one loop serves all types and orientations. */
#include "kernels/gemm.h"

#include "kernels/math_cpu.h"

const char *px_gemm_check(const px_gemm_args *a) {
  if (a->m < 0 || a->n < 0 || a->k < 0) return "a dimension is negative";
  if (a->type != PX_F32 && a->type != PX_BF16) return "a and b must be f32 or bf16";
  if (a->c_type != a->type && a->c_type != PX_F32) return "c must be of a's type or f32";
  if (a->bias && a->bias_type != PX_F32 && a->bias_type != a->c_type) return "bias must be f32 or of c's type";
  if (a->m == 0 || a->n == 0) return NULL;
  if (a->ldc < a->n || (a->k && (a->lda < (a->trans_a ? a->m : a->k) || a->ldb < (a->trans_b ? a->k : a->n))))
    return "a leading dimension is shorter than its row";
  if (!a->c || (a->k && (!a->a || !a->b))) return "a pointer is missing";
  if (a->gelu && (a->accumulate || a->ldg < a->n)) return "gelu takes no accumulate, and rows of n elements at least";
  return NULL;
}

px_cost px_gemm_cost(const px_gemm_args *a) {
  double m = (double)a->m, n = (double)a->n, k = (double)a->k;
  double element = (double)px_dtype_bytes(a->type, 1), c_element = (double)px_dtype_bytes(a->c_type, 1);
  double bias = a->bias ? n * (double)px_dtype_bytes(a->bias_type, 1) : 0;
  int times = 1 + (a->accumulate || a->gelu);
  return (px_cost){.bytes = element * (m * k + k * n) + c_element * m * n * times + bias,
                   .operations = 2 * m * n * k};
}

enum { ROWS = 64, COLS = 32, DEPTH = 128, MICRO = 4 }; /* tile of c, piece of k, rows in registers */

/* rows x depth of a, from (i0, k0), as out[depth][ROWS]; rows beyond m are zero. */
static void widen_a(const px_gemm_args *a, int64_t i0, int64_t k0, int64_t depth, float out[DEPTH][ROWS]) {
  int64_t rows = a->m - i0 < ROWS ? a->m - i0 : ROWS;
  float line[DEPTH];
  if (a->trans_a) {
    for (int64_t k = 0; k < depth; k++) {
      px_load_row(a->a, a->type, (k0 + k) * a->lda + i0, rows, out[k]);
      for (int64_t i = rows; i < ROWS; i++) out[k][i] = 0.0f;
    }
    return;
  }
  for (int64_t i = 0; i < ROWS; i++) {
    if (i < rows) px_load_row(a->a, a->type, (i0 + i) * a->lda + k0, depth, line);
    for (int64_t k = 0; k < depth; k++) out[k][i] = i < rows ? line[k] : 0.0f;
  }
}

/* depth x columns of b, from (k0, j0); columns beyond n are zero. */
static void widen_b(const px_gemm_args *a, int64_t j0, int64_t k0, int64_t depth, float out[DEPTH][COLS]) {
  int64_t cols = a->n - j0 < COLS ? a->n - j0 : COLS;
  float line[DEPTH];
  if (!a->trans_b) {
    for (int64_t k = 0; k < depth; k++) {
      px_load_row(a->b, a->type, (k0 + k) * a->ldb + j0, cols, out[k]);
      for (int64_t j = cols; j < COLS; j++) out[k][j] = 0.0f;
    }
    return;
  }
  for (int64_t j = 0; j < COLS; j++) {
    if (j < cols) px_load_row(a->b, a->type, (j0 + j) * a->ldb + k0, depth, line);
    for (int64_t k = 0; k < depth; k++) out[k][j] = j < cols ? line[k] : 0.0f;
  }
}

/* sum[MICRO][COLS] += the piece, one k after the other: the only loop that adds products, so bits depend on nothing
 * else. */
static void add_piece(float (*x)[ROWS], float (*y)[COLS], int64_t row, int64_t depth, float (*sum)[COLS]) {
  float acc[MICRO][COLS];
  memcpy(acc, sum, sizeof acc);
  for (int64_t k = 0; k < depth; k++)
    for (int r = 0; r < MICRO; r++) {
      float xk = x[k][row + r];
#pragma omp simd
      for (int j = 0; j < COLS; j++) acc[r][j] += xk * y[k][j];
    }
  memcpy(sum, acc, sizeof acc);
}

static void store_tile(const px_gemm_args *a, int64_t i0, int64_t j0, float (*sum)[COLS]) {
  int64_t rows = a->m - i0 < ROWS ? a->m - i0 : ROWS, cols = a->n - j0 < COLS ? a->n - j0 : COLS;
  for (int64_t i = 0; i < rows; i++) {
    int64_t at = (i0 + i) * a->ldc + j0;
    for (int64_t j = 0; j < cols; j++) {
      float v = sum[i][j];
      if (a->bias) v += px_get(a->bias, a->bias_type, j0 + j);
      if (a->accumulate) v += px_get(a->c, a->c_type, at + j);
      sum[i][j] = v;
    }
    px_store_row(a->c, a->c_type, at, cols, sum[i]);
  }
}

int px_gemm_plain_cpu(const px_gemm_args *a) {
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t i0 = 0; i0 < a->m; i0 += ROWS)
    for (int64_t j0 = 0; j0 < a->n; j0 += COLS) {
      _Alignas(64) float x[DEPTH][ROWS], y[DEPTH][COLS], sum[ROWS][COLS] = {{0}};
      int64_t rows = a->m - i0 < ROWS ? a->m - i0 : ROWS;
      for (int64_t k0 = 0; k0 < a->k; k0 += DEPTH) {
        int64_t depth = a->k - k0 < DEPTH ? a->k - k0 : DEPTH;
        widen_a(a, i0, k0, depth, x);
        widen_b(a, j0, k0, depth, y);
        for (int64_t row = 0; row < rows; row += MICRO) add_piece(x, y, row, depth, sum + row);
      }
      store_tile(a, i0, j0, sum);
    }
  return 0;
}
