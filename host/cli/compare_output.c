/* SPDX-License-Identifier: MIT
 * results.json, results.csv, and the table on the terminal. */
#include <math.h>
#include <stdlib.h>

#include "cli/compare.h"

enum { MOST_SENTENCES = 16 };
static const char *const kinds[] = {"zero-shot", "in-context", "tuned", "version"};

static void put(json_t *o, const char *key, double value) { json_object_set_new(o, key, isfinite(value) ? json_real(value) : json_null()); }
static void put_count(json_t *o, const char *key, int64_t value) { json_object_set_new(o, key, value ? json_integer((json_int_t)value) : json_null()); }
static void put_text(json_t *o, const char *key, const char *text) { json_object_set_new(o, key, text ? json_string(text) : json_null()); }

static json_t *run_json(const compare *c, const compare_method *m, const compare_run *r) {
  json_t *o = json_object();
  if (m->kind == COMPARE_TUNED) {
    put_text(o, "tune", r->tune);
    json_object_set_new(o, "seed", json_integer((json_int_t)r->seed));
    put(o, "rate", compare_rates[r->rate]);
    json_object_set_new(o, "chosen", json_boolean(r->chosen));
    put_text(o, "folder", r->folder);
    put_text(o, "failure", r->failure);
    put_count(o, "steps", r->steps);
    put(o, "valid_loss_before", r->finished ? r->first_valid : NAN);
    put(o, "valid_loss", r->finished ? r->best_valid : NAN);
    put(o, "seconds", r->finished ? r->seconds : NAN);
    put(o, "seconds_to_best", r->finished ? r->to_best : NAN);
    put(o, "seconds_to_zero_shot", r->finished ? r->to_zero_shot : NAN);
    put(o, "tokens_per_s", r->finished ? r->tokens_per_s : NAN);
    put_count(o, "peak_bytes", (int64_t)r->peak_bytes);
  }
  for (int k = 0; r->test.there && k < COMPARE_METRICS; k++) put(o, compare_metric_names[k], r->test.values[k]);
  if (c->set.retain) put(o, "retain_loss", r->retain.there ? r->retain.values[COMPARE_LOSS] : NAN);
  return o;
}

static json_t *method_json(const compare *c, const compare_method *m) {
  json_t *o = json_object(), *runs = json_array();
  put_text(o, "method", m->label);
  put_text(o, "kind", kinds[m->kind]);
  put_text(o, "failure", m->failure);
  json_object_set_new(o, "seeds", json_integer(m->seeds));
  for (int k = 0; k < COMPARE_METRICS; k++) {
    put(o, compare_metric_names[k], m->values[k]);
    put(o, compare_printf("%s_low", compare_metric_names[k]), m->low[k]);
    put(o, compare_printf("%s_high", compare_metric_names[k]), m->high[k]);
  }
  put(o, "behind_best", m->behind);
  put(o, "behind_best_low", m->behind_low);
  put(o, "behind_best_high", m->behind_high);
  put(o, "damage", m->damage);
  put(o, "damage_low", m->damage_low);
  put(o, "damage_high", m->damage_high);
  if (m->kind == COMPARE_TUNED) {
    put_text(o, "tune", m->best_rate >= 0 ? compare_tune_at(m->label, m->best_rate) : NULL);
    put(o, "valid_loss", m->valid_loss);
    put(o, "seconds", m->train_seconds);
    put(o, "seconds_to_best", m->to_best);
    put(o, "seconds_to_zero_shot", m->to_zero_shot);
    put(o, "tokens_per_s", m->tokens_per_s);
    put_count(o, "trainable", m->trainable);
    put_count(o, "disk_bytes", m->disk_bytes);
  }
  if (m->kind == COMPARE_IN_CONTEXT && m->run_count) put(o, "shots", m->runs[0].test.shots);
  put_count(o, "peak_bytes", (int64_t)m->peak_bytes);
  put(o, "token_ms", m->token_ms);
  put(o, "token_ms_added", m->token_ms_added);
  for (int i = 0; i < m->run_count; i++) json_array_append_new(runs, run_json(c, m, &m->runs[i]));
  json_object_set_new(o, "runs", runs);
  return o;
}

