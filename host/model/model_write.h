/* SPDX-License-Identifier: MIT
 * A model as a Hugging Face folder: the base's tensors under their canonical names, some of them changed, with the files that
 * transformers needs to open it. Tensors pass through memory one piece at a time. */
#ifndef PX_MODEL_MODEL_WRITE_H
#define PX_MODEL_MODEL_WRITE_H

#include "model/weights.h"
#include "text/tokenizer.h"

/* What differs from the base. Tensors have canonical names and orientation ("model.layers.3.self_attn.q_proj.weight"; GPT-2's
 * Conv1D matrices are [in, out]). */
typedef struct px_model_changes {
  void *user;
  /* Does it change this tensor? Asked for each tensor of the base, and (`absent`) for each bias that the base lacks and its
   * architecture could have: one that it changes is then added, with zeros to start from, and config.json says so. Asked
   * again, it must say the same. */
  bool (*changes)(void *user, const char *name, int64_t rows, int64_t cols, bool absent);
  /* After all names have been asked and before anything is written: the place to refuse what found no tensor. May be NULL. */
  px_status (*ready)(void *user, px_error *err);
  /* Changes rows [first, first + rows) in place; a vector is one row. */
  px_status (*change)(void *user, const char *name, int64_t first, int64_t rows, int64_t cols, float *values, px_error *err);
} px_model_changes;

/* New values of a tensor of the base (or a bias, as above), canonical, as many as it has. */
typedef struct px_override {
  const char *name;
  const float *values;
  int64_t count;
} px_override;

typedef struct px_model_write_options {
  int dtype;           /* PX_F32, PX_BF16 or PX_F16 for every tensor; -1: the base's, tensor by tensor, bf16 where it is quantised */
  int64_t shard_bytes; /* of one file; 0: 5 GB */
  bool into;           /* `dir` may hold other files: those of a model in it are replaced (config.json goes first and comes last) */
  const px_meta *metadata; /* further strings in the header of every file of weights, sorted */
  size_t metadata_count;
  const char *note_name, *note; /* a further file and its text; replaced as the weights are; NULL: none */
  void (*progress)(void *user, uint64_t done_bytes, uint64_t all_bytes); /* after every tensor; may be NULL */
  bool (*cancelled)(void *user);                                         /* asked before every tensor; may be NULL */
  void *user;
} px_model_write_options;

typedef struct px_model_written {
  size_t tensors, changed, files; /* files: of weights */
  uint64_t bytes;        /* of weights */
  px_dtype dtype;        /* as config.json names it: that of the embedding */
} px_model_written;

/* Writes the folder `dir`, which must not exist or be empty (see `into`); it appears whole or not at all. Of a Hugging Face base the
 * tokenizer's and other files are copied; of a GGUF base they are made from its metadata, `tok` being its tokenizer (NULL: it
 * has none). `changes` may be NULL, `written` too. */
px_status px_model_write(const char *dir, const px_source *source, const px_tokenizer *tok, const px_model_changes *changes,
                         const px_model_write_options *options, px_model_written *written, px_error *err);
/* The same with whole tensors. An override that names no tensor, or has another number of values, is PX_INVALID. */
px_status px_model_write_with(const char *dir, const px_source *source, const px_tokenizer *tok, const px_override *overrides, size_t count,
                              const px_model_write_options *options, px_model_written *written, px_error *err);

/* Whether such a folder may hold a file of this name: what goes when another takes its place. */
bool px_model_file(const char *name);

/* config_write.c: config.json for a model from a GGUF file; tok NULL: no ids of special tokens. What the family's class in
 * transformers cannot compute is PX_BAD_FILE. *out is the caller's. */
px_status px_config_to_json(const px_config *config, const char *path, const px_tokenizer *tok, px_dtype dtype, json_t **out, px_error *err);
/* generation_config.json likewise. */
px_status px_generation_to_json(const px_tokenizer *tok, json_t **out, px_error *err);

#endif
