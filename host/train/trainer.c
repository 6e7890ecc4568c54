/* SPDX-License-Identifier: MIT
 * A run: set up or taken up again, steps, validation, the end. */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/version.h"
#include "train/run.h"

double px_run_lr(const px_run *run, int64_t step) {
  const px_train_options *o = &run->options;
  if (step < o->warmup) return o->lr * (double)(step + 1) / (double)o->warmup;
  double share = (double)(step - o->warmup) / (double)(o->steps - o->warmup > 0 ? o->steps - o->warmup : 1);
  if (o->schedule == PX_SCHEDULE_CONSTANT) return o->lr;
  return o->schedule == PX_SCHEDULE_COSINE ? o->lr * 0.5 * (1 + cos(3.14159265358979323846 * share))
                                           : o->lr * (1 - share);
}

/* An absolute path in the arena, so that a run can be resumed from anywhere. */
static const char *absolute(px_run *run, const char *path) {
  char *real = path ? realpath(path, NULL) : NULL;
  const char *copy = path ? px_arena_strdup(&run->arena, real ? real : path) : NULL;
  free(real);
  return copy;
}

/* The same for a folder that is written into and need not be there yet. */
static const char *folder(px_run *run, const char *path) {
  if (path) px_dir_make(path, NULL);
  return absolute(run, path);
}

/* What a schedule can hold: beyond them a number is a slip. */
static const int64_t MOST_STEPS = 1000000000;
enum { MOST_EPOCHS = 100000, MOST_ACCUMULATED = 1000000 };

static void fill_defaults(px_train_options *o) {
  if (!o->tune) o->tune = "prefix:20";
  if (o->batch_rows == 0 && o->batch_tokens == 0) o->batch_rows = 16;
  if (o->accumulate == 0) o->accumulate = 1;
  if (o->beta1 == 0) o->beta1 = 0.9;
  if (o->beta2 == 0) o->beta2 = 0.999;
  if (o->eps == 0) o->eps = 1e-8;
  if (o->clip == 0) o->clip = 1.0;
}

static px_status check_options(const px_train_options *o, px_error *err) {
  if (!o->model_path || !o->data || !o->out) return px_fail(err, PX_INVALID, "--model, --data and --out are needed");
  if (o->batch_rows > 0 && o->batch_tokens > 0)
    return px_fail(err, PX_INVALID, "--batch-rows and --batch-tokens exclude each other");
  if (!(o->lr >= 0) || !isfinite((float)o->lr) || !((float)o->prefix_dropout >= 0 && (float)o->prefix_dropout < 1) ||
      !(o->weight_decay >= 0) || !isfinite((float)o->weight_decay) || !isfinite((float)o->clip))
    return px_fail(err, PX_INVALID,
                   "--lr, --weight-decay and --clip must be finite numbers, the first two not negative, --prefix-dropout "
                   "must be in [0, 1)");
  if (o->steps < 0 || o->steps > MOST_STEPS || !(o->epochs >= 0 && o->epochs <= MOST_EPOCHS))
    return px_fail(err, PX_INVALID, "--steps must be in 0 .. %lld and --epochs in 0 .. %d", (long long)MOST_STEPS,
                   MOST_EPOCHS);
  if (o->batch_rows < 0 || o->batch_tokens < 0 || o->accumulate < 1 || o->accumulate > MOST_ACCUMULATED)
    return px_fail(err, PX_INVALID,
                   "--batch-rows and --batch-tokens must not be negative, --accumulate must be in 1 .. %d",
                   MOST_ACCUMULATED);
  if (o->warmup < -1 || o->eval_every < -1 || o->save_every < -1 || (o->clip < 0 && o->clip != -1) || o->patience < 0)
    return px_fail(err, PX_INVALID,
                   "--warmup, --eval-every, --save-every, --clip and --patience must not be negative (but -1 where the help "
                   "says so)");
  return PX_OK;
}

