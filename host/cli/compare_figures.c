/* SPDX-License-Identifier: MIT
 * The pictures of the report: SVG of one width, so that letters keep their size on a phone and beside each other on a desk;
 * bars are plain boxes. Colours come from the page's style and follow it into the dark. */
#include <math.h>
#include <stdlib.h>

#include "cli/compare.h"

enum { WIDTH = 400, HEIGHT = 280, LEFT = 46, RIGHT = 12, TOP = 12, BOTTOM = 40 };

typedef struct axis {
  double low, high; /* of the data, or of its logarithm */
  bool log;
} axis;

static double along(const axis *a, double value, double from, double to) {
  double v = a->log ? log10(value) : value;
  return from + (v - a->low) / (a->high - a->low) * (to - from);
}
static double at_x(const axis *a, double value) { return along(a, value, LEFT, WIDTH - RIGHT); }
static double at_y(const axis *a, double value) { return along(a, value, HEIGHT - BOTTOM, TOP); }

static void include(axis *a, double value) {
  if (a->log) value = value > 0 ? log10(value) : NAN;
  if (!isfinite(value)) return;
  if (!(a->low <= value)) a->low = value;
  if (!(a->high >= value)) a->high = value;
}

static bool widen(axis *a, double share) {
  if (!isfinite(a->low) || !isfinite(a->high)) return false;
  double pad = (a->high - a->low) * share;
  if (pad <= 0) pad = a->log ? 0.5 : fabs(a->high) * 0.05 + 1e-9;
  a->low -= pad;
  a->high += pad;
  return true;
}

/* 1, 2 or 5 times a power of ten, so that about `wanted` fit. */
static double step_of(const axis *a, double wanted) {
  double raw = (a->high - a->low) / wanted, power = pow(10, floor(log10(raw))), lead = raw / power;
  return power * (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10);
}

static void number(char text[32], double value, double step) {
  int digits = step >= 1 ? 0 : (int)ceil(-log10(step) - 1e-9);
  if (fabs(value) < step / 1e6) value = 0;
  if (fabs(value) >= 1e4)
    snprintf(text, 32, "%s", compare_show_count((int64_t)value));
  else
    snprintf(text, 32, "%.*f", digits, value);
}

static void axes(FILE *out, const axis *x, const axis *y, const char *x_title, const char *y_title) {
  char text[32];
  double step = step_of(y, 5);
  for (double v = ceil(y->low / step) * step; v <= y->high; v += step) {
    number(text, v, step);
    fprintf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>", LEFT,
            WIDTH - RIGHT, at_y(y, v), at_y(y, v), LEFT - 6, at_y(y, v) + 4, text);
  }
  step = x->log ? 1 : step_of(x, 5);
  if (x->log && x->high - x->low > 6) step = 2;
  if (x->log && x->high - x->low < 1.6) step = 0.5; /* and then at three times the powers of ten */
  for (double v = ceil(x->low / step) * step; v <= x->high; v += step) {
    bool half = x->log && v - floor(v + 1e-9) > 0.25;
    double value = !x->log ? v : pow(10, floor(v + 1e-9)) * (half ? 3 : 1), place = at_x(x, value);
    if (x->log)
      snprintf(text, sizeof text, "%s", compare_show_count((int64_t)llround(value)));
    else
      number(text, v, step);
    if (place < LEFT || place > WIDTH - RIGHT - 6) continue;
    fprintf(out, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>", place,
            place, TOP, HEIGHT - BOTTOM, place, HEIGHT - BOTTOM + 15, text);
  }
  fprintf(out, "<line class=\"axis\" x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/>", LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM);
  fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s →</text>", WIDTH - RIGHT, HEIGHT - 6, x_title);
  fprintf(out, "<text x=\"%d\" y=\"%d\">↑ %s</text>", 0, HEIGHT - 6, y_title);
}

static int color_of(int method) { return method < 2 ? method : 2 + (method - 2) % 8; }

static void begin(FILE *out, const char *title, const char *text) {
  fprintf(out, "<figure><figcaption><h3>%s</h3><p>%s</p></figcaption>\n", title, text);
}

static void begin_svg(FILE *out, int height, const char *label) {
  fprintf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">", WIDTH, height, label);
}

static void legend(FILE *out, const compare *c, bool baselines) {
  fputs("<ul class=\"legend\">", out);
  for (int i = 0; i < c->method_count; i++) {
    if (c->methods[i].seeds == 0 || (!baselines && c->methods[i].kind != COMPARE_TUNED && i != 0)) continue;
    fprintf(out, "<li><i class=\"dot\" style=\"background:var(--c%d)\"></i>", color_of(i));
    compare_html(out, c->methods[i].label);
    fputs("</li>", out);
  }
  fputs("</ul>", out);
}

