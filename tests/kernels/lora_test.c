/* SPDX-License-Identifier: MIT */
#include "helpers/kernel.h"

#include "kernels/lora.h"

/* Sequences of 0, 1, 7, 8, 9, 257 and 3 rows over three matrices of different sizes and no matrix. */
enum { SEQS = 7, MATS = 3, ROWS = 285, SHAPES = 3 };
static const int32_t OFFSETS[SEQS + 1] = {0, 0, 1, 8, 16, 25, 282, 285};
static const int32_t IDS[SEQS] = {1, 2, 0, -1, 1, 0, 2};

/* Short sums; long ones into a narrow result, rows that words of 16 bytes fit; narrow rows into a wide result. */
typedef struct sizes {
  int64_t x_dim, y_dim, gap;
  int32_t in[MATS], out[MATS];
} sizes;
static const sizes ALL_SIZES[SHAPES] = {{70, 33, 5, {70, 8, 64}, {33, 33, 5}},
                                        {296, 24, 8, {296, 136, 290}, {24, 16, 5}},
                                        {40, 300, 4, {40, 8, 7}, {300, 256, 131}}};
static const sizes *SIZES = ALL_SIZES;
#define X_DIM (SIZES->x_dim)
#define Y_DIM (SIZES->y_dim)
#define GAP (SIZES->gap)
#define IN (SIZES->in)
#define OUT (SIZES->out)

typedef struct problem {
  px_lora_args a;
  px_lora_matrix mats[MATS];
  int32_t offsets[SEQS + 1], ids[SEQS]; /* copies: a device does not see a program's constants */
} problem;

static void make(problem *p, px_lora_mode mode, px_dtype type, px_dtype w_type, bool accumulate) {
  memcpy(p->offsets, OFFSETS, sizeof OFFSETS);
  memcpy(p->ids, IDS, sizeof IDS);
  for (int i = 0; i < MATS; i++) {
    p->mats[i] = (px_lora_matrix){.w = numbers(w_type, OUT[i], IN[i], IN[i], 10 + (uint64_t)i, 1),
                                  .dw = guarded((size_t)(OUT[i] * IN[i]) * sizeof(float)),
                                  .in = IN[i],
                                  .out = OUT[i],
                                  .scale = 0.5f + (float)i};
    for (int j = 0; j < OUT[i] * IN[i]; j++) p->mats[i].dw[j] = number(20, j);
  }
  bool x_given = mode != PX_LORA_DX || accumulate, y_given = mode != PX_LORA_FWD || accumulate;
  p->a = (px_lora_args){.mode = mode,
                        .dtype = type,
                        .w_type = w_type,
                        .seqs = SEQS,
                        .rows = OFFSETS[SEQS],
                        .offsets = p->offsets,
                        .adapter = p->ids,
                        .mats = p->mats,
                        .mat_count = MATS,
                        .x_stride = X_DIM + GAP,
                        .y_stride = Y_DIM + GAP,
                        .x_dim = X_DIM,
                        .y_dim = Y_DIM,
                        .accumulate = accumulate,
                        .x = x_given ? numbers(type, ROWS, X_DIM, X_DIM + GAP, 1, 1) : poison(type, ROWS, X_DIM + GAP),
                        .y = y_given ? numbers(type, ROWS, Y_DIM, Y_DIM + GAP, 2, 1) : poison(type, ROWS, Y_DIM + GAP)};
}

static void release(problem *p) {
  for (int i = 0; i < MATS; i++) {
    guarded_free((void *)(uintptr_t)p->mats[i].w);
    guarded_free(p->mats[i].dw);
  }
  guarded_free(p->a.x);
  guarded_free(p->a.y);
}

static double x_at(const problem *p, int64_t t, int64_t i) {
  return (double)px_get(p->a.x, p->a.dtype, t * p->a.x_stride + i);
}
static double y_at(const problem *p, int64_t t, int64_t j) {
  return (double)px_get(p->a.y, p->a.dtype, t * p->a.y_stride + j);
}
static double w_at(const problem *p, const px_lora_matrix *m, int64_t j, int64_t i) {
  return (double)px_get(m->w, p->a.w_type, j * m->in + i);
}

/* What x or y must become. */
static double *rows_after(const problem *p) {
  bool fwd = p->a.mode == PX_LORA_FWD;
  int64_t dim = fwd ? Y_DIM : X_DIM;
  double *want = doubles(ROWS * dim);
  for (int s = 0; s < SEQS; s++)
    for (int64_t t = OFFSETS[s]; t < OFFSETS[s + 1]; t++)
      for (int64_t c = 0; c < dim; c++) {
        double sum = 0, *to = &want[t * dim + c];
        if (p->a.accumulate) *to = fwd ? y_at(p, t, c) : x_at(p, t, c);
        if (IDS[s] < 0) continue;
        const px_lora_matrix *m = &p->mats[IDS[s]];
        if (c >= (fwd ? m->out : m->in)) continue;
        for (int64_t i = 0; i < (fwd ? m->in : m->out); i++)
          sum += fwd ? x_at(p, t, i) * w_at(p, m, c, i) : y_at(p, t, i) * w_at(p, m, i, c);
        *to += (double)m->scale * sum;
      }
  return want;
}

