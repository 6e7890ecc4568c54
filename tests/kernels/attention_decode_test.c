/* SPDX-License-Identifier: MIT
 * Decoding against pages in random order: equations in float64, and bits that know nothing of the batch or the threads.
 */
#include "helpers/attention_problem.h"

/* A cache whose unused slots hold NaN, and the table that finds the keys of a problem in it. */
typedef struct paged {
  void *k, *v, *workspace;
  int32_t *table, kv_lens[16];
  int32_t max_blocks, page_tokens;
} paged;

static paged pages_of(const problem *p, int page_tokens, uint64_t seed) {
  int32_t blocks = 0, pages = 0;
  paged c = {.page_tokens = page_tokens, .max_blocks = 1};
  for (int s = 0; s < p->seqs; s++) {
    c.kv_lens[s] = p->k_offsets[s + 1] - p->k_offsets[s];
    blocks = (c.kv_lens[s] + page_tokens - 1) / page_tokens;
    c.max_blocks = blocks > c.max_blocks ? blocks : c.max_blocks;
    pages += blocks;
  }
  pages += 2; /* never named */
  int64_t width = (int64_t)p->kv_heads * p->dim;
  c.k = poison(p->type, (int64_t)pages * page_tokens, width);
  c.v = poison(p->type, (int64_t)pages * page_tokens, width);
  c.table = malloc((size_t)(p->seqs * c.max_blocks) * sizeof *c.table);
  int32_t *order = malloc((size_t)pages * sizeof *order);
  for (int32_t i = 0; i < pages; i++) order[i] = i;
  for (int32_t i = pages - 1; i > 0; i--) {
    int32_t j = (int32_t)(px_philox(seed, 5, 0, (uint64_t)i).v[0] % (uint32_t)(i + 1)), keep = order[i];
    order[i] = order[j];
    order[j] = keep;
  }
  for (int32_t i = 0; i < p->seqs * c.max_blocks; i++) c.table[i] = INT32_MAX; /* must not be followed */
  for (int s = 0, next = 0; s < p->seqs; s++)
    for (int32_t j = 0; j < c.kv_lens[s]; j++) {
      if (j % page_tokens == 0) c.table[s * c.max_blocks + j / page_tokens] = order[next++];
      int64_t slot = (int64_t)c.table[s * c.max_blocks + j / page_tokens] * page_tokens + j % page_tokens;
      for (int64_t i = 0; i < width; i++) {
        px_put(c.k, p->type, slot * width + i, px_get(p->k, p->type, (p->k_offsets[s] + j) * p->kv_stride + i));
        px_put(c.v, p->type, slot * width + i, px_get(p->v, p->type, (p->k_offsets[s] + j) * p->kv_stride + i));
      }
    }
  px_attn_shape shape = shape_of(p);
  c.workspace = guarded(px_attn_decode_workspace(&shape, p->rows));
  free(order);
  return c;
}

static void release_pages(paged *c) {
  guarded_free(c->k);
  guarded_free(c->v);
  guarded_free(c->workspace);
  free(c->table);
}

static void decode(problem *p, const paged *c) {
  px_attn_decode_args a = {.shape = shape_of(p),
                           .q = p->q,
                           .o = p->o,
                           .q_stride = p->q_stride,
                           .o_stride = p->q_stride,
                           .k_cache = c->k,
                           .v_cache = c->v,
                           .block_table = c->table,
                           .kv_lens = c->kv_lens,
                           .max_blocks = c->max_blocks,
                           .page_tokens = c->page_tokens,
                           .workspace = c->workspace};
  a.shape.k_offsets = NULL; /* not used */
  assert_null(px_attn_decode_check(&a));
  assert_int_equal(p->plain ? px_attn_decode_plain_cpu(&a) : px_attn_decode_cpu(&a), 0);
}

static void expect_output(const problem *p, const truth *t) {
  expect_near("o", p->type, p->o, t->o, p->rows, (int64_t)p->heads * p->dim, p->q_stride,
              attention_tolerance(p->type));
}

static void equations_hold(void **state) {
  (void)state;
  static const int dims[] = {1, 8, 12, 24, 32, 64, 80, 96, 128, 256}, groups[][2] = {{3, 3}, {9, 3}, {7, 1}, {8, 1}};
  static const int q_lens[] = {1, 0, 3, 1, 1, 4}, k_lens[] = {1, 0, 40, 77, 9, 4}, segs[] = {5, 0, 17};
  static const int page_tokens[] = {1, 3, 16};
  for (int type = 0; type < 3; type++)
    for (int d = 0; d < 10; d++)
      for (int n = 0; n < 4; n++) { /* with and without a window, fast and plain */
        problem p = {.type = ATTENTION_TYPES[type],
                     .heads = groups[d % 4][0],
                     .kv_heads = groups[d % 4][1],
                     .dim = dims[d],
                     .seqs = 6,
                     .segments = 3,
                     .mask = PX_MASK_CAUSAL,
                     .window = n % 2 ? 6 : 0,
                     .plain = n / 2};
        make(&p, q_lens, k_lens, segs);
        paged c = pages_of(&p, page_tokens[d % 3], (uint64_t)d);
        truth t = reference(&p);
        decode(&p, &c);
        expect_output(&p, &t);
        release_truth(&t);
        release_pages(&c);
        release(&p);
      }
}

