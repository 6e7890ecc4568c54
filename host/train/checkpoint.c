/* SPDX-License-Identifier: MIT
 * DIR/checkpoint/pfx_state.safetensors holds everything that exact resume needs: each trained tensor with its moments,
 * a fixed offset where there is one, and the run's state as strings. Each file appears whole or not at all; the state
 * file is the truth, the adapter beside it is made from it. */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "train/run.h"
#include "tune/merge.h"

typedef struct state_field {
  const char *key;
  enum { FIELD_INT, FIELD_NUM } kind;
  void *at;
} state_field;

enum { FIELD_COUNT = 11, MOST_FIELDS = FIELD_COUNT + 2 };
#define ATTENTION "attention" /* the engine: px_attention_name; before all others */
#define PRODUCTS "products" /* an optional field: px_backend_choices */

/* Sorted by key. */
static void state_fields(px_run_state *s, int64_t *epoch, int64_t *row, int64_t *early, state_field out[FIELD_COUNT]) {
  const state_field fields[FIELD_COUNT] = {
      {"best_step", FIELD_INT, &s->best_step},
      {"best_valid_loss", FIELD_NUM, &s->best_valid_loss},
      {"cursor_epoch", FIELD_INT, epoch},
      {"cursor_row", FIELD_INT, row},
      {"early_stopped", FIELD_INT, early},
      {"evals_without_better", FIELD_INT, &s->evals_without_better},
      {"first_valid_loss", FIELD_NUM, &s->first_valid_loss},
      {"last_loss", FIELD_NUM, &s->last_loss},
      {"last_valid_loss", FIELD_NUM, &s->last_valid_loss},
      {"step", FIELD_INT, &s->step},
      {"tokens_seen", FIELD_INT, &s->tokens_seen},
  };
  memcpy(out, fields, sizeof fields);
}

/* The list of tensors in the state file: value, m, v of every parameter, and the offset. Pointers into backend memory.
 */
typedef struct state_tensor {
  const char *name;
  float *at;
  int64_t count;
} state_tensor;

static px_status state_tensors(px_run *run, px_arena *arena, state_tensor **out, size_t *count, px_error *err) {
  px_tune *t = run->tune;
  state_tensor *list = px_arena_alloc(arena, (size_t)(t->param_count * 3 + t->fixed_count), sizeof *list);
  if (!list) return px_fail(err, PX_NO_MEMORY, "no memory");
  size_t n = 0;
  for (int i = 0; i < t->param_count; i++) {
    const px_param *q = &t->params[i];
    float *const at[3] = {q->value, q->m, q->v};
    static const char *const suffix[3] = {"value", "m", "v"};
    for (int k = 0; k < (q->m ? 3 : 1); k++)
      list[n++] = (state_tensor){px_arena_printf(arena, "%s.%s", q->name, suffix[k]), at[k], q->count};
  }
  for (int i = 0; i < t->fixed_count; i++) list[n++] = (state_tensor){t->fixed[i].name, t->fixed[i].value, t->fixed[i].count};
  *out = list;
  *count = n;
  return PX_OK;
}

/* The fields, the engine of attention and, where the device chose among algorithms, what it chose. Returns how many. */
static int save_fields(px_run *run, const char *products, px_arena *arena, px_meta out[MOST_FIELDS]) {
  int64_t epoch = run->state.cursor.epoch, row = (int64_t)run->state.cursor.row, early = run->state.early_stopped;
  state_field fields[FIELD_COUNT];
  int n = 0;
  state_fields(&run->state, &epoch, &row, &early, fields);
  out[n++] = (px_meta){ATTENTION, px_attention_name(run->be->attention)};
  for (int i = 0; i < FIELD_COUNT; i++) { /* numbers in hexadecimal: exact */
    if (products && strcmp(fields[i].key, PRODUCTS) > 0) {
      out[n++] = (px_meta){PRODUCTS, products};
      products = NULL;
    }
    out[n++] = (px_meta){fields[i].key, fields[i].kind == FIELD_INT
                                            ? px_arena_printf(arena, "%lld", (long long)*(int64_t *)fields[i].at)
                                            : px_arena_printf(arena, "%a", *(double *)fields[i].at)};
  }
  return n;
}

