/* SPDX-License-Identifier: MIT */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format/adapter_folder.h"
#include "format/json.h"

/* Above any real size, and small enough that products of three fit int64. */
enum { SIZE_LIMIT = 1 << 20 };

/* --- which folder --- */

static char *join(const char *folder, const char *name) {
  px_buf path = {0};
  px_buf_printf(&path, "%s/%s", folder, name);
  if (path.failed) px_buf_free(&path);
  return path.data;
}

static bool holds(const char *folder, const char *name) {
  char *path = join(folder, name);
  bool found = path && px_file_exists(path);
  free(path);
  return found;
}

/* Looks for adapters below `path`: the first one's folder (to free), their number, and their names for a message. */
static char *find_below(const char *path, DIR *dir, size_t *count, px_buf *names) {
  char *first = NULL;
  for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
    if (e->d_name[0] == '.') continue;
    char *folder = join(path, e->d_name);
    if (folder && holds(folder, "adapter_config.json")) {
      if (names->len < 200) px_buf_printf(names, "%s%s", *count ? ", " : "", e->d_name);
      if ((*count)++ == 0) {
        first = folder;
        continue;
      }
    }
    free(folder);
  }
  return first;
}

/* *folder is the caller's: free(). */
static px_status find_folder(const char *path, char **folder, px_error *err) {
  *folder = NULL;
  if (px_file_exists(path) && !px_file_is_dir(path))
    return px_fail(err, PX_BAD_FILE, "%s: is a file; an adapter is the folder that holds adapter_config.json", path);
  if (holds(path, "adapter_config.json")) {
    *folder = strdup(path);
    return *folder ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory for a path");
  }
  DIR *dir = opendir(path);
  if (!dir) return px_fail_errno(err, PX_BAD_FILE, errno, "cannot open the adapter folder %s", path);
  size_t count = 0;
  px_buf names = {0};
  char *first = find_below(path, dir, &count, &names);
  closedir(dir);
  px_status status = PX_OK;
  if (count == 0)
    status =
        px_fail(err, PX_BAD_FILE, "%s: holds no adapter_config.json, nor does a folder in it; is it an adapter?", path);
  else if (count > 1)
    status = px_fail(err, PX_BAD_FILE, "%s: holds %zu adapters (%s); give the path of one of them", path, count,
                     names.data ? names.data : "");
  px_buf_free(&names);
  if (status != PX_OK) {
    free(first);
    return status;
  }
  *folder = first;
  return PX_OK;
}

/* --- adapter_config.json --- */

/* Empty values are what PEFT writes for a feature that is off. */
static bool is_default(const json_t *value) {
  switch (json_typeof(value)) {
    case JSON_OBJECT:
      return json_object_size(value) == 0;
    case JSON_ARRAY:
      return json_array_size(value) == 0;
    case JSON_STRING:
      return json_string_length(value) == 0;
    case JSON_INTEGER:
      return json_integer_value(value) == 0;
    case JSON_REAL:
      return json_real_value(value) == 0;
    case JSON_TRUE:
      return false;
    default:
      return true;
  }
}

/* What pfx does not know could change the result: it must be off. */
static px_status check_unknown(const json_t *object, const char *name, px_error *err) {
  static const char *const known[] = {"auto_mapping",
                                      "base_model_name_or_path",
                                      "encoder_hidden_size",
                                      "inference_mode",
                                      "init_weights",
                                      "num_attention_heads",
                                      "num_layers",
                                      "num_transformer_submodules",
                                      "peft_type",
                                      "num_virtual_tokens",
                                      "peft_version",
                                      "prefix_projection",
                                      "revision",
                                      "task_type",
                                      "token_dim",
                                      "num_frozen_tokens",
                                      "runtime_config" /* PEFT ignores it too */};
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)(uintptr_t)object, key, value) {
    size_t i = 0;
    while (i < sizeof known / sizeof *known && strcmp(known[i], key) != 0) i++;
    if (i < sizeof known / sizeof *known || is_default(value)) continue;
    if (strcmp(key, "modules_to_save") == 0)
      return px_fail(
          err, PX_BAD_FILE,
          "%s: field \"modules_to_save\" is set; pfx does not read modules that were trained beside a prefix", name);
    if (!px_name_is_plain(key, strlen(key))) key = "with control characters";
    return px_fail(err, PX_BAD_FILE,
                   "%s: field \"%s\" is set, and pfx does not know what it means; remove it, or set it to null, if the "
                   "adapter does not depend on it",
                   name, key);
  }
  return PX_OK;
}

static px_status read_size(const json_t *object, const char *name, const char *key, int64_t least, int64_t *out,
                           px_error *err) {
  PX_TRY(px_json_int(object, name, key, 0, out, err));
  if (*out < least || *out > SIZE_LIMIT)
    return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" must be an integer from %" PRId64 " to %d", name, key, least,
                   SIZE_LIMIT);
  return PX_OK;
}