static json_t *changes_json(const compare *c) {
  json_t *list = json_array();
  for (int i = 2; i < c->method_count; i++) {
    compare_change x = compare_versions_change(c, 1, i);
    json_t *o = json_pack("{s:s s:s s:I s:I s:I s:I s:I s:I s:b s:b}", "before", c->methods[1].label, "after", c->methods[i].label, "rows",
                          (json_int_t)x.units, "better", (json_int_t)x.better, "worse", (json_int_t)x.worse, "equal", (json_int_t)x.equal, "texts",
                          (json_int_t)x.texts, "texts_changed", (json_int_t)x.changed, "is_worse", x.is_worse, "is_better", x.is_better);
    put(o, "behind", x.shift);
    put(o, "behind_low", x.low);
    put(o, "behind_high", x.high);
    json_object_set_new(o, "differences", compare_versions_differences(c, 1, i));
    json_array_append_new(list, o);
  }
  return list;
}

static json_t *results(const compare *c) {
  const char *lines[MOST_SENTENCES];
  int count = compare_verdict(c, lines, MOST_SENTENCES);
  json_t *o = json_object(), *methods = json_array(), *verdict = json_array();
  json_object_set_new(o, "pfx_compare", json_integer(1));
  put_text(o, "version", pfx_version());
  put_text(o, "metric", compare_metric_names[c->set.metric]);
  put_text(o, "best", c->best >= 0 ? c->methods[c->best].label : NULL);
  if (!c->versions) put_text(o, "pick", c->best >= 0 ? c->methods[c->pick].label : NULL);
  for (int i = 0; i < count; i++) json_array_append_new(verdict, json_string(lines[i]));
  json_object_set_new(o, "verdict", verdict);
  if (!c->versions) {
    json_t *plan = json_object();
    put_count(plan, "steps", c->plan.steps);
    put_count(plan, "eval_every", c->plan.eval_every);
    put(plan, "budget_seconds", c->plan.budget_seconds > 0 ? c->plan.budget_seconds : NAN);
    put(plan, "expected_seconds", c->plan.expected_seconds > 0 ? c->plan.expected_seconds : NAN);
    json_object_set_new(o, "plan", plan);
    put(o, "zero_shot_valid_loss", c->zero_valid);
  }
  for (int i = 0; i < c->method_count; i++) json_array_append_new(methods, method_json(c, &c->methods[i]));
  json_object_set_new(o, "methods", methods);
  if (c->versions) json_object_set_new(o, "changes", changes_json(c));
  json_object_set(o, "settings", c->settings);
  json_object_set(o, "digests", c->digests);
  return o;
}

static void csv_text(FILE *out, const char *text) {
  if (!strpbrk(text, ",\"\n\r")) {
    fputs(text, out);
    return;
  }
  fputc('"', out);
  for (; *text; text++) fprintf(out, "%s%c", *text == '"' ? "\"" : "", *text);
  fputc('"', out);
}

static void csv_number(FILE *out, double value) {
  if (isfinite(value))
    fprintf(out, ",%.9g", value);
  else
    fputc(',', out);
}

