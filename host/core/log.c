/* SPDX-License-Identifier: MIT */
#include "core/log.h"

#include <stdio.h>

void px_log_message(const px_log *log, px_log_level level, const char *format, ...) {
  if (!log || !log->fn) return;
  char text[2000];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  log->fn(log->user, (int)level, text);
}
