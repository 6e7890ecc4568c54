/* SPDX-License-Identifier: MIT
 * report.html: one file that needs nothing else. */
#include <math.h>
#include <stdlib.h>

#include "cli/compare.h"

enum { MOST_SENTENCES = 16 };

static const char *file_name(const char *path) {
  const char *slash = path ? strrchr(path, '/') : NULL;
  return slash && slash[1] ? slash + 1 : path ? path : "";
}

static void tile(FILE *out, const char *value, const char *what) {
  if (!value) return;
  fputs("<div class=\"tile\"><b>", out);
  compare_html(out, value);
  fprintf(out, "</b><span>%s</span></div>", what);
}

static void verdict(FILE *out, const compare *c) {
  const char *lines[MOST_SENTENCES];
  int count = compare_verdict(c, lines, MOST_SENTENCES), metric = c->set.metric;
  fputs("<section class=\"card verdict\"><p class=\"answer\">", out);
  compare_html(out, lines[0]);
  fputs("</p><ul>", out);
  for (int i = 1; i < count; i++) {
    fputs("<li>", out);
    compare_html(out, lines[i]);
    fputs("</li>", out);
  }
  fputs("</ul></section>\n", out);
  if (c->versions || c->best < 0) return;
  const compare_method *m = &c->methods[c->pick], *zero = &c->methods[0];
  fputs("<div class=\"tiles\">", out);
  tile(out, compare_printf(metric == COMPARE_LOSS ? "%.3f → %.3f" : "%.1f → %.1f", zero->values[metric], m->values[metric]),
       compare_printf("%s, untouched → %s", compare_metric_titles[metric], m->kind == COMPARE_TUNED ? "tuned" : "this"));
  if (m->kind == COMPARE_TUNED) {
    tile(out, compare_show_count(m->trainable), "trained numbers");
    tile(out, compare_show_bytes((double)m->disk_bytes), "on disk");
    tile(out, isfinite(m->to_best) ? compare_show_seconds(m->to_best) : NULL, "to within 1 % of its best");
    tile(out, isfinite(m->damage) ? compare_printf("%+.4f", m->damage) : "not measured", "damage to other text");
  }
  fputs("</div>\n", out);
}

static void cell(FILE *out, const char *value, const char *below) {
  fprintf(out, "<td>%s", value);
  if (below) fprintf(out, "<small>%s</small>", below);
  fputs("</td>", out);
}

static void scores(FILE *out, const compare *c, const compare_method *m) {
  for (int k = 0; k < COMPARE_METRICS; k++) {
    if (k != COMPARE_LOSS && !c->generate) continue;
    const char *range = isfinite(m->low[k]) ? compare_printf("%s–%s", compare_show_value(k, m->low[k]), compare_show_value(k, m->high[k])) : NULL;
    cell(out, compare_show_value(k, m->values[k]), range);
  }
}

static void row_of(FILE *out, const compare *c, int i) {
  const compare_method *m = &c->methods[i];
  bool tuned = m->kind == COMPARE_TUNED, pick = c->best >= 0 && i == c->pick && !c->versions;
  fprintf(out, "<tr%s><td><i class=\"dot\" style=\"background:var(--c%d)\"></i>", pick ? " class=\"pick\"" : "", i < 2 ? i : 2 + (i - 2) % 8);
  compare_html(out, m->label);
  if (pick) fputs("<span class=\"tag\">take this</span>", out);
  if (m->failure) {
    fputs("<span class=\"tag bad\">no result</span><small>", out);
    compare_html(out, m->failure);
    fputs("</small></td></tr>\n", out);
    return;
  }
  if (i != c->best && isfinite(m->behind_low) && m->behind_low <= 0) fputs("<span class=\"tag plain\">no difference shown</span>", out);
  if (m->kind == COMPARE_IN_CONTEXT && m->run_count) fprintf(out, "<small>%.3g examples a prompt</small>", m->runs[0].test.shots);
  if (tuned && m->best_rate >= 0) {
    fputs("<small>", out);
    compare_html(out, compare_tune_at(m->label, m->best_rate));
    fprintf(out, ", %d seed%s</small>", m->seeds, m->seeds == 1 ? "" : "s");
  }
  fputs("</td>", out);
  scores(out, c, m);
  if (!c->versions || c->set.retain)
    cell(out, !tuned && m->kind != COMPARE_VERSION ? "–" : isfinite(m->damage) ? compare_printf("%+.4f", m->damage) : "not measured",
         isfinite(m->damage_low) ? compare_printf("%+.3f to %+.3f", m->damage_low, m->damage_high) : NULL);
  if (!c->versions) {
    cell(out, tuned ? compare_show_seconds(m->to_best) : "–",
         tuned && isfinite(c->zero_valid) ? isfinite(m->to_zero_shot) ? compare_show_seconds(m->to_zero_shot) : "never" : NULL);
    cell(out, isfinite(m->tokens_per_s) && tuned ? compare_show_count((int64_t)m->tokens_per_s) : "–", NULL);
    cell(out, m->trainable ? compare_show_count(m->trainable) : "–", tuned ? compare_show_bytes((double)m->disk_bytes) : NULL);
  }
  cell(out, m->peak_bytes ? compare_show_bytes((double)m->peak_bytes) : "–", NULL);
  cell(out, isfinite(m->token_ms) ? compare_printf("%.3g ms", m->token_ms) : "–",
       isfinite(m->token_ms_added) && i ? compare_printf("%+.2g ms", m->token_ms_added) : NULL);
  fputs("</tr>\n", out);
}

