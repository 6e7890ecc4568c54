/* SPDX-License-Identifier: MIT
 * cuBLASLt counts columns first, so the product c = A B of rows is given to it as c^T = B^T A^T: its first matrix is
 * our b, its second our a. A plan (descriptor, layouts, algorithm) is made once per shape and kept; nothing is created
 * when a shape comes again. Bias and GELU go with the product where the library has it so; what it refuses is done by
 * kernels of our own. Only reductions that repeat are asked for: those in place add in the order in which blocks end. */
#include "backend/gemm_cublaslt.h"

#include <dlfcn.h>
#include <stdlib.h>

#include "backend/cublaslt_plan.h"
#include "backend/cuda_library.h"
#include "core/memory.h"

enum { WORKSPACE_BYTES = 32 << 20, WORKSPACE_LEAST = 1 << 20, ALIGNED_TO = 16 };

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

static int start(px_lt *lt) {
  const uint32_t repeatable = PX_LT_REDUCTION_COMPUTE_TYPE | PX_LT_REDUCTION_OUTPUT_TYPE;
  int code = lt->api.Create(&lt->handle);
  if (!code) code = lt->api.MatmulPreferenceCreate(&lt->preference);
  if (code) return code;
  take_workspace(lt);
  code = lt->api.MatmulPreferenceSetAttribute(lt->preference, PX_LT_PREF_MAX_WORKSPACE_BYTES, &lt->workspace_bytes,
                                              sizeof lt->workspace_bytes);
  return code ? code
              : lt->api.MatmulPreferenceSetAttribute(lt->preference, PX_LT_PREF_REDUCTION_SCHEME_MASK, &repeatable,
                                                     sizeof repeatable);
}

px_status px_lt_open(px_backend *be, px_lt **out, px_error *err) {
  static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", NULL};
  void *library;
  PX_TRY(px_cuda_library_open(names, "cublas", "nvidia-cublas", &library, err));
  px_lt *lt = calloc(1, sizeof *lt);
  if (!lt) return px_fail(err, PX_NO_MEMORY, "no memory");
  lt->be = be;
  px_status status = find_calls(lt, library, err);
  int code = status == PX_OK ? start(lt) : 0;
  if (code) status = px_fail(err, PX_NO_DEVICE, "cuBLASLt does not start: %s", px_lt_error_text(code));
  if (status == PX_OK) status = px_lt_remember(lt, err);
  if (status != PX_OK) {
    px_lt_close(lt);
    return status;
  }
  *out = lt;
  return PX_OK;
}

static void plan_free(px_lt *lt, px_lt_plan *p) {
  if (p->desc) lt->api.MatmulDescDestroy(p->desc);
  if (p->a) lt->api.MatrixLayoutDestroy(p->a);
  if (p->b) lt->api.MatrixLayoutDestroy(p->b);
  if (p->c) lt->api.MatrixLayoutDestroy(p->c);
}

