/* SPDX-License-Identifier: MIT
 * Time of every operation at the sizes of real models, in percent of what the device reaches in a large product and in
 * a copy, which are measured first. Run by gpu_check.sh; works on every device.
 *   ops_bench --device D [--attention ENGINE] [--csv FILE] [--from POINT] [--budget-s S] [--only WORD] [--tiny]
 * An engine of attention that the device lacks: exit code 77. When the budget ends the run, the points left out are listed and the first one's number printed as "next N". A whole
 * run in which an operation of the backend's table was not timed is an error. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "ops.h"
#include "train/run.h"

static const shape models[] = {{"gpt2-medium", 16, 16, 64, 1024, 4096, 50257, true},
                               {"llama-3-8b", 32, 8, 128, 4096, 14336, 128256, false},
                               {"qwen2.5-0.5b", 14, 2, 64, 896, 4864, 151936, false}},
                   tiny_models[] = {{"gpt2-medium", 2, 2, 16, 32, 48, 300, true},
                                    {"llama-3-8b", 4, 2, 16, 64, 96, 301, false},
                                    {"qwen2.5-0.5b", 3, 1, 16, 48, 40, 302, false}};
enum { GPT2, LLAMA, QWEN, MODELS };

/* Decode: one token for each of `seqs` sequences with `keys` own keys and a prefix. */
static const struct {
  int model, seqs, keys, prefix;
} decodes[] = {{LLAMA, 64, 1024, 100}, {GPT2, 64, 512, 100},   {QWEN, 64, 1024, 100}, {LLAMA, 1, 8192, 100},
               {LLAMA, 16, 4096, 0},   {LLAMA, 64, 512, 2048}, {QWEN, 1, 32768, 0},   {LLAMA, 4, 300, 20}};

/* In the order of what they are worth to know. */
static void all_points(bench *b) {
  static const int lengths[] = {1024, 55, 512, 2048}, prefixes[] = {100, 10, 50, 200, 2048};
  const shape *m = b->tiny ? tiny_models : models;
  for (int i = 0; i < MODELS; i++) bench_attention(b, &m[i], 16384, 1024, 100);
  for (int i = GPT2; i <= LLAMA; i++) bench_attention(b, &m[i], 16384, 55, 100);
  for (int i = 0; i < MODELS; i++) bench_rows(b, &m[i], 16384);
  for (int i = 0; i < MODELS; i++) bench_head(b, &m[i], 1024); /* a chunk of a training step */
  for (int i = 0; i < MODELS; i++) bench_products(b, &m[i], 16384);
  for (size_t i = 0; i < sizeof decodes / sizeof *decodes; i++)
    bench_decode(b, &m[decodes[i].model], decodes[i].seqs, decodes[i].keys, decodes[i].prefix);
  bench_optimizer(b, "prefix of 100, llama-3-8b", 6553600);
  bench_optimizer(b, "all of gpt2-medium", 354823168);
  for (int i = 0; i < MODELS; i++) bench_sample(b, &m[i], 64);
  for (int i = 0; i < MODELS; i++) bench_rows(b, &m[i], 256);
  for (int i = 0; i < MODELS; i++) bench_products(b, &m[i], 256);
  bench_products(b, &m[LLAMA], 1);
  bench_products(b, &m[LLAMA], 64);
  bench_reparam(b, &m[GPT2], 100, 512);
  bench_reparam(b, &m[LLAMA], 100, 512);
  bench_lora(b, &m[LLAMA], 16384);
  bench_scale(b, &m[LLAMA], 16384);
  bench_kv_write(b, &m[LLAMA], 64);
  bench_kv_write(b, &m[LLAMA], 16384);
  bench_conversions(b, 4096, 14336);
  bench_embed_bwd(b, &m[GPT2], 16384);
  for (int i = 0; i < MODELS; i++) bench_rows(b, &m[i], 2048);
  for (int t = 0; t < (b->tiny ? 1 : 4); t++)
    for (int n = 0; n < 5; n++)
      for (int i = 0; i < MODELS; i++) bench_attention(b, &m[i], 16384, lengths[t], prefixes[n]);
}

/* Whether a run that was to time all of them did. */
static bool complete(const bench *b) {
  bool all = true;
  for (int op = 0; op < PX_OP_COUNT && b->left < 0 && b->from == 0 && !b->only; op++) {
    if (b->seen[op]) continue;
    fprintf(stderr, "ops_bench: no point times %s\n", px_op_name(op));
    all = false;
  }
  return all;
}

int main(int argc, char **argv) {
  static const struct option options[] = {{"device", 1, NULL, 'd'},   {"csv", 1, NULL, 'c'},  {"from", 1, NULL, 'f'},
                                          {"budget-s", 1, NULL, 'b'}, {"only", 1, NULL, 'o'}, {"tiny", 0, NULL, 't'},
                                          {"attention", 1, NULL, 'a'},
                                          {0}};
  const char *device = "cuda", *csv = NULL;
  px_attention attention = PX_ATTENTION_FUSED;
  bench b = {.begin = px_clock(), .budget = 1e9, .left = -1};
  for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    if (c == 'd') device = optarg;
    if (c == 'c') csv = optarg;
    if (c == 'f') b.from = atoi(optarg);
    if (c == 'b') b.budget = atof(optarg);
    if (c == 'o') b.only = optarg;
    if (c == 't') b.tiny = true;
    if (c == 'a' && !px_attention_parse(optarg, &attention)) return 2;
    if (c == '?') return 2;
  }
  px_error err;
  px_status status = px_backend_open(&(px_backend_options){.device = device, .time_products = true, .attention = attention}, &b.be, &err);
  if (status != PX_OK) {
    fprintf(stderr, "ops_bench: %s\n", err.message);
    return attention == PX_ATTENTION_CUDNN && status == PX_NO_DEVICE ? 77 : 1;
  }
  if (csv && !(b.csv = fopen(csv, b.from ? "a" : "w"))) {
    fprintf(stderr, "ops_bench: cannot write %s\n", csv);
    return 1;
  }
  if (b.csv && !b.from)
    fputs("point,operation,device,median_us,least_us,samples,operations,bytes,percent_of_product,percent_of_copy\n",
          b.csv);
  measure_ceilings(&b);
  all_points(&b);
  if (b.left >= 0) printf("next %d\n", b.left);
  px_backend_close(b.be);
  bool good = complete(&b);
  return (b.csv && fclose(b.csv)) || !good ? 1 : 0;
}
