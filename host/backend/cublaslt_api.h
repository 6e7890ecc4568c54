/* SPDX-License-Identifier: MIT
 * The part of cuBLASLt's C interface that pfx uses, declared here because the library is opened at run time and its
 * header is not everywhere. Names and values are NVIDIA's (cuBLAS 12 and 13), less their prefix. */
#ifndef PX_BACKEND_CUBLASLT_API_H
#define PX_BACKEND_CUBLASLT_API_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

enum {
  PX_LT_SUCCESS = 0,
  PX_LT_INVALID_VALUE = 7,
  PX_LT_NOT_SUPPORTED = 15,
  PX_LT_R_32F = 0,
  PX_LT_R_16BF = 14,
  PX_LT_COMPUTE_32F = 68,
  PX_LT_OP_N = 0,
  PX_LT_OP_T = 1,
  PX_LT_DESC_TRANSA = 3,
  PX_LT_DESC_TRANSB = 4,
  PX_LT_DESC_EPILOGUE = 7,
  PX_LT_DESC_BIAS_POINTER = 8,
  PX_LT_DESC_BIAS_DATA_TYPE = 26,
  PX_LT_DESC_EPILOGUE_AUX_POINTER = 11,
  PX_LT_DESC_EPILOGUE_AUX_LD = 12,
  PX_LT_EPILOGUE_BIAS = 4,
  PX_LT_EPILOGUE_GELU_AUX = 160, /* before the activation: to AUX; after it: the result */
  PX_LT_EPILOGUE_GELU_AUX_BIAS = 164,
  PX_LT_PREF_MAX_WORKSPACE_BYTES = 1,
  PX_LT_PREF_REDUCTION_SCHEME_MASK = 3,
  PX_LT_REDUCTION_COMPUTE_TYPE = 2,
  PX_LT_REDUCTION_OUTPUT_TYPE = 4,
  PX_LT_PREF_MIN_ALIGNMENT_A_BYTES = 5, /* B, C, D follow */
};

typedef struct px_lt_algo {
  uint64_t data[8];
} px_lt_algo;

typedef struct px_lt_heuristic {
  px_lt_algo algo;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
} px_lt_heuristic;

/* X(result, name, arguments); handles, descriptors, layouts and preferences are opaque pointers. */
#define PX_LT_CALLS(X)                                                                                          \
  X(int, Create, (void **handle))                                                                               \
  X(int, Destroy, (void *handle))                                                                               \
  X(size_t, GetVersion, (void))                                                                                 \
  X(int, MatmulDescCreate, (void **desc, int compute, int scale_type))                                          \
  X(int, MatmulDescDestroy, (void *desc))                                                                       \
  X(int, MatmulDescSetAttribute, (void *desc, int what, const void *value, size_t bytes))                       \
  X(int, MatrixLayoutCreate, (void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld))               \
  X(int, MatrixLayoutDestroy, (void *layout))                                                                   \
  X(int, MatmulPreferenceCreate, (void **preference))                                                           \
  X(int, MatmulPreferenceDestroy, (void *preference))                                                           \
  X(int, MatmulPreferenceSetAttribute, (void *preference, int what, const void *value, size_t bytes))           \
  X(int, MatmulAlgoGetHeuristic,                                                                                \
    (void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference, int wanted,                \
     px_lt_heuristic *results, int *count))                                                                     \
  X(int, MatmulAlgoCheck,                                                                                       \
    (void *handle, void *desc, void *a, void *b, void *c, void *d, const px_lt_algo *algo, px_lt_heuristic *result)) \
  X(int, Matmul,                                                                                                \
    (void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b, void *b_layout, \
     const void *beta, const void *c, void *c_layout, void *d, void *d_layout, const px_lt_algo *algo,          \
     void *workspace, size_t workspace_bytes, cudaStream_t stream))

typedef struct px_lt_api {
#define PX_LT_MEMBER(result, name, arguments) result(*name) arguments;
  PX_LT_CALLS(PX_LT_MEMBER)
#undef PX_LT_MEMBER
} px_lt_api;

#endif
