/* SPDX-License-Identifier: MIT
 * Help, man page, reference page and shell completion, all from the option tables. */
#include <stdlib.h>

#include "cli/cli.h"

static const char about[] =
    "pfx learns a few vectors that steer a frozen language model (prefix tuning), checks\n"
    "that they fit, measures what they change, and generates with them.";

static const char exit_codes[] =
    "0 done; 1 failed; 2 wrong usage; 3 bad input file; 4 the adapter does not fit the model;\n"
    "5 out of memory or device; 6 worse (compare --fail-if-worse); 130 interrupted (state saved).";

/* Words of text, wrapped at 88 columns, each line after the first indented. */
static void wrap(FILE *out, const char *text, int column, int indent) {
  for (const char *at = text; *at;) {
    int len = (int)strcspn(at, " ");
    if (column + len > 88 && column > indent) {
      fprintf(out, "\n%*s", indent, "");
      column = indent;
    }
    fprintf(out, "%.*s", len, at);
    column += len;
    at += len;
    if (*at == ' ') {
      at++;
      if (*at) {
        if (column < 88) fputc(' ', out);
        column++;
      }
    }
  }
}

static void option_help(const cli_option *o, FILE *out) {
  char left[64], text[1000];
  snprintf(left, sizeof left, "  --%s%s%s", o->name, o->argument ? " " : "", o->argument ? o->argument : "");
  snprintf(text, sizeof text, "%s%s%s%s", o->help, o->fallback ? " Default: " : "", o->fallback ? o->fallback : "", o->fallback ? "." : "");
  int used = (int)strlen(left);
  if (used > 26) {
    fprintf(out, "%s\n%*s", left, 28, "");
  } else {
    fprintf(out, "%-28s", left);
  }
  wrap(out, text, 28, 28);
  fputc('\n', out);
}

void cli_help(const cli_command *c, FILE *out) {
  fprintf(out, "pfx %s - %s\n\nUsage: pfx %s %s\n\n%s\n", c->name, c->summary, c->name, c->usage, c->text);
  for (const cli_option *o = c->options; o->name; o++)
    if (o->kind == CLI_SECTION)
      fprintf(out, "\n%s:\n", o->name);
    else
      option_help(o, out);
  fprintf(out, "  --help                    This text.\n\nExamples:\n%s", c->examples);
}

void cli_help_all(FILE *out) {
  fprintf(out, "%s\n\nUsage: pfx COMMAND [OPTIONS]\n\nCommands:\n", about);
  for (int i = 0; cli_commands[i]; i++) fprintf(out, "  %-10s %s\n", cli_commands[i]->name, cli_commands[i]->summary);
  fprintf(out,
          "\n`pfx COMMAND --help` explains each. Also: --version, --man, --completion bash|zsh|fish.\n\nBegin here:\n"
          "  pfx generate --model MODEL --prompt 'The capital of France is'\n"
          "  pfx train --model MODEL --data train.jsonl --valid valid.jsonl --tune prefix:20 --out run\n"
          "  pfx generate --model MODEL --adapter run --prompt 'The capital of France is'\n\n"
          "MODEL is a Hugging Face folder or a GGUF file. Exit codes: %s\n",
          exit_codes);
}

/* roff: a leading dot or quote, and backslashes and dashes, would be read as commands. */
static void roff(FILE *out, const char *text) {
  bool start = true;
  for (; *text; text++) {
    if (start && (*text == '.' || *text == '\'')) fputs("\\&", out);
    if (*text == '\\')
      fputs("\\e", out);
    else if (*text == '-')
      fputs("\\-", out);
    else
      fputc(*text, out);
    start = *text == '\n';
  }
}

void cli_man(FILE *out) {
  fprintf(out, ".TH PFX 1 \"\" \"pfx %s\" \"User Commands\"\n.SH NAME\npfx \\- prefix tuning for frozen language models\n.SH SYNOPSIS\n.B pfx\n", pfx_version());
  fprintf(out, ".I COMMAND\n[\\fIOPTIONS\\fR]\n.SH DESCRIPTION\n");
  roff(out, about);
  fputc('\n', out);
  for (int i = 0; cli_commands[i]; i++) {
    const cli_command *c = cli_commands[i];
    fprintf(out, ".SH \"PFX %s\"\n.B pfx %s\n", c->name, c->name);
    roff(out, c->usage);
    fputs("\n.PP\n", out);
    roff(out, c->text);
    fputc('\n', out);
    for (const cli_option *o = c->options; o->name; o++) {
      if (o->kind == CLI_SECTION) {
        fprintf(out, ".SS %s\n", o->name);
        continue;
      }
      fputs(".TP\n.B \\-\\-", out);
      roff(out, o->name);
      fprintf(out, "%s%s%s\n", o->argument ? " \\fI" : "", o->argument ? o->argument : "", o->argument ? "\\fR" : "");
      roff(out, o->help);
      if (o->fallback) {
        fputs(" Default: ", out);
        roff(out, o->fallback);
        fputc('.', out);
      }
      fputc('\n', out);
    }
    fputs(".SS Examples\n.nf\n", out);
    roff(out, c->examples);
    fputs(".fi\n", out);
  }
  fputs(".SH EXIT STATUS\n", out);
  roff(out, exit_codes);
  fputc('\n', out);
}

