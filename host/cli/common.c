/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

cli_common cli_shared = {.device = "cpu"};
const char *const cli_dtypes[] = {"auto", "f32", "bf16", NULL};
const char *const cli_attentions[] = {"auto", "fused", "cudnn", NULL};
const char *const cli_on_long[] = {"error", "cut", "drop", NULL};
const char *const cli_losses[] = {"completion", "all", NULL};
int cli_loss;

int cli_fail(const pfx_error *err) {
  static const int codes[] = {[PFX_OK] = 0,        [PFX_FAILED] = 1,    [PFX_INVALID] = 2, [PFX_BAD_FILE] = 3,    [PFX_MISMATCH] = 4,
                              [PFX_NO_MEMORY] = 5, [PFX_NO_DEVICE] = 5, [PFX_IO] = 1,      [PFX_CANCELLED] = 130, [PFX_NOT_FINITE] = 1};
  cli_status(true, "%s", "");
  fprintf(stderr, "pfx: %s\n", err->message);
  return (size_t)err->status < sizeof codes / sizeof *codes ? codes[err->status] : 1;
}

void cli_log(void *user, int level, const char *message) {
  (void)user;
  if (level > PFX_LOG_WARN && cli_shared.quiet) return;
  if (level > PFX_LOG_INFO && !cli_shared.verbose) return;
  fprintf(stderr, "pfx: %s%s\n", level == PFX_LOG_WARN ? "warning: " : "", message);
}

int cli_open_model(const char *path, pfx_dtype dtype, int32_t threads, bool text_needed, pfx_model **model, pfx_tokenizer **tokenizer) {
  pfx_error err = {0};
  pfx_model_options o = pfx_model_options_init();
  o.dtype = dtype;
  o.threads = threads;
  o.device = cli_shared.device;
  o.attention = (pfx_attention)cli_shared.attention;
  o.log = cli_log;
  *tokenizer = NULL;
  if (threads < 0 || threads > 1024) {
    fprintf(stderr, threads < 0 ? "pfx: --threads must not be negative\n" : "pfx: --threads must be 1024 at most\n");
    return 2;
  }
  if (pfx_model_open(path, &o, model, &err) != PFX_OK) return cli_fail(&err);
  if (pfx_tokenizer_open(path, tokenizer, &err) == PFX_OK) return 0;
  if (text_needed) {
    pfx_model_close(*model);
    *model = NULL;
    return cli_fail(&err);
  }
  cli_log(NULL, PFX_LOG_VERBOSE, err.message);
  return 0;
}

int cli_open_adapter(const char *path, const pfx_model *model, const pfx_tokenizer *tokenizer, bool force, pfx_adapter **adapter) {
  pfx_error err = {0};
  pfx_fit fit;
  char *warning = NULL;
  if (pfx_adapter_open(path, adapter, &err) != PFX_OK) return cli_fail(&err);
  pfx_status status = pfx_adapter_check(*adapter, model, tokenizer, force, &fit, &warning, &err);
  if (warning) fprintf(stderr, "pfx: warning: %s: %s\n", path, warning);
  pfx_free(warning);
  if (status != PFX_OK) {
    pfx_adapter_close(*adapter);
    *adapter = NULL;
    return cli_fail(&err);
  }
  if (fit == PFX_FIT_UNVERIFIED && !cli_shared.quiet)
    fprintf(stderr, "pfx: note: %s carries no fingerprint: it fits in shape, which base it was trained on is unverified\n", path);
  if (fit == PFX_FIT_FORCED) fprintf(stderr, "pfx: warning: %s was trained on other weights; used because of --force\n", path);
  return 0;
}

static volatile sig_atomic_t stop_signals;

/* The second one does not wait for anything. */
static void on_signal(int number) {
  if (++stop_signals > 1) _exit(128 + number);
}

/* Only once somebody asks whether to stop: before that, a signal ends the process as usual. */
static void catch_signals(void) {
  static bool caught;
  if (caught) return;
  caught = true;
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGUSR1, &action, NULL);
}

bool cli_stopped(void *user) {
  (void)user;
  catch_signals();
  return stop_signals > 0;
}

void cli_status(bool last, const char *format, ...) {
  static double shown;
  static bool open_line;
  struct timespec t;
  char text[400];
  if (cli_shared.quiet) return;
  clock_gettime(CLOCK_MONOTONIC, &t);
  double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
  bool terminal = isatty(2);
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (!*text) { /* end an open line before something else is printed */
    if (open_line) fputc('\n', stderr);
    open_line = false;
    return;
  }
  if (!last && now - shown < (terminal ? 0.1 : 5.0)) return;
  shown = now;
  if (terminal) {
    struct winsize size;
    int width = ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col - 1 : 79;
    fprintf(stderr, "\r\033[K%.*s%s", width, text, last ? "\n" : "");
    open_line = !last;
    fflush(stderr);
  } else {
    fprintf(stderr, "%s\n", text);
  }
}

uint64_t cli_peak_bytes(void) {
  unsigned long long kib = 0;
  char line[128];
  FILE *status = fopen("/proc/self/status", "re");
  while (status && fgets(line, sizeof line, status) && sscanf(line, "VmHWM: %llu kB", &kib) != 1) continue;
  if (status) fclose(status);
  return kib * 1024;
}

/* Bytes of the UTF-8 character at text, 0 where there is none. */
static size_t utf8_bytes(const unsigned char *text, size_t left) {
  size_t n = *text < 0x80 ? 1 : *text < 0xc2 ? 0 : *text < 0xe0 ? 2 : *text < 0xf0 ? 3 : *text < 0xf5 ? 4 : 0;
  if (n > left) return 0;
  for (size_t i = 1; i < n; i++)
    if ((text[i] & 0xc0) != 0x80) return 0;
  bool wrong = (*text == 0xe0 && text[1] < 0xa0) || (*text == 0xed && text[1] > 0x9f) || (*text == 0xf0 && text[1] < 0x90) ||
               (*text == 0xf4 && text[1] > 0x8f);
  return wrong ? 0 : n;
}

void cli_json_text(FILE *out, const char *text, size_t bytes) {
  fputc('"', out);
  for (size_t i = 0, n; i < bytes; i += n) {
    const unsigned char *c = (const unsigned char *)text + i;
    n = utf8_bytes(c, bytes - i);
    if (n == 0) {
      fputs("\\ufffd", out);
      n = 1;
    } else if (*c == '"' || *c == '\\') {
      fprintf(out, "\\%c", *c);
    } else if (*c == '\n') {
      fputs("\\n", out);
    } else if (*c < 0x20) {
      fprintf(out, "\\u%04x", *c);
    } else {
      fwrite(c, 1, n, out);
    }
  }
  fputc('"', out);
}

void cli_json_number(FILE *out, double value) {
  if (isfinite(value))
    fprintf(out, "%.9g", value);
  else
    fputs("null", out);
}
