/* SPDX-License-Identifier: MIT
 * The CPU backend: every slot is the operation's own _cpu.c but the product, which is a library's. */
#include <limits.h>
#include <omp.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "backend/backend.h"
#include "backend/gemm_product.h"
#include "core/free_memory.h"

enum { HUGE_PAGE = 2 << 20 };

/* The number of threads belongs to the thread that calls, and a backend may move between threads. */
static void use_threads(const px_backend *be) {
  if (omp_get_max_threads() != be->threads) omp_set_num_threads(be->threads);
}

#define DIRECT(slot, args)                         \
  static int slot(px_backend *be, const args *a) { \
    use_threads(be);                               \
    return px_##slot##_cpu(a);                     \
  }
DIRECT(embed_fwd, px_embed_fwd_args)
DIRECT(embed_bwd, px_embed_bwd_args)
DIRECT(norm_fwd, px_norm_fwd_args)
DIRECT(norm_bwd, px_norm_bwd_args)
DIRECT(col_sum, px_col_sum_args)
DIRECT(rope, px_rope_args)
DIRECT(attn_fwd, px_attn_fwd_args)
DIRECT(attn_bwd, px_attn_bwd_args)
DIRECT(attn_decode, px_attn_decode_args)
DIRECT(act_fwd, px_act_fwd_args)
DIRECT(act_bwd, px_act_bwd_args)
DIRECT(add, px_add_args)
DIRECT(scale_fwd, px_scale_fwd_args)
DIRECT(scale_bwd, px_scale_bwd_args)
DIRECT(dropout, px_dropout_args)
DIRECT(gather_rows, px_rows_args)
DIRECT(scatter_rows, px_rows_args)
DIRECT(loss, px_loss_args)
DIRECT(adamw, px_adamw_args)
DIRECT(sum_sq, px_sum_sq_args)
DIRECT(cast, px_cast_args)
DIRECT(dequant, px_dequant_args)
DIRECT(kv_write, px_kv_write_args)
DIRECT(sample, px_sample_args)
#undef DIRECT

static int lora_by_id(px_backend *be, const px_lora_args *a) {
  use_threads(be);
  return px_lora_cpu(a);
}

static int gemm(px_backend *be, const px_gemm_args *a) {
  use_threads(be);
  int code = px_product_gemm(be->own, a);
  if (!code && a->gelu) {
    px_act_fwd_args act = px_gemm_gelu(a);
    return px_act_fwd_cpu(&act);
  }
  if (!px_product_is_no_memory(code)) return -code;
  px_backend_fail(be, PX_NO_MEMORY, "cpu backend: gemm: no memory for the product's workspace");
  return 0;
}

static int64_t cpu_free_bytes(px_backend *be) {
  (void)be;
  return px_free_memory("");
}

static void cpu_close(px_backend *be) {
  px_product_close(be->own);
  free(be);
}

/* Large blocks are asked for in huge pages: rows of activations lie pages apart, so that with small pages every row of
 * every tensor costs a walk through the page tables. Asking is all it is; a kernel without them says no. */
static void *cpu_alloc(px_backend *be, size_t bytes) {
  (void)be;
  if (bytes > PTRDIFF_MAX - HUGE_PAGE) return NULL;
  void *p = NULL; /* aligned_alloc would want a whole number of huge pages */
  if (posix_memalign(&p, bytes < HUGE_PAGE ? 64 : HUGE_PAGE, (bytes + 63) & ~(size_t)63)) return NULL;
  if (bytes >= HUGE_PAGE) madvise(p, bytes, MADV_HUGEPAGE);
  return p;
}

static void cpu_free(px_backend *be, void *p, size_t bytes) {
  px_product_forget(be->own, p, bytes);
  free(p);
}

static int cpu_move(px_backend *be, void *dst, const void *src, size_t bytes) {
  (void)be;
  if (bytes) memmove(dst, src, bytes);
  return 0;
}

