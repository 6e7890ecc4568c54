/* SPDX-License-Identifier: MIT
 * Products by oneDNN (2.x and 3.x, whose C interfaces differ), with a small cache of primitives. */
#include <stdio.h>
#include <stdlib.h>

#include <oneapi/dnnl/dnnl.h>

#include "backend/gemm_product.h"

enum { CACHE = 512 };

typedef struct entry {
  px_gemm_args key;
  dnnl_primitive_t primitive;
  dnnl_memory_t a, b, c, bias;
  uint64_t used;
} entry;

struct px_product {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  entry entries[CACHE];
  uint64_t clock;
  char name[80];
  bool has_bf16;
};

static const char *isa_name(void) {
  switch (dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_avx512_core_amx: return "avx512_core_amx";
    case dnnl_cpu_isa_avx512_core_bf16: return "avx512_core_bf16";
    case dnnl_cpu_isa_avx512_core_vnni: return "avx512_core_vnni";
    case dnnl_cpu_isa_avx512_core: return "avx512_core";
    case dnnl_cpu_isa_avx2: return "avx2";
    default: return "other";
  }
}

px_product *px_product_open(int threads) {
  (void)threads;
  px_product *p = calloc(1, sizeof *p);
  if (!p) return NULL;
  const dnnl_version_t *v = dnnl_version();
  snprintf(p->name, sizeof p->name, "oneDNN %d.%d.%d (%s)", v->major, v->minor, v->patch, isa_name());
  p->has_bf16 = strstr(p->name, "bf16") || strstr(p->name, "amx");
  return p;
}

static void entry_clear(entry *e) {
  if (e->primitive) dnnl_primitive_destroy(e->primitive);
  if (e->a) dnnl_memory_destroy(e->a);
  if (e->b) dnnl_memory_destroy(e->b);
  if (e->c) dnnl_memory_destroy(e->c);
  if (e->bias) dnnl_memory_destroy(e->bias);
  *e = (entry){0};
}

void px_product_close(px_product *p) {
  if (!p) return;
  for (int i = 0; i < CACHE; i++) entry_clear(&p->entries[i]);
  if (p->stream) dnnl_stream_destroy(p->stream);
  if (p->engine) dnnl_engine_destroy(p->engine);
  free(p);
}

const char *px_product_name(const px_product *p) { return p->name; }
bool px_product_has_bf16(const px_product *p) { return p->has_bf16; }

static bool same(const px_gemm_args *x, const px_gemm_args *y) {
  return x->m == y->m && x->n == y->n && x->k == y->k && x->lda == y->lda && x->ldb == y->ldb && x->ldc == y->ldc && x->type == y->type &&
         x->c_type == y->c_type && x->bias_type == y->bias_type && x->trans_a == y->trans_a && x->trans_b == y->trans_b &&
         x->accumulate == y->accumulate && !x->bias == !y->bias;
}

static dnnl_data_type_t type_of(px_dtype t) { return t == PX_F32 ? dnnl_f32 : dnnl_bf16; }

#define TRY(call)                                   \
  do {                                              \
    dnnl_status_t s_ = (call);                      \
    if (s_ != dnnl_success) return (int)s_;         \
  } while (0)

static int make(px_product *p, entry *e, const px_gemm_args *a) {
  if (!p->engine) TRY(dnnl_engine_create(&p->engine, dnnl_cpu, 0));
  if (!p->stream) TRY(dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags));
  dnnl_dims_t da = {a->m, a->k}, db = {a->k, a->n}, dc = {a->m, a->n}, dbias = {1, a->n};
  dnnl_dims_t sa = {a->trans_a ? 1 : a->lda, a->trans_a ? a->lda : 1}, sb = {a->trans_b ? 1 : a->ldb, a->trans_b ? a->ldb : 1};
  dnnl_dims_t sc = {a->ldc, 1}, sbias = {a->n, 1};
  dnnl_post_ops_t post;
  dnnl_primitive_attr_t attr;
  dnnl_primitive_desc_t pd;
  TRY(dnnl_post_ops_create(&post));
  TRY(dnnl_primitive_attr_create(&attr));