/* ---- learning curves ---- */

static void curve(FILE *out, const axis *x, const axis *y, const compare_run *r, int method) {
  fprintf(out, "<polyline fill=\"none\" stroke=\"var(--c%d)\" stroke-width=\"2\" stroke-linejoin=\"round\" clip-path=\"url(#plot)\" points=\"",
          color_of(method));
  if (isfinite(r->first_valid)) fprintf(out, "%.1f,%.1f ", at_x(x, 0), at_y(y, r->first_valid));
  for (size_t i = 0; i < r->curve_count; i++)
    if (isfinite(r->curve[i].valid_loss)) fprintf(out, "%.1f,%.1f ", at_x(x, (double)r->curve[i].step), at_y(y, r->curve[i].valid_loss));
  fputs("\"/>", out);
}

void compare_figure_curves(FILE *out, const compare *c) {
  axis x = {0, (double)c->plan.steps, false}, y = {NAN, NAN, false};
  include(&y, c->zero_valid); /* a start far above it is cut off: the curves matter */
  for (int i = 0; i < c->method_count; i++)
    for (int k = 0; k < c->methods[i].run_count; k++) {
      const compare_run *r = &c->methods[i].runs[k];
      if (c->methods[i].kind == COMPARE_TUNED && r->chosen && r->first_valid < 1.3 * c->zero_valid) include(&y, r->first_valid);
      for (size_t p = 0; r->chosen && p < r->curve_count; p++) include(&y, r->curve[p].valid_loss);
    }
  if (!widen(&y, 0.06) || x.high < 1) return;
  begin(out, "Learning", "Loss on the validation rows while training; a line for each seed. The dashed line is the untouched model.");
  begin_svg(out, HEIGHT, "learning curves");
  fprintf(out, "<clipPath id=\"plot\"><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/></clipPath>", LEFT, TOP, WIDTH - RIGHT - LEFT,
          HEIGHT - BOTTOM - TOP);
  axes(out, &x, &y, "steps", "validation loss");
  if (isfinite(c->zero_valid))
    fprintf(out, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"var(--c0)\" stroke-width=\"1.5\" stroke-dasharray=\"5 4\"/>", LEFT,
            WIDTH - RIGHT, at_y(&y, c->zero_valid), at_y(&y, c->zero_valid));
  for (int i = 0; i < c->method_count; i++)
    for (int k = 0; k < c->methods[i].run_count; k++)
      if (c->methods[i].kind == COMPARE_TUNED && c->methods[i].runs[k].chosen) curve(out, &x, &y, &c->methods[i].runs[k], i);
  fputs("</svg>", out);
  legend(out, c, false);
  fputs("</figure>\n", out);
}

/* ---- scatter ---- */

typedef struct box {
  double x, y, w, h;
} box;

static bool overlap(const box *a, const box *b) { return a->x < b->x + b->w && b->x < a->x + a->w && a->y < b->y + b->h && b->y < a->y + a->h; }

typedef struct placed {
  box boxes[3 * COMPARE_MOST_METHODS];
  int count;
} placed;

/* Where the name stands, `far` away from its point in one of eight directions. */
static box place_of(double x, double y, double w, double far, int direction) {
  static const double ways[8][2] = {{1, 0}, {-1, 0}, {0.8, -0.8}, {0.8, 0.8}, {-0.8, -0.8}, {-0.8, 0.8}, {0, -1}, {0, 1}};
  double dx = ways[direction][0] * far, dy = ways[direction][1] * far;
  return (box){dx > 0 ? x + dx : dx < 0 ? x + dx - w : x - w / 2, y + dy - 7 + (dy > 0 ? 4 : dy < 0 ? -4 : 0), w, 14};
}

/* Beside its point where it covers nothing, further away with a line to it where that is full, else where it covers least. */
static void name_point(FILE *out, placed *p, const char *label, double x, double y, bool is_point) {
  const char *text = compare_short(label, 26);
  double w = 7.2 * (double)strlen(text), way = 0;
  box best = {0};
  int least = 1 << 20;
  for (int i = 0; i < 8 * 8 && least; i++) {
    double far = 9 + 12 * (i / 8);
    box b = place_of(x, y, w, far, i % 8);
    int covered = (b.x < LEFT || b.x + w > WIDTH || b.y < 0 || b.y + 14 > HEIGHT - BOTTOM) * 8;
    for (int k = 0; k < p->count; k++) covered += overlap(&b, &p->boxes[k]);
    if (covered >= least) continue;
    least = covered;
    best = b;
    way = far;
  }
  if (is_point && way > 20)
    fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"var(--soft)\" stroke-width=\".7\"/>", x, y,
            best.x > x ? best.x - 1 : best.x + w < x ? best.x + w + 1 : x, best.y > y ? best.y + 2 : best.y + 14 < y ? best.y + 13 : best.y + 7);
  p->boxes[p->count++] = best;
  fprintf(out, "<text class=\"name\" x=\"%.1f\" y=\"%.1f\">", best.x, best.y + 11);
  compare_html(out, text);
  fputs("</text>", out);
}

