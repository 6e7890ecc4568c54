/* SPDX-License-Identifier: MIT */
#include "core/file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* What can be read once only (a pipe), into a file of memory that can be mapped; takes fd. */
static px_status keep_stream(const char *path, int *fd, size_t *bytes, px_error *err) {
  static const size_t most = (size_t)1 << 30;
  int kept = memfd_create("pfx", MFD_CLOEXEC);
  char chunk[1 << 16];
  ssize_t got = kept < 0 ? -1 : 0;
  *bytes = 0;
  while (kept >= 0 && *bytes <= most && ((got = read(*fd, chunk, sizeof chunk)) > 0 || (got < 0 && errno == EINTR))) {
    for (ssize_t done = 0, put; done < got && got > 0; done += put)
      if ((put = write(kept, chunk + done, (size_t)(got - done))) < 0) {
        got = -1;
        break;
      }
    if (got > 0) *bytes += (size_t)got;
  }
  int e = errno;
  close(*fd);
  *fd = kept;
  if (got == 0) return PX_OK;
  if (kept >= 0) close(kept);
  return got > 0 ? px_fail(err, PX_BAD_FILE, "%s is no file and holds more than 1 GiB: save it to a file first", path)
                 : px_fail_errno(err, PX_BAD_FILE, e, "cannot read %s", path);
}

static px_status open_readable(const char *path, int *fd_out, size_t *bytes, bool *regular, px_error *err) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return px_fail_errno(err, PX_BAD_FILE, errno, "cannot open %s", path);
  struct stat st;
  if (fstat(fd, &st) != 0) {
    int e = errno;
    close(fd);
    return px_fail_errno(err, PX_BAD_FILE, e, "cannot read %s", path);
  }
  if (S_ISDIR(st.st_mode)) {
    close(fd);
    return px_fail(err, PX_BAD_FILE, "%s is a folder, a file is needed", path);
  }
  *fd_out = fd;
  *regular = S_ISREG(st.st_mode);
  *bytes = *regular ? (size_t)st.st_size : 0;
  return PX_OK;
}

px_status px_map_open(const char *path, px_map *map, px_error *err) {
  static const uint8_t empty[1] = {0};
  *map = (px_map){0};
  int fd = -1;
  size_t bytes = 0;
  bool regular = true;
  PX_TRY(open_readable(path, &fd, &bytes, &regular, err));
  if (!regular) PX_TRY(keep_stream(path, &fd, &bytes, err));
  if (bytes == 0) {
    close(fd);
    map->data = empty;
    return PX_OK;
  }
  void *p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  int e = errno;
  close(fd);
  if (p == MAP_FAILED) return px_fail_errno(err, PX_BAD_FILE, e, "cannot map %s", path);
  *map = (px_map){.data = p, .bytes = bytes};
  return PX_OK;
}

void px_map_close(px_map *map) {
  if (map->bytes) munmap((void *)(uintptr_t)map->data, map->bytes);
  *map = (px_map){0};
}

void px_map_forget(const void *bytes, size_t count) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = ((uintptr_t)bytes + page - 1) / page * page,
            to = ((uintptr_t)bytes + count) / page * page;
  if (to > from) madvise((void *)from, to - from, MADV_DONTNEED); /* only advice: nothing depends on it */
}

px_status px_file_read(const char *path, size_t limit_bytes, px_buf *out, px_error *err) {
  int fd = -1;
  size_t bytes = 0;
  bool regular = true;
  PX_TRY(open_readable(path, &fd, &bytes, &regular, err));
  size_t start = out->len;
  char chunk[1 << 16];
  for (;;) {
    ssize_t got = read(fd, chunk, sizeof chunk);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      int e = errno;
      close(fd);
      return px_fail_errno(err, PX_BAD_FILE, e, "cannot read %s", path);
    }
    if (got == 0) break;
    if (out->len - start + (size_t)got > limit_bytes) {
      close(fd);
      return px_fail(err, PX_BAD_FILE, "%s is larger than the %zu bytes that such a file may have", path, limit_bytes);
    }
    px_buf_append(out, chunk, (size_t)got);
  }
  close(fd);
  return out->failed ? px_fail(err, PX_NO_MEMORY, "no memory to read %s", path) : PX_OK;
}

