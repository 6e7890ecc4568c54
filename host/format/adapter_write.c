/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/adapter_internal.h"

/* --- what can be written --- */

static px_status check_config(const char *path, const px_adapter_part *part, px_error *err) {
  const px_adapter_config *c = &part->config;
  switch (part->kind) {
    case PX_PART_PREFIX:
      if (c->virtual_tokens < 1 || c->layers < 1 || c->heads < 1 || c->token_dim < 1 || c->token_dim % c->heads ||
          c->hidden_size < 0)
        return px_fail(err, PX_INVALID,
                       "%s: a prefix of %" PRId64 " tokens for %" PRId64 " layers, %" PRId64
                       " heads and token_dim %" PRId64 " cannot be",
                       path, c->virtual_tokens, c->layers, c->heads, c->token_dim);
      if (c->frozen_tokens < 0 || c->frozen_tokens > c->virtual_tokens)
        return px_fail(err, PX_INVALID, "%s: %" PRId64 " of %" PRId64 " tokens cannot be frozen", path,
                       c->frozen_tokens, c->virtual_tokens);
      for (size_t i = 0; i < c->chosen_count; i++)
        if (c->chosen_layers[i] < (i ? c->chosen_layers[i - 1] + 1 : 0) || c->chosen_layers[i] >= c->layers)
          return px_fail(err, PX_INVALID, "%s: the layers of a prefix must be ascending and below %" PRId64, path,
                         c->layers);
      if (c->chosen_count && c->frozen_tokens)
        return px_fail(err, PX_INVALID, "%s: a prefix on chosen layers with frozen tokens has no form on disk", path);
      return PX_OK;
    case PX_PART_PROMPT:
      if (c->virtual_tokens >= 1 && c->token_dim >= 1) return PX_OK;
      return px_fail(err, PX_INVALID, "%s: a prompt of %" PRId64 " tokens and token_dim %" PRId64 " cannot be", path,
                     c->virtual_tokens, c->token_dim);
    case PX_PART_LORA:
      if (c->rank >= 1 && isfinite(c->alpha) && c->dropout >= 0 && c->dropout < 1) return PX_OK;
      return px_fail(err, PX_INVALID, "%s: LoRA of rank %" PRId64 ", alpha %g and dropout %g cannot be", path, c->rank,
                     c->alpha, c->dropout);
    case PX_PART_TOP:
      if (c->top_layers >= 1) return PX_OK;
      return px_fail(err, PX_INVALID, "%s: the last %" PRId64 " layers cannot be", path, c->top_layers);
    default:
      return PX_OK;
  }
}

static px_status check_values(const char *path, const px_adapter_part *part, px_error *err) {
  for (size_t i = 0; i < part->tensor_count; i++) {
    const px_part_tensor *t = &part->tensors[i];
    int64_t columns = t->dims == 2 ? t->shape[1] : 1, count = t->shape[0] * columns;
    for (int64_t k = 0; k < count; k++) {
      float x = t->values[k];
      if (part->dtype == PX_F16) x = px_f16_to_f32(px_f32_to_f16(x)); /* which may overflow */
      if (part->dtype == PX_BF16) x = px_bf16_to_f32(px_f32_to_bf16(x));
      if (isfinite(x)) continue;
      return px_fail(err, PX_NOT_FINITE,
                     "%s: the %s%s%s is not finite at row %" PRId64 ", column %" PRId64 "; it is not written", path,
                     px_part_kind_name(part->kind), *t->module ? " of " : "", t->module, k / columns, k % columns);
    }
  }
  return PX_OK;
}

/* --- the tensors --- */

static void *stored_values(const px_part_tensor *t, px_dtype dtype, size_t count, px_arena *arena) {
  uint16_t *halves = px_arena_alloc(arena, count, sizeof *halves);
  for (size_t k = 0; halves && k < count; k++)
    halves[k] = dtype == PX_F16 ? px_f32_to_f16(t->values[k]) : px_f32_to_bf16(t->values[k]);
  return halves;
}

