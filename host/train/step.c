/* SPDX-License-Identifier: MIT */
#include "train/step.h"

#include <stddef.h>
#include <stdlib.h>

enum {
  STAGES = 2,            /* batches on their way */
  RECORDINGS = 64,       /* kept at most */
  HOST_LOGIT_ROWS = 256, /* what stays in the caches of a processor */
  DEVICE_LOGIT_ROWS = 1024,
};

_Static_assert(offsetof(px_group, clip) - offsetof(px_group, tokens) == offsetof(px_control, clip) &&
                   offsetof(px_group, step) - offsetof(px_group, tokens) == offsetof(px_control, step) &&
                   offsetof(px_group, lr) - offsetof(px_group, tokens) == offsetof(px_control, lr),
               "what a step is told is copied in one piece");

/* What a recording depends on. */
typedef struct unit {
  int32_t tokens, seqs, labels;
  bool first, last;
} unit;

typedef struct recorded {
  unit key;
  px_recording *recording; /* NULL: seen once, not recorded yet */
  uint64_t used;
} recorded;

/* One batch on its way: pinned memory, its copy on the device, and where in the queues they are free again. */
typedef struct stage {
  void *host, *device;
  px_event *sent, *taken;
} stage;

struct px_step {
  px_step_options o;
  px_buffers buffers;
  px_stack stack;
  px_group *group;   /* backend memory */
  double *norm_work; /* what its gradient's norm is summed in */
  px_control control;
  stage stages[STAGES];
  uint64_t added;    /* batches so far */
  bool first;        /* the next batch is its step's first */
  px_group *results; /* [PX_STEPS_IN_FLIGHT] pinned */
  px_event *done[PX_STEPS_IN_FLIGHT];
  uint64_t submitted, finished; /* steps */
  recorded recordings[RECORDINGS];
  int recording_count;
  uint64_t clock;
};

/* ---- sizes ---- */

static int64_t granule(int64_t n, int64_t least) {
  int64_t g = least;
  while (g * 32 < n) g *= 2;
  return g;
}

static int64_t filled(int64_t n, int64_t least) {
  int64_t g = granule(n, least);
  return (n + g - 1) / g * g;
}

enum { TOKENS_LEAST = 32, SEQS_LEAST = 8, LABELS_LEAST = 16 };

/* What a batch is filled up to, a function of its own size alone. Every label that fills up names a token that does. */
static unit fill(const px_step *s, const px_batch *b) {
  unit u = {.tokens = b->tokens, .seqs = b->seqs, .labels = b->labels};
  if (!px_backend_can_record(s->o.be) || b->labels == 0) return u;
  u.labels = (int32_t)filled(b->labels, LABELS_LEAST);
  u.tokens = (int32_t)filled((int64_t)b->tokens + u.labels - b->labels, TOKENS_LEAST);
  u.seqs = (int32_t)filled((int64_t)b->seqs + 1, SEQS_LEAST);
  return u;
}

static px_plan_request request_of(const px_step_options *o) {
  px_plan_request r = {.dtype = o->model->dtype,
                       .tokens = o->tokens,
                       .seqs = o->seqs,
                       .labels = o->labels,
                       .positions = o->positions,
                       .segment_rows = o->tune->tokens,
                       .row_tokens = o->positions,
                       .logit_rows = HOST_LOGIT_ROWS,
                       .backward = true,
                       .keep_from = o->tune->hooks.reach.layer,
                       .attached = o->tune->hooks.attached};
  if (px_backend_can_record(o->be)) {
    r.labels = filled(o->labels, LABELS_LEAST);
    r.tokens = filled(o->tokens + granule(o->labels, LABELS_LEAST), TOKENS_LEAST);
    r.seqs = filled(o->seqs + 1, SEQS_LEAST);
    r.logit_rows = DEVICE_LOGIT_ROWS;
    int64_t filling = granule(o->labels, LABELS_LEAST) + granule(r.tokens, TOKENS_LEAST); /* the sequence that fills up */
    if (r.row_tokens < filling) r.row_tokens = filling;
  }
  if (r.logit_rows > r.labels) r.logit_rows = r.labels;
  return r;
}

/* ---- opening ---- */

static px_status open_stages(px_step *s, px_error *err) {
  px_backend *be = s->o.be;
  for (int i = 0; i < STAGES; i++) {
    stage *t = &s->stages[i];
    t->host = px_backend_host_alloc(be, s->buffers.batch_bytes);
    t->device = px_backend_alloc(be, s->buffers.batch_bytes);
    t->sent = px_backend_event(be);
    t->taken = px_backend_event(be);
    if (t->host) memset(t->host, 0, s->buffers.batch_bytes);
  }
  s->results = px_backend_host_alloc(be, PX_STEPS_IN_FLIGHT * sizeof *s->results);
  for (int i = 0; i < PX_STEPS_IN_FLIGHT; i++) s->done[i] = px_backend_event(be);
  s->group = px_backend_alloc(be, sizeof *s->group);
  if (s->group) px_backend_zero(be, s->group, sizeof *s->group);
  s->norm_work = px_backend_alloc(be, px_sum_sq_workspace(1));
  return px_backend_status(be, err);
}

