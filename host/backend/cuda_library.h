/* SPDX-License-Identifier: MIT
 * NVIDIA's libraries are opened when a CUDA backend is, so that one binary starts on machines without them. */
#ifndef PX_BACKEND_CUDA_LIBRARY_H
#define PX_BACKEND_CUDA_LIBRARY_H

#include "core/error.h"

/* Opens the first of `names` (NULL ends them) that is found: by the loader's own search, in the toolkit's usual place,
 * or in the folders of NVIDIA's Python packages (`package`: "cublas") below the directories of site packages.
 * PX_NO_DEVICE says what was looked for, and that pip installs it as `pip`. The handle stays open for the life of the process. */
px_status px_cuda_library_open(const char *const *names, const char *package, const char *pip, void **out, px_error *err);

#endif