static void table(FILE *out, const compare *c) {
  fprintf(out, "<h2>Every %s</h2><p class=\"soft\">Measured on the test rows%s. Below a number, its 95 %% interval.</p>\n"
               "<div class=\"wide\"><table><thead><tr><th>%s</th>",
          c->versions ? "version" : "method", c->versions ? "" : ", means over the seeds", c->versions ? "version" : "method");
  for (int k = 0; k < COMPARE_METRICS; k++)
    if (k == COMPARE_LOSS || c->generate) fprintf(out, "<th>%s</th>", k == COMPARE_EXACT ? "exact<br>match" : compare_metric_titles[k]);
  if (!c->versions || c->set.retain) fputs("<th>damage</th>", out);
  if (!c->versions) fputs("<th>time to adapt<br>past zero-shot</th><th>tokens/s</th><th>trained<br>on disk</th>", out);
  fputs("<th>memory</th><th>a token</th></tr></thead><tbody>\n", out);
  for (int i = 0; i < c->method_count; i++) row_of(out, c, i);
  fputs("</tbody></table></div>\n", out);
}

static const compare_run *shown_run(const compare_method *m) {
  for (int i = 0; i < m->run_count; i++)
    if (m->runs[i].chosen && m->runs[i].test.text_count) return &m->runs[i];
  return NULL;
}

static void text_of(FILE *out, const char *name, const char *text, bool reference) {
  fputs("<dt>", out);
  compare_html(out, name);
  fprintf(out, "</dt><dd><pre%s>", reference ? " class=\"reference\"" : "");
  compare_html(out, *text ? text : "(nothing)");
  fputs("</pre></dd>", out);
}

/* Texts to choose from: of versions those that changed between the first and the last, where there are any. */
static size_t candidates(const compare *c, const compare_run *zero, size_t *list, bool *changed) {
  const compare_run *first = c->versions ? shown_run(&c->methods[1]) : NULL, *last = c->versions ? shown_run(&c->methods[c->method_count - 1]) : NULL;
  size_t count = 0, all = zero->test.text_count;
  for (size_t i = 0; first && last && i < all; i++)
    if (strcmp(first->test.texts[i].prediction, last->test.texts[i].prediction) != 0) list[count++] = i;
  *changed = count > 0;
  for (size_t i = 0; !*changed && i < all; i++) list[count++] = i;
  return count;
}

