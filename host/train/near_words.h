/* SPDX-License-Identifier: MIT
 * Which vocabulary words a trained vector is most like, by cosine: a way to read prompt rows and a prefix's keys. */
#ifndef PX_TRAIN_NEAR_WORDS_H
#define PX_TRAIN_NEAR_WORDS_H

#include "model/model.h"

typedef struct px_near_word {
  int32_t id; /* -1: none (the vector is zero) */
  float cosine;
} px_near_word;

/* rows [count, dim], host, against the embedding of every word. words [count, top]: the nearest first, equal ones by id.
 * usual [count]: the mean cosine over the whole vocabulary, which says how much a cosine means. */
px_status px_near_embeddings(const px_model *model, px_backend *be, const float *rows, int32_t count, int32_t top,
                             px_near_word *words, double *usual, px_error *err);
/* A prefix's keys of the first layer (all heads of a virtual token as one vector) against the key that each word alone
 * would have there at that position: norm, projection, rotary embedding, of the frozen model. values [count, 2 * layers *
 * width] as PEFT has them; positions count from 0. With learned positions the vocabulary is computed once for every
 * virtual token, else once. */
px_status px_near_first_keys(const px_model *model, px_backend *be, const float *values, int32_t count, int32_t top, px_near_word *words,
                             double *usual, px_error *err);

#endif
