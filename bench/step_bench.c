/* SPDX-License-Identifier: MIT
 * Where a training step's time goes: seconds of every operation over a few steps on real rows.
 *   step_bench MODEL DATA.jsonl [f32|bf16] [STEPS] [PREFIX] */
#include <stdio.h>
#include <stdlib.h>

#include "train/batches.h"
#include "train/run.h"
#include "tune/tune.h"

static px_error err;

static void need(px_status status) {
  if (status == PX_OK) return;
  fprintf(stderr, "step_bench: %s\n", err.message);
  exit(1);
}

static void one_step(const px_model *model, px_backend *be, px_tune *tune, px_batches *batches, px_buffers *buffers,
                     px_group *groups, px_cursor *cursor) {
  px_stack s = {.be = be,
                .config = px_model_config(model),
                .weights = &model->weights,
                .hooks = &tune->hooks,
                .buffers = buffers};
  px_group group = {.lr = 1e-3f, .clip = 1};
  need(px_batches_next(batches, cursor, tune->tokens, 0, &err));
  group.tokens = batches->batch.labels;
  px_backend_write(be, groups, &group, sizeof group);
  px_tune_zero_grads(tune);
  px_tune_begin_step(tune, 0, &groups->step);
  need(px_stack_begin(&s, &batches->batch, &err));
  px_stack_fwd(&s);
  px_head_fwd(&s);
  px_head_loss(&s, groups, true);
  px_stack_bwd(&s);
  px_tune_end_step(tune, 0, &groups->step);
  px_op_sum_sq(be, &(px_sum_sq_args){
                       .tensors = tune->list, .tensor_count = tune->param_count, .groups = groups, .group_count = 1});
  px_op_adamw(be, &(px_adamw_args){.tensors = tune->list,
                                   .tensor_count = tune->param_count,
                                   .groups = groups,
                                   .group_count = 1,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.999f,
                                   .eps = 1e-8f});
  need(px_backend_status(be, &err));
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: step_bench MODEL DATA.jsonl [f32|bf16] [STEPS] [PREFIX]\n");
    return 2;
  }
  int dtype = argc > 3 && strcmp(argv[3], "f32") == 0 ? PX_F32 : PX_BF16, steps = argc > 4 ? atoi(argv[4]) : 20;
  px_model *model;
  px_tokenizer *tok;
  px_backend *be;
  px_tune *tune;
  px_rows rows;
  px_batches batches;
  px_buffers buffers;
  px_cursor cursor = {0};
  need(px_model_open(argv[1], &(px_model_options){.dtype = dtype}, &model, &err));
  need(px_tokenizer_open(argv[1], &tok, &err));
  need(px_backend_open_cpu(&(px_backend_options){.profile = true, .pack_weights = dtype == PX_BF16 ? PX_PACK_ALL : PX_PACK_TRANSPOSED}, &be, &err));
  need(px_tune_open(model, be, tok, &(px_tune_spec){.prefix_tokens = argc > 5 ? atoi(argv[5]) : 20}, 0, &tune, &err));
  need(px_rows_read(argv[2], tok, &(px_row_options){.max_row_tokens = 1024}, NULL, &rows, &err));
  need(px_batches_open(&rows, &(px_batch_options){.batch_rows = 16, .shuffle = true}, &batches, &err));
  px_batch_extent x = px_batches_walk(&batches, cursor, (uint64_t)steps + 3);
  px_plan_request request = {.dtype = (px_dtype)dtype,
                             .tokens = x.most_tokens,
                             .seqs = 16,
                             .labels = x.most_labels,
                             .positions = 1100,
                             .logit_rows = 256,
                             .segment_rows = tune->tokens,
                             .backward = true};
  need(px_buffers_open(px_model_config(model), be, &request, &buffers, &err));
  px_group *groups = px_backend_alloc(be, sizeof *groups);
  for (int i = 0; i < 3; i++) one_step(model, be, tune, &batches, &buffers, groups, &cursor);
  memset(be->op_seconds, 0, sizeof be->op_seconds);
  memset(be->op_calls, 0, sizeof be->op_calls);
  px_batch_extent timed = px_batches_walk(&batches, cursor, (uint64_t)steps);
  double start = px_clock();
  for (int i = 0; i < steps; i++) one_step(model, be, tune, &batches, &buffers, groups, &cursor);
  double seconds = px_clock() - start;
  printf("%s, %s, %d threads: %.1f tokens a step, %.1f ms a step, %.0f tokens/s, peak %.2f GB\n",
         px_dtype_name((px_dtype)dtype), be->products, be->threads, (double)timed.tokens / steps, 1e3 * seconds / steps,
         (double)timed.tokens / seconds, (double)px_peak_bytes() / 1e9);
  for (int op = 0; op < PX_OP_COUNT; op++)
    if (be->op_calls[op])
      printf("  %-14s %8.2f ms a step %6.1f %%  %6lld calls\n", px_op_name(op), 1e3 * be->op_seconds[op] / steps,
             100 * be->op_seconds[op] / seconds, (long long)(be->op_calls[op] / steps));
  return 0;
}
