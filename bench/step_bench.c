/* SPDX-License-Identifier: MIT
 * Training steps as `pfx train` takes them, on one batch of real rows after the other: milliseconds a step, tokens a
 * second, and, with --profile, where the time goes. `step_bench --help` lists the options. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "train/batches.h"
#include "train/run.h"
#include "train/step.h"
#include "tune/tune.h"

enum { WARM_STEPS = 4, LEAST_STEPS = 5 }; /* a device's second meeting with a size is recorded: four are warm */

typedef struct options {
  const char *model, *data, *init, *gradient, *device, *tune;
  px_dtype dtype;
  int steps, rows, prefix, threads;
  double seconds;
  bool profile, plain, json;
} options;

typedef struct bench {
  options o;
  px_model *model;
  px_backend *be;
  px_tune *tune;
  px_rows rows;
  px_batches batches;
  px_step *step;
  px_cursor cursor;
  int64_t asked, labels[PX_STEPS_IN_FLIGHT];
} bench;

static px_error err;

static void need(px_status status) {
  if (status == PX_OK) return;
  fprintf(stderr, "step_bench: %s\n", err.message);
  exit(1);
}

static const char usage[] =
    "usage: step_bench MODEL DATA.jsonl [options]\n"
    "  --dtype f32|bf16   default bf16\n"
    "  --device cpu|cuda  default cpu\n"
    "  --steps N          at most this many are timed; default 100\n"
    "  --seconds S        or until S seconds have passed, 5 steps at least; default 3\n"
    "  --rows R           rows a step; default 16\n"
    "  --prefix N         tokens of the prefix; default 20\n"
    "  --tune PARTS       as pfx train's, in place of --prefix\n"
    "  --init WHAT        of a prefix or prompt, as pfx train's; default random\n"
    "  --threads T        of the CPU\n"
    "  --no-graph         launch every operation instead of replaying steps\n"
    "  --profile          seconds of every operation\n"
    "  --gradient FILE    the first step's gradient by keys and values, [N, 2 * layers * kv_heads * head_dim] float32\n"
    "  --json             one object instead of text\n";

static int bad_usage(void) {
  fputs(usage, stderr);
  return 2;
}

static int read_options(int argc, char **argv, options *o) {
  enum { DTYPE = 1, DEVICE, STEPS, SECONDS, ROWS, PREFIX, TUNE, INIT, THREADS, NO_GRAPH, PROFILE, GRADIENT, JSON, HELP };
  static const struct option names[] = {{"dtype", 1, NULL, DTYPE},
                                        {"device", 1, NULL, DEVICE},
                                        {"steps", 1, NULL, STEPS},
                                        {"seconds", 1, NULL, SECONDS},
                                        {"rows", 1, NULL, ROWS},
                                        {"prefix", 1, NULL, PREFIX},
                                        {"tune", 1, NULL, TUNE},
                                        {"init", 1, NULL, INIT},
                                        {"threads", 1, NULL, THREADS},
                                        {"no-graph", 0, NULL, NO_GRAPH},
                                        {"profile", 0, NULL, PROFILE},
                                        {"gradient", 1, NULL, GRADIENT},
                                        {"json", 0, NULL, JSON},
                                        {"help", 0, NULL, HELP},
                                        {0}};
  *o = (options){.dtype = PX_BF16, .steps = 100, .seconds = 3, .rows = 16, .prefix = 20, .init = "random"};
  for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) {
    if (c == DTYPE) o->dtype = strcmp(optarg, "f32") == 0 ? PX_F32 : PX_BF16;
    else if (c == DEVICE) o->device = optarg;
    else if (c == STEPS) o->steps = atoi(optarg);
    else if (c == SECONDS) o->seconds = atof(optarg);
    else if (c == ROWS) o->rows = atoi(optarg);
    else if (c == PREFIX) o->prefix = atoi(optarg);
    else if (c == TUNE) o->tune = optarg;
    else if (c == INIT) o->init = optarg;
    else if (c == THREADS) o->threads = atoi(optarg);
    else if (c == NO_GRAPH) o->plain = true;
    else if (c == PROFILE) o->profile = o->plain = true;
    else if (c == GRADIENT) o->gradient = optarg;
    else if (c == JSON) o->json = true;
    else return bad_usage();
  }
  if (argc - optind != 2 || o->steps < 1 || o->rows < 1 || o->prefix < 1) return bad_usage();
  o->model = argv[optind];
  o->data = argv[optind + 1];
  return 0;
}

