/* SPDX-License-Identifier: MIT
 * The small commands: check, tokenize, probe. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static bool force, decode;
static const char *adapter_path;
static pfx_probe_options probe;

static const cli_option check_options[] = {
    {CLI_SECTION, "What", NULL, NULL, NULL, NULL, NULL},
    {CLI_TEXT, "model", "PATH", "The model.", NULL, &cli_shared.model, NULL},
    {CLI_TEXT, "adapter", "FOLDER", "The adapter.", NULL, &adapter_path, NULL},
    {CLI_FLAG, "force", NULL, "Shapes alone decide.", NULL, &force, NULL},
    CLI_COMMON_OPTIONS,
    {0},
};

static int run_check(int argc, char **argv) {
  static const char *const fits[] = {"verified", "unverified", "forced"};
  static const char *const words[] = {"fits: it was trained on exactly these weights",
                                      "fits in shape; it carries no fingerprint, so which base it was trained on is unverified",
                                      "fits in shape; it was trained on other weights (--force)"};
  cli_list rest;
  pfx_error err = {0};
  pfx_model *model = NULL;
  pfx_tokenizer *tokenizer = NULL;
  pfx_adapter *adapter = NULL;
  pfx_fit fit = PFX_FIT_VERIFIED;
  char *warning = NULL;
  int code = cli_parse(&cli_check, argc, argv, &rest);
  if (code >= 0) return code;
  if (rest.count) return cli_usage_error(&cli_check, "check takes no argument \"%s\"", rest.items[0]);
  if (!cli_shared.model || !adapter_path) return cli_usage_error(&cli_check, "check needs --model and --adapter");
  if (pfx_adapter_open(adapter_path, &adapter, &err) != PFX_OK) return cli_fail(&err);
  code = cli_open_model(cli_shared.model, (pfx_dtype)cli_shared.dtype, cli_shared.threads, false, &model, &tokenizer);
  if (code == 0) {
    pfx_status status = pfx_adapter_check(adapter, model, tokenizer, force, &fit, &warning, &err);
    if (warning) fprintf(stderr, "pfx: warning: %s: %s\n", adapter_path, warning);
    if (cli_shared.json) {
      printf("{\"fits\": %s, \"fingerprint\": \"%s\", \"message\": ", status == PFX_OK ? "true" : "false", status == PFX_OK ? fits[fit] : "mismatch");
      cli_json_text(stdout, status == PFX_OK ? words[fit] : err.message, strlen(status == PFX_OK ? words[fit] : err.message));
      printf("}\n");
    } else if (status == PFX_OK) {
      printf("%s %s\n", adapter_path, words[fit]);
    }
    if (status != PFX_OK) code = cli_fail(&err);
  }
  pfx_free(warning);
  pfx_adapter_close(adapter);
  pfx_tokenizer_close(tokenizer);
  pfx_model_close(model);
  return code;
}

const cli_command cli_check = {
    .name = "check",
    .summary = "does this adapter fit this model?",
    .usage = "--model MODEL --adapter FOLDER [OPTIONS]",
    .text = "Compares shapes and the fingerprint of the base weights. Exit code 4, with what differs\n"
            "and by how much, when the adapter belongs to another model.",
    .examples = "  pfx check --model SmolLM2.gguf --adapter run\n",
    .run = run_check,
    .options = check_options,
};

static const cli_option tokenize_options[] = {
    {CLI_SECTION, "What", NULL, NULL, NULL, NULL, NULL},
    {CLI_TEXT, "model", "PATH", "A model, a folder with a tokenizer, a tokenizer.json or a GGUF file.", NULL, &cli_shared.model, NULL},
    {CLI_FLAG, "decode", NULL, "Lines of ids to text.", NULL, &decode, NULL},
    {CLI_FLAG, "json", NULL, "Each line of text is one JSON string.", NULL, &cli_shared.json, NULL},
    {0},
};

static int bad_line(long number, const char *what) {
  fprintf(stderr, "pfx: standard input: line %ld: %s\n", number, what);
  return 3;
}

/* One line of ids, separated by anything that is no digit. */
static int decode_line(const pfx_tokenizer *tokenizer, const char *line, long number, pfx_error *err) {
  size_t count = 0, bytes = 0;
  int32_t *ids = malloc((strlen(line) / 2 + 1) * sizeof *ids);
  char *text = NULL, *end;
  if (!ids) return bad_line(number, "no memory for it");
  while (*(line += strcspn(line, "0123456789"))) {
    long long id = strtoll(line, &end, 10);
    ids[count++] = id > INT32_MAX ? INT32_MAX : (int32_t)id; /* no vocabulary is that large: decode refuses it */
    line = end;
  }
  pfx_status status = pfx_tokenizer_decode(tokenizer, ids, count, false, &text, &bytes, err);
  free(ids);
  if (status != PFX_OK) return bad_line(number, err->message);
  if (cli_shared.json)
    cli_json_text(stdout, text, bytes);
  else
    fwrite(text, 1, bytes, stdout);
  putchar('\n');
  pfx_free(text);
  return 0;
}

