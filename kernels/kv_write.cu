/* SPDX-License-Identifier: MIT
 * New keys and values into a cache: a block copies a row of each, in the widest word that the rows allow. */
#include "kernels/device.cuh"
#include "kernels/kv_write.h"

template <typename W>
PX_KERNEL(256)
kv_write_kernel(px_kv_write_args a, int64_t words, int64_t k_words, int64_t v_words) {
  int64_t slot = a.slots[blockIdx.x];
  if (slot < 0) return;
  const W *k = static_cast<const W *>(a.k) + blockIdx.x * k_words,
          *v = static_cast<const W *>(a.v) + blockIdx.x * v_words;
  W *k_to = static_cast<W *>(a.k_cache) + slot * words, *v_to = static_cast<W *>(a.v_cache) + slot * words;
  for (int64_t i = px_first_word(); i < words; i += px_words_apart()) {
    k_to[i] = k[i];
    v_to[i] = v[i];
  }
}

int px_kv_write_cuda(const px_kv_write_args *a, void *stream) {
  int64_t element = a->dtype == PX_F32 ? 4 : 2, bytes = a->dim * element, k = a->k_stride * element,
          v = a->v_stride * element;
  if (a->rows == 0) return 0;
  uintptr_t all = reinterpret_cast<uintptr_t>(a->k) | reinterpret_cast<uintptr_t>(a->v) |
                  reinterpret_cast<uintptr_t>(a->k_cache) | reinterpret_cast<uintptr_t>(a->v_cache) | (uintptr_t)bytes |
                  (uintptr_t)k | (uintptr_t)v;
  if (all % 16 == 0)
    PX_LAUNCH(kv_write_kernel<uint4>, px_row_grid(a->rows, bytes / 16), px_row_threads(bytes / 16), 0, stream, *a,
              bytes / 16, k / 16, v / 16);
  else
    PX_LAUNCH(kv_write_kernel<uint16_t>, px_row_grid(a->rows, bytes / 2), px_row_threads(bytes / 2), 0, stream, *a,
              bytes / 2, k / 2, v / 2);
  return PX_LAUNCHED();
}
