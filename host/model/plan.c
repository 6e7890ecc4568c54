/* SPDX-License-Identifier: MIT */
#include "model/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>


/* Lays buffers out one after the other; with memory NULL it only counts. The same walk makes plan and pointers. */
typedef struct layout {
  px_plan *plan;
  char *memory;
  size_t used;
} layout;

static void *place(layout *l, const char *name, int64_t elements, size_t element_bytes) {
  size_t bytes = ((size_t)elements * element_bytes + 63) & ~(size_t)63;
  void *at = l->memory ? l->memory + l->used : NULL;
  l->used += bytes;
  px_plan *p = l->plan;
  for (int i = 0; i < p->line_count; i++)
    if (strcmp(p->lines[i].name, name) == 0) {
      p->lines[i].bytes += bytes;
      return at;
    }
  if (p->line_count < (int)(sizeof p->lines / sizeof *p->lines))
    p->lines[p->line_count++] = (px_plan_line){name, bytes};
  return at;
}

static int64_t site_out(const px_config *c, px_site site) {
  switch (site) {
    case PX_SITE_Q: return (int64_t)c->heads * c->head_dim;
    case PX_SITE_K:
    case PX_SITE_V: return (int64_t)c->kv_heads * c->head_dim;
    case PX_SITE_GATE:
    case PX_SITE_UP: return c->ffn_dim;
    default: return c->dim;
  }
}

/* What is attached to the projections leaves something too. */
static void place_attached(layout *l, const px_config *c, const px_plan_request *r, px_layer_saves *s, bool kept) {
  size_t e = px_dtype_bytes(r->dtype, 1);
  for (int site = 0; site < PX_SITES; site++) {
    if (r->attached.rank[site]) s->low[site] = place(l, "low-rank deltas", r->tokens * r->attached.rank[site], e);
    if (kept && r->attached.scaled[site] && site != PX_SITE_DOWN)
      s->raw[site] = place(l, "projections before their scales", r->tokens * site_out(c, (px_site)site), e);
  }
}

/* shared: the layer has the big buffers of another one; kept: a backward pass will need what it leaves. */
static void place_layer(layout *l, const px_config *c, const px_plan_request *r, px_layer_saves *s, bool shared, bool kept) {
  int64_t t = r->tokens, a = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
  size_t e = px_dtype_bytes(r->dtype, 1);
  if (!shared) {
    s->x = place(l, "layer inputs", t * c->dim, e);
    s->mid = place(l, "layer inputs", t * c->dim, e);
    s->o = place(l, "attention outputs", t * a, e);
    s->gate = place(l, "feed-forward", t * c->ffn_dim, e);
    if (c->gated) s->up = place(l, "feed-forward", t * c->ffn_dim, e);
    if (c->qk_norm) s->q_raw = place(l, "queries and keys before norm", t * a, e);
    if (c->qk_norm) s->k_raw = place(l, "queries and keys before norm", t * kv, e);
    s->q = place(l, "queries, keys, values", t * a, e);
    place_attached(l, c, r, s, kept);
  }
  if (!shared || r->keep_kv) {
    s->k = place(l, "queries, keys, values", t * kv, e);
    s->v = place(l, "queries, keys, values", t * kv, e);
  }
  if (kept) {
    s->lse = place(l, "statistics", t * c->heads, 4);
    s->rstd1 = place(l, "statistics", t, 4);
    s->rstd2 = place(l, "statistics", t, 4);
    if (c->norm == PX_NORM_LAYER) {
      s->mean1 = place(l, "statistics", t, 4);
      s->mean2 = place(l, "statistics", t, 4);
    }
    if (c->qk_norm) s->qk_rstd = place(l, "statistics", t * (c->heads + c->kv_heads), 4);
  }
}

