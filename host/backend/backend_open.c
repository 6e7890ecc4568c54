/* SPDX-License-Identifier: MIT
 * Which backend a device's name means. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend_cuda.h"

/* N of "cuda:N"; 0 of "cuda"; -1: neither. */
static int cuda_device(const char *name) {
  if (strcmp(name, "cuda") == 0) return 0;
  if (strncmp(name, "cuda:", 5) != 0 || name[5] < '0' || name[5] > '9') return -1;
  char *end;
  long device = strtol(name + 5, &end, 10);
  return *end || device > 1023 ? -1 : (int)device;
}

px_status px_backend_open(const px_backend_options *options, px_backend **out, px_error *err) {
  *out = NULL;
  const char *name = options->device ? options->device : "cpu";
  if (strcmp(name, "cpu") == 0) return px_backend_open_cpu(options, out, err);
  int device = cuda_device(name);
  if (device < 0)
    return px_fail(err, PX_INVALID, "device \"%s\" is not known: cpu, cuda, or cuda:N for the Nth GPU", name);
  return px_backend_open_cuda(device, options, out, err);
}
