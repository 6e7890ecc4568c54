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

/* One row of FWD or DX; m NULL: the row takes no part. */
static void product_row(const px_lora_args *a, const px_lora_matrix *m, int64_t t) {
  bool fwd = a->mode == PX_LORA_FWD;
  const void *src = fwd ? a->x : a->y;
  void *dst = fwd ? a->y : a->x;
  int64_t src_at = t * (fwd ? a->x_stride : a->y_stride), dst_at = t * (fwd ? a->y_stride : a->x_stride);
  int64_t written = fwd ? a->y_dim : a->x_dim, live = m ? (fwd ? m->out : m->in) : 0;
  float sums[PX_PIECE], old[PX_PIECE];
  for (int64_t from = 0; from < live; from += PX_PIECE) {
    int64_t n = piece_of(from, live);
    product_piece(a, m, src, src_at, from, n, sums);
    if (a->accumulate) {
      px_load_row(dst, a->dtype, dst_at + from, n, old);
#pragma omp simd
      for (int64_t i = 0; i < n; i++) sums[i] = old[i] + m->scale * sums[i];
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) sums[i] *= m->scale;
    }
    px_store_row(dst, a->dtype, dst_at + from, n, sums);
  }
  size_t element = px_dtype_bytes(a->dtype, 1);
  if (!a->accumulate && written > live)
    memset((char *)dst + (size_t)(dst_at + live) * element, 0, (size_t)(written - live) * element);
}

/* One row of one matrix's gradient: all rows of its sequences in order. */
static void gradient_row(const px_lora_args *a, int32_t id, int64_t j) {
  const px_lora_matrix *m = &a->mats[id];
  for (int64_t from = 0; from < m->in; from += PX_PIECE) {
    int64_t n = piece_of(from, m->in);
    float *dw = m->dw + j * m->in + from;
    for (int32_t s = 0; s < a->seqs; s++)
      for (int64_t t = a->offsets[s]; a->adapter[s] == id && t < a->offsets[s + 1]; t++)
        add_scaled(dw, m->scale * px_get(a->y, a->dtype, t * a->y_stride + j), a->x, a->dtype, t * a->x_stride + from,
                   n);
  }
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

int px_lora_cpu(const px_lora_args *a) {
  int bad = 0;
  for (int32_t s = 0; s < a->seqs; s++) bad |= a->adapter[s] >= a->mat_count;
  if (bad || a->seqs == 0) return bad;
  int64_t first = a->offsets[0], end = a->offsets[a->seqs];
  bool wide = (end - first) * (a->x_dim + a->y_dim) >= PX_PARALLEL_MIN;
  if (a->mode == PX_LORA_DW) {
#pragma omp parallel if (wide)
    for (int32_t id = 0; id < a->mat_count; id++) {
#pragma omp for schedule(static) nowait
      for (int64_t j = 0; j < a->mats[id].out; j++) gradient_row(a, id, j);
    }
    return 0;
  }
#pragma omp parallel for schedule(static) if (wide)
  for (int64_t t = first; t < end; t++) {
    int32_t id = a->adapter[sequence_of(a, t)];
    product_row(a, id < 0 ? NULL : &a->mats[id], t);
  }
  return 0;
}
