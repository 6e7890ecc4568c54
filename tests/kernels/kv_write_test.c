/* SPDX-License-Identifier: MIT */
#include "helpers/kernel.h"

#include "kernels/kv_write.h"

static px_kv_write_args make(px_dtype type, int64_t rows, int64_t dim, int64_t slots, int64_t *slot) {
  int64_t k_stride = dim + gap_of(rows), v_stride = k_stride + gap_of(rows);
  return (px_kv_write_args){.dtype = type,
                            .rows = rows,
                            .dim = dim,
                            .k_stride = k_stride,
                            .v_stride = v_stride,
                            .k = numbers(type, rows, dim, k_stride, 1, 1),
                            .v = numbers(type, rows, dim, v_stride, 2, 1),
                            .k_cache = poison(type, slots, dim),
                            .v_cache = poison(type, slots, dim),
                            .slots = slot};
}

static void release(px_kv_write_args *a) {
  guarded_free((void *)(uintptr_t)a->k);
  guarded_free((void *)(uintptr_t)a->v);
  guarded_free(a->k_cache);
  guarded_free(a->v_cache);
}

/* Slots in a scattered order, every fifth row skipped: rows arrive whole and all other slots stay. */
static void rows_go_to_their_slots(void **state) {
  (void)state;
  static const int64_t dims[] = {1, 24, 192};
  static const px_dtype types[] = {PX_F32, PX_BF16, PX_F16};
  for (int type = 0; type < 3; type++)
    for (int r = 0; r < TEST_ROWS_COUNT; r++)
      for (int d = 0; d < 3; d++) {
        enum { SLOTS = 523 }; /* a prime, so that t * 37 is distinct */
        int64_t slot[257], rows = TEST_ROWS[r], dim = dims[d];
        size_t bytes = (size_t)dim * px_dtype_bytes(types[type], 1);
        bool used[SLOTS] = {false};
        for (int64_t t = 0; t < rows; t++) slot[t] = t % 5 == 4 ? -1 : t * 37 % SLOTS;
        px_kv_write_args a = make(types[type], rows, dim, SLOTS, slot);
        assert_null(px_kv_write_check(&a));
        assert_int_equal(px_kv_write_cpu(&a), 0);
        size_t element = px_dtype_bytes(types[type], 1);
        for (int64_t t = 0; t < rows; t++) {
          if (slot[t] < 0) continue;
          used[slot[t]] = true;
          assert_memory_equal((char *)a.k_cache + (size_t)slot[t] * bytes,
                              (const char *)a.k + (size_t)(t * a.k_stride) * element, bytes);
          assert_memory_equal((char *)a.v_cache + (size_t)slot[t] * bytes,
                              (const char *)a.v + (size_t)(t * a.v_stride) * element, bytes);
        }
        for (int64_t s = 0; s < SLOTS; s++)
          for (size_t i = 0; !used[s] && i < bytes; i++) {
            assert_int_equal(((unsigned char *)a.k_cache)[(size_t)s * bytes + i], 0xff);
            assert_int_equal(((unsigned char *)a.v_cache)[(size_t)s * bytes + i], 0xff);
          }
        release(&a);
      }
}

static void refusals(void **state) {
  (void)state;
  int64_t slot[] = {0};
  px_kv_write_args good = make(PX_F32, 1, 8, 1, slot);
  assert_null(px_kv_write_check(&good));
  REFUSED(px_kv_write_check, good, px_kv_write_args, b->rows = -1);
  REFUSED(px_kv_write_check, good, px_kv_write_args, b->dim = 0);
  REFUSED(px_kv_write_check, good, px_kv_write_args, b->k_stride = 7);
  REFUSED(px_kv_write_check, good, px_kv_write_args, b->v_stride = 7);
  REFUSED(px_kv_write_check, good, px_kv_write_args, b->dtype = PX_Q8_0);
  REFUSED(px_kv_write_check, good, px_kv_write_args, b->slots = NULL);
  REFUSED(px_kv_write_check, good, px_kv_write_args, b->v_cache = NULL);
  release(&good);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(rows_go_to_their_slots), cmocka_unit_test(refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
