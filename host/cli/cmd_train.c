/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/cli.h"

static pfx_train_options o;
static const char *resume, *config;
static char *config_device; /* what --config names; lives as long as the command */
static cli_list tunes;
static const char *const out_types[] = {"base", "f32", "bf16", "f16", NULL}; /* in the order of pfx_weight_type */
static const char *const optimizers[] = {"adamw", "sgd", NULL};
static const char *const schedules[] = {"linear", "cosine", "constant", NULL};

static const cli_option options[] = {
    {CLI_SECTION, "What", NULL, NULL, NULL, NULL, NULL},
    {CLI_TEXT, "model", "PATH", "The frozen model: a Hugging Face folder or a GGUF file.", NULL, &cli_shared.model, NULL},
    {CLI_TEXT, "data", "FILE", "Rows to learn from: JSON Lines with prompt and completion, text, messages or ids; or source||target lines.", NULL, &o.data, NULL},
    {CLI_TEXT, "valid", "FILE", "Rows to validate on; the best adapter is kept.", NULL, &o.valid, NULL},
    {CLI_TEXT, "out", "FOLDER", "Where the run goes: the adapter in PEFT's format, run.json, metrics.jsonl, checkpoint/.", NULL, &o.out, NULL},
    {CLI_LIST, "tune", "PARTS", "What is learned: prefix:N, prompt:N, lora:R, ia3, norm, bias, top:K (the last K layers), full, with options behind colons (prefix:20:lr=1e-2:layers=0-5, lora:8:targets=q,v), and several joined by + (prefix:20+lora:8). docs/tuning.md explains each.", "prefix:20", &tunes, NULL},
    {CLI_TEXT, "init", "HOW", "Where a prefix or prompt starts: data (the first training tokens), random, zero, vocab (a prompt: words at random), text:TEXT, text-file:FILE, adapter:FOLDER (a prefix).", "data", &o.init, NULL},
    {CLI_CHOICE, "out-dtype", "TYPE", "Type of the model that full leaves: f32, bf16, f16, or base (each tensor as the base has it, bf16 where it is quantised).", "base", &o.out_type, out_types},
    {CLI_INT32, "reparam", "H", "Learn the prefix through a small network of hidden width H; it is flattened into the adapter.", "none", &o.reparam, NULL},
    {CLI_SECTION, "How long", NULL, NULL, NULL, NULL, NULL},
    {CLI_INT, "steps", "N", "Updates.", "from --epochs", &o.steps, NULL},
    {CLI_NUMBER, "epochs", "X", "Passes over the data.", "1", &o.epochs, NULL},
    {CLI_INT, "stop-after", "N", "Save and stop when step N is done; --resume goes on.", NULL, &o.stop_after, NULL},
    {CLI_DURATION, "max-time", "TIME", "Save and stop after this time: 90s, 30m, 2h.", NULL, &o.max_seconds, NULL},
    {CLI_INT32, "patience", "N", "Stop after N validations without a better loss.", "never", &o.patience, NULL},
    {CLI_SECTION, "How", NULL, NULL, NULL, NULL, NULL},
    {CLI_NUMBER, "lr", "X", "Peak learning rate.", "the part's usual one", &o.lr, NULL},
    {CLI_CHOICE, "optimizer", "NAME", "adamw, or sgd: plain descent without moments, for full in little memory; give it a rate of its own.", "adamw", &o.optimizer, optimizers},
    {CLI_INT, "warmup", "N", "Steps of linear warm-up.", "a twentieth of the run", &o.warmup, NULL},
    {CLI_CHOICE, "schedule", "NAME", "After the warm-up: linear or cosine decay, or constant.", "linear", &o.schedule, schedules},
    {CLI_INT32, "batch-rows", "N", "Rows a batch.", "16", &o.batch_rows, NULL},
    {CLI_INT, "batch-tokens", "N", "Or: at most so many tokens a batch.", NULL, &o.batch_tokens, NULL},
    {CLI_INT32, "accumulate", "N", "Batches whose gradients make one step.", "1", &o.accumulate, NULL},
    {CLI_NUMBER, "weight-decay", "X", "Decoupled weight decay.", "0", &o.weight_decay, NULL},
    {CLI_NUMBER, "clip", "X", "Largest global gradient norm; -1: none.", "1", &o.clip, NULL},
    {CLI_NUMBER, "prefix-dropout", "P", "Dropout on the prefix's keys and values, one mask a step.", "0", &o.prefix_dropout, NULL},
    {CLI_SEED, "seed", "N", "Of every random number: start, order, dropout.", "0", &o.seed, NULL},
    {CLI_INT, "eval-every", "N", "Steps between validations; -1: never.", "five a run", &o.eval_every, NULL},
    {CLI_INT, "save-every", "N", "Steps between checkpoints; -1: only at the end.", "five a run", &o.save_every, NULL},
    {CLI_TEXT, "tensorboard", "FOLDER", "Also write loss, learning rate, gradient norm, speed, memory and validation loss as TensorBoard event files; a resumed run goes on in a new file.", NULL, &o.tensorboard, NULL},
    {CLI_SECTION, "Going on and repeating", NULL, NULL, NULL, NULL, NULL},
    {CLI_TEXT, "resume", "FOLDER", "Go on exactly with the run in FOLDER; every setting comes from its run.json, only --steps, --epochs, --patience, --eval-every and --save-every may be given again. `auto`: go on with --out where it holds a run, else begin.", NULL, &resume, NULL},
    {CLI_TEXT, "config", "FILE", "Take all settings from a run.json; options given beside it win.", NULL, &config, NULL},
    {CLI_FLAG, "no-fingerprint", NULL, "Write the adapter byte for byte as PEFT does, without saying which model it belongs to.", NULL, &o.no_fingerprint, NULL},
    {CLI_FLAG, "force", NULL, "Replace a run that is in --out.", NULL, &o.force, NULL},
    {CLI_FLAG, "no-graph", NULL, "On a GPU: launch every operation by itself instead of replaying recorded steps. Slower, same result; for profilers and for looking into a failure.", NULL, &o.no_graph, NULL},
    CLI_ATTENTION_OPTION(o.attention),
    CLI_DATA_OPTIONS(o.rows),
    CLI_COMMON_OPTIONS,
    {0},
};

