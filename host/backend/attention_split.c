/* SPDX-License-Identifier: MIT */
#include "backend/attention_split.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>

#include "kernels/attention_merge.h"

enum { ALIGNED_TO = 256 };

/* What lies in the scratch; with `base` NULL only its size is counted. */
typedef struct parts {
  void *rows;           /* [rows, heads, head_dim]: the prefix part's o, or dq */
  float *lse_a, *lse_b; /* forward */
  int32_t *no_keys;     /* [seqs + 1] zeros: offsets of own keys where there are none */
  void *engine;         /* all the rest */
  size_t engine_bytes, used;
} parts;

static void *take(parts *p, char *base, size_t bytes) {
  void *at = base ? base + p->used : NULL;
  p->used += (bytes + ALIGNED_TO - 1) / ALIGNED_TO * ALIGNED_TO;
  return at;
}

static parts lay_out(const px_attn_shape *s, int64_t rows, bool backward, void *scratch, size_t bytes) {
  parts p = {0};
  size_t shift = (ALIGNED_TO - (uintptr_t)scratch % ALIGNED_TO) % ALIGNED_TO, heads = (size_t)rows * (size_t)s->heads;
  char *base = scratch ? (char *)scratch + shift : NULL;
  p.rows = take(&p, base, heads * (size_t)s->head_dim * px_dtype_bytes(s->dtype, 1));
  p.no_keys = take(&p, base, ((size_t)s->seqs + 1) * sizeof *p.no_keys);
  if (!backward) p.lse_a = take(&p, base, heads * sizeof *p.lse_a);
  if (!backward) p.lse_b = take(&p, base, heads * sizeof *p.lse_b);
  p.engine = base ? base + p.used : NULL;
  p.engine_bytes = bytes > p.used + shift ? bytes - p.used - shift : 0;
  return p;
}

void px_attn_split_close(px_attn_split *s) {
  if (!s) return;
  if (s->engine.close) s->engine.close(s->engine.own);
  free(s);
}

size_t px_attn_split_bytes(const px_attn_split *s, const px_attn_shape *shape, int64_t rows, bool backward) {
  size_t engine = s->engine.scratch_bytes(s->engine.own, shape, rows, backward);
  return engine ? lay_out(shape, rows, backward, NULL, 0).used + engine + ALIGNED_TO : 0;
}

static bool has_segments(const px_attn_shape *s) { return s->adapter && s->segment_count > 0; }

static px_attn_shape own_keys_alone(px_attn_shape s) {
  s.adapter = NULL;
  s.segments = NULL;
  s.segment_count = s.segment_rows = 0;
  return s;
}

static px_attn_shape segments_alone(px_attn_shape s, const int32_t *no_keys) {
  s.mask = PX_MASK_FULL;
  s.window = s.k_rows = 0;
  s.k_offsets = no_keys;
  return s;
}

static void say_once(px_attn_split *s, bool backward, const char *why) {
  if (!s->said[backward])
    px_log_message(&s->be->log, PX_LOG_WARN, "%s does not take attention's %s pass here (%s): pfx's own kernels do", s->engine.name,
                   backward ? "backward" : "forward", why);
  s->said[backward] = true;
}

/* Room for the parts, before anything is enqueued. */
static const char *no_room(const parts *p) {
  return p->engine_bytes == 0 ? "the call came without memory for two parts" : NULL;
}

int px_attn_split_fwd(px_attn_split *s, const px_attn_fwd_args *a, void *stream) {
  const px_attn_shape *shape = &a->shape;
  if (shape->q_rows == 0 || shape->seqs == 0) return 0;
  parts p = lay_out(shape, shape->q_rows, false, a->scratch, a->scratch_bytes);
  const char *why = no_room(&p);
  px_attn_fwd_args own = *a;
  own.shape = own_keys_alone(*shape);
  own.lse = p.lse_b;
  own.scratch = p.engine;
  own.scratch_bytes = p.engine_bytes;
  int code = why ? PX_ATTN_REFUSED : s->engine.fwd(s->engine.own, &own, stream, &why);
  if (code == PX_ATTN_REFUSED) {
    say_once(s, false, why);
    return px_attn_fwd_cuda(a, stream);
  }
  if (code || (!has_segments(shape) && !a->lse)) return code;
  px_attn_merge_args merge = {.dtype = shape->dtype,
                              .rows = shape->q_rows,
                              .heads = shape->heads,
                              .head_dim = shape->head_dim,
                              .b = {.o = a->o, .lse = p.lse_b, .o_stride = a->o_stride},
                              .o = a->o,
                              .o_stride = a->o_stride,
                              .lse = a->lse,
                              .lse_row = 1,
                              .lse_head = shape->q_rows};
  merge.b.lse_row = s->engine.lse_by_rows ? shape->heads : 1;
  merge.b.lse_head = s->engine.lse_by_rows ? 1 : shape->q_rows;
  if (has_segments(shape)) {
    px_attn_fwd_args prefix = *a;
    prefix.shape = segments_alone(*shape, p.no_keys);
    prefix.o = p.rows;
    prefix.o_stride = (int64_t)shape->heads * shape->head_dim;
    prefix.lse = p.lse_a;
    code = (int)cudaMemsetAsync(p.no_keys, 0, ((size_t)shape->seqs + 1) * sizeof *p.no_keys, stream);
    if (!code) code = px_attn_fwd_cuda(&prefix, stream);
    merge.a = (px_attn_part){.o = p.rows, .lse = p.lse_a, .o_stride = prefix.o_stride, .lse_row = 1, .lse_head = shape->q_rows};
  }
  return code ? code : px_attn_merge_cuda(&merge, stream);
}

int px_attn_split_bwd(px_attn_split *s, const px_attn_bwd_args *a, void *stream) {
  const px_attn_shape *shape = &a->shape;
  if (!a->dq || shape->q_rows == 0 || shape->seqs == 0) return px_attn_bwd_cuda(a, stream); /* the segments' gradients alone */
  parts p = lay_out(shape, shape->q_rows, true, a->scratch, a->scratch_bytes);
  const char *why = no_room(&p);
  px_attn_bwd_args own = *a;
  own.shape = own_keys_alone(*shape);
  own.scratch = p.engine;
  own.scratch_bytes = p.engine_bytes;
  int code = why ? PX_ATTN_REFUSED : s->engine.bwd(s->engine.own, &own, stream, &why);
  if (code == PX_ATTN_REFUSED) {
    say_once(s, true, why);
    return px_attn_bwd_cuda(a, stream);
  }
  if (code || !has_segments(shape)) return code;
  px_attn_bwd_args prefix = *a; /* dk and dv have no rows here and stay as the engine left them */
  prefix.shape = segments_alone(*shape, p.no_keys);
  prefix.dq = p.rows;
  prefix.dq_stride = (int64_t)shape->heads * shape->head_dim;
  code = (int)cudaMemsetAsync(p.no_keys, 0, ((size_t)shape->seqs + 1) * sizeof *p.no_keys, stream);
  if (!code) code = px_attn_bwd_cuda(&prefix, stream);
  px_attn_merge_args sum = {.dtype = shape->dtype,
                            .rows = shape->q_rows,
                            .heads = shape->heads,
                            .head_dim = shape->head_dim,
                            .a = {.o = p.rows, .o_stride = prefix.dq_stride},
                            .b = {.o = a->dq, .o_stride = a->dq_stride},
                            .o = a->dq,
                            .o_stride = a->dq_stride};
  return code ? code : px_attn_merge_cuda(&sum, stream);
}
