/* SPDX-License-Identifier: MIT */
#include "core/types.h"

const px_dtype_info *px_dtype_get(px_dtype t) {
  static const struct {
    px_dtype type;
    px_dtype_info info;
  } table[] = {
      {PX_F32, {"f32", 1, 4}},     {PX_F16, {"f16", 1, 2}},      {PX_BF16, {"bf16", 1, 2}},
      {PX_I32, {"i32", 1, 4}},     {PX_I64, {"i64", 1, 8}},      {PX_U8, {"u8", 1, 1}},
      {PX_Q8_0, {"q8_0", 32, 34}}, {PX_Q4_0, {"q4_0", 32, 18}},  {PX_Q4_1, {"q4_1", 32, 20}},
      {PX_Q5_0, {"q5_0", 32, 22}}, {PX_Q5_1, {"q5_1", 32, 24}},  {PX_Q4_K, {"q4_k", 256, 144}},
      {PX_Q5_K, {"q5_k", 256, 176}}, {PX_Q6_K, {"q6_k", 256, 210}},
  };
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)
    if (table[i].type == t) return &table[i].info;
  return NULL;
}

const char *px_dtype_name(px_dtype t) {
  const px_dtype_info *info = px_dtype_get(t);
  return info ? info->name : "?";
}

size_t px_dtype_bytes(px_dtype t, size_t elements) {
  const px_dtype_info *info = px_dtype_get(t);
  if (!info || elements % (size_t)info->block_elements) return 0;
  return elements / (size_t)info->block_elements * (size_t)info->block_bytes;
}
