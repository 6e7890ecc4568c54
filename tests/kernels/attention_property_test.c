/* SPDX-License-Identifier: MIT
 * Attention: what must hold without a reference, and derivatives against finite differences. */
#include "helpers/attention_problem.h"

static const int LENS[] = {40, 1, 0, 23}, SEGS[] = {6, 70};

static problem usual(px_dtype type, int heads, int kv_heads, int dim, int segments) {
  return (problem){.type = type,
                   .heads = heads,
                   .kv_heads = kv_heads,
                   .dim = dim,
                   .seqs = 4,
                   .segments = segments,
                   .mask = PX_MASK_CAUSAL};
}

static size_t bytes_of(const problem *p, int64_t count) { return (size_t)count * px_dtype_bytes(p->type, 1); }

/* Every value is 1: so is every output, but 0 where a query sees no key. */
static void probabilities_sum_to_one(void **state) {
  (void)state;
  static const int k_lens[] = {40, 0, 5, 21}; /* two queries of the last see nothing of their own */
  problem p = usual(PX_F32, 6, 2, 24, 2);
  make(&p, LENS, k_lens, SEGS);
  p.adapter[3] = -1;
  for (int64_t i = 0; i < p.keys * p.kv_stride; i++) ((float *)p.v)[i] = 1;
  for (int s = 0; s < 2; s++)
    for (int64_t i = 0; i < p.seg[s].len * p.seg[s].stride; i++) ((float *)(uintptr_t)p.seg[s].v)[i] = 1;
  forward(&p);
  for (int64_t t = 0; t < p.rows; t++)
    for (int64_t i = 0; i < 6 * 24; i++) {
      double want = t == 41 || t == 42 ? 0 : 1;
      if (!(fabs((double)((float *)p.o)[t * p.q_stride + i] - want) <= TOL_F32_SUM))
        fail_msg("row %lld is %g", (long long)t, (double)((float *)p.o)[t * p.q_stride + i]);
    }
  release(&p);
}

static void expect_same(const problem *a, const problem *b) {
  assert_memory_equal(a->o, b->o, bytes_of(a, a->rows * a->q_stride));
  assert_memory_equal(a->lse, b->lse, (size_t)(a->heads * a->rows) * 4);
  assert_memory_equal(a->dq, b->dq, bytes_of(a, a->rows * a->q_stride));
  assert_memory_equal(a->dk, b->dk, bytes_of(a, a->keys * a->kv_stride));
  assert_memory_equal(a->dv, b->dv, bytes_of(a, a->keys * a->kv_stride));
}

static void an_empty_segment_equals_none(void **state) {
  (void)state;
  static const int none[] = {0, 0};
  for (int type = 0; type < 2; type++) {
    problem a = usual(TEST_TYPES[type], 6, 2, 32, 2), b = usual(TEST_TYPES[type], 6, 2, 32, 0);
    make(&a, LENS, LENS, none);
    make(&b, LENS, LENS, none);
    forward(&a), backward(&a);
    forward(&b), backward(&b);
    expect_same(&a, &b);
    release(&a);
    release(&b);
  }
}

/* The rows of *a and *b: the same bits on the CPU; a device meets the segment's keys in tiles of their own. */
static void expect_same_rows(const problem *a, const problem *b) {
#ifdef PX_TEST_CUDA
  double *o = doubles(a->rows * 6 * 64), *lse = doubles(6 * a->rows);
  for (int64_t i = 0; i < a->rows * 6 * 64; i++)
    o[i] = (double)px_get(b->o, b->type, i / (6 * 64) * b->q_stride + i % (6 * 64));
  for (int64_t i = 0; i < 6 * a->rows; i++) lse[i] = (double)b->lse[i];
  double tolerance = a->type == PX_F32 ? TOL_F32_ATTENTION : TOL_BF16_ORDER;
  expect_near("o", a->type, a->o, o, a->rows, 6 * 64, a->q_stride, tolerance);
  expect_near("lse", PX_F32, a->lse, lse, 6, a->rows, a->rows, TOL_F32_LSE);
  free(o), free(lse);
#else
  assert_memory_equal(a->o, b->o, bytes_of(a, a->rows * a->q_stride));
  assert_memory_equal(a->lse, b->lse, (size_t)(a->heads * a->rows) * 4);
#endif
}

