/* SPDX-License-Identifier: MIT */
#include "kernels/embed.h"
#include "kernels/math_cpu.h"

const char *px_embed_fwd_check(const px_embed_fwd_args *a) {
  if (a->rows < 0 || a->dim < 1) return "rows or dim is out of range";
  if (px_check_type(a->dtype) || px_check_type(a->table_type)) return "the type must be f32 or bf16";
  if (a->rows && (!a->ids || !a->table || !a->y)) return "a pointer is missing";
  return a->rows && a->position_table && !a->positions ? "positions are missing" : NULL;
}

const char *px_embed_bwd_check(const px_embed_bwd_args *a) {
  if (a->rows < 0 || a->dim < 1) return "rows or dim is out of range";
  if (px_check_type(a->dtype)) return "the type must be f32 or bf16";
  return a->rows && (!a->ids || !a->dy || (a->dposition && !a->positions)) ? "a pointer is missing" : NULL;
}

int px_embed_fwd_cpu(const px_embed_fwd_args *a) {
  int bad = 0;
#pragma omp parallel for schedule(static) reduction(| : bad)
  for (int64_t t = 0; t < a->rows; t++) {
    float x[PX_PIECE], p[PX_PIECE];
    bool inside = a->ids[t] >= 0 && a->ids[t] < a->table_rows &&
                  (!a->position_table || (a->positions[t] >= 0 && a->positions[t] < a->position_rows));
    bad |= !inside;
    for (int64_t from = 0; inside && from < a->dim; from += PX_PIECE) {
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

int px_embed_bwd_cpu(const px_embed_bwd_args *a) {
  enum { COLUMNS = 64 }; /* threads own columns, so that rows add up in the order of t */
#pragma omp parallel for schedule(static)
  for (int64_t from = 0; from < a->dim; from += COLUMNS) {
    int64_t n = a->dim - from < COLUMNS ? a->dim - from : COLUMNS;
    float dy[COLUMNS];
    for (int64_t t = 0; t < a->rows; t++) {
      px_load_row(a->dy, a->dtype, t * a->dim + from, n, dy);
      float *table = a->dtable ? a->dtable + a->ids[t] * a->dim + from : NULL;
      float *position = a->dposition ? a->dposition + a->positions[t] * a->dim + from : NULL;
      for (int64_t i = 0; table && i < n; i++) table[i] += dy[i];
      for (int64_t i = 0; position && i < n; i++) position[i] += dy[i];
    }
  }
  return 0;
}
