/* SPDX-License-Identifier: MIT */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static pfx_request r;
static const char *adapter_path, *prompt, *prompts_file;
static cli_list stops;
static bool force;
static int32_t max_rows, cache_mb;

static const cli_option options[] = {
    {CLI_SECTION, "What", NULL, NULL, NULL, NULL, NULL},
    {CLI_TEXT, "model", "PATH", "The model: a Hugging Face folder or a GGUF file.", NULL, &cli_shared.model, NULL},
    {CLI_TEXT, "adapter", "FOLDER", "A prefix to use.", "the frozen model alone", &adapter_path, NULL},
    {CLI_TEXT, "prompt", "TEXT", "The text to continue.", "standard input", &prompt, NULL},
    {CLI_TEXT, "prompts", "FILE", "Many prompts, computed as a batch: JSON Lines with `prompt`, else a prompt a line.", NULL, &prompts_file, NULL},
    {CLI_FLAG, "chat", NULL, "The prompt is a user's message: apply the model's chat template.", NULL, &r.chat, NULL},
    {CLI_TEXT, "template", "NAME", "Chat template: chatml, smollm2, llama-2, llama-3, mistral.", "the model's own", &r.chat_template, NULL},
    {CLI_FLAG, "no-bos", NULL, "Leave out the begin token.", NULL, &r.no_bos, NULL},
    {CLI_SECTION, "How", NULL, NULL, NULL, NULL, NULL},
    {CLI_INT32, "max-tokens", "N", "Most tokens to generate.", "256", &r.max_tokens, NULL},
    {CLI_FLOAT, "temperature", "X", "0 takes the most likely token; larger values vary more.", "0", &r.temperature, NULL},
    {CLI_INT32, "top-k", "N", "Draw from the N most likely tokens.", "all", &r.top_k, NULL},
    {CLI_FLOAT, "top-p", "P", "Draw from the smallest set with probability P.", "1", &r.top_p, NULL},
    {CLI_FLOAT, "min-p", "P", "Draw from tokens with at least P times the best one's probability.", "0", &r.min_p, NULL},
    {CLI_FLOAT, "repetition-penalty", "X", "Make tokens that were there before less likely.", "1", &r.repetition_penalty, NULL},
    {CLI_LIST, "stop", "TEXT", "End before this text appears; may be given several times.", NULL, &stops, NULL},
    {CLI_SEED, "seed", "N", "Of the random numbers; they belong to (seed, prompt number, position), so the batch cannot matter.", "0", &r.seed, NULL},
    {CLI_INT32, "batch-rows", "N", "Prompts computed at once.", "16", &max_rows, NULL},
    {CLI_INT32, "cache-mb", "N", "Most memory for the keys and values of what is being generated, in megabytes.", "by need, at most 1024", &cache_mb, NULL},
    {CLI_FLAG, "force", NULL, "Use an adapter that was trained on other weights.", NULL, &force, NULL},
    CLI_ATTENTION_OPTION(cli_shared.attention),
    CLI_COMMON_OPTIONS,
    {0},
};

/* What has been generated for each prompt of a batch. */
typedef struct output {
  char *text;
  size_t len, cap;
  pfx_finish finish;
} output;
static output *outputs;
static bool streaming;
static size_t done, all;

static void take(void *user, uint64_t row, const char *bytes, size_t count, pfx_finish finish) {
  (void)user;
  output *out = &outputs[row];
  if (streaming) {
    fwrite(bytes, 1, count, stdout);
    fflush(stdout);
  } else if (out->len + count + 1 > out->cap) {
    size_t cap = (out->len + count + 1) * 2;
    char *grown = realloc(out->text, cap);
    if (!grown) return;
    out->text = grown;
    out->cap = cap;
  }
  if (!streaming) {
    memcpy(out->text + out->len, bytes, count);
    out->len += count;
    out->text[out->len] = 0;
  }
  out->finish = finish;
  if (finish == PFX_FINISH_NONE) return;
  done++;
  if (all > 1) cli_status(done == all, "%zu of %zu prompts", done, all);
}

static void print_outputs(char **prompts, size_t count) {
  static const char *const names[] = {"", "stop_token", "stop_text", "length", "context"};
  for (size_t i = 0; i < count; i++) {
    if (cli_shared.json) {
      printf("{\"prompt\": ");
      cli_json_text(stdout, prompts[i], strlen(prompts[i]));
      printf(", \"text\": ");
      cli_json_text(stdout, outputs[i].text ? outputs[i].text : "", outputs[i].len);
      printf(", \"finish\": \"%s\"}\n", names[outputs[i].finish]);
    } else if (!streaming) {
      printf("%s%s\n", count > 1 && i ? "---\n" : "", outputs[i].text ? outputs[i].text : "");
    }
  }
  if (streaming) printf("\n");
}

/* All of standard input as one prompt, without its last newline. */
static char *read_input(void) {
  size_t len = 0, cap = 4096, got;
  char *text = malloc(cap);
  while (text && (got = fread(text + len, 1, cap - len - 1, stdin)) > 0) {
    len += got;
    if (cap - len < 2) {
      char *grown = realloc(text, cap *= 2);
      if (!grown) free(text);
      text = grown;
    }
  }
  if (!text) return NULL;
  if (memchr(text, 0, len)) {
    fprintf(stderr, "pfx: the prompt on standard input holds a NUL byte: it is no text\n");
    exit(2);
  }
  if (len && text[len - 1] == '\n') len--;
  text[len] = 0;
  return text;
}

