/* SPDX-License-Identifier: MIT
 * One pass over a model for tests below the trainer: rows of ids, prefixes as attention takes them, loss, logits,
 * gradients. Everything asserts; host arrays are freed by the *_free functions or free(). */
#ifndef PX_TESTS_PASS_H
#define PX_TESTS_PASS_H

#include "model/model.h"

/* A flat batch. Every token scores but a row's first. */
typedef struct pass_rows {
  int32_t count;
  int32_t *ids;     /* [offsets[count]] */
  int32_t *offsets; /* [count + 1] */
  int32_t *adapter; /* [count]; -1: none */
  int32_t *first;   /* [count] position of the first token: the length of the row's prefix */
} pass_rows;

/* Rows of these lengths with seeded ids below the model's vocabulary, without adapters. */
pass_rows pass_rows_make(const px_model *model, int32_t count, const int32_t *lengths, uint64_t seed);
/* Rows [from, from + count) alone. */
pass_rows pass_rows_slice(const pass_rows *rows, int32_t from, int32_t count);
void pass_rows_free(pass_rows *rows);
static inline int32_t pass_tokens(const pass_rows *r) { return r->offsets[r->count]; }

/* Prefixes of one batch, ids 0, 1, ...; values and gradients [layers][key, value][P][width], float32. */
enum { PASS_ADAPTERS = 8 };
typedef struct pass_prefixes {
  px_backend *be;
  int32_t layers, adapters, lens[PASS_ADAPTERS];
  int64_t width;
  float *values[PASS_ADAPTERS], *grads[PASS_ADAPTERS]; /* backend memory */
  px_kv_segment *segments;
  px_hooks hooks;
} pass_prefixes;

/* Seeded values in [-1, 1) and gradients of zero. */
void pass_prefixes_open(const px_model *model, px_backend *be, int32_t adapters, const int32_t *lens, uint64_t seed,
                        pass_prefixes *out);
void pass_prefixes_close(pass_prefixes *p);
static inline int64_t pass_prefix_floats(const pass_prefixes *p, int a) {
  return p->layers * 2 * p->lens[a] * p->width;
}
/* The gradient of prefix `a` on the host; free(). */
float *pass_prefix_grad(const pass_prefixes *p, int a);
void pass_prefixes_zero_grads(pass_prefixes *p);

/* The summed loss of the rows; row_loss (may be NULL) [count] gets each row's sum. with_grad: backward too, which adds
 * to the gradients that the hooks' segments name. */
double pass_loss(const px_model *model, px_backend *be, const pass_rows *rows, const px_hooks *hooks, bool with_grad,
                 double *row_loss);
/* Logits of every token, [tokens, vocab]; free(). */
float *pass_logits(const px_model *model, px_backend *be, const pass_rows *rows, const px_hooks *hooks);

/* max |a - b| / max |b| */
double pass_distance(const float *a, const float *b, int64_t count);
/* |a - b| / |b|, Euclidean */
double pass_relative_l2(const float *a, const float *b, int64_t count);

#endif
