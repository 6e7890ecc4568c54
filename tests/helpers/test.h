/* SPDX-License-Identifier: MIT
 * What every test includes: cmocka with its prerequisites, and assertions on px_status with the message shown. */
#ifndef PX_TESTS_TEST_H
#define PX_TESTS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/error.h"

#define ASSERT_OK(call)                                                 \
  do {                                                                  \
    if ((call) != PX_OK) fail_msg("%s failed: %s", #call, err.message); \
  } while (0)

/* The status and the exact message of a failure. */
#define ASSERT_FAILS(call, wanted_status, wanted_message) \
  do {                                                    \
    err.message[0] = 0;                                   \
    px_status got_ = (call);                              \
    assert_string_equal(err.message, wanted_message);     \
    assert_int_equal(got_, wanted_status);                \
  } while (0)

/* Environment variable or fallback. */
static inline const char *test_env(const char *name, const char *fallback) {
  const char *value = getenv(name);
  return value && *value ? value : fallback;
}
#define TEST_SOURCE_DIR test_env("PFX_SOURCE_DIR", ".")
#define TEST_SHARED_DIR test_env("PFX_SHARED_DIR", "../shared")

#endif