static void rows_are_multiplied_by_their_sequence_s_matrix(void **state) {
  (void)state;
  for (SIZES = ALL_SIZES; SIZES < ALL_SIZES + SHAPES; SIZES++)
    for (int mode = PX_LORA_FWD; mode <= PX_LORA_DX; mode++)
      for (int type = 0; type < 2; type++)
        for (int w_type = 0; w_type <= type; w_type++)
          for (int accumulate = 0; accumulate < 2; accumulate++) {
            problem p;
            make(&p, (px_lora_mode)mode, TEST_TYPES[type], TEST_TYPES[w_type], accumulate);
            double *want = rows_after(&p);
            assert_null(px_lora_check(&p.a));
            assert_null(px_lora_check_arrays(&p.a));
            assert_int_equal(px_lora_cpu(&p.a), 0);
            bool fwd = mode == PX_LORA_FWD;
            expect_near(fwd ? "y" : "x", p.a.dtype, fwd ? p.a.y : p.a.x, want, ROWS, fwd ? Y_DIM : X_DIM,
                        fwd ? p.a.y_stride : p.a.x_stride, tolerance_of(p.a.dtype, TOL_F32_SUM));
            free(want);
            release(&p);
          }
}

static void weight_gradients_accumulate(void **state) {
  (void)state;
  for (int n = 0; n < 2 * SHAPES; n++) {
    int type = n % 2;
    SIZES = &ALL_SIZES[n / 2];
    problem p;
    make(&p, PX_LORA_DW, TEST_TYPES[type], PX_F32, false);
    double *want[MATS];
    for (int i = 0; i < MATS; i++) {
      want[i] = doubles(OUT[i] * IN[i]);
      for (int64_t e = 0; e < OUT[i] * IN[i]; e++) want[i][e] = (double)p.mats[i].dw[e];
    }
    for (int s = 0; s < SEQS; s++)
      for (int64_t t = OFFSETS[s]; t < OFFSETS[s + 1] && IDS[s] >= 0; t++) {
        const px_lora_matrix *m = &p.mats[IDS[s]];
        for (int64_t j = 0; j < m->out; j++)
          for (int64_t i = 0; i < m->in; i++)
            want[IDS[s]][j * m->in + i] += (double)m->scale * y_at(&p, t, j) * x_at(&p, t, i);
      }
    assert_int_equal(px_lora_cpu(&p.a), 0);
    for (int i = 0; i < MATS; i++) {
      expect_near("dw", PX_F32, p.mats[i].dw, want[i], OUT[i], IN[i], IN[i], TOL_F32_SUM);
      free(want[i]);
    }
    release(&p);
  }
}

/* <fwd(x), y> = <x, dx(y)> = <w, dw(x, y)>: a bilinear form has its backward passes fixed by this alone. */
static void backward_is_the_adjoint(const sizes *now) {
  SIZES = now;
  problem fwd, dx, dw;
  make(&fwd, PX_LORA_FWD, PX_F32, PX_F32, false);
  make(&dx, PX_LORA_DX, PX_F32, PX_F32, false);
  make(&dw, PX_LORA_DW, PX_F32, PX_F32, false);
  for (int i = 0; i < MATS; i++) memset(dw.mats[i].dw, 0, (size_t)(OUT[i] * IN[i]) * sizeof(float));
  assert_int_equal(px_lora_cpu(&fwd.a) | px_lora_cpu(&dx.a) | px_lora_cpu(&dw.a), 0);
  double a = 0, b = 0, c = 0, size = 0;
  for (int64_t t = 0; t < ROWS; t++) {
    for (int64_t j = 0; j < Y_DIM; j++) a += y_at(&fwd, t, j) * y_at(&dw, t, j), size += fabs(y_at(&fwd, t, j));
    for (int64_t i = 0; i < X_DIM; i++) b += x_at(&dx, t, i) * x_at(&dw, t, i);
  }
  for (int m = 0; m < MATS; m++)
    for (int64_t e = 0; e < OUT[m] * IN[m]; e++)
      c += (double)dw.mats[m].dw[e] * w_at(&dw, &dw.mats[m], e / IN[m], e % IN[m]);
  assert_true(fabs(a - b) <= TOL_F32_SUM * size);
  assert_true(fabs(a - c) <= TOL_F32_SUM * size);
  release(&fwd);
  release(&dx);
  release(&dw);
}

static void backward_is_the_adjoint_of_forward(void **state) {
  (void)state;
  for (int i = 0; i < SHAPES; i++) backward_is_the_adjoint(&ALL_SIZES[i]);
}

