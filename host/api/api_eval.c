/* SPDX-License-Identifier: MIT
 * Measuring: loss over the rows of a file, and the texts generated for their prompts against the references. */
#include <math.h>
#include <stdlib.h>

#include "api/handles.h"
#include "format/json.h"
#include "generate/score.h"
#include "text/rows.h"
#include "train/evaluate.h"

typedef struct job {
  const px_model *model;
  const px_tokenizer *tok;
  const px_adapter *adapter;
  pfx_eval_options options;
  px_backend *be;
  px_rows rows;
  double *row_loss;
  px_row_item *items; /* rows with equal prompts are one */
  px_buf *texts;      /* [item_count] generated */
  px_score_parts *parts; /* [item_count] */
  size_t item_count;
  int64_t done;
  pfx_eval_costs costs;
  px_shots shots;
  px_arena arena;
} job;

static px_status measure_loss(job *j, pfx_eval_result *result, px_error *err) {
  px_tune *used = NULL;
  px_eval_result r = {0};
  px_status status = j->adapter ? px_tune_open_adapter(j->model, j->be, j->adapter, false, &used, err) : PX_OK;
  if (status == PX_OK)
    status = px_eval_loss(j->model, j->be, &j->rows, used ? &used->hooks : NULL, used ? used->tokens : 0, j->row_loss, &r, err);
  px_tune_close(used);
  j->costs.loss_seconds = r.seconds;
  result->loss = r.loss;
  result->perplexity = exp(r.loss);
  result->tokens = r.tokens;
  result->rows = (int64_t)j->rows.count;
  return status;
}

static px_status make_items(job *j, px_error *err) {
  PX_TRY(px_rows_items(&j->rows, &j->arena, &j->items, &j->item_count, err));
  if (j->item_count == 0)
    return px_fail(err, PX_BAD_FILE, "%s: no row has a prompt: --generate needs prompts and completions",
                   j->options.data);
  j->texts = px_calloc(j->item_count, sizeof *j->texts);
  return j->texts ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory");
}

static void keep_text(void *user, uint64_t row, const char *bytes, size_t count, px_finish finish) {
  job *j = user;
  px_buf_append(&j->texts[row], bytes, count);
  if (finish == PX_FINISH_NONE) return;
  j->done++;
  if (j->options.progress) j->options.progress(j->options.user, j->done, (int64_t)j->item_count);
}

static px_status generate(job *j, px_error *err) {
  static const char *const gap = "\n\n"; /* what separates examples ends an answer in their manner */
  px_generator *g = NULL;
  int32_t adapter = -1;
  px_log log = px_api_log(j->options.log, j->options.log_user);
  PX_TRY(px_generator_open(j->model, j->tok, &(px_generator_options){.log = log, .max_rows = 32}, &g, err));
  px_status status = j->adapter ? px_generator_add_adapter(g, j->adapter, &adapter, err) : PX_OK;
  for (size_t i = 0; status == PX_OK && i < j->item_count; i++) {
    size_t row = j->items[i].row;
    px_request request = {.ids = j->rows.ids + j->rows.offsets[row],
                          .count = (int32_t)j->rows.prompt_len[row],
                          .adapter = adapter,
                          .row = i,
                          .sampling = {.max_tokens = j->options.max_tokens, .stop = &gap, .stop_count = j->shots.gaps ? 1 : 0},
                          .text = keep_text,
                          .user = j};
    status = px_generator_add(g, &request, err);
  }
  if (status == PX_OK) status = px_generator_run(g, j->options.cancelled, j->options.user, err);
  const px_generator_stats stats = px_generator_stats_get(g);
  j->costs.prompt_tokens = stats.prompt_tokens;
  j->costs.new_tokens = stats.new_tokens;
  j->costs.prefill_seconds = stats.prefill_seconds;
  j->costs.decode_seconds = stats.decode_seconds;
  px_generator_close(g);
  return status;
}

static px_status score(job *j, pfx_eval_result *result, px_error *err) {
  px_score_item *list = px_calloc(j->item_count, sizeof *list);
  px_scores scores = {0};
  j->parts = px_calloc(j->item_count, sizeof *j->parts);
  if (!list || !j->parts) {
    free(list);
    return px_fail(err, PX_NO_MEMORY, "no memory");
  }
  for (size_t i = 0; i < j->item_count; i++)
    list[i] = (px_score_item){.hypothesis = j->texts[i].data ? j->texts[i].data : "",
                              .references = j->items[i].references,
                              .reference_count = j->items[i].reference_count};
  px_status status = px_score_texts(list, j->item_count, j->parts, &scores, err);
  free(list);
  result->items = (int64_t)j->item_count;
  result->bleu = scores.bleu;
  result->chrf = scores.chrf;
  result->rouge_l = scores.rouge_l;
  result->exact_match = scores.exact_match;
  return status;
}

