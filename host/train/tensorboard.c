/* SPDX-License-Identifier: MIT
 * Event files: records of <u64 length><u32 masked CRC-32C of it><data><u32 masked CRC-32C of data>, all little-endian;
 * the data is an Event message of TensorFlow's event.proto, of which a few fields are written here by hand. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "train/run.h"

typedef struct px_tensorboard {
  int fd;
  char *path;
} px_tensorboard;

/* Event: double wall_time = 1, int64 step = 2, string file_version = 3, Summary summary = 5, SessionLog session_log = 7.
 * Summary: repeated Value value = 1. Value: string tag = 1, float simple_value = 2. SessionLog: status = 1 (START is 1). */
enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5, SESSION_START = 1 };

static void put_varint(px_buf *b, uint64_t value) {
  do {
    uint8_t byte = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
    px_buf_append(b, &byte, 1);
  } while (value >>= 7);
}

static void put_key(px_buf *b, uint32_t field, uint32_t wire) { put_varint(b, field << 3 | wire); }

static void put_little(px_buf *b, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; i++) px_buf_append(b, &(uint8_t){(uint8_t)(value >> 8 * i)}, 1);
}

static void put_double(px_buf *b, uint32_t field, double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  put_key(b, field, WIRE_64);
  put_little(b, bits, 8);
}

static void put_float(px_buf *b, uint32_t field, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  put_key(b, field, WIRE_32);
  put_little(b, bits, 4);
}

static void put_bytes(px_buf *b, uint32_t field, const void *bytes, size_t count) {
  put_key(b, field, WIRE_BYTES);
  put_varint(b, count);
  px_buf_append(b, bytes, count);
}

/* CRC-32C (Castagnoli), rotated and offset as TensorFlow stores it. */
static uint32_t masked_crc(const void *bytes, size_t count) {
  uint32_t crc = 0xffffffffu;
  for (size_t i = 0; i < count; i++) {
    crc ^= ((const uint8_t *)bytes)[i];
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
  }
  crc = ~crc;
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void put_record(px_buf *out, const px_buf *event) {
  px_buf length = {0};
  put_little(&length, event->len, 8);
  px_buf_append(out, length.data, length.len);
  put_little(out, length.failed ? 0 : masked_crc(length.data, length.len), 4);
  px_buf_append(out, event->data, event->len);
  put_little(out, masked_crc(event->data, event->len), 4);
  out->failed |= length.failed | event->failed;
  px_buf_free(&length);
}

static void begin_event(px_buf *event, int64_t step) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  put_double(event, 1, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec);
  put_key(event, 2, WIRE_VARINT);
  put_varint(event, (uint64_t)step);
}

/* TensorBoard has no place for a value that does not exist. */
static void put_scalar(px_buf *summary, const char *tag, double scalar) {
  px_buf value = {0};
  if (!isfinite(scalar)) return;
  put_bytes(&value, 1, tag, strlen(tag));
  put_float(&value, 2, (float)scalar);
  put_bytes(summary, 1, value.data, value.len);
  summary->failed |= value.failed;
  px_buf_free(&value);
}

/* Files are read in the order of their names, which hold a time in seconds: ours comes after all that are there. */
static long long next_time(const char *folder) {
  long long next = (long long)time(NULL), theirs;
  DIR *dir = opendir(folder);
  for (struct dirent *e; dir && (e = readdir(dir));)
    if (sscanf(e->d_name, "events.out.tfevents.%lld.", &theirs) == 1 && theirs >= next && theirs < INT64_MAX) next = theirs + 1;
  if (dir) closedir(dir);
  return next;
}

static void give_up(px_run *run, const char *what, int errno_value) {
  px_log_message(&run->calls->log, PX_LOG_WARN, "%s: %s; training goes on without event files for TensorBoard", what, strerror(errno_value));
  px_run_tensorboard_close(run);
}

/* Appends to the file; all of it or, where the device is full, a record that readers see to be cut. */
static void write_out(px_run *run, px_buf *records) {
  px_tensorboard *t = run->tensorboard;
  errno = ENOMEM;
  ssize_t put = records->failed ? -1 : write(t->fd, records->data, records->len);
  if (put != (ssize_t)records->len) give_up(run, t->path, put < 0 ? errno : ENOSPC);
  px_buf_free(records);
}

void px_run_tensorboard_open(px_run *run) {
  static const char version[] = "brain.Event:2";
  const char *folder = run->options.tensorboard;
  char host[64] = "localhost";
  if (!folder) return;
  px_error failure = {0};
  if (px_dir_make(folder, &failure) != PX_OK) {
    px_log_message(&run->calls->log, PX_LOG_WARN, "%s; training goes on without event files for TensorBoard", failure.message);
    return;
  }
  px_tensorboard *t = px_arena_alloc(&run->arena, 1, sizeof *t);
  if (!t) return give_up(run, folder, ENOMEM);
  gethostname(host, sizeof host - 1);
  t->path = px_arena_printf(&run->arena, "%s/events.out.tfevents.%010lld.%s.%d.pfx", folder, next_time(folder), host, (int)getpid());
  t->fd = t->path ? open(t->path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, 0666) : -1;
  if (t->fd < 0) return give_up(run, t->path ? t->path : folder, errno);
  run->tensorboard = t;
  px_buf records = {0}, event = {0}, session = {0};
  begin_event(&event, 0);
  put_bytes(&event, 3, version, sizeof version - 1);
  put_record(&records, &event);
  /* A start at a step tells TensorBoard to forget the points from there on, which a killed run has left and this one is
   * about to do again. */
  event.len = 0;
  begin_event(&event, run->state.step ? run->state.step + 1 : 0);
  put_key(&session, 1, WIRE_VARINT);
  put_varint(&session, SESSION_START);
  put_bytes(&event, 7, session.data, session.len);
  put_record(&records, &event);
  px_buf_free(&event);
  px_buf_free(&session);
  write_out(run, &records);
}

void px_run_tensorboard_write(px_run *run, const px_metrics_line *m) {
  px_buf summary = {0}, event = {0}, records = {0};
  if (!run->tensorboard) return;
  put_scalar(&summary, "loss", m->loss);
  put_scalar(&summary, "lr", m->lr);
  put_scalar(&summary, "grad_norm", m->grad_norm);
  put_scalar(&summary, "tokens_per_s", m->tokens_per_s);
  put_scalar(&summary, "valid_loss", m->valid_loss);
  put_scalar(&summary, "peak_bytes", m->peak_bytes ? (double)m->peak_bytes : NAN);
  begin_event(&event, m->step);
  put_bytes(&event, 5, summary.data, summary.len);
  event.failed |= summary.failed;
  put_record(&records, &event);
  px_buf_free(&summary);
  px_buf_free(&event);
  write_out(run, &records);
}

void px_run_tensorboard_close(px_run *run) {
  if (run->tensorboard) close(run->tensorboard->fd);
  run->tensorboard = NULL;
}
