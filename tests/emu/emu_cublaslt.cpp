/* SPDX-License-Identifier: MIT
 * A stand-in for libcublasLt.so: the calls that pfx makes, on plain loops, checking every descriptor as the real
 * library would. It is opened at run time as that one is.
 *
 * PX_EMU_REFUSE=1: it supports no product; PX_EMU_NO_GELU=1: none with GELU. PX_EMU_CANDIDATES=N: it names N algorithms (1), which add in other orders;
 * the one that PX_EMU_FASTEST numbers (0) takes half of the others' time. PX_EMU_LT_FAIL=N: its Nth call fails. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <vector>

#include "emu.h"

namespace {

enum { SUCCESS = 0, NO_MEMORY = 3, INVALID = 7, UNSUPPORTED = 15, R_32F = 0, R_16BF = 14, COMPUTE_32F = 68 };
enum { EPILOGUE_NONE = 1, EPILOGUE_BIAS = 4, EPILOGUE_GELU_AUX = 160, EPILOGUE_GELU_AUX_BIAS = 164 };
enum { REDUCTION_IN_PLACE = 1 }; /* sums in the order in which blocks end: nobody who repeats asks for it */
enum { MAGIC_DESC = 0x44455343, MAGIC_LAYOUT = 0x4c41594f, MAGIC_PREFERENCE = 0x50524546, MAGIC_ALGO = 0x414c474f };

