/* SPDX-License-Identifier: MIT */
#include "kernels/math_cpu.h"
#include "kernels/rope.h"

const char *px_rope_check(const px_rope_args *a) {
  if (a->rows < 0 || a->heads < 1 || a->head_dim < 1 || a->head_dim > 256)
    return "rows, heads or head_dim is out of range";
  if (a->rot_dim < 0 || a->rot_dim > a->head_dim || a->rot_dim % 2) return "rot_dim must be even and at most head_dim";
  if (px_check_type(a->dtype)) return "the type must be f32 or bf16";
  if (a->table_rows < 0) return "table_rows is negative";
  if (a->stride < (int64_t)a->heads * a->head_dim) return "the stride is shorter than a row";
  return a->rows && (!a->x || !a->positions || !a->cos || !a->sin) ? "a pointer is missing" : NULL;
}

px_cost px_rope_cost(const px_rope_args *a) {
  double n = (double)a->rows * a->heads * a->rot_dim;
  return (px_cost){.bytes = n * 2 * (double)px_dtype_bytes(a->dtype, 1) + (double)a->rows * (4 + 4.0 * a->rot_dim),
                   .operations = 3 * n};
}

int px_rope_cpu(const px_rope_args *a) {
  int half = a->rot_dim / 2, bad = 0;
  float sign = a->inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) reduction(| : bad)
  for (int64_t t = 0; t < a->rows; t++) {
    if (a->positions[t] < 0 || a->positions[t] >= a->table_rows) {
      bad |= 1;
      continue;
    }
    const float *c = a->cos + (int64_t)a->positions[t] * half, *s = a->sin + (int64_t)a->positions[t] * half;
    for (int h = 0; h < a->heads; h++) {
      float x[256], y[256];
      int64_t at = t * a->stride + (int64_t)h * a->head_dim;
      px_load_row(a->x, a->dtype, at, a->rot_dim, x);
#pragma omp simd
      for (int i = 0; i < half; i++) {
        float sine = sign * s[i];
        y[i] = x[i] * c[i] - x[i + half] * sine;
        y[i + half] = x[i + half] * c[i] + x[i] * sine;
      }
      px_store_row(a->x, a->dtype, at, a->rot_dim, y);
    }
  }
  return bad;
}
