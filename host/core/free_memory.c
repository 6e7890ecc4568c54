/* SPDX-License-Identifier: MIT */
#include "core/free_memory.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The number after `key` at the start of a line of root + path; key "": the file's first. -1: there is none ("max"). */
static int64_t read_number(const char *root, const char *path, const char *key) {
  char name[PATH_MAX], line[256];
  long long value = -1;
  if (snprintf(name, sizeof name, "%s%s", root, path) >= (int)sizeof name) return -1;
  FILE *f = fopen(name, "r");
  if (!f) return -1;
  while (fgets(line, sizeof line, f))
    if (strncmp(line, key, strlen(key)) == 0) {
      if (sscanf(line + strlen(key), "%lld", &value) != 1) value = -1;
      break;
    }
  fclose(f);
  return value;
}

static int64_t smaller(int64_t a, int64_t b) { return a < 0 ? b : b < 0 || a < b ? a : b; }

/* How the two versions name a group's limit, what it uses, and the part of that which is pages of files: those give
 * way. */
typedef struct group_names {
  const char *folder, *limit, *used, *files[2];
} group_names;
static const group_names V1 = {"/sys/fs/cgroup/memory",
                               "memory.limit_in_bytes",
                               "memory.usage_in_bytes",
                               {"total_active_file ", "total_inactive_file "}},
                         V2 = {"/sys/fs/cgroup", "memory.max", "memory.current", {"active_file ", "inactive_file "}};

static int64_t group_number(const char *root, const group_names *names, const char *group, const char *file,
                            const char *key) {
  char path[PATH_MAX];
  if (snprintf(path, sizeof path, "%s%s/%s", names->folder, group, file) >= (int)sizeof path) return -1;
  return read_number(root, path, key);
}

/* What a group and its parents leave; group is cut on the way. In a container the path may be the host's: then only the
 * last step, the root of what is mounted, finds its files. */
static int64_t group_leaves(const char *root, const group_names *names, char *group) {
  int64_t least = -1;
  for (;;) {
    if (strcmp(group, "/") == 0) *group = 0;
    int64_t limit = group_number(root, names, group, names->limit, "");
    int64_t used = group_number(root, names, group, names->used, "");
    if (limit >= 0 && used >= 0) {
      for (int i = 0; i < 2; i++) {
        int64_t files = group_number(root, names, group, "memory.stat", names->files[i]);
        used -= files > 0 ? files : 0;
      }
      least = smaller(least, limit > used ? limit - used : 0);
    }
    char *slash = strrchr(group, '/');
    if (!slash) return least;
    *slash = 0;
  }
}

static int64_t groups_leave(const char *root) {
  char name[PATH_MAX], line[PATH_MAX];
  int64_t least = -1;
  if (snprintf(name, sizeof name, "%s/proc/self/cgroup", root) >= (int)sizeof name) return -1;
  FILE *f = fopen(name, "r");
  if (!f) return -1;
  while (fgets(line, sizeof line, f)) {
    line[strcspn(line, "\n")] = 0;
    char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!group) continue;
    *group++ = 0;
    if (controllers[1] == 0)
      least = smaller(least, group_leaves(root, &V2, group));
    else if (strcmp(controllers + 1, "memory") == 0)
      least = smaller(least, group_leaves(root, &V1, group));
  }
  fclose(f);
  return least;
}

int64_t px_free_memory(const char *root) {
  int64_t available = read_number(root, "/proc/meminfo", "MemAvailable:");
  int64_t least = smaller(available < 0 ? -1 : available * 1024, groups_leave(root));
  struct rlimit limit;
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    int64_t pages = read_number(root, "/proc/self/statm", "");
    int64_t used = pages < 0 ? 0 : pages * sysconf(_SC_PAGESIZE), most = (int64_t)limit.rlim_cur;
    least = smaller(least, most > used ? most - used : 0);
  }
  return least;
}
