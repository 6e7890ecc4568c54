/* SPDX-License-Identifier: MIT
 * A piece of work is one program whose result is kept in DIR/jobs/NAME.json: an interrupted comparison does what is left. */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/compare.h"

void compare_common_args(const compare *c, compare_args *a, const char *model) {
  const compare_settings *s = &c->set;
  compare_arg2(a, "--model", model ? model : cli_shared.model);
  compare_arg2(a, "--device", cli_shared.device);
  compare_arg2(a, "--dtype", cli_dtypes[cli_shared.dtype]);
  if (cli_shared.threads) compare_arg2(a, "--threads", compare_printf("%d", cli_shared.threads));
  if (c->row_tokens) compare_arg2(a, "--max-row-tokens", compare_printf("%d", c->row_tokens));
  compare_arg2(a, "--on-long", cli_on_long[s->rows.on_long]);
  compare_arg2(a, "--loss", cli_losses[cli_loss]);
  if (s->rows.chat_template) compare_arg2(a, "--template", s->rows.chat_template);
  if (s->rows.no_bos) compare_arg(a, "--no-bos");
  if (s->rows.no_end) compare_arg(a, "--no-end");
  compare_arg(a, "--json");
  compare_arg(a, "--quiet");
}

/* Of a setting that nobody gave, `pfx train` knows the default. */
static const char *train_setting(const compare *c, int i, const char **name) {
  static const char *const names[] = {"warmup", "schedule", "weight-decay", "clip"};
  static const char *const schedules[] = {"linear", "cosine", "constant"};
  const compare_settings *s = &c->set;
  if (i == sizeof names / sizeof *names) return *name = NULL;
  *name = names[i];
  if (!cli_given(&cli_compare, names[i])) return NULL;
  switch (i) {
    case 0:
      return compare_printf("%lld", (long long)s->warmup);
    case 1:
      return schedules[s->schedule];
    default:
      return compare_printf("%.9g", i == 2 ? s->weight_decay : s->clip);
  }
}

void compare_train_args(const compare *c, compare_args *a) {
  const char *name, *value;
  compare_arg2(a, "--batch-rows", compare_printf("%d", c->set.batch_rows));
  compare_arg2(a, "--accumulate", compare_printf("%d", c->set.accumulate));
  for (int i = 0; value = train_setting(c, i, &name), name; i++)
    if (value) compare_arg2(a, compare_printf("--%s", name), value);
}

void compare_train_settings(const compare *c, json_t *o) {
  const char *name, *value;
  json_object_set_new(o, "batch-rows", json_integer(c->set.batch_rows));
  json_object_set_new(o, "accumulate", json_integer(c->set.accumulate));
  for (int i = 0; value = train_setting(c, i, &name), name; i++) json_object_set_new(o, name, value ? json_string(value) : json_null());
}

typedef struct watched {
  const compare *c;
  const char *metrics, *doing; /* metrics NULL: it does not train */
  double started;
} watched;

/* The step that the last whole line of metrics.jsonl names. */
static int64_t last_step(const char *path) {
  char tail[1025];
  long long step = 0;
  FILE *file = fopen(path, "re");
  if (!file) return 0;
  fseek(file, 0, SEEK_END);
  long size = ftell(file);
  fseek(file, size > 1024 ? size - 1024 : 0, SEEK_SET);
  tail[fread(tail, 1, 1024, file)] = 0;
  fclose(file);
  for (char *at = tail; (at = strstr(at, "{\"step\": ")); at++)
    if (strchr(at, '\n')) sscanf(at, "{\"step\": %lld", &step);
  return step;
}

static int64_t steps_of(const compare *c, bool done) {
  int64_t steps = 0;
  for (int i = 0; i < c->method_count; i++) {
    const compare_method *m = &c->methods[i];
    if (m->kind != COMPARE_TUNED) continue;
    int all = (m->searched ? COMPARE_RATES : 1) + c->set.seeds - 1, finished = 0;
    for (int r = 0; r < m->run_count; r++) finished += m->runs[r].finished || m->runs[r].failure;
    steps += (done ? finished : all) * c->plan.steps;
  }
  return steps;
}

