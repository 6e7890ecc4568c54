/* SPDX-License-Identifier: MIT */
#include "backend/gemm_dense.h"

#include <string.h>

/* One of the three matrices as it lies in memory. */
typedef struct view {
  const void *data;
  int64_t rows, cols, ld;
  size_t element;
} view;

static view view_a(const px_gemm_args *a) {
  return (view){a->a, a->trans_a ? a->k : a->m, a->trans_a ? a->m : a->k, a->lda, px_dtype_bytes(a->type, 1)};
}
static view view_b(const px_gemm_args *a) {
  return (view){a->b, a->trans_b ? a->n : a->k, a->trans_b ? a->k : a->n, a->ldb, px_dtype_bytes(a->type, 1)};
}
static view view_c(const px_gemm_args *a) { return (view){a->c, a->m, a->n, a->ldc, px_dtype_bytes(a->c_type, 1)}; }

/* What a copy without gaps takes; 0 where none is needed. */
static size_t copy_bytes(const view *v) {
  bool has_gaps = v->rows > 1 && v->ld > v->cols;
  return has_gaps ? ((size_t)(v->rows * v->cols) * v->element + 63) & ~(size_t)63 : 0;
}

static void copy_rows(void *dst, int64_t dst_ld, const void *src, int64_t src_ld, const view *v) {
  size_t row = (size_t)v->cols * v->element;
#pragma omp parallel for schedule(static) if (v->rows * v->cols >= 65536)
  for (int64_t i = 0; i < v->rows; i++)
    memcpy((char *)dst + (size_t)(i * dst_ld) * v->element, (const char *)src + (size_t)(i * src_ld) * v->element, row);
}

bool px_dense_open(px_backend *be, px_dense *d, const px_gemm_args *a, bool with_b, px_gemm_args *out) {
  view x = view_a(a), w = view_b(a), y = view_c(a);
  size_t x_bytes = copy_bytes(&x), w_bytes = with_b ? copy_bytes(&w) : 0, y_bytes = copy_bytes(&y);
  size_t bytes = x_bytes + w_bytes + y_bytes;
  *out = *a;
  if (bytes == 0) return false;
  if (bytes > d->bytes) {
    px_dense_free(be, d);
    d->memory = px_backend_try_alloc(be, bytes);
    if (!d->memory) return true;
    d->bytes = bytes;
  }
  char *at_x = d->memory, *at_w = at_x + x_bytes, *at_y = at_w + w_bytes;
  if (x_bytes) {
    copy_rows(at_x, x.cols, x.data, x.ld, &x);
    out->a = at_x;
    out->lda = x.cols;
  }
  if (w_bytes) {
    copy_rows(at_w, w.cols, w.data, w.ld, &w);
    out->b = at_w;
    out->ldb = w.cols;
  }
  if (y_bytes) {
    if (a->accumulate) copy_rows(at_y, y.cols, y.data, y.ld, &y);
    out->c = at_y;
    out->ldc = y.cols;
  }
  return false;
}

void px_dense_close(const px_gemm_args *a, const px_gemm_args *out) {
  view c = view_c(a);
  if (out->c != a->c) copy_rows(a->c, c.ld, out->c, c.cols, &c);
}

void px_dense_free(px_backend *be, px_dense *d) {
  px_backend_free(be, d->memory);
  *d = (px_dense){0};
}
