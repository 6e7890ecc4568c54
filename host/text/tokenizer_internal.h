/* SPDX-License-Identifier: MIT
 * What the files of the tokenizer share; nobody else includes this. */
#ifndef PX_TEXT_TOKENIZER_INTERNAL_H
#define PX_TEXT_TOKENIZER_INTERNAL_H

#include "text/bpe.h"
#include "text/split.h"
#include "text/tokenizer.h"

enum {
  MAX_TOKEN_ID = 1 << 22,    /* larger ids are refused: tables are as large as the largest id */
  MAX_ADDED_BYTES = 1 << 10, /* of one added token: bounds the search for them */
  MAX_STEPS = 16,            /* of a normalizer, a pre-tokenizer, a decoder */
  BMP = 0x10000,
};

/* ---- vocabulary: ids and spellings ---- */
typedef struct px_vocab {
  px_buf text;      /* spellings, each followed by NUL */
  size_t *offset;   /* [size] start + 1 of the spelling in `text`, 0: the id has none */
  uint32_t *length; /* [size] bytes */
  int32_t size;     /* largest id + 1 */
  size_t offset_cap, length_cap;
  int32_t *slots; /* hash by spelling -> id, -1 free */
  size_t slot_mask, slot_used;
  uint32_t longest;
} px_vocab;
/* A spelling that is there already is moved to the new id where `last_wins`, else refused. */
px_status px_vocab_add(px_vocab *v, const char *name, const char *text, size_t count, int32_t id, bool last_wins,
                       px_error *err);
int32_t px_vocab_find(const px_vocab *v, const char *text, size_t count); /* -1: absent */
static inline const char *px_vocab_text(const px_vocab *v, int32_t id) {
  return id >= 0 && id < v->size && v->offset[id] ? v->text.data + v->offset[id] - 1 : NULL;
}
void px_vocab_free(px_vocab *v);

/* ---- added tokens ---- */
typedef struct px_added {
  char *text; /* owned; as it is matched: normalized where `normalized` */
  uint32_t bytes;
  int32_t id;
  bool special, single_word, lstrip, rstrip, normalized;
} px_added;

/* A trie over bytes: children of a node are a list of siblings. Node 0 is the root. */
typedef struct px_trie_node {
  int32_t first_child, sibling, token; /* -1: none; token indexes the added tokens */
  uint8_t byte;
} px_trie_node;
typedef struct px_trie {
  px_trie_node *nodes;
  size_t count, cap;
  int32_t root[256];
} px_trie;
px_status px_trie_add(px_trie *t, const char *text, size_t count, int32_t token, px_error *err);

/* Parts of a text between and at the added tokens, in the order `tokenizers` gives them. */
typedef struct px_added_part {
  size_t start, end;
  int32_t id; /* -1: text */
} px_added_part;
typedef struct px_added_scan {
  const px_trie *trie;
  const px_added *added;
  const char *text;
  size_t count, search, delivered;
  size_t space_start, space_end; /* the last run of white space that rstrip measured */
  px_added_part queued;          /* a token that follows the text part just given; id -1: none */
  bool skip_special, done;
} px_added_scan;
void px_added_start(px_added_scan *s, const px_trie *trie, const px_added *added, const char *text, size_t count,
                    bool skip_special);
bool px_added_next(px_added_scan *s, px_added_part *part); /* false: no more */

/* ---- normalizers ---- */
typedef enum px_normal_kind { PX_NORMAL_NFC = 1, PX_NORMAL_PREPEND, PX_NORMAL_REPLACE, PX_NORMAL_STRIP } px_normal_kind;
typedef struct px_normal_step {
  px_normal_kind kind;
  char *from, *to; /* REPLACE both, PREPEND `to`; owned */
  size_t from_bytes, to_bytes;
  bool left, right; /* STRIP */
} px_normal_step;
/* Valid UTF-8 in, valid UTF-8 out; *out points at `text` or into `scratch` (two buffers). */
px_status px_normalize(const px_normal_step *steps, int count, bool no_prepend, const char *text, size_t bytes,
                       px_buf scratch[2], const char **out, size_t *out_bytes, px_error *err);
/* Bytes of the longest prefix of `text` that is valid UTF-8. */
size_t px_utf8_valid(const char *text, size_t count);
/* Bytes of the character at `text` (count > 0), or of what one U+FFFD stands for (the maximal subpart) with *ok false.
 * *cut: the text ends inside what may become a character. */
size_t px_utf8_step(const char *text, size_t count, bool *ok, bool *cut);
/* Appends with U+FFFD for what is invalid. */
void px_utf8_repair(px_buf *out, const char *text, size_t count);

