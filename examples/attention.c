/* SPDX-License-Identifier: MIT
 * Two sequences share a segment of keys and values (a learned prefix, a cached prompt) that is stored once: attention's
 * output, and the gradient of the segment, summed over both.  Runs on the CPU; on a GPU the pointers are device memory,
 * place is PFX_AT_CUDA, and the last argument but one is a stream. */
#include <pfx/attention.h>
#include <stdio.h>
#include <stdlib.h>

enum { HEADS = 4, KV_HEADS = 2, DIM = 64, TOKENS = 7, SHARED = 20 };

static float *numbers(int rows, int heads) {
  size_t count = (size_t)rows * (size_t)heads * DIM;
  float *x = malloc(count * sizeof *x);
  for (size_t i = 0; x && i < count; i++) x[i] = (float)((i * 2654435761u) % 1000) / 1000 - 0.5f;
  return x;
}

int main(void) {
  const int32_t offsets[] = {0, 3, TOKENS}, segment_of[] = {0, 0};
  float *q = numbers(TOKENS, HEADS), *k = numbers(TOKENS, KV_HEADS), *v = numbers(TOKENS, KV_HEADS), *o = numbers(TOKENS, HEADS),
        *lse = numbers(TOKENS, HEADS), *dout = numbers(TOKENS, HEADS), *dq = numbers(TOKENS, HEADS), *dk = numbers(TOKENS, KV_HEADS),
        *dv = numbers(TOKENS, KV_HEADS), *gradients = calloc(2 * SHARED * KV_HEADS * DIM, sizeof *gradients);
  pfx_segment segment = {.k = numbers(SHARED, KV_HEADS), .v = numbers(SHARED, KV_HEADS), .stride = KV_HEADS * DIM, .length = SHARED,
                         .dk = gradients, .dv = gradients + SHARED * KV_HEADS * DIM, .grad_stride = KV_HEADS * DIM};
  pfx_attention_shape shape = pfx_attention_shape_init();
  shape.heads = HEADS, shape.kv_heads = KV_HEADS, shape.head_dim = DIM;
  shape.sequences = 2, shape.query_rows = shape.own_rows = TOKENS;
  shape.q_offsets = shape.k_offsets = offsets, shape.segment_of = segment_of;
  shape.segments = &segment, shape.segment_count = 1, shape.segment_rows = SHARED;

  pfx_error err = {0};
  size_t bytes = 0;
  pfx_attention_forward_args forward = pfx_attention_forward_args_init();
  forward.q = q, forward.k = k, forward.v = v, forward.o = o, forward.lse = lse;
  pfx_status status = pfx_attention_forward(&shape, &forward, NULL, &err);

  pfx_attention_backward_args backward = pfx_attention_backward_args_init();
  backward.q = q, backward.k = k, backward.v = v, backward.o = o, backward.lse = lse, backward.dout = dout;
  backward.dq = dq, backward.dk = dk, backward.dv = dv;
  if (status == PFX_OK) status = pfx_attention_backward_workspace(&shape, &bytes, &err);
  backward.workspace = malloc(bytes);
  if (status == PFX_OK) status = pfx_attention_backward(&shape, &backward, NULL, &err);

  if (status == PFX_OK)
    printf("o[0] %.4f, d segment key[0] %.4f, value[0] %.4f\n", (double)o[0], (double)gradients[0],
           (double)gradients[SHARED * KV_HEADS * DIM]);
  else
    fprintf(stderr, "%s\n", err.message);
  float *all[] = {q, k, v, o, lse, dout, dq, dk, dv, gradients, (float *)segment.k, (float *)segment.v, backward.workspace};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
  return status == PFX_OK ? 0 : 1;
}
