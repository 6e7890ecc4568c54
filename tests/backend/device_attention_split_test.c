/* SPDX-License-Identifier: MIT
 * Attention in two parts on a CUDA device, forward and backward, against the equations in float64: the other engine is
 * our own kernels without segments, so that nothing but this build is needed. Then with cuDNN, where it is; PX_DEVICE_PROPERTIES
 * names a file for what it has to know of the device to make plans elsewhere. */
#include "helpers/attention_problem.h"

#include "backend/attention_engine.h"
#include "backend/cuda_library.h"
#include "backend/cuda_state.h"
#include "core/file.h"
#include "helpers/golden.h"
#include "helpers/pass.h"
#include "kernels/attention_merge.h"

/* ---- an engine of our own ---- */

typedef struct stand_in {
  bool by_rows, refuses_fwd, refuses_bwd;
  int fails, calls[2];
} stand_in;

static size_t lse_bytes(const px_attn_shape *s, int64_t rows) { return (size_t)(rows * s->heads) * 4; }

static size_t engine_bytes(void *own, const px_attn_shape *s, int64_t rows, bool backward) {
  const stand_in *e = own;
  if (backward ? e->refuses_bwd : e->refuses_fwd) return 0;
  return lse_bytes(s, rows) + 1024;
}

static int engine_fwd(void *own, const px_attn_fwd_args *a, void *stream, const char **why) {
  stand_in *e = own;
  const px_attn_shape *s = &a->shape;
  *why = "it does not want to";
  if (e->refuses_fwd) return PX_ATTN_REFUSED;
  if (e->fails) return e->fails;
  e->calls[0]++;
  assert_null(s->segments);
  assert_true(a->scratch_bytes >= lse_bytes(s, s->q_rows) + 1024 && s->adapter == NULL);
  px_attn_fwd_args mine = *a;
  if (e->by_rows) mine.lse = (float *)((char *)a->scratch + 1024);
  int code = px_attn_fwd_cuda(&mine, stream);
  px_attn_ragged_args turn = {.offsets = s->q_offsets, .lens = a->scratch, .rows = s->q_rows, .heads = s->heads, .lse = mine.lse, .stats = a->lse};
  return code || !e->by_rows ? code : px_attn_ragged_cuda(&turn, stream);
}

static int engine_bwd(void *own, const px_attn_bwd_args *a, void *stream, const char **why) {
  stand_in *e = own;
  *why = "it does not want to";
  if (e->refuses_bwd) return PX_ATTN_REFUSED;
  e->calls[1]++;
  assert_null(a->shape.segments);
  return px_attn_bwd_cuda(a, stream);
}

static const char *engine_error(void *own, int code) {
  (void)own;
  return code == -1234 ? "the engine is out of order" : "?";
}

/* ---- a problem on the device ---- */

enum { MOST_COPIES = 40 };

typedef struct copies {
  void *host[MOST_COPIES], *device[MOST_COPIES];
  size_t bytes[MOST_COPIES];
  int count;
} copies;

static void *put(px_backend *be, copies *c, void *host, size_t bytes) {
  void *device = px_backend_alloc(be, bytes + 64);
  px_backend_write(be, device, host, bytes);
  c->host[c->count] = host, c->device[c->count] = device, c->bytes[c->count++] = bytes;
  return device;
}

static size_t size_of(const problem *p, int64_t rows, int64_t stride) { return (size_t)(rows * stride) * px_dtype_bytes(p->type, 1); }

