/* SPDX-License-Identifier: MIT
 * One of two files implements this: backend_cuda.c, or backend_cuda_none.c where the build has no CUDA. */
#ifndef PX_BACKEND_BACKEND_CUDA_H
#define PX_BACKEND_BACKEND_CUDA_H

#include "backend/backend.h"

px_status px_backend_open_cuda(int device, const px_backend_options *options, px_backend **out, px_error *err);

#endif
