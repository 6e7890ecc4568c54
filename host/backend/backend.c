/* SPDX-License-Identifier: MIT
 * The wrappers of every operation and service: arguments are checked, the first failure sticks, time and memory are
 * counted. */
#include "backend/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "core/memory.h"

static const char *const op_names[] = {
#define PX_SLOT(slot, args, check) #slot,
    PX_OPERATIONS(PX_SLOT)
#undef PX_SLOT
};

const char *px_op_name(int op) { return op >= 0 && op < PX_OP_COUNT ? op_names[op] : "?"; }

static const char *const attention_names[] = {"auto", "fused", "cudnn"};

const char *px_attention_name(px_attention a) { return (unsigned)a <= PX_ATTENTION_CUDNN ? attention_names[a] : "?"; }

bool px_attention_parse(const char *name, px_attention *out) {
  for (int i = 0; i <= PX_ATTENTION_CUDNN; i++)
    if (strcmp(name, attention_names[i]) == 0) {
      *out = (px_attention)i;
      return true;
    }
  return false;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void px_backend_fail(px_backend *be, px_status status, const char *what) {
  if (be->failure.status == PX_OK) px_fail(&be->failure, status, "%s", what);
}

static void call_failed(px_backend *be, const char *call, int code) {
  if (be->failure.status != PX_OK) return;
  if (be->host_visible) px_fail(&be->failure, PX_FAILED, "%s backend: %s failed: %s", be->name, call, be->ops->error_text(be, code));
  else /* the call that hears of it may not be the one that caused it */
    px_fail(&be->failure, PX_NO_DEVICE, "%s backend: %s failed: %s (CUDA_LAUNCH_BLOCKING=1 and --no-graph name the operation)",
            be->name, call, be->ops->error_text(be, code));
  be->failure.native = code;
}

/* What is wrong with the arrays that arguments point to; looked at where the host can read them. */
static const char *wrong_arrays(int op, const void *args) {
  switch (op) {
    case PX_OP_attn_fwd:
      return px_attn_check_arrays(&((const px_attn_fwd_args *)args)->shape, false);
    case PX_OP_attn_bwd:
      return px_attn_check_arrays(&((const px_attn_bwd_args *)args)->shape, false);
    case PX_OP_attn_decode:
      return px_attn_check_arrays(&((const px_attn_decode_args *)args)->shape, true);
    case PX_OP_lora_by_id:
      return px_lora_check_arrays(args);
    case PX_OP_sample:
      return px_sample_check_arrays(args);
    case PX_OP_sum_sq:
      return px_sum_sq_check_arrays(args);
    case PX_OP_adamw:
      return px_adamw_check_arrays(args);
    default:
      return NULL;
  }
}

/* Whether an operation may run. */
static bool may_run(px_backend *be, int op, const void *args, const char *wrong) {
  if (!wrong && be->host_visible) wrong = wrong_arrays(op, args);
  if (wrong) px_fail(&be->failure, PX_INVALID, "%s backend: %s: %s", be->name, px_op_name(op), wrong);
  return !wrong;
}

static void count_call(px_backend *be, int op, double start) {
  be->op_seconds[op] += now() - start;
  be->op_calls[op]++;
}

#define PX_SLOT(slot, args, check)                                                      \
  void px_op_##slot(px_backend *be, const args *a) {                                    \
    if (be->failure.status != PX_OK || !may_run(be, PX_OP_##slot, a, check(a))) return; \
    double start = be->profile ? now() : 0;                                             \
    int code = be->ops->slot(be, a);                                                    \
    if (be->profile) count_call(be, PX_OP_##slot, start);                               \
    if (code) call_failed(be, #slot, code);                                             \
  }
PX_OPERATIONS(PX_SLOT)
#undef PX_SLOT

px_status px_backend_status(px_backend *be, px_error *err) {
  px_status status = be->failure.status;
  if (status != PX_OK && err) *err = be->failure;
  be->failure = (px_error){0};
  return status;
}

void px_backend_close(px_backend *be) {
  if (!be) return;
  px_allocation *list = be->allocations;
  be->ops->close(be);
  free(list);
}

void *px_backend_try_alloc(px_backend *be, size_t bytes) {
  if (px_reserve(&be->allocations, &be->allocation_capacity, be->allocation_count + 1, sizeof *be->allocations))
    return NULL;
  void *p = be->ops->alloc(be, bytes ? bytes : 1);
  if (!p) return NULL;
  be->allocations[be->allocation_count++] = (px_allocation){p, bytes};
  be->allocated_bytes += bytes;
  if (be->allocated_bytes > be->peak_bytes) be->peak_bytes = be->allocated_bytes;
  return p;
}

static void no_memory(px_backend *be, size_t bytes) {
  int64_t left = px_backend_free_bytes(be);
  char free_text[48] = "";
  if (left >= 0) snprintf(free_text, sizeof free_text, ", %.1f MB are free", (double)left / 1e6);
  px_fail(&be->failure, PX_NO_MEMORY, "%s backend: cannot allocate %.1f MB (%.1f MB are in use here%s)", be->name, (double)bytes / 1e6,
          (double)be->allocated_bytes / 1e6, free_text);
}

void *px_backend_alloc(px_backend *be, size_t bytes) {
  if (be->failure.status != PX_OK) return NULL;
  void *p = px_backend_try_alloc(be, bytes);
  if (!p) no_memory(be, bytes);
  return p;
}

/* The newest allocations tend to go first. */
static size_t forget_allocation(px_backend *be, const void *p) {
  for (size_t i = be->allocation_count; i-- > 0;) {
    if (be->allocations[i].start != p) continue;
    size_t bytes = be->allocations[i].bytes;
    be->allocations[i] = be->allocations[--be->allocation_count];
    be->allocated_bytes -= bytes;
    return bytes;
  }
  return 0;
}

void px_backend_free(px_backend *be, void *p) {
  if (p) be->ops->free(be, p, forget_allocation(be, p));
}

int64_t px_backend_free_bytes(px_backend *be) { return be->ops->free_bytes(be); }

size_t px_backend_attention_bytes(px_backend *be, const px_attn_shape *shape, int64_t rows, bool backward) {
  return be->ops->attention_bytes ? be->ops->attention_bytes(be, shape, rows, backward) : 0;
}

#define SERVICE(call, what)                \
  if (be->failure.status != PX_OK) return; \
  int code = be->ops->call;                \
  if (code) call_failed(be, what, code)

void px_backend_write(px_backend *be, void *dst, const void *host, size_t bytes) {
  SERVICE(write(be, dst, host, bytes), "write");
}
void px_backend_read(px_backend *be, void *host, const void *src, size_t bytes) {
  SERVICE(read(be, host, src, bytes), "read");
}
void px_backend_copy(px_backend *be, void *dst, const void *src, size_t bytes) {
  SERVICE(copy(be, dst, src, bytes), "copy");
}
void px_backend_zero(px_backend *be, void *dst, size_t bytes) { SERVICE(zero(be, dst, bytes), "zero"); }
void px_backend_wait(px_backend *be) { SERVICE(wait(be), "wait"); }

/* ---- queues and recordings ---- */

void *px_backend_host_alloc(px_backend *be, size_t bytes) {
  if (be->failure.status != PX_OK) return NULL;
  void *p = be->ops->host_alloc(be, bytes ? bytes : 1);
  if (!p)
    px_fail(&be->failure, PX_NO_MEMORY, "%s backend: cannot allocate %.1f MB of host memory", be->name, (double)bytes / 1e6);
  return p;
}

void px_backend_host_free(px_backend *be, void *p) {
  if (p) be->ops->host_free(be, p);
}

px_event *px_backend_event(px_backend *be) {
  if (be->failure.status != PX_OK) return NULL;
  px_event *event = NULL;
  int code = be->ops->event_new(be, &event);
  if (code) call_failed(be, "a new event", code);
  return code ? NULL : event;
}

void px_backend_event_free(px_backend *be, px_event *event) {
  if (event) be->ops->event_free(be, event);
}

void px_backend_send(px_backend *be, px_queue queue, void *dst, const void *host, size_t bytes) {
  SERVICE(send(be, queue, dst, host, bytes), "send");
}
void px_backend_fetch(px_backend *be, px_queue queue, void *host, const void *src, size_t bytes) {
  SERVICE(fetch(be, queue, host, src, bytes), "fetch");
}
void px_backend_mark(px_backend *be, px_queue queue, px_event *event) { SERVICE(mark(be, queue, event), "mark"); }
void px_backend_after(px_backend *be, px_queue queue, px_event *event) { SERVICE(after(be, queue, event), "after"); }
void px_backend_reach(px_backend *be, px_event *event) { SERVICE(reach(be, event), "reach"); }

bool px_backend_can_record(const px_backend *be) { return be->ops->record != NULL; }
void px_backend_record(px_backend *be) {
  SERVICE(record(be), "record");
  be->recording = code == 0;
}

px_recording *px_backend_recorded(px_backend *be) {
  px_recording *made = NULL;
  if (!be->recording) return NULL;
  be->recording = false;
  int code = be->ops->recorded(be, &made);
  if (code) call_failed(be, "recorded", code);
  if (be->failure.status == PX_OK) return made;
  px_backend_recording_free(be, made);
  return NULL;
}

void px_backend_replay(px_backend *be, px_recording *recording) { SERVICE(replay(be, recording), "replay"); }

void px_backend_recording_free(px_backend *be, px_recording *recording) {
  if (recording) be->ops->recording_free(be, recording);
}

/* ---- what was chosen by measurement ---- */

px_status px_backend_choices(px_backend *be, px_buf *out, px_error *err) {
  px_status status = be->ops->choices ? be->ops->choices(be, out) : PX_OK;
  return status == PX_OK ? PX_OK : px_fail(err, status, "no memory for the chosen algorithms");
}

px_status px_backend_repeat(px_backend *be, const char *text, px_error *err) {
  px_status status = be->ops->repeat ? be->ops->repeat(be, text) : PX_OK;
  return status == PX_OK ? PX_OK : px_fail(err, status, "no memory for the chosen algorithms");
}
