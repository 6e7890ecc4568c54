/* SPDX-License-Identifier: MIT
 * run.json: every setting of a run with its defaults filled in, what it ran on, and the digests of what it read. */
#include <math.h>
#include <stdlib.h>

#include "core/version.h"
#include "format/json.h"
#include "train/run.h"

static const char *const schedule_names[] = {"linear", "cosine", "constant"};
static const char *const long_names[] = {"error", "cut", "drop"};

static json_t *text_or_null(const char *text) { return text ? json_string(text) : json_null(); }

/* Virtual tokens of each part: what a part that began from a text or an adapter found there. */
static json_t *part_sizes(const px_run *run) {
  json_t *list = json_array();
  for (int i = 0; i < run->tune->part_count; i++) json_array_append_new(list, json_integer(px_tune_part_tokens(run->tune, i)));
  return list;
}

json_t *px_run_settings(const px_run *run) {
  const px_train_options *o = &run->options;
  json_t *all = json_pack("{s:o s:o s:o s:o s:o s:o s:I s:o s:I s:f s:I s:s s:I s:I s:I s:f s:f s:f s:f s:f s:I s:I s:I s:f s:I s:s s:b s:b s:b s:s s:b s:s}",
                   "model", text_or_null(o->model_path), "data", text_or_null(o->data), "valid", text_or_null(o->valid), "out",
                   text_or_null(o->out), "tune", text_or_null(o->tune), "init", text_or_null(o->init), "reparam", (json_int_t)o->reparam,
                   "part_sizes", part_sizes(run), "steps", (json_int_t)o->steps, "lr", o->lr, "warmup",
                   (json_int_t)o->warmup, "schedule", schedule_names[o->schedule], "batch_rows", (json_int_t)o->batch_rows,
                   "batch_tokens", (json_int_t)o->batch_tokens, "accumulate", (json_int_t)o->accumulate, "beta1", o->beta1, "beta2",
                   o->beta2, "eps", o->eps, "weight_decay", o->weight_decay, "clip", o->clip, "eval_every", (json_int_t)o->eval_every,
                   "save_every", (json_int_t)o->save_every, "patience", (json_int_t)o->patience, "prefix_dropout", o->prefix_dropout,
                   "max_row_tokens", (json_int_t)o->rows.max_row_tokens, "on_long", long_names[o->rows.on_long], "loss_all",
                   o->rows.loss_all, "no_bos", o->rows.no_bos, "no_end", o->rows.no_end, "template", px_template_name(o->rows.chat),
                   "no_fingerprint", o->no_fingerprint, "seed", px_arena_printf((px_arena *)&run->arena, "%llu", (unsigned long long)o->seed));
  if (all) json_object_set_new(all, "optimizer", json_string(o->sgd ? "sgd" : "adamw"));
  if (all) json_object_set_new(all, "out_dtype", json_string(o->out_dtype ? px_dtype_name((px_dtype)(o->out_dtype - 1)) : "base"));
  if (all) json_object_set_new(all, "attention", json_string(px_attention_name(o->attention)));
  if (all) json_object_set_new(all, "tensorboard", text_or_null(o->tensorboard));
  return all;
}

/* The options that nobody gave, and what stands for that. */
static const struct {
  const char *name;
  unsigned flag;
} defaults[] = {{"lr", PX_DEFAULT_LR},
                {"warmup", PX_DEFAULT_WARMUP},
                {"eval_every", PX_DEFAULT_EVAL_EVERY},
                {"save_every", PX_DEFAULT_SAVE_EVERY},
                {"max_row_tokens", PX_DEFAULT_ROW_TOKENS}};
enum { DEFAULTS = sizeof defaults / sizeof *defaults };

static json_t *default_names(const px_run *run) {
  json_t *list = json_array();
  for (int i = 0; i < DEFAULTS; i++)
    if (run->defaults & defaults[i].flag) json_array_append_new(list, json_string(defaults[i].name));
  return list;
}

static void forget_defaults(const json_t *list, px_train_options *o) {
  unsigned flags = 0;
  for (size_t i = 0; i < json_array_size(list); i++)
    for (int k = 0; k < DEFAULTS; k++) {
      const char *name = json_string_value(json_array_get(list, i));
      if (name && strcmp(name, defaults[k].name) == 0) flags |= defaults[k].flag;
    }
  if (flags & PX_DEFAULT_LR) o->lr = 0;
  if (flags & PX_DEFAULT_WARMUP) o->warmup = -1;
  if (flags & PX_DEFAULT_EVAL_EVERY) o->eval_every = 0;
  if (flags & PX_DEFAULT_SAVE_EVERY) o->save_every = 0;
  if (flags & PX_DEFAULT_ROW_TOKENS) o->rows.max_row_tokens = 0;
}