/* Rows of text need the model's tokenizer; rows of ids do not, and a model of random weights has none. */
static void open_rows(bench *b) {
  px_tokenizer *tok = NULL;
  px_error no_tokenizer;
  if (px_tokenizer_open(b->o.model, &tok, &no_tokenizer) != PX_OK) tok = NULL;
  int32_t most = px_model_config(b->model)->context - b->o.prefix;
  need(px_rows_read(b->o.data, tok, &(px_row_options){.max_row_tokens = most}, NULL, &b->rows, &err));
  px_tokenizer_close(tok);
  need(px_batches_open(&b->rows, &(px_batch_options){.batch_rows = b->o.rows, .shuffle = b->rows.count > (size_t)b->o.rows},
                       &b->batches, &err));
}

static void open_bench(bench *b) {
  const options *o = &b->o;
  need(px_backend_open(&(px_backend_options){.device = o->device,
                                             .threads = o->threads,
                                             .profile = o->profile,
                                             .time_products = true,
                                             .pack_weights = o->dtype == PX_BF16 ? PX_PACK_ALL : PX_PACK_TRANSPOSED},
                       &b->be, &err));
  need(px_model_open(o->model, &(px_model_options){.device = o->device, .threads = o->threads, .dtype = (int)o->dtype},
                     &b->model, &err));
  open_rows(b);
  char prefix[32];
  px_tune_spec spec;
  snprintf(prefix, sizeof prefix, "prefix:%d", o->prefix);
  need(px_tune_parse(o->tune ? o->tune : prefix, o->tune ? NULL : o->init, 0, &spec, &err));
  for (int i = 0; i < spec.part_count; i++) /* where a part begins costs nothing later */
    if (spec.parts[i].init == PX_INIT_DATA) spec.parts[i].init = PX_INIT_RANDOM;
  need(px_tune_open(b->model, b->be, NULL, &spec, 0, &b->tune, &err));
  px_tune_spec_free(&spec);
  px_batch_extent x = px_batches_bound(&b->batches, b->cursor, (uint64_t)o->steps + WARM_STEPS);
  need(px_step_open(&(px_step_options){.model = b->model,
                                       .be = b->be,
                                       .tune = b->tune,
                                       .beta1 = 0.9f,
                                       .beta2 = 0.999f,
                                       .eps = 1e-8f,
                                       .tokens = x.most_tokens,
                                       .seqs = x.most_rows,
                                       .labels = x.most_labels,
                                       .positions = b->tune->tokens + (int64_t)b->rows.longest,
                                       .plain = o->plain},
                    &b->step, &err));
}

static void close_bench(bench *b) {
  px_step_close(b->step);
  px_tune_close(b->tune);
  px_batches_close(&b->batches);
  px_rows_free(&b->rows);
  px_model_close(b->model);
  px_backend_close(b->be);
}

/* Asks for the next step; its tokens. */
static int64_t ask(bench *b) {
  px_batch_extent x = px_batches_walk(&b->batches, b->cursor, 1);
  px_step_begin(b->step, &(px_control){.tokens = x.labels, .step = b->asked, .lr = 1e-3f, .clip = 1});
  need(px_batches_next(&b->batches, &b->cursor, b->tune->tokens, 0, &err));
  need(px_step_add(b->step, &b->batches.batch, true, &err));
  b->labels[b->asked++ % PX_STEPS_IN_FLIGHT] = x.labels;
  return x.tokens;
}

