/* SPDX-License-Identifier: MIT
 * The CUDA backend: every slot is the operation's own launcher on one stream, but the product, which is cuBLASLt's. */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend/attention_engine.h"
#include "backend/backend_cuda.h"
#include "backend/cuda_state.h"

enum { OLDEST_DEVICE = 80 }; /* Ampere: bfloat16 and asynchronous copies */

#define LAUNCH(slot, args) \
  static int slot(px_backend *be, const args *a) { return px_##slot##_cuda(a, px_cuda_own(be)->stream); }
LAUNCH(embed_fwd, px_embed_fwd_args)
LAUNCH(embed_bwd, px_embed_bwd_args)
LAUNCH(norm_fwd, px_norm_fwd_args)
LAUNCH(norm_bwd, px_norm_bwd_args)
LAUNCH(col_sum, px_col_sum_args)
LAUNCH(rope, px_rope_args)
LAUNCH(attn_decode, px_attn_decode_args)
LAUNCH(act_fwd, px_act_fwd_args)
LAUNCH(act_bwd, px_act_bwd_args)
LAUNCH(add, px_add_args)
LAUNCH(scale_fwd, px_scale_fwd_args)
LAUNCH(scale_bwd, px_scale_bwd_args)
LAUNCH(dropout, px_dropout_args)
LAUNCH(gather_rows, px_rows_args)
LAUNCH(scatter_rows, px_rows_args)
LAUNCH(loss, px_loss_args)
LAUNCH(adamw, px_adamw_args)
LAUNCH(sum_sq, px_sum_sq_args)
LAUNCH(cast, px_cast_args)
LAUNCH(dequant, px_dequant_args)
LAUNCH(kv_write, px_kv_write_args)
LAUNCH(sample, px_sample_args)
#undef LAUNCH

static int lora_by_id(px_backend *be, const px_lora_args *a) { return px_lora_cuda(a, px_cuda_own(be)->stream); }
static int attn_fwd(px_backend *be, const px_attn_fwd_args *a) {
  px_cuda_state *s = px_cuda_own(be);
  return s->split ? px_attn_split_fwd(s->split, a, s->stream) : px_attn_fwd_cuda(a, s->stream);
}
static int attn_bwd(px_backend *be, const px_attn_bwd_args *a) {
  px_cuda_state *s = px_cuda_own(be);
  return s->split ? px_attn_split_bwd(s->split, a, s->stream) : px_attn_bwd_cuda(a, s->stream);
}
static int gemm(px_backend *be, const px_gemm_args *a) {
  return px_lt_gemm(px_cuda_own(be)->lt, a, px_cuda_own(be)->stream);
}

static void cuda_close(px_backend *be) {
  px_cuda_state *s = px_cuda_own(be);
  px_attn_split_close(s->split);
  px_lt_close(s->lt);
  if (s->copies) cudaStreamDestroy(s->copies);
  if (s->stream) cudaStreamDestroy(s->stream);
  free(s);
  free(be);
}

static void *cuda_alloc(px_backend *be, size_t bytes) {
  (void)be;
  void *p = NULL;
  if (cudaMalloc(&p, bytes) == cudaSuccess) return p;
  cudaGetLastError(); /* out of memory is no failure of the device */
  return NULL;
}

static void cuda_free(px_backend *be, void *p, size_t bytes) {
  (void)be;
  (void)bytes;
  cudaFree(p);
}

static int64_t cuda_free_bytes(px_backend *be) {
  size_t available = 0, all = 0;
  (void)be;
  if (cudaMemGetInfo(&available, &all) == cudaSuccess) return (int64_t)available;
  cudaGetLastError();
  return -1;
}

static int cuda_write(px_backend *be, void *dst, const void *host, size_t bytes) {
  return (int)cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, px_cuda_own(be)->stream);
}

static int cuda_read(px_backend *be, void *host, const void *src, size_t bytes) {
  cudaError_t e = cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, px_cuda_own(be)->stream);
  return (int)(e != cudaSuccess ? e : cudaStreamSynchronize(px_cuda_own(be)->stream));
}

static int cuda_copy(px_backend *be, void *dst, const void *src, size_t bytes) {
  return (int)cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, px_cuda_own(be)->stream);
}

static int cuda_zero(px_backend *be, void *dst, size_t bytes) {
  return (int)cudaMemsetAsync(dst, 0, bytes, px_cuda_own(be)->stream);
}

static int cuda_wait(px_backend *be) {
  cudaError_t e = cudaStreamSynchronize(px_cuda_own(be)->copies);
  return (int)(e != cudaSuccess ? e : cudaStreamSynchronize(px_cuda_own(be)->stream));
}

static const char *cuda_error_text(px_backend *be, int code) {
  px_attn_split *split = px_cuda_own(be)->split;
  if (code < PX_ATTN_REFUSED && split) return split->engine.error_text(split->engine.own, code);
  return code < 0 ? px_lt_error_text(-code) : cudaGetErrorString((cudaError_t)code);
}

static px_status choices(px_backend *be, px_buf *out) { return px_lt_choices(px_cuda_own(be)->lt, out); }
static px_status repeat(px_backend *be, const char *text) { return px_lt_repeat(px_cuda_own(be)->lt, text); }

static size_t attention_bytes(px_backend *be, const px_attn_shape *shape, int64_t rows, bool backward) {
  px_attn_split *split = px_cuda_own(be)->split;
  return split ? px_attn_split_bytes(split, shape, rows, backward) : 0;
}

