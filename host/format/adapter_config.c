/* SPDX-License-Identifier: MIT
 * What an adapter's JSON says: PEFT's adapter_config.json of every kind, and pfx.json of a delta. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/adapter_internal.h"

/* Above any real size, and small enough that products of three fit int64. */
enum { SIZE_LIMIT = 1 << 20, NAMES_LIMIT = 1 << 14 };

/* Per kind, the fields that pfx obeys or that cannot change a result. */
#define EVERY_FIELD                                                                                     \
  "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", \
      "runtime_config" /* PEFT ignores it too */, "task_type"
#define PROMPT_FIELDS \
  EVERY_FIELD, "num_attention_heads", "num_layers", "num_transformer_submodules", "num_virtual_tokens", "token_dim"
#define PREFIX_FIELDS PROMPT_FIELDS, "encoder_hidden_size", "init_weights", "prefix_projection", "num_frozen_tokens"

static const char *const prefix_fields[] = {PREFIX_FIELDS};
static const char *const layers_fields[] = {PREFIX_FIELDS, "layers"};
static const char *const prompt_fields[] = {PROMPT_FIELDS, "prompt_tuning_init", "prompt_tuning_init_text",
                                            "tokenizer_kwargs", "tokenizer_name_or_path"};
static const char *const encoder_fields[] = {PROMPT_FIELDS, "encoder_dropout", "encoder_hidden_size",
                                             "encoder_num_layers", "encoder_reparameterization_type"};
static const char *const lora_fields[] = {
    EVERY_FIELD,
    "bias" /* below */,
    "fan_in_fan_out",
    "init_lora_weights" /* below */,
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "qalora_group_size", /* without meaning while megatron_config and use_qalora are off */
    "r",
    "target_modules",
    "use_rslora"};
static const char *const ia3_fields[] = {EVERY_FIELD, "fan_in_fan_out", "feedforward_modules", "init_ia3_weights",
                                         "target_modules"};
static const char *const norm_fields[] = {EVERY_FIELD, "target_modules"};

static const struct {
  const char *type;
  px_part_kind kind;
  const char *const *fields;
  size_t field_count;
} types[] = {
#define FIELDS(list) list, sizeof list / sizeof *list
    {"PREFIX_TUNING", PX_PART_PREFIX, FIELDS(prefix_fields)},
    {"CARTRIDGE", PX_PART_PREFIX, FIELDS(prefix_fields)},
    {"PFX_PREFIX_LAYERS", PX_PART_PREFIX, FIELDS(layers_fields)},
    {"PROMPT_TUNING", PX_PART_PROMPT, FIELDS(prompt_fields)},
    {"P_TUNING", PX_PART_PROMPT, FIELDS(encoder_fields)},
    {"LORA", PX_PART_LORA, FIELDS(lora_fields)},
    {"IA3", PX_PART_IA3, FIELDS(ia3_fields)},
    {"LN_TUNING", PX_PART_NORM, FIELDS(norm_fields)},
#undef FIELDS
};
enum { TYPE_COUNT = sizeof types / sizeof *types };

