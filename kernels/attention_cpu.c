/* SPDX-License-Identifier: MIT
 * What the arguments must be and what the operations cost. The plain specification is attention_plain_cpu.c, the fast
 * path attention_fwd_cpu.c (with decode) and attention_bwd_cpu.c over attention_tile_cpu.c. */
#include "kernels/attention.h"
#include "kernels/math_cpu.h"

enum { MAX_DIM = 256 };

static const char *check_shape(const px_attn_shape *s, bool needs_k_offsets) {
  if ((unsigned)s->dtype > PX_BF16) return "the type must be f32, f16 or bf16";
  if (s->head_dim < 1 || s->head_dim > MAX_DIM) return "head_dim must be from 1 to 256";
  if (s->heads < 1 || s->kv_heads < 1 || s->heads % s->kv_heads) return "heads must be a multiple of kv_heads";
  if (s->seqs < 0 || s->window < 0 || s->segment_count < 0) return "a count is negative";
  if (s->mask != PX_MASK_FULL && s->mask != PX_MASK_CAUSAL) return "the mask must be full or causal";
  if (!isfinite(s->scale)) return "scale must be finite";
  if (s->window && s->mask != PX_MASK_CAUSAL) return "a window needs the causal mask";
  if (s->seqs && (!s->q_offsets || (needs_k_offsets && !s->k_offsets))) return "offsets are missing";
  return s->adapter && s->segment_count && !s->segments ? "segments are missing" : NULL;
}

const char *px_attn_fwd_check(const px_attn_fwd_args *a) {
  const char *wrong = check_shape(&a->shape, true);
  if (wrong) return wrong;
  int64_t q = (int64_t)a->shape.heads * a->shape.head_dim, kv = (int64_t)a->shape.kv_heads * a->shape.head_dim;
  if (a->q_stride < q || a->o_stride < q || a->k_stride < kv || a->v_stride < kv)
    return "a stride is shorter than its row";
  return a->shape.seqs && (!a->q || !a->k || !a->v || !a->o) ? "a pointer is missing" : NULL;
}

const char *px_attn_bwd_check(const px_attn_bwd_args *a) {
  const char *wrong = check_shape(&a->shape, true);
  if (wrong) return wrong;
  int64_t q = (int64_t)a->shape.heads * a->shape.head_dim, kv = (int64_t)a->shape.kv_heads * a->shape.head_dim;
  if (a->q_stride < q || a->o_stride < q || a->dout_stride < q || a->k_stride < kv || a->v_stride < kv)
    return "a stride is shorter than its row";
  if (a->dq && (a->dq_stride < q || a->dk_stride < kv || a->dv_stride < kv)) return "a stride is shorter than its row";
  if (!a->dq != !a->dk || !a->dq != !a->dv) return "dq, dk and dv go together";
  return a->shape.seqs && (!a->q || !a->k || !a->v || !a->o || !a->dout || !a->lse || !a->workspace)
             ? "a pointer is missing"
             : NULL;
}

const char *px_attn_decode_check(const px_attn_decode_args *a) {
  const char *wrong = check_shape(&a->shape, false);
  if (wrong) return wrong;
  int64_t q = (int64_t)a->shape.heads * a->shape.head_dim;
  if (a->q_stride < q || a->o_stride < q) return "a stride is shorter than its row";
  if (a->shape.mask != PX_MASK_CAUSAL) return "decoding needs the causal mask";
  if (a->page_tokens < 1 || a->max_blocks < 1) return "page_tokens or max_blocks is out of range";
  return a->shape.seqs &&
                 (!a->q || !a->o || !a->k_cache || !a->v_cache || !a->block_table || !a->kv_lens || !a->workspace)
             ? "a pointer is missing"
             : NULL;
}

const char *px_attn_check_arrays(const px_attn_shape *s, bool decode) {
  if (s->seqs == 0) return NULL;
  if (s->q_rows != s->q_offsets[s->seqs] || (!decode && s->k_rows != s->k_offsets[s->seqs]))
    return "the number of rows is not the last offset";
  int64_t rows = 0;
  for (int32_t i = 0; s->adapter && i < s->segment_count; i++) rows += s->segments[i].len;
  if (rows > s->segment_rows) return "segment_rows is less than the rows of all segments";
  return NULL;
}

