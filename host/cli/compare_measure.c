/* SPDX-License-Identifier: MIT
 * What the programs left in files -> numbers. */
#include <math.h>
#include <stdlib.h>

#include "cli/compare.h"

const char *const compare_metric_names[] = {"loss", "bleu", "chrf", "rouge_l", "exact_match", NULL};
const char *const compare_metric_titles[] = {"loss", "BLEU", "chrF", "ROUGE-L", "exact match", NULL};
bool compare_more_is_better(int metric) { return metric != COMPARE_LOSS; }

static double number(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  return json_is_number(value) ? json_number_value(value) : NAN;
}

/* Every line of a JSON Lines file; false when it cannot be read. */
static bool each_line(const char *path, void (*take)(void *user, const json_t *line), void *user) {
  FILE *file = fopen(path, "re");
  char *line = NULL;
  size_t cap = 0;
  bool good = file != NULL;
  json_error_t error;
  while (good && getline(&line, &cap, file) >= 0) {
    json_t *value = json_loads(line, 0, &error);
    if (value) take(user, value);
    good = value != NULL;
    json_decref(value);
  }
  free(line);
  if (file) fclose(file);
  return good;
}

/* ---- an evaluation ---- */

typedef struct reader {
  compare_measured *out;
  size_t *unit_of_line, lines; /* 0: none, else unit + 1 */
  size_t cap, text_cap;
} reader;

static void *grow(void *list, size_t used, size_t *cap, size_t bytes) {
  if (used < *cap) return list;
  size_t more = *cap ? 2 * *cap : 64;
  void *bigger = compare_alloc(more, bytes);
  if (used) memcpy(bigger, list, used * bytes);
  *cap = more;
  return bigger;
}

static compare_unit *add_unit(reader *r) {
  compare_units *u = &r->out->units;
  u->list = grow(u->list, u->count, &r->cap, sizeof *u->list);
  memset(u->list[u->count], 0, sizeof *u->list);
  return &u->list[u->count++];
}

static void put_numbers(double *to, const json_t *list, size_t count) {
  for (size_t i = 0; i < count; i++) to[i] = json_number_value(json_array_get(list, i));
}

static void take_item(void *user, const json_t *line) {
  reader *r = user;
  double *unit = *add_unit(r);
  const json_t *bleu = json_object_get(line, "bleu"), *lines = json_object_get(line, "lines"), *references = json_object_get(line, "references");
  unit[UNIT_TEXTS] = 1;
  unit[UNIT_ROUGE] = number(line, "rouge_l");
  unit[UNIT_EXACT] = number(line, "exact_match");
  put_numbers(unit + UNIT_LENGTHS, bleu, 2);
  put_numbers(unit + UNIT_MATCHED, json_array_get(bleu, 2), 4);
  put_numbers(unit + UNIT_WORDS, json_array_get(bleu, 3), 4);
  put_numbers(unit + UNIT_CHRF, json_object_get(line, "chrf"), 18);
  for (size_t i = 0; i < json_array_size(lines); i++) {
    size_t at = (size_t)json_integer_value(json_array_get(lines, i));
    while (at >= r->lines) {
      size_t before = r->lines;
      r->unit_of_line = grow(r->unit_of_line, before, &r->lines, sizeof *r->unit_of_line);
    }
    r->unit_of_line[at] = r->out->units.count;
  }
  compare_measured *m = r->out;
  m->texts = grow(m->texts, m->text_count, &r->text_cap, sizeof *m->texts);
  m->texts[m->text_count++] = (compare_text){.prompt = compare_printf("%s", json_string_value(json_object_get(line, "prompt"))),
                                             .prediction = compare_printf("%s", json_string_value(json_object_get(line, "prediction"))),
                                             .references = compare_printf("%s", json_string_value(json_array_get(references, 0))),
                                             .reference_count = json_array_size(references)};
}

static void take_row(void *user, const json_t *line) {
  reader *r = user;
  size_t at = (size_t)json_integer_value(json_object_get(line, "line"));
  r->out->rows++;
  size_t known = at < r->lines ? r->unit_of_line[at] : 0;
  double tokens = number(line, "tokens");
  double *unit = known ? r->out->units.list[known - 1] : *add_unit(r);
  if (!(tokens > 0)) return;
  unit[UNIT_LOSS] += number(line, "loss") * tokens;
  unit[UNIT_TOKENS] += tokens;
}

static int unreadable(compare *c, const char *path) {
  fprintf(stderr, "pfx: %s is damaged; remove it and its .json to measure again\n", path);
  return c->code = 3;
}

