/* SPDX-License-Identifier: MIT */
#include "kernels/lora.h"

#include "kernels/math_cpu.h"

const char *px_lora_check(const px_lora_args *a) {
  if ((unsigned)a->mode > PX_LORA_DW) return "the mode is unknown";
  if (a->seqs < 0 || a->mat_count < 0) return "a count is negative";
  if (px_check_type(a->dtype)) return "the type must be f32 or bf16";
  if (a->w_type != PX_F32 && a->w_type != a->dtype) return "matrices must be f32 or of the rows' type";
  if (a->x_dim < 0 || a->y_dim < 0) return "a dimension is negative";
  if (a->x_stride < a->x_dim || a->y_stride < a->y_dim) return "a stride is shorter than its row";
  if (a->seqs && (!a->offsets || !a->adapter || !a->x || !a->y)) return "a pointer is missing";
  return a->mat_count && !a->mats ? "the matrices are missing" : NULL;
}

const char *px_lora_check_arrays(const px_lora_args *a) {
  if (a->seqs && a->offsets[a->seqs] != a->rows) return "the number of rows is not the last offset";
  for (int32_t i = 0; i < a->mat_count; i++) {
    const px_lora_matrix *m = &a->mats[i];
    if (m->in < 0 || m->out < 0 || m->in > a->x_dim || m->out > a->y_dim) return "a matrix exceeds its rows";
    if (m->in && m->out && (a->mode == PX_LORA_DW ? !m->dw : !m->w)) return "a matrix is missing";
  }
  return NULL;
}

px_cost px_lora_cost(const px_lora_args *a) {
  double element = (double)px_dtype_bytes(a->dtype, 1);
  px_cost c = {0, 0};
  for (int32_t s = 0; s < a->seqs; s++) {
    double rows = (double)(a->offsets[s + 1] - a->offsets[s]);
    if (a->adapter[s] < 0 || a->adapter[s] >= a->mat_count) continue;
    const px_lora_matrix *m = &a->mats[a->adapter[s]];
    c.bytes += rows * (m->in + m->out) * element;
    c.operations += rows * 2 * m->in * m->out;
  }
  for (int32_t i = 0; i < a->mat_count; i++)
    c.bytes +=
        (double)a->mats[i].in * a->mats[i].out * (a->mode == PX_LORA_DW ? 8.0 : (double)px_dtype_bytes(a->w_type, 1));
  return c;
}

static float dot(const float *x, const void *w, px_dtype type, int64_t at, int64_t n) {
  float sum = 0;
  if (type == PX_F32) {
    const float *v = (const float *)w + at;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i] * v[i];
  } else {
    const uint16_t *v = (const uint16_t *)w + at;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i] * px_bf16_to_f32(v[i]);
  }
  return sum;
}

static void add_scaled(float *y, float factor, const void *w, px_dtype type, int64_t at, int64_t n) {
  if (type == PX_F32) {
    const float *v = (const float *)w + at;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] += factor * v[i];
  } else {
    const uint16_t *v = (const uint16_t *)w + at;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] += factor * px_bf16_to_f32(v[i]);
  }
}

static inline int64_t piece_of(int64_t from, int64_t end) { return end - from < PX_PIECE ? end - from : PX_PIECE; }

/* sums[j] = sum_i src[i] w[j, i] for outputs [from, from + n) of FWD; of DX with j and i exchanged. */
static void product_piece(const px_lora_args *a, const px_lora_matrix *m, const void *src, int64_t src_at, int64_t from,
                          int64_t n, float *sums) {
  float s[PX_PIECE];
  bool fwd = a->mode == PX_LORA_FWD;
  int64_t inner = fwd ? m->in : m->out;
  for (int64_t i = 0; i < n; i++) sums[i] = 0;
  for (int64_t at = 0; at < inner; at += PX_PIECE) {
    int64_t count = piece_of(at, inner);
    px_load_row(src, a->dtype, src_at + at, count, s);
    for (int64_t j = 0; fwd && j < n; j++) sums[j] += dot(s, m->w, a->w_type, (from + j) * m->in + at, count);
    for (int64_t j = 0; !fwd && j < count; j++) add_scaled(sums, s[j], m->w, a->w_type, (at + j) * m->in + from, n);
  }
}

/* Finished sums of outputs [from, from + n) of row t go where they belong. */
static void put_sums(const px_lora_args *a, const px_lora_matrix *m, int64_t t, int64_t from, int64_t n, float *sums) {
  bool fwd = a->mode == PX_LORA_FWD;
  void *dst = fwd ? a->y : a->x;
  int64_t at = t * (fwd ? a->y_stride : a->x_stride) + from;
  float old[PX_PIECE];
  if (a->accumulate) {
    px_load_row(dst, a->dtype, at, n, old);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) sums[i] = old[i] + m->scale * sums[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) sums[i] *= m->scale;
  }
  px_store_row(dst, a->dtype, at, n, sums);
}

/* Columns beyond the matrix become zero, all of them where the row takes no part (m NULL). */
static void clear_rest(const px_lora_args *a, const px_lora_matrix *m, int64_t t) {
  bool fwd = a->mode == PX_LORA_FWD;
  int64_t written = fwd ? a->y_dim : a->x_dim, live = m ? (fwd ? m->out : m->in) : 0;
  size_t element = px_dtype_bytes(a->dtype, 1);
  if (a->accumulate || written <= live) return;
  char *dst = (char *)(fwd ? a->y : a->x) + (size_t)(t * (fwd ? a->y_stride : a->x_stride) + live) * element;
  memset(dst, 0, (size_t)(written - live) * element);
}

