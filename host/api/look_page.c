/* SPDX-License-Identifier: MIT
 * The page of an inspection: one file with its style and pictures inside, nothing fetched, no script. Pictures are SVG whose
 * colours are variables of the style sheet, so that light, dark and paper need one drawing: a heat map's cell is the one
 * strong colour, as opaque as its value is large. */
#include <math.h>

#include "api/look.h"
#include "core/version.h"

static const char style[] =
    ":root{--paper:#fbfbfa;--panel:#fff;--ink:#1c1f23;--soft:#5c6570;--line:#dfe2e6;--heat:#0b5cad;--on-heat:#fff;--other:#c2571a;--mark:#a3202c}\n"
    "@media(prefers-color-scheme:dark){:root{--paper:#14171a;--panel:#1b1f24;--ink:#e7eaee;--soft:#9aa5b1;--line:#323941;--heat:#6cb6ff;--on-heat:#08131f;"
    "--other:#f0965a;--mark:#ff7b84}}\n"
    "*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,\"Segoe UI\",sans-serif}\n"
    "main{max-width:64rem;margin:0 auto;padding:1.5rem 1rem 3rem}h1{font-size:1.5rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}\n"
    "h2{font-size:1.1rem;margin:0 0 .25rem}p{margin:.25rem 0 .75rem;max-width:46rem}.soft,figcaption{color:var(--soft);font-size:.875rem}\n"
    ".facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:.75rem;margin:1.25rem 0}\n"
    ".facts div,section{background:var(--panel);border:1px solid var(--line);border-radius:.5rem}.facts div{padding:.75rem 1rem}\n"
    ".facts b{display:block;font-size:1.5rem;line-height:1.3;font-variant-numeric:tabular-nums}.facts span{color:var(--soft);font-size:.8125rem}\n"
    "section{padding:1rem;margin:1rem 0}.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}svg{display:block;font:11px system-ui,sans-serif}\n"
    "svg text{fill:var(--soft)}.cell{fill:var(--heat)}.low{fill:var(--ink)!important}.high{fill:var(--on-heat)!important}.frame{fill:none;stroke:var(--line)}\n"
    ".dead{stroke:var(--mark);stroke-width:1.25}.grid{stroke:var(--line)}.a{stroke:var(--heat);fill:none;stroke-width:2}.b{stroke:var(--other);fill:none;"
    "stroke-width:2;stroke-dasharray:5 3}.da{fill:var(--heat)}.db{fill:var(--other)}\n"
    ".key{display:inline-block;width:1.75rem;height:0;border-top:2px solid var(--heat);vertical-align:middle}.key.two{border-top:2px dashed var(--other)}.what{white-space:nowrap;margin-left:.5rem}\n"
    ".pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:1rem}.pair svg{width:100%;height:auto}figure{margin:0}\n"
    ".ramp{display:inline-block;width:7rem;height:.7rem;border:1px solid var(--line);vertical-align:middle;background:linear-gradient(90deg,transparent,var(--heat))}\n"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th{font-weight:600;font-size:.8125rem;color:var(--soft);text-align:right;"
    "vertical-align:bottom}td,th{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}\n"
    "td.words,th.words{white-space:normal;min-width:16rem;text-align:left}\n"
    ".word{display:inline-block;margin:0 .5rem .15rem 0}code{font:.875em ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;background:var(--paper);"
    "border:1px solid var(--line);border-radius:.25rem;padding:.05rem .25rem}.no{color:var(--mark)}\n"
    "@media(max-width:40rem){tr{display:grid;grid-template-columns:3.2rem repeat(4,1fr);border-bottom:1px solid var(--line)}td,th{border:0;padding:.25rem .3rem}"
    "td.words,th.words{grid-column:1/-1;min-width:0;padding-left:1.4rem}}\n"
    "@media print{body{background:#fff}section,.facts div{break-inside:avoid}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}\n";

void px_look_text(px_buf *out, const char *text) {
  for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
    if (*c == '&' || *c == '<' || *c == '>' || *c == '"' || *c == '\'')
      px_buf_printf(out, "&#%d;", *c);
    else if (*c < 0x20 || *c == 0x7f)
      px_buf_printf(out, "\\x%02x", *c);
    else
      px_buf_append(out, c, 1);
  }
}

