/* SPDX-License-Identifier: MIT
 * Looking inside an adapter: rows to measure on, the measurements, and their form for callers. */
#include "api/look.h"

#include <math.h>
#include <stdlib.h>

#include "train/look_inside.h"
#include "train/near_words.h"
#include "tune/changes.h"

/* Measured on where nobody names data. Plain prose of several kinds; docs/inspect.md says that they are ours. */
static const char *const sentences[] = {
    "The harbour was quiet that morning, and the only boat that went out came back before noon.",
    "To make the dough, mix flour, water, salt and a little oil, and let it rest for half an hour.",
    "Water boils at a lower temperature on a mountain because the pressure of the air is lower there.",
    "She asked whether the train to the coast was late again, and the guard only shrugged.",
    "A hash table finds a value by its key in constant time on average, at the cost of some memory.",
    "In the year after the flood the town built its bridge anew, higher and of stone.",
    "Dear customer, your order has been sent today and will reach you within three working days.",
    "The committee will meet on Tuesday to vote on the budget, the new library and the school roof.",
};
enum { SENTENCES = sizeof sentences / sizeof *sentences };

typedef struct job {
  const px_model *model;
  const px_tokenizer *tok;
  const px_adapter *adapter;
  pfx_inspect_options options;
  px_log log;
  px_backend *be;
  px_tune *tune;
  px_rows rows;
  px_inspection *out;
} job;

/* The sentences as text rows: every token but the first scores. */
static px_status built_in_rows(job *j, int32_t room, px_error *err) {
  if (!j->tok) return px_fail(err, PX_INVALID, "the model has no tokenizer for the built-in sentences: give --data a file of ids rows");
  const px_tokenizer_info *info = px_tokenizer_info_get(j->tok);
  px_rows *r = &j->rows;
  px_ids ids = {0};
  px_status status = PX_OK;
  r->offsets = px_calloc(SENTENCES + 1, sizeof *r->offsets);
  r->prompt_len = px_calloc(SENTENCES, sizeof *r->prompt_len);
  r->line = px_calloc(SENTENCES, sizeof *r->line);
  if (!r->offsets || !r->prompt_len || !r->line) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (size_t i = 0; status == PX_OK && i < SENTENCES; i++) {
    if (info->add_bos && info->bos >= 0) status = px_ids_push(&ids, info->bos, err);
    if (status == PX_OK) status = px_tokenizer_encode(j->tok, sentences[i], strlen(sentences[i]), 0, &ids, err);
    if (ids.len - r->offsets[i] > (size_t)room) ids.len = r->offsets[i] + (size_t)room;
    r->offsets[i + 1] = ids.len;
    r->line[i] = i + 1;
    if (ids.len - r->offsets[i] > r->longest) r->longest = ids.len - r->offsets[i];
  }
  for (size_t i = 0; status == PX_OK && i < ids.len; i++)
    if (ids.data[i] < 0 || ids.data[i] >= px_model_config(j->model)->vocab)
      status = px_fail(err, PX_BAD_FILE, "the tokenizer has an id %d, the model's vocabulary %d tokens: give --data a file of ids rows",
                       ids.data[i], px_model_config(j->model)->vocab);
  r->ids = ids.data;
  r->count = SENTENCES;
  r->scores = px_calloc(ids.len / 8 + 1, 1);
  if (status == PX_OK && !r->scores) status = px_fail(err, PX_NO_MEMORY, "no memory");
  for (size_t i = 0; status == PX_OK && i < SENTENCES; i++)
    for (uint64_t t = r->offsets[i] + 1; t < r->offsets[i + 1]; t++, r->scored_tokens++) r->scores[t >> 3] |= (uint8_t)(1u << (t & 7));
  return status;
}

static px_status read_rows(job *j, px_error *err) {
  const px_config *c = px_model_config(j->model);
  px_row_options options;
  int32_t room = c->context - j->adapter->tokens;
  if (!j->options.data) return built_in_rows(j, room, err);
  PX_TRY(px_api_row_options(&j->options.rows, j->tok, c, &options, err));
  if (options.max_row_tokens == 0) options.max_row_tokens = room;
  if (options.max_row_tokens > room)
    return px_fail(err, PX_INVALID, "--max-row-tokens %d and %d virtual tokens exceed the model's context of %d", options.max_row_tokens,
                   j->adapter->tokens, c->context);
  return px_rows_read(j->options.data, j->tok, &options, &j->log, &j->rows, err);
}

