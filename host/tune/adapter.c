/* SPDX-License-Identifier: MIT */
#include "tune/adapter.h"

#include <stdlib.h>

#include "core/hash.h"
#include "core/version.h"
#include "text/chat.h"

/* What its parts are together. */
static px_status take_parts(px_adapter *a, px_error *err) {
  int64_t tokens = 0;
  px_buf kind = {0};
  a->parts = a->folder.parts;
  a->part_count = (int)a->folder.count;
  for (int i = 0; i < a->part_count; i++) {
    const px_adapter_part *p = &a->parts[i];
    tokens += p->config.virtual_tokens; /* 0 where a part has none */
    if (p->kind == PX_PART_PREFIX) a->values = p->tensors[0].values;
    px_buf_printf(&kind, "%s%s", i ? "+" : "", p->config.peft_type);
  }
  a->kind = kind.failed ? NULL : px_arena_strdup(&a->folder.arena, kind.data);
  px_buf_free(&kind);
  if (!a->kind) return px_fail(err, PX_NO_MEMORY, "no memory for %s", a->path);
  if (tokens > INT32_MAX) return px_fail(err, PX_BAD_FILE, "%s: too many virtual tokens", a->path);
  a->tokens = (int32_t)tokens;
  return PX_OK;
}

px_status px_adapter_open(const char *path, px_adapter **out, px_error *err) {
  *out = NULL;
  px_adapter *a = px_calloc(1, sizeof *a);
  if (!a) return px_fail(err, PX_NO_MEMORY, "no memory");
  a->path = strdup(path);
  px_status status = a->path ? px_adapter_folder_open(path, &a->folder, err) : px_fail(err, PX_NO_MEMORY, "no memory for %s", path);
  if (status == PX_OK) status = take_parts(a, err);
  if (status != PX_OK) {
    px_adapter_close(a);
    return status;
  }
  *out = a;
  return PX_OK;
}

void px_adapter_close(px_adapter *a) {
  if (!a) return;
  px_adapter_folder_close(&a->folder);
  free(a->path);
  free(a);
}

const px_adapter_part *px_adapter_find(const px_adapter *a, px_part_kind kind) {
  for (int i = 0; i < a->part_count; i++)
    if (a->parts[i].kind == kind) return &a->parts[i];
  return NULL;
}

px_status px_adapter_must_be_prefix(const px_adapter *a, px_error *err) {
  const px_adapter_part *p = &a->parts[0];
  if (a->part_count == 1 && p->kind == PX_PART_PREFIX && p->config.chosen_count == 0) return PX_OK;
  px_buf kinds = {0};
  for (int i = 0; i < a->part_count; i++)
    px_buf_printf(&kinds, "%s%s%s", i ? "+" : "", px_part_kind_name(a->parts[i].kind),
                  a->parts[i].config.chosen_count ? " on some layers" : "");
  px_status status = px_fail(err, PX_INVALID, "%s holds %s; this needs a prefix on all layers and nothing else", a->path,
                             kinds.data ? kinds.data : "?");
  px_buf_free(&kinds);
  return status;
}

const char *px_adapter_meta(const px_adapter *a, const char *key) {
  for (int i = 0; i < a->part_count; i++) {
    const char *value = px_meta_get(a->parts[i].metadata, a->parts[i].metadata_count, key);
    if (value) return value;
  }
  return NULL;
}

px_status px_adapter_metadata(const px_model *model, const px_tokenizer *tok, const char *template_name, const char *training,
                              px_arena *arena, px_meta **out, size_t *count, px_error *err) {
  px_buf samples = {0};
  px_base64_append(&samples, model->fingerprint.samples, sizeof model->fingerprint.samples);
  const px_meta all[] = {
      {"pfx.arch", model->fingerprint.arch},
      {"pfx.base", model->fingerprint.base},
      {"pfx.position_mode", "after-prefix"},
      {"pfx.samples", samples.data ? samples.data : ""},
      {"pfx.template", template_name ? template_name : "none"},
      {"pfx.tokenizer", tok ? px_tokenizer_info_get(tok)->digest : "none"},
      {"pfx.training", training ? training : "{}"},
      {"pfx.version", PX_VERSION},
      {"pfx.window", "real-tokens"},
  };
  *count = sizeof all / sizeof *all;
  *out = px_arena_alloc(arena, *count, sizeof **out);
  for (size_t i = 0; *out && i < *count; i++) (*out)[i] = (px_meta){all[i].key, px_arena_strdup(arena, all[i].value)};
  bool failed = !*out || samples.failed;
  px_buf_free(&samples);
  return failed ? px_fail(err, PX_NO_MEMORY, "no memory") : PX_OK;
}
