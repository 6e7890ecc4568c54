/* SPDX-License-Identifier: MIT
 * The grammar of --tune: NAME[:SIZE][:KEY=VALUE]..., parts joined by `+`. */
#ifndef PX_TUNE_SPEC_H
#define PX_TUNE_SPEC_H

#include "format/adapter_folder.h"

typedef enum px_init { PX_INIT_RANDOM = 0, PX_INIT_ZERO, PX_INIT_TEXT, PX_INIT_ADAPTER, PX_INIT_DATA, PX_INIT_VOCAB } px_init;

typedef struct px_part_spec {
  px_part_kind kind;
  int32_t size;           /* virtual tokens; the rank; layers. 0 with INIT_TEXT or INIT_ADAPTER: from there */
  px_init init;
  char *init_value;       /* the text, the file that holds it, or the adapter's folder (paths absolute where they exist); owned */
  bool init_file;         /* INIT_TEXT: init_value names a file */
  int32_t reparam_hidden; /* prefix: H; 0: trained directly */
  double lr;              /* 0: the part's usual value */
  float dropout;          /* prefix: of keys and values; lora: of its input */
  char *layers;           /* prefix: "0-5,10"; NULL: all. Owned, as targets */
  char *targets;          /* lora, ia3: "q,v"; NULL: the family's usual ones */
  int32_t frozen;         /* prefix: first virtual tokens that are not trained */
  float alpha;            /* lora; 0: twice the rank */
  bool rslora;            /* lora: alpha / sqrt(rank) */
} px_part_spec;

enum { PX_PARTS_MOST = PX_PART_KINDS + 1 }; /* one that is there twice is seen */

typedef struct px_tune_spec {
  px_part_spec parts[PX_PARTS_MOST];
  int32_t part_count;
  const int32_t *data_ids; /* INIT_DATA: the rows' tokens one after the other; borrowed until px_tune_open returns */
  int64_t data_tokens;
  bool force;              /* INIT_ADAPTER: an adapter of other weights will do */
  bool restored;           /* the values come from a checkpoint or an adapter: no initial ones are computed; sizes are given */
  bool used;               /* nothing is trained: no gradients, no moments */
  bool plain_descent;      /* SGD: no moments are kept */
  float weight_decay;      /* of everything trained but biases, norms and scales */
} px_tune_spec;

/* Reads "prefix:20+lora:8:alpha=16:targets=q,v". PX_INVALID says what is allowed. `init` and `reparam` (may be NULL / 0) are
 * the short options of the only part that has them. */
px_status px_tune_parse(const char *text, const char *init, int reparam, px_tune_spec *out, px_error *err);
void px_tune_spec_free(px_tune_spec *spec);
/* Where the only part that starts somewhere does, as --init says it, in the arena; "": there is none or more than one. NULL:
 * no memory. */
const char *px_tune_init_text(const px_tune_spec *spec, px_arena *arena);
/* The first part of a kind; NULL: none. */
px_part_spec *px_tune_part(const px_tune_spec *spec, px_part_kind kind);
/* Whether a part begins with tokens of the training rows. */
bool px_tune_reads_rows(const px_tune_spec *spec);
/* Virtual tokens as far as the spec says them. */
int32_t px_tune_spec_tokens(const px_tune_spec *spec);
double px_part_usual_lr(const px_part_spec *part);

#endif
