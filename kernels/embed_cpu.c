/* SPDX-License-Identifier: MIT */
#include "kernels/embed.h"
#include "kernels/math_cpu.h"

const char *px_embed_fwd_check(const px_embed_fwd_args *a) {
  if (a->rows < 0 || a->dim < 1) return "rows or dim is out of range";
  if (a->table_rows < 0 || a->position_rows < 0) return "a table has a negative number of rows";
  if (px_check_type(a->dtype) || px_check_type(a->table_type)) return "the type must be f32 or bf16";
  if (a->rows && (!a->ids || !a->table || !a->y)) return "a pointer is missing";
  return a->rows && a->position_table && !a->positions ? "positions are missing" : NULL;
}

const char *px_embed_bwd_check(const px_embed_bwd_args *a) {
  if (a->rows < 0 || a->dim < 1) return "rows or dim is out of range";
  if (a->table_rows < 0 || a->position_rows < 0) return "a table has a negative number of rows";
  if (px_check_type(a->dtype)) return "the type must be f32 or bf16";
  return a->rows && ((a->dtable && !a->ids) || !a->dy || (a->dposition && !a->positions)) ? "a pointer is missing"
                                                                                          : NULL;
}

px_cost px_embed_fwd_cost(const px_embed_fwd_args *a) {
  double n = (double)a->rows * (double)a->dim, table = (double)px_dtype_bytes(a->table_type, 1);
  return (px_cost){.bytes = n * (table * (a->position_table ? 2 : 1) + (double)px_dtype_bytes(a->dtype, 1)),
                   .operations = a->position_table ? n : 0};
}

px_cost px_embed_bwd_cost(const px_embed_bwd_args *a) {
  double n = (double)a->rows * (double)a->dim, sides = (a->dtable ? 1 : 0) + (a->dposition ? 1 : 0);
  return (px_cost){.bytes = n * ((double)px_dtype_bytes(a->dtype, 1) + 8 * sides), .operations = n * sides};
}

static inline bool inside(const int32_t *index, int64_t t, int64_t rows) { return index[t] >= 0 && index[t] < rows; }

int px_embed_fwd_cpu(const px_embed_fwd_args *a) {
  int bad = 0;
#pragma omp parallel for schedule(static) reduction(| : bad) if (a->rows * a->dim >= PX_PARALLEL_MIN)
  for (int64_t t = 0; t < a->rows; t++) {
    float x[PX_PIECE], p[PX_PIECE];
    if (!inside(a->ids, t, a->table_rows) || (a->position_table && !inside(a->positions, t, a->position_rows))) {
      bad = 1;
      continue;
    }
    for (int64_t from = 0; from < a->dim; from += PX_PIECE) {
      int64_t n = a->dim - from < PX_PIECE ? a->dim - from : PX_PIECE;
      px_load_row(a->table, a->table_type, a->ids[t] * a->dim + from, n, x);
      if (a->position_table) {
        px_load_row(a->position_table, a->table_type, a->positions[t] * a->dim + from, n, p);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) x[i] += p[i];
      }
      px_store_row(a->y, a->dtype, t * a->dim + from, n, x);
    }
  }
  return bad;
}

static void add_row(float *to, const float *dy, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) to[i] += dy[i];
}

int px_embed_bwd_cpu(const px_embed_bwd_args *a) {
  enum { COLUMNS = 64 }; /* threads own columns, so that rows add up in the order of t */
  int bad = 0;
#pragma omp parallel for schedule(static) reduction(| : bad) if (a->rows * a->dim >= PX_PARALLEL_MIN)
  for (int64_t from = 0; from < a->dim; from += COLUMNS) {
    int64_t n = a->dim - from < COLUMNS ? a->dim - from : COLUMNS;
    float dy[COLUMNS];
    for (int64_t t = 0; t < a->rows; t++) {
      bool out = (a->dtable && !inside(a->ids, t, a->table_rows)) ||
                 (a->dposition && !inside(a->positions, t, a->position_rows));
      bad |= out;
      if (out) continue;
      px_load_row(a->dy, a->dtype, t * a->dim + from, n, dy);
      if (a->dtable) add_row(a->dtable + a->ids[t] * a->dim + from, dy, n);
      if (a->dposition) add_row(a->dposition + a->positions[t] * a->dim + from, dy, n);
    }
  }
  return bad;
}