static px_status read_rows(px_run *run, int32_t prefix_tokens, px_error *err) {
  px_train_options *o = &run->options;
  const px_config *c = px_model_config(run->model);
  int room = c->context - prefix_tokens;
  if (room < 2)
    return px_fail(err, PX_INVALID, "%d virtual tokens leave no room in the model's context of %d", prefix_tokens,
                   c->context);
  if (o->rows.max_row_tokens <= 0) {
    o->rows.max_row_tokens = room;
    run->defaults |= PX_DEFAULT_ROW_TOKENS;
  }
  if (o->rows.max_row_tokens > room)
    return px_fail(err, PX_INVALID, "--max-row-tokens %d and %d virtual tokens exceed the model's context of %d",
                   o->rows.max_row_tokens, prefix_tokens, c->context);
  o->rows.vocab_size = c->vocab;
  PX_TRY(px_rows_read(o->data, run->tok, &o->rows, &run->calls->log, &run->train, err));
  return o->valid ? px_rows_read(o->valid, run->tok, &o->rows, &run->calls->log, &run->valid, err) : PX_OK;
}

/* The rows and what is trained. A start that is read says how much room the rows have; one that the rows give has to
 * wait for them. */
static px_status open_tune(px_run *run, px_error *err) {
  px_tune_spec *spec = &run->spec;
  bool from_rows = px_tune_reads_rows(spec) && !spec->restored;
  if (from_rows) {
    PX_TRY(read_rows(run, px_tune_spec_tokens(spec), err));
    spec->data_ids = run->train.ids;
    spec->data_tokens = (int64_t)run->train.offsets[run->train.count];
  }
  PX_TRY(px_tune_open(run->model, run->be, run->tok, spec, run->options.seed, &run->tune, err));
  return from_rows ? PX_OK : read_rows(run, run->tune->tokens, err);
}

/* The length of the run, and what follows from it. */
static px_status settle_schedule(px_run *run, px_error *err) {
  px_train_options *o = &run->options;
  if (o->steps == 0) {
    double epochs = o->epochs > 0 ? o->epochs : 1, whole_epochs = floor(epochs), batches = 0;
    if (o->batch_rows > 0) /* the same in every epoch */
      batches = whole_epochs * (double)px_batches_per_epoch(&run->batches, 0);
    for (uint32_t e = 0; o->batch_rows == 0 && e < (uint32_t)whole_epochs; e++)
      batches += (double)px_batches_per_epoch(&run->batches, e);
    if (epochs > whole_epochs)
      batches += ceil((epochs - whole_epochs) * (double)px_batches_per_epoch(&run->batches, (uint32_t)whole_epochs));
    o->steps = (int64_t)ceil(batches / o->accumulate);
    if (o->steps < 1) o->steps = 1;
    if (o->steps > MOST_STEPS)
      return px_fail(err, PX_INVALID, "--epochs makes %lld steps; %lld are the most", (long long)o->steps,
                     (long long)MOST_STEPS);
  }
  if (o->warmup < 0) {
    o->warmup = o->steps / 20;
    run->defaults |= PX_DEFAULT_WARMUP;
  }
  if (o->warmup >= o->steps)
    return px_fail(err, PX_INVALID, "--warmup %lld leaves nothing of a run of %lld steps", (long long)o->warmup,
                   (long long)o->steps);
  if (o->eval_every == 0) {
    o->eval_every = (o->steps + 4) / 5;
    run->defaults |= PX_DEFAULT_EVAL_EVERY;
  }
  if (o->save_every == 0) {
    o->save_every = (o->steps + 4) / 5;
    run->defaults |= PX_DEFAULT_SAVE_EVERY;
  }
  return PX_OK;
}

/* A single part's rate may be said in short; parts together say each their own. */
static px_status settle_rates(px_run *run, px_error *err) {
  px_train_options *o = &run->options;
  px_part_spec *first = &run->spec.parts[0];
  bool every = true;
  for (int i = 0; i < run->spec.part_count; i++) every &= run->spec.parts[i].lr > 0;
  if (o->lr > 0 && run->spec.part_count > 1 && !every)
    return px_fail(err, PX_INVALID, "--tune %s: --lr is the rate of a single part: write lr= at each of these", o->tune);
  if (o->lr == 0 || run->spec.part_count > 1) {
    o->lr = first->lr > 0 ? first->lr : px_part_usual_lr(first);
    run->defaults |= PX_DEFAULT_LR;
  }
  return PX_OK;
}

