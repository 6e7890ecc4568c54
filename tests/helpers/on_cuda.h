/* SPDX-License-Identifier: MIT
 * Included before an operation's test to run it on the emulated device: the CPU kernel's name becomes a launch and a
 * wait. Emulated kernels read the test's own memory, guards and poison included. */
#ifndef PX_TESTS_ON_CUDA_H
#define PX_TESTS_ON_CUDA_H

#include <cuda_runtime_api.h>

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

#define PX_TEST_CUDA 1

/* What was launched has run; its error, or the launch's. */
static inline int px_on_cuda(int code) {
  int after = (int)cudaDeviceSynchronize();
  return code ? code : after;
}

#define px_embed_fwd_cpu(a) px_on_cuda(px_embed_fwd_cuda(a, NULL))
#define px_embed_bwd_cpu(a) px_on_cuda(px_embed_bwd_cuda(a, NULL))
#define px_norm_fwd_cpu(a) px_on_cuda(px_norm_fwd_cuda(a, NULL))
#define px_norm_bwd_cpu(a) px_on_cuda(px_norm_bwd_cuda(a, NULL))
#define px_lora_cpu(a) px_on_cuda(px_lora_cuda(a, NULL))
#define px_rope_cpu(a) px_on_cuda(px_rope_cuda(a, NULL))
#define px_attn_fwd_cpu(a) px_on_cuda(px_attn_fwd_cuda(a, NULL))
#define px_attn_bwd_cpu(a) px_on_cuda(px_attn_bwd_cuda(a, NULL))
#define px_attn_decode_cpu(a) px_on_cuda(px_attn_decode_cuda(a, NULL))
#define px_act_fwd_cpu(a) px_on_cuda(px_act_fwd_cuda(a, NULL))
#define px_act_bwd_cpu(a) px_on_cuda(px_act_bwd_cuda(a, NULL))
#define px_add_cpu(a) px_on_cuda(px_add_cuda(a, NULL))
#define px_scale_cpu(a) px_on_cuda(px_scale_cuda(a, NULL))
#define px_dropout_cpu(a) px_on_cuda(px_dropout_cuda(a, NULL))
#define px_cast_cpu(a) px_on_cuda(px_cast_cuda(a, NULL))
#define px_col_sum_cpu(a) px_on_cuda(px_col_sum_cuda(a, NULL))
#define px_gather_rows_cpu(a) px_on_cuda(px_gather_rows_cuda(a, NULL))
#define px_scatter_rows_cpu(a) px_on_cuda(px_scatter_rows_cuda(a, NULL))
#define px_loss_cpu(a) px_on_cuda(px_loss_cuda(a, NULL))
#define px_adamw_cpu(a) px_on_cuda(px_adamw_cuda(a, NULL))
#define px_sum_sq_cpu(a) px_on_cuda(px_sum_sq_cuda(a, NULL))
#define px_dequant_cpu(a) px_on_cuda(px_dequant_cuda(a, NULL))
#define px_kv_write_cpu(a) px_on_cuda(px_kv_write_cuda(a, NULL))
#define px_sample_cpu(a) px_on_cuda(px_sample_cuda(a, NULL))
#define px_gemm_plain_cpu(a) px_on_cuda(px_gemm_plain_cuda(a, NULL))

#endif
