/* SPDX-License-Identifier: MIT
 * The tensors of an adapter: their names in its file, and what must hold between them and its configuration. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/adapter_internal.h"

static const char peft_prefix[] = "base_model.model.";

static const char *const kind_names[PX_PART_KINDS] = {"prefix", "prompt", "lora", "ia3", "norm", "bias", "top", "full"};

const char *px_part_kind_name(px_part_kind kind) { return (unsigned)kind < PX_PART_KINDS ? kind_names[kind] : "?"; }

bool px_part_kind_find(const char *name, px_part_kind *kind) {
  for (int i = 0; i < PX_PART_KINDS; i++) {
    if (strcmp(kind_names[i], name) != 0) continue;
    *kind = (px_part_kind)i;
    return true;
  }
  return false;
}

static bool is_delta(px_part_kind kind) { return kind >= PX_PART_BIAS; }
static bool is_prompt_like(px_part_kind kind) { return kind == PX_PART_PREFIX || kind == PX_PART_PROMPT; }

const char *px_adapter_config_name(px_part_kind kind) { return is_delta(kind) ? "pfx.json" : "adapter_config.json"; }

const char *px_adapter_model_name(px_part_kind kind) {
  return is_delta(kind) ? "pfx_delta.safetensors" : "adapter_model.safetensors";
}

const px_part_tensor *px_part_find(const px_adapter_part *part, const char *module, const char *role) {
  for (size_t i = 0; i < part->tensor_count; i++)
    if (strcmp(part->tensors[i].role, role) == 0 && strcmp(part->tensors[i].module, module) == 0)
      return &part->tensors[i];
  return NULL;
}

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), m = strlen(end);
  return n >= m && strcmp(text + n - m, end) == 0;
}

static bool matches(const char *module, const char *name) {
  size_t n = strlen(module), m = strlen(name);
  return ends_with(module, name) && (n == m || module[n - m - 1] == '.');
}

bool px_name_list_matches(px_name_list list, const char *module) {
  for (size_t i = 0; i < list.count; i++)
    if (matches(module, list.items[i])) return true;
  return false;
}

/* --- names --- */

/* What stands behind the module's name. */
static const struct {
  px_part_kind kind;
  const char *role, *ending;
} endings[] = {
    {PX_PART_LORA, "lora_A", ".lora_A.weight"},
    {PX_PART_LORA, "lora_B", ".lora_B.weight"},
    {PX_PART_IA3, "ia3_l", ".ia3_l"},
    {PX_PART_NORM, "weight", ".ln_tuning_layers.weight"},
    {PX_PART_NORM, "bias", ".ln_tuning_layers.bias"},
    {PX_PART_BIAS, "bias", ".bias"},
    {PX_PART_TOP, "weight", ".weight"},
    {PX_PART_TOP, "bias", ".bias"},
    {PX_PART_FULL, "weight", ".weight"},
    {PX_PART_FULL, "bias", ".bias"},
};
enum { ENDING_COUNT = sizeof endings / sizeof *endings };

char *px_part_tensor_name(const px_part_tensor *t, px_part_kind kind, px_arena *arena) {
  if (is_prompt_like(kind)) return px_arena_strdup(arena, t->role);
  for (size_t i = 0; i < ENDING_COUNT; i++)
    if (endings[i].kind == kind && strcmp(endings[i].role, t->role) == 0)
      return px_arena_printf(arena, "%s%s%s", is_delta(kind) ? "" : peft_prefix, t->module, endings[i].ending);
  return px_arena_printf(arena, "%s.%s", t->module, t->role);
}

