/* SPDX-License-Identifier: MIT
 * Loss over rows, and the probe: what pfx computes, laid open. */
#ifndef PX_TRAIN_EVALUATE_H
#define PX_TRAIN_EVALUATE_H

#include "text/rows.h"
#include "tune/adapter.h"
#include "tune/tune.h"

typedef struct px_eval_result {
  double loss;        /* sum over labelled tokens / their number */
  int64_t tokens;     /* labelled tokens */
  double seconds;
} px_eval_result;

/* Buffers for evaluating one set of rows again and again, on the caller's backend, with hooks like these (NULL: none).
 * prefix_tokens: the most virtual tokens. */
typedef struct px_evaluator px_evaluator;
px_status px_evaluator_open(const px_model *model, px_backend *be, const px_rows *rows, const px_hooks *hooks, int32_t prefix_tokens, px_evaluator **out, px_error *err);
void px_evaluator_close(px_evaluator *e);
px_status px_evaluator_run(px_evaluator *e, const px_hooks *hooks, int32_t prefix_tokens, double *row_loss, px_eval_result *out, px_error *err);

/* The same for one use. hooks and prefix_tokens describe the adapter (id 0); hooks NULL: the frozen model. row_loss (may be NULL) gets the sum of
 * losses of each row, [rows->count]. Deterministic: batches of a fixed token budget in file order. */
px_status px_eval_loss(const px_model *model, px_backend *be, const px_rows *rows, const px_hooks *hooks, int32_t prefix_tokens,
                       double *row_loss, px_eval_result *out, px_error *err);

/* Writes ids, labels, offsets, logits, loss and, with an adapter (or a freshly initialised `tune` part), the gradient of
 * the mean loss with respect to it, as safetensors. Exactly one of adapter and tune may be given, or neither. */
px_status px_probe(const px_model *model, px_backend *be, const px_rows *rows, const px_adapter *adapter, px_tune *tune,
                   const char *out_path, px_error *err);

#endif
