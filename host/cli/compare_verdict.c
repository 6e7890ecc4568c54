/* SPDX-License-Identifier: MIT
 * Numbers -> sentences. The first is the answer; the others are its reasons, what it costs, and how sure it is. */
#include <math.h>

#include "cli/compare.h"

typedef struct sentences {
  const char **list;
  int count, most;
} sentences;

static void say(sentences *s, const char *text) {
  if (text && s->count < s->most) s->list[s->count++] = text;
}

static const char *value(const compare *c, double v) { return compare_show_value(c->set.metric, v); }
static const char *title(const compare *c) { return compare_metric_titles[c->set.metric]; }
/* Labels follow each other with commas. */
static const char *joined(const char *list, const char *label) { return *list ? compare_printf("%s, %s", list, label) : label; }

static bool shown_behind(const compare_method *m) { return m->behind_low > 0; }

/* The interval of `a` behind `b` by the deciding metric. */
static void behind(const compare *c, int a, int b, double *low, double *high) {
  compare_metric metric = (compare_metric)c->set.metric;
  bool more = compare_more_is_better(c->set.metric);
  compare_interval_of_difference(&c->boot, more ? b : a, more ? a : b, metric, 0.95, low, high);
}

static void answer(const compare *c, sentences *s) {
  const compare_method *pick = &c->methods[c->pick], *best = &c->methods[c->best];
  if (pick->kind == COMPARE_ZERO_SHOT)
    say(s, c->pick == c->best ? "Leave the model as it is: nothing that was tried comes out better."
                              : "Leave the model as it is: no method is shown to be better.");
  else if (pick->kind == COMPARE_IN_CONTEXT)
    say(s, "Put examples into the prompt: no training comes out better.");
  else if (c->pick == c->best)
    say(s, compare_printf("Take %s: it has the best %s.", pick->label, title(c)));
  else
    say(s, compare_printf("Take %s: no difference to the best, %s, is shown, and it is smaller.", pick->label, best->label));
}

static void against_the_model(const compare *c, sentences *s) {
  const compare_method *pick = &c->methods[c->pick], *zero = &c->methods[0];
  int metric = c->set.metric;
  double low, high;
  if (c->pick == 0 || !isfinite(zero->values[metric])) return;
  behind(c, 0, c->pick, &low, &high);
  say(s, compare_printf("Its %s on the test rows is %s (95 %% interval %s to %s); the untouched model's is %s. %s", title(c), value(c, pick->values[metric]),
                        value(c, pick->low[metric]), value(c, pick->high[metric]), value(c, zero->values[metric]),
                        low > 0    ? "That difference is shown."
                        : high < 0 ? "The untouched model is better, and that is shown."
                                   : "That is no difference shown."));
}

static void against_the_others(const compare *c, sentences *s) {
  const char *equal = "", *worse = "";
  const compare_method *best = &c->methods[c->best], *pick = &c->methods[c->pick];
  if (pick != best && isfinite(pick->behind_high)) /* what is not shown may be there all the same */
    say(s, compare_printf("%s may be behind %s by up to %s (%s, 95 %% interval of the difference).", pick->label, best->label,
                          value(c, pick->behind_high), title(c)));
  for (int i = 0; i < c->method_count; i++) {
    const compare_method *m = &c->methods[i];
    if (i == c->best || !isfinite(m->behind)) continue;
    if (shown_behind(m))
      worse = joined(worse, m->label);
    else
      equal = joined(equal, m->label);
  }
  if (*equal) say(s, compare_printf("No difference shown between the best, %s, and: %s.", best->label, equal));
  if (*worse) say(s, compare_printf("Shown to be behind %s: %s.", best->label, worse));
}

static void damage(const compare *c, sentences *s) {
  const compare_method *m = &c->methods[c->pick];
  if (!c->set.retain) say(s, "Damage to what the model knew: not measured (give other text with --retain).");
  if (m->kind != COMPARE_TUNED || !isfinite(m->damage)) return;
  say(s, m->damage_low <= 0 && m->damage_high >= 0
             ? compare_printf("On the other text no damage is shown: its loss changes by %+.4f (%+.4f to %+.4f) while the adapter is on.", m->damage,
                              m->damage_low, m->damage_high)
             : compare_printf("On the other text the loss %s by %.4f (%+.4f to %+.4f) while the adapter is on.", m->damage > 0 ? "rises" : "falls",
                              fabs(m->damage), m->damage_low, m->damage_high));
}

static void cost(const compare *c, sentences *s) {
  const compare_method *m = &c->methods[c->pick];
  if (m->kind != COMPARE_TUNED) return;
  const char *token = isfinite(m->token_ms_added) ? compare_printf(" A generated token takes %.3g ms, %+.2g ms against the untouched model.", m->token_ms, m->token_ms_added)
                                                  : "";
  say(s, compare_printf("It trains %s numbers, takes %s on disk, learned in %s and %s of memory.%s", compare_show_count(m->trainable),
                        compare_show_bytes((double)m->disk_bytes), compare_show_seconds(m->train_seconds), compare_show_bytes((double)m->peak_bytes), token));
}

