/* SPDX-License-Identifier: MIT */
#include "helpers/kernel.h"

#include "kernels/embed.h"

enum { TABLE = 50, POSITIONS = 40 };

typedef struct problem {
  px_embed_fwd_args f;
  px_embed_bwd_args b;
  int32_t *ids, *positions;
} problem;

static void make(problem *p, px_dtype type, px_dtype table, int64_t rows, int64_t dim, bool with_positions) {
  *p = (problem){.ids = guarded((size_t)rows * 4), .positions = guarded((size_t)rows * 4)};
  for (int64_t t = 0; t < rows; t++) {
    p->ids[t] = (int32_t)((t * 7) % TABLE); /* repeats above 50 rows */
    p->positions[t] = (int32_t)((t * 3) % POSITIONS);
  }
  p->f = (px_embed_fwd_args){.dtype = type,
                             .table_type = table,
                             .rows = rows,
                             .dim = dim,
                             .table_rows = TABLE,
                             .position_rows = POSITIONS,
                             .ids = p->ids,
                             .positions = p->positions,
                             .table = numbers(table, TABLE, dim, dim, 1, 1),
                             .position_table = with_positions ? numbers(table, POSITIONS, dim, dim, 2, 1) : NULL,
                             .y = poison(type, rows, dim)};
  p->b = (px_embed_bwd_args){.dtype = type,
                             .rows = rows,
                             .dim = dim,
                             .table_rows = TABLE,
                             .position_rows = POSITIONS,
                             .ids = p->ids,
                             .positions = p->positions,
                             .dy = numbers(type, rows, dim, dim, 3, 1),
                             .dtable = numbers(PX_F32, TABLE, dim, dim, 4, 1),
                             .dposition = with_positions ? numbers(PX_F32, POSITIONS, dim, dim, 5, 1) : NULL};
}

static void release(problem *p) {
  guarded_free((void *)(uintptr_t)p->f.table);
  if (p->f.position_table) guarded_free((void *)(uintptr_t)p->f.position_table);
  guarded_free(p->f.y);
  guarded_free((void *)(uintptr_t)p->b.dy);
  guarded_free(p->b.dtable);
  if (p->b.dposition) guarded_free(p->b.dposition);
  guarded_free(p->ids);
  guarded_free(p->positions);
}

static void rows_of_the_tables_are_added(void **state) {
  (void)state;
  for (int kind = 0; kind < 8; kind++)
    for (int r = 0; r < TEST_ROWS_COUNT; r++)
      for (int d = 0; d < TEST_DIMS_COUNT; d++) {
        problem p;
        make(&p, TEST_TYPES[kind & 1], TEST_TYPES[kind >> 1 & 1], TEST_ROWS[r], TEST_DIMS[d], kind & 4);
        int64_t dim = p.f.dim;
        double *want = doubles(p.f.rows * dim);
        for (int64_t e = 0; e < p.f.rows * dim; e++) {
          want[e] = (double)px_get(p.f.table, p.f.table_type, p.ids[e / dim] * dim + e % dim);
          if (p.f.position_table)
            want[e] += (double)px_get(p.f.position_table, p.f.table_type, p.positions[e / dim] * dim + e % dim);
        }
        assert_null(px_embed_fwd_check(&p.f));
        assert_int_equal(px_embed_fwd_cpu(&p.f), 0);
        expect_near("y", p.f.dtype, p.f.y, want, p.f.rows, dim, dim, tolerance_of(p.f.dtype, TOL_F32_ELEMENT));
        free(want);
        release(&p);
      }
}

static void gradient_case(px_dtype type, int64_t rows, int64_t dim, bool with_positions, int tokens) {
  problem p;
  make(&p, type, PX_F32, rows, dim, with_positions);
  for (int64_t t = 0; t < rows; t++) p.ids[t] %= tokens;
  double *table = doubles(TABLE * dim), *position = doubles(POSITIONS * dim);
  for (int64_t e = 0; e < TABLE * dim; e++) table[e] = (double)p.b.dtable[e];
  for (int64_t e = 0; p.b.dposition && e < POSITIONS * dim; e++) position[e] = (double)p.b.dposition[e];
  for (int64_t e = 0; e < rows * dim; e++) {
    table[p.ids[e / dim] * dim + e % dim] += (double)px_get(p.b.dy, p.b.dtype, e);
    position[p.positions[e / dim] * dim + e % dim] += (double)px_get(p.b.dy, p.b.dtype, e);
  }
  assert_null(px_embed_bwd_check(&p.b));
  assert_int_equal(px_embed_bwd_cpu(&p.b), 0);
  expect_near("dtable", PX_F32, p.b.dtable, table, TABLE, dim, dim, TOL_F32_SUM);
  if (p.b.dposition) expect_near("dposition", PX_F32, p.b.dposition, position, POSITIONS, dim, dim, TOL_F32_SUM);
  free(table);
  free(position);
  release(&p);
}