/* Sets module and role from the name in the file. */
static px_status parse_name(const px_tensor_view *view, px_part_kind kind, px_arena *arena, px_part_tensor *t,
                            px_error *err) {
  const char *name = view->name;
  if (is_prompt_like(kind)) {
    if (strcmp(name, "prompt_embeddings") != 0)
      return px_fail(err, PX_BAD_FILE, "%s: holds tensor \"%s\"; pfx reads \"prompt_embeddings\" and nothing else",
                     view->file, name);
    t->module = "";
    t->role = "prompt_embeddings";
    return PX_OK;
  }
  size_t skip = is_delta(kind) ? 0 : sizeof peft_prefix - 1;
  for (size_t i = 0; i < ENDING_COUNT; i++) {
    size_t end = strlen(endings[i].ending);
    if (endings[i].kind != kind || strncmp(name, peft_prefix, skip) != 0 || !ends_with(name, endings[i].ending) ||
        strlen(name) <= skip + end)
      continue;
    t->role = endings[i].role;
    t->module = px_arena_strndup(arena, name + skip, strlen(name) - skip - end);
    return t->module ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory for an adapter");
  }
  static const char *const wanted[PX_PART_KINDS] = {
      [PX_PART_LORA] = "base_model.model.<module>.lora_A.weight and .lora_B.weight",
      [PX_PART_IA3] = "base_model.model.<module>.ia3_l",
      [PX_PART_NORM] = "base_model.model.<module>.ln_tuning_layers.weight and .bias",
      [PX_PART_BIAS] = "<module>.bias",
      [PX_PART_TOP] = "<module>.weight and .bias",
      [PX_PART_FULL] = "<module>.weight and .bias"};
  return px_fail(err, PX_BAD_FILE, "%s: holds tensor \"%s\"; pfx reads %s here and nothing else", view->file, name,
                 wanted[kind]);
}

/* --- reading --- */

/* Copies the values as float32; finite ones alone. */
static px_status read_values(const px_tensor_view *view, px_arena *arena, px_part_tensor *t, px_error *err) {
  int64_t count = px_tensor_elements(view), columns = view->dims == 2 ? view->shape[1] : 1;
  float *values = px_arena_alloc(arena, (size_t)count, sizeof *values);
  if (!values) return px_fail(err, PX_NO_MEMORY, "%s: no memory for tensor \"%s\"", view->file, view->name);
  const uint8_t *from = view->data; /* not necessarily aligned */
  for (int64_t i = 0; i < count; i++) {
    uint16_t half;
    if (view->dtype == PX_F32) {
      memcpy(&values[i], from + 4 * i, sizeof *values);
    } else {
      memcpy(&half, from + 2 * i, sizeof half);
      values[i] = view->dtype == PX_F16 ? px_f16_to_f32(half) : px_bf16_to_f32(half);
    }
    if (isfinite(values[i])) continue;
    if (view->dims == 2)
      return px_fail(err, PX_BAD_FILE,
                     "%s: tensor \"%s\" is not finite at row %" PRId64 ", column %" PRId64
                     "; its training failed, train it again",
                     view->file, view->name, i / columns, i % columns);
    return px_fail(err, PX_BAD_FILE,
                   "%s: tensor \"%s\" is not finite at %" PRId64 "; its training failed, train it again", view->file,
                   view->name, i);
  }
  t->values = values;
  return PX_OK;
}

static px_status check_dims(const px_tensor_view *view, px_part_kind kind, px_error *err) {
  int least = kind == PX_PART_NORM || is_delta(kind) ? 1 : 2,
      most = kind == PX_PART_NORM || kind == PX_PART_BIAS ? 1 : 2;
  if (view->dims >= least && view->dims <= most) return PX_OK;
  return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\" has %d dimensions; it must have %s", view->file, view->name,
                 view->dims,
                 least < most ? "1 or 2"
                 : most == 1  ? "1"
                              : "2");
}

static px_status check_type(const px_tensor_view *view, px_error *err) {
  if (view->dtype == PX_F32 || view->dtype == PX_F16 || view->dtype == PX_BF16) return PX_OK;
  return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\" has type %s; it must be f32, f16 or bf16", view->file, view->name,
                 px_dtype_name(view->dtype));
}