static px_status json_text(const px_run *run, px_buf *text, px_error *err) {
  json_t *environment = json_pack("{s:s s:s s:s s:s s:i s:s}", "version", PX_VERSION, "device", run->be->name, "products", run->be->products,
                                  "attention", px_attention_name(run->be->attention),                                  "threads", run->be->threads, "dtype", px_dtype_name(run->model->dtype));
  static const char *const variables[] = {"OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA",
                                          "ONEDNN_DEFAULT_FPMATH_MODE"};
  for (size_t i = 0; i < sizeof variables / sizeof *variables; i++)
    if (getenv(variables[i])) json_object_set_new(environment, variables[i], json_string(getenv(variables[i])));
  json_t *digests = json_pack("{s:s s:s s:o s:s s:o}", "model_arch", run->model->fingerprint.arch, "model_base", run->model->fingerprint.base,
                              "tokenizer", text_or_null(run->tok ? px_tokenizer_info_get(run->tok)->digest : NULL), "data", run->train.digest,
                              "valid", text_or_null(run->options.valid ? run->valid.digest : NULL));
  json_t *root = json_pack("{s:i s:o s:o s:o s:o}", "pfx_run", 1, "settings", px_run_settings(run), "defaults", default_names(run), "environment", environment, "digests", digests);
  px_status status = root ? px_json_dump(root, text, err) : px_fail(err, PX_FAILED, "a path of this run is no UTF-8 and cannot be recorded");
  json_decref(root);
  px_buf_puts(text, "\n");
  return status == PX_OK && text->failed ? px_fail(err, PX_NO_MEMORY, "no memory") : status;
}

px_status px_run_check_json(const px_run *run, px_error *err) {
  px_buf text = {0};
  px_status status = json_text(run, &text, err);
  px_buf_free(&text);
  return status;
}

px_status px_run_write_json(const px_run *run, px_error *err) {
  px_buf text = {0};
  px_status status = json_text(run, &text, err);
  char *path = px_arena_printf((px_arena *)&run->arena, "%s/run.json", run->options.out);
  if (status == PX_OK && !path) status = px_fail(err, PX_NO_MEMORY, "no memory");
  if (status == PX_OK) status = px_file_write(path, text.data, text.len, err);
  px_buf_free(&text);
  return status;
}

/* Reads fields one after the other; the first failure sticks. */
typedef struct reader {
  const json_t *object;
  const char *name;
  px_arena *arena;
  px_error *err;
  px_status status;
} reader;

static int64_t get_int(reader *r, const char *key) {
  int64_t value = 0;
  if (r->status == PX_OK) r->status = px_json_int(r->object, r->name, key, 0, &value, r->err);
  return value;
}
static int32_t get_int32(reader *r, const char *key) {
  int64_t value = get_int(r, key);
  if (r->status == PX_OK && (value < INT32_MIN || value > INT32_MAX))
    r->status = px_fail(r->err, PX_BAD_FILE, "%s: field \"%s\" is out of range", r->name, key);
  return (int32_t)value;
}
static double get_num(reader *r, const char *key) {
  double value = 0;
  if (r->status == PX_OK) r->status = px_json_num(r->object, r->name, key, 0, &value, r->err);
  return value;
}
static bool get_bool(reader *r, const char *key) {
  bool value = false;
  if (r->status == PX_OK) r->status = px_json_bool(r->object, r->name, key, false, &value, r->err);
  return value;
}
static const char *get_text(reader *r, const char *key) {
  const char *value = NULL;
  if (r->status == PX_OK) r->status = px_json_str(r->object, r->name, key, NULL, &value, r->err);
  return value ? px_arena_strdup(r->arena, value) : NULL;
}
static int get_name(reader *r, const char *key, const char *const *names, int count) {
  const char *value = get_text(r, key);
  for (int i = 0; value && i < count; i++)
    if (strcmp(value, names[i]) == 0) return i;
  if (r->status == PX_OK) r->status = px_fail(r->err, PX_BAD_FILE, "%s: field \"%s\" is damaged", r->name, key);
  return 0;
}

static void read_sizes(reader *r, int32_t sizes[PX_PARTS_MOST]) {
  const json_t *list = json_object_get(r->object, "part_sizes");
  size_t count = json_array_size(list);
  if (r->status == PX_OK && (!json_is_array(list) || count < 1 || count > PX_PARTS_MOST))
    r->status = px_fail(r->err, PX_BAD_FILE, "%s: field \"part_sizes\" is damaged", r->name);
  for (size_t i = 0; r->status == PX_OK && i < count; i++) {
    const json_t *size = json_array_get(list, i);
    if (!json_is_integer(size) || json_integer_value(size) < 0 || json_integer_value(size) > INT32_MAX)
      r->status = px_fail(r->err, PX_BAD_FILE, "%s: field \"part_sizes\" is damaged", r->name);
    else
      sizes[i] = (int32_t)json_integer_value(size);
  }
}

/* Runs from before there was a choice have no such field. */
static px_attention get_attention(reader *r) {
  px_attention attention = PX_ATTENTION_AUTO;
  const char *name = get_text(r, "attention");
  if (name && !px_attention_parse(name, &attention) && r->status == PX_OK)
    r->status = px_fail(r->err, PX_BAD_FILE, "%s: field \"attention\" is damaged", r->name);
  return attention;
}

