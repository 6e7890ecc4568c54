/* SPDX-License-Identifier: MIT
 * The wrappers of every operation and service: arguments are checked, the first failure sticks, time is counted. */
#include "backend/backend.h"

#include <time.h>

static const char *const op_names[] = {
#define PX_SLOT(slot, args, check) #slot,
    PX_OPERATIONS(PX_SLOT)
#undef PX_SLOT
};

const char *px_op_name(int op) { return op >= 0 && op < PX_OP_COUNT ? op_names[op] : "?"; }

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void px_backend_fail(px_backend *be, px_status status, const char *what) {
  if (be->failure.status == PX_OK) px_fail(&be->failure, status, "%s", what);
}

static void op_failed(px_backend *be, const char *op, int code) {
  if (be->failure.status != PX_OK) return;
  px_fail(&be->failure, PX_FAILED, "%s backend: %s failed: %s", be->name, op, be->ops->error_text(be, code));
  be->failure.native = code;
}

#define PX_SLOT(slot, args, check)                                                                               \
  void px_op_##slot(px_backend *be, const args *a) {                                                             \
    if (be->failure.status != PX_OK) return;                                                                     \
    const char *wrong = check(a);                                                                                \
    if (wrong) {                                                                                                 \
      px_fail(&be->failure, PX_INVALID, "%s backend: %s: %s", be->name, #slot, wrong);                           \
      return;                                                                                                    \
    }                                                                                                            \
    double start = be->profile ? now() : 0;                                                                      \
    int code = be->ops->slot(be, a);                                                                             \
    if (be->profile) {                                                                                           \
      be->op_seconds[PX_OP_##slot] += now() - start;                                                             \
      be->op_calls[PX_OP_##slot]++;                                                                              \
    }                                                                                                            \
    if (code) op_failed(be, #slot, code);                                                                        \
  }
PX_OPERATIONS(PX_SLOT)
#undef PX_SLOT

px_status px_backend_status(px_backend *be, px_error *err) {
  px_status status = be->failure.status;
  if (status != PX_OK && err) *err = be->failure;
  be->failure.status = PX_OK;
  return status;
}

void px_backend_close(px_backend *be) {
  if (be) be->ops->close(be);
}


void *px_backend_alloc(px_backend *be, size_t bytes) {
  if (be->failure.status != PX_OK) return NULL;
  void *p = be->ops->alloc(be, bytes ? bytes : 1);
  if (!p)
    px_fail(&be->failure, PX_NO_MEMORY, "%s backend: cannot allocate %.1f MB", be->name, (double)bytes / 1e6);
  else
    be->allocated_bytes += bytes;
  if (be->allocated_bytes > be->peak_bytes) be->peak_bytes = be->allocated_bytes;
  return p;
}

void px_backend_free(px_backend *be, void *p) {
  if (p) be->ops->free(be, p);
}

#define SERVICE(call, what)                                     \
  if (be->failure.status != PX_OK) return;                      \
  int code = be->ops->call;                                     \
  if (code) op_failed(be, what, code)

void px_backend_write(px_backend *be, void *dst, const void *host, size_t bytes) { SERVICE(write(be, dst, host, bytes), "write"); }
void px_backend_read(px_backend *be, void *host, const void *src, size_t bytes) { SERVICE(read(be, host, src, bytes), "read"); }
void px_backend_copy(px_backend *be, void *dst, const void *src, size_t bytes) { SERVICE(copy(be, dst, src, bytes), "copy"); }
void px_backend_zero(px_backend *be, void *dst, size_t bytes) { SERVICE(zero(be, dst, bytes), "zero"); }
void px_backend_wait(px_backend *be) { SERVICE(wait(be), "wait"); }
