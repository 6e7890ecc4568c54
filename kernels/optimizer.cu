/* SPDX-License-Identifier: MIT
 * AdamW and the sum of squares over a whole list of tensors, whose lengths only the device knows: grids of a fixed size
 * stride over every tensor, in words of 16 bytes where a tensor's parts begin at such. */
#include "kernels/device.cuh"
#include "kernels/optimizer.h"

enum { OPT_THREADS = 256, OPT_BLOCKS = 528 };

PX_DEVICE bool are_words(const float *p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

/* Part x of group y: each thread adds the elements of all the group's tensors that are its own in a stride of the whole
 * grid, then the block adds its threads. */
PX_KERNEL(OPT_THREADS) sum_sq_kernel(px_sum_sq_args a) {
  PX_SHARED(double, scratch, PX_WARP);
  const int64_t apart = (int64_t)PX_SUM_SQ_PARTS * OPT_THREADS;
  double sum = 0;
  for (int32_t i = 0; i < a.tensor_count; i++) {
    if (a.tensors[i].group != (int32_t)blockIdx.y) continue;
    const float *g = a.tensors[i].grad;
    int64_t count = a.tensors[i].count, whole = are_words(g) ? count / 4 * 4 : 0, mine = (int64_t)blockIdx.x * OPT_THREADS + threadIdx.x;
    for (int64_t e = 4 * mine; e < whole; e += 4 * apart) {
      float x[4];
      px_load<4>(g + e, x);
#pragma unroll
      for (int j = 0; j < 4; j++) sum += (double)x[j] * (double)x[j];
    }
    for (int64_t e = whole + mine; e < count; e += apart) sum += (double)g[e] * (double)g[e];
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

/* N neighbouring elements of a tensor. */
template <int N>
PX_DEVICE void update(const px_opt_tensor &t, const factors &f, int64_t e) {
  float g[N], m[N], v[N], w[N];
  px_load<N>(t.grad + e, g);
  px_load<N>(t.m + e, m);
  px_load<N>(t.v + e, v);
  px_load<N>(t.value + e, w);
#pragma unroll
  for (int j = 0; j < N; j++) {
    float x = g[j] * f.scale;
    m[j] = f.b1 * m[j] + (1.0f - f.b1) * x;
    v[j] = f.b2 * v[j] + (1.0f - f.b2) * x * x;
    w[j] = w[j] - f.lr * (m[j] * f.correct1 / (sqrtf(v[j] * f.correct2) + f.eps) + f.decay * w[j]);
  }
  px_store<N>(t.m + e, m);
  px_store<N>(t.v + e, v);
  px_store<N>(t.value + e, w);
}

template <int N>
PX_DEVICE void descend(const px_opt_tensor &t, const factors &f, int64_t e) {
  float g[N], w[N];
  px_load<N>(t.grad + e, g);
  px_load<N>(t.value + e, w);
#pragma unroll
  for (int j = 0; j < N; j++) w[j] = w[j] - f.lr * (g[j] * f.scale + f.decay * w[j]);
  px_store<N>(t.value + e, w);
}

/* Without moments. */
PX_KERNEL(OPT_THREADS) sgd_kernel(px_adamw_args a) {
  PX_SHARED(factors, shared, 1);
  const int64_t mine = (int64_t)blockIdx.x * OPT_THREADS + threadIdx.x, apart = (int64_t)gridDim.x * OPT_THREADS;
  for (int32_t i = 0; i < a.tensor_count; i++) {
    const px_opt_tensor t = a.tensors[i];
    if (a.groups[t.group].skipped) continue; /* the same for all threads */
    __syncthreads();
    if (threadIdx.x == 0) shared[0] = factors_of(a, t);
    __syncthreads();
    factors f = shared[0];
    int64_t whole = are_words(t.value) && are_words(t.grad) ? t.count / 4 * 4 : 0;
    for (int64_t e = 4 * mine; e < whole; e += 4 * apart) descend<4>(t, f, e);
    for (int64_t e = whole + mine; e < t.count; e += apart) descend<1>(t, f, e);
  }
}

PX_KERNEL(OPT_THREADS) adamw_kernel(px_adamw_args a) {
  PX_SHARED(factors, shared, 1);
  const int64_t mine = (int64_t)blockIdx.x * OPT_THREADS + threadIdx.x, apart = (int64_t)gridDim.x * OPT_THREADS;
  for (int32_t i = 0; i < a.tensor_count; i++) {
    const px_opt_tensor t = a.tensors[i];
    if (a.groups[t.group].skipped) continue; /* the same for all threads */
    __syncthreads();
    if (threadIdx.x == 0) shared[0] = factors_of(a, t);
    __syncthreads();
    factors f = shared[0];
    bool words = are_words(t.value) && are_words(t.grad) && are_words(t.m) && are_words(t.v);
    int64_t whole = words ? t.count / 4 * 4 : 0;
    for (int64_t e = 4 * mine; e < whole; e += 4 * apart) update<4>(t, f, e);
    for (int64_t e = whole + mine; e < t.count; e += apart) update<1>(t, f, e);
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
  if (a->tensor_count > 0 && a->sgd) PX_LAUNCH(sgd_kernel, OPT_BLOCKS, OPT_THREADS, 0, stream, *a);
  if (a->tensor_count > 0 && !a->sgd) PX_LAUNCH(adamw_kernel, OPT_BLOCKS, OPT_THREADS, 0, stream, *a);
  PX_LAUNCH(count_kernel, group_blocks, OPT_THREADS, 0, stream, *a);
  return PX_LAUNCHED();
}
