/* SPDX-License-Identifier: MIT
 * What an adapter changes in its base's weights, for people and for programs. */
#include <string.h>

#include "cli/inspect.h"

/* Entries [first, end) of one part; columns: those of the layers, in the order in which they first come. */
typedef struct section {
  const pfx_change *first, *end;
  const char *columns[64];
  int width[64], count;
  bool scales;
} section;

static section section_at(const pfx_inspection *i, int64_t at) {
  section s = {.first = i->changes + at, .end = i->changes + i->change_count, .scales = strcmp(i->changes[at].part, "ia3") == 0};
  int cell = s.scales ? 22 : 7;
  for (const pfx_change *c = s.first; c < s.end; c++) {
    int k = 0;
    if (strcmp(c->part, s.first->part) != 0) {
      s.end = c;
      break;
    }
    if (c->layer < 0) continue;
    while (k < s.count && strcmp(s.columns[k], c->column) != 0) k++;
    if (k < s.count || k == (int)(sizeof s.columns / sizeof *s.columns)) continue;
    s.columns[s.count] = c->column;
    s.width[s.count++] = (int)strlen(c->column) > cell ? (int)strlen(c->column) : cell;
  }
  return s;
}

static void headline(const section *s, const pfx_inspection *i, FILE *out) {
  const char *part = s->first->part;
  if (s->scales)
    fprintf(out, "ia3: mean, smallest..largest of each vector of scales, and the percentage of them further than %g from one\n", i->far_from_one);
  else if (strcmp(part, "lora") == 0)
    fprintf(out, "lora: length of scale B A in percent of the length of the matrix that it is added to (Frobenius)\n");
  else
    fprintf(out, "%s: length of the change in percent of the length of the model's own tensor; (in brackets) the length alone, where the model "
                 "has none\n", part);
}

static void cell_text(const pfx_change *c, bool scales, char *text, size_t bytes) {
  if (scales)
    snprintf(text, bytes, "%.3f %.2f..%.2f %3.0f%%", c->mean, c->smallest, c->largest, 100 * c->far);
  else if (c->relative >= 0)
    snprintf(text, bytes, "%.3g", 100 * c->relative);
  else
    snprintf(text, bytes, "(%.3g)", c->length);
}

/* Layers as rows, and what belongs to none below. */
static void table(const section *s, FILE *out) {
  char text[128];
  for (int k = 0; k < s->count; k++) fprintf(out, "%s  %*s", k ? "" : "layer", s->width[k], s->columns[k]);
  if (s->count) fputc('\n', out);
  for (const pfx_change *c = s->first; c < s->end;) {
    int layer = c->layer;
    const pfx_change *row = c;
    while (c < s->end && c->layer == layer) c++;
    if (layer < 0) continue;
    fprintf(out, "%5d", layer);
    for (int k = 0; k < s->count; k++) {
      snprintf(text, sizeof text, "-");
      for (const pfx_change *e = row; e < c; e++)
        if (strcmp(e->column, s->columns[k]) == 0) cell_text(e, s->scales, text, sizeof text);
      fprintf(out, "  %*s", s->width[k], text);
    }
    fputc('\n', out);
  }
  for (const pfx_change *c = s->first; c < s->end; c++)
    if (c->layer < 0) {
      cell_text(c, s->scales, text, sizeof text);
      fprintf(out, "%s  %s\n", c->column, text);
    }
}

void inspect_changes_text(const pfx_inspection *i, FILE *out) {
  for (int64_t at = 0; at < i->change_count;) {
    section s = section_at(i, at);
    if (at > 0 || i->virtual_tokens > 0) fputc('\n', out);
    headline(&s, i, out);
    table(&s, out);
    at = s.end - i->changes;
  }
}

void inspect_changes_json(const pfx_inspection *i, FILE *out) {
  fputs(", \"far_from_one\": ", out);
  cli_json_number(out, i->far_from_one);
  fputs(", \"changes\": [", out);
  for (const pfx_change *c = i->changes; c < i->changes + i->change_count; c++) {
    bool scales = strcmp(c->part, "ia3") == 0;
    const struct {
      const char *name;
      double value;
    } fields[] = {{"mean", c->mean}, {"smallest", c->smallest}, {"largest", c->largest}, {"far", c->far},
                  {"length", c->length}, {"base_length", c->base_length}, {"relative", c->relative}};
    fprintf(out, "%s{\"part\": \"%s\", \"layer\": ", c == i->changes ? "" : ", ", c->part);
    if (c->layer < 0)
      fputs("null", out);
    else
      fprintf(out, "%d", c->layer);
    fprintf(out, ", \"module\": \"%s\", \"role\": \"%s\", \"column\": \"%s\"", c->module, c->role, c->column);
    for (size_t f = scales ? 0 : 4; f < (scales ? 4 : sizeof fields / sizeof *fields); f++) {
      fprintf(out, ", \"%s\": ", fields[f].name);
      if (fields[f].value < 0 && !scales)
        fputs("null", out);
      else
        cli_json_number(out, fields[f].value);
    }
    fputc('}', out);
  }
  fputc(']', out);
}
