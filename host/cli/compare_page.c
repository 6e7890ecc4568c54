/* SPDX-License-Identifier: MIT
 * The frame of the report: text that is escaped, numbers for people, and the style, all inside the one file. */
#include <math.h>

#include "cli/compare.h"

/* Text from data may hold anything: nothing of it becomes markup, and what no page may hold becomes U+FFFD. */
void compare_html(FILE *out, const char *text) {
  for (const char *at = text ? text : ""; *at; at++) {
    unsigned char byte = (unsigned char)*at;
    if (byte == '<')
      fputs("&lt;", out);
    else if (byte == '>')
      fputs("&gt;", out);
    else if (byte == '&')
      fputs("&amp;", out);
    else if (byte == '"')
      fputs("&quot;", out);
    else if (byte == '\'')
      fputs("&#39;", out);
    else if ((byte < ' ' && byte != '\n' && byte != '\t') || byte == 0x7f)
      fputs("\xef\xbf\xbd", out);
    else
      fputc(byte, out);
  }
}

/* A long name keeps its beginning and its end, where names of versions differ; never half a character of UTF-8. */
const char *compare_short(const char *label, int most) {
  size_t n = strlen(label), head = (size_t)most / 2 - 1, tail = n - ((size_t)most / 2 - 2);
  if (n <= (size_t)most) return label;
  while (head > 0 && ((unsigned char)label[head] & 0xc0) == 0x80) head--;
  while (tail < n && ((unsigned char)label[tail] & 0xc0) == 0x80) tail++;
  return compare_printf("%.*s...%s", (int)head, label, label + tail);
}

static char *turn(void) {
  static char buffers[16][64];
  static int at;
  return buffers[at++ % 16];
}

const char *compare_show_count(int64_t count) {
  char *text = turn();
  double n = (double)count;
  if (count < 10000)
    snprintf(text, 64, "%lld", (long long)count);
  else if (n < 999.5e3)
    snprintf(text, 64, "%.3gk", n / 1e3);
  else
    snprintf(text, 64, "%.3g%c", n < 999.5e6 ? n / 1e6 : n / 1e9, n < 999.5e6 ? 'M' : 'G');
  return text;
}

const char *compare_show_bytes(double bytes) {
  char *text = turn();
  if (bytes < 1000)
    snprintf(text, 64, "%.0f B", bytes);
  else if (bytes < 999.5e3)
    snprintf(text, 64, "%.3g kB", bytes / 1e3);
  else
    snprintf(text, 64, "%.3g %cB", bytes < 999.5e6 ? bytes / 1e6 : bytes / 1e9, bytes < 999.5e6 ? 'M' : 'G');
  return text;
}

const char *compare_show_seconds(double seconds) {
  char *text = turn();
  if (!isfinite(seconds))
    snprintf(text, 64, "–");
  else if (seconds < 10)
    snprintf(text, 64, seconds < 1 ? "%.2g s" : "%.1f s", seconds);
  else if (seconds < 120)
    snprintf(text, 64, "%.0f s", seconds);
  else if (seconds < 7200)
    snprintf(text, 64, "%.0f min", seconds / 60);
  else
    snprintf(text, 64, "%.1f h", seconds / 3600);
  return text;
}

const char *compare_show_value(int metric, double value) {
  char *text = turn();
  if (!isfinite(value))
    snprintf(text, 64, "–");
  else
    snprintf(text, 64, metric == COMPARE_LOSS ? "%.4f" : "%.1f", value);
  return text;
}