static int cpu_zero(px_backend *be, void *dst, size_t bytes) {
  (void)be;
  if (bytes) memset(dst, 0, bytes);
  return 0;
}

static int cpu_wait(px_backend *be) {
  (void)be;
  return 0;
}

/* One thread, one order: everything is done when it is asked for, and nothing is recorded. */
static void *cpu_host_alloc(px_backend *be, size_t bytes) {
  (void)be;
  return bytes > PTRDIFF_MAX - 64 ? NULL : aligned_alloc(64, (bytes + 63) & ~(size_t)63);
}

static void cpu_host_free(px_backend *be, void *p) {
  (void)be;
  free(p);
}

static int cpu_event_new(px_backend *be, px_event **out) {
  static char place; /* events need nothing but to be there */
  (void)be;
  *out = (px_event *)&place;
  return 0;
}

static void cpu_event_free(px_backend *be, px_event *event) {
  (void)be;
  (void)event;
}

static int cpu_queue_move(px_backend *be, px_queue queue, void *dst, const void *src, size_t bytes) {
  (void)queue;
  return cpu_move(be, dst, src, bytes);
}

static int cpu_queue_event(px_backend *be, px_queue queue, px_event *event) {
  (void)be;
  (void)queue;
  (void)event;
  return 0;
}

static int cpu_reach(px_backend *be, px_event *event) {
  (void)be;
  (void)event;
  return 0;
}

/* Once arguments are checked, what can fail is the product, whose codes are made negative, and indices in memory. */
static const char *cpu_error_text(px_backend *be, int code) {
  (void)be;
  return code < 0 ? px_product_error_text(-code) : "an id, index or position is out of range";
}

static const px_backend_ops cpu_ops = {
#define PX_SLOT(slot, args, check) .slot = slot,
    PX_OPERATIONS(PX_SLOT)
#undef PX_SLOT
        .close = cpu_close,
    .free_bytes = cpu_free_bytes,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .write = cpu_move,
    .read = cpu_move,
    .copy = cpu_move,
    .zero = cpu_zero,
    .wait = cpu_wait,
    .error_text = cpu_error_text,
    .host_alloc = cpu_host_alloc,
    .host_free = cpu_host_free,
    .event_new = cpu_event_new,
    .event_free = cpu_event_free,
    .send = cpu_queue_move,
    .fetch = cpu_queue_move,
    .mark = cpu_queue_event,
    .after = cpu_queue_event,
    .reach = cpu_reach,
};

enum { MOST_THREADS = 1024 }; /* the OpenMP runtime crashes where it cannot start them */

px_status px_backend_open_cpu(const px_backend_options *options, px_backend **out, px_error *err) {
  if (options->threads < 0 || options->threads > MOST_THREADS)
    return px_fail(err, PX_INVALID, "threads is %d: 0 (all cores) to %d can be", options->threads, MOST_THREADS);
  if (options->attention > PX_ATTENTION_FUSED)
    return px_fail(err, PX_INVALID, "--attention %s is for --device cuda: the CPU has auto and fused", px_attention_name(options->attention));
  px_backend *be = calloc(1, sizeof *be);
  if (!be) return px_fail(err, PX_NO_MEMORY, "no memory for the CPU backend");
  be->ops = &cpu_ops;
  be->name = "cpu";
  strcpy(be->device, "cpu");
  be->host_visible = true;
  be->threads = options->threads ? options->threads : omp_get_max_threads();
  be->log = options->log;
  be->profile = options->profile;
  be->pack_weights = options->pack_weights;
  be->attention = PX_ATTENTION_FUSED;
  use_threads(be);
  be->own = px_product_open(be);
  if (!be->own) {
    free(be);
    return px_fail(err, PX_NO_MEMORY, "no memory for the CPU backend");
  }
  be->products = px_product_name(be->own);
  be->computes_bf16 = px_product_has_bf16(be->own);
  *out = be;
  return PX_OK;
}
