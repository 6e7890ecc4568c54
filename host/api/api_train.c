/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdlib.h>

#include "api/handles.h"
#include "train/evaluate.h"

struct pfx_trainer {
  const px_model *model;
  const px_tokenizer *tok;
  px_train_options options;    /* a new run */
  px_resume_changes changes;   /* a resumed one */
  char *resume_dir;            /* NULL: a new run */
  pfx_train_options callbacks; /* only its functions and users are read */
  px_arena arena;
};

static void report(void *user, const px_progress *p) {
  const pfx_trainer *t = user;
  pfx_progress out = {.step = p->step, .steps = p->steps, .loss = p->loss, .lr = p->lr, .grad_norm = p->grad_norm,
                      .tokens_per_s = p->tokens_per_s, .eta_seconds = p->eta_seconds, .seconds = p->seconds, .valid_loss = p->valid_loss,
                      .best_valid_loss = p->best_valid_loss, .tokens = p->tokens, .peak_bytes = p->peak_bytes};
  if (t->callbacks.progress) t->callbacks.progress(t->callbacks.user, &out);
}

static bool cancelled(void *user) {
  const pfx_trainer *t = user;
  return t->callbacks.cancelled && t->callbacks.cancelled(t->callbacks.user);
}

static const char *copy(pfx_trainer *t, const char *text) { return text ? px_arena_strdup(&t->arena, text) : NULL; }

/* 1 + px_dtype, 0 the base's own. */
static const int weight_types[] = {[PFX_WEIGHT_BASE] = 0, [PFX_WEIGHT_F32] = 1 + PX_F32, [PFX_WEIGHT_BF16] = 1 + PX_BF16, [PFX_WEIGHT_F16] = 1 + PX_F16};

static px_status convert(pfx_trainer *t, const pfx_train_options *o, px_error *err) {
  px_train_options *p = &t->options;
  *p = (px_train_options){.model_path = copy(t, t->model->source.path), .data = copy(t, o->data), .valid = copy(t, o->valid),
                          .out = copy(t, o->out), .tune = copy(t, o->tune), .init = copy(t, o->init), .reparam = o->reparam,
                          .steps = o->steps, .epochs = o->epochs, .stop_after = o->stop_after, .max_seconds = o->max_seconds, .lr = o->lr,
                          .warmup = o->warmup, .schedule = (px_schedule)o->schedule, .batch_rows = o->batch_rows,
                          .batch_tokens = o->batch_tokens, .accumulate = o->accumulate, .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->eps,
                          .weight_decay = o->weight_decay, .clip = o->clip, .eval_every = o->eval_every, .save_every = o->save_every,
                          .patience = o->patience, .prefix_dropout = o->prefix_dropout, .no_fingerprint = o->no_fingerprint,
                          .force = o->force, .no_graph = o->no_graph, .seed = o->seed, .attention = (px_attention)o->attention, .tensorboard = copy(t, o->tensorboard),
                          .sgd = o->optimizer == PFX_OPTIMIZER_SGD, .out_dtype = weight_types[o->out_type]};
  return px_api_row_options(&o->rows, t->tok, px_model_config(t->model), &p->rows, err);
}

static pfx_trainer *new_trainer(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_train_options *callbacks) {
  pfx_trainer *t = px_calloc(1, sizeof *t);
  if (!t) return NULL;
  t->model = model->model;
  t->tok = tokenizer ? tokenizer->tok : NULL;
  t->callbacks = *callbacks;
  return t;
}

/* Inside, zero stands for the default; here _init has written that, and zero means zero. */
static px_status check(const pfx_train_options *o, px_error *err) {
  if (o->steps == 0 && o->epochs == 0) return px_fail(err, PX_INVALID, "--steps 0 and --epochs 0: there is nothing to do");
  if (o->clip == 0) return px_fail(err, PX_INVALID, "--clip 0 would leave nothing of a gradient: -1 turns clipping off");
  if (o->accumulate < 1) return px_fail(err, PX_INVALID, "--accumulate must be at least 1");
  if (o->batch_rows < 0 || o->batch_tokens < 0 || o->reparam < 0 || o->stop_after < 0 || o->patience < 0)
    return px_fail(err, PX_INVALID, "--batch-rows, --batch-tokens, --reparam, --stop-after and --patience must not be negative");
  if ((unsigned)o->optimizer > PFX_OPTIMIZER_SGD) return px_fail(err, PX_INVALID, "optimizer %d is not known", (int)o->optimizer);
  if ((unsigned)o->out_type > PFX_WEIGHT_F16) return px_fail(err, PX_INVALID, "type %d of the weights is not known", (int)o->out_type);
  if ((unsigned)o->attention > PFX_ATTENTION_CUDNN) return px_fail(err, PX_INVALID, "attention %d is not known", (int)o->attention);
  if ((unsigned)o->schedule > PFX_SCHEDULE_CONSTANT) return px_fail(err, PX_INVALID, "schedule %d is not known", (int)o->schedule);
  if (!(o->beta1 > 0 && o->beta1 < 1 && o->beta2 > 0 && o->beta2 < 1 && o->eps > 0))
    return px_fail(err, PX_INVALID, "beta1 and beta2 must be in (0, 1), eps positive");
  return PX_OK;
}