static const px_backend_ops cuda_ops = {
#define PX_SLOT(slot, args, check) .slot = slot,
    PX_OPERATIONS(PX_SLOT)
#undef PX_SLOT
        .close = cuda_close,
    .free_bytes = cuda_free_bytes,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .write = cuda_write,
    .read = cuda_read,
    .copy = cuda_copy,
    .zero = cuda_zero,
    .wait = cuda_wait,
    .error_text = cuda_error_text,
    .host_alloc = px_cuda_host_alloc,
    .host_free = px_cuda_host_free,
    .event_new = px_cuda_event_new,
    .event_free = px_cuda_event_free,
    .send = px_cuda_send,
    .fetch = px_cuda_fetch,
    .mark = px_cuda_mark,
    .after = px_cuda_after,
    .reach = px_cuda_reach,
    .record = px_cuda_record,
    .recorded = px_cuda_recorded,
    .replay = px_cuda_replay,
    .recording_free = px_cuda_recording_free,
    .attention_bytes = attention_bytes,
    .choices = choices,
    .repeat = repeat,
};

static const char *launch_error(int code) { return cudaGetErrorString((cudaError_t)code); }

const px_cuda_attention *px_cuda_attention_calls(void) {
  static const px_cuda_attention calls = {.fwd = px_attn_fwd_cuda,
                                          .bwd = px_attn_bwd_cuda,
                                          .decode = px_attn_decode_cuda,
                                          .kv_write = px_kv_write_cuda,
                                          .error_text = launch_error};
  return &calls;
}

/* Driver and device are there and new enough. */
static px_status check_device(int device, px_error *err) {
  int driver = 0, runtime = 0, count = 0, major = 0, minor = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaError_t e = cudaDriverGetVersion(&driver);
  if (e != cudaSuccess || driver == 0)
    return px_fail(err, PX_NO_DEVICE, "no NVIDIA driver is loaded on this machine; use --device cpu, or install one");
  e = cudaGetDeviceCount(&count);
  if (e == cudaErrorInsufficientDriver)
    return px_fail(
        err, PX_NO_DEVICE,
        "the NVIDIA driver speaks CUDA %d.%d and this build needs %d.%d: install a newer driver, or use --device cpu",
        driver / 1000, driver / 10 % 100, runtime / 1000, runtime / 10 % 100);
  if (e != cudaSuccess || count == 0)
    return px_fail(err, PX_NO_DEVICE, "no CUDA device was found (%s); use --device cpu", cudaGetErrorString(e));
  if (device >= count)
    return px_fail(err, PX_NO_DEVICE, "there is no device cuda:%d: this machine has %d, from cuda:0 on", device, count);
  e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (e == cudaSuccess) e = cudaSetDevice(device);
  if (e != cudaSuccess)
    return px_fail(err, PX_NO_DEVICE, "device cuda:%d does not answer: %s", device, cudaGetErrorString(e));
  if (10 * major + minor < OLDEST_DEVICE)
    return px_fail(err, PX_NO_DEVICE,
                   "device cuda:%d has compute capability %d.%d; 8.0 (Ampere) is the oldest that pfx runs on", device,
                   major, minor);
  return PX_OK;
}

static const char *name_of(int device, struct cudaDeviceProp *about) {
  return cudaGetDeviceProperties(about, device) == cudaSuccess ? about->name : "";
}

static px_status open_engines(px_backend *be, px_attention attention, const char *device, px_error *err) {
  px_cuda_state *s = px_cuda_own(be);
  PX_TRY(px_lt_open(be, &s->lt, err));
  PX_TRY(px_attention_open(be, attention, device, &s->split, err));
  be->attention = s->split ? PX_ATTENTION_CUDNN : PX_ATTENTION_FUSED;
  snprintf(s->products, sizeof s->products, s->split ? "%s, %s" : "%s", px_lt_name(s->lt), s->split ? s->split->engine.name : "");
  be->products = s->products;
  return PX_OK;
}

px_status px_backend_open_cuda(int device, const px_backend_options *options, px_backend **out, px_error *err) {
  *out = NULL;
  PX_TRY(check_device(device, err));
  struct cudaDeviceProp about;
  const char *name = name_of(device, &about);
  px_backend *be = calloc(1, sizeof *be);
  px_cuda_state *s = calloc(1, sizeof *s);
  if (!be || !s) {
    free(be);
    free(s);
    return px_fail(err, PX_NO_MEMORY, "no memory for the CUDA backend");
  }
  *be = (px_backend){.ops = &cuda_ops,
                     .name = "cuda",
                     .own = s,
                     .threads = options->threads ? options->threads : 1,
                     .log = options->log,
                     .profile = options->profile,
                     .time_products = options->time_products,
                     .emulated = strcmp(name, "emulated device") == 0,
                     .computes_bf16 = true};
  s->device = device;
  snprintf(be->device, sizeof be->device, "cuda:%d", device);
  cudaError_t e = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
  if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&s->copies, cudaStreamNonBlocking);
  px_status status =
      e == cudaSuccess ? PX_OK
                       : px_fail(err, PX_NO_DEVICE, "device cuda:%d does not start: %s", device, cudaGetErrorString(e));
  be->stream = s->stream;
  if (status == PX_OK) status = open_engines(be, options->attention, name, err);
  if (status != PX_OK) {
    px_backend_close(be);
    return status;
  }
  *out = be;
  return PX_OK;
}
