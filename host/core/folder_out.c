/* SPDX-License-Identifier: MIT */
#include "core/folder_out.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"

static bool is_dot(const char *name) { return strcmp(name, ".") == 0 || strcmp(name, "..") == 0; }

static bool is_empty(const char *path) {
  DIR *dir = opendir(path);
  bool empty = true;
  for (struct dirent *e; dir && (e = readdir(dir));) empty &= is_dot(e->d_name);
  if (dir) closedir(dir);
  return empty;
}

/* Such folders hold files alone. */
static void remove_folder(const char *path) {
  DIR *dir = opendir(path);
  for (struct dirent *e; dir && (e = readdir(dir));)
    if (!is_dot(e->d_name)) unlinkat(dirfd(dir), e->d_name, 0);
  if (dir) closedir(dir);
  rmdir(path);
}

/* Opens and locks it; -1: somebody else writes it. */
static int lock_folder(const char *path) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    close(fd);
    return -1;
  }
  return fd;
}

/* <name>.tmp.XXXXXX in `parent`. */
static void remove_leftovers(const char *parent, const char *name) {
  size_t n = strlen(name);
  DIR *dir = opendir(parent);
  for (struct dirent *e; dir && (e = readdir(dir));) {
    char *path = NULL;
    if (strncmp(e->d_name, name, n) != 0 || strncmp(e->d_name + n, ".tmp.", 5) != 0 || strlen(e->d_name + n) != 11) continue;
    int fd = asprintf(&path, "%s/%s", parent, e->d_name) < 0 ? -1 : lock_folder(path);
    if (fd >= 0) {
      remove_folder(path);
      close(fd);
    }
    free(path);
  }
  if (dir) closedir(dir);
}

/* Makes <path>.tmp.XXXXXX or <path>/new.tmp.XXXXXX, readable as the user's umask says. */
static px_status make_temporary(px_folder_out *out, bool inside, px_error *err) {
  if (asprintf(&out->temporary, inside ? "%s/new.tmp.XXXXXX" : "%s.tmp.XXXXXX", out->path) < 0) {
    out->temporary = NULL;
    return px_fail(err, PX_NO_MEMORY, "no memory");
  }
  if (!mkdtemp(out->temporary)) {
    int e = errno;
    free(out->temporary);
    out->temporary = NULL;
    return px_fail_errno(err, PX_IO, e, inside ? "cannot make a folder in %s" : "cannot make a folder beside %s", out->path);
  }
  mode_t mask = umask(0);
  umask(mask);
  if (chmod(out->temporary, 0777 & ~mask) != 0) { /* a file system without modes: it keeps 0700 */
  }
  out->lock_fd = lock_folder(out->temporary);
  return PX_OK;
}

px_status px_folder_out_open(const char *path, bool into, px_folder_out *out, px_error *err) {
  *out = (px_folder_out){.lock_fd = -1};
  if (!*path) return px_fail(err, PX_INVALID, "the output folder has no name");
  if (px_file_exists(path) && !px_file_is_dir(path)) return px_fail(err, PX_INVALID, "%s is a file: name another folder", path);
  if (!into && px_file_exists(path) && !is_empty(path))
    return px_fail(err, PX_INVALID, "%s exists and is not empty: name another folder", path);
  out->path = px_file_exists(path) ? realpath(path, NULL) : strdup(path); /* through links, for the rename */
  if (!out->path) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (size_t n = strlen(out->path); n > 1 && out->path[n - 1] == '/'; n--) out->path[n - 1] = 0;
  bool inside = into && px_file_exists(out->path);
  char *slash = strrchr(out->path, '/');
  const char *name = inside ? "new" : slash ? slash + 1 : out->path;
  char *parent = inside ? strdup(out->path) : !slash ? strdup(".") : slash == out->path ? strdup("/") : strndup(out->path, (size_t)(slash - out->path));
  px_status status = parent ? px_dir_make(parent, err) : px_fail(err, PX_NO_MEMORY, "no memory");
  if (status == PX_OK) {
    remove_leftovers(parent, name);
    status = make_temporary(out, inside, err);
  }
  free(parent);
  if (status != PX_OK) px_folder_out_abort(out);
  return status;
}

static void close_all(px_folder_out *out) {
  if (out->lock_fd >= 0) close(out->lock_fd);
  free(out->path);
  free(out->temporary);
  *out = (px_folder_out){.lock_fd = -1};
}

px_status px_folder_out_commit(px_folder_out *out, px_error *err) {
  px_status status = PX_OK;
  if (rename(out->temporary, out->path) != 0) { /* an empty folder of that name gives way */
    status = px_fail_errno(err, PX_IO, errno, "cannot rename %s to %s", out->temporary, out->path);
    px_folder_out_abort(out);
    return status;
  }
  px_file_sync_folder(out->path);
  close_all(out);
  return status;
}

static px_status move_file(const px_folder_out *out, const char *name, px_error *err) {
  char *from = NULL, *to = NULL;
  px_status status = PX_OK;
  if (asprintf(&from, "%s/%s", out->temporary, name) < 0) from = NULL;
  if (asprintf(&to, "%s/%s", out->path, name) < 0) to = NULL;
  if (!from || !to)
    status = px_fail(err, PX_NO_MEMORY, "no memory");
  else if (rename(from, to) != 0)
    status = px_fail_errno(err, PX_IO, errno, "cannot write %s", to);
  free(from);
  free(to);
  return status;
}

static px_status move_all(const px_folder_out *out, const char *last, bool (*stale)(const char *name), px_error *err) {
  DIR *target = opendir(out->path), *source = opendir(out->temporary);
  px_status status = target && source ? PX_OK : px_fail_errno(err, PX_IO, errno, "cannot open %s", target ? out->temporary : out->path);
  if (status == PX_OK && unlinkat(dirfd(target), last, 0) != 0 && errno != ENOENT)
    status = px_fail_errno(err, PX_IO, errno, "cannot write %s/%s", out->path, last);
  for (struct dirent *e; status == PX_OK && (e = readdir(target));)
    if (stale(e->d_name)) unlinkat(dirfd(target), e->d_name, 0);
  if (target) fsync(dirfd(target));
  for (struct dirent *e; status == PX_OK && (e = readdir(source));)
    if (!is_dot(e->d_name) && strcmp(e->d_name, last) != 0) status = move_file(out, e->d_name, err);
  if (target) fsync(dirfd(target));
  if (status == PX_OK) status = move_file(out, last, err);
  if (target) closedir(target);
  if (source) closedir(source);
  return status;
}

px_status px_folder_out_commit_into(px_folder_out *out, const char *last, bool (*stale)(const char *name), px_error *err) {
  if (!px_file_exists(out->path)) return px_folder_out_commit(out, err);
  px_status status = move_all(out, last, stale, err);
  px_folder_out_abort(out); /* what is left of the temporary folder */
  return status;
}

void px_folder_out_abort(px_folder_out *out) {
  if (out->temporary) remove_folder(out->temporary);
  close_all(out);
}
