/* SPDX-License-Identifier: MIT
 * The calls of the CUDA runtime that pfx makes. Work waits in its stream until something forces it; then streams take
 * turns in a seeded order that respects events alone, so that a missing event becomes a wrong answer. With
 * PX_EMU_FAIL=N the Nth call fails. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "emu.h"

struct CUevent_st {
  unsigned asked, done; /* records enqueued, records reached */
  bool timed;
  double at_ms; /* of the last record reached */
};

struct px_work {
  const char *name;
  std::function<void()> run;
  CUevent_st *wait; /* not before this many records */
  unsigned records;
};

struct CUgraph_st {
  std::vector<px_work> work;
};
struct CUgraphExec_st {
  std::vector<px_work> work;
};

struct CUstream_st {
  std::deque<px_work> queue;
  CUgraph_st *capture;
};

namespace px_emu {
namespace {

std::set<CUstream_st *> streams;
CUstream_st *default_stream;
cudaError_t last_error, sticky;
std::map<const char *, size_t> pinned; /* host memory: start, bytes */
std::map<const void *, size_t> allowed;
unsigned random_state;
long calls;
double now_ms;
long pieces_done;

CUstream_st *stream_of(cudaStream_t s) {
  if (s) {
    if (!streams.count(s)) fatal("a stream that was destroyed, or never made, is used");
    return s;
  }
  if (!default_stream) streams.insert(default_stream = new CUstream_st());
  return default_stream;
}

/* What a step should do once or never; printed at the end where PX_EMU_COUNT is 1. */
struct counts {
  long allocations, pauses, recordings, replays;
  ~counts() {
    if (setting("PX_EMU_COUNT", 0))
      fprintf(stderr, "emulator: %ld allocations, %ld pauses, %ld recordings, %ld replays\n", allocations, pauses, recordings, replays);
  }
} counted;

bool is_ready(const px_work &w) { return !w.wait || (int)(w.wait->done - w.records) >= 0; }

/* Runs work until `done`; memory is open meanwhile. */
template <typename F>
void drain(F done) {
  static const long break_at = setting("PX_EMU_BREAK_AT", 0); /* the device fails once it has done so many pieces of work */
  if (done()) return;
  memory_open();
  while (!done()) {
    if (sticky != cudaSuccess) { /* nothing is done any more, and nobody waits */
      for (CUstream_st *s : streams) s->queue.clear();
      break;
    }
    std::vector<CUstream_st *> ready;
    for (CUstream_st *s : streams)
      if (!s->queue.empty() && is_ready(s->queue.front())) ready.push_back(s);
    if (ready.empty()) fatal("streams wait for an event that nobody records");
    CUstream_st *s = ready[seed() ? draw((unsigned)ready.size()) : 0];
    px_work w = std::move(s->queue.front());
    s->queue.pop_front();
    if (w.run) w.run();
    if (w.run && ++pieces_done == break_at) stick(cudaErrorIllegalAddress);
  }
  memory_close();
}

cudaError_t finish(cudaStream_t stream) {
  CUstream_st *s = stream_of(stream);
  if (s->capture) return set_error(cudaErrorStreamCaptureUnsupported);
  drain([s] { return s->queue.empty(); });
  return sticky;
}

void finish_all() {
  drain([] {
    for (CUstream_st *s : streams)
      if (!s->queue.empty()) return false;
    return true;
  });
}

void push(cudaStream_t stream, px_work w) {
  CUstream_st *s = stream_of(stream);
  if (s->capture)
    s->capture->work.push_back(std::move(w));
  else
    s->queue.push_back(std::move(w));
}

/* First thing in every call. */
cudaError_t enter() {
  static const long fail_at = setting("PX_EMU_FAIL", 0);
  if (sticky != cudaSuccess) return last_error = sticky;
  if (++calls != fail_at) return cudaSuccess;
  fprintf(stderr, "emulator: call %ld fails\n", calls); /* so that a test knows when it has failed them all */
  return set_error(cudaErrorUnknown);
}

}  // namespace

void fatal(const char *format, ...) {
  va_list list;
  va_start(list, format);
  fprintf(stderr, "emulator: ");
  vfprintf(stderr, format, list);
  fprintf(stderr, "\n");
  va_end(list);
  abort();
}

long setting(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text && *text ? atol(text) : otherwise;
}

unsigned seed() {
  static const unsigned value = (unsigned)setting("PX_EMU_SEED", 0);
  return value;
}

unsigned draw(unsigned below) {
  if (!random_state) random_state = seed() * 2654435761u + 1;
  random_state = random_state * 1664525u + 1013904223u;
  return (random_state >> 8) % below;
}

void stick(cudaError_t error) { sticky = error; }
void spend(double ms) { now_ms += ms; }
cudaError_t set_error(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

void enqueue(cudaStream_t stream, const char *name, std::function<void()> work) {
  static const bool at_once = setting("CUDA_LAUNCH_BLOCKING", 0);
  push(stream, {name, std::move(work), NULL, 0});
  if (at_once && !stream_of(stream)->capture && finish(stream) != cudaSuccess) last_error = sticky;
}

void allow_shared(const void *kernel, size_t bytes) { allowed[kernel] = bytes; }

void launch(const void *kernel, const char *name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            std::function<void()> body) {
  if (enter() != cudaSuccess) return;
  size_t most = (size_t)setting("PX_EMU_SHARED_KB", 99) << 10, plain = 48 << 10;
  auto asked = allowed.find(kernel);
  if (asked != allowed.end() && asked->second > plain) plain = asked->second;
  size_t threads = (size_t)block.x * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || !threads ||
      threads > 1024 || shared_bytes > plain || shared_bytes > most) {
    set_error(cudaErrorInvalidConfiguration);
    return;
  }
  enqueue(stream, name, [=] { run_grid(name, grid, block, shared_bytes, body); });
}

}  // namespace px_emu