/* Everything between the options and the first step. sizes: of the parts with virtual tokens, where a checkpoint will be
 * read (what they started from may be gone by then); NULL for a run that starts. */
static px_status set_up(px_run *run, const int32_t *sizes, px_error *err) {
  px_train_options *o = &run->options;
  px_backend_options backend = {.device = run->model->be->device,
                                .threads = run->model->be->threads,
                                .log = run->calls->log,
                                .time_products = true,
                                .pack_weights = run->model->dtype == PX_BF16 ? PX_PACK_ALL : PX_PACK_TRANSPOSED,
                                .attention = run->engine      ? run->engine
                                             : o->attention   ? o->attention
                                                              : run->model->be->attention};
  PX_TRY(px_backend_open(&backend, &run->be, err));
  PX_TRY(px_tune_parse(o->tune, o->init, o->reparam, &run->spec, err));
  run->spec.force = o->force;
  run->spec.restored = sizes != NULL;
  for (int i = 0; sizes && i < run->spec.part_count; i++)
    if (sizes[i] > 0) run->spec.parts[i].size = sizes[i];
  o->init = px_tune_init_text(&run->spec, &run->arena);
  if (!o->init) return px_fail(err, PX_NO_MEMORY, "no memory");
  px_part_spec *prefix = px_tune_part(&run->spec, PX_PART_PREFIX);
  if (o->prefix_dropout > 0 && !prefix) return px_fail(err, PX_INVALID, "--prefix-dropout: --tune %s has no prefix", o->tune);
  if (o->prefix_dropout > 0) prefix->dropout = (float)o->prefix_dropout;
  if (o->out_dtype && !(run->spec.part_count == 1 && run->spec.parts[0].kind == PX_PART_FULL))
    return px_fail(err, PX_INVALID, "--out-dtype is for --tune full, which leaves a model; --tune %s leaves an adapter in float32", o->tune);
  run->spec.plain_descent = o->sgd;
  run->spec.weight_decay = (float)o->weight_decay;
  PX_TRY(settle_rates(run, err));
  PX_TRY(open_tune(run, err));
  px_batch_options batching = {
      .batch_rows = o->batch_rows, .batch_tokens = o->batch_tokens, .shuffle = true, .seed = o->seed};
  PX_TRY(px_batches_open(&run->train, &batching, &run->batches, err));
  PX_TRY(settle_schedule(run, err));
  run->state.first_valid_loss = run->state.last_valid_loss = run->state.best_valid_loss = run->state.last_loss = NAN;
  return PX_OK;
}

/* What weights that are trained take is said where it is much: before the first step, not after the machine swaps. */
static void log_trained(const px_run *run) {
  enum { MUCH = 64 << 20 };
  size_t bytes = px_tune_bytes(run->tune);
  px_log_message(&run->calls->log, bytes > MUCH ? PX_LOG_INFO : PX_LOG_VERBOSE, "%.1f million numbers are trained: %.2f GB for values, gradients%s, beside %.2f GB of activations",
                 (double)px_tune_trainable(run->tune) / 1e6, (double)bytes / 1e9, run->options.sgd ? "" : " and two moments",
                 (double)px_step_plan(run->stepper)->total_bytes / 1e9);
}

static void log_plan(const px_run *run) {
  const px_plan *plan = px_step_plan(run->stepper);
  const px_log *log = &run->calls->log;
  px_log_message(log, PX_LOG_VERBOSE,
                 "buffer plan for up to %lld tokens, %lld rows, %lld labelled:", (long long)plan->request.tokens,
                 (long long)plan->request.seqs, (long long)plan->request.labels);
  for (int i = 0; i < plan->line_count; i++)
    px_log_message(log, PX_LOG_VERBOSE, "  %9.1f MB  %s", (double)plan->lines[i].bytes / 1e6, plan->lines[i].name);
  px_log_message(log, PX_LOG_VERBOSE, "  %9.1f MB  in all, beside %.1f MB of weights", (double)plan->total_bytes / 1e6,
                 (double)(run->model->weights.owned_bytes + run->model->weights.mapped_bytes) / 1e6);
}