static char pending[300]; /* a validation to show with the result */

static void progress(void *user, const pfx_progress *p) {
  (void)user;
  if (!isnan(p->valid_loss)) {
    cli_status(true, "step %lld/%lld  validation loss %.4f%s", (long long)p->step, (long long)p->steps, p->valid_loss,
               p->step && p->valid_loss <= p->best_valid_loss ? "  (best so far)" : p->step ? "" : "  (before training)");
    return;
  }
  snprintf(pending, sizeof pending, "step %lld/%lld  loss %.4f  lr %.2e  %.0f tokens/s  %d:%02d left", (long long)p->step, (long long)p->steps,
           p->loss, p->lr, p->tokens_per_s, (int)(p->eta_seconds / 60), (int)p->eta_seconds % 60);
  cli_status(p->step == p->steps, "%s", pending);
}

static void print_result(const pfx_train_result *r, const char *out) {
  if (cli_shared.json) {
    printf("{\"out\": ");
    cli_json_text(stdout, out, strlen(out));
    printf(", \"step\": %lld, \"steps\": %lld, \"finished\": %s, \"loss\": ", (long long)r->step, (long long)r->steps, r->finished ? "true" : "false");
    cli_json_number(stdout, r->last_loss);
    printf(", \"valid_loss_before\": ");
    cli_json_number(stdout, r->first_valid_loss);
    printf(", \"valid_loss\": ");
    cli_json_number(stdout, r->last_valid_loss);
    printf(", \"best_valid_loss\": ");
    cli_json_number(stdout, r->best_valid_loss);
    printf(", \"best_step\": %lld, \"seconds\": %.3f, \"tokens_per_s\": %.1f, \"peak_bytes\": %llu, \"trainable\": %lld}\n", (long long)r->best_step,
           r->seconds, r->tokens_per_s, (unsigned long long)r->peak_bytes, (long long)r->trainable);
    return;
  }
  printf("%s after %lld of %lld steps, %.1f s, %.0f tokens/s, peak memory %.2f GB\n",
         r->early_stopped ? "stopped early" : r->finished ? "done" : "stopped", (long long)r->step, (long long)r->steps, r->seconds,
         r->tokens_per_s, (double)r->peak_bytes / 1e9);
  if (!isnan(r->best_valid_loss)) {
    printf("validation loss %.4f before, %.4f best (step %lld)", r->first_valid_loss, r->best_valid_loss, (long long)r->best_step);
    if (!isnan(r->last_valid_loss)) printf(", %.4f last", r->last_valid_loss);
    printf("\n");
  }
  /* A run of all weights leaves a model. */
  char config_json[4096];
  struct stat about;
  snprintf(config_json, sizeof config_json, "%s/config.json", out);
  printf("%s: %s\n", stat(config_json, &about) == 0 ? "model" : "adapter", out);
  if (!r->finished) printf("go on with: pfx train --resume %s\n", out);
}

