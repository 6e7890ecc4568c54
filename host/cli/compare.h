/* SPDX-License-Identifier: MIT
 * Inside `pfx compare`. The command plans, starts `pfx train` and `pfx eval` as programs of their own (so that memory is that
 * of one method, and one that is killed ends nothing but itself), reads their files, and writes what follows from them.
 *
 *   cmd_compare.c       options, and what happens in which order
 *   compare_files.c     memory, files, folders
 *   compare_methods.c   values of --tune: sizes, learning rates, names
 *   compare_child.c     one program, from start to end
 *   compare_job.c       a piece of work whose result is kept, so that it is done once
 *   compare_state.c     compare.json: settings and plan; what an interrupted comparison goes on with
 *   compare_plan.c      a budget -> a number of steps
 *   compare_run.c       training: the search for a learning rate, the seeds
 *   compare_measure.c   files of a run -> numbers
 *   compare_cost.c      seconds a generated token
 *   compare_stats.c     resampling
 *   compare_overlap.c   rows that stand in two files
 *   compare_verdict.c   numbers -> sentences
 *   compare_output.c    results.json, results.csv, the table
 *   compare_report.c    report.html, with compare_page.c (text, style) and compare_figures.c (pictures)
 *   compare_versions.c  --adapter: what changed between versions */
#ifndef PFX_CLI_COMPARE_H
#define PFX_CLI_COMPARE_H

#include <jansson.h>

#include "cli/cli.h"
#include "cli/compare_stats.h"

enum { COMPARE_MOST_METHODS = 64, COMPARE_MOST_SEEDS = 32, COMPARE_RATES = 3, COMPARE_SHOWN_TEXTS = 12 };

/* ---- settings ---- */

typedef struct compare_settings {
  const char *data, *valid, *test, *retain, *out, *budget;
  cli_list tunes, adapters;
  int lr;                /* 0: auto, 1: usual */
  int32_t seeds, shots, max_tokens, batch_rows, accumulate;
  uint64_t seed;
  int metric;            /* compare_metric */
  int64_t warmup;        /* these as `pfx train` has them; passed on where they were given */
  int schedule;
  double weight_decay, clip;
  bool no_generate, fail_if_worse, force;
  pfx_data_options rows;
} compare_settings;

/* ---- what is known of one training ---- */

typedef struct compare_point {
  int64_t step;
  double seconds;          /* of training alone, validations left out */
  double loss, valid_loss; /* valid_loss NaN: not measured at this step */
} compare_point;

typedef struct compare_text {
  const char *prompt, *prediction;
  const char *references; /* the first; how many there are: reference_count */
  size_t reference_count;
} compare_text;

/* An evaluation: losses and texts over the rows of one file. */
typedef struct compare_measured {
  bool there;
  compare_units units;     /* what is resampled */
  double values[COMPARE_METRICS]; /* as pfx eval gives them; NaN: not measured */
  compare_text *texts;     /* [text_count] */
  size_t text_count, rows;
  double seconds, shots;
  uint64_t peak_bytes;
} compare_measured;

typedef struct compare_run {
  const char *name, *tune; /* "prefix-20_x1_s0"; with its learning rates */
  char *folder;
  int rate;                /* index of compare_rates */
  uint64_t seed;
  bool started, finished, chosen;
  const char *failure;     /* NULL: none */
  int64_t trainable, disk_bytes, steps;
  double first_valid, best_valid, seconds, tokens_per_s; /* seconds: of training alone */
  double to_best, to_zero_shot; /* NaN: never, or not measured */
  uint64_t peak_bytes;
  compare_point *curve;
  size_t curve_count;
  compare_measured test, retain;
} compare_run;

typedef enum compare_kind { COMPARE_ZERO_SHOT, COMPARE_IN_CONTEXT, COMPARE_TUNED, COMPARE_VERSION } compare_kind;

