/* SPDX-License-Identifier: MIT
 * Which of cuBLASLt's algorithms a product takes: the one that is remembered for its shape (from the device's file, or a
 * checkpoint); else, where the backend times products, the fastest of the library's first few; else its first. */
#include <stdio.h>

#include "backend/cublaslt_plan.h"

enum { CANDIDATES = 8 };

px_status px_lt_remember(px_lt *lt, px_error *err) {
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
void px_lt_keep(px_lt *lt) {
  px_arena arena = {0};
  px_error why;
  char *path = lt->unsaved ? px_choices_path(lt->identity, &arena) : NULL;
  if (path && px_choices_save(&lt->used, path, lt->identity, &why) != PX_OK)
    px_log_message(&lt->be->log, PX_LOG_VERBOSE, "chosen products are not kept: %s", why.message);
  lt->unsaved = false;
  px_arena_free(&arena);
}

px_status px_lt_choices(px_lt *lt, px_buf *out) {
  px_lt_keep(lt);
  if (lt->used.count) px_choices_print(&lt->used, lt->identity, out);
  return out->failed ? PX_NO_MEMORY : PX_OK;
}

px_status px_lt_repeat(px_lt *lt, const char *text) { return px_choices_read(&lt->used, text, lt->identity); }

typedef struct stopwatch {
  cudaEvent_t start, stop;
  cudaStream_t stream;
  void *c; /* a place for results */
} stopwatch;

static cudaError_t time_runs(px_lt *lt, const px_gemm_args *a, px_lt_plan *p, const px_lt_algo *algo,
                             const stopwatch *w, int runs, float *ms) {
  cudaError_t e = cudaEventRecord(w->start, w->stream);
  for (int i = 0; i < runs; i++) px_lt_multiply(lt, a, p, algo, w->c, w->stream);
  if (e == cudaSuccess) e = cudaEventRecord(w->stop, w->stream);
  if (e == cudaSuccess) e = cudaEventSynchronize(w->stop);
  return e == cudaSuccess ? cudaEventElapsedTime(ms, w->start, w->stop) : e;
}

/* The index of the fastest. A later one has to be 3 % faster than the library's own favourite: less is noise. */
static cudaError_t fastest(px_lt *lt, const px_gemm_args *a, px_lt_plan *p, const px_lt_heuristic *found, int count,
                           const stopwatch *w, int *best) {
  const float at_least_ms = 0.5f;
  enum { MOST_RUNS = 20 };
  float best_ms = 0;
  for (int i = 0; i < count; i++) {
    float ms = 0;
    if (found[i].state || px_lt_multiply(lt, a, p, &found[i].algo, w->c, w->stream)) continue; /* and is warm */
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
static int measure(px_lt *lt, const px_gemm_args *a, px_lt_plan *p, const px_lt_heuristic *found, int count,
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

static void key_of(const px_lt_plan *p, int64_t key[PX_CHOICE_KEY]) {
  const px_lt_shape *s = &p->key;
  const int64_t numbers[PX_CHOICE_KEY] = {s->m, s->n, s->k, s->lda, s->ldb, s->ldc,
                                          s->align_a | s->align_b << 8 | s->align_c << 16,
                                          s->type | s->c_type << 8 | s->trans << 16 | p->with << 24};
  memcpy(key, numbers, sizeof numbers);
}

/* Whether the library still does the product in the way that was chosen once. */
static bool still_good(px_lt *lt, px_lt_plan *p, const px_choice *choice) {
  px_lt_algo algo;
  px_lt_heuristic checked;
  memcpy(&algo, choice->algo, sizeof algo);
  return !lt->api.MatmulAlgoCheck(lt->handle, p->desc, p->a, p->b, p->c, p->c, &algo, &checked) && !checked.state &&
         checked.workspace_bytes <= lt->workspace_bytes;
}

/* Asks the library, and the clock. 0, a cudaError_t, or minus a cublasStatus_t. */
static int search(px_lt *lt, const px_gemm_args *a, px_lt_plan *p, cudaStream_t stream, px_lt_algo *out) {
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

int px_lt_choose(px_lt *lt, const px_gemm_args *a, px_lt_plan *p, cudaStream_t stream) {
  px_choice choice = {0};
  key_of(p, choice.key);
  const px_choice *have = px_choices_find(&lt->used, choice.key);
  if (!have) have = px_choices_find(&lt->known, choice.key);
  if (have && still_good(lt, p, have)) {
    memcpy(&p->algo, have->algo, sizeof p->algo);
  } else {
    int code = search(lt, a, p, stream, &p->algo);
    if (code) return code;
  }
  memcpy(choice.algo, &p->algo, sizeof choice.algo);
  return lt->be->time_products && px_choices_put(&lt->used, &choice) != PX_OK ? -PX_LT_NO_MEMORY : 0;
}
