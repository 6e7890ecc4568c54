/* SPDX-License-Identifier: MIT
 * The output folder of a run: made or refused, locked, and freed of what an earlier run or a killed writer left. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include "format/json.h"
#include "model/model_write.h"
#include "train/run.h"

static const char *const ours[] = {"run.json", "metrics.jsonl", "pfx_state.safetensors", "adapter_model.safetensors",
                                   "adapter_config.json", "pfx.json", "pfx_delta.safetensors"};

/* FILE.tmp.XXXXXX of one of our files: its writer was killed. */
static bool is_leftover(const char *name) {
  for (size_t i = 0; i <= sizeof ours / sizeof *ours; i++) {
    const char *file = i < sizeof ours / sizeof *ours ? ours[i] : "README.md";
    size_t n = strlen(file);
    if (strncmp(name, file, n) == 0 && strncmp(name + n, ".tmp.", 5) == 0 && strlen(name + n) == 11) return true;
  }
  return false;
}

/* A folder that a run makes: its state, and a part of an adapter of several. */
static bool is_ours(const char *name) {
  bool found = strcmp(name, "checkpoint") == 0;
  for (int k = 0; k < PX_PART_KINDS; k++) found |= strcmp(name, px_part_kind_name((px_part_kind)k)) == 0;
  return found;
}

/* Nothing but leftovers, and folders of a run of which the same is true. */
static bool is_empty(const char *path) {
  char below[PATH_MAX];
  bool empty = true;
  DIR *dir = opendir(path);
  for (struct dirent *e; dir && (e = readdir(dir));) {
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 || is_leftover(e->d_name)) continue;
    snprintf(below, sizeof below, "%s/%s", path, e->d_name);
    if (!is_ours(e->d_name) || !px_file_is_dir(below) || !is_empty(below)) empty = false;
  }
  if (dir) closedir(dir);
  return empty;
}

px_status px_run_folder_lock(px_run *run, px_error *err) {
  const char *out = run->options.out;
  run->lock_fd = open(out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (run->lock_fd < 0) return px_fail_errno(err, PX_IO, errno, "cannot open %s", out);
  /* A file system without locks is no reason to refuse. */
  if (flock(run->lock_fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return px_fail(err, PX_INVALID, "another process trains in %s: wait for it, or name another folder", out);
  return PX_OK;
}

void px_run_folder_undo(const px_run *run) {
  char path[PATH_MAX];
  if (run->made_from == 0 || snprintf(path, sizeof path, "%s", run->options.out) >= (int)sizeof path) return;
  for (size_t n = strlen(path); n >= run->made_from && n > 0 && rmdir(path) == 0; n = strlen(path)) {
    char *slash = strrchr(path, '/');
    if (!slash) return;
    *slash = 0;
  }
}

/* The length of the shortest part of the path that does not exist; 0: it exists. */
static size_t first_missing(const char *path) {
  char part[PATH_MAX];
  for (size_t n = 1; path[n - 1]; n++) {
    if ((path[n] != '/' && path[n] != 0) || n >= sizeof part) continue;
    memcpy(part, path, n);
    part[n] = 0;
    if (!px_file_exists(part)) return n;
  }
  return 0;
}

px_status px_run_folder_open(px_run *run, px_error *err) {
  const px_train_options *o = &run->options;
  char path[PATH_MAX];
  run->made_from = first_missing(o->out);
  PX_TRY(px_dir_make(o->out, err));
  PX_TRY(px_run_folder_lock(run, err));
  if (o->force || is_empty(o->out)) return PX_OK;
  snprintf(path, sizeof path, "%s/run.json", o->out);
  return px_file_exists(path)
             ? px_fail(err, PX_INVALID, "%s holds a run: --resume %s goes on with it, --force replaces it", o->out,
                       o->out)
             : px_fail(err, PX_INVALID,
                       "%s exists and is not empty: name another folder, or --force to write into it", o->out);
}

/* Whether the folder is what a run of all weights left: its pfx.json says so. Anybody else's model is left alone. */
static bool holds_whole(const char *folder) {
  char path[PATH_MAX];
  json_t *note = NULL;
  if (snprintf(path, sizeof path, "%s/pfx.json", folder) >= (int)sizeof path || px_json_read(path, &note, NULL) != PX_OK) return false;
  const char *part = json_string_value(json_object_get(note, "part"));
  bool whole = part && strcmp(part, "full") == 0;
  json_decref(note);
  return whole;
}

px_status px_run_folder_check_base(const px_run *run, px_error *err) {
  const px_tune_spec *spec = &run->spec;
  char *out = realpath(run->options.out, NULL), *base = realpath(run->model->source.path, NULL);
  bool same = spec->part_count == 1 && spec->parts[0].kind == PX_PART_FULL && out && base && strcmp(out, base) == 0;
  free(out);
  free(base);
  return same ? px_fail(err, PX_INVALID, "%s is the base itself, and a run of all weights leaves a model: name another folder", run->options.out) : PX_OK;
}

static void clean(const px_run *run, const char *sub, bool all) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", run->options.out, sub);
  DIR *dir = opendir(path);
  if (!dir) return;
  bool whole = all && holds_whole(path);
  for (struct dirent *e; whole && (e = readdir(dir));)
    if (px_model_file(e->d_name) && strncmp(e->d_name, "LICENSE", 7) != 0) unlinkat(dirfd(dir), e->d_name, 0);
  rewinddir(dir);
  /* run.json first: what is left if this is interrupted is then no run that a resume could take for one. */
  for (size_t i = 0; all && i < sizeof ours / sizeof *ours; i++) unlinkat(dirfd(dir), ours[i], 0);
  for (struct dirent *e; (e = readdir(dir));)
    if (is_leftover(e->d_name)) unlinkat(dirfd(dir), e->d_name, 0);
  closedir(dir);
}

static void remove_empty(const px_run *run, const char *sub) {
  char path[PATH_MAX];
  if (snprintf(path, sizeof path, "%s/%s", run->options.out, sub) < (int)sizeof path) rmdir(path);
}

void px_run_folder_clean(const px_run *run, bool all) {
  static const char *const places[] = {".", "checkpoint"};
  char part[64];
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    clean(run, places[i], all);
    for (int k = 0; k < PX_PART_KINDS; k++) {
      snprintf(part, sizeof part, "%s/%s", places[i], px_part_kind_name((px_part_kind)k));
      clean(run, part, all);
      if (all) remove_empty(run, part);
    }
  }
  if (all) px_run_remove_card(run->options.out);
}
