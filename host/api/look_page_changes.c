/* SPDX-License-Identifier: MIT
 * The page's sections on parts that change weights: a heat map of layers and tensors for each, and what belongs to no layer. */
#include <math.h>

#include "api/look.h"

enum { MAX_COLUMNS = 64, LEFT = 46, CELL_HEIGHT = 22 };

typedef struct section {
  const pfx_change *first, *end;
  const char *columns[MAX_COLUMNS];
  int count, layers, cell, right, top_room; /* pixels: a cell's width, the picture's, and the height of the slanted column names */
  bool scales;
  double top;
} section;

/* What a cell's shade stands for: 0 where there is nothing to compare with. */
static double shade_of(const section *s, const pfx_change *c) { return s->scales ? c->far : fmax(c->relative, 0); }

static int column_of(section *s, const char *name) {
  int k = 0;
  while (k < s->count && strcmp(s->columns[k], name) != 0) k++;
  if (k < s->count || k == MAX_COLUMNS) return k;
  s->columns[s->count++] = name;
  int right = LEFT + k * s->cell + s->cell / 2 + (int)(4.8 * (double)strlen(name)), top = 24 + (int)(4.2 * (double)strlen(name));
  if (LEFT + s->count * s->cell + 2 > right) right = LEFT + s->count * s->cell + 2;
  if (right > s->right) s->right = right;
  if (top > s->top_room) s->top_room = top;
  return k;
}

static section section_at(const pfx_inspection *i, int64_t at) {
  section s = {.first = i->changes + at, .end = i->changes + i->change_count, .layers = i->layers, .scales = strcmp(i->changes[at].part, "ia3") == 0};
  s.cell = s.scales ? 140 : 60;
  for (const pfx_change *c = s.first; c < s.end; c++) {
    if (strcmp(c->part, s.first->part) != 0) {
      s.end = c;
      break;
    }
    if (c->layer < 0) continue;
    column_of(&s, c->column);
    s.top = fmax(s.top, shade_of(&s, c));
  }
  s.top = px_look_round_up(s.top);
  return s;
}

static void put_say(px_buf *out, const section *s, const pfx_change *c) {
  px_look_text(out, c->module);
  px_buf_printf(out, ".%s: ", c->role);
  if (s->scales)
    px_buf_printf(out, "mean %.4g, from %.4g to %.4g, %.1f %% far from one", c->mean, c->smallest, c->largest, 100 * c->far);
  else if (c->relative >= 0)
    px_buf_printf(out, "%.3g %% (length %.4g, the model&#8217;s %.4g)", 100 * c->relative, c->length, c->base_length);
  else
    px_buf_printf(out, "length %.4g, the model has none", c->length);
}

/* What fits into a cell. */
static void put_numbers(px_buf *out, const section *s, const pfx_change *c) {
  if (s->scales)
    px_buf_printf(out, "%.3f, %.2f&#8211;%.2f, %.0f %%", c->mean, c->smallest, c->largest, 100 * c->far);
  else if (c->relative >= 0)
    px_buf_printf(out, "%.3g", 100 * c->relative);
  else
    px_buf_printf(out, "(%.3g)", c->length);
}

static void put_cell(px_buf *out, const section *s, int column, const pfx_change *c) {
  double shade = shade_of(s, c) / s->top;
  int x = LEFT + column * s->cell, y = s->top_room + c->layer * CELL_HEIGHT;
  px_buf_printf(out, "<rect class=\"cell\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill-opacity=\"%.3f\"><title>layer %d, ", x, y, s->cell - 1,
                CELL_HEIGHT - 1, shade, c->layer);
  put_say(out, s, c);
  px_buf_printf(out, "</title></rect><text class=\"%s\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">", shade > 0.55 ? "high" : "low", x + s->cell / 2,
                y + CELL_HEIGHT / 2 + 4);
  put_numbers(out, s, c);
  px_buf_puts(out, "</text>");
}

static void put_map(px_buf *out, section *s) {
  int width = s->right, height = s->top_room + s->layers * CELL_HEIGHT + 2;
  px_buf_printf(out, "<div class=\"scroll\" tabindex=\"0\"><svg role=\"img\" aria-label=\"Changes by layer and tensor: %s\" width=\"%d\" height=\"%d\" "
                     "viewBox=\"0 0 %d %d\">", s->first->part, width, height, width, height);
  px_buf_printf(out, "<text x=\"0\" y=\"%d\">layer</text>", s->top_room - 6);
  for (int k = 0; k < s->count; k++) {
    int x = LEFT + k * s->cell + s->cell / 2, y = s->top_room - 6;
    px_buf_printf(out, "<text x=\"%d\" y=\"%d\" transform=\"rotate(-40 %d %d)\">", x, y, x, y);
    px_look_text(out, s->columns[k]);
    px_buf_puts(out, "</text>");
  }
  for (int l = 0; l < s->layers; l++)
    px_buf_printf(out, "<text x=\"38\" y=\"%d\" text-anchor=\"end\">%d</text>", s->top_room + l * CELL_HEIGHT + CELL_HEIGHT / 2 + 4, l);
  for (const pfx_change *c = s->first; c < s->end; c++)
    if (c->layer >= 0) put_cell(out, s, column_of(s, c->column), c);
  px_buf_printf(out, "<rect class=\"frame\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/></svg></div><p class=\"soft\">0 <span class=\"ramp\"></span> %g %%</p>",
                LEFT - 1, s->top_room - 1, s->count * s->cell + 1, s->layers * CELL_HEIGHT + 1, 100 * s->top);
}

void px_look_page_changes(const pfx_inspection *i, px_buf *out) {
  for (int64_t at = 0; at < i->change_count;) {
    section s = section_at(i, at);
    px_buf_printf(out, "<section><h2>Weights: %s</h2><p class=\"soft\">", s.first->part);
    if (s.scales)
      px_buf_printf(out, "Of each vector of scales the mean, the smallest and the largest, and the share further than %g from one, which is the shade.</p>", i->far_from_one);
    else if (strcmp(s.first->part, "lora") == 0)
      px_buf_puts(out, "The length of what is added to each matrix in percent of the matrix&#8217;s own (Frobenius).</p>");
    else
      px_buf_puts(out, "The length of each tensor&#8217;s change in percent of its own; in brackets the length alone, where the model has none.</p>");
    if (s.count) put_map(out, &s);
    for (const pfx_change *c = s.first; c < s.end; c++)
      if (c->layer < 0) {
        px_buf_puts(out, "<p class=\"soft\">");
        put_say(out, &s, c);
        px_buf_puts(out, "</p>");
      }
    px_buf_puts(out, "</section>\n");
    at = s.end - i->changes;
  }
}
