/* SPDX-License-Identifier: MIT
 * Attention in two parts: their join against the equations in float64, and what ragged tensors are told. */
#include "helpers/kernel.h"
#include "kernels/attention_merge.h"

typedef struct joint {
  px_dtype type;
  int rows, heads, dim, gap;
  bool by_rows;     /* the second part's statistics lie as [rows, heads] */
  bool first, sum;  /* there is a first part; there are no statistics */
  bool in_place;
} joint;

static const px_dtype TYPES[] = {PX_F32, PX_BF16, PX_F16};

static double tolerance_here(px_dtype type) {
  return type == PX_F32 ? TOL_F32_FUNCTION : type == PX_BF16 ? TOL_BF16_ROUNDING + TOL_F32_FUNCTION : TOL_BF16_ROUNDING / 8 + TOL_F32_FUNCTION;
}

/* Scores of a part: some rows have met no key. */
static float *statistics(const joint *j, uint64_t seed) {
  float *lse = numbers(PX_F32, j->heads, j->rows, j->rows, seed, 30);
  for (int64_t i = 0; i < j->heads * j->rows; i++)
    if ((i + (int64_t)seed) % 5 == 0 || i % 7 == 0) lse[i] = -INFINITY; /* of one part, or of both */
  return lse;
}

static float *turned(const joint *j, const float *lse) {
  float *t = guarded((size_t)(j->heads * j->rows) * 4);
  for (int64_t row = 0; row < j->rows; row++)
    for (int64_t h = 0; h < j->heads; h++) t[row * j->heads + h] = lse[h * j->rows + row];
  return t;
}

/* The equations: the joined output of row t, column i, and its statistics. */
static double truth(const joint *j, const px_attn_merge_args *a, const float *lse_a, const float *lse_b, int64_t t, int64_t i, double *lse) {
  int64_t at = i / j->dim * j->rows + t;
  double x = j->first ? (double)px_get(a->a.o, j->type, t * a->a.o_stride + i) : 0, y = (double)px_get(a->b.o, j->type, t * a->b.o_stride + i);
  if (j->sum) return x + y;
  double p = j->first ? (double)lse_a[at] : -INFINITY, q = (double)lse_b[at], most = fmax(p, q);
  *lse = most == -INFINITY ? -INFINITY : most + log(exp(p - most) + exp(q - most));
  return (p > -INFINITY ? exp(p - *lse) * x : 0) + (q > -INFINITY ? exp(q - *lse) * y : 0);
}

/* What a part without keys left is not read: it may be anything. */
static void spoil(const joint *j, void *o, int64_t stride, const float *lse) {
  for (int64_t t = 0; t < j->rows; t++)
    for (int64_t i = 0; i < j->heads * j->dim; i++)
      if (lse[i / j->dim * j->rows + t] == -INFINITY) px_put(o, j->type, t * stride + i, NAN);
}

