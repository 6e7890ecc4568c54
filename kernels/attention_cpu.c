/* SPDX-License-Identifier: MIT
 * What the arguments must be and what the operations cost. The plain specification is attention_plain_cpu.c, the fast path
 * attention_fwd_cpu.c (with decode) and attention_bwd_cpu.c over attention_tile_cpu.c. */
#include "kernels/attention.h"
#include "kernels/math_cpu.h"

enum { MAX_DIM = 256 };

static const char *check_shape(const px_attn_shape *s, bool needs_k_offsets) {
  if (px_check_type(s->dtype)) return "the type must be f32 or bf16";
  if (s->head_dim < 1 || s->head_dim > MAX_DIM) return "head_dim must be from 1 to 256";
  if (s->heads < 1 || s->kv_heads < 1 || s->heads % s->kv_heads) return "heads must be a multiple of kv_heads";
  if (s->seqs < 0 || s->window < 0 || s->segment_count < 0) return "a count is negative";
  if (s->window && s->mask != PX_MASK_CAUSAL) return "a window needs the causal mask";
  if (s->seqs && (!s->q_offsets || (needs_k_offsets && !s->k_offsets))) return "offsets are missing";
  return s->adapter && s->segment_count && !s->segments ? "segments are missing" : NULL;
}

const char *px_attn_fwd_check(const px_attn_fwd_args *a) {
  const char *wrong = check_shape(&a->shape, true);
  if (wrong) return wrong;
  int64_t q = (int64_t)a->shape.heads * a->shape.head_dim, kv = (int64_t)a->shape.kv_heads * a->shape.head_dim;
  if (a->q_stride < q || a->o_stride < q || a->k_stride < kv || a->v_stride < kv) return "a stride is shorter than its row";
  return a->shape.seqs && (!a->q || !a->k || !a->v || !a->o) ? "a pointer is missing" : NULL;
}

const char *px_attn_bwd_check(const px_attn_bwd_args *a) {
  const char *wrong = check_shape(&a->shape, true);
  if (wrong) return wrong;
  int64_t q = (int64_t)a->shape.heads * a->shape.head_dim, kv = (int64_t)a->shape.kv_heads * a->shape.head_dim;
  if (a->q_stride < q || a->o_stride < q || a->dout_stride < q || a->k_stride < kv || a->v_stride < kv) return "a stride is shorter than its row";
  if (a->dq && (a->dq_stride < q || a->dk_stride < kv || a->dv_stride < kv)) return "a stride is shorter than its row";
  if (!a->dq != !a->dk || !a->dq != !a->dv) return "dq, dk and dv go together";
  return a->shape.seqs && (!a->q || !a->k || !a->v || !a->o || !a->dout || !a->lse || !a->workspace) ? "a pointer is missing" : NULL;
}

const char *px_attn_decode_check(const px_attn_decode_args *a) {
  const char *wrong = check_shape(&a->shape, false);
  if (wrong) return wrong;
  int64_t q = (int64_t)a->shape.heads * a->shape.head_dim;
  if (a->q_stride < q || a->o_stride < q) return "a stride is shorter than its row";
  if (a->page_tokens < 1 || a->max_blocks < 1) return "page_tokens or max_blocks is out of range";
  return a->shape.seqs && (!a->q || !a->o || !a->k_cache || !a->v_cache || !a->block_table || !a->kv_lens) ? "a pointer is missing" : NULL;
}
