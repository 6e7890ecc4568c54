/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "api/handles.h"
#include "text/rows.h"

struct pfx_generator {
  px_generator *generator;
  const px_model *model;
  const px_tokenizer *tok;
};

pfx_status pfx_generator_create(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_generator_options *options,
                                pfx_generator **generator, pfx_error *err) {
  pfx_generator_options o = pfx_generator_options_init();
  *generator = NULL;
  if (px_api_options(&o, sizeof o, options, "pfx_generator_options", err) != PFX_OK) return PFX_INVALID;
  pfx_generator *g = px_calloc(1, sizeof *g);
  if (!g) return px_api_status(px_fail(px_api_error(err), PX_NO_MEMORY, "no memory"));
  g->model = model->model;
  g->tok = tokenizer ? tokenizer->tok : NULL;
  px_generator_options inner = {.max_rows = o.max_rows, .cache_bytes = o.cache_bytes, .log = px_api_log(o.log, o.log_user)};
  px_status status = px_generator_open(g->model, g->tok, &inner, &g->generator, px_api_error(err));
  if (status != PX_OK) {
    free(g);
    return px_api_status(status);
  }
  *generator = g;
  return PFX_OK;
}

void pfx_generator_destroy(pfx_generator *generator) {
  if (!generator) return;
  px_generator_close(generator->generator);
  free(generator);
}

pfx_status pfx_generator_add_adapter(pfx_generator *generator, const pfx_adapter *adapter, int32_t *id, pfx_error *err) {
  return px_api_status(px_generator_add_adapter(generator->generator, adapter->adapter, id, px_api_error(err)));
}

/* The request's text callback under its internal type: the finish values are the same. */
typedef void (*inner_text_fn)(void *user, uint64_t row, const char *bytes, size_t count, px_finish finish);

pfx_status pfx_generator_add(pfx_generator *g, const pfx_request *request, pfx_error *err) {
  pfx_request r = pfx_request_init();
  if (px_api_options(&r, sizeof r, request, "pfx_request", err) != PFX_OK) return PFX_INVALID;
  px_error *e = px_api_error(err);
  px_ids ids = {0};
  /* Inside, zero stands for the default; here _init has written that, and zero means zero. */
  if (r.max_tokens < 1) return px_api_status(px_fail(e, PX_INVALID, "max_tokens is %d, must be at least 1", r.max_tokens));
  if (r.top_p == 0) r.top_p = -1;
  if (r.repetition_penalty == 0) r.repetition_penalty = -1;
  px_request inner = {.ids = r.ids, .count = r.id_count, .adapter = r.adapter, .row = r.row, .user = r.user, .text = (inner_text_fn)r.text,
                      .sampling = {.max_tokens = r.max_tokens, .temperature = r.temperature, .top_p = r.top_p, .min_p = r.min_p,
                                   .repetition_penalty = r.repetition_penalty, .top_k = r.top_k, .seed = r.seed, .stop = r.stop,
                                   .stop_count = r.stop_count}};
  px_status status = PX_OK;
  if (r.prompt) {
    px_row_options rows;
    if (!g->tok) return px_api_status(px_fail(e, PX_INVALID, "a text prompt needs a tokenizer, and the model has none"));
    pfx_data_options data = {.no_bos = r.no_bos, .chat_template = r.chat_template};
    status = px_api_row_options(&data, g->tok, px_model_config(g->model), &rows, e);
    if (status == PX_OK && r.chat && rows.chat == PX_TEMPLATE_NONE && (status = px_template_detect(g->tok, &rows.chat, e)) == PX_OK &&
        rows.chat == PX_TEMPLATE_NONE)
      status = px_fail(e, PX_INVALID, "the model has no chat template: name one with --template");
    if (status == PX_OK) status = px_prompt_ids(g->tok, &rows, r.prompt, r.chat, &ids, e);
    inner.ids = ids.data;
    inner.count = (int32_t)ids.len;
  }
  if (status == PX_OK) status = px_generator_add(g->generator, &inner, e);
  px_ids_free(&ids);
  return px_api_status(status);
}

pfx_status pfx_generator_run_wait(pfx_generator *generator, pfx_cancel_fn cancelled, void *user, pfx_error *err) {
  return px_api_status(px_generator_run(generator->generator, cancelled, user, px_api_error(err)));
}

void pfx_generator_stats_get(const pfx_generator *generator, pfx_generator_stats *stats) {
  px_generator_stats s = px_generator_stats_get(generator->generator);
  *stats = (pfx_generator_stats){s.prompt_tokens, s.new_tokens, s.prefill_seconds, s.decode_seconds};
}

pfx_status pfx_prompts_read(const char *path, char ***prompts, size_t *count, pfx_error *err) {
  px_arena arena = {0};
  char **list = NULL;
  *prompts = NULL;
  px_status status = px_prompts_read(path, &list, count, &arena, px_api_error(err));
  size_t bytes = 1;
  for (size_t i = 0; status == PX_OK && i < *count; i++) bytes += sizeof(char *) + strlen(list[i]) + 1;
  char **out = status == PX_OK ? px_calloc(bytes, 1) : NULL;
  if (status == PX_OK && !out) status = px_fail(px_api_error(err), PX_NO_MEMORY, "no memory");
  char *at = (char *)(out + (out ? *count : 0));
  for (size_t i = 0; status == PX_OK && i < *count; i++) {
    out[i] = at;
    at = stpcpy(at, list[i]) + 1;
  }
  px_arena_free(&arena);
  *prompts = out;
  return px_api_status(status);
}