/* One JSON object a line; the object is consumed. */
static px_status put_line(px_out *out, json_t *object, px_error *err) {
  char *text = object ? json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
  json_decref(object);
  if (!text) return px_fail(err, PX_NO_MEMORY, "no memory");
  px_status status = px_out_write(out, text, strlen(text), err);
  if (status == PX_OK) status = px_out_write(out, "\n", 1, err);
  free(text);
  return status;
}

/* A new file under a temporary name; with `append` it begins with what the old one holds. */
static px_status open_lines(const job *j, const char *path, px_out *out, px_error *err) {
  px_map old = {0};
  if (j->options.append && px_file_exists(path)) PX_TRY(px_map_open(path, &old, err));
  px_status status = px_out_open(path, out, err);
  if (status == PX_OK && old.bytes) status = px_out_write(out, old.data, old.bytes, err);
  px_map_close(&old);
  return status;
}

static json_t *text_of(const char *text) { return px_json_text(text, strlen(text)); }

static json_t *line_of(const job *j) {
  json_t *object = json_object();
  json_object_set_new(object, "adapter", j->adapter ? text_of(j->adapter->path) : json_null());
  return object;
}

static void set_texts(const job *j, size_t i, json_t *object) {
  const px_row_item *it = &j->items[i];
  const px_buf *text = &j->texts[i];
  json_t *references = json_array();
  for (size_t r = 0; r < it->reference_count; r++) json_array_append_new(references, text_of(it->references[r]));
  json_object_set_new(object, "prompt", text_of(it->prompt));
  json_object_set_new(object, "prediction", px_json_text(text->data ? text->data : "", text->len));
  json_object_set_new(object, "references", references);
}

static px_status write_predictions(job *j, px_error *err) {
  px_out out;
  PX_TRY(open_lines(j, j->options.predictions, &out, err));
  for (size_t i = 0; i < j->item_count; i++) {
    json_t *object = line_of(j);
    set_texts(j, i, object);
    PX_TRY(put_line(&out, object, err));
  }
  return px_out_commit(&out, err);
}

static json_t *numbers_of(const uint64_t *values, size_t count) {
  json_t *list = json_array();
  for (size_t i = 0; i < count; i++) json_array_append_new(list, json_integer((json_int_t)values[i]));
  return list;
}

static px_status write_items(job *j, px_error *err) {
  px_out out;
  PX_TRY(open_lines(j, j->options.items_out, &out, err));
  for (size_t i = 0; i < j->item_count; i++) {
    const px_score_parts *p = &j->parts[i];
    json_t *object = line_of(j), *lines = json_array(), *bleu = json_array();
    for (size_t k = 0; k < j->items[i].row_count; k++)
      json_array_append_new(lines, json_integer((json_int_t)j->rows.line[j->items[i].rows[k]]));
    json_object_set_new(object, "lines", lines);
    set_texts(j, i, object);
    json_array_append_new(bleu, json_integer((json_int_t)p->hypothesis_words));
    json_array_append_new(bleu, json_integer((json_int_t)p->reference_words));
    json_array_append_new(bleu, numbers_of(p->matched_words, PX_BLEU_ORDER));
    json_array_append_new(bleu, numbers_of(p->words, PX_BLEU_ORDER));
    json_object_set_new(object, "bleu", bleu);
    json_object_set_new(object, "chrf", numbers_of(p->characters[0], (size_t)3 * PX_CHRF_ORDER));
    json_object_set_new(object, "rouge_l", json_real(100 * p->rouge_l));
    json_object_set_new(object, "exact_match", json_integer(p->exact ? 100 : 0));
    PX_TRY(put_line(&out, object, err));
  }
  return px_out_commit(&out, err);
}

static px_status write_rows(job *j, px_error *err) {
  px_out out;
  PX_TRY(open_lines(j, j->options.rows_out, &out, err));
  for (size_t r = 0; r < j->rows.count; r++) {
    int64_t tokens = 0;
    for (uint64_t i = j->rows.offsets[r]; i < j->rows.offsets[r + 1]; i++) tokens += px_row_scores(&j->rows, i);
    json_t *object = line_of(j);
    json_object_set_new(object, "line", json_integer((json_int_t)j->rows.line[r]));
    json_object_set_new(object, "loss", tokens ? json_real(j->row_loss[r] / (double)tokens) : json_null());
    json_object_set_new(object, "tokens", json_integer(tokens));
    if (j->rows.targets && j->rows.targets[r]) json_object_set_new(object, "text", text_of(j->rows.targets[r]));
    PX_TRY(put_line(&out, object, err));
  }
  return px_out_commit(&out, err);
}