/* Pairs of a query and a key that it sees, of one head. Reads the arrays of the shape. */
static double pairs(const px_attn_shape *s, const int32_t *kv_lens) {
  double sum = 0;
  for (int32_t seq = 0; seq < s->seqs; seq++) {
    int32_t id = s->adapter ? s->adapter[seq] : -1;
    double prefix = id >= 0 && id < s->segment_count ? s->segments[id].len : 0;
    int64_t nq = s->q_offsets[seq + 1] - s->q_offsets[seq];
    int64_t nk = kv_lens ? kv_lens[seq] : s->k_offsets[seq + 1] - s->k_offsets[seq];
    for (int64_t i = 0; i < nq; i++) {
      int64_t end = s->mask == PX_MASK_CAUSAL ? i + nk - nq + 1 : nk;
      end = end > 0 ? end : 0;
      sum += prefix + (double)(s->window && end > s->window ? s->window : end);
    }
  }
  return sum;
}

static double segment_rows(const px_attn_shape *s) {
  double rows = 0;
  for (int32_t i = 0; i < s->segment_count; i++) rows += s->segments[i].len;
  return rows;
}

size_t px_attn_decode_workspace(const px_attn_shape *s, int64_t q_rows) {
  int64_t parts = px_attn_own_parts(s->kv_heads) + px_attn_segment_parts(s->kv_heads), dim = (s->head_dim + 3) / 4 * 4;
  return (size_t)(q_rows * s->heads * parts * (dim + 2)) * sizeof(float) + 64;
}

px_cost px_attn_fwd_cost(const px_attn_fwd_args *a) {
  const px_attn_shape *s = &a->shape;
  if (s->seqs == 0) return (px_cost){0};
  double element = (double)px_dtype_bytes(s->dtype, 1), q = (double)s->q_offsets[s->seqs] * s->heads;
  double kv = ((double)s->k_offsets[s->seqs] + segment_rows(s)) * s->kv_heads;
  return (px_cost){.bytes = element * s->head_dim * (2 * q + 2 * kv) + (a->lse ? 4 * q : 0),
                   .operations = pairs(s, NULL) * s->heads * (4.0 * s->head_dim + 3)};
}

px_cost px_attn_bwd_cost(const px_attn_bwd_args *a) {
  const px_attn_shape *s = &a->shape;
  if (s->seqs == 0) return (px_cost){0};
  double element = (double)px_dtype_bytes(s->dtype, 1), q = (double)s->q_offsets[s->seqs] * s->heads;
  double own = (double)s->k_offsets[s->seqs] * s->kv_heads, segments = segment_rows(s) * s->kv_heads;
  double read = element * s->head_dim * (3 * q + 2 * own + 2 * segments) + 4 * q;
  double written = element * s->head_dim * (a->dq ? q + 2 * own : 0) + 16.0 * s->head_dim * segments;
  /* Without dq only pairs with segment keys count: s, <do, value>, dkey and dvalue. */
  double seen = pairs(s, NULL), with_segments = 0;
  for (int32_t seq = 0; seq < s->seqs && s->adapter; seq++)
    if (s->adapter[seq] >= 0 && s->adapter[seq] < s->segment_count)
      with_segments += (double)(s->q_offsets[seq + 1] - s->q_offsets[seq]) * s->segments[s->adapter[seq]].len;
  return (px_cost){
      .bytes = read + written,
      .operations = s->heads * (a->dq ? seen * (10.0 * s->head_dim + 5) : with_segments * (8.0 * s->head_dim + 5))};
}

px_cost px_attn_decode_cost(const px_attn_decode_args *a) {
  const px_attn_shape *s = &a->shape;
  if (s->seqs == 0) return (px_cost){0};
  double element = (double)px_dtype_bytes(s->dtype, 1), q = (double)s->q_offsets[s->seqs] * s->heads,
         keys = segment_rows(s);
  for (int32_t seq = 0; seq < s->seqs; seq++) {
    int64_t nq = s->q_offsets[seq + 1] - s->q_offsets[seq], most = s->window ? s->window + nq - 1 : a->kv_lens[seq];
    keys += (double)(most < a->kv_lens[seq] ? most : a->kv_lens[seq]);
  }
  return (px_cost){.bytes = element * s->head_dim * (2 * q + 2 * keys * s->kv_heads),
                   .operations = pairs(s, a->kv_lens) * s->heads * (4.0 * s->head_dim + 3)};
}
