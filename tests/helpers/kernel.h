/* SPDX-License-Identifier: MIT
 * What the tests of operations share: seeded numbers, buffers that begin and end with guard bytes and are poisoned with
 * NaN, and comparison with float64. */
#ifndef PX_TESTS_KERNEL_H
#define PX_TESTS_KERNEL_H

#include <math.h>
#include <omp.h>

#include "core/random.h"
#include "helpers/test.h"
#include "helpers/tolerance.h"
#include "kernels/math_cpu.h"

enum { GUARD = 64 };

/* What a kernel returns where an index in memory is out of range: a device cannot say it. By how much a test draws
 * fewer cases where kernels are emulated. */
#if defined(PX_TEST_DEVICE)
enum { BAD_INDEX = 0, SLOWER = 1 };
#elif defined(PX_TEST_CUDA)
enum { BAD_INDEX = 0, SLOWER = 20 };
#else
enum { BAD_INDEX = 1, SLOWER = 1 };
#endif

/* `bytes` of poison (NaN in every float type) between guards; freed by guarded_free, which checks the guards. */
static inline void *guarded(size_t bytes) {
  unsigned char *p = aligned_alloc(GUARD, (3 * GUARD + bytes + GUARD - 1) / GUARD * GUARD);
  assert_non_null(p);
  memcpy(p, &bytes, sizeof bytes);
  p += GUARD; /* the buffer is aligned, as rows of real tensors are */
  memset(p, 0xa5, GUARD);
  memset(p + GUARD, 0xff, bytes);
  memset(p + GUARD + bytes, 0xa5, GUARD);
  return p + GUARD;
}

static inline void guarded_free(void *at) {
  unsigned char *p = (unsigned char *)at - GUARD;
  size_t bytes;
  memcpy(&bytes, p - GUARD, sizeof bytes);
  for (size_t i = 0; i < GUARD; i++)
    if (p[i] != 0xa5 || p[GUARD + bytes + i] != 0xa5)
      fail_msg("a guard byte was overwritten (buffer of %zu bytes)", bytes);
  free(p - GUARD);
}

/* Uniform in [-1, 1) from (seed, i). */
static inline float number(uint64_t seed, int64_t i) {
  return 2.0f * px_uniform(px_philox(seed, 77, 0, (uint64_t)i).v[0]) - 1.0f;
}

/* Elements between rows. Words of 16 bytes fit rows of a multiple of eight where their number is odd, and never where it
 * is even: kernels have a way for each, and TEST_ROWS meets both. */
static inline int64_t gap_of(int64_t rows) { return rows % 2 ? 8 : 3; }

/* A guarded buffer of count elements of the type, numbers times `scale`; what a row holds beyond dim stays poison. */
static inline void *numbers(px_dtype type, int64_t rows, int64_t dim, int64_t stride, uint64_t seed, float scale) {
  void *p = guarded((size_t)(rows * stride) * px_dtype_bytes(type, 1));
  for (int64_t t = 0; t < rows; t++)
    for (int64_t i = 0; i < dim; i++) px_put(p, type, t * stride + i, scale * number(seed, t * dim + i));
  return p;
}

static inline void *poison(px_dtype type, int64_t rows, int64_t stride) {
  return guarded((size_t)(rows * stride) * px_dtype_bytes(type, 1));
}

/* Elements [rows, dim] equal `want` [rows, dim] dense within tolerance * the largest, or * `terms`, the size of the
 * terms that cancel in a small result; between rows the poison still stands. */
static inline void expect_near_of(double terms, const char *what, px_dtype type, const void *got, const double *want,
                                  int64_t rows, int64_t dim, int64_t stride, double tolerance) {
  double largest = terms;
  for (int64_t i = 0; i < rows * dim; i++) largest = fmax(largest, fabs(want[i]));
  for (int64_t t = 0; t < rows; t++) {
    for (int64_t i = 0; i < dim; i++) {
      double e = fabs((double)px_get(got, type, t * stride + i) - want[t * dim + i]) / largest;
      if (!(e <= tolerance))
        fail_msg("%s [%lld, %lld] of [%lld, %lld] is %g, not %g", what, (long long)t, (long long)i, (long long)rows,
                 (long long)dim, (double)px_get(got, type, t * stride + i), want[t * dim + i]);
    }
    size_t size = px_dtype_bytes(type, 1);
    const unsigned char *gap = (const unsigned char *)got + (size_t)(t * stride + dim) * size;
    for (size_t i = 0; i < (size_t)(stride - dim) * size; i++)
      if (gap[i] != 0xff) fail_msg("%s: written between rows %lld and %lld", what, (long long)t, (long long)t + 1);
  }
}

static inline void expect_near(const char *what, px_dtype type, const void *got, const double *want, int64_t rows,
                               int64_t dim, int64_t stride, double tolerance) {
  expect_near_of(1e-30, what, type, got, want, rows, dim, stride, tolerance);
}

static inline double tolerance_of(px_dtype type, double f32) { return type == PX_F32 ? f32 : TOL_BF16_ROUNDING + f32; }

static inline double *doubles(int64_t count) {
  double *p = calloc((size_t)(count > 0 ? count : 1), sizeof *p);
  assert_non_null(p);
  return p;
}

static const int64_t TEST_ROWS[] = {0, 1, 7, 8, 9, 257};
static const int64_t TEST_DIMS[] = {1, 7, 64, 576, 1000};
static const px_dtype TEST_TYPES[] = {PX_F32, PX_BF16};
enum { TEST_ROWS_COUNT = 6, TEST_DIMS_COUNT = 5 };

/* A copy of good arguments with one field changed must be refused. */
#define REFUSED(check, good, type, change)                             \
  do {                                                                 \
    type bad_ = (good);                                                \
    type *b = &bad_;                                                   \
    change;                                                            \
    if (check(b) == NULL) fail_msg("%s accepts: %s", #check, #change); \
  } while (0)

#endif