static void check(const joint *j) {
  int64_t width = (int64_t)j->heads * j->dim, stride = width + j->gap;
  float *lse_a = statistics(j, 1), *lse_b = statistics(j, 2), *by_rows = turned(j, lse_b), *lse = poison(PX_F32, 1, j->heads * j->rows);
  void *a = numbers(j->type, j->rows, width, stride, 3, 1), *b = numbers(j->type, j->rows, width, stride, 4, 1), *o = poison(j->type, j->rows, stride);
  if (!j->sum) spoil(j, a, stride, lse_a), spoil(j, b, stride, lse_b);
  px_attn_merge_args m = {.dtype = j->type, .rows = j->rows, .heads = j->heads, .head_dim = j->dim, .o = j->in_place ? b : o, .o_stride = stride, .lse_row = 1, .lse_head = j->rows};
  m.b = (px_attn_part){.o = b, .o_stride = stride, .lse_row = j->by_rows ? j->heads : 1, .lse_head = j->by_rows ? 1 : j->rows};
  if (j->first) m.a = (px_attn_part){.o = a, .o_stride = stride, .lse_row = 1, .lse_head = j->rows};
  if (!j->sum) m.lse = lse, m.b.lse = j->by_rows ? by_rows : lse_b;
  if (!j->sum && j->first) m.a.lse = lse_a;
  double *want = doubles(j->rows * width), *want_lse = doubles(j->rows * j->heads);
  for (int64_t t = 0; t < j->rows; t++)
    for (int64_t i = 0; i < width; i++) want[t * width + i] = truth(j, &m, lse_a, lse_b, t, i, &want_lse[i / j->dim * j->rows + t]);
  assert_null(px_attn_merge_check(&m));
  assert_int_equal(px_attn_merge_cpu(&m), 0);
  expect_near("o", j->type, m.o, want, j->rows, width, stride, tolerance_here(j->type));
  for (int64_t i = 0; !j->sum && i < j->rows * j->heads; i++)
    if (want_lse[i] == -INFINITY ? lse[i] != -INFINITY : !(fabs((double)lse[i] - want_lse[i]) <= TOL_F32_ELEMENT * fmax(1, fabs(want_lse[i]))))
      fail_msg("lse %lld is %g, not %g", (long long)i, (double)lse[i], want_lse[i]);
  void *all[] = {lse_a, lse_b, by_rows, lse, a, b, o};
  for (int i = 0; i < 7; i++) guarded_free(all[i]);
  free(want), free(want_lse);
}

static void two_parts_are_one(void **state) {
  (void)state;
  static const int dims[] = {1, 7, 64, 80, 256}, rows[] = {0, 1, 9, 130};
  for (int type = 0; type < 3; type++)
    for (int d = 0; d < 5; d++)
      for (int r = 0; r < 4; r++)
        for (int flags = 0; flags < 16; flags++) {
          if (SLOWER > 1 && d == 4 && r == 3) continue;
          check(&(joint){.type = TYPES[type], .rows = rows[r], .heads = 1 + d, .dim = dims[d], .gap = r % 2 ? 8 : d % 2 ? 3 : 0,
                         .by_rows = flags & 1, .first = flags & 2, .sum = flags & 4, .in_place = flags & 8});
        }
}

/* Scores far apart and far from zero: nothing overflows, the greater part is kept as it is. */
static void scores_of_any_size(void **state) {
  (void)state;
  static const float scores[][2] = {{0, 0}, {1000, 1000}, {-1000, -1000}, {500, -500}, {-500, 500}, {3e38f, 1}, {1, -3e38f}};
  for (size_t i = 0; i < sizeof scores / sizeof *scores; i++) {
    float *x = guarded(6 * sizeof *x);
    x[0] = scores[i][0], x[1] = scores[i][1], x[2] = 2, x[3] = 6;
    px_attn_merge_args m = {.dtype = PX_F32, .rows = 1, .heads = 1, .head_dim = 1, .o = x + 4, .lse = x + 5, .o_stride = 1, .lse_row = 1, .lse_head = 1};
    m.a = (px_attn_part){x + 2, x, 1, 1, 1};
    m.b = (px_attn_part){x + 3, x + 1, 1, 1, 1};
    assert_int_equal(px_attn_merge_cpu(&m), 0);
    float o = x[0] == x[1] ? 4 : x[0] > x[1] ? 2 : 6, lse = x[0] == x[1] ? x[0] + logf(2) : x[0] > x[1] ? x[0] : x[1];
    assert_true(fabsf(x[4] - o) <= 1e-6f && fabsf(x[5] - lse) <= 1e-6f * fmaxf(1, fabsf(lse)));
    guarded_free(x);
  }
}

