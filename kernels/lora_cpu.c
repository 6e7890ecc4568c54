/* SPDX-License-Identifier: MIT */
#include "kernels/lora.h"
#include "kernels/math_cpu.h"

const char *px_lora_check(const px_lora_args *a) {
  if (a->seqs < 0 || a->mat_count < 0) return "a count is negative";
  if (px_check_type(a->dtype) || px_check_type(a->w_type)) return "the type must be f32 or bf16";
  if (a->seqs && (!a->offsets || !a->adapter || !a->x || !a->y)) return "a pointer is missing";
  if (a->x_stride < a->x_dim || a->y_stride < a->y_dim) return "a stride is shorter than its row";
  for (int32_t i = 0; i < a->mat_count; i++) {
    if (a->mats[i].in < 0 || a->mats[i].out < 0 || a->mats[i].in > a->x_dim || a->mats[i].out > a->y_dim) return "a matrix exceeds its rows";
    if (a->mode == PX_LORA_DW ? !a->mats[i].dw : !a->mats[i].w) return "a matrix is missing";
  }
  return NULL;
}

/* One row of FWD or DX. */
static void product_row(const px_lora_args *a, const px_lora_matrix *m, int64_t t) {
  bool fwd = a->mode == PX_LORA_FWD;
  const void *src = fwd ? a->x : a->y;
  void *dst = fwd ? a->y : a->x;
  int64_t src_at = t * (fwd ? a->x_stride : a->y_stride), dst_at = t * (fwd ? a->y_stride : a->x_stride);
  int64_t written = fwd ? a->y_dim : a->x_dim, live = m ? (fwd ? m->out : m->in) : 0, inner = m ? (fwd ? m->in : m->out) : 0;
  for (int64_t j = 0; j < written; j++) {
    float sum = 0;
    for (int64_t i = 0; j < live && i < inner; i++)
      sum += px_get(src, a->dtype, src_at + i) * px_get(m->w, a->w_type, fwd ? j * m->in + i : i * m->in + j);
    if (j < live) sum *= m->scale;
    if (a->accumulate && j >= live) continue;
    px_put(dst, a->dtype, dst_at + j, a->accumulate ? px_get(dst, a->dtype, dst_at + j) + sum : sum);
  }
}

/* One row of one matrix's gradient: all its sequences in order. */
static void gradient_row(const px_lora_args *a, int32_t id, int64_t j) {
  const px_lora_matrix *m = &a->mats[id];
  for (int32_t s = 0; s < a->seqs; s++)
    for (int64_t t = a->offsets[s]; a->adapter[s] == id && t < a->offsets[s + 1]; t++) {
      float y = m->scale * px_get(a->y, a->dtype, t * a->y_stride + j);
      for (int64_t i = 0; i < m->in; i++) m->dw[j * m->in + i] += y * px_get(a->x, a->dtype, t * a->x_stride + i);
    }
}

int px_lora_cpu(const px_lora_args *a) {
  if (a->mode == PX_LORA_DW) {
    for (int32_t id = 0; id < a->mat_count; id++) {
#pragma omp parallel for schedule(static)
      for (int64_t j = 0; j < a->mats[id].out; j++) gradient_row(a, id, j);
    }
    return 0;
  }
  for (int32_t s = 0; s < a->seqs; s++) {
    const px_lora_matrix *m = a->adapter[s] >= 0 && a->adapter[s] < a->mat_count ? &a->mats[a->adapter[s]] : NULL;
#pragma omp parallel for schedule(static)
    for (int64_t t = a->offsets[s]; t < a->offsets[s + 1]; t++) product_row(a, m, t);
  }
  return 0;
}