void px_lt_close(px_lt *lt) {
  if (!lt) return;
  px_lt_keep(lt);
  px_choices_free(&lt->used);
  px_choices_free(&lt->known);
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
    case PX_LT_NO_MEMORY:
      return "cuBLASLt found no memory";
    case PX_LT_INVALID_VALUE:
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

static px_lt_shape shape_of(const px_gemm_args *a) {
  return (px_lt_shape){.m = a->m,
                       .n = a->n,
                       .k = a->k,
                       .lda = a->lda,
                       .ldb = a->ldb,
                       .ldc = a->ldc,
                       .ldg = a->gelu ? a->ldg : 0,
                       .align_a = alignment(a->a),
                       .align_b = alignment(a->b),
                       .align_c = alignment(a->c),
                       .align_bias = a->bias ? alignment(a->bias) : 0,
                       .align_gelu = a->gelu ? alignment(a->gelu) : 0,
                       .type = (int8_t)a->type,
                       .c_type = (int8_t)a->c_type,
                       .bias_type = (int8_t)(a->bias ? a->bias_type : 0),
                       .trans = (int8_t)(a->trans_a | a->trans_b << 1)};
}

/* The library takes a bias of c's own type, and a GELU whose two results lie alike. */
static int possible_with(const px_lt_shape *s) {
  int with = 0;
  if (s->align_bias == ALIGNED_TO && s->bias_type == s->c_type) with |= PX_LT_WITH_BIAS;
  bool bias_is_in = !s->align_bias || (with & PX_LT_WITH_BIAS);
  if (bias_is_in && s->align_gelu == ALIGNED_TO && s->align_c == ALIGNED_TO && s->ldg == s->ldc && s->ldc % 8 == 0)
    with |= PX_LT_WITH_GELU;
  return with;
}

static int type_of(px_dtype t) { return t == PX_F32 ? PX_LT_R_32F : PX_LT_R_16BF; }

#define LT_TRY(call)         \
  do {                       \
    int code_ = (call);      \
    if (code_) return code_; \
  } while (0)

/* The pointers of this call, where desc has others. */
static int point(px_lt *lt, const px_gemm_args *a, px_lt_plan *p, const void *c) {
  if ((p->with & PX_LT_WITH_BIAS) && p->bias != a->bias) {
    LT_TRY(lt->api.MatmulDescSetAttribute(p->desc, PX_LT_DESC_BIAS_POINTER, &a->bias, sizeof a->bias));
    p->bias = a->bias;
  }
  if ((p->with & PX_LT_WITH_GELU) && p->aux != c) {
    LT_TRY(lt->api.MatmulDescSetAttribute(p->desc, PX_LT_DESC_EPILOGUE_AUX_POINTER, &c, sizeof c));
    p->aux = c;
  }
  return 0;
}

static int describe_epilogue(px_lt *lt, const px_gemm_args *a, px_lt_plan *p) {
  if (!p->with) return 0;
  int type = type_of(a->c_type), epilogue = p->with == PX_LT_WITH_BIAS   ? PX_LT_EPILOGUE_BIAS
                                            : p->with == PX_LT_WITH_GELU ? PX_LT_EPILOGUE_GELU_AUX
                                                                         : PX_LT_EPILOGUE_GELU_AUX_BIAS;
  LT_TRY(lt->api.MatmulDescSetAttribute(p->desc, PX_LT_DESC_EPILOGUE, &epilogue, sizeof epilogue));
  if (p->with & PX_LT_WITH_BIAS)
    LT_TRY(lt->api.MatmulDescSetAttribute(p->desc, PX_LT_DESC_BIAS_DATA_TYPE, &type, sizeof type));
  if (p->with & PX_LT_WITH_GELU)
    LT_TRY(lt->api.MatmulDescSetAttribute(p->desc, PX_LT_DESC_EPILOGUE_AUX_LD, &a->ldc, sizeof a->ldc));
  return point(lt, a, p, a->c);
}

static int describe(px_lt *lt, const px_gemm_args *a, px_lt_plan *p) {
  const px_lt_api *api = &lt->api;
  const px_lt_shape *s = &p->key;
  int type = type_of(a->type), first = a->trans_b ? PX_LT_OP_T : PX_LT_OP_N,
      second = a->trans_a ? PX_LT_OP_T : PX_LT_OP_N;
  uint32_t aligned[] = {(uint32_t)s->align_b, (uint32_t)s->align_a, (uint32_t)s->align_c, (uint32_t)s->align_c};
  LT_TRY(api->MatmulDescCreate(&p->desc, PX_LT_COMPUTE_32F, PX_LT_R_32F));
  LT_TRY(api->MatmulDescSetAttribute(p->desc, PX_LT_DESC_TRANSA, &first, sizeof first));
  LT_TRY(api->MatmulDescSetAttribute(p->desc, PX_LT_DESC_TRANSB, &second, sizeof second));
  LT_TRY(describe_epilogue(lt, a, p));
  uint64_t b_rows = (uint64_t)(a->trans_b ? a->k : a->n), b_cols = (uint64_t)(a->trans_b ? a->n : a->k);
  uint64_t a_rows = (uint64_t)(a->trans_a ? a->m : a->k), a_cols = (uint64_t)(a->trans_a ? a->k : a->m);
  LT_TRY(api->MatrixLayoutCreate(&p->a, type, b_rows, b_cols, a->ldb));
  LT_TRY(api->MatrixLayoutCreate(&p->b, type, a_rows, a_cols, a->lda));
  LT_TRY(api->MatrixLayoutCreate(&p->c, type_of(a->c_type), (uint64_t)a->n, (uint64_t)a->m, a->ldc));
  for (int i = 0; i < 4; i++)
    LT_TRY(api->MatmulPreferenceSetAttribute(lt->preference, PX_LT_PREF_MIN_ALIGNMENT_A_BYTES + i, &aligned[i],
                                             sizeof aligned[i]));
  return 0;
}

int px_lt_multiply(px_lt *lt, const px_gemm_args *a, px_lt_plan *p, const px_lt_algo *algo, void *c, cudaStream_t stream) {
  const float one = 1, beta = a->accumulate && c == a->c;
  void *out = p->with & PX_LT_WITH_GELU ? a->gelu : c;
  LT_TRY(point(lt, a, p, c));
  return lt->api.Matmul(lt->handle, p->desc, &one, a->b, p->a, a->a, p->b, &beta, out, p->c, out, p->c, algo, lt->workspace,
                        lt->workspace_bytes, stream);
}

/* With all that can go with the product, or less of it, down to nothing. */
static int make_plan(px_lt *lt, const px_gemm_args *a, px_lt_plan *p, cudaStream_t stream) {
  const px_lt_plan bare = *p;
  for (int with = possible_with(&p->key);; with &= ~PX_LT_WITH_GELU) {
    *p = bare;
    p->with = with;
    int code = -describe(lt, a, p);
    if (!code) code = px_lt_choose(lt, a, p, stream);
    bool less = with && (code == -PX_LT_NOT_SUPPORTED || code == -PX_LT_INVALID_VALUE);
    if (!less) return code;
    plan_free(lt, p);
    if (!(with & PX_LT_WITH_GELU)) with = 0;
  }
}

/* The plan for this product; 0, or why there is none, as px_lt_gemm says it. */
static int find_plan(px_lt *lt, const px_gemm_args *a, cudaStream_t stream, px_lt_plan **out) {
  px_lt_shape key = shape_of(a);
  for (size_t i = 0; i < lt->plan_count; i++)
    if (memcmp(&lt->plans[i].key, &key, sizeof key) == 0) {
      *out = &lt->plans[i];
      return 0;
    }
  if (px_reserve(&lt->plans, &lt->plan_capacity, lt->plan_count + 1, sizeof *lt->plans)) return -PX_LT_NO_MEMORY;
  px_lt_plan made = {.key = key};
  int code = make_plan(lt, a, &made, stream);
  if (code && code != -PX_LT_NOT_SUPPORTED) {
    plan_free(lt, &made);
    return code;
  }
  made.refused = code != 0;
  lt->plans[lt->plan_count] = made;
  *out = &lt->plans[lt->plan_count++];
  return 0;
}

static int gelu_alone(const px_gemm_args *a, cudaStream_t stream) {
  px_act_fwd_args act = px_gemm_gelu(a);
  return px_act_fwd_cuda(&act, stream);
}

static int plain(const px_gemm_args *a, cudaStream_t stream) {
  int code = px_gemm_plain_cuda(a, stream);
  return code || !a->gelu ? code : gelu_alone(a, stream);
}

int px_lt_gemm(px_lt *lt, const px_gemm_args *a, void *stream) {
  if (a->m == 0 || a->n == 0) return 0;
  if (a->k == 0) return plain(a, stream);
  px_lt_plan *p;
  int code = find_plan(lt, a, stream, &p);
  if (code) return code;
  if (p->refused) {
    if (!lt->warned)
      px_log_message(&lt->be->log, PX_LOG_WARN,
                     "cuBLASLt does not support a product of this model: a slower kernel takes it");
    lt->warned = true;
    return plain(a, stream);
  }
  code = -px_lt_multiply(lt, a, p, &p->algo, a->c, stream);
  if (!code && a->bias && !(p->with & PX_LT_WITH_BIAS)) code = px_gemm_bias_cuda(a, stream);
  if (!code && a->gelu && !(p->with & PX_LT_WITH_GELU)) code = gelu_alone(a, stream);
  return code;
}
