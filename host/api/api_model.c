/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "api/handles.h"

pfx_status pfx_model_open(const char *path, const pfx_model_options *options, pfx_model **model, pfx_error *err) {
  pfx_model_options o = pfx_model_options_init();
  *model = NULL;
  if (px_api_options(&o, sizeof o, options, "pfx_model_options", err) != PFX_OK) return PFX_INVALID;
  if (!path) return px_api_status(px_fail(px_api_error(err), PX_INVALID, "which model? Give --model a Hugging Face folder or a GGUF file"));
  pfx_model *m = px_calloc(1, sizeof *m);
  if (!m) return px_api_status(px_fail(px_api_error(err), PX_NO_MEMORY, "no memory"));
  px_model_options inner = {.device = o.device, .dtype = o.dtype == PFX_DTYPE_F32 ? PX_F32 : o.dtype == PFX_DTYPE_BF16 ? PX_BF16 : -1, .threads = o.threads,
                            .log = px_api_log(o.log, o.log_user), .attention = (px_attention)o.attention};
  if ((unsigned)o.attention > PFX_ATTENTION_CUDNN) {
    free(m);
    return px_api_status(px_fail(px_api_error(err), PX_INVALID, "attention %d is not known", (int)o.attention));
  }
  px_status status = px_model_open(path, &inner, &m->model, px_api_error(err));
  if (status != PX_OK) {
    free(m);
    return px_api_status(status);
  }
  *model = m;
  return PFX_OK;
}

void pfx_model_close(pfx_model *model) {
  if (!model) return;
  px_model_close(model->model);
  free(model);
}

void pfx_model_info_get(const pfx_model *model, pfx_model_info *info) {
  const px_model *m = model->model;
  const px_config *c = px_model_config(m);
  px_named_tensor *tensors = NULL;
  size_t count = 0;
  *info = (pfx_model_info){.path = m->source.path, .family = c->family, .layers = c->layers, .dim = c->dim, .heads = c->heads,
                           .kv_heads = c->kv_heads, .head_dim = c->head_dim, .ffn_dim = c->ffn_dim, .vocab = c->vocab, .context = c->context,
                           .dtype = m->dtype == PX_BF16 ? PFX_DTYPE_BF16 : PFX_DTYPE_F32, .threads = m->be->threads,
                           .arch = m->fingerprint.arch, .base = m->fingerprint.base, .products = m->be->products, .open_seconds = m->open_seconds};
  px_source own = m->source; /* the list of tensors goes into an arena of this call: threads share the model */
  own.arena = (px_arena){0};
  if (px_source_tensors(&own, &tensors, &count, NULL) == PX_OK)
    for (size_t i = 0; i < count; i++) info->parameters += tensors[i].tensor.rows * tensors[i].tensor.cols;
  px_arena_free(&own.arena);
}

pfx_status pfx_model_verify_wait(const pfx_model *model, pfx_error *err) {
  return px_api_status(px_source_verify(&model->model->source, px_api_error(err)));
}

pfx_status pfx_tokenizer_open(const char *path, pfx_tokenizer **tokenizer, pfx_error *err) {
  *tokenizer = NULL;
  pfx_tokenizer *t = px_calloc(1, sizeof *t);
  if (!t) return px_api_status(px_fail(px_api_error(err), PX_NO_MEMORY, "no memory"));
  px_status status = px_tokenizer_open(path, &t->tok, px_api_error(err));
  if (status != PX_OK) {
    free(t);
    return px_api_status(status);
  }
  *tokenizer = t;
  return PFX_OK;
}

void pfx_tokenizer_close(pfx_tokenizer *tokenizer) {
  if (!tokenizer) return;
  px_tokenizer_close(tokenizer->tok);
  free(tokenizer);
}

void pfx_tokenizer_info_get(const pfx_tokenizer *tokenizer, pfx_tokenizer_info *info) {
  const px_tokenizer_info *i = px_tokenizer_info_get(tokenizer->tok);
  *info = (pfx_tokenizer_info){.vocab_size = i->vocab_size, .bos = i->bos, .eos = i->eos, .add_bos = i->add_bos, .kind = i->kind,
                               .split = i->split, .digest = i->digest};
}

pfx_status pfx_tokenizer_encode(const pfx_tokenizer *tokenizer, const char *text, size_t bytes, int32_t **ids, size_t *count, pfx_error *err) {
  px_ids list = {0};
  *ids = NULL;
  *count = 0;
  px_status status = px_tokenizer_encode(tokenizer->tok, text, bytes, 0, &list, px_api_error(err));
  if (status == PX_OK && !list.data && !(list.data = px_calloc(1, sizeof *list.data))) status = px_fail(px_api_error(err), PX_NO_MEMORY, "no memory");
  if (status != PX_OK) {
    px_ids_free(&list);
    return px_api_status(status);
  }
  *ids = list.data;
  *count = list.len;
  return PFX_OK;
}

pfx_status pfx_tokenizer_decode(const pfx_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special, char **text, size_t *bytes,
                                pfx_error *err) {
  px_buf out = {0};
  *text = NULL;
  px_status status = px_tokenizer_decode(tokenizer->tok, ids, count, skip_special, &out, px_api_error(err));
  px_buf_puts(&out, "");
  if (status == PX_OK && out.failed) status = px_fail(px_api_error(err), PX_NO_MEMORY, "no memory");
  if (status != PX_OK) {
    px_buf_free(&out);
    return px_api_status(status);
  }
  *text = out.data;
  if (bytes) *bytes = out.len;
  return PFX_OK;
}