/* The loss of the oldest step under way, which is number `step` from 0. */
static double finish(bench *b, int64_t step) {
  px_group group;
  need(px_step_finish(b->step, &group, &err));
  return group.loss_sum / (double)b->labels[step % PX_STEPS_IN_FLIGHT];
}

static void write_gradient(bench *b) {
  const px_config *c = px_model_config(b->model);
  size_t count = (size_t)b->tune->tokens * 2 * (size_t)c->layers * (size_t)c->kv_heads * (size_t)c->head_dim;
  float *grad = px_calloc(count, sizeof *grad);
  FILE *file = fopen(b->o.gradient, "wb");
  if (!grad || !file) {
    fprintf(stderr, "step_bench: cannot write %s\n", b->o.gradient);
    exit(1);
  }
  need(px_tune_export_grad(b->tune, grad, &err));
  for (size_t i = 0; i < count; i++) grad[i] /= (float)b->labels[0];
  if (fwrite(grad, sizeof *grad, count, file) != count || fclose(file) != 0) {
    fprintf(stderr, "step_bench: cannot write %s\n", b->o.gradient);
    exit(1);
  }
  free(grad);
}

static void print_profile(const px_backend *be, int steps, double seconds) {
  for (int i = 0; i < PX_OP_COUNT; i++)
    if (be->op_calls[i])
      printf("  %-14s %8.2f ms a step %6.1f %%  %6lld calls\n", px_op_name(i), 1e3 * be->op_seconds[i] / steps,
             100 * be->op_seconds[i] / seconds, (long long)(be->op_calls[i] / steps));
}

int main(int argc, char **argv) {
  bench b = {0};
  int rc = read_options(argc, argv, &b.o);
  if (rc) return rc;
  open_bench(&b);
  ask(&b);
  double first_loss = finish(&b, 0);
  if (b.o.gradient) write_gradient(&b);
  for (int i = 1; i < WARM_STEPS; i++) {
    ask(&b);
    finish(&b, i);
  }
  memset(b.be->op_seconds, 0, sizeof b.be->op_seconds);
  memset(b.be->op_calls, 0, sizeof b.be->op_calls);
  const int depth = px_step_depth(b.step);
  int64_t done = b.asked, tokens = 0;
  double start = px_clock();
  for (bool more = true; more || done < b.asked;) {
    while (more && b.asked - done < depth) {
      tokens += ask(&b);
      int64_t timed = b.asked - WARM_STEPS;
      more = timed < b.o.steps && (timed < LEAST_STEPS || px_clock() - start < b.o.seconds);
    }
    finish(&b, done++);
  }
  double seconds = px_clock() - start;
  int steps = (int)(done - WARM_STEPS);
  const px_plan *plan = px_step_plan(b.step);
  if (b.o.json)
    printf("{\"loss\": %.9g, \"steps\": %d, \"ms\": %.6g, \"tokens\": %.1f, \"tokens_per_s\": %.6g, \"plan_bytes\": %llu, \"weight_bytes\": %llu}\n",
           first_loss, steps, seconds * 1e3 / steps, (double)tokens / steps, (double)tokens / seconds,
           (unsigned long long)plan->total_bytes, (unsigned long long)(b.model->weights.owned_bytes + b.model->weights.mapped_bytes));
  else
    printf("%d steps of %.0f tokens: %.2f ms a step, %.0f tokens/s; first loss %.6f; buffers %.1f MB\n", steps,
           (double)tokens / steps, seconds * 1e3 / steps, (double)tokens / seconds, first_loss, (double)plan->total_bytes / 1e6);
  if (b.o.profile && !b.o.json) print_profile(b.be, steps, seconds);
  close_bench(&b);
  return 0;
}