/* ---- pre-tokenizers and decoders ---- */
typedef enum px_pre_kind { PX_PRE_SPLIT = 1, PX_PRE_BYTES /* add_prefix_space only */, PX_PRE_METASPACE } px_pre_kind;
typedef enum px_prepend { PX_PREPEND_NEVER = 0, PX_PREPEND_FIRST, PX_PREPEND_ALWAYS } px_prepend;
typedef struct px_pre_step {
  px_pre_kind kind;
  px_splitter splitter;
  bool add_prefix_space; /* BYTES */
  px_prepend prepend;    /* METASPACE */
  bool split;
  char replacement[5];
} px_pre_step;

typedef enum px_decode_kind {
  PX_DECODE_BYTES = 1,
  PX_DECODE_REPLACE,
  PX_DECODE_BYTE_FALLBACK,
  PX_DECODE_FUSE,
  PX_DECODE_STRIP,
  PX_DECODE_METASPACE
} px_decode_kind;
typedef struct px_decode_step {
  px_decode_kind kind;
  char *from, *to; /* REPLACE; STRIP's content and METASPACE's replacement in `from`; owned */
  size_t from_bytes, to_bytes;
  int64_t left; /* STRIP: how many at the start of the text */
  px_prepend prepend;
} px_decode_step;

struct px_tokenizer {
  px_tokenizer_info info;
  char *chat_template;
  int32_t *stop_ids;
  size_t stop_cap;

  px_vocab vocab;
  int32_t model_size; /* ids below are the model's where model_has[id] */
  uint8_t *flags;     /* [vocab.size] TOKEN_* */
  bool byte_level, byte_fallback, fuse_unk, ignore_merges;
  int32_t unk;              /* -1: none */
  int32_t byte_symbol[256]; /* byte level: starting symbol of a byte; byte fallback: id of <0xNN>; -1: none */
  int32_t *char_symbol;     /* [BMP] starting symbols of characters, -1: none; the others through `vocab` */
  px_bpe_rule *rules;       /* merges in rank order; freed once built, after the digest */
  size_t rule_count, rule_cap;
  px_bpe bpe;

  px_added *added;
  size_t added_count, added_cap;
  px_trie raw_trie, normal_trie;

  px_normal_step normal[MAX_STEPS];
  px_pre_step pre[MAX_STEPS];
  px_decode_step decode[MAX_STEPS];
  int normal_count, pre_count, decode_count;
};
enum { TOKEN_MODEL = 1, TOKEN_ADDED = 2, TOKEN_SPECIAL = 4, TOKEN_UNUSED = 8 };

/* ---- building (tokenizer_build.c) ---- */
/* Adds a token of the model / an added token (its id must be the model's where the model has the spelling). */
px_status px_build_token(px_tokenizer *tok, const char *name, const char *text, size_t count, int32_t id,
                         bool last_wins, px_error *err);
px_status px_build_added(px_tokenizer *tok, const char *name, const px_added *token, px_error *err);
/* "left right", or the two apart; both and their concatenation must be tokens. `number` stands in messages. */
px_status px_build_merge(px_tokenizer *tok, const char *name, size_t number, const char *left, size_t left_count,
                         const char *right, size_t right_count, px_error *err);
px_status px_build_merge_line(px_tokenizer *tok, const char *name, size_t number, const char *line, size_t count,
                              px_error *err);
px_status px_build_decode_bytes(px_tokenizer *tok, px_error *err);                 /* the ByteLevel decoder */
px_status px_build_pre_rule(px_tokenizer *tok, px_split_rule rule, px_error *err); /* a known Split, isolated */
px_status px_build_pre_bytes(px_tokenizer *tok, bool add_prefix_space, px_error *err);
px_status px_build_normal(px_tokenizer *tok, px_normal_step step, const char *from, const char *to, px_error *err);
px_status px_build_decode(px_tokenizer *tok, px_decode_step step, const char *from, const char *to, px_error *err);
px_status px_build_stop(px_tokenizer *tok, int64_t id, px_error *err);
/* Symbols, tries, merges, digest: after everything above. `name` is the file. */
px_status px_build_finish(px_tokenizer *tok, const char *name, px_error *err);
/* The character that stands for a byte in byte-level vocabularies, and back (-1: none). */
uint32_t px_byte_char(uint8_t byte);
int px_char_byte(uint32_t c);
void px_byte_spell(px_buf *out, uint8_t byte); /* appends that character */

/* ---- sources ---- */
px_status px_tokenizer_from_json(px_tokenizer *tok, const char *path, px_error *err);
px_status px_tokenizer_from_pair(px_tokenizer *tok, const char *vocab, const char *merges, px_error *err);
px_status px_tokenizer_from_gguf(px_tokenizer *tok, const char *path, px_error *err);
/* Files beside a tokenizer: tokens of the model's start and end, stop ids, chat template. `dir` may lack all of them.
 */
px_status px_tokenizer_side_files(px_tokenizer *tok, const char *dir, bool vocab_pair, px_error *err);

#endif
