/* SPDX-License-Identifier: MIT
 * What the tests of training share: a folder with data in it, options of a short run, and what a run leaves behind. */
#ifndef PX_TESTS_RUN_FOLDER_H
#define PX_TESTS_RUN_FOLDER_H

#include "core/file.h"
#include "train/trainer.h"

typedef struct run_place {
  char root[64], data[96], valid[96];
  px_model *model;
} run_place;

/* A temporary folder (in memory where it can) with 37 rows to train on and 9 to validate on, and a golden model. Tiny
 * operations are fastest on one thread. */
void run_place_open(run_place *place, const char *golden_model, int threads);
void run_place_close(run_place *place);
/* "<root>/<name>"; the last eight are kept. */
const char *run_path(const run_place *place, const char *name);

/* Rows of ids of 3 to 11 tokens that repeat a pattern, so that there is something to learn; all tokens below 103, all
 * but the first score. */
void run_write_rows(const char *path, int rows, uint32_t salt);
/* 24 steps of 4 rows with prefix:5; validation every 6, a state every 5. */
px_train_options run_options(const run_place *place, const char *name);

/* Removes a folder and what is in it. */
void run_remove(const char *path);
/* The bytes of <dir>/<name>, appended; those of metrics.jsonl without its timings. */
void run_read(const char *dir, const char *name, px_buf *out);
/* The same bytes of adapter, checkpoint and metrics. */
void run_expect_same(const char *a, const char *b);

enum { RUN_LINES = 400 };
typedef struct run_line {
  int64_t step, tokens;
  double loss, lr, grad_norm, valid_loss; /* NaN: null, or not there */
} run_line;
/* metrics.jsonl, every line read as strict JSON; returns the number of lines, whose steps must count up from 1. */
int run_metrics(const char *dir, run_line out[RUN_LINES]);

/* Messages of a run, one a line, as callbacks. */
typedef struct run_log {
  px_buf text;
  px_train_callbacks calls;
} run_log;
void run_log_init(run_log *log);

#endif
