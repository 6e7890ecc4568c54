/* SPDX-License-Identifier: MIT */
#include "train/evaluate.h"

#include <stdlib.h>

#include "train/batches.h"
#include "train/run.h"

enum { EVAL_TOKENS = 2048, EVAL_LOGIT_ROWS = 128 };

struct px_evaluator {
  const px_model *model;
  px_backend *be;
  px_batches batches;
  uint64_t batch_count;
  px_buffers buffers;
  px_group *group;
};

px_status px_evaluator_open(const px_model *model, px_backend *be, const px_rows *rows, const px_hooks *hooks, int32_t prefix_tokens, px_evaluator **out, px_error *err) {
  *out = NULL;
  px_evaluator *e = px_calloc(1, sizeof *e);
  if (!e) return px_fail(err, PX_NO_MEMORY, "no memory");
  e->model = model;
  e->be = be;
  px_batch_options options = {.batch_tokens = EVAL_TOKENS};
  px_status status = px_batches_open(rows, &options, &e->batches, err);
  if (status == PX_OK) {
    e->batch_count = px_batches_per_epoch(&e->batches, 0);
    px_batch_extent x = px_batches_walk(&e->batches, (px_cursor){0}, e->batch_count);
    px_plan_request request = {.dtype = model->dtype, .tokens = x.most_tokens, .seqs = x.most_rows, .labels = x.most_labels,
                               .positions = prefix_tokens + (int64_t)rows->longest, .segment_rows = prefix_tokens,
                               .logit_rows = x.most_labels < EVAL_LOGIT_ROWS ? x.most_labels : EVAL_LOGIT_ROWS};
    if (hooks) request.attached = hooks->attached;
    status = px_buffers_open(px_model_config(model), be, &request, &e->buffers, err);
  }
  if (status == PX_OK) {
    e->group = px_backend_alloc(be, sizeof *e->group);
    if (!e->group) status = px_backend_status(be, err);
  }
  if (status != PX_OK) {
    px_evaluator_close(e);
    return status;
  }
  *out = e;
  return PX_OK;
}

void px_evaluator_close(px_evaluator *e) {
  if (!e) return;
  px_batches_close(&e->batches);
  px_buffers_close(&e->buffers, e->be);
  px_backend_free(e->be, e->group);
  free(e);
}

/* Adds the losses of the batch's labelled rows to their rows' sums. */
static px_status add_row_losses(px_evaluator *e, double *row_loss, px_error *err) {
  const px_batch *b = &e->batches.batch;
  float *losses = px_calloc((size_t)b->labels, sizeof *losses);
  if (!losses) return px_fail(err, PX_NO_MEMORY, "no memory");
  px_backend_read(e->be, losses, e->buffers.row_loss, (size_t)b->labels * sizeof *losses);
  for (int32_t l = 0, s = 0; l < b->labels; l++) {
    while (b->label_rows[l] >= b->offsets[s + 1]) s++;
    row_loss[e->batches.batch_rows[s]] += losses[l];
  }
  free(losses);
  return PX_OK;
}

px_status px_evaluator_run(px_evaluator *e, const px_hooks *hooks, int32_t prefix_tokens, double *row_loss, px_eval_result *out, px_error *err) {
  double start = px_clock();
  *out = (px_eval_result){0};
  px_cursor cursor = {0};
  px_stack s = {.be = e->be, .config = px_model_config(e->model), .weights = &e->model->weights, .hooks = hooks, .buffers = &e->buffers};
  px_backend_zero(e->be, e->group, sizeof *e->group);
  for (uint64_t i = 0; i < e->batch_count; i++) {
    PX_TRY(px_batches_next(&e->batches, &cursor, prefix_tokens, hooks ? 0 : -1, err));
    if (e->batches.batch.labels == 0) continue;
    PX_TRY(px_stack_begin(&s, &e->batches.batch, err));
    px_stack_fwd(&s);
    px_head_fwd(&s);
    px_head_loss(&s, e->group, false);
    if (row_loss) PX_TRY(add_row_losses(e, row_loss, err));
    out->tokens += e->batches.batch.labels;
  }
  px_group group = {0};
  px_backend_read(e->be, &group, e->group, sizeof group);
  PX_TRY(px_backend_status(e->be, err));
  if (!out->tokens) return px_fail(err, PX_BAD_FILE, "no token of these rows has a loss");
  out->loss = group.loss_sum / (double)out->tokens;
  out->seconds = px_clock() - start;
  return PX_OK;
}

px_status px_eval_loss(const px_model *model, px_backend *be, const px_rows *rows, const px_hooks *hooks, int32_t prefix_tokens,
                       double *row_loss, px_eval_result *out, px_error *err) {
  px_evaluator *e = NULL;
  PX_TRY(px_evaluator_open(model, be, rows, hooks, prefix_tokens, &e, err));
  for (size_t r = 0; row_loss && r < rows->count; r++) row_loss[r] = 0;
  px_status status = px_evaluator_run(e, hooks, prefix_tokens, row_loss, out, err);
  px_evaluator_close(e);
  return status;
}