static double size_of(const compare_method *m) { return m->kind == COMPARE_TUNED && m->trainable ? (double)m->trainable : NAN; }
static double damage_of(const compare_method *m) { return m->kind == COMPARE_TUNED ? m->damage : NAN; }

static void marks(FILE *out, const compare *c, const axis *x, const axis *y, double (*x_of)(const compare_method *), placed *p) {
  int metric = c->set.metric;
  for (int i = 0; i < c->method_count; i++) {
    const compare_method *m = &c->methods[i];
    double value = m->values[metric], place = x_of(m);
    if (!m->seeds || !isfinite(value)) continue;
    if (m->kind != COMPARE_TUNED) {
      fprintf(out, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"var(--c%d)\" stroke-width=\"1.5\" stroke-dasharray=\"5 4\"/>", LEFT,
              WIDTH - RIGHT, at_y(y, value), at_y(y, value), color_of(i));
      p->boxes[p->count++] = (box){LEFT, at_y(y, value) - 1, WIDTH - RIGHT - LEFT, 2};
      continue;
    }
    if (!isfinite(place)) continue;
    double cx = at_x(x, place), cy = at_y(y, value);
    if (isfinite(m->low[metric]))
      fprintf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"var(--c%d)\" stroke-width=\"1.5\" opacity=\".55\"/>", cx, cx,
              at_y(y, m->low[metric]), at_y(y, m->high[metric]), color_of(i));
    fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5.5\" fill=\"var(--c%d)\"/>", cx, cy, color_of(i));
    p->boxes[p->count++] = (box){cx - 6, cy - 6, 12, 12};
  }
}

static void names(FILE *out, const compare *c, const axis *x, const axis *y, double (*x_of)(const compare_method *), placed *p) {
  int metric = c->set.metric;
  for (int i = 0; i < c->method_count; i++) {
    const compare_method *m = &c->methods[i];
    if (!m->seeds || !isfinite(m->values[metric])) continue;
    if (m->kind != COMPARE_TUNED)
      name_point(out, p, m->label, LEFT - 4, at_y(y, m->values[metric]) - 8, false);
    else if (isfinite(x_of(m)))
      name_point(out, p, m->label, at_x(x, x_of(m)), at_y(y, m->values[metric]), true);
  }
}

static void scatter(FILE *out, const compare *c, bool log_x, double (*x_of)(const compare_method *), const char *x_title, const char *title,
                    const char *text) {
  axis x = {NAN, NAN, log_x}, y = {NAN, NAN, false};
  placed p = {.count = 0};
  int metric = c->set.metric, points = 0;
  for (int i = 0; i < c->method_count; i++) {
    const compare_method *m = &c->methods[i];
    if (!m->seeds) continue;
    include(&y, m->values[metric]);
    if (m->kind != COMPARE_TUNED || !isfinite(x_of(m))) continue;
    points++;
    include(&x, x_of(m));
    include(&y, m->low[metric]);
    include(&y, m->high[metric]);
  }
  if (!log_x) include(&x, 0);
  if (!points || !widen(&y, 0.08) || !widen(&x, 0.12)) return;
  begin(out, title, text);
  begin_svg(out, HEIGHT, title);
  axes(out, &x, &y, x_title, compare_metric_titles[metric]);
  marks(out, c, &x, &y, x_of, &p);
  names(out, c, &x, &y, x_of, &p);
  fputs("</svg></figure>\n", out);
}

void compare_figure_size(FILE *out, const compare *c) {
  const char *text = compare_more_is_better(c->set.metric) ? "On the test rows, with its 95 % interval; higher is better, left is smaller."
                                                           : "On the test rows, with its 95 % interval; lower is better, left is smaller.";
  scatter(out, c, true, size_of, "trained numbers", "Quality against size", text);
}

void compare_figure_damage(FILE *out, const compare *c) {
  if (!c->set.retain) {
    begin(out, "Quality against damage", "Not measured: give other text, which the model should still know, with <code>--retain</code>. The damage is what "
                                         "the loss on it rises by while the adapter is on.");
    fputs("</figure>\n", out);
    return;
  }
  scatter(out, c, false, damage_of, "damage", "Quality against damage",
          "Damage: what the loss on the other text rises by while the adapter is on. The best place is at zero.");
}

