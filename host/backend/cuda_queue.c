/* SPDX-License-Identifier: MIT
 * Queues are streams, events are CUDA's, a recording is an instantiated CUDA graph. */
#include "backend/cuda_state.h"

static cudaStream_t stream_of(const px_backend *be, px_queue queue) {
  return queue == PX_QUEUE_COPY ? px_cuda_own(be)->copies : px_cuda_own(be)->stream;
}

void *px_cuda_host_alloc(px_backend *be, size_t bytes) {
  (void)be;
  void *p = NULL;
  if (cudaMallocHost(&p, bytes) == cudaSuccess) return p;
  cudaGetLastError(); /* out of memory is no failure of the device */
  return NULL;
}

void px_cuda_host_free(px_backend *be, void *p) {
  (void)be;
  cudaFreeHost(p);
}

int px_cuda_event_new(px_backend *be, px_event **out) {
  (void)be;
  return (int)cudaEventCreateWithFlags((cudaEvent_t *)out, cudaEventDisableTiming);
}

void px_cuda_event_free(px_backend *be, px_event *event) {
  (void)be;
  cudaEventDestroy((cudaEvent_t)event);
}

int px_cuda_send(px_backend *be, px_queue queue, void *dst, const void *host, size_t bytes) {
  return (int)cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, stream_of(be, queue));
}

int px_cuda_fetch(px_backend *be, px_queue queue, void *host, const void *src, size_t bytes) {
  return (int)cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, stream_of(be, queue));
}

int px_cuda_mark(px_backend *be, px_queue queue, px_event *event) {
  return (int)cudaEventRecord((cudaEvent_t)event, stream_of(be, queue));
}

int px_cuda_after(px_backend *be, px_queue queue, px_event *event) {
  return (int)cudaStreamWaitEvent(stream_of(be, queue), (cudaEvent_t)event, 0);
}

int px_cuda_reach(px_backend *be, px_event *event) {
  (void)be;
  return (int)cudaEventSynchronize((cudaEvent_t)event);
}

/* Of this thread alone: another backend's calls in another thread are none of this recording's business. */
int px_cuda_record(px_backend *be) {
  return (int)cudaStreamBeginCapture(px_cuda_own(be)->stream, cudaStreamCaptureModeThreadLocal);
}

int px_cuda_recorded(px_backend *be, px_recording **out) {
  cudaGraph_t graph = NULL;
  cudaGraphExec_t exec = NULL;
  *out = NULL;
  cudaError_t e = cudaStreamEndCapture(px_cuda_own(be)->stream, &graph);
  if (e == cudaSuccess) e = cudaGraphInstantiate(&exec, graph, 0);
  if (graph) cudaGraphDestroy(graph);
  if (e == cudaSuccess) *out = (px_recording *)exec;
  return (int)e;
}

int px_cuda_replay(px_backend *be, px_recording *recording) {
  return (int)cudaGraphLaunch((cudaGraphExec_t)recording, px_cuda_own(be)->stream);
}

void px_cuda_recording_free(px_backend *be, px_recording *recording) {
  (void)be;
  cudaGraphExecDestroy((cudaGraphExec_t)recording);
}
