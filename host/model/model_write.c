/* SPDX-License-Identifier: MIT
 * The weights of a model folder, piece by piece, and the files beside them. */
#include "model/model_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/statvfs.h>

#include "core/folder_out.h"

enum { PIECE = 4 << 20 }; /* elements decoded at once */
static const int64_t usual_shard_bytes = 5000000000;

/* A tensor of the new folder. */
typedef struct item {
  const char *name;
  px_canonical canonical; /* view NULL: a new bias, zeros */
  bool changed;
  px_tensor_view view; /* as the file gets it */
} item;

typedef struct job {
  const px_source *source;
  const px_tokenizer *tok;
  const px_model_changes *changes;
  px_model_write_options options;
  px_source own; /* the source with an arena of this call: threads share the other */
  item *items;
  size_t count, capacity;
  bool attention_bias, mlp_bias; /* the base lacks some of these biases, and gets them */
  px_folder_out folder;
  uint64_t done_bytes, all_bytes; /* of tensors */
  px_error *err;
} job;

static px_status no_memory(const job *j) { return px_fail(j->err, PX_NO_MEMORY, "no memory to write a model"); }

/* ---- what to write ---- */

static px_dtype out_type(const job *j, px_dtype base) {
  if (j->options.dtype >= 0) return (px_dtype)j->options.dtype;
  return base == PX_F32 || base == PX_F16 || base == PX_BF16 ? base : PX_BF16;
}

static px_status add_item(job *j, const char *name, const px_canonical *t, px_dtype type, bool changed) {
  if (!name || px_reserve(&j->items, &j->capacity, j->count + 1, sizeof *j->items)) return no_memory(j);
  item *i = &j->items[j->count++];
  *i = (item){.name = name, .canonical = *t, .changed = changed, .view = {.name = name, .dtype = type, .dims = t->dims}};
  i->view.shape[0] = t->dims == 1 ? t->cols : t->rows;
  if (t->dims == 2) i->view.shape[1] = t->cols;
  i->view.bytes = px_dtype_bytes(type, (size_t)(t->rows * t->cols));
  return PX_OK;
}

static bool asked(const job *j, const char *name, int64_t rows, int64_t cols, bool absent) {
  return j->changes && j->changes->changes(j->changes->user, name, rows, cols, absent);
}

static const item *find_item(const job *j, size_t count, const char *name) {
  for (size_t i = 0; i < count; i++)
    if (strcmp(j->items[i].name, name) == 0) return &j->items[i];
  return NULL;
}

/* The biases of these modules, all layers, that the base lacks. *wanted: one of them is changed. Written only with `add`. */
static px_status each_bias(job *j, const char *const *modules, size_t modules_count, bool add, bool *wanted) {
  size_t known = j->count; /* of the base */
  for (int l = 0; l < j->source->config.layers; l++)
    for (size_t m = 0; m < modules_count; m++) {
      char text[256];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
      size_t used = (size_t)snprintf(text, sizeof text, modules[m], l);
#pragma GCC diagnostic pop
      snprintf(text + used, sizeof text - used, ".weight");
      const item *weight = find_item(j, known, text);
      snprintf(text + used, sizeof text - used, ".bias");
      if (!weight || find_item(j, known, text)) continue;
      px_canonical bias = {.dims = 1, .rows = 1, .cols = weight->canonical.rows};
      px_dtype type = weight->view.dtype;
      if (!add)
        *wanted |= asked(j, text, 1, bias.cols, true);
      else
        PX_TRY(add_item(j, px_arena_strdup(&j->own.arena, text), &bias, type, asked(j, text, 1, bias.cols, true)));
    }
  return PX_OK;
}

/* transformers has these biases for all of a group or for none. */
static px_status add_biases(job *j) {
  const px_config *c = &j->source->config;
  const char *const attention[] = {c->hf->q, c->hf->k, c->hf->v, c->hf->o}, *const mlp[] = {c->hf->gate, c->hf->up, c->hf->down};
  bool llama = strcmp(c->family, "llama") == 0, some;
  if (llama || strcmp(c->family, "qwen3") == 0) {
    some = c->qkv_bias || c->o_bias;
    PX_TRY(each_bias(j, attention, 4, false, &some));
    if (some) PX_TRY(each_bias(j, attention, 4, true, &some));
    j->attention_bias = some;
  }
  if (llama) {
    some = c->mlp_bias;
    PX_TRY(each_bias(j, mlp, 3, false, &some));
    if (some) PX_TRY(each_bias(j, mlp, 3, true, &some));
    j->mlp_bias = some;
  }
  return PX_OK;
}

