/* SPDX-License-Identifier: MIT */
#include "helpers/pass.h"

#include <math.h>

#include "core/random.h"
#include "helpers/test.h"

enum { PASS_STREAM = 91, LOGIT_ROWS = 64 };

static void *zeros(int64_t count, size_t bytes) {
  void *p = calloc((size_t)(count > 0 ? count : 1), bytes);
  assert_non_null(p);
  return p;
}

static pass_rows make_rows(int32_t count, int32_t tokens) {
  return (pass_rows){.count = count,
                     .ids = zeros(tokens, 4),
                     .offsets = zeros(count + 1, 4),
                     .adapter = zeros(count, 4),
                     .first = zeros(count, 4)};
}

pass_rows pass_rows_make(const px_model *model, int32_t count, const int32_t *lengths, uint64_t seed) {
  int32_t tokens = 0;
  for (int32_t r = 0; r < count; r++) tokens += lengths[r];
  pass_rows rows = make_rows(count, tokens);
  for (int32_t r = 0; r < count; r++) {
    rows.offsets[r + 1] = rows.offsets[r] + lengths[r];
    rows.adapter[r] = -1;
  }
  for (int32_t t = 0; t < tokens; t++)
    rows.ids[t] = (int32_t)px_below(seed, PASS_STREAM, 0, (uint64_t)t, (uint64_t)px_model_config(model)->vocab);
  return rows;
}

pass_rows pass_rows_slice(const pass_rows *all, int32_t from, int32_t count) {
  int32_t start = all->offsets[from];
  pass_rows rows = make_rows(count, all->offsets[from + count] - start);
  memcpy(rows.ids, all->ids + start, (size_t)(all->offsets[from + count] - start) * 4);
  for (int32_t r = 0; r < count; r++) {
    rows.offsets[r + 1] = all->offsets[from + r + 1] - start;
    rows.adapter[r] = all->adapter[from + r];
    rows.first[r] = all->first[from + r];
  }
  return rows;
}

void pass_rows_free(pass_rows *rows) {
  free(rows->ids);
  free(rows->offsets);
  free(rows->adapter);
  free(rows->first);
  *rows = (pass_rows){0};
}

void pass_prefixes_open(const px_model *model, px_backend *be, int32_t adapters, const int32_t *lens, uint64_t seed,
                        pass_prefixes *p) {
  const px_config *c = px_model_config(model);
  assert_true(adapters <= PASS_ADAPTERS && model->dtype == PX_F32);
  *p =
      (pass_prefixes){.be = be, .layers = c->layers, .adapters = adapters, .width = (int64_t)c->kv_heads * c->head_dim};
  px_kv_segment *host = zeros((int64_t)c->layers * adapters, sizeof *host);
  int32_t rows = 0;
  for (int a = 0; a < adapters; a++) {
    p->lens[a] = lens[a];
    rows += lens[a];
    int64_t floats = pass_prefix_floats(p, a), slice = lens[a] * p->width;
    float *values = zeros(floats, sizeof *values);
    for (int64_t i = 0; i < floats; i++)
      values[i] = 2 * px_uniform(px_philox(seed, PASS_STREAM, (uint32_t)(a + 1), (uint64_t)i).v[0]) - 1;
    p->values[a] = px_backend_alloc(be, (size_t)floats * sizeof *values + 1);
    p->grads[a] = px_backend_alloc(be, (size_t)floats * sizeof *values + 1);
    px_backend_write(be, p->values[a], values, (size_t)floats * sizeof *values);
    free(values);
    for (int l = 0; l < c->layers; l++) {
      float *k = p->values[a] + 2 * l * slice, *dk = p->grads[a] + 2 * l * slice;
      host[l * adapters + a] = (px_kv_segment){.k = k,
                                               .v = k + slice,
                                               .stride = p->width,
                                               .len = lens[a],
                                               .dk = dk,
                                               .dv = dk + slice,
                                               .grad_stride = p->width};
    }
  }
  size_t bytes = (size_t)c->layers * (size_t)adapters * sizeof *host;
  p->segments = px_backend_alloc(be, bytes + 1);
  px_backend_write(be, p->segments, host, bytes);
  free(host);
  p->hooks = (px_hooks){.segments = p->segments, .adapters = adapters, .segment_rows = rows};
  pass_prefixes_zero_grads(p);
}

void pass_prefixes_close(pass_prefixes *p) {
  px_backend_free(p->be, p->segments);
  for (int a = 0; a < p->adapters; a++) {
    px_backend_free(p->be, p->values[a]);
    px_backend_free(p->be, p->grads[a]);
  }
  *p = (pass_prefixes){0};
}

float *pass_prefix_grad(const pass_prefixes *p, int a) {
  float *host = zeros(pass_prefix_floats(p, a), sizeof *host);
  px_backend_read(p->be, host, p->grads[a], (size_t)pass_prefix_floats(p, a) * sizeof *host);
  return host;
}

void pass_prefixes_zero_grads(pass_prefixes *p) {
  for (int a = 0; a < p->adapters; a++)
    px_backend_zero(p->be, p->grads[a], (size_t)pass_prefix_floats(p, a) * sizeof(float));
}

