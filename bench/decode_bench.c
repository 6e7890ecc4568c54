/* SPDX-License-Identifier: MIT
 * Greedy decoding in batches against memory: the bytes that a step must read (weights once, the keys and values of all
 * its sequences, a shared prefix once) over its time, in percent of the rate measured first in the same run: of a copy
 * on a device (read and written), of reading on the CPU. `decode_bench --help` lists the options. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "generate/generator.h"
#include "generate/kv_cache.h"
#include "train/run.h"

enum { MOST_STEPS = 100, LEAST_STEPS = 5, WARM_STEPS = 3 };
static const double MOST_SECONDS = 3;

typedef struct options {
  const char *model, *name, *device, *csv;
  px_dtype dtype;
  int prefix, from;
  double budget;
  bool tiny;
} options;

/* `rows` sequences after a prompt of so many tokens; in the order of what they are worth to know. */
typedef struct batch {
  int rows, prompt;
} batch;
static const batch batches[] = {{1, 32}, {16, 32}, {64, 1024}, {1, 1024}, {16, 1024}, {256, 256}, {1, 4096}, {16, 4096}},
                   tiny_batches[] = {{1, 8}, {3, 20}};

/* A run of the generator: times of the steps that are decode steps with all rows. */
typedef struct clockwork {
  px_generator *g;
  double last, begin, step[MOST_STEPS];
  int64_t prompt_tokens;
  int steps, warm;
} clockwork;

static px_error err;

static void need(px_status status) {
  if (status == PX_OK) return;
  fprintf(stderr, "decode_bench: %s\n", err.message);
  exit(1);
}

/* ---- the memory's rate ---- */

/* Bytes a second that all threads read from memory: the best of eight passes over a gigabyte. */
static double read_rate(int threads, bool tiny) {
  size_t count = (size_t)1 << (tiny ? 17 : 27);
  double *numbers = malloc(count * sizeof *numbers), best = 0, sum = 0;
  if (!numbers) exit(1);
#pragma omp parallel for num_threads(threads)
  for (size_t i = 0; i < count; i++) numbers[i] = (double)i;
  for (int pass = 0; pass < 8; pass++) {
    double start = px_clock();
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
    for (size_t block = 0; block < count; block += 4096) {
      double parts[64] = {0};
      for (size_t i = 0; i < 4096; i += 64)
        for (size_t j = 0; j < 64; j++) parts[j] += numbers[block + i + j];
      for (size_t j = 0; j < 64; j++) sum += parts[j];
    }
    double rate = (double)(count * sizeof *numbers) / (px_clock() - start);
    best = rate > best ? rate : best;
  }
  free(numbers);
  return sum > 0 ? best : 0;
}

/* Bytes a second that a copy on the device reads and writes: the best of eight. */
static double copy_rate(px_backend *be, bool tiny) {
  size_t bytes = (size_t)1 << (tiny ? 16 : 30);
  void *from = px_backend_alloc(be, bytes), *to = px_backend_alloc(be, bytes);
  px_backend_zero(be, from, bytes);
  double best = 0;
  for (int pass = 0; pass < 8; pass++) {
    px_backend_wait(be);
    double start = px_clock();
    px_backend_copy(be, to, from, bytes);
    px_backend_wait(be);
    double rate = 2 * (double)bytes / (px_clock() - start);
    best = rate > best ? rate : best;
  }
  need(px_backend_status(be, &err));
  px_backend_free(be, from);
  px_backend_free(be, to);
  return best;
}

/* ---- decoding ---- */

/* Called before every step of the generator: takes the time of the one before, and ends the run when there are enough. */
static bool step_done(void *user) {
  clockwork *c = user;
  double now = px_clock();
  int64_t prompts = px_generator_stats_get(c->g).prompt_tokens;
  bool decoded = c->last > 0 && prompts == c->prompt_tokens;
  if (decoded && c->warm < WARM_STEPS)
    c->warm++;
  else if (decoded && c->steps < MOST_STEPS)
    c->step[c->steps++] = now - c->last;
  if (c->steps == 0) c->begin = now;
  c->prompt_tokens = prompts;
  c->last = px_clock();
  return c->steps == MOST_STEPS || (c->steps >= LEAST_STEPS && now - c->begin > MOST_SECONDS);
}

