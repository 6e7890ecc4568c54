/* SPDX-License-Identifier: MIT
 * include/pfx/attention.h: the kernels' own arguments under public names, checked. */
#include <pfx/attention.h>

#include <math.h>

#include "api/handles.h"
#include "backend/backend_cuda.h"

#define SAME(a, b) _Static_assert(offsetof(pfx_segment, a) == offsetof(px_kv_segment, b), "arrays of them are passed through")
SAME(k, k);
SAME(v, v);
SAME(stride, stride);
SAME(length, len);
SAME(dk, dk);
SAME(dv, dv);
SAME(grad_stride, grad_stride);
_Static_assert(sizeof(pfx_segment) == sizeof(px_kv_segment), "arrays of them are passed through");

static const px_cuda_attention on_cpu = {0}; /* its address says where */

/* The shape inside, and who works on it. */
static px_status open_shape(const pfx_attention_shape *shape, px_attn_shape *out, const px_cuda_attention **cuda, px_error *err) {
  pfx_attention_shape s = pfx_attention_shape_init();
  if (!shape) return px_fail(err, PX_INVALID, "pfx_attention_shape is missing");
  if (px_api_options(&s, sizeof s, shape, "pfx_attention_shape", (pfx_error *)err) != PFX_OK) return PX_INVALID;
  if ((unsigned)s.place > PFX_AT_CUDA) return px_fail(err, PX_INVALID, "place %d is not known", (int)s.place);
  if ((unsigned)s.type > PFX_ATTENTION_F16) return px_fail(err, PX_INVALID, "type %d is not known", (int)s.type);
  if (s.head_dim < 1 || s.kv_heads < 1)
    return px_fail(err, PX_INVALID, "head_dim %d and kv_heads %d must be positive", s.head_dim, s.kv_heads);
  *cuda = s.place == PFX_AT_CUDA ? px_cuda_attention_calls() : &on_cpu;
  if (!*cuda)
    return px_fail(err, PX_NO_DEVICE, "this build of pfx has no CUDA: use PFX_AT_CPU, or build with cmake -D PFX_CUDA=ON");
  *out = (px_attn_shape){.dtype = s.type == PFX_ATTENTION_BF16 ? PX_BF16 : s.type == PFX_ATTENTION_F16 ? PX_F16 : PX_F32,
                         .heads = s.heads,
                         .kv_heads = s.kv_heads,
                         .head_dim = s.head_dim,
                         .scale = s.scale != 0 ? s.scale : (float)(1 / sqrt((double)s.head_dim)),
                         .mask = s.causal ? PX_MASK_CAUSAL : PX_MASK_FULL,
                         .window = s.window,
                         .seqs = s.sequences,
                         .q_rows = s.query_rows,
                         .k_rows = s.own_rows,
                         .q_offsets = s.q_offsets,
                         .k_offsets = s.k_offsets,
                         .adapter = s.segment_of,
                         .segments = (const px_kv_segment *)s.segments,
                         .segment_count = s.segment_count,
                         .segment_rows = s.segment_rows};
  return PX_OK;
}

static int64_t stride_or(int64_t given, int64_t dense) { return given ? given : dense; }

/* Whether the call may go on: the stream fits the place, the kernel's check and, where the host can read them, the arrays'. */
static px_status accept(const char *call, bool cpu, void *stream, const char *wrong, const px_attn_shape *arrays, bool decode, px_error *err) {
  if (cpu && stream) return px_fail(err, PX_INVALID, "%s: stream must be NULL on the CPU", call);
  if (!wrong && cpu && arrays) wrong = px_attn_check_arrays(arrays, decode);
  return wrong ? px_fail(err, PX_INVALID, "%s: %s", call, wrong) : PX_OK;
}

static pfx_status outcome(const char *call, const px_cuda_attention *cuda, int code, px_error *err) {
  if (code == 0) return PFX_OK;
  if (cuda == &on_cpu) return px_api_status(px_fail(err, PX_FAILED, "%s failed", call));
  px_fail(err, PX_NO_DEVICE, "%s: the launch failed: %s", call, cuda->error_text(code));
  if (err) err->native = code;
  return PFX_NO_DEVICE;
}

