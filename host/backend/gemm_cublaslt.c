/* SPDX-License-Identifier: MIT
 * cuBLASLt counts columns first, so the product c = A B of rows is given to it as c^T = B^T A^T: its first matrix is
 * our b, its second our a. A plan (descriptor, layouts, algorithm) is made once per shape and kept; nothing is created
 * when a shape comes again. What cuBLASLt refuses goes to a kernel of our own. */
#include "backend/gemm_cublaslt.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend/cublaslt_api.h"
#include "backend/cuda_library.h"
#include "core/memory.h"

enum { WORKSPACE_BYTES = 32 << 20, WORKSPACE_LEAST = 1 << 20, ALIGNED_TO = 16 };

/* What a plan depends on; compared as bytes, so it has no padding. */
typedef struct shape {
  int64_t m, n, k, lda, ldb, ldc;
  int32_t align_a, align_b, align_c;
  int8_t type, c_type, trans_a, trans_b;
} shape;

typedef struct plan {
  shape key;
  void *desc, *a, *b, *c; /* in cuBLASLt's order */
  px_lt_algo algo;
  bool refused;
} plan;

struct px_lt {
  px_backend *be;
  px_lt_api api;
  void *handle, *preference, *workspace;
  size_t workspace_bytes;
  plan *plans;
  size_t plan_count, plan_capacity;
  bool warned;
  char name[48];
};

