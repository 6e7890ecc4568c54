/* SPDX-License-Identifier: MIT
 * The scheduler. Each turn either reads new prompts (as many as fit a token budget) or makes one token for every active
 * row; rows with different adapters share both. A row gets all the pages it can need before it starts, so that a row
 * that runs always finishes; rows wait in order while pages are short. */
#include "generate/generator.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "generate/kv_cache.h"
#include "generate/row.h"
#include "tune/used.h"

enum { PREFILL_TOKENS = 2048, MAX_CACHE_BYTES = 1 << 30 };

struct px_generator {
  const px_model *model;
  const px_tokenizer *tok;
  px_backend *be;
  px_generator_options options;
  px_page_pool pool;
  px_buffers buffers;
  int64_t planned_tokens, planned_positions; /* what buffers are open for */
  px_used *used; /* the adapters */
  px_row *waiting, **waiting_end;
  px_row **active;
  int32_t active_count;
  int32_t *arrays; /* a batch's host arrays */
  size_t array_capacity;
  int32_t *block_table, *kv_lens, *sampled; /* backend memory */
  int64_t *slots;
  float *logits;
  px_sample_row *params;
  int32_t *history; /* [max_rows, context]; NULL until a penalty needs it */
  int32_t max_blocks;
  px_generator_stats stats;
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

px_status px_generator_open(const px_model *model, const px_tokenizer *tok, const px_generator_options *options,
                            px_generator **out, px_error *err) {
  *out = NULL;
  px_generator *g = px_calloc(1, sizeof *g);
  if (!g) return px_fail(err, PX_NO_MEMORY, "no memory");
  g->model = model;
  g->tok = tok;
  g->options = *options;
  g->waiting_end = &g->waiting;
  if (g->options.max_rows < 1) g->options.max_rows = 16;
  const px_config *c = px_model_config(model);
  int32_t row_pages = (c->context + PX_PAGE_TOKENS - 1) / PX_PAGE_TOKENS;
  size_t page = px_page_bytes(c, model->dtype), wanted = (size_t)row_pages * (size_t)g->options.max_rows * page;
  size_t allowed = g->options.cache_bytes > 0 ? (size_t)g->options.cache_bytes : MAX_CACHE_BYTES;
  int32_t pages = (int32_t)((wanted < allowed ? wanted : allowed) / page);
  g->max_blocks = row_pages;
  px_status status = px_backend_open(
      &(px_backend_options){
          .device = model->be->device, .threads = model->be->threads, .log = options->log, .profile = options->profile, .pack_weights = PX_PACK_ALL, .attention = model->be->attention},
      &g->be, err);
  if (status == PX_OK) status = px_used_open(model, g->be, &g->used, err);
  if (status == PX_OK) status = px_page_pool_open(c, g->be, model->dtype, pages > 0 ? pages : 1, &g->pool, err);
  if (status == PX_OK) {
    size_t rows = (size_t)g->options.max_rows;
    g->active = px_calloc(rows, sizeof *g->active);
    g->block_table = px_backend_alloc(g->be, rows * (size_t)row_pages * sizeof(int32_t));
    g->kv_lens = px_backend_alloc(g->be, rows * sizeof(int32_t));
    g->sampled = px_backend_alloc(g->be, rows * sizeof(int32_t));
    g->params = px_backend_alloc(g->be, rows * sizeof(px_sample_row));
    g->logits = px_backend_alloc(g->be, rows * (size_t)c->vocab * sizeof(float));
    status = px_backend_status(g->be, err);
    if (status == PX_OK && !g->active) status = px_fail(err, PX_NO_MEMORY, "no memory");
  }
  if (status != PX_OK) {
    px_generator_close(g);
    return status;
  }
  *out = g;
  return PX_OK;
}

void px_generator_close(px_generator *g) {
  if (!g) return;
  for (px_row *row = g->waiting, *next; row; row = next) {
    next = row->next;
    px_row_free(row);
  }
  for (int32_t i = 0; i < g->active_count; i++) px_row_free(g->active[i]);
  if (g->be) {
    px_page_pool_close(&g->pool, g->be);
    px_buffers_close(&g->buffers, g->be);
    px_used_close(g->used);
    void *const memory[] = {g->block_table, g->kv_lens, g->sampled, g->params, g->logits, g->slots, g->history};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) px_backend_free(g->be, memory[i]);
  }
  free(g->active);
  free(g->arrays);
  px_backend_close(g->be);
  free(g);
}

