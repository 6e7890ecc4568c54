/* SPDX-License-Identifier: MIT */
#include "kernels/attention_merge.h"

#include "kernels/math_cpu.h"

const char *px_attn_merge_check(const px_attn_merge_args *a) {
  if ((unsigned)a->dtype > PX_BF16) return "the type must be f32, f16 or bf16";
  if (a->rows < 0 || a->heads < 1 || a->head_dim < 1 || a->head_dim > 256) return "rows, heads or head_dim is out of range";
  int64_t width = (int64_t)a->heads * a->head_dim;
  if (a->o_stride < width || (a->a.o && a->a.o_stride < width) || a->b.o_stride < width) return "a stride is shorter than its row";
  if (a->rows && (!a->b.o || !a->o)) return "a pointer is missing";
  if (a->a.o && !a->a.lse != !a->b.lse) return "both parts have statistics, or none has";
  if (a->lse && !a->b.lse) return "there are no statistics to join";
  return a->lse && (a->lse == a->a.lse || a->lse == a->b.lse) ? "the result's statistics are those of a part" : NULL;
}

const char *px_attn_ragged_check(const px_attn_ragged_args *a) {
  if (a->seqs < 0 || a->slots < a->seqs) return "slots must hold all sequences";
  if (a->tensors < 0 || a->tensors > PX_RAGGED_TENSORS) return "tensors is out of range";
  if (!a->offsets || !a->lens || (a->tensors && !a->starts)) return "a pointer is missing";
  if (!a->lse != !a->stats || (a->lse && (a->rows < 0 || a->heads < 1))) return "lse, stats, rows and heads go together";
  return NULL;
}

px_cost px_attn_merge_cost(const px_attn_merge_args *a) {
  double heads = (double)a->rows * a->heads, elements = heads * a->head_dim, size = (double)px_dtype_bytes(a->dtype, 1);
  double statistics = (a->a.lse ? 4.0 : 0.0) + (a->b.lse ? 4.0 : 0.0) + (a->lse ? 4.0 : 0.0);
  return (px_cost){.bytes = elements * size * (a->a.o ? 3 : 2) + heads * statistics,
                   .operations = a->a.lse ? elements * 3 + heads * 6 : a->a.o ? elements : 0};
}

px_cost px_attn_ragged_cost(const px_attn_ragged_args *a) {
  double starts = (double)a->tensors * (a->slots + 1.0), moved = a->lse ? (double)a->rows * a->heads : 0;
  return (px_cost){.bytes = 4.0 * (a->seqs + 1.0) + 4.0 * a->slots + 8.0 * starts + 8.0 * moved, .operations = starts + a->slots};
}

/* The parts' shares of a row's head, and its joined statistics. */
static float shares(const px_attn_merge_args *a, int64_t row, int64_t head, float *of_a, float *of_b) {
  *of_a = a->a.o ? 1 : 0;
  *of_b = 1;
  if (!a->b.lse) return 0;
  float x = a->a.o ? a->a.lse[row * a->a.lse_row + head * a->a.lse_head] : -INFINITY,
        y = a->b.lse[row * a->b.lse_row + head * a->b.lse_head], most = x > y ? x : y;
  if (most == -INFINITY) {
    *of_a = *of_b = 0;
    return -INFINITY;
  }
  float ea = px_exp(x - most), eb = px_exp(y - most);
  *of_a = ea / (ea + eb);
  *of_b = eb / (ea + eb);
  return most + logf(ea + eb);
}

int px_attn_merge_cpu(const px_attn_merge_args *a) {
#pragma omp parallel for
  for (int64_t row = 0; row < a->rows; row++)
    for (int64_t head = 0; head < a->heads; head++) {
      float of_a, of_b, lse = shares(a, row, head, &of_a, &of_b);
      if (a->lse) a->lse[row * a->lse_row + head * a->lse_head] = lse;
      for (int64_t i = head * a->head_dim; i < (head + 1) * a->head_dim; i++) {
        float x = of_a > 0 ? of_a * px_get(a->a.o, a->dtype, row * a->a.o_stride + i) : 0;
        if (of_b > 0) x += of_b * px_get(a->b.o, a->dtype, row * a->b.o_stride + i);
        px_put(a->o, a->dtype, row * a->o_stride + i, x);
      }
    }
  return 0;
}

int px_attn_ragged_cpu(const px_attn_ragged_args *a) {
  for (int64_t s = 0; s <= a->slots; s++) {
    int64_t from = a->offsets[s < a->seqs ? s : a->seqs];
    if (s < a->slots) a->lens[s] = s < a->seqs ? (int32_t)(a->offsets[s + 1] - from) : 0;
    for (int64_t n = 0; n < a->tensors; n++) a->starts[n * (a->slots + 1) + s] = from * a->strides[n];
  }
#pragma omp parallel for
  for (int64_t row = 0; row < (a->lse ? a->rows : 0); row++)
    for (int64_t head = 0; head < a->heads; head++) a->stats[row * a->heads + head] = a->lse[head * a->rows + row];
  return 0;
}