/* Four hexadecimal digits, or -1. */
static int hex4(const char *at) {
  static const char digits[] = "0123456789abcdef";
  int value = 0;
  for (int i = 0; i < 4; i++) {
    const char *digit = at[i] ? strchr(digits, tolower((unsigned char)at[i])) : NULL;
    if (!digit) return -1;
    value = value * 16 + (int)(digit - digits);
  }
  return value;
}

static size_t put_utf8(char *to, int c) {
  if (c < 0x80) return to[0] = (char)c, 1;
  if (c < 0x800) return to[0] = (char)(0xc0 | c >> 6), to[1] = (char)(0x80 | (c & 63)), 2;
  if (c < 0x10000) return to[0] = (char)(0xe0 | c >> 12), to[1] = (char)(0x80 | (c >> 6 & 63)), to[2] = (char)(0x80 | (c & 63)), 3;
  return to[0] = (char)(0xf0 | c >> 18), to[1] = (char)(0x80 | (c >> 12 & 63)), to[2] = (char)(0x80 | (c >> 6 & 63)), to[3] = (char)(0x80 | (c & 63)), 4;
}

/* The character of an escape uXXXX, two of them where they are a pair; half a pair is U+FFFD. Moves *from behind it. */
static int unicode_escape(const char **from) {
  int c = hex4(*from + 1), low;
  if (c < 0) return -1;
  *from += 5;
  if (c >= 0xd800 && c < 0xdc00 && (*from)[0] == '\\' && (*from)[1] == 'u' && (low = hex4(*from + 2)) >= 0xdc00 && low < 0xe000) {
    *from += 6;
    return 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
  }
  return c >= 0xd800 && c < 0xe000 ? 0xfffd : c;
}

