/* SPDX-License-Identifier: MIT */
#include "backend/cuda_library.h"

#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

/* Where pip puts packages, for the user, the system and the environment that is active. */
static void *open_in(const char *pattern, const char *package, const char *name) {
  char path[PATH_MAX];
  void *handle = NULL;
  glob_t found = {0};
  if (snprintf(path, sizeof path, pattern, package, name) >= (int)sizeof path) return NULL;
  if (glob(path, 0, NULL, &found) == 0)
    for (size_t i = 0; i < found.gl_pathc && !handle; i++) handle = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
  globfree(&found);
  return handle;
}

static void *open_anywhere(const char *package, const char *name) {
  static const char *const places[] = {
      "/usr/local/cuda/lib64/%2$s",
      "/usr/local/lib/python3*/*-packages/nvidia/%1$s/lib/%2$s",
      "/usr/local/lib/python3*/*-packages/nvidia/cu1[23]/lib/%2$s",
      "/usr/lib/python3*/*-packages/nvidia/%1$s/lib/%2$s",
      "/usr/lib/python3*/*-packages/nvidia/cu1[23]/lib/%2$s",
      "/opt/*/lib/python3*/site-packages/nvidia/%1$s/lib/%2$s",
      "/opt/*/lib/python3*/site-packages/nvidia/cu1[23]/lib/%2$s",
  };
  static const char *const below[] = {"lib/python3*/site-packages/nvidia/%1$s/lib/%2$s",
                                      "lib/python3*/site-packages/nvidia/cu1[23]/lib/%2$s"};
  void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  for (size_t i = 0; i < sizeof places / sizeof *places && !handle; i++) handle = open_in(places[i], package, name);
  /* The active Python environment, and packages installed for one user. */
  const char *roots[] = {getenv("VIRTUAL_ENV"), getenv("HOME")};
  for (size_t r = 0; r < 2 && !handle; r++)
    for (size_t i = 0; roots[r] && i < 2 && !handle; i++) {
      char pattern[PATH_MAX];
      if (snprintf(pattern, sizeof pattern, "%s%s/%s", roots[r], r ? "/.local" : "", below[i]) < (int)sizeof pattern)
        handle = open_in(pattern, package, name);
    }
  return handle;
}

px_status px_cuda_library_open(const char *const *names, const char *package, const char *pip, void **out, px_error *err) {
  *out = NULL;
  for (int i = 0; names[i] && !*out; i++) *out = open_anywhere(package, names[i]);
  if (*out) return PX_OK;
  return px_fail(
      err, PX_NO_DEVICE,
      "%s was not found: neither where the loader looks (LD_LIBRARY_PATH), nor in /usr/local/cuda/lib64, nor "
      "in NVIDIA's Python packages; install it, for example with pip install %s",
      names[0], pip);
}