px_status px_generator_add_adapter(px_generator *g, const px_adapter *adapter, int32_t *id, px_error *err) {
  PX_TRY(px_used_add(g->used, adapter, id, err));
  g->planned_tokens = 0; /* buffers for what it attaches are made with the next batch */
  return PX_OK;
}

static int32_t prefix_tokens(const px_generator *g, const px_row *row) { return px_used_tokens(g->used, row->request.adapter); }

/* The most tokens that a row may ever have: the context less its prefix. */
static int32_t row_limit(const px_generator *g, const px_row *row) {
  return px_model_config(g->model)->context - prefix_tokens(g, row);
}

static int32_t pages_needed(const px_generator *g, const px_row *row) {
  int64_t most = (int64_t)row->prompt_len + row->request.sampling.max_tokens, limit = row_limit(g, row);
  return (int32_t)(((most < limit ? most : limit) + PX_PAGE_TOKENS - 1) / PX_PAGE_TOKENS);
}

px_status px_generator_add(px_generator *g, const px_request *request, px_error *err) {
  const px_config *c = px_model_config(g->model);
  if (request->count < 1)
    return px_fail(err, PX_INVALID, "the prompt is empty and the model has no begin token: give it some text");
  if (request->adapter < -1 || request->adapter >= px_used_count(g->used))
    return px_fail(err, PX_INVALID, "adapter number %d is not known", request->adapter);
  for (int32_t i = 0; i < request->count; i++)
    if (request->ids[i] < 0 || request->ids[i] >= c->vocab)
      return px_fail(err, PX_INVALID, "token id %d is outside the model's vocabulary of %d", request->ids[i], c->vocab);
  px_row *row = px_row_new(request, g->tok, err);
  if (!row) return PX_NO_MEMORY;
  px_sampling *s = &row->request.sampling;
  if (s->max_tokens < 1) s->max_tokens = 256;
  if (s->top_p == 0) s->top_p = 1;
  if (s->repetition_penalty == 0) s->repetition_penalty = 1;
  px_status status = PX_OK;
  if (!(s->temperature >= 0) || !isfinite(s->temperature) || !isfinite(s->repetition_penalty) || !(s->top_p > 0 && s->top_p <= 1) || !(s->min_p >= 0 && s->min_p <= 1) ||
      !(s->repetition_penalty > 0) || s->top_k < 0)
    status = px_fail(err, PX_INVALID,
                     "temperature and top-k must not be negative, top-p must be in (0, 1], min-p in [0, 1], the "
                     "repetition penalty positive");
  if (status == PX_OK && request->count >= row_limit(g, row))
    status = px_fail(err, PX_INVALID,
                     "a prompt of %d tokens leaves no room in the model's context of %d (%d of it taken by the prefix)",
                     request->count, c->context, prefix_tokens(g, row));
  if (status == PX_OK && pages_needed(g, row) > g->pool.page_count)
    status = px_fail(err, PX_INVALID,
                     "a prompt of %d tokens and %d new ones need more than the key/value cache of %d tokens",
                     request->count, s->max_tokens, g->pool.page_count * PX_PAGE_TOKENS);
  if (status != PX_OK) {
    px_row_free(row);
    return status;
  }
  *g->waiting_end = row;
  g->waiting_end = &row->next;
  return PX_OK;
}

/* Buffers for a batch of this many tokens and positions; they only grow. */
static px_status make_room(px_generator *g, int64_t tokens, int64_t positions, px_error *err) {
  if (tokens <= g->planned_tokens && positions <= g->planned_positions) return PX_OK;
  if (tokens < g->planned_tokens) tokens = g->planned_tokens;
  if (tokens < g->options.max_rows) tokens = g->options.max_rows;
  positions = positions < g->planned_positions ? g->planned_positions : (positions + 255) / 256 * 256;
  px_buffers_close(&g->buffers, g->be);
  px_backend_free(g->be, g->slots);
  g->slots = NULL;
  g->planned_tokens = 0;
  px_plan_request request = {.dtype = g->model->dtype,
                             .tokens = tokens,
                             .seqs = g->options.max_rows,
                             .labels = g->options.max_rows,
                             .positions = positions,
                             .logit_rows = 1,
                             .decode = true};
  const px_hooks *hooks = px_used_hooks(g->used, -1);
  if (hooks) request.attached = hooks->attached;
  PX_TRY(px_buffers_open(px_model_config(g->model), g->be, &request, &g->buffers, err));
  g->slots = px_backend_alloc(g->be, (size_t)tokens * sizeof *g->slots);
  size_t need =
      (size_t)(2 * tokens) + 4 * (size_t)g->options.max_rows + 1 + (size_t)g->options.max_rows * (size_t)g->max_blocks;
  if (!g->slots || px_reserve(&g->arrays, &g->array_capacity, need + 2 * (size_t)tokens, sizeof *g->arrays) != 0)
    return px_fail(err, PX_NO_MEMORY, "no memory for a batch of %lld tokens", (long long)tokens);
  g->planned_tokens = tokens;
  g->planned_positions = positions;
  return PX_OK;
}