/* A JSON string in place; its length, or -1 when the line is none. */
static long unquote(char *line) {
  static const char codes[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
  const char *from = line + strspn(line, " \t");
  char *to = line;
  if (*from++ != '"') return -1;
  while (*from != '"') {
    if ((unsigned char)*from < 0x20) return -1;
    if (*from != '\\') {
      *to++ = *from++;
    } else if (*++from == 'u') {
      int c = unicode_escape(&from);
      if (c < 0) return -1;
      to += put_utf8(to, c);
    } else {
      const char *known = *from ? strchr(codes, *from) : NULL;
      if (!known) return -1;
      *to++ = values[known - codes];
      from++;
    }
  }
  from++;
  return from[strspn(from, " \t\r")] ? -1 : to - line;
}

static int encode_line(const pfx_tokenizer *tokenizer, char *line, size_t bytes, long number, pfx_error *err) {
  int32_t *ids = NULL;
  size_t count = 0;
  if (cli_shared.json) {
    long length = unquote(line);
    if (length < 0) return bad_line(number, "no JSON string");
    bytes = (size_t)length;
  }
  if (pfx_tokenizer_encode(tokenizer, line, bytes, &ids, &count, err) != PFX_OK) return cli_fail(err);
  for (size_t i = 0; i < count; i++) printf("%s%d", i ? " " : "", ids[i]);
  putchar('\n');
  pfx_free(ids);
  return 0;
}

static int run_tokenize(int argc, char **argv) {
  cli_list rest;
  pfx_error err = {0};
  pfx_tokenizer *tokenizer = NULL;
  char *line = NULL;
  size_t cap = 0;
  ssize_t got;
  long number = 0;
  int code = cli_parse(&cli_tokenize, argc, argv, &rest);
  if (code >= 0) return code;
  if (rest.count) return cli_usage_error(&cli_tokenize, "tokenize takes no argument \"%s\"", rest.items[0]);
  if (!cli_shared.model) return cli_usage_error(&cli_tokenize, "tokenize needs --model");
  if (pfx_tokenizer_open(cli_shared.model, &tokenizer, &err) != PFX_OK) return cli_fail(&err);
  code = 0;
  while (code == 0 && (got = getline(&line, &cap, stdin)) >= 0) {
    number++;
    if (got && line[got - 1] == '\n') line[--got] = 0;
    code = decode ? decode_line(tokenizer, line, number, &err) : encode_line(tokenizer, line, (size_t)got, number, &err);
  }
  free(line);
  pfx_tokenizer_close(tokenizer);
  return code;
}

const cli_command cli_tokenize = {
    .name = "tokenize",
    .summary = "text to ids and back",
    .usage = "--model PATH [--decode] [--json] < LINES",
    .text = "Reads lines from standard input and prints the ids of each, separated by spaces; no\n"
            "begin or end token is added. --decode does the reverse.",
    .examples = "  echo 'The capital of France is' | pfx tokenize --model SmolLM2.gguf\n"
                "  echo '504 3575 282' | pfx tokenize --model SmolLM2.gguf --decode\n",
    .run = run_tokenize,
    .options = tokenize_options,
};

static const cli_option probe_options[] = {
    {CLI_SECTION, "What", NULL, NULL, NULL, NULL, NULL},
    {CLI_TEXT, "model", "PATH", "The model.", NULL, &cli_shared.model, NULL},
    {CLI_TEXT, "data", "FILE", "Rows.", NULL, &probe.data, NULL},
    {CLI_TEXT, "out", "FILE", "The safetensors file to write.", NULL, &probe.out, NULL},
    {CLI_TEXT, "adapter", "FOLDER", "Probe with this adapter.", NULL, &adapter_path, NULL},
    {CLI_TEXT, "tune", "PARTS", "Probe with freshly initialised parts.", NULL, &probe.tune, NULL},
    {CLI_TEXT, "init", "HOW", "Where those parts start.", "data", &probe.init, NULL},
    {CLI_INT32, "reparam", "H", "Their hidden width.", "none", &probe.reparam, NULL},
    {CLI_SEED, "seed", "N", "Of their random numbers.", "0", &probe.seed, NULL},
    {CLI_FLAG, "force", NULL, "Use an adapter that was trained on other weights.", NULL, &force, NULL},
    CLI_ATTENTION_OPTION(cli_shared.attention),
    CLI_DATA_OPTIONS(probe.rows),
    CLI_COMMON_OPTIONS,
    {0},
};

static int run_probe(int argc, char **argv) {
  cli_list rest;
  pfx_error err = {0};
  pfx_model *model = NULL;
  pfx_tokenizer *tokenizer = NULL;
  pfx_adapter *adapter = NULL;
  probe = pfx_probe_options_init();
  cli_shared.dtype = PFX_DTYPE_F32;
  int code = cli_parse(&cli_probe, argc, argv, &rest);
  if (code >= 0) return code;
  if (rest.count) return cli_usage_error(&cli_probe, "probe takes no argument \"%s\"", rest.items[0]);
  if (!cli_shared.model || !probe.data || !probe.out) return cli_usage_error(&cli_probe, "probe needs --model, --data and --out");
  probe.rows.loss_all = cli_loss == 1;
  probe.log = cli_log;
  probe.force = force;
  code = cli_open_model(cli_shared.model, (pfx_dtype)cli_shared.dtype, cli_shared.threads, false, &model, &tokenizer);
  if (code == 0 && adapter_path) code = cli_open_adapter(adapter_path, model, tokenizer, force, &adapter);
  if (code == 0 && pfx_probe_wait(model, tokenizer, adapter, &probe, &err) != PFX_OK) code = cli_fail(&err);
  pfx_adapter_close(adapter);
  pfx_tokenizer_close(tokenizer);
  pfx_model_close(model);
  return code;
}

const cli_command cli_probe = {
    .name = "probe",
    .summary = "logits, loss and gradients as safetensors, to hold pfx against another engine",
    .usage = "--model MODEL --data FILE --out FILE [--adapter FOLDER | --tune PARTS] [OPTIONS]",
    .text = "Writes ids, labels, offsets, logits [tokens, vocabulary], loss [1] and, with an adapter\n"
            "or parts, grad.<tensor> of the mean loss over all labelled tokens. f32 unless told\n"
            "otherwise.",
    .examples = "  pfx probe --model SmolLM2.gguf --data rows.jsonl --adapter run --out probe.safetensors\n",
    .run = run_probe,
    .options = probe_options,
};
