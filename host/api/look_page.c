/* SPDX-License-Identifier: MIT */
#include "api/look.h"

void px_look_page(const pfx_inspection *i, const px_model *model, const px_adapter *adapter, const char *data, px_buf *out) {
  (void)i, (void)model, (void)adapter, (void)data;
  px_buf_puts(out, "<!doctype html>\n");
}