static int finish(pfx_trainer *trainer, const char *out) {
  pfx_error err = {0};
  pfx_train_result result;
  pfx_status status = pfx_trainer_run_wait(trainer, &result, &err);
  pfx_trainer_destroy(trainer);
  if (status == PFX_OK) {
    print_result(&result, out);
    return 0;
  }
  int code = cli_fail(&err);
  if (status == PFX_CANCELLED) fprintf(stderr, "pfx: go on with: pfx train --resume %s\n", out);
  return code;
}

static bool exists(const char *dir, const char *name) {
  char path[4096];
  struct stat st;
  snprintf(path, sizeof path, "%s/%s", dir, name);
  return stat(path, &st) == 0;
}

/* A run keeps its settings: one that is given again beside --resume would be lost in silence. */
static int refuse_other_settings(const char *dir) {
  static const char *const may[] = {"resume",     "model",      "steps",    "epochs", "patience", "eval-every", "save-every",
                                    "stop-after", "max-time",   "device",   "threads", "json",    "quiet",      "verbose", "no-graph", "tensorboard"};
  for (const cli_option *each = options; each->name; each++) {
    bool allowed = each->kind == CLI_SECTION || !cli_given(&cli_train, each->name);
    for (size_t i = 0; !allowed && i < sizeof may / sizeof *may; i++) allowed = strcmp(may[i], each->name) == 0;
    if (!allowed)
      return cli_usage_error(&cli_train,
                             "--%s cannot be given again: --resume takes it from %s/run.json (--steps, --epochs, --patience, "
                             "--eval-every and --save-every may change)",
                             each->name, dir);
  }
  return 0;
}

static bool same_path(const char *a, const char *b) {
  char *real_a = a ? realpath(a, NULL) : NULL, *real_b = b ? realpath(b, NULL) : NULL;
  bool same = real_a && real_b && strcmp(real_a, real_b) == 0;
  free(real_a);
  free(real_b);
  return same;
}

/* Whether an option's value, as given in `o`, is the one in `from`. Where a prefix starts is written in several ways and
 * left alone. */
static bool same_value(const cli_option *option, const pfx_train_options *from) {
  const char *at = option->value, *begin = (const char *)&o, *there = (const char *)from + (at - begin);
  if (at < begin || at >= begin + sizeof o || option->value == &o.out || option->value == &o.init) return true;
  switch (option->kind) {
    case CLI_TEXT:
      return same_path(*(char *const *)at, *(char *const *)there);
    case CLI_INT:
      return *(const int64_t *)at == *(const int64_t *)there;
    case CLI_INT32:
    case CLI_CHOICE:
      return *(const int32_t *)at == *(const int32_t *)there;
    case CLI_NUMBER:
      return *(const double *)at == *(const double *)there;
    case CLI_SEED:
      return *(const uint64_t *)at == *(const uint64_t *)there;
    default:
      return true;
  }
}

/* The same command again is what --resume auto is for; one with other settings would lose them in silence. */
static int refuse_changed_settings(const char *dir) {
  static const char *const may[] = {"steps", "epochs", "patience", "eval-every", "save-every", "stop-after", "max-time", "template", "no-graph", "tensorboard"};
  pfx_error err = {0};
  pfx_train_options from;
  char *model_path = NULL;
  void *memory = NULL;
  if (pfx_run_options(dir, &from, &model_path, &memory, &err) != PFX_OK) return cli_fail(&err);
  const char *changed = tunes.count && strcmp(tunes.items[0], from.tune) != 0 ? "tune" : NULL;
  for (const cli_option *each = options; each->name && !changed; each++) {
    bool allowed = each->kind == CLI_SECTION || !cli_given(&cli_train, each->name);
    for (size_t i = 0; !allowed && i < sizeof may / sizeof *may; i++) allowed = strcmp(may[i], each->name) == 0;
    if (!allowed && !same_value(each, &from)) changed = each->name;
  }
  pfx_free(memory);
  if (!changed) return 0;
  return cli_usage_error(&cli_train, "--%s is not what %s began with: --resume auto goes on with the settings of its run.json; leave it out, or name another --out",
                         changed, dir);
}

static int go_on(const char *dir) {
  pfx_error err = {0};
  char *model_path = NULL, *device = NULL;
  pfx_dtype dtype;
  int32_t threads;
  pfx_model *model = NULL;
  pfx_tokenizer *tokenizer = NULL;
  pfx_trainer *trainer = NULL;
  if (pfx_run_read(dir, &model_path, &device, &dtype, &threads, &err) != PFX_OK) return cli_fail(&err);
  if (!cli_given(&cli_train, "epochs")) o.epochs = 0;
  if (!cli_given(&cli_train, "device")) cli_shared.device = device;
  int code = cli_open_model(cli_shared.model ? cli_shared.model : model_path, dtype, cli_shared.threads ? cli_shared.threads : threads, false, &model, &tokenizer);
  if (code == 0) code = pfx_trainer_resume(model, tokenizer, dir, &o, &trainer, &err) == PFX_OK ? finish(trainer, dir) : cli_fail(&err);
  pfx_tokenizer_close(tokenizer);
  pfx_model_close(model);
  pfx_free(model_path);
  pfx_free(device);
  return code;
}

