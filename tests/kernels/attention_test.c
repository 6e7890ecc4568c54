/* SPDX-License-Identifier: MIT
 * Attention over [shared prefix | own tokens] against the contract's equations in float64. */
#include "helpers/attention_problem.h"

static void compare(problem *p) {
  truth t = reference(p);
  forward(p);
  backward(p);
  expect_truth(p, &t);
  release_truth(&t);
}

static void equations_hold_at_awkward_sizes(void **state) {
  (void)state;
  static const int dims[] = {1, 8, 12, 24, 32, 64, 80, 96, 128, 256}, groups[][2] = {{3, 3}, {9, 3}, {7, 1}, {8, 1}};
  static const int q_lens[] = {5, 0, 1, 17, 33, 8}, k_lens[] = {5, 3, 1, 17, 40, 6}, segs[] = {5, 0, 17};
  for (int type = 0; type < 3; type++)
    for (int d = 0; d < 10; d++)
      for (int window = 0; window < 2; window++) {
        const int *heads = groups[d % 4];
        if (type == 2 && d % 2 == window) continue; /* float16 is bfloat16's code */
        problem p = {.type = ATTENTION_TYPES[type],
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
        p = (problem){.type = p.type,
                      .heads = p.heads,
                      .kv_heads = p.kv_heads,
                      .dim = p.dim,
                      .seqs = 6,
                      .segments = 3,
                      .mask = p.mask,
                      .window = p.window,
                      .plain = true};
        make(&p, q_lens, k_lens, segs);
        compare(&p);
        release(&p);
      }
}

static void long_rows_and_prefixes(px_dtype type, const int *q_lens, const int *segs, int dim) {
  problem p = {.type = type, .heads = 2, .kv_heads = 1, .dim = dim, .seqs = 2, .segments = 2, .mask = PX_MASK_CAUSAL};
  make(&p, q_lens, q_lens, segs);
  p.adapter[0] = 0;
  p.adapter[1] = 1;
  compare(&p);
  release(&p);
}

static void long_rows_and_long_prefixes(void **state) {
  (void)state;
  for (int type = 0; type < 2; type++)
    long_rows_and_prefixes(TEST_TYPES[type], (int[]){257, 3}, (int[]){200, 2048}, 16);
}

/* The shortest and the longest prefix in one launch. */
static void prefixes_of_1_and_8192_tokens(void **state) {
  (void)state;
  for (int type = 0; type < 2; type++) long_rows_and_prefixes(TEST_TYPES[type], (int[]){9, 5}, (int[]){1, 8192}, type ? 64 : 16);
}

/* Several tiles of rows and of keys of every size that tensor cores are given, sequences that share tiles. */
static void every_tile_size(void **state) {
  (void)state;
  static const int dims[] = {64, 72, 80, 96, 128, 256}, q_lens[] = {70, 33, 1, 130}, k_lens[] = {70, 40, 65, 130},
                   segs[] = {100, 3};
  for (int d = 0; d < 12; d++) {
    problem p = {.type = d < 6 ? PX_BF16 : PX_F16,
                 .heads = 2,
                 .kv_heads = 1 + d % 2,
                 .dim = dims[d % 6],
                 .seqs = 4,
                 .segments = 2,
                 .mask = PX_MASK_CAUSAL,
                 .window = d % 3 == 1 ? 40 : 0};
    make(&p, q_lens, k_lens, segs);
    p.adapter[0] = p.adapter[1] = p.adapter[3] = 0;
    p.adapter[2] = d % 2;
    compare(&p);
    release(&p);
  }
}

/* Whole tiles of rows that see no key: nothing is met between the load of a tile and the result that takes its place. */
static void tiles_without_any_key(void **state) {
  (void)state;
  static const int dims[] = {64, 128, 256, 12}, q_lens[] = {150, 20}, k_lens[] = {0, 20};
  for (int d = 0; d < 4; d++) {
    problem p = {.type = PX_BF16, .heads = 2, .kv_heads = 1, .dim = dims[d], .seqs = 2, .mask = PX_MASK_FULL};
    make(&p, q_lens, k_lens, NULL);
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
  if (SLOWER > 1) skip(); /* an emulated device has its threads in one; orders of them: emu.command_training */
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

/* A sequence in a batch equals the sequence alone, bit for bit. */
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
  REFUSED(px_attn_fwd_check, good, px_attn_fwd_args, b->shape.dtype = PX_Q8_0);
  REFUSED(px_attn_fwd_check, good, px_attn_fwd_args, b->shape.window = 2);
  REFUSED(px_attn_fwd_check, good, px_attn_fwd_args, b->q_stride = 31);
  REFUSED(px_attn_fwd_check, good, px_attn_fwd_args, b->k = NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(equations_hold_at_awkward_sizes),
      cmocka_unit_test(long_rows_and_long_prefixes),
      cmocka_unit_test(prefixes_of_1_and_8192_tokens),
      cmocka_unit_test(every_tile_size),
      cmocka_unit_test(tiles_without_any_key),
      cmocka_unit_test(bits_do_not_depend_on_threads),
      cmocka_unit_test(a_sequence_does_not_see_its_batch),
      cmocka_unit_test(refusals),
  };
  const char *less = getenv("PX_TEST_SKIP"); /* what another setting does not change */
  if (less) cmocka_set_skip_filter(less);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