int compare_evaluate(compare *c, const char *name, const char *folder, const char *data, bool texts, int32_t shots, compare_measured *out) {
  compare_args args = {0};
  bool is_model = folder && compare_exists(compare_printf("%s/config.json", folder)) && !compare_exists(compare_printf("%s/adapter_config.json", folder));
  const char *rows = compare_printf("%s/jobs/%s.rows.jsonl", c->work, name), *items = compare_printf("%s/jobs/%s.items.jsonl", c->work, name);
  compare_arg(&args, "eval");
  compare_common_args(c, &args, is_model ? folder : NULL);
  compare_arg2(&args, "--data", data);
  if (folder && !is_model) {
    compare_arg2(&args, "--adapter", folder);
    compare_arg(&args, "--no-frozen");
    if (c->set.force) compare_arg(&args, "--force");
  }
  compare_arg(&args, "--costs");
  compare_arg2(&args, "--rows", rows);
  if (texts) {
    compare_arg(&args, "--generate");
    compare_arg2(&args, "--max-tokens", compare_printf("%d", c->set.max_tokens));
    compare_arg2(&args, "--items", items);
  }
  if (shots) {
    compare_arg2(&args, "--shots-from", c->set.data);
    compare_arg2(&args, "--shots", compare_printf("%d", shots));
    compare_arg2(&args, "--seed", compare_printf("%llu", (unsigned long long)c->set.seed));
  }
  const json_t *job = compare_job(c, name, &args, NULL, compare_printf("measuring %s", name)), *result = json_object_get(job, "result");
  *out = (compare_measured){0};
  if (!job) return c->code;
  if (!result) return 0; /* a failure: not there */
  for (int m = 0; m < COMPARE_METRICS; m++) out->values[m] = number(result, compare_metric_names[m]);
  out->shots = number(result, "shots");
  out->seconds = number(job, "seconds");
  out->peak_bytes = (uint64_t)json_integer_value(json_object_get(result, "peak_bytes"));
  reader r = {.out = out};
  if (texts && !each_line(items, take_item, &r)) return unreadable(c, items);
  if (!each_line(rows, take_row, &r)) return unreadable(c, rows);
  out->there = true;
  return 0;
}

/* ---- a training ---- */

typedef struct curve_reader {
  compare_run *run;
  size_t cap;
  double tokens, seconds;
} curve_reader;

static void take_step(void *user, const json_t *line) {
  curve_reader *r = user;
  compare_run *run = r->run;
  double tokens = number(line, "tokens"), rate = number(line, "tokens_per_s");
  if (tokens > 0 && rate > 0) {
    r->seconds += tokens / rate;
    r->tokens += tokens;
  }
  uint64_t peak = (uint64_t)json_integer_value(json_object_get(line, "peak_bytes"));
  if (peak > run->peak_bytes) run->peak_bytes = peak;
  run->curve = grow(run->curve, run->curve_count, &r->cap, sizeof *run->curve);
  run->curve[run->curve_count++] = (compare_point){.step = json_integer_value(json_object_get(line, "step")),
                                                   .seconds = r->seconds,
                                                   .loss = number(line, "loss"),
                                                   .valid_loss = number(line, "valid_loss")};
}

static double first_at(const compare_run *r, double loss) {
  for (size_t i = 0; i < r->curve_count; i++)
    if (r->curve[i].valid_loss <= loss) return r->curve[i].seconds;
  return NAN;
}

void compare_read_run(compare *c, compare_run *r, const json_t *job) {
  const json_t *result = json_object_get(job, "result");
  r->started = true;
  if (!result) {
    const char *why = json_string_value(json_object_get(job, "failure"));
    r->failure = compare_printf("%s", why ? why : "failed");
    return;
  }
  curve_reader steps = {.run = r};
  r->curve_count = 0;
  r->peak_bytes = (uint64_t)json_integer_value(json_object_get(result, "peak_bytes"));
  each_line(compare_printf("%s/metrics.jsonl", r->folder), take_step, &steps);
  r->finished = true;
  r->steps = json_integer_value(json_object_get(result, "step"));
  r->first_valid = number(result, "valid_loss_before");
  r->best_valid = number(result, "best_valid_loss");
  r->trainable = json_integer_value(json_object_get(result, "trainable"));
  r->seconds = steps.seconds;
  r->tokens_per_s = steps.seconds > 0 ? steps.tokens / steps.seconds : NAN;
  r->disk_bytes = compare_folder_bytes(r->folder);
  r->to_best = isfinite(r->best_valid) ? first_at(r, r->best_valid * 1.01) : NAN;
  r->to_zero_shot = isfinite(c->zero_valid) ? first_at(r, c->zero_valid) : NAN;
}
