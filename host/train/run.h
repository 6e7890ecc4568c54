/* SPDX-License-Identifier: MIT
 * Inside the train room: one run, and the files it keeps (run.json, metrics.jsonl, checkpoint/, the adapter). */
#ifndef PX_TRAIN_RUN_H
#define PX_TRAIN_RUN_H

#include "format/json.h"
#include "train/batches.h"
#include "train/evaluate.h"
#include "train/step.h"
#include "train/trainer.h"

/* Options whose default follows from others: run.json says which were not given, and a repeated or longer run finds
 * them anew. */
enum {
  PX_DEFAULT_LR = 1,
  PX_DEFAULT_WARMUP = 2,
  PX_DEFAULT_EVAL_EVERY = 4,
  PX_DEFAULT_SAVE_EVERY = 8,
  PX_DEFAULT_ROW_TOKENS = 16,
};

/* All that exact resume needs besides the trained tensors. */
typedef struct px_run_state {
  int64_t step;          /* updates done */
  px_cursor cursor;
  double first_valid_loss, last_valid_loss, best_valid_loss, last_loss; /* NaN: not measured */
  int64_t best_step, evals_without_better;
  int64_t tokens_seen;
  bool early_stopped;
} px_run_state;

/* A step that was asked for and is not finished: the state once it is. */
typedef struct px_ahead {
  int64_t step;
  px_cursor cursor;
  px_batch_extent extent;
  double start;
} px_ahead;

typedef struct px_run {
  const px_model *model;
  const px_tokenizer *tok;
  px_train_options options;   /* every default filled in; strings in the arena */
  px_tune_spec spec;
  px_rows train, valid;
  px_batches batches;
  px_backend *be;
  px_attention engine;        /* of a resumed run, as it began; AUTO: a new one */
  px_tune *tune;
  px_step *stepper;           /* NULL where nothing is left to do */
  px_evaluator *evaluator;    /* NULL without --valid */
  px_ahead ahead[PX_STEPS_IN_FLIGHT]; /* the oldest first */
  int ahead_count;
  double last_finish;         /* px_clock */
  px_run_state state;
  int64_t saved_step;         /* of the newest checkpoint; -1: there is none */
  unsigned defaults;          /* PX_DEFAULT_: options that nobody gave */
  int metrics_fd, lock_fd;    /* -1: none */
  struct px_tensorboard *tensorboard; /* NULL: none is written */
  bool card_kept;             /* a README.md of somebody else was found, and that is said */
  size_t made_from;           /* length of the shortest path that was made for the output folder; 0: none was */
  const px_train_callbacks *calls;
  double seconds, started;    /* of this process */
  int64_t tokens_here;        /* of this process */
  px_arena arena;
} px_run;

/* run_json.c: the settings, digests and versions of a run. */
px_status px_run_write_json(const px_run *run, px_error *err);
json_t *px_run_settings(const px_run *run); /* a new object; NULL where a text of them is no UTF-8 */
px_status px_run_check_json(const px_run *run, px_error *err); /* whether it could be written */
typedef struct px_run_record {
  px_train_options options;  /* options that were not given are not given here either */
  px_train_options resolved; /* as the run had them */
  int dtype, threads;
  int32_t part_sizes[PX_PARTS_MOST]; /* virtual tokens of each part of --tune; 0: it has none */
  px_attention engine;       /* AUTO: a run of a time before there was a choice */
  const char *base, *data_digest, *valid_digest, *device, *products, *version, *tokenizer; /* tokenizer may be NULL */
} px_run_record;
/* dir: the folder of a run, or the file itself under any name. */
px_status px_run_read_json(const char *dir, px_arena *arena, px_run_record *out, px_error *err);

/* output_folder.c. One process at a time trains in a folder: open and lock take it until lock_fd is closed. */
px_status px_run_folder_open(px_run *run, px_error *err); /* refuses one that holds something; removes nothing */
px_status px_run_folder_lock(px_run *run, px_error *err);
px_status px_run_folder_check_base(const px_run *run, px_error *err); /* a run of all weights must not replace its base */
void px_run_folder_undo(const px_run *run); /* removes the folders that open made, while they are empty */
void px_run_folder_clean(const px_run *run, bool all); /* what killed writers left; with `all` an old run's files too */

/* checkpoint.c: DIR/checkpoint and DIR's adapter. */
px_status px_run_save(px_run *run, px_error *err);
px_status px_run_save_adapter(px_run *run, const char *dir, px_error *err);
bool px_run_has_state(const char *dir);
/* *found false: there is no checkpoint yet (killed before the first). */
px_status px_run_load(px_run *run, bool *found, px_error *err);

/* model_card.c: DIR/README.md about the adapter that DIR holds, unless a person wrote the one that is there. */
px_status px_run_write_card(px_run *run, px_error *err);
void px_run_remove_card(const char *dir); /* one of ours */

/* metrics.c: DIR/metrics.jsonl, one line a step. */
typedef struct px_metrics_line {
  int64_t step, tokens;
  double loss, lr, grad_norm, tokens_per_s, seconds, valid_loss; /* valid_loss NaN: not measured */
  uint64_t peak_bytes;
} px_metrics_line;
px_status px_metrics_open(px_run *run, px_error *err); /* drops lines beyond run->state.step */
px_status px_metrics_write(px_run *run, const px_metrics_line *line, px_error *err);

/* tensorboard.c: scalars as an event file that TensorBoard reads, for those who watch runs there. A failure is said once
 * and ends the writing, never the run. */
void px_run_tensorboard_open(px_run *run); /* a new file after those that the folder holds */
void px_run_tensorboard_write(px_run *run, const px_metrics_line *line);
void px_run_tensorboard_close(px_run *run);

double px_run_lr(const px_run *run, int64_t step);
uint64_t px_peak_bytes(void);
double px_clock(void);

#endif
