/* SPDX-License-Identifier: MIT
 * Compiled where NVIDIA's header is: what host/backend/cublaslt_api.h declares is what it declares. */
#include <cublasLt.h>

#include "backend/cublaslt_api.h"

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)

SAME(PX_LT_SUCCESS, CUBLAS_STATUS_SUCCESS);
SAME(PX_LT_NOT_SUPPORTED, CUBLAS_STATUS_NOT_SUPPORTED);
SAME(PX_LT_R_32F, CUDA_R_32F);
SAME(PX_LT_R_16BF, CUDA_R_16BF);
SAME(PX_LT_COMPUTE_32F, CUBLAS_COMPUTE_32F);
SAME(PX_LT_OP_N, CUBLAS_OP_N);
SAME(PX_LT_OP_T, CUBLAS_OP_T);
SAME(PX_LT_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(PX_LT_DESC_TRANSB, CUBLASLT_MATMUL_DESC_TRANSB);
SAME(PX_LT_DESC_EPILOGUE, CUBLASLT_MATMUL_DESC_EPILOGUE);
SAME(PX_LT_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
SAME(PX_LT_DESC_BIAS_DATA_TYPE, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
SAME(PX_LT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_BIAS);
SAME(PX_LT_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(PX_LT_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(PX_LT_PREF_MIN_ALIGNMENT_A_BYTES + 3, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(sizeof(px_lt_algo), sizeof(cublasLtMatmulAlgo_t));
SAME(sizeof(px_lt_heuristic), sizeof(cublasLtMatmulHeuristicResult_t));
SAME(offsetof(px_lt_heuristic, workspace_bytes), offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
SAME(offsetof(px_lt_heuristic, state), offsetof(cublasLtMatmulHeuristicResult_t, state));
