/* SPDX-License-Identifier: MIT
 * cuDNN as the other engine of attention in two parts: which calls it is given, the graphs that were made for them, and the
 * batch as it wants to be told of it. A graph is made for a bucket of sizes, so that a run needs few of them. */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend/attention_engine.h"
#include "backend/cuda_library.h"
#include "backend/cudnn_graph.h"
#include "kernels/attention_merge.h"

enum { ALIGNED_TO = 256, WORD = 16, FAILED = PX_ATTN_REFUSED - 1, MOST_DIM = 256, MOST_DIM_BWD = 128, RAGGED_BEFORE_HOPPER = 91801 };

typedef struct made {
  px_cudnn_shape key;
  px_cudnn_graph *graph; /* NULL: cuDNN does not have it */
  px_cudnn_text why;
} made;

typedef struct engine {
  px_backend *be;
  px_cudnn *cudnn;
  long version;
  int major; /* of the compute capability */
  made *list;
  size_t count, capacity;
  px_cudnn_text why; /* of the last failure */
} engine;

/* The next power of two, or, in quarters, the next of four between two powers. */
static int64_t bucket(int64_t n, int64_t least, bool quarters) {
  int64_t b = least;
  while (b < n) b *= 2;
  int64_t step = b / 8;
  return quarters && b > least ? (n + step - 1) / step * step : b;
}

/* ---- what it is given ---- */

/* The front end knows some of this in later versions; cuDNN itself says yes to batches that it then gets wrong. */
static const char *refuses(const engine *e, const px_attn_shape *s, bool backward) {
  if (s->dtype != PX_BF16 && s->dtype != PX_F16) return "cuDNN's attention has no float32";
  if (s->head_dim % 8) return "head_dim is no multiple of 8";
  if (s->head_dim > (backward ? MOST_DIM_BWD : MOST_DIM)) return backward ? "head_dim is above 128" : "head_dim is above 256";
  if (s->q_offsets != s->k_offsets || s->q_rows != s->k_rows) return "queries and keys of a sequence differ in number";
  if (e->major < 9 && e->version < RAGGED_BEFORE_HOPPER) return "before 9.18.1 cuDNN has no ragged batches on this device";
  if (backward && (e->major == 8 || e->major == 12)) return "on this device cuDNN reads no ragged statistics";
  return s->q_rows > 0 && s->q_rows <= s->seqs ? "rows of one token" : NULL;
}

static px_cudnn_shape key_of(const px_attn_shape *s, int64_t rows, bool backward, const int64_t strides[PX_CUDNN_TENSORS]) {
  px_cudnn_shape key;
  memset(&key, 0, sizeof key);
  key.seqs = bucket(s->seqs, 8, false);
  key.rows = bucket(rows, 256, true);
  key.longest = bucket(s->longest > 0 && s->longest < rows ? s->longest : rows, 64, false);
  memcpy(key.strides, strides, sizeof key.strides);
  key.heads = s->heads;
  key.kv_heads = s->kv_heads;
  key.head_dim = s->head_dim;
  key.causal = s->mask == PX_MASK_CAUSAL;
  key.window = s->window;
  key.dtype = (int32_t)s->dtype;
  key.backward = backward;
  key.scale = s->scale;
  return key;
}

/* The graph for a key; NULL: there is none, and *why. */
static made *find(engine *e, const px_cudnn_shape *key, const char **why) {
  made *m = NULL;
  for (size_t i = 0; i < e->count && !m; i++)
    if (memcmp(&e->list[i].key, key, sizeof *key) == 0) m = &e->list[i];
  *why = "its graph would have to be made inside a recording";
  if (!m && e->be->recording) return NULL;
  *why = "no memory for its graph";
  if (!m) {
    if (px_reserve(&e->list, &e->capacity, e->count + 1, sizeof *e->list)) return NULL;
    m = &e->list[e->count++];
    *m = (made){.key = *key};
    if (px_cudnn_graph_make(e->cudnn, key, &m->graph, &m->why))
      px_log_message(&e->be->log, PX_LOG_VERBOSE, "cuDNN: a graph for %s, %lld rows of %lld sequences, %lld of one: %.1f MB of workspace",
                     key->backward ? "backward" : "forward", (long long)key->rows, (long long)key->seqs, (long long)key->longest,
                     (double)px_cudnn_graph_workspace(m->graph) / 1e6);
  }
  e->why = m->why; /* the list may move */
  *why = e->why.text;
  return m->graph ? m : NULL;
}

