/* SPDX-License-Identifier: MIT
 * A data file -> rows of tokens. The file is cut into chunks of whole lines at places that depend on the file alone,
 * threads turn chunks into tokens, and the chunks are joined in order: neither the rows nor the error that is
 * reported (the first by line) depend on the number of threads. */
#include "text/rows.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/hash.h"
#include "text/rows_internal.h"
#include "text/space.h"

enum { CHUNK_BYTES = 1 << 16 };

const char *px_row_next_line(const char **at, const char *end, size_t *bytes) {
  const char *line = *at, *newline = memchr(line, '\n', (size_t)(end - line));
  *bytes = (size_t)((newline ? newline : end) - line);
  *at = newline ? newline + 1 : end;
  if (*bytes && line[*bytes - 1] == '\r') (*bytes)--;
  return line;
}

bool px_row_is_blank(const char *text, size_t bytes) {
  for (size_t n; bytes && (n = px_space_at(text, bytes)) > 0;) text += n, bytes -= n;
  return bytes == 0;
}

/* --- the file --- */

typedef struct row_file {
  const char *path;
  px_map map;
  const char *data, *end; /* without a byte order mark */
  px_row_chunk *chunks;
  size_t count, cap;
  uint64_t lines;
  bool json;
} row_file;

/* Cuts the file into chunks and counts its lines. */
static px_status find_chunks(row_file *f, px_error *err) {
  uint64_t line = 1;
  for (const char *at = f->data; at < f->end;) {
    const char *stop = f->end - at > CHUNK_BYTES ? at + CHUNK_BYTES : f->end;
    if (stop < f->end) {
      const char *newline = memchr(stop, '\n', (size_t)(f->end - stop));
      stop = newline ? newline + 1 : f->end;
    }
    if (px_reserve(&f->chunks, &f->cap, f->count + 1, sizeof *f->chunks) != 0)
      return px_fail(err, PX_NO_MEMORY, "%s: no memory to read it", f->path);
    f->chunks[f->count++] = (px_row_chunk){.data = at, .bytes = (size_t)(stop - at), .first_line = line};
    for (const char *p = at; (p = memchr(p, '\n', (size_t)(stop - p))) != NULL; p++) line++;
    at = stop;
  }
  f->lines = f->end > f->data ? line - (f->end[-1] == '\n') : 0;
  return PX_OK;
}

/* JSON Lines or source||target: the first line that is not blank says it. */
static px_status find_form(row_file *f, px_error *err) {
  const char *at = f->data;
  for (uint64_t number = 1; at < f->end; number++) {
    size_t bytes;
    const char *line = px_row_next_line(&at, f->end, &bytes);
    if (px_row_is_blank(line, bytes)) continue;
    for (size_t n; (n = px_space_at(line, bytes)) > 0;) line += n, bytes -= n;
    f->json = line[0] == '{';
    if (f->json || memmem(line, bytes, "||", 2)) return PX_OK;
    return px_fail(err, PX_BAD_FILE,
                   "%s: line %" PRIu64
                   ": neither a JSON object {...} nor source||target; a data file holds one row in a line",
                   f->path, number);
  }
  return px_fail(err, PX_BAD_FILE, "%s: no rows, the file is %s; a data file holds one row in a line", f->path,
                 f->map.bytes ? "blank" : "empty");
}

static px_status open_file(const char *path, row_file *f, px_error *err) {
  *f = (row_file){.path = path};
  PX_TRY(px_map_open(path, &f->map, err));
  f->data = (const char *)f->map.data;
  f->end = f->data + f->map.bytes;
  if (f->map.bytes >= 3 && memcmp(f->data, "\xef\xbb\xbf", 3) == 0) f->data += 3;
  PX_TRY(find_form(f, err));
  return find_chunks(f, err);
}

static void free_chunk(px_row_chunk *c) {
  free(c->tokens);
  free(c->records);
  px_buf_free(&c->texts);
  c->tokens = NULL;
  c->records = NULL;
}

static void close_file(row_file *f) {
  for (size_t i = 0; i < f->count; i++) free_chunk(&f->chunks[i]);
  free(f->chunks);
  px_map_close(&f->map);
}

