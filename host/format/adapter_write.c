/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/adapter_folder.h"
#include "format/json.h"

/* The version of PEFT whose files these are, key for key. */
#define PEFT_VERSION "0.21.2"

static px_status check(const char *path, const px_adapter_config *c, const float *values, px_error *err) {
  if (!c->peft_type || strcmp(c->peft_type, "PREFIX_TUNING") != 0)
    return px_fail(err, PX_INVALID, "%s: an adapter of type %s cannot be written; PREFIX_TUNING can", path,
                   c->peft_type ? c->peft_type : "null");
  if (c->virtual_tokens < 1 || c->layers < 1 || c->heads < 1 || c->token_dim < 1 || c->token_dim % c->heads ||
      c->hidden_size < 0)
    return px_fail(err, PX_INVALID,
                   "%s: a prefix of %" PRId64 " tokens for %" PRId64 " layers, %" PRId64 " heads and token_dim %" PRId64
                   " cannot be",
                   path, c->virtual_tokens, c->layers, c->heads, c->token_dim);
  int64_t columns = 2 * c->layers * c->token_dim;
  for (int64_t i = 0; i < c->virtual_tokens * columns; i++)
    if (!isfinite(values[i]))
      return px_fail(err, PX_NOT_FINITE,
                     "%s: the prefix is not finite at row %" PRId64 ", column %" PRId64 "; it is not written", path,
                     i / columns, i % columns);
  return PX_OK;
}

static json_t *text_or_null(const char *text) { return text ? json_string(text) : json_null(); }

static px_status make_config(const char *path, const px_adapter_config *c, px_buf *out, px_error *err) {
  const struct {
    const char *key;
    json_t *value; /* handed over to the object below */
  } fields[] = {{"auto_mapping", json_null()},
                {"base_model_name_or_path", text_or_null(c->base_model)},
                {"encoder_hidden_size", c->hidden_size ? json_integer(c->hidden_size) : json_null()},
                {"inference_mode", json_true()},
                {"init_weights", text_or_null(c->init_weights)},
                {"modules_to_save", json_null()},
                {"num_attention_heads", json_integer(c->heads)},
                {"num_layers", json_integer(c->layers)},
                {"num_transformer_submodules", json_integer(1)},
                {"num_virtual_tokens", json_integer(c->virtual_tokens)},
                {"peft_type", json_string(c->peft_type)},
                {"peft_version", json_string(PEFT_VERSION)},
                {"prefix_projection", json_false()},
                {"revision", text_or_null(c->revision)},
                {"task_type", text_or_null(c->task_type)},
                {"token_dim", json_integer(c->token_dim)}};
  json_t *object = json_object();
  const char *failed = NULL;
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
    if (json_object_set_new(object, fields[i].key, fields[i].value) != 0) failed = fields[i].key;
  /* The only thing that fails apart from memory is a string that is not UTF-8. */
  px_status status = failed ? px_fail(err, PX_INVALID, "%s: field \"%s\" is not UTF-8", path, failed) : PX_OK;
  if (status == PX_OK) status = px_json_dump(object, out, err);
  json_decref(object);
  return status;
}

static int by_key(const void *a, const void *b) { return strcmp(((const px_meta *)a)->key, ((const px_meta *)b)->key); }

static px_status write_model(const char *path, const px_adapter_config *c, const float *values, const px_meta *metadata,
                             size_t metadata_count, px_error *err) {
  px_meta *all = px_calloc(metadata_count + 1, sizeof *all);
  if (!all) return px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", path);
  all[0] = (px_meta){"format", "pt"};
  if (metadata_count) memcpy(all + 1, metadata, metadata_count * sizeof *all);
  qsort(all, metadata_count + 1, sizeof *all, by_key);
  px_tensor_view t = {.name = "prompt_embeddings", .dtype = PX_F32, .dims = 2, .data = values};
  t.shape[0] = c->virtual_tokens;
  t.shape[1] = 2 * c->layers * c->token_dim;
  t.bytes = (size_t)px_tensor_elements(&t) * sizeof *values;
  px_status status = px_safetensors_write(path, &t, 1, all, metadata_count + 1, err);
  free(all);
  return status;
}

px_status px_adapter_folder_write(const char *path, const px_adapter_config *config, const float *values,
                                  const px_meta *metadata, size_t metadata_count, px_error *err) {
  PX_TRY(check(path, config, values, err));
  px_buf json = {0}, file = {0};
  px_status status = make_config(path, config, &json, err);
  if (status == PX_OK) status = px_dir_make(path, err);
  px_buf_printf(&file, "%s/adapter_model.safetensors", path);
  if (status == PX_OK && file.failed) status = px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", path);
  /* The config comes last: a new folder that has one is complete. */
  if (status == PX_OK) status = write_model(file.data, config, values, metadata, metadata_count, err);
  if (status == PX_OK) {
    file.len = 0;
    px_buf_printf(&file, "%s/adapter_config.json", path);
    status = px_file_write(file.data, json.data, json.len, err);
  }
  px_buf_free(&json);
  px_buf_free(&file);
  return status;
}
