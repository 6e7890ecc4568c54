/* SPDX-License-Identifier: MIT */
#include "kernels/norm.h"

#include "kernels/math_cpu.h"

const char *px_norm_fwd_check(const px_norm_fwd_args *a) {
  if (a->kind != PX_NORM_RMS && a->kind != PX_NORM_LAYER) return "the kind of norm is unknown";
  if (a->rows < 0 || a->heads < 1 || a->dim < 1) return "rows, heads or dim is out of range";
  if (px_check_type(a->dtype)) return "the type must be f32 or bf16";
  if (a->weight_type != PX_F32 && a->weight_type != a->dtype) return "weights must be f32 or of the rows' type";
  if (!a->residual != !a->sum) return "residual and sum go together";
  if (a->rows && (!a->x || !a->y || !a->weight)) return "a pointer is missing";
  if (a->x_stride < (int64_t)a->heads * a->dim || a->y_stride < (int64_t)a->heads * a->dim)
    return "a stride is shorter than its row";
  return NULL;
}

const char *px_norm_bwd_check(const px_norm_bwd_args *a) {
  if (a->kind != PX_NORM_RMS && a->kind != PX_NORM_LAYER) return "the kind of norm is unknown";
  if (a->rows < 0 || a->heads < 1 || a->dim < 1) return "rows, heads or dim is out of range";
  if (px_check_type(a->dtype)) return "the type must be f32 or bf16";
  if (a->weight_type != PX_F32 && a->weight_type != a->dtype) return "weights must be f32 or of the rows' type";
  if (a->rows && (!a->x || !a->dy || !a->weight || !a->rstd)) return "a pointer is missing";
  if (a->rows && a->kind == PX_NORM_LAYER && !a->mean) return "layer norm needs the means";
  int64_t row = (int64_t)a->heads * a->dim;
  if (a->x_stride < row || a->dy_stride < row || (a->dx && a->dx_stride < row))
    return "a stride is shorter than its row";
  return NULL;
}

px_cost px_norm_fwd_cost(const px_norm_fwd_args *a) {
  double n = (double)a->rows * a->heads * a->dim, element = (double)px_dtype_bytes(a->dtype, 1);
  double statistics = (a->rstd ? 4.0 : 0.0) + (a->mean ? 4.0 : 0.0);
  return (px_cost){.bytes = n * element * (a->residual ? 4 : 2) + (double)a->rows * a->heads * statistics,
                   .operations = n * (a->kind == PX_NORM_LAYER ? 7 : 4) + (a->residual ? n : 0)};
}

px_cost px_norm_bwd_cost(const px_norm_bwd_args *a) {
  double n = (double)a->rows * a->heads * a->dim, element = (double)px_dtype_bytes(a->dtype, 1);
  return (px_cost){
      .bytes = n * element * (2 + (a->dx ? 1 : 0) + (a->dx && a->dresidual ? 1 : 0)) + (double)a->rows * a->heads * 8,
      .operations = n * ((a->dx ? 9 : 0) + (a->dw ? 3 : 0) + (a->db ? 1 : 0))};
}

/* x, or x + residual, which is stored; its sum and that of its squares. */
static void sums_of_row(const px_norm_fwd_args *a, int64_t at, float *sum, float *squares) {
  float total = 0, total_squares = 0;
  for (int64_t from = 0; from < a->dim; from += PX_PIECE) {
    int64_t n = a->dim - from < PX_PIECE ? a->dim - from : PX_PIECE;
    float b0[PX_PIECE], b1[PX_PIECE];
    const float *u = px_row_in(a->x, a->dtype, at + from, n, b0);
    if (a->residual) {
      const float *more = px_row_in(a->residual, a->dtype, at + from, n, b1);
      float *both = px_row_out(a->sum, a->dtype, at + from, b0);
#pragma omp simd
      for (int64_t i = 0; i < n; i++) both[i] = u[i] + more[i];
      px_row_done(a->sum, a->dtype, at + from, n, b0);
      u = px_row_in(a->sum, a->dtype, at + from, n, b0); /* as rounded */
    }
#pragma omp simd reduction(+ : total, total_squares)
    for (int64_t i = 0; i < n; i++) {
      total += u[i];
      total_squares += u[i] * u[i];
    }
  }
  *sum = total;
  *squares = total_squares;
}

static float spread_of_row(const px_norm_fwd_args *a, const void *source, int64_t at, float mean) {
  float spread = 0, b0[PX_PIECE];
  for (int64_t from = 0; from < a->dim; from += PX_PIECE) {
    int64_t n = a->dim - from < PX_PIECE ? a->dim - from : PX_PIECE;
    const float *u = px_row_in(source, a->dtype, at + from, n, b0);
#pragma omp simd reduction(+ : spread)
    for (int64_t i = 0; i < n; i++) spread += (u[i] - mean) * (u[i] - mean);
  }
  return spread;
}