/* Spread evenly, so that nobody chose them. */
static void samples(FILE *out, const compare *c) {
  const compare_run *zero = shown_run(&c->methods[0]);
  bool changed;
  if (!zero) return;
  size_t *list = compare_alloc(zero->test.text_count, sizeof *list), count = candidates(c, zero, list, &changed);
  size_t shown = count < COMPARE_SHOWN_TEXTS ? count : COMPARE_SHOWN_TEXTS;
  fprintf(out, "<h2>Side by side</h2><p class=\"soft\">%zu of %zu prompts of the test rows%s, spread evenly; greedy text%s.</p>\n", shown, count,
          changed ? " whose text changed" : "", c->versions ? "" : ", the first seed");
  for (size_t k = 0; k < shown; k++) {
    size_t at = list[k * count / shown];
    const compare_text *t = &zero->test.texts[at];
    if (k == 4) fputs("<details><summary>More samples</summary>\n", out);
    fputs("<div class=\"card sample\"><h3>Prompt</h3><pre>", out);
    compare_html(out, t->prompt);
    fputs("</pre><dl>", out);
    text_of(out, t->reference_count > 1 ? compare_printf("reference (1 of %zu)", t->reference_count) : "reference", t->references, true);
    for (int i = 0; i < c->method_count; i++) {
      const compare_run *r = shown_run(&c->methods[i]);
      if (r && at < r->test.text_count) text_of(out, c->methods[i].label, r->test.texts[at].prediction, false);
    }
    fputs("</dl></div>\n", out);
  }
  if (shown > 4) fputs("</details>\n", out);
}

static void runs(FILE *out, const compare *c) {
  fputs("<h2>Every run</h2><p class=\"soft\">The search for a learning rate with the first seed, then the other seeds with the best one. What was "
        "chosen is measured on the test rows.</p>\n<div class=\"wide\"><table><thead><tr><th>run</th><th>seed</th><th>validation loss</th><th>test ",
        out);
  fprintf(out, "%s</th><th>seconds</th><th class=\"text\">adapter</th></tr></thead><tbody>\n", compare_metric_titles[c->set.metric]);
  for (int i = 0; i < c->method_count; i++)
    for (int k = 0; c->methods[i].kind == COMPARE_TUNED && k < c->methods[i].run_count; k++) {
      const compare_run *r = &c->methods[i].runs[k];
      fputs("<tr><td>", out);
      compare_html(out, r->tune);
      if (r->chosen) fputs("<span class=\"tag plain\">chosen</span>", out);
      fprintf(out, "</td><td>%llu</td>", (unsigned long long)r->seed);
      cell(out, r->finished ? compare_show_value(COMPARE_LOSS, r->best_valid) : "–", NULL);
      cell(out, r->test.there ? compare_show_value(c->set.metric, r->test.values[c->set.metric]) : "–", NULL);
      cell(out, r->finished ? compare_show_seconds(r->seconds) : "–", NULL);
      fputs("<td class=\"text\">", out);
      compare_html(out, r->failure ? r->failure : compare_printf("runs/%s", r->name));
      fputs("</td></tr>\n", out);
    }
  fputs("</tbody></table></div>\n", out);
}

static void setting(FILE *out, const char *name, const json_t *value) {
  char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY);
  fputs("<tr><td>", out);
  compare_html(out, name);
  fputs("</td><td class=\"text\">", out);
  compare_html(out, json_is_string(value) ? json_string_value(value) : json_is_null(value) ? "–" : text);
  fputs("</td></tr>\n", out);
  free(text);
}

static void settings(FILE *out, const compare *c) {
  const char *key;
  json_t *value;
  fputs("<h2>Settings</h2><details><summary>Every setting, and the digests of what was read</summary>\n<div class=\"wide\"><table><tbody>\n", out);
  json_object_foreach(c->settings, key, value) setting(out, key, value);
  json_object_foreach(c->digests, key, value) setting(out, compare_printf("SHA-256 of %s", key), value);
  fputs("</tbody></table></div></details>\n", out);
}

static void how_to_read(FILE *out, const compare *c) {
  fputs("<h2>How to read this</h2><div class=\"card\">"
        "<p><b>95 % interval.</b> The test rows are drawn again 2,000 times with replacement, the same rows for every method (paired bootstrap); rows "
        "that share a prompt stay together, and where there are several seeds these are drawn too. The interval holds the middle 95 % of what comes "
        "out. Where the interval of a difference holds zero, the report says <i>no difference shown</i>: there may be one, these rows do not show it. "
        "Each interval stands for itself; among twenty, one is expected to miss.</p>",
        out);
  if (!c->versions)
    fputs("<p><b>Learning rates.</b> With <code>--lr auto</code> each method is tried at a third, once and three times its usual rate with the first "
          "seed; the best by validation loss is used by the other seeds. Nothing is chosen on the test rows.</p>"
          "<p><b>Damage</b> is what the loss on the other text (<code>--retain</code>) rises by while the adapter is on. A prefix, a prompt and LoRA can "
          "be taken off again; changed weights cannot.</p>"
          "<p><b>Time to adapt</b> is seconds of training until the validation loss is within 1 % of the run's best; below it, until the untouched model is beaten. <b>Memory</b> is the peak of the "
          "training program.</p>",
          out);
  fputs("</div>\n", out);
}