static px_status find_calls(px_lt *lt, void *library, px_error *err) {
#define PX_LT_FIND(result, call, arguments)                                                                     \
  {                                                                                                             \
    void *symbol = dlsym(library, "cublasLt" #call);                                                            \
    if (!symbol)                                                                                                \
      return px_fail(err, PX_NO_DEVICE, "libcublasLt has no cublasLt" #call ": version 12 or later is needed"); \
    memcpy(&lt->api.call, &symbol, sizeof symbol);                                                              \
  }
  PX_LT_CALLS(PX_LT_FIND)
#undef PX_LT_FIND
  return PX_OK;
}

/* As much workspace as there is memory for, down to a megabyte; products of which the library wants more are slower. */
static void take_workspace(px_lt *lt) {
  for (size_t bytes = WORKSPACE_BYTES; !lt->workspace && bytes >= WORKSPACE_LEAST; bytes /= 2) {
    lt->workspace = px_backend_try_alloc(lt->be, bytes);
    lt->workspace_bytes = lt->workspace ? bytes : 0;
  }
}

px_status px_lt_open(px_backend *be, px_lt **out, px_error *err) {
  static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", NULL};
  void *library;
  PX_TRY(px_cuda_library_open(names, "cublas", &library, err));
  px_lt *lt = calloc(1, sizeof *lt);
  if (!lt) return px_fail(err, PX_NO_MEMORY, "no memory");
  lt->be = be;
  px_status status = find_calls(lt, library, err);
  int code = status == PX_OK ? lt->api.Create(&lt->handle) : 0;
  if (!code && status == PX_OK) code = lt->api.MatmulPreferenceCreate(&lt->preference);
  if (!code && status == PX_OK) {
    take_workspace(lt);
    code = lt->api.MatmulPreferenceSetAttribute(lt->preference, PX_LT_PREF_MAX_WORKSPACE_BYTES, &lt->workspace_bytes,
                                                sizeof lt->workspace_bytes);
  }
  if (code) status = px_fail(err, PX_NO_DEVICE, "cuBLASLt does not start: %s", px_lt_error_text(code));
  if (status != PX_OK) {
    px_lt_close(lt);
    return status;
  }
  size_t v = lt->api.GetVersion();
  snprintf(lt->name, sizeof lt->name, "cuBLASLt %zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
  *out = lt;
  return PX_OK;
}

static void plan_free(px_lt *lt, plan *p) {
  if (p->desc) lt->api.MatmulDescDestroy(p->desc);
  if (p->a) lt->api.MatrixLayoutDestroy(p->a);
  if (p->b) lt->api.MatrixLayoutDestroy(p->b);
  if (p->c) lt->api.MatrixLayoutDestroy(p->c);
}

void px_lt_close(px_lt *lt) {
  if (!lt) return;
  for (size_t i = 0; i < lt->plan_count; i++) plan_free(lt, &lt->plans[i]);
  free(lt->plans);
  if (lt->preference) lt->api.MatmulPreferenceDestroy(lt->preference);
  if (lt->handle) lt->api.Destroy(lt->handle);
  px_backend_free(lt->be, lt->workspace);
  free(lt);
}

const char *px_lt_name(const px_lt *lt) { return lt->name; }

const char *px_lt_error_text(int status) {
  switch (status) {
    case 1:
      return "cuBLASLt is not initialised";
    case 3:
      return "cuBLASLt found no memory";
    case 7:
      return "cuBLASLt refuses a value";
    case 8:
      return "cuBLASLt does not know this device's architecture";
    case 13:
      return "a cuBLASLt kernel failed";
    case PX_LT_NOT_SUPPORTED:
      return "cuBLASLt does not support the product";
    default:
      return "cuBLASLt failed";
  }
}

static int32_t alignment(const void *p) {
  int32_t bytes = ALIGNED_TO;
  while ((uintptr_t)p % (uintptr_t)bytes) bytes /= 2;
  return bytes;
}

static shape shape_of(const px_gemm_args *a) {
  return (shape){.m = a->m,
                 .n = a->n,
                 .k = a->k,
                 .lda = a->lda,
                 .ldb = a->ldb,
                 .ldc = a->ldc,
                 .align_a = alignment(a->a),
                 .align_b = alignment(a->b),
                 .align_c = alignment(a->c),
                 .type = (int8_t)a->type,
                 .c_type = (int8_t)a->c_type,
                 .trans_a = a->trans_a,
                 .trans_b = a->trans_b};
}

static int type_of(px_dtype t) { return t == PX_F32 ? PX_LT_R_32F : PX_LT_R_16BF; }

#define LT_TRY(call)         \
  do {                       \
    int code_ = (call);      \
    if (code_) return code_; \
  } while (0)

static int describe(px_lt *lt, const px_gemm_args *a, const shape *s, plan *p) {
  const px_lt_api *api = &lt->api;
  int type = type_of(a->type), first = a->trans_b ? PX_LT_OP_T : PX_LT_OP_N,
      second = a->trans_a ? PX_LT_OP_T : PX_LT_OP_N;
  uint32_t aligned[] = {(uint32_t)s->align_b, (uint32_t)s->align_a, (uint32_t)s->align_c, (uint32_t)s->align_c};
  LT_TRY(api->MatmulDescCreate(&p->desc, PX_LT_COMPUTE_32F, PX_LT_R_32F));
  LT_TRY(api->MatmulDescSetAttribute(p->desc, PX_LT_DESC_TRANSA, &first, sizeof first));
  LT_TRY(api->MatmulDescSetAttribute(p->desc, PX_LT_DESC_TRANSB, &second, sizeof second));
  uint64_t b_rows = (uint64_t)(a->trans_b ? a->k : a->n), b_cols = (uint64_t)(a->trans_b ? a->n : a->k);
  uint64_t a_rows = (uint64_t)(a->trans_a ? a->m : a->k), a_cols = (uint64_t)(a->trans_a ? a->k : a->m);
  LT_TRY(api->MatrixLayoutCreate(&p->a, type, b_rows, b_cols, a->ldb));
  LT_TRY(api->MatrixLayoutCreate(&p->b, type, a_rows, a_cols, a->lda));
  LT_TRY(api->MatrixLayoutCreate(&p->c, type_of(a->c_type), (uint64_t)a->n, (uint64_t)a->m, a->ldc));
  for (int i = 0; i < 4; i++)
    LT_TRY(api->MatmulPreferenceSetAttribute(lt->preference, PX_LT_PREF_MIN_ALIGNMENT_A_BYTES + i, &aligned[i],
                                             sizeof aligned[i]));
  px_lt_heuristic found;
  int count = 0;
  int code =
      api->MatmulAlgoGetHeuristic(lt->handle, p->desc, p->a, p->b, p->c, p->c, lt->preference, 1, &found, &count);
  if (!code && (count == 0 || found.state)) code = PX_LT_NOT_SUPPORTED;
  p->algo = found.algo;
  return code;
}

/* The plan for this product; code 0, or why there is none. */
static int find_plan(px_lt *lt, const px_gemm_args *a, plan **out) {
  shape key = shape_of(a);
  for (size_t i = 0; i < lt->plan_count; i++)
    if (memcmp(&lt->plans[i].key, &key, sizeof key) == 0) {
      *out = &lt->plans[i];
      return 0;
    }
  if (px_reserve(&lt->plans, &lt->plan_capacity, lt->plan_count + 1, sizeof *lt->plans)) return 3;
  plan made = {.key = key};
  int code = describe(lt, a, &key, &made);
  if (code && code != PX_LT_NOT_SUPPORTED) {
    plan_free(lt, &made);
    return code;
  }
  made.refused = code != 0;
  lt->plans[lt->plan_count] = made;
  *out = &lt->plans[lt->plan_count++];
  return 0;
}

int px_lt_gemm(px_lt *lt, const px_gemm_args *a, void *stream) {
  if (a->m == 0 || a->n == 0) return 0;
  if (a->k == 0) return px_gemm_plain_cuda(a, stream);
  plan *p;
  int code = find_plan(lt, a, &p);
  if (code) return -code;
  if (p->refused) {
    if (!lt->warned)
      px_log_message(&lt->be->log, PX_LOG_WARN,
                     "cuBLASLt does not support a product of this model: a slower kernel takes it");
    lt->warned = true;
    return px_gemm_plain_cuda(a, stream);
  }
  float one = 1, beta = a->accumulate ? 1 : 0;
  code = lt->api.Matmul(lt->handle, p->desc, &one, a->b, p->a, a->a, p->b, &beta, a->c, p->c, a->c, p->c, &p->algo,
                        lt->workspace, lt->workspace_bytes, stream);
  if (code) return -code;
  return a->bias ? px_gemm_bias_cuda(a, stream) : 0;
}
