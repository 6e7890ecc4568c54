/* SPDX-License-Identifier: MIT */
#include "kernels/kv_write.h"
#include "kernels/math_cpu.h"

const char *px_kv_write_check(const px_kv_write_args *a) {
  if (a->rows < 0 || a->dim < 1) return "rows or dim is out of range";
  if ((unsigned)a->dtype > PX_BF16) return "the type must be f32, f16 or bf16";
  if (a->k_stride < a->dim || a->v_stride < a->dim) return "a stride is shorter than its row";
  return a->rows && (!a->k || !a->v || !a->k_cache || !a->v_cache || !a->slots) ? "a pointer is missing" : NULL;
}

px_cost px_kv_write_cost(const px_kv_write_args *a) {
  return (px_cost){.bytes = (double)a->rows * (4.0 * (double)a->dim * (double)px_dtype_bytes(a->dtype, 1) + 8)};
}

int px_kv_write_cpu(const px_kv_write_args *a) {
  size_t e = px_dtype_bytes(a->dtype, 1), bytes = (size_t)a->dim * e;
  for (int64_t t = 0; t < a->rows; t++) {
    if (a->slots[t] < 0) continue;
    memcpy((char *)a->k_cache + (size_t)a->slots[t] * bytes, (const char *)a->k + (size_t)(t * a->k_stride) * e, bytes);
    memcpy((char *)a->v_cache + (size_t)a->slots[t] * bytes, (const char *)a->v + (size_t)(t * a->v_stride) * e, bytes);
  }
  return 0;
}