static void ragged_tensors(void **state) {
  (void)state;
  static const int32_t lens[] = {5, 0, 1, 300, 2};
  enum { SEQS = 5, SLOTS = 8, HEADS = 3, TENSORS = 3 };
  int32_t *offsets = guarded((SEQS + 1) * 4), *got = guarded(SLOTS * 4);
  offsets[0] = 0;
  for (int s = 0; s < SEQS; s++) offsets[s + 1] = offsets[s] + lens[s];
  int64_t *starts = guarded(TENSORS * (SLOTS + 1) * 8), rows = offsets[SEQS];
  float *lse = numbers(PX_F32, HEADS, rows, rows, 5, 9), *stats = guarded((size_t)(rows * HEADS) * 4);
  px_attn_ragged_args a = {.seqs = SEQS, .slots = SLOTS, .offsets = offsets, .tensors = TENSORS, .strides = {1, 576, 1 << 24}, .lens = got, .starts = starts,
                           .rows = (int32_t)rows, .heads = HEADS, .lse = lse, .stats = stats};
  assert_null(px_attn_ragged_check(&a));
  assert_int_equal(px_attn_ragged_cpu(&a), 0);
  for (int s = 0; s <= SLOTS; s++) {
    int64_t from = offsets[s < SEQS ? s : SEQS];
    if (s < SLOTS) assert_int_equal(got[s], s < SEQS ? lens[s] : 0);
    for (int n = 0; n < TENSORS; n++) assert_true(starts[n * (SLOTS + 1) + s] == from * a.strides[n]); /* beyond 2^31 too */
  }
  float *want = turned(&(joint){.rows = (int)rows, .heads = HEADS}, lse);
  assert_memory_equal(stats, want, (size_t)(rows * HEADS) * 4);
  void *all[] = {offsets, got, starts, lse, stats, want};
  for (int i = 0; i < 6; i++) guarded_free(all[i]);
}

static void refusals(void **state) {
  (void)state;
  float x[64] = {0}, y[64];
  px_attn_merge_args good = {.dtype = PX_F32, .rows = 2, .heads = 2, .head_dim = 4, .a = {x, x, 8, 1, 2}, .b = {x, x, 8, 1, 2}, .o = x, .lse = y,
                             .o_stride = 8, .lse_row = 1, .lse_head = 2};
  assert_null(px_attn_merge_check(&good));
  REFUSED(px_attn_merge_check, good, px_attn_merge_args, b->dtype = PX_Q8_0);
  REFUSED(px_attn_merge_check, good, px_attn_merge_args, b->head_dim = 257);
  REFUSED(px_attn_merge_check, good, px_attn_merge_args, b->o_stride = 7);
  REFUSED(px_attn_merge_check, good, px_attn_merge_args, b->b.o_stride = 7);
  REFUSED(px_attn_merge_check, good, px_attn_merge_args, b->b.o = NULL);
  REFUSED(px_attn_merge_check, good, px_attn_merge_args, b->a.lse = NULL);
  REFUSED(px_attn_merge_check, good, px_attn_merge_args, b->lse = x);
  int32_t n[2] = {0};
  int64_t starts[4];
  px_attn_ragged_args ragged = {.seqs = 1, .slots = 1, .offsets = n, .tensors = 1, .lens = n, .starts = starts};
  assert_null(px_attn_ragged_check(&ragged));
  REFUSED(px_attn_ragged_check, ragged, px_attn_ragged_args, b->slots = 0);
  REFUSED(px_attn_ragged_check, ragged, px_attn_ragged_args, b->tensors = PX_RAGGED_TENSORS + 1);
  REFUSED(px_attn_ragged_check, ragged, px_attn_ragged_args, b->starts = NULL);
  REFUSED(px_attn_ragged_check, ragged, px_attn_ragged_args, b->lse = x);
}

static void costs(void **state) {
  (void)state;
  float x[1] = {0};
  px_attn_merge_args m = {.dtype = PX_BF16, .rows = 10, .heads = 2, .head_dim = 8, .a = {x, x, 16, 1, 10}, .b = {x, x, 16, 1, 10}, .o = x, .lse = x};
  assert_true(px_attn_merge_cost(&m).bytes == 160 * 2 * 3 + 20 * 4 * 3);
  m.a.lse = m.b.lse = m.lse = NULL;
  assert_true(px_attn_merge_cost(&m).bytes == 160 * 2 * 3 && px_attn_merge_cost(&m).operations == 160);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(two_parts_are_one), cmocka_unit_test(scores_of_any_size), cmocka_unit_test(ragged_tensors),
                                     cmocka_unit_test(refusals), cmocka_unit_test(costs)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