static int by_size(const void *x, const void *y) {
  double a = *(const double *)x, b = *(const double *)y;
  return a < b ? -1 : a > b;
}

/* Queues the batch: every text ends at the same length, for without a tokenizer no token ends one. */
static void ask(px_generator *g, const px_config *config, batch b, int32_t adapter, int new_tokens) {
  int32_t *ids = px_calloc((size_t)b.prompt, sizeof *ids);
  for (int row = 0; row < b.rows; row++) {
    for (int i = 0; i < b.prompt; i++) ids[i] = (1000 + 37 * row + 11 * i) % config->vocab;
    px_request request = {.ids = ids, .count = b.prompt, .adapter = adapter, .row = (uint64_t)row, .sampling = {.max_tokens = new_tokens}};
    need(px_generator_add(g, &request, &err));
  }
  free(ids);
}

/* A prefix of small numbers. */
static int32_t add_prefix(px_generator *g, const px_config *c, int tokens) {
  size_t count = (size_t)tokens * 2 * (size_t)c->layers * (size_t)c->kv_heads * (size_t)c->head_dim;
  float *values = px_calloc(count, sizeof *values);
  for (size_t i = 0; i < count; i++) values[i] = (float)(i * 2654435761u % 1000) * 1e-3f - 0.4995f;
  int32_t id;
  need(px_generator_add_adapter(g, &(px_adapter){.values = values, .tokens = tokens}, &id, &err));
  free(values);
  return id;
}

typedef struct result {
  double seconds, weight_bytes, kv_bytes; /* of the median step */
  int steps;
} result;

static result decode(const px_model *model, batch b, const options *o) {
  const px_config *config = px_model_config(model);
  int new_tokens = 1 + WARM_STEPS + (o->tiny ? LEAST_STEPS : MOST_STEPS);
  size_t pages = (size_t)(b.prompt + new_tokens) / PX_PAGE_TOKENS + 1;
  px_generator_options settings = {.max_rows = b.rows};
  settings.cache_bytes = (int64_t)(pages * (size_t)b.rows * px_page_bytes(config, model->dtype));
  clockwork c = {0};
  need(px_generator_open(model, NULL, &settings, &c.g, &err));
  int32_t adapter = o->prefix > 0 ? add_prefix(c.g, config, o->prefix) : -1;
  ask(c.g, config, b, adapter, 4); /* packs weights, chooses products */
  need(px_generator_run(c.g, NULL, NULL, &err));
  c.prompt_tokens = px_generator_stats_get(c.g).prompt_tokens;
  ask(c.g, config, b, adapter, new_tokens);
  px_status status = px_generator_run(c.g, step_done, &c, &err);
  if (status != PX_CANCELLED) need(status);
  if (status == PX_OK && c.steps < MOST_STEPS) c.step[c.steps++] = px_clock() - c.last;
  px_generator_close(c.g);
  qsort(c.step, (size_t)c.steps, sizeof *c.step, by_size);
  double row = 2.0 * config->layers * config->kv_heads * config->head_dim * (double)px_dtype_bytes(model->dtype, 1);
  double middle = b.prompt + WARM_STEPS + 0.5 * c.steps; /* own keys of a sequence half-way through */
  result r = {.seconds = c.step[c.steps / 2], .steps = c.steps, .kv_bytes = row * (b.rows * middle + o->prefix)};
  r.weight_bytes = (double)(model->weights.mapped_bytes + model->weights.owned_bytes) -
                   (config->tied ? 0 : (double)px_dtype_bytes(model->dtype, (size_t)config->vocab * (size_t)config->dim));
  return r;
}

/* ---- the run ---- */

static const char usage[] =
    "usage: decode_bench MODEL [options]\n"
    "  --name NAME        what to call the model in the table\n"
    "  --dtype f32|bf16   default bf16\n"
    "  --device cpu|cuda  default cpu\n"
    "  --prefix N         tokens of a prefix that all sequences share; default 0\n"
    "  --csv FILE         the rows, too\n"
    "  --from POINT       goes on from there\n"
    "  --budget-s S       leaves out what is not begun by then\n"
    "  --tiny             sizes that prove the program\n";