/* Beyond 512 keys a sequence is worked on in parts, beyond 4,096 the parts grow. */
static void long_sequences(void **state) {
  (void)state;
  static const int q_lens[] = {1, 2, 1, 1, 1}, k_lens[] = {512, 513, 4100, 3, 1500}, segs[] = {2048, 511};
  for (int type = 0; type < 2; type++)
    for (int window = 0; window < 2; window++) {
      problem p = {.type = TEST_TYPES[type],
                   .heads = 6,
                   .kv_heads = 2,
                   .dim = 32,
                   .seqs = 5,
                   .segments = 2,
                   .mask = PX_MASK_CAUSAL,
                   .window = window ? 700 : 0};
      make(&p, q_lens, k_lens, segs);
      paged c = pages_of(&p, 16, 3);
      truth t = reference(&p);
      decode(&p, &c);
      expect_output(&p, &t);
      release_truth(&t);
      release_pages(&c);
      release(&p);
    }
}

/* Each sequence decoded alone has the bits that p.o has. */
static void expect_alone(const problem *p, const paged *c) {
  size_t row = (size_t)p->q_stride * px_dtype_bytes(p->type, 1),
         width = (size_t)(p->heads * p->dim) * px_dtype_bytes(p->type, 1);
  for (int s = 0; s < p->seqs; s++) {
    problem one = *p;
    paged own = *c;
    one.seqs = 1;
    one.adapter[0] = p->adapter[s];
    one.q_offsets[1] = p->q_offsets[s + 1] - p->q_offsets[s];
    one.q = (char *)p->q + (size_t)p->q_offsets[s] * row;
    one.o = poison(p->type, one.q_offsets[1], p->q_stride);
    own.table = c->table + s * c->max_blocks;
    own.kv_lens[0] = c->kv_lens[s];
    decode(&one, &own);
    for (int64_t i = 0; i < one.q_offsets[1]; i++)
      assert_memory_equal((char *)one.o + (size_t)i * row, (char *)p->o + (size_t)(p->q_offsets[s] + i) * row, width);
    guarded_free(one.o);
  }
}

static void bits_know_no_batch_and_no_threads(void **state) {
  (void)state;
  static const int q_lens[] = {1, 2, 1, 1}, k_lens[] = {9, 40, 1100, 700}, segs[] = {20};
  for (int type = 0; type < 2; type++) {
    problem p = {.type = TEST_TYPES[type],
                 .heads = 6,
                 .kv_heads = 2,
                 .dim = 64,
                 .seqs = 4,
                 .segments = 1,
                 .mask = PX_MASK_CAUSAL};
    make(&p, q_lens, k_lens, segs);
    paged c = pages_of(&p, 16, 3);
    size_t bytes = (size_t)(p.rows * p.q_stride) * px_dtype_bytes(p.type, 1);
    decode(&p, &c);
    void *first = malloc(bytes);
    memcpy(first, p.o, bytes);
    for (int threads = 1; threads <= 3; threads += 2) {
      omp_set_num_threads(threads);
      decode(&p, &c);
      assert_memory_equal(p.o, first, bytes);
    }
    omp_set_num_threads(2);
    expect_alone(&p, &c);
    free(first);
    release_pages(&c);
    release(&p);
  }
}

typedef struct mixture {
  int heads, kv_heads, dim, window, page_tokens, seqs;
  int q_lens[15], k_lens[15], segs[3], adapter[15];
} mixture;

/* A device works on parts of at least 256 own keys and 128 of a segment, in tiles of 64 (or 32) keys, rows of 16, and
 * of 64 (or 32) that name one segment: lengths on either side of those, segments that many, one or no sequence names,
 * empty ones, more rows than a tile, and with 64 kv heads parts that grow. */
