/* SPDX-License-Identifier: MIT
 * cuBLASLt counts columns first, so the product c = A B of rows is given to it as c^T = B^T A^T: its first matrix is
 * our b, its second our a. A plan (descriptor, layouts, algorithm) is made once per shape and kept; nothing is created
 * when a shape comes again. What cuBLASLt refuses goes to a kernel of our own.
 *
 * Algorithm: the one that is remembered for the shape (in the device's file, or a checkpoint); else, where the backend
 * times products, the fastest of the library's first few; else its first. Only reductions that repeat are asked for:
 * those in place add in the order in which blocks happen to end. */
#include "backend/gemm_cublaslt.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend/cublaslt_api.h"
#include "backend/cuda_library.h"
#include "backend/product_choices.h"
#include "core/memory.h"

enum { LT_NO_MEMORY = 3 }; /* the library's own number for it */
enum { WORKSPACE_BYTES = 32 << 20, WORKSPACE_LEAST = 1 << 20, ALIGNED_TO = 16, CANDIDATES = 8 };

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
  px_choices used;  /* by this backend, or by the run that it goes on with */
  px_choices known; /* of the device's file */
  bool unsaved;     /* choices that the file lacks */
  char name[48], identity[320];
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

/* Names the library and the device, and reads what was chosen for the two before. */
static px_status remember(px_lt *lt, px_error *err) {
  struct cudaDeviceProp device = {0};
  int number = 0;
  cudaError_t e = cudaGetDevice(&number);
  if (e == cudaSuccess) e = cudaGetDeviceProperties(&device, number);
  if (e != cudaSuccess) return px_fail(err, PX_NO_DEVICE, "cuBLASLt does not start: %s", cudaGetErrorString(e));
  size_t v = lt->api.GetVersion();
  snprintf(lt->name, sizeof lt->name, "cuBLASLt %zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
  snprintf(lt->identity, sizeof lt->identity, "%s, %s", device.name, lt->name);
  px_arena arena = {0};
  char *path = px_choices_path(lt->identity, &arena);
  px_status status = path ? px_choices_load(&lt->known, path, lt->identity) : PX_OK;
  px_arena_free(&arena);
  return status == PX_OK ? PX_OK : px_fail(err, status, "no memory");
}

/* A file that cannot be written costs the next process its measurements, nothing else. */
static void save(px_lt *lt) {
  px_arena arena = {0};
  px_error why;
  char *path = lt->unsaved ? px_choices_path(lt->identity, &arena) : NULL;
  if (path && px_choices_save(&lt->used, path, lt->identity, &why) != PX_OK)
    px_log_message(&lt->be->log, PX_LOG_VERBOSE, "chosen products are not kept: %s", why.message);
  lt->unsaved = false;
  px_arena_free(&arena);
}

px_status px_lt_choices(px_lt *lt, px_buf *out) {
  save(lt);
  if (lt->used.count) px_choices_print(&lt->used, lt->identity, out);
  return out->failed ? PX_NO_MEMORY : PX_OK;
}

px_status px_lt_repeat(px_lt *lt, const char *text) { return px_choices_read(&lt->used, text, lt->identity); }

px_status px_lt_open(px_backend *be, px_lt **out, px_error *err) {
  static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", NULL};
  void *library;
  PX_TRY(px_cuda_library_open(names, "cublas", &library, err));
  px_lt *lt = calloc(1, sizeof *lt);
  if (!lt) return px_fail(err, PX_NO_MEMORY, "no memory");
  lt->be = be;
  px_status status = find_calls(lt, library, err);
  int code = status == PX_OK ? start(lt) : 0;
  if (code) status = px_fail(err, PX_NO_DEVICE, "cuBLASLt does not start: %s", px_lt_error_text(code));
  if (status == PX_OK) status = remember(lt, err);
  if (status != PX_OK) {
    px_lt_close(lt);
    return status;
  }
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
  save(lt);
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
    case LT_NO_MEMORY:
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
  return 0;
}

static int multiply(px_lt *lt, const px_gemm_args *a, const plan *p, const px_lt_algo *algo, void *c, float beta,
                    cudaStream_t stream) {
  const float one = 1;
  return lt->api.Matmul(lt->handle, p->desc, &one, a->b, p->a, a->a, p->b, &beta, c, p->c, c, p->c, algo, lt->workspace,
                        lt->workspace_bytes, stream);
}

/* ---- which algorithm ---- */

typedef struct stopwatch {
  cudaEvent_t start, stop;
  cudaStream_t stream;
  void *c; /* a place for results */
} stopwatch;

static cudaError_t time_runs(px_lt *lt, const px_gemm_args *a, const plan *p, const px_lt_algo *algo,
                             const stopwatch *w, int runs, float *ms) {
  cudaError_t e = cudaEventRecord(w->start, w->stream);
  for (int i = 0; i < runs; i++) multiply(lt, a, p, algo, w->c, 0, w->stream);
  if (e == cudaSuccess) e = cudaEventRecord(w->stop, w->stream);
  if (e == cudaSuccess) e = cudaEventSynchronize(w->stop);
  return e == cudaSuccess ? cudaEventElapsedTime(ms, w->start, w->stop) : e;
}

/* The index of the fastest. A later one has to be 3 % faster than the library's own favourite: less is noise. */
static cudaError_t fastest(px_lt *lt, const px_gemm_args *a, const plan *p, const px_lt_heuristic *found, int count,
                           const stopwatch *w, int *best) {
  const float at_least_ms = 0.5f;
  enum { MOST_RUNS = 20 };
  float best_ms = 0;
  for (int i = 0; i < count; i++) {
    float ms = 0;
    if (found[i].state || multiply(lt, a, p, &found[i].algo, w->c, 0, w->stream)) continue; /* and is warm */
    cudaError_t e = time_runs(lt, a, p, &found[i].algo, w, 1, &ms);
    int runs = ms * MOST_RUNS > at_least_ms ? (int)(at_least_ms / ms) : MOST_RUNS;
    if (e == cudaSuccess && runs > 1) e = time_runs(lt, a, p, &found[i].algo, w, runs, &ms);
    if (e != cudaSuccess) return e;
    ms /= (float)(runs > 1 ? runs : 1);
    if (best_ms > 0 && ms >= 0.97f * best_ms) continue;
    *best = i;
    best_ms = ms;
  }
  return cudaSuccess;
}

/* Results of the runs go where the product's own will go, or, where that is added to, into memory of their own. */
static int measure(px_lt *lt, const px_gemm_args *a, const plan *p, const px_lt_heuristic *found, int count,
                   cudaStream_t stream, int *best) {
  void *own = a->accumulate ? px_backend_try_alloc(lt->be, (size_t)(a->m * a->ldc) * px_dtype_bytes(a->c_type, 1)) : NULL;
  if (a->accumulate && !own) return 0; /* the first one, then */
  stopwatch w = {.stream = stream, .c = own ? own : a->c};
  cudaError_t e = cudaEventCreateWithFlags(&w.start, cudaEventDefault);
  if (e == cudaSuccess) e = cudaEventCreateWithFlags(&w.stop, cudaEventDefault);
  if (e == cudaSuccess) e = fastest(lt, a, p, found, count, &w, best);
  if (w.start) cudaEventDestroy(w.start);
  if (w.stop) cudaEventDestroy(w.stop);
  px_backend_free(lt->be, own);
  return (int)e;
}

static void key_of(const shape *s, int64_t key[PX_CHOICE_KEY]) {
  const int64_t numbers[PX_CHOICE_KEY] = {s->m, s->n, s->k, s->lda, s->ldb, s->ldc,
                                          s->align_a | s->align_b << 8 | s->align_c << 16,
                                          s->type | s->c_type << 8 | s->trans_a << 16 | s->trans_b << 17};
  memcpy(key, numbers, sizeof numbers);
}

/* Whether the library still does the product in the way that was chosen once. */
static bool still_good(px_lt *lt, const plan *p, const px_choice *choice) {
  px_lt_algo algo;
  px_lt_heuristic checked;
  memcpy(&algo, choice->algo, sizeof algo);
  return !lt->api.MatmulAlgoCheck(lt->handle, p->desc, p->a, p->b, p->c, p->c, &algo, &checked) && !checked.state &&
         checked.workspace_bytes <= lt->workspace_bytes;
}

/* Asks the library, and the clock. 0, a cudaError_t, or minus a cublasStatus_t. */
static int search(px_lt *lt, const px_gemm_args *a, const plan *p, cudaStream_t stream, px_lt_algo *out) {
  px_lt_heuristic found[CANDIDATES];
  bool timed = lt->be->time_products && !lt->be->recording;
  int count = 0, best = 0, code = lt->api.MatmulAlgoGetHeuristic(lt->handle, p->desc, p->a, p->b, p->c, p->c, lt->preference,
                                                                 timed ? CANDIDATES : 1, found, &count);
  if (!code && (count == 0 || found[0].state)) code = PX_LT_NOT_SUPPORTED;
  if (code) return -code;
  if (timed && count > 1) code = measure(lt, a, p, found, count, stream, &best);
  *out = found[best].algo;
  lt->unsaved |= timed;
  return code;
}

static int choose(px_lt *lt, const px_gemm_args *a, plan *p, cudaStream_t stream) {
  px_choice choice = {0};
  key_of(&p->key, choice.key);
  const px_choice *have = px_choices_find(&lt->used, choice.key);
  if (!have) have = px_choices_find(&lt->known, choice.key);
  if (have && still_good(lt, p, have)) {
    memcpy(&p->algo, have->algo, sizeof p->algo);
  } else {
    int code = search(lt, a, p, stream, &p->algo);
    if (code) return code;
  }
  memcpy(choice.algo, &p->algo, sizeof choice.algo);
  return lt->be->time_products && px_choices_put(&lt->used, &choice) != PX_OK ? -LT_NO_MEMORY : 0;
}

/* The plan for this product; 0, or why there is none, as px_lt_gemm says it. */
static int find_plan(px_lt *lt, const px_gemm_args *a, cudaStream_t stream, plan **out) {
  shape key = shape_of(a);
  for (size_t i = 0; i < lt->plan_count; i++)
    if (memcmp(&lt->plans[i].key, &key, sizeof key) == 0) {
      *out = &lt->plans[i];
      return 0;
    }
  if (px_reserve(&lt->plans, &lt->plan_capacity, lt->plan_count + 1, sizeof *lt->plans)) return -LT_NO_MEMORY;
  plan made = {.key = key};
  int code = -describe(lt, a, &key, &made);
  if (!code) code = choose(lt, a, &made, stream);
  if (code && code != -PX_LT_NOT_SUPPORTED) {
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
  int code = find_plan(lt, a, stream, &p);
  if (code) return code;
  if (p->refused) {
    if (!lt->warned)
      px_log_message(&lt->be->log, PX_LOG_WARN,
                     "cuBLASLt does not support a product of this model: a slower kernel takes it");
    lt->warned = true;
    return px_gemm_plain_cuda(a, stream);
  }
  code = multiply(lt, a, p, &p->algo, a->c, a->accumulate ? 1 : 0, stream);
  if (code) return -code;
  return a->bias ? px_gemm_bias_cuda(a, stream) : 0;
}
