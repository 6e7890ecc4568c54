/* SPDX-License-Identifier: MIT
 * What programs are told about a value of --tune. */
#include <pfx/pfx.h>

#include "helpers/test.h"

static void test_parts(void **state) {
  (void)state;
  pfx_error error = {0};
  pfx_tune_part part;
  int32_t count = 0;
  const char *tune = "prefix:20+lora:8:lr=2e-4+prompt:5:init=random+bias";
  assert_int_equal(pfx_tune_describe(tune, 0, &part, &count, &error), PFX_OK);
  assert_int_equal(count, 4);
  assert_string_equal(part.name, "prefix");
  assert_int_equal(part.virtual_tokens, 20);
  assert_true(part.lr == 0 && part.usual_lr == 3e-2);
  assert_int_equal(pfx_tune_describe(tune, 1, &part, &count, &error), PFX_OK);
  assert_string_equal(part.name, "lora");
  assert_int_equal(part.virtual_tokens, 0); /* its number is a rank */
  assert_true(part.lr == 2e-4 && part.usual_lr == 3e-3);
  assert_int_equal(pfx_tune_describe(tune, 2, &part, &count, &error), PFX_OK);
  assert_int_equal(part.virtual_tokens, 5);
  assert_int_equal(pfx_tune_describe(tune, 3, &part, &count, &error), PFX_OK);
  assert_string_equal(part.name, "bias");
  /* A network in between learns at another rate. */
  assert_int_equal(pfx_tune_describe("prefix:4:reparam=16", 0, &part, &count, &error), PFX_OK);
  assert_true(part.usual_lr == 1e-3);
}

static void test_refused(void **state) {
  (void)state;
  pfx_error error = {0};
  pfx_tune_part part;
  int32_t count = 7;
  assert_int_equal(pfx_tune_describe("prefix:2", 1, &part, &count, &error), PFX_INVALID);
  assert_string_equal(error.message, "--tune prefix:2 has 1 part");
  assert_int_equal(pfx_tune_describe("prefix:2+bias", -1, &part, &count, &error), PFX_INVALID);
  assert_string_equal(error.message, "--tune prefix:2+bias has 2 parts");
  assert_int_equal(pfx_tune_describe("prefix:none", 0, &part, &count, NULL), PFX_INVALID);
  assert_int_equal(count, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_parts), cmocka_unit_test(test_refused)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
