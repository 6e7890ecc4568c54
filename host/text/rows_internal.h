/* SPDX-License-Identifier: MIT
 * What the parts of px_rows_read share: rows_row.c turns one line into tokens, rows.c runs it over a file. */
#ifndef PX_TEXT_ROWS_INTERNAL_H
#define PX_TEXT_ROWS_INTERNAL_H

#include <jansson.h>

#include "text/rows.h"

/* In a chunk a token is its id with this bit where it scores. */
#define PX_ROW_SCORES 0x80000000u

typedef struct px_row_record {
  uint64_t line;
  uint32_t len, prompt_len;
  bool has_text;
  uint32_t reference_count;
} px_row_record;

/* The rows of a run of lines. Texts stand NUL-terminated one after another: prompt, target, references. */
typedef struct px_row_chunk {
  const char *data;
  size_t bytes;
  uint64_t first_line;
  uint32_t *tokens;
  size_t token_count, token_cap;
  px_row_record *records;
  size_t count, record_cap;
  px_buf texts;
  size_t dropped, cut;
} px_row_chunk;

/* One per thread: options resolved, and memory that is used again for every row. */
typedef struct px_row_reader {
  const char *path;
  const px_tokenizer *tok;
  const px_row_options *options;
  int32_t bos, eos;   /* what rows start and end with; -1: nothing */
  int32_t vocab_size; /* 0: unknown */
  bool json;          /* else source||target */
  px_ids ids;         /* the row under work */
  px_ids part;        /* scratch: the ids of a part of a text */
  uint8_t *scores;    /* [>= ids.len] */
  size_t score_cap;
  px_arena arena; /* chat pieces of one row */
} px_row_reader;

void px_row_reader_free(px_row_reader *r);

/* Appends the row or rows of one non-blank line. Messages start with "PATH: line N". */
px_status px_row_read(px_row_reader *r, px_row_chunk *chunk, uint64_t line, const char *text, size_t bytes,
                      px_error *err);

/* Parses one line as a JSON object; *out is the caller's. */
px_status px_row_parse(const char *path, uint64_t line, const char *text, size_t bytes, json_t **out, px_error *err);
/* `{"role","content"}` objects -> *messages in the arena; texts borrowed from `list`. */
px_status px_row_messages(const char *path, uint64_t line, const json_t *list, px_arena *arena,
                          px_chat_message **messages, size_t *count, px_error *err);

/* Ids of the pieces' joined text, appended to *ids; where `scores` is not NULL, (*scores)[i] becomes 1 for the tokens of
 * assistant pieces. A token across the border of two pieces counts as the second's. */
px_status px_chat_encode(const px_tokenizer *tok, const px_chat_piece *pieces, size_t count, px_ids *ids,
                         uint8_t **scores, size_t *score_cap, px_ids *part, px_error *err);

/* The next line of [*at, end) without its line end; moves *at behind it. */
const char *px_row_next_line(const char **at, const char *end, size_t *bytes);
bool px_row_is_blank(const char *text, size_t bytes);

#endif
