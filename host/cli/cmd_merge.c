/* SPDX-License-Identifier: MIT
 * `pfx merge`: an adapter becomes part of its base's weights, a model folder of its own. */
#include <string.h>

#include "cli/cli.h"

static const char *adapter, *out;
static int type;
static bool force;

/* In the order of pfx_weight_type. */
static const char *const types[] = {"base", "f32", "bf16", "f16", NULL};

static const cli_option options[] = {
    {CLI_SECTION, "What", NULL, NULL, NULL, NULL, NULL},
    {CLI_TEXT, "model", "PATH", "The base: a Hugging Face folder or a GGUF file.", NULL, &cli_shared.model, NULL},
    {CLI_TEXT, "adapter", "FOLDER", "The adapter.", "none: the base itself becomes a folder", &adapter, NULL},
    {CLI_TEXT, "out", "FOLDER", "The model folder to write; it must not exist, or be empty.", NULL, &out, NULL},
    {CLI_CHOICE, "out-dtype", "TYPE", "Type of the weights: f32, bf16, f16, or base (each tensor as the base has it, bf16 where it is quantised).",
     "base", &type, types},
    {CLI_FLAG, "force", NULL, "Merge an adapter that was trained on other weights.", NULL, &force, NULL},
    {CLI_SECTION, "Everywhere", NULL, NULL, NULL, NULL, NULL},
    {CLI_FLAG, "json", NULL, "The result as JSON on standard output.", NULL, &cli_shared.json, NULL},
    {CLI_FLAG, "quiet", NULL, "No notes; errors and warnings alone.", NULL, &cli_shared.quiet, NULL},
    {CLI_FLAG, "verbose", NULL, "Also say what is planned and why.", NULL, &cli_shared.verbose, NULL},
    {0},
};

/* A small model is written before anyone reads it. */
static void show(void *user, uint64_t done, uint64_t all) {
  (void)user;
  if (all >= 1000000000 && !cli_shared.json) cli_status(false, "%.1f of %.1f GB written", (double)done / 1e9, (double)all / 1e9);
}

static int run_merge(int argc, char **argv) {
  cli_list rest;
  pfx_error err = {0};
  pfx_merge_result r = {0};
  pfx_merge_options o = pfx_merge_options_init();
  int code = cli_parse(&cli_merge, argc, argv, &rest);
  if (code >= 0) return code;
  if (rest.count) return cli_usage_error(&cli_merge, "merge takes no argument \"%s\"", rest.items[0]);
  if (!cli_shared.model || !out) return cli_usage_error(&cli_merge, "merge needs --model and --out");
  o.type = (pfx_weight_type)type;
  o.force = force;
  o.log = cli_log;
  o.progress = show;
  o.cancelled = cli_stopped;
  if (pfx_merge_wait(cli_shared.model, adapter, out, &o, &r, &err) != PFX_OK) return cli_fail(&err);
  cli_status(true, "%s", "");
  if (cli_shared.json) {
    printf("{\"out\": ");
    cli_json_text(stdout, out, strlen(out));
    printf(", \"tensors\": %lld, \"changed\": %lld, \"files\": %lld, \"bytes\": %llu, \"dtype\": \"%s\"}\n", (long long)r.tensors, (long long)r.changed,
           (long long)r.files, (unsigned long long)r.bytes, types[r.type]);
  } else {
    bool small = r.bytes < 1000000;
    printf("%s holds %lld tensors, %lld of them changed, %.1f %s in %s\n", out, (long long)r.tensors, (long long)r.changed,
           (double)r.bytes / (small ? 1e3 : 1e6), small ? "kB" : "MB", types[r.type]);
  }
  return 0;
}

const cli_command cli_merge = {
    .name = "merge",
    .summary = "put an adapter into its base's weights and write a model folder",
    .usage = "--model MODEL [--adapter FOLDER] --out FOLDER [OPTIONS]",
    .text = "Writes a Hugging Face folder that transformers and pfx open. What a weight can hold is\n"
            "merged: lora, ia3, norm, bias, top, full, and hybrids of them. A prefix or prompt is no\n"
            "weight: use it with --adapter. Of a GGUF base the tokenizer's files and config.json are\n"
            "made from its metadata.",
    .examples = "  pfx merge --model Qwen2.5-0.5B --adapter run --out merged\n"
                "  pfx merge --model SmolLM2.gguf --out folder --out-dtype f32\n",
    .run = run_merge,
    .options = options,
};
