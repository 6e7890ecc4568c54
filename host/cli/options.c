/* SPDX-License-Identifier: MIT
 * Parsing by the commands' option tables. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <strings.h>

#include "cli/cli.h"

enum { MOST_OPTIONS = 128 };

int cli_usage_error(const cli_command *command, const char *format, ...) {
  va_list args;
  va_start(args, format);
  fputs("pfx: ", stderr);
  vfprintf(stderr, format, args);
  va_end(args);
  fprintf(stderr, "\nTry: pfx%s%s --help\n", command ? " " : "", command ? command->name : "");
  return 2;
}

static const cli_option *find(const cli_command *command, const char *name, size_t len) {
  for (const cli_option *o = command->options; o->name; o++)
    if (o->kind != CLI_SECTION && strlen(o->name) == len && strncmp(o->name, name, len) == 0) return o;
  return NULL;
}

static bool given[MOST_OPTIONS]; /* by place in the command's table */

bool cli_given(const cli_command *command, const char *name) {
  const cli_option *o = find(command, name, strlen(name));
  return o && given[o - command->options];
}

/* Edits between two short words (Levenshtein). */
static int distance(const char *a, size_t a_len, const char *b) {
  int row[64];
  size_t n = strlen(b);
  if (n > 60) return 99;
  for (size_t j = 0; j <= n; j++) row[j] = (int)j;
  for (size_t i = 1; i <= a_len; i++) {
    int diagonal = row[0];
    row[0] = (int)i;
    for (size_t j = 1; j <= n; j++) {
      int change = diagonal + (a[i - 1] != b[j - 1]), best = row[j] + 1 < row[j - 1] + 1 ? row[j] + 1 : row[j - 1] + 1;
      diagonal = row[j];
      row[j] = change < best ? change : best;
    }
  }
  return row[n];
}

static int unknown(const cli_command *command, const char *name, size_t len) {
  const char *best = NULL;
  int nearest = 4;
  for (const cli_option *o = command->options; o->name; o++) {
    int d = o->kind == CLI_SECTION ? 99 : distance(name, len, o->name);
    if (d < nearest) {
      nearest = d;
      best = o->name;
    }
  }
  if (best) return cli_usage_error(command, "%s has no option --%.*s; did you mean --%s?", command->name, (int)len, name, best);
  return cli_usage_error(command, "%s has no option --%.*s", command->name, (int)len, name);
}

int cli_unknown_command(const char *name) {
  for (int i = 0; cli_commands[i]; i++)
    if (distance(name, strlen(name), cli_commands[i]->name) < 3)
      return cli_usage_error(NULL, "there is no command \"%s\"; did you mean %s?", name, cli_commands[i]->name);
  return cli_usage_error(NULL, "there is no command \"%s\"", name);
}

static int bad_value(const cli_command *command, const cli_option *o, const char *text, const char *wanted) {
  return cli_usage_error(command, "--%s needs %s, not \"%s\"", o->name, wanted, text);
}

static bool whole(const char *text, long long min, long long max, long long *out) {
  char *end = NULL;
  errno = 0;
  *out = strtoll(text, &end, 10);
  return end != text && !*end && !errno && *out >= min && *out <= max;
}

/* 90, 90s, 30m, 2h, 1d */
static bool duration(const char *text, double *out) {
  char *end = NULL;
  double value = strtod(text, &end), unit = 1;
  if (end == text || !(value > 0)) return false;
  if (*end == 'm') unit = 60;
  if (*end == 'h') unit = 3600;
  if (*end == 'd') unit = 86400;
  if (*end && (!strchr("smhd", *end) || end[1])) return false;
  *out = value * unit;
  return true;
}

static int set(const cli_command *command, const cli_option *o, const char *text) {
  long long n;
  char *end = NULL;
  double d;
  switch (o->kind) {
    case CLI_TEXT: *(const char **)o->value = text; break;
    case CLI_LIST: {
      cli_list *list = o->value;
      if (list->count == (int)(sizeof list->items / sizeof *list->items)) return cli_usage_error(command, "too many --%s", o->name);
      list->items[list->count++] = text;
      break;
    }
    case CLI_INT:
      if (!whole(text, INT64_MIN, INT64_MAX, &n)) return bad_value(command, o, text, "a whole number");
      *(int64_t *)o->value = n;
      break;
    case CLI_INT32:
      if (!whole(text, INT32_MIN, INT32_MAX, &n)) return bad_value(command, o, text, "a whole number");
      *(int32_t *)o->value = (int32_t)n;
      break;
    case CLI_SEED:
      errno = 0;
      *(uint64_t *)o->value = strtoull(text, &end, 10);
      if (!isdigit((unsigned char)*text) || *end || errno) return bad_value(command, o, text, "a whole number that is not negative");
      break;
    case CLI_NUMBER:
    case CLI_FLOAT:
      d = strtod(text, &end);
      if (end == text || *end || !isfinite(d)) return bad_value(command, o, text, "a finite number");
      if (o->kind == CLI_NUMBER)
        *(double *)o->value = d;
      else
        *(float *)o->value = (float)d;
      break;
    case CLI_DURATION:
      if (!duration(text, o->value)) return bad_value(command, o, text, "a time such as 90s, 30m or 2h");
      break;
    case CLI_CHOICE:
      for (int i = 0; o->choices[i]; i++)
        if (strcmp(o->choices[i], text) == 0) {
          *(int *)o->value = i;
          return -1;
        }
      fprintf(stderr, "pfx: --%s must be", o->name);
      for (int i = 0; o->choices[i]; i++) fprintf(stderr, "%s %s", i ? (o->choices[i + 1] ? "," : " or") : "", o->choices[i]);
      fprintf(stderr, ", not \"%s\"\nTry: pfx %s --help\n", text, command->name);
      return 2;
    default: break;
  }
  return -1;
}

int cli_parse(const cli_command *command, int argc, char **argv, cli_list *rest) {
  *rest = (cli_list){0};
  bool only_rest = false;
  for (int i = 1; i < argc; i++) {
    const char *a = argv[i];
    if (only_rest || a[0] != '-' || !a[1]) {
      if (rest->count == (int)(sizeof rest->items / sizeof *rest->items)) return cli_usage_error(command, "too many arguments");
      rest->items[rest->count++] = a;
      continue;
    }
    if (strcmp(a, "--") == 0) {
      only_rest = true;
      continue;
    }
    if (strcmp(a, "--help") == 0 || strcmp(a, "-h") == 0) {
      cli_help(command, stdout);
      return 0;
    }
    if (a[1] != '-') return cli_usage_error(command, "%s: options begin with two dashes, not \"%s\"", command->name, a);
    const char *equals = strchr(a, '=');
    size_t len = equals ? (size_t)(equals - a - 2) : strlen(a + 2);
    const cli_option *o = find(command, a + 2, len);
    if (!o) return unknown(command, a + 2, len);
    given[o - command->options] = true;
    if (o->kind == CLI_FLAG) {
      if (equals) return cli_usage_error(command, "--%s takes no value", o->name);
      *(bool *)o->value = true;
      continue;
    }
    const char *value = equals ? equals + 1 : i + 1 < argc ? argv[++i] : NULL;
    if (!value) return cli_usage_error(command, "--%s needs a value: %s", o->name, o->argument);
    int code = set(command, o, value);
    if (code >= 0) return code;
  }
  return -1;
}
