/* SPDX-License-Identifier: MIT
 * A model family, and the readers its config function uses, which serve config.json and GGUF metadata alike. */
#ifndef PX_MODEL_FAMILY_H
#define PX_MODEL_FAMILY_H

#include "model/config.h"

/* Exactly one of json and gguf is set. */
typedef struct px_settings {
  const char *path, *arch; /* GGUF keys are "<arch>.<key>" */
  const json_t *json;
  px_gguf *gguf;
  px_arena *arena;
} px_settings;

/* A setting's name in config.json and in GGUF metadata (without the architecture); NULL: not there. */
typedef struct px_key {
  const char *hf, *gguf;
} px_key;

typedef struct px_family {
  const char *name;
  px_status (*config)(px_config *config, const px_settings *settings, px_error *err);
  const px_names *hf, *gguf;
} px_family;

const px_family *px_family_find(const char *name); /* NULL: unknown */

/* fallback 0 with min > 0: the setting is required. Out of [min, max]: PX_BAD_FILE with the field's name. */
px_status px_settings_int(const px_settings *s, px_key key, int64_t fallback, int64_t min, int64_t max, int32_t *out, px_error *err);
px_status px_settings_num(const px_settings *s, px_key key, double fallback, double *out, px_error *err);
/* config.json alone; a GGUF file takes the fallback. */
px_status px_settings_bool(const px_settings *s, const char *key, bool fallback, bool *out, px_error *err);
/* Refuses any other value than `value`. */
px_status px_settings_must(const px_settings *s, const char *key, bool value, px_error *err);
px_status px_settings_act(const px_settings *s, const char *key, const char *fallback, px_act_kind *out, px_error *err);
px_status px_settings_rope(const px_settings *s, px_config *c, px_error *err);
/* sliding_window with, unless `always`, use_sliding_window, max_window_layers and layer_types. */
px_status px_settings_windows(const px_settings *s, px_config *c, bool always, px_error *err);

#endif