static void changes(FILE *out, const compare *c) {
  for (int i = 2; i < c->method_count; i++) {
    compare_change x = compare_versions_change(c, 1, i);
    json_t *list = compare_versions_differences(c, 1, i);
    fputs("<h2>", out);
    compare_html(out, c->methods[1].label);
    fputs(" → ", out);
    compare_html(out, c->methods[i].label);
    fprintf(out, "</h2>\n<div class=\"tiles\">");
    tile(out, compare_printf("%zu / %zu", x.better, x.worse), compare_printf("rows better / worse, of %zu", x.units));
    if (x.texts) tile(out, compare_printf("%zu of %zu", x.changed, x.texts), "texts changed");
    tile(out, compare_printf(c->set.metric == COMPARE_LOSS ? "%+.4f" : "%+.2f", c->set.metric == COMPARE_LOSS ? x.shift : -x.shift),
         compare_printf("%s, %s", compare_metric_titles[c->set.metric], x.is_worse ? "shown to be worse" : x.is_better ? "shown to be better" : "no difference shown"));
    fputs("</div>\n<div class=\"wide\"><table><thead><tr><th>what differs</th><th class=\"text\">before</th><th class=\"text\">after</th></tr></thead><tbody>\n", out);
    for (size_t k = 0; k < json_array_size(list); k++) {
      const json_t *d = json_array_get(list, k);
      fputs("<tr><td>", out);
      compare_html(out, json_string_value(json_object_get(d, "what")));
      for (int side = 0; side < 2; side++) {
        fputs("</td><td class=\"text\">", out);
        compare_html(out, json_string_value(json_object_get(d, side ? "after" : "before")));
      }
      fputs("</td></tr>\n", out);
    }
    if (!json_array_size(list)) fputs("<tr><td>nothing that is recorded</td><td class=\"text\"></td><td class=\"text\"></td></tr>\n", out);
    fputs("</tbody></table></div>\n", out);
    json_decref(list);
  }
}

static void page(FILE *out, const compare *c) {
  const char *title = c->versions ? compare_printf("Versions for %s on %s", file_name(cli_shared.model), file_name(c->set.test))
                                  : compare_printf("Ways to tune %s on %s", file_name(cli_shared.model), file_name(c->set.data));
  compare_page_begin(out, title);
  fputs("<h1>", out);
  compare_html(out, title);
  fputs("</h1>\n", out);
  verdict(out, c);
  if (c->versions) changes(out, c);
  fputs("<div class=\"figures\">\n", out);
  compare_figure_intervals(out, c);
  if (!c->versions) {
    compare_figure_curves(out, c);
    compare_figure_size(out, c);
    compare_figure_damage(out, c);
  }
  if (!c->versions) fputs("</div>\n<div class=\"figures bars\">\n", out);
  compare_figure_bars(out, c);
  fputs("</div>\n", out);
  table(out, c);
  samples(out, c);
  if (!c->versions) runs(out, c);
  how_to_read(out, c);
  settings(out, c);
  fprintf(out, "<footer>Made by pfx %s. Numbers: results.json and results.csv beside this file.</footer>\n", pfx_version());
  compare_page_end(out);
}

int compare_write_report(compare *c) {
  char *text = NULL;
  size_t bytes = 0;
  FILE *out = open_memstream(&text, &bytes);
  if (!out) return c->code = 5;
  page(out, c);
  bool good = fclose(out) == 0;
  c->code = good && c->set.out ? compare_write_file(compare_printf("%s/report.html", c->work), text, bytes) : 0;
  free(text);
  if (!c->code) compare_print(c);
  return c->code;
}
