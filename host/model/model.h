/* SPDX-License-Identifier: MIT
 * A frozen model, opened: its files, config, weights and fingerprint. Immutable after opening; shared between threads. */
#ifndef PX_MODEL_MODEL_H
#define PX_MODEL_MODEL_H

#include "model/stack.h"

enum { PX_FINGERPRINT_SAMPLES = 1024, PX_FINGERPRINT_PER_TENSOR = 64 };

/* Says which base weights an adapter was trained on (docs/formats.md). The digests do not depend on shards, file order,
 * config dialect or GGUF's permutation; they do depend on every weight's value before any cast. */
typedef struct px_fingerprint {
  char arch[65], base[65]; /* SHA-256, lower-case hex */
  float samples[PX_FINGERPRINT_SAMPLES];
} px_fingerprint;

typedef struct px_model {
  px_source source;
  px_weights weights;
  px_backend *be;     /* owns the weights' memory; a trainer or generator opens a backend of its own for its work */
  px_fingerprint fingerprint;
  px_dtype dtype;
  double open_seconds;
} px_model;

typedef struct px_model_options {
  const char *device; /* as px_backend_options */
  int dtype;          /* -1: bf16 where the device computes in it, else f32; or PX_F32, PX_BF16 */
  int threads;
  px_log log;
  px_attention attention;
} px_model_options;

/* `path`: a Hugging Face folder or a GGUF file. */
px_status px_model_open(const char *path, const px_model_options *options, px_model **out, px_error *err);
/* The files, config and fingerprint alone: nothing is loaded and there is no backend, so nothing can be computed with it. */
px_status px_model_open_files(const char *path, px_model **out, px_error *err);
void px_model_close(px_model *model);
static inline const px_config *px_model_config(const px_model *m) { return &m->source.config; }

px_status px_fingerprint_make(px_source *source, px_fingerprint *out, px_error *err);
/* Relative L2 distance of two sample sets: |a - b| / |b|. */
double px_fingerprint_distance(const float *a, const float *b, int count);

#endif
