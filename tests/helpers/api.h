/* SPDX-License-Identifier: MIT
 * For tests of the public header: calls that must succeed, and calls that must fail with an exact message. */
#ifndef PX_TESTS_API_H
#define PX_TESTS_API_H

#include <pfx/pfx.h>

#include "helpers/test.h"

/* A pfx_error named `err` is in scope. */
#define API_OK(call)                                                     \
  do {                                                                   \
    if ((call) != PFX_OK) fail_msg("%s failed: %s", #call, err.message); \
  } while (0)

#define API_FAILS(call, wanted_status, wanted_message) \
  do {                                                 \
    err = (pfx_error){0};                              \
    pfx_status got_ = (call);                          \
    assert_string_equal(err.message, wanted_message);  \
    assert_int_equal(got_, wanted_status);             \
    assert_int_equal(err.status, wanted_status);       \
  } while (0)

#endif