/* The words in the caller's form, with their texts. */
static px_status name_words(job *j, const px_near_word *from, size_t count, const pfx_near_word **out, px_error *err) {
  pfx_near_word *words = px_arena_alloc(&j->out->arena, count, sizeof *words);
  if (!words) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (size_t i = 0; i < count; i++) {
    px_buf text = {0};
    words[i] = (pfx_near_word){.id = from[i].id, .cosine = from[i].id < 0 ? 0 : from[i].cosine};
    /* An id beyond the tokenizer's (padded vocabularies have some) has no text. */
    if (j->tok && from[i].id >= 0 && px_tokenizer_decode(j->tok, &from[i].id, 1, false, &text, NULL) == PX_OK)
      words[i].text = px_arena_strndup(&j->out->arena, text.data ? text.data : "", text.len);
    px_buf_free(&text);
  }
  *out = words;
  return PX_OK;
}

static px_status find_words(job *j, px_error *err) {
  pfx_inspection *i = &j->out->seen;
  const px_adapter_part *prompt = px_adapter_find(j->adapter, PX_PART_PROMPT);
  int32_t top = j->options.words, keys = i->first_token[0] < i->prefix_tokens ? i->prefix_tokens : 0;
  size_t count = (size_t)i->virtual_tokens * (size_t)top;
  px_near_word *words = px_arena_alloc(&j->out->arena, count, sizeof *words);
  double *usual = px_arena_alloc(&j->out->arena, (size_t)i->virtual_tokens, sizeof *usual);
  if (!words || !usual) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (size_t w = 0; w < count; w++) words[w] = (px_near_word){-1, 0}; /* a prefix without the first layer has no words */
  if (keys) PX_TRY(px_near_first_keys(j->model, j->be, j->adapter->values, keys, top, words, usual, err));
  if (prompt)
    PX_TRY(px_near_embeddings(j->model, j->be, prompt->tensors[0].values, i->virtual_tokens - i->prefix_tokens, top,
                              words + (int64_t)i->prefix_tokens * top, usual + i->prefix_tokens, err));
  i->words = top;
  i->usual_cosine = usual;
  return name_words(j, words, count, &i->near_words, err);
}

static int32_t count_dead(const pfx_inspection *i) {
  int32_t dead = 0;
  for (int32_t t = 0; t < i->virtual_tokens; t++) {
    double peak = 0;
    for (int32_t l = 0; l < i->layers; l++) peak = fmax(peak, i->slot_peak[l * i->virtual_tokens + t]);
    dead += peak < i->dead_below;
  }
  return dead;
}

static px_status measure(job *j, px_error *err) {
  const px_config *c = px_model_config(j->model);
  pfx_inspection *i = &j->out->seen;
  px_look look;
  px_look_options options = {.all_tokens = j->options.all_tokens, .most_tokens = j->options.sample_tokens, .cancelled = j->options.cancelled,
                             .user = j->options.user};
  PX_TRY(px_look_inside(j->model, j->be, &j->rows, j->tune, &options, &j->out->arena, &look, err));
  pfx_vector_lengths *lengths = px_arena_alloc(&j->out->arena, (size_t)look.layers, sizeof *lengths);
  if (!lengths) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int l = 0; l < look.layers; l++)
    lengths[l] = (pfx_vector_lengths){look.norms[l].prefix_key, look.norms[l].real_key, look.norms[l].prefix_value, look.norms[l].real_value};
  *i = (pfx_inspection){.layers = look.layers, .heads = look.heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim,
                        .virtual_tokens = look.tokens, .rows = look.rows, .tokens = look.real_tokens, .queries = look.queries,
                        .rows_in_data = (int64_t)j->rows.count, .built_in = !j->options.data, .dead_below = j->options.dead_below,
                        .mass = look.mass, .even = look.even, .slot_mass = look.slot_mass, .slot_peak = look.slot_peak,
                        .first_token = look.first, .lengths = lengths,
                        .prefix_tokens = px_tune_prefix_tokens(j->tune)};
  i->dead = count_dead(i);
  return j->options.words > 0 ? find_words(j, err) : PX_OK;
}

