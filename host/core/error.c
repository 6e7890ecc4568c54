/* SPDX-License-Identifier: MIT */
#include "core/error.h"

#include <stdio.h>
#include <string.h>

static void fill(px_error *err, px_status status, int native, const char *format, va_list args) {
  if (!err) return;
  err->status = status;
  err->native = native;
  vsnprintf(err->message, sizeof err->message, format, args);
  /* Names and texts of a file may stand in it: it stays one line, and no terminal obeys it. */
  for (char *c = err->message; *c; c++)
    if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
}

px_status px_fail(px_error *err, px_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  fill(err, status, 0, format, args);
  va_end(args);
  return status;
}

px_status px_fail_errno(px_error *err, px_status status, int errno_value, const char *format, ...) {
  va_list args;
  va_start(args, format);
  fill(err, status, errno_value, format, args);
  va_end(args);
  if (err) {
    size_t used = strlen(err->message);
    snprintf(err->message + used, sizeof err->message - used, ": %s", strerror(errno_value));
  }
  return status;
}

px_status px_fail_in(px_error *err, px_status status, const char *format, ...) {
  if (!err) return status;
  char inner[sizeof err->message];
  memcpy(inner, err->message, sizeof inner);
  int native = err->native;
  va_list args;
  va_start(args, format);
  fill(err, status, native, format, args);
  va_end(args);
  size_t used = strlen(err->message);
  snprintf(err->message + used, sizeof err->message - used, ": %s", inner);
  return status;
}
