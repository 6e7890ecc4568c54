/* SPDX-License-Identifier: MIT */
#include <signal.h>
#include <stdlib.h>

#include "cli/compare.h"

static compare all = {.set = {.budget = "200steps", .seeds = 3, .shots = 4, .max_tokens = 128, .batch_rows = 16, .accumulate = 1}};
static const char *const rates[] = {"auto", "usual", NULL};
static const char *const schedules[] = {"linear", "cosine", "constant", NULL};

static const cli_option options[] = {
    {CLI_SECTION, "What", NULL, NULL, NULL, NULL, NULL},
    {CLI_TEXT, "model", "PATH", "The frozen model: a Hugging Face folder or a GGUF file.", NULL, &cli_shared.model, NULL},
    {CLI_LIST, "tune", "PARTS", "A method, as `pfx train --tune` has it; once for each. A size may be a list: prefix:5,20,100 is three methods.", NULL, &all.set.tunes, NULL},
    {CLI_TEXT, "data", "FILE", "Rows to learn from.", NULL, &all.set.data, NULL},
    {CLI_TEXT, "valid", "FILE", "Rows that choose the learning rate and the best moment of a run.", NULL, &all.set.valid, NULL},
    {CLI_TEXT, "test", "FILE", "Rows that decide; nothing is chosen on them.", NULL, &all.set.test, NULL},
    {CLI_TEXT, "retain", "FILE", "Other text that the model should still know: the damage is what its loss rises by.", "damage is not measured", &all.set.retain, NULL},
    {CLI_LIST, "adapter", "FOLDER", "Instead of --tune: a version that exists already, oldest first; at least two.", NULL, &all.set.adapters, NULL},
    {CLI_TEXT, "out", "FOLDER", "Where everything goes: report.html, results.json, results.csv, runs/ with the adapters. Needed with --tune.", NULL, &all.set.out, NULL},
    {CLI_SECTION, "How fair, how long", NULL, NULL, NULL, NULL, NULL},
    {CLI_TEXT, "budget", "HOW", "Steps of every run (200steps), or time for everything (90s, 30m, 2h): each method is timed briefly, and one number of steps that all runs can do is worked out.", "200steps", &all.set.budget, NULL},
    {CLI_CHOICE, "lr", "HOW", "auto: a third, once and three times a method's usual learning rate with the first seed, the best by --valid for the other seeds; usual: no search. A part with lr= keeps it.", "auto", &all.set.lr, rates},
    {CLI_INT32, "seeds", "N", "Runs of each method that are reported.", "3", &all.set.seeds, NULL},
    {CLI_SEED, "seed", "N", "The first seed; the others follow it.", "0", &all.set.seed, NULL},
    {CLI_INT32, "batch-rows", "N", "Rows a batch, for all.", "16", &all.set.batch_rows, NULL},
    {CLI_INT32, "accumulate", "N", "Batches whose gradients make one step.", "1", &all.set.accumulate, NULL},
    {CLI_INT, "warmup", "N", "Steps of linear warm-up, for all.", "a twentieth of the run", &all.set.warmup, NULL},
    {CLI_CHOICE, "schedule", "NAME", "After the warm-up, for all: linear or cosine decay, or constant.", "linear", &all.set.schedule, schedules},
    {CLI_NUMBER, "weight-decay", "X", "Decoupled weight decay, for all.", "0", &all.set.weight_decay, NULL},
    {CLI_NUMBER, "clip", "X", "Largest global gradient norm, for all; -1: none.", "1", &all.set.clip, NULL},
    {CLI_INT32, "shots", "K", "Examples from --data in the prompt of the in-context method, as many as fit; 0: without it.", "4", &all.set.shots, NULL},
    {CLI_INT32, "max-tokens", "N", "Longest generated text in tokens.", "128", &all.set.max_tokens, NULL},
    {CLI_FLAG, "no-generate", NULL, "Measure losses alone; no texts, no text scores.", NULL, &all.set.no_generate, NULL},
    {CLI_CHOICE, "metric", "NAME", "What decides: loss, bleu, chrf, rouge_l or exact_match.", "loss", &all.set.metric, compare_metric_names},
    {CLI_FLAG, "fail-if-worse", NULL, "With --adapter: exit code 6 when the last version is worse than the first beyond the uncertainty.", NULL, &all.set.fail_if_worse, NULL},
    {CLI_FLAG, "force", NULL, "With --adapter: use adapters that were trained on other weights.", NULL, &all.set.force, NULL},
    CLI_DATA_OPTIONS(all.set.rows),
    CLI_COMMON_OPTIONS,
    {0},
};

