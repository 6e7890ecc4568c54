/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "cli/inspect.h"

static double mean_mass(const pfx_inspection *i, int layer) {
  double sum = 0;
  for (int h = 0; h < i->heads; h++) sum += i->mass[layer * i->heads + h];
  return sum / i->heads;
}

static double peak(const pfx_inspection *i, int layer, int slot) { return i->slot_peak[layer * i->virtual_tokens + slot]; }

/* The largest share of a virtual token, and the number of layers in which it is not dead. */
static double peak_of(const pfx_inspection *i, int slot, int *alive) {
  double most = 0;
  *alive = 0;
  for (int l = 0; l < i->layers; l++) {
    if (peak(i, l, slot) > most) most = peak(i, l, slot);
    *alive += slot >= i->first_token[l] && peak(i, l, slot) >= i->dead_below;
  }
  return most;
}

static double slot_mean(const pfx_inspection *i, int slot) {
  double sum = 0;
  for (int l = 0; l < i->layers; l++) sum += i->slot_mass[l * i->virtual_tokens + slot];
  return sum / i->layers;
}

static void where(const pfx_inspection *i, const char *data, FILE *out) {
  fprintf(out, "%d virtual tokens, measured at %lld of %lld tokens in %lld", i->virtual_tokens, (long long)i->queries, (long long)i->tokens,
          (long long)i->rows);
  if (i->rows < i->rows_in_data) fprintf(out, " (the first of %lld)", (long long)i->rows_in_data);
  if (i->built_in)
    fprintf(out, " built-in sentences; --data measures on yours\n");
  else
    fprintf(out, " rows of %s\n", data);
}

static void layers(const pfx_inspection *i, FILE *out) {
  fprintf(out, "\nAttention on the virtual tokens, percent (even: if all visible keys had the same share), and mean lengths:\n");
  fprintf(out, "layer  mean  even  dead  key: virtual   real  value: virtual   real   by head\n");
  for (int l = 0; l < i->layers; l++) {
    const pfx_vector_lengths *n = &i->lengths[l];
    int dead = 0;
    if (i->first_token[l] == i->virtual_tokens) {
      fprintf(out, "%5d  no virtual tokens in this layer\n", l);
      continue;
    }
    for (int t = i->first_token[l]; t < i->virtual_tokens; t++) dead += peak(i, l, t) < i->dead_below;
    fprintf(out, "%5d %5.1f %5.1f %5d %12.3g %7.3g %14.3g %7.3g  ", l, 100 * mean_mass(i, l), 100 * i->even[l], dead, n->prefix_key, n->real_key,
            n->prefix_value, n->real_value);
    for (int h = 0; h < i->heads; h++) fprintf(out, " %3.0f", 100 * i->mass[l * i->heads + h]);
    fprintf(out, "\n");
  }
}

/* A word on one line: control characters and quotes are written out, long ones cut. */
static void word_text(const pfx_near_word *w, FILE *out) {
  char text[200];
  size_t n = 0;
  if (!w->text) {
    fprintf(out, " %d", w->id);
  } else {
    for (const unsigned char *c = (const unsigned char *)w->text; *c && n < sizeof text - 8; c++)
      n += (size_t)snprintf(text + n, sizeof text - n, *c == '"' || *c == '\\' ? "\\%c" : *c < 0x20 || *c == 0x7f ? "\\x%02x" : "%c", *c);
    fprintf(out, " \"%.*s\"", (int)n, text);
  }
  fprintf(out, " %.2f", (double)w->cosine);
}

static void slots(const pfx_inspection *i, FILE *out) {
  fprintf(out, "\nVirtual tokens: mean and largest share of a query's attention in percent, layers with more than %g",
          100 * i->dead_below);
  if (i->words > 0) fprintf(out, "; nearest words by cosine, of a prefix's keys in the first layer or of a prompt's rows (usual: mean over the vocabulary)");
  fprintf(out, "\ntoken   mean  largest  layers%s\n", i->words > 0 ? "  usual  nearest" : "");
  for (int t = 0; t < i->virtual_tokens; t++) {
    int alive;
    double most = peak_of(i, t, &alive);
    fprintf(out, "%5d %6.2f %8.2f  %6d", t, 100 * slot_mean(i, t), 100 * most, alive);
    if (i->words > 0) fprintf(out, "  %5.2f ", i->usual_cosine[t]);
    for (int k = 0; k < i->words && k < 3; k++)
      if (i->near_words[t * i->words + k].id >= 0) word_text(&i->near_words[t * i->words + k], out);
    fprintf(out, "%s\n", alive ? "" : "  dead");
  }
}

static void tokens_text(const pfx_inspection *i, const char *data, FILE *out) {
  where(i, data, out);
  layers(i, out);
  slots(i, out);
  if (i->dead)
    fprintf(out, "\n%d of %d virtual tokens are dead: no query of any layer or head gave them %g %% of its attention\n", i->dead, i->virtual_tokens,
            100 * i->dead_below);
  else
    fprintf(out, "\nno virtual token is dead: each got %g %% of some query's attention\n", 100 * i->dead_below);
}