static void fwd_row(const px_norm_fwd_args *a, int64_t t, int64_t h) {
  int64_t at = t * a->x_stride + h * a->dim, to = t * a->y_stride + h * a->dim;
  float sum, squares, mean = 0;
  sums_of_row(a, at, &sum, &squares);
  const void *source = a->residual ? a->sum : a->x;
  float var = squares / (float)a->dim;
  if (a->kind == PX_NORM_LAYER) { /* a second pass: E[u^2] - E[u]^2 cancels */
    mean = sum / (float)a->dim;
    var = spread_of_row(a, source, at, mean) / (float)a->dim;
  }
  float rstd = 1.0f / sqrtf(var + a->eps);
  for (int64_t from = 0; from < a->dim; from += PX_PIECE) {
    int64_t n = a->dim - from < PX_PIECE ? a->dim - from : PX_PIECE;
    float b0[PX_PIECE], b1[PX_PIECE], b2[PX_PIECE];
    const float *u = px_row_in(source, a->dtype, at + from, n, b0),
                *w = px_row_in(a->weight, a->weight_type, from, n, b1);
    float *y = px_row_out(a->y, a->dtype, to + from, b0);
    if (a->bias) {
      const float *bias = px_row_in(a->bias, a->weight_type, from, n, b2);
#pragma omp simd
      for (int64_t i = 0; i < n; i++) y[i] = (u[i] - mean) * rstd * w[i] + bias[i];
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) y[i] = (u[i] - mean) * rstd * w[i];
    }
    px_row_done(a->y, a->dtype, to + from, n, b0);
  }
  if (a->rstd) a->rstd[t * a->heads + h] = rstd;
  if (a->mean) a->mean[t * a->heads + h] = mean;
}

int px_norm_fwd_cpu(const px_norm_fwd_args *a) {
#pragma omp parallel for schedule(static) if (a->rows * a->heads * a->dim >= PX_PARALLEL_MIN)
  for (int64_t r = 0; r < a->rows * a->heads; r++) fwd_row(a, r / a->heads, r % a->heads);
  return 0;
}

static void bwd_row(const px_norm_bwd_args *a, int64_t t, int64_t h) {
  int64_t at = t * a->x_stride + h * a->dim, dy_at = t * a->dy_stride + h * a->dim,
          dx_at = t * a->dx_stride + h * a->dim;
  float rstd = a->rstd[t * a->heads + h], mean = a->kind == PX_NORM_LAYER ? a->mean[t * a->heads + h] : 0;
  float b0[PX_PIECE], b1[PX_PIECE], b2[PX_PIECE], b3[PX_PIECE], sum_g = 0, sum_gn = 0;
  for (int64_t from = 0; from < a->dim; from += PX_PIECE) {
    int64_t n = a->dim - from < PX_PIECE ? a->dim - from : PX_PIECE;
    const float *g = px_row_in(a->dy, a->dtype, dy_at + from, n, b0), *x = px_row_in(a->x, a->dtype, at + from, n, b1),
                *w = px_row_in(a->weight, a->weight_type, from, n, b2);
#pragma omp simd reduction(+ : sum_g, sum_gn)
    for (int64_t i = 0; i < n; i++) {
      float gw = g[i] * w[i];
      sum_g += gw;
      sum_gn += gw * ((x[i] - mean) * rstd);
    }
  }
  float c_g = a->kind == PX_NORM_LAYER ? sum_g / (float)a->dim : 0, c_n = sum_gn / (float)a->dim;
  for (int64_t from = 0; from < a->dim; from += PX_PIECE) {
    int64_t n = a->dim - from < PX_PIECE ? a->dim - from : PX_PIECE;
    const float *g = px_row_in(a->dy, a->dtype, dy_at + from, n, b0), *x = px_row_in(a->x, a->dtype, at + from, n, b1),
                *w = px_row_in(a->weight, a->weight_type, from, n, b2);
    float *dx = px_row_out(a->dx, a->dtype, dx_at + from, b0);
    if (a->dresidual) {
      const float *more = px_row_in(a->dresidual, a->dtype, dx_at + from, n, b3);
#pragma omp simd
      for (int64_t i = 0; i < n; i++) dx[i] = rstd * (g[i] * w[i] - c_g - (x[i] - mean) * rstd * c_n) + more[i];
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) dx[i] = rstd * (g[i] * w[i] - c_g - (x[i] - mean) * rstd * c_n);
    }
    px_row_done(a->dx, a->dtype, dx_at + from, n, b0);
  }
}

/* dw and db of columns [from, from + n): all rows in order. */
static void weight_columns(const px_norm_bwd_args *a, int64_t from, int64_t n) {
  float dw[PX_PIECE] = {0}, db[PX_PIECE] = {0}, g[PX_PIECE], x[PX_PIECE];
  for (int64_t r = 0; r < a->rows * a->heads; r++) {
    int64_t t = r / a->heads, h = r % a->heads;
    float rstd = a->rstd[r], mean = a->kind == PX_NORM_LAYER ? a->mean[r] : 0;
    px_load_row(a->dy, a->dtype, t * a->dy_stride + h * a->dim + from, n, g);
    px_load_row(a->x, a->dtype, t * a->x_stride + h * a->dim + from, n, x);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      dw[i] += g[i] * ((x[i] - mean) * rstd);
      db[i] += g[i];
    }
  }
  for (int64_t i = 0; a->dw && i < n; i++) a->dw[from + i] += dw[i];
  for (int64_t i = 0; a->db && i < n; i++) a->db[from + i] += db[i];
}

int px_norm_bwd_cpu(const px_norm_bwd_args *a) {
  if (a->dw || a->db) { /* before dx, which may take the place of dy */
    enum { COLUMNS = 64 };
#pragma omp parallel for schedule(static) if (a->rows * a->heads * a->dim >= PX_PARALLEL_MIN)
    for (int64_t from = 0; from < a->dim; from += COLUMNS)
      weight_columns(a, from, a->dim - from < COLUMNS ? a->dim - from : COLUMNS);
  }
  if (!a->dx) return 0;
#pragma omp parallel for schedule(static) if (a->rows * a->heads * a->dim >= PX_PARALLEL_MIN)
  for (int64_t r = 0; r < a->rows * a->heads; r++) bwd_row(a, r / a->heads, r % a->heads);
  return 0;
}
