/* SPDX-License-Identifier: MIT
 * A random model on disk, for tests that need what no golden model has: a long context, a vocabulary of bytes. */
#ifndef PX_TESTS_TINY_MODEL_H
#define PX_TESTS_TINY_MODEL_H

#include <stdint.h>

#include "core/error.h"

typedef struct tiny_model {
  int layers, dim, heads, kv_heads, head_dim, ffn_dim, vocab, context;
} tiny_model;

/* Writes config.json and model.safetensors (float32) of a llama with untied head into the folder, which exists. The
 * weights are seeded: norms around one, matrices such that activations keep their size. */
void tiny_model_write(const char *folder, tiny_model shape, uint64_t seed);

#endif