/* Settings of a run.json first, then the command line again over them. */
static int apply_config(int argc, char **argv, void **memory, char **model_path) {
  pfx_error err = {0};
  pfx_train_options from;
  pfx_dtype dtype;
  cli_list rest;
  char *unused = NULL;
  if (pfx_run_read(config, &unused, &config_device, &dtype, &cli_shared.threads, &err) != PFX_OK) return cli_fail(&err);
  pfx_free(unused);
  cli_shared.device = config_device;
  cli_shared.dtype = (int)dtype;
  if (pfx_run_options(config, &from, model_path, memory, &err) != PFX_OK) return cli_fail(&err);
  from.out = NULL; /* repeating into the same folder would be a mistake */
  if (cli_given(&cli_train, "epochs")) from.steps = 0; /* of two ways to say the same, the one given here */
  if (cli_given(&cli_train, "batch-tokens")) from.batch_rows = 0;
  if (cli_given(&cli_train, "batch-rows")) from.batch_tokens = 0;
  o = from;
  cli_loss = o.rows.loss_all;
  tunes.count = 0;
  return cli_parse(&cli_train, argc, argv, &rest);
}

static int run(int argc, char **argv) {
  cli_list rest;
  pfx_error err = {0};
  pfx_model *model = NULL;
  pfx_tokenizer *tokenizer = NULL;
  pfx_trainer *trainer = NULL;
  void *memory = NULL;
  char *config_model = NULL;
  o = pfx_train_options_init();
  int code = cli_parse(&cli_train, argc, argv, &rest);
  if (code >= 0) return code;
  if (config && (code = apply_config(argc, argv, &memory, &config_model)) >= 0) return code;
  if (rest.count) return cli_usage_error(&cli_train, "train takes no argument \"%s\"", rest.items[0]);
  if (tunes.count > 1) return cli_usage_error(&cli_train, "--tune is given twice: one part can be trained at a time in this release");
  if (tunes.count) o.tune = tunes.items[0];
  o.rows.loss_all = cli_loss == 1;
  o.progress = progress;
  o.cancelled = cli_stopped;
  o.log = cli_log;
  signal(SIGPIPE, SIG_IGN); /* a closed terminal is no reason to lose a run */
  bool automatic = resume && strcmp(resume, "auto") == 0;
  if (automatic && !o.out) return cli_usage_error(&cli_train, "--resume auto needs --out");
  if (resume && !automatic && (code = refuse_other_settings(resume)) != 0) return code;
  if (automatic && exists(o.out, "run.json") && (code = refuse_changed_settings(o.out)) != 0) return code;
  if (automatic ? exists(o.out, "run.json") : resume != NULL) return go_on(automatic ? o.out : resume);
  if (!cli_shared.model) cli_shared.model = config_model;
  if (!cli_shared.model || !o.data || !o.out) return cli_usage_error(&cli_train, "train needs --model, --data and --out");
  cli_shared.attention = (int)o.attention;
  code = cli_open_model(cli_shared.model, (pfx_dtype)cli_shared.dtype, cli_shared.threads, false, &model, &tokenizer);
  if (code == 0) code = pfx_trainer_create(model, tokenizer, &o, &trainer, &err) == PFX_OK ? finish(trainer, o.out) : cli_fail(&err);
  pfx_tokenizer_close(tokenizer);
  pfx_model_close(model);
  pfx_free(memory);
  pfx_free(config_device);
  return code;
}

const cli_command cli_train = {
    .name = "train",
    .summary = "learn a prefix for a frozen model",
    .usage = "--model MODEL --data FILE --out FOLDER [OPTIONS]",
    .text = "Learns keys and values that every layer of the frozen model attends to before the\n"
            "real tokens. Ctrl-C finishes the step, saves, and says how to go on; a run that\n"
            "was stopped or killed is resumed to the same final bits.",
    .examples = "  pfx train --model SmolLM2.gguf --data train.jsonl --valid valid.jsonl --tune prefix:20 --steps 500 --out run\n"
                "  pfx train --resume run\n"
                "  pfx train --config run/run.json --seed 2 --out run2\n",
    .run = run,
    .options = options,
};