pfx_status pfx_trainer_create(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_train_options *options, pfx_trainer **trainer,
                              pfx_error *err) {
  pfx_train_options o = pfx_train_options_init();
  *trainer = NULL;
  if (px_api_options(&o, sizeof o, options, "pfx_train_options", err) != PFX_OK) return PFX_INVALID;
  pfx_trainer *t = new_trainer(model, tokenizer, &o);
  if (!t) return px_api_status(px_fail(px_api_error(err), PX_NO_MEMORY, "no memory"));
  px_status status = check(&o, px_api_error(err));
  if (status == PX_OK) status = convert(t, &o, px_api_error(err));
  if (status != PX_OK) {
    pfx_trainer_destroy(t);
    return px_api_status(status);
  }
  *trainer = t;
  return PFX_OK;
}

pfx_status pfx_trainer_resume(const pfx_model *model, const pfx_tokenizer *tokenizer, const char *dir, const pfx_train_options *changes,
                              pfx_trainer **trainer, pfx_error *err) {
  pfx_train_options o;
  memset(&o, 0, sizeof o);
  *trainer = NULL;
  if (px_api_options(&o, sizeof o, changes, "pfx_train_options", err) != PFX_OK) return PFX_INVALID;
  pfx_trainer *t = new_trainer(model, tokenizer, &o);
  if (!t || !(t->resume_dir = strdup(dir))) {
    pfx_trainer_destroy(t);
    return px_api_status(px_fail(px_api_error(err), PX_NO_MEMORY, "no memory"));
  }
  t->changes = (px_resume_changes){.steps = o.steps, .eval_every = o.eval_every, .save_every = o.save_every, .stop_after = o.stop_after,
                                   .epochs = o.epochs, .max_seconds = o.max_seconds, .patience = o.patience, .no_graph = o.no_graph,
                                   .tensorboard = copy(t, o.tensorboard)};
  *trainer = t;
  return PFX_OK;
}

pfx_status pfx_trainer_run_wait(pfx_trainer *t, pfx_train_result *result, pfx_error *err) {
  px_train_callbacks calls = {.progress = report, .cancelled = cancelled, .user = t, .log = px_api_log(t->callbacks.log, t->callbacks.log_user)};
  px_train_result r;
  px_status status = t->resume_dir ? px_train_resume(t->model, t->tok, t->resume_dir, &t->changes, &calls, &r, px_api_error(err))
                                   : px_train_run(t->model, t->tok, &t->options, &calls, &r, px_api_error(err));
  *result = (pfx_train_result){.step = r.step, .steps = r.steps, .best_step = r.best_step, .first_valid_loss = r.first_valid_loss,
                               .best_valid_loss = r.best_valid_loss, .last_valid_loss = r.last_valid_loss, .last_loss = r.last_loss,
                               .seconds = r.seconds, .tokens_per_s = r.tokens_per_s, .peak_bytes = r.peak_bytes, .finished = r.finished,
                               .early_stopped = r.early_stopped, .trainable = r.trainable};
  return px_api_status(status);
}

void pfx_trainer_destroy(pfx_trainer *t) {
  if (!t) return;
  px_arena_free(&t->arena);
  free(t->resume_dir);
  free(t);
}

pfx_status pfx_run_read(const char *dir, char **model_path, char **device, pfx_dtype *dtype, int32_t *threads, pfx_error *err) {
  px_arena arena = {0};
  px_train_options o;
  int type = 0, count = 0;
  const char *where = NULL;
  *model_path = *device = NULL;
  px_status status = px_train_read_run(dir, false, &arena, &o, &where, &type, &count, px_api_error(err));
  if (status == PX_OK) {
    *model_path = strdup(o.model_path);
    *device = strdup(where);
    *dtype = type == PX_BF16 ? PFX_DTYPE_BF16 : PFX_DTYPE_F32;
    *threads = count;
    if (!*model_path || !*device) status = px_fail(px_api_error(err), PX_NO_MEMORY, "no memory");
  }
  px_arena_free(&arena);
  return px_api_status(status);
}

/* All strings of the options in one allocation that the caller frees. */
static char *pack(char **at, const char *text) {
  if (!text) return NULL;
  char *start = *at;
  *at = stpcpy(start, text) + 1;
  return start;
}

