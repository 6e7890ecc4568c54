/* SPDX-License-Identifier: MIT */
#include "tune/spec.h"

#include <errno.h>
#include <stdlib.h>

/* What a part is called, what its number means, what it may be told, and how fast it usually learns (docs/performance.md,
 * "Learning rates"). */
static const struct {
  const char *name, *size; /* size NULL: none */
  const char *keys;        /* beside lr */
  double lr;
} kinds[PX_PART_KINDS] = {
    [PX_PART_PREFIX] = {"prefix", "the number of virtual tokens", "init, reparam, dropout, layers, frozen", 3e-2},
    [PX_PART_PROMPT] = {"prompt", "the number of virtual tokens", "init", 3e-2},
    [PX_PART_LORA] = {"lora", "the rank", "alpha, rslora, dropout, targets", 3e-3},
    [PX_PART_IA3] = {"ia3", NULL, "targets", 1e-2},
    [PX_PART_NORM] = {"norm", NULL, "", 1e-2},
    [PX_PART_BIAS] = {"bias", NULL, "", 1e-2},
    [PX_PART_TOP] = {"top", "the number of layers", "", 1e-4},
    [PX_PART_FULL] = {"full", NULL, "", 5e-5},
};

double px_part_usual_lr(const px_part_spec *part) { return part->reparam_hidden ? 1e-3 : kinds[part->kind].lr; }

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

/* data | random | zero | vocab | text:... | text-file:F or @F | adapter:DIR */
static px_status parse_init(const char *text, px_part_spec *spec, px_error *err) {
  static const struct {
    const char *name;
    px_init init;
  } plain[] = {{"data", PX_INIT_DATA}, {"random", PX_INIT_RANDOM}, {"zero", PX_INIT_ZERO}, {"vocab", PX_INIT_VOCAB}};
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
                 "--init \"%s\" is not known: data, random, zero, vocab, text:TEXT, text-file:FILE, adapter:FOLDER are", text);
}

static bool begins_somewhere(const px_part_spec *p) { return p->kind == PX_PART_PREFIX || p->kind == PX_PART_PROMPT; }

static const char *init_text(const px_part_spec *p, px_arena *arena) {
  switch (p->init) {
    case PX_INIT_DATA:
      return "data";
    case PX_INIT_RANDOM:
      return "random";
    case PX_INIT_ZERO:
      return "zero";
    case PX_INIT_VOCAB:
      return "vocab";
    case PX_INIT_TEXT:
      return px_arena_printf(arena, p->init_file ? "text-file:%s" : "text:%s", p->init_value);
    case PX_INIT_ADAPTER:
      return px_arena_printf(arena, "adapter:%s", p->init_value);
  }
  return NULL;
}

const char *px_tune_init_text(const px_tune_spec *spec, px_arena *arena) {
  if (spec->part_count && spec->parts[0].init == PX_INIT_ADAPTER) return init_text(&spec->parts[0], arena); /* all of them do */
  const px_part_spec *only = NULL;
  int count = 0;
  for (int i = 0; i < spec->part_count; i++)
    if (begins_somewhere(&spec->parts[i])) {
      only = &spec->parts[i];
      count++;
    }
  return count == 1 ? init_text(only, arena) : "";
}

px_part_spec *px_tune_part(const px_tune_spec *spec, px_part_kind kind) {
  for (int i = 0; i < spec->part_count; i++)
    if (spec->parts[i].kind == kind) return (px_part_spec *)(uintptr_t)&spec->parts[i];
  return NULL;
}

bool px_tune_reads_rows(const px_tune_spec *spec) {
  for (int i = 0; i < spec->part_count; i++)
    if (begins_somewhere(&spec->parts[i]) && spec->parts[i].init == PX_INIT_DATA) return true;
  return false;
}

int32_t px_tune_spec_tokens(const px_tune_spec *spec) {
  int32_t tokens = 0;
  for (int i = 0; i < spec->part_count; i++)
    if (begins_somewhere(&spec->parts[i])) tokens += spec->parts[i].size;
  return tokens;
}

/* Number of single-letter changes from a to b, up to words of 15 letters. */
static int distance(const char *a, const char *b) {
  enum { MOST = 15 };
  int row[MOST + 1], n = (int)strlen(a), m = (int)strlen(b);
  if (n > MOST || m > MOST) return MOST;
  for (int j = 0; j <= m; j++) row[j] = j;
  for (int i = 1; i <= n; i++) {
    int corner = row[0];
    row[0] = i;
    for (int j = 1; j <= m; j++) {
      int change = corner + (a[i - 1] != b[j - 1]), least = change;
      corner = row[j];
      if (row[j] + 1 < least) least = row[j] + 1;
      if (row[j - 1] + 1 < least) least = row[j - 1] + 1;
      row[j] = least;
    }
  }
  return row[m];
}

