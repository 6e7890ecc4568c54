/* SPDX-License-Identifier: MIT
 * A budget -> one number of steps that every run does. Of a time, what is measured is taken off first: the baselines and the
 * brief timing of every method, then start, validations and evaluation of every run; the rest is steps. */
#include <math.h>
#include <stdlib.h>

#include "cli/compare.h"

enum { TIMED_STEPS = 6, VALIDATIONS = 10 };
static const double safety = 0.95; /* the rest is for what is not foreseen, and for the cost of a token (compare_cost.c) */

static void add_training_args(const compare *c, compare_args *a) {
  const compare_settings *s = &c->set;
  compare_arg(a, "train");
  compare_common_args(c, a, NULL);
  compare_arg2(a, "--data", s->data);
  if (s->valid) compare_arg2(a, "--valid", s->valid);
  compare_train_args(c, a);
}

static int failed_job(compare *c, const char *what, const char *why) {
  cli_status(true, "%s", "");
  fprintf(stderr, "pfx: %s: %s\n", what, why);
  return c->code = 5;
}

/* The frozen model, and the same with examples in the prompt. */
int compare_baselines(compare *c) {
  const compare_settings *s = &c->set;
  compare_method *zero = &c->methods[0], *shots = c->method_count > 1 && c->methods[1].kind == COMPARE_IN_CONTEXT ? &c->methods[1] : NULL;
  compare_measured valid = {0};
  zero->runs = compare_alloc(1, sizeof *zero->runs);
  zero->run_count = 1;
  if (compare_evaluate(c, "zero-shot.test", NULL, s->test, c->generate, 0, &zero->runs->test)) return c->code;
  if (!zero->runs->test.there) return failed_job(c, "the frozen model cannot be measured on --test", "no memory for it");
  if (s->valid && compare_evaluate(c, "zero-shot.valid", NULL, s->valid, false, 0, &valid)) return c->code;
  if (s->retain && compare_evaluate(c, "zero-shot.retain", NULL, s->retain, false, 0, &zero->runs->retain)) return c->code;
  c->zero_valid = valid.there ? valid.values[COMPARE_LOSS] : NAN;
  zero->runs->finished = zero->runs->chosen = true;
  if (!shots) return 0;
  shots->runs = compare_alloc(1, sizeof *shots->runs);
  shots->run_count = 1;
  if (compare_evaluate(c, "in-context.test", NULL, s->test, c->generate, s->shots, &shots->runs->test)) return c->code;
  shots->runs->finished = shots->runs->chosen = shots->runs->test.there;
  if (!shots->runs->test.there) shots->failure = "no memory for it";
  return 0;
}

/* A few steps of the method: seconds a step (the median, because the first ones warm up) and seconds to start. */
static int time_method(compare *c, compare_method *m, double validations) {
  compare_args args = {0};
  const char *folder = compare_printf("%s/timing/%s", c->work, m->slug);
  add_training_args(c, &args);
  compare_arg2(&args, "--tune", compare_tune_at(m->label, 1));
  compare_arg2(&args, "--steps", compare_printf("%d", TIMED_STEPS));
  compare_arg2(&args, "--eval-every", compare_printf("%d", TIMED_STEPS));
  compare_arg2(&args, "--out", folder);
  compare_arg2(&args, "--resume", "auto");
  const json_t *job = compare_job(c, compare_printf("%s.timing", m->slug), &args, folder, compare_printf("timing %s", m->label));
  if (!job) return c->code;
  compare_run r = {.folder = (char *)(size_t)folder};
  compare_read_run(c, &r, job);
  if (r.failure || r.curve_count < 2) {
    m->failure = r.failure ? r.failure : "its steps could not be timed";
    return 0;
  }
  double seconds[TIMED_STEPS] = {0};
  size_t n = 0;
  for (size_t i = 1; i < r.curve_count && n < TIMED_STEPS; i++) {
    double step = r.curve[i].seconds - r.curve[i - 1].seconds;
    size_t at = n++;
    for (; at > 0 && seconds[at - 1] > step; at--) seconds[at] = seconds[at - 1];
    seconds[at] = step;
  }
  m->step_seconds = seconds[n / 2];
  m->start_seconds = json_number_value(json_object_get(job, "seconds")) - r.seconds - validations;
  if (m->start_seconds < 0) m->start_seconds = 0;
  return 0;
}

static double job_seconds(const compare *c, const char *name) {
  return json_number_value(json_object_get(json_object_get(c->jobs, name), "seconds"));
}