pfx_status pfx_run_options(const char *run_json, pfx_train_options *options, char **model_path, void **memory, pfx_error *err) {
  px_arena arena = {0};
  px_train_options p;
  int type = 0, threads = 0;
  *options = pfx_train_options_init();
  *memory = NULL;
  *model_path = NULL;
  const char *device;
  px_status status = px_train_read_run(run_json, false, &arena, &p, &device, &type, &threads, px_api_error(err));
  if (status == PX_OK) {
    const char *const texts[] = {p.model_path, p.data, p.valid, p.out, p.tune, p.init};
    size_t bytes = 1;
    for (size_t i = 0; i < 6; i++) bytes += texts[i] ? strlen(texts[i]) + 1 : 0;
    char *at = *memory = px_calloc(bytes, 1);
    if (at) {
      pfx_train_options *o = options;
      *model_path = pack(&at, p.model_path);
      o->data = pack(&at, p.data);
      o->valid = pack(&at, p.valid);
      o->out = pack(&at, p.out);
      o->tune = pack(&at, p.tune);
      o->init = pack(&at, p.init);
      o->reparam = p.reparam;
      o->steps = p.steps;
      o->lr = p.lr;
      o->warmup = p.warmup;
      o->schedule = (pfx_schedule)p.schedule;
      o->batch_rows = p.batch_rows;
      o->batch_tokens = p.batch_tokens;
      o->accumulate = p.accumulate;
      o->beta1 = p.beta1, o->beta2 = p.beta2, o->eps = p.eps, o->weight_decay = p.weight_decay, o->clip = p.clip;
      o->eval_every = p.eval_every, o->save_every = p.save_every, o->patience = p.patience, o->prefix_dropout = p.prefix_dropout;
      o->rows = (pfx_data_options){.max_row_tokens = p.rows.max_row_tokens, .on_long = (pfx_on_long)p.rows.on_long, .loss_all = p.rows.loss_all,
                                   .no_bos = p.rows.no_bos, .no_end = p.rows.no_end,
                                   .chat_template = p.rows.chat ? px_template_name(p.rows.chat) : NULL};
      o->no_fingerprint = p.no_fingerprint;
      o->seed = p.seed;
      o->attention = (pfx_attention)p.attention;
      o->optimizer = p.sgd ? PFX_OPTIMIZER_SGD : PFX_OPTIMIZER_ADAMW;
      for (int k = 0; k <= PFX_WEIGHT_F16; k++)
        if (weight_types[k] == p.out_dtype) o->out_type = (pfx_weight_type)k;
    } else {
      status = px_fail(px_api_error(err), PX_NO_MEMORY, "no memory");
    }
  }
  px_arena_free(&arena);
  return px_api_status(status);
}

pfx_status pfx_probe_wait(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_adapter *adapter, const pfx_probe_options *options,
                          pfx_error *err) {
  pfx_probe_options o = pfx_probe_options_init();
  if (px_api_options(&o, sizeof o, options, "pfx_probe_options", err) != PFX_OK) return PFX_INVALID;
  px_error *e = px_api_error(err);
  const px_model *m = model->model;
  const px_tokenizer *tok = tokenizer ? tokenizer->tok : NULL;
  px_row_options row_options;
  px_rows rows = {0};
  px_tune *tune = NULL;
  px_tune_spec spec = {0};
  px_backend *be = NULL;
  px_log log = px_api_log(o.log, o.log_user);
  if (!o.data || !o.out) return px_api_status(px_fail(e, PX_INVALID, "--data and --out are needed"));
  if (adapter && o.tune) return px_api_status(px_fail(e, PX_INVALID, "--adapter and --tune exclude each other"));
  px_status status = px_backend_open(&(px_backend_options){.device = m->be->device, .threads = m->be->threads, .log = log, .attention = m->be->attention}, &be, e);
  if (status == PX_OK && o.tune) status = px_tune_parse(o.tune, o.init, o.reparam, &spec, e);
  spec.force = o.force;
  bool from_rows = o.tune && px_tune_reads_rows(&spec);
  if (status == PX_OK && o.tune && !from_rows) status = px_tune_open(m, be, tok, &spec, o.seed, &tune, e);
  if (status == PX_OK) status = px_api_row_options(&o.rows, tok, px_model_config(m), &row_options, e);
  int32_t context = px_model_config(m)->context, virtual = adapter ? adapter->adapter->tokens : tune ? tune->tokens : px_tune_spec_tokens(&spec);
  if (status == PX_OK && context - virtual < 2)
    status = px_fail(e, PX_INVALID, "%d virtual tokens leave no room in the model's context of %d", virtual, context);
  if (status == PX_OK && row_options.max_row_tokens == 0) row_options.max_row_tokens = context - virtual;
  if (status == PX_OK) status = px_rows_read(o.data, tok, &row_options, &log, &rows, e);
  if (status == PX_OK && from_rows) {
    spec.data_ids = rows.ids;
    spec.data_tokens = (int64_t)rows.offsets[rows.count];
    status = px_tune_open(m, be, tok, &spec, o.seed, &tune, e);
  }
  if (status == PX_OK) status = px_probe(m, be, &rows, adapter ? adapter->adapter : NULL, tune, o.out, e);
  px_rows_free(&rows);
  px_tune_close(tune);
  px_tune_spec_free(&spec);
  px_backend_close(be);
  return px_api_status(status);
}