/* ---- its scratch ---- */

typedef struct room {
  int64_t *starts;
  int32_t *lens;
  float *stats; /* backward: [rows, heads] */
  void *workspace;
  size_t used;
} room;

static void *take(room *r, char *base, size_t bytes) {
  void *at = base ? base + r->used : NULL;
  r->used += (bytes + ALIGNED_TO - 1) / ALIGNED_TO * ALIGNED_TO;
  return at;
}

static int tensors_of(bool backward) { return backward ? PX_CUDNN_TENSORS : PX_CUDNN_STATS + 1; }

static room lay_out(const made *m, int64_t rows, char *base) {
  room r = {0};
  size_t slots = (size_t)m->key.seqs;
  r.starts = take(&r, base, (size_t)tensors_of(m->key.backward) * (slots + 1) * sizeof *r.starts);
  r.lens = take(&r, base, slots * sizeof *r.lens);
  if (m->key.backward) r.stats = take(&r, base, (size_t)rows * (size_t)m->key.heads * sizeof *r.stats);
  r.workspace = take(&r, base, px_cudnn_graph_workspace(m->graph));
  return r;
}

static size_t scratch_bytes(void *own, const px_attn_shape *s, int64_t rows, bool backward) {
  engine *e = own;
  const char *why;
  px_attn_shape whole = *s; /* a plan knows how large a batch can be, and no more of it */
  whole.q_rows = whole.k_rows = (int32_t)rows;
  whole.scale = (float)(1.0 / __builtin_sqrt((double)s->head_dim));
  if (refuses(e, &whole, backward)) return 0;
  int64_t q = (int64_t)s->heads * s->head_dim, kv = (int64_t)s->kv_heads * s->head_dim, strides[PX_CUDNN_TENSORS] = {q, kv, kv, q, s->heads};
  const int64_t more[] = {q, q, kv, kv};
  if (backward) memcpy(strides + PX_CUDNN_DOUT, more, sizeof more);
  px_cudnn_shape key = key_of(&whole, rows, backward, strides);
  const made *m = find(e, &key, &why);
  return m ? lay_out(m, rows, NULL).used : 0;
}

/* ---- a pass ---- */

static bool in_words(const void *p, int64_t stride) { return (uintptr_t)p % WORD == 0 && stride % (WORD / 2) == 0; }

static int pass(engine *e, const px_attn_shape *s, bool backward, void *const tensors[PX_CUDNN_TENSORS], const int64_t strides[PX_CUDNN_TENSORS],
                const float *lse, void *scratch, size_t bytes, void *stream, const char **why) {
  void *pointers[PX_CUDNN_TENSORS];
  *why = refuses(e, s, backward);
  if (*why) return PX_ATTN_REFUSED;
  for (int i = 0; i < tensors_of(backward); i++) {
    *why = "rows do not begin at multiples of 16 bytes";
    if (i != PX_CUDNN_STATS && !in_words(tensors[i], strides[i])) return PX_ATTN_REFUSED;
  }
  px_cudnn_shape key = key_of(s, s->q_rows, backward, strides);
  const made *m = find(e, &key, why);
  if (!m) return PX_ATTN_REFUSED;
  room r = lay_out(m, s->q_rows, scratch);
  *why = "the buffer plan has too little memory for it";
  if (r.used > bytes) return PX_ATTN_REFUSED;
  px_attn_ragged_args ragged = {.seqs = s->seqs,
                                .slots = (int32_t)m->key.seqs,
                                .offsets = s->q_offsets,
                                .tensors = tensors_of(backward),
                                .lens = r.lens,
                                .starts = r.starts,
                                .rows = s->q_rows,
                                .heads = s->heads,
                                .lse = backward ? lse : NULL,
                                .stats = r.stats};
  memcpy(ragged.strides, strides, (size_t)ragged.tensors * sizeof *strides);
  memcpy(pointers, tensors, sizeof pointers);
  if (backward) pointers[PX_CUDNN_STATS] = r.stats;
  int code = px_attn_ragged_cuda(&ragged, stream);
  if (code) return code;
  return px_cudnn_graph_run(e->cudnn, m->graph, pointers, r.starts, r.lens, r.workspace, stream, &e->why) ? 0 : FAILED;
}

