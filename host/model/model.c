/* SPDX-License-Identifier: MIT */
#include "model/model.h"

#include <stdlib.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Hours, where a tiny model takes seconds. */
static void warn_of_emulation(const px_model *m, const px_log *log) {
  double millions = (double)(m->weights.owned_bytes + m->weights.mapped_bytes) / (double)px_dtype_bytes(m->dtype, 1) / 1e6;
  if (m->be->emulated && millions > 5)
    px_log_message(log, PX_LOG_WARN,
                   "this device is emulated on the CPU, for tests with models below 5M parameters; this one has %.1fM: use "
                   "--device cpu",
                   millions);
}

px_status px_model_open(const char *path, const px_model_options *options, px_model **out, px_error *err) {
  *out = NULL;
  px_model *m = px_calloc(1, sizeof *m);
  if (!m) return px_fail(err, PX_NO_MEMORY, "no memory");
  double start = now();
  px_status status = px_backend_open(&(px_backend_options){.device = options->device, .threads = options->threads, .log = options->log, .attention = options->attention}, &m->be, err);
  if (status == PX_OK) status = px_source_open(path, &m->source, err);
  if (status == PX_OK) {
    m->dtype = options->dtype >= 0 ? (px_dtype)options->dtype : m->be->computes_bf16 ? PX_BF16 : PX_F32;
    status = px_weights_load(&m->source, m->be, m->dtype, &m->weights, err);
  }
  if (status == PX_OK) {
    px_backend_wait(m->be); /* other backends will read the weights */
    status = px_backend_status(m->be, err);
  }
  if (status == PX_OK) status = px_fingerprint_make(&m->source, &m->fingerprint, err);
  if (status != PX_OK) {
    px_model_close(m);
    return status;
  }
  m->open_seconds = now() - start;
  px_log_message(&options->log, PX_LOG_VERBOSE, "opened %s in %.2f s: %s, %d layers, %.0f MB mapped, %.0f MB converted to %s", path,
                 m->open_seconds, m->source.config.family, m->source.config.layers, (double)m->weights.mapped_bytes / 1e6,
                 (double)m->weights.owned_bytes / 1e6, px_dtype_name(m->dtype));
  warn_of_emulation(m, &options->log);
  *out = m;
  return PX_OK;
}

px_status px_model_open_files(const char *path, px_model **out, px_error *err) {
  *out = NULL;
  px_model *m = px_calloc(1, sizeof *m);
  if (!m) return px_fail(err, PX_NO_MEMORY, "no memory");
  px_status status = px_source_open(path, &m->source, err);
  if (status == PX_OK) status = px_fingerprint_make(&m->source, &m->fingerprint, err);
  if (status != PX_OK) {
    px_model_close(m);
    return status;
  }
  *out = m;
  return PX_OK;
}

void px_model_close(px_model *m) {
  if (!m) return;
  if (m->be) px_weights_free(&m->weights, m->be);
  px_source_close(&m->source);
  if (m->be) px_backend_close(m->be);
  free(m);
}
