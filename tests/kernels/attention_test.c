/* SPDX-License-Identifier: MIT
 * Attention over [shared prefix | own tokens] against the contract's equations in float64. */
#include "helpers/kernel.h"

#include "kernels/attention.h"

/* A problem: sequences of these lengths, some with a segment. */
typedef struct problem {
  px_dtype type;
  int heads, kv_heads, dim, window, seqs, segments;
  px_mask mask;
  int32_t q_offsets[16], k_offsets[16], adapter[16];
  px_kv_segment seg[3];
  void *q, *k, *v, *o, *dout, *dq, *dk, *dv;
  float *lse;
  void *workspace;
  int64_t q_stride, kv_stride, rows, keys, segment_rows;
} problem;

static px_attn_shape shape_of(const problem *p) {
  return (px_attn_shape){.dtype = p->type,
                         .heads = p->heads,
                         .kv_heads = p->kv_heads,
                         .head_dim = p->dim,
                         .scale = (float)(1 / sqrt(p->dim)),
                         .mask = p->mask,
                         .window = p->window,
                         .seqs = p->seqs,
                         .q_offsets = p->q_offsets,
                         .k_offsets = p->k_offsets,
                         .adapter = p->adapter,
                         .segments = p->seg,
                         .segment_count = p->segments};
}

static void make(problem *p, const int *q_lens, const int *k_lens, const int *seg_lens) {
  int64_t width = (int64_t)p->kv_heads * p->dim;
  for (int s = 0; s < p->seqs; s++) {
    p->q_offsets[s + 1] = p->q_offsets[s] + q_lens[s];
    p->k_offsets[s + 1] = p->k_offsets[s] + k_lens[s];
    p->adapter[s] = s % (p->segments + 1) - 1;
  }
  p->rows = p->q_offsets[p->seqs];
  p->keys = p->k_offsets[p->seqs];
  p->q_stride = (int64_t)p->heads * p->dim + 3;
  p->kv_stride = width + 5;
  p->q = numbers(p->type, p->rows, p->q_stride - 3, p->q_stride, 1, 2);
  p->k = numbers(p->type, p->keys, width, p->kv_stride, 2, 2);
  p->v = numbers(p->type, p->keys, width, p->kv_stride, 3, 1);
  p->dout = numbers(p->type, p->rows, p->q_stride - 3, p->q_stride, 4, 1);
  p->o = poison(p->type, p->rows, p->q_stride);
  p->dq = poison(p->type, p->rows, p->q_stride);
  p->dk = poison(p->type, p->keys, p->kv_stride);
  p->dv = poison(p->type, p->keys, p->kv_stride);
  p->lse = poison(PX_F32, 1, p->heads * p->rows);
  for (int i = 0; i < p->segments; i++) {
    p->segment_rows += seg_lens[i];
    p->seg[i] = (px_kv_segment){.k = numbers(p->type, seg_lens[i], width, width + 1, 10 + (uint64_t)i, 2),
                                .v = numbers(p->type, seg_lens[i], width, width + 1, 20 + (uint64_t)i, 1),
                                .stride = width + 1,
                                .len = seg_lens[i],
                                .dk = guarded((size_t)(seg_lens[i] * width) * 4),
                                .dv = guarded((size_t)(seg_lens[i] * width) * 4),
                                .grad_stride = width};
    for (int64_t j = 0; j < seg_lens[i] * width; j++) p->seg[i].dk[j] = p->seg[i].dv[j] = 0.5f; /* accumulates */
  }
  px_attn_shape shape = shape_of(p);
  p->workspace = guarded(px_attn_bwd_workspace(&shape, p->rows > p->keys ? p->rows : p->keys, p->segment_rows));
}

static void release(problem *p) {
  void *all[] = {p->q, p->k, p->v, p->dout, p->o, p->dq, p->dk, p->dv, p->lse, p->workspace};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) guarded_free(all[i]);
  for (int i = 0; i < p->segments; i++) {
    guarded_free((void *)(uintptr_t)p->seg[i].k);
    guarded_free((void *)(uintptr_t)p->seg[i].v);
    guarded_free(p->seg[i].dk);
    guarded_free(p->seg[i].dv);
  }
}

static void forward(problem *p) {
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
  assert_int_equal(px_attn_fwd_cpu(&a), 0);
}

static void backward(problem *p) {
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
                        .dq = p->dq,
                        .dk = p->dk,
                        .dv = p->dv,
                        .workspace = p->workspace};
  assert_null(px_attn_bwd_check(&a));
  assert_int_equal(px_attn_bwd_cpu(&a), 0);
}

