/* SPDX-License-Identifier: MIT
 * Sizes, types, alignment and threads; the values of every quantised type stand in gguf_golden_test.c, against the gguf
 * package, and by hand here for the simplest. */
#include "kernels/dequant.h"

#include "helpers/kernel.h"

static const px_dtype TYPES[] = {PX_F32,  PX_F16,  PX_BF16, PX_Q8_0, PX_Q4_0, PX_Q4_1,
                                 PX_Q5_0, PX_Q5_1, PX_Q4_K, PX_Q5_K, PX_Q6_K};
enum { TYPE_COUNT = sizeof TYPES / sizeof *TYPES };

/* Bytes that make finite scales: no float16 with all bits of its exponent set. */
static uint8_t *blocks(px_dtype type, size_t bytes, size_t shift) {
  uint8_t *p = guarded(bytes + shift);
  for (size_t i = 0; i < bytes; i++) p[shift + i] = (uint8_t)(px_philox(3, 77, (uint32_t)type, i).v[0] & 0xbb);
  return p;
}

static void run(px_dtype type, px_dtype to, int64_t count, const void *src, void *dst) {
  px_dequant_args a = {.src_type = type, .dst_type = to, .count = count, .src = src, .dst = dst};
  assert_null(px_dequant_check(&a));
  assert_int_equal(px_dequant_cpu(&a), 0);
}

static void any_size_alignment_target_and_threads(void **state) {
  (void)state;
  static const int64_t counts[] = {0, 1, 2, 9, 257, 1031}; /* blocks */
  for (size_t i = 0; i < TYPE_COUNT; i++)
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
      int64_t count = counts[c] * px_dtype_get(TYPES[i])->block_elements;
      size_t bytes = px_dtype_bytes(TYPES[i], (size_t)count);
      uint8_t *src = blocks(TYPES[i], bytes, 0), *odd = blocks(TYPES[i], bytes, 3);
      float *want = poison(PX_F32, 1, count);
      uint16_t *half = poison(PX_BF16, 1, count);
      run(TYPES[i], PX_F32, count, src, want);
      for (int64_t e = 0; e < count; e++) assert_true(isfinite(want[e]));
      /* Block by block, on one thread, from an odd address. */
      omp_set_num_threads(1);
      for (int64_t b = 0; b < counts[c]; b += 1 + counts[c] / 9) {
        int64_t n = px_dtype_get(TYPES[i])->block_elements;
        float *alone = poison(PX_F32, 1, n);
        run(TYPES[i], PX_F32, n, odd + 3 + px_dtype_bytes(TYPES[i], (size_t)(b * n)), alone);
        assert_memory_equal(alone, want + b * n, (size_t)n * sizeof(float));
        guarded_free(alone);
      }
      omp_set_num_threads(2);
      run(TYPES[i], PX_BF16, count, odd + 3, half);
      for (int64_t e = 0; e < count; e++) assert_int_equal(half[e], px_f32_to_bf16(want[e]));
      guarded_free(src);
      guarded_free(odd);
      guarded_free(want);
      guarded_free(half);
    }
}

static void by_hand(void **state) {
  (void)state;
  float y[32];
  uint8_t q8[34] = {0x00, 0x38}, q4[18] = {0x00, 0x38}, q41[20] = {0x00, 0x38, 0x00, 0xc0}; /* 0.5; 0.5 and -2 */
  for (int i = 0; i < 32; i++) q8[2 + i] = (uint8_t)(int8_t)(4 * i - 64);
  for (int i = 0; i < 16; i++) q4[2 + i] = q41[4 + i] = (uint8_t)(i | (15 - i) << 4);
  run(PX_Q8_0, PX_F32, 32, q8, y);
  for (int i = 0; i < 32; i++) assert_true(y[i] == 0.5f * (float)(4 * i - 64));
  run(PX_Q4_0, PX_F32, 32, q4, y);
  for (int i = 0; i < 16; i++) assert_true(y[i] == 0.5f * (float)(i - 8) && y[16 + i] == 0.5f * (float)(7 - i));
  run(PX_Q4_1, PX_F32, 32, q41, y);
  for (int i = 0; i < 16; i++) assert_true(y[i] == 0.5f * (float)i - 2 && y[16 + i] == 0.5f * (float)(15 - i) - 2);
  const uint16_t halves[] = {0x3c00, 0xc000, 0x0001, 0x7c00, 0x8000}; /* 1, -2, the smallest, infinity, -0 */
  run(PX_F16, PX_F32, 5, halves, y);
  assert_true(y[0] == 1 && y[1] == -2 && y[2] == 0x1p-24f && isinf(y[3]) && y[4] == 0 && signbit(y[4]));
}

static void refusals(void **state) {
  (void)state;
  float src[64] = {0}, dst[64];
  px_dequant_args a = {.src_type = PX_Q4_0, .dst_type = PX_F32, .count = 32, .src = src, .dst = dst};
  assert_null(px_dequant_check(&a));
  REFUSED(px_dequant_check, a, px_dequant_args, b->count = 31);
  REFUSED(px_dequant_check, a, px_dequant_args, b->count = -32);
  REFUSED(px_dequant_check, a, px_dequant_args, b->src = NULL);
  REFUSED(px_dequant_check, a, px_dequant_args, b->dst = NULL);
  REFUSED(px_dequant_check, a, px_dequant_args, b->src_type = PX_I64);
  REFUSED(px_dequant_check, a, px_dequant_args, b->src_type = (px_dtype)-1);
  REFUSED(px_dequant_check, a, px_dequant_args, b->dst_type = PX_F16);
  REFUSED(px_dequant_check, a, px_dequant_args, b->dst_type = PX_Q4_0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(any_size_alignment_target_and_threads),
      cmocka_unit_test(by_hand),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
