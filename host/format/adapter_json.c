/* SPDX-License-Identifier: MIT
 * The JSON of a part as it is written: PEFT's adapter_config.json of every kind, key for key, and a delta's pfx.json. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "format/adapter_internal.h"

/* The version of PEFT whose files these are. */
#define PEFT_VERSION "0.21.2"

/* An object under construction; the first field that fails is remembered. */
typedef struct maker {
  json_t *object;
  const char *failed;
} maker;

static void set(maker *m, const char *key, json_t *value) {
  if (json_object_set_new(m->object, key, value) != 0 && !m->failed) m->failed = key;
}

static void set_text(maker *m, const char *key, const char *text) {
  set(m, key, text ? json_string(text) : json_null());
}
static void set_flag(maker *m, const char *key, bool value) { set(m, key, json_boolean(value)); }
static void set_int(maker *m, const char *key, int64_t value) { set(m, key, json_integer(value)); }

static void set_int_or_null(maker *m, const char *key, int64_t value) {
  set(m, key, value ? json_integer(value) : json_null());
}

static void set_names(maker *m, const char *key, px_name_list names) {
  json_t *list = json_array();
  for (size_t i = 0; i < names.count; i++)
    if (json_array_append_new(list, json_string(names.items[i])) != 0) m->failed = key;
  set(m, key, list);
}

/* Features that are off. */
static void set_nulls(maker *m, const char *const *keys) {
  for (; *keys; keys++) set(m, *keys, json_null());
}

static void make_prompt_like(maker *m, const px_adapter_config *c) {
  set_int_or_null(m, "num_attention_heads", c->heads);
  set_int_or_null(m, "num_layers", c->layers);
  set_int(m, "num_transformer_submodules", 1);
  set_int(m, "num_virtual_tokens", c->virtual_tokens);
  set_int(m, "token_dim", c->token_dim);
}

static void make_prefix(maker *m, const px_adapter_config *c) {
  make_prompt_like(m, c);
  if (strcmp(c->peft_type, "CARTRIDGE") == 0) {
    set_int(m, "num_frozen_tokens", c->frozen_tokens);
    return;
  }
  set_int_or_null(m, "encoder_hidden_size", c->hidden_size);
  set_text(m, "init_weights", c->init_weights);
  set_flag(m, "prefix_projection", false);
  if (!c->chosen_count) return;
  json_t *layers = json_array();
  for (size_t i = 0; i < c->chosen_count; i++) json_array_append_new(layers, json_integer(c->chosen_layers[i]));
  set(m, "layers", layers);
}

static void make_prompt(maker *m, const px_adapter_config *c) {
  make_prompt_like(m, c);
  set_text(m, "prompt_tuning_init", c->prompt_init ? c->prompt_init : "RANDOM");
  set_text(m, "prompt_tuning_init_text", c->prompt_init_text);
  set_text(m, "tokenizer_name_or_path", c->tokenizer_name);
  set(m, "tokenizer_kwargs", json_null());
}

static void make_lora(maker *m, const px_adapter_config *c) {
  static const char *const nulls[] = {"alora_invocation_tokens",
                                      "arrow_config",
                                      "corda_config",
                                      "eva_config",
                                      "exclude_modules",
                                      "kasa_config",
                                      "layer_replication",
                                      "layers_pattern",
                                      "layers_to_transform",
                                      "lora_ga_config",
                                      "megatron_config",
                                      "monteclora_config",
                                      "target_parameters",
                                      "trainable_token_indices",
                                      "use_bdlora",
                                      "velora_config",
                                      NULL};
  set_nulls(m, nulls);
  set(m, "alpha_pattern", json_object());
  set_text(m, "bias", "none");
  set_flag(m, "ensure_weight_tying", false);
  set_flag(m, "fan_in_fan_out", c->fan_in_fan_out);
  set_flag(m, "init_lora_weights", true);
  set(m, "loftq_config", json_object());
  /* PEFT's default is an integer, and so is what people write. */
  bool whole = floor(c->alpha) == c->alpha && fabs(c->alpha) < 1e15;
  set(m, "lora_alpha", whole ? json_integer((json_int_t)c->alpha) : json_real(c->alpha));
  set_flag(m, "lora_bias", false);
  set(m, "lora_dropout", json_real(c->dropout));
  set_text(m, "megatron_core", "megatron.core");
  set_int(m, "qalora_group_size", 16);
  set_int(m, "r", c->rank);
  set(m, "rank_pattern", json_object());
  set_names(m, "target_modules", c->target_modules);
  set_flag(m, "use_dora", false);
  set_flag(m, "use_qalora", false);
  set_flag(m, "use_rslora", c->rank_stabilised);
}