static px_status open_buffers(px_run *run, px_error *err) {
  const px_train_options *o = &run->options;
  px_batch_extent x = px_batches_bound(&run->batches, run->state.cursor,
                                      (uint64_t)(o->steps - run->state.step) * (uint64_t)o->accumulate);
  if (x.most_tokens == 0) return PX_OK; /* nothing left to do */
  px_step_options options = {.model = run->model,
                             .be = run->be,
                             .tune = run->tune,
                             .seed = o->seed,
                             .beta1 = (float)o->beta1,
                             .beta2 = (float)o->beta2,
                             .eps = (float)o->eps,
                             .tokens = x.most_tokens,
                             .seqs = x.most_rows,
                             .labels = x.most_labels,
                             .positions = run->tune->tokens + (int64_t)run->train.longest,
                             .plain = o->no_graph};
  PX_TRY(px_step_open(&options, &run->stepper, err));
  log_trained(run);
  log_plan(run);
  return o->valid ? px_evaluator_open(run->model, run->be, &run->valid, &run->tune->hooks, run->tune->tokens, &run->evaluator, err)
                  : PX_OK;
}

static void report(const px_run *run, px_progress *p) {
  p->step = run->state.step;
  p->steps = run->options.steps;
  p->best_valid_loss = run->state.best_valid_loss;
  p->seconds = run->seconds + px_clock() - run->started;
  p->peak_bytes = px_peak_bytes();
  if (run->calls->progress) run->calls->progress(run->calls->user, p);
}

static px_status validate(px_run *run, double *loss, px_error *err) {
  px_eval_result result;
  px_tune_begin_step(run->tune, 0, NULL);
  PX_TRY(px_evaluator_run(run->evaluator, &run->tune->hooks, run->tune->tokens, NULL, &result, err));
  *loss = result.loss;
  return PX_OK;
}

/* Validation after an update: keeps the best adapter, counts towards patience. */
static px_status validate_and_keep(px_run *run, double *loss, px_error *err) {
  px_run_state *s = &run->state;
  PX_TRY(validate(run, loss, err));
  s->last_valid_loss = *loss;
  bool better = isfinite(*loss) && (isnan(s->best_valid_loss) || *loss < s->best_valid_loss);
  if (!better) {
    s->evals_without_better++;
    s->early_stopped = run->options.patience > 0 && s->evals_without_better >= run->options.patience;
    return PX_OK;
  }
  s->best_valid_loss = *loss;
  s->best_step = s->step;
  s->evals_without_better = 0;
  return px_run_save_adapter(run, run->options.out, err);
}

/* Whether something that reads the state follows the step that makes `step` of them: nothing may be under way then. */
static bool is_boundary(const px_run *run, int64_t step) {
  const px_train_options *o = &run->options;
  return step >= o->steps || (o->stop_after > 0 && step >= o->stop_after) || (o->save_every > 0 && step % o->save_every == 0) ||
         (run->evaluator && o->eval_every > 0 && step % o->eval_every == 0);
}

/* Asks for the step after the newest one. */
static px_status submit_step(px_run *run, px_error *err) {
  const px_train_options *o = &run->options;
  const px_ahead *newest = run->ahead_count ? &run->ahead[run->ahead_count - 1] : NULL;
  px_ahead a = {.step = newest ? newest->step : run->state.step,
                .cursor = newest ? newest->cursor : run->state.cursor,
                .start = px_clock()};
  a.extent = px_batches_walk(&run->batches, a.cursor, (uint64_t)o->accumulate);
  px_step_begin(run->stepper, &(px_control){.tokens = a.extent.labels,
                                            .step = a.step,
                                            .lr = (float)px_run_lr(run, a.step),
                                            .clip = (float)(o->clip > 0 ? o->clip : 0)});
  for (int i = 0; i < o->accumulate; i++) {
    PX_TRY(px_batches_next(&run->batches, &a.cursor, run->tune->tokens, 0, err));
    PX_TRY(px_step_add(run->stepper, &run->batches.batch, i == o->accumulate - 1, err));
  }
  a.step++;
  run->ahead[run->ahead_count++] = a;
  return PX_OK;
}