static int32_t new_tokens(const px_row *row) { return (int32_t)row->ids.len - row->cached; }

/* Puts the rows' new tokens into one batch, runs the model, and samples a token for each row's last position. */
static px_status compute(px_generator *g, px_row **rows, int32_t count, bool fresh, px_error *err) {
  int64_t tokens = 0, positions = 0;
  for (int32_t r = 0; r < count; r++) {
    int64_t end = (int64_t)rows[r]->ids.len + prefix_tokens(g, rows[r]);
    tokens += new_tokens(rows[r]);
    positions = end > positions ? end : positions;
  }
  PX_TRY(make_room(g, tokens, positions, err));
  int32_t *ids = g->arrays, *place = ids + tokens, *offsets = place + tokens, *adapter = offsets + count + 1,
          *last = adapter + count;
  int32_t *lens = last + count, *table = lens + count;
  int64_t *slots = px_calloc((size_t)tokens, sizeof *slots);
  if (!slots) return px_fail(err, PX_NO_MEMORY, "no memory");
  int32_t t = 0;
  for (int32_t r = 0; r < count; r++) {
    px_row *row = rows[r];
    offsets[r] = t;
    adapter[r] = row->request.adapter;
    for (int32_t i = row->cached; i < (int32_t)row->ids.len; i++, t++) {
      ids[t] = row->ids.data[i];
      place[t] = prefix_tokens(g, row) + i;
      slots[t] = (int64_t)row->pages[i / PX_PAGE_TOKENS] * PX_PAGE_TOKENS + i % PX_PAGE_TOKENS;
    }
    last[r] = t - 1;
    lens[r] = (int32_t)row->ids.len;
    for (int32_t p = 0; p < g->max_blocks; p++) table[r * g->max_blocks + p] = p < row->page_count ? row->pages[p] : 0;
  }
  offsets[count] = t;
  px_backend_write(g->be, g->slots, slots, (size_t)tokens * sizeof *slots);
  free(slots);
  px_backend_write(g->be, g->kv_lens, lens, (size_t)count * sizeof *lens);
  px_backend_write(g->be, g->block_table, table, (size_t)count * (size_t)g->max_blocks * sizeof *table);
  px_kv_cache cache = {.k = g->pool.k,
                       .v = g->pool.v,
                       .page_tokens = PX_PAGE_TOKENS,
                       .max_blocks = g->max_blocks,
                       .block_table = g->block_table,
                       .kv_lens = g->kv_lens,
                       .slots = g->slots,
                       .fresh = fresh};
  const px_hooks *hooks = px_used_hooks(g->used, px_used_set(g->used, rows[0]->request.adapter));
  px_stack s = {.be = g->be,
                .config = px_model_config(g->model),
                .weights = &g->model->weights,
                .hooks = hooks,
                .buffers = &g->buffers,
                .cache = &cache};
  px_batch batch = {.tokens = t,
                    .seqs = count,
                    .labels = count,
                    .ids = ids,
                    .positions = place,
                    .offsets = offsets,
                    .adapter = hooks ? adapter : NULL,
                    .label_rows = last};
  PX_TRY(px_stack_begin(&s, &batch, err));
  px_stack_fwd(&s);
  px_head_fwd(&s);
  px_head_logits(&s, 0, count, g->logits);
  for (int32_t r = 0; r < count; r++) rows[r]->cached = (int32_t)rows[r]->ids.len;
  return PX_OK;
}

/* The ids that a repetition penalty looks at, in backend memory; room for them is made at the first need. */
static px_status give_history(px_generator *g, int32_t number, const px_row *row, px_sample_row *params, px_error *err) {
  size_t context = (size_t)px_model_config(g->model)->context;
  if (!g->history) g->history = px_backend_alloc(g->be, (size_t)g->options.max_rows * context * sizeof(int32_t));
  if (!g->history) return px_backend_status(g->be, err);
  int32_t *at = g->history + (size_t)number * context;
  size_t count = row->ids.len < context ? row->ids.len : context;
  px_backend_write(g->be, at, row->ids.data, count * sizeof *at);
  params->history = at;
  params->history_count = (int32_t)count;
  return PX_OK;
}

