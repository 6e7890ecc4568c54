/* SPDX-License-Identifier: MIT
 * cudnn_check LIBCUDNN [PROPERTIES SM]: what cuDNN says of the graphs that attention asks it for, without a device. By itself
 * the front end looks at them for mistakes, for four generations; with the properties of a device (what gpu_check.sh saves as
 * device_properties.json, and its compute capability times 10) cuDNN finds its kernels for it, and those that must be there are.
 * 77: the library is not here. */
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cudnn_graph.h"

/* ---- in place of the runtime: a device of some generation, on which nothing can be done ---- */

static int generation;

cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  p->major = generation / 10;
  p->minor = generation % 10 + device;
  return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "there is no device"; }

#define ABSENT(name, ...) \
  cudaError_t name(__VA_ARGS__) { return cudaErrorNoDevice; }
#pragma GCC diagnostic ignored "-Wunused-parameter"
ABSENT(cudaDeviceSynchronize, void)
ABSENT(cudaEventCreate, cudaEvent_t *event)
ABSENT(cudaEventDestroy, cudaEvent_t event)
ABSENT(cudaEventElapsedTime, float *ms, cudaEvent_t from, cudaEvent_t to)
ABSENT(cudaEventRecord, cudaEvent_t event, cudaStream_t stream)
ABSENT(cudaEventSynchronize, cudaEvent_t event)
ABSENT(cudaMemcpyAsync, void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
ABSENT(cudaMemsetAsync, void *to, int value, size_t bytes, cudaStream_t stream)

/* ---- the check ---- */

static int failures;

static px_cudnn_shape shape_of(int dim, int heads, int kv_heads, int window, int dtype, int backward) {
  px_cudnn_shape s;
  memset(&s, 0, sizeof s);
  int64_t q = (int64_t)heads * dim, kv = (int64_t)kv_heads * dim, strides[PX_CUDNN_TENSORS] = {q, kv, kv, q, heads, q, q, kv, kv};
  memcpy(s.strides, strides, sizeof strides);
  s.seqs = 16, s.rows = 4096, s.longest = 1024;
  s.heads = heads, s.kv_heads = kv_heads, s.head_dim = dim;
  s.causal = 1, s.window = window, s.dtype = dtype, s.backward = backward;
  s.scale = (float)(1 / sqrt(dim));
  return s;
}

/* expected: 1 it is there, 0 it is refused, -1 either. */
static void one(px_cudnn *c, px_cudnn_shape s, int expected) {
  px_cudnn_text why = {""};
  px_cudnn_graph *g;
  bool made = px_cudnn_graph_make(c, &s, &g, &why);
  bool wrong = expected >= 0 && made != expected;
  printf("sm_%d %s %s head_dim %d heads %d/%d window %d: ", generation, s.backward ? "backward" : "forward", s.dtype == PX_BF16 ? "bf16" : "f16", s.head_dim,
         s.heads, s.kv_heads, s.window);
  if (made) printf("yes");
  else printf("no: %s", why.text);
  printf("%s\n", wrong ? "  <- WRONG" : "");
  failures += wrong;
  if (made) px_cudnn_graph_free(g);
}

/* Hopper and Blackwell have all that is asked for; packed statistics in backward are not for sm_80 and sm_120. */
static void all(px_cudnn *c) {
  bool packed = generation / 10 == 9 || generation / 10 == 10;
  for (int backward = 0; backward < 2; backward++)
    for (int dtype = 0; dtype < 2; dtype++) {
      int type = dtype ? PX_F16 : PX_BF16;
      one(c, shape_of(64, 16, 16, 0, type, backward), packed ? 1 : -1);
      one(c, shape_of(128, 32, 8, 0, type, backward), packed ? 1 : -1);
      one(c, shape_of(128, 32, 8, 256, type, backward), packed ? 1 : -1);
      one(c, shape_of(80, 4, 4, 0, type, backward), packed ? 1 : -1);
    }
  one(c, shape_of(20, 4, 4, 0, PX_BF16, 0), 0); /* the check can fail */
}

static void *read_file(const char *path, size_t *bytes) {
  FILE *f = fopen(path, "rb");
  char *text = calloc(1 << 16, 1);
  if (!f || !text) return NULL;
  *bytes = fread(text, 1, 1 << 16, f);
  fclose(f);
  return text;
}

int main(int argc, char **argv) {
  void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
  if (!library) {
    printf("skipped: %s\n", argc > 1 ? dlerror() : "no libcudnn was named");
    return 77;
  }
  px_cudnn_text why;
  px_cudnn *c;
  size_t bytes = 0;
  void *properties = argc > 3 ? read_file(argv[2], &bytes) : NULL;
  if (argc > 3 && !properties) {
    printf("%s cannot be read\n", argv[2]);
    return 1;
  }
  static const int generations[] = {80, 90, 100, 120};
  for (int i = 0; i < (properties ? 1 : 4); i++) {
    generation = properties ? atoi(argv[3]) : generations[i];
    if (!px_cudnn_open(library, properties, bytes, !properties, &c, &why)) {
      printf("cuDNN cannot be used: %s\n", why.text);
      return 1;
    }
    all(c);
    printf("cuDNN %ld: %d wrong so far\n", px_cudnn_version(c), failures);
    px_cudnn_close(c);
  }
  free(properties);
  return failures != 0;
}