static px_status unknown_part(const char *text, const char *name, px_error *err) {
  int best = 0;
  for (int k = 1; k < PX_PART_KINDS; k++)
    if (distance(name, kinds[k].name) < distance(name, kinds[best].name)) best = k;
  return px_fail(err, PX_INVALID,
                 "--tune %s: there is no part \"%s\"; did you mean \"%s\"? prefix:N, prompt:N, lora:R, ia3, norm, bias, top:K and full are known",
                 text, name, kinds[best].name);
}

/* Whether `key` is one of "a, b, c". */
static bool listed(const char *list, const char *key) {
  size_t n = strlen(key);
  for (const char *at = list; (at = strstr(at, key)); at += n)
    if ((at == list || at[-1] == ' ') && (at[n] == 0 || at[n] == ',')) return n > 0;
  return false;
}

static px_status unknown_key(const char *text, const px_part_spec *p, const char *key, px_error *err) {
  char near[16] = "lr";
  for (const char *at = kinds[p->kind].keys; *at;) {
    char word[16] = {0};
    size_t n = strcspn(at, ",");
    memcpy(word, at, n < sizeof word ? n : sizeof word - 1);
    if (distance(key, word) < distance(key, near)) memcpy(near, word, sizeof near);
    at += n;
    at += strspn(at, ", ");
  }
  return px_fail(err, PX_INVALID, "--tune %s: %s has no option \"%s\"; did you mean \"%s\"? Known: lr%s%s", text, kinds[p->kind].name, key, near,
                 *kinds[p->kind].keys ? ", " : "", kinds[p->kind].keys);
}

static px_status keep_text(char **to, const char *value, px_error *err) {
  free(*to);
  *to = strdup(value);
  return *to ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory");
}

static px_status parse_key(const char *part, char *item, px_part_spec *p, px_error *err) {
  char *value = strchr(item, '=');
  if (!value) return px_fail(err, PX_INVALID, "--tune %s: \"%s\" is no KEY=VALUE", part, item);
  *value++ = 0;
  double real = 0;
  int32_t flag = 0;
  if (strcmp(item, "lr") == 0) return number(part, item, value, 1e-12, 1e3, &p->lr, err);
  if (!listed(kinds[p->kind].keys, item)) return unknown_key(part, p, item, err);
  if (strcmp(item, "reparam") == 0) return whole(part, item, value, 1, 1 << 20, &p->reparam_hidden, err);
  if (strcmp(item, "frozen") == 0) return whole(part, item, value, 0, 1 << 20, &p->frozen, err);
  if (strcmp(item, "layers") == 0) return keep_text(&p->layers, value, err);
  if (strcmp(item, "targets") == 0) return keep_text(&p->targets, value, err);
  if (strcmp(item, "init") == 0) {
    if (strcmp(value, "text") == 0 || strcmp(value, "text-file") == 0 || strcmp(value, "adapter") == 0)
      return px_fail(err, PX_INVALID,
                     "--tune %s: a colon ends a value; write init=@FILE here, or --init %s:... beside --tune", part,
                     value);
    return parse_init(value, p, err);
  }
  if (strcmp(item, "rslora") == 0) {
    PX_TRY(whole(part, item, value, 0, 1, &flag, err));
    p->rslora = flag != 0;
    return PX_OK;
  }
  if (strcmp(item, "alpha") == 0) {
    PX_TRY(number(part, item, value, 1e-6, 1e6, &real, err));
    p->alpha = (float)real;
    return PX_OK;
  }
  PX_TRY(number(part, item, value, 0, 1, &real, err));
  p->dropout = (float)real;
  return PX_OK;
}

/* "NAME[:SIZE][:KEY=VALUE]...", cut up in place. whole_text: for messages. */
static px_status parse_part(char *part, const char *whole_text, px_part_spec *p, px_error *err) {
  char *save = NULL, *name = strtok_r(part, ":", &save);
  int kind = 0;
  while (name && kind < PX_PART_KINDS && strcmp(name, kinds[kind].name) != 0) kind++;
  if (!name || kind == PX_PART_KINDS) return unknown_part(whole_text, name ? name : "", err);
  *p = (px_part_spec){.kind = (px_part_kind)kind};
  /* A prefix learns best from rows: docs/performance.md, "Where a prefix starts". */
  if (kind == PX_PART_PREFIX || kind == PX_PART_PROMPT) p->init = PX_INIT_DATA;
  bool first = true;
  for (char *item; (item = strtok_r(NULL, ":", &save)); first = false) {
    if (!first || strchr(item, '=')) {
      PX_TRY(parse_key(whole_text, item, p, err));
    } else if (!kinds[kind].size) {
      return px_fail(err, PX_INVALID, "--tune %s: %s takes no number", whole_text, name);
    } else {
      PX_TRY(whole(whole_text, kinds[kind].size, item, 1, 1 << 20, &p->size, err));
    }
  }
  return PX_OK;
}