static px_status sample(px_generator *g, px_row **rows, int32_t count, px_error *err) {
  int32_t ids[1024];
  int64_t vocab = px_model_config(g->model)->vocab;
  for (int32_t first = 0; first < count; first += 1024) {
    int32_t here = count - first < 1024 ? count - first : 1024;
    for (int32_t r = 0; r < here; r++) {
      const px_row *row = rows[first + r];
      const px_sampling *p = &row->request.sampling;
      px_sample_row params = {.temperature = p->temperature,
                              .top_p = p->top_p,
                              .min_p = p->min_p,
                              .repetition_penalty = p->repetition_penalty,
                              .top_k = p->top_k,
                              .seed = p->seed,
                              .row = row->request.row,
                              .position = (uint32_t)row->ids.len};
      if (p->repetition_penalty != 1) PX_TRY(give_history(g, first + r, row, &params, err));
      px_backend_write(g->be, &g->params[r], &params, sizeof params);
    }
    px_op_sample(g->be, &(px_sample_args){.rows = here,
                                          .vocab = vocab,
                                          .stride = vocab,
                                          .logits = g->logits + first * vocab,
                                          .params = g->params,
                                          .ids = g->sampled});
    px_backend_read(g->be, ids, g->sampled, (size_t)here * sizeof *ids);
    PX_TRY(px_backend_status(g->be, err));
    for (int32_t r = 0; r < here; r++) {
      px_row *row = rows[first + r];
      if (ids[r] < 0)
        return px_fail(err, PX_NOT_FINITE, "prompt %llu: the model's logits are not finite",
                       (unsigned long long)row->request.row);
      PX_TRY(px_row_take(row, g->tok, ids[r], row_limit(g, row), err));
    }
  }
  return PX_OK;
}

static void retire(px_generator *g) {
  int32_t kept = 0;
  for (int32_t i = 0; i < g->active_count; i++) {
    px_row *row = g->active[i];
    if (row->finish == PX_FINISH_NONE) {
      g->active[kept++] = row;
      continue;
    }
    for (int32_t p = 0; p < row->page_count; p++) px_page_give(&g->pool, row->pages[p]);
    px_row_free(row);
  }
  g->active_count = kept;
}

/* Whether two rows may share a batch: they run on the same weights. */
static bool same_set(const px_generator *g, const px_row *a, const px_row *b) {
  return px_used_set(g->used, a->request.adapter) == px_used_set(g->used, b->request.adapter);
}

/* Moves waiting rows to the end of the active ones while places, pages and the token budget last. */
static px_status admit(px_generator *g, int32_t *added, px_error *err) {
  int64_t tokens = 0;
  *added = 0;
  while (g->waiting && g->active_count < g->options.max_rows) {
    px_row *row = g->waiting;
    int32_t pages = pages_needed(g, row);
    if (g->active_count && !same_set(g, row, g->active[0])) break; /* it waits for those that run */
    if (pages > g->pool.free_count || (*added && tokens + row->prompt_len > PREFILL_TOKENS)) break;
    row->pages = px_calloc((size_t)pages, sizeof *row->pages);
    if (!row->pages) return px_fail(err, PX_NO_MEMORY, "no memory");
    while (row->page_count < pages) row->pages[row->page_count++] = px_page_take(&g->pool);
    tokens += row->prompt_len;
    g->waiting = row->next;
    if (!g->waiting) g->waiting_end = &g->waiting;
    g->active[g->active_count++] = row;
    ++*added;
  }
  return PX_OK;
}

px_status px_generator_run(px_generator *g, bool (*cancelled)(void *user), void *user, px_error *err) {
  while (g->waiting || g->active_count) {
    if (cancelled && cancelled(user)) return px_fail(err, PX_CANCELLED, "generation was stopped");
    int32_t added = 0;
    double start = now();
    PX_TRY(admit(g, &added, err));
    px_row **rows = added ? g->active + g->active_count - added : g->active;
    int32_t count = added ? added : g->active_count;
    for (int32_t r = 0; added && r < count; r++) g->stats.prompt_tokens += rows[r]->prompt_len;
    PX_TRY(compute(g, rows, count, added > 0, err));
    PX_TRY(sample(g, rows, count, err));
    g->stats.new_tokens += count;
    *(added ? &g->stats.prefill_seconds : &g->stats.decode_seconds) += now() - start;
    retire(g);
  }
  return PX_OK;
}

px_generator_stats px_generator_stats_get(const px_generator *g) {
  px_generator_stats stats = g->stats;
  stats.cache_bytes = g->pool.bytes;
  return stats;
}