/* The fields with one acceptable meaning. */
static px_status check_kind(const px_adapter_config *c, const json_t *object, const char *name, px_error *err) {
  if (!c->peft_type)
    return px_fail(err, PX_BAD_FILE, "%s: field \"peft_type\" is missing; is it an adapter of PEFT?", name);
  const char *shown = px_name_is_plain(c->peft_type, strlen(c->peft_type)) ? c->peft_type : "?";
  if (strcmp(shown, "PREFIX_TUNING") != 0 && strcmp(shown, "CARTRIDGE") != 0)
    return px_fail(err, PX_BAD_FILE, "%s: field \"peft_type\" is \"%s\"; pfx reads PREFIX_TUNING and CARTRIDGE", name,
                   shown);
  shown = px_name_is_plain(c->task_type, strlen(c->task_type)) ? c->task_type : "?";
  if (strcmp(shown, "CAUSAL_LM") != 0)
    return px_fail(err, PX_BAD_FILE, "%s: field \"task_type\" is \"%s\"; pfx reads CAUSAL_LM", name, shown);
  int64_t submodules = 1;
  PX_TRY(px_json_int(object, name, "num_transformer_submodules", 1, &submodules, err));
  if (submodules != 1)
    return px_fail(err, PX_BAD_FILE,
                   "%s: field \"num_transformer_submodules\" is %" PRId64
                   "; pfx reads 1: a prefix for an encoder-decoder model does not fit its models",
                   name, submodules);
  return check_unknown(object, name, err);
}

/* Strings stay borrowed from `object`. */
static px_status read_config(const json_t *object, const char *name, px_adapter_config *c, px_error *err) {
  if (!json_is_object(object)) return px_fail(err, PX_BAD_FILE, "%s: must hold a JSON object", name);
  PX_TRY(px_json_str(object, name, "peft_type", NULL, &c->peft_type, err));
  PX_TRY(px_json_str(object, name, "base_model_name_or_path", NULL, &c->base_model, err));
  PX_TRY(px_json_str(object, name, "revision", NULL, &c->revision, err));
  PX_TRY(px_json_str(object, name, "task_type", "CAUSAL_LM", &c->task_type, err));
  PX_TRY(check_kind(c, object, name, err));
  PX_TRY(px_json_str(object, name, "init_weights", NULL, &c->init_weights, err));
  PX_TRY(read_size(object, name, "num_virtual_tokens", 1, &c->virtual_tokens, err));
  PX_TRY(read_size(object, name, "num_layers", 1, &c->layers, err));
  PX_TRY(read_size(object, name, "num_attention_heads", 1, &c->heads, err));
  PX_TRY(read_size(object, name, "token_dim", 1, &c->token_dim, err));
  PX_TRY(read_size(object, name, "encoder_hidden_size", 0, &c->hidden_size, err));
  PX_TRY(read_size(object, name, "num_frozen_tokens", 0, &c->frozen_tokens, err));
  if (c->token_dim % c->heads)
    return px_fail(err, PX_BAD_FILE, "%s: token_dim %" PRId64 " is no multiple of num_attention_heads %" PRId64, name,
                   c->token_dim, c->heads);
  if (c->frozen_tokens > c->virtual_tokens)
    return px_fail(err, PX_BAD_FILE, "%s: num_frozen_tokens %" PRId64 " is more than num_virtual_tokens %" PRId64, name,
                   c->frozen_tokens, c->virtual_tokens);
  return PX_OK;
}

/* Copies the strings, so that they live as long as the folder. */
static px_status keep_strings(px_adapter_config *c, px_arena *arena, px_error *err) {
  const char **strings[] = {&c->peft_type, &c->base_model, &c->revision, &c->task_type, &c->init_weights};
  for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
    if (!*strings[i]) continue;
    *strings[i] = px_arena_strdup(arena, *strings[i]);
    if (!*strings[i]) return px_fail(err, PX_NO_MEMORY, "no memory for an adapter's configuration");
  }
  return PX_OK;
}

/* --- adapter_model.safetensors --- */

/* Exponent bits all set: infinity or NaN. */
static bool is_finite(const px_tensor_view *t, size_t i) {
  if (t->dtype == PX_F32) {
    uint32_t bits;
    memcpy(&bits, (const uint8_t *)t->data + 4 * i, sizeof bits);
    return (bits & 0x7f800000u) != 0x7f800000u;
  }
  uint16_t bits, mask = t->dtype == PX_F16 ? 0x7c00 : 0x7f80;
  memcpy(&bits, (const uint8_t *)t->data + 2 * i, sizeof bits);
  return (bits & mask) != mask;
}