/* A batch of the rows, buffers for it, and the memory of both. */
typedef struct pass {
  px_batch batch;
  px_buffers buffers;
  px_stack stack;
  int32_t *positions, *label_rows, *targets;
} pass;

static void begin(const px_model *model, px_backend *be, const pass_rows *rows, const px_hooks *hooks, bool all_rows,
                  bool backward, pass *p) {
  px_error err = {0};
  int32_t tokens = pass_tokens(rows), labels = 0, most = 1, segment_rows = 0;
  *p = (pass){.positions = zeros(tokens, 4), .label_rows = zeros(tokens, 4), .targets = zeros(tokens, 4)};
  for (int32_t r = 0; r < rows->count; r++) {
    if (rows->first[r] > segment_rows) segment_rows = rows->first[r];
    for (int32_t t = rows->offsets[r]; t < rows->offsets[r + 1]; t++) {
      p->positions[t] = rows->first[r] + t - rows->offsets[r];
      if (p->positions[t] + 1 > most) most = p->positions[t] + 1;
      if (!all_rows && t == rows->offsets[r]) continue;
      p->label_rows[labels] = all_rows ? t : t - 1;
      p->targets[labels++] = rows->ids[t];
    }
  }
  p->batch = (px_batch){.tokens = tokens,
                        .seqs = rows->count,
                        .labels = labels,
                        .ids = rows->ids,
                        .positions = p->positions,
                        .offsets = rows->offsets,
                        .adapter = rows->adapter,
                        .label_rows = p->label_rows,
                        .targets = p->targets};
  px_plan_request request = {.dtype = model->dtype,
                             .tokens = tokens,
                             .seqs = rows->count,
                             .labels = labels,
                             .positions = most,
                             .segment_rows = segment_rows * (hooks ? hooks->adapters : 0),
                             .logit_rows = LOGIT_ROWS,
                             .backward = backward};
  if (hooks) request.attached = hooks->attached;
  if (hooks) request.keep_from = hooks->reach.layer;
  ASSERT_OK(px_buffers_open(px_model_config(model), be, &request, &p->buffers, &err));
  p->stack = (px_stack){
      .be = be, .config = px_model_config(model), .weights = &model->weights, .hooks = hooks, .buffers = &p->buffers};
  ASSERT_OK(px_stack_begin(&p->stack, &p->batch, &err));
  px_stack_fwd(&p->stack);
  px_head_fwd(&p->stack);
}

static void end(pass *p) {
  px_buffers_close(&p->buffers, p->stack.be);
  free(p->positions);
  free(p->label_rows);
  free(p->targets);
}

double pass_loss(const px_model *model, px_backend *be, const pass_rows *rows, const px_hooks *hooks, bool with_grad,
                 double *row_loss) {
  px_error err = {0};
  pass p;
  px_group host = {0}, *group = px_backend_alloc(be, sizeof *group);
  px_backend_zero(be, group, sizeof *group);
  begin(model, be, rows, hooks, false, with_grad, &p);
  px_head_loss(&p.stack, group, with_grad);
  if (with_grad) px_stack_bwd(&p.stack);
  px_backend_read(be, &host, group, sizeof host);
  float *losses = zeros(p.batch.labels, sizeof *losses);
  px_backend_read(be, losses, p.buffers.row_loss, (size_t)p.batch.labels * sizeof *losses);
  ASSERT_OK(px_backend_status(be, &err));
  for (int32_t r = 0, l = 0; row_loss && r < rows->count; r++) {
    row_loss[r] = 0;
    for (int32_t t = rows->offsets[r] + 1; t < rows->offsets[r + 1]; t++) row_loss[r] += (double)losses[l++];
  }
  free(losses);
  px_backend_free(be, group);
  end(&p);
  return host.loss_sum;
}

float *pass_logits(const px_model *model, px_backend *be, const pass_rows *rows, const px_hooks *hooks) {
  px_error err = {0};
  pass p;
  int64_t vocab = px_model_config(model)->vocab;
  float *out = zeros((int64_t)pass_tokens(rows) * vocab, sizeof *out),
        *chunk = px_backend_alloc(be, (size_t)(LOGIT_ROWS * vocab) * sizeof *chunk);
  begin(model, be, rows, hooks, true, false, &p);
  for (int64_t from = 0; from < p.batch.labels; from += LOGIT_ROWS) {
    int64_t count = p.batch.labels - from < LOGIT_ROWS ? p.batch.labels - from : LOGIT_ROWS;
    px_head_logits(&p.stack, from, count, chunk);
    px_backend_read(be, out + from * vocab, chunk, (size_t)(count * vocab) * sizeof *out);
  }
  ASSERT_OK(px_backend_status(be, &err));
  px_backend_free(be, chunk);
  end(&p);
  return out;
}

double pass_distance(const float *a, const float *b, int64_t count) {
  double largest = 0, worst = 0;
  for (int64_t i = 0; i < count; i++) {
    double d = fabs((double)a[i] - (double)b[i]);
    largest = fmax(largest, fabs((double)b[i]));
    worst = isnan(d) ? INFINITY : fmax(worst, d);
  }
  return worst / largest;
}

double pass_relative_l2(const float *a, const float *b, int64_t count) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < count; i++) {
    difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    norm += (double)b[i] * (double)b[i];
  }
  return sqrt(difference / norm);
}
