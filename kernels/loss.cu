/* SPDX-License-Identifier: MIT
 * Cross-entropy: a block per row goes over it twice. The first pass finds the largest and the sum of exp together (each
 * thread's sum is relative to the largest that it has met, and they are brought together at the end), the second writes the gradient
 * and finds a row of usual length in the cache. The losses are added up by a launch of their own, in order. */
#include "kernels/device.cuh"
#include "kernels/loss.h"

enum { LOSS_THREADS = 512, SUM_THREADS = 256 };

/* A row that only fills the batch up. */
template <typename T, int N>
PX_DEVICE float no_loss(const px_loss_args &a, T *z, int64_t whole) {
  if (!a.write_grad) return 0;
  float zeros[N] = {0};
  for (int64_t i = (int64_t)threadIdx.x * N; i < whole; i += LOSS_THREADS * N) px_store<N>(z + i, zeros);
  for (int64_t i = whole + threadIdx.x; i < a.vocab; i += LOSS_THREADS) z[i] = px_from_float<T>(0);
  return 0;
}

/* What a thread has met of a row: the largest, and the sum of exp(x - largest). Nothing above -inf yet: sum relative to 0, so
 * that a NaN is not lost. */
struct met {
  float best, sum;
};

template <int N>
PX_DEVICE void meet(met *m, const float *x) {
  float best = m->best;
#pragma unroll
  for (int j = 0; j < N; j++) best = fmaxf(best, x[j]);
  if (best > m->best) m->sum *= expf(m->best - best);
  m->best = best;
  float base = best > -INFINITY ? best : 0;
#pragma unroll
  for (int j = 0; j < N; j++) m->sum += expf(x[j] - base);
}

/* One row; its loss, in every thread. */
template <typename T, int N>
PX_DEVICE float row_loss(const px_loss_args &a, int64_t t, float *scratch) {
  T *z = static_cast<T *>(a.logits) + t * a.stride;
  int32_t target = a.targets[t];
  int64_t whole = a.vocab / N * N; /* what words cover */
  if (target == PX_NO_TARGET) return no_loss<T, N>(a, z, whole);
  if (target < 0 || target >= a.vocab) return NAN;
  met mine = {-INFINITY, 0};
  for (int64_t i = (int64_t)threadIdx.x * N; i < whole; i += LOSS_THREADS * N) {
    float x[N];
    px_load<N>(z + i, x);
    meet<N>(&mine, x);
  }
  for (int64_t i = whole + threadIdx.x; i < a.vocab; i += LOSS_THREADS) {
    float x = px_to_float(z[i]);
    meet<1>(&mine, &x);
  }
  float best = px_block_max(mine.best, scratch);
  if (!isfinite(best)) return NAN;
  float sum = px_block_sum(mine.best > -INFINITY ? mine.sum * expf(mine.best - best) : mine.sum, scratch);
  float loss = logf(sum) + (best - px_to_float(z[target])), scale = 1.0f / sum;
  if (!a.write_grad) return loss;
  __syncthreads(); /* everyone has read the target's logit */
  for (int64_t i = (int64_t)threadIdx.x * N; i < whole; i += LOSS_THREADS * N) {
    float x[N];
    px_load<N>(z + i, x);
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = expf(x[j] - best) * scale - (i + j == target ? 1.0f : 0.0f);
    px_store<N>(z + i, x);
  }
  for (int64_t i = whole + threadIdx.x; i < a.vocab; i += LOSS_THREADS)
    z[i] = px_from_float<T>(expf(px_to_float(z[i]) - best) * scale - (i == target ? 1.0f : 0.0f));
  return loss;
}

PX_DEVICE void add_loss(const px_loss_args &a, int64_t t, float loss) {
  a.loss_sum[a.group ? a.group[t] * a.loss_stride : 0] += (double)loss;
}

template <typename T, int N>
PX_KERNEL(LOSS_THREADS)
rows_kernel(px_loss_args a) {
  PX_SHARED(float, scratch, PX_WARP);
  float loss = row_loss<T, N>(a, blockIdx.x, scratch);
  if (threadIdx.x == 0 && a.row_loss) a.row_loss[blockIdx.x] = loss;
}

/* Where losses are to be added up but not to be kept: one block takes row after row. */
template <typename T, int N>
PX_KERNEL(LOSS_THREADS)
serial_kernel(px_loss_args a) {
  PX_SHARED(float, scratch, PX_WARP);
  for (int64_t t = 0; t < a.rows; t++) {
    float loss = row_loss<T, N>(a, t, scratch);
    if (threadIdx.x == 0) add_loss(a, t, loss);
  }
}

/* In the order of the rows, for each group: one thread adds, all of them fetch; sums stay in a register as long as rows of
 * one group follow one another. */
PX_KERNEL(SUM_THREADS) sum_kernel(px_loss_args a) {
  PX_SHARED(float, losses, SUM_THREADS);
  PX_SHARED(int32_t, groups, SUM_THREADS);
  int32_t group = -1;
  double sum = 0;
  for (int64_t from = 0; from < a.rows; from += SUM_THREADS) {
    int64_t t = from + threadIdx.x;
    if (t < a.rows) {
      losses[threadIdx.x] = a.row_loss[t];
      groups[threadIdx.x] = a.group ? a.group[t] : 0;
    }
    __syncthreads();
    for (int i = 0; threadIdx.x == 0 && i < SUM_THREADS && from + i < a.rows; i++) {
      if (groups[i] != group) {
        if (group >= 0) a.loss_sum[group * a.loss_stride] = sum;
        group = groups[i];
        sum = a.loss_sum[group * a.loss_stride];
      }
      sum += (double)losses[i];
    }
    __syncthreads();
  }
  if (group >= 0) a.loss_sum[group * a.loss_stride] = sum;
}

int px_loss_cuda(const px_loss_args *a, void *stream) {
  if (a->rows == 0) return 0;
  bool serial = a->loss_sum && !a->row_loss;
  PX_FOR_TYPE(a->dtype, T, {
    PX_FOR_WORD(px_aligned(a->logits, a->stride, 16 / (int)sizeof(T), sizeof(T)), T, N, {
      if (serial)
        PX_LAUNCH((serial_kernel<T, N>), 1, LOSS_THREADS, 0, stream, *a);
      else
        PX_LAUNCH((rows_kernel<T, N>), (unsigned)a->rows, LOSS_THREADS, 0, stream, *a);
    });
  });
  if (a->loss_sum && !serial) PX_LAUNCH(sum_kernel, 1, SUM_THREADS, 0, stream, *a);
  return PX_LAUNCHED();
}