/* What a backward pass makes anew or works in because something is attached. */
static void place_again(layout *l, const px_config *c, const px_plan_request *r, px_buffers *b) {
  const px_attached *x = &r->attached;
  size_t e = px_dtype_bytes(r->dtype, 1);
  int64_t rank = 0, widest = 0, a = (int64_t)c->heads * c->head_dim;
  bool normed = false;
  for (int site = 0; site < PX_SITES; site++) {
    bool reads = x->rank[site] || x->trained[site];
    int64_t in = site == PX_SITE_DOWN ? c->ffn_dim : site == PX_SITE_O ? a : c->dim;
    if (x->rank[site] > rank) rank = x->rank[site];
    if (x->rank[site] && in > widest) widest = in;
    normed |= reads && site != PX_SITE_O && site != PX_SITE_DOWN;
  }
  bool down = x->rank[PX_SITE_DOWN] || x->trained[PX_SITE_DOWN], scaled = x->scaled[PX_SITE_DOWN];
  if (x->dropout && rank) b->dropped = place(l, "low-rank deltas", r->tokens * widest, e);
  if (!r->backward) return;
  if (rank) b->dlow = place(l, "low-rank deltas", r->tokens * rank, e);
  if (normed) b->n_again = place(l, "inputs made anew", r->tokens * c->dim, e);
  if (down || scaled) b->act_again = place(l, "inputs made anew", r->tokens * c->ffn_dim, e);
  if (down && scaled) b->act_scaled = place(l, "inputs made anew", r->tokens * c->ffn_dim, e);
}

/* What attention wants beside its workspace: nothing, unless the backend does it in parts. */
static void place_scratch(layout *l, const px_plan_request *r, px_attn_shape shape, px_buffers *b) {
  shape.longest = (int32_t)(r->row_tokens ? r->row_tokens : r->tokens);
  size_t forward = r->be ? px_backend_attention_bytes(r->be, &shape, r->tokens, false) : 0,
         backward = r->be && r->backward ? px_backend_attention_bytes(r->be, &shape, r->tokens, true) : 0;
  b->attn_scratch_bytes = forward > backward ? forward : backward;
  if (b->attn_scratch_bytes) b->attn_scratch = place(l, "attention in parts", (int64_t)b->attn_scratch_bytes, 1);
}

static void place_all(layout *l, const px_config *c, const px_plan_request *r, px_buffers *b) {
  int64_t t = r->tokens, a = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
  size_t e = px_dtype_bytes(r->dtype, 1);
  px_attn_shape shape = {.dtype = r->dtype,
                         .heads = c->heads,
                         .kv_heads = c->kv_heads,
                         .head_dim = c->head_dim,
                         .seqs = (int32_t)r->seqs,
                         .mask = PX_MASK_CAUSAL};
  size_t batch = l->used;
  b->batch = b->control = place(l, "batch", 1, sizeof *b->control);
  b->ids = place(l, "batch", t, 4);
  b->positions = place(l, "batch", t, 4);
  b->offsets = place(l, "batch", r->seqs + 1, 4);
  b->adapter = place(l, "batch", r->seqs, 4);
  b->label_rows = place(l, "batch", r->labels, 4);
  b->targets = place(l, "batch", r->labels, 4);
  b->label_group = place(l, "batch", r->labels, 4);
  b->batch_bytes = l->used - batch;
  if (!c->learned_positions) {
    b->cos_table = place(l, "rotary tables", r->positions * (c->head_dim / 2), 4);
    b->sin_table = place(l, "rotary tables", r->positions * (c->head_dim / 2), 4);
  }
  px_layer_saves first = {0};
  for (int i = 0; i < c->layers; i++) {
    bool kept = r->backward && i >= r->keep_from, shared = i && !kept;
    px_layer_saves saves = shared ? first : (px_layer_saves){0};
    place_layer(l, c, r, &saves, shared, kept);
    if (i == 0) first = saves;
    if (b->layers) b->layers[i] = saves;
  }
  b->n = place(l, "layer scratch", t * c->dim, e);
  b->proj = place(l, "layer scratch", t * c->dim, e);
  b->act = place(l, "layer scratch", t * c->ffn_dim, e);
  place_again(l, c, r, b);
  if (r->decode) b->decode_workspace = place(l, "attention workspace", (int64_t)px_attn_decode_workspace(&shape, r->seqs), 1);
  place_scratch(l, r, shape, b);
  b->head_x = place(l, "labelled rows", r->labels * c->dim, e);
  b->head_n = place(l, "labelled rows", r->labels * c->dim, e);
  b->head_rstd = place(l, "labelled rows", r->labels, 4);
  b->head_mean = place(l, "labelled rows", r->labels, 4);
  b->row_loss = place(l, "labelled rows", r->labels, 4);
  b->logits = place(l, "logits", r->logit_rows * c->vocab, r->backward ? e : 4);
  if (r->backward) {
    b->head_dn = place(l, "labelled rows", r->labels * c->dim, e);
    b->dx = place(l, "gradients of activations", t * c->dim, e);
    b->dheads = place(l, "gradients of activations", t * a, e);
    b->dq = place(l, "gradients of activations", t * a, e);
    b->dk = place(l, "gradients of activations", t * kv, e);
    b->dv = place(l, "gradients of activations", t * kv, e);
    b->attn_workspace = place(l, "attention workspace", (int64_t)px_attn_bwd_workspace(&shape, t, r->segment_rows), 1);
  }
}