/* --- chunks, in parallel --- */

static px_status read_chunk(px_row_reader *r, px_row_chunk *c, px_error *err) {
  const char *at = c->data, *end = at + c->bytes;
  for (uint64_t number = c->first_line; at < end; number++) {
    size_t bytes;
    const char *line = px_row_next_line(&at, end, &bytes);
    if (!px_row_is_blank(line, bytes)) PX_TRY(px_row_read(r, c, number, line, bytes, err));
  }
  return PX_OK;
}

static px_row_reader make_reader(const row_file *f, const px_tokenizer *tok, const px_row_options *o) {
  const px_tokenizer_info *info = tok ? px_tokenizer_info_get(tok) : NULL;
  return (px_row_reader){
      .path = f->path,
      .tok = tok,
      .options = o,
      .json = f->json,
      .bos = info && info->add_bos && !o->no_bos ? info->bos : -1,
      .eos = info && !o->no_end ? info->eos : -1,
      .vocab_size = o->vocab_size > 0 ? o->vocab_size
                    : info            ? info->vocab_size
                                      : 0,
  };
}

/* The failure of the lowest chunk wins: every chunk below it is read to its end, those above are skipped. */
static px_status read_chunks(row_file *f, const px_tokenizer *tok, const px_row_options *o, px_error *err) {
  size_t failed_chunk = SIZE_MAX;
  px_status failed = PX_OK;
  px_error first = {0};
#pragma omp parallel
  {
    px_row_reader reader = make_reader(f, tok, o);
    px_error error = {0};
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < f->count; i++) {
      size_t lowest;
#pragma omp atomic read
      lowest = failed_chunk;
      if (i > lowest) continue;
      px_status status = read_chunk(&reader, &f->chunks[i], &error);
      if (status == PX_OK) continue;
#pragma omp critical(px_rows_failure)
      if (i < failed_chunk) {
#pragma omp atomic write
        failed_chunk = i;
        failed = status;
        first = error;
      }
    }
    px_row_reader_free(&reader);
  }
  if (failed != PX_OK && err) *err = first;
  return failed;
}

/* --- joining --- */

/* The chunk's texts go into the arena as one block, with pointers into it. */
static px_status join_texts(px_rows *out, size_t at, const px_row_chunk *c) {
  size_t references = 0;
  for (size_t i = 0; i < c->count; i++)
    references += c->records[i].has_text ? 2 + (size_t)c->records[i].reference_count : 0;
  if (references == 0) return PX_OK;
  char *text = px_arena_strndup(&out->arena, c->texts.data, c->texts.len);
  char **list = px_arena_alloc(&out->arena, references, sizeof *list);
  if (!text || !list) return PX_NO_MEMORY;
  for (size_t i = 0; i < c->count; i++) {
    const px_row_record *record = &c->records[i];
    if (!record->has_text) continue;
    out->prompts[at + i] = text;
    text += strlen(text) + 1;
    out->targets[at + i] = text;
    text += strlen(text) + 1;
    out->references[at + i] = list;
    if (record->reference_count == 0) *list++ = out->targets[at + i];
    for (uint32_t k = 0; k < record->reference_count; k++, text += strlen(text) + 1) *list++ = text;
    *list++ = NULL;
  }
  return PX_OK;
}

static px_status allocate(px_rows *out, size_t rows, uint64_t tokens, bool keep_text) {
  out->offsets = px_calloc(rows + 1, sizeof *out->offsets);
  out->ids = px_calloc(tokens, sizeof *out->ids);
  out->scores = px_calloc(tokens / 8 + 1, 1);
  out->prompt_len = px_calloc(rows, sizeof *out->prompt_len);
  out->line = px_calloc(rows, sizeof *out->line);
  if (!out->offsets || !out->ids || !out->scores || !out->prompt_len || !out->line) return PX_NO_MEMORY;
  if (!keep_text) return PX_OK;
  out->prompts = px_calloc(rows, sizeof *out->prompts);
  out->targets = px_calloc(rows, sizeof *out->targets);
  out->references = px_calloc(rows, sizeof *out->references);
  return out->prompts && out->targets && out->references ? PX_OK : PX_NO_MEMORY;
}

