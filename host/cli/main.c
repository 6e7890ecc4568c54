/* SPDX-License-Identifier: MIT
 * `pfx`: finds the command and hands over. Nothing heavy happens before a command has parsed its options. */
#include <errno.h>
#include <string.h>

#include "cli/cli.h"

const cli_command *const cli_commands[] = {&cli_train, &cli_generate, &cli_eval, &cli_compare, &cli_inspect, &cli_check, &cli_tokenize, &cli_probe, &cli_merge, NULL};

static const char *const later[] = {"serve", "export", "pull"};

static int run(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "--help";
  for (int i = 0; cli_commands[i]; i++)
    if (strcmp(cli_commands[i]->name, name) == 0) return cli_commands[i]->run(argc - 1, argv + 1);
  if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
    cli_help_all(argc > 1 ? stdout : stderr);
    return argc > 1 ? 0 : 2;
  }
  if (strcmp(name, "--version") == 0) {
    printf("pfx %s (%s)\n", pfx_version(), pfx_libraries());
    return 0;
  }
  if (strcmp(name, "--man") == 0) return cli_man(stdout), 0;
  if (strcmp(name, "--help-markdown") == 0) return cli_markdown(stdout), 0;
  if (strcmp(name, "--completion") == 0) return cli_completion(argc > 2 ? argv[2] : "", stdout);
  for (size_t i = 0; i < sizeof later / sizeof *later; i++)
    if (strcmp(later[i], name) == 0) return cli_usage_error(NULL, "the command \"%s\" is not part of this release", name);
  return cli_unknown_command(name);
}

/* Results that did not reach their reader are a failure; a reader that went away needs no message. */
int main(int argc, char **argv) {
  signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error of write, not a death */
  int code = run(argc, argv);
  if (fflush(stdout) == 0 && !ferror(stdout)) return code;
  if (errno != EPIPE) fprintf(stderr, "pfx: cannot write to standard output: %s\n", strerror(errno));
  return code ? code : 1;
}