void px_plan_make(const px_config *config, const px_plan_request *request, px_plan *plan) {
  *plan = (px_plan){.request = *request};
  layout l = {.plan = plan};
  px_buffers none = {0};
  place_all(&l, config, request, &none);
  plan->total_bytes = l.used;
}

static size_t bytes_of(const px_config *config, const px_plan_request *request, int64_t tokens) {
  px_plan plan;
  px_plan_request r = *request;
  r.tokens = tokens;
  if (r.seqs > tokens) r.seqs = (int32_t)tokens;
  if (r.labels > tokens) r.labels = tokens;
  if (r.logit_rows > r.labels) r.logit_rows = r.labels;
  px_plan_make(config, &r, &plan);
  return plan.total_bytes;
}

int64_t px_plan_most_tokens(const px_config *config, const px_plan_request *request, size_t bytes) {
  int64_t fits = 0, too_many = request->tokens + 1;
  while (too_many - fits > 1) {
    int64_t middle = fits + (too_many - fits) / 2;
    if (bytes_of(config, request, middle) <= bytes) fits = middle;
    else too_many = middle;
  }
  return fits;
}

typedef struct size_text {
  char text[24];
} size_text;

static size_text said(double bytes) {
  size_text s;
  snprintf(s.text, sizeof s.text, bytes < 1e8 ? "%.1f MB" : "%.2f GB", bytes < 1e8 ? bytes / 1e6 : bytes / 1e9);
  return s;
}

static px_status check_room(const px_config *config, px_backend *be, const px_plan *plan, px_error *err) {
  int64_t available = px_backend_free_bytes(be), fits;
  if (available < 0) return PX_OK; /* unknown: the allocation itself will tell */
  if (plan->total_bytes <= (size_t)available) return PX_OK;
  size_text need = said((double)plan->total_bytes), have = said((double)available);
  fits = px_plan_most_tokens(config, &plan->request, (size_t)available);
  if (fits == 0)
    return px_fail(err, PX_NO_MEMORY, "the step needs %s beside the weights and %s are free: not even one token a batch would fit",
                   need.text, have.text);
  return px_fail(err, PX_NO_MEMORY,
                 "the step needs %s for %lld tokens a batch and %s are free, enough for %lld: use fewer --batch-rows or "
                 "--batch-tokens, shorter rows, or --accumulate",
                 need.text, (long long)plan->request.tokens, have.text, (long long)fits);
}

px_status px_buffers_open(const px_config *config, px_backend *be, const px_plan_request *request, px_buffers *b,
                          px_error *err) {
  *b = (px_buffers){0};
  px_plan_request own = *request;
  own.be = be;
  px_plan_make(config, &own, &b->plan);
  PX_TRY(check_room(config, be, &b->plan, err));
  b->layers = px_calloc((size_t)config->layers, sizeof *b->layers);
  b->memory = px_backend_alloc(be, b->plan.total_bytes);
  if (!b->layers || !b->memory) {
    px_status status = px_backend_status(be, err);
    px_buffers_close(b, be);
    return status != PX_OK ? status : px_fail(err, PX_NO_MEMORY, "no memory");
  }
  px_plan counted = {0};
  layout l = {.plan = &counted, .memory = b->memory};
  place_all(&l, config, &own, b);
  if (config->learned_positions) return PX_OK;
  size_t bytes = (size_t)request->positions * (size_t)(config->head_dim / 2) * sizeof(float);
  float *tables = malloc(2 * bytes + 1);
  if (!tables) {
    px_buffers_close(b, be);
    return px_fail(err, PX_NO_MEMORY, "no memory");
  }
  float *sines = tables + bytes / sizeof(float);
  px_rope_tables(config, request->positions, tables, sines);
  px_backend_write(be, b->cos_table, tables, bytes);
  px_backend_write(be, b->sin_table, sines, bytes);
  free(tables);
  px_status status = px_backend_status(be, err);
  if (status != PX_OK) px_buffers_close(b, be);
  return status;
}

void px_buffers_close(px_buffers *b, px_backend *be) {
  px_backend_free(be, b->memory);
  free(b->layers);
  *b = (px_buffers){0};
}