static px_status make_views(const char *path, const px_adapter_part *part, px_arena *arena, px_tensor_view **out,
                            px_error *err) {
  px_tensor_view *views = px_arena_alloc(arena, part->tensor_count, sizeof *views);
  *out = views;
  for (size_t i = 0; views && i < part->tensor_count; i++) {
    const px_part_tensor *t = &part->tensors[i];
    views[i] = (px_tensor_view){.dtype = part->dtype, .dims = t->dims, .data = t->values};
    for (int d = 0; d < t->dims; d++) views[i].shape[d] = t->shape[d];
    size_t count = (size_t)px_tensor_elements(&views[i]);
    views[i].bytes = px_dtype_bytes(part->dtype, count);
    views[i].name = px_part_tensor_name(t, part->kind, arena);
    if (part->dtype != PX_F32) views[i].data = stored_values(t, part->dtype, count, arena);
    if (!views[i].name || !views[i].data) views = NULL;
  }
  return views ? PX_OK : px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", path);
}

static int by_key(const void *a, const void *b) { return strcmp(((const px_meta *)a)->key, ((const px_meta *)b)->key); }

static px_status write_model(const char *path, const px_adapter_part *part, const px_meta *metadata,
                             size_t metadata_count, px_error *err) {
  px_arena arena = {0};
  px_tensor_view *views = NULL;
  px_meta *all = px_arena_alloc(&arena, metadata_count + 1, sizeof *all);
  px_status status =
      all ? make_views(path, part, &arena, &views, err) : px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", path);
  if (status == PX_OK) {
    all[0] = (px_meta){"format", "pt"};
    if (metadata_count) memcpy(all + 1, metadata, metadata_count * sizeof *all);
    qsort(all, metadata_count + 1, sizeof *all, by_key);
    status = px_safetensors_write(path, views, part->tensor_count, all, metadata_count + 1, err);
  }
  px_arena_free(&arena);
  return status;
}

/* A folder of one part has one configuration. */
static px_status check_place(const char *path, px_part_kind kind, px_error *err) {
  const char *other = kind >= PX_PART_BIAS ? "adapter_config.json" : "pfx.json";
  px_buf file = {0};
  px_buf_printf(&file, "%s/%s", path, other);
  bool found = !file.failed && px_file_exists(file.data);
  px_buf_free(&file);
  if (!found) return PX_OK;
  return px_fail(err, PX_INVALID, "%s: holds %s of another adapter; write to another folder", path, other);
}

static px_status write_files(const char *path, const px_adapter_part *part, const px_buf *json, const px_meta *metadata,
                             size_t metadata_count, px_error *err) {
  px_buf file = {0};
  px_buf_printf(&file, "%s/%s", path, px_adapter_model_name(part->kind));
  px_status status = file.failed ? px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", path) : PX_OK;
  /* The config comes last: a new folder that has one is complete. */
  if (status == PX_OK) status = write_model(file.data, part, metadata, metadata_count, err);
  file.len = 0;
  px_buf_printf(&file, "%s/%s", path, px_adapter_config_name(part->kind));
  if (status == PX_OK && file.failed) status = px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", path);
  if (status == PX_OK) status = px_file_write(file.data, json->data, json->len, err);
  px_buf_free(&file);
  return status;
}

px_status px_adapter_part_write(const char *path, const px_adapter_part *part, const px_meta *metadata,
                                size_t metadata_count, px_error *err) {
  if ((unsigned)part->kind >= PX_PART_KINDS ||
      (part->dtype != PX_F32 && part->dtype != PX_F16 && part->dtype != PX_BF16))
    return px_fail(err, PX_INVALID, "%s: kind %d with tensors of type %s has no form on disk", path, (int)part->kind,
                   px_dtype_name(part->dtype));
  PX_TRY(check_config(path, part, err));
  for (size_t i = 0; i < part->tensor_count; i++)
    if (part->tensors[i].dims < 1 || part->tensors[i].dims > 2)
      return px_fail(err, PX_INVALID, "%s: a tensor of %d dimensions has no form on disk", path, part->tensors[i].dims);
  PX_TRY(px_part_check(part, path, PX_INVALID, err));
  PX_TRY(px_part_check_layers(part, path, PX_INVALID, err));
  PX_TRY(check_values(path, part, err));
  PX_TRY(check_place(path, part->kind, err));
  px_buf json = {0};
  px_status status = px_part_config_make(path, part, &json, err);
  if (status == PX_OK) status = px_dir_make(path, err);
  if (status == PX_OK) status = write_files(path, part, &json, metadata, metadata_count, err);
  px_buf_free(&json);
  return status;
}