/* One row of FWD or DX. */
static void product_row(const px_lora_args *a, const px_lora_matrix *m, int64_t t) {
  bool fwd = a->mode == PX_LORA_FWD;
  int64_t live = fwd ? m->out : m->in;
  float sums[PX_PIECE];
  for (int64_t from = 0; from < live; from += PX_PIECE) {
    int64_t n = piece_of(from, live);
    product_piece(a, m, fwd ? a->x : a->y, t * (fwd ? a->x_stride : a->y_stride), from, n, sums);
    put_sums(a, m, t, from, n, sums);
  }
}

/* FWD with few terms a sum (the second half of a delta): the matrix is turned once for the rows [first, end), so that sums stand
 * side by side. */
enum { NARROW = 32, TILE_ROWS = 128 };

static void narrow_rows(const px_lora_args *a, const px_lora_matrix *m, int64_t first, int64_t end) {
  float turned[NARROW][PX_PIECE], x[NARROW], sums[PX_PIECE];
  for (int64_t from = 0; from < m->out; from += PX_PIECE) {
    int64_t n = piece_of(from, m->out);
    for (int64_t j = 0; j < n; j++)
      for (int64_t i = 0; i < m->in; i++) turned[i][j] = px_get(m->w, a->w_type, (from + j) * m->in + i);
    for (int64_t t = first; t < end; t++) {
      px_load_row(a->x, a->dtype, t * a->x_stride, m->in, x);
      for (int64_t j = 0; j < n; j++) sums[j] = 0;
      for (int64_t i = 0; i < m->in; i++) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) sums[j] += x[i] * turned[i][j];
      }
      put_sums(a, m, t, from, n, sums);
    }
  }
}

/* Elements of one matrix's gradient: a slice of its longer side, all rows of its sequences in order. */
enum { SLICE = 32 };

static void gradient_row(const px_lora_args *a, const px_lora_matrix *m, bool by_out, int64_t from, int64_t n, int64_t t) {
  float x[PX_PIECE], y[SLICE];
  if (!by_out) { /* columns [from, from + n) of every row of the matrix */
    px_load_row(a->x, a->dtype, t * a->x_stride + from, n, x);
    for (int64_t j = 0; j < m->out; j++)
      add_scaled(m->dw + j * m->in + from, m->scale * px_get(a->y, a->dtype, t * a->y_stride + j), x, PX_F32, 0, n);
    return;
  }
  px_load_row(a->y, a->dtype, t * a->y_stride + from, n, y);
  for (int64_t at = 0; at < m->in; at += PX_PIECE) {
    int64_t count = piece_of(at, m->in);
    px_load_row(a->x, a->dtype, t * a->x_stride + at, count, x);
    for (int64_t j = 0; j < n; j++) add_scaled(m->dw + (from + j) * m->in + at, m->scale * y[j], x, PX_F32, 0, count);
  }
}

static void gradient_slice(const px_lora_args *a, int32_t id, int64_t from) {
  const px_lora_matrix *m = &a->mats[id];
  bool by_out = m->out >= m->in;
  int64_t length = by_out ? m->out : m->in, n = length - from < SLICE ? length - from : SLICE;
  for (int32_t s = 0; s < a->seqs; s++)
    for (int64_t t = a->offsets[s]; a->adapter[s] == id && t < a->offsets[s + 1]; t++) gradient_row(a, m, by_out, from, n, t);
}

/* The sequence that row t belongs to. */
static int32_t sequence_of(const px_lora_args *a, int64_t t) {
  int32_t low = 0, high = a->seqs - 1;
  while (low < high) {
    int32_t middle = low + (high - low + 1) / 2;
    if (a->offsets[middle] <= t)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

/* Rows [first, end): runs of rows with one matrix. */
static void product_rows(const px_lora_args *a, int64_t first, int64_t end) {
  for (int64_t t = first, last; t < end; t = last) {
    int32_t s = sequence_of(a, t), id = a->adapter[s];
    last = a->offsets[s + 1];
    for (int32_t q = s + 1; q < a->seqs && last < end && a->adapter[q] == id; q++) last = a->offsets[q + 1];
    if (last > end) last = end;
    const px_lora_matrix *m = id < 0 ? NULL : &a->mats[id];
    if (m && a->mode == PX_LORA_FWD && m->in <= NARROW)
      narrow_rows(a, m, t, last);
    else
      for (int64_t r = t; m && r < last; r++) product_row(a, m, r);
    for (int64_t r = t; r < last; r++) clear_rest(a, m, r);
  }
}

int px_lora_cpu(const px_lora_args *a) {
  int bad = 0;
  for (int32_t s = 0; s < a->seqs; s++) bad |= a->adapter[s] >= a->mat_count;
  if (bad || a->seqs == 0) return bad;
  int64_t first = a->offsets[0], end = a->offsets[a->seqs];
  bool wide = (end - first) * (a->x_dim + a->y_dim) >= PX_PARALLEL_MIN;
  if (a->mode == PX_LORA_DW) {
#pragma omp parallel if (wide)
    for (int32_t id = 0; id < a->mat_count; id++) {
      int64_t length = a->mats[id].out >= a->mats[id].in ? a->mats[id].out : a->mats[id].in;
#pragma omp for schedule(static) nowait
      for (int64_t from = 0; from < length; from += SLICE) gradient_slice(a, id, from);
    }
    return 0;
  }
  int64_t tiles = (end - first + TILE_ROWS - 1) / TILE_ROWS;
#pragma omp parallel for schedule(static) if (wide)
  for (int64_t tile = 0; tile < tiles; tile++) {
    int64_t from = first + tile * TILE_ROWS;
    product_rows(a, from, end - from < TILE_ROWS ? end : from + TILE_ROWS);
  }
  return 0;
}
