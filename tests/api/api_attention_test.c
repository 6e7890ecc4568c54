/* SPDX-License-Identifier: MIT
 * include/pfx/attention.h against the formulas in its head, in float64, on every device of this build. */
#include "helpers/test.h"

#include <math.h>
#include <pfx/attention.h>

#include "backend/backend.h"

enum { HEADS = 4, KV_HEADS = 2, DIM = 8, SEQS = 3, ROWS = 12, SEGMENT = 5, PAGE = 4, PAGES = 9 };
enum { ALL = HEADS * DIM, OWN = KV_HEADS * DIM };
static const int32_t offsets[SEQS + 1] = {0, 5, 6, ROWS}, segment_of[SEQS] = {0, -1, 0};

static px_backend *be; /* lends memory and a stream */
static void *borrowed[64];
static int borrowed_count;

static float number(int i, int stream) { return (float)sin(0.7 * i + 1.3 * stream + 0.01 * i * stream); }

static void *on_device(const void *host, size_t bytes) {
  void *p = px_backend_alloc(be, bytes);
  if (host)
    px_backend_write(be, p, host, bytes);
  else
    px_backend_zero(be, p, bytes);
  assert_true(borrowed_count < 64);
  return borrowed[borrowed_count++] = p;
}

static float *floats(float *host, int count, int stream) {
  for (int i = 0; i < count; i++) host[i] = number(i, stream);
  return on_device(host, (size_t)count * sizeof *host);
}

/* Everything of one problem, here and on the device. */
typedef struct problem {
  float q[ROWS * ALL], k[ROWS * OWN], v[ROWS * OWN], dout[ROWS * ALL], pk[SEGMENT * OWN], pv[SEGMENT * OWN];
  double o[ROWS * ALL], lse[HEADS * ROWS], dq[ROWS * ALL], dk[ROWS * OWN], dv[ROWS * OWN], dpk[SEGMENT * OWN], dpv[SEGMENT * OWN];
  float *dev_q, *dev_k, *dev_v, *dev_dout, *dev_pk, *dev_pv, *dev_dpk, *dev_dpv;
  pfx_segment *segments;
  pfx_attention_shape shape;
} problem;

static problem *make(void) {
  problem *p = calloc(1, sizeof *p);
  p->dev_q = floats(p->q, ROWS * ALL, 1), p->dev_k = floats(p->k, ROWS * OWN, 2), p->dev_v = floats(p->v, ROWS * OWN, 3);
  p->dev_dout = floats(p->dout, ROWS * ALL, 4), p->dev_pk = floats(p->pk, SEGMENT * OWN, 5), p->dev_pv = floats(p->pv, SEGMENT * OWN, 6);
  p->dev_dpk = on_device(NULL, sizeof p->pk), p->dev_dpv = on_device(NULL, sizeof p->pv);
  pfx_segment segment = {.k = p->dev_pk, .v = p->dev_pv, .stride = OWN, .length = SEGMENT, .dk = p->dev_dpk, .dv = p->dev_dpv, .grad_stride = OWN};
  p->segments = on_device(&segment, sizeof segment);
  p->shape = pfx_attention_shape_init();
  p->shape.place = be->stream ? PFX_AT_CUDA : PFX_AT_CPU;
  p->shape.heads = HEADS, p->shape.kv_heads = KV_HEADS, p->shape.head_dim = DIM;
  p->shape.sequences = SEQS, p->shape.query_rows = p->shape.own_rows = ROWS;
  p->shape.q_offsets = p->shape.k_offsets = on_device(offsets, sizeof offsets);
  p->shape.segment_of = on_device(segment_of, sizeof segment_of);
  p->shape.segments = p->segments, p->shape.segment_count = 1, p->shape.segment_rows = SEGMENT;
  return p;
}

