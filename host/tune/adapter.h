/* SPDX-License-Identifier: MIT
 * An adapter as an artifact: its values in memory, what it says of its origin, and whether it fits a model. */
#ifndef PX_TUNE_ADAPTER_H
#define PX_TUNE_ADAPTER_H

#include "format/adapter_folder.h"
#include "model/model.h"
#include "text/tokenizer.h"

/* Immutable after opening; shared between threads. */
typedef struct px_adapter {
  px_adapter_part *parts; /* in the order of positions: a hybrid's own order */
  int part_count;
  const float *values;    /* the prefix part's [P, 2 * layers * token_dim]; NULL: there is no prefix part */
  int32_t tokens;         /* virtual tokens of all parts together: prefix and prompt */
  px_adapter_folder folder; /* owns the parts */
  const char *kind;       /* "PREFIX_TUNING"; of a hybrid "PREFIX_TUNING+LORA" */
  char *path;
} px_adapter;

px_status px_adapter_open(const char *path, px_adapter **out, px_error *err);
void px_adapter_close(px_adapter *adapter);
/* NULL when it has no such part. */
const px_adapter_part *px_adapter_find(const px_adapter *adapter, px_part_kind kind);
/* PX_INVALID unless the adapter is one prefix on all layers and nothing else. */
px_status px_adapter_must_be_prefix(const px_adapter *adapter, px_error *err);
/* A pfx.* string of the first part that has it; NULL when none does. */
const char *px_adapter_meta(const px_adapter *adapter, const char *key);

typedef enum px_fit {
  PX_FIT_VERIFIED = 0,   /* the fingerprint is this model's */
  PX_FIT_UNVERIFIED = 1, /* no fingerprint; every shape fits */
  PX_FIT_FORCED = 2,     /* shapes fit, the fingerprint differs, and force was given */
} px_fit;

/* Does every part fit? Modules must be this family's and shapes right, parts of different bases are a mismatch with force
 * too. PX_MISMATCH says what differs, and for other weights of the same shape by how much (relative L2 of the
 * samples) with a likely cause. The fit is the worst of the parts'. `tok` may be NULL; another tokenizer or template only adds to *warning (a px_buf, may be
 * NULL). A shape that does not fit is a mismatch with force too. */
px_status px_adapter_fits(const px_adapter *adapter, const px_model *model, const px_tokenizer *tok, bool force, px_fit *fit,
                          px_buf *warning, px_error *err);
/* Whether an adapter that fits can also be computed with beside the model; PX_MISMATCH names what can only be merged. */
px_status px_adapter_attaches(const px_adapter *adapter, const px_model *model, px_error *err);

/* The pfx.* metadata of an adapter trained on `model`: pfx.arch, pfx.base, pfx.samples, pfx.position_mode, pfx.tokenizer,
 * pfx.template, pfx.version, pfx.training, sorted by key. Strings in *arena. `training` is a short JSON summary without times. */
px_status px_adapter_metadata(const px_model *model, const px_tokenizer *tok, const char *template_name, const char *training,
                              px_arena *arena, px_meta **out, size_t *count, px_error *err);

#endif
