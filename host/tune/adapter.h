/* SPDX-License-Identifier: MIT
 * An adapter as an artifact: its values in memory, what it says of its origin, and whether it fits a model. */
#ifndef PX_TUNE_ADAPTER_H
#define PX_TUNE_ADAPTER_H

#include "format/adapter_folder.h"
#include "model/model.h"
#include "text/tokenizer.h"

/* Immutable after opening; shared between threads. */
typedef struct px_adapter {
  px_adapter_folder folder; /* config and metadata */
  float *values;            /* [P, 2 * layers * token_dim] */
  int32_t tokens;
  char *path;
} px_adapter;

px_status px_adapter_open(const char *path, px_adapter **out, px_error *err);
void px_adapter_close(px_adapter *adapter);

typedef enum px_fit {
  PX_FIT_VERIFIED = 0,   /* the fingerprint is this model's */
  PX_FIT_UNVERIFIED = 1, /* no fingerprint; every shape fits */
  PX_FIT_FORCED = 2,     /* shapes fit, the fingerprint differs, and force was given */
} px_fit;

/* Does it fit? PX_MISMATCH says what differs, and for other weights of the same shape by how much (relative L2 of the
 * samples) with a likely cause. `tok` may be NULL; another tokenizer or template only adds to *warning (a px_buf, may be
 * NULL). A shape that does not fit is a mismatch with force too. */
px_status px_adapter_fits(const px_adapter *adapter, const px_model *model, const px_tokenizer *tok, bool force, px_fit *fit,
                          px_buf *warning, px_error *err);

/* The pfx.* metadata of an adapter trained on `model`: pfx.arch, pfx.base, pfx.samples, pfx.position_mode, pfx.tokenizer,
 * pfx.template, pfx.version, pfx.training, sorted by key. Strings in *arena. `training` is a short JSON summary without times. */
px_status px_adapter_metadata(const px_model *model, const px_tokenizer *tok, const char *template_name, const char *training,
                              px_arena *arena, px_meta **out, size_t *count, px_error *err);

/* Writes a prefix of `model` as PEFT's folder; metadata as above, or none. base_name: base_model_name_or_path. */
px_status px_adapter_write(const char *path, const px_model *model, const char *base_name, const float *values, int32_t tokens,
                           const px_meta *metadata, size_t count, px_error *err);

#endif
