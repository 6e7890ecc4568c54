/* SPDX-License-Identifier: MIT
 * What an adapter costs when it is used: milliseconds a generated token, one prompt at a time, the frozen model and every
 * method by turns so that a machine that slows down slows all of them. Done here and not in programs of their own, because
 * nothing of memory is measured. */
#include <math.h>

#include "cli/compare.h"

enum { ROUNDS = 5, PROMPTS = 4, TOKENS = 24 };

typedef struct user_of_model {
  pfx_model *model; /* NULL: the base */
  pfx_adapter *adapter;
  double ms[ROUNDS];
  int rounds;
  bool there;
} user_of_model;

static bool measure(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_adapter *adapter, char **prompts, size_t count, double *ms) {
  pfx_error err = {0};
  pfx_generator *g = NULL;
  pfx_generator_options o = pfx_generator_options_init();
  pfx_generator_stats stats;
  int32_t id = -1;
  o.max_rows = 1;
  if (pfx_generator_create(model, tokenizer, &o, &g, &err) != PFX_OK) return false;
  bool good = !adapter || pfx_generator_add_adapter(g, adapter, &id, &err) == PFX_OK;
  for (size_t i = 0; good && i < count && i < PROMPTS; i++) {
    pfx_request r = pfx_request_init();
    r.prompt = prompts[i];
    r.adapter = id;
    r.max_tokens = TOKENS;
    good = pfx_generator_add(g, &r, &err) == PFX_OK;
  }
  good = good && pfx_generator_run_wait(g, cli_stopped, NULL, &err) == PFX_OK;
  pfx_generator_stats_get(g, &stats);
  pfx_generator_destroy(g);
  int64_t made = stats.new_tokens - (int64_t)(count < PROMPTS ? count : PROMPTS); /* the first comes with the prompt */
  *ms = made > 0 ? 1000 * stats.decode_seconds / (double)made : NAN;
  return good && isfinite(*ms);
}

/* Whatever else the machine does only adds time. */
static double fastest(const user_of_model *u) {
  double ms = INFINITY;
  for (int i = 0; i < u->rounds; i++) ms = u->ms[i] < ms ? u->ms[i] : ms;
  return ms;
}

static const compare_run *chosen_run(const compare_method *m) {
  for (int i = 0; i < m->run_count; i++)
    if (m->runs[i].chosen) return &m->runs[i];
  return NULL;
}

static void open_users(const compare *c, const pfx_model_options *o, user_of_model *users) {
  pfx_error err = {0};
  for (int i = 0; i < c->method_count; i++) {
    const compare_run *r = chosen_run(&c->methods[i]);
    if (!r || c->methods[i].kind == COMPARE_IN_CONTEXT) continue;
    if (!r->folder)
      users[i].there = true;
    else if (compare_exists(compare_printf("%s/config.json", r->folder)) && !compare_exists(compare_printf("%s/adapter_config.json", r->folder)))
      users[i].there = pfx_model_open(r->folder, o, &users[i].model, &err) == PFX_OK;
    else
      users[i].there = pfx_adapter_open(r->folder, &users[i].adapter, &err) == PFX_OK;
  }
}

/* A large model on a slow machine: fewer rounds, but all methods equally many. */
static double most_seconds(const compare *c) {
  double share = 0.04 * c->plan.budget_seconds;
  return share > 0 && share < 60 ? share : 60;
}

static void take_turns(const compare *c, const pfx_model *base, const pfx_tokenizer *tokenizer, user_of_model *users, char **prompts, size_t count) {
  double start = compare_clock();
  for (int round = 0; round <= ROUNDS && !cli_stopped(NULL); round++) { /* the first warms up */
    if (round > 1 && compare_clock() - start > most_seconds(c)) break;
    for (int i = 0; i < c->method_count; i++) {
      user_of_model *u = &users[i];
      double ms;
      if (!u->there || !measure(u->model ? u->model : base, tokenizer, u->adapter, prompts, count, &ms) || round == 0) continue;
      u->ms[u->rounds++] = ms;
    }
  }
}

/* {"label": milliseconds} */
static json_t *measure_all(compare *c) {
  pfx_error err = {0};
  pfx_model *base = NULL;
  pfx_tokenizer *tokenizer = NULL;
  char **prompts = NULL;
  size_t count = 0;
  pfx_model_options o = pfx_model_options_init();
  user_of_model *users = compare_alloc(COMPARE_MOST_METHODS, sizeof *users);
  json_t *out = json_object();
  o.dtype = (pfx_dtype)cli_shared.dtype;
  o.threads = cli_shared.threads;
  o.device = cli_shared.device;
  cli_status(true, "measuring the cost of a token");
  if (pfx_model_open(cli_shared.model, &o, &base, &err) == PFX_OK && pfx_tokenizer_open(cli_shared.model, &tokenizer, &err) == PFX_OK &&
      pfx_prompts_read(c->set.test, &prompts, &count, &err) == PFX_OK) {
    open_users(c, &o, users);
    take_turns(c, base, tokenizer, users, prompts, count);
    for (int i = 0; i < c->method_count; i++)
      if (users[i].rounds) json_object_set_new(out, c->methods[i].label, json_real(fastest(&users[i])));
  }
  for (int i = 0; i < c->method_count; i++) {
    pfx_adapter_close(users[i].adapter);
    pfx_model_close(users[i].model);
  }
  pfx_free(prompts);
  pfx_tokenizer_close(tokenizer);
  pfx_model_close(base);
  return out;
}

int compare_costs(compare *c) {
  const char *path = compare_printf("%s/jobs/token_costs.json", c->work);
  json_t *costs = c->generate ? compare_read_json(path) : NULL;
  if (c->generate && !costs) {
    costs = measure_all(c);
    c->code = cli_stopped(NULL) ? 130 : compare_write_json(path, costs);
    json_decref(costs);
    if (c->code) return c->code;
    costs = compare_read_json(path); /* the digits that another run of this command will see */
  }
  for (int i = 0; i < c->method_count; i++) {
    const json_t *own = json_object_get(costs, c->methods[i].label), *zero = json_object_get(costs, c->methods[0].label);
    c->methods[i].token_ms = json_is_number(own) ? json_number_value(own) : NAN;
    c->methods[i].token_ms_added = json_is_number(own) && json_is_number(zero) ? json_number_value(own) - json_number_value(zero) : NAN;
  }
  json_decref(costs);
  return 0;
}
