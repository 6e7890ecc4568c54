/* SPDX-License-Identifier: MIT
 * Training: every method with the first seed at its learning rates, the best of which, by validation, the other seeds use;
 * then what was chosen is measured on --test and --retain. All methods get equal rows in equal order (the seed decides). */
#include <math.h>
#include <stdlib.h>

#include "cli/compare.h"

static int train(compare *c, compare_run *r) {
  const compare_settings *s = &c->set;
  compare_args args = {0};
  compare_arg(&args, "train");
  compare_common_args(c, &args, NULL);
  compare_arg2(&args, "--data", s->data);
  if (s->valid) compare_arg2(&args, "--valid", s->valid);
  compare_arg2(&args, "--tune", r->tune);
  compare_arg2(&args, "--steps", compare_printf("%lld", (long long)c->plan.steps));
  compare_arg2(&args, "--eval-every", compare_printf("%lld", (long long)c->plan.eval_every));
  compare_train_args(c, &args);
  compare_arg2(&args, "--seed", compare_printf("%llu", (unsigned long long)r->seed));
  compare_arg2(&args, "--out", r->folder);
  compare_arg2(&args, "--resume", "auto");
  const json_t *job = compare_job(c, r->name, &args, r->folder, compare_printf("training %s, seed %llu", r->tune, (unsigned long long)r->seed));
  if (!job) return c->code;
  compare_read_run(c, r, job);
  return 0;
}

static bool better(const compare_run *a, const compare_run *b) {
  if (!b || !b->finished) return a->finished;
  return a->finished && a->best_valid < b->best_valid;
}

/* The search: the method's runs with the first seed. */
static int choose_rate(compare *c, compare_method *m) {
  compare_run *best = NULL;
  int searched = m->searched ? COMPARE_RATES : 1;
  for (int i = 0; i < searched; i++) {
    if (train(c, &m->runs[i])) return c->code;
    if (better(&m->runs[i], best)) best = &m->runs[i];
  }
  if (!best) {
    m->failure = m->runs[searched > 1 ? 1 : 0].failure;
    return 0;
  }
  m->best_rate = best->rate;
  for (int i = 0; i < searched; i++) /* of a run that is not gone on with only the adapter stays: all weights take room */
    if (&m->runs[i] != best) compare_remove_folder(compare_printf("%s/checkpoint", m->runs[i].folder));
  best->chosen = true;
  return c->code = compare_state_save(c);
}

static int measure(compare *c, compare_run *r) {
  const compare_settings *s = &c->set;
  if (compare_evaluate(c, compare_printf("%s.test", r->name), r->folder, s->test, c->generate, 0, &r->test)) return c->code;
  if (s->retain && compare_evaluate(c, compare_printf("%s.retain", r->name), r->folder, s->retain, false, 0, &r->retain)) return c->code;
  if (r->test.there) return 0;
  const json_t *job = json_object_get(c->jobs, compare_printf("%s.test", r->name));
  r->failure = json_string_value(json_object_get(job, "failure"));
  r->chosen = false;
  return 0;
}

int compare_train_all(compare *c) {
  for (int i = 0; i < c->method_count; i++) {
    compare_method *m = &c->methods[i];
    if (m->kind != COMPARE_TUNED || m->failure) continue;
    compare_add_runs(c, m);
    if (choose_rate(c, m)) return c->code;
  }
  for (int i = 0; i < c->method_count; i++) {
    compare_method *m = &c->methods[i];
    if (m->kind != COMPARE_TUNED || m->failure) continue;
    compare_add_runs(c, m);
    for (int k = m->searched ? COMPARE_RATES : 1; k < m->run_count; k++) {
      if (train(c, &m->runs[k])) return c->code;
      m->runs[k].chosen = m->runs[k].finished;
    }
    bool any = false;
    for (int k = 0; k < m->run_count; k++) {
      if (m->runs[k].chosen && measure(c, &m->runs[k])) return c->code;
      any = any || m->runs[k].chosen;
    }
    for (int k = 0; k < m->run_count && !any; k++)
      if (m->runs[k].failure) m->failure = m->runs[k].failure;
  }
  return 0;
}

/* ---- over the seeds ---- */

typedef struct mean {
  double sum;
  int count;
} mean;

static void add(mean *m, double value) {
  if (!isfinite(value)) return;
  m->sum += value;
  m->count++;
}

/* NaN unless every one of `all` had a value: a mean of the runs that got there would flatter. */
static double value_of(mean m, int all) { return m.count && m.count == all ? m.sum / m.count : NAN; }

