/* SPDX-License-Identifier: MIT
 * Inside the CUDA backend: its state, and the services of cuda_queue.c (their contracts are backend.h's). */
#ifndef PX_BACKEND_CUDA_STATE_H
#define PX_BACKEND_CUDA_STATE_H

#include <cuda_runtime_api.h>

#include "backend/attention_split.h"
#include "backend/backend.h"
#include "backend/gemm_cublaslt.h"

typedef struct px_cuda_state {
  int device;
  cudaStream_t stream; /* PX_QUEUE_COMPUTE */
  cudaStream_t copies; /* PX_QUEUE_COPY */
  px_lt *lt;
  char products[112];
  px_attn_split *split; /* NULL: attention is done by our own kernels as a whole */
} px_cuda_state;

static inline px_cuda_state *px_cuda_own(const px_backend *be) { return be->own; }

void *px_cuda_host_alloc(px_backend *be, size_t bytes);
void px_cuda_host_free(px_backend *be, void *p);
int px_cuda_event_new(px_backend *be, px_event **out);
void px_cuda_event_free(px_backend *be, px_event *event);
int px_cuda_send(px_backend *be, px_queue queue, void *dst, const void *host, size_t bytes);
int px_cuda_fetch(px_backend *be, px_queue queue, void *host, const void *src, size_t bytes);
int px_cuda_mark(px_backend *be, px_queue queue, px_event *event);
int px_cuda_after(px_backend *be, px_queue queue, px_event *event);
int px_cuda_reach(px_backend *be, px_event *event);
int px_cuda_record(px_backend *be);
int px_cuda_recorded(px_backend *be, px_recording **out);
int px_cuda_replay(px_backend *be, px_recording *recording);
void px_cuda_recording_free(px_backend *be, px_recording *recording);

#endif