/* The beginning that all four share: `a` gets the caller's arguments, `shape` and `cuda` what they are computed with. */
#define OPEN(type)                                                                                                        \
  px_error *e = px_api_error(err);                                                                                        \
  const px_cuda_attention *cuda;                                                                                          \
  px_attn_shape s;                                                                                                        \
  type a = type##_init();                                                                                                 \
  px_status status = open_shape(shape, &s, &cuda, e);                                                                     \
  if (status != PX_OK) return px_api_status(status);                                                                      \
  if (!args) return px_api_status(px_fail(e, PX_INVALID, #type " is missing"));                                           \
  if (px_api_options(&a, sizeof a, args, #type, err) != PFX_OK) return PFX_INVALID;                                       \
  const bool cpu = cuda == &on_cpu;                                                                                       \
  const int64_t own = (int64_t)s.kv_heads * s.head_dim

pfx_status pfx_attention_forward(const pfx_attention_shape *shape, const pfx_attention_forward_args *args, void *stream, pfx_error *err) {
  OPEN(pfx_attention_forward_args);
  const int64_t all = (int64_t)s.heads * s.head_dim;
  px_attn_fwd_args f = {.shape = s,
                        .q = a.q,
                        .k = a.k,
                        .v = a.v,
                        .o = a.o,
                        .lse = a.lse,
                        .q_stride = stride_or(a.q_stride, all),
                        .k_stride = stride_or(a.k_stride, own),
                        .v_stride = stride_or(a.v_stride, own),
                        .o_stride = stride_or(a.o_stride, all)};
  status = accept("pfx_attention_forward", cpu, stream, px_attn_fwd_check(&f), &s, false, e);
  if (status != PX_OK) return px_api_status(status);
  return outcome("pfx_attention_forward", cuda, cpu ? px_attn_fwd_cpu(&f) : cuda->fwd(&f, stream), e);
}

pfx_status pfx_attention_backward(const pfx_attention_shape *shape, const pfx_attention_backward_args *args, void *stream, pfx_error *err) {
  OPEN(pfx_attention_backward_args);
  const int64_t all = (int64_t)s.heads * s.head_dim;
  px_attn_bwd_args b = {.shape = s,
                        .q = a.q,
                        .k = a.k,
                        .v = a.v,
                        .o = a.o,
                        .dout = a.dout,
                        .lse = a.lse,
                        .dq = a.dq,
                        .dk = a.dk,
                        .dv = a.dv,
                        .workspace = a.workspace,
                        .q_stride = stride_or(a.q_stride, all),
                        .k_stride = stride_or(a.k_stride, own),
                        .v_stride = stride_or(a.v_stride, own),
                        .o_stride = stride_or(a.o_stride, all),
                        .dout_stride = stride_or(a.dout_stride, all),
                        .dq_stride = stride_or(a.dq_stride, all),
                        .dk_stride = stride_or(a.dk_stride, own),
                        .dv_stride = stride_or(a.dv_stride, own)};
  status = accept("pfx_attention_backward", cpu, stream, px_attn_bwd_check(&b), &s, false, e);
  if (status != PX_OK) return px_api_status(status);
  return outcome("pfx_attention_backward", cuda, cpu ? px_attn_bwd_cpu(&b) : cuda->bwd(&b, stream), e);
}

pfx_status pfx_attention_decode(const pfx_attention_shape *shape, const pfx_attention_decode_args *args, void *stream, pfx_error *err) {
  OPEN(pfx_attention_decode_args);
  const int64_t all = (int64_t)s.heads * s.head_dim;
  (void)own;
  px_attn_decode_args d = {.shape = s,
                           .q = a.q,
                           .o = a.o,
                           .q_stride = stride_or(a.q_stride, all),
                           .o_stride = stride_or(a.o_stride, all),
                           .k_cache = a.k_cache,
                           .v_cache = a.v_cache,
                           .block_table = a.block_table,
                           .kv_lens = a.kv_lengths,
                           .max_blocks = a.max_blocks,
                           .page_tokens = a.page_tokens,
                           .workspace = a.workspace};
  status = accept("pfx_attention_decode", cpu, stream, px_attn_decode_check(&d), &s, true, e);
  if (status != PX_OK) return px_api_status(status);
  return outcome("pfx_attention_decode", cuda, cpu ? px_attn_decode_cpu(&d) : cuda->decode(&d, stream), e);
}

pfx_status pfx_attention_write(const pfx_attention_shape *shape, const pfx_attention_write_args *args, void *stream, pfx_error *err) {
  OPEN(pfx_attention_write_args);
  px_kv_write_args w = {.dtype = s.dtype,
                        .rows = s.k_rows,
                        .dim = own,
                        .k_stride = stride_or(a.k_stride, own),
                        .v_stride = stride_or(a.v_stride, own),
                        .k = a.k,
                        .v = a.v,
                        .k_cache = a.k_cache,
                        .v_cache = a.v_cache,
                        .slots = a.slots};
  status = accept("pfx_attention_write", cpu, stream, px_kv_write_check(&w), NULL, false, e);
  if (status != PX_OK) return px_api_status(status);
  return outcome("pfx_attention_write", cuda, cpu ? px_kv_write_cpu(&w) : cuda->kv_write(&w, stream), e);
}

/* Workspaces do not depend on the place, so they can be asked for by a build without CUDA. */
static px_status sizes_of(const pfx_attention_shape *shape, px_attn_shape *s, px_error *err) {
  const px_cuda_attention *ignored;
  pfx_attention_shape copy = pfx_attention_shape_init();
  if (!shape) return px_fail(err, PX_INVALID, "pfx_attention_shape is missing");
  if (px_api_options(&copy, sizeof copy, shape, "pfx_attention_shape", (pfx_error *)err) != PFX_OK) return PX_INVALID;
  copy.place = PFX_AT_CPU;
  PX_TRY(open_shape(&copy, s, &ignored, err));
  if (s->heads < 1 || s->head_dim > 256 || s->heads % s->kv_heads != 0 || s->seqs < 0 || s->q_rows < 0 || s->k_rows < 0 || s->segment_rows < 0)
    return px_fail(err, PX_INVALID, "head_dim must be in 1 .. 256, heads a multiple of kv_heads, and no count negative");
  return PX_OK;
}

pfx_status pfx_attention_backward_workspace(const pfx_attention_shape *shape, size_t *bytes, pfx_error *err) {
  px_attn_shape s;
  *bytes = 0;
  px_status status = sizes_of(shape, &s, px_api_error(err));
  if (status == PX_OK) *bytes = px_attn_bwd_workspace(&s, s.q_rows > s.k_rows ? s.q_rows : s.k_rows, s.segment_rows);
  return px_api_status(status);
}

pfx_status pfx_attention_decode_workspace(const pfx_attention_shape *shape, size_t *bytes, pfx_error *err) {
  px_attn_shape s;
  *bytes = 0;
  px_status status = sizes_of(shape, &s, px_api_error(err));
  if (status == PX_OK) *bytes = px_attn_decode_workspace(&s, s.q_rows);
  return px_api_status(status);
}
