/* SPDX-License-Identifier: MIT */
#include "kernels/scale.h"

#include "kernels/math_cpu.h"

static const char *check(px_dtype type, int64_t rows, int64_t dim, int32_t seqs, int32_t count, const void *const pointers[4], int pointer_count) {
  if (rows < 0 || dim < 0 || seqs < 0 || count < 0) return "a count is negative";
  if (px_check_type(type)) return "the type must be f32 or bf16";
  if (rows && !seqs) return "rows belong to no sequence";
  for (int i = 0; rows && dim && i < pointer_count; i++)
    if (!pointers[i]) return "a pointer is missing";
  return NULL;
}

const char *px_scale_fwd_check(const px_scale_fwd_args *a) {
  if (a->x_stride < a->dim || a->y_stride < a->dim) return "a stride is shorter than its row";
  if (a->count && !a->s) return "the scales are missing";
  return check(a->dtype, a->rows, a->dim, a->seqs, a->count, (const void *const[4]){a->offsets, a->adapter, a->x, a->y}, 4);
}

const char *px_scale_bwd_check(const px_scale_bwd_args *a) {
  if (a->stride < a->dim) return "a stride is shorter than its row";
  if (a->count && !a->s) return "the scales are missing";
  if (a->rows && a->dim && a->ds && !a->x) return "a pointer is missing";
  return check(a->dtype, a->rows, a->dim, a->seqs, a->count, (const void *const[4]){a->offsets, a->adapter, a->dy, a->dx}, 4);
}

px_cost px_scale_fwd_cost(const px_scale_fwd_args *a) {
  double n = (double)a->rows * (double)a->dim;
  return (px_cost){.bytes = 2 * n * (double)px_dtype_bytes(a->dtype, 1), .operations = n};
}

px_cost px_scale_bwd_cost(const px_scale_bwd_args *a) {
  double n = (double)a->rows * (double)a->dim, sides = a->ds ? 3 : 2;
  return (px_cost){.bytes = sides * n * (double)px_dtype_bytes(a->dtype, 1), .operations = (a->ds ? 3 : 1) * n};
}

static int bad_ids(int32_t seqs, const int32_t *adapter, int32_t count) {
  int bad = 0;
  for (int32_t q = 0; q < seqs; q++) bad |= adapter[q] >= count;
  return bad;
}

static const float *vector_of(const float *const *s, const int32_t *adapter, int32_t q) { return adapter[q] < 0 ? NULL : s[adapter[q]]; }

int px_scale_fwd_cpu(const px_scale_fwd_args *a) {
  if (bad_ids(a->seqs, a->adapter, a->count)) return 1;
#pragma omp parallel if (a->rows * a->dim >= PX_PARALLEL_MIN)
  for (int32_t q = 0; q < a->seqs; q++) {
    const float *s = vector_of(a->s, a->adapter, q);
#pragma omp for schedule(static) nowait
    for (int32_t t = a->offsets[q]; t < a->offsets[q + 1]; t++) {
      float x[PX_PIECE];
      for (int64_t from = 0; from < a->dim; from += PX_PIECE) {
        int64_t n = a->dim - from < PX_PIECE ? a->dim - from : PX_PIECE;
        px_load_row(a->x, a->dtype, t * a->x_stride + from, n, x);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) x[i] *= s ? s[from + i] : 1.0f;
        px_store_row(a->y, a->dtype, t * a->y_stride + from, n, x);
      }
    }
  }
  return 0;
}

/* One piece of the columns, all rows in order. */
static void backward_piece(const px_scale_bwd_args *a, int64_t from, int64_t n) {
  float x[PX_PIECE], dy[PX_PIECE];
  for (int32_t q = 0; q < a->seqs; q++) {
    const float *s = vector_of(a->s, a->adapter, q);
    float *ds = a->adapter[q] < 0 || !a->ds || !s ? NULL : a->ds[a->adapter[q]];
    for (int64_t t = a->offsets[q]; t < a->offsets[q + 1]; t++) {
      px_load_row(a->dy, a->dtype, t * a->stride + from, n, dy);
      if (ds) {
        px_load_row(a->x, a->dtype, t * a->stride + from, n, x);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) ds[from + i] += dy[i] * x[i];
      }
#pragma omp simd
      for (int64_t i = 0; i < n; i++) dy[i] *= s ? s[from + i] : 1.0f;
      px_store_row(a->dx, a->dtype, t * a->stride + from, n, dy);
    }
  }
}

int px_scale_bwd_cpu(const px_scale_bwd_args *a) {
  enum { COLUMNS = 64 };
  if (bad_ids(a->seqs, a->adapter, a->count)) return 1;
  int64_t pieces = (a->dim + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(static) if (a->rows * a->dim >= PX_PARALLEL_MIN)
  for (int64_t p = 0; p < pieces; p++)
    backward_piece(a, p * COLUMNS, a->dim - p * COLUMNS < COLUMNS ? a->dim - p * COLUMNS : COLUMNS);
  return 0;
}