static void read_settings(reader *r, px_train_options *o) {
  o->model_path = get_text(r, "model");
  o->data = get_text(r, "data");
  o->valid = get_text(r, "valid");
  o->out = get_text(r, "out");
  o->tune = get_text(r, "tune");
  o->init = get_text(r, "init");
  o->reparam = get_int32(r, "reparam");
  o->steps = get_int(r, "steps");
  o->lr = get_num(r, "lr");
  o->warmup = get_int(r, "warmup");
  o->schedule = (px_schedule)get_name(r, "schedule", schedule_names, 3);
  o->batch_rows = get_int32(r, "batch_rows");
  o->batch_tokens = get_int(r, "batch_tokens");
  o->accumulate = get_int32(r, "accumulate");
  o->beta1 = get_num(r, "beta1");
  o->beta2 = get_num(r, "beta2");
  o->eps = get_num(r, "eps");
  o->weight_decay = get_num(r, "weight_decay");
  o->clip = get_num(r, "clip");
  o->eval_every = get_int(r, "eval_every");
  o->save_every = get_int(r, "save_every");
  o->patience = get_int32(r, "patience");
  o->prefix_dropout = get_num(r, "prefix_dropout");
  o->rows.max_row_tokens = get_int32(r, "max_row_tokens");
  o->rows.on_long = (px_on_long)get_name(r, "on_long", long_names, 3);
  o->rows.loss_all = get_bool(r, "loss_all");
  o->rows.no_bos = get_bool(r, "no_bos");
  o->rows.no_end = get_bool(r, "no_end");
  o->no_fingerprint = get_bool(r, "no_fingerprint");
  const char *template = get_text(r, "template"), *seed = get_text(r, "seed");
  if (template && r->status == PX_OK) r->status = px_template_parse(template, &o->rows.chat, r->err);
  o->seed = seed ? strtoull(seed, NULL, 10) : 0;
  const char *optimizer = get_text(r, "optimizer"); /* runs from before there was a choice have no such field */
  if (optimizer && strcmp(optimizer, "sgd") != 0 && strcmp(optimizer, "adamw") != 0 && r->status == PX_OK)
    r->status = px_fail(r->err, PX_BAD_FILE, "%s: field \"optimizer\" is damaged", r->name);
  o->sgd = optimizer && strcmp(optimizer, "sgd") == 0;
  const char *type = get_text(r, "out_dtype"); /* likewise */
  static const px_dtype types[] = {PX_F32, PX_BF16, PX_F16};
  for (size_t i = 0; type && i < sizeof types / sizeof *types; i++)
    if (strcmp(type, px_dtype_name(types[i])) == 0) o->out_dtype = 1 + (int)types[i];
  if (type && !o->out_dtype && strcmp(type, "base") != 0 && r->status == PX_OK)
    r->status = px_fail(r->err, PX_BAD_FILE, "%s: field \"out_dtype\" is damaged", r->name);
  o->attention = get_attention(r);
  o->tensorboard = get_text(r, "tensorboard");
}

px_status px_run_read_json(const char *dir, px_arena *arena, px_run_record *out, px_error *err) {
  *out = (px_run_record){0};
  if (!px_file_exists(dir)) return px_fail(err, PX_BAD_FILE, "%s: no such file or folder", dir);
  char *path = px_arena_printf(arena, px_file_is_dir(dir) ? "%s/run.json" : "%s", dir);
  if (!path) return px_fail(err, PX_NO_MEMORY, "no memory");
  if (!px_file_exists(path)) return px_fail(err, PX_BAD_FILE, "%s has no run.json: it is no training folder", dir);
  json_t *root = NULL;
  PX_TRY(px_json_read(path, &root, err));
  reader r = {.object = json_object_get(root, "settings"), .name = path, .arena = arena, .err = err};
  const json_t *environment = json_object_get(root, "environment"), *digests = json_object_get(root, "digests");
  if (!json_is_object(r.object) || !json_is_object(environment) || !json_is_object(digests)) {
    json_decref(root);
    return px_fail(err, PX_BAD_FILE, "%s: fields \"settings\", \"environment\" and \"digests\" are needed", path);
  }
  read_settings(&r, &out->options);
  out->resolved = out->options;
  forget_defaults(json_object_get(root, "defaults"), &out->options);
  read_sizes(&r, out->part_sizes);
  r.object = environment;
  out->version = get_text(&r, "version");
  out->device = get_text(&r, "device");
  out->products = get_text(&r, "products");
  out->engine = get_attention(&r);
  out->threads = get_int32(&r, "threads");
  const char *dtype = get_text(&r, "dtype");
  out->dtype = dtype && strcmp(dtype, "bf16") == 0 ? PX_BF16 : PX_F32;
  r.object = digests;
  out->base = get_text(&r, "model_base");
  out->data_digest = get_text(&r, "data");
  out->valid_digest = get_text(&r, "valid");
  out->tokenizer = get_text(&r, "tokenizer");
  json_decref(root);
  if (r.status == PX_OK && (!out->options.model_path || !out->options.data || !out->options.out || !out->options.tune || !out->base ||
                            !out->data_digest || !out->device || !out->products || !out->version || out->options.steps < 1))
    return px_fail(err, PX_BAD_FILE, "%s: a field that every run has is missing", path);
  return r.status;
}
