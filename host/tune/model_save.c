/* SPDX-License-Identifier: MIT
 * Trained weights as a model folder, straight from where they are trained: no second copy of the model. */
#include <stdlib.h>

#include "tune/merge.h"
#include "tune/tune.h"

typedef struct saver {
  px_tune *tune;
  bool *used;
  const px_param *at; /* whose numbers `read` has */
  px_part_tensor read;
  px_arena arena;
} saver;

static const px_param *param_of(const saver *s, const char *name) {
  const char *dot = strrchr(name, '.');
  for (int i = 0; dot && i < s->tune->param_count; i++) {
    const px_param *q = &s->tune->params[i];
    size_t n = (size_t)(dot - name);
    if (q->role && strcmp(q->role, dot + 1) == 0 && strlen(q->module) == n && strncmp(q->module, name, n) == 0) return q;
  }
  return NULL;
}

static bool changes(void *user, const char *name, int64_t rows, int64_t cols, bool absent) {
  saver *s = user;
  const px_param *q = param_of(s, name);
  (void)absent;
  if (!q || q->count != rows * cols) return false;
  return s->used[q - s->tune->params] = true;
}

static px_status ready(void *user, px_error *err) {
  const saver *s = user;
  for (int i = 0; i < s->tune->param_count; i++)
    if (!s->used[i]) return px_fail(err, PX_INVALID, "%s is no weight: only full, top, norm and bias make a model folder", s->tune->params[i].name);
  return PX_OK;
}

static px_status change(void *user, const char *name, int64_t first, int64_t rows, int64_t cols, float *values, px_error *err) {
  saver *s = user;
  const px_param *q = param_of(s, name);
  if (q != s->at) { /* a tensor comes in pieces, one after the other */
    px_arena_free(&s->arena);
    s->at = NULL;
    PX_TRY(px_tune_read(s->tune, q, false, &s->arena, &s->read, err));
    s->at = q;
  }
  memcpy(values, s->read.values + first * cols, (size_t)(rows * cols) * sizeof *values);
  return PX_OK;
}

px_status px_tune_save_model(px_tune *tune, const char *dir, const px_tokenizer *tok, const px_model_write_options *options, px_model_written *written,
                             px_error *err) {
  saver s = {.tune = tune, .used = px_calloc((size_t)tune->param_count, 1)};
  px_model_changes all = {.user = &s, .changes = changes, .ready = ready, .change = change};
  if (!s.used) return px_fail(err, PX_NO_MEMORY, "no memory to write %s", dir);
  px_status status = px_model_write(dir, &tune->model->source, tok, &all, options, written, err);
  px_arena_free(&s.arena);
  free(s.used);
  return status;
}

bool px_tune_is_whole(const px_tune *tune) { return tune->part_count == 1 && tune->spec.parts[0].kind == PX_PART_FULL; }

px_status px_tune_save_whole(px_tune *tune, const char *dir, const px_tokenizer *tok, int dtype, const char *base_name, const px_meta *metadata,
                             size_t count, px_error *err) {
  px_buf note = {0};
  json_t *object = json_pack("{s:s? s:i s:s s:n s:s}", "base_model_name_or_path", base_name, "format", 1, "part", "full", "revision", "task_type",
                             "CAUSAL_LM");
  px_status status = object ? px_json_dump(object, &note, err) : px_fail(err, PX_NO_MEMORY, "no memory to write %s", dir);
  json_decref(object);
  /* One file of weights, whatever its size: as an adapter the folder is read from one. */
  px_model_write_options options = {.dtype = dtype, .shard_bytes = INT64_MAX, .into = true, .metadata = metadata, .metadata_count = count,
                                    .note_name = "pfx.json", .note = note.data};
  if (status == PX_OK) status = px_tune_save_model(tune, dir, tok, &options, NULL, err);
  px_buf_free(&note);
  return status;
}