static int check_numbers(const compare_settings *s) {
  if (s->seeds < 1 || s->seeds > COMPARE_MOST_SEEDS) return cli_usage_error(&cli_compare, "--seeds must be from 1 to %d", COMPARE_MOST_SEEDS);
  if (s->shots < 0) return cli_usage_error(&cli_compare, "--shots must not be negative");
  if (s->max_tokens < 1) return cli_usage_error(&cli_compare, "--max-tokens must be at least 1");
  if (s->batch_rows < 1 || s->accumulate < 1) return cli_usage_error(&cli_compare, "--batch-rows and --accumulate must be at least 1");
  return compare_check_budget(s->budget);
}

static int check_training(const compare_settings *s) {
  if (!s->tunes.count) return cli_usage_error(&cli_compare, "compare needs --tune, once for each method, or --adapter, once for each version");
  if (!cli_shared.model || !s->data || !s->test || !s->out) return cli_usage_error(&cli_compare, "compare needs --model, --data, --test and --out");
  if (s->fail_if_worse) return cli_usage_error(&cli_compare, "--fail-if-worse is for versions: it needs --adapter");
  if (s->force) return cli_usage_error(&cli_compare, "--force is for versions: it needs --adapter");
  if (!s->valid && s->lr == 0)
    return cli_usage_error(&cli_compare, "--lr auto chooses on --valid, which is missing: give it, or --lr usual");
  return 0;
}

static int check_versions(const compare_settings *s) {
  static const char *const not_with[] = {"tune", "data", "valid", "lr", "seeds", "budget", "batch-rows", "accumulate", "shots",
                                         "warmup", "schedule", "weight-decay", "clip"};
  for (size_t i = 0; i < sizeof not_with / sizeof *not_with; i++)
    if (cli_given(&cli_compare, not_with[i])) return cli_usage_error(&cli_compare, "--%s has no meaning with --adapter: nothing is trained", not_with[i]);
  if (!cli_shared.model || !s->test) return cli_usage_error(&cli_compare, "compare needs --model and --test");
  if (s->adapters.count < 2) return cli_usage_error(&cli_compare, "--adapter is needed twice: what is compared, oldest first");
  return 0;
}

/* Rows whose texts can be generated and scored; an error where --metric needs them. */
static int decide_on_texts(compare *c) {
  pfx_error err = {0};
  char *text = NULL;
  json_error_t error;
  c->generate = !c->set.no_generate;
  if (pfx_inspect_wait(c->set.test, true, false, &text, &err) != PFX_OK) return cli_fail(&err);
  json_t *about = json_loads(text, 0, &error);
  pfx_free(text);
  const char *hold = json_string_value(json_object_get(about, "rows_hold"));
  int code = 0;
  if (!hold || strcmp(hold, "text") == 0 || strcmp(hold, "ids and labels") == 0) c->generate = false;
  if (c->set.metric != COMPARE_LOSS && !c->generate)
    code = c->set.no_generate
               ? cli_usage_error(&cli_compare, "--metric %s needs texts: leave --no-generate out", compare_metric_names[c->set.metric])
               : cli_usage_error(&cli_compare, "--metric %s needs texts and references, and the rows of %s hold %s: give rows with prompt and completion, "
                                               "or take --metric loss",
                                 compare_metric_names[c->set.metric], c->set.test, hold ? hold : "none");
  json_decref(about);
  return code;
}