static int generate(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_adapter *adapter, char **prompts, size_t count) {
  pfx_error err = {0};
  pfx_generator *g = NULL;
  pfx_generator_options go = pfx_generator_options_init();
  pfx_generator_stats stats;
  if (max_rows) go.max_rows = max_rows;
  go.cache_bytes = (int64_t)cache_mb << 20;
  if ((size_t)go.max_rows > count) go.max_rows = (int32_t)count;
  go.log = cli_log;
  pfx_status status = pfx_generator_create(model, tokenizer, &go, &g, &err);
  if (status == PFX_OK && adapter) status = pfx_generator_add_adapter(g, adapter, &r.adapter, &err);
  for (size_t i = 0; status == PFX_OK && i < count; i++) {
    r.prompt = prompts[i];
    r.row = i;
    status = pfx_generator_add(g, &r, &err);
    if (status != PFX_OK && count > 1) fprintf(stderr, "pfx: prompt %zu of %zu:\n", i + 1, count);
  }
  if (status == PFX_OK) status = pfx_generator_run_wait(g, cli_stopped, NULL, &err);
  if (status == PFX_OK || status == PFX_CANCELLED) print_outputs(prompts, count);
  if (status == PFX_OK && cli_shared.verbose) {
    pfx_generator_stats_get(g, &stats);
    fprintf(stderr, "pfx: %lld prompt tokens in %.2f s, %lld new tokens, %.1f tokens/s\n", (long long)stats.prompt_tokens, stats.prefill_seconds,
            (long long)stats.new_tokens, stats.decode_seconds > 0 ? (double)(stats.new_tokens - (long long)count) / stats.decode_seconds : 0.0);
  }
  pfx_generator_destroy(g);
  return status == PFX_OK ? 0 : cli_fail(&err);
}

static int run(int argc, char **argv) {
  cli_list rest;
  pfx_error err = {0};
  pfx_model *model = NULL;
  pfx_tokenizer *tokenizer = NULL;
  pfx_adapter *adapter = NULL;
  char **prompts = NULL, *one = NULL;
  size_t count = 1;
  r = pfx_request_init();
  int code = cli_parse(&cli_generate, argc, argv, &rest);
  if (code >= 0) return code;
  if (rest.count) return cli_usage_error(&cli_generate, "generate takes no argument \"%s\": prompts go into --prompt", rest.items[0]);
  if (!cli_shared.model) return cli_usage_error(&cli_generate, "generate needs --model");
  if (max_rows < 0 || cache_mb < 0) return cli_usage_error(&cli_generate, "--batch-rows and --cache-mb must not be negative");
  if (prompt && prompts_file) return cli_usage_error(&cli_generate, "--prompt and --prompts exclude each other");
  r.stop = stops.items;
  r.stop_count = stops.count;
  r.text = take;
  signal(SIGPIPE, SIG_IGN); /* writing fails instead, and says so */
  if (prompts_file && pfx_prompts_read(prompts_file, &prompts, &count, &err) != PFX_OK) return cli_fail(&err);
  code = cli_open_model(cli_shared.model, (pfx_dtype)cli_shared.dtype, cli_shared.threads, true, &model, &tokenizer);
  if (code == 0 && adapter_path) code = cli_open_adapter(adapter_path, model, tokenizer, force, &adapter);
  if (code == 0 && !prompts_file && !prompt) one = read_input();
  if (code == 0) {
    char *single[] = {prompt ? (char *)(size_t)prompt : one ? one : (char *)(size_t)""};
    all = count;
    streaming = !prompts_file && !cli_shared.json;
    outputs = calloc(count, sizeof *outputs);
    code = outputs ? generate(model, tokenizer, adapter, prompts_file ? prompts : single, count) : 5;
    for (size_t i = 0; outputs && i < count; i++) free(outputs[i].text);
    free(outputs);
  }
  free(one);
  pfx_free(prompts);
  pfx_adapter_close(adapter);
  pfx_tokenizer_close(tokenizer);
  pfx_model_close(model);
  return code;
}

const cli_command cli_generate = {
    .name = "generate",
    .summary = "continue a prompt, with or without an adapter",
    .usage = "--model MODEL [--adapter FOLDER] [--prompt TEXT | --prompts FILE] [OPTIONS]",
    .text = "Prints the continuation and nothing else; of one prompt as it appears, of a file when\n"
            "all are done (separated by lines of ---, or as JSON with --json).",
    .examples = "  pfx generate --model SmolLM2.gguf --prompt 'The capital of France is' --max-tokens 8\n"
                "  pfx generate --model SmolLM2.gguf --adapter run --prompts words.txt --json\n"
                "  echo 'Write a haiku.' | pfx generate --model SmolLM2.gguf --chat --temperature 0.7 --top-p 0.9\n",
    .run = run,
    .options = options,
};
