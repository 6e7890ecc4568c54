/* SPDX-License-Identifier: MIT
 * Inside the tune room: what a trainable part is. tune.c walks over the parts of a run; each lives in a file of its own. */
#ifndef PX_TUNE_PART_H
#define PX_TUNE_PART_H

#include "tune/tune.h"

typedef struct px_part px_part;

/* What parts begin from. */
typedef struct px_part_start {
  const px_tokenizer *tok;
  const px_adapter *adapter; /* what parts with PX_INIT_ADAPTER begin from; NULL: none does, or a checkpoint will be read */
  const px_tune_spec *spec;
  uint64_t seed;
} px_part_start;

typedef struct px_part_ops {
  /* What the part needs: tokens, grad_count, and `own`, with the part's texts read. */
  px_status (*measure)(px_part *p, const px_part_start *start, px_error *err);
  /* Memory, initial values, params and hooks; `grads` and the tune's segments are there. */
  px_status (*open)(px_part *p, const px_part_start *start, px_error *err);
  void (*close)(px_part *p);
  /* What its JSON says in an adapter's folder; texts in the tune's arena. NULL: no memory, and err says so. */
  px_status (*describe)(px_part *p, px_adapter_config *out, px_error *err);
  void (*begin_step)(px_part *p, uint64_t seed, const int64_t *step); /* these two may be NULL */
  void (*end_step)(px_part *p, uint64_t seed, const int64_t *step);
} px_part_ops;

struct px_part {
  const px_part_ops *ops;
  px_tune *tune;
  const px_part_spec *spec; /* in tune->spec; its texts are there until px_tune_open returns */
  int32_t number;           /* of all parts: random streams differ by it */
  int32_t tokens, first_token; /* virtual tokens, and where they stand among those of all parts */
  float *grads;             /* its share of the gradient arena: grad_count numbers */
  int64_t grad_count;
  float lr_scale;
  void *own;
};

extern const px_part_ops px_part_prefix, px_part_prompt, px_part_lora, px_part_ia3, px_part_weights;

/* Adds a trained tensor; the name goes into the tune's arena. PX_NO_MEMORY. */
px_status px_part_add(px_part *p, const px_param *param, px_error *err);
/* Backend memory of floats, zeroed. NULL: it failed, and err says so. */
float *px_part_floats(px_part *p, int64_t count, px_error *err);
/* Writes host numbers there, or, where the run is restored, nothing. */
void px_part_write(px_part *p, float *to, const float *from, int64_t count);
/* The backward pass has to go down to here at least. */
void px_part_reach(px_part *p, int32_t layer, px_stop stop);
/* Gradients and moments are there. */
static inline bool px_part_trains(const px_part *p) { return !p->tune->spec.used; }
/* The two moments are there. */
static inline bool px_part_moments(const px_part *p) { return px_part_trains(p) && !p->tune->spec.plain_descent; }
/* Numbers that a part keeps for `count` trained ones. */
static inline int64_t px_part_kept(const px_part *p, int64_t count) { return px_part_moments(p) ? 3 * count : count; }
/* The gradient's and the moments' places beside a value at memory + at, of a part that keeps `all` numbers. */
static inline void px_part_places(const px_part *p, float *memory, int64_t all, int64_t at, px_param *q) {
  q->value = memory + at;
  q->grad = px_part_trains(p) ? p->grads + at : NULL;
  q->m = px_part_moments(p) ? memory + all + at : NULL;
  q->v = px_part_moments(p) ? memory + 2 * all + at : NULL;
}
/* Room after count floats so that what follows begins at 64 bytes. */
static inline int64_t px_part_room(int64_t count) { return (count + 15) & ~(int64_t)15; }

/* exchange.c: values of an adapter's part; and what a part that begins there takes over from it. */
px_status px_part_load(px_part *p, const px_adapter_part *part, px_error *err);
px_status px_part_settle(px_part *p, const px_adapter *adapter, px_error *err);

/* "q,v", "all" or the family's usual sites -> which; HF's module names count too. NULL: usual. PX_INVALID names what there is.
 * GPT-2 has q, k and v in one matrix. */
px_status px_part_sites(const px_config *config, const char *part, const char *targets, bool sites[PX_SITES], px_error *err);
/* The ends of module names that name the sites, in the order of sites, each once. */
px_status px_site_names(const px_config *config, const bool sites[PX_SITES], px_arena *arena, px_name_list *out, px_error *err);
/* The Hugging Face name of a projection's module, "model.layers.3.self_attn.q_proj", in the arena; NULL: no memory. */
const char *px_site_module(const px_config *config, int layer, px_site site, px_arena *arena);
/* in and out of a projection. */
int64_t px_site_in(const px_config *config, px_site site);
int64_t px_site_out(const px_config *config, px_site site);

#endif
