/* SPDX-License-Identifier: MIT
 * One pass over the model: a batch, the frozen weights, what tuning adds, and the buffers it runs in.
 * forward.c (tokens to the last residual), head.c (labelled rows to loss, logits and their gradient) and backward.c
 * (back to the prefixes) are the mathematics; all of them only enqueue operations, failures stick in the backend. */
#ifndef PX_MODEL_STACK_H
#define PX_MODEL_STACK_H

#include "model/hooks.h"
#include "model/plan.h"
#include "model/weights.h"

/* A flat list of tokens; no padding. Row t of label_rows scores: its logits predict targets. Host memory. */
typedef struct px_batch {
  int32_t tokens, seqs, labels;
  const int32_t *ids;         /* [tokens] */
  const int32_t *positions;   /* [tokens]: the adapter's prefix length, then counting up */
  const int32_t *offsets;     /* [seqs + 1] */
  const int32_t *adapter;     /* [seqs]; -1: none. NULL: none at all */
  const int32_t *label_rows;  /* [labels] ascending */
  const int32_t *targets;     /* [labels]; NULL where only logits are wanted */
  const int32_t *label_group; /* [labels] group of the loss; NULL: 0 */
} px_batch;

/* Keys and values of earlier tokens, for generation. All pointers in backend memory, [layers] pointers in host memory. */
typedef struct px_kv_cache {
  void **k, **v;              /* per layer [slots, kv_heads * head_dim] */
  int32_t page_tokens, max_blocks;
  const int32_t *block_table; /* of this batch's sequences */
  const int32_t *kv_lens;     /* [seqs] with the new tokens */
  const int64_t *slots;       /* [tokens] where the new tokens go */
  bool fresh;                 /* no sequence of the batch has earlier tokens */
} px_kv_cache;

typedef struct px_stack {
  px_backend *be;
  const px_config *config;
  const px_weights *weights;
  const px_hooks *hooks;    /* NULL: the frozen model alone */
  px_buffers *buffers;
  px_batch batch;           /* pointers into buffers after px_stack_begin */
  px_kv_cache *cache;       /* NULL: no generation */
  void *delta;              /* what the next norm adds to its input; NULL: nothing */
  /* Rows of one's own in the place of the vocabulary's: ids index them. [row_count, dim] of the model's type; NULL: the
   * vocabulary's. drows (float32, accumulated) is their gradient. */
  const void *rows;
  int32_t row_count;
  float *drows;
  /* Gradients of this batch's keys and values that come from elsewhere, [layers] of float32 [tokens, kv_heads * head_dim];
   * NULL: none. */
  float *const *dk_more, *const *dv_more;
  void (*layer_done)(void *user, int layer); /* backward: this layer's gradients are complete; NULL: nobody asks */
  void *layer_done_user;
} px_stack;

/* Copies the batch into the buffers. PX_INVALID when it exceeds the plan. */
px_status px_stack_begin(px_stack *s, const px_batch *batch, px_error *err);
/* The two halves of that, for a batch that comes into the buffers another way, with ids, positions, offsets, adapters,
 * labels and targets, all of one group. */
px_status px_stack_check(const px_stack *s, const px_batch *batch, px_error *err);
void px_stack_bind(px_stack *s, int32_t tokens, int32_t seqs, int32_t labels);

/* forward.c */
void px_stack_fwd(px_stack *s);
void px_layer_fwd(px_stack *s, int layer);

/* head.c: after px_stack_fwd. px_head_fwd brings the labelled rows to the normed input of the vocabulary product. */
void px_head_fwd(px_stack *s);
/* Losses of the labelled rows into groups[label_group].loss_sum (backend memory, accumulated) and buffers->row_loss;
 * with_grad also the gradient of the summed loss with respect to the last residual, into buffers->dx. */
void px_head_loss(px_stack *s, px_group *groups, bool with_grad);
/* float32 logits of labelled rows [from, from + count) into out (backend memory, [count, vocab]). */
void px_head_logits(px_stack *s, int64_t from, int64_t count, float *out);

/* backward.c: from buffers->dx to the segments' gradients, which accumulate. */
void px_stack_bwd(px_stack *s);
void px_layer_bwd(px_stack *s, int layer);

px_attn_shape px_stack_attention(const px_stack *s, int layer);

/* project.c: a projection of a layer with whatever is attached to it. Rows are dense.
 * y = x W^T + b + ... ; gelu (NULL: not wanted) = GELU(y), where px_site_is_plain. */
void px_site_fwd(px_stack *s, int layer, px_site site, const void *x, void *y, void *gelu);
/* Nothing is attached, and nothing is trained: the product is all there is. */
bool px_site_is_plain(const px_stack *s, int layer, px_site site);
/* Whether px_site_bwd reads x. */
bool px_site_needs_input(const px_stack *s, int layer, px_site site);
/* dx (+)= dy W + ..., and the gradients of what is attached and trained. x: as in forward (DOWN: before px_down_input); NULL
 * where it is not needed. dy may be scaled in place, but that of O is left. dx NULL: not wanted. */
void px_site_bwd(px_stack *s, int layer, px_site site, void *dy, const void *x, void *dx, bool accumulate);
/* The input of DOWN in front of its product: scaled where something says so, in place. */
void px_down_input(px_stack *s, int layer, void *act);

static inline const px_weights *px_stack_weights(const px_stack *s) { return s->hooks && s->hooks->weights ? s->hooks->weights : s->weights; }
static inline const px_weights *px_stack_grads(const px_stack *s) { return s->hooks ? s->hooks->grads : NULL; }
/* A gradient's place: the structure of weights is constant for those who only read it. */
static inline float *px_grad(const void *place) { return (float *)(uintptr_t)place; }

#endif
