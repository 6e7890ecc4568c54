/* SPDX-License-Identifier: MIT
 * Included before an operation's test to run it on a device: the CPU kernel's name becomes a launch and a wait. Kernels
 * read and write the test's own memory, guards and poison included: emulated ones as it is, real ones (PX_TEST_DEVICE)
 * because what the test allocates, and its stack, is pinned. */
#ifndef PX_TESTS_ON_CUDA_H
#define PX_TESTS_ON_CUDA_H

#include <cuda_runtime_api.h>

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/attention_merge.h"
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

#define PX_TEST_CUDA 1

#ifdef PX_TEST_DEVICE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static inline void *px_pinned(size_t bytes) {
  void *p = NULL;
  return cudaMallocHost(&p, bytes + 1) == cudaSuccess ? p : NULL;
}
static inline void *px_pinned_zero(size_t bytes) {
  void *p = px_pinned(bytes);
  return p ? memset(p, 0, bytes) : NULL;
}

int px_test_main(void);
static int px_test_result;
static void px_test_run(void) { px_test_result = px_test_main(); }

/* The test's own main runs on a stack that the device can read. Without a device the test is skipped. */
int main(void) {
  enum { STACK = 16 << 20 };
  static ucontext_t here, there;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    puts("skipped: no CUDA device");
    return 77;
  }
  void *stack = px_pinned(STACK);
  if (!stack || getcontext(&there) != 0) {
    puts("no pinned memory for a stack");
    return 1;
  }
  there.uc_stack.ss_sp = stack;
  there.uc_stack.ss_size = STACK;
  there.uc_link = &here;
  makecontext(&there, px_test_run, 0);
  if (swapcontext(&here, &there) != 0) return 1;
  return px_test_result;
}
#define main px_test_main
#define malloc(bytes) px_pinned(bytes)
#define calloc(count, bytes) px_pinned_zero((count) * (bytes))
#define aligned_alloc(alignment, bytes) px_pinned(bytes)
#define free(p) ((void)cudaFreeHost((void *)(p)))
#endif

/* What was launched has run; its error, or the launch's. */
static inline int px_on_cuda(int code) {
  int after = (int)cudaDeviceSynchronize();
  return code ? code : after;
}

#define px_embed_fwd_cpu(...) px_on_cuda(px_embed_fwd_cuda(__VA_ARGS__, NULL))
#define px_embed_bwd_cpu(...) px_on_cuda(px_embed_bwd_cuda(__VA_ARGS__, NULL))
#define px_norm_fwd_cpu(...) px_on_cuda(px_norm_fwd_cuda(__VA_ARGS__, NULL))
#define px_norm_bwd_cpu(...) px_on_cuda(px_norm_bwd_cuda(__VA_ARGS__, NULL))
#define px_lora_cpu(...) px_on_cuda(px_lora_cuda(__VA_ARGS__, NULL))
#define px_rope_cpu(...) px_on_cuda(px_rope_cuda(__VA_ARGS__, NULL))
#define px_attn_fwd_cpu(...) px_on_cuda(px_attn_fwd_cuda(__VA_ARGS__, NULL))
#define px_attn_bwd_cpu(...) px_on_cuda(px_attn_bwd_cuda(__VA_ARGS__, NULL))
#define px_attn_decode_cpu(...) px_on_cuda(px_attn_decode_cuda(__VA_ARGS__, NULL))
#define px_attn_merge_cpu(...) px_on_cuda(px_attn_merge_cuda(__VA_ARGS__, NULL))
#define px_attn_ragged_cpu(...) px_on_cuda(px_attn_ragged_cuda(__VA_ARGS__, NULL))
#define px_act_fwd_cpu(...) px_on_cuda(px_act_fwd_cuda(__VA_ARGS__, NULL))
#define px_act_bwd_cpu(...) px_on_cuda(px_act_bwd_cuda(__VA_ARGS__, NULL))
#define px_add_cpu(...) px_on_cuda(px_add_cuda(__VA_ARGS__, NULL))
#define px_scale_fwd_cpu(...) px_on_cuda(px_scale_fwd_cuda(__VA_ARGS__, NULL))
#define px_scale_bwd_cpu(...) px_on_cuda(px_scale_bwd_cuda(__VA_ARGS__, NULL))
#define px_dropout_cpu(...) px_on_cuda(px_dropout_cuda(__VA_ARGS__, NULL))
#define px_cast_cpu(...) px_on_cuda(px_cast_cuda(__VA_ARGS__, NULL))
#define px_col_sum_cpu(...) px_on_cuda(px_col_sum_cuda(__VA_ARGS__, NULL))
#define px_gather_rows_cpu(...) px_on_cuda(px_gather_rows_cuda(__VA_ARGS__, NULL))
#define px_scatter_rows_cpu(...) px_on_cuda(px_scatter_rows_cuda(__VA_ARGS__, NULL))
#define px_loss_cpu(...) px_on_cuda(px_loss_cuda(__VA_ARGS__, NULL))
#define px_adamw_cpu(...) px_on_cuda(px_adamw_cuda(__VA_ARGS__, NULL))
#define px_sum_sq_cpu(...) px_on_cuda(px_sum_sq_cuda(__VA_ARGS__, NULL))
#define px_dequant_cpu(...) px_on_cuda(px_dequant_cuda(__VA_ARGS__, NULL))
#define px_kv_write_cpu(...) px_on_cuda(px_kv_write_cuda(__VA_ARGS__, NULL))
#define px_sample_cpu(...) px_on_cuda(px_sample_cuda(__VA_ARGS__, NULL))
#define px_gemm_plain_cpu(...) px_on_cuda(px_gemm_plain_cuda(__VA_ARGS__, NULL))

#endif
