/* SPDX-License-Identifier: MIT
 * Adapters attached to a model for use, many at once: virtual tokens, low-rank deltas and scales are looked up by the adapter id
 * of a sequence, so any mixture runs in one batch. Trained weights (norms, biases, layers) cannot be: rows of such an adapter
 * run in batches of their own, and px_used_set says which go together. One thread at a time. */
#ifndef PX_TUNE_USED_H
#define PX_TUNE_USED_H

#include "tune/tune.h"

typedef struct px_used px_used;

px_status px_used_open(const px_model *model, px_backend *be, px_used **out, px_error *err);
void px_used_close(px_used *u); /* NULL is fine */
/* Its number, from 0 on. What it was is still there where this fails. The adapter is not needed afterwards. */
px_status px_used_add(px_used *u, const px_adapter *adapter, int32_t *id, px_error *err);
int32_t px_used_count(const px_used *u);
/* Virtual tokens of adapter id; of -1 (the frozen model): 0. */
int32_t px_used_tokens(const px_used *u, int32_t id);
/* Rows whose adapters are of one set may share a batch. */
int32_t px_used_set(const px_used *u, int32_t id);
/* What a batch of that set reads, until the next call; NULL: the frozen model alone. */
const px_hooks *px_used_hooks(px_used *u, int32_t set);

#endif
