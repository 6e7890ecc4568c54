/* SPDX-License-Identifier: MIT
 * pfx inspect: what a path holds; with --model, what an adapter does inside the model. */
#include <stdlib.h>
#include <string.h>

#include "cli/inspect.h"

static pfx_inspect_options o;
static bool verify, force;
static int tokens;
static const char *const token_choices[] = {"labelled", "all", NULL};

static const cli_option options[] = {
    {CLI_SECTION, "What", NULL, NULL, NULL, NULL, NULL},
    {CLI_FLAG, "verify", NULL, "Also search every weight of a model for values that are not finite.", NULL, &verify, NULL},
    {CLI_SECTION, "An adapter at work", NULL, NULL, NULL, NULL, NULL},
    {CLI_TEXT, "model", "PATH", "Measure what the adapter does in this model: attention on the prefix by layer and head, dead virtual tokens, lengths, nearest words; what other parts change in the weights.", NULL, &cli_shared.model, NULL},
    {CLI_TEXT, "data", "FILE", "Rows to measure virtual tokens on.", "eight sentences of pfx's own", &o.data, NULL},
    {CLI_TEXT, "html", "FILE", "Also write a self-contained page with heat maps.", NULL, &o.html, NULL},
    {CLI_CHOICE, "tokens", "WHICH", "Average over the tokens that a labelled one is predicted from (labelled), or all.", "labelled", &tokens, token_choices},
    {CLI_INT, "sample-tokens", "N", "Measure rows from the first on until they have N tokens; 0: all.", "8192", &o.sample_tokens, NULL},
    {CLI_INT32, "words", "N", "Nearest vocabulary words of each virtual token; 0: none.", "5", &o.words, NULL},
    {CLI_NUMBER, "dead-below", "X", "A virtual token is dead where no query of any head gives it this share of its attention.", "0.01", &o.dead_below, NULL},
    {CLI_FLAG, "force", NULL, "Use an adapter that was trained on other weights.", NULL, &force, NULL},
    CLI_DATA_OPTIONS(o.rows),
    CLI_COMMON_OPTIONS,
    {0},
};

/* Without --model: headers and counts. */
static int look_at_paths(const cli_list *paths) {
  pfx_error err = {0};
  char *text = NULL;
  for (int i = 0; i < paths->count; i++) {
    if (pfx_inspect_wait(paths->items[i], cli_shared.json, verify, &text, &err) != PFX_OK) return cli_fail(&err);
    if (i && !cli_shared.json) printf("\n");
    fputs(text, stdout);
    pfx_free(text);
  }
  return 0;
}

static int look_inside(const char *path) {
  pfx_error err = {0};
  pfx_model *model = NULL;
  pfx_tokenizer *tokenizer = NULL;
  pfx_adapter *adapter = NULL;
  const pfx_inspection *seen = NULL;
  o.rows.loss_all = cli_loss == 1;
  o.all_tokens = tokens == 1;
  o.cancelled = cli_stopped;
  o.log = cli_log;
  int code = cli_open_model(cli_shared.model, (pfx_dtype)cli_shared.dtype, cli_shared.threads, false, &model, &tokenizer);
  if (code == 0) code = cli_open_adapter(path, model, tokenizer, force, &adapter);
  if (code == 0 && pfx_inspect_adapter_wait(model, tokenizer, adapter, &o, &seen, &err) != PFX_OK) code = cli_fail(&err);
  if (code == 0 && cli_shared.json)
    inspect_json(seen, path, cli_shared.model, o.data, stdout);
  else if (code == 0)
    inspect_text(seen, o.data, stdout);
  if (code == 0 && o.html && !cli_shared.quiet) fprintf(stderr, "pfx: page: %s\n", o.html);
  pfx_inspection_free(seen);
  pfx_adapter_close(adapter);
  pfx_tokenizer_close(tokenizer);
  pfx_model_close(model);
  return code;
}

static int run(int argc, char **argv) {
  cli_list rest;
  o = pfx_inspect_options_init();
  int code = cli_parse(&cli_inspect, argc, argv, &rest);
  if (code >= 0) return code;
  if (!rest.count) return cli_usage_error(&cli_inspect, "inspect needs a path");
  if (cli_shared.model) {
    if (verify) return cli_usage_error(&cli_inspect, "--verify searches a model's weights: pfx inspect %s --verify", cli_shared.model);
    return rest.count == 1 ? look_inside(rest.items[0]) : cli_usage_error(&cli_inspect, "with --model, inspect takes one adapter");
  }
  static const char *const may[] = {"verify", "json", "quiet", "verbose"};
  for (const cli_option *each = options; each->name; each++) {
    bool allowed = each->kind == CLI_SECTION || !cli_given(&cli_inspect, each->name);
    for (size_t i = 0; !allowed && i < sizeof may / sizeof *may; i++) allowed = strcmp(may[i], each->name) == 0;
    if (!allowed) return cli_usage_error(&cli_inspect, "inspect needs --model for --%s: it measures an adapter in a model", each->name);
  }
  return look_at_paths(&rest);
}

const cli_command cli_inspect = {
    .name = "inspect",
    .summary = "say what a path holds, and what an adapter does inside its model",
    .usage = "PATH... [--verify] [--json] | ADAPTER --model MODEL [--data FILE] [OPTIONS]",
    .text = "What a model, tokenizer, adapter, data file or run holds: reads headers and counts;\n"
            "weights are only read with --verify. With --model: how much attention goes to the\n"
            "adapter's prefix, which of its tokens nothing looks at, and what they resemble;\n"
            "how far LoRA, IA3, norms, biases and layers change the weights.",
    .examples = "  pfx inspect SmolLM2.gguf --verify\n  pfx inspect run --json\n"
                "  pfx inspect run --model SmolLM2.gguf --data valid.jsonl --html look.html\n",
    .run = run,
    .options = options,
};