/* Fields of PEFT's that change what an adapter computes, and why pfx cannot follow. */
static const struct {
  const char *key, *reason;
} refused[] = {
    {"alora_invocation_tokens", "pfx does not switch an adapter on within a row"},
    {"alpha_pattern", "pfx has one lora_alpha for all modules"},
    {"arrow_config", "pfx does not route between adapters"},
    {"exclude_modules",
     "pfx takes the modules that target_modules names and no exceptions; name those that are adapted"},
    {"ensure_weight_tying", "pfx adapts no tied embeddings"},
    {"kasa_config", "pfx has LoRA's plain scale alone"},
    {"layer_replication", "pfx does not repeat a model's layers"},
    {"layers_to_transform", "pfx adapts a module in all layers; name single modules in target_modules instead"},
    {"layers_pattern", "pfx adapts a module in all layers; name single modules in target_modules instead"},
    {"lora_bias", "pfx has no bias beside lora_B"},
    {"megatron_config", "pfx does not split layers as Megatron does"},
    {"monteclora_config", "pfx has plain LoRA alone"},
    {"rank_pattern", "pfx has one rank for all modules"},
    {"target_parameters", "pfx adapts modules, not single parameters"},
    {"trainable_token_indices", "pfx trains no single rows of the vocabulary"},
    {"use_bdlora", "pfx has plain LoRA alone, no block-diagonal one"},
    {"use_dora", "pfx does not scale weights by their norms, as DoRA does"},
    {"use_qalora", "pfx has plain LoRA alone"},
    {"velora_config", "pfx has plain LoRA alone"},
};

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
px_status px_adapter_refuse_unknown(const json_t *object, const char *name, const char *const *known, size_t count,
                                    px_part_kind kind, px_error *err) {
  const char *key;
  json_t *value;
  bool modules = kind == PX_PART_LORA || kind == PX_PART_IA3 || kind == PX_PART_NORM;
  json_object_foreach((json_t *)(uintptr_t)object, key, value) {
    size_t i = 0;
    while (i < count && strcmp(known[i], key) != 0) i++;
    if (i < count || is_default(value)) continue;
    if (strcmp(key, "modules_to_save") == 0)
      return px_fail(err, PX_BAD_FILE,
                     "%s: field \"modules_to_save\" is set; pfx does not read modules that were trained beside %s",
                     name, kind == PX_PART_PREFIX ? "a prefix" : "an adapter");
    for (i = 0; modules && i < sizeof refused / sizeof *refused; i++)
      if (strcmp(refused[i].key, key) == 0)
        return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" is set; %s", name, key, refused[i].reason);
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

/* Copies the string, so that it outlives the object. */
static px_status read_text(const json_t *object, const char *name, const char *key, const char *fallback,
                           px_arena *arena, const char **out, px_error *err) {
  const char *text;
  *out = NULL;
  PX_TRY(px_json_str(object, name, key, fallback, &text, err));
  if (!text) return PX_OK;
  *out = px_arena_strdup(arena, text);
  return *out ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory for an adapter's configuration");
}

/* Names of modules. */
static px_status read_names(const json_t *object, const char *name, const char *key, bool needed, px_arena *arena,
                            px_name_list *out, px_error *err) {
  const json_t *array = json_object_get(object, key);
  size_t count = json_array_size(array);
  if (json_is_string(array))
    return px_fail(err, PX_BAD_FILE,
                   "%s: field \"%s\" is a pattern; pfx reads a list of names: write the modules that it matches", name,
                   key);
  if ((array && !json_is_null(array) && !json_is_array(array)) || count > NAMES_LIMIT || (needed && count == 0))
    return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" must be a list of module names%s", name, key,
                   needed ? ", at least one" : "");
  const char **items = px_arena_alloc(arena, count, sizeof *items);
  for (size_t i = 0; items && i < count; i++) {
    const json_t *item = json_array_get(array, i);
    const char *text = json_string_value(item);
    if (!text || !*text || !px_name_is_plain(text, json_string_length(item)))
      return px_fail(err, PX_BAD_FILE, "%s: field \"%s\": item %zu must be the name of a module", name, key, i);
    items[i] = px_arena_strdup(arena, text);
    if (!items[i]) items = NULL;
  }
  if (!items) return px_fail(err, PX_NO_MEMORY, "no memory for an adapter's configuration");
  *out = (px_name_list){.items = items, .count = count};
  return PX_OK;
}

/* PFX_PREFIX_LAYERS: ascending indices below num_layers. */
static px_status read_layers(const json_t *object, const char *name, px_arena *arena, px_adapter_config *c,
                             px_error *err) {
  const json_t *array = json_object_get(object, "layers");
  size_t count = json_array_size(array);
  int32_t *items = px_arena_alloc(arena, count, sizeof *items);
  if (!items) return px_fail(err, PX_NO_MEMORY, "no memory for an adapter's configuration");
  bool good = count > 0 && count <= (size_t)c->layers;
  for (size_t i = 0; good && i < count; i++) {
    const json_t *item = json_array_get(array, i);
    int64_t layer = json_is_integer(item) ? json_integer_value(item) : -1;
    good = layer >= 0 && layer < c->layers && (i == 0 || layer > items[i - 1]);
    if (good) items[i] = (int32_t)layer;
  }
  if (!good)
    return px_fail(err, PX_BAD_FILE, "%s: field \"layers\" must list layers from 0 to %" PRId64 ", ascending", name,
                   c->layers - 1);
  c->chosen_layers = items;
  c->chosen_count = count;
  return PX_OK;
}

