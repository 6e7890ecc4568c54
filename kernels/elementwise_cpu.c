/* SPDX-License-Identifier: MIT */
#include "kernels/elementwise.h"

#include "core/random.h"
#include "kernels/math_cpu.h"

static const char *check(px_dtype type, int64_t rows, int64_t dim, int64_t x_stride, int64_t y_stride, const void *x,
                         const void *y) {
  if (rows < 0 || dim < 0) return "rows or dim is negative";
  if (px_check_type(type)) return "the type must be f32 or bf16";
  if (x_stride < dim || y_stride < dim) return "a stride is shorter than its row";
  return rows && dim && (!x || !y) ? "a pointer is missing" : NULL;
}

const char *px_add_check(const px_add_args *a) {
  if (a->b_stride < a->dim || (a->rows && a->dim && !a->b)) return "b is missing or its stride is shorter than its row";
  return check(a->dtype, a->rows, a->dim, a->a_stride, a->y_stride, a->a, a->y);
}
const char *px_dropout_check(const px_dropout_args *a) {
  if (!(a->p >= 0 && a->p < 1)) return "p must be in [0, 1)";
  return check(a->dtype, a->rows, a->dim, a->x_stride, a->y_stride, a->x, a->y);
}
const char *px_cast_check(const px_cast_args *a) {
  if ((unsigned)a->y_type > PX_BF16 || (unsigned)a->x_type > PX_BF16) return "the type must be f32, f16 or bf16";
  return check(PX_F32, a->rows, a->dim, a->x_stride, a->y_stride, a->x, a->y);
}
const char *px_col_sum_check(const px_col_sum_args *a) {
  return check(a->dtype, a->rows, a->dim, a->x_stride, a->dim, a->x, a->out);
}

static const char *check_rows(const px_rows_args *a) {
  if (a->all_rows < 0) return "all_rows is negative";
  if (a->rows && !a->index) return "the index is missing";
  return check(a->dtype, a->rows, a->dim, a->x_stride, a->y_stride, a->x, a->y);
}
const char *px_gather_rows_check(const px_rows_args *a) { return check_rows(a); }
const char *px_scatter_rows_check(const px_rows_args *a) {
  return a->rows > a->all_rows ? "more rows than there are" : check_rows(a);
}

static double size_of(px_dtype type, int64_t rows, int64_t dim) {
  return (double)rows * (double)dim * (double)px_dtype_bytes(type, 1);
}

px_cost px_add_cost(const px_add_args *a) {
  return (px_cost){.bytes = 3 * size_of(a->dtype, a->rows, a->dim), .operations = (double)a->rows * (double)a->dim};
}
px_cost px_dropout_cost(const px_dropout_args *a) { /* Philox: ten rounds of eight operations */
  return (px_cost){.bytes = 2 * size_of(a->dtype, a->rows, a->dim),
                   .operations = 83 * (double)a->rows * (double)a->dim};
}
px_cost px_cast_cost(const px_cast_args *a) {
  return (px_cost){.bytes = size_of(a->x_type, a->rows, a->dim) + size_of(a->y_type, a->rows, a->dim)};
}
px_cost px_col_sum_cost(const px_col_sum_args *a) {
  return (px_cost){.bytes = size_of(a->dtype, a->rows, a->dim) + 8 * (double)a->dim,
                   .operations = (double)a->rows * (double)a->dim};
}
px_cost px_gather_rows_cost(const px_rows_args *a) {
  return (px_cost){.bytes = 2 * size_of(a->dtype, a->rows, a->dim)};
}
px_cost px_scatter_rows_cost(const px_rows_args *a) {
  return (px_cost){.bytes = size_of(a->dtype, a->rows, a->dim) + size_of(a->dtype, a->all_rows, a->dim)};
}

