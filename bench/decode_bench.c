/* SPDX-License-Identifier: MIT
 * Opening a model, and greedy decoding with one sequence and with sixteen, against the memory bandwidth measured in the
 * same run. One line of CSV a row, its header first. decode_bench MODEL [f32|bf16] [NEW_TOKENS] */
#include <stdio.h>
#include <stdlib.h>

#include "generate/generator.h"
#include "train/run.h"

static px_error err;

static void need(px_status status) {
  if (status == PX_OK) return;
  fprintf(stderr, "decode_bench: %s\n", err.message);
  exit(1);
}

/* Bytes a second that all threads read from memory: the best of eight passes over a gigabyte. */
static double bandwidth(int threads) {
  size_t count = (size_t)1 << 27;
  double *numbers = malloc(count * sizeof *numbers), best = 0, sum = 0;
  if (!numbers) exit(1);
#pragma omp parallel for num_threads(threads)
  for (size_t i = 0; i < count; i++) numbers[i] = (double)i;
  for (int pass = 0; pass < 8; pass++) {
    double start = px_clock();
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
    for (size_t block = 0; block < count; block += 4096) {
      double parts[64] = {0};
      for (size_t i = 0; i < 4096; i += 64)
        for (size_t j = 0; j < 64; j++) parts[j] += numbers[block + i + j];
      for (size_t j = 0; j < 64; j++) sum += parts[j];
    }
    double rate = (double)(count * sizeof *numbers) / (px_clock() - start);
    best = rate > best ? rate : best;
  }
  free(numbers);
  return sum > 0 ? best : 0;
}

/* New tokens a second of `rows` sequences, each after a prompt of 32 tokens, all ending at the same length: without a
 * tokenizer no token ends a text. */
static double decode(const px_model *model, int rows, int new_tokens) {
  enum { PROMPT = 32 };
  int32_t ids[PROMPT];
  px_generator *g;
  need(px_generator_open(model, NULL, &(px_generator_options){.max_rows = rows}, &g, &err));
  for (int round = 0; round < 2; round++) { /* the first packs weights */
    px_generator_stats before = px_generator_stats_get(g);
    for (int row = 0; row < rows; row++) {
      for (int i = 0; i < PROMPT; i++) ids[i] = 1000 + 37 * row + 11 * i;
      need(px_generator_add(g,
                            &(px_request){.ids = ids,
                                          .count = PROMPT,
                                          .adapter = -1,
                                          .row = (uint64_t)row,
                                          .sampling = {.max_tokens = round ? new_tokens : 4}},
                            &err));
    }
    need(px_generator_run(g, NULL, NULL, &err));
    px_generator_stats after = px_generator_stats_get(g);
    if (round == 0) continue;
    double rate = (double)(after.new_tokens - before.new_tokens) / (after.decode_seconds - before.decode_seconds);
    px_generator_close(g);
    return rate;
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: decode_bench MODEL [f32|bf16] [NEW_TOKENS]\n");
    return 2;
  }
  int dtype = argc > 2 && strcmp(argv[2], "f32") == 0 ? PX_F32 : PX_BF16, new_tokens = argc > 3 ? atoi(argv[3]) : 128;
  px_model *model;
  need(px_model_open(argv[1], &(px_model_options){.dtype = dtype}, &model, &err));
  const px_config *c = px_model_config(model);
  double bytes = (double)(model->weights.mapped_bytes + model->weights.owned_bytes) -
                 (c->tied ? 0 : (double)px_dtype_bytes(model->dtype, (size_t)c->vocab * (size_t)c->dim));
  double read = bandwidth(model->be->threads), one = decode(model, 1, new_tokens), many = decode(model, 16, new_tokens);
  printf("dtype,threads,open_s,read_gb_s,weights_mb,tokens_per_s_1,percent_of_read,tokens_per_s_16,ratio\n");
  printf("%s,%d,%.3f,%.1f,%.1f,%.1f,%.1f,%.1f,%.2f\n", px_dtype_name((px_dtype)dtype), model->be->threads,
         model->open_seconds, read / 1e9, bytes / 1e6, one, 100 * one * bytes / read, many, many / one);
  return 0;
}