px_status px_step_open(const px_step_options *options, px_step **out, px_error *err) {
  *out = NULL;
  px_step *s = px_calloc(1, sizeof *s);
  if (!s) return px_fail(err, PX_NO_MEMORY, "no memory for a step");
  s->o = *options;
  px_plan_request request = request_of(options);
  px_status status = px_buffers_open(px_model_config(options->model), options->be, &request, &s->buffers, err);
  if (status == PX_OK) status = open_stages(s, err);
  if (status != PX_OK) {
    px_step_close(s);
    return status;
  }
  s->stack = (px_stack){.be = options->be,
                        .config = px_model_config(options->model),
                        .weights = &options->model->weights,
                        .hooks = &options->tune->hooks,
                        .buffers = &s->buffers};
  *out = s;
  return PX_OK;
}

void px_step_close(px_step *s) {
  if (!s) return;
  px_backend *be = s->o.be;
  px_error ignored;
  px_backend_wait(be);
  px_backend_status(be, &ignored);
  for (int i = 0; i < s->recording_count; i++) px_backend_recording_free(be, s->recordings[i].recording);
  for (int i = 0; i < STAGES; i++) {
    px_backend_event_free(be, s->stages[i].sent);
    px_backend_event_free(be, s->stages[i].taken);
    px_backend_free(be, s->stages[i].device);
    px_backend_host_free(be, s->stages[i].host);
  }
  for (int i = 0; i < PX_STEPS_IN_FLIGHT; i++) px_backend_event_free(be, s->done[i]);
  px_backend_host_free(be, s->results);
  px_backend_free(be, s->group);
  px_backend_free(be, s->norm_work);
  px_buffers_close(&s->buffers, be);
  free(s);
}

const px_plan *px_step_plan(const px_step *s) { return &s->buffers.plan; }
int px_step_depth(const px_step *s) { return px_backend_can_record(s->o.be) ? PX_STEPS_IN_FLIGHT : 1; }

/* ---- a batch on its way ---- */

/* Where an array of the batch's block stands in another copy of the block. */
static void *in_copy(const px_step *s, void *copy, const void *array) {
  return (char *)copy + ((const char *)array - (const char *)s->buffers.batch);
}

static void write_image(const px_step *s, void *image, const px_batch *b, unit u) {
  const px_buffers *d = &s->buffers;
  *(px_control *)in_copy(s, image, d->control) = s->control;
  int32_t *ids = in_copy(s, image, d->ids), *positions = in_copy(s, image, d->positions),
          *offsets = in_copy(s, image, d->offsets), *adapter = in_copy(s, image, d->adapter),
          *label_rows = in_copy(s, image, d->label_rows), *targets = in_copy(s, image, d->targets);
  memcpy(ids, b->ids, (size_t)b->tokens * 4);
  memcpy(positions, b->positions, (size_t)b->tokens * 4);
  memcpy(offsets, b->offsets, ((size_t)b->seqs + 1) * 4);
  for (int32_t i = 0; i < u.seqs; i++) adapter[i] = i < b->seqs && b->adapter ? b->adapter[i] : -1;
  memcpy(label_rows, b->label_rows, (size_t)b->labels * 4);
  memcpy(targets, b->targets, (size_t)b->labels * 4);
  for (int32_t t = b->tokens; t < u.tokens; t++) ids[t] = positions[t] = 0;
  for (int32_t i = b->seqs + 1; i <= u.seqs; i++)
    offsets[i] = u.tokens; /* one sequence of all that fills up, then empty ones */
  for (int32_t i = b->labels; i < u.labels; i++) {
    label_rows[i] = b->tokens + (i - b->labels);
    targets[i] = PX_NO_TARGET;
  }
}

/* Brings the batch into the buffers, beside the work on the one before. */
static void send_batch(px_step *s, const px_batch *b, unit u) {
  px_backend *be = s->o.be;
  stage *t = &s->stages[s->added++ % STAGES];
  px_backend_reach(be, t->sent); /* before its memory is written again */
  write_image(s, t->host, b, u);
  px_backend_after(be, PX_QUEUE_COPY, t->taken);
  px_backend_send(be, PX_QUEUE_COPY, t->device, t->host, s->buffers.batch_bytes);
  px_backend_mark(be, PX_QUEUE_COPY, t->sent);
  px_backend_after(be, PX_QUEUE_COMPUTE, t->sent);
  px_backend_copy(be, s->buffers.batch, t->device, s->buffers.batch_bytes);
  px_backend_mark(be, PX_QUEUE_COMPUTE, t->taken);
}