struct description {
  int magic, trans_a, trans_b, epilogue, bias_type;
  const void *bias;
  void *aux;
  int64_t aux_ld;
};
struct layout {
  int magic, type;
  uint64_t rows, cols;
  int64_t ld;
};
struct preference {
  int magic;
  size_t workspace_bytes;
  uint32_t alignment[4], reductions;
};
/* What the library keeps in its opaque numbers. */
enum { ALGO_MAGIC, ALGO_ALIGNMENT, ALGO_WORKSPACE = 5, ALGO_NUMBER };
struct algorithm {
  uint64_t data[8];
};
struct heuristic {
  algorithm algo;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

size_t bytes_of(int type) { return type == R_32F ? 4 : 2; }

float get(const layout &l, const void *p, uint64_t row, uint64_t col) {
  uint64_t at = row + col * (uint64_t)l.ld;
  if (l.type == R_32F) return static_cast<const float *>(p)[at];
  uint32_t bits = (uint32_t) static_cast<const uint16_t *>(p)[at] << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

void put(const layout &l, void *p, uint64_t row, uint64_t col, float f) {
  uint64_t at = row + col * (uint64_t)l.ld;
  if (l.type == R_32F) {
    static_cast<float *>(p)[at] = f;
    return;
  }
  uint32_t u;
  memcpy(&u, &f, 4);
  static_cast<uint16_t *>(p)[at] = (uint16_t)(isnan(f) ? (u >> 16) | 0x40 : (u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

/* Whether the matrix [rows x cols] lies in device memory. */
bool holds(const layout &l, const void *p) {
  return px_emu::memory_holds(p, (((size_t)l.cols - 1) * (size_t)l.ld + (size_t)l.rows) * bytes_of(l.type));
}

/* In order, from the end, or in strides: the algorithm's number. */
float dot(const float *a, const float *b, uint64_t depth, uint64_t algorithm) {
  float sum = 0;
  if (algorithm < 2) {
    for (uint64_t k = 0; k < depth; k++) {
      uint64_t at = algorithm ? depth - 1 - k : k;
      sum += a[at] * b[at];
    }
    return sum;
  }
  for (uint64_t first = 0; first < algorithm; first++) {
    float part = 0;
    for (uint64_t k = first; k < depth; k += algorithm) part += a[k] * b[k];
    sum += part;
  }
  return sum;
}

void multiply(description d, layout la, const void *a, layout lb, const void *b, float alpha, float beta, layout lc,
              void *c, uint64_t algorithm) {
  uint64_t depth = d.trans_a ? la.rows : la.cols;
  std::vector<float> left(la.rows * la.cols); /* [row of op(a)][k] */
  for (uint64_t i = 0; i < lc.rows; i++)
    for (uint64_t k = 0; k < depth; k++) left[i * depth + k] = d.trans_a ? get(la, a, k, i) : get(la, a, i, k);
  std::vector<float> column(depth);
  for (uint64_t j = 0; j < lc.cols; j++) {
    for (uint64_t k = 0; k < depth; k++) column[k] = d.trans_b ? get(lb, b, j, k) : get(lb, b, k, j);
    for (uint64_t i = 0; i < lc.rows; i++) {
      float sum = alpha * dot(&left[i * depth], column.data(), depth, algorithm);
      if (beta != 0) sum += beta * get(lc, c, i, j);
      if (d.epilogue & EPILOGUE_BIAS) sum += get({MAGIC_LAYOUT, lc.type, lc.rows, 1, (int64_t)lc.rows}, d.bias, i, 0);
      if (d.epilogue & EPILOGUE_GELU_AUX) {
        put({MAGIC_LAYOUT, lc.type, lc.rows, lc.cols, d.aux_ld}, d.aux, i, j, sum);
        double x = sum; /* in other bits than a kernel's */
        sum = (float)(0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))));
      }
      put(lc, c, i, j, sum);
    }
  }
}

bool valid(const layout *l) {
  return l && l->magic == MAGIC_LAYOUT && l->rows && l->cols && l->ld >= (int64_t)l->rows &&
         (l->type == R_32F || l->type == R_16BF);
}

/* Shapes and types that go together. */
int check(const description *d, const layout *a, const layout *b, const layout *c) {
  if (!d || d->magic != MAGIC_DESC || !valid(a) || !valid(b) || !valid(c)) return INVALID;
  uint64_t m = d->trans_a ? a->cols : a->rows, k = d->trans_a ? a->rows : a->cols;
  uint64_t n = d->trans_b ? b->rows : b->cols, k_b = d->trans_b ? b->cols : b->rows;
  if (m != c->rows || n != c->cols || k != k_b) return INVALID;
  if (a->type != b->type || (c->type != a->type && c->type != R_32F)) return UNSUPPORTED;
  if ((d->epilogue & EPILOGUE_BIAS) && (!d->bias || d->bias_type != c->type)) return UNSUPPORTED;
  if (d->epilogue & EPILOGUE_GELU_AUX) {
    if (!d->aux || d->aux_ld < (int64_t)c->rows || d->aux_ld % 8 || (uintptr_t)d->aux % 16) return INVALID;
    if (px_emu::setting("PX_EMU_NO_GELU", 0)) return UNSUPPORTED;
  }
  return SUCCESS;
}

/* What the epilogue reads and writes lies in device memory. */
bool epilogue_holds(const description &d, const layout &c) {
  layout bias = {MAGIC_LAYOUT, c.type, c.rows, 1, (int64_t)c.rows}, aux = {MAGIC_LAYOUT, c.type, c.rows, c.cols, d.aux_ld};
  return (!(d.epilogue & EPILOGUE_BIAS) || holds(bias, d.bias)) && (!(d.epilogue & EPILOGUE_GELU_AUX) || holds(aux, d.aux));
}

/* First thing in every call that answers with a status. */
int enter() {
  static long calls;
  if (++calls != px_emu::setting("PX_EMU_LT_FAIL", 0)) return SUCCESS;
  fprintf(stderr, "emulator: call %ld of cuBLASLt fails\n", calls);
  return NO_MEMORY;
}
#define ENTER()                        \
  do {                                 \
    if (int code_ = enter()) return code_; \
  } while (0)

bool valid_algorithm(const algorithm *a) { return a && a->data[ALGO_MAGIC] == MAGIC_ALGO && a->data[ALGO_NUMBER] < 64; }

}  // namespace

extern "C" {

int cublasLtCreate(void **handle) {
  ENTER();
  *handle = new int(1);
  return SUCCESS;
}
int cublasLtDestroy(void *handle) {
  delete static_cast<int *>(handle);
  return SUCCESS;
}
size_t cublasLtGetVersion(void) { return 130000; }

int cublasLtMatmulDescCreate(void **desc, int compute, int scale_type) {
  ENTER();
  if (compute != COMPUTE_32F || scale_type != R_32F) return INVALID;
  *desc = new description{MAGIC_DESC, 0, 0, EPILOGUE_NONE, -1, nullptr, nullptr, 0};
  return SUCCESS;
}
int cublasLtMatmulDescDestroy(void *desc) {
  delete static_cast<description *>(desc);
  return SUCCESS;
}
int cublasLtMatmulDescSetAttribute(void *desc, int what, const void *value, size_t bytes) {
  ENTER();
  description *d = static_cast<description *>(desc);
  struct {
    int what;
    void *to;
    size_t bytes;
  } known[] = {{3, &d->trans_a, 4}, {4, &d->trans_b, 4}, {7, &d->epilogue, 4},  {26, &d->bias_type, 4},
               {8, &d->bias, 8},    {11, &d->aux, 8},    {12, &d->aux_ld, 8}};
  for (auto &k : known) {
    if (d->magic != MAGIC_DESC || k.what != what || k.bytes != bytes) continue;
    int v;
    memcpy(&v, value, 4);
    if (what <= 4 && v != 0 && v != 1) return INVALID;
    if (what == 7 && v != EPILOGUE_NONE && v != EPILOGUE_BIAS && v != EPILOGUE_GELU_AUX && v != EPILOGUE_GELU_AUX_BIAS)
      return INVALID;
    memcpy(k.to, value, bytes);
    return SUCCESS;
  }
  return INVALID;
}
int cublasLtMatrixLayoutCreate(void **out, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  ENTER();
  *out = new layout{MAGIC_LAYOUT, type, rows, cols, ld};
  return SUCCESS;
}
int cublasLtMatrixLayoutDestroy(void *l) {
  delete static_cast<layout *>(l);
  return SUCCESS;
}
int cublasLtMatmulPreferenceCreate(void **out) {
  ENTER();
  *out = new preference{MAGIC_PREFERENCE, 0, {256, 256, 256, 256}, 0xffffffff};
  return SUCCESS;
}
int cublasLtMatmulPreferenceDestroy(void *p) {
  delete static_cast<preference *>(p);
  return SUCCESS;
}
int cublasLtMatmulPreferenceSetAttribute(void *at, int what, const void *value, size_t bytes) {
  ENTER();
  preference *p = static_cast<preference *>(at);
  if (p->magic != MAGIC_PREFERENCE) return INVALID;
  if (what == 1 && bytes == sizeof p->workspace_bytes)
    memcpy(&p->workspace_bytes, value, bytes);
  else if (what == 3 && bytes == 4)
    memcpy(&p->reductions, value, 4);
  else if (what >= 5 && what <= 8 && bytes == 4)
    memcpy(&p->alignment[what - 5], value, 4);
  else
    return INVALID;
  return SUCCESS;
}

/* Alignment is that which the preference promised; the product checks it. */
int cublasLtMatmulAlgoGetHeuristic(void *, void *desc, void *a, void *b, void *c, void *d, void *preferred, int wanted,
                                   heuristic *results, int *count) {
  ENTER();
  preference *p = static_cast<preference *>(preferred);
  int code = check(static_cast<description *>(desc), static_cast<layout *>(a), static_cast<layout *>(b),
                   static_cast<layout *>(d));
  *count = 0;
  if (code == SUCCESS && (c != d || wanted < 1 || p->magic != MAGIC_PREFERENCE)) code = INVALID;
  if (code == SUCCESS && (p->reductions & REDUCTION_IN_PLACE)) code = INVALID;
  if (code == SUCCESS && px_emu::setting("PX_EMU_REFUSE", 0)) code = UNSUPPORTED;
  if (code != SUCCESS) return code;
  for (int i = 0; i < wanted && i < px_emu::setting("PX_EMU_CANDIDATES", 1); i++) {
    heuristic h = {};
    h.algo.data[ALGO_MAGIC] = MAGIC_ALGO;
    for (int k = 0; k < 4; k++) h.algo.data[ALGO_ALIGNMENT + k] = p->alignment[k];
    h.algo.data[ALGO_WORKSPACE] = h.workspace_bytes = p->workspace_bytes / 2;
    h.algo.data[ALGO_NUMBER] = (uint64_t)i;
    results[(*count)++] = h;
  }
  return SUCCESS;
}

/* Whether an algorithm, of another day perhaps, does this product. */
int cublasLtMatmulAlgoCheck(void *, void *desc, void *a, void *b, void *c, void *d, const algorithm *algo,
                            heuristic *result) {
  ENTER();
  int code = check(static_cast<description *>(desc), static_cast<layout *>(a), static_cast<layout *>(b),
                   static_cast<layout *>(d));
  if (code == SUCCESS && (c != d || !valid_algorithm(algo))) code = INVALID;
  if (code != SUCCESS) return code;
  *result = {};
  result->algo = *algo;
  result->workspace_bytes = algo->data[ALGO_WORKSPACE];
  return SUCCESS;
}

int cublasLtMatmul(void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b,
                   void *b_layout, const void *beta, const void *c, void *c_layout, void *out, void *out_layout,
                   const algorithm *algo, void *workspace, size_t workspace_bytes, cudaStream_t stream) {
  description *d = static_cast<description *>(desc);
  layout *la = static_cast<layout *>(a_layout), *lb = static_cast<layout *>(b_layout),
         *lc = static_cast<layout *>(out_layout);
  ENTER();
  if (!handle || *static_cast<int *>(handle) != 1 || !valid_algorithm(algo)) return INVALID;
  int code = check(d, la, lb, lc);
  if (code != SUCCESS) return code;
  const void *pointers[] = {a, b, c, out};
  for (int i = 0; i < 4; i++)
    if ((uintptr_t)pointers[i] % algo->data[ALGO_ALIGNMENT + i]) return INVALID;
  if (c != out || c_layout != out_layout || workspace_bytes < algo->data[ALGO_WORKSPACE]) return INVALID;
  if (!holds(*la, a) || !holds(*lb, b) || !holds(*lc, out) || !epilogue_holds(*d, *lc) ||
      (workspace_bytes && !px_emu::memory_holds(workspace, workspace_bytes))) {
    px_emu::enqueue(stream, "cublasLtMatmul", [] { px_emu::stick(cudaErrorIllegalAddress); });
    return SUCCESS;
  }
  float alpha_value = *static_cast<const float *>(alpha), beta_value = *static_cast<const float *>(beta);
  description d_copy = *d;
  layout la_copy = *la, lb_copy = *lb, lc_copy = *lc;
  uint64_t number = algo->data[ALGO_NUMBER];
  px_emu::enqueue(stream, "cublasLtMatmul", [=] {
    px_emu::spend((long)number == px_emu::setting("PX_EMU_FASTEST", 0) ? 0.5 : 1);
    if (workspace_bytes) memset(workspace, 0xff, workspace_bytes < 4096 ? workspace_bytes : 4096);
    multiply(d_copy, la_copy, a, lb_copy, b, alpha_value, beta_value, lc_copy, out, number);
  });
  return SUCCESS;
}

}  // extern "C"