px_status px_part_tensors_read(const px_tensor_list *list, const char *file, px_arena *arena, px_adapter_part *part,
                               px_error *err) {
  px_part_tensor *tensors = px_arena_alloc(arena, list->count, sizeof *tensors);
  if (!tensors) return px_fail(err, PX_NO_MEMORY, "%s: no memory to read it", file);
  for (size_t i = 0; i < list->count; i++) {
    const px_tensor_view *view = &list->items[i];
    PX_TRY(parse_name(view, part->kind, arena, &tensors[i], err));
    PX_TRY(check_dims(view, part->kind, err));
    tensors[i].dims = view->dims;
    for (int d = 0; d < view->dims; d++) tensors[i].shape[d] = view->shape[d];
  }
  part->tensors = tensors;
  part->tensor_count = list->count;
  PX_TRY(px_part_check(part, file, PX_BAD_FILE, err));
  for (size_t i = 0; i < list->count; i++) {
    PX_TRY(check_type(&list->items[i], err));
    PX_TRY(read_values(&list->items[i], arena, &tensors[i], err));
  }
  part->dtype = list->items[0].dtype; /* there is one: checked */
  return px_part_check_layers(part, file, PX_BAD_FILE, err);
}

/* --- what must hold --- */

static px_status check_prompt_like(const px_adapter_part *part, const char *file, px_status refusal, px_error *err) {
  const px_adapter_config *c = &part->config;
  bool prefix = part->kind == PX_PART_PREFIX;
  int64_t columns = prefix ? 2 * c->layers * c->token_dim : c->token_dim;
  const px_part_tensor *t = px_part_find(part, "", "prompt_embeddings");
  if (!t) return px_fail(err, refusal, "%s: holds no tensor \"prompt_embeddings\"", file);
  if (part->tensor_count > 1) return px_fail(err, refusal, "%s: holds \"prompt_embeddings\" twice", file);
  if (t->shape[0] != c->virtual_tokens || t->shape[1] != columns)
    return px_fail(err, refusal,
                   "%s: tensor \"prompt_embeddings\" has shape [%" PRId64 ", %" PRId64
                   "], but adapter_config.json says [%" PRId64 ", %" PRId64 "] (num_virtual_tokens, %s)",
                   file, t->shape[0], t->shape[1], c->virtual_tokens, columns,
                   prefix ? "2 * num_layers * token_dim" : "token_dim");
  return PX_OK;
}

/* Whether the module has a tensor of this role too: in a file, which is sorted by name, it is a neighbour. */
static bool has_partner(const px_adapter_part *part, const px_part_tensor *t, const char *role) {
  for (int i = -1; i <= 1; i += 2) {
    if (t + i < part->tensors || t + i >= part->tensors + part->tensor_count) continue;
    if (strcmp(t[i].role, role) == 0 && strcmp(t[i].module, t->module) == 0) return true;
  }
  return px_part_find(part, t->module, role) != NULL;
}

px_status px_part_check_layers(const px_adapter_part *part, const char *file, px_status refusal, px_error *err) {
  const px_adapter_config *c = &part->config;
  if (part->kind != PX_PART_PREFIX || c->chosen_count == 0) return PX_OK;
  const float *row = part->tensors[0].values;
  for (int64_t p = 0; p < c->virtual_tokens; p++) {
    size_t next = 0;
    for (int64_t l = 0; l < c->layers; l++, row += 2 * c->token_dim) {
      if (next < c->chosen_count && c->chosen_layers[next] == l) {
        next++;
        continue;
      }
      for (int64_t i = 0; i < 2 * c->token_dim; i++)
        if (row[i] != 0)
          return px_fail(err, refusal,
                         "%s: tensor \"prompt_embeddings\" is not zero in layer %" PRId64
                         ", which \"layers\" leaves out",
                         file, l);
    }
  }
  return PX_OK;
}

