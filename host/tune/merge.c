/* SPDX-License-Identifier: MIT */
#include "tune/merge.h"

#include <math.h>
#include <stdlib.h>

/* Tensors of all parts are numbered through, for the marks. */
typedef struct merger {
  const px_adapter *adapter;
  const px_source *source;
  bool *used; /* found a tensor of the model */
} merger;

px_status px_merge_check(const px_adapter *a, px_error *err) {
  for (int i = 0; i < a->part_count; i++) {
    const px_adapter_part *p = &a->parts[i];
    if (p->kind == PX_PART_PREFIX)
      return px_fail(err, PX_INVALID,
                     "%s holds a prefix (%s): keys and values in front of a text are no weights, so no model folder can hold them; use it with "
                     "--adapter",
                     a->path, p->config.peft_type);
    if (p->kind == PX_PART_PROMPT)
      return px_fail(err, PX_INVALID,
                     "%s holds a prompt (%s): rows in front of a text are no weights, so no model folder can hold them; use it with --adapter",
                     a->path, p->config.peft_type);
  }
  return PX_OK;
}

/* ---- which tensor of the adapter meets which of the model ---- */

/* Splits "<module>.weight" or "<module>.bias". */
static bool split_name(const char *name, char module[256], const char **role) {
  const char *dot = strrchr(name, '.');
  if (!dot || (size_t)(dot - name) >= 256) return false;
  memcpy(module, name, (size_t)(dot - name));
  module[dot - name] = 0;
  *role = dot + 1;
  return true;
}

/* Whether the model keeps this matrix [in, out]. */
static bool is_in_out(const merger *m, const char *module) {
  const px_names *h = m->source->config.hf;
  return m->source->config.conv1d && strcmp(module, h->embed) != 0 && strcmp(module, h->head) != 0 &&
         (!h->positions || strcmp(module, h->positions) != 0);
}

/* IA3's vector in front of the projection is a row [1, in], behind it a column [out, 1]. */
static bool stands_in_front(const px_part_tensor *t) { return t->shape[0] == 1 && t->shape[1] != 1; }

static bool meets(const merger *m, const px_adapter_part *p, const px_part_tensor *t, const char *module, const char *role, int64_t rows,
                  int64_t cols, bool absent) {
  if (strcmp(t->module, module) != 0) return false;
  bool weight = strcmp(role, "weight") == 0, in_out = is_in_out(m, module);
  int64_t out = in_out ? cols : rows, in = in_out ? rows : cols;
  switch (p->kind) {
    case PX_PART_LORA:
      return weight && (strcmp(t->role, "lora_A") == 0 ? t->shape[1] == in : t->shape[0] == out);
    case PX_PART_IA3:
      if (stands_in_front(t)) return weight && t->shape[1] == in;
      return weight ? t->shape[0] == out : !absent && t->shape[0] == cols;
    default:
      return strcmp(t->role, role) == 0 && (t->dims == 1 ? rows == 1 && t->shape[0] == cols : t->shape[0] == rows && t->shape[1] == cols);
  }
}

static bool changes(void *user, const char *name, int64_t rows, int64_t cols, bool absent) {
  const merger *m = user;
  char module[256];
  const char *role;
  bool any = false, *used = m->used;
  if (!split_name(name, module, &role)) return false;
  for (int i = 0; i < m->adapter->part_count; i++) {
    const px_adapter_part *p = &m->adapter->parts[i];
    for (size_t k = 0; k < p->tensor_count; k++, used++)
      if (meets(m, p, &p->tensors[k], module, role, rows, cols, absent)) any = *used = true;
  }
  return any;
}

static px_status ready(void *user, px_error *err) {
  const merger *m = user;
  const bool *used = m->used;
  for (int i = 0; i < m->adapter->part_count; i++) {
    const px_adapter_part *p = &m->adapter->parts[i];
    for (size_t k = 0; k < p->tensor_count; k++)
      if (!*used++)
        return px_fail(err, PX_MISMATCH, "%s: %s of %s has no place in the weights of %s (%s)", p->file, p->tensors[k].role, p->tensors[k].module,
                       m->source->path, m->source->config.family);
  }
  return PX_OK;
}