static int too_small(compare *c, double least) {
  cli_status(true, "%s", "");
  fprintf(stderr,
          "pfx: --budget %s is too small for one step: measuring the frozen model and timing the methods took %s, and one step of every run with "
          "its evaluation takes about %s more; give at least %.0fs, or fewer methods or seeds\n",
          c->set.budget, compare_show_seconds(c->plan.spent_seconds), compare_show_seconds(least), ceil((c->plan.spent_seconds + least) / safety));
  return c->code = 2;
}

/* Of one validation: start and model are not loaded again for it. */
static double valid_seconds(const compare *c) {
  return json_number_value(json_object_get(json_object_get(json_object_get(c->jobs, "zero-shot.valid"), "result"), "loss_seconds"));
}

/* Seconds of everything but steps, and of one step in every run. */
static void add_up(const compare *c, double *fixed, double *step) {
  double test = job_seconds(c, "zero-shot.test"), retain = job_seconds(c, "zero-shot.retain"), valid = valid_seconds(c);
  *fixed = *step = 0;
  for (int i = 0; i < c->method_count; i++) {
    const compare_method *m = &c->methods[i];
    if (m->kind != COMPARE_TUNED || m->failure) continue;
    int runs = (m->searched ? COMPARE_RATES : 1) + c->set.seeds - 1;
    *fixed += runs * (m->start_seconds + (VALIDATIONS + 1) * valid) + c->set.seeds * (test + retain);
    *step += runs * m->step_seconds;
  }
}

static int plan_time(compare *c, double budget) {
  double fixed, step;
  c->plan.spent_seconds = job_seconds(c, "zero-shot.test") + job_seconds(c, "zero-shot.retain") + job_seconds(c, "zero-shot.valid") +
                          job_seconds(c, "in-context.test");
  for (int i = 0; i < c->method_count; i++) {
    compare_method *m = &c->methods[i];
    if (m->kind != COMPARE_TUNED) continue;
    if (time_method(c, m, 2 * valid_seconds(c))) return c->code;
    c->plan.spent_seconds += job_seconds(c, compare_printf("%s.timing", m->slug));
  }
  add_up(c, &fixed, &step);
  double left = safety * budget - c->plan.spent_seconds - fixed;
  if (step <= 0) return failed_job(c, "no method could be timed", c->methods[c->method_count - 1].failure);
  if (left < step) return too_small(c, fixed + step);
  c->plan.budget_seconds = budget;
  c->plan.steps = (int64_t)(left / step);
  c->plan.expected_seconds = c->plan.spent_seconds + fixed + step * (double)c->plan.steps;
  return 0;
}

/* "200steps" -> steps; "30m" -> seconds. */
static int read_budget(const char *text, int64_t *steps, double *seconds) {
  char *end = NULL;
  double value = strtod(text, &end);
  *steps = 0;
  *seconds = 0;
  if (end == text || !(value > 0)) return -1;
  if (strcmp(end, "steps") == 0 || strcmp(end, "step") == 0) {
    *steps = (int64_t)value;
    return value == floor(value) && value < 1e12 ? 0 : -1;
  }
  const char *units = "smhd", *unit = *end && !end[1] ? strchr(units, *end) : NULL;
  static const double lengths[] = {1, 60, 3600, 86400};
  if (!unit) return -1;
  *seconds = value * lengths[unit - units];
  return 0;
}

int compare_check_budget(const char *text) {
  int64_t steps;
  double seconds;
  if (read_budget(text, &steps, &seconds) == 0) return 0;
  return cli_usage_error(&cli_compare, "--budget needs a number of steps or a time, such as 200steps, 90s, 30m or 2h, not \"%s\"", text);
}

int compare_make_plan(compare *c) {
  double budget;
  compare_plan *p = &c->plan;
  if (p->made) return 0;
  int64_t steps;
  read_budget(c->set.budget, &steps, &budget);
  p->steps = steps;
  if (steps == 0 && plan_time(c, budget) != 0) return c->code;
  p->eval_every = p->steps > VALIDATIONS ? p->steps / VALIDATIONS : 1;
  p->made = true;
  if (!cli_shared.quiet) {
    cli_status(true, "%s", "");
    if (budget > 0)
      fprintf(stderr, "pfx: plan: %lld steps a run, about %s in all (%s are spent)\n", (long long)p->steps, compare_show_seconds(p->expected_seconds),
              compare_show_seconds(p->spent_seconds));
    else
      fprintf(stderr, "pfx: plan: %lld steps a run\n", (long long)p->steps);
  }
  c->code = compare_state_save(c);
  if (!c->code) compare_remove_folder(compare_printf("%s/timing", c->work)); /* what it said is in the plan */
  return c->code;
}