static const mixture mixtures[] = {
    {8,
     1,
     64,
     0,
     16,
     10,
     {1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
     {1, 63, 64, 65, 255, 256, 257, 513, 16, 2},
     {129, 0, 40},
     {0, 0, -1, 0, 1, 0, 0, 0, 0, 0}},
    {6, 2, 80, 70, 32, 6, {4, 1, 2, 3, 4, 1}, {300, 20, 512, 3, 4, 71}, {127, 1, 128}, {2, 0, -1, 2, 0, 2}},
    {7, 1, 96, 0, 5, 4, {2, 3, 1, 4}, {129, 191, 30, 33}, {64, 65, 300}, {1, 1, 2, 1}},
    {4, 4, 128, 0, 16, 5, {1, 0, 1, 2, 1}, {7, 0, 320, 64, 1}, {260, 3, 0}, {0, 1, 2, 0, -1}},
    {8, 1, 256, 300, 16, 3, {4, 3, 1}, {400, 3, 40}, {33, 20, 0}, {0, 0, 0}},
    {16, 2, 24, 0, 3, 2, {9, 1}, {70, 4}, {10, 0, 0}, {0, 0}},
    {64, 64, 8, 0, 16, 2, {1, 1}, {2100, 9}, {300, 0, 0}, {0, 0}},
    {5, 1, 20, 0, 16, 3, {1, 4, 2}, {257, 33, 2}, {129, 0, 31}, {0, 0, 2}}, /* no tensor core takes it */
};

static void mixtures_of_rows(void **state) {
  (void)state;
  for (int type = 0; type < 3; type++)
    for (size_t i = 0; i < sizeof mixtures / sizeof *mixtures; i++) {
      const mixture *m = &mixtures[i];
      bool longest = m->kv_heads == 64; /* seconds in the emulator */
      if (longest && ATTENTION_TYPES[type] != PX_BF16) continue;
      problem p = {.type = ATTENTION_TYPES[type],
                   .heads = m->heads,
                   .kv_heads = m->kv_heads,
                   .dim = m->dim,
                   .window = m->window,
                   .seqs = m->seqs,
                   .segments = 3,
                   .mask = PX_MASK_CAUSAL};
      make(&p, m->q_lens, m->k_lens, m->segs);
      for (int s = 0; s < m->seqs; s++) p.adapter[s] = m->adapter[s];
      paged c = pages_of(&p, m->page_tokens, i);
      truth t = reference(&p);
      decode(&p, &c);
      expect_output(&p, &t);
      if (!longest) expect_alone(&p, &c);
      release_truth(&t);
      release_pages(&c);
      release(&p);
    }
}

/* The last queries of forward over the whole text. */
static void decode_equals_forward(void **state) {
  (void)state;
  static const int all[] = {70, 600, 3}, segs[] = {20};
  for (int type = 0; type < 2; type++) {
    problem p = {.type = TEST_TYPES[type],
                 .heads = 6,
                 .kv_heads = 2,
                 .dim = 64,
                 .seqs = 3,
                 .segments = 1,
                 .mask = PX_MASK_CAUSAL};
    make(&p, all, all, segs);
    paged c = pages_of(&p, 16, 9);
    forward(&p);
    for (int s = 0; s < p.seqs; s++) {
      problem last = p;
      paged own = c;
      int64_t row = p.q_offsets[s + 1] - 2;
      size_t at = (size_t)(row * p.q_stride) * px_dtype_bytes(p.type, 1);
      last.seqs = 1;
      last.rows = 2;
      last.adapter[0] = p.adapter[s];
      last.q_offsets[1] = 2;
      last.q = (char *)p.q + at;
      last.o = poison(p.type, 2, p.q_stride);
      own.table = c.table + s * c.max_blocks;
      own.kv_lens[0] = c.kv_lens[s];
      decode(&last, &own);
      double *want = doubles(2 * 6 * 64);
      for (int64_t i = 0; i < 2 * 6 * 64; i++)
        want[i] = (double)px_get((char *)p.o + at, p.type, i / (6 * 64) * p.q_stride + i % (6 * 64));
      expect_near("o", p.type, last.o, want, 2, 6 * 64, p.q_stride, tolerance_of(p.type, TOL_F32_ATTENTION));
      free(want);
      guarded_free(last.o);
    }
    release_pages(&c);
    release(&p);
  }
}

static void refusals(void **state) {
  (void)state;
  int32_t offsets[2] = {0, 1};
  float x[64] = {0};
  px_attn_decode_args good = {.shape = {.dtype = PX_F32,
                                        .heads = 4,
                                        .kv_heads = 2,
                                        .head_dim = 8,
                                        .scale = 1,
                                        .seqs = 1,
                                        .mask = PX_MASK_CAUSAL,
                                        .q_offsets = offsets},
                              .q = x,
                              .o = x,
                              .k_cache = x,
                              .v_cache = x,
                              .workspace = x,
                              .q_stride = 32,
                              .o_stride = 32,
                              .block_table = offsets,
                              .kv_lens = offsets,
                              .max_blocks = 1,
                              .page_tokens = 16};
  assert_null(px_attn_decode_check(&good));
  REFUSED(px_attn_decode_check, good, px_attn_decode_args, b->shape.mask = PX_MASK_FULL);
  REFUSED(px_attn_decode_check, good, px_attn_decode_args, b->page_tokens = 0);
  REFUSED(px_attn_decode_check, good, px_attn_decode_args, b->max_blocks = 0);
  REFUSED(px_attn_decode_check, good, px_attn_decode_args, b->block_table = NULL);
  REFUSED(px_attn_decode_check, good, px_attn_decode_args, b->kv_lens = NULL);
  REFUSED(px_attn_decode_check, good, px_attn_decode_args, b->v_cache = NULL);
  REFUSED(px_attn_decode_check, good, px_attn_decode_args, b->workspace = NULL);
  REFUSED(px_attn_decode_check, good, px_attn_decode_args, b->o_stride = 31);
  REFUSED(px_attn_decode_check, good, px_attn_decode_args, b->shape.q_offsets = NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(equations_hold),
      cmocka_unit_test(long_sequences),
      cmocka_unit_test(bits_know_no_batch_and_no_threads),
      cmocka_unit_test(mixtures_of_rows),
      cmocka_unit_test(decode_equals_forward),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
