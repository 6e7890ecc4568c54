/* SPDX-License-Identifier: MIT
 * The operation table. Every backend fills every slot of PX_OPERATIONS; forward and backward call px_op_<name>.
 *
 * The first failure sticks: it is recorded in the backend, later operations do nothing, and whoever runs the step calls
 * px_backend_status once at its end. A backend is used by one thread at a time. Memory a backend allocates is only
 * touched by its operations and services ("device memory"); on the CPU backend it is ordinary memory and host_visible
 * is true. */
#ifndef PX_BACKEND_BACKEND_H
#define PX_BACKEND_BACKEND_H

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/types.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/dequant.h"
#include "kernels/elementwise.h"
#include "kernels/embed.h"
#include "kernels/gemm.h"
#include "kernels/kv_write.h"
#include "kernels/lora.h"
#include "kernels/loss.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"
#include "kernels/rope.h"
#include "kernels/sample.h"
#include "kernels/scale.h"

/* X(slot, argument struct, check function) */
#define PX_OPERATIONS(X)                                    \
  X(embed_fwd, px_embed_fwd_args, px_embed_fwd_check)       \
  X(embed_bwd, px_embed_bwd_args, px_embed_bwd_check)       \
  X(norm_fwd, px_norm_fwd_args, px_norm_fwd_check)          \
  X(norm_bwd, px_norm_bwd_args, px_norm_bwd_check)          \
  X(gemm, px_gemm_args, px_gemm_check)                      \
  X(lora_by_id, px_lora_args, px_lora_check)                \
  X(col_sum, px_col_sum_args, px_col_sum_check)             \
  X(rope, px_rope_args, px_rope_check)                      \
  X(attn_fwd, px_attn_fwd_args, px_attn_fwd_check)          \
  X(attn_bwd, px_attn_bwd_args, px_attn_bwd_check)          \
  X(attn_decode, px_attn_decode_args, px_attn_decode_check) \
  X(act_fwd, px_act_fwd_args, px_act_fwd_check)             \
  X(act_bwd, px_act_bwd_args, px_act_bwd_check)             \
  X(add, px_add_args, px_add_check)                         \
  X(scale_fwd, px_scale_fwd_args, px_scale_fwd_check)       \
  X(scale_bwd, px_scale_bwd_args, px_scale_bwd_check)       \
  X(dropout, px_dropout_args, px_dropout_check)             \
  X(gather_rows, px_rows_args, px_gather_rows_check)        \
  X(scatter_rows, px_rows_args, px_scatter_rows_check)      \
  X(loss, px_loss_args, px_loss_check)                      \
  X(adamw, px_adamw_args, px_adamw_check)                   \
  X(sum_sq, px_sum_sq_args, px_sum_sq_check)                \
  X(cast, px_cast_args, px_cast_check)                      \
  X(dequant, px_dequant_args, px_dequant_check)             \
  X(kv_write, px_kv_write_args, px_kv_write_check)          \
  X(sample, px_sample_args, px_sample_check)

typedef struct px_backend px_backend;

/* Operations and the plain services run in order in COMPUTE; COPY runs beside it, ordered by events alone. Where a backend
 * has no queues (the CPU), everything is done when it is asked for. */
typedef enum px_queue { PX_QUEUE_COMPUTE, PX_QUEUE_COPY } px_queue;
typedef struct px_event px_event;         /* a place in a queue */
typedef struct px_recording px_recording; /* operations of COMPUTE with their arguments; memory they name must live */

