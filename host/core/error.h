/* SPDX-License-Identifier: MIT
 * Status and error record of every call that can fail.
 *
 * Convention: such a call returns px_status and takes `px_error *err` as its last argument (NULL is
 * allowed). On failure it returns px_fail(err, ...); callers pass the status on unchanged. A message says
 * what is wrong, where (file, field, line) and what to do, in one line, without a final full stop. */
#ifndef PX_CORE_ERROR_H
#define PX_CORE_ERROR_H

#include <stdarg.h>

/* The same values as pfx_status in pfx/pfx.h (api/ asserts it). Pinned: never renumber. */
typedef enum px_status {
  PX_OK = 0,
  PX_FAILED = 1,      /* anything without a better name */
  PX_INVALID = 2,     /* the caller's argument or option is wrong                    exit 2 */
  PX_BAD_FILE = 3,    /* an input file is missing, damaged, or not supported         exit 3 */
  PX_MISMATCH = 4,    /* adapter (or resumed state) does not fit the model           exit 4 */
  PX_NO_MEMORY = 5,   /* host or device memory                                       exit 5 */
  PX_NO_DEVICE = 6,   /* device or its library is absent or failed                   exit 5 */
  PX_IO = 7,          /* writing failed: disk full, no permission                    exit 1 */
  PX_CANCELLED = 8,   /* the caller asked to stop; state is saved                    exit 130 */
  PX_NOT_FINITE = 9,  /* loss or gradient norm became NaN or infinite                exit 1 */
} px_status;

typedef struct px_error {
  px_status status;
  int native; /* errno, or the library's own code; 0 if none */
  char message[1000];
} px_error;

#define PX_PRINTF(a, b) __attribute__((format(printf, a, b)))

/* Fills *err (when not NULL) and returns `status`. */
px_status px_fail(px_error *err, px_status status, const char *format, ...) PX_PRINTF(3, 4);
/* As px_fail, and appends ": strerror(errno_value)". */
px_status px_fail_errno(px_error *err, px_status status, int errno_value, const char *format, ...) PX_PRINTF(4, 5);
/* Puts "context: " in front of a message that a callee left; keeps its status, and returns it. */
px_status px_fail_in(px_error *err, px_status status, const char *format, ...) PX_PRINTF(3, 4);

/* Return early on failure. */
#define PX_TRY(call)                         \
  do {                                       \
    px_status try_status_ = (call);          \
    if (try_status_ != PX_OK) return try_status_; \
  } while (0)

#endif