using namespace px_emu;

#define ENTER()                                   \
  do {                                            \
    cudaError_t entered_ = enter();               \
    if (entered_ != cudaSuccess) return entered_; \
  } while (0)

extern "C" {

cudaError_t cudaGetLastError(void) {
  cudaError_t e = sticky != cudaSuccess ? sticky : last_error;
  last_error = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError(void) { return sticky != cudaSuccess ? sticky : last_error; }
const char *cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    default:
      return "unknown error";
  }
}
const char *cudaGetErrorName(cudaError_t e) { return cudaGetErrorString(e); }

/* ---- the device ---- */

cudaError_t cudaDriverGetVersion(int *version) {
  ENTER();
  *version = (int)setting("PX_EMU_DRIVER", CUDART_VERSION);
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
  ENTER();
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
  ENTER();
  *count = (int)setting("PX_EMU_DEVICES", 1);
  if (setting("PX_EMU_DRIVER", CUDART_VERSION) < CUDART_VERSION) return set_error(cudaErrorInsufficientDriver);
  return *count ? cudaSuccess : set_error(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  ENTER();
  return device >= 0 && device < setting("PX_EMU_DEVICES", 1) ? cudaSuccess : set_error(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int *device) {
  ENTER();
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr what, int) {
  ENTER();
  switch (what) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = (int)setting("PX_EMU_CAPABILITY", 80) / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = (int)setting("PX_EMU_CAPABILITY", 80) % 10;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = (int)setting("PX_EMU_SHARED_KB", 99) << 10;
      return cudaSuccess;
    default:
      return set_error(cudaErrorInvalidValue);
  }
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int) {
  ENTER();
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "emulated device");
  p->totalGlobalMem = memory_total();
  p->major = (int)setting("PX_EMU_CAPABILITY", 80) / 10;
  p->minor = (int)setting("PX_EMU_CAPABILITY", 80) % 10;
  p->multiProcessorCount = 4;
  p->sharedMemPerBlockOptin = (size_t)setting("PX_EMU_SHARED_KB", 99) << 10;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
  ENTER();
  finish_all();
  return sticky;
}

/* ---- memory ---- */