typedef struct compare_method {
  compare_kind kind;
  const char *label, *slug; /* "prefix:20", "prefix-20" */
  bool searched;            /* its learning rate is */
  double lr;                /* the usual one of its first part */
  int32_t virtual_tokens;
  compare_run *runs;        /* [run_count], search first */
  int run_count;
  int best_rate;            /* index of compare_rates; -1: not known yet */
  double step_seconds, start_seconds; /* measured for the plan; 0: not */
  const char *failure;      /* why there is no result; NULL: there is one */
  /* Over its chosen runs: */
  int seeds;
  double values[COMPARE_METRICS], low[COMPARE_METRICS], high[COMPARE_METRICS];
  double damage, damage_low, damage_high; /* NaN: not measured */
  double retain_loss, valid_loss, to_best, to_zero_shot, train_seconds, tokens_per_s, token_ms, token_ms_added;
  uint64_t peak_bytes;
  int64_t trainable, disk_bytes;
  /* Against the one with the best value of the deciding metric: positive is worse. */
  double behind, behind_low, behind_high;
} compare_method;

typedef struct compare_plan {
  int64_t steps, eval_every;
  double budget_seconds; /* 0: the number of steps was given */
  double spent_seconds, expected_seconds;
  bool made;
} compare_plan;

typedef struct compare {
  compare_settings set;
  compare_method methods[COMPARE_MOST_METHODS]; /* zero-shot, in-context (where there is one), then the others in order */
  int method_count;
  compare_plan plan;
  json_t *settings, *digests; /* as compare.json has them */
  json_t *jobs;               /* results by name */
  bool generate;              /* texts are generated and scored */
  bool versions;              /* --adapter instead of --tune */
  const char *work;           /* folder of everything: --out, or a temporary one */
  int64_t context;
  int32_t row_tokens;         /* the limit that all methods share; 0: each its own */
  size_t seen_test, seen_valid; /* rows of --test and --valid that stand in --data too */
  double zero_valid;          /* loss of the frozen model on --valid; NaN: not measured */
  int lock, code;             /* code: the exit code of what failed, with its message printed */
  double started;
  compare_bootstrap boot;
  int best;                   /* method with the best value; -1: none */
  int pick;                   /* the one to take */
} compare;

extern const double compare_rates[COMPARE_RATES];
extern const char *const compare_metric_names[];  /* "loss", "bleu", ... and NULL: as in JSON and on the command line */
extern const char *const compare_metric_titles[]; /* "loss", "BLEU", ... */
bool compare_more_is_better(int metric);

/* ---- compare_files.c ---- */

/* Memory that lasts until the command ends; without memory the command ends (exit code 5). */
void *compare_alloc(size_t count, size_t bytes);
char *compare_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
double compare_clock(void);
bool compare_exists(const char *path);
/* Each prints what went wrong and returns an exit code, 0 when all is well. */
int compare_make_folder(const char *path);
int compare_write_file(const char *path, const char *data, size_t bytes);
int compare_write_json(const char *path, const json_t *value);
int compare_digest(const char *path, char digest[65]);
/* NULL: it cannot be read (missing, or no JSON). The caller's. */
json_t *compare_read_json(const char *path);
/* Bytes of what a run leaves to use: everything but checkpoint/, run.json, metrics.jsonl and the model card. */
int64_t compare_folder_bytes(const char *folder);
void compare_remove_folder(const char *folder);

/* ---- compare_overlap.c ---- */

/* Lines of `path` that stand in `other` too, byte for byte. */
size_t compare_overlap(const char *path, const char *other);

/* ---- compare_methods.c ---- */

/* Adds a method for every size that `tune` lists; an exit code. */
int compare_add_tune(compare *c, const char *tune);
compare_method *compare_add_method(compare *c, compare_kind kind, const char *label, const char *slug);
/* Its runs: three learning rates with the first seed where it is searched, then the other seeds. */
void compare_add_runs(compare *c, compare_method *m);
/* `tune` with lr= in every part that has none, at compare_rates[rate] of the usual value. */
const char *compare_tune_at(const char *tune, int rate);

/* ---- compare_child.c ---- */