/* Examples may take what the row, its prefix and the text to come leave of the context. */
static px_status add_shots(job *j, const px_row_options *rows, const px_log *log, px_error *err) {
  int64_t room = px_model_config(j->model)->context - (j->adapter ? j->adapter->tokens : 0);
  if (j->options.generate) room -= j->options.max_tokens;
  PX_TRY(px_rows_add_shots(&j->rows, j->options.shots_data, j->options.shots, j->options.shots_seed, room, j->tok, rows, log, &j->shots, err));
  j->costs.shots = j->shots.used;
  if (j->costs.shots < j->options.shots)
    px_log_message(log, PX_LOG_INFO, "%s: %.1f of %d examples before a row on average, more do not fit or are not there",
                   j->options.shots_data, j->costs.shots, j->options.shots);
  return PX_OK;
}

static px_status run(job *j, pfx_eval_result *result, px_error *err) {
  px_row_options rows;
  px_log log = px_api_log(j->options.log, j->options.log_user);
  if (j->options.predictions) PX_TRY(px_out_check(j->options.predictions, err)); /* not after an hour of generating */
  if (j->options.rows_out) PX_TRY(px_out_check(j->options.rows_out, err));
  if (j->options.items_out) PX_TRY(px_out_check(j->options.items_out, err));
  if (j->options.predictions && !j->options.generate) return px_fail(err, PX_INVALID, "--predictions needs --generate");
  if (j->options.items_out && !j->options.generate) return px_fail(err, PX_INVALID, "--items needs --generate");
  if (j->options.generate && j->options.max_tokens < 1)
    return px_fail(err, PX_INVALID, "max_tokens is %d, must be at least 1", j->options.max_tokens);
  if (j->options.generate && !j->tok)
    return px_fail(err, PX_INVALID, "--generate needs the model's tokenizer, and the model has none");
  PX_TRY(px_api_row_options(&j->options.rows, j->tok, px_model_config(j->model), &rows, err));
  if (rows.max_row_tokens == 0)
    rows.max_row_tokens = px_model_config(j->model)->context - (j->adapter ? j->adapter->tokens : 0);
  rows.keep_text = j->options.generate || j->options.rows_out;
  PX_TRY(px_backend_open(&(px_backend_options){.device = j->model->be->device, .threads = j->model->be->threads, .log = log, .attention = j->model->be->attention}, &j->be, err));
  PX_TRY(px_rows_read(j->options.data, j->tok, &rows, &log, &j->rows, err));
  if (j->options.shots_data) PX_TRY(add_shots(j, &rows, &log, err));
  j->row_loss = px_calloc(j->rows.count, sizeof *j->row_loss);
  if (!j->row_loss) return px_fail(err, PX_NO_MEMORY, "no memory");
  PX_TRY(measure_loss(j, result, err));
  if (j->options.generate) {
    PX_TRY(make_items(j, err));
    PX_TRY(generate(j, err));
    PX_TRY(score(j, result, err));
  }
  if (j->options.predictions) PX_TRY(write_predictions(j, err));
  if (j->options.items_out) PX_TRY(write_items(j, err));
  return j->options.rows_out ? write_rows(j, err) : PX_OK;
}

pfx_status pfx_eval_wait(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_adapter *adapter,
                         const pfx_eval_options *options, pfx_eval_result *result, pfx_error *err) {
  job j = {.model = model->model,
           .tok = tokenizer ? tokenizer->tok : NULL,
           .adapter = adapter ? adapter->adapter : NULL,
           .options = pfx_eval_options_init()};
  *result = (pfx_eval_result){.bleu = NAN, .chrf = NAN, .rouge_l = NAN, .exact_match = NAN};
  if (px_api_options(&j.options, sizeof j.options, options, "pfx_eval_options", err) != PFX_OK) return PFX_INVALID;
  if (!j.options.data) return px_api_status(px_fail(px_api_error(err), PX_INVALID, "--data is needed"));
  px_status status = run(&j, result, px_api_error(err));
  if (j.options.costs) *j.options.costs = j.costs;
  for (size_t i = 0; j.texts && i < j.item_count; i++) px_buf_free(&j.texts[i]);
  free(j.parts);
  free(j.texts);
  px_arena_free(&j.arena);
  free(j.row_loss);
  px_rows_free(&j.rows);
  px_backend_close(j.be);
  return px_api_status(status);
}