static int by_name(const void *a, const void *b) { return strcmp(((const item *)a)->name, ((const item *)b)->name); }

static px_status collect(job *j) {
  px_named_tensor *tensors = NULL;
  size_t count = 0;
  PX_TRY(px_source_tensors(&j->own, &tensors, &count, j->err));
  for (size_t i = 0; i < count; i++) {
    const px_canonical *t = &tensors[i].tensor;
    PX_TRY(add_item(j, tensors[i].name, t, out_type(j, t->view->dtype), asked(j, tensors[i].name, t->rows, t->cols, false)));
  }
  PX_TRY(add_biases(j));
  qsort(j->items, j->count, sizeof *j->items, by_name);
  return j->changes && j->changes->ready ? j->changes->ready(j->changes->user, j->err) : PX_OK;
}

/* ---- one tensor ---- */

static px_status spoiled(const job *j, const item *i, int64_t at, bool in_base) {
  if (in_base && !i->changed)
    return px_fail(j->err, PX_BAD_FILE, "%s: tensor %s holds a value that is not finite (element %lld); the file is damaged, get it again",
                   i->canonical.view->file, i->canonical.view->name, (long long)at);
  if (in_base) return px_fail(j->err, PX_NOT_FINITE, "the new value of %s is not finite (element %lld)", i->name, (long long)at);
  return px_fail(j->err, PX_INVALID, "%s holds values that are too large for %s (element %lld): write bf16 or f32", i->name,
                 px_dtype_name(i->view.dtype), (long long)at);
}

/* Values to the file's type, at the start of `out`; returns the first value that is not finite, or -1; *in_base: it was so before. */
static int64_t to_type(const float *values, int64_t count, px_dtype type, void *out, bool *in_base) {
  int64_t bad = INT64_MAX;
#pragma omp parallel for schedule(static) reduction(min : bad)
  for (int64_t k = 0; k < count; k++) {
    bool finite = isfinite(values[k]);
    if (type == PX_F32) {
      ((float *)out)[k] = values[k];
    } else if (type == PX_BF16) {
      uint16_t h = ((uint16_t *)out)[k] = px_f32_to_bf16(values[k]);
      finite &= (h & 0x7f80) != 0x7f80;
    } else {
      uint16_t h = ((uint16_t *)out)[k] = px_f32_to_f16(values[k]);
      finite &= (h & 0x7c00) != 0x7c00;
    }
    if (!finite && k < bad) bad = k;
  }
  if (bad == INT64_MAX) return -1;
  *in_base = !isfinite(values[bad]);
  return bad;
}

static px_status convert_item(const job *j, const item *i, px_out *out) {
  const px_canonical *t = &i->canonical;
  int64_t step = t->transpose || t->cols >= PIECE ? 1 : PIECE / (t->cols ? t->cols : 1);
  if (t->transpose || step > t->rows) step = t->rows;
  float *values = px_calloc((size_t)(step * t->cols), sizeof *values);
  void *bytes = px_calloc((size_t)(step * t->cols), sizeof *values);
  px_status status = values && bytes ? PX_OK : no_memory(j);
  for (int64_t r = 0; r < t->rows && status == PX_OK; r += step) {
    int64_t rows = t->rows - r < step ? t->rows - r : step;
    bool in_base = false;
    if (t->view) status = px_canonical_rows(t, r, rows, values, j->err);
    if (status == PX_OK && i->changed) status = j->changes->change(j->changes->user, i->name, r, rows, t->cols, values, j->err);
    if (status != PX_OK) break;
    int64_t bad = to_type(values, rows * t->cols, i->view.dtype, bytes, &in_base);
    status = bad >= 0 ? spoiled(j, i, r * t->cols + bad, in_base)
                      : px_out_write(out, bytes, px_dtype_bytes(i->view.dtype, (size_t)(rows * t->cols)), j->err);
  }
  if (t->view) px_map_forget(t->view->data, t->view->bytes);
  free(values);
  free(bytes);
  return status;
}