/* What a call needs on the device; `lean`: without scratch. */
static void on_device(px_backend *be, const problem *p, copies *c, bool lean, px_attn_fwd_args *f, px_attn_bwd_args *b) {
  px_attn_shape s = shape_of(p), plan = s;
  bool alike = memcmp(p->q_offsets, p->k_offsets, (size_t)(p->seqs + 1) * 4) == 0;
  if (alike) plan.k_offsets = plan.q_offsets;
  size_t q = size_of(p, p->rows, p->q_stride), kv = size_of(p, p->keys, p->kv_stride);
  px_kv_segment seg[3];
  for (int i = 0; i < p->segments; i++) {
    size_t bytes = (size_t)(p->seg[i].len * p->kv_heads * p->dim) * 4;
    seg[i] = p->seg[i];
    seg[i].k = put(be, c, (void *)(uintptr_t)p->seg[i].k, size_of(p, p->seg[i].len, p->seg[i].stride));
    seg[i].v = put(be, c, (void *)(uintptr_t)p->seg[i].v, size_of(p, p->seg[i].len, p->seg[i].stride));
    seg[i].dk = put(be, c, p->seg[i].dk, bytes);
    seg[i].dv = put(be, c, p->seg[i].dv, bytes);
  }
  s.segments = p->segments ? put(be, c, seg, (size_t)p->segments * sizeof *seg) : NULL;
  if (p->segments) c->count--, px_backend_wait(be); /* nothing to fetch */
  void *segments = (void *)(uintptr_t)s.segments;
  s.q_offsets = put(be, c, (void *)(uintptr_t)p->q_offsets, (size_t)(p->seqs + 1) * 4);
  s.k_offsets = alike ? s.q_offsets : put(be, c, (void *)(uintptr_t)p->k_offsets, (size_t)(p->seqs + 1) * 4);
  s.adapter = p->segments ? put(be, c, (void *)(uintptr_t)p->adapter, (size_t)p->seqs * 4) : NULL;
  *f = (px_attn_fwd_args){.shape = s, .q_stride = p->q_stride, .k_stride = p->kv_stride, .v_stride = p->kv_stride, .o_stride = p->q_stride};
  f->q = put(be, c, p->q, q), f->k = put(be, c, p->k, kv), f->v = put(be, c, p->v, kv);
  f->o = put(be, c, p->o, q), f->lse = put(be, c, p->lse, (size_t)(p->rows * p->heads) * 4);
  size_t forward = px_backend_attention_bytes(be, &plan, p->rows, false), backward = px_backend_attention_bytes(be, &plan, p->rows, true);
  f->scratch_bytes = lean ? 0 : forward > backward ? forward : backward;
  f->scratch = f->scratch_bytes ? px_backend_alloc(be, f->scratch_bytes) : NULL;
  *b = (px_attn_bwd_args){.shape = s, .q = f->q, .k = f->k, .v = f->v, .o = f->o, .lse = f->lse, .scratch = f->scratch, .scratch_bytes = f->scratch_bytes};
  b->q_stride = b->o_stride = b->dout_stride = b->dq_stride = p->q_stride;
  b->k_stride = b->v_stride = b->dk_stride = b->dv_stride = p->kv_stride;
  b->dout = put(be, c, p->dout, q);
  if (!p->only_segments) b->dq = put(be, c, p->dq, q), b->dk = put(be, c, p->dk, kv), b->dv = put(be, c, p->dv, kv);
  b->workspace = px_backend_alloc(be, px_attn_bwd_workspace(&plan, p->rows > p->keys ? p->rows : p->keys, p->segment_rows));
  c->device[c->count] = b->workspace, c->bytes[c->count++] = 0;
  c->device[c->count] = f->scratch, c->bytes[c->count++] = 0;
  c->device[c->count] = segments, c->bytes[c->count++] = 0;
}

static void back(px_backend *be, copies *c) {
  px_error err;
  for (int i = 0; i < c->count; i++) {
    if (c->bytes[i]) px_backend_read(be, c->host[i], c->device[i], c->bytes[i]);
    px_backend_free(be, c->device[i]);
  }
  ASSERT_OK(px_backend_status(be, &err));
}

/* ---- the tests ---- */

static px_backend *be;

