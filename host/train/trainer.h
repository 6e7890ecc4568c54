/* SPDX-License-Identifier: MIT
 * Training: steps, schedule, validation, checkpoints, exact resume. */
#ifndef PX_TRAIN_TRAINER_H
#define PX_TRAIN_TRAINER_H

#include "text/rows.h"
#include "tune/tune.h"

typedef enum px_schedule { PX_SCHEDULE_LINEAR = 0, PX_SCHEDULE_COSINE, PX_SCHEDULE_CONSTANT } px_schedule;

/* Strings are borrowed for the time of the call unless said otherwise. Zero means the default. */
typedef struct px_train_options {
  const char *model_path, *data, *valid, *out; /* valid may be NULL */
  const char *tune, *init;                     /* as --tune and --init; NULL: "prefix:20", by trial the best init */
  int32_t reparam;
  int64_t steps;             /* 0: from epochs */
  double epochs;             /* 0 and steps 0: 1 */
  int64_t stop_after;        /* 0: never; stop (and save) when this step is done, inside the schedule */
  double max_seconds;        /* 0: no limit; save and stop */
  double lr;                 /* 0: the part's usual value */
  int64_t warmup;            /* steps; -1: a twentieth of the run */
  px_schedule schedule;
  int32_t batch_rows;        /* 0 and batch_tokens 0: 16 */
  int64_t batch_tokens;
  int32_t accumulate;        /* 0: 1 */
  double beta1, beta2, eps, weight_decay, clip; /* 0: 0.9 0.999 1e-8 0 1.0; clip < 0: no clipping */
  int64_t eval_every, save_every; /* steps; 0: five evaluations a run, save with each; -1: never */
  int32_t patience;          /* evaluations without a better loss; 0: no early stop */
  double prefix_dropout;
  px_row_options rows;       /* max_row_tokens, on_long, loss_all, no_bos, no_end, chat */
  bool no_fingerprint, force;
  bool no_graph;             /* operations one by one where a device could replay them; of this process, not of the run */
  uint64_t seed;
  px_attention attention;    /* AUTO: the model's */
  bool sgd;                  /* plain descent in place of AdamW */
  int out_dtype;             /* of the model that a run of all weights leaves: 1 + a px_dtype; 0: the base's */
  const char *tensorboard;   /* folder for event files; NULL: none */
} px_train_options;

typedef struct px_progress {
  int64_t step, steps;       /* done, of */
  double loss, lr, grad_norm, tokens_per_s, eta_seconds, seconds;
  double valid_loss;         /* NaN where this step has none */
  double best_valid_loss;    /* NaN before the first */
  int64_t tokens;
  uint64_t peak_bytes;
} px_progress;

typedef struct px_train_callbacks {
  void (*progress)(void *user, const px_progress *p); /* after every step and every validation */
  bool (*cancelled)(void *user);                      /* asked after every step; true: save and return PX_CANCELLED */
  void *user;
  px_log log;
} px_train_callbacks;

typedef struct px_train_result {
  int64_t step, steps;
  double first_valid_loss, best_valid_loss, last_valid_loss, last_loss; /* NaN: not measured. first: before any update */
  int64_t best_step;
  double seconds, tokens_per_s;
  uint64_t peak_bytes;
  bool finished;      /* false: stopped before the schedule's end; resume goes on */
  bool early_stopped;
  int64_t trainable;  /* numbers that are trained */
} px_train_result;

/* A new run into options->out. Refuses a folder that exists and is not empty (PX_INVALID) unless force.
 * PX_CANCELLED: state is saved. PX_NOT_FINITE: step named, the last good state is safe. */
px_status px_train_run(const px_model *model, const px_tokenizer *tok, const px_train_options *options, const px_train_callbacks *calls,
                       px_train_result *result, px_error *err);

/* What a resumed run may change; zero keeps run.json's value. */
typedef struct px_resume_changes {
  int64_t steps, eval_every, save_every, stop_after;
  double epochs, max_seconds;
  int32_t patience;
  bool no_graph;
  const char *tensorboard;
} px_resume_changes;

/* Reads DIR/run.json (or dir itself, where it is such a file) into *options (strings in *arena), so that the caller can open the model it names. */
/* resolved: options that nobody gave have the values that the run found for them; else they are as not given. */
px_status px_train_read_run(const char *dir, bool resolved, px_arena *arena, px_train_options *options, const char **device, int *dtype, int *threads,
                            px_error *err);
/* Goes on exactly; data that changed (by digest) is refused. */
px_status px_train_resume(const px_model *model, const px_tokenizer *tok, const char *dir, const px_resume_changes *changes,
                          const px_train_callbacks *calls, px_train_result *result, px_error *err);

#endif
