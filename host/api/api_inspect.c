/* SPDX-License-Identifier: MIT
 * What does this path hold? One JSON object is built; people get the same fields as lines. */
#include <stdlib.h>

#include "api/handles.h"
#include "format/json.h"
#include "text/rows.h"
#include "train/trainer.h"

static char *in_folder(px_arena *arena, const char *path, const char *name) { return px_arena_printf(arena, "%s/%s", path, name); }

static void set_text(json_t *o, const char *key, const char *value) { json_object_set_new(o, key, value ? json_string(value) : json_null()); }
static void set_int(json_t *o, const char *key, int64_t value) { json_object_set_new(o, key, json_integer(value)); }

static px_status of_model(const char *path, bool verify, json_t *o, px_error *err) {
  static const char *const ropes[] = {"none", "default", "linear", "llama3"};
  px_source source;
  px_fingerprint fingerprint;
  px_named_tensor *tensors = NULL;
  size_t count = 0;
  PX_TRY(px_source_open(path, &source, err));
  const px_config *c = &source.config;
  px_status status = px_source_tensors(&source, &tensors, &count, err);
  if (status == PX_OK) status = px_fingerprint_make(&source, &fingerprint, err);
  if (status == PX_OK && verify) status = px_source_verify(&source, err);
  if (status == PX_OK) {
    int64_t parameters = 0;
    int32_t window = 0;
    for (size_t i = 0; i < count; i++) parameters += tensors[i].tensor.rows * tensors[i].tensor.cols;
    for (int l = 0; l < c->layers; l++) window = c->windows[l] > window ? c->windows[l] : window;
    set_text(o, "holds", "model");
    set_text(o, "format", source.is_gguf ? "GGUF" : "Hugging Face folder");
    set_text(o, "family", c->family);
    set_int(o, "layers", c->layers);
    set_int(o, "hidden_size", c->dim);
    set_int(o, "heads", c->heads);
    set_int(o, "kv_heads", c->kv_heads);
    set_int(o, "head_dim", c->head_dim);
    set_int(o, "feed_forward", c->ffn_dim);
    set_int(o, "vocabulary", c->vocab);
    set_int(o, "context", c->context);
    set_text(o, "rotary", ropes[c->rope.type]);
    set_int(o, "sliding_window", window);
    json_object_set_new(o, "tied_embedding", json_boolean(c->tied));
    set_int(o, "tensors", (int64_t)count);
    set_int(o, "parameters", parameters);
    set_text(o, "arch", fingerprint.arch);
    set_text(o, "base", fingerprint.base);
    if (verify) set_text(o, "verified", "every weight is finite");
  }
  px_source_close(&source);
  return status;
}

static void add_tokenizer(const char *path, json_t *o) {
  px_tokenizer *tok = NULL;
  if (px_tokenizer_open(path, &tok, NULL) != PX_OK) return;
  const px_tokenizer_info *i = px_tokenizer_info_get(tok);
  px_template chat = PX_TEMPLATE_NONE;
  set_text(o, "tokenizer", i->kind);
  set_text(o, "split", i->split);
  set_int(o, "tokens", i->vocab_size);
  set_int(o, "begin_token", i->bos);
  set_int(o, "end_token", i->eos);
  json_object_set_new(o, "rows_begin_with_begin_token", json_boolean(i->add_bos));
  set_text(o, "chat_template", !i->chat_template ? "none" : px_template_detect(tok, &chat, NULL) == PX_OK ? px_template_name(chat) : "unknown");
  set_text(o, "tokenizer_digest", i->digest);
  px_tokenizer_close(tok);
}

/* The names of a list, joined. */
static void set_names(json_t *o, const char *key, px_name_list names) {
  px_buf text = {0};
  for (size_t i = 0; i < names.count; i++) px_buf_printf(&text, "%s%s", i ? "," : "", names.items[i]);
  if (!text.failed && names.count) set_text(o, key, text.data);
  px_buf_free(&text);
}

