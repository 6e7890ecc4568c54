/* SPDX-License-Identifier: MIT
 * What virtual tokens (a prefix's, a prompt's) do inside the model: how much attention goes to them, one by one, and how
 * long their keys and values are beside real ones. A measurement over rows; nothing is trained. */
#ifndef PX_TRAIN_LOOK_INSIDE_H
#define PX_TRAIN_LOOK_INSIDE_H

#include "text/rows.h"
#include "tune/tune.h"

typedef struct px_look_options {
  bool all_tokens;     /* average over every token's query; else over those whose prediction scores */
  int64_t most_tokens; /* rows are read from the first on until they have so many tokens; 0: all */
  bool (*cancelled)(void *user);
  void *user;
} px_look_options;

/* Lengths are of one head's vector, averaged over heads and tokens. */
typedef struct px_look_norms {
  double prefix_key, real_key, prefix_value, real_value;
} px_look_norms;

/* With p = exp(s - lse) the attention of one query and head (kernels/attention.h):
 *   mass[l, h]       mean over queries of the sum of p over the virtual tokens
 *   slot_mass[l, t]  mean over queries and heads of p of virtual token t
 *   slot_peak[l, t]  the largest p of virtual token t in any query and head
 *   even[l]          the mass where all visible keys had the same share */
typedef struct px_look {
  int32_t layers, heads, tokens; /* tokens: virtual ones */
  int64_t rows, real_tokens, queries;
  double *mass, *slot_mass, *slot_peak, *even;
  px_look_norms *norms; /* [layers] */
  int32_t *first;       /* [layers] virtual tokens before this one are not in the layer (a prefix on chosen layers) */
} px_look;

/* `tune` is an adapter opened for use, with virtual tokens (px_tune_open_adapter). Arrays in *arena. A file of which no token
 * scores is PX_BAD_FILE. */
px_status px_look_inside(const px_model *model, px_backend *be, const px_rows *rows, const px_tune *tune, const px_look_options *options,
                         px_arena *arena, px_look *out, px_error *err);

#endif
