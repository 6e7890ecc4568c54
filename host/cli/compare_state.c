/* SPDX-License-Identifier: MIT
 * compare.json: every setting, the digests of what is read, and the plan. The same command goes on; another is refused. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include "cli/compare.h"

static json_t *path_of(const char *path) {
  char *real = path ? realpath(path, NULL) : NULL;
  json_t *value = path ? json_string(real ? real : path) : json_null();
  free(real);
  return value ? value : json_null();
}

static json_t *list_of(const cli_list *list) {
  json_t *out = json_array();
  for (int i = 0; i < list->count; i++) json_array_append_new(out, json_string(list->items[i]));
  return out;
}

static json_t *settings_of(const compare *c) {
  const compare_settings *s = &c->set;
  json_t *o = json_object();
  json_object_set_new(o, "model", path_of(cli_shared.model));
  json_object_set_new(o, "data", path_of(s->data));
  json_object_set_new(o, "valid", path_of(s->valid));
  json_object_set_new(o, "test", path_of(s->test));
  json_object_set_new(o, "retain", path_of(s->retain));
  json_object_set_new(o, c->versions ? "adapter" : "tune", list_of(c->versions ? &s->adapters : &s->tunes));
  if (!c->versions) {
    json_object_set_new(o, "lr", json_string(s->lr ? "usual" : "auto"));
    json_object_set_new(o, "seeds", json_integer(s->seeds));
    json_object_set_new(o, "budget", json_string(s->budget));
    compare_train_settings(c, o);
  }
  json_object_set_new(o, "seed", json_string(compare_printf("%llu", (unsigned long long)s->seed)));
  json_object_set_new(o, "shots", json_integer(s->shots));
  json_object_set_new(o, "no-generate", json_boolean(s->no_generate));
  json_object_set_new(o, "max-tokens", json_integer(s->max_tokens));
  json_object_set_new(o, "metric", json_string(compare_metric_names[s->metric]));
  json_object_set_new(o, "max-row-tokens", json_integer(s->rows.max_row_tokens));
  json_object_set_new(o, "on-long", json_string(cli_on_long[s->rows.on_long]));
  json_object_set_new(o, "loss", json_string(cli_losses[cli_loss]));
  json_object_set_new(o, "template", s->rows.chat_template ? json_string(s->rows.chat_template) : json_null());
  json_object_set_new(o, "no-bos", json_boolean(s->rows.no_bos));
  json_object_set_new(o, "no-end", json_boolean(s->rows.no_end));
  json_object_set_new(o, "device", json_string(cli_shared.device));
  json_object_set_new(o, "dtype", json_string(cli_dtypes[cli_shared.dtype]));
  json_object_set_new(o, "threads", json_integer(cli_shared.threads));
  return o;
}

static int add_digest(json_t *digests, const char *name, const char *path) {
  char digest[65] = "";
  int code = path ? compare_digest(path, digest) : 0;
  json_object_set_new(digests, name, path && !code ? json_string(digest) : json_null());
  return code;
}

/* Of the model what `pfx inspect` says: its digest, and the context that bounds a row. */
static int look_at_model(compare *c) {
  pfx_error err = {0};
  char *text = NULL;
  json_error_t error;
  if (pfx_inspect_wait(cli_shared.model, true, false, &text, &err) != PFX_OK) return cli_fail(&err);
  json_t *model = json_loads(text, 0, &error);
  pfx_free(text);
  const char *base = json_string_value(json_object_get(model, "base"));
  c->context = json_integer_value(json_object_get(model, "context"));
  json_object_set_new(c->digests, "model", base ? json_string(base) : json_null());
  if (!json_object_get(model, "tokenizer")) c->generate = false;
  bool is_model = base != NULL;
  json_decref(model);
  return is_model ? 0 : cli_usage_error(&cli_compare, "%s is no model", cli_shared.model);
}

static const char *state_path(const compare *c) { return compare_printf("%s/compare.json", c->work); }

static bool is_empty(const char *folder) {
  bool empty = true;
  DIR *dir = opendir(folder);
  for (struct dirent *e; dir && (e = readdir(dir));)
    empty = empty && (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 || strncmp(e->d_name, "compare.json.tmp.", 17) == 0);
  if (dir) closedir(dir);
  return empty;
}

/* A budget may change until the plan is made; what decides the report may always. */
static bool may_change(const char *key, bool planned) {
  return strcmp(key, "metric") == 0 || (!planned && strcmp(key, "budget") == 0);
}