/* With rows that are cut or dropped, one limit for all: else a long prefix would be measured on fewer or shorter rows. */
void compare_share_row_limit(compare *c) {
  int32_t longest = 0;
  for (int i = 0; i < c->method_count; i++)
    if (c->methods[i].virtual_tokens > longest) longest = c->methods[i].virtual_tokens;
  c->row_tokens = c->set.rows.max_row_tokens;
  if (!c->row_tokens && c->set.rows.on_long != PFX_LONG_ERROR && c->context > longest + 1) c->row_tokens = (int32_t)(c->context - longest);
}

static int compare_methods(compare *c) {
  int code = 0;
  compare_add_method(c, COMPARE_ZERO_SHOT, "zero-shot", "zero-shot");
  if (c->set.shots) compare_add_method(c, COMPARE_IN_CONTEXT, "in-context", "in-context");
  for (int i = 0; i < c->set.tunes.count && !code; i++) code = compare_add_tune(c, c->set.tunes.items[i]);
  if (!code) code = compare_state_open(c);
  if (!code) compare_share_row_limit(c);
  if (!code) {
    c->seen_test = compare_overlap(c->set.test, c->set.data);
    c->seen_valid = c->set.valid ? compare_overlap(c->set.valid, c->set.data) : 0;
  }
  if (!code) code = compare_make_folder(compare_printf("%s/runs", c->work));
  if (!code) code = compare_baselines(c);
  if (!code) code = compare_make_plan(c);
  if (!code) code = compare_train_all(c);
  if (!code) code = compare_costs(c);
  if (code) return code;
  compare_summarize(c);
  code = compare_write_results(c);
  return code ? code : compare_write_report(c);
}

static int run(int argc, char **argv) {
  cli_list rest;
  compare *c = &all;
  compare_settings *s = &c->set;
  int code = cli_parse(&cli_compare, argc, argv, &rest);
  if (code >= 0) return code;
  if (rest.count) return cli_usage_error(&cli_compare, "compare takes no argument \"%s\"", rest.items[0]);
  c->versions = s->adapters.count > 0;
  c->started = compare_clock();
  code = check_numbers(s);
  if (!code) code = c->versions ? check_versions(s) : check_training(s);
  if (!code) code = decide_on_texts(c);
  if (code) return code;
  signal(SIGPIPE, SIG_IGN); /* a closed terminal is no reason to lose a comparison */
  c->work = s->out;
  code = c->versions ? compare_run_versions(c) : compare_methods(c);
  if (code == 130) {
    cli_status(true, "%s", "");
    fprintf(stderr, "pfx: stopped; what is done is kept in %s\npfx: go on with the same command\n", c->work);
  }
  compare_state_close(c);
  return code;
}

const cli_command cli_compare = {
    .name = "compare",
    .summary = "which way to tune is best for your task? trains, measures, reports",
    .usage = "--model MODEL --data FILE --valid FILE --test FILE --tune PARTS --out FOLDER",
    .text = "Trains every method on the same rows in the same order and measures it on --test, beside\n"
            "the frozen model without examples (zero-shot) and with examples in its prompt\n"
            "(in-context). FOLDER/report.html says which to take, why, and how sure that is.\n"
            "Interrupted, the same command goes on. With --adapter instead of --tune it compares\n"
            "versions that exist: what changed, whether it got better, and, with --fail-if-worse,\n"
            "an exit code for your tests.",
    .examples = "  pfx compare --model SmolLM2.gguf --data train.jsonl --valid valid.jsonl --test test.jsonl --retain other.jsonl \\\n"
                "    --tune prefix:5,20,100 --tune prompt:20 --tune lora:8 --tune full --tune prefix:20+lora:8 --budget 2h --out which\n"
                "  pfx compare --model SmolLM2.gguf --test test.jsonl --adapter v1 --adapter v2 --fail-if-worse\n",
    .run = run,
    .options = options,
};
