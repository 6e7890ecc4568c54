/* SPDX-License-Identifier: MIT
 * What the tests of attention share: a problem of random numbers between guard bytes, and its results in float64. */
#ifndef PX_TESTS_ATTENTION_H
#define PX_TESTS_ATTENTION_H

#include "helpers/kernel.h"
#include "kernels/attention.h"

/* A problem: sequences of these lengths, some with a segment. */
typedef struct problem {
  px_dtype type;
  int heads, kv_heads, dim, window, seqs, segments;
  px_mask mask;
  int32_t q_offsets[16], k_offsets[16], adapter[16];
  px_kv_segment seg[3];
  bool only_segments;
  bool plain; /* the specification instead of the fast path; on a device: rows that no tensor-core kernel takes */
  void *q, *k, *v, *o, *dout, *dq, *dk, *dv;
  float *lse;
  void *workspace;
  int64_t q_stride, kv_stride, rows, keys, segment_rows;
} problem;

static const px_dtype ATTENTION_TYPES[] = {PX_F32, PX_BF16, PX_F16};

static inline double attention_tolerance(px_dtype type) {
  return type == PX_F32 ? TOL_F32_ATTENTION : type == PX_BF16 ? TOL_BF16_ATTENTION : TOL_F16_ATTENTION;
}

static inline px_attn_shape shape_of(const problem *p) {
  return (px_attn_shape){.dtype = p->type,
                         .heads = p->heads,
                         .kv_heads = p->kv_heads,
                         .head_dim = p->dim,
                         .scale = (float)(1 / sqrt(p->dim)),
                         .mask = p->mask,
                         .window = p->window,
                         .seqs = p->seqs,
                         .q_rows = p->q_offsets[p->seqs],
                         .k_rows = p->k_offsets[p->seqs],
                         .q_offsets = p->q_offsets,
                         .k_offsets = p->k_offsets,
                         .adapter = p->adapter,
                         .segments = p->seg,
                         .segment_count = p->segments,
                         .segment_rows = (int32_t)p->segment_rows};
}

static inline void make(problem *p, const int *q_lens, const int *k_lens, const int *seg_lens) {
  int64_t width = (int64_t)p->kv_heads * p->dim;
  for (int s = 0; s < p->seqs; s++) {
    p->q_offsets[s + 1] = p->q_offsets[s] + q_lens[s];
    p->k_offsets[s + 1] = p->k_offsets[s] + k_lens[s];
    p->adapter[s] = s % (p->segments + 1) - 1;
  }
  p->rows = p->q_offsets[p->seqs];
  p->keys = p->k_offsets[p->seqs];
  bool words = p->type != PX_F32 && p->dim % 8 == 0; /* rows begin at multiples of 16 bytes */
  int64_t q_width = (int64_t)p->heads * p->dim, seg_stride = words ? width + 8 : width + 1;
  p->q_stride = words && !p->plain ? q_width + 8 : q_width + 3;
  p->kv_stride = words && !p->plain ? width + 16 : width + 5;
  p->q = numbers(p->type, p->rows, q_width, p->q_stride, 1, 2);
  p->k = numbers(p->type, p->keys, width, p->kv_stride, 2, 2);
  p->v = numbers(p->type, p->keys, width, p->kv_stride, 3, 1);
  p->dout = numbers(p->type, p->rows, q_width, p->q_stride, 4, 1);
  p->o = poison(p->type, p->rows, p->q_stride);
  p->dq = poison(p->type, p->rows, p->q_stride);
  p->dk = poison(p->type, p->keys, p->kv_stride);
  p->dv = poison(p->type, p->keys, p->kv_stride);
  p->lse = poison(PX_F32, 1, p->heads * p->rows);
  for (int i = 0; i < p->segments; i++) {
    p->segment_rows += seg_lens[i];
    p->seg[i] = (px_kv_segment){.k = numbers(p->type, seg_lens[i], width, seg_stride, 10 + (uint64_t)i, 2),
                                .v = numbers(p->type, seg_lens[i], width, seg_stride, 20 + (uint64_t)i, 1),
                                .stride = seg_stride,
                                .len = seg_lens[i],
                                .dk = guarded((size_t)(seg_lens[i] * width) * 4),
                                .dv = guarded((size_t)(seg_lens[i] * width) * 4),
                                .grad_stride = width};
    for (int64_t j = 0; j < seg_lens[i] * width; j++) p->seg[i].dk[j] = p->seg[i].dv[j] = 0.5f; /* accumulates */
  }
  px_attn_shape shape = shape_of(p);
  p->workspace = guarded(px_attn_bwd_workspace(&shape, p->rows > p->keys ? p->rows : p->keys, p->segment_rows));
}

