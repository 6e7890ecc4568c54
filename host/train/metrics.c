/* SPDX-License-Identifier: MIT
 * metrics.jsonl: a line a step, appended whole. After a kill the file may be ahead of the checkpoint; resume drops what
 * the run is about to do again, so that the finished file equals that of a run that was never stopped. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "train/run.h"

double px_clock(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

uint64_t px_peak_bytes(void) {
  /* The kernel's peak of this program: getrusage's includes what its parent held when it was started. */
  unsigned long long kib = 0;
  char line[128];
  FILE *status = fopen("/proc/self/status", "re");
  while (status && fgets(line, sizeof line, status) && sscanf(line, "VmHWM: %llu kB", &kib) != 1) continue;
  if (status) fclose(status);
  if (kib) return kib * 1024;
  struct rusage usage;
  return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * 1024 : 0;
}

/* Bytes of the leading lines that are whole and belong to steps up to `last`. */
static size_t kept_bytes(const px_buf *text, int64_t last) {
  size_t at = 0;
  while (at < text->len) {
    const char *line = text->data + at, *end = memchr(line, '\n', text->len - at);
    long long step = -1;
    if (!end || sscanf(line, "{\"step\": %lld,", &step) != 1 || step > last) break;
    at = (size_t)(end + 1 - text->data);
  }
  return at;
}

px_status px_metrics_open(px_run *run, px_error *err) {
  char *path = px_arena_printf(&run->arena, "%s/metrics.jsonl", run->options.out);
  if (!path) return px_fail(err, PX_NO_MEMORY, "no memory");
  if (px_file_exists(path)) {
    px_buf text = {0};
    px_status status = px_file_read(path, (size_t)1 << 34, &text, err);
    size_t keep = status == PX_OK ? kept_bytes(&text, run->state.step) : 0;
    if (status == PX_OK && keep < text.len) status = px_file_write(path, text.data, keep, err);
    px_buf_free(&text);
    PX_TRY(status);
  }
  run->metrics_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (run->metrics_fd < 0) return px_fail_errno(err, PX_IO, errno, "cannot write %s", path);
  return PX_OK;
}

/* JSON has no NaN: a step without a labelled token has neither loss nor gradient. */
static void add_number(px_buf *line, const char *key, double value) {
  if (isfinite(value))
    px_buf_printf(line, "\"%s\": %.9g, ", key, value);
  else
    px_buf_printf(line, "\"%s\": null, ", key);
}

px_status px_metrics_write(px_run *run, const px_metrics_line *m, px_error *err) {
  px_buf line = {0};
  px_buf_printf(&line, "{\"step\": %lld, ", (long long)m->step);
  add_number(&line, "loss", m->loss);
  px_buf_printf(&line, "\"lr\": %.9g, ", m->lr);
  add_number(&line, "grad_norm", m->grad_norm);
  px_buf_printf(&line, "\"tokens\": %lld, \"tokens_per_s\": %.1f, \"seconds\": %.3f, \"peak_bytes\": %llu",
                (long long)m->tokens, m->tokens_per_s, m->seconds, (unsigned long long)m->peak_bytes);
  if (isfinite(m->valid_loss)) px_buf_printf(&line, ", \"valid_loss\": %.9g", m->valid_loss);
  px_buf_puts(&line, "}\n");
  px_status status = line.failed ? px_fail(err, PX_NO_MEMORY, "no memory") : PX_OK;
  if (status == PX_OK) {
    ssize_t put = write(run->metrics_fd, line.data, line.len);
    if (put != (ssize_t)line.len)
      status = px_fail_errno(err, PX_IO, put < 0 ? errno : ENOSPC, "cannot write %s/metrics.jsonl", run->options.out);
  }
  px_buf_free(&line);
  return status;
}