static px_status save_state(px_run *run, px_error *err) {
  px_arena arena = {0};
  state_tensor *tensors = NULL;
  size_t count = 0;
  px_status status = state_tensors(run, &arena, &tensors, &count, err);
  px_tensor_view *views = px_arena_alloc(&arena, count + 1, sizeof *views);
  if (status == PX_OK && !views) status = px_fail(err, PX_NO_MEMORY, "no memory");
  for (size_t i = 0; status == PX_OK && i < count; i++) {
    size_t bytes = (size_t)tensors[i].count * sizeof(float);
    float *host = px_arena_alloc(&arena, bytes, 1);
    if (!host) {
      status = px_fail(err, PX_NO_MEMORY, "no memory for the checkpoint");
      break;
    }
    px_backend_read(run->be, host, tensors[i].at, bytes);
    for (int64_t j = 0; status == PX_OK && j < tensors[i].count; j++)
      if (!isfinite(host[j]))
        status = px_fail(err, PX_NOT_FINITE,
                         "%s holds a value that is not finite after step %lld; the last good state is kept: a smaller "
                         "--lr, or --clip, may help",
                         tensors[i].name, (long long)run->state.step);
    views[i] = (px_tensor_view){
        .name = tensors[i].name, .dtype = PX_F32, .dims = 1, .shape = {tensors[i].count}, .data = host, .bytes = bytes};
  }
  if (status == PX_OK) status = px_backend_status(run->be, err);
  px_meta meta[MOST_FIELDS];
  px_buf products = {0};
  if (status == PX_OK) status = px_backend_choices(run->be, &products, err);
  int fields = save_fields(run, products.data, &arena, meta);
  char *path = px_arena_printf(&arena, "%s/checkpoint/pfx_state.safetensors", run->options.out);
  if (status == PX_OK)
    status = path ? px_safetensors_write(path, views, count, meta, (size_t)fields, err) : px_fail(err, PX_NO_MEMORY, "no memory");
  px_buf_free(&products);
  px_arena_free(&arena);
  return status;
}

px_status px_run_save_adapter(px_run *run, const char *dir, px_error *err) {
  px_arena arena = {0};
  px_meta *meta = NULL;
  size_t meta_count = 0;
  px_status status = PX_OK;
  if (!run->options.no_fingerprint) {
    const char *tune = px_tune_summary(run->tune, &arena);
    char *training = tune ? px_arena_printf(
        &arena, "{\"data\": \"%s\", \"lr\": %.9g, \"seed\": %llu, \"step\": %lld, \"steps\": %lld, \"tune\": \"%s\"}", run->train.digest,
        run->options.lr, (unsigned long long)run->options.seed, (long long)run->state.step, (long long)run->options.steps, tune) : NULL;
    status = training ? px_adapter_metadata(run->model, run->tok, px_template_name(run->options.rows.chat), training, &arena, &meta, &meta_count, err)
                      : px_fail(err, PX_NO_MEMORY, "no memory");
  }
  if (status == PX_OK)
    status = px_tune_is_whole(run->tune) ? px_tune_save_whole(run->tune, dir, run->tok, run->options.out_dtype - 1, run->options.model_path, meta, meta_count, err)
                                         : px_tune_save(run->tune, dir, run->options.model_path, meta, meta_count, err);
  px_arena_free(&arena);
  return status == PX_OK && strcmp(dir, run->options.out) == 0 ? px_run_write_card(run, err) : status;
}

