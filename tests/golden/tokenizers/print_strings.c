/* SPDX-License-Identifier: MIT
 * Prints test strings of tests/helpers/strings.c for the Python script: each a u32 length and its bytes.
 *     print_strings SEED COUNT */
#include <stdio.h>
#include <stdlib.h>

#include "helpers/strings.h"

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  uint64_t seed = strtoull(argv[1], NULL, 10);
  uint32_t count = (uint32_t)strtoul(argv[2], NULL, 10);
  for (uint32_t i = 0; i < count; ++i) {
    px_buf text = {0};
    px_test_string(seed, i, &text);
    uint32_t bytes = (uint32_t)text.len;
    if (text.failed || fwrite(&bytes, sizeof bytes, 1, stdout) != 1) return 1;
    if (bytes && fwrite(text.data, 1, bytes, stdout) != bytes) return 1;
    px_buf_free(&text);
  }
  return 0;
}