/* With this engine from here on; NULL: none. */
static void use(stand_in *e) {
  px_cuda_state *s = px_cuda_own(be);
  px_attn_split_close(s->split);
  s->split = NULL;
  if (!e) return;
  px_attn_split *split = calloc(1, sizeof *split);
  assert_non_null(split);
  *split = (px_attn_split){.be = be, .engine = {.name = "stand-in", .own = e, .lse_by_rows = e->by_rows, .scratch_bytes = engine_bytes,
                                                .fwd = engine_fwd, .bwd = engine_bwd, .error_text = engine_error}};
  s->split = split;
}

/* Forward and backward on the device, the results in p's own memory; `recorded`: as a recording that is replayed. */
static void run(problem *p, bool lean, bool recorded) {
  copies c = {0};
  px_attn_fwd_args f;
  px_attn_bwd_args b;
  on_device(be, p, &c, lean, &f, &b);
  if (recorded) px_backend_record(be);
  px_op_attn_fwd(be, &f);
  px_op_attn_bwd(be, &b);
  px_recording *made = recorded ? px_backend_recorded(be) : NULL;
  if (made) px_backend_replay(be, made);
  px_backend_wait(be);
  px_backend_recording_free(be, made);
  back(be, &c);
}

static const int Q_LENS[] = {5, 0, 1, 37, 70, 8}, SEGS[] = {5, 0, 37}, K_LENS[] = {7, 3, 1, 37, 72, 6};

/* A problem of sequences of the lengths above. */
static void pose(problem *p, const int *k_lens) {
  p->seqs = 6;
  make(p, Q_LENS, k_lens, SEGS);
}

static void the_parts_are_the_whole(void **state) {
  (void)state;
  static const int dims[] = {64, 24, 80, 9, 128};
  for (int type = 0; type < 3; type++)
    for (int d = 0; d < 5; d++)
      for (int way = (d + type) % 2; way < 4; way += 2) {
        stand_in e = {.by_rows = d & 1};
        problem p = {.type = ATTENTION_TYPES[type], .heads = 4, .kv_heads = d % 2 ? 4 : 2, .dim = dims[d], .mask = PX_MASK_CAUSAL,
                     .window = d % 3 == 1 ? 6 : 0, .segments = way == 3 ? 0 : 3};
        use(&e);
        pose(&p, way == 2 ? K_LENS : Q_LENS);
        if (way == 3) memset(p.adapter, -1, sizeof p.adapter);
        truth t = reference(&p);
        run(&p, false, way & 2);
        expect_truth(&p, &t);
        assert_int_equal(e.calls[0], 1);
        assert_int_equal(e.calls[1], 1);
        release_truth(&t);
        release(&p);
      }
  use(NULL);
}

/* A first layer wants the segments' gradients alone: the other engine has nothing to do in backward. */
static void segments_alone_in_backward(void **state) {
  (void)state;
  stand_in e = {0};
  problem p = {.type = PX_BF16, .heads = 4, .kv_heads = 2, .dim = 64, .mask = PX_MASK_CAUSAL, .segments = 3, .only_segments = true}, q = p;
  use(&e);
  pose(&p, Q_LENS), pose(&q, Q_LENS);
  truth t = reference(&p);
  run(&p, false, false);
  for (int i = 0; i < 3; i++)
    expect_near_of(0.1, "segment dk", PX_F32, p.seg[i].dk, t.seg_dk[i], p.seg[i].len, 2 * 64, 2 * 64, TOL_BF16_ATTENTION);
  assert_int_equal(e.calls[0], 1);
  assert_int_equal(e.calls[1], 0);
  release_truth(&t);
  release(&p), release(&q);
  use(NULL);
}

static int warnings;
static void count_warnings(void *user, int level, const char *message) {
  (void)user;
  if (level == PX_LOG_WARN && strstr(message, "stand-in does not take attention's") && strstr(message, "(it does not want to)")) warnings++;
}