bool px_file_exists(const char *path) {
  struct stat st;
  return stat(path, &st) == 0;
}

bool px_file_is_dir(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

px_status px_dir_make(const char *path, px_error *err) {
  char *copy = strdup(path);
  if (!copy) return px_fail(err, PX_NO_MEMORY, "no memory");
  px_status status = PX_OK;
  for (char *at = copy + 1;; at++) {
    if (*at != '/' && *at != 0) continue;
    char end = *at;
    *at = 0;
    int e = mkdir(copy, 0777) == 0 ? 0 : errno;
    if (e && !px_file_is_dir(copy)) {
      status = e == EEXIST ? px_fail(err, PX_IO, "cannot make the folder %s: it is a file; name another folder", copy)
                           : px_fail_errno(err, PX_IO, e, "cannot make the folder %s", copy);
      break;
    }
    *at = end;
    if (!end) break;
  }
  free(copy);
  return status;
}

px_status px_out_open(const char *path, px_out *out, px_error *err) {
  *out = (px_out){.fd = -1};
  out->path = strdup(path);
  if (!out->path || asprintf(&out->temporary, "%s.tmp.XXXXXX", path) < 0) {
    free(out->path);
    *out = (px_out){.fd = -1};
    return px_fail(err, PX_NO_MEMORY, "no memory");
  }
  out->fd = mkostemp(out->temporary, O_CLOEXEC);
  if (out->fd < 0) {
    int e = errno;
    free(out->path);
    free(out->temporary);
    *out = (px_out){.fd = -1};
    return px_fail_errno(err, PX_IO, e, "cannot write %s", path);
  }
  mode_t mask = umask(0);
  umask(mask);
  if (fchmod(out->fd, 0666 & ~mask) != 0) { /* a file system without modes: the file keeps 0600 */
  }
  return PX_OK;
}

px_status px_out_write(px_out *out, const void *bytes, size_t count, px_error *err) {
  const char *at = bytes;
  while (count) {
    ssize_t put = write(out->fd, at, count);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) {
      px_status s = px_fail_errno(err, PX_IO, errno, "cannot write %s", out->path);
      px_out_abort(out);
      return s;
    }
    at += put;
    count -= (size_t)put;
    out->written_bytes += (uint64_t)put;
  }
  return PX_OK;
}

static void out_close(px_out *out) {
  if (out->fd >= 0) close(out->fd);
  free(out->path);
  free(out->temporary);
  *out = (px_out){.fd = -1};
}

/* A rename is durable only once its folder is on disk. */
void px_file_sync_folder(const char *path) {
  char *copy = strdup(path);
  if (!copy) return;
  int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    fsync(fd);
    close(fd);
  }
  free(copy);
}

px_status px_out_commit(px_out *out, px_error *err) {
  if (fsync(out->fd) != 0 || rename(out->temporary, out->path) != 0) {
    px_status s = px_fail_errno(err, PX_IO, errno, "cannot write %s", out->path);
    px_out_abort(out);
    return s;
  }
  px_file_sync_folder(out->path);
  out_close(out);
  return PX_OK;
}

void px_out_abort(px_out *out) {
  if (out->fd < 0) return;
  unlink(out->temporary);
  out_close(out);
}

px_status px_out_check(const char *path, px_error *err) {
  px_out out;
  PX_TRY(px_out_open(path, &out, err));
  px_out_abort(&out);
  return PX_OK;
}

px_status px_file_write(const char *path, const void *bytes, size_t count, px_error *err) {
  px_out out;
  PX_TRY(px_out_open(path, &out, err));
  PX_TRY(px_out_write(&out, bytes, count, err));
  return px_out_commit(&out, err);
}