typedef struct px_backend_ops {
#define PX_SLOT(slot, args, check) int (*slot)(px_backend * be, const args *a);
  PX_OPERATIONS(PX_SLOT)
#undef PX_SLOT
  /* Services. alloc: 64-byte aligned, NULL when memory is out; contents undefined. */
  void (*close)(px_backend *be);
  void *(*alloc)(px_backend *be, size_t bytes);
  void (*free)(px_backend *be, void *p, size_t bytes); /* as allocated */
  int (*write)(px_backend *be, void *dst, const void *host, size_t bytes);
  int (*read)(px_backend *be, void *host, const void *src, size_t bytes); /* waits for the bytes */
  int (*copy)(px_backend *be, void *dst, const void *src, size_t bytes);
  int (*zero)(px_backend *be, void *dst, size_t bytes);
  int (*wait)(px_backend *be); /* for all queues */
  const char *(*error_text)(px_backend *be, int code);
  /* Work beside work (see px_queue), and work that is asked for once and done many times. */
  void *(*host_alloc)(px_backend *be, size_t bytes);
  void (*host_free)(px_backend *be, void *p);
  int (*event_new)(px_backend *be, px_event **out);
  void (*event_free)(px_backend *be, px_event *event);
  int (*send)(px_backend *be, px_queue queue, void *dst, const void *host, size_t bytes);
  int (*fetch)(px_backend *be, px_queue queue, void *host, const void *src, size_t bytes);
  int (*mark)(px_backend *be, px_queue queue, px_event *event);
  int (*after)(px_backend *be, px_queue queue, px_event *event);
  int (*reach)(px_backend *be, px_event *event);
  int (*record)(px_backend *be); /* these four: NULL where nothing can be recorded */
  int (*recorded)(px_backend *be, px_recording **out);
  int (*replay)(px_backend *be, px_recording *recording);
  void (*recording_free)(px_backend *be, px_recording *recording);
  int64_t (*free_bytes)(px_backend *be); /* -1: unknown */
  size_t (*attention_bytes)(px_backend *be, const px_attn_shape *shape, int64_t rows, bool backward); /* NULL: none */
  px_status (*choices)(px_backend *be, px_buf *out); /* these two: NULL where nothing is chosen by measurement */
  px_status (*repeat)(px_backend *be, const char *text);
} px_backend_ops;

enum {
#define PX_SLOT(slot, args, check) PX_OP_##slot,
  PX_OPERATIONS(PX_SLOT)
#undef PX_SLOT
      PX_OP_COUNT
};
const char *px_op_name(int op);

/* What px_backend_alloc handed out and nobody freed. */
typedef struct px_allocation {
  void *start;
  size_t bytes;
} px_allocation;

/* What does attention. AUTO: whatever was measured to be the fastest on the device; FUSED where nothing was. FUSED: our own
 * kernels. CUDNN: these for prefixes, cuDNN for own tokens, merged. */
typedef enum px_attention { PX_ATTENTION_AUTO, PX_ATTENTION_FUSED, PX_ATTENTION_CUDNN } px_attention;
const char *px_attention_name(px_attention attention); /* "cudnn"; "?" */
bool px_attention_parse(const char *name, px_attention *out);

/* Copies of frozen weights in the product library's own layout: faster, and much faster with few rows. TRANSPOSED: of
 * those with a row for each output (a forward pass's), which gain most; the backward pass reads them as they are. */
typedef enum px_pack { PX_PACK_NONE, PX_PACK_TRANSPOSED, PX_PACK_ALL } px_pack;

struct px_backend {
  const px_backend_ops *ops;
  const char *name;     /* "cpu", "cuda" */
  char device[16];      /* "cpu", "cuda:0": what opens another backend on the same device */
  const char *products; /* "oneDNN 2.6.3 (avx512_core_bf16)" or "plain C": what makes bits, recorded in run.json */
  bool host_visible;    /* its memory is ordinary memory */
  bool computes_bf16;   /* --dtype bf16 is worth it here */
  int threads;
  px_log log;
  px_error failure; /* the first one; status PX_OK: none */
  void *own;        /* the backend's own state */
  void *stream;     /* the device's own handle of COMPUTE; NULL where there is none */
  bool recording;   /* between px_backend_record and px_backend_recorded */
  bool profile;
  bool time_products;
  bool emulated; /* a stand-in for a device, for tests */
  px_pack pack_weights;
  px_attention attention; /* never AUTO */
  double op_seconds[PX_OP_COUNT]; /* where profile is on */
  int64_t op_calls[PX_OP_COUNT];
  size_t allocated_bytes, peak_bytes; /* by px_backend_alloc; now, and at most so far */
  px_allocation *allocations;
  size_t allocation_count, allocation_capacity;
};