static void gradients_gather_what_each_row_gave(void **state) {
  (void)state;
  for (int kind = 0; kind < 4; kind++)
    for (int r = 0; r < TEST_ROWS_COUNT; r++)
      gradient_case(TEST_TYPES[kind & 1], TEST_ROWS[r], r % 2 ? 64 : 65, kind & 2, TABLE);
  gradient_case(PX_BF16, 1000, 12, false, 2); /* more rows of one token than a device's block lists at a time */
}

/* Each row of the table is its own plus its rows' gradients, in their order: bit for bit. */
static void gradients_add_in_the_order_of_the_rows(void **state) {
  (void)state;
  problem p;
  make(&p, PX_BF16, PX_F32, 1000, 20, false);
  float *want = malloc(TABLE * 20 * sizeof *want);
  memcpy(want, p.b.dtable, TABLE * 20 * sizeof *want);
  for (int64_t e = 0; e < 1000 * 20; e++) want[p.ids[e / 20] * 20 + e % 20] += px_get(p.b.dy, PX_BF16, e);
  assert_int_equal(px_embed_bwd_cpu(&p.b), 0);
  assert_memory_equal(p.b.dtable, want, TABLE * 20 * sizeof *want);
  free(want);
  release(&p);
}

static void ids_and_positions_outside_are_refused(void **state) {
  (void)state;
  static const int32_t wrong[] = {-1, TABLE, INT32_MAX, INT32_MIN};
  for (int i = 0; i < 4; i++)
    for (int position = 0; position < 2; position++) {
      problem p;
      make(&p, PX_F32, PX_F32, 9, 8, true);
      (position ? p.positions : p.ids)[4] = wrong[i];
      assert_int_equal(px_embed_fwd_cpu(&p.f), BAD_INDEX);
      assert_int_equal(px_embed_bwd_cpu(&p.b), BAD_INDEX);
      if (position) { /* positions that are not used are not looked at */
        px_embed_fwd_args f = p.f;
        px_embed_bwd_args b = p.b;
        f.position_table = NULL;
        b.dposition = NULL;
        assert_int_equal(px_embed_fwd_cpu(&f), 0);
        assert_int_equal(px_embed_bwd_cpu(&b), 0);
      }
      release(&p);
    }
}

static void bits_do_not_depend_on_threads(void **state) {
  (void)state;
  enum { ROWS = 257, DIM = 160 };
  _Static_assert(ROWS * DIM >= PX_PARALLEL_MIN, "enough for threads");
  problem p[3];
  for (int t = 0; t < 3; t++) {
    make(&p[t], PX_F32, PX_F32, ROWS, DIM, true);
    omp_set_num_threads(t + 1);
    assert_int_equal(px_embed_fwd_cpu(&p[t].f), 0);
    assert_int_equal(px_embed_bwd_cpu(&p[t].b), 0);
    assert_memory_equal(p[t].f.y, p[0].f.y, ROWS * DIM * sizeof(float));
    assert_memory_equal(p[t].b.dtable, p[0].b.dtable, TABLE * DIM * sizeof(float));
    assert_memory_equal(p[t].b.dposition, p[0].b.dposition, POSITIONS * DIM * sizeof(float));
  }
  omp_set_num_threads(2);
  for (int t = 0; t < 3; t++) release(&p[t]);
}

static void refusals(void **state) {
  (void)state;
  problem p;
  make(&p, PX_F32, PX_F32, 3, 8, true);
  REFUSED(px_embed_fwd_check, p.f, px_embed_fwd_args, b->rows = -1);
  REFUSED(px_embed_fwd_check, p.f, px_embed_fwd_args, b->dim = 0);
  REFUSED(px_embed_fwd_check, p.f, px_embed_fwd_args, b->ids = NULL);
  REFUSED(px_embed_fwd_check, p.f, px_embed_fwd_args, b->positions = NULL);
  REFUSED(px_embed_fwd_check, p.f, px_embed_fwd_args, b->table = NULL);
  REFUSED(px_embed_fwd_check, p.f, px_embed_fwd_args, b->y = NULL);
  REFUSED(px_embed_fwd_check, p.f, px_embed_fwd_args, b->dtype = PX_F16);
  REFUSED(px_embed_bwd_check, p.b, px_embed_bwd_args, b->rows = -1);
  REFUSED(px_embed_bwd_check, p.b, px_embed_bwd_args, b->dy = NULL);
  REFUSED(px_embed_bwd_check, p.b, px_embed_bwd_args, b->ids = NULL);
  REFUSED(px_embed_bwd_check, p.b, px_embed_bwd_args, b->dtype = PX_F16);
  release(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rows_of_the_tables_are_added),           cmocka_unit_test(gradients_gather_what_each_row_gave),
      cmocka_unit_test(gradients_add_in_the_order_of_the_rows), cmocka_unit_test(ids_and_positions_outside_are_refused),
      cmocka_unit_test(bits_do_not_depend_on_threads),          cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