static void of_part(const px_adapter_part *p, json_t *o) {
  const px_adapter_config *c = &p->config;
  int64_t numbers = 0;
  for (size_t i = 0; i < p->tensor_count; i++) numbers += p->tensors[i].shape[0] * (p->tensors[i].dims == 2 ? p->tensors[i].shape[1] : 1);
  switch (p->kind) {
    case PX_PART_PREFIX:
      set_int(o, "layers", c->layers);
      if (c->chosen_count) set_int(o, "layers_with_prefix", (int64_t)c->chosen_count);
      set_int(o, "kv_heads", c->heads);
      set_int(o, "head_dim", c->token_dim / c->heads);
      return;
    case PX_PART_PROMPT:
      set_int(o, "prompt_tokens", c->virtual_tokens);
      set_int(o, "prompt_width", c->token_dim);
      return;
    case PX_PART_LORA:
      set_int(o, "lora_rank", c->rank);
      json_object_set_new(o, "lora_alpha", json_real(c->alpha));
      json_object_set_new(o, "lora_rank_stabilised", json_boolean(c->rank_stabilised));
      set_names(o, "lora_targets", c->target_modules);
      set_int(o, "lora_numbers", numbers);
      return;
    case PX_PART_IA3:
      set_names(o, "ia3_targets", c->target_modules);
      set_int(o, "ia3_numbers", numbers);
      return;
    case PX_PART_NORM:
      set_names(o, "norm_targets", c->target_modules);
      set_int(o, "norm_numbers", numbers);
      return;
    case PX_PART_TOP:
      set_int(o, "top_layers", c->top_layers);
      set_int(o, "top_numbers", numbers);
      return;
    default:
      set_int(o, p->kind == PX_PART_BIAS ? "bias_numbers" : "full_numbers", numbers);
      return;
  }
}

static px_status of_adapter(const char *path, json_t *o, px_error *err) {
  px_adapter *a = NULL;
  PX_TRY(px_adapter_open(path, &a, err));
  set_text(o, "holds", "adapter");
  set_text(o, "kind", a->kind);
  if (a->tokens) set_int(o, "virtual_tokens", a->tokens);
  for (int i = 0; i < a->part_count; i++) of_part(&a->parts[i], o);
  set_text(o, "base_model", a->parts[0].config.base_model);
  const char *const keys[] = {"pfx.arch", "pfx.base", "pfx.tokenizer", "pfx.template", "pfx.position_mode", "pfx.window", "pfx.version", "pfx.training"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
    const char *value = px_adapter_meta(a, keys[i]);
    if (value) set_text(o, keys[i], value);
  }
  if (!px_adapter_meta(a, "pfx.base")) set_text(o, "fingerprint", "none: not made by pfx, or with --no-fingerprint");
  px_adapter_close(a);
  return PX_OK;
}

static px_status of_run(const char *path, px_arena *arena, json_t *o, px_error *err) {
  px_train_options options;
  int dtype = 0, threads = 0;
  const char *device;
  PX_TRY(px_train_read_run(path, true, arena, &options, &device, &dtype, &threads, err));
  set_text(o, "holds", "training run");
  set_text(o, "model", options.model_path);
  set_text(o, "data", options.data);
  set_text(o, "valid", options.valid);
  set_text(o, "tune", options.tune);
  set_int(o, "steps", options.steps);
  json_object_set_new(o, "lr", json_real(options.lr));
  set_text(o, "device", device);
  set_text(o, "dtype", px_dtype_name((px_dtype)dtype));
  set_int(o, "threads", threads);
  char *state = in_folder(arena, path, "checkpoint/pfx_state.safetensors");
  px_tensor_list list;
  px_meta *meta = NULL;
  size_t count = 0;
  if (!state || !px_file_exists(state)) {
    set_text(o, "state", "no checkpoint yet");
    return PX_OK;
  }
  PX_TRY(px_safetensors_open(state, &list, &meta, &count, err));
  const char *step = px_meta_get(meta, count, "step"), *best = px_meta_get(meta, count, "best_valid_loss");
  set_int(o, "step", step ? strtoll(step, NULL, 10) : 0);
  if (best && strtod(best, NULL) == strtod(best, NULL)) json_object_set_new(o, "best_valid_loss", json_real(strtod(best, NULL)));
  px_tensor_list_close(&list);
  return PX_OK;
}

/* What the rows of a file are, by the first of them. */
static const char *row_kind(const char *row, size_t bytes) {
  static const char *const keys[] = {"ids", "messages", "text", "completion", "prompt"};
  static const char *const kinds[] = {"ids and labels", "messages", "text", "prompt and completion", "prompt"};
  json_t *object = json_loadb(row, bytes, 0, NULL);
  const char *kind = json_is_object(object) ? "unknown" : memmem(row, bytes, "||", 2) ? "source||target" : "a prompt a line";
  for (size_t i = sizeof keys / sizeof *keys; i-- > 0;)
    if (json_object_get(object, keys[i])) kind = kinds[i];
  json_decref(object);
  return kind;
}