static double mean_of(const double *values, int count) {
  double sum = 0;
  for (int i = 0; i < count; i++) sum += values[i];
  return count ? sum / count : 0;
}

static double largest(const double *values, int count) {
  double most = 0;
  for (int i = 0; i < count; i++) most = fmax(most, values[i]);
  return most;
}

double px_look_round_up(double value) {
  static const double ends[] = {1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8};
  double power = pow(10, floor(log10(fmax(value, 1e-9))));
  for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
    if (value <= ends[i] * power) return ends[i] * power;
  return 10 * power;
}

/* A heat map of [layers][cols] shares, columns named `across`. crossed (may be NULL): cells that are below the
 * inspection's threshold there are marked. With `roots` a shade is the square root of its value: for shares of which a few
 * are many times larger than all others. */
typedef struct heat_map {
  const pfx_inspection *of;
  const double *values, *crossed;
  int cols;
  bool roots;
  const char *title, *across;
  double top; /* of the scale; filled in with the sizes below */
  int width, height;
  bool with_numbers;
} heat_map;

enum { MAP_LEFT = 46, MAP_TOP = 34, MAP_GAP = 10, NARROW = 18 };

static void put_shade(px_buf *out, const heat_map *m, int col, int gap, int row, double value) {
  double shade = value / m->top;
  px_buf_printf(out, "<rect class=\"cell\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill-opacity=\"%.3f\">", MAP_LEFT + col * m->width + gap,
                MAP_TOP + row * m->height, m->width - 1, m->height - 1, m->roots ? sqrt(shade) : shade);
}

static void put_number(px_buf *out, const heat_map *m, int col, int gap, int row, double value) {
  px_buf_printf(out, "<text class=\"%s\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">%.0f</text>", value > 0.55 * m->top ? "high" : "low",
                MAP_LEFT + col * m->width + m->width / 2 + gap, MAP_TOP + row * m->height + m->height / 2 + 4, 100 * value);
}

static void put_cell(px_buf *out, const heat_map *m, int row, int col) {
  double value = m->values[row * m->cols + col];
  put_shade(out, m, col, 0, row, value);
  px_buf_printf(out, "<title>layer %d, %s %d: %.2f %%", row, m->across, col, 100 * value);
  bool crossed = m->crossed && m->crossed[row * m->cols + col] < m->of->dead_below;
  if (m->crossed) px_buf_printf(out, " on average, %.2f %% at most%s", 100 * m->crossed[row * m->cols + col], crossed ? ": dead here" : "");
  px_buf_puts(out, "</title></rect>");
  if (crossed)
    px_buf_printf(out, "<path class=\"dead\" d=\"M%d %dl6 6m0 -6l-6 6\"/>", MAP_LEFT + col * m->width + m->width / 2 - 3,
                  MAP_TOP + row * m->height + m->height / 2 - 3);
  if (m->with_numbers) put_number(out, m, col, 0, row, value);
}

/* The mean of a row, apart from its cells. */
static void put_mean(px_buf *out, const heat_map *m, int row) {
  double mean = mean_of(m->values + row * m->cols, m->cols);
  put_shade(out, m, m->cols, MAP_GAP, row, mean);
  px_buf_printf(out, "<title>layer %d, all heads: %.2f %%; %.2f %% if spread evenly</title></rect>", row, 100 * mean, 100 * m->of->even[row]);
  put_number(out, m, m->cols, MAP_GAP, row, mean);
}