/* A segment of P rows equals P leading keys: forward bit for bit, gradients to rounding. */
static void a_segment_equals_leading_keys(void **state) {
  (void)state;
  static const int prefixes[] = {1, 5, 17, 64, 200};
  for (int n = 0; n < 5; n++)
    for (int type = 0; type < 2; type++) {
      int length[] = {50}, prefix[] = {prefixes[n]}, together[] = {50 + prefixes[n]};
      problem a = usual(TEST_TYPES[type], 6, 2, 64, 1), b = usual(TEST_TYPES[type], 6, 2, 64, 0);
      a.seqs = b.seqs = 1;
      make(&a, length, length, prefix);
      make(&b, length, together, NULL);
      a.adapter[0] = 0;
      for (int64_t j = 0; j < together[0]; j++)
        for (int64_t i = 0; i < 2 * 64; i++) {
          int64_t own = (j - prefix[0]) * a.kv_stride + i, seg = j * a.seg[0].stride + i;
          bool is_own = j >= prefix[0];
          px_put(b.k, b.type, j * b.kv_stride + i, px_get(is_own ? a.k : a.seg[0].k, a.type, is_own ? own : seg));
          px_put(b.v, b.type, j * b.kv_stride + i, px_get(is_own ? a.v : a.seg[0].v, a.type, is_own ? own : seg));
        }
      forward(&a);
      forward(&b);
      expect_same_rows(&a, &b);
      backward(&a);
      backward(&b);
      double *dk = doubles(prefix[0] * 128), *dv = doubles(prefix[0] * 128);
      for (int64_t j = 0; j < prefix[0]; j++)
        for (int64_t i = 0; i < 128; i++) {
          dk[j * 128 + i] = (double)px_get(b.dk, b.type, j * b.kv_stride + i) + 0.5;
          dv[j * 128 + i] = (double)px_get(b.dv, b.type, j * b.kv_stride + i) + 0.5;
        }
#ifdef PX_TEST_CUDA
      double tolerance = type ? TOL_BF16_ORDER : TOL_F32_ATTENTION;
#else
      double tolerance = type ? TOL_BF16_ROUNDING : TOL_F32_ATTENTION;
#endif
      expect_near("segment dk", PX_F32, a.seg[0].dk, dk, prefix[0], 128, 128, tolerance);
      expect_near("segment dv", PX_F32, a.seg[0].dv, dv, prefix[0], 128, 128, tolerance);
      free(dk), free(dv);
      release(&a);
      release(&b);
    }
}

/* The first layer of prefix tuning wants the segments' gradients alone: same bits, nothing else written; a segment
 * whose gradient nobody wants changes nothing for the others. */
static void gradients_that_are_not_wanted(void **state) {
  (void)state;
  for (int type = 0; type < 2; type++) {
    problem a = usual(TEST_TYPES[type], 6, 2, 64, 2), b = a;
    make(&a, LENS, LENS, SEGS);
    make(&b, LENS, LENS, SEGS);
    b.only_segments = true;
    forward(&a), backward(&a);
    forward(&b), backward(&b);
    for (int i = 0; i < 2; i++) {
      assert_memory_equal(a.seg[i].dk, b.seg[i].dk, (size_t)(SEGS[i] * 128) * 4);
      assert_memory_equal(a.seg[i].dv, b.seg[i].dv, (size_t)(SEGS[i] * 128) * 4);
    }
    for (size_t i = 0; i < bytes_of(&b, b.rows * b.q_stride); i++) assert_int_equal(((unsigned char *)b.dq)[i], 0xff);
    for (size_t i = 0; i < bytes_of(&b, b.keys * b.kv_stride); i++) assert_int_equal(((unsigned char *)b.dk)[i], 0xff);
    px_kv_segment first = b.seg[0];
    for (int i = 0; i < 2; i++)
      for (int64_t j = 0; j < SEGS[i] * 128; j++) b.seg[i].dk[j] = b.seg[i].dv[j] = 0.5f;
    b.seg[0].dk = b.seg[0].dv = NULL;
    b.only_segments = false;
    backward(&b);
    expect_same(&a, &b);
    assert_memory_equal(a.seg[1].dk, b.seg[1].dk, (size_t)(SEGS[1] * 128) * 4);
    b.seg[0] = first;
    release(&a);
    release(&b);
  }
}

/* One long sequence is cut between threads at places that do not depend on them. */
static void bits_of_a_long_sequence(void **state) {
  (void)state;
  static const int lens[] = {301}, segs[] = {33};
  for (int type = 0; type < 2; type++) {
    problem run[3];
    for (int t = 0; t < 3; t++) {
      run[t] = usual(TEST_TYPES[type], 6, 2, 64, 1);
      run[t].seqs = 1;
      make(&run[t], lens, lens, segs);
      run[t].adapter[0] = 0;
      omp_set_num_threads(t + 1);
      forward(&run[t]), backward(&run[t]);
    }
    omp_set_num_threads(2);
    for (int t = 1; t < 3; t++) {
      expect_same(&run[0], &run[t]);
      assert_memory_equal(run[0].seg[0].dk, run[t].seg[0].dk, 33 * 128 * 4);
      assert_memory_equal(run[0].seg[0].dv, run[t].seg[0].dv, 33 * 128 * 4);
    }
    for (int t = 0; t < 3; t++) release(&run[t]);
  }
}