typedef struct compare_args {
  const char *list[96];
  int count;
} compare_args;
void compare_arg(compare_args *a, const char *text);
void compare_arg2(compare_args *a, const char *name, const char *value);

typedef struct compare_ended {
  int code;            /* exit code, or 128 + the signal */
  int signal;          /* that ended it; 0: none */
  char *out;           /* standard output */
  const char *message; /* its last line on standard error, without "pfx: " */
  double seconds;
  bool stopped;        /* the user asked to stop */
} compare_ended;
/* Runs this program with other arguments; standard error goes to the file `log`. `tick` is called now and then. */
int compare_child(const compare_args *args, const char *log, void (*tick)(void *user), void *user, compare_ended *out);

/* ---- compare_job.c ---- */

/* The result of the piece of work `name`, from DIR/jobs/NAME.json, or by doing it and keeping it: an object with "seconds" and
 * either "result" (what the program printed) or "failure" (a text). NULL: the comparison cannot go on, c->code says why. */
const json_t *compare_job(compare *c, const char *name, const compare_args *args, const char *progress_folder, const char *doing);
/* How to train, as far as it was said; and the same into an object. */
void compare_train_args(const compare *c, compare_args *a);
void compare_train_settings(const compare *c, json_t *o);
/* Arguments that train and eval share; model NULL: --model. */
void compare_common_args(const compare *c, compare_args *a, const char *model);

/* ---- compare_state.c ---- */

/* Opens or makes the folder, and refuses one of another comparison. */
int compare_state_open(compare *c);
int compare_state_save(compare *c);
void compare_state_close(compare *c);

/* ---- cmd_compare.c ---- */

void compare_share_row_limit(compare *c);

/* ---- the rest, in the order in which it happens ---- */

int compare_baselines(compare *c); /* zero-shot and in-context */
int compare_check_budget(const char *text);
int compare_make_plan(compare *c);
int compare_train_all(compare *c);
/* Evaluates the adapter (or model) in `folder` (NULL: the frozen model) on `data` into *out. texts: also generates. */
int compare_evaluate(compare *c, const char *name, const char *folder, const char *data, bool texts, int32_t shots, compare_measured *out);
void compare_read_run(compare *c, compare_run *r, const json_t *trained);
int compare_costs(compare *c);
void compare_summarize(compare *c);
int compare_verdict(const compare *c, const char **lines, int most); /* sentences; the first is the answer */
int compare_write_results(compare *c);
int compare_write_report(compare *c);
void compare_print(const compare *c);

/* ---- compare_versions.c ---- */

typedef struct compare_change {
  size_t units, better, worse, equal; /* rows (those with one prompt are one), by the deciding metric */
  size_t texts, changed;
  double shift, low, high;            /* new minus old, positive is worse */
  bool is_worse, is_better;           /* beyond the uncertainty */
} compare_change;
int compare_run_versions(compare *c);
compare_change compare_versions_change(const compare *c, int before, int after);
/* What differs in settings, data and base: [{"what", "before", "after"}]. The caller's. */
json_t *compare_versions_differences(const compare *c, int before, int after);

/* ---- compare_page.c ---- */

void compare_html(FILE *out, const char *text); /* escaped, also for attributes */
const char *compare_short(const char *label, int most); /* bytes; at least 8 */
void compare_page_begin(FILE *out, const char *title);
void compare_page_end(FILE *out);
/* "1.2 million", "12.3 MB", "3 min 20 s": into one of a few buffers that are used in turn. */
const char *compare_show_count(int64_t count);
const char *compare_show_bytes(double bytes);
const char *compare_show_seconds(double seconds);
const char *compare_show_value(int metric, double value);

/* ---- compare_figures.c ---- */

void compare_figure_curves(FILE *out, const compare *c);
void compare_figure_size(FILE *out, const compare *c);
void compare_figure_damage(FILE *out, const compare *c);
void compare_figure_bars(FILE *out, const compare *c);
void compare_figure_intervals(FILE *out, const compare *c);

#endif
