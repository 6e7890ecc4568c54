/* SPDX-License-Identifier: MIT
 * Queues, events and recordings of every device in this build. The emulated one runs its queues in the order that
 * PX_EMU_SEED draws, so that a missing event shows. */
#include "helpers/test.h"

#include "backend/backend.h"

enum { COUNT = 64, BYTES = COUNT * (int)sizeof(float), ROUNDS = 8 };

/* NULL: the build or the machine has no such device. */
static px_backend *open_device(const char *device) {
  px_error err;
  px_backend *be = NULL;
  px_status status = px_backend_open(&(px_backend_options){.device = device}, &be, &err);
  if (status == PX_NO_DEVICE) return NULL;
  ASSERT_OK(status);
  return be;
}

/* The next numbers travel while the last ones are used: two slots, as the batches of a run. */
static void check_queues(px_backend *be) {
  px_error err;
  float *host = px_backend_host_alloc(be, 2 * BYTES), *results = px_backend_host_alloc(be, ROUNDS * BYTES);
  float *slot = px_backend_alloc(be, 2 * BYTES), *sum = px_backend_alloc(be, BYTES);
  px_event *sent[2], *used[2], *done = px_backend_event(be);
  for (int i = 0; i < 2; i++) sent[i] = px_backend_event(be), used[i] = px_backend_event(be);
  ASSERT_OK(px_backend_status(be, &err));
  px_backend_zero(be, sum, BYTES);
  for (int round = 0; round < ROUNDS; round++) {
    int i = round % 2;
    px_backend_reach(be, sent[i]); /* before the host writes over what is still travelling */
    for (int j = 0; j < COUNT; j++) host[i * COUNT + j] = (float)(1 << round) + (float)j;
    px_backend_after(be, PX_QUEUE_COPY, used[i]);
    px_backend_send(be, PX_QUEUE_COPY, slot + i * COUNT, host + i * COUNT, BYTES);
    px_backend_mark(be, PX_QUEUE_COPY, sent[i]);
    px_backend_after(be, PX_QUEUE_COMPUTE, sent[i]);
    px_op_add(be, &(px_add_args){.dtype = PX_F32,
                                 .rows = 1,
                                 .dim = COUNT,
                                 .a = sum,
                                 .b = slot + i * COUNT,
                                 .y = sum,
                                 .a_stride = COUNT,
                                 .b_stride = COUNT,
                                 .y_stride = COUNT});
    px_backend_mark(be, PX_QUEUE_COMPUTE, used[i]);
    px_backend_fetch(be, PX_QUEUE_COMPUTE, results + round * COUNT, sum, BYTES);
  }
  px_backend_mark(be, PX_QUEUE_COMPUTE, done);
  px_backend_reach(be, done);
  ASSERT_OK(px_backend_status(be, &err));
  for (int round = 0; round < ROUNDS; round++)
    for (int j = 0; j < COUNT; j++)
      assert_true(results[round * COUNT + j] == (float)((2 << round) - 1) + (float)(j * (round + 1)));
  for (int i = 0; i < 2; i++) px_backend_event_free(be, sent[i]), px_backend_event_free(be, used[i]);
  px_backend_event_free(be, done);
  px_backend_free(be, slot), px_backend_free(be, sum);
  px_backend_host_free(be, host), px_backend_host_free(be, results);
}

static void double_it(px_backend *be, float *x) {
  px_op_add(be, &(px_add_args){.dtype = PX_F32,
                               .rows = 1,
                               .dim = COUNT,
                               .a = x,
                               .b = x,
                               .y = x,
                               .a_stride = COUNT,
                               .b_stride = COUNT,
                               .y_stride = COUNT});
}

static void check_recording(px_backend *be) {
  px_error err;
  float x[COUNT], *at = px_backend_alloc(be, BYTES);
  for (int j = 0; j < COUNT; j++) x[j] = (float)j;
  px_backend_write(be, at, x, BYTES);
  px_backend_record(be);
  double_it(be, at);
  double_it(be, at);
  px_recording *four_times = px_backend_recorded(be);
  ASSERT_OK(px_backend_status(be, &err));
  assert_non_null(four_times);
  px_backend_read(be, x, at, BYTES);
  for (int j = 0; j < COUNT; j++) assert_true(x[j] == (float)j); /* nothing was done yet */
  for (int i = 0; i < 3; i++) px_backend_replay(be, four_times);
  px_backend_read(be, x, at, BYTES);
  ASSERT_OK(px_backend_status(be, &err));
  for (int j = 0; j < COUNT; j++) assert_true(x[j] == 64 * (float)j);
  px_backend_recording_free(be, four_times);

  px_backend_record(be); /* a failure between the two is this recording's end, and the device goes on */
  px_op_add(be, &(px_add_args){.dtype = PX_F32, .rows = -1});
  assert_null(px_backend_recorded(be));
  assert_int_equal(px_backend_status(be, &err), PX_INVALID);
  double_it(be, at);
  px_backend_read(be, x, at, BYTES);
  ASSERT_OK(px_backend_status(be, &err));
  for (int j = 0; j < COUNT; j++) assert_true(x[j] == 128 * (float)j);
  px_backend_free(be, at);
}

static void queues_are_ordered_by_events(void **state) {
  (void)state;
  static const char *devices[] = {"cpu", "cuda"};
  for (int i = 0; i < 2; i++) {
    px_backend *be = open_device(devices[i]);
    if (be) check_queues(be);
    px_backend_close(be);
  }
}

static void what_is_recorded_is_done_at_replay(void **state) {
  (void)state;
  px_backend *be = open_device("cuda");
  if (!be) skip(); /* the CPU records nothing */
  assert_true(px_backend_can_record(be));
  check_recording(be);
  px_backend_close(be);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(queues_are_ordered_by_events),
      cmocka_unit_test(what_is_recorded_is_done_at_replay),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
