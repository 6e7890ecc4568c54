/* SPDX-License-Identifier: MIT
 * Any bytes as JSON: refused in one line, or written and read again as the same value. */
#include <stdlib.h>
#include <string.h>

#include "format/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  json_t *value = NULL, *again = NULL;
  px_error err = {0};
  px_buf text = {0};
  if (px_json_parse("fuzz", (const char *)data, size, &value, &err) != PX_OK) {
    if (value || !err.message[0] || strchr(err.message, '\n')) abort();
    return 0;
  }
  if (px_json_dump(value, &text, &err) != PX_OK) abort();
  for (size_t i = 0; i < text.len; i++)
    if ((unsigned char)text.data[i] >= 0x7f) abort();
  if (px_json_parse("fuzz", text.data, text.len, &again, &err) != PX_OK || !json_equal(value, again)) abort();
  json_decref(value);
  json_decref(again);
  px_buf_free(&text);
  return 0;
}