typedef struct truth {
  double *o, *lse, *dq, *dk, *dv, *seg_dk[3], *seg_dv[3];
} truth;

/* Key j of sequence s at kv head g: the segment's first. Values likewise. */
static double key_at(const problem *p, int s, int64_t prefix, int64_t j, int64_t column, bool value) {
  const px_kv_segment *seg = p->adapter[s] >= 0 ? &p->seg[p->adapter[s]] : NULL;
  if (j < prefix) return (double)px_get(value ? seg->v : seg->k, p->type, j * seg->stride + column);
  return (double)px_get(value ? p->v : p->k, p->type, (p->k_offsets[s] + j - prefix) * p->kv_stride + column);
}

/* One query row: output, lse, and its part of every gradient. */
static void reference_row(const problem *p, int s, int64_t i, int h, truth *t) {
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

static void compare(problem *p) {
  int64_t width = (int64_t)p->kv_heads * p->dim, q_width = (int64_t)p->heads * p->dim;
  double tolerance = p->type == PX_F32 ? TOL_F32_ATTENTION : TOL_BF16_ATTENTION;
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
  forward(p);
  backward(p);
  for (int64_t i = 0; i < p->heads * p->rows; i++)
    if (t.lse[i] == -INFINITY ? p->lse[i] != -INFINITY
                              : !(fabs((double)p->lse[i] - t.lse[i]) <= 1e-5 * fmax(1, fabs(t.lse[i]))))
      fail_msg("lse %lld is %g, not %g", (long long)i, (double)p->lse[i], t.lse[i]);
  expect_near("o", p->type, p->o, t.o, p->rows, q_width, p->q_stride, tolerance);
  expect_near_of(0.1, "dq", p->type, p->dq, t.dq, p->rows, q_width, p->q_stride, tolerance);
  expect_near_of(0.1, "dk", p->type, p->dk, t.dk, p->keys, width, p->kv_stride, tolerance);
  expect_near_of(0.1, "dv", p->type, p->dv, t.dv, p->keys, width, p->kv_stride, tolerance);
  for (int i = 0; i < p->segments; i++) {
    expect_near_of(0.1, "segment dk", PX_F32, p->seg[i].dk, t.seg_dk[i], p->seg[i].len, width, width, tolerance);
    expect_near_of(0.1, "segment dv", PX_F32, p->seg[i].dv, t.seg_dv[i], p->seg[i].len, width, width, tolerance);
    free(t.seg_dk[i]);
    free(t.seg_dv[i]);
  }
  free(t.o), free(t.lse), free(t.dq), free(t.dk), free(t.dv);
}

static void equations_hold_at_awkward_sizes(void **state) {
  (void)state;
  static const int dims[] = {1, 8, 12, 24, 32, 64, 80, 96, 128, 256}, groups[][2] = {{3, 3}, {9, 3}, {7, 1}, {8, 1}};
  static const int q_lens[] = {5, 0, 1, 17, 33, 8}, k_lens[] = {5, 0, 1, 17, 40, 8}, segs[] = {5, 0, 17};
  for (int type = 0; type < 2; type++)
    for (int d = 0; d < 10; d++)
      for (int window = 0; window < 2; window++) {
        const int *heads = groups[d % 4];
        problem p = {.type = TEST_TYPES[type],
                     .heads = heads[0],
                     .kv_heads = heads[1],
                     .dim = dims[d],
                     .seqs = 6,
                     .segments = 3,
                     .mask = d % 3 || window ? PX_MASK_CAUSAL : PX_MASK_FULL,
                     .window = window ? 6 : 0};
        make(&p, q_lens, k_lens, segs);
        compare(&p);
        release(&p);
      }
}

static void long_rows_and_long_prefixes(void **state) {
  (void)state;
  static const int q_lens[] = {257, 3}, segs[] = {200, 2048};
  for (int type = 0; type < 2; type++) {
    problem p = {.type = TEST_TYPES[type],
                 .heads = 2,
                 .kv_heads = 1,
                 .dim = 16,
                 .seqs = 2,
                 .segments = 2,
                 .mask = PX_MASK_CAUSAL};
    make(&p, q_lens, q_lens, segs);
    p.adapter[0] = 0;
    p.adapter[1] = 1;
    compare(&p);
    release(&p);
  }
}

/* Runs forward and backward on `threads` and returns copies of what was written. */
static void run_copy(problem *p, int threads, float **seg, char **o) {
  int64_t width = (int64_t)p->kv_heads * p->dim;
  for (int64_t j = 0; j < p->seg[0].len * width; j++) p->seg[0].dk[j] = 0;
  omp_set_num_threads(threads);
  forward(p);
  backward(p);
  omp_set_num_threads(2);
  size_t seg_bytes = (size_t)(p->seg[0].len * width) * 4,
         o_bytes = (size_t)(p->rows * p->q_stride) * px_dtype_bytes(p->type, 1);
  memcpy(*seg = malloc(seg_bytes), p->seg[0].dk, seg_bytes);
  memcpy(*o = malloc(o_bytes), p->dq, o_bytes);
}

static void bits_do_not_depend_on_threads(void **state) {
  (void)state;
  int q_lens[12], segs[] = {20};
  for (int i = 0; i < 12; i++) q_lens[i] = 1 + 7 * i;
  for (int type = 0; type < 2; type++) {
    problem p = {.type = TEST_TYPES[type],
                 .heads = 9,
                 .kv_heads = 3,
                 .dim = 64,
                 .seqs = 12,
                 .segments = 1,
                 .mask = PX_MASK_CAUSAL};
    float *seg[3];
    char *o[3];
    make(&p, q_lens, q_lens, segs);
    for (int t = 0; t < 3; t++) run_copy(&p, t + 1, &seg[t], &o[t]);
    for (int t = 1; t < 3; t++) {
      assert_memory_equal(seg[t], seg[0], (size_t)(20 * 3 * 64) * 4);
      assert_memory_equal(o[t], o[0], (size_t)(p.rows * p.q_stride) * px_dtype_bytes(p.type, 1));
    }
    for (int t = 0; t < 3; t++) free(seg[t]), free(o[t]);
    release(&p);
  }
}

/* A sequence in a batch equals the sequence alone, bit for bit; decode over pages equals the last rows of forward. */
static void a_sequence_does_not_see_its_batch(void **state) {
  (void)state;
  static const int q_lens[] = {40, 9, 23}, segs[] = {6};
  for (int type = 0; type < 2; type++) {
    problem p = {.type = TEST_TYPES[type],
                 .heads = 4,
                 .kv_heads = 2,
                 .dim = 32,
                 .seqs = 3,
                 .segments = 1,
                 .mask = PX_MASK_CAUSAL};
    make(&p, q_lens, q_lens, segs);
    p.adapter[2] = 0;
    forward(&p);
    size_t element = px_dtype_bytes(p.type, 1);
    problem one = p;
    one.seqs = 1;
    one.adapter[0] = 0;
    one.q_offsets[1] = one.k_offsets[1] = 23;
    one.q = (char *)p.q + (size_t)(49 * p.q_stride) * element;
    one.k = (char *)p.k + (size_t)(49 * p.kv_stride) * element;
    one.v = (char *)p.v + (size_t)(49 * p.kv_stride) * element;
    one.o = poison(p.type, 23, p.q_stride);
    one.rows = 23;
    forward(&one);
    for (int64_t r = 0; r < 23; r++)
      assert_memory_equal((char *)one.o + (size_t)(r * p.q_stride) * element,
                          (char *)p.o + (size_t)((49 + r) * p.q_stride) * element, (size_t)(4 * 32) * element);
    guarded_free(one.o);
    release(&p);
  }
}

static void refusals(void **state) {
  (void)state;
  int32_t offsets[2] = {0, 1};
  float x[64] = {0};
  px_attn_fwd_args good = {.shape = {.dtype = PX_F32,
                                     .heads = 4,
                                     .kv_heads = 2,
                                     .head_dim = 8,
                                     .scale = 1,
                                     .seqs = 1,
                                     .q_offsets = offsets,
                                     .k_offsets = offsets},
                           .q = x,
                           .k = x,
                           .v = x,
                           .o = x,
                           .q_stride = 32,
                           .k_stride = 16,
                           .v_stride = 16,
                           .o_stride = 32};
  assert_null(px_attn_fwd_check(&good));
  REFUSED(px_attn_fwd_check, good, px_attn_fwd_args, b->shape.kv_heads = 3);
  REFUSED(px_attn_fwd_check, good, px_attn_fwd_args, b->shape.head_dim = 257);
  REFUSED(px_attn_fwd_check, good, px_attn_fwd_args, b->shape.dtype = PX_F16);
  REFUSED(px_attn_fwd_check, good, px_attn_fwd_args, b->shape.window = 2);
  REFUSED(px_attn_fwd_check, good, px_attn_fwd_args, b->q_stride = 31);
  REFUSED(px_attn_fwd_check, good, px_attn_fwd_args, b->k = NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(equations_hold_at_awkward_sizes),
      cmocka_unit_test(long_rows_and_long_prefixes),
      cmocka_unit_test(bits_do_not_depend_on_threads),
      cmocka_unit_test(a_sequence_does_not_see_its_batch),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
