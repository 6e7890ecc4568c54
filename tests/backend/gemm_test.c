/* SPDX-License-Identifier: MIT
 * Products: the plain C one, the backend's own (oneDNN where it is built in), and that with packed weights, each
 * against float64; and that the bits of a row depend neither on the number of rows nor on the number of threads. */
#include "helpers/kernel.h"

#include "backend/backend.h"
#include "backend/gemm_product.h"

enum { PLAIN, BACKEND, PACKED, WAYS };

static px_backend *backends[WAYS];

static void open_backends(int threads) {
  px_error err;
  for (int way = BACKEND; way < WAYS; way++) {
    px_backend_options options = {.threads = threads, .pack_weights = way == PACKED};
    assert_int_equal(px_backend_open_cpu(&options, &backends[way], &err), PX_OK);
  }
}

static void close_backends(void) {
  for (int way = BACKEND; way < WAYS; way++) px_backend_close(backends[way]);
}

static void multiply(int way, const px_gemm_args *a) {
  px_error err;
  if (way == PLAIN) {
    assert_int_equal(px_gemm_plain_cpu(a), 0);
    return;
  }
  px_op_gemm(backends[way], a);
  if (px_backend_status(backends[way], &err) != PX_OK) fail_msg("%s", err.message);
}

/* [outer, inner] with `gap` poisoned elements after each row. */
static void *matrix(px_dtype type, int64_t outer, int64_t inner, int64_t gap, uint64_t seed) {
  return numbers(type, outer, inner, inner + gap, seed, 1);
}

static double *product(const px_gemm_args *a, const float *before) {
  double *want = doubles(a->m * a->n);
  for (int64_t i = 0; i < a->m; i++)
    for (int64_t j = 0; j < a->n; j++) {
      double sum = a->accumulate ? (double)before[i * a->n + j] : 0;
      if (a->bias) sum += (double)px_get(a->bias, a->bias_type, j);
      for (int64_t p = 0; p < a->k; p++)
        sum += (double)px_get(a->a, a->type, a->trans_a ? p * a->lda + i : i * a->lda + p) *
               (double)px_get(a->b, a->type, a->trans_b ? j * a->ldb + p : p * a->ldb + j);
      want[i * a->n + j] = sum;
    }
  return want;
}

typedef struct variant {
  px_dtype type, c_type, bias_type;
  bool trans_a, trans_b, accumulate, bias, frozen;
  int64_t gap;
} variant;

static void check_one(int way, const variant *v, int64_t m, int64_t n, int64_t k) {
  px_gemm_args a = {.m = m,
                    .n = n,
                    .k = k,
                    .type = v->type,
                    .c_type = v->c_type,
                    .bias_type = v->bias_type,
                    .trans_a = v->trans_a,
                    .trans_b = v->trans_b,
                    .accumulate = v->accumulate,
                    .b_frozen = v->frozen};
  a.lda = (v->trans_a ? m : k) + v->gap;
  a.ldb = (v->trans_b ? k : n) + v->gap;
  a.ldc = n + v->gap;
  void *x = matrix(v->type, v->trans_a ? k : m, v->trans_a ? m : k, v->gap, 1);
  void *w = matrix(v->type, v->trans_b ? n : k, v->trans_b ? k : n, v->gap, 2);
  void *bias = v->bias ? numbers(v->bias_type, 1, n, n, 3, 1) : NULL;
  void *c = v->accumulate ? matrix(v->c_type, m, n, v->gap, 4) : poison(v->c_type, m, a.ldc);
  float *before = calloc((size_t)(m * n + 1), sizeof *before);
  a.a = x, a.b = w, a.c = c, a.bias = bias;
  for (int64_t i = 0; v->accumulate && i < m * n; i++) before[i] = px_get(c, v->c_type, i / n * a.ldc + i % n);
  double *want = product(&a, before);
  assert_null(px_gemm_check(&a));
  multiply(way, &a);
  if (way == PACKED) { /* the second product meets the packed weight */
    for (int64_t i = 0; i < m * n && v->accumulate; i++) px_put(c, v->c_type, i / n * a.ldc + i % n, before[i]);
    multiply(way, &a);
  }
  double tolerance = v->c_type == PX_F32 ? TOL_F32_PRODUCT : TOL_BF16_ROUNDING + TOL_F32_PRODUCT;
  expect_near("c", v->c_type, c, want, m, n, a.ldc, tolerance);
  if (way != PLAIN) px_product_forget(backends[way]->own, w, 1);
  free(before);
  free(want);
  guarded_free(x);
  guarded_free(w);
  guarded_free(c);
  if (bias) guarded_free(bias);
}

static void every_flag_at_awkward_sizes(void **state) {
  (void)state;
  static const int64_t sizes[][3] = {{1, 1, 1},   {0, 8, 8},   {8, 0, 8},     {5, 7, 0},     {1, 9, 257}, {7, 8, 9},
                                     {9, 1, 600}, {17, 64, 7}, {257, 33, 64}, {64, 257, 96}, {3, 65, 576}};
  open_backends(2);
  for (int way = 0; way < WAYS; way++)
    for (int flags = 0; flags < 64; flags++)
      for (int types = 0; types < 3; types++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
          variant v = {.type = types ? PX_BF16 : PX_F32,
                       .c_type = types == 1 ? PX_BF16 : PX_F32,
                       .trans_a = flags & 1,
                       .trans_b = flags & 2,
                       .accumulate = flags & 4,
                       .bias = flags & 8,
                       .frozen = flags & 16 || way == PACKED,
                       .gap = flags & 32 ? 5 : 0};
          v.bias_type = types == 1 && s % 2 ? PX_BF16 : PX_F32;
          check_one(way, &v, sizes[s][0], sizes[s][1], sizes[s][2]);
        }
  close_backends();
}