/* Every A has its B, both of the rank that the configuration says. */
static px_status check_lora(const px_adapter_part *part, const px_part_tensor *t, const char *name, const char *file,
                            px_status refusal, px_error *err) {
  int64_t rank = part->config.rank;
  bool is_a = strcmp(t->role, "lora_A") == 0;
  if (t->shape[is_a ? 0 : 1] != rank || t->shape[is_a ? 1 : 0] < 1)
    return px_fail(err, refusal,
                   "%s: tensor \"%s\" has shape [%" PRId64 ", %" PRId64 "]; with r %" PRId64 " it must be [%s]", file,
                   name, t->shape[0], t->shape[1], rank, is_a ? "r, in" : "out, r");
  if (!has_partner(part, t, is_a ? "lora_B" : "lora_A"))
    return px_fail(err, refusal,
                   "%s: tensor \"%s\" is there, but no %s of that module; the adapter is incomplete, get it again",
                   file, name, is_a ? "lora_B" : "lora_A");
  return PX_OK;
}

/* PEFT's rule for feed-forward modules is looser than for targets: any end of the name. */
static bool is_feedforward(const px_adapter_config *c, const char *module) {
  for (size_t i = 0; i < c->feedforward_modules.count; i++)
    if (ends_with(module, c->feedforward_modules.items[i])) return true;
  return false;
}

static px_status check_ia3(const px_adapter_part *part, const px_part_tensor *t, const char *name, const char *file,
                           px_status refusal, px_error *err) {
  bool input = is_feedforward(&part->config, t->module);
  if (t->shape[input ? 0 : 1] != 1 || t->shape[input ? 1 : 0] < 1)
    return px_fail(err, refusal, "%s: tensor \"%s\" has shape [%" PRId64 ", %" PRId64 "]; %s it must be %s", file, name,
                   t->shape[0], t->shape[1], input ? "in feedforward_modules" : "outside feedforward_modules",
                   input ? "[1, in]" : "[out, 1]");
  return PX_OK;
}

static px_status check_one(const px_adapter_part *part, const px_part_tensor *t, const char *name, const char *file,
                           px_status refusal, px_error *err) {
  if (!is_delta(part->kind) && !px_name_list_matches(part->config.target_modules, t->module))
    return px_fail(err, refusal, "%s: tensor \"%s\" is of a module that target_modules does not name", file, name);
  if (part->kind == PX_PART_LORA) return check_lora(part, t, name, file, refusal, err);
  if (part->kind == PX_PART_IA3) return check_ia3(part, t, name, file, refusal, err);
  if (part->kind == PX_PART_NORM && strcmp(t->role, "bias") == 0 && !has_partner(part, t, "weight"))
    return px_fail(err, refusal,
                   "%s: tensor \"%s\" is there, but no weight of that norm; the adapter is incomplete, get it again",
                   file, name);
  return PX_OK;
}

/* Every name of target_modules has a tensor. */
static px_status check_targets(const px_adapter_part *part, const char *file, px_status refusal, px_error *err) {
  px_name_list targets = part->config.target_modules;
  for (size_t i = 0; i < targets.count; i++) {
    size_t k = 0;
    while (k < part->tensor_count && !matches(part->tensors[k].module, targets.items[i])) k++;
    if (k == part->tensor_count)
      return px_fail(err, refusal, "%s: holds no tensor for \"%s\", which target_modules names", file,
                     targets.items[i]);
  }
  return PX_OK;
}

px_status px_part_check(const px_adapter_part *part, const char *file, px_status refusal, px_error *err) {
  if (is_prompt_like(part->kind)) return check_prompt_like(part, file, refusal, err);
  if (part->tensor_count == 0) return px_fail(err, refusal, "%s: holds no tensors", file);
  px_arena arena = {0};
  px_status status = check_targets(part, file, refusal, err);
  for (size_t i = 0; i < part->tensor_count && status == PX_OK; i++) {
    const char *name = px_part_tensor_name(&part->tensors[i], part->kind, &arena);
    status = name ? check_one(part, &part->tensors[i], name, file, refusal, err)
                  : px_fail(err, PX_NO_MEMORY, "%s: no memory to check it", file);
  }
  px_arena_free(&arena);
  return status;
}