typedef struct shard {
  job *job;
  const item *first; /* its items; views[k] is that of first[k] */
  const px_tensor_view *views;
} shard;

static px_status put_tensor(void *user, const px_tensor_view *view, px_out *out, px_error *err) {
  const shard *s = user;
  const item *i = &s->first[view - s->views];
  const px_canonical *t = &i->canonical;
  const px_model_write_options *o = &s->job->options;
  bool same = t->view && !i->changed && t->view->dtype == view->dtype && !t->transpose && !t->permute_heads;
  if (o->cancelled && o->cancelled(o->user)) return px_fail(err, PX_CANCELLED, "stopped; %s was not written", s->job->folder.path);
  PX_TRY(same ? px_out_write(out, t->view->data, t->view->bytes, err) : convert_item(s->job, i, out));
  if (same) px_map_forget(t->view->data, t->view->bytes);
  s->job->done_bytes += view->bytes;
  if (o->progress) o->progress(o->user, s->job->done_bytes, s->job->all_bytes);
  return PX_OK;
}

/* ---- the files of weights ---- */

static px_status put_json(const job *j, const char *name, const json_t *value) {
  px_buf path = {0}, text = {0};
  px_buf_printf(&path, "%s/%s", j->folder.temporary, name);
  px_status status = px_json_dump(value, &text, j->err);
  px_buf_puts(&text, "\n");
  if (status == PX_OK && (path.failed || text.failed)) status = no_memory(j);
  if (status == PX_OK) status = px_file_write(path.data, text.data, text.len, j->err);
  px_buf_free(&path);
  px_buf_free(&text);
  return status;
}

/* The item behind the last of a file that begins with item `first`. */
static size_t shard_end(const job *j, size_t first) {
  int64_t limit = j->options.shard_bytes ? j->options.shard_bytes : usual_shard_bytes, bytes = 0;
  size_t end = first;
  while (end < j->count && (end == first || bytes + (int64_t)j->items[end].view.bytes <= limit)) bytes += (int64_t)j->items[end++].view.bytes;
  return end;
}

static px_status write_shard(job *j, const char *name, size_t first, size_t end) {
  const px_model_write_options *o = &j->options;
  px_buf path = {0};
  px_tensor_view *views = px_calloc(end - first, sizeof *views);
  px_meta *meta = px_calloc(o->metadata_count + 1, sizeof *meta);
  if (meta) {
    meta[0] = (px_meta){"format", "pt"};
    if (o->metadata_count) memcpy(meta + 1, o->metadata, o->metadata_count * sizeof *meta);
  }
  for (size_t k = first; views && k < end; k++) views[k - first] = j->items[k].view;
  px_buf_printf(&path, "%s/%s", j->folder.temporary, name);
  shard s = {.job = j, .first = j->items + first, .views = views};
  px_status status = views && meta && !path.failed
                         ? px_safetensors_write_by(path.data, views, end - first, meta, o->metadata_count + 1, put_tensor, &s, j->err)
                         : no_memory(j);
  px_buf_free(&path);
  free(meta);
  free(views);
  return status;
}

static px_status write_weights(job *j, px_model_written *w) {
  size_t files = 0;
  for (size_t first = 0; first < j->count; first = shard_end(j, first)) files++;
  json_t *map = json_object();
  px_status status = map ? PX_OK : no_memory(j);
  size_t number = 0;
  for (size_t first = 0, end; first < j->count && status == PX_OK; first = end) {
    char name[64] = "model.safetensors";
    end = shard_end(j, first);
    if (files > 1) snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", ++number, files);
    for (size_t k = first; k < end; k++) json_object_set_new(map, j->items[k].name, json_string(name));
    status = write_shard(j, name, first, end);
  }
  w->files = files;
  w->tensors = j->count;
  w->bytes = j->all_bytes;
  for (size_t k = 0; k < j->count; k++) w->changed += j->items[k].changed;
  if (status == PX_OK && files > 1) {
    json_t *index = json_pack("{s:{s:I} s:O}", "metadata", "total_size", (json_int_t)w->bytes, "weight_map", map);
    status = index ? put_json(j, "model.safetensors.index.json", index) : no_memory(j);
    json_decref(index);
  }
  json_decref(map);
  return status;
}