/* Rows are read as far as that is possible without a tokenizer. */
static px_status of_data(const char *path, px_arena *arena, json_t *o, px_error *err) {
  px_map map;
  PX_TRY(px_map_open(path, &map, err));
  for (size_t i = 0; i < map.bytes && i < 65536; i++)
    if (map.data[i] < ' ' && !strchr("\t\n\v\f\r\033", map.data[i] ? map.data[i] : 1)) {
      px_map_close(&map);
      return px_fail(err, PX_BAD_FILE, "%s holds no text, and nothing else that pfx knows by this name", path);
    }
  const char *kind = NULL, *data = (const char *)map.data, *end = data + map.bytes;
  int64_t count = 0;
  for (const char *at = data, *stop; at < end; at = stop + 1) {
    stop = memchr(at, '\n', (size_t)(end - at));
    if (!stop) stop = end;
    while (at < stop && strchr(" \t\r", *at)) at++;
    if (at < stop && count++ == 0) kind = row_kind(at, (size_t)(stop - at));
  }
  set_text(o, "holds", "data");
  set_int(o, "bytes", (int64_t)map.bytes);
  set_text(o, "rows_hold", kind);
  set_int(o, "rows", count);
  px_map_close(&map);
  if (!kind) return px_fail(err, PX_BAD_FILE, "%s: is empty", path);
  if (strcmp(kind, "ids and labels") == 0) {
    px_rows rows;
    PX_TRY(px_rows_read(path, NULL, &(px_row_options){0}, NULL, &rows, err));
    set_int(o, "tokens", (int64_t)rows.offsets[rows.count]);
    set_int(o, "scored_tokens", (int64_t)rows.scored_tokens);
    set_int(o, "longest_row", (int64_t)rows.longest);
    px_rows_free(&rows);
    return PX_OK;
  }
  if (strncmp(kind, "prompt", 6) != 0) return PX_OK;
  char **prompts = NULL;
  size_t prompt_count = 0;
  return px_prompts_read(path, &prompts, &prompt_count, arena, err);
}

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), m = strlen(end);
  return n >= m && strcmp(text + n - m, end) == 0;
}

static px_status look(const char *path, bool verify, px_arena *arena, json_t *o, px_error *err) {
  set_text(o, "path", path);
  if (!px_file_exists(path)) return px_fail(err, PX_BAD_FILE, "%s: no such file or folder", path);
  if (px_file_is_dir(path)) {
    if (px_file_exists(in_folder(arena, path, "run.json"))) return of_run(path, arena, o, err);
    if (px_file_exists(in_folder(arena, path, "adapter_config.json")) || px_file_exists(in_folder(arena, path, "pfx.json")))
      return of_adapter(path, o, err);
    if (px_file_exists(in_folder(arena, path, "config.json"))) {
      PX_TRY(of_model(path, verify, o, err));
      add_tokenizer(path, o);
      return PX_OK;
    }
  } else if (ends_with(path, ".gguf")) {
    PX_TRY(of_model(path, verify, o, err));
    add_tokenizer(path, o);
    return PX_OK;
  } else if (ends_with(path, "run.json")) {
    return of_run(path, arena, o, err);
  } else if (!ends_with(path, "tokenizer.json")) {
    return of_data(path, arena, o, err);
  }
  px_tokenizer *tok = NULL;
  px_status status = px_tokenizer_open(path, &tok, err);
  px_tokenizer_close(tok);
  if (status != PX_OK && px_file_is_dir(path))
    return px_fail(err, PX_BAD_FILE, "%s holds no model (config.json), adapter (adapter_config.json, pfx.json), run (run.json) or tokenizer", path);
  PX_TRY(status);
  set_text(o, "holds", "tokenizer");
  add_tokenizer(path, o);
  return PX_OK;
}

static void as_lines(json_t *o, px_buf *out) {
  const char *key;
  json_t *value;
  json_object_foreach(o, key, value) {
    px_buf_printf(out, "%-28s ", key);
    if (json_is_string(value))
      px_buf_puts(out, json_string_value(value));
    else if (json_is_integer(value))
      px_buf_printf(out, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
      px_buf_printf(out, "%.6g", json_real_value(value));
    else
      px_buf_puts(out, json_is_true(value) ? "yes" : json_is_false(value) ? "no" : "-");
    px_buf_puts(out, "\n");
  }
}

pfx_status pfx_inspect_wait(const char *path, bool json, bool verify, char **text, pfx_error *err) {
  px_arena arena = {0};
  px_buf out = {0};
  json_t *o = json_object();
  *text = NULL;
  px_status status = o ? look(path, verify, &arena, o, px_api_error(err)) : px_fail(px_api_error(err), PX_NO_MEMORY, "no memory");
  if (status == PX_OK && json) {
    char *dump = json_dumps(o, JSON_PRESERVE_ORDER);
    px_buf_puts(&out, dump ? dump : "");
    px_buf_puts(&out, "\n");
    free(dump);
  } else if (status == PX_OK) {
    as_lines(o, &out);
  }
  json_decref(o);
  px_arena_free(&arena);
  if (status == PX_OK && out.failed) status = px_fail(px_api_error(err), PX_NO_MEMORY, "no memory");
  if (status != PX_OK)
    px_buf_free(&out);
  else
    *text = out.data;
  return px_api_status(status);
}