/* The front end takes what it reads as void pointers too. */
#define READ(p) ((void *)(uintptr_t)(p))

static int forward(void *own, const px_attn_fwd_args *a, void *stream, const char **why) {
  void *const tensors[PX_CUDNN_TENSORS] = {READ(a->q), READ(a->k), READ(a->v), a->o, a->lse};
  const int64_t strides[PX_CUDNN_TENSORS] = {a->q_stride, a->k_stride, a->v_stride, a->o_stride, a->shape.heads};
  return pass(own, &a->shape, false, tensors, strides, NULL, a->scratch, a->scratch_bytes, stream, why);
}

static int backward(void *own, const px_attn_bwd_args *a, void *stream, const char **why) {
  void *const tensors[PX_CUDNN_TENSORS] = {READ(a->q), READ(a->k), READ(a->v), READ(a->o), NULL, READ(a->dout), a->dq, a->dk, a->dv};
  const int64_t strides[PX_CUDNN_TENSORS] = {a->q_stride,    a->k_stride,  a->v_stride,  a->o_stride, a->shape.heads,
                                             a->dout_stride, a->dq_stride, a->dk_stride, a->dv_stride};
  return pass(own, &a->shape, true, tensors, strides, a->lse, a->scratch, a->scratch_bytes, stream, why);
}

static const char *error_text(void *own, int code) {
  (void)code;
  return ((engine *)own)->why.text;
}

static void close_engine(void *own) {
  engine *e = own;
  for (size_t i = 0; i < e->count; i++) px_cudnn_graph_free(e->list[i].graph);
  free(e->list);
  px_cudnn_close(e->cudnn);
  free(e);
}

px_status px_cudnn_library(void **out, px_error *err) {
  static const char *const names[] = {"libcudnn.so.9", NULL}, *const compilers[] = {"libnvrtc.so.13", "libnvrtc.so.12", NULL};
  void *compiler;
  px_error ignored;
  px_cuda_library_open(compilers, "cuda_nvrtc", "nvidia-cuda-nvrtc", &compiler, &ignored); /* cuDNN asks for it by name alone */
  return px_cuda_library_open(names, "cudnn", "nvidia-cudnn-cu13", out, err);
}

px_status px_attn_cudnn_open(px_backend *be, px_attn_engine *out, px_error *err) {
  void *library;
  px_cudnn_text why;
  PX_TRY(px_cudnn_library(&library, err));
  engine *e = calloc(1, sizeof *e);
  if (!e) return px_fail(err, PX_NO_MEMORY, "no memory for cuDNN");
  e->be = be;
  if (!px_cudnn_open(library, NULL, 0, false, &e->cudnn, &why)) {
    free(e);
    return px_fail(err, PX_NO_DEVICE, "%s", why.text);
  }
  int device = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&e->major, cudaDevAttrComputeCapabilityMajor, device);
  *out = (px_attn_engine){
      .own = e, .lse_by_rows = true, .scratch_bytes = scratch_bytes, .fwd = forward, .bwd = backward, .error_text = error_text, .close = close_engine};
  const long v = e->version = px_cudnn_version(e->cudnn);
  snprintf(out->name, sizeof out->name, "cuDNN %ld.%ld.%ld", v / 10000, v / 100 % 100, v % 100);
  return PX_OK;
}

px_status px_attn_cudnn_properties(int device, char **out, size_t *bytes, px_error *err) {
  void *library;
  px_cudnn *cudnn;
  px_cudnn_text why;
  PX_TRY(px_cudnn_library(&library, err));
  if (!px_cudnn_open(library, NULL, 0, false, &cudnn, &why)) return px_fail(err, PX_NO_DEVICE, "%s", why.text);
  bool ok = px_cudnn_properties(cudnn, device, out, bytes, &why);
  px_cudnn_close(cudnn);
  return ok ? PX_OK : px_fail(err, PX_NO_DEVICE, "%s", why.text);
}