static px_status check_tensor(const px_tensor_view *t, const px_adapter_config *c, px_error *err) {
  int64_t columns = 2 * c->layers * c->token_dim;
  if (t->dims != 2)
    return px_fail(err, PX_BAD_FILE, "%s: tensor \"prompt_embeddings\" has %d dimensions; it must have 2", t->file,
                   t->dims);
  if (t->shape[0] != c->virtual_tokens || t->shape[1] != columns)
    return px_fail(err, PX_BAD_FILE,
                   "%s: tensor \"prompt_embeddings\" has shape [%" PRId64 ", %" PRId64
                   "], but adapter_config.json says [%" PRId64 ", %" PRId64
                   "] (num_virtual_tokens, 2 * num_layers * token_dim)",
                   t->file, t->shape[0], t->shape[1], c->virtual_tokens, columns);
  if (t->dtype != PX_F32 && t->dtype != PX_F16 && t->dtype != PX_BF16)
    return px_fail(err, PX_BAD_FILE, "%s: tensor \"prompt_embeddings\" has type %s; it must be f32, f16 or bf16",
                   t->file, px_dtype_name(t->dtype));
  int64_t count = t->shape[0] * columns;
  for (int64_t i = 0; i < count; i++)
    if (!is_finite(t, (size_t)i))
      return px_fail(err, PX_BAD_FILE,
                     "%s: tensor \"prompt_embeddings\" is not finite at row %" PRId64 ", column %" PRId64
                     "; its training failed, train it again",
                     t->file, i / columns, i % columns);
  return PX_OK;
}

static px_status check_model(px_adapter_folder *out, const char *path, px_error *err) {
  for (size_t i = 0; i < out->tensors.count; i++)
    if (strcmp(out->tensors.items[i].name, "prompt_embeddings") != 0)
      return px_fail(err, PX_BAD_FILE, "%s: holds tensor \"%s\"; pfx reads \"prompt_embeddings\" and nothing else",
                     path, out->tensors.items[i].name);
  out->prompt_embeddings = px_tensor_find(&out->tensors, "prompt_embeddings");
  if (!out->prompt_embeddings) return px_fail(err, PX_BAD_FILE, "%s: holds no tensor \"prompt_embeddings\"", path);
  size_t kept = 0;
  for (size_t i = 0; i < out->metadata_count; i++)
    if (strncmp(out->metadata[i].key, "pfx.", 4) == 0) out->metadata[kept++] = out->metadata[i];
  out->metadata_count = kept;
  return PX_OK;
}

static px_status read_model(const char *folder, px_adapter_folder *out, px_error *err) {
  char *path = join(folder, "adapter_model.safetensors");
  if (!path) return px_fail(err, PX_NO_MEMORY, "no memory for a path");
  px_status status = PX_OK;
  if (px_file_exists(path)) {
    status = px_safetensors_open(path, &out->tensors, &out->metadata, &out->metadata_count, err);
    if (status == PX_OK) status = check_model(out, path, err);
  } else if (holds(folder, "adapter_model.bin")) {
    status = px_fail(err, PX_BAD_FILE,
                     "%s/adapter_model.bin: is a pickle, which can run code and which pfx does not read; load it with "
                     "PEFT and save it again with save_pretrained(..., safe_serialization=True)",
                     folder);
  } else {
    status = px_fail(err, PX_BAD_FILE, "%s: is missing", path);
  }
  free(path);
  return status;
}

static px_status open_folder(const char *folder, px_adapter_folder *out, px_error *err) {
  char *path = join(folder, "adapter_config.json");
  if (!path) return px_fail(err, PX_NO_MEMORY, "no memory for a path");
  json_t *object = NULL;
  px_adapter_config config = {0};
  px_status status = px_json_read(path, &object, err);
  if (status == PX_OK) status = read_config(object, path, &config, err);
  if (status == PX_OK) status = read_model(folder, out, err);
  if (status == PX_OK) status = check_tensor(out->prompt_embeddings, &config, err);
  if (status == PX_OK) status = keep_strings(&config, &out->tensors.arena, err);
  out->config = config;
  json_decref(object);
  free(path);
  return status;
}

px_status px_adapter_folder_open(const char *path, px_adapter_folder *out, px_error *err) {
  *out = (px_adapter_folder){0};
  char *folder = NULL;
  PX_TRY(find_folder(path, &folder, err));
  px_status status = open_folder(folder, out, err);
  free(folder);
  if (status != PX_OK) px_adapter_folder_close(out);
  return status;
}

void px_adapter_folder_close(px_adapter_folder *folder) {
  px_tensor_list_close(&folder->tensors);
  *folder = (px_adapter_folder){0};
}