void cli_markdown(FILE *out) {
  fprintf(out, "# The command\n\nMade from the help texts by `pfx --help-markdown`.\n\n%s\n\n| command | does |\n|---|---|\n", about);
  for (int i = 0; cli_commands[i]; i++) fprintf(out, "| [`pfx %s`](#pfx-%s) | %s |\n", cli_commands[i]->name, cli_commands[i]->name, cli_commands[i]->summary);
  fprintf(out, "\nResults go to standard output, progress and messages to standard error. Exit codes: %s\n", exit_codes);
  for (int i = 0; cli_commands[i]; i++) {
    fprintf(out, "\n## pfx %s\n\n```text\n", cli_commands[i]->name);
    cli_help(cli_commands[i], out);
    fputs("```\n", out);
  }
}

static void bash(FILE *out) {
  fputs("_pfx() {\n  local cur=${COMP_WORDS[COMP_CWORD]} words=\n  COMPREPLY=()\n  case ${COMP_WORDS[1]} in\n", out);
  for (int i = 0; cli_commands[i]; i++) {
    fprintf(out, "    %s) words='--help", cli_commands[i]->name);
    for (const cli_option *o = cli_commands[i]->options; o->name; o++)
      if (o->kind != CLI_SECTION) fprintf(out, " --%s", o->name);
    fputs("';;\n", out);
  }
  fputs("  esac\n  if [ \"$COMP_CWORD\" = 1 ]; then words='", out);
  for (int i = 0; cli_commands[i]; i++) fprintf(out, "%s%s", i ? " " : "", cli_commands[i]->name);
  fputs(" --help --version'\n  elif [[ $cur != -* ]]; then COMPREPLY=($(compgen -f -- \"$cur\")); return; fi\n"
        "  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\ncomplete -o filenames -F _pfx pfx\n", out);
}

/* Help texts inside single quotes of zsh or fish. */
static void quoted(FILE *out, const char *text, const char *drop) {
  for (; *text; text++)
    if (*text != '\'' && !strchr(drop, *text)) fputc(*text, out);
}

static void zsh(FILE *out) {
  fputs("#compdef pfx\n_pfx() {\n  if (( CURRENT == 2 )); then\n    local -a commands=(", out);
  for (int i = 0; cli_commands[i]; i++) fprintf(out, "\n      '%s:%s'", cli_commands[i]->name, cli_commands[i]->summary);
  fputs(")\n    _describe command commands\n    return\n  fi\n  case $words[2] in\n", out);
  for (int i = 0; cli_commands[i]; i++) {
    fprintf(out, "    %s) _arguments", cli_commands[i]->name);
    for (const cli_option *o = cli_commands[i]->options; o->name; o++) {
      if (o->kind == CLI_SECTION) continue;
      fprintf(out, " \\\n      '--%s[", o->name);
      quoted(out, o->help, "[]:");
      fprintf(out, "]%s%s%s'", o->argument ? ":" : "", o->argument ? o->argument : "", o->argument ? ":_files" : "");
    }
    fputs(" '*:file:_files';;\n", out);
  }
  fputs("  esac\n}\n_pfx \"$@\"\n", out);
}

static void fish(FILE *out) {
  for (int i = 0; cli_commands[i]; i++) {
    fprintf(out, "complete -c pfx -n __fish_use_subcommand -a %s -d '", cli_commands[i]->name);
    quoted(out, cli_commands[i]->summary, "");
    fputs("'\n", out);
    for (const cli_option *o = cli_commands[i]->options; o->name; o++) {
      if (o->kind == CLI_SECTION) continue;
      fprintf(out, "complete -c pfx -n '__fish_seen_subcommand_from %s' -l %s%s -d '", cli_commands[i]->name, o->name, o->argument ? " -r" : "");
      quoted(out, o->help, "");
      fputs("'\n", out);
    }
  }
}

int cli_completion(const char *shell, FILE *out) {
  if (strcmp(shell, "bash") == 0)
    bash(out);
  else if (strcmp(shell, "zsh") == 0)
    zsh(out);
  else if (strcmp(shell, "fish") == 0)
    fish(out);
  else
    return cli_usage_error(NULL, "completion is there for bash, zsh and fish, not for \"%s\"", shell);
  return 0;
}