/* One query of one head: its keys are the segment's, then own ones up to itself. */
static void reference_query(problem *p, int s, int row, int h) {
  int g = h / (HEADS / KV_HEADS), prefix = segment_of[s] < 0 ? 0 : SEGMENT, keys = prefix + row - offsets[s] + 1;
  double scale = 1 / sqrt((double)DIM), score[SEGMENT + ROWS], sum = 0, largest = -INFINITY, d = 0;
  const float *q = p->q + row * ALL + h * DIM, *dout = p->dout + row * ALL + h * DIM;
  double *o = p->o + row * ALL + h * DIM, *dq = p->dq + row * ALL + h * DIM;
  for (int j = 0; j < keys; j++) {
    const float *k = j < prefix ? p->pk + j * OWN + g * DIM : p->k + (offsets[s] + j - prefix) * OWN + g * DIM;
    score[j] = 0;
    for (int i = 0; i < DIM; i++) score[j] += scale * (double)q[i] * (double)k[i];
    largest = fmax(largest, score[j]);
  }
  for (int j = 0; j < keys; j++) sum += exp(score[j] - largest);
  p->lse[h * ROWS + row] = largest + log(sum);
  for (int j = 0; j < keys; j++) {
    const float *v = j < prefix ? p->pv + j * OWN + g * DIM : p->v + (offsets[s] + j - prefix) * OWN + g * DIM;
    score[j] = exp(score[j] - largest) / sum;
    for (int i = 0; i < DIM; i++) o[i] += score[j] * (double)v[i];
  }
  for (int i = 0; i < DIM; i++) d += o[i] * (double)dout[i];
  for (int j = 0; j < keys; j++) {
    int at = (j < prefix ? j : offsets[s] + j - prefix) * OWN + g * DIM;
    const float *k = (j < prefix ? p->pk : p->k) + at, *v = (j < prefix ? p->pv : p->v) + at;
    double *dk = (j < prefix ? p->dpk : p->dk) + at, *dv = (j < prefix ? p->dpv : p->dv) + at, dp = 0;
    for (int i = 0; i < DIM; i++) dp += (double)dout[i] * (double)v[i];
    for (int i = 0; i < DIM; i++) {
      dq[i] += scale * score[j] * (dp - d) * (double)k[i];
      dk[i] += scale * score[j] * (dp - d) * (double)q[i];
      dv[i] += score[j] * (double)dout[i];
    }
  }
}

static void reference(problem *p) {
  for (int s = 0; s < SEQS; s++)
    for (int row = offsets[s]; row < offsets[s + 1]; row++)
      for (int h = 0; h < HEADS; h++) reference_query(p, s, row, h);
}

static void expect(const char *name, const float *device, const double *want, int count) {
  float *got = calloc((size_t)count, sizeof *got);
  px_error err;
  px_backend_read(be, got, device, (size_t)count * sizeof *got);
  ASSERT_OK(px_backend_status(be, &err));
  for (int i = 0; i < count; i++)
    if (!(fabs((double)got[i] - want[i]) <= 1e-5)) fail_msg("%s[%d] is %g, not %g", name, i, (double)got[i], want[i]);
  free(got);
}

#define OK(call)                                          \
  do {                                                    \
    pfx_error err_ = {0};                                 \
    if ((call) != PFX_OK) fail_msg("%s", err_.message);   \
  } while (0)

static void forward_and_backward(problem *p) {
  pfx_attention_forward_args f = pfx_attention_forward_args_init();
  pfx_attention_backward_args b = pfx_attention_backward_args_init();
  size_t bytes;
  float *o = on_device(NULL, sizeof p->q), *lse = on_device(NULL, HEADS * ROWS * sizeof *lse), *dq = on_device(NULL, sizeof p->q),
        *dk = on_device(NULL, sizeof p->k), *dv = on_device(NULL, sizeof p->v);
  f.q = p->dev_q, f.k = p->dev_k, f.v = p->dev_v, f.o = o, f.lse = lse;
  OK(pfx_attention_forward(&p->shape, &f, be->stream, &err_));
  expect("o", o, p->o, ROWS * ALL);
  expect("lse", lse, p->lse, HEADS * ROWS);
  OK(pfx_attention_backward_workspace(&p->shape, &bytes, &err_));
  b.q = f.q, b.k = f.k, b.v = f.v, b.o = o, b.lse = lse, b.dout = p->dev_dout, b.dq = dq, b.dk = dk, b.dv = dv;
  b.workspace = on_device(NULL, bytes);
  OK(pfx_attention_backward(&p->shape, &b, be->stream, &err_));
  expect("dq", dq, p->dq, ROWS * ALL);
  expect("dk", dk, p->dk, ROWS * OWN);
  expect("dv", dv, p->dv, ROWS * OWN);
  expect("segment dk", p->dev_dpk, p->dpk, SEGMENT * OWN);
  expect("segment dv", p->dev_dpv, p->dpv, SEGMENT * OWN);
}