static void put_heat_map(px_buf *out, heat_map m) {
  const pfx_inspection *i = m.of;
  m.width = m.cols <= 12 ? 44 : m.cols <= 24 ? 32 : m.cols <= 48 ? NARROW : 12;
  m.height = 22;
  m.with_numbers = !m.crossed && m.width > NARROW;
  m.top = px_look_round_up(largest(m.values, i->layers * m.cols));
  int width = MAP_LEFT + m.cols * m.width + (m.with_numbers ? MAP_GAP + m.width : 0) + 2, height = MAP_TOP + i->layers * m.height + 2;
  px_buf_printf(out, "<div class=\"scroll\" tabindex=\"0\"><svg role=\"img\" aria-label=\"%s\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\">", m.title, width,
                height, width, height);
  px_buf_printf(out, "<text x=\"0\" y=\"28\">layer</text><text x=\"%d\" y=\"11\">%s</text>", MAP_LEFT, m.across);
  for (int c = 0; c < m.cols; c++)
    if (m.width >= NARROW || c % 5 == 0)
      px_buf_printf(out, "<text x=\"%d\" y=\"28\" text-anchor=\"middle\">%d</text>", MAP_LEFT + c * m.width + m.width / 2, c);
  if (m.with_numbers)
    px_buf_printf(out, "<text x=\"%d\" y=\"28\" text-anchor=\"middle\">mean</text>", MAP_LEFT + m.cols * m.width + m.width / 2 + MAP_GAP);
  for (int l = 0; l < i->layers; l++) {
    px_buf_printf(out, "<text x=\"38\" y=\"%d\" text-anchor=\"end\">%d</text>", MAP_TOP + l * m.height + m.height / 2 + 4, l);
    bool empty = i->first_token[l] == i->virtual_tokens;
    for (int c = m.crossed ? i->first_token[l] : 0; !empty && c < m.cols; c++) put_cell(out, &m, l, c);
    if (!empty && m.with_numbers) put_mean(out, &m, l);
    if (empty) px_buf_printf(out, "<text x=\"%d\" y=\"%d\">none here</text>", MAP_LEFT + 4, MAP_TOP + l * m.height + m.height / 2 + 4);
  }
  px_buf_printf(out, "<rect class=\"frame\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/></svg></div>", MAP_LEFT - 1, MAP_TOP - 1, m.cols * m.width + 1,
                i->layers * m.height + 1);
  px_buf_printf(out, "<p class=\"soft\">0 <span class=\"ramp\"></span> %g %% of a query&#8217;s attention%s</p>", 100 * m.top,
                m.roots ? "; a shade half as strong is a quarter of that" : "");
}

enum { CHART_WIDTH = 420, CHART_HEIGHT = 200, CHART_LEFT = 44, CHART_TOP = 10, CHART_BOTTOM = 38 };

static double chart_x(const pfx_inspection *i, int layer) {
  return CHART_LEFT + (i->layers > 1 ? (double)layer / (i->layers - 1) : 0.5) * (CHART_WIDTH - CHART_LEFT - 12);
}

static double chart_y(double value, double top) { return CHART_TOP + (1 - value / top) * (CHART_HEIGHT - CHART_TOP - CHART_BOTTOM); }

/* One line over the layers. The fields of pfx_vector_lengths are four doubles in the order of its declaration. */
static void put_line(px_buf *out, const pfx_inspection *i, int field, const char *style_class, double top) {
  const double *values = &i->lengths[0].prefix_key;
  px_buf_printf(out, "<polyline class=\"%s\" points=\"", style_class);
  for (int l = 0; l < i->layers; l++)
    if (i->first_token[l] < i->virtual_tokens || field % 2) px_buf_printf(out, "%.1f,%.1f ", chart_x(i, l), chart_y(values[l * 4 + field], top));
  px_buf_puts(out, "\"/>");
  for (int l = 0; l < i->layers; l++)
    if (i->first_token[l] < i->virtual_tokens || field % 2)
      px_buf_printf(out, "<circle class=\"d%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\"><title>layer %d: %.4g</title></circle>", style_class, chart_x(i, l),
                    chart_y(values[l * 4 + field], top), l, values[l * 4 + field]);
}

