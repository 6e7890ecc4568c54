/* SPDX-License-Identifier: MIT
 * The grammar of --tune: NAME[:SIZE][:KEY=VALUE]..., parts joined by `+`. */
#include <errno.h>
#include <stdlib.h>

#include "tune/tune.h"

static px_status whole(const char *part, const char *key, const char *text, long min, long max, int32_t *out,
                       px_error *err) {
  char *end = NULL;
  errno = 0;
  long value = strtol(text, &end, 10);
  if (errno || end == text || *end || value < min || value > max)
    return px_fail(err, PX_INVALID, "--tune %s: %s must be a whole number from %ld to %ld, not \"%s\"", part, key, min,
                   max, text);
  *out = (int32_t)value;
  return PX_OK;
}

static px_status number(const char *part, const char *key, const char *text, double min, double below, double *out,
                        px_error *err) {
  char *end = NULL;
  double value = strtod(text, &end);
  if (end == text || *end || !(value >= min && value < below))
    return px_fail(err, PX_INVALID, "--tune %s: %s must be a number from %g to below %g, not \"%s\"", part, key, min,
                   below, text);
  *out = value;
  return PX_OK;
}

/* An absolute path where the file exists, so that a run can be resumed from anywhere. Allocated. */
static char *absolute(const char *path) {
  char *real = realpath(path, NULL);
  return real ? real : strdup(path);
}

/* data | random | zero | text:... | text-file:F or @F | adapter:DIR */
static px_status parse_init(const char *text, px_tune_spec *spec, px_error *err) {
  static const struct {
    const char *name;
    px_init init;
  } plain[] = {{"data", PX_INIT_DATA}, {"random", PX_INIT_RANDOM}, {"zero", PX_INIT_ZERO}};
  static const struct {
    const char *start;
    px_init init;
    bool file, path;
  } forms[] = {{"text:", PX_INIT_TEXT, false, false},
               {"text-file:", PX_INIT_TEXT, true, true},
               {"@", PX_INIT_TEXT, true, true},
               {"adapter:", PX_INIT_ADAPTER, false, true}};
  free(spec->init_value);
  spec->init_value = NULL;
  for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
    if (strcmp(text, plain[i].name) == 0) {
      spec->init = plain[i].init;
      return PX_OK;
    }
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
    size_t n = strlen(forms[i].start);
    if (strncmp(text, forms[i].start, n) != 0) continue;
    spec->init = forms[i].init;
    spec->init_file = forms[i].file;
    spec->init_value = forms[i].path ? absolute(text + n) : strdup(text + n);
    return spec->init_value ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory");
  }
  return px_fail(err, PX_INVALID,
                 "--init \"%s\" is not known: data, random, zero, text:TEXT, text-file:FILE, adapter:FOLDER are", text);
}

const char *px_tune_init_text(const px_tune_spec *spec, px_arena *arena) {
  switch (spec->init) {
    case PX_INIT_DATA:
      return "data";
    case PX_INIT_RANDOM:
      return "random";
    case PX_INIT_ZERO:
      return "zero";
    case PX_INIT_TEXT:
      return px_arena_printf(arena, spec->init_file ? "text-file:%s" : "text:%s", spec->init_value);
    case PX_INIT_ADAPTER:
      return px_arena_printf(arena, "adapter:%s", spec->init_value);
  }
  return NULL;
}

static px_status parse_key(const char *part, char *item, px_tune_spec *spec, px_error *err) {
  char *value = strchr(item, '=');
  if (!value) return px_fail(err, PX_INVALID, "--tune %s: \"%s\" is no KEY=VALUE", part, item);
  *value++ = 0;
  double dropout = 0;
  if (strcmp(item, "lr") == 0) return number(part, item, value, 1e-12, 1e3, &spec->lr, err);
  if (strcmp(item, "reparam") == 0) return whole(part, item, value, 1, 1 << 20, &spec->reparam_hidden, err);
  if (strcmp(item, "init") == 0) {
    if (strcmp(value, "text") == 0 || strcmp(value, "text-file") == 0 || strcmp(value, "adapter") == 0)
      return px_fail(err, PX_INVALID,
                     "--tune %s: a colon ends a value; write init=@FILE here, or --init %s:... beside --tune", part,
                     value);
    return parse_init(value, spec, err);
  }
  if (strcmp(item, "dropout") == 0) {
    PX_TRY(number(part, item, value, 0, 1, &dropout, err));
    spec->dropout = (float)dropout;
    return PX_OK;
  }
  return px_fail(err, PX_INVALID, "--tune %s: \"%s\" is not known: lr, init, reparam, dropout are", part, item);
}

px_status px_tune_parse(const char *text, const char *init, int reparam, px_tune_spec *spec, px_error *err) {
  *spec = (px_tune_spec){.init = PX_INIT_DATA}; /* learns best: docs/performance.md, "Where a prefix starts" */
  if (strchr(text, '+'))
    return px_fail(err, PX_INVALID, "--tune %s: joined parts are not in this release, one prefix is", text);
  char *copy = strdup(text), *save = NULL;
  if (!copy) return px_fail(err, PX_NO_MEMORY, "no memory");
  char *name = strtok_r(copy, ":", &save);
  px_status status = PX_OK;
  if (!name || strcmp(name, "prefix") != 0)
    status =
        px_fail(err, PX_INVALID, "--tune %s: \"%s\" is not known in this release, prefix:N is", text, name ? name : "");
  bool first = true;
  for (char *item; status == PX_OK && (item = strtok_r(NULL, ":", &save)); first = false) {
    if (first && !strchr(item, '='))
      status = whole(text, "the number of virtual tokens", item, 1, 1 << 20, &spec->prefix_tokens, err);
    else
      status = parse_key(text, item, spec, err);
  }
  free(copy);
  if (status == PX_OK && init) status = parse_init(init, spec, err);
  if (reparam > 0) spec->reparam_hidden = reparam;
  if (status == PX_OK && !spec->prefix_tokens && spec->init != PX_INIT_TEXT && spec->init != PX_INIT_ADAPTER)
    status = px_fail(err, PX_INVALID, "--tune %s: how many virtual tokens? Write prefix:20", text);
  if (status != PX_OK) px_tune_spec_free(spec);
  return status;
}

void px_tune_spec_free(px_tune_spec *spec) {
  free(spec->init_value);
  *spec = (px_tune_spec){0};
}

double px_tune_usual_lr(const px_tune_spec *spec) { return spec->reparam_hidden ? 1e-3 : 3e-2; }
