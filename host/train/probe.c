/* SPDX-License-Identifier: MIT
 * The probe: logits, loss and gradients of a file of rows as safetensors, to hold pfx against another engine. */
#include <math.h>
#include <stdlib.h>

#include "train/batches.h"
#include "train/evaluate.h"
#include "train/run.h"

enum { PROBE_TOKENS = 1024, PROBE_LOGIT_ROWS = 64 };

/* Everything that the probe holds while it runs. */
typedef struct probe {
  const px_model *model;
  px_backend *be;
  px_batches batches;
  px_buffers buffers;
  px_group *group;
  float *logits, *chunk; /* all logits, host; a chunk of them, backend memory */
  int32_t *all_rows;
  px_arena arena;
} probe;

/* Logits of every token: a second pass whose "labelled rows" are all rows. */
static px_status all_logits(probe *p, px_stack *s, int64_t from_token, px_error *err) {
  px_batch all = p->batches.batch;
  int64_t vocab = px_model_config(p->model)->vocab;
  for (int32_t t = 0; t < all.tokens; t++) p->all_rows[t] = t;
  all.labels = all.tokens;
  all.label_rows = p->all_rows;
  all.targets = NULL;
  PX_TRY(px_stack_begin(s, &all, err));
  px_stack_fwd(s);
  px_head_fwd(s);
  for (int64_t from = 0; from < all.tokens; from += PROBE_LOGIT_ROWS) {
    int64_t count = all.tokens - from < PROBE_LOGIT_ROWS ? all.tokens - from : PROBE_LOGIT_ROWS;
    px_head_logits(s, from, count, p->chunk);
    px_backend_read(p->be, p->logits + (from_token + from) * vocab, p->chunk, (size_t)(count * vocab) * sizeof(float));
  }
  return PX_OK;
}

static px_status pass(probe *p, const px_hooks *hooks, int32_t prefix_tokens, bool gradients, uint64_t batch_count, px_error *err) {
  px_stack s = {.be = p->be, .config = px_model_config(p->model), .weights = &p->model->weights, .hooks = hooks, .buffers = &p->buffers};
  px_cursor cursor = {0};
  int64_t token = 0;
  for (uint64_t i = 0; i < batch_count; i++) {
    PX_TRY(px_batches_next(&p->batches, &cursor, prefix_tokens, hooks ? 0 : -1, err));
    PX_TRY(all_logits(p, &s, token, err));
    token += p->batches.batch.tokens;
    if (p->batches.batch.labels == 0) continue;
    PX_TRY(px_stack_begin(&s, &p->batches.batch, err));
    px_stack_fwd(&s);
    px_head_fwd(&s);
    px_head_loss(&s, p->group, gradients);
    if (gradients) px_stack_bwd(&s);
  }
  return px_backend_status(p->be, err);
}

static px_status open_probe(probe *p, const px_rows *rows, const px_hooks *hooks, int32_t prefix_tokens, uint64_t *batch_count, px_error *err) {
  const px_config *c = px_model_config(p->model);
  px_batch_options options = {.batch_tokens = PROBE_TOKENS};
  PX_TRY(px_batches_open(rows, &options, &p->batches, err));
  *batch_count = px_batches_per_epoch(&p->batches, 0);
  px_batch_extent x = px_batches_walk(&p->batches, (px_cursor){0}, *batch_count);
  px_plan_request request = {.dtype = p->model->dtype, .tokens = x.most_tokens, .seqs = x.most_rows, .labels = x.most_tokens,
                             .positions = prefix_tokens + (int64_t)rows->longest, .segment_rows = prefix_tokens,
                             .logit_rows = PROBE_LOGIT_ROWS, .backward = true};
  if (hooks) request.attached = hooks->attached;
  PX_TRY(px_buffers_open(c, p->be, &request, &p->buffers, err));
  p->group = px_backend_alloc(p->be, sizeof *p->group);
  p->chunk = px_backend_alloc(p->be, (size_t)PROBE_LOGIT_ROWS * (size_t)c->vocab * sizeof(float));
  p->logits = px_calloc((size_t)x.tokens * (size_t)c->vocab, sizeof(float));
  p->all_rows = px_calloc((size_t)x.most_tokens, sizeof *p->all_rows);
  if (!p->group || !p->chunk || !p->logits || !p->all_rows) {
    px_status status = px_backend_status(p->be, err);
    return status != PX_OK ? status
                           : px_fail(err, PX_NO_MEMORY, "no memory for the logits of %lld tokens (%.1f GB): probe fewer rows", (long long)x.tokens,
                                     (double)x.tokens * c->vocab * 4 / 1e9);
  }
  px_backend_zero(p->be, p->group, sizeof *p->group);
  return PX_OK;
}

static px_tensor_view view(const char *name, px_dtype dtype, int64_t rows, int64_t cols, const void *data) {
  px_tensor_view v = {.name = name, .dtype = dtype, .dims = cols ? 2 : 1, .shape = {rows, cols}, .data = data};
  v.bytes = px_dtype_bytes(dtype, (size_t)(rows * (cols ? cols : 1)));
  return v;
}

static float *mean_of(const float *sums, int64_t count, double labels) {
  float *mean = (float *)(uintptr_t)sums; /* the arena's, ours */
  for (int64_t i = 0; i < count; i++) mean[i] = (float)((double)sums[i] / labels);
  return mean;
}