static int go_on_with(compare *c, const json_t *state) {
  const json_t *settings = json_object_get(state, "settings"), *digests = json_object_get(state, "digests"), *plan = json_object_get(state, "plan");
  const char *key;
  json_t *value;
  if (json_integer_value(json_object_get(state, "pfx_compare")) != 1 || !json_is_object(settings) || !json_is_object(digests)) {
    fprintf(stderr, "pfx: %s: fields \"pfx_compare\": 1, \"settings\" and \"digests\" are needed; name another --out\n", state_path(c));
    return 3;
  }
  bool planned = json_is_object(plan);
  json_object_foreach(c->settings, key, value) {
    if (!may_change(key, planned) && !json_equal(value, json_object_get(settings, key)))
      return cli_usage_error(&cli_compare,
                             "%s holds another comparison: --%s is not what it began with; give the same settings to go on with it, or name "
                             "another --out",
                             c->work, key);
  }
  json_object_foreach(c->digests, key, value) {
    if (json_equal(value, json_object_get(digests, key))) continue;
    fprintf(stderr, "pfx: %s holds a comparison on another --%s: the %s has changed since; name another --out\n", c->work, key,
            strcmp(key, "model") == 0 ? "model" : "file");
    return 4;
  }
  if (planned) {
    c->plan = (compare_plan){.steps = json_integer_value(json_object_get(plan, "steps")),
                             .eval_every = json_integer_value(json_object_get(plan, "eval_every")),
                             .budget_seconds = json_number_value(json_object_get(plan, "budget_seconds")),
                             .spent_seconds = json_number_value(json_object_get(plan, "spent_seconds")),
                             .expected_seconds = json_number_value(json_object_get(plan, "expected_seconds")),
                             .made = true};
    if (c->plan.steps < 1 || c->plan.eval_every < 1) {
      fprintf(stderr, "pfx: %s: field \"plan\" is damaged; name another --out\n", state_path(c));
      return 3;
    }
  }
  return 0;
}

static int lock(compare *c) {
  c->lock = open(c->work, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (c->lock < 0) {
    fprintf(stderr, "pfx: cannot open %s: %s\n", c->work, strerror(errno));
    return 1;
  }
  if (flock(c->lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    fprintf(stderr, "pfx: another process compares in %s: wait for it, or name another folder\n", c->work);
    return 2;
  }
  return 0;
}

int compare_state_open(compare *c) {
  const compare_settings *s = &c->set;
  c->settings = settings_of(c);
  c->digests = json_object();
  c->jobs = json_object();
  int code = look_at_model(c);
  if (!code) code = add_digest(c->digests, "data", s->data);
  if (!code) code = add_digest(c->digests, "valid", s->valid);
  if (!code) code = add_digest(c->digests, "test", s->test);
  if (!code) code = add_digest(c->digests, "retain", s->retain);
  if (code) return code;
  if (compare_exists(c->work) && !compare_exists(state_path(c)) && !is_empty(c->work))
    return cli_usage_error(&cli_compare, "%s exists, is not empty and holds no comparison: name another folder", c->work);
  if ((code = compare_make_folder(c->work)) != 0 || (code = lock(c)) != 0) return code;
  if (compare_exists(state_path(c))) {
    json_t *state = compare_read_json(state_path(c));
    code = go_on_with(c, state);
    json_decref(state);
  } else {
    code = compare_state_save(c);
  }
  return code ? code : compare_make_folder(compare_printf("%s/jobs", c->work));
}

int compare_state_save(compare *c) {
  const compare_plan *p = &c->plan;
  json_t *plan = p->made ? json_pack("{s:I s:I s:f s:f s:f}", "steps", (json_int_t)p->steps, "eval_every", (json_int_t)p->eval_every,
                                     "budget_seconds", p->budget_seconds, "spent_seconds", p->spent_seconds, "expected_seconds", p->expected_seconds)
                         : json_null();
  json_t *chosen = json_object();
  for (int i = 0; i < c->method_count; i++)
    if (c->methods[i].kind == COMPARE_TUNED && c->methods[i].best_rate >= 0)
      json_object_set_new(chosen, c->methods[i].label, json_string(compare_tune_at(c->methods[i].label, c->methods[i].best_rate)));
  json_t *state = json_pack("{s:i s:s s:O s:O s:o s:o}", "pfx_compare", 1, "version", pfx_version(), "settings", c->settings, "digests", c->digests,
                            "plan", plan, "chosen", chosen);
  int code = state ? compare_write_json(state_path(c), state) : 1;
  if (!state) fprintf(stderr, "pfx: a path of this comparison is no UTF-8 and cannot be recorded\n");
  json_decref(state);
  return code;
}

void compare_state_close(compare *c) {
  json_decref(c->settings);
  json_decref(c->digests);
  json_decref(c->jobs);
  free(c->boot.values);
  if (c->lock > 0) close(c->lock);
}
