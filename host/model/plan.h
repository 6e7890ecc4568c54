/* SPDX-License-Identifier: MIT
 * The buffer plan: every buffer that a step needs, known by name and size before the step, in one allocation. */
#ifndef PX_MODEL_PLAN_H
#define PX_MODEL_PLAN_H

#include "backend/backend.h"
#include "model/config.h"
#include "model/hooks.h"

typedef struct px_plan_request {
  px_dtype dtype;       /* of stored activations */
  int64_t tokens, seqs; /* at most, of one batch */
  int64_t labels;       /* at most: rows that reach the vocabulary product */
  int64_t positions;    /* largest position + 1 */
  int64_t logit_rows;   /* rows of logits held at once */
  int64_t segment_rows; /* prefix rows of all adapters together (attention's workspace) */
  int64_t row_tokens;   /* of one sequence, at most; 0: as many as the batch */
  px_backend *be;       /* whose attention may want scratch; px_buffers_open fills it in. NULL: none is planned */
  bool backward;        /* keep what backward needs */
  int32_t keep_from;    /* of the layers from here on: none below is trained */
  px_attached attached; /* to the projections */
  bool keep_kv;         /* keep every layer's keys and values (to read them back); implied by backward */
  bool decode;          /* room for attn_decode's workspace: one new token a sequence */
} px_plan_request;

/* What one layer leaves for its backward pass. Where nothing is kept, all layers share one set. Every matrix is dense:
 * oneDNN's fastest kernels take no other. */
typedef struct px_layer_saves {
  void *x, *mid;       /* [T, dim] inputs of the two norms */
  void *q_raw, *k_raw; /* as q and k, before their norms; NULL without */
  void *q, *k, *v;     /* [T, heads * head_dim], [T, kv_heads * head_dim] twice; after rotary embedding */
  void *o;             /* [T, heads * head_dim] */
  void *gate, *up;     /* [T, ffn_dim]; without a gate, `gate` is the pre-activation and up NULL */
  void *low[PX_SITES]; /* [T, rank] x A^T of a low-rank delta; NULL without */
  void *raw[PX_SITES]; /* [T, out] a projection before its scale; NULL without */
  float *lse;          /* [heads, T] */
  float *rstd1, *mean1, *rstd2, *mean2; /* [T] */
  float *qk_rstd;                       /* [T * heads] then [T * kv_heads] */
} px_layer_saves;

/* One line of the plan, as --verbose prints it. */
typedef struct px_plan_line {
  const char *name;
  size_t bytes;
} px_plan_line;

typedef struct px_plan {
  px_plan_request request;
  px_plan_line lines[40];
  int line_count;
  size_t total_bytes;
} px_plan;

/* What a step is told besides its rows; as px_group has it, in one piece. */
typedef struct px_control {
  int64_t tokens, step;
  float lr, clip;
} px_control;

typedef struct px_buffers {
  px_plan plan;
  void *memory;
  px_layer_saves *layers;                            /* [layers], host memory */
  void *n, *proj, *act;                              /* [T, dim] [T, dim] [T, ffn_dim] */
  void *dx, *dheads, *dq, *dk, *dv, *attn_workspace; /* backward; dn is n, the activation's gradient is act */
  void *n_again, *act_again, *act_scaled; /* inputs of projections, made anew: [T, dim], [T, ffn_dim] twice; NULL: not needed */
  void *dlow, *dropped;                   /* [T, largest rank], [T, widest input] */
  void *decode_workspace, *attn_scratch;
  size_t attn_scratch_bytes;
  void *head_x, *head_n, *head_dn;         /* [labels, dim] */
  float *head_rstd, *head_mean, *row_loss; /* [labels] */
  void *logits;                            /* [logit_rows, vocab] of dtype; float32 where nothing is trained */
  float *cos_table, *sin_table;            /* [positions, head_dim / 2] */
  /* The batch's own arrays, and what its step is told: one block, so that it can come in one piece. */
  void *batch;
  size_t batch_bytes;
  px_control *control;
  int32_t *ids, *positions, *offsets, *adapter, *label_rows, *targets, *label_group;
} px_buffers;

/* Sizes alone; nothing is allocated. */
void px_plan_make(const px_config *config, const px_plan_request *request, px_plan *plan);
/* The most tokens a batch, no more than the request's, with which the request needs no more than `bytes`; 0: none. */
int64_t px_plan_most_tokens(const px_config *config, const px_plan_request *request, size_t bytes);
/* Where px_buffers_open fails, nothing is left to close. PX_NO_MEMORY says what the plan needs, what is free, and what would
 * fit. */
px_status px_buffers_open(const px_config *config, px_backend *be, const px_plan_request *request, px_buffers *out,
                          px_error *err);
void px_buffers_close(px_buffers *b, px_backend *be);

#endif
