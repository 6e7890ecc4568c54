/* SPDX-License-Identifier: MIT
 * Values of --tune. What a part means is the library's to say; here only its grammar counts: parts joined by `+`, fields by
 * `:`, the first field the name, the second the size unless it is KEY=VALUE. A size may be a list: one method for each. */
#include <ctype.h>
#include <stdlib.h>

#include "cli/compare.h"

const double compare_rates[COMPARE_RATES] = {1.0 / 3, 1, 3};

/* "prefix:20+lora:8" -> "prefix-20+lora-8", at most 60 characters, and no other method's. */
static const char *slug_of(const compare *c, const char *label) {
  char text[61];
  size_t n = 0;
  for (; label[n] && n < 60; n++) text[n] = isalnum((unsigned char)label[n]) || strchr("._+=", label[n]) ? label[n] : '-';
  text[n] = 0;
  const char *slug = compare_printf("%s", *text == '.' ? "method" : text);
  for (int again = 2, i = 0; i < c->method_count; i++) {
    if (strcmp(c->methods[i].slug, slug) != 0) continue;
    slug = compare_printf("%s-%d", text, again++);
    i = -1;
  }
  return slug;
}

compare_method *compare_add_method(compare *c, compare_kind kind, const char *label, const char *slug) {
  if (c->method_count == COMPARE_MOST_METHODS) return NULL;
  compare_method *m = &c->methods[c->method_count];
  *m = (compare_method){.kind = kind, .label = label, .slug = slug ? slug : slug_of(c, label), .best_rate = -1};
  c->method_count++;
  return m;
}

static int add_one(compare *c, const char *tune) {
  pfx_error err = {0};
  pfx_tune_part part;
  int32_t parts = 1, tokens = 0;
  double lr = 0;
  bool searched = false;
  for (int32_t i = 0; i < parts; i++) {
    if (pfx_tune_describe(tune, i, &part, &parts, &err) != PFX_OK) return cli_fail(&err);
    tokens += part.virtual_tokens;
    searched = searched || part.lr == 0;
    if (i == 0) lr = part.lr > 0 ? part.lr : part.usual_lr;
  }
  for (int i = 0; i < c->method_count; i++)
    if (strcmp(c->methods[i].label, tune) == 0) return cli_usage_error(&cli_compare, "--tune %s is given twice", tune);
  compare_method *m = compare_add_method(c, COMPARE_TUNED, tune, NULL);
  if (!m) return cli_usage_error(&cli_compare, "more than %d methods", COMPARE_MOST_METHODS);
  m->virtual_tokens = tokens;
  m->lr = lr;
  m->searched = searched && c->set.lr == 0;
  return 0;
}

/* Where the first list of sizes in `tune` stands: its start, and its length; 0: there is none. */
static size_t find_list(const char *tune, const char **start) {
  for (const char *part = tune; part; part = strchr(part, '+') ? strchr(part, '+') + 1 : NULL) {
    size_t name = strcspn(part, ":+");
    if (part[name] != ':') continue;
    const char *size = part + name + 1;
    size_t n = strcspn(size, ":+");
    if (memchr(size, '=', n) || !memchr(size, ',', n)) continue;
    *start = size;
    return n;
  }
  return 0;
}

int compare_add_tune(compare *c, const char *tune) {
  const char *list = NULL;
  size_t n = find_list(tune, &list);
  if (n == 0) return add_one(c, tune);
  for (size_t at = 0; at <= n;) {
    size_t len = 0;
    while (at + len < n && list[at + len] != ',') len++;
    if (len == 0) return cli_usage_error(&cli_compare, "--tune %s: the list of sizes has an empty place", tune);
    int code = compare_add_tune(c, compare_printf("%.*s%.*s%s", (int)(list - tune), tune, (int)len, list + at, list + n));
    if (code) return code;
    at += len + 1;
  }
  return 0;
}

const char *compare_tune_at(const char *tune, int rate) {
  pfx_error err = {0};
  pfx_tune_part part;
  int32_t parts = 1;
  const char *out = "", *at = tune;
  for (int32_t i = 0; i < parts && pfx_tune_describe(tune, i, &part, &parts, &err) == PFX_OK; i++) {
    size_t n = strcspn(at, "+");
    out = part.lr > 0 ? compare_printf("%s%s%.*s", out, i ? "+" : "", (int)n, at)
                      : compare_printf("%s%s%.*s:lr=%.6g", out, i ? "+" : "", (int)n, at, part.usual_lr * compare_rates[rate]);
    at += n + (at[n] == '+');
  }
  return out;
}

static void add_run(compare *c, compare_method *m, int rate, uint64_t seed) {
  static const char *const names[] = {"third", "usual", "triple"};
  compare_run *r = &m->runs[m->run_count++];
  *r = (compare_run){.rate = rate, .seed = seed, .tune = compare_tune_at(m->label, rate)};
  r->name = compare_printf("%s_%s_seed%llu", m->slug, names[rate], (unsigned long long)seed);
  r->folder = compare_printf("%s/runs/%s", c->work, r->name);
}

void compare_add_runs(compare *c, compare_method *m) {
  if (!m->runs) m->runs = compare_alloc(COMPARE_RATES + COMPARE_MOST_SEEDS, sizeof *m->runs);
  if (m->run_count == 0) {
    if (!m->searched) m->best_rate = 1;
    for (int i = 0; i < COMPARE_RATES; i++)
      if (m->searched || i == 1) add_run(c, m, i, c->set.seed);
  }
  if (m->best_rate < 0 || m->run_count >= (m->searched ? COMPARE_RATES : 1) + c->set.seeds - 1) return;
  for (int32_t s = 1; s < c->set.seeds; s++) add_run(c, m, m->best_rate, c->set.seed + (uint64_t)s);
}