static void put_lengths(px_buf *out, const pfx_inspection *i, int field, const char *what) {
  const double *values = &i->lengths[0].prefix_key;
  double top = 0;
  for (int l = 0; l < i->layers; l++) top = fmax(top, fmax(values[l * 4 + field], values[l * 4 + field + 1]));
  top = px_look_round_up(top);
  px_buf_printf(out, "<figure><svg role=\"img\" aria-label=\"Mean length of %s by layer, of virtual and of real tokens\" viewBox=\"0 0 %d %d\">", what,
                CHART_WIDTH, CHART_HEIGHT);
  for (int tick = 0; tick <= 4; tick++) {
    double y = chart_y(tick * top / 4, top);
    px_buf_printf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>", CHART_LEFT,
                  CHART_WIDTH - 8, y, y, CHART_LEFT - 6, y + 4, tick * top / 4);
  }
  int step = i->layers > 12 ? (i->layers + 9) / 10 : 1;
  for (int l = 0; l < i->layers; l += step)
    px_buf_printf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%d</text>", chart_x(i, l), CHART_HEIGHT - 21, l);
  px_buf_printf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">layer</text>", CHART_WIDTH - 8, CHART_HEIGHT - 6);
  put_line(out, i, field + 1, "b", top);
  put_line(out, i, field, "a", top);
  px_buf_printf(out, "</svg><figcaption>Mean length of %s, one head&#8217;s vector. <span class=\"what\"><span class=\"key\"></span> virtual tokens</span> "
                     "<span class=\"what\"><span class=\"key two\"></span> real tokens</span>"
                     "</figcaption></figure>", what);
}

static void put_words(px_buf *out, const pfx_inspection *i, int slot) {
  px_buf_printf(out, "<td>%.2f</td><td class=\"words\">", i->usual_cosine[slot]);
  for (int k = 0; k < i->words; k++) {
    const pfx_near_word *w = &i->near_words[slot * i->words + k];
    if (w->id < 0) continue;
    px_buf_puts(out, "<span class=\"word\"><code><bdi>");
    if (w->text)
      px_look_text(out, w->text);
    else
      px_buf_printf(out, "id %d", w->id);
    px_buf_printf(out, "</bdi></code> %.2f</span> ", (double)w->cosine);
  }
  px_buf_puts(out, "</td>");
}

static void put_table(px_buf *out, const pfx_inspection *i) {
  px_buf_puts(out, "<div class=\"scroll\" tabindex=\"0\"><table><thead><tr><th>token</th><th>mean<br>share %</th><th>largest<br>share %</th><th>layers<br>alive</th>");
  px_buf_puts(out, i->words ? "<th>usual<br>cosine</th><th class=\"words\">nearest words</th></tr></thead><tbody>\n" : "</tr></thead><tbody>\n");
  for (int t = 0; t < i->virtual_tokens; t++) {
    double mean = 0, most = 0;
    int alive = 0;
    for (int l = 0; l < i->layers; l++) {
      double peak = i->slot_peak[l * i->virtual_tokens + t];
      mean += i->slot_mass[l * i->virtual_tokens + t] / i->layers;
      most = fmax(most, peak);
      alive += t >= i->first_token[l] && peak >= i->dead_below;
    }
    px_buf_printf(out, "<tr><td>%d</td><td>%.2f</td><td>%.2f</td>", t, 100 * mean, 100 * most);
    if (alive)
      px_buf_printf(out, "<td>%d</td>", alive);
    else
      px_buf_puts(out, "<td class=\"no\">dead</td>");
    if (i->words) put_words(out, i, t);
    px_buf_puts(out, "</tr>\n");
  }
  px_buf_puts(out, "</tbody></table></div>");
}

static void put_facts(px_buf *out, const pfx_inspection *i) {
  int strongest = 0;
  double even = mean_of(i->even, i->layers);
  for (int l = 0; l < i->layers; l++)
    if (mean_of(i->mass + l * i->heads, i->heads) > mean_of(i->mass + strongest * i->heads, i->heads)) strongest = l;
  px_buf_printf(out, "<div class=\"facts\"><div><b>%.1f %%</b><span>of attention goes to virtual tokens, over all layers and heads (%.1f %% if spread evenly)</span></div>",
                100 * mean_of(i->mass, i->layers * i->heads), 100 * even);
  px_buf_printf(out, "<div><b>layer %d</b><span>looks at them most: %.1f %%</span></div>", strongest, 100 * mean_of(i->mass + strongest * i->heads, i->heads));
  px_buf_printf(out, "<div><b>%d of %d</b><span>virtual tokens are dead: no query gives them %g %%</span></div>", i->dead, i->virtual_tokens, 100 * i->dead_below);
  px_buf_printf(out, "<div><b>%lld</b><span>queries measured, in %lld rows of %lld tokens</span></div></div>\n", (long long)i->queries, (long long)i->rows,
                (long long)i->tokens);
}