static inline void release(problem *p) {
  void *all[] = {p->q, p->k, p->v, p->dout, p->o, p->dq, p->dk, p->dv, p->lse, p->workspace};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) guarded_free(all[i]);
  for (int i = 0; i < p->segments; i++) {
    guarded_free((void *)(uintptr_t)p->seg[i].k);
    guarded_free((void *)(uintptr_t)p->seg[i].v);
    guarded_free(p->seg[i].dk);
    guarded_free(p->seg[i].dv);
  }
}

static inline void forward(problem *p) {
  px_attn_fwd_args a = {.shape = shape_of(p),
                        .q = p->q,
                        .k = p->k,
                        .v = p->v,
                        .q_stride = p->q_stride,
                        .k_stride = p->kv_stride,
                        .v_stride = p->kv_stride,
                        .o_stride = p->q_stride,
                        .o = p->o,
                        .lse = p->lse};
  assert_null(px_attn_fwd_check(&a));
  assert_int_equal(p->plain ? px_attn_fwd_plain_cpu(&a) : px_attn_fwd_cpu(&a), 0);
}

static inline void backward(problem *p) {
  px_attn_bwd_args a = {.shape = shape_of(p),
                        .q = p->q,
                        .k = p->k,
                        .v = p->v,
                        .o = p->o,
                        .dout = p->dout,
                        .q_stride = p->q_stride,
                        .k_stride = p->kv_stride,
                        .v_stride = p->kv_stride,
                        .o_stride = p->q_stride,
                        .dout_stride = p->q_stride,
                        .dq_stride = p->q_stride,
                        .dk_stride = p->kv_stride,
                        .dv_stride = p->kv_stride,
                        .lse = p->lse,
                        .dq = p->only_segments ? NULL : p->dq,
                        .dk = p->only_segments ? NULL : p->dk,
                        .dv = p->only_segments ? NULL : p->dv,
                        .workspace = p->workspace};
  assert_null(px_attn_bwd_check(&a));
  assert_int_equal(p->plain ? px_attn_bwd_plain_cpu(&a) : px_attn_bwd_cpu(&a), 0);
}

typedef struct truth {
  double *o, *lse, *dq, *dk, *dv, *seg_dk[3], *seg_dv[3];
} truth;

/* Key j of sequence s at kv head g: the segment's first. Values likewise. */
static inline double key_at(const problem *p, int s, int64_t prefix, int64_t j, int64_t column, bool value) {
  const px_kv_segment *seg = p->adapter[s] >= 0 ? &p->seg[p->adapter[s]] : NULL;
  if (j < prefix) return (double)px_get(value ? seg->v : seg->k, p->type, j * seg->stride + column);
  return (double)px_get(value ? p->v : p->k, p->type, (p->k_offsets[s] + j - prefix) * p->kv_stride + column);
}