/* ---- the arithmetic: rows [first, first + rows) of a tensor as the model keeps it ---- */

static void replace(const px_part_tensor *t, int64_t first, int64_t rows, int64_t cols, float *values) {
  memcpy(values, t->values + first * cols, (size_t)(rows * cols) * sizeof *values);
}

double px_lora_scale(const px_adapter_config *c) {
  return c->alpha / (c->rank_stabilised ? sqrt((double)c->rank) : (double)c->rank);
}

/* W[o, i] += scale sum_r B[o, r] A[r, i]; in_out: the rows here are i. */
static px_status add_low_rank(const px_adapter_part *p, const px_part_tensor *a, const px_part_tensor *b, bool in_out, int64_t first, int64_t rows,
                              int64_t cols, float *values, px_error *err) {
  int64_t rank = a->shape[0];
  double scale = px_lora_scale(&p->config);
  bool failed = false;
#pragma omp parallel for schedule(static) reduction(|| : failed)
  for (int64_t r = 0; r < rows; r++) {
    double *sum = px_calloc((size_t)cols, sizeof *sum);
    failed = failed || !sum;
    for (int64_t k = 0; sum && k < rank; k++) {
      double own = in_out ? (double)a->values[k * a->shape[1] + first + r] : (double)b->values[(first + r) * rank + k];
      for (int64_t c = 0; c < cols; c++) sum[c] += own * (double)(in_out ? b->values[c * rank + k] : a->values[k * cols + c]);
    }
    for (int64_t c = 0; sum && c < cols; c++) values[r * cols + c] = (float)((double)values[r * cols + c] + scale * sum[c]);
    free(sum);
  }
  return failed ? px_fail(err, PX_NO_MEMORY, "no memory to merge %s", a->module) : PX_OK;
}

/* The vector lies along the columns of what is kept, or along its rows. */
static void scale_by(const float *s, bool along_columns, int64_t first, int64_t rows, int64_t cols, float *values) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++) values[r * cols + c] *= along_columns ? s[c] : s[first + r];
}

/* Of the kinds, in the order of the equation. */
static int stage_of(px_part_kind kind) { return kind == PX_PART_LORA ? 1 : kind == PX_PART_IA3 ? 2 : 0; }

static px_status change(void *user, const char *name, int64_t first, int64_t rows, int64_t cols, float *values, px_error *err) {
  const merger *m = user;
  char module[256];
  const char *role;
  if (!split_name(name, module, &role)) return PX_OK;
  bool in_out = is_in_out(m, module), weight = strcmp(role, "weight") == 0;
  for (int stage = 0; stage < 3; stage++)
    for (int i = 0; i < m->adapter->part_count; i++) {
      const px_adapter_part *p = &m->adapter->parts[i];
      if (stage_of(p->kind) != stage) continue;
      const px_part_tensor *own = px_part_find(p, module, role), *a = px_part_find(p, module, "lora_A"), *b = px_part_find(p, module, "lora_B"),
                           *s = px_part_find(p, module, "ia3_l");
      if (stage == 0 && own) replace(own, first, rows, cols, values);
      if (stage == 1 && weight && a && b) PX_TRY(add_low_rank(p, a, b, in_out, first, rows, cols, values, err));
      if (stage == 2 && s && (weight || !stands_in_front(s)))
        scale_by(s->values, !weight || stands_in_front(s) != in_out, first, rows, cols, values);
    }
  return PX_OK;
}

px_status px_merge(const px_adapter *adapter, const px_source *source, const px_tokenizer *tok, const char *dir,
                   const px_model_write_options *options, px_model_written *written, px_error *err) {
  PX_TRY(px_merge_check(adapter, err));
  size_t count = 0;
  for (int i = 0; i < adapter->part_count; i++) count += adapter->parts[i].tensor_count;
  merger m = {.adapter = adapter, .source = source, .used = px_calloc(count, 1)};
  px_model_changes all = {.user = &m, .changes = changes, .ready = ready, .change = change};
  if (!m.used) return px_fail(err, PX_NO_MEMORY, "no memory to merge %s", adapter->path);
  px_status status = px_model_write(dir, source, tok, &all, options, written, err);
  free(m.used);
  return status;
}
