/* SPDX-License-Identifier: MIT
 * AdamW and the sum of squares over a whole list of tensors, whose lengths only the device knows: grids of a fixed size
 * stride over every tensor. */
#include "kernels/device.cuh"
#include "kernels/optimizer.h"

enum { OPT_THREADS = 256, OPT_BLOCKS = 528 };

/* Part x of group y: each thread adds the elements of all the group's tensors that are its own in a stride of the whole
 * grid, then the block adds its threads. */
PX_KERNEL(OPT_THREADS) sum_sq_kernel(px_sum_sq_args a) {
  PX_SHARED(double, scratch, PX_WARP);
  const int64_t apart = (int64_t)PX_SUM_SQ_PARTS * OPT_THREADS;
  double sum = 0;
  for (int32_t i = 0; i < a.tensor_count; i++) {
    if (a.tensors[i].group != (int32_t)blockIdx.y) continue;
    const float *g = a.tensors[i].grad;
    for (int64_t e = (int64_t)blockIdx.x * OPT_THREADS + threadIdx.x; e < a.tensors[i].count; e += apart)
      sum += (double)g[e] * (double)g[e];
  }
  sum = px_block_sum(sum, scratch);
  if (threadIdx.x == 0) a.workspace[blockIdx.y * PX_SUM_SQ_PARTS + blockIdx.x] = sum;
}

/* A block per group adds its parts. */
PX_KERNEL(PX_SUM_SQ_PARTS) join_kernel(px_sum_sq_args a) {
  PX_SHARED(double, scratch, PX_WARP);
  double sum = px_block_sum(a.workspace[blockIdx.x * PX_SUM_SQ_PARTS + threadIdx.x], scratch);
  if (threadIdx.x == 0) a.groups[blockIdx.x].sum_sq = sum;
}

/* Whether a group's step counts. */
PX_KERNEL(OPT_THREADS) judge_kernel(px_adamw_args a) {
  int32_t g = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
  if (g >= a.group_count) return;
  px_group *group = &a.groups[g];
  double n = (double)group->tokens, norm = sqrt(group->sum_sq) / n;
  group->grad_norm = (float)norm;
  if (group->skipped == PX_BAD_STEP) return;
  group->skipped = group->tokens <= 0                                ? PX_NOTHING_TO_DO
                   : isfinite(norm) && isfinite(group->loss_sum / n) ? PX_STEP_DONE
                                                                     : PX_BAD_STEP;
}

/* What is the same for all elements of a tensor. */
struct factors {
  float scale, lr, b1, b2, correct1, correct2, eps, decay;
};

PX_DEVICE factors factors_of(const px_adamw_args &a, const px_opt_tensor &t) {
  const px_group &group = a.groups[t.group];
  double step = (double)(group.step + 1), n = (double)group.tokens, norm = sqrt(group.sum_sq) / n, clip = 1;
  if (group.clip > 0 && (double)group.clip / (norm + 1e-6) < 1) clip = (double)group.clip / (norm + 1e-6);
  factors f;
  f.scale = (float)(clip / n);
  f.lr = group.lr * t.lr_scale;
  f.b1 = a.beta1;
  f.b2 = a.beta2;
  f.correct1 = (float)(1.0 / (1.0 - pow((double)a.beta1, step)));
  f.correct2 = (float)(1.0 / (1.0 - pow((double)a.beta2, step)));
  f.eps = a.eps;
  f.decay = t.weight_decay;
  return f;
}

PX_KERNEL(OPT_THREADS) adamw_kernel(px_adamw_args a) {
  PX_SHARED(factors, shared, 1);
  for (int32_t i = 0; i < a.tensor_count; i++) {
    const px_opt_tensor t = a.tensors[i];
    if (a.groups[t.group].skipped) continue; /* the same for all threads */
    __syncthreads();
    if (threadIdx.x == 0) shared[0] = factors_of(a, t);
    __syncthreads();
    factors f = shared[0];
    for (int64_t e = (int64_t)blockIdx.x * OPT_THREADS + threadIdx.x; e < t.count;
         e += (int64_t)gridDim.x * OPT_THREADS) {
      float g = t.grad[e] * f.scale;
      float m = f.b1 * t.m[e] + (1.0f - f.b1) * g, v = f.b2 * t.v[e] + (1.0f - f.b2) * g * g, w = t.value[e];
      t.m[e] = m;
      t.v[e] = v;
      t.value[e] = w - f.lr * (m * f.correct1 / (sqrtf(v * f.correct2) + f.eps) + f.decay * w);
    }
  }
}

PX_KERNEL(OPT_THREADS) count_kernel(px_adamw_args a) {
  int32_t g = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
  if (g < a.group_count) a.groups[g].step += !a.groups[g].skipped;
}

int px_sum_sq_cuda(const px_sum_sq_args *a, void *stream) {
  if (a->group_count == 0) return 0;
  PX_LAUNCH(sum_sq_kernel, dim3(PX_SUM_SQ_PARTS, (unsigned)a->group_count), OPT_THREADS, 0, stream, *a);
  PX_LAUNCH(join_kernel, (unsigned)a->group_count, PX_SUM_SQ_PARTS, 0, stream, *a);
  return PX_LAUNCHED();
}

int px_adamw_cuda(const px_adamw_args *a, void *stream) {
  if (a->group_count == 0) return 0;
  unsigned group_blocks = px_blocks(a->group_count, OPT_THREADS);
  PX_LAUNCH(judge_kernel, group_blocks, OPT_THREADS, 0, stream, *a);
  if (a->tensor_count > 0) PX_LAUNCH(adamw_kernel, OPT_BLOCKS, OPT_THREADS, 0, stream, *a);
  PX_LAUNCH(count_kernel, group_blocks, OPT_THREADS, 0, stream, *a);
  return PX_LAUNCHED();
}
