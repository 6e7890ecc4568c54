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

#define px_embed_fwd_cpu(...) px_on_cuda(px_embed_fwd_cuda(__VA_ARGS__, NULL))
#define px_embed_bwd_cpu(...) px_on_cuda(px_embed_bwd_cuda(__VA_ARGS__, NULL))
#define px_norm_fwd_cpu(...) px_on_cuda(px_norm_fwd_cuda(__VA_ARGS__, NULL))
#define px_norm_bwd_cpu(...) px_on_cuda(px_norm_bwd_cuda(__VA_ARGS__, NULL))
#define px_lora_cpu(...) px_on_cuda(px_lora_cuda(__VA_ARGS__, NULL))
#define px_rope_cpu(...) px_on_cuda(px_rope_cuda(__VA_ARGS__, NULL))
#define px_attn_fwd_cpu(...) px_on_cuda(px_attn_fwd_cuda(__VA_ARGS__, NULL))
#define px_attn_bwd_cpu(...) px_on_cuda(px_attn_bwd_cuda(__VA_ARGS__, NULL))
#define px_attn_decode_cpu(...) px_on_cuda(px_attn_decode_cuda(__VA_ARGS__, NULL))
#define px_act_fwd_cpu(...) px_on_cuda(px_act_fwd_cuda(__VA_ARGS__, NULL))
#define px_act_bwd_cpu(...) px_on_cuda(px_act_bwd_cuda(__VA_ARGS__, NULL))
#define px_add_cpu(...) px_on_cuda(px_add_cuda(__VA_ARGS__, NULL))
#define px_scale_cpu(...) px_on_cuda(px_scale_cuda(__VA_ARGS__, NULL))
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