/* ---- how far behind the best ---- */

void compare_figure_intervals(FILE *out, const compare *c) {
  axis x = {0, 0, false};
  int rows = 0;
  enum { ROW = 34 };
  for (int i = 0; i < c->method_count; i++) {
    if (!isfinite(c->methods[i].behind_low)) continue;
    rows++;
    include(&x, c->methods[i].behind_low);
    include(&x, c->methods[i].behind_high);
  }
  if (rows < 2 || !widen(&x, 0.06)) return;
  begin(out, "How far behind the best", "The difference on the same rows and its 95 % interval. One that touches the line at zero is no difference shown.");
  int height = rows * ROW + 40;
  begin_svg(out, height, "differences to the best method");
  double zero = along(&x, 0, 8, WIDTH - 8), step = step_of(&x, 4);
  for (double v = ceil(x.low / step) * step; v <= x.high; v += step) {
    char text[32];
    double place = along(&x, v, 8, WIDTH - 8);
    number(text, v, step);
    fprintf(out, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"0\" y2=\"%d\"/>", place, place, rows * ROW + 4);
    fprintf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"%s\">%s</text>", place, rows * ROW + 18, place < 20 ? "start" : place > WIDTH - 20 ? "end" : "middle", text);
  }
  fprintf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"0\" y2=\"%d\" stroke=\"var(--soft)\"/>", zero, zero, rows * ROW + 4);
  for (int i = 0, row = 0; i < c->method_count; i++) {
    const compare_method *m = &c->methods[i];
    if (!isfinite(m->behind_low)) continue;
    double y = row++ * ROW + 25, a = along(&x, m->behind_low, 8, WIDTH - 8), b = along(&x, m->behind_high, 8, WIDTH - 8);
    double middle = along(&x, m->behind, 8, WIDTH - 8), w = 7.2 * (double)strlen(compare_short(m->label, 50));
    double start = (a + b) / 2 - w / 2 < 8 ? 8 : (a + b) / 2 + w / 2 > WIDTH - 8 ? WIDTH - 8 - w : (a + b) / 2 - w / 2;
    fprintf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"var(--c%d)\" stroke-width=\"4\" stroke-linecap=\"round\" opacity=\".45\"/>", a, b, y,
            y, color_of(i));
    fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\" fill=\"var(--c%d)\"/><text class=\"name\" x=\"%.1f\" y=\"%.1f\">", middle, y, color_of(i),
            start < 8 ? 8 : start, y - 9);
    compare_html(out, compare_short(m->label, 50));
    fputs("</text>", out);
  }
  fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s worse →</text></svg></figure>\n", WIDTH - 8, height - 5,
          compare_metric_titles[c->set.metric]);
}

/* ---- time and memory ---- */

static void bars(FILE *out, const compare *c, double (*value_of)(const compare_method *), const char *(*show)(double), const char *title, const char *text) {
  double most = 0;
  for (int i = 0; i < c->method_count; i++) {
    double v = c->methods[i].seeds ? value_of(&c->methods[i]) : NAN;
    if (isfinite(v) && v > most) most = v;
  }
  if (most <= 0) return;
  begin(out, title, text);
  for (int i = 0; i < c->method_count; i++) {
    double v = c->methods[i].seeds ? value_of(&c->methods[i]) : NAN;
    if (!isfinite(v)) continue;
    fputs("<div class=\"bar\"><span>", out);
    compare_html(out, c->methods[i].label);
    fprintf(out, "</span><b>%s</b><i><u style=\"width:%.1f%%;background:var(--c%d)\"></u></i></div>", show(v), 100 * v / most, color_of(i));
  }
  fputs("</figure>\n", out);
}

static double train_seconds(const compare_method *m) { return m->kind == COMPARE_TUNED ? m->train_seconds : NAN; }
static double peak(const compare_method *m) { return m->peak_bytes ? (double)m->peak_bytes : NAN; }
static double token(const compare_method *m) { return m->token_ms; }
static const char *milliseconds(double v) { return compare_printf("%.3g ms", v); }

void compare_figure_bars(FILE *out, const compare *c) {
  bars(out, c, train_seconds, compare_show_seconds, "Time to train", "Seconds of training in one run, without start and validation.");
  bars(out, c, peak, compare_show_bytes, "Peak memory",
       c->versions ? "Of the program that measured it." : "Of the training program; for the untouched model, of the one that measured it.");
  bars(out, c, token, milliseconds, "Time of a generated token", "One prompt at a time, all methods by turns; the fastest of up to five rounds.");
}
