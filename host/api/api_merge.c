/* SPDX-License-Identifier: MIT
 * Model folders: a base with an adapter in its weights, or alone. */
#include "api/handles.h"
#include "tune/merge.h"

static const int types[] = {[PFX_WEIGHT_BASE] = -1, [PFX_WEIGHT_F32] = PX_F32, [PFX_WEIGHT_BF16] = PX_BF16, [PFX_WEIGHT_F16] = PX_F16};

/* The tokenizer goes with the folder; a base may have none. */
static void open_tokenizer(const px_model *m, px_tokenizer **tok, const px_log *log) {
  px_error why = {0};
  if (px_tokenizer_open(m->source.path, tok, &why) == PX_OK) return;
  *tok = NULL;
  if (m->source.is_gguf) px_log_message(log, PX_LOG_WARN, "no tokenizer is written: %s", why.message);
}

/* Says what pfx check would; the adapter fits afterwards. */
static px_status check_fit(const px_adapter *a, const px_model *m, const px_tokenizer *tok, bool force, px_fit *fit, const px_log *log, px_error *err) {
  px_buf warning = {0};
  px_status status = px_adapter_fits(a, m, tok, force, fit, &warning, err);
  if (warning.len) px_log_message(log, PX_LOG_WARN, "%s: %s", a->path, warning.data);
  px_buf_free(&warning);
  if (status == PX_OK && *fit == PX_FIT_UNVERIFIED)
    px_log_message(log, PX_LOG_INFO, "note: %s carries no fingerprint: it fits in shape, which base it was trained on is unverified", a->path);
  if (status == PX_OK && *fit == PX_FIT_FORCED) px_log_message(log, PX_LOG_WARN, "%s was trained on other weights; used because of --force", a->path);
  return status;
}

static px_status merge(const px_model *m, const px_adapter *a, const char *out, const pfx_merge_options *o, px_model_written *w, px_fit *fit,
                       px_error *err) {
  px_log log = px_api_log(o->log, o->log_user);
  px_model_write_options options = {.dtype = types[o->type], .progress = o->progress, .cancelled = o->cancelled, .user = o->user};
  px_tokenizer *tok = NULL;
  px_status status = PX_OK;
  open_tokenizer(m, &tok, &log);
  if (a) status = check_fit(a, m, tok, o->force, fit, &log, err);
  if (status == PX_OK) status = a ? px_merge(a, &m->source, tok, out, &options, w, err) : px_model_write(out, &m->source, tok, NULL, &options, w, err);
  px_tokenizer_close(tok);
  return status;
}

pfx_status pfx_merge_wait(const char *model, const char *adapter, const char *out, const pfx_merge_options *options, pfx_merge_result *result,
                          pfx_error *err) {
  pfx_merge_options o = pfx_merge_options_init();
  px_error *e = px_api_error(err);
  if (px_api_options(&o, sizeof o, options, "pfx_merge_options", err) != PFX_OK) return PFX_INVALID;
  if (!model || !out) return px_api_status(px_fail(e, PX_INVALID, "a model and an output folder are needed"));
  if ((unsigned)o.type > PFX_WEIGHT_F16) return px_api_status(px_fail(e, PX_INVALID, "type %d of the weights is not known", (int)o.type));
  px_model *m = NULL;
  px_adapter *a = NULL;
  px_model_written w = {0};
  px_fit fit = PX_FIT_VERIFIED;
  px_status status = adapter ? px_adapter_open(adapter, &a, e) : PX_OK;
  if (status == PX_OK && a) status = px_merge_check(a, e);
  if (status == PX_OK) status = px_model_open_files(model, &m, e);
  if (status == PX_OK) status = merge(m, a, out, &o, &w, &fit, e);
  if (result && status == PX_OK)
    *result = (pfx_merge_result){.tensors = (int64_t)w.tensors, .changed = (int64_t)w.changed, .files = (int64_t)w.files, .bytes = w.bytes,
                                 .type = w.dtype == PX_F32 ? PFX_WEIGHT_F32 : w.dtype == PX_BF16 ? PFX_WEIGHT_BF16 : PFX_WEIGHT_F16,
                                 .fit = (pfx_fit)fit};
  px_model_close(m);
  px_adapter_close(a);
  return px_api_status(status);
}
