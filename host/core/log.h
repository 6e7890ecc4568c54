/* SPDX-License-Identifier: MIT
 * Messages of the library go to a callback that the caller owns; the library itself prints nothing. */
#ifndef PX_CORE_LOG_H
#define PX_CORE_LOG_H

#include "core/error.h"

typedef enum px_log_level { PX_LOG_ERROR = 0, PX_LOG_WARN = 1, PX_LOG_INFO = 2, PX_LOG_VERBOSE = 3 } px_log_level;

typedef struct px_log {
  void (*fn)(void *user, int level, const char *message); /* NULL: silent */
  void *user;
} px_log;

/* `log` may be NULL. One line, no final newline. */
void px_log_message(const px_log *log, px_log_level level, const char *format, ...) PX_PRINTF(3, 4);

#endif
