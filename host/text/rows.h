/* SPDX-License-Identifier: MIT
 * Data files -> token rows, by the rules of docs/formats.md, in one function that train, eval, generate and probe share.
 *
 *   {"prompt","completion"[,"references"]}  bos prompt completion eos; scores: completion and eos
 *   {"text"}                                bos text, no end token; scores: all but the first token
 *   {"messages":[{"role","content"}]}       what the template writes and nothing else (its own begin and end tokens);
 *                                           scores: assistant turns with their end token
 *   {"ids","labels"}                        as given; labels are -100 or the id at the same place
 *   source||target                          a prompt of the trimmed source and a newline, the trimmed target
 *
 * A field or a mix of fields that is not in this table is an error, so are a row without a token and a conversation
 * without an assistant turn. Blank lines, CR LF, a byte order mark and a missing last newline are fine. White space is
 * what Python's str.strip takes away. A prompt that spells the begin token itself has it once. */
#ifndef PX_TEXT_ROWS_H
#define PX_TEXT_ROWS_H

#include "core/log.h"
#include "text/chat.h"
#include "text/tokenizer.h"

typedef enum px_on_long { PX_LONG_ERROR = 0, PX_LONG_CUT, PX_LONG_DROP } px_on_long;

typedef struct px_row_options {
  int max_row_tokens;   /* 0: no limit */
  px_on_long on_long;
  bool loss_all;        /* --loss all: every token but the first scores */
  bool no_bos, no_end;
  px_template chat;     /* template for `messages` rows (detected or forced); NONE: such rows are an error */
  bool keep_text;       /* keep prompt and reference texts (eval --generate) */
  int32_t vocab_size;   /* the model's; ids rows are checked against it. 0: the tokenizer's */
} px_row_options;

/* All rows of a file, compactly: one run of ids, one bit per token that scores, offsets.
 * Token j of a row scores when its bit is set: its loss is -log p(token j | before). Bit 0 of a row is never set. */
typedef struct px_rows {
  size_t count;
  uint64_t *offsets;      /* [count + 1] into ids */
  int32_t *ids;           /* [offsets[count]] */
  uint8_t *scores;        /* bit i belongs to ids[i] */
  uint32_t *prompt_len;   /* [count] tokens before the first that scores' run (0 for text rows) */
  uint64_t *line;         /* [count] line of the file, from 1 */
  size_t scored_tokens;
  size_t longest;         /* tokens of the longest row */
  size_t dropped, cut;    /* by on_long */
  char digest[65];        /* SHA-256 of the file's bytes */
  /* keep_text only: */
  char **prompts;         /* [count] text the model is prompted with */
  char **targets;         /* [count] text of the completion */
  char ***references;     /* [count] NULL-terminated list (the row's `references`, else its completion) */
  px_arena arena;         /* the texts */
} px_rows;

static inline bool px_row_scores(const px_rows *r, uint64_t i) { return r->scores[i >> 3] >> (i & 7) & 1; }

/* Reads the whole file (JSON Lines, or `source||target` lines: decided by the first non-empty line), tokenised on all
 * cores. Errors name file and line: "F: line 7: ...". An empty file, and a file of which nothing scores, is an error.
 * `tok` may be NULL for a file of ids rows only. */
px_status px_rows_read(const char *path, const px_tokenizer *tok, const px_row_options *options, const px_log *log,
                       px_rows *out, px_error *err);
void px_rows_free(px_rows *rows);

/* When generating, rows with equal prompts are one item with the references of all of them, in order of first
 * appearance (keep_text rows only; rows without a prompt are no items). Items in *arena, texts borrowed from *rows. */
typedef struct px_row_item {
  const char *prompt;
  const char **references;
  size_t reference_count;
  size_t row; /* the first of them */
  const size_t *rows; /* all of them, [row_count], ascending */
  size_t row_count;
} px_row_item;
px_status px_rows_items(const px_rows *rows, px_arena *arena, px_row_item **items, size_t *count, px_error *err);

/* In-context examples: up to `shots` rows of the file `path`, drawn by the seed, the same ones and in the same order before
 * every row. What is put in front scores nothing, and of the row itself the same tokens score as before. Each row gets as
 * many, from the first on, as leave it within `room` tokens. Behind an example that no end token closes stands an empty
 * line. */
typedef struct px_shots {
  double used; /* examples a row, on average */
  bool gaps;   /* an empty line separates them: it also ends what a model writes in their manner */
} px_shots;
px_status px_rows_add_shots(px_rows *rows, const char *path, int32_t shots, uint64_t seed, int64_t room, const px_tokenizer *tok,
                            const px_row_options *options, const px_log *log, px_shots *out, px_error *err);

/* The ids a model is prompted with: begin token by the rules, text encoded (chat: template applied to one user turn). */
px_status px_prompt_ids(const px_tokenizer *tok, const px_row_options *options, const char *prompt, bool chat, px_ids *out, px_error *err);

/* Prompts for `generate --prompts F`: rows with `prompt` (or `messages`), else a line each. Texts in *arena. */
px_status px_prompts_read(const char *path, char ***prompts, size_t *count, px_arena *arena, px_error *err);

#endif
