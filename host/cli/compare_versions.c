/* SPDX-License-Identifier: MIT
 * Versions that exist already: measured on the same rows, each against the first; what changed, and what differs in how they
 * were made. */
#include <math.h>
#include <stdlib.h>

#include "cli/compare.h"

/* Settings that say nothing about the result, or that the file's own digest says better. */
static bool tells_nothing(const char *key) {
  static const char *const keys[] = {"out", "save_every", "data", "valid", "model"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
    if (strcmp(key, keys[i]) == 0) return true;
  return false;
}

static const char *shown(const json_t *value) {
  if (!value || json_is_null(value)) return "–";
  if (json_is_string(value)) return compare_printf("%s", json_string_value(value));
  char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
  const char *copy = compare_printf("%s", text ? text : "");
  free(text);
  return copy;
}

static void add(json_t *list, const char *what, const char *before, const char *after) {
  if (strcmp(before, after) != 0) json_array_append_new(list, json_pack("{s:s s:s s:s}", "what", what, "before", before, "after", after));
}

static void add_objects(json_t *list, const char *kind, const json_t *before, const json_t *after) {
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)(uintptr_t)before, key, value) {
    if (!tells_nothing(key) || strcmp(kind, "setting") != 0)
      add(list, compare_printf("%s %s", kind, key), shown(value), shown(json_object_get(after, key)));
  }
  json_object_foreach((json_t *)(uintptr_t)after, key, value) {
    if (!json_object_get(before, key) && (!tells_nothing(key) || strcmp(kind, "setting") != 0))
      add(list, compare_printf("%s %s", kind, key), "–", shown(value));
  }
}

/* Of an adapter without run.json what the adapter itself carries. */
static json_t *about(const char *folder) {
  json_t *run = compare_read_json(compare_printf("%s/run.json", folder));
  if (run) return run;
  pfx_error err = {0};
  pfx_adapter *adapter = NULL;
  pfx_adapter_info info;
  json_error_t error;
  if (pfx_adapter_open(folder, &adapter, &err) != PFX_OK) return json_object();
  pfx_adapter_info_get(adapter, &info);
  json_t *training = info.training ? json_loads(info.training, 0, &error) : NULL;
  json_t *digests = json_object();
  if (info.base) json_object_set_new(digests, "model_base", json_string(info.base));
  run = json_pack("{s:o s:o}", "settings", training ? training : json_object(), "digests", digests);
  pfx_adapter_close(adapter);
  return run;
}

json_t *compare_versions_differences(const compare *c, int before, int after) {
  static const char *const objects[] = {"settings", "digests", "environment"};
  static const char *const kinds[] = {"setting", "digest of", "environment"};
  json_t *list = json_array(), *a = about(c->methods[before].label), *b = about(c->methods[after].label);
  for (size_t i = 0; i < sizeof objects / sizeof *objects; i++)
    if (json_object_get(a, objects[i]) && json_object_get(b, objects[i]))
      add_objects(list, kinds[i], json_object_get(a, objects[i]), json_object_get(b, objects[i]));
  json_decref(a);
  json_decref(b);
  return list;
}

compare_change compare_versions_change(const compare *c, int before, int after) {
  compare_metric metric = (compare_metric)c->set.metric;
  bool more = compare_more_is_better(metric);
  const compare_measured *a = &c->methods[before].runs[0].test, *b = &c->methods[after].runs[0].test;
  compare_change x = {.units = a->units.count, .texts = a->text_count};
  for (size_t i = 0; i < a->units.count && i < b->units.count; i++) {
    double old = compare_metric_of(metric, a->units.list[i]), new = compare_metric_of(metric, b->units.list[i]);
    double worse = more ? old - new : new - old;
    if (worse > 0)
      x.worse++;
    else if (worse < 0)
      x.better++;
    else
      x.equal++;
  }
  for (size_t i = 0; i < a->text_count && i < b->text_count; i++) x.changed += strcmp(a->texts[i].prediction, b->texts[i].prediction) != 0;
  x.shift = more ? a->values[metric] - b->values[metric] : b->values[metric] - a->values[metric];
  compare_interval_of_difference(&c->boot, more ? before : after, more ? after : before, metric, 0.95, &x.low, &x.high);
  x.is_worse = x.low > 0;
  x.is_better = x.high < 0;
  return x;
}