enum { D = 5, T = 6, P = 3, HEADS = 4 };

/* sum(dout * o) in float64 for heads of one kv head: x is q [T][HEADS][D], then k, v [P + T][D]. */
static double loss(const double *x, const double *dout) {
  const double *q = x, *k = q + T * HEADS * D, *v = k + (P + T) * D;
  double total = 0;
  for (int i = 0; i < T; i++)
    for (int h = 0; h < HEADS; h++) {
      double sum = 0, value = 0;
      for (int j = 0; j <= P + i; j++) {
        double s = 0, along = 0;
        for (int d = 0; d < D; d++) {
          s += q[(i * HEADS + h) * D + d] * k[j * D + d] * (double)(float)(1 / sqrt(D));
          along += dout[(i * HEADS + h) * D + d] * v[j * D + d];
        }
        sum += exp(s);
        value += exp(s) * along;
      }
      total += value / sum;
    }
  return total;
}

static void gradients_are_differences(void **state) {
  (void)state;
  static const int lens[] = {T}, segs[] = {P};
  enum { NQ = T * HEADS * D, NK = (P + T) * D, ALL = NQ + 2 * NK };
  problem p = usual(PX_F32, HEADS, 1, D, 1);
  double x[ALL], dout[NQ];
  float got[ALL];
  p.seqs = 1;
  make(&p, lens, lens, segs);
  p.adapter[0] = 0;
  forward(&p), backward(&p);
  for (int i = 0; i < NQ; i++) {
    int64_t at = i / (HEADS * D) * p.q_stride + i % (HEADS * D);
    x[i] = (double)((float *)p.q)[at];
    dout[i] = (double)((float *)p.dout)[at];
    got[i] = ((float *)p.dq)[at];
  }
  for (int i = 0; i < NK; i++) {
    int64_t seg = i / D * p.seg[0].stride + i % D, own = (i / D - P) * p.kv_stride + i % D;
    bool is_own = i / D >= P;
    x[NQ + i] = (double)(is_own ? ((float *)p.k)[own] : ((const float *)p.seg[0].k)[seg]);
    x[NQ + NK + i] = (double)(is_own ? ((float *)p.v)[own] : ((const float *)p.seg[0].v)[seg]);
    got[NQ + i] = is_own ? ((float *)p.dk)[own] : p.seg[0].dk[i] - 0.5f;
    got[NQ + NK + i] = is_own ? ((float *)p.dv)[own] : p.seg[0].dv[i] - 0.5f;
  }
  for (int i = 0; i < ALL; i++) {
    double at = x[i], step = 1e-5;
    x[i] = at + step;
    double up = loss(x, dout);
    x[i] = at - step;
    double want = (up - loss(x, dout)) / (2 * step);
    x[i] = at;
    if (!(fabs((double)got[i] - want) <= TOL_F32_ATTENTION + TOL_DIFFERENCE))
      fail_msg("derivative %d is %g, not %g", i, (double)got[i], want);
  }
  release(&p);
}

static void refusals(void **state) {
  (void)state;
  int32_t offsets[2] = {0, 1};
  float x[64] = {0};
  px_attn_shape shape = {.dtype = PX_F32,
                         .heads = 4,
                         .kv_heads = 2,
                         .head_dim = 8,
                         .scale = 1,
                         .seqs = 1,
                         .q_offsets = offsets,
                         .k_offsets = offsets};
  px_attn_bwd_args good = {.shape = shape,
                           .q = x,
                           .k = x,
                           .v = x,
                           .o = x,
                           .dout = x,
                           .lse = x,
                           .dq = x,
                           .dk = x,
                           .dv = x,
                           .workspace = x,
                           .q_stride = 32,
                           .k_stride = 16,
                           .v_stride = 16,
                           .o_stride = 32,
                           .dout_stride = 32,
                           .dq_stride = 32,
                           .dk_stride = 16,
                           .dv_stride = 16};
  assert_null(px_attn_bwd_check(&good));
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->dk = NULL);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->dq = NULL);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->lse = NULL);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->workspace = NULL);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->dq_stride = 31);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->dv_stride = 15);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->dout_stride = 31);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->shape.q_offsets = NULL);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->shape.k_offsets = NULL);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->shape.heads = 0);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->shape.head_dim = 0);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->shape.seqs = -1);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, (b->shape.adapter = offsets, b->shape.segment_count = 1));
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->shape.mask = (px_mask)2);
  REFUSED(px_attn_bwd_check, good, px_attn_bwd_args, b->shape.scale = NAN);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(probabilities_sum_to_one),
      cmocka_unit_test(an_empty_segment_equals_none),
      cmocka_unit_test(a_segment_equals_leading_keys),
      cmocka_unit_test(gradients_that_are_not_wanted),
      cmocka_unit_test(bits_of_a_long_sequence),
      cmocka_unit_test(gradients_are_differences),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