/* Steps after a bad one have changed nothing: they are as if they had not been asked for. */
static px_status forget_ahead(px_run *run, px_error *err) {
  px_group ignored;
  for (; run->ahead_count > 0; run->ahead_count--) PX_TRY(px_step_finish(run->stepper, &ignored, err));
  px_step_forgive(run->stepper);
  return px_backend_status(run->be, err);
}

/* Waits for the oldest step. On PX_NOT_FINITE nothing was changed. */
static px_status finish_step(px_run *run, px_progress *p, px_error *err) {
  px_run_state *s = &run->state;
  px_group group;
  PX_TRY(px_step_finish(run->stepper, &group, err));
  const px_ahead a = run->ahead[0];
  memmove(run->ahead, run->ahead + 1, (size_t)--run->ahead_count * sizeof *run->ahead);
  if (group.skipped == PX_BAD_STEP) {
    px_error ignored;
    PX_TRY(forget_ahead(run, err));
    px_run_save(run, &ignored); /* the state before the bad step */
    return px_fail(
        err, PX_NOT_FINITE,
        "step %lld: the %s is not finite; no tensor was changed. Try a smaller --lr, more --warmup, or --dtype f32",
        (long long)s->step + 1, isfinite(group.loss_sum) ? "gradient norm" : "loss");
  }
  double now = px_clock(), seconds = now - (a.start > run->last_finish ? a.start : run->last_finish);
  run->last_finish = now;
  s->step = a.step;
  s->cursor = a.cursor;
  s->tokens_seen += a.extent.tokens;
  s->last_loss = a.extent.labels ? group.loss_sum / (double)a.extent.labels : NAN;
  run->tokens_here += a.extent.tokens;
  *p = (px_progress){.loss = s->last_loss,
                     .lr = (double)group.lr,
                     .grad_norm = (double)group.grad_norm,
                     .tokens = a.extent.tokens,
                     .tokens_per_s = (double)a.extent.tokens / seconds,
                     .valid_loss = NAN};
  return PX_OK;
}

/* The next step, and, where nothing has to be read between, the one after it. */
static px_status do_step(px_run *run, px_progress *p, px_error *err) {
  if (run->ahead_count == 0) PX_TRY(submit_step(run, err));
  while (run->ahead_count < px_step_depth(run->stepper) && !is_boundary(run, run->ahead[run->ahead_count - 1].step))
    PX_TRY(submit_step(run, err));
  return finish_step(run, p, err);
}

static px_status end_of_step(px_run *run, px_progress *p, px_error *err) {
  const px_train_options *o = &run->options;
  px_run_state *s = &run->state;
  bool last = s->step == o->steps;
  if (run->evaluator && o->eval_every > 0 && (last || s->step % o->eval_every == 0))
    PX_TRY(validate_and_keep(run, &p->valid_loss, err));
  double elapsed = px_clock() - run->started;
  p->eta_seconds = run->tokens_here > 0 ? elapsed * (double)(o->steps - s->step) / (double)(s->step - p->step) : 0;
  px_metrics_line line = {.step = s->step,
                          .tokens = p->tokens,
                          .loss = p->loss,
                          .lr = p->lr,
                          .grad_norm = p->grad_norm,
                          .tokens_per_s = p->tokens_per_s,
                          .seconds = elapsed,
                          .valid_loss = p->valid_loss,
                          .peak_bytes = px_peak_bytes()};
  PX_TRY(px_metrics_write(run, &line, err));
  px_run_tensorboard_write(run, &line);
  report(run, p);
  if (last || s->early_stopped || (o->save_every > 0 && s->step % o->save_every == 0)) return px_run_save(run, err);
  return PX_OK;
}

static bool is_cancelled(const px_run *run) { return run->calls->cancelled && run->calls->cancelled(run->calls->user); }

static bool shall_stop(const px_run *run) {
  const px_train_options *o = &run->options;
  return (o->stop_after > 0 && run->state.step >= o->stop_after) ||
         (o->max_seconds > 0 && px_clock() - run->started >= o->max_seconds);
}