/* What the engine does not take, or has no memory for, has the bits of our own kernels, and is said once. */
static void what_is_refused_is_fused(void **state) {
  (void)state;
  problem usual = {.type = PX_BF16, .heads = 4, .kv_heads = 2, .dim = 64, .mask = PX_MASK_CAUSAL, .segments = 3};
  use(NULL);
  pose(&usual, Q_LENS);
  run(&usual, false, false);
  for (int way = 0; way < 4; way++) {
    stand_in e = {.refuses_fwd = way & 1, .refuses_bwd = true};
    use(&e);
    be->log = (px_log){.fn = count_warnings};
    warnings = 0;
    for (int twice = 0; twice < 2; twice++) {
      problem p = {.type = PX_BF16, .heads = 4, .kv_heads = 2, .dim = 64, .mask = PX_MASK_CAUSAL, .segments = 3};
      pose(&p, Q_LENS);
      run(&p, way & 2, false);
      if (way & 1) assert_memory_equal(p.o, usual.o, size_of(&p, p.rows, p.q_stride));
      if (way & 1) assert_memory_equal(p.dq, usual.dq, size_of(&p, p.rows, p.q_stride));
      if (way & 1) assert_memory_equal(p.dk, usual.dk, size_of(&p, p.keys, p.kv_stride));
      release(&p);
    }
    if (way == 0) assert_int_equal(warnings, 1); /* backward alone */
    assert_int_equal(e.calls[0], way == 0 ? 2 : 0);
    assert_int_equal(e.calls[1], 0);
    be->log = (px_log){0};
    use(NULL);
  }
  release(&usual);
}

/* A whole pass over a model, whose buffer plan has the room: the same loss and the same gradients. */
static void a_model_in_two_parts(void **state) {
  (void)state;
  static const int32_t lens[] = {9, 4, 23, 1}, prefixes[] = {3, 5};
  px_error err;
  char path[512];
  px_model *model;
  ASSERT_OK(px_model_open(golden_path("mistral", "", path), &(px_model_options){.device = "cuda", .dtype = PX_F32}, &model, &err));
  pass_prefixes p;
  pass_prefixes_open(model, be, 2, prefixes, 7, &p);
  pass_rows rows = pass_rows_make(model, 4, lens, 8);
  for (int i = 0; i < 3; i++) rows.adapter[i] = i % 2, rows.first[i] = prefixes[i % 2];
  use(NULL);
  double fused = pass_loss(model, be, &rows, &p.hooks, true, NULL);
  float *want[2] = {pass_prefix_grad(&p, 0), pass_prefix_grad(&p, 1)};
  pass_prefixes_zero_grads(&p);
  stand_in e = {.by_rows = true};
  use(&e);
  double split = pass_loss(model, be, &rows, &p.hooks, true, NULL);
  assert_int_equal(e.calls[0], px_model_config(model)->layers);
  assert_int_equal(e.calls[1], px_model_config(model)->layers - 1); /* the first layer wants the prefixes' gradients alone */
  if (!(fabs(split - fused) <= TOL_F32_BATCH * fused)) fail_msg("loss %.9g in two parts, %.9g in one", split, fused);
  for (int i = 0; i < 2; i++) {
    float *got = pass_prefix_grad(&p, i);
    double distance = pass_relative_l2(got, want[i], pass_prefix_floats(&p, i));
    if (!(distance <= TOL_F32_BATCH)) fail_msg("gradient of prefix %d differs by %.3g", i, distance);
    free(got), free(want[i]);
  }
  use(NULL);
  pass_rows_free(&rows);
  pass_prefixes_close(&p);
  px_model_close(model);
}

static void an_engine_that_fails(void **state) {
  (void)state;
  stand_in e = {.fails = -1234};
  problem p = {.type = PX_BF16, .heads = 4, .kv_heads = 2, .dim = 64, .mask = PX_MASK_CAUSAL, .segments = 3};
  copies c = {0};
  px_attn_fwd_args f;
  px_attn_bwd_args b;
  px_error err;
  use(&e);
  pose(&p, Q_LENS);
  on_device(be, &p, &c, false, &f, &b);
  px_op_attn_fwd(be, &f);
  assert_int_equal(px_backend_status(be, &err), PX_NO_DEVICE);
  assert_non_null(strstr(err.message, "attn_fwd failed: the engine is out of order"));
  back(be, &c);
  release(&p);
  use(NULL);
}

