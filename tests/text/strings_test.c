/* SPDX-License-Identifier: MIT
 * The generated strings are the ones that the committed digests were made from. */
#include "helpers/test.h"

#include "core/hash.h"
#include "helpers/strings.h"

static void same_bytes_everywhere(void **state) {
  (void)state;
  px_buf all = {0};
  for (uint32_t i = 0; i < 20000; ++i) {
    px_test_string(1, i, &all);
    px_buf_append(&all, "", 1);
  }
  assert_false(all.failed);
  char hex[65];
  px_sha256_of(all.data, all.len, hex);
  assert_string_equal(hex, "b5c45a40838918366da041b2978c75335653eeaa8424a63ec72d17fdb209094b");
  px_buf_free(&all);
}

static void no_nul_and_every_length(void **state) {
  (void)state;
  size_t shortest = 1000, longest = 0;
  for (uint32_t i = 0; i < 2000; ++i) {
    px_buf text = {0};
    px_test_string(1, i, &text);
    assert_null(text.len ? memchr(text.data, 0, text.len) : NULL);
    shortest = text.len < shortest ? text.len : shortest;
    longest = text.len > longest ? text.len : longest;
    px_buf_free(&text);
  }
  assert_int_equal(shortest, 0);
  assert_true(longest > 300);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(same_bytes_everywhere),
      cmocka_unit_test(no_nul_and_every_length),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