/* The same keys in pages, the last query of each sequence: the same outputs. */
static void write_and_decode(problem *p) {
  pfx_attention_write_args w = pfx_attention_write_args_init();
  pfx_attention_decode_args d = pfx_attention_decode_args_init();
  pfx_attention_shape shape = p->shape;
  int32_t table[SEQS * 2] = {7, 2, 5, 0, 1, 8}, lengths[SEQS], q_offsets[SEQS + 1] = {0};
  int64_t slots[ROWS];
  float q[SEQS * ALL];
  double want[SEQS * ALL];
  size_t bytes;
  for (int s = 0; s < SEQS; s++) {
    lengths[s] = offsets[s + 1] - offsets[s];
    q_offsets[s + 1] = s + 1;
    for (int j = 0; j < lengths[s]; j++) slots[offsets[s] + j] = (int64_t)table[2 * s + j / PAGE] * PAGE + j % PAGE;
    for (int i = 0; i < ALL; i++) q[s * ALL + i] = p->q[(offsets[s + 1] - 1) * ALL + i], want[s * ALL + i] = p->o[(offsets[s + 1] - 1) * ALL + i];
  }
  w.k = p->dev_k, w.v = p->dev_v, w.slots = on_device(slots, sizeof slots);
  w.k_cache = on_device(NULL, PAGES * PAGE * OWN * sizeof(float)), w.v_cache = on_device(NULL, PAGES * PAGE * OWN * sizeof(float));
  OK(pfx_attention_write(&shape, &w, be->stream, &err_));
  shape.query_rows = SEQS, shape.q_offsets = on_device(q_offsets, sizeof q_offsets), shape.k_offsets = NULL;
  OK(pfx_attention_decode_workspace(&shape, &bytes, &err_));
  d.q = on_device(q, sizeof q), d.o = on_device(NULL, sizeof q), d.k_cache = w.k_cache, d.v_cache = w.v_cache;
  d.block_table = on_device(table, sizeof table), d.kv_lengths = on_device(lengths, sizeof lengths);
  d.max_blocks = 2, d.page_tokens = PAGE, d.workspace = on_device(NULL, bytes);
  OK(pfx_attention_decode(&shape, &d, be->stream, &err_));
  expect("decoded o", d.o, want, SEQS * ALL);
}

static void on_each_device(void (*check)(problem *)) {
  static const char *devices[] = {"cpu", "cuda"};
  for (int i = 0; i < 2; i++) {
    px_error err;
    px_status status = px_backend_open(&(px_backend_options){.device = devices[i]}, &be, &err);
    if (status == PX_NO_DEVICE) continue;
    ASSERT_OK(status);
    problem *p = make();
    reference(p);
    check(p);
    while (borrowed_count > 0) px_backend_free(be, borrowed[--borrowed_count]);
    ASSERT_OK(px_backend_status(be, &err));
    px_backend_close(be);
    free(p);
  }
}

static void forward_and_backward_follow_the_formulas(void **state) {
  (void)state;
  on_each_device(forward_and_backward);
}

static void decode_reads_what_was_written(void **state) {
  (void)state;
  on_each_device(write_and_decode);
}

static void refuse(pfx_attention_shape shape, void *stream, const char *message) {
  pfx_error err = {0};
  float x[64] = {0};
  pfx_attention_forward_args f = pfx_attention_forward_args_init();
  f.q = f.k = f.v = x, f.o = x + 32;
  assert_int_not_equal(pfx_attention_forward(&shape, &f, stream, &err), PFX_OK);
  assert_string_equal(err.message, message);
}

static void refusals(void **state) {
  (void)state;
  static const int32_t one[2] = {0, 1}, none[2] = {0, 3};
  pfx_attention_shape good = pfx_attention_shape_init(), s;
  good.heads = good.kv_heads = 1, good.head_dim = 8, good.sequences = good.query_rows = good.own_rows = 1;
  good.q_offsets = good.k_offsets = one;
  refuse(good, &good, "pfx_attention_forward: stream must be NULL on the CPU");
  s = good, s.struct_bytes = 0;
  refuse(s, NULL, "pfx_attention_shape: struct_bytes is not set: begin with pfx_attention_shape_init()");
  s = good, s.type = (pfx_attention_type)7;
  refuse(s, NULL, "type 7 is not known");
  s = good, s.place = (pfx_place)2;
  refuse(s, NULL, "place 2 is not known");
  s = good, s.head_dim = 0;
  refuse(s, NULL, "head_dim 0 and kv_heads 1 must be positive");
  pfx_error err = {0};
  pfx_attention_forward_args f = pfx_attention_forward_args_init();
  s = good, s.q_offsets = s.k_offsets = none;
  float x[64] = {0};
  f.q = f.k = f.v = x, f.o = x + 32;
  assert_int_equal(pfx_attention_forward(&s, &f, NULL, &err), PFX_INVALID); /* the offsets end elsewhere */
  s = good, s.head_dim = 257;
  assert_int_equal(pfx_attention_forward(&s, &f, NULL, &err), PFX_INVALID);
  assert_int_equal(pfx_attention_forward(&good, NULL, NULL, &err), PFX_INVALID);
  assert_int_equal(pfx_attention_forward(NULL, &f, NULL, NULL), PFX_INVALID);
  assert_int_equal(pfx_attention_forward(&good, &f, NULL, &err), PFX_OK);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(forward_and_backward_follow_the_formulas),
      cmocka_unit_test(decode_reads_what_was_written),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