void inspect_text(const pfx_inspection *i, const char *data, FILE *out) {
  if (i->virtual_tokens > 0) tokens_text(i, data, out);
  inspect_changes_text(i, out);
}

static void put_text(const char *name, const char *text, FILE *out) {
  fprintf(out, ", \"%s\": ", name);
  if (text)
    cli_json_text(out, text, strlen(text));
  else
    fputs("null", out);
}

/* [rows][cols], rows as lists. */
static void put_table(const char *name, const double *values, int rows, int cols, FILE *out) {
  fprintf(out, ", \"%s\": [", name);
  for (int r = 0; r < rows; r++) {
    fputs(r ? ", [" : "[", out);
    for (int c = 0; c < cols; c++) {
      if (c) fputs(", ", out);
      cli_json_number(out, values[r * cols + c]);
    }
    fputc(']', out);
  }
  fputc(']', out);
}

static void put_layers(const pfx_inspection *i, FILE *out) {
  fputs(", \"layer_summary\": [", out);
  for (int l = 0; l < i->layers; l++) {
    const pfx_vector_lengths *n = &i->lengths[l];
    const struct {
      const char *name;
      double value;
    } fields[] = {{"mass", mean_mass(i, l)},       {"even", i->even[l]},
                  {"prefix_key_length", n->prefix_key}, {"real_key_length", n->real_key},
                  {"prefix_value_length", n->prefix_value}, {"real_value_length", n->real_value}};
    int dead = 0;
    for (int t = i->first_token[l]; t < i->virtual_tokens; t++) dead += peak(i, l, t) < i->dead_below;
    fprintf(out, "%s{\"layer\": %d, \"first_token\": %d, \"dead\": %d", l ? ", " : "", l, i->first_token[l], dead);
    for (size_t f = 0; f < sizeof fields / sizeof *fields; f++) {
      fprintf(out, ", \"%s\": ", fields[f].name);
      cli_json_number(out, fields[f].value);
    }
    fputc('}', out);
  }
  fputc(']', out);
}

static void put_slots(const pfx_inspection *i, FILE *out) {
  fputs(", \"token_summary\": [", out);
  for (int t = 0; t < i->virtual_tokens; t++) {
    int alive;
    double most = peak_of(i, t, &alive);
    fprintf(out, "%s{\"token\": %d, \"of\": \"%s\", \"mean_share\": ", t ? ", " : "", t, t < i->prefix_tokens ? "prefix" : "prompt");
    cli_json_number(out, slot_mean(i, t));
    fputs(", \"largest_share\": ", out);
    cli_json_number(out, most);
    fprintf(out, ", \"layers_alive\": %d, \"dead\": %s", alive, most < i->dead_below ? "true" : "false");
    if (i->words > 0) {
      fputs(", \"usual_cosine\": ", out);
      cli_json_number(out, i->usual_cosine[t]);
      fputs(", \"nearest\": [", out);
      for (int k = 0, shown = 0; k < i->words; k++) {
        const pfx_near_word *w = &i->near_words[t * i->words + k];
        if (w->id < 0) continue;
        fprintf(out, "%s{\"id\": %d, \"cosine\": ", shown++ ? ", " : "", w->id);
        cli_json_number(out, (double)w->cosine);
        put_text("text", w->text, out);
        fputc('}', out);
      }
      fputc(']', out);
    }
    fputc('}', out);
  }
  fputc(']', out);
}

static void put_tokens(const pfx_inspection *i, FILE *out) {
  fprintf(out, ", \"rows\": %lld, \"rows_in_data\": %lld, \"tokens\": %lld, \"queries\": %lld, \"dead\": %d, \"dead_below\": ", (long long)i->rows,
          (long long)i->rows_in_data, (long long)i->tokens, (long long)i->queries, i->dead);
  cli_json_number(out, i->dead_below);
  put_layers(i, out);
  put_slots(i, out);
  put_table("mass", i->mass, i->layers, i->heads, out);
  put_table("token_share", i->slot_mass, i->layers, i->virtual_tokens, out);
  put_table("token_peak", i->slot_peak, i->layers, i->virtual_tokens, out);
}

void inspect_json(const pfx_inspection *i, const char *adapter, const char *model, const char *data, FILE *out) {
  fputs("{\"adapter\": ", out);
  cli_json_text(out, adapter, strlen(adapter));
  put_text("model", model, out);
  put_text("data", data, out);
  fprintf(out, ", \"layers\": %d, \"heads\": %d, \"kv_heads\": %d, \"head_dim\": %d, \"virtual_tokens\": %d", i->layers, i->heads, i->kv_heads,
          i->head_dim, i->virtual_tokens);
  if (i->virtual_tokens > 0) put_tokens(i, out);
  inspect_changes_json(i, out);
  fputs("}\n", out);
}
