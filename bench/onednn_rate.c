/* SPDX-License-Identifier: MIT
 * How many GFLOP/s oneDNN's matrix product reaches by itself, float32 and bfloat16, on the shapes of a training step of
 * SmolLM2-135M: what a ratio between engines on this machine has to be read beside.
 *
 *     cc -O2 -o onednn_rate onednn_rate.c -ldnnl && OMP_NUM_THREADS=2 ./onednn_rate [TOKENS]
 *
 * Prints CSV: dtype,m,n,k,gflops (median of the runs); weights in the layout that oneDNN likes best. */
#include <dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CHECK(call)                                       \
  do {                                                    \
    if ((call) != dnnl_success) {                         \
      fprintf(stderr, "onednn_rate: %s failed\n", #call); \
      exit(1);                                            \
    }                                                     \
  } while (0)

enum { RUNS = 15 };

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* dst[m, n] = src[m, k] weights[k, n], with the weights' layout left to the library. NULL when it cannot. */
static dnnl_primitive_desc_t product(dnnl_engine_t engine, dnnl_data_type_t type, dnnl_dim_t m, dnnl_dim_t n,
                                     dnnl_dim_t k) {
  dnnl_dims_t src_dims = {m, k}, weight_dims = {k, n}, dst_dims = {m, n};
  dnnl_primitive_desc_t pd = NULL;
#if DNNL_VERSION_MAJOR >= 3
  dnnl_memory_desc_t src, weights, dst;
  CHECK(dnnl_memory_desc_create_with_tag(&src, 2, src_dims, type, dnnl_ab));
  CHECK(dnnl_memory_desc_create_with_tag(&weights, 2, weight_dims, type, dnnl_format_tag_any));
  CHECK(dnnl_memory_desc_create_with_tag(&dst, 2, dst_dims, type, dnnl_ab));
  if (dnnl_matmul_primitive_desc_create(&pd, engine, src, weights, NULL, dst, NULL) != dnnl_success) return NULL;
#else
  dnnl_memory_desc_t src, weights, dst;
  dnnl_matmul_desc_t desc;
  CHECK(dnnl_memory_desc_init_by_tag(&src, 2, src_dims, type, dnnl_ab));
  CHECK(dnnl_memory_desc_init_by_tag(&weights, 2, weight_dims, type, dnnl_format_tag_any));
  CHECK(dnnl_memory_desc_init_by_tag(&dst, 2, dst_dims, type, dnnl_ab));
  CHECK(dnnl_matmul_desc_init(&desc, &src, &weights, NULL, &dst));
  if (dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL) != dnnl_success) return NULL;
#endif
  return pd;
}

static dnnl_memory_t filled(dnnl_engine_t engine, dnnl_primitive_desc_t pd, dnnl_query_t which) {
  dnnl_memory_t memory;
#if DNNL_VERSION_MAJOR >= 3
  const_dnnl_memory_desc_t desc = dnnl_primitive_desc_query_md(pd, which, 0);
#else
  const dnnl_memory_desc_t *desc = dnnl_primitive_desc_query_md(pd, which, 0);
#endif
  CHECK(dnnl_memory_create(&memory, desc, engine, DNNL_MEMORY_ALLOCATE));
  unsigned char *bytes;
  CHECK(dnnl_memory_get_data_handle(memory, (void **)&bytes));
  size_t count = dnnl_memory_desc_get_size(desc);
  /* 0x3D and 0x3E in every other byte: bfloat16 and float32 numbers near 0.1, no zeros, no NaN */
  for (size_t i = 0; i < count; ++i) bytes[i] = i % 2 ? (unsigned char)(0x3D + i / 2 % 2) : (unsigned char)(i * 37);
  return memory;
}

static double measure(dnnl_data_type_t type, dnnl_dim_t m, dnnl_dim_t n, dnnl_dim_t k) {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  dnnl_primitive_t primitive;
  CHECK(dnnl_engine_create(&engine, dnnl_cpu, 0));
  CHECK(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
  dnnl_primitive_desc_t pd = product(engine, type, m, n, k);
  if (!pd) return 0;
  CHECK(dnnl_primitive_create(&primitive, pd));
  dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, filled(engine, pd, dnnl_query_src_md)},
                            {DNNL_ARG_WEIGHTS, filled(engine, pd, dnnl_query_weights_md)},
                            {DNNL_ARG_DST, filled(engine, pd, dnnl_query_dst_md)}};
  double took[RUNS];
  for (int run = -3; run < RUNS; ++run) {
    double start = seconds();
    CHECK(dnnl_primitive_execute(primitive, stream, 3, args));
    CHECK(dnnl_stream_wait(stream));
    if (run >= 0) took[run] = seconds() - start;
  }
  qsort(took, RUNS, sizeof took[0], by_value);
  for (int i = 0; i < 3; ++i) CHECK(dnnl_memory_destroy(args[i].memory));
  CHECK(dnnl_primitive_destroy(primitive));
  CHECK(dnnl_primitive_desc_destroy(pd));
  CHECK(dnnl_stream_destroy(stream));
  CHECK(dnnl_engine_destroy(engine));
  return 2e-9 * (double)m * (double)n * (double)k / took[RUNS / 2];
}

int main(int argc, char **argv) {
  long tokens = argc > 1 ? strtol(argv[1], NULL, 10) : 880;
  if (tokens < 1) return 2;
  const dnnl_dim_t shapes[][2] = {{576, 576}, {1536, 576}, {576, 1536}, {49152, 576}, {576, 49152}}; /* n, k */
  printf("dtype,m,n,k,gflops\n");
  for (int dtype = 0; dtype < 2; ++dtype) {
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; ++i) {
      dnnl_dim_t m = shapes[i][0] > 9999 || shapes[i][1] > 9999 ? tokens / 2 + 1 : tokens;
      double rate = measure(dtype ? dnnl_bf16 : dnnl_f32, m, shapes[i][0], shapes[i][1]);
      printf("%s,%ld,%ld,%ld,%.1f\n", dtype ? "bf16" : "f32", (long)m, (long)shapes[i][0], (long)shapes[i][1], rate);
    }
  }
  return 0;
}
