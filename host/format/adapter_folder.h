/* SPDX-License-Identifier: MIT
 * An adapter on disk: a folder of PEFT's (adapter_config.json + adapter_model.safetensors), a delta of pfx's own (pfx.json
 * + pfx_delta.safetensors), or a hybrid, a folder for each part and pfx.json that names them (docs/formats.md). */
#ifndef PX_FORMAT_ADAPTER_FOLDER_H
#define PX_FORMAT_ADAPTER_FOLDER_H

#include "format/safetensors.h"

/* What a part trains. Values are stable. */
typedef enum px_part_kind {
  PX_PART_PREFIX = 0, /* PREFIX_TUNING, CARTRIDGE, PFX_PREFIX_LAYERS: keys and values */
  PX_PART_PROMPT = 1, /* PROMPT_TUNING, P_TUNING: rows at the embedding */
  PX_PART_LORA = 2,   /* LORA */
  PX_PART_IA3 = 3,    /* IA3 */
  PX_PART_NORM = 4,   /* LN_TUNING */
  PX_PART_BIAS = 5,   /* a delta: biases */
  PX_PART_TOP = 6,    /* a delta: the last layers and the final norm */
  PX_PART_FULL = 7,   /* a delta: every weight */
} px_part_kind;
enum { PX_PART_KINDS = 8 };

/* "prefix", "prompt", "lora", "ia3", "norm", "bias", "top", "full": also the folder of the part in a hybrid. */
const char *px_part_kind_name(px_part_kind kind);

typedef struct px_name_list {
  const char *const *items;
  size_t count;
} px_name_list;

/* What the JSON says; strings and lists are owned by an arena (reading) or the caller (writing). Fields of other kinds
 * are 0. */
typedef struct px_adapter_config {
  const char *peft_type;        /* as above; "PFX_DELTA" for bias, top and full */
  const char *base_model;       /* base_model_name_or_path; NULL is null */
  const char *revision;         /* NULL is null */
  const char *task_type;        /* "CAUSAL_LM" */
  const char *init_weights;     /* prefix: NULL is null, or "zero" */
  int64_t virtual_tokens;       /* prefix, prompt */
  int64_t layers, heads;        /* prefix: heads of keys and values; prompt: heads of queries */
  int64_t token_dim;            /* prefix: numbers of a key; prompt: of an embedding */
  int64_t hidden_size;          /* encoder_hidden_size; 0 is null */
  int64_t frozen_tokens;        /* CARTRIDGE's num_frozen_tokens */
  const int32_t *chosen_layers; /* PFX_PREFIX_LAYERS: ascending; the others see no prefix */
  size_t chosen_count;
  const char *prompt_init;      /* PROMPT_TUNING: "RANDOM", "SAMPLE_VOCAB", "TEXT"; NULL is "RANDOM" */
  const char *prompt_init_text; /* NULL is null */
  const char *tokenizer_name;   /* NULL is null */
  int64_t rank;                 /* LORA's r */
  double alpha, dropout;        /* the scale is alpha / r, or alpha / sqrt(r) with rank_stabilised */
  bool rank_stabilised;
  bool fan_in_fan_out;              /* LORA, IA3: the base keeps matrices [in, out], as GPT-2 does */
  px_name_list target_modules;      /* LORA, IA3, LN_TUNING: whole names, or their ends behind a dot */
  px_name_list feedforward_modules; /* IA3: these scale their input */
  int64_t top_layers;               /* top:K */
} px_adapter_config;

/* One tensor of a part in memory. */
typedef struct px_part_tensor {
  const char *module; /* Hugging Face name, without PEFT's "base_model.model."; "" for a prefix or prompt */
  const char *
      role; /* "prompt_embeddings", "lora_A" [r, in], "lora_B" [out, r], "ia3_l" [out, 1] or [1, in], "weight", "bias" */
  int dims;         /* 1 or 2 */
  int64_t shape[2]; /* as in the file; a delta's matrices as the base keeps them */
  const float *values;
} px_part_tensor;

typedef struct px_adapter_part {
  px_part_kind kind;
  px_adapter_config config;
  const px_part_tensor *tensors; /* as read: sorted by name */
  size_t tensor_count;
  px_dtype dtype;          /* in the file: PX_F32 (also when 0), PX_F16 or PX_BF16 */
  const px_meta *metadata; /* as read: the pfx.* keys alone, sorted; none where PEFT wrote the file */
  size_t metadata_count;
  const char *file; /* as read: the tensors' file, for messages */
} px_adapter_part;

/* A tensor's name in its file; arena memory, NULL: none left. */
char *px_part_tensor_name(const px_part_tensor *tensor, px_part_kind kind, px_arena *arena);
/* NULL when absent. */
const px_part_tensor *px_part_find(const px_adapter_part *part, const char *module, const char *role);
/* Whether a name of the list is `module` or its end behind a dot: PEFT's rule. */
bool px_name_list_matches(px_name_list list, const char *module);

/* An adapter as read: one part, or the parts of a hybrid in their order. */
typedef struct px_adapter_folder {
  px_adapter_part *parts;
  size_t count;
  px_arena arena; /* owns all of it */
} px_adapter_folder;

/* Reads DIR (or DIR/<name> when DIR itself holds none and exactly one sub-folder does). Everything is checked against
 * everything: shapes, counts, names, types, NaN, a hybrid's digests. A pickle, another peft_type or an unknown non-default
 * field is refused by name with the reason or with what to do. */
px_status px_adapter_folder_open(const char *path, px_adapter_folder *out, px_error *err);
void px_adapter_folder_close(px_adapter_folder *folder);

/* Makes the folder and writes both files atomically, each, the JSON last; PEFT's kinds with the keys and bytes that PEFT
 * 0.21 writes ("peft_version" is that of the format followed), names of modules in the order given (PEFT itself: in the
 * order of a Python set). Values must be finite. P_TUNING is written as PROMPT_TUNING, which means the same. `metadata` are
 * the pfx.* strings in any order ("format": "pt" is added); none for --no-fingerprint. */
px_status px_adapter_part_write(const char *path, const px_adapter_part *part, const px_meta *metadata,
                                size_t metadata_count, px_error *err);

/* Writes every part to `path`/<kind>, and pfx.json with the digests of their files last: a reader never takes a mixture of
 * old and new parts for an adapter. Two parts of a kind are PX_INVALID. */
px_status px_adapter_hybrid_write(const char *path, const px_adapter_part *parts, size_t count, const px_meta *metadata,
                                  size_t metadata_count, px_error *err);

#endif