static px_status read_prompt_like(const json_t *object, const char *name, px_part_kind kind, px_arena *arena,
                                  px_adapter_config *c, px_error *err) {
  bool prefix = kind == PX_PART_PREFIX;
  PX_TRY(read_size(object, name, "num_virtual_tokens", 1, &c->virtual_tokens, err));
  PX_TRY(read_size(object, name, "num_layers", prefix ? 1 : 0, &c->layers, err));
  PX_TRY(read_size(object, name, "num_attention_heads", prefix ? 1 : 0, &c->heads, err));
  PX_TRY(read_size(object, name, "token_dim", 1, &c->token_dim, err));
  PX_TRY(read_size(object, name, "encoder_hidden_size", 0, &c->hidden_size, err));
  if (!prefix) {
    PX_TRY(read_text(object, name, "prompt_tuning_init", NULL, arena, &c->prompt_init, err));
    PX_TRY(read_text(object, name, "prompt_tuning_init_text", NULL, arena, &c->prompt_init_text, err));
    return read_text(object, name, "tokenizer_name_or_path", NULL, arena, &c->tokenizer_name, err);
  }
  PX_TRY(read_text(object, name, "init_weights", NULL, arena, &c->init_weights, err));
  PX_TRY(read_size(object, name, "num_frozen_tokens", 0, &c->frozen_tokens, err));
  if (c->token_dim % c->heads)
    return px_fail(err, PX_BAD_FILE, "%s: token_dim %" PRId64 " is no multiple of num_attention_heads %" PRId64, name,
                   c->token_dim, c->heads);
  if (c->frozen_tokens > c->virtual_tokens)
    return px_fail(err, PX_BAD_FILE, "%s: num_frozen_tokens %" PRId64 " is more than num_virtual_tokens %" PRId64, name,
                   c->frozen_tokens, c->virtual_tokens);
  return strcmp(c->peft_type, "PFX_PREFIX_LAYERS") == 0 ? read_layers(object, name, arena, c, err) : PX_OK;
}

/* Some ways to start LoRA change the base model's weights, which its files do not hold. */
static px_status check_lora_start(const json_t *object, const char *name, px_error *err) {
  static const char *const harmless[] = {"gaussian", "eva", "orthogonal"};
  const json_t *start = json_object_get(object, "init_lora_weights");
  if (!start || !json_is_string(start)) return PX_OK;
  const char *text = json_string_value(start);
  for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
    if (strcmp(harmless[i], text) == 0) return PX_OK;
  return px_fail(
      err, PX_BAD_FILE,
      "%s: field \"init_lora_weights\" is \"%s\", a start that changes the base model's weights, which the "
      "adapter does not hold; convert it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion)",
      name, px_name_is_plain(text, strlen(text)) ? text : "?");
}

static px_status read_lora(const json_t *object, const char *name, px_arena *arena, px_adapter_config *c,
                           px_error *err) {
  const char *bias;
  PX_TRY(px_json_str(object, name, "bias", "none", &bias, err));
  if (strcmp(bias, "none") != 0)
    return px_fail(err, PX_BAD_FILE,
                   "%s: field \"bias\" is set; pfx does not read biases that were trained beside LoRA, only \"none\"",
                   name);
  PX_TRY(check_lora_start(object, name, err));
  PX_TRY(read_size(object, name, "r", 1, &c->rank, err));
  PX_TRY(px_json_num(object, name, "lora_alpha", 8, &c->alpha, err));
  PX_TRY(px_json_num(object, name, "lora_dropout", 0, &c->dropout, err));
  PX_TRY(px_json_bool(object, name, "use_rslora", false, &c->rank_stabilised, err));
  if (!isfinite(c->alpha)) return px_fail(err, PX_BAD_FILE, "%s: field \"lora_alpha\" must be finite", name);
  if (!(c->dropout >= 0 && c->dropout < 1))
    return px_fail(err, PX_BAD_FILE, "%s: field \"lora_dropout\" must be from 0 to below 1", name);
  PX_TRY(px_json_bool(object, name, "fan_in_fan_out", false, &c->fan_in_fan_out, err));
  return read_names(object, name, "target_modules", true, arena, &c->target_modules, err);
}

static px_status read_ia3(const json_t *object, const char *name, px_arena *arena, px_adapter_config *c,
                          px_error *err) {
  PX_TRY(px_json_bool(object, name, "fan_in_fan_out", false, &c->fan_in_fan_out, err));
  PX_TRY(read_names(object, name, "target_modules", true, arena, &c->target_modules, err));
  return read_names(object, name, "feedforward_modules", false, arena, &c->feedforward_modules, err);
}

/* Sets *type to an index of `types`. */
static px_status find_type(const char *peft_type, const char *name, size_t *type, px_error *err) {
  if (!peft_type)
    return px_fail(err, PX_BAD_FILE, "%s: field \"peft_type\" is missing; is it an adapter of PEFT?", name);
  for (*type = 0; *type < TYPE_COUNT; ++*type)
    if (strcmp(types[*type].type, peft_type) == 0) return PX_OK;
  return px_fail(
      err, PX_BAD_FILE,
      "%s: field \"peft_type\" is \"%s\"; pfx reads PREFIX_TUNING, CARTRIDGE, PROMPT_TUNING, P_TUNING, LORA, IA3 "
      "and LN_TUNING",
      name, px_name_is_plain(peft_type, strlen(peft_type)) ? peft_type : "?");
}