static px_status check_part(const char *text, const px_part_spec *p, px_error *err) {
  const char *name = kinds[p->kind].name;
  bool from_elsewhere = p->init == PX_INIT_ADAPTER || p->init == PX_INIT_TEXT;
  if (kinds[p->kind].size && !p->size && !from_elsewhere)
    return px_fail(err, PX_INVALID, "--tune %s: %s? Write %s:%d", text,
                   begins_somewhere(p)         ? "how many virtual tokens"
                   : p->kind == PX_PART_LORA ? "what rank"
                                             : "how many layers",
                   name, p->kind == PX_PART_LORA ? 8 : p->kind == PX_PART_TOP ? 2 : 20);
  if (p->kind == PX_PART_PREFIX && p->init == PX_INIT_VOCAB)
    return px_fail(err, PX_INVALID, "--tune %s: init=vocab is for a prompt: a prefix has keys and values, not words", text);
  if (p->frozen && p->reparam_hidden)
    return px_fail(err, PX_INVALID, "--tune %s: frozen and reparam exclude each other: the network makes every virtual token", text);
  if (p->size && p->frozen >= p->size)
    return px_fail(err, PX_INVALID, "--tune %s: frozen=%d leaves nothing of %d virtual tokens to train", text, p->frozen, p->size);
  return PX_OK;
}

/* The short options of the only part that has them. */
static px_status short_options(const char *text, const char *init, int reparam, px_tune_spec *spec, px_error *err) {
  px_part_spec *prefix = px_tune_part(spec, PX_PART_PREFIX), *prompt = px_tune_part(spec, PX_PART_PROMPT);
  if (init && strncmp(init, "adapter:", 8) == 0) { /* each part from the adapter's of its kind */
    for (int i = 0; i < spec->part_count; i++) PX_TRY(parse_init(init, &spec->parts[i], err));
    init = NULL;
  }
  if (init && *init && prefix && prompt)
    return px_fail(err, PX_INVALID, "--tune %s: --init is short for the option of a single part: write init= at each of these", text);
  if (init && *init && !prefix && !prompt)
    return px_fail(err, PX_INVALID, "--tune %s: no part of it takes --init %s: a prefix or a prompt does; adapter:FOLDER is for all", text, init);
  if (init && *init) PX_TRY(parse_init(init, prefix ? prefix : prompt, err));
  if (reparam > 0 && !prefix) return px_fail(err, PX_INVALID, "--tune %s: no part of it takes --reparam: a prefix does", text);
  if (reparam > 0) prefix->reparam_hidden = reparam;
  return PX_OK;
}

px_status px_tune_parse(const char *text, const char *init, int reparam, px_tune_spec *spec, px_error *err) {
  *spec = (px_tune_spec){0};
  char *copy = strdup(text), *save = NULL;
  if (!copy) return px_fail(err, PX_NO_MEMORY, "no memory");
  px_status status = PX_OK;
  size_t length = strlen(text);
  if (length && (text[0] == '+' || text[length - 1] == '+' || strstr(text, "++")))
    status = px_fail(err, PX_INVALID, "--tune %s: a part is missing at a +", text);
  for (char *part = strtok_r(copy, "+", &save); status == PX_OK && part; part = strtok_r(NULL, "+", &save)) {
    px_part_spec p = {0};
    status = parse_part(part, text, &p, err);
    if (status == PX_OK && px_tune_part(spec, p.kind))
      status = px_fail(err, PX_INVALID, "--tune %s: %s is there twice", text, kinds[p.kind].name);
    if (spec->part_count < PX_PARTS_MOST) spec->parts[spec->part_count++] = p; /* also where it failed: its texts are freed below */
  }
  free(copy);
  if (status == PX_OK && spec->part_count == 0) status = px_fail(err, PX_INVALID, "--tune is empty: prefix:20 is a good start");
  if (status == PX_OK) status = short_options(text, init, reparam, spec, err);
  for (int i = 0; status == PX_OK && i < spec->part_count; i++) status = check_part(text, &spec->parts[i], err);
  if (status == PX_OK && px_tune_part(spec, PX_PART_FULL)) {
    static const px_part_kind inside[] = {PX_PART_TOP, PX_PART_NORM, PX_PART_BIAS};
    for (size_t i = 0; i < sizeof inside / sizeof *inside && status == PX_OK; i++)
      if (px_tune_part(spec, inside[i]))
        status = px_fail(err, PX_INVALID, "--tune %s: full trains every weight already: leave %s out", text, kinds[inside[i]].name);
  }
  if (status != PX_OK) px_tune_spec_free(spec);
  return status;
}

void px_tune_spec_free(px_tune_spec *spec) {
  for (int i = 0; i < spec->part_count; i++) {
    free(spec->parts[i].init_value);
    free(spec->parts[i].layers);
    free(spec->parts[i].targets);
  }
  *spec = (px_tune_spec){0};
}
