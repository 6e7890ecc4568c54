/* SPDX-License-Identifier: MIT
 * Rows that stand in two files: a test row that was trained on tells nothing about rows to come. */
#include <stdlib.h>

#include "cli/compare.h"

typedef struct lines {
  char *text; /* of the file, its ends of lines made zeros */
  char **list;
  size_t count;
} lines;

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static char *read_all(const char *path, size_t *bytes) {
  FILE *file = fopen(path, "re");
  char *text = NULL, piece[65536];
  *bytes = 0;
  if (!file) return NULL;
  FILE *memory = open_memstream(&text, bytes);
  for (size_t n; memory && (n = fread(piece, 1, sizeof piece, file)) > 0;) fwrite(piece, 1, n, memory);
  if (memory) fclose(memory);
  fclose(file);
  return text;
}

/* The lines that are not blank, sorted. */
static lines read_lines(const char *path) {
  lines l = {0};
  size_t bytes, cap = 1;
  l.text = read_all(path, &bytes);
  if (!l.text) return l;
  for (size_t i = 0; i < bytes; i++) cap += l.text[i] == '\n';
  l.list = compare_alloc(cap, sizeof *l.list);
  for (char *at = l.text, *end = l.text + bytes; at < end;) {
    char *stop = memchr(at, '\n', (size_t)(end - at)), *next = stop ? stop + 1 : end;
    size_t n = (size_t)((stop ? stop : end) - at);
    at[n] = 0; /* behind the end stands a zero already */
    while (n > 0 && strchr(" \t\r", at[n - 1])) at[--n] = 0;
    if (n) l.list[l.count++] = at;
    at = next;
  }
  qsort(l.list, l.count, sizeof *l.list, by_text);
  return l;
}

size_t compare_overlap(const char *path, const char *other) {
  lines a = read_lines(path), b = read_lines(other);
  size_t count = 0;
  for (size_t i = 0, k = 0; i < a.count; i++) {
    while (k < b.count && strcmp(b.list[k], a.list[i]) < 0) k++;
    count += k < b.count && strcmp(b.list[k], a.list[i]) == 0;
  }
  free(a.text);
  free(b.text);
  return count;
}