static void make_ia3(maker *m, const px_adapter_config *c) {
  set(m, "exclude_modules", json_null());
  set_flag(m, "fan_in_fan_out", c->fan_in_fan_out);
  set_names(m, "feedforward_modules", c->feedforward_modules);
  set_flag(m, "init_ia3_weights", true);
  set_names(m, "target_modules", c->target_modules);
}

static void make_norm(maker *m, const px_adapter_config *c) {
  set(m, "exclude_modules", json_null());
  set_names(m, "target_modules", c->target_modules);
}

static void make_delta(maker *m, const px_adapter_part *part) {
  char name[32];
  if (part->kind == PX_PART_TOP)
    snprintf(name, sizeof name, "top:%" PRId64, part->config.top_layers);
  else
    snprintf(name, sizeof name, "%s", px_part_kind_name(part->kind));
  set_int(m, "format", PX_ADAPTER_FORMAT);
  set_text(m, "part", name);
}

/* The peft_type that belongs to the part, whatever the config was read from. */
static const char *type_of(const px_adapter_part *part) {
  static const char *const types[PX_PART_KINDS] = {
      [PX_PART_PROMPT] = "PROMPT_TUNING", [PX_PART_LORA] = "LORA", [PX_PART_IA3] = "IA3", [PX_PART_NORM] = "LN_TUNING"};
  if (part->kind != PX_PART_PREFIX) return types[part->kind];
  if (part->config.chosen_count) return "PFX_PREFIX_LAYERS";
  const char *given = part->config.peft_type;
  return part->config.frozen_tokens || (given && strcmp(given, "CARTRIDGE") == 0) ? "CARTRIDGE" : "PREFIX_TUNING";
}

static void make_peft(maker *m, const px_adapter_part *part) {
  px_adapter_config c = part->config;
  c.peft_type = type_of(part);
  set(m, "auto_mapping", json_null());
  set_flag(m, "inference_mode", true);
  set(m, "modules_to_save", json_null());
  set_text(m, "peft_type", c.peft_type);
  set_text(m, "peft_version", PEFT_VERSION);
  switch (part->kind) {
    case PX_PART_PREFIX:
      make_prefix(m, &c);
      break;
    case PX_PART_PROMPT:
      make_prompt(m, &c);
      break;
    case PX_PART_LORA:
      make_lora(m, &c);
      break;
    case PX_PART_IA3:
      make_ia3(m, &c);
      break;
    default:
      make_norm(m, &c);
      break;
  }
}

px_status px_part_config_make(const char *path, const px_adapter_part *part, px_buf *out, px_error *err) {
  maker m = {.object = json_object()};
  set_text(&m, "base_model_name_or_path", part->config.base_model);
  set_text(&m, "revision", part->config.revision);
  set_text(&m, "task_type", part->config.task_type);
  if (part->kind >= PX_PART_BIAS)
    make_delta(&m, part);
  else
    make_peft(&m, part);
  /* The only thing that fails apart from memory is a string that is not UTF-8. */
  px_status status = m.failed ? px_fail(err, PX_INVALID, "%s: field \"%s\" is not UTF-8", path, m.failed) : PX_OK;
  if (status == PX_OK) status = px_json_dump(m.object, out, err);
  json_decref(m.object);
  return status;
}
