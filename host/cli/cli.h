/* SPDX-License-Identifier: MIT
 * What the commands share: one table of options per command drives parsing, help, the man page and shell completion. */
#ifndef PFX_CLI_CLI_H
#define PFX_CLI_CLI_H

#include <pfx/pfx.h>
#include <signal.h>
#include <stdio.h>

typedef enum cli_kind {
  CLI_SECTION,  /* a heading in the help */
  CLI_FLAG,     /* bool */
  CLI_TEXT,     /* const char * */
  CLI_LIST,     /* cli_list: may be given several times */
  CLI_INT,      /* int64_t */
  CLI_INT32,    /* int32_t */
  CLI_NUMBER,   /* double */
  CLI_FLOAT,    /* float */
  CLI_SEED,     /* uint64_t */
  CLI_DURATION, /* double, seconds: 90, 30m, 2h, 1d */
  CLI_CHOICE,   /* int: index into choices */
} cli_kind;

typedef struct cli_list {
  const char *items[64];
  int count;
} cli_list;

typedef struct cli_option {
  cli_kind kind;
  const char *name;     /* without the dashes */
  const char *argument; /* "FILE"; NULL for flags */
  const char *help;     /* one or more sentences, without the default */
  const char *fallback; /* the default as shown; NULL: none */
  void *value;
  const char *const *choices; /* CLI_CHOICE, NULL-terminated */
} cli_option;

typedef struct cli_command {
  const char *name, *summary; /* "train", "learn an adapter" */
  const char *usage;          /* behind "pfx NAME " */
  const char *text;           /* what it does, for the help */
  const char *examples;
  int (*run)(int argc, char **argv);
  const cli_option *options;  /* ended by a zero entry */
} cli_command;

extern const cli_command cli_train, cli_generate, cli_eval, cli_compare, cli_inspect, cli_check, cli_tokenize, cli_probe, cli_merge;
/* NULL-terminated, in the order of the help. */
extern const cli_command *const cli_commands[];

/* Parses; arguments that are no options go to *rest (argv order). Returns -1 to go on, else an exit code (help, error). */
int cli_parse(const cli_command *command, int argc, char **argv, cli_list *rest);
/* Was the option on the command line? */
bool cli_given(const cli_command *command, const char *name);
void cli_help(const cli_command *command, FILE *out);
void cli_help_all(FILE *out);
void cli_man(FILE *out);
void cli_markdown(FILE *out);
int cli_completion(const char *shell, FILE *out);

/* "pfx: message" on standard error; the exit code that belongs to the status. */
int cli_fail(const pfx_error *err);
int cli_unknown_command(const char *name);
int cli_usage_error(const cli_command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Options that every command has. */
typedef struct cli_common {
  const char *model, *device;
  int dtype, attention;
  int32_t threads;
  bool json, quiet, verbose;
} cli_common;
extern cli_common cli_shared;
extern const char *const cli_dtypes[], *const cli_attentions[];

/* Message callback: warnings always, infos unless --quiet, the rest with --verbose. */
void cli_log(void *user, int level, const char *message);
/* The model, and its tokenizer where it has one (*tokenizer NULL otherwise; text_needed makes that an error). */
int cli_open_model(const char *path, pfx_dtype dtype, int32_t threads, bool text_needed, pfx_model **model, pfx_tokenizer **tokenizer);
/* Opens adapters and checks each against the model; an exit code or 0. */
int cli_open_adapter(const char *path, const pfx_model *model, const pfx_tokenizer *tokenizer, bool force, pfx_adapter **adapter);

/* SIGINT, SIGTERM and SIGUSR1 only set a flag; a second SIGINT ends the process at once. */
bool cli_stopped(void *user);

/* One line that is rewritten on a terminal, a line every few seconds elsewhere; nothing with --quiet or --json. */
void cli_status(bool last, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The most memory that this program has held so far. */
uint64_t cli_peak_bytes(void);
/* Writes text as a JSON string; bytes that are no UTF-8 become U+FFFD. */
void cli_json_text(FILE *out, const char *text, size_t bytes);
/* A number, or null where it is none. */
void cli_json_number(FILE *out, double value);

#define CLI_DATA_OPTIONS(d)                                                                                                             \
  {CLI_SECTION, "Rows", NULL, NULL, NULL, NULL, NULL},                                                                                  \
      {CLI_INT32, "max-row-tokens", "N", "Longest row in tokens.", "the context less the prefix", &(d).max_row_tokens, NULL},           \
      {CLI_CHOICE, "on-long", "WHAT", "What to do with a longer row: error, cut (the end of its completion) or drop.", "error",         \
       &(d).on_long, cli_on_long},                                                                                                      \
      {CLI_CHOICE, "loss", "WHAT", "What scores: the completion, or all tokens but a row's first.", "completion", &cli_loss, cli_losses}, \
      {CLI_TEXT, "template", "NAME", "Chat template of `messages` rows: chatml, smollm2, llama-2, llama-3, mistral.", "the model's own", \
       &(d).chat_template, NULL},                                                                                                       \
      {CLI_FLAG, "no-bos", NULL, "Leave out the begin token.", NULL, &(d).no_bos, NULL},                                                \
      {CLI_FLAG, "no-end", NULL, "Leave out the end token after a completion.", NULL, &(d).no_end, NULL}

#define CLI_ATTENTION_OPTION(at)                                                                                                        \
  {CLI_CHOICE, "attention", "ENGINE", "What does attention on a GPU: fused (kernels of pfx's own), cudnn (cuDNN for the tokens, merged with these for the prefix), or auto.", \
   "auto: what was measured to be the fastest on the device, else fused", &(at), cli_attentions}

#define CLI_COMMON_OPTIONS                                                                                                              \
  {CLI_SECTION, "Everywhere", NULL, NULL, NULL, NULL, NULL},                                                                            \
      {CLI_TEXT, "device", "NAME", "Where to compute: cpu.", "cpu", &cli_shared.device, NULL},                                          \
      {CLI_CHOICE, "dtype", "TYPE", "Arithmetic type of weights and activations: f32 or bf16.", "bf16 where the processor computes in it", \
       &cli_shared.dtype, cli_dtypes},                                                                                                  \
      {CLI_INT32, "threads", "N", "Processors to use.", "all", &cli_shared.threads, NULL},                                              \
      {CLI_FLAG, "json", NULL, "Results as JSON on standard output.", NULL, &cli_shared.json, NULL},                                    \
      {CLI_FLAG, "quiet", NULL, "No progress, no notes; errors and warnings alone.", NULL, &cli_shared.quiet, NULL},                    \
      {CLI_FLAG, "verbose", NULL, "Also say what is planned and why.", NULL, &cli_shared.verbose, NULL}

extern const char *const cli_on_long[];
extern const char *const cli_losses[];
extern int cli_loss;

#endif