typedef struct px_backend_options {
  const char *device; /* "cpu", "cuda", "cuda:N"; NULL: cpu */
  int threads;        /* 0: what OpenMP uses, by itself all cores the process may use */
  px_log log;
  bool profile;
  bool time_products; /* a shape's first product may wait for a measurement, where later ones gain by it */
  px_pack pack_weights;
  px_attention attention;
} px_backend_options;

/* The backend of options->device. Backends of one device share its memory: what one has written another may read once
 * the first has waited (px_backend_wait). PX_NO_DEVICE says what is missing. */
px_status px_backend_open(const px_backend_options *options, px_backend **out, px_error *err);
/* The CPU backend. Products: oneDNN where built in, else plain C. Opening it, and every operation, sets the number of
 * OpenMP threads of the calling thread. */
px_status px_backend_open_cpu(const px_backend_options *options, px_backend **out, px_error *err);
void px_backend_close(px_backend *be);

/* The sticky failure, once; clears it. */
px_status px_backend_status(px_backend *be, px_error *err);
void px_backend_fail(px_backend *be, px_status status, const char *what);

#define PX_SLOT(slot, args, check) void px_op_##slot(px_backend *be, const args *a);
PX_OPERATIONS(PX_SLOT)
#undef PX_SLOT

void *px_backend_alloc(px_backend *be, size_t bytes);     /* failure sticks too: PX_NO_MEMORY with the size; NULL */
void *px_backend_try_alloc(px_backend *be, size_t bytes); /* NULL when memory is out; nothing sticks */
void px_backend_free(px_backend *be, void *p);            /* NULL is fine */
int64_t px_backend_free_bytes(px_backend *be);            /* what could still be allocated; -1: nobody knows */
/* What attn_fwd or attn_bwd wants as scratch for calls of this shape (its arrays are not read) up to so many rows; mostly 0. */
size_t px_backend_attention_bytes(px_backend *be, const px_attn_shape *shape, int64_t rows, bool backward);
void px_backend_write(px_backend *be, void *dst, const void *host, size_t bytes);
void px_backend_read(px_backend *be, void *host, const void *src, size_t bytes);
void px_backend_copy(px_backend *be, void *dst, const void *src, size_t bytes);
void px_backend_zero(px_backend *be, void *dst, size_t bytes);
void px_backend_wait(px_backend *be);

/* Host memory that send and fetch need not wait for (pinned). NULL when memory is out; that sticks. */
void *px_backend_host_alloc(px_backend *be, size_t bytes);
void px_backend_host_free(px_backend *be, void *p); /* NULL is fine; after the queues have done with it */
px_event *px_backend_event(px_backend *be);         /* NULL: failed, and that sticks */
void px_backend_event_free(px_backend *be, px_event *event); /* NULL is fine */
/* Like write and read, in a queue, and nobody waits: `host` is of px_backend_host_alloc and stays as it is until an event
 * marked after the call is reached. */
void px_backend_send(px_backend *be, px_queue queue, void *dst, const void *host, size_t bytes);
void px_backend_fetch(px_backend *be, px_queue queue, void *host, const void *src, size_t bytes);
/* mark: the event is where all that the queue was given so far is done. after: what the queue is given from now on waits
 * for the event. reach: the caller waits for it. An event that was never marked is reached. */
void px_backend_mark(px_backend *be, px_queue queue, px_event *event);
void px_backend_after(px_backend *be, px_queue queue, px_event *event);
void px_backend_reach(px_backend *be, px_event *event);
/* From `record` to `recorded` what COMPUTE is given (operations, copy, zero; nothing else) is not done but kept. A failure
 * in between sticks, and px_backend_recorded then gives NULL; it must be called all the same. */
bool px_backend_can_record(const px_backend *be);
void px_backend_record(px_backend *be);
px_recording *px_backend_recorded(px_backend *be);
void px_backend_replay(px_backend *be, px_recording *recording);
void px_backend_recording_free(px_backend *be, px_recording *recording); /* NULL is fine */

/* What was chosen by measurement and changes bits (algorithms of products), as text; nothing is appended where nothing
 * was. A backend of the same device and libraries that is told it before its first operation chooses the same. */
px_status px_backend_choices(px_backend *be, px_buf *out, px_error *err);
px_status px_backend_repeat(px_backend *be, const char *text, px_error *err);

#endif