/* Every row of a product of `most` rows has the bits of the same row in a product of m rows. */
static void rows_keep_their_bits(int way, const variant *v, int64_t n, int64_t k, int64_t most, int64_t step) {
  px_gemm_args a = {.m = most,
                    .n = n,
                    .k = k,
                    .lda = k,
                    .ldb = v->trans_b ? k : n,
                    .ldc = n,
                    .type = v->type,
                    .c_type = v->c_type,
                    .bias_type = PX_F32,
                    .trans_b = v->trans_b,
                    .b_frozen = true};
  void *x = matrix(v->type, most, k, 0, 5), *w = matrix(v->type, v->trans_b ? n : k, v->trans_b ? k : n, 0, 6);
  void *whole = poison(v->c_type, most, n), *part = poison(v->c_type, most, n);
  size_t row = (size_t)n * px_dtype_bytes(v->c_type, 1);
  a.a = x, a.b = w, a.c = whole;
  multiply(way, &a);
  a.c = part;
  for (int64_t m = 1; m < most; m += m < 20 ? 1 : step) {
    int64_t from = most - m; /* other rows stand first, too */
    a.m = m;
    a.a = (char *)x + (size_t)(from * k) * px_dtype_bytes(v->type, 1);
    multiply(way, &a);
    if (memcmp(part, (char *)whole + (size_t)from * row, row * (size_t)m) != 0)
      fail_msg("way %d, %s, n %lld, k %lld: bits change with %lld rows", way, v->type == PX_F32 ? "f32" : "bf16",
               (long long)n, (long long)k, (long long)m);
  }
  /* one thread */
  a.m = most, a.a = x;
  px_error err;
  px_backend *one = NULL, *two = backends[way];
  px_backend_options options = {.threads = 1, .pack_weights = way == PACKED};
  assert_int_equal(px_backend_open_cpu(&options, &one, &err), PX_OK);
  if (way != PLAIN) backends[way] = one;
  if (way == PLAIN) omp_set_num_threads(1);
  multiply(way, &a);
  omp_set_num_threads(2);
  backends[way] = two;
  px_backend_close(one);
  if (memcmp(part, whole, row * (size_t)most) != 0)
    fail_msg("way %d, n %lld, k %lld: bits change with the threads", way, (long long)n, (long long)k);
  if (way != PLAIN) px_product_forget(backends[way]->own, w, 1);
  guarded_free(x);
  guarded_free(w);
  guarded_free(whole);
  guarded_free(part);
}

static void a_row_has_the_same_bits_in_any_batch(int way) {
  static const int64_t shapes[][2] = {{576, 576}, {192, 576}, {1536, 576}, {576, 1536}, {1000, 33}, {49152, 64}};
  open_backends(2);
  for (int type = 0; type < 2; type++)
    for (int trans = 0; trans < 2; trans++)
      for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        px_dtype t = type ? PX_BF16 : PX_F32;
        variant v = {.type = t, .c_type = s == 5 ? PX_F32 : t, .trans_b = trans};
        bool every = s == 1 && way == BACKEND; /* each m from 1 to 881 once, the rest in leaps */
        bool slow = way == PLAIN;
        rows_keep_their_bits(way, &v, shapes[s][0], shapes[s][1], slow || s == 5 ? 60 : 882,
                             every  ? 1
                             : slow ? 13
                                    : 57);
      }
  close_backends();
}

static void plain_rows(void **state) {
  (void)state;
  a_row_has_the_same_bits_in_any_batch(PLAIN);
}
static void backend_rows(void **state) {
  (void)state;
  a_row_has_the_same_bits_in_any_batch(BACKEND);
}
static void packed_rows(void **state) {
  (void)state;
  a_row_has_the_same_bits_in_any_batch(PACKED);
}

static void refusals(void **state) {
  (void)state;
  float x[64] = {0}, w[64] = {0}, c[64] = {0};
  px_gemm_args a = {.m = 4, .n = 4, .k = 4, .lda = 4, .ldb = 4, .ldc = 4, .a = x, .b = w, .c = c};
  assert_null(px_gemm_check(&a));
  REFUSED(px_gemm_check, a, px_gemm_args, b->m = -1);
  REFUSED(px_gemm_check, a, px_gemm_args, b->k = -1);
  REFUSED(px_gemm_check, a, px_gemm_args, b->lda = 3);
  REFUSED(px_gemm_check, a, px_gemm_args, b->ldb = 3);
  REFUSED(px_gemm_check, a, px_gemm_args, b->ldc = 3);
  REFUSED(px_gemm_check, a, px_gemm_args, b->a = NULL);
  REFUSED(px_gemm_check, a, px_gemm_args, b->b = NULL);
  REFUSED(px_gemm_check, a, px_gemm_args, b->c = NULL);
  REFUSED(px_gemm_check, a, px_gemm_args, b->type = PX_F16);
  REFUSED(px_gemm_check, a, px_gemm_args, b->c_type = PX_BF16);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_flag_at_awkward_sizes),
      cmocka_unit_test(plain_rows),
      cmocka_unit_test(backend_rows),
      cmocka_unit_test(packed_rows),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