/* ---- the files beside them ---- */

/* What belongs to a model of Hugging Face besides its weights and config.json. Cards stay behind: they describe the base. */
static const char *const companions[] = {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                         "added_tokens.json",      "vocab.json",     "merges.txt",            "encoder.json",
                                         "vocab.bpe",              "tokenizer.model", "chat_template.jinja",  "chat_template.json",
                                         "LICENSE",                "LICENSE.txt",    "LICENSE.md",            "NOTICE"};

static px_status copy_files(const job *j) {
  px_status status = PX_OK;
  for (size_t i = 0; i < sizeof companions / sizeof *companions && status == PX_OK; i++) {
    px_buf from = {0}, to = {0};
    px_map map;
    px_buf_printf(&from, "%s/%s", j->source->path, companions[i]);
    px_buf_printf(&to, "%s/%s", j->folder.temporary, companions[i]);
    if (from.failed || to.failed)
      status = no_memory(j);
    else if (px_file_exists(from.data) && !px_file_is_dir(from.data)) {
      status = px_map_open(from.data, &map, j->err);
      if (status == PX_OK) {
        status = px_file_write(to.data, map.data, map.bytes, j->err);
        px_map_close(&map);
      }
    }
    px_buf_free(&from);
    px_buf_free(&to);
  }
  return status;
}

/* The base's own config.json, with what has changed. */
static px_status edited_config(const job *j, px_dtype dtype, json_t **out) {
  const px_config *c = &j->source->config;
  px_buf path = {0};
  px_buf_printf(&path, "%s/config.json", j->source->path);
  px_status status = path.failed ? no_memory(j) : px_json_read(path.data, out, j->err);
  px_buf_free(&path);
  PX_TRY(status);
  if (j->options.dtype >= 0) {
    json_t *name = json_string(dtype == PX_F32 ? "float32" : dtype == PX_BF16 ? "bfloat16" : "float16");
    bool newer = json_object_get(*out, "dtype"); /* transformers' word for it since 4.56 */
    json_object_set(*out, newer ? "dtype" : "torch_dtype", name);
    if (newer && json_object_get(*out, "torch_dtype")) json_object_set(*out, "torch_dtype", name);
    json_decref(name);
  }
  if (j->attention_bias && !(c->qkv_bias && c->o_bias)) json_object_set_new(*out, "attention_bias", json_true());
  if (j->mlp_bias && !c->mlp_bias) json_object_set_new(*out, "mlp_bias", json_true());
  return PX_OK;
}

static px_status write_config(const job *j, px_dtype dtype) {
  json_t *config = NULL;
  px_config c = j->source->config;
  c.qkv_bias |= j->attention_bias;
  c.mlp_bias |= j->mlp_bias;
  px_status status = j->source->is_gguf ? px_config_to_json(&c, j->source->path, j->tok, dtype, &config, j->err) : edited_config(j, dtype, &config);
  if (status == PX_OK) status = put_json(j, "config.json", config);
  json_decref(config);
  return status;
}

static px_status write_companions(const job *j) {
  if (!j->source->is_gguf) return copy_files(j);
  if (!j->tok) return PX_OK;
  json_t *generation = NULL;
  PX_TRY(px_tokenizer_write(j->tok, j->folder.temporary, j->source->config.context, j->err));
  px_status status = px_generation_to_json(j->tok, &generation, j->err);
  if (status == PX_OK) status = put_json(j, "generation_config.json", generation);
  json_decref(generation);
  return status;
}

/* ---- all of it ---- */

/* Better now than after minutes of writing. A file system that does not say is asked by writing. */
static px_status check_room(const job *j) {
  struct statvfs fs;
  uint64_t need = j->all_bytes;
  if (statvfs(j->folder.temporary, &fs) != 0 || fs.f_blocks == 0) return PX_OK;
  uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
  if (room >= need) return PX_OK;
  return px_fail(j->err, PX_IO, "%s needs %.1f GB, and its disk has %.1f GB left: make room, or name a folder elsewhere", j->folder.path,
                 (double)need / 1e9, (double)room / 1e9);
}

