/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <string.h>

#include "cli/cli.h"

static pfx_eval_options o;
static cli_list adapters;
static bool force, no_frozen, with_costs;
static pfx_eval_costs costs;

static const cli_option options[] = {
    {CLI_SECTION, "What", NULL, NULL, NULL, NULL, NULL},
    {CLI_TEXT, "model", "PATH", "The model: a Hugging Face folder or a GGUF file.", NULL, &cli_shared.model, NULL},
    {CLI_TEXT, "data", "FILE", "Rows to measure on.", NULL, &o.data, NULL},
    {CLI_LIST, "adapter", "FOLDER", "An adapter to measure beside the frozen model; may be given several times.", NULL, &adapters, NULL},
    {CLI_FLAG, "generate", NULL, "Also generate for every prompt and score the texts: BLEU, chrF, ROUGE-L, exact match.", NULL, &o.generate, NULL},
    {CLI_INT32, "max-tokens", "N", "Longest generated text in tokens.", "128", &o.max_tokens, NULL},
    {CLI_TEXT, "predictions", "FILE", "Write the texts of every adapter given, or else of the frozen model: JSON Lines with adapter, prompt, prediction, references.", NULL, &o.predictions, NULL},
    {CLI_TEXT, "rows", "FILE", "Write line, loss, tokens and text of every row, for every adapter given, or else the frozen model: JSON Lines.", NULL, &o.rows_out, NULL},
    {CLI_TEXT, "items", "FILE", "Write what the text of every prompt adds to the scores, for every adapter given, or else the frozen model: JSON Lines.", NULL, &o.items_out, NULL},
    {CLI_FLAG, "no-frozen", NULL, "Measure the adapters alone, not the frozen model beside them.", NULL, &no_frozen, NULL},
    {CLI_TEXT, "shots-from", "FILE", "Put rows of this file as examples before every row (in-context learning).", NULL, &o.shots_data, NULL},
    {CLI_INT32, "shots", "K", "How many examples; fewer where the context is full.", "4", &o.shots, NULL},
    {CLI_SEED, "seed", "N", "Which examples.", "0", &o.shots_seed, NULL},
    {CLI_FLAG, "costs", NULL, "With --json: also seconds, generated tokens and peak memory.", NULL, &with_costs, NULL},
    {CLI_FLAG, "force", NULL, "Use adapters that were trained on other weights.", NULL, &force, NULL},
    CLI_ATTENTION_OPTION(cli_shared.attention),
    CLI_DATA_OPTIONS(o.rows),
    CLI_COMMON_OPTIONS,
    {0},
};

static void progress(void *user, int64_t done, int64_t all) {
  (void)user;
  cli_status(done == all, "%lld of %lld texts", (long long)done, (long long)all);
}

static void score_json(const char *name, double value) {
  printf(", \"%s\": ", name);
  cli_json_number(stdout, value);
}

/* Apart from the rest, which is the same each time. */
static void print_costs(void) {
  score_json("loss_seconds", costs.loss_seconds);
  score_json("prefill_seconds", costs.prefill_seconds);
  score_json("decode_seconds", costs.decode_seconds);
  printf(", \"prompt_tokens\": %lld, \"new_tokens\": %lld, \"peak_bytes\": %llu", (long long)costs.prompt_tokens, (long long)costs.new_tokens,
         (unsigned long long)cli_peak_bytes());
}

static void print_result(const char *adapter, const pfx_eval_result *r) {
  if (cli_shared.json) {
    printf("{\"adapter\": ");
    if (adapter)
      cli_json_text(stdout, adapter, strlen(adapter));
    else
      printf("null");
    score_json("loss", r->loss);
    score_json("perplexity", r->perplexity);
    printf(", \"tokens\": %lld, \"rows\": %lld", (long long)r->tokens, (long long)r->rows);
    if (o.generate) {
      score_json("bleu", r->bleu);
      score_json("chrf", r->chrf);
      score_json("rouge_l", r->rouge_l);
      score_json("exact_match", r->exact_match);
      printf(", \"items\": %lld", (long long)r->items);
    }
    if (o.shots_data) score_json("shots", costs.shots);
    if (with_costs) print_costs();
    printf("}\n");
  } else {
    printf("%-28s loss %.4f  perplexity %.2f  (%lld tokens of %lld rows)\n", adapter ? adapter : "frozen model", r->loss, r->perplexity,
           (long long)r->tokens, (long long)r->rows);
    if (o.generate)
      printf("%-28s BLEU %.2f  chrF %.2f  ROUGE-L %.2f  exact match %.2f  (%lld texts)\n", "", r->bleu, r->chrf, r->rouge_l, r->exact_match,
             (long long)r->items);
  }
  fflush(stdout);
}

static int run(int argc, char **argv) {
  cli_list rest;
  pfx_error err = {0};
  pfx_model *model = NULL;
  pfx_tokenizer *tokenizer = NULL;
  o = pfx_eval_options_init();
  o.shots = 4;
  o.costs = &costs;
  int code = cli_parse(&cli_eval, argc, argv, &rest);
  if (code >= 0) return code;
  if (rest.count) return cli_usage_error(&cli_eval, "eval takes no argument \"%s\"", rest.items[0]);
  if (!cli_shared.model || !o.data) return cli_usage_error(&cli_eval, "eval needs --model and --data");
  if (no_frozen && !adapters.count) return cli_usage_error(&cli_eval, "--no-frozen leaves nothing to measure without --adapter");
  if (cli_given(&cli_eval, "shots") && !o.shots_data) return cli_usage_error(&cli_eval, "--shots needs --shots-from, the file of the examples");
  o.rows.loss_all = cli_loss == 1;
  o.progress = progress;
  o.log = cli_log;
  const char *predictions = o.predictions, *rows_out = o.rows_out, *items_out = o.items_out;
  code = cli_open_model(cli_shared.model, (pfx_dtype)cli_shared.dtype, cli_shared.threads, false, &model, &tokenizer);
  for (int i = no_frozen ? 0 : -1; code == 0 && i < adapters.count; i++) {
    pfx_adapter *adapter = NULL;
    pfx_eval_result result;
    bool write = i >= 0 || adapters.count == 0;
    if (i >= 0) code = cli_open_adapter(adapters.items[i], model, tokenizer, force, &adapter);
    o.predictions = write ? predictions : NULL;
    o.rows_out = write ? rows_out : NULL;
    o.items_out = write ? items_out : NULL;
    o.append = i > 0;
    if (code == 0 && pfx_eval_wait(model, tokenizer, adapter, &o, &result, &err) != PFX_OK) code = cli_fail(&err);
    if (code == 0) print_result(i >= 0 ? adapters.items[i] : NULL, &result);
    pfx_adapter_close(adapter);
  }
  pfx_tokenizer_close(tokenizer);
  pfx_model_close(model);
  return code;
}

const cli_command cli_eval = {
    .name = "eval",
    .summary = "loss and text scores of the frozen model and of adapters",
    .usage = "--model MODEL --data FILE [--adapter FOLDER]... [--generate] [OPTIONS]",
    .text = "Loss is the sum over labelled tokens divided by their number; perplexity its\n"
            "exponential. The frozen model comes first. Scores are sacrebleu's BLEU (13a, exp) and\n"
            "chrF2, rouge-score's ROUGE-L F1 without stemming, and exact match after trimming.",
    .examples = "  pfx eval --model SmolLM2.gguf --data test.jsonl --adapter run\n"
                "  pfx eval --model SmolLM2.gguf --data test.jsonl --adapter a --adapter b --generate --json\n",
    .run = run,
    .options = options,
};