/* What is under way has happened: it is finished as any step. */
static px_status finish_ahead(px_run *run, int64_t first, px_error *err) {
  while (run->ahead_count > 0) {
    px_progress p;
    PX_TRY(finish_step(run, &p, err));
    p.step = first;
    PX_TRY(end_of_step(run, &p, err));
  }
  return PX_OK;
}

static px_status take_steps(px_run *run, px_error *err) {
  const px_train_options *o = &run->options;
  px_run_state *s = &run->state;
  const int64_t first = s->step;
  run->started = px_clock();
  if (run->evaluator && s->step == 0 && o->eval_every > 0) {
    px_progress p = {.loss = NAN, .lr = 0, .grad_norm = NAN};
    PX_TRY(validate(run, &s->first_valid_loss, err));
    p.valid_loss = s->first_valid_loss;
    px_run_tensorboard_write(run, &(px_metrics_line){.loss = NAN, .lr = NAN, .grad_norm = NAN, .tokens_per_s = NAN, .valid_loss = p.valid_loss});
    report(run, &p);
  }
  while (s->step < o->steps && !s->early_stopped && (o->stop_after <= 0 || s->step < o->stop_after)) {
    px_progress p;
    PX_TRY(do_step(run, &p, err));
    p.step = first; /* where this process began: for the ETA */
    PX_TRY(end_of_step(run, &p, err));
    bool cancelled = is_cancelled(run);
    if ((!cancelled && !shall_stop(run)) || s->step >= o->steps) continue;
    PX_TRY(finish_ahead(run, first, err));
    PX_TRY(px_run_save(run, err));
    if (cancelled && s->step < o->steps)
      return px_fail(err, PX_CANCELLED, "stopped after step %lld of %lld; the state is saved", (long long)s->step,
                     (long long)o->steps);
    break;
  }
  return PX_OK;
}

/* Where the device failed, what is left. */
static px_status run_steps(px_run *run, px_error *err) {
  px_status status = take_steps(run, err);
  if (status != PX_NO_DEVICE || !err) return status;
  px_error device = *err;
  if (run->saved_step < 0) return px_fail(err, status, "%s; no checkpoint was written yet", device.message);
  return px_fail(err, status, "%s; the state after step %lld is safe: go on with: pfx train --resume %s", device.message,
                 (long long)run->saved_step, run->options.out);
}

static void close_run(px_run *run) {
  if (run->metrics_fd >= 0) close(run->metrics_fd);
  if (run->lock_fd >= 0) close(run->lock_fd);
  px_run_tensorboard_close(run);
  px_evaluator_close(run->evaluator);
  px_step_close(run->stepper);
  px_batches_close(&run->batches);
  px_rows_free(&run->train);
  px_rows_free(&run->valid);
  px_tune_close(run->tune);
  px_tune_spec_free(&run->spec);
  px_backend_close(run->be);
  px_arena_free(&run->arena);
}

static void fill_result(const px_run *run, px_train_result *r) {
  const px_run_state *s = &run->state;
  double seconds = run->started > 0 ? px_clock() - run->started : 0;
  *r = (px_train_result){.step = s->step,
                         .steps = run->options.steps,
                         .first_valid_loss = s->first_valid_loss,
                         .best_valid_loss = s->best_valid_loss,
                         .last_valid_loss = s->last_valid_loss,
                         .last_loss = s->last_loss,
                         .best_step = s->best_step,
                         .seconds = seconds,
                         .tokens_per_s = seconds > 0 ? (double)run->tokens_here / seconds : 0,
                         .peak_bytes = px_peak_bytes(),
                         .finished = s->step >= run->options.steps || s->early_stopped,
                         .early_stopped = s->early_stopped,
                         .trainable = run->tune ? px_tune_trainable(run->tune) : 0};
}

static const px_train_callbacks silent = {0};