/* A line for every run, of the search too. */
static void csv(FILE *out, const compare *c) {
  fputs("method,kind,tune,seed,chosen,loss,bleu,chrf,rouge_l,exact_match,retain_loss,damage,valid_loss,steps,seconds,seconds_to_best,"
        "seconds_to_zero_shot,tokens_per_s,peak_bytes,trainable,disk_bytes,token_ms,failure\n",
        out);
  for (int i = 0; i < c->method_count; i++)
    for (int k = 0; k < c->methods[i].run_count; k++) {
      const compare_method *m = &c->methods[i];
      const compare_run *r = &m->runs[k];
      bool tuned = m->kind == COMPARE_TUNED, finished = tuned && r->finished;
      double retain = r->retain.there ? r->retain.values[COMPARE_LOSS] : NAN;
      csv_text(out, m->label);
      fprintf(out, ",%s,", kinds[m->kind]);
      csv_text(out, tuned ? r->tune : "");
      if (tuned)
        fprintf(out, ",%llu,%d", (unsigned long long)r->seed, r->chosen);
      else
        fputs(",,1", out);
      for (int v = 0; v < COMPARE_METRICS; v++) csv_number(out, r->test.there ? r->test.values[v] : NAN);
      csv_number(out, retain);
      csv_number(out, i ? retain - c->methods[0].retain_loss : NAN);
      csv_number(out, finished ? r->best_valid : NAN);
      csv_number(out, finished ? (double)r->steps : NAN);
      csv_number(out, finished ? r->seconds : NAN);
      csv_number(out, finished ? r->to_best : NAN);
      csv_number(out, finished ? r->to_zero_shot : NAN);
      csv_number(out, finished ? r->tokens_per_s : NAN);
      csv_number(out, r->peak_bytes ? (double)r->peak_bytes : r->test.there ? (double)r->test.peak_bytes : NAN);
      csv_number(out, finished ? (double)r->trainable : NAN);
      csv_number(out, finished ? (double)r->disk_bytes : NAN);
      csv_number(out, r->chosen ? m->token_ms : NAN);
      fputc(',', out);
      csv_text(out, r->failure ? r->failure : m->failure && !m->run_count ? m->failure : "");
      fputc('\n', out);
    }
}

int compare_write_results(compare *c) {
  char *text = NULL;
  size_t bytes = 0;
  json_t *o = results(c);
  int code = c->set.out ? compare_write_json(compare_printf("%s/results.json", c->work), o) : 0;
  FILE *out = open_memstream(&text, &bytes);
  if (out) csv(out, c);
  if (out && fclose(out) == 0 && !code && c->set.out) code = compare_write_file(compare_printf("%s/results.csv", c->work), text, bytes);
  free(text);
  if (!code && cli_shared.json) {
    json_dumpf(o, stdout, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(12));
    putchar('\n');
  }
  json_decref(o);
  return code;
}

void compare_print(const compare *c) {
  const char *lines[MOST_SENTENCES];
  int width = 10, count = compare_verdict(c, lines, MOST_SENTENCES);
  if (cli_shared.json) return;
  cli_status(true, "%s", "");
  for (int i = 0; i < c->method_count; i++)
    if ((int)strlen(c->methods[i].label) > width) width = (int)strlen(c->methods[i].label);
  printf("%-*s  %8s", width, "", "loss");
  if (c->generate) printf("  %6s  %6s  %7s  %6s", "BLEU", "chrF", "ROUGE-L", "exact");
  if (!c->versions || c->set.retain) printf("  %12s", "damage");
  if (!c->versions) printf("  %9s  %8s  %9s", "to adapt", "memory", "trained");
  putchar('\n');
  for (int i = 0; i < c->method_count; i++) {
    const compare_method *m = &c->methods[i];
    printf("%-*s  ", width, m->label);
    if (m->failure) {
      printf("failed: %s\n", m->failure);
      continue;
    }
    printf("%8.4f", m->values[COMPARE_LOSS]);
    if (c->generate) printf("  %6.2f  %6.2f  %7.2f  %6.2f", m->values[COMPARE_BLEU], m->values[COMPARE_CHRF], m->values[COMPARE_ROUGE_L], m->values[COMPARE_EXACT]);
    if (!c->versions || c->set.retain)
      printf("  %12s", m->kind != COMPARE_TUNED && m->kind != COMPARE_VERSION ? "-" : isfinite(m->damage) ? compare_printf("%+.4f", m->damage) : "not measured");
    if (!c->versions)
      printf("  %9s  %8s  %9s", m->kind == COMPARE_TUNED && isfinite(m->to_best) ? compare_show_seconds(m->to_best) : "-",
             m->peak_bytes ? compare_show_bytes((double)m->peak_bytes) : "-", m->trainable ? compare_show_count(m->trainable) : "-");
    putchar('\n');
  }
  putchar('\n');
  for (int i = 0; i < count; i++) printf("%s%s\n", i ? "  " : "", lines[i]);
  if (c->set.out) printf("report: %s/report.html\n", c->set.out);
}