static void join_tokens(px_rows *out, uint64_t at, const px_row_chunk *c) {
  for (size_t i = 0; i < c->token_count; i++, at++) {
    uint32_t token = c->tokens[i];
    out->ids[at] = (int32_t)(token & ~PX_ROW_SCORES);
    if (!(token & PX_ROW_SCORES)) continue;
    out->scores[at >> 3] |= (uint8_t)(1u << (at & 7));
    out->scored_tokens++;
  }
}

/* Frees each chunk once it is copied, so that the rows stand in memory about once. */
static px_status join_chunks(row_file *f, const px_row_options *o, px_rows *out) {
  size_t rows = 0;
  uint64_t tokens = 0;
  for (size_t i = 0; i < f->count; i++) {
    rows += f->chunks[i].count;
    tokens += f->chunks[i].token_count;
    out->dropped += f->chunks[i].dropped;
    out->cut += f->chunks[i].cut;
  }
  PX_TRY(allocate(out, rows, tokens, o->keep_text));
  uint64_t at = 0;
  for (size_t i = 0; i < f->count; i++) {
    px_row_chunk *c = &f->chunks[i];
    join_tokens(out, at, c);
    if (o->keep_text) PX_TRY(join_texts(out, out->count, c));
    for (size_t k = 0; k < c->count; k++) {
      size_t row = out->count++;
      at += c->records[k].len;
      out->offsets[row + 1] = at;
      out->prompt_len[row] = c->records[k].prompt_len;
      out->line[row] = c->records[k].line;
      if (c->records[k].len > out->longest) out->longest = c->records[k].len;
    }
    free_chunk(c);
  }
  return PX_OK;
}

static px_status check_result(const row_file *f, const px_row_options *o, const px_log *log, const px_rows *out,
                              px_error *err) {
  if (out->count == 0)
    return px_fail(err, PX_BAD_FILE, "%s: all %zu rows were left out, each is longer than %d tokens", f->path,
                   out->dropped, o->max_row_tokens);
  if (out->scored_tokens == 0)
    return px_fail(err, PX_BAD_FILE,
                   "%s: no token scores in %zu rows: there is nothing to learn or to measure (the first token of a row "
                   "never scores)",
                   f->path, out->count);
  if (out->dropped)
    px_log_message(log, PX_LOG_WARN, "%s: %zu rows left out, longer than %d tokens", f->path, out->dropped,
                   o->max_row_tokens);
  if (out->cut)
    px_log_message(log, PX_LOG_WARN, "%s: %zu rows cut, longer than %d tokens", f->path, out->cut, o->max_row_tokens);
  return PX_OK;
}

px_status px_rows_read(const char *path, const px_tokenizer *tok, const px_row_options *options, const px_log *log,
                       px_rows *out, px_error *err) {
  *out = (px_rows){0};
  if (options->max_row_tokens < 0 || options->max_row_tokens == 1)
    return px_fail(err, PX_INVALID,
                   "--max-row-tokens %d leaves no token that could score; at least 2, or 0 for no limit",
                   options->max_row_tokens);
  row_file f;
  px_status status = open_file(path, &f, err);
  if (status == PX_OK) status = read_chunks(&f, tok, options, err);
  if (status == PX_OK) {
    status = join_chunks(&f, options, out);
    if (status != PX_OK) px_fail(err, status, "%s: no memory for its rows", path);
  }
  if (status == PX_OK) status = check_result(&f, options, log, out, err);
  if (status == PX_OK) px_sha256_of(f.map.data, f.map.bytes, out->digest);
  close_file(&f);
  if (status != PX_OK) px_rows_free(out);
  return status;
}

void px_rows_free(px_rows *rows) {
  free(rows->offsets);
  free(rows->ids);
  free(rows->scores);
  free(rows->prompt_len);
  free(rows->line);
  free(rows->prompts);
  free(rows->targets);
  free(rows->references);
  px_arena_free(&rows->arena);
  *rows = (px_rows){0};
}