/* model.safetensors, its index, a shard, or pfx's note. */
static bool is_stale(const char *name) {
  size_t n = strlen(name);
  if (strcmp(name, "model.safetensors.index.json") == 0 || strcmp(name, "pfx.json") == 0) return true;
  return strncmp(name, "model", 5) == 0 && n > 12 && strcmp(name + n - 12, ".safetensors") == 0;
}

bool px_model_file(const char *name) {
  bool found = is_stale(name) || strcmp(name, "config.json") == 0;
  for (size_t i = 0; i < sizeof companions / sizeof *companions; i++) found |= strcmp(name, companions[i]) == 0;
  return found;
}

static px_status write_note(const job *j) {
  px_buf path = {0};
  if (!j->options.note) return PX_OK;
  px_buf_printf(&path, "%s/%s", j->folder.temporary, j->options.note_name);
  px_status status = path.failed ? no_memory(j) : px_file_write(path.data, j->options.note, strlen(j->options.note), j->err);
  px_buf_free(&path);
  return status;
}

static px_status write_all(job *j, const char *dir, px_model_written *w) {
  PX_TRY(collect(j));
  for (size_t i = 0; i < j->count; i++) j->all_bytes += j->items[i].view.bytes;
  const item *embed = find_item(j, j->count, "model.embed_tokens.weight");
  if (!embed) embed = find_item(j, j->count, "transformer.wte.weight");
  w->dtype = embed ? embed->view.dtype : PX_F32;
  PX_TRY(px_folder_out_open(dir, j->options.into, &j->folder, j->err));
  PX_TRY(check_room(j));
  PX_TRY(write_weights(j, w));
  PX_TRY(write_companions(j));
  PX_TRY(write_note(j));
  PX_TRY(write_config(j, w->dtype)); /* last: a folder without it is no model, whatever ends this */
  return px_folder_out_commit_into(&j->folder, "config.json", is_stale, j->err);
}

px_status px_model_write(const char *dir, const px_source *source, const px_tokenizer *tok, const px_model_changes *changes,
                         const px_model_write_options *options, px_model_written *written, px_error *err) {
  static const px_model_write_options usual = {.dtype = -1};
  px_model_written unused;
  job j = {.source = source, .tok = tok, .changes = changes, .options = options ? *options : usual, .own = *source, .folder = {.lock_fd = -1},
           .err = err};
  j.own.arena = (px_arena){0};
  if (!written) written = &unused;
  *written = (px_model_written){0};
  px_status status = write_all(&j, dir, written);
  px_folder_out_abort(&j.folder);
  px_arena_free(&j.own.arena);
  free(j.items);
  return status;
}

/* ---- whole tensors ---- */

typedef struct replacement {
  const px_override *overrides;
  bool *found;
  size_t count;
} replacement;

static bool replaces(void *user, const char *name, int64_t rows, int64_t cols, bool absent) {
  replacement *r = user;
  (void)absent;
  for (size_t i = 0; i < r->count; i++)
    if (strcmp(r->overrides[i].name, name) == 0) return r->found[i] = r->overrides[i].count == rows * cols;
  return false;
}

static px_status all_found(void *user, px_error *err) {
  const replacement *r = user;
  for (size_t i = 0; i < r->count; i++)
    if (!r->found[i])
      return px_fail(err, PX_INVALID, "%s is no tensor of this model with %lld values", r->overrides[i].name, (long long)r->overrides[i].count);
  return PX_OK;
}

static px_status replace(void *user, const char *name, int64_t first, int64_t rows, int64_t cols, float *values, px_error *err) {
  const replacement *r = user;
  (void)err;
  for (size_t i = 0; i < r->count; i++)
    if (strcmp(r->overrides[i].name, name) == 0) memcpy(values, r->overrides[i].values + first * cols, (size_t)(rows * cols) * sizeof *values);
  return PX_OK;
}

px_status px_model_write_with(const char *dir, const px_source *source, const px_tokenizer *tok, const px_override *overrides, size_t count,
                              const px_model_write_options *options, px_model_written *written, px_error *err) {
  replacement r = {.overrides = overrides, .found = px_calloc(count, 1), .count = count};
  px_model_changes changes = {.user = &r, .changes = replaces, .ready = all_found, .change = replace};
  if (!r.found) return px_fail(err, PX_NO_MEMORY, "no memory to write a model");
  px_status status = px_model_write(dir, source, tok, &changes, options, written, err);
  free(r.found);
  return status;
}
