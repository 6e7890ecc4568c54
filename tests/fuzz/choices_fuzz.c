/* SPDX-License-Identifier: MIT
 * Any bytes as a table of choices: what is read of it, printed and read again, is the same table. */
#include <stdlib.h>
#include <string.h>

#include "backend/product_choices.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  px_choices first = {0}, second = {0};
  px_buf text = {0}, printed = {0}, again = {0};
  px_buf_append(&text, data, size);
  if (px_choices_read(&first, text.data ? text.data : "", "a device, a library") != PX_OK) abort();
  px_choices_print(&first, "a device, a library", &printed);
  if (px_choices_read(&second, printed.data, "a device, a library") != PX_OK) abort();
  px_choices_print(&second, "a device, a library", &again);
  if (printed.len != again.len || memcmp(printed.data, again.data, again.len) != 0) abort();
  px_choices_free(&first);
  px_choices_free(&second);
  px_buf_free(&text);
  px_buf_free(&printed);
  px_buf_free(&again);
  return 0;
}