/* Parts that are no virtual tokens: what they do to the weights. */
static px_status list_changes(job *j, px_error *err) {
  pfx_inspection *i = &j->out->seen;
  px_change *found;
  size_t count;
  PX_TRY(px_adapter_changes(j->adapter, j->model, j->be, &j->out->arena, &found, &count, err));
  pfx_change *changes = px_arena_alloc(&j->out->arena, count + 1, sizeof *changes);
  if (!changes) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (size_t k = 0; k < count; k++) {
    const px_change *c = &found[k];
    changes[k] = (pfx_change){.part = px_part_kind_name(c->part), .module = c->module, .role = c->role, .column = c->column, .layer = c->layer,
                              .mean = c->mean, .smallest = c->smallest, .largest = c->largest, .far = c->far,
                              .length = c->length, .base_length = c->base_length, .relative = c->relative};
  }
  i->changes = changes;
  i->change_count = (int64_t)count;
  i->far_from_one = PX_FAR_FROM_ONE;
  return PX_OK;
}

/* No virtual tokens: nothing is measured on rows. */
static void without_tokens(job *j) {
  const px_config *c = px_model_config(j->model);
  j->out->seen = (pfx_inspection){.layers = c->layers, .heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim,
                                  .dead_below = j->options.dead_below};
  if (j->options.data)
    px_log_message(&j->log, PX_LOG_WARN, "%s has no virtual tokens (a prefix or a prompt has) whose attention could be measured: %s is not read",
                   j->adapter->path, j->options.data);
}

static px_status write_page(job *j, px_error *err) {
  px_buf page = {0};
  px_look_page(&j->out->seen, j->model, j->adapter, j->options.data, &page);
  px_status status = page.failed ? px_fail(err, PX_NO_MEMORY, "no memory") : px_file_write(j->options.html, page.data, page.len, err);
  px_buf_free(&page);
  return status;
}

static px_status run(job *j, px_error *err) {
  const pfx_inspect_options *o = &j->options;
  if (o->words < 0 || o->words > 1000) return px_fail(err, PX_INVALID, "--words is %d, must be from 0 to 1000", o->words);
  if (o->sample_tokens < 0) return px_fail(err, PX_INVALID, "--sample-tokens must not be negative");
  if (!(o->dead_below >= 0 && o->dead_below <= 1)) return px_fail(err, PX_INVALID, "--dead-below is a share: it must be from 0 to 1");
  if (o->html) PX_TRY(px_out_check(o->html, err));
  /* Two log-sum-exps are compared: both are our own kernels', whatever the model computes attention with. */
  PX_TRY(px_backend_open(&(px_backend_options){.device = j->model->be->device, .threads = j->model->be->threads, .log = j->log,
                                               .attention = PX_ATTENTION_FUSED}, &j->be, err));
  if (j->adapter->tokens > 0) {
    PX_TRY(px_tune_open_adapter(j->model, j->be, j->adapter, false, &j->tune, err));
    PX_TRY(read_rows(j, err));
    PX_TRY(measure(j, err));
  } else {
    without_tokens(j);
  }
  PX_TRY(list_changes(j, err));
  return o->html ? write_page(j, err) : PX_OK;
}

pfx_status pfx_inspect_adapter_wait(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_adapter *adapter,
                                    const pfx_inspect_options *options, const pfx_inspection **inspection, pfx_error *err) {
  job j = {.model = model->model, .tok = tokenizer ? tokenizer->tok : NULL, .adapter = adapter->adapter, .options = pfx_inspect_options_init()};
  *inspection = NULL;
  if (px_api_options(&j.options, sizeof j.options, options, "pfx_inspect_options", err) != PFX_OK) return PFX_INVALID;
  j.log = px_api_log(j.options.log, j.options.log_user);
  j.out = px_calloc(1, sizeof *j.out);
  px_status status = j.out ? run(&j, px_api_error(err)) : px_fail(px_api_error(err), PX_NO_MEMORY, "no memory");
  px_rows_free(&j.rows);
  px_tune_close(j.tune);
  px_backend_close(j.be);
  if (status == PX_OK)
    *inspection = &j.out->seen;
  else if (j.out)
    pfx_inspection_free(&j.out->seen);
  return px_api_status(status);
}

void pfx_inspection_free(const pfx_inspection *inspection) {
  if (!inspection) return;
  px_inspection *own = (px_inspection *)(uintptr_t)inspection; /* its first field */
  px_arena_free(&own->arena);
  free(own);
}
