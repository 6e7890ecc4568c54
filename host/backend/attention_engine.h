/* SPDX-License-Identifier: MIT
 * Which engine does attention on a CUDA device. */
#ifndef PX_BACKEND_ATTENTION_ENGINE_H
#define PX_BACKEND_ATTENTION_ENGINE_H

#include "backend/attention_split.h"

/* What was asked for, with AUTO by the table of measurements, opened. *out NULL: our own kernels as a whole. PX_NO_DEVICE
 * says what CUDNN lacks; AUTO lacks nothing. device: its name. */
px_status px_attention_open(px_backend *be, px_attention wanted, const char *device, px_attn_split **out, px_error *err);

/* cuDNN's attention: attention_cudnn.c with cudnn_graph.cpp, or attention_cudnn_none.c where the build has no headers of
 * cuDNN's. PX_NO_DEVICE says what was looked for, or which version is too old. The backend must outlive it. */
px_status px_attn_cudnn_open(px_backend *be, px_attn_engine *out, px_error *err);
/* libcudnn, opened for the life of the process. */
px_status px_cudnn_library(void **out, px_error *err);
/* What cuDNN must know of a device to make plans for it elsewhere, as it writes it itself; free(). */
px_status px_attn_cudnn_properties(int device, char **out, size_t *bytes, px_error *err);

#endif