static int measure_version(compare *c, int i) {
  compare_method *m = &c->methods[i];
  compare_run *r = m->runs = compare_alloc(1, sizeof *m->runs);
  const compare_settings *s = &c->set;
  m->run_count = 1;
  *r = (compare_run){.name = m->slug, .tune = "", .folder = (char *)(size_t)(i ? m->label : NULL)};
  if (compare_evaluate(c, compare_printf("%s.test", m->slug), r->folder, s->test, c->generate, 0, &r->test)) return c->code;
  if (s->retain && compare_evaluate(c, compare_printf("%s.retain", m->slug), r->folder, s->retain, false, 0, &r->retain)) return c->code;
  if (!r->test.there) {
    fprintf(stderr, "pfx: %s cannot be measured: %s\n", m->label,
            json_string_value(json_object_get(json_object_get(c->jobs, compare_printf("%s.test", m->slug)), "failure")));
    return c->code = 5;
  }
  r->finished = r->chosen = true;
  r->disk_bytes = i ? compare_folder_bytes(r->folder) : 0;
  return 0;
}

/* Each adapter fits before hours are spent on the first; one opened twice would be no comparison. */
static int check_adapters(compare *c) {
  pfx_error err = {0};
  for (int i = 0; i < c->set.adapters.count; i++) {
    const char *path = c->set.adapters.items[i];
    pfx_adapter *adapter = NULL;
    pfx_adapter_info info;
    for (int k = 0; k < i; k++)
      if (strcmp(path, c->set.adapters.items[k]) == 0) return cli_usage_error(&cli_compare, "--adapter %s is given twice", path);
    if (compare_exists(compare_printf("%s/config.json", path)) && !compare_exists(compare_printf("%s/adapter_config.json", path))) continue;
    if (pfx_adapter_open(path, &adapter, &err) != PFX_OK) return cli_fail(&err);
    pfx_adapter_info_get(adapter, &info);
    c->methods[i + 1].virtual_tokens = info.virtual_tokens;
    pfx_adapter_close(adapter);
  }
  return 0;
}

static int measure_all(compare *c) {
  int code = compare_state_open(c);
  compare_share_row_limit(c);
  c->zero_valid = NAN;
  for (int i = 0; i < c->method_count && !code; i++) code = measure_version(c, i);
  if (!code) code = compare_costs(c);
  if (code) return code;
  compare_summarize(c);
  code = compare_write_results(c);
  return code ? code : compare_write_report(c);
}

int compare_run_versions(compare *c) {
  char temporary[] = "/tmp/pfx-compare.XXXXXX";
  compare_add_method(c, COMPARE_ZERO_SHOT, "frozen model", "frozen");
  for (int i = 0; i < c->set.adapters.count; i++)
    if (!compare_add_method(c, COMPARE_VERSION, c->set.adapters.items[i], NULL))
      return cli_usage_error(&cli_compare, "more than %d versions", COMPARE_MOST_METHODS);
  int code = check_adapters(c);
  if (code) return code;
  if (!c->set.out && !(c->work = mkdtemp(temporary))) {
    fprintf(stderr, "pfx: cannot make a folder in /tmp: name one with --out\n");
    return 1;
  }
  code = measure_all(c);
  if (!c->set.out) {
    compare_remove_folder(temporary);
    c->work = "a temporary folder, which is gone (name one with --out)";
  }
  if (code || !c->set.fail_if_worse) return code;
  return compare_versions_change(c, 1, c->method_count - 1).is_worse ? 6 : 0;
}
