/* SPDX-License-Identifier: MIT
 * For programs whose tests open models: they run on the CPU, then on the CUDA device of the build, emulated or real. */
#ifndef PX_TESTS_EACH_DEVICE_H
#define PX_TESTS_EACH_DEVICE_H

#include "backend/backend.h"
#include "helpers/test.h"

/* The device of the test that runs: NULL is the CPU. */
static const char *device;

#ifdef PX_TEST_HAS_CUDA
/* The device is a stand-in, a hundred times slower than the CPU alone. */
static bool is_emulated;

static int to_cuda(void **state) {
  (void)state;
  device = "cuda";
  return 0;
}

static bool has_device(void) {
  px_error err;
  px_backend *be = NULL;
  px_status status = px_backend_open(&(px_backend_options){.device = "cuda"}, &be, &err);
  is_emulated = status == PX_OK && be->emulated;
  px_backend_close(be);
  if (status == PX_NO_DEVICE) printf("skipped on cuda: %s\n", err.message);
  return status != PX_NO_DEVICE;
}

/* The end of main: what the program returns; 77 where a build for a device finds none. */
#define RETURN_FROM_EACH_DEVICE(tests)                                 \
  do {                                                                 \
    int failed = cmocka_run_group_tests(tests, NULL, NULL);            \
    if (has_device())                                                  \
      failed += cmocka_run_group_tests(tests, to_cuda, NULL);          \
    else if (!failed)                                                  \
      return 77;                                                       \
    return failed;                                                     \
  } while (0)
#else
#define RETURN_FROM_EACH_DEVICE(tests) return cmocka_run_group_tests(tests, NULL, NULL)
#endif

#endif