/* Pieces of all rows are the unit of work, so that one long row uses all threads too. */
#define EACH_PIECE(a)                                    \
  bool wide = (a)->rows * (a)->dim >= PX_PARALLEL_MIN;   \
  int64_t pieces = ((a)->dim + PX_PIECE - 1) / PX_PIECE; \
  _Pragma("omp parallel for schedule(static) if (wide)") for (int64_t u = 0; u < (a)->rows * pieces; u++)

#define PIECE(a)                                        \
  int64_t t = u / pieces, from = u % pieces * PX_PIECE; \
  int64_t n = (a)->dim - from < PX_PIECE ? (a)->dim - from : PX_PIECE

int px_add_cpu(const px_add_args *a) {
  EACH_PIECE(a) {
    PIECE(a);
    float x[PX_PIECE], y[PX_PIECE];
    px_load_row(a->a, a->dtype, t * a->a_stride + from, n, x);
    px_load_row(a->b, a->dtype, t * a->b_stride + from, n, y);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
    px_store_row(a->y, a->dtype, t * a->y_stride + from, n, x);
  }
  return 0;
}

int px_dropout_cpu(const px_dropout_args *a) {
  float keep = 1.0f / (1.0f - a->p);
  uint32_t step = a->step_at ? (uint32_t)*a->step_at : a->step;
  EACH_PIECE(a) {
    PIECE(a);
    float x[PX_PIECE];
    px_load_row(a->x, a->dtype, t * a->x_stride + from, n, x);
    uint64_t index = a->index0 + (uint64_t)(t * a->dim + from);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      float kept = x[i] * keep, drawn = px_uniform(px_philox(a->seed, a->stream, step, index + (uint64_t)i).v[0]);
      x[i] = drawn >= a->p ? kept : 0.0f;
    }
    px_store_row(a->y, a->dtype, t * a->y_stride + from, n, x);
  }
  return 0;
}

int px_cast_cpu(const px_cast_args *a) {
  EACH_PIECE(a) {
    PIECE(a);
    float x[PX_PIECE];
    px_load_row(a->x, a->x_type, t * a->x_stride + from, n, x);
    px_store_row(a->y, a->y_type, t * a->y_stride + from, n, x);
  }
  return 0;
}

int px_col_sum_cpu(const px_col_sum_args *a) {
  enum { COLUMNS = 64 };
#pragma omp parallel for schedule(static) if (a->rows * a->dim >= PX_PARALLEL_MIN)
  for (int64_t from = 0; from < a->dim; from += COLUMNS) {
    int64_t n = a->dim - from < COLUMNS ? a->dim - from : COLUMNS;
    float x[COLUMNS], sum[COLUMNS] = {0};
    for (int64_t t = 0; t < a->rows; t++) {
      px_load_row(a->x, a->dtype, t * a->x_stride + from, n, x);
#pragma omp simd
      for (int64_t i = 0; i < n; i++) sum[i] += x[i];
    }
    for (int64_t i = 0; i < n; i++) a->out[from + i] += sum[i];
  }
  return 0;
}

int px_gather_rows_cpu(const px_rows_args *a) {
  size_t e = px_dtype_bytes(a->dtype, 1);
#pragma omp parallel for schedule(static) if (a->rows * a->dim >= PX_PARALLEL_MIN)
  for (int64_t i = 0; i < a->rows; i++)
    memcpy((char *)a->y + (size_t)(i * a->y_stride) * e, (const char *)a->x + (size_t)(a->index[i] * a->x_stride) * e,
           (size_t)a->dim * e);
  return 0;
}

int px_scatter_rows_cpu(const px_rows_args *a) {
  size_t e = px_dtype_bytes(a->dtype, 1);
#pragma omp parallel if (a->all_rows * a->dim >= PX_PARALLEL_MIN)
  {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < a->all_rows; t++)
      memset((char *)a->y + (size_t)(t * a->y_stride) * e, 0, (size_t)a->dim * e);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a->rows; i++)
      memcpy((char *)a->y + (size_t)(a->index[i] * a->y_stride) * e, (const char *)a->x + (size_t)(i * a->x_stride) * e,
             (size_t)a->dim * e);
  }
  return 0;
}