static void summarize_method(compare_method *m) {
  mean values[COMPARE_METRICS] = {{0}}, retain = {0}, valid = {0}, best = {0}, zero = {0}, seconds = {0}, tokens = {0};
  m->seeds = 0;
  for (int i = 0; i < m->run_count; i++) {
    const compare_run *r = &m->runs[i];
    if (!r->chosen) continue;
    m->seeds++;
    for (int k = 0; k < COMPARE_METRICS; k++) add(&values[k], r->test.values[k]);
    add(&retain, r->retain.there ? r->retain.values[COMPARE_LOSS] : NAN);
    if (m->kind == COMPARE_TUNED) {
      add(&valid, r->best_valid);
      add(&best, r->to_best);
      add(&zero, r->to_zero_shot);
      add(&seconds, r->seconds);
      add(&tokens, r->tokens_per_s);
    }
    uint64_t peak = r->peak_bytes ? r->peak_bytes : r->test.peak_bytes;
    if (peak > m->peak_bytes) m->peak_bytes = peak;
    m->trainable = r->trainable;
    m->disk_bytes = r->disk_bytes;
  }
  for (int k = 0; k < COMPARE_METRICS; k++) m->values[k] = value_of(values[k], m->seeds);
  m->retain_loss = value_of(retain, m->seeds);
  m->valid_loss = value_of(valid, m->seeds);
  m->to_best = value_of(best, m->seeds);
  m->to_zero_shot = value_of(zero, m->seeds);
  m->train_seconds = value_of(seconds, m->seeds);
  m->tokens_per_s = value_of(tokens, m->seeds);
}

enum { DRAWS = 2000 };
static const double share = 0.95;
static const uint64_t draw_seed = 20210101; /* the same comparison says the same each time */

static void sample_of(const compare_method *m, bool retain, compare_sample *out) {
  *out = (compare_sample){0};
  for (int i = 0; i < m->run_count && out->seed_count < COMPARE_MOST_SEEDS; i++) {
    const compare_measured *x = retain ? &m->runs[i].retain : &m->runs[i].test;
    if (m->runs[i].chosen && x->there) out->seeds[out->seed_count++] = &x->units;
  }
}

static void judge_damage(compare *c) {
  compare_sample samples[COMPARE_MOST_METHODS];
  compare_bootstrap b;
  for (int i = 0; i < c->method_count; i++) {
    sample_of(&c->methods[i], true, &samples[i]);
    c->methods[i].damage = c->methods[i].damage_low = c->methods[i].damage_high = NAN;
  }
  if (!samples[0].seed_count || !compare_bootstrap_run(samples, c->method_count, DRAWS, draw_seed, &b)) return;
  for (int i = 1; i < c->method_count; i++) {
    compare_method *m = &c->methods[i];
    m->damage = m->retain_loss - c->methods[0].retain_loss;
    compare_interval_of_difference(&b, i, 0, COMPARE_LOSS, share, &m->damage_low, &m->damage_high);
  }
  free(b.values);
}

/* Of those that the best is not shown to be ahead of, the one with the fewest trained numbers; examples in the prompt cost
 * no training but make every prompt longer, and come after an adapter. */
static int pick(const compare *c) {
  int chosen = c->best;
  for (int i = 0; i < c->method_count && c->best >= 0; i++) {
    const compare_method *m = &c->methods[i], *now = &c->methods[chosen];
    if (m->seeds == 0 || i == chosen || m->behind_low > 0) continue;
    bool smaller = m->kind == COMPARE_ZERO_SHOT || (m->kind == now->kind && m->trainable < now->trainable);
    if (smaller) chosen = i;
  }
  return chosen;
}

void compare_summarize(compare *c) {
  compare_sample samples[COMPARE_MOST_METHODS];
  int metric = c->set.metric;
  double sign = compare_more_is_better(metric) ? -1 : 1;
  c->best = -1;
  for (int i = 0; i < c->method_count; i++) {
    compare_method *m = &c->methods[i];
    summarize_method(m);
    sample_of(m, false, &samples[i]);
    if (!isfinite(m->values[metric])) continue;
    if (c->best < 0 || sign * m->values[metric] < sign * c->methods[c->best].values[metric]) c->best = i;
  }
  if (!compare_bootstrap_run(samples, c->method_count, DRAWS, draw_seed, &c->boot)) compare_alloc(SIZE_MAX / 4, 1);
  for (int i = 0; i < c->method_count; i++) {
    compare_method *m = &c->methods[i];
    for (int k = 0; k < COMPARE_METRICS; k++) compare_interval(&c->boot, i, (compare_metric)k, share, &m->low[k], &m->high[k]);
    m->behind = m->behind_low = m->behind_high = NAN;
    if (c->best < 0) continue;
    int first = sign > 0 ? i : c->best, second = sign > 0 ? c->best : i;
    m->behind = sign * (m->values[metric] - c->methods[c->best].values[metric]);
    compare_interval_of_difference(&c->boot, first, second, (compare_metric)metric, share, &m->behind_low, &m->behind_high);
  }
  judge_damage(c);
  c->pick = pick(c);
}