/* Time left, from the steps that this process has seen. */
static const char *time_left(const compare *c, int64_t here) {
  static int64_t first_done = -1;
  static double first_time;
  if (!c->plan.made || !here) return "";
  int64_t done = steps_of(c, true) + here, all = steps_of(c, false);
  if (first_done < 0) {
    first_done = done;
    first_time = compare_clock();
  }
  double seconds = compare_clock() - first_time;
  if (done - first_done < 5 || seconds < 2) return "";
  return compare_printf("  about %s of training left", compare_show_seconds(seconds * (double)(all - done) / (double)(done - first_done)));
}

static void show(void *user) {
  static double shown;
  watched *w = user;
  if (cli_shared.quiet || compare_clock() - shown < 0.5) return;
  shown = compare_clock();
  int64_t step = w->metrics ? last_step(w->metrics) : 0;
  if (w->metrics && step)
    cli_status(false, "%s  step %lld/%lld%s", w->doing, (long long)step, (long long)w->c->plan.steps, time_left(w->c, step));
  else if (isatty(2)) /* elsewhere its name was printed when it began */
    cli_status(false, "%s  %s", w->doing, compare_show_seconds(compare_clock() - w->started));
}

static json_t *kept(const compare *c, const char *path, const char *name) {
  json_t *known = json_object_get(c->jobs, name);
  if (known) return known;
  json_t *read = compare_read_json(path);
  if (!json_is_object(read) || (!json_object_get(read, "result") && !json_object_get(read, "failure"))) {
    json_decref(read);
    return NULL;
  }
  json_object_set_new(c->jobs, name, read);
  return read;
}

static const char *why_it_failed(const compare_ended *e) {
  if (e->signal == SIGKILL) return "was killed: most likely the system had no memory left for it";
  if (e->signal) return compare_printf("ended by signal %d", e->signal);
  return e->message ? e->message : compare_printf("ended with code %d", e->code);
}

/* What is wrong with a setting or a file is wrong for every method and ends the comparison; a method that has no memory or
 * that does not converge is a result. */
static bool is_result(const compare_ended *e) {
  if (e->signal || e->code == 5) return true;
  return e->code == 1 && e->message && strstr(e->message, "is not finite");
}

static json_t *conclude(compare *c, const char *name, const char *path, const compare_ended *e) {
  json_t *job = json_pack("{s:f}", "seconds", e->seconds);
  bool lasting = true;
  if (e->code == 0) {
    json_error_t error;
    json_t *result = json_loads(e->out, 0, &error);
    if (!result) {
      fprintf(stderr, "pfx: %s: the result of another pfx cannot be read: %.200s\n", name, e->out);
      json_decref(job);
      c->code = 1;
      return NULL;
    }
    json_object_set_new(job, "result", result);
  } else {
    json_object_set_new(job, "failure", json_string(why_it_failed(e)));
    lasting = e->code == 1; /* memory may be there another time */
  }
  if (lasting && (c->code = compare_write_json(path, job)) != 0) {
    json_decref(job);
    return NULL;
  }
  json_object_set_new(c->jobs, name, job);
  return job;
}

const json_t *compare_job(compare *c, const char *name, const compare_args *args, const char *progress_folder, const char *doing) {
  char *path = compare_printf("%s/jobs/%s.json", c->work, name), *log = compare_printf("%s/jobs/%s.log", c->work, name);
  compare_ended ended;
  watched w = {.c = c, .doing = doing, .started = compare_clock(), .metrics = progress_folder ? compare_printf("%s/metrics.jsonl", progress_folder) : NULL};
  json_t *known = kept(c, path, name);
  if (known) return known;
  if (cli_stopped(NULL)) {
    c->code = 130;
    return NULL;
  }
  cli_status(true, "%s", doing);
  if ((c->code = compare_child(args, log, show, &w, &ended)) != 0) return NULL;
  if (ended.code != 0 && ended.stopped) {
    c->code = 130;
    return NULL;
  }
  if (ended.code == 0 || is_result(&ended)) return conclude(c, name, path, &ended);
  cli_status(true, "%s", "");
  fprintf(stderr, "pfx: %s: %s\n", doing, why_it_failed(&ended));
  c->code = ended.code;
  return NULL;
}