/* The longest sequence by itself: its rows lie elsewhere in a kernel's tiles, and have the same bits. */
static void a_row_depends_on_itself_and_its_matrix(void **state) {
  (void)state;
  enum { LONGEST = 5 };
  for (int n = 0; n < 2 * SHAPES; n++) {
    int mode = n % 2;
    SIZES = &ALL_SIZES[n / 2];
    problem all, alone;
    make(&all, (px_lora_mode)mode, PX_BF16, PX_F32, true);
    make(&alone, (px_lora_mode)mode, PX_BF16, PX_F32, true);
    int64_t first = OFFSETS[LONGEST], rows = OFFSETS[LONGEST + 1] - first;
    alone.offsets[0] = 0, alone.offsets[1] = (int32_t)rows, alone.ids[0] = IDS[LONGEST];
    alone.a.seqs = 1, alone.a.rows = rows;
    alone.a.x = (uint16_t *)alone.a.x + first * alone.a.x_stride,
    alone.a.y = (uint16_t *)alone.a.y + first * alone.a.y_stride;
    assert_int_equal(px_lora_cpu(&all.a) | px_lora_cpu(&alone.a), 0);
    assert_memory_equal((uint16_t *)all.a.x + first * all.a.x_stride, alone.a.x, (size_t)(rows * all.a.x_stride) * 2);
    assert_memory_equal((uint16_t *)all.a.y + first * all.a.y_stride, alone.a.y, (size_t)(rows * all.a.y_stride) * 2);
    alone.a.x = (uint16_t *)alone.a.x - first * alone.a.x_stride,
    alone.a.y = (uint16_t *)alone.a.y - first * alone.a.y_stride;
    release(&all);
    release(&alone);
  }
}

static void bits_do_not_depend_on_threads(void **state) {
  (void)state;
  for (int mode = 0; mode < 3; mode++) {
    problem p[3];
    SIZES = &ALL_SIZES[mode];
    for (int t = 0; t < 3; t++) {
      make(&p[t], (px_lora_mode)mode, PX_F32, PX_F32, true);
      omp_set_num_threads(t + 1);
      assert_int_equal(px_lora_cpu(&p[t].a), 0);
      assert_memory_equal(p[t].a.x, p[0].a.x, (size_t)(ROWS * (X_DIM + GAP)) * sizeof(float));
      assert_memory_equal(p[t].a.y, p[0].a.y, (size_t)(ROWS * (Y_DIM + GAP)) * sizeof(float));
      for (int i = 0; i < MATS; i++)
        assert_memory_equal(p[t].mats[i].dw, p[0].mats[i].dw, (size_t)(OUT[i] * IN[i]) * sizeof(float));
    }
    omp_set_num_threads(2);
    for (int t = 0; t < 3; t++) release(&p[t]);
  }
}

static void an_unknown_matrix_writes_nothing(void **state) {
  (void)state;
  SIZES = ALL_SIZES;
  problem p;
  int32_t wrong[SEQS] = {1, 2, 0, -1, 1, 0, MATS};
  make(&p, PX_LORA_FWD, PX_F32, PX_F32, false);
  p.a.adapter = wrong;
  assert_int_equal(px_lora_cpu(&p.a), BAD_INDEX);
  for (size_t i = 0; i < (size_t)(ROWS * (Y_DIM + GAP)) * sizeof(float); i++)
    assert_int_equal(((unsigned char *)p.a.y)[i], 0xff);
  release(&p);
}

static void refusals(void **state) {
  (void)state;
  SIZES = ALL_SIZES;
  problem p;
  make(&p, PX_LORA_FWD, PX_F32, PX_F32, false);
  assert_null(px_lora_check(&p.a));
  assert_null(px_lora_check_arrays(&p.a));
  REFUSED(px_lora_check, p.a, px_lora_args, b->dtype = PX_F16);
  REFUSED(px_lora_check, p.a, px_lora_args, b->seqs = -1);
  REFUSED(px_lora_check, p.a, px_lora_args, b->offsets = NULL);
  REFUSED(px_lora_check, p.a, px_lora_args, b->adapter = NULL);
  REFUSED(px_lora_check, p.a, px_lora_args, b->mats = NULL);
  REFUSED(px_lora_check, p.a, px_lora_args, b->x = NULL);
  REFUSED(px_lora_check, p.a, px_lora_args, b->y = NULL);
  REFUSED(px_lora_check, p.a, px_lora_args, b->x_stride = X_DIM - 1);
  REFUSED(px_lora_check, p.a, px_lora_args, b->y_stride = Y_DIM - 1);
  release(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rows_are_multiplied_by_their_sequence_s_matrix),
      cmocka_unit_test(weight_gradients_accumulate),
      cmocka_unit_test(backward_is_the_adjoint_of_forward),
      cmocka_unit_test(a_row_depends_on_itself_and_its_matrix),
      cmocka_unit_test(bits_do_not_depend_on_threads),
      cmocka_unit_test(an_unknown_matrix_writes_nothing),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
