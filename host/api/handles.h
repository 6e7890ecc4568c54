/* SPDX-License-Identifier: MIT
 * Inside the api room: what the opaque handles are, and how options of older callers are read. */
#ifndef PX_API_HANDLES_H
#define PX_API_HANDLES_H

#include <pfx/pfx.h>

#include "generate/generator.h"
#include "model/model.h"
#include "train/trainer.h"
#include "tune/adapter.h"

struct pfx_model {
  px_model *model;
};
struct pfx_tokenizer {
  px_tokenizer *tok;
};
struct pfx_adapter {
  px_adapter *adapter;
};

static inline px_error *px_api_error(pfx_error *err) { return (px_error *)err; }
static inline pfx_status px_api_status(px_status status) { return (pfx_status)status; }
static inline px_log px_api_log(pfx_log_fn fn, void *user) { return (px_log){.fn = fn, .user = user}; }

/* Copies the caller's options over the defaults: fields that an older caller lacks keep theirs. PFX_INVALID when
 * struct_bytes was never set. */
pfx_status px_api_options(void *into, size_t known_bytes, const void *from, const char *what, pfx_error *err);
px_status px_api_row_options(const pfx_data_options *from, const px_tokenizer *tok, const px_config *config, px_row_options *out, px_error *err);

#endif
