/* SPDX-License-Identifier: MIT
 * Another pfx, from start to end. It gets a process group of its own, so that Ctrl-C on the terminal reaches this program
 * alone, which then tells it once to save and stop: a second signal would end it without saving. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/compare.h"

void compare_arg(compare_args *a, const char *text) {
  if (a->count + 1 < (int)(sizeof a->list / sizeof *a->list)) a->list[a->count++] = text;
}

void compare_arg2(compare_args *a, const char *name, const char *value) {
  compare_arg(a, name);
  compare_arg(a, value);
}

static _Noreturn void become(const compare_args *args, int out, int log, pid_t parent) {
  char *list[100] = {(char *)(size_t) "pfx"};
  int nothing = open("/dev/null", O_RDONLY);
  for (int i = 0; i < args->count; i++) list[i + 1] = (char *)(size_t)args->list[i];
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM); /* nobody trains on after this program was killed */
  if (getppid() != parent || nothing < 0 || dup2(nothing, 0) < 0 || dup2(out, 1) < 0 || dup2(log, 2) < 0) _exit(127);
  execv("/proc/self/exe", list);
  _exit(127);
}

/* The last line of a log that is a message of pfx. */
static const char *last_message(const char *path) {
  char line[2000];
  const char *found = NULL;
  FILE *file = fopen(path, "re");
  while (file && fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = 0;
    if (strncmp(line, "pfx: ", 5) == 0 && strncmp(line, "pfx: go on with", 15) != 0) found = compare_printf("%s", line + 5);
  }
  if (file) fclose(file);
  return found;
}

/* Reads what the child prints until it closes its end; tells it to stop when the user wants that. */
static char *listen_to(pid_t child, int from, void (*tick)(void *), void *user, bool *stopped) {
  char *text = NULL, piece[4096];
  size_t bytes = 0;
  FILE *memory = open_memstream(&text, &bytes);
  for (;;) {
    struct pollfd p = {.fd = from, .events = POLLIN};
    int ready = poll(&p, 1, 200);
    if (cli_stopped(NULL) && !*stopped) {
      *stopped = true;
      kill(child, SIGINT);
    }
    if (tick) tick(user);
    if (ready <= 0) continue;
    ssize_t n = read(from, piece, sizeof piece);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    if (memory) fwrite(piece, 1, (size_t)n, memory);
  }
  if (memory) fclose(memory);
  char *kept = compare_printf("%s", text ? text : "");
  free(text);
  return kept;
}

int compare_child(const compare_args *args, const char *log, void (*tick)(void *user), void *user, compare_ended *out) {
  int ends[2], status = 0, log_fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  *out = (compare_ended){.code = 1};
  cli_stopped(NULL); /* from here on a signal is a wish */
  if (log_fd < 0 || pipe2(ends, O_CLOEXEC) != 0) {
    fprintf(stderr, "pfx: cannot write %s: %s\n", log, strerror(errno));
    if (log_fd >= 0) close(log_fd);
    return 1;
  }
  double start = compare_clock();
  pid_t parent = getpid();
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) become(args, ends[1], log_fd, parent);
  close(ends[1]);
  close(log_fd);
  if (child < 0) {
    close(ends[0]);
    fprintf(stderr, "pfx: cannot start another pfx: %s\n", strerror(errno));
    return 1;
  }
  out->out = listen_to(child, ends[0], tick, user, &out->stopped);
  close(ends[0]);
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  out->seconds = compare_clock() - start;
  out->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  out->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + out->signal;
  out->message = last_message(log);
  if (out->code == 127 && !out->message) out->message = "another pfx could not be started";
  out->stopped = out->stopped || cli_stopped(NULL);
  return 0;
}