/* One query row: output, lse, and its part of every gradient. */
static inline void reference_row(const problem *p, int s, int64_t i, int h, truth *t) {
  int g = h / (p->heads / p->kv_heads);
  int64_t nq = p->q_offsets[s + 1] - p->q_offsets[s], nk = p->k_offsets[s + 1] - p->k_offsets[s],
          row = p->q_offsets[s] + i, d = p->dim;
  int64_t prefix = p->adapter[s] >= 0 ? p->seg[p->adapter[s]].len : 0, all = prefix + nk,
          width = (int64_t)p->kv_heads * d;
  double *score = doubles(all), sum = 0, best = -INFINITY, delta = 0, scale = (double)(float)(1 / sqrt(p->dim));
  double *o = t->o + row * p->heads * d + h * d;
  for (int64_t j = 0; j < all; j++) {
    int64_t own = j - prefix;
    bool seen =
        own < 0 || p->mask == PX_MASK_FULL || (own <= i + nk - nq && (!p->window || own > i + nk - nq - p->window));
    score[j] = seen ? 0 : -INFINITY;
    for (int64_t x = 0; seen && x < d; x++)
      score[j] += scale * (double)px_get(p->q, p->type, row * p->q_stride + h * d + x) *
                  key_at(p, s, prefix, j, g * d + x, false);
    best = fmax(best, score[j]);
  }
  for (int64_t j = 0; j < all && best > -INFINITY; j++) sum += exp(score[j] - best);
  t->lse[h * p->rows + row] = sum > 0 ? best + log(sum) : -INFINITY;
  for (int64_t j = 0; j < all; j++)
    for (int64_t x = 0; sum > 0 && x < d; x++)
      o[x] += exp(score[j] - best) / sum * key_at(p, s, prefix, j, g * d + x, true);
  for (int64_t x = 0; x < d; x++) delta += (double)px_get(p->dout, p->type, row * p->q_stride + h * d + x) * o[x];
  for (int64_t j = 0; j < all && sum > 0; j++) {
    double prob = exp(score[j] - best) / sum, dp = 0;
    for (int64_t x = 0; x < d; x++)
      dp += (double)px_get(p->dout, p->type, row * p->q_stride + h * d + x) * key_at(p, s, prefix, j, g * d + x, true);
    double ds = prob * (dp - delta) * scale;
    double *dk = j < prefix ? t->seg_dk[p->adapter[s]] + j * width : t->dk + (p->k_offsets[s] + j - prefix) * width;
    double *dv = j < prefix ? t->seg_dv[p->adapter[s]] + j * width : t->dv + (p->k_offsets[s] + j - prefix) * width;
    for (int64_t x = 0; x < d; x++) {
      t->dq[row * p->heads * d + h * d + x] += ds * key_at(p, s, prefix, j, g * d + x, false);
      dk[g * d + x] += ds * (double)px_get(p->q, p->type, row * p->q_stride + h * d + x);
      dv[g * d + x] += prob * (double)px_get(p->dout, p->type, row * p->q_stride + h * d + x);
    }
  }
  free(score);
}

/* The contract's equations in float64; segments' gradients start from 0.5, as make leaves them. */
static inline truth reference(const problem *p) {
  int64_t width = (int64_t)p->kv_heads * p->dim, q_width = (int64_t)p->heads * p->dim;
  truth t = {.o = doubles(p->rows * q_width),
             .lse = doubles(p->heads * p->rows),
             .dq = doubles(p->rows * q_width),
             .dk = doubles(p->keys * width),
             .dv = doubles(p->keys * width)};
  for (int i = 0; i < p->segments; i++) {
    t.seg_dk[i] = doubles(p->seg[i].len * width);
    t.seg_dv[i] = doubles(p->seg[i].len * width);
    for (int64_t j = 0; j < p->seg[i].len * width; j++) t.seg_dk[i][j] = t.seg_dv[i][j] = 0.5;
  }
  for (int s = 0; s < p->seqs; s++)
    for (int64_t i = 0; i < p->q_offsets[s + 1] - p->q_offsets[s]; i++)
      for (int h = 0; h < p->heads; h++) reference_row(p, s, i, h, &t);
  return t;
}

static inline void release_truth(truth *t) {
  for (int i = 0; i < 3; i++) free(t->seg_dk[i]), free(t->seg_dv[i]);
  free(t->o), free(t->lse), free(t->dq), free(t->dk), free(t->dv);
}

/* What forward and backward wrote. */
static inline void expect_truth(const problem *p, const truth *t) {
  int64_t width = (int64_t)p->kv_heads * p->dim, q_width = (int64_t)p->heads * p->dim;
  double tolerance = attention_tolerance(p->type);
  for (int64_t i = 0; i < p->heads * p->rows; i++)
    if (t->lse[i] == -INFINITY ? p->lse[i] != -INFINITY
                               : !(fabs((double)p->lse[i] - t->lse[i]) <= TOL_F32_LSE * fmax(1, fabs(t->lse[i]))))
      fail_msg("lse %lld is %g, not %g", (long long)i, (double)p->lse[i], t->lse[i]);
  expect_near("o", p->type, p->o, t->o, p->rows, q_width, p->q_stride, tolerance);
  expect_near_of(0.1, "dq", p->type, p->dq, t->dq, p->rows, q_width, p->q_stride, tolerance);
  expect_near_of(0.1, "dk", p->type, p->dk, t->dk, p->keys, width, p->kv_stride, tolerance);
  expect_near_of(0.1, "dv", p->type, p->dv, t->dv, p->keys, width, p->kv_stride, tolerance);
  for (int i = 0; i < p->segments; i++) {
    expect_near_of(0.1, "segment dk", PX_F32, p->seg[i].dk, t->seg_dk[i], p->seg[i].len, width, width, tolerance);
    expect_near_of(0.1, "segment dv", PX_F32, p->seg[i].dv, t->seg_dv[i], p->seg[i].len, width, width, tolerance);
  }
}

#endif