px_status px_train_run(const px_model *model, const px_tokenizer *tok, const px_train_options *options,
                       const px_train_callbacks *calls, px_train_result *result, px_error *err) {
  px_run run = {.model = model, .tok = tok, .options = *options, .calls = calls ? calls : &silent, .metrics_fd = -1, .lock_fd = -1, .saved_step = -1};
  *result = (px_train_result){0};
  px_train_options *o = &run.options;
  fill_defaults(o);
  px_status status = check_options(o, err);
  if (status == PX_OK) status = px_run_folder_open(&run, err);
  o->model_path = absolute(&run, o->model_path);
  o->data = absolute(&run, o->data);
  o->valid = absolute(&run, o->valid);
  o->tensorboard = folder(&run, o->tensorboard);
  if (status == PX_OK) status = set_up(&run, NULL, err);
  if (status == PX_OK && model->weights.mapped_bytes) status = px_source_verify(&model->source, err);
  if (status == PX_OK) status = open_buffers(&run, err);
  if (status == PX_OK) status = px_run_folder_check_base(&run, err);
  if (status == PX_OK) status = px_run_check_json(&run, err); /* before an old run is removed for this one */
  if (status == PX_OK) {
    px_run_folder_clean(&run, true);
    status = px_run_write_json(&run, err);
  }
  if (status != PX_OK) px_run_folder_undo(&run); /* nothing began */
  if (status == PX_OK) status = px_metrics_open(&run, err);
  if (status == PX_OK) px_run_tensorboard_open(&run);
  if (status == PX_OK) status = run_steps(&run, err);
  fill_result(&run, result);
  close_run(&run);
  return status;
}

px_status px_train_read_run(const char *dir, bool resolved, px_arena *arena, px_train_options *options, const char **device, int *dtype, int *threads,
                            px_error *err) {
  px_run_record record;
  PX_TRY(px_run_read_json(dir, arena, &record, err));
  *options = resolved ? record.resolved : record.options;
  *device = record.device;
  *dtype = record.dtype;
  *threads = record.threads;
  return PX_OK;
}

/* Same weights, same data; another binary or processor goes on, but says that bits may differ. */
static px_status check_record(px_run *run, const px_run_record *r, px_error *err) {
  const px_train_options *o = &run->options;
  if (strcmp(r->base, run->model->fingerprint.base) != 0)
    return px_fail(err, PX_MISMATCH, "%s holds other weights than the ones that %s began with", o->model_path, o->out);
  if (strcmp(r->data_digest, run->train.digest) != 0)
    return px_fail(err, PX_MISMATCH,
                   "%s has changed since %s began (its digest differs): an exact resume needs the same data", o->data,
                   o->out);
  const char *tokenizer = run->tok ? px_tokenizer_info_get(run->tok)->digest : NULL;
  if (r->tokenizer && (!tokenizer || strcmp(r->tokenizer, tokenizer) != 0))
    return px_fail(err, PX_MISMATCH, "%s holds another tokenizer than the one that %s began with", o->model_path, o->out);
  if (o->valid && (!r->valid_digest || strcmp(r->valid_digest, run->valid.digest) != 0))
    return px_fail(err, PX_MISMATCH,
                   "%s has changed since %s began (its digest differs): an exact resume needs the same data", o->valid,
                   o->out);
  if (strcmp(r->version, PX_VERSION) != 0 || strcmp(r->products, run->be->products) != 0 ||
      r->threads != run->be->threads || r->dtype != (int)run->model->dtype)
    px_log_message(&run->calls->log, PX_LOG_WARN,
                   "not bit-exact: the run began with pfx %s, %s, %d threads, %s; this is pfx %s, %s, %d threads, %s",
                   r->version, r->products, r->threads, px_dtype_name((px_dtype)r->dtype), PX_VERSION,
                   run->be->products, run->be->threads, px_dtype_name(run->model->dtype));
  return PX_OK;
}

/* The attention that the run has had so far; the CPU has but one. */
static px_attention repeated_engine(const px_run *run, const px_run_record *r) {
  if (run->model->be->host_visible || !r->engine) return PX_ATTENTION_FUSED;
  if (r->engine == PX_ATTENTION_CUDNN)
    px_log_message(&run->calls->log, PX_LOG_WARN, "not bit-exact: cuDNN does not promise the same bits twice, and this run has its attention");
  return r->engine;
}

