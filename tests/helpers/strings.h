/* SPDX-License-Identifier: MIT
 * Test strings for tokenizers, made by a seeded generator: the same bytes on every machine and in every version, so
 * that digests of what the `tokenizers` library makes of them can be committed (tests/golden/tokenizers/). */
#ifndef PX_TESTS_STRINGS_H
#define PX_TESTS_STRINGS_H

#include <stdint.h>

#include "core/memory.h"

/* Appends string `index` of the series `seed` to *out: 0 to 12 fragments, each of one of the kinds in strings.c
 * (words of every script, emoji, marks, digits, white space, controls, code, invalid UTF-8 ...). Never holds a NUL;
 * may be empty. Depends on nothing but (seed, index). */
void px_test_string(uint64_t seed, uint32_t index, px_buf *out);

#endif