cudaError_t cudaMalloc(void **p, size_t bytes) {
  ENTER();
  counted.allocations++;
  *p = memory_alloc(bytes);
  return *p ? cudaSuccess : set_error(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void *p) {
  ENTER();
  if (!p) return cudaSuccess;
  finish_all();
  return memory_free(p) ? cudaSuccess : set_error(cudaErrorInvalidValue);
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  ENTER();
  *total = memory_total();
  *free_bytes = *total - memory_used();
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t bytes) {
  ENTER();
  counted.allocations++;
  *p = malloc(bytes ? bytes : 1);
  if (!*p) return set_error(cudaErrorMemoryAllocation);
  pinned[static_cast<char *>(*p)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p) {
  cudaError_t code = enter();
  if (!p) return code;
  if (!pinned.erase(static_cast<char *>(p))) return set_error(cudaErrorInvalidValue);
  finish_all();
  free(p);
  return code;
}

static bool is_pinned(const void *p) {
  const char *at = static_cast<const char *>(p);
  auto block = pinned.upper_bound(at);
  return block != pinned.begin() && (--block, at < block->first + block->second);
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
  ENTER();
  bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (bytes == 0) return cudaSuccess;
  if (to_device ? !memory_holds(dst, bytes) : memory_is_device(dst)) return set_error(cudaErrorInvalidValue);
  if (from_device ? !memory_holds(src, bytes) : memory_is_device(src)) return set_error(cudaErrorInvalidValue);
  if (!from_device && !is_pinned(src)) { /* pageable memory is read before the call returns */
    std::shared_ptr<std::vector<char>> copy =
        std::make_shared<std::vector<char>>((const char *)src, (const char *)src + bytes);
    enqueue(stream, "copy", [=] { memcpy(dst, copy->data(), bytes); });
  } else {
    enqueue(stream, "copy", [=] { memmove(dst, src, bytes); });
  }
  if (from_device && !to_device && !is_pinned(dst)) { /* pageable: there when the call returns */
    counted.pauses++;
    return finish(stream);
  }
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream) {
  ENTER();
  if (bytes == 0) return cudaSuccess;
  if (!memory_holds(dst, bytes)) return set_error(cudaErrorInvalidValue);
  enqueue(stream, "memset", [=] { memset(dst, value, bytes); });
  return cudaSuccess;
}

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
  ENTER();
  streams.insert(*stream = new CUstream_st());
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  ENTER();
  counted.pauses++;
  return finish(stream);
}
/* What it held is gone whatever it answers, as in the real one. */
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaError_t code = enter();
  if (!stream) return set_error(cudaErrorInvalidValue);
  CUstream_st *s = stream_of(stream);
  drain([s] { return s->queue.empty(); });
  streams.erase(stream);
  delete stream;
  return code;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  ENTER();
  *event = new CUevent_st();
  (*event)->timed = !(flags & cudaEventDisableTiming);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  cudaError_t code = enter();
  finish_all();
  delete event;
  return code;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  ENTER();
  unsigned number = ++event->asked;
  enqueue(stream, "record", [=] {
    event->done = number;
    event->at_ms = now_ms;
  });
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  ENTER();
  if (event->asked) push(stream, {"wait", nullptr, event, event->asked});
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  ENTER();
  unsigned number = event->asked;
  drain([=] { return (int)(event->done - number) >= 0; });
  return sticky;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
  ENTER();
  if (!start->timed || !end->timed || !start->asked || !end->asked) return set_error(cudaErrorInvalidResourceHandle);
  if (start->done != start->asked || end->done != end->asked) return set_error(cudaErrorNotReady);
  *ms = (float)(end->at_ms - start->at_ms);
  return cudaSuccess;
}

/* ---- graphs: what a stream was asked to do while it captured ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode) {
  ENTER();
  CUstream_st *s = stream_of(stream);
  if (!stream || s->capture) return set_error(cudaErrorStreamCaptureUnsupported);
  s->capture = new CUgraph_st();
  return cudaSuccess;
}
/* The capture is over whatever it answers. */
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  cudaError_t code = enter();
  CUstream_st *s = stream_of(stream);
  if (!s->capture) return set_error(cudaErrorStreamCaptureUnsupported);
  if (code == cudaSuccess)
    *graph = s->capture;
  else
    delete s->capture;
  s->capture = NULL;
  return code;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
  ENTER();
  counted.recordings++;
  *out = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  ENTER();
  counted.replays++;
  for (const px_work &w : graph->work) push(stream, w);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  cudaError_t code = enter();
  delete graph;
  return code;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  cudaError_t code = enter();
  delete graph;
  return code;
}

}  // extern "C"