/* What may be given again. */
static void apply_changes(px_run *run, const px_resume_changes *c) {
  px_train_options *o = &run->options;
  if (c->steps > 0 || c->epochs > 0) {
    o->steps = c->steps;
    o->epochs = c->epochs;
  }
  if (c->eval_every) o->eval_every = c->eval_every;
  if (c->save_every) o->save_every = c->save_every;
  if (c->patience) o->patience = c->patience;
  o->stop_after = c->stop_after;
  o->max_seconds = c->max_seconds;
  o->no_graph = c->no_graph;
  if (c->tensorboard) o->tensorboard = folder(run, c->tensorboard);
}

static bool same_text(const char *a, const char *b) { return a && b ? strcmp(a, b) == 0 : a == b; }

/* Once the state is there: what has changed since `before`, and what it means; run.json records it. The same value given
 * again is no change. A longer run is a new schedule; it, or another patience, decides anew whether the run has stopped
 * early. */
static px_status settle_changes(px_run *run, const px_train_options *before, px_error *err) {
  const px_train_options *o = &run->options;
  px_run_state *s = &run->state;
  bool longer = o->steps != before->steps, patience = o->patience != before->patience;
  if (longer)
    px_log_message(
        &run->calls->log, PX_LOG_WARN,
        "the run's length is given again (it was %lld steps): the learning rate follows a new schedule from here",
        (long long)before->steps);
  if (s->step > o->steps)
    return px_fail(err, PX_INVALID, "%s has done %lld steps already: --steps %lld is less", o->out, (long long)s->step,
                   (long long)o->steps);
  if (longer) s->evals_without_better = 0;
  if (longer || patience) s->early_stopped = o->patience > 0 && s->evals_without_better >= o->patience;
  return longer || patience || o->eval_every != before->eval_every || o->save_every != before->save_every || !same_text(o->tensorboard, before->tensorboard)
             ? px_run_write_json(run, err)
             : PX_OK;
}

px_status px_train_resume(const px_model *model, const px_tokenizer *tok, const char *dir,
                          const px_resume_changes *changes, const px_train_callbacks *calls, px_train_result *result,
                          px_error *err) {
  px_run run = {.model = model, .tok = tok, .calls = calls ? calls : &silent, .metrics_fd = -1, .lock_fd = -1, .saved_step = -1};
  *result = (px_train_result){0};
  px_run_record record;
  bool found = false;
  px_status status = px_run_read_json(dir, &run.arena, &record, err);
  if (status == PX_OK && !px_file_is_dir(dir))
    status = px_fail(err, PX_INVALID, "%s is a file: --resume takes the folder of a run", dir);
  if (status == PX_OK) {
    run.options = record.options;
    run.options.out = dir; /* the folder may have moved */
    if (changes) apply_changes(&run, changes);
    status = check_options(&run.options, err);
  }
  if (status == PX_OK) status = px_run_folder_lock(&run, err);
  run.engine = repeated_engine(&run, &record);
  if (status == PX_OK) {
    px_run_folder_clean(&run, false);
    status = set_up(&run, px_run_has_state(dir) ? record.part_sizes : NULL, err);
  }
  if (status == PX_OK) status = check_record(&run, &record, err);
  if (status == PX_OK) status = px_run_load(&run, &found, err);
  if (status == PX_OK && changes) status = settle_changes(&run, &record.resolved, err);
  if (status == PX_OK) status = open_buffers(&run, err);
  if (status == PX_OK) status = px_metrics_open(&run, err);
  if (status == PX_OK) px_run_tensorboard_open(&run);
  if (status == PX_OK) {
    px_log_message(&run.calls->log, PX_LOG_INFO,
                   found ? "going on from step %lld of %lld" : "no checkpoint yet: beginning at step %lld of %lld",
                   (long long)run.state.step, (long long)run.options.steps);
    status = run_steps(&run, err);
    /* A run killed between its last state and its adapters gets them now. */
    if (status == PX_OK && (run.state.step >= run.options.steps || run.state.early_stopped)) status = px_run_save(&run, err);
  }
  fill_result(&run, result);
  close_run(&run);
  return status;
}