px_status px_run_save(px_run *run, px_error *err) {
  char *dir = px_arena_printf(&run->arena, "%s/checkpoint", run->options.out);
  if (!dir) return px_fail(err, PX_NO_MEMORY, "no memory");
  PX_TRY(px_dir_make(dir, err));
  if (run->metrics_fd >= 0) fsync(run->metrics_fd); /* a state must never be ahead of its metrics */
  PX_TRY(save_state(run, err));
  run->saved_step = run->state.step;
  /* A whole model beside a state that holds the same numbers would be its size for nothing. */
  if (!px_tune_part(&run->spec, PX_PART_FULL)) PX_TRY(px_run_save_adapter(run, dir, err));
  /* The best adapter was kept when it was measured; as long as nothing was, the last one is the best known. */
  return isnan(run->state.best_valid_loss) ? px_run_save_adapter(run, run->options.out, err) : PX_OK;
}

static px_status read_fields(px_run *run, const char *path, const px_meta *meta, size_t count, px_error *err) {
  int64_t epoch = 0, row = 0, early = 0;
  state_field fields[FIELD_COUNT];
  state_fields(&run->state, &epoch, &row, &early, fields);
  for (int i = 0; i < FIELD_COUNT; i++) {
    const char *text = px_meta_get(meta, count, fields[i].key);
    char *end = NULL;
    if (!text || !*text)
      return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" is missing: this is no state of a pfx run", path,
                     fields[i].key);
    if (fields[i].kind == FIELD_INT)
      *(int64_t *)fields[i].at = strtoll(text, &end, 10);
    else
      *(double *)fields[i].at = strtod(text, &end);
    if (*end) return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" is damaged", path, fields[i].key);
  }
  if (run->state.step < 0 || epoch < 0 || epoch > UINT32_MAX || row < 0 || (uint64_t)row > run->train.count)
    return px_fail(err, PX_BAD_FILE, "%s: the place in the data is damaged", path);
  run->state.cursor = (px_cursor){(uint32_t)epoch, (uint64_t)row};
  run->state.early_stopped = early != 0;
  return PX_OK;
}

bool px_run_has_state(const char *dir) {
  px_arena arena = {0};
  char *path = px_arena_printf(&arena, "%s/checkpoint/pfx_state.safetensors", dir);
  bool found = path && px_file_exists(path);
  px_arena_free(&arena);
  return found;
}

px_status px_run_load(px_run *run, bool *found, px_error *err) {
  px_arena arena = {0};
  px_tensor_list list = {0};
  px_meta *meta = NULL;
  size_t meta_count = 0, count = 0;
  state_tensor *tensors = NULL;
  char *path = px_arena_printf(&run->arena, "%s/checkpoint/pfx_state.safetensors", run->options.out);
  if (!path) return px_fail(err, PX_NO_MEMORY, "no memory");
  *found = px_file_exists(path);
  if (!*found) return PX_OK;
  PX_TRY(px_safetensors_open(path, &list, &meta, &meta_count, err));
  px_status status = read_fields(run, path, meta, meta_count, err);
  const char *products = px_meta_get(meta, meta_count, PRODUCTS), *attention = px_meta_get(meta, meta_count, ATTENTION);
  if (status == PX_OK && attention && strcmp(attention, px_attention_name(run->be->attention)) != 0)
    px_log_message(&run->calls->log, PX_LOG_WARN, "not bit-exact: %s was written with --attention %s, and this is %s", path, attention,
                   px_attention_name(run->be->attention));
  if (status == PX_OK && products) status = px_backend_repeat(run->be, products, err);
  if (status == PX_OK) status = state_tensors(run, &arena, &tensors, &count, err);
  for (size_t i = 0; status == PX_OK && i < count; i++) {
    const px_tensor_view *view = px_tensor_find(&list, tensors[i].name);
    if (!view || view->dtype != PX_F32 || px_tensor_elements(view) != tensors[i].count)
      status = px_fail(err, PX_BAD_FILE, "%s: tensor %s is missing or has another size than this run's", path,
                       tensors[i].name);
    else
      px_backend_write(run->be, tensors[i].at, view->data, view->bytes);
  }
  px_tensor_list_close(&list);
  px_arena_free(&arena);
  if (status == PX_OK) run->saved_step = run->state.step;
  return status == PX_OK ? px_backend_status(run->be, err) : status;
}
