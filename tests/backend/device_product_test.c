/* SPDX-License-Identifier: MIT
 * Products on a CUDA device, by the library and where it refuses: every flag, awkward sizes, gaps between rows, against
 * the plain product. */
#include "helpers/kernel.h"

#include "backend/backend.h"

typedef struct matrix {
  size_t bytes;
  void *host, *device;
} matrix;

/* [outer, inner + gap]; the device's copy has the gaps' poison too. */
static matrix make(px_backend *be, px_dtype type, int64_t outer, int64_t stride, uint64_t seed) {
  matrix m = {.bytes = (size_t)(outer * stride) * px_dtype_bytes(type, 1), .host = numbers(type, outer, stride, stride, seed, 1)};
  m.device = px_backend_alloc(be, m.bytes + 16);
  px_backend_write(be, m.device, m.host, m.bytes);
  return m;
}

/* Of the product's own c, to the rounding of the two. */
static void check_gelu(px_backend *be, const px_gemm_args *a, const void *device, const void *c, double tolerance) {
  size_t bytes = (size_t)(a->m * a->ldg) * px_dtype_bytes(a->c_type, 1);
  void *got = guarded(bytes);
  double *want = doubles(a->m * a->ldg);
  px_backend_read(be, got, device, bytes);
  for (int64_t i = 0; i < a->m * a->ldg; i++) {
    int64_t row = i / a->ldg, column = i % a->ldg;
    double v = column < a->n ? (double)px_get(c, a->c_type, row * a->ldc + column) : 0;
    want[i] = column < a->n ? 0.5 * v * (1 + tanh(sqrt(2 / M_PI) * (v + 0.044715 * v * v * v))) : (double)px_get(a->gelu, a->c_type, i);
  }
  expect_near("gelu", a->c_type, got, want, a->m, a->ldg, a->ldg, 2 * tolerance);
  guarded_free(got);
  free(want);
}

static void check(px_backend *be, int flags, int types, int64_t m, int64_t n, int64_t k) {
  px_error err;
  px_gemm_args a = {.m = m, .n = n, .k = k, .trans_a = flags & 1, .trans_b = flags & 2, .accumulate = flags & 4};
  int64_t gap = flags & 16 ? 8 : flags & 32 ? 3 : 0;
  a.type = types ? PX_BF16 : PX_F32, a.c_type = types == 1 ? PX_BF16 : PX_F32, a.bias_type = flags & 2 ? PX_F32 : a.c_type;
  a.lda = (a.trans_a ? m : k) + gap, a.ldb = (a.trans_b ? k : n) + gap, a.ldc = n + gap, a.ldg = n + (gap == 3 ? 1 : gap);
  bool with_gelu = (flags & 64) && !a.accumulate;
  matrix x = make(be, a.type, a.trans_a ? k : m, a.lda, 1), w = make(be, a.type, a.trans_b ? n : k, a.ldb, 2),
         c = make(be, a.c_type, m, a.ldc, 3), bias = make(be, a.bias_type, 1, n, 4), gelu = make(be, a.c_type, m, a.ldg, 5);
  px_gemm_args d = a;
  a.a = x.host, a.b = w.host, a.c = c.host, a.bias = flags & 8 ? bias.host : NULL;
  d.a = x.device, d.b = w.device, d.c = c.device, d.bias = flags & 8 ? bias.device : NULL;
  if (with_gelu) a.gelu = gelu.host, d.gelu = gelu.device;
  px_op_gemm(be, &d);
  void *got = guarded(c.bytes);
  px_backend_read(be, got, c.device, c.bytes);
  ASSERT_OK(px_backend_status(be, &err));
  char *before = memcpy(malloc(c.bytes + 1), c.host, c.bytes);
  assert_int_equal(px_gemm_plain_cpu(&a), 0);
  double *want = doubles(m * a.ldc);
  for (int64_t i = 0; i < m * a.ldc; i++) want[i] = (double)px_get(i % a.ldc < n ? c.host : (void *)before, a.c_type, i);
  double tolerance = a.c_type == PX_F32 ? TOL_F32_PRODUCT : 2 * TOL_BF16_ROUNDING + TOL_F32_PRODUCT; /* bias rounds again */
  expect_near("c", a.c_type, got, want, m, a.ldc, a.ldc, tolerance);
  if (with_gelu) check_gelu(be, &a, gelu.device, got, tolerance);
  matrix *all[] = {&x, &w, &c, &bias, &gelu};
  for (int i = 0; i < 5; i++) {
    px_backend_free(be, all[i]->device);
    guarded_free(all[i]->host);
  }
  guarded_free(got);
  free(before), free(want);
}

static void every_flag_at_awkward_sizes(void **state) {
  (void)state;
  static const int64_t sizes[][3] = {{1, 1, 1}, {0, 8, 8}, {8, 0, 8}, {5, 7, 0}, {7, 8, 9}, {16, 64, 24}, {33, 17, 40}};
  px_error err;
  px_backend *be;
  px_status status = px_backend_open(&(px_backend_options){.device = "cuda"}, &be, &err);
  if (status == PX_NO_DEVICE) {
    print_message("skipped: %s\n", err.message);
    skip();
  }
  ASSERT_OK(status);
  for (int flags = 0; flags < 112; flags++)
    for (int types = 0; types < 3; types++)
      for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        if (be->emulated && (flags + types + (int)s) % 2) continue; /* every flag and every size, half of their pairs */
        check(be, flags, types, sizes[s][0], sizes[s][1], sizes[s][2]);
      }
  px_backend_close(be);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_flag_at_awkward_sizes)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