/* ---- the operations ---- */

static void enqueue(px_step *s, unit u) {
  px_backend *be = s->o.be;
  px_tune *tune = s->o.tune;
  if (u.first) {
    px_backend_copy(be, &s->group->tokens, s->buffers.control, offsetof(px_control, clip) + sizeof(float));
    px_backend_zero(be, &s->group->loss_sum, sizeof s->group->loss_sum);
    px_tune_zero_grads(tune);
    px_tune_begin_step(tune, s->o.seed, &s->group->step);
  }
  if (u.labels > 0) {
    px_stack_bind(&s->stack, u.tokens, u.seqs, u.labels);
    px_stack_fwd(&s->stack);
    px_head_fwd(&s->stack);
    px_head_loss(&s->stack, s->group, true);
    px_stack_bwd(&s->stack);
  }
  if (!u.last) return;
  px_tune_end_step(tune, s->o.seed, &s->group->step);
  px_op_sum_sq(be, &(px_sum_sq_args){
                       .tensors = tune->list, .tensor_count = tune->param_count, .groups = s->group, .group_count = 1, .workspace = s->norm_work});
  px_op_adamw(be, &(px_adamw_args){.tensors = tune->list,
                                   .tensor_count = tune->param_count,
                                   .groups = s->group,
                                   .group_count = 1,
                                   .beta1 = s->o.beta1,
                                   .beta2 = s->o.beta2,
                                   .eps = s->o.eps,
                                   .sgd = tune->spec.plain_descent});
}

static bool same_unit(unit a, unit b) {
  return a.tokens == b.tokens && a.seqs == b.seqs && a.labels == b.labels && a.first == b.first && a.last == b.last;
}

/* The entry of this unit; where it is new, that of the one that was not used for the longest time is given to it. */
static recorded *entry_of(px_step *s, unit u, bool *is_new) {
  recorded *oldest = s->recordings;
  *is_new = false;
  for (int i = 0; i < s->recording_count; i++) {
    recorded *r = &s->recordings[i];
    if (same_unit(r->key, u)) return r;
    if (r->used < oldest->used) oldest = r;
  }
  *is_new = true;
  recorded *r = s->recording_count < RECORDINGS ? &s->recordings[s->recording_count++] : oldest;
  if (r->recording) {
    px_backend_wait(s->o.be); /* it may be under way */
    px_backend_recording_free(s->o.be, r->recording);
  }
  *r = (recorded){.key = u};
  return r;
}

/* The first time plainly, which also makes what the libraries make once for a size. */
static void run_unit(px_step *s, unit u) {
  px_backend *be = s->o.be;
  bool is_new;
  if (s->o.plain || !px_backend_can_record(be)) {
    enqueue(s, u);
    return;
  }
  recorded *r = entry_of(s, u, &is_new);
  r->used = ++s->clock;
  if (is_new) {
    enqueue(s, u);
    return;
  }
  if (!r->recording) {
    px_backend_record(be);
    enqueue(s, u);
    r->recording = px_backend_recorded(be);
  }
  if (r->recording) px_backend_replay(be, r->recording);
}

/* ---- steps ---- */

void px_step_begin(px_step *s, const px_control *control) {
  s->control = *control;
  s->first = true;
}

px_status px_step_add(px_step *s, const px_batch *batch, bool last, px_error *err) {
  if (batch->labels == 0 && !s->first && !last) return PX_OK; /* nothing to learn from */
  PX_TRY(px_stack_check(&s->stack, batch, err));
  unit u = fill(s, batch);
  u.first = s->first;
  u.last = last;
  s->first = false;
  if (u.labels == 0) u.tokens = u.seqs = 0;
  send_batch(s, batch, u);
  run_unit(s, u);
  if (!last) return PX_OK;
  int slot = (int)(s->submitted++ % PX_STEPS_IN_FLIGHT);
  px_backend_fetch(s->o.be, PX_QUEUE_COMPUTE, &s->results[slot], s->group, sizeof *s->group);
  px_backend_mark(s->o.be, PX_QUEUE_COMPUTE, s->done[slot]);
  return PX_OK;
}

px_status px_step_finish(px_step *s, px_group *out, px_error *err) {
  int slot = (int)(s->finished++ % PX_STEPS_IN_FLIGHT);
  px_backend_reach(s->o.be, s->done[slot]);
  PX_TRY(px_backend_status(s->o.be, err));
  *out = s->results[slot];
  return PX_OK;
}

void px_step_forgive(px_step *s) { px_backend_zero(s->o.be, &s->group->skipped, sizeof s->group->skipped); }