static void put_head(px_buf *out, const pfx_inspection *i, const px_model *model, const px_adapter *adapter, const char *data) {
  px_buf_puts(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
                   "<meta name=\"color-scheme\" content=\"light dark\"><title>Inside ");
  px_look_text(out, adapter->path);
  px_buf_printf(out, "</title><style>\n%s</style></head><body><main>\n<h1>Inside ", style);
  px_look_text(out, adapter->path);
  px_buf_printf(out, "</h1>\n<p class=\"soft\">%s", adapter->kind);
  if (i->virtual_tokens) px_buf_printf(out, ": %d virtual tokens", i->virtual_tokens);
  px_buf_puts(out, " in <bdi>");
  px_look_text(out, model->source.path);
  px_buf_puts(out, i->virtual_tokens ? "</bdi>, measured on " : "</bdi>");
  if (!i->virtual_tokens) {
    px_buf_puts(out, ", without virtual tokens: what it changes in the weights");
  } else if (data) {
    px_buf_printf(out, "%s<bdi>", i->rows < i->rows_in_data ? "the first rows of " : "");
    px_look_text(out, data);
    px_buf_puts(out, "</bdi>");
  } else {
    px_buf_puts(out, "pfx&#8217;s own sentences, which may be unlike the task it was made for");
  }
  px_buf_puts(out, ".</p>\n");
}

/* What virtual tokens do. */
static void put_tokens(px_buf *out, const pfx_inspection *i) {
  put_facts(out, i);
  px_buf_puts(out, "<section><h2>Attention on the virtual tokens</h2><p class=\"soft\">The part of a query&#8217;s attention that all of them get together, mean over queries. "
                   "A pale row is a layer that they hardly reach; a full cell is a head that looks at little else.</p>");
  put_heat_map(out, (heat_map){.of = i, .values = i->mass, .cols = i->heads, .title = "Attention on the virtual tokens by layer and head", .across = "head"});
  px_buf_puts(out, "</section>\n<section><h2>One by one</h2><p class=\"soft\">The same, token by token, mean over queries and heads. ");
  px_buf_printf(out, "A cross: no query of any head in that layer gave the token %g %%.</p>", 100 * i->dead_below);
  put_heat_map(out, (heat_map){.of = i, .values = i->slot_mass, .crossed = i->slot_peak, .cols = i->virtual_tokens, .roots = true,
                               .title = "Share of each virtual token by layer", .across = "virtual token"});
  put_table(out, i);
  if (i->words)
    px_buf_puts(out, "<p class=\"soft\">Nearest, by cosine: for a prefix vocabulary words whose own key in the first layer, at the same position, is most like the "
                     "prefix&#8217;s; for a prompt the embeddings most like its rows. Usual is the mean over the whole vocabulary: a cosine near it says nothing.</p>");
  px_buf_puts(out, "</section>\n<section><h2>Lengths</h2><p class=\"soft\">Keys much longer than real ones draw or repel attention whatever the query; long values change "
                   "the output much for little attention.</p><div class=\"pair\">");
  put_lengths(out, i, 0, "keys");
  put_lengths(out, i, 2, "values");
  px_buf_puts(out, "</div></section>\n");
}

void px_look_page(const pfx_inspection *i, const px_model *model, const px_adapter *adapter, const char *data, px_buf *out) {
  put_head(out, i, model, adapter, data);
  if (i->virtual_tokens) put_tokens(out, i);
  px_look_page_changes(i, out);
  px_buf_printf(out, "<p class=\"soft\">Made by <code>pfx inspect</code> %s. Weights digest of the model: <code>%s</code></p>\n</main></body></html>\n",
                PX_VERSION, model->fingerprint.base);
}