static px_status check_task(const json_t *object, const char *name, const char *task_type, px_error *err) {
  if (strcmp(task_type, "CAUSAL_LM") != 0)
    return px_fail(err, PX_BAD_FILE, "%s: field \"task_type\" is \"%s\"; pfx reads CAUSAL_LM", name,
                   px_name_is_plain(task_type, strlen(task_type)) ? task_type : "?");
  int64_t submodules = 1;
  PX_TRY(px_json_int(object, name, "num_transformer_submodules", 1, &submodules, err));
  if (submodules != 1)
    return px_fail(err, PX_BAD_FILE,
                   "%s: field \"num_transformer_submodules\" is %" PRId64
                   "; pfx reads 1: a prefix for an encoder-decoder model does not fit its models",
                   name, submodules);
  return PX_OK;
}

/* What PEFT's files and pfx.json have in common. */
static px_status read_origin(const json_t *object, const char *name, px_arena *arena, px_adapter_config *c,
                             px_error *err) {
  PX_TRY(read_text(object, name, "base_model_name_or_path", NULL, arena, &c->base_model, err));
  PX_TRY(read_text(object, name, "revision", NULL, arena, &c->revision, err));
  PX_TRY(read_text(object, name, "task_type", "CAUSAL_LM", arena, &c->task_type, err));
  return PX_OK;
}

px_status px_adapter_config_read(const json_t *object, const char *name, px_arena *arena, px_part_kind *kind,
                                 px_adapter_config *c, px_error *err) {
  size_t type;
  *c = (px_adapter_config){0};
  if (!json_is_object(object)) return px_fail(err, PX_BAD_FILE, "%s: must hold a JSON object", name);
  PX_TRY(read_text(object, name, "peft_type", NULL, arena, &c->peft_type, err));
  PX_TRY(read_origin(object, name, arena, c, err));
  PX_TRY(find_type(c->peft_type, name, &type, err));
  PX_TRY(check_task(object, name, c->task_type, err));
  *kind = types[type].kind;
  PX_TRY(px_adapter_refuse_unknown(object, name, types[type].fields, types[type].field_count, *kind, err));
  switch (*kind) {
    case PX_PART_LORA:
      return read_lora(object, name, arena, c, err);
    case PX_PART_IA3:
      return read_ia3(object, name, arena, c, err);
    case PX_PART_NORM:
      return read_names(object, name, "target_modules", true, arena, &c->target_modules, err);
    default:
      return read_prompt_like(object, name, *kind, arena, c, err);
  }
}

px_status px_adapter_format_check(const json_t *object, const char *name, px_error *err) {
  int64_t format = 0;
  PX_TRY(px_json_int(object, name, "format", 0, &format, err));
  if (format != PX_ADAPTER_FORMAT)
    return px_fail(err, PX_BAD_FILE, "%s: field \"format\" is %" PRId64 "; this pfx reads %d", name, format,
                   PX_ADAPTER_FORMAT);
  return PX_OK;
}

px_status px_delta_config_read(const json_t *object, const char *name, px_arena *arena, px_part_kind *kind,
                               px_adapter_config *c, px_error *err) {
  static const char *const fields[] = {"base_model_name_or_path", "format", "part", "revision", "task_type"};
  const char *part;
  char *end = NULL;
  *c = (px_adapter_config){.peft_type = "PFX_DELTA"};
  PX_TRY(px_adapter_format_check(object, name, err));
  PX_TRY(px_json_str(object, name, "part", "", &part, err));
  PX_TRY(px_adapter_refuse_unknown(object, name, fields, sizeof fields / sizeof *fields, PX_PART_FULL, err));
  PX_TRY(read_origin(object, name, arena, c, err));
  PX_TRY(check_task(object, name, c->task_type, err));
  if (strncmp(part, "top:", 4) == 0 && part[4] >= '1' && part[4] <= '9') c->top_layers = strtoll(part + 4, &end, 10);
  if (strcmp(part, "bias") == 0)
    *kind = PX_PART_BIAS;
  else if (strcmp(part, "full") == 0)
    *kind = PX_PART_FULL;
  else if (end && *end == 0 && c->top_layers <= SIZE_LIMIT)
    *kind = PX_PART_TOP;
  else
    return px_fail(err, PX_BAD_FILE, "%s: field \"part\" must be \"bias\", \"top:K\" or \"full\"", name);
  return PX_OK;
}