/* The last validation is the best, and by more than half a percent: training was not at its end. */
static bool still_learning(const compare_method *m) {
  for (int i = 0; i < m->run_count; i++) {
    const compare_run *r = &m->runs[i];
    double last = NAN, before = NAN;
    for (size_t k = 0; r->chosen && k < r->curve_count; k++)
      if (isfinite(r->curve[k].valid_loss)) {
        before = last;
        last = r->curve[k].valid_loss;
      }
    if (isfinite(before) && last <= r->best_valid && last < before * 0.995) return true;
  }
  return false;
}

static void warnings(const compare *c, sentences *s) {
  const char *learning = "", *edges = "";
  for (int i = 0; i < c->method_count; i++) {
    const compare_method *m = &c->methods[i];
    if (m->kind != COMPARE_TUNED) continue;
    if (m->failure) {
      say(s, compare_printf("%s has no result: %s.", m->label, m->failure));
      continue;
    }
    if (still_learning(m)) learning = joined(learning, m->label);
    if (m->searched && m->best_rate != 1) edges = joined(edges, compare_printf("%s (%s)", m->label, m->best_rate == 0 ? "the smallest" : "the largest"));
  }
  if (c->seen_test)
    say(s, compare_printf("%zu of the test rows stand in --data too: what trains on them looks better here than it will be.", c->seen_test));
  if (c->seen_valid)
    say(s, compare_printf("%zu of the validation rows stand in --data too: the learning rate and the best moment were chosen on rows that were seen.",
                          c->seen_valid));
  if (*learning) say(s, compare_printf("Still getting better when the steps ended: %s. A longer --budget may change the answer.", learning));
  if (*edges) say(s, compare_printf("The best learning rate was at an end of the three that were tried: %s. Name others with lr= to look further.", edges));
}

static void uncertainty(const compare *c, sentences *s) {
  const compare_measured *test = &c->methods[0].runs[0].test;
  const compare_units *units = &test->units;
  const char *what = units->count < test->rows ? compare_printf("%zu prompts (%zu test rows)", units->count, test->rows) : compare_printf("%zu test rows", units->count);
  say(s, compare_printf("The intervals come from %s%s, drawn 2,000 times with replacement, the same for all. They say how far another "
                        "choice of such rows would move the numbers; not what other data would do.%s",
                        what, c->versions           ? ""
                        : c->set.seeds > 1 ? compare_printf(" and %d seeds", c->set.seeds)
                                           : "",
                        c->versions || c->set.seeds > 1 ? "" : " With one seed the luck of a single run is not in them."));
  if (units->count < 30) say(s, compare_printf("That is few: take the intervals as a hint."));
}

static const char *signed_value(const compare *c, double v) {
  return compare_printf(c->set.metric == COMPARE_LOSS ? "%+.4f" : "%+.2f", v);
}

/* Each version against the first. */
static void versions(const compare *c, sentences *s) {
  bool more = compare_more_is_better(c->set.metric);
  for (int i = 2; i < c->method_count; i++) {
    compare_change x = compare_versions_change(c, 1, i);
    const char *what = x.is_worse ? "is worse than" : x.is_better ? "is better than" : "shows no difference to";
    double sign = more ? -1 : 1, low = more ? -x.high : x.low, high = more ? -x.low : x.high;
    say(s, compare_printf("%s %s %s: %s %s → %s.", c->methods[i].label, what, c->methods[1].label, title(c), value(c, c->methods[1].values[c->set.metric]),
                          value(c, c->methods[i].values[c->set.metric])));
    say(s, compare_printf("The difference in %s is %s (95 %% interval %s to %s); %zu rows are better, %zu worse, %zu equal.", title(c),
                          signed_value(c, sign * x.shift), signed_value(c, low), signed_value(c, high), x.better, x.worse, x.equal));
    if (x.texts) say(s, compare_printf("%zu of %zu generated texts changed.", x.changed, x.texts));
    if (isfinite(c->methods[1].damage) && isfinite(c->methods[i].damage))
      say(s, compare_printf("Damage to the other text: %+.4f before, %+.4f after.", c->methods[1].damage, c->methods[i].damage));
  }
}

int compare_verdict(const compare *c, const char **lines, int most) {
  sentences s = {.list = lines, .most = most};
  if (c->versions) {
    versions(c, &s);
    uncertainty(c, &s);
    return s.count;
  }
  if (c->best < 0) {
    say(&s, "There is no answer: nothing could be measured.");
    warnings(c, &s);
    return s.count;
  }
  answer(c, &s);
  against_the_model(c, &s);
  against_the_others(c, &s);
  damage(c, &s);
  cost(c, &s);
  warnings(c, &s);
  uncertainty(c, &s);
  return s.count;
}