static int read_options(int argc, char **argv, options *o) {
  static const struct option names[] = {{"name", 1, NULL, 'n'},   {"dtype", 1, NULL, 't'}, {"device", 1, NULL, 'd'},
                                        {"prefix", 1, NULL, 'p'}, {"csv", 1, NULL, 'c'},   {"from", 1, NULL, 'f'},
                                        {"budget-s", 1, NULL, 'b'}, {"tiny", 0, NULL, 'y'}, {"help", 0, NULL, 'h'},
                                        {0}};
  *o = (options){.dtype = PX_BF16, .budget = 1e9, .device = "cpu"};
  for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) {
    if (c == 'n') o->name = optarg;
    else if (c == 't') o->dtype = strcmp(optarg, "f32") == 0 ? PX_F32 : PX_BF16;
    else if (c == 'd') o->device = optarg;
    else if (c == 'p') o->prefix = atoi(optarg);
    else if (c == 'c') o->csv = optarg;
    else if (c == 'f') o->from = atoi(optarg);
    else if (c == 'b') o->budget = atof(optarg);
    else if (c == 'y') o->tiny = true;
    else optind = argc + 1;
  }
  if (argc - optind != 1) {
    fputs(usage, stderr);
    return 2;
  }
  o->model = argv[optind];
  if (!o->name) o->name = o->model;
  return 0;
}

static void print_point(FILE *csv, const options *o, const px_model *model, int number, batch b, double rate, const result *r) {
  double bytes = r->weight_bytes + r->kv_bytes, share = 100 * bytes / r->seconds / rate;
  printf("%3d decode %s %s x%-3d after %-4d N%d: %9.3f ms a step, %9.1f tokens/s, %7.1f MB a step, %5.1f %% of %.1f GB/s\n", number,
         o->name, px_dtype_name(model->dtype), b.rows, b.prompt, o->prefix, r->seconds * 1e3, b.rows / r->seconds, bytes / 1e6, share, rate / 1e9);
  fflush(stdout);
  if (!csv) return;
  fprintf(csv, "%d,\"%s\",%s,%s,%d,%d,%d,%.4f,%d,%.1f,%.3f,%.3f,%.2f,%.1f,%.3f\n", number, o->name, model->be->device,
          px_dtype_name(model->dtype), b.rows, b.prompt, o->prefix, r->seconds * 1e3, r->steps, b.rows / r->seconds,
          r->weight_bytes / 1e6, r->kv_bytes / 1e6, share, rate / 1e9, model->open_seconds);
  fflush(csv);
}

int main(int argc, char **argv) {
  options o;
  double begin = px_clock();
  int rc = read_options(argc, argv, &o), next = -1;
  if (rc) return rc;
  FILE *csv = o.csv ? fopen(o.csv, o.from ? "a" : "w") : NULL;
  if (o.csv && !csv) {
    fprintf(stderr, "decode_bench: cannot write %s\n", o.csv);
    return 1;
  }
  if (csv && !o.from)
    fputs("point,model,device,dtype,rows,prompt,prefix,median_ms,steps,tokens_per_s,weight_mb,kv_mb,percent_of_memory,memory_gb_s,open_s\n", csv);
  px_model *model;
  need(px_model_open(o.model, &(px_model_options){.device = o.device, .dtype = (int)o.dtype}, &model, &err));
  double rate = model->be->host_visible ? read_rate(model->be->threads, o.tiny) : copy_rate(model->be, o.tiny);
  const batch *all = o.tiny ? tiny_batches : batches;
  int count = (int)(o.tiny ? sizeof tiny_batches / sizeof *tiny_batches : sizeof batches / sizeof *batches);
  for (int i = o.from; i < count; i++) {
    if (all[i].prompt + MOST_STEPS + WARM_STEPS + 1 + o.prefix > px_model_config(model)->context && !o.tiny) continue;
    if (next < 0 && px_clock() - begin > o.budget) next = i;
    if (next >= 0) {
      printf("left out %3d decode %s x%d after %d\n", i, o.name, all[i].rows, all[i].prompt);
      continue;
    }
    result r = decode(model, all[i], &o);
    print_point(csv, &o, model, i, all[i], rate, &r);
  }
  if (next >= 0) printf("next %d\n", next);
  px_model_close(model);
  return csv && fclose(csv) ? 1 : 0;
}
