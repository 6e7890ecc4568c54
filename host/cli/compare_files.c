/* SPDX-License-Identifier: MIT
 * Memory, files and folders of a comparison. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cli/compare.h"

/* Everything stays until the end: a comparison holds little, and for long. */
static struct kept {
  struct kept *before;
} *all_kept;

static void no_memory(void) {
  fputs("pfx: no memory\n", stderr);
  exit(5);
}

void *compare_alloc(size_t count, size_t bytes) {
  struct kept *k = count <= SIZE_MAX / 2 / (bytes + 1) ? calloc(1, 16 + count * bytes) : NULL;
  if (!k) no_memory();
  k->before = all_kept;
  all_kept = k;
  return (char *)k + 16;
}

char *compare_printf(const char *format, ...) {
  va_list args, again;
  va_start(args, format);
  va_copy(again, args);
  int n = vsnprintf(NULL, 0, format, args);
  char *text = compare_alloc((size_t)n + 1, 1);
  vsnprintf(text, (size_t)n + 1, format, again);
  va_end(again);
  va_end(args);
  return text;
}

double compare_clock(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool compare_exists(const char *path) {
  struct stat st;
  return stat(path, &st) == 0;
}

static int cannot(const char *what, const char *path) {
  cli_status(true, "%s", "");
  fprintf(stderr, "pfx: cannot %s %s: %s\n", what, path, strerror(errno));
  return 1;
}

int compare_make_folder(const char *path) {
  char part[4096];
  size_t n = strlen(path);
  if (n >= sizeof part) return errno = ENAMETOOLONG, cannot("make", path);
  for (size_t i = 1; i <= n; i++) {
    if (path[i] != '/' && path[i] != 0) continue;
    memcpy(part, path, i);
    part[i] = 0;
    if (mkdir(part, 0777) != 0 && errno != EEXIST) return cannot("make", part);
  }
  return compare_exists(path) ? 0 : cannot("make", path);
}

static bool write_all(int fd, const char *data, size_t bytes) {
  while (bytes > 0) {
    ssize_t put = write(fd, data, bytes);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    data += put;
    bytes -= (size_t)put;
  }
  return true;
}

/* Whole under its name, or not at all. */
int compare_write_file(const char *path, const char *data, size_t bytes) {
  char *temporary = compare_printf("%s.tmp.XXXXXX", path);
  mode_t mask = umask(0);
  umask(mask);
  int fd = mkostemp(temporary, O_CLOEXEC);
  if (fd < 0) return cannot("write", path);
  bool good = fchmod(fd, 0666 & ~mask) == 0 && write_all(fd, data, bytes) && fsync(fd) == 0;
  int code = errno;
  good = close(fd) == 0 && good && rename(temporary, path) == 0;
  if (good) return 0;
  if (code) errno = code;
  code = cannot("write", path);
  unlink(temporary);
  return code;
}

int compare_write_json(const char *path, const json_t *value) {
  char *text = json_dumps(value, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(12));
  if (!text) no_memory();
  size_t n = strlen(text);
  text[n] = '\n'; /* the final zero is not written */
  int code = compare_write_file(path, text, n + 1);
  free(text);
  return code;
}

int compare_digest(const char *path, char digest[65]) {
  unsigned char sum[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  char piece[65536];
  FILE *file = fopen(path, "re");
  if (!file) return cannot("open", path), 3;
  EVP_MD_CTX *context = EVP_MD_CTX_new();
  bool good = context && EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1;
  for (size_t n; good && (n = fread(piece, 1, sizeof piece, file)) > 0;) good = EVP_DigestUpdate(context, piece, n) == 1;
  good = good && !ferror(file) && EVP_DigestFinal_ex(context, sum, &length) == 1;
  EVP_MD_CTX_free(context);
  int code = good ? 0 : (cannot("read", path), 3);
  fclose(file);
  for (unsigned i = 0; good && i < 32; i++) snprintf(digest + (size_t)2 * i, 3, "%02x", sum[i]);
  return code;
}

json_t *compare_read_json(const char *path) {
  json_error_t error;
  return json_load_file(path, 0, &error);
}

int64_t compare_folder_bytes(const char *folder) {
  static const char *const not_counted[] = {".", "..", "checkpoint", "run.json", "metrics.jsonl", "README.md"};
  int64_t bytes = 0;
  DIR *dir = opendir(folder);
  for (struct dirent *e; dir && (e = readdir(dir));) {
    bool counts = true;
    struct stat st;
    for (size_t i = 0; i < sizeof not_counted / sizeof *not_counted; i++) counts = counts && strcmp(e->d_name, not_counted[i]) != 0;
    if (!counts || fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) continue;
    char *below = compare_printf("%s/%s", folder, e->d_name);
    bytes += S_ISDIR(st.st_mode) ? compare_folder_bytes(below) : (int64_t)st.st_size;
  }
  if (dir) closedir(dir);
  return bytes;
}

void compare_remove_folder(const char *folder) {
  DIR *dir = opendir(folder);
  for (struct dirent *e; dir && (e = readdir(dir));) {
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    if (unlinkat(dirfd(dir), e->d_name, 0) != 0) compare_remove_folder(compare_printf("%s/%s", folder, e->d_name));
  }
  if (dir) closedir(dir);
  rmdir(folder);
}
