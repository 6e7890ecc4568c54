/* SPDX-License-Identifier: MIT
 * Text <-> token ids: byte-level BPE and SentencePiece-style BPE, as the `tokenizers` library computes them.
 * A tokenizer is immutable after opening and may be used by many threads at once. */
#ifndef PX_TEXT_TOKENIZER_H
#define PX_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"
#include "core/memory.h"

typedef struct px_tokenizer px_tokenizer;

/* `path`: a folder with tokenizer.json, or vocab.json + merges.txt, or encoder.json + vocab.bpe (tokenizer_config.json,
 * special_tokens_map.json, generation_config.json, chat_template.jinja are read where they stand beside it); or a GGUF
 * file; or one tokenizer.json file. Invalid or unsupported: PX_BAD_FILE naming what. */
px_status px_tokenizer_open(const char *path, px_tokenizer **out, px_error *err);
void px_tokenizer_close(px_tokenizer *tok);

typedef struct px_tokenizer_info {
  int32_t vocab_size;     /* largest id + 1 */
  int32_t bos, eos, pad;  /* -1: none */
  const int32_t *stop_ids;/* ids that end generation (eos and what generation_config names), borrowed */
  int stop_count;
  bool add_bos;           /* rows of training data and prompts start with bos (formats.md, Data) */
  const char *kind;       /* "byte-level BPE" or "SentencePiece BPE" */
  const char *split;      /* "gpt-2", "smollm", "qwen2", "llama-3", "starcoder", "gpt-neox", "custom", "none" */
  const char *chat_template; /* its text, NULL where there is none */
  char digest[65];        /* SHA-256 over tokens, merges, split rule, special ids: not the bytes of a file */
} px_tokenizer_info;
const px_tokenizer_info *px_tokenizer_info_get(const px_tokenizer *tok);

/* A growable list of ids. */
typedef struct px_ids {
  int32_t *data;
  size_t len, cap;
} px_ids;
void px_ids_free(px_ids *ids);
px_status px_ids_push(px_ids *ids, int32_t id, px_error *err);

enum {
  PX_ENCODE_NO_SPECIAL = 1,     /* special tokens in the text are ordinary text (added ones that are not special stay) */
  PX_ENCODE_NO_DUMMY_SPACE = 2, /* no space put in front of the text, it continues another (SentencePiece, add_prefix_space) */
};
/* Appends the ids of `bytes` to *ids. No begin or end token is added. Invalid UTF-8 becomes U+FFFD per maximal
 * subpart. Time is linear (n log n at worst) in the text for any input. */
px_status px_tokenizer_encode(const px_tokenizer *tok, const char *bytes, size_t count, int flags, px_ids *ids, px_error *err);

/* Appends the text of ids, as tokenizers' decode(skip_special_tokens=...) (bytes that are no UTF-8 become U+FFFD).
 * An id outside the vocabulary is PX_INVALID. */
px_status px_tokenizer_decode(const px_tokenizer *tok, const int32_t *ids, size_t count, bool skip_special, px_buf *out, px_error *err);

/* The token's own spelling in the vocabulary file (borrowed), NULL when the id has none; id of a spelling, or -1. */
const char *px_tokenizer_token(const px_tokenizer *tok, int32_t id);
int32_t px_tokenizer_id(const px_tokenizer *tok, const char *token);
bool px_tokenizer_is_special(const px_tokenizer *tok, int32_t id);

/* Writes tokenizer.json and tokenizer_config.json (special tokens, begin token, chat template) into the folder `dir`, which
 * exists: `tokenizers` and transformers make the same ids of them, and so does px_tokenizer_open. For tokenizers that a GGUF
 * file holds; one whose steps such a file cannot name is PX_INVALID (its own files can be copied). `context`: the longest
 * text in tokens, 0: not said. */
px_status px_tokenizer_write(const px_tokenizer *tok, const char *dir, int32_t context, px_error *err);

/* Streaming decode: feed ids one by one, take text that is complete UTF-8. The concatenation of all text, with the
 * flush at the end, equals px_tokenizer_decode of all ids. */
typedef struct px_decoder {
  const px_tokenizer *tok;
  bool skip_special;
  px_buf pending; /* bytes of an unfinished character */
  bool started;
} px_decoder;
px_status px_decoder_put(px_decoder *d, int32_t id, px_buf *out, px_error *err);
px_status px_decoder_end(px_decoder *d, px_buf *out, px_error *err); /* flushes what is unfinished as U+FFFD; frees */

#endif