static const char *gradient_name(probe *p, const px_tune *tune, int part, const px_part_tensor *t) {
  px_part_kind kind = tune->spec.parts[part].kind;
  const char *name = px_part_tensor_name(t, kind, &p->arena);
  if (!name) return NULL;
  return tune->part_count > 1 ? px_arena_printf(&p->arena, "grad.%s.%s", px_part_kind_name(kind), name) : px_arena_printf(&p->arena, "grad.%s", name);
}

/* Of the mean loss, named as tensors are in the adapter's files: "grad.prompt_embeddings"; of several parts
 * "grad.lora.base_model....". */
static px_status gradients(probe *p, px_tune *tune, double labels, px_tensor_view *views, size_t *count, px_error *err) {
  const px_config *c = px_model_config(p->model);
  int64_t cols = 2 * (int64_t)c->layers * c->kv_heads * c->head_dim;
  int32_t tokens = px_tune_prefix_tokens(tune);
  px_tune_end_step(tune, 0, NULL);
  if (tokens) {
    float *grad = px_arena_alloc(&p->arena, (size_t)(tokens * cols), sizeof *grad);
    if (!grad) return px_fail(err, PX_NO_MEMORY, "no memory");
    PX_TRY(px_tune_export_grad(tune, grad, err));
    views[(*count)++] = view(tune->part_count > 1 ? "grad.prefix.prompt_embeddings" : "grad.prompt_embeddings", PX_F32, tokens, cols,
                             mean_of(grad, tokens * cols, labels));
  }
  for (int i = 0; i < tune->param_count; i++) {
    const px_param *q = &tune->params[i];
    px_part_tensor t;
    if (!q->role) continue;
    PX_TRY(px_tune_read(tune, q, true, &p->arena, &t, err));
    const char *name = gradient_name(p, tune, q->part, &t);
    if (!name) return px_fail(err, PX_NO_MEMORY, "no memory");
    views[(*count)++] = view(name, PX_F32, t.shape[0], t.dims == 2 ? t.shape[1] : 0, mean_of(t.values, q->count, labels));
  }
  return px_backend_status(p->be, err);
}

static px_status write_probe(probe *p, const px_rows *rows, px_tune *tune, const char *path, px_error *err) {
  const px_config *c = px_model_config(p->model);
  int64_t tokens = (int64_t)rows->offsets[rows->count], labels = (int64_t)rows->scored_tokens;
  int32_t *label = px_arena_alloc(&p->arena, (size_t)tokens, sizeof *label);
  int32_t *offsets = px_arena_alloc(&p->arena, rows->count + 1, sizeof *offsets);
  px_group group = {0};
  px_backend_read(p->be, &group, p->group, sizeof group);
  PX_TRY(px_backend_status(p->be, err));
  float loss = (float)(group.loss_sum / (double)labels);
  if (!label || !offsets) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int64_t t = 0; t < tokens; t++) label[t] = px_row_scores(rows, (uint64_t)t) ? rows->ids[t] : -100;
  for (size_t r = 0; r <= rows->count; r++) offsets[r] = (int32_t)rows->offsets[r];
  px_tensor_view views[5] = {view("ids", PX_I32, tokens, 0, rows->ids), view("labels", PX_I32, tokens, 0, label),
                             view("offsets", PX_I32, (int64_t)rows->count + 1, 0, offsets), view("logits", PX_F32, tokens, c->vocab, p->logits),
                             view("loss", PX_F32, 1, 0, &loss)};
  size_t count = 5, most = count + (tune ? (size_t)tune->param_count + 1 : 0);
  px_tensor_view *all = px_arena_alloc(&p->arena, most, sizeof *all);
  if (!all) return px_fail(err, PX_NO_MEMORY, "no memory");
  memcpy(all, views, sizeof views);
  if (tune) PX_TRY(gradients(p, tune, (double)labels, all, &count, err));
  char loss_text[40];
  snprintf(loss_text, sizeof loss_text, "%.17g", group.loss_sum / (double)labels);
  px_meta meta[] = {{"loss", loss_text}};
  return px_safetensors_write(path, all, count, meta, 1, err);
}

px_status px_probe(const px_model *model, px_backend *be, const px_rows *rows, const px_adapter *adapter, px_tune *tune,
                   const char *out_path, px_error *err) {
  probe p = {.model = model, .be = be};
  px_tune *part = tune;
  uint64_t batch_count = 0;
  px_status status = adapter ? px_tune_open_adapter(model, be, adapter, true, &part, err) : PX_OK;
  int32_t prefix_tokens = part ? part->tokens : 0;
  if (status == PX_OK && rows->offsets[rows->count] > INT32_MAX) status = px_fail(err, PX_INVALID, "too many tokens to probe");
  if (status == PX_OK) status = open_probe(&p, rows, part ? &part->hooks : NULL, prefix_tokens, &batch_count, err);
  if (status == PX_OK && part) {
    px_tune_zero_grads(part);
    px_tune_begin_step(part, 0, NULL);
  }
  if (status == PX_OK) status = pass(&p, part ? &part->hooks : NULL, prefix_tokens, part != NULL, batch_count, err);
  if (status == PX_OK) status = write_probe(&p, rows, part, out_path, err);
  if (part != tune) px_tune_close(part);
  px_batches_close(&p.batches);
  px_buffers_close(&p.buffers, be);
  px_backend_free(be, p.group);
  px_backend_free(be, p.chunk);
  free(p.logits);
  free(p.all_rows);
  px_arena_free(&p.arena);
  return status;
}