static const char style[] =
    ":root{color-scheme:light dark;--page:#fbfbfa;--card:#fff;--ink:#1d2330;--soft:#5b6475;--line:#e2e5ea;--grid:#eceef2;"
    "--accent:#2557d6;--good:#147a4b;--good-back:#e6f5ed;--bad:#b3261e;--bad-back:#fdecea;--mark:#fff4d6;"
    "--c0:#7a8394;--c1:#a0712a;--c2:#2557d6;--c3:#0f8a6d;--c4:#b5399b;--c5:#d2601a;--c6:#6b48d8;--c7:#2a8fb8;--c8:#8a9a1b;--c9:#c23b4e}"
    "@media(prefers-color-scheme:dark){:root{--page:#12151b;--card:#1a1f28;--ink:#e8ebf1;--soft:#a3adbd;--line:#2d3440;--grid:#262c37;"
    "--accent:#86a8ff;--good:#6fd3a1;--good-back:#17332a;--bad:#ff9d94;--bad-back:#3d2020;--mark:#3d3518;"
    "--c0:#9aa4b5;--c1:#d9a860;--c2:#86a8ff;--c3:#56cfae;--c4:#e88bd4;--c5:#ff9c5e;--c6:#ac95ff;--c7:#6ec6ea;--c8:#c6d45f;--c9:#ff8494}}"
    "*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}"
    "body{margin:0;background:var(--page);color:var(--ink);font:1rem/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}"
    "main{max-width:1160px;margin:0 auto;padding:2.2rem 1.2rem 4rem}"
    "h1{font-size:1.05rem;font-weight:600;color:var(--soft);margin:0 0 1.4rem}h1,h2,p,li{overflow-wrap:anywhere}"
    "h2{font-size:1.25rem;margin:2.8rem 0 .4rem;letter-spacing:-.01em}h3{font-size:1rem;margin:0 0 .2rem}"
    "p{margin:.45rem 0;max-width:46rem}.soft{color:var(--soft)}small,.small{font-size:.86rem}"
    ".card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:1.3rem 1.5rem}"
    ".verdict{border-left:6px solid var(--accent)}.verdict .answer{font-size:1.55rem;line-height:1.3;font-weight:650;letter-spacing:-.015em;margin:0 0 .6rem;max-width:none}"
    ".verdict ul{margin:.6rem 0 0;padding-left:1.15rem}.verdict li{margin:.3rem 0;max-width:52rem}"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:.8rem;margin:1rem 0 0}"
    ".tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:.8rem 1rem}"
    ".tile b{display:block;font-size:1.35rem;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:.84rem}"
    ".wide{overflow-x:auto;border:1px solid var(--line);border-radius:12px;background:var(--card);margin:.8rem 0}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.84rem}"
    "th,td{padding:.45rem .36rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:top}"
    "th{color:var(--soft);font-weight:600;font-size:.76rem;vertical-align:bottom}tr:last-child td{border-bottom:0}"
    "th:first-child,td:first-child{text-align:left;white-space:normal;min-width:8.5rem;position:sticky;left:0;background:var(--card)}"
    "td.text,th.text{text-align:left;white-space:normal}tr.pick td{background:var(--good-back)}"
    "td small{display:block;color:var(--soft);font-size:.95em}.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em}"
    ".tag{display:inline-block;font-size:.74rem;font-weight:600;padding:.05rem .5rem;border-radius:99px;background:var(--good-back);color:var(--good);margin-left:.45rem}"
    ".tag.plain{background:var(--grid);color:var(--soft)}.tag.bad{background:var(--bad-back);color:var(--bad)}"
    ".good{color:var(--good)}.bad{color:var(--bad)}"
    ".figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr));gap:1rem;margin:.9rem 0;align-items:start}"
    "figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:14px;padding:1rem 1.1rem;min-width:0}"
    ".bars{grid-template-columns:repeat(auto-fill,minmax(min(100%,280px),1fr))}figcaption{margin:0 0 .5rem}figcaption p{margin:0;color:var(--soft);font-size:.86rem}"
    "svg{display:block;width:100%;max-width:600px;height:auto;font-family:inherit;overflow:visible}"
    "svg text{fill:var(--soft);font-size:12px}svg .name{fill:var(--ink);font-size:12.5px;font-weight:600}svg .grid{stroke:var(--grid)}svg .axis{stroke:var(--line)}"
    ".bar{display:grid;grid-template-columns:1fr auto;gap:0 .8rem;margin:.45rem 0;font-size:.86rem}.bar span{overflow-wrap:anywhere}.bar b{font-weight:600;font-variant-numeric:tabular-nums}"
    ".bar i{grid-column:1/-1;display:block;height:.5rem;background:var(--grid);border-radius:99px;overflow:hidden}.bar u{display:block;height:100%;min-width:3px;border-radius:99px;"
    "-webkit-print-color-adjust:exact;print-color-adjust:exact}"
    ".legend{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;margin:.5rem 0 0;padding:0;list-style:none;font-size:.84rem}"
    ".sample{margin:.8rem 0}.sample pre{margin:.15rem 0 0;white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}"
    ".sample dl{margin:.6rem 0 0;display:grid;grid-template-columns:fit-content(13rem) minmax(0,1fr);gap:.45rem 1rem}.sample dt{color:var(--soft);font-size:.86rem;overflow-wrap:anywhere}"
    ".sample dd{margin:0;min-width:0}.sample dd pre{margin:0}.sample .reference{background:var(--mark);border-radius:6px;padding:0 .35rem}"
    "details summary{cursor:pointer;color:var(--accent);margin:.6rem 0}"
    "footer{margin-top:3rem;color:var(--soft);font-size:.84rem}"
    "@media(max-width:640px){main{padding:1.2rem .8rem 3rem}.card{padding:1rem}.verdict .answer{font-size:1.25rem}.sample dl{grid-template-columns:minmax(0,1fr);gap:.1rem}"
    ".sample dd{margin-bottom:.55rem}th,td{padding:.45rem .55rem}td:first-child,th:first-child{max-width:9.5rem;white-space:normal;overflow-wrap:anywhere}}"
    "@media print{:root{color-scheme:light;font-size:11px}body{background:#fff}main{max-width:none;padding:0}.figures{grid-template-columns:1fr 1fr}.bars{grid-template-columns:1fr 1fr 1fr}.wide{overflow:visible}table{font-size:7.4pt}"
    "th,td{padding:.25rem .3rem}figure,.card,.sample,tr{break-inside:avoid}h2{break-after:avoid}details::details-content{content-visibility:visible;block-size:auto}}";

void compare_page_begin(FILE *out, const char *title) {
  fputs("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>",
        out);
  compare_html(out, title);
  fprintf(out, "</title>\n<style>%s</style>\n</head>\n<body>\n<main>\n", style);
}

void compare_page_end(FILE *out) { fputs("</main>\n</body>\n</html>\n", out); }