#if DNNL_VERSION_MAJOR >= 3
  dnnl_memory_desc_t ma, mb, mc, mbias;
  if (a->accumulate) TRY(dnnl_post_ops_append_sum(post, 1.0f, 0, dnnl_data_type_undef));
  TRY(dnnl_primitive_attr_set_post_ops(attr, post));
  TRY(dnnl_memory_desc_create_with_strides(&ma, 2, da, type_of(a->type), sa));
  TRY(dnnl_memory_desc_create_with_strides(&mb, 2, db, type_of(a->type), sb));
  TRY(dnnl_memory_desc_create_with_strides(&mc, 2, dc, type_of(a->c_type), sc));
  TRY(dnnl_memory_desc_create_with_strides(&mbias, 2, dbias, type_of(a->bias_type), sbias));
  TRY(dnnl_matmul_primitive_desc_create(&pd, p->engine, ma, mb, a->bias ? mbias : NULL, mc, attr));
#define DESC(x) (x)
#else
  dnnl_memory_desc_t ma, mb, mc, mbias;
  dnnl_matmul_desc_t desc;
  if (a->accumulate) TRY(dnnl_post_ops_append_sum(post, 1.0f));
  TRY(dnnl_primitive_attr_set_post_ops(attr, post));
  TRY(dnnl_memory_desc_init_by_strides(&ma, 2, da, type_of(a->type), sa));
  TRY(dnnl_memory_desc_init_by_strides(&mb, 2, db, type_of(a->type), sb));
  TRY(dnnl_memory_desc_init_by_strides(&mc, 2, dc, type_of(a->c_type), sc));
  TRY(dnnl_memory_desc_init_by_strides(&mbias, 2, dbias, type_of(a->bias_type), sbias));
  TRY(dnnl_matmul_desc_init(&desc, &ma, &mb, a->bias ? &mbias : NULL, &mc));
  TRY(dnnl_primitive_desc_create(&pd, &desc, attr, p->engine, NULL));
#define DESC(x) (&(x))
#endif
  TRY(dnnl_primitive_create(&e->primitive, pd));
  TRY(dnnl_memory_create(&e->a, DESC(ma), p->engine, DNNL_MEMORY_NONE));
  TRY(dnnl_memory_create(&e->b, DESC(mb), p->engine, DNNL_MEMORY_NONE));
  TRY(dnnl_memory_create(&e->c, DESC(mc), p->engine, DNNL_MEMORY_NONE));
  if (a->bias) TRY(dnnl_memory_create(&e->bias, DESC(mbias), p->engine, DNNL_MEMORY_NONE));
#if DNNL_VERSION_MAJOR >= 3
  dnnl_memory_desc_destroy(ma);
  dnnl_memory_desc_destroy(mb);
  dnnl_memory_desc_destroy(mc);
  dnnl_memory_desc_destroy(mbias);
#endif
  dnnl_primitive_desc_destroy(pd);
  dnnl_primitive_attr_destroy(attr);
  dnnl_post_ops_destroy(post);
  e->key = *a;
  return 0;
}

int px_product_gemm(px_product *p, const px_gemm_args *a) {
  if (a->m == 0 || a->n == 0) return 0;
  if (a->k == 0 || (a->type == PX_BF16 && !p->has_bf16)) return px_gemm_plain_cpu(a);
  entry *e = NULL, *oldest = &p->entries[0];
  for (int i = 0; i < CACHE && !e; i++) {
    entry *x = &p->entries[i];
    if (x->primitive && same(&x->key, a)) e = x;
    if (x->used < oldest->used) oldest = x;
  }
  if (!e) {
    e = oldest;
    entry_clear(e);
    int code = make(p, e, a);
    if (code) return code;
  }
  e->used = ++p->clock;
  TRY(dnnl_memory_set_data_handle(e->a, (void *)(uintptr_t)a->a));
  TRY(dnnl_memory_set_data_handle(e->b, (void *)(uintptr_t)a->b));
  TRY(dnnl_memory_set_data_handle(e->c, a->c));
  dnnl_exec_arg_t args[4] = {{DNNL_ARG_SRC, e->a}, {DNNL_ARG_WEIGHTS, e->b}, {DNNL_ARG_DST, e->c}};
  int count = 3;
  if (a->bias) {
    TRY(dnnl_memory_set_data_handle(e->bias, (void *)(uintptr_t)a->bias));
    args[count++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, e->bias};
  }
  TRY(dnnl_primitive_execute(e->primitive, p->stream, count, args));
  TRY(dnnl_stream_wait(p->stream));
  return 0;
}