/* What cuDNN takes is done by it: a graph of its own was made for the pass. */
static void check_cudnn(int type, int dim, int heads, int kv_heads, int window, int segments) {
  problem p = {.type = type ? PX_F16 : PX_BF16, .heads = heads, .kv_heads = kv_heads, .dim = dim, .mask = PX_MASK_CAUSAL, .window = window,
               .segments = segments};
  pose(&p, Q_LENS);
  truth t = reference(&p);
  for (int recorded = 0; recorded < 2; recorded++) { /* the graph is there the second time */
    for (int i = 0; i < segments; i++)
      for (int64_t j = 0; j < p.seg[i].len * kv_heads * dim; j++) p.seg[i].dk[j] = p.seg[i].dv[j] = 0.5f;
    run(&p, false, recorded);
    expect_truth(&p, &t);
  }
  release_truth(&t);
  release(&p);
}

static void with_cudnn(void **state) {
  (void)state;
  px_cuda_state *s = px_cuda_own(be);
  px_error err;
  px_status status = px_attention_open(be, PX_ATTENTION_CUDNN, "", &s->split, &err);
  if (status == PX_NO_DEVICE) {
    print_message("skipped: %s\n", err.message);
    skip();
  }
  ASSERT_OK(status);
  for (int type = 0; type < 2; type++) {
    check_cudnn(type, 64, 4, 4, 0, 3);
    check_cudnn(type, 128, 4, 2, 0, 3);
    check_cudnn(type, 64, 6, 2, 9, 3);
    check_cudnn(type, 80, 2, 1, 0, 0);
  }
  print_message("%s: forward %s, backward %s\n", s->split->engine.name, s->split->said[0] ? "refused" : "taken", s->split->said[1] ? "refused" : "taken");
  const char *path = getenv("PX_DEVICE_PROPERTIES");
  char *text = NULL;
  size_t bytes = 0;
  if (path) ASSERT_OK(px_attn_cudnn_properties(s->device, &text, &bytes, &err));
  if (path) ASSERT_OK(px_file_write(path, text, bytes, &err));
  use(NULL);
}

/* The message that a missing cuDNN has. */
static void a_library_that_is_not_there(void **state) {
  (void)state;
  static const char *const names[] = {"libpfx_absent.so.9", NULL};
  void *library = &library;
  px_error err;
  assert_int_equal(px_cuda_library_open(names, "absent", "nvidia-absent-cu13", &library, &err), PX_NO_DEVICE);
  assert_null(library);
  assert_string_equal(err.message,
                      "libpfx_absent.so.9 was not found: neither where the loader looks (LD_LIBRARY_PATH), nor in /usr/local/cuda/lib64, nor "
                      "in NVIDIA's Python packages; install it, for example with pip install nvidia-absent-cu13");
}

static int open_device(void **state) {
  (void)state;
  px_error err;
  px_status status = px_backend_open(&(px_backend_options){.device = "cuda"}, &be, &err);
  if (status == PX_NO_DEVICE) print_message("skipped: %s\n", err.message);
  else ASSERT_OK(status);
  return 0;
}

static int close_device(void **state) {
  (void)state;
  px_backend_close(be);
  return 0;
}

static void without_device(void **state) {
  (void)state;
  if (!be) skip();
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(the_parts_are_the_whole), cmocka_unit_test(segments_alone_in_backward),
                                     cmocka_unit_test(what_is_refused_is_fused), cmocka_unit_test(a_model_in_two_parts), cmocka_unit_test(an_engine_that_fails), cmocka_unit_test(a_library_that_is_not_there), cmocka_unit_test(with_cudnn)};
  const struct CMUnitTest none[] = {cmocka_unit_test(a_library_that_is_not_there), cmocka_unit_test(without_device)};
  open_device(NULL);
  int failed = be ? cmocka_run_group_tests(tests, NULL, close_device) : cmocka_run_group_tests(none, NULL, NULL);
  return failed;
}
