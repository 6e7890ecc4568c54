/* SPDX-License-Identifier: MIT
 * Products by oneDNN (2.x and 3.x, whose C interfaces differ).
 *
 * A primitive is code that oneDNN generates for one shape, in 0.2 to 0.6 ms; the last PRIMITIVES of them are kept.
 * Primitives for any number of rows exist too (DNNL_RUNTIME_DIM_VAL), but oneDNN 2.6 serves them by an older kernel: 5
 * % slower at 880 rows of bfloat16, 2.5 times at 4, and without packed weights.
 *
 * By default oneDNN rearranges the weight inside every product, which costs 5 % of float32 and 12 % of bfloat16 at 880
 * rows and two thirds of the time at 1. A backend that is opened with pack_weights therefore packs each frozen weight
 * once for each direction (generation, and training in bfloat16, where the copies are half as large), or for the
 * direction that costs most (training in float32: 420 instead of 490 GFLOP/s as it is, 500 the other way).
 *
 * oneDNN's fast kernel takes only matrices whose rows follow each other without gaps. What serves the others (a slice
 * of GPT-2's joined q, k, v weight is one) sums a row in another order where rows are few, and packed weights meet
 * reference loops there. So oneDNN never sees a gap: such a matrix is copied for the time of the product.
 *
 * Bits: the fast kernel accumulates a row in the same order for every number of rows and threads. oneDNN does not
 * promise that, so a test pins it (docs/exactness.md); its bfloat16 kernels on AMX do not, and are five times as fast as
 * the ones that do. Packed and plain weights may differ in the last bits.
 *
 * oneDNN 3.x (seen in 3.7.2) cannot tell a matrix of one row or column from its transpose: it sums one row of float32
 * with k above 1024 in other blocks than the same row among others, and writes a column between the rows of a wide c.
 * There one row is computed as the first of two, and one column by the plain C product. */
#include <dnnl_debug.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/gemm_dense.h"
#include "backend/gemm_product.h"
#include "backend/onednn_versions.h"
#include "core/memory.h"

enum {
  PRIMITIVES = 64,
  BUCKETS = 256,
  PLAIN = -1, /* layout of a weight that is not packed */
  /* Beyond it (the head over a vocabulary) a packed copy in float32 gains nothing that could be measured: 113 MB of
   * SmolLM2-135M for it were lost. */
  WIDEST_PACKED = 16384,
};

/* What a primitive depends on; compared as bytes, so it has no padding. */
typedef struct shape {
  int64_t m, n, k;
  int32_t layout; /* of the weight: PLAIN, or an index into layouts, where trans_b is 0 */
  int8_t type, c_type, bias_type /* -1: none */, trans;
} shape;

typedef struct entry {
  shape key;
  dnnl_primitive_t primitive;
  dnnl_memory_t a, b, c, bias, scratch; /* bias and scratch NULL: none */
  size_t scratch_bytes;
  uint64_t used;
  int32_t next; /* in its bucket; -1: none */
} entry;

/* How oneDNN likes weights of one shape; all weights of that shape share it, so they share primitives. */
typedef struct packing {
  int64_t n, k;
  px_dtype type;
  bool refused;
  size_t bytes;
  dnnl_memory_desc_t desc;
} packing;

typedef struct weight {
  const void *data;
  int64_t n, k, ld;
  px_dtype type;
  bool trans;
  bool tried; /* packing was tried */
  int32_t layout;
  void *packed; /* NULL: not packed */
  struct weight *next;
} weight;

struct px_product {
  px_backend *be;
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  entry entries[PRIMITIVES];
  int32_t entry_count, first[BUCKETS];
  uint64_t clock;
  packing *layouts;
  size_t layout_count, layout_capacity;
  weight *weights[BUCKETS];
  void *scratch;
  size_t scratch_bytes;
  px_dense dense;
  void *pair; /* see product_of_one_row */
  size_t pair_bytes;
  char name[64];
  bool has_bf16, warned_bf16, warned_shape;
};

#define DNNL_TRY(call)                                \
  do {                                                \
    dnnl_status_t status_ = (call);                   \
    if (status_ != dnnl_success) return (int)status_; \
  } while (0)

static const char *isa_name(dnnl_cpu_isa_t isa) {
  static const struct {
    dnnl_cpu_isa_t isa;
    const char *name;
  } known[] = {{dnnl_cpu_isa_avx512_core_amx, "avx512_core_amx"},
               {dnnl_cpu_isa_avx512_core_bf16, "avx512_core_bf16"},
               {dnnl_cpu_isa_avx512_core_vnni, "avx512_core_vnni"},
               {dnnl_cpu_isa_avx512_core, "avx512_core"},
               {dnnl_cpu_isa_avx2_vnni, "avx2_vnni"},
               {dnnl_cpu_isa_avx2, "avx2"}};
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
    if (isa == known[i].isa) return known[i].name;
  return NULL;
}

px_product *px_product_open(px_backend *be) {
  px_product *p = calloc(1, sizeof *p);
  if (!p) return NULL;
  p->be = be;
  for (int i = 0; i < BUCKETS; i++) p->first[i] = -1;
  /* oneDNN's own cache keeps up to 1024 primitives alive, megabytes each: ragged batches would fill it. */
  dnnl_set_primitive_cache_capacity(0);
  const dnnl_version_t *v = dnnl_version();
  dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
  char number[24];
  snprintf(number, sizeof number, "isa 0x%x", (unsigned)isa);
  snprintf(p->name, sizeof p->name, "oneDNN %d.%d.%d (%s)", v->major, v->minor, v->patch,
           isa_name(isa) ? isa_name(isa) : number);
  /* Instruction sets are bit sets; AMX includes this one. */
  p->has_bf16 = (isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
  return p;
}

const char *px_product_name(const px_product *p) { return p->name; }
bool px_product_has_bf16(const px_product *p) { return p->has_bf16; }
bool px_product_is_no_memory(int code) { return code == (int)dnnl_out_of_memory; }
const char *px_product_error_text(int code) { return dnnl_status2str((dnnl_status_t)code); }

static void entry_clear(entry *e) {
  dnnl_memory_t memories[] = {e->a, e->b, e->c, e->bias, e->scratch};
  if (e->primitive) dnnl_primitive_destroy(e->primitive);
  for (int i = 0; i < 5; i++)
    if (memories[i]) dnnl_memory_destroy(memories[i]);
  *e = (entry){0};
}

static void weight_free(px_product *p, weight *w) {
  px_backend_free(p->be, w->packed);
  free(w);
}

void px_product_close(px_product *p) {
  if (!p) return;
  for (int32_t i = 0; i < p->entry_count; i++) entry_clear(&p->entries[i]);
  for (int i = 0; i < BUCKETS; i++) {
    while (p->weights[i]) {
      weight *w = p->weights[i];
      p->weights[i] = w->next;
      weight_free(p, w);
    }
  }
  for (size_t i = 0; i < p->layout_count; i++) desc_free(&p->layouts[i].desc);
  free(p->layouts);
  px_backend_free(p->be, p->scratch);
  px_dense_free(p->be, &p->dense);
  px_backend_free(p->be, p->pair);
  if (p->stream) dnnl_stream_destroy(p->stream);
  if (p->engine) dnnl_engine_destroy(p->engine);
  free(p);
}

/* ---- descriptions ---- */

/* Everything that is needed to make a primitive and dies afterwards. */
typedef struct plan {
  dnnl_memory_desc_t a, b, c, bias;
  dnnl_post_ops_t post_ops;
  dnnl_primitive_attr_t attr;
  dnnl_primitive_desc_t desc;
} plan;

static void plan_free(plan *w) {
  if (w->desc) dnnl_primitive_desc_destroy(w->desc);
  if (w->attr) dnnl_primitive_attr_destroy(w->attr);
  if (w->post_ops) dnnl_post_ops_destroy(w->post_ops);
  desc_free(&w->a);
  desc_free(&w->b);
  desc_free(&w->c);
  desc_free(&w->bias);
}

static dnnl_data_type_t type_of(px_dtype t) { return t == PX_F32 ? dnnl_f32 : dnnl_bf16; }

/* ld: elements from row to row, or from column to column where trans. */
static dnnl_status_t matrix(dnnl_memory_desc_t *out, int64_t rows, int64_t cols, px_dtype type, int64_t ld,
                            bool trans) {
  dnnl_dims_t dims = {rows, cols}, strides = {trans ? 1 : ld, trans ? ld : 1};
  return desc_strided(out, 2, dims, type_of(type), strides);
}

static dnnl_status_t dense(dnnl_memory_desc_t *out, int64_t rows, int64_t cols, px_dtype type, bool trans) {
  return matrix(out, rows, cols, type, trans ? rows : cols, trans);
}

static dnnl_status_t attributes(plan *w, const px_gemm_args *a) {
  dnnl_status_t s = dnnl_primitive_attr_create(&w->attr);
  if (!s) s = dnnl_primitive_attr_set_scratchpad_mode(w->attr, dnnl_scratchpad_mode_user);
  if (!s) s = dnnl_primitive_attr_set_fpmath_mode(w->attr, dnnl_fpmath_mode_strict);
  if (s || !a->accumulate) return s;
  s = dnnl_post_ops_create(&w->post_ops);
  if (!s) s = append_sum(w->post_ops);
  return s ? s : dnnl_primitive_attr_set_post_ops(w->attr, w->post_ops);
}

/* Describes the product; b_desc NULL: oneDNN may choose the layout of b. The caller frees *w, also on failure. */
static dnnl_status_t describe(px_product *p, plan *w, const px_gemm_args *a, desc_view b_desc) {
  dnnl_dims_t b_dims = {a->k, a->n};
  dnnl_status_t s = attributes(w, a);
  if (!s) s = dense(&w->a, a->m, a->k, a->type, a->trans_a);
  if (!s) s = b_desc ? desc_copy(&w->b, b_desc) : desc_tagged(&w->b, 2, b_dims, type_of(a->type), dnnl_format_tag_any);
  if (!s) s = dense(&w->c, a->m, a->n, a->c_type, false);
  if (!s && a->bias) s = dense(&w->bias, 1, a->n, a->bias_type, false);
  if (s) return s;
#if DNNL_VERSION_MAJOR >= 3
  return dnnl_matmul_primitive_desc_create(&w->desc, p->engine, w->a, w->b, w->bias, w->c, w->attr);
#else
  dnnl_matmul_desc_t matmul;
  s = dnnl_matmul_desc_init(&matmul, &w->a, &w->b, a->bias ? &w->bias : NULL, &w->c);
  return s ? s : dnnl_primitive_desc_create(&w->desc, &matmul, w->attr, p->engine, NULL);
#endif
}

/* oneDNN's reference loops serve whatever its kernels do not. */
static bool is_reference(const plan *w) {
  const char *name = NULL;
  return dnnl_primitive_desc_query(w->desc, dnnl_query_impl_info_str, 0, &name) == dnnl_success && strstr(name, "ref");
}

static dnnl_status_t build(px_product *p, entry *e, const px_gemm_args *a, const plan *w) {
  desc_view scratch = dnnl_primitive_desc_query_md(w->desc, dnnl_query_scratchpad_md, 0);
  dnnl_status_t s = dnnl_primitive_create(&e->primitive, w->desc);
  if (!s) s = dnnl_memory_create(&e->a, VIEW(w->a), p->engine, DNNL_MEMORY_NONE);
  if (!s) s = dnnl_memory_create(&e->b, VIEW(w->b), p->engine, DNNL_MEMORY_NONE);
  if (!s) s = dnnl_memory_create(&e->c, VIEW(w->c), p->engine, DNNL_MEMORY_NONE);
  if (!s && a->bias) s = dnnl_memory_create(&e->bias, VIEW(w->bias), p->engine, DNNL_MEMORY_NONE);
  e->scratch_bytes = scratch ? dnnl_memory_desc_get_size(scratch) : 0;
  if (!s && e->scratch_bytes) s = dnnl_memory_create(&e->scratch, scratch, p->engine, DNNL_MEMORY_NONE);
  return s;
}

/* ---- the primitives kept ---- */

static uint32_t bucket_of(const void *bytes, size_t count) {
  const unsigned char *x = bytes;
  uint32_t h = 2166136261u;
  for (size_t i = 0; i < count; i++) h = (h ^ x[i]) * 16777619u;
  return (h ^ h >> 16) % BUCKETS;
}

static shape shape_of(const px_gemm_args *a, int32_t layout) {
  bool plain = layout == PLAIN;
  return (shape){.m = a->m,
                 .n = a->n,
                 .k = a->k,
                 .layout = layout,
                 .type = (int8_t)a->type,
                 .c_type = (int8_t)a->c_type,
                 .bias_type = (int8_t)(a->bias ? (int)a->bias_type : -1),
                 .trans = (int8_t)(a->trans_a | (plain && a->trans_b) << 1 | a->accumulate << 2)};
}

/* A free slot, or the one that was not used for longest, taken out of its bucket. */
static int32_t take_slot(px_product *p) {
  if (p->entry_count < PRIMITIVES) return p->entry_count++;
  int32_t oldest = 0;
  for (int32_t i = 1; i < PRIMITIVES; i++)
    if (p->entries[i].used < p->entries[oldest].used) oldest = i;
  int32_t *link = &p->first[bucket_of(&p->entries[oldest].key, sizeof(shape))];
  while (*link >= 0 && *link != oldest) link = &p->entries[*link].next;
  if (*link == oldest) *link = p->entries[oldest].next;
  entry_clear(&p->entries[oldest]);
  return oldest;
}

static int find_primitive(px_product *p, const px_gemm_args *a, int32_t layout, entry **out) {
  shape key = shape_of(a, layout);
  uint32_t bucket = bucket_of(&key, sizeof key);
  for (int32_t i = p->first[bucket]; i >= 0; i = p->entries[i].next) {
    if (memcmp(&p->entries[i].key, &key, sizeof key) != 0) continue;
    *out = &p->entries[i];
    return 0;
  }
  plan w = {0};
  dnnl_memory_desc_t plain = {0};
  entry made = {.key = key};
  dnnl_status_t s = layout == PLAIN ? dense(&plain, a->k, a->n, a->type, a->trans_b) : dnnl_success;
  if (!s) s = describe(p, &w, a, layout == PLAIN ? VIEW(plain) : VIEW(p->layouts[layout].desc));
  if (!s && layout != PLAIN && is_reference(&w)) s = dnnl_unimplemented;
  if (!s) s = build(p, &made, a, &w);
  plan_free(&w);
  desc_free(&plain);
  if (s) {
    entry_clear(&made);
    return (int)s;
  }
  int32_t slot = take_slot(p);
  made.next = p->first[bucket];
  p->entries[slot] = made;
  p->first[bucket] = slot;
  *out = &p->entries[slot];
  return 0;
}

/* ---- packed weights ---- */

/* Index of the layout for b of this shape, chosen by oneDNN at the first call; -1 when memory is out. */
static int32_t find_layout(px_product *p, const px_gemm_args *a) {
  for (size_t i = 0; i < p->layout_count; i++)
    if (p->layouts[i].n == a->n && p->layouts[i].k == a->k && p->layouts[i].type == a->type) return (int32_t)i;
  if (px_reserve(&p->layouts, &p->layout_capacity, p->layout_count + 1, sizeof *p->layouts)) return -1;
  packing *l = &p->layouts[p->layout_count];
  *l = (packing){.n = a->n, .k = a->k, .type = a->type, .refused = true};
  plan w = {0};
  if (!describe(p, &w, a, NULL)) {
    desc_view chosen = dnnl_primitive_desc_query_md(w.desc, dnnl_query_weights_md, 0);
    l->refused = desc_copy(&l->desc, chosen) != dnnl_success;
    l->bytes = dnnl_memory_desc_get_size(chosen);
  }
  plan_free(&w);
  return (int32_t)p->layout_count++;
}

static dnnl_status_t reorder(px_product *p, desc_view from, const void *src, desc_view to, void *dst) {
  dnnl_primitive_desc_t desc = NULL;
  dnnl_primitive_t primitive = NULL;
  dnnl_memory_t in = NULL, out = NULL;
  dnnl_status_t s = dnnl_reorder_primitive_desc_create(&desc, from, p->engine, to, p->engine, NULL);
  if (!s) s = dnnl_primitive_create(&primitive, desc);
  if (!s) s = dnnl_memory_create(&in, from, p->engine, (void *)(uintptr_t)src);
  if (!s) s = dnnl_memory_create(&out, to, p->engine, dst);
  dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, in}, {DNNL_ARG_TO, out}};
  if (!s) s = dnnl_primitive_execute(primitive, p->stream, 2, args);
  if (!s) s = dnnl_stream_wait(p->stream);
  if (in) dnnl_memory_destroy(in);
  if (out) dnnl_memory_destroy(out);
  if (primitive) dnnl_primitive_destroy(primitive);
  if (desc) dnnl_primitive_desc_destroy(desc);
  return s;
}

/* Leaves the weight unpacked for good where anything fails: the plain one serves as well, only slower. */
static void pack(px_product *p, weight *w, const px_gemm_args *a) {
  dnnl_memory_desc_t plain = {0};
  w->tried = true;
  if (matrix(&plain, a->k, a->n, a->type, a->ldb, a->trans_b)) return;
  w->layout = find_layout(p, a);
  const packing *l = w->layout >= 0 ? &p->layouts[w->layout] : NULL;
  if (l && !l->refused && !dnnl_memory_desc_equal(VIEW(l->desc), VIEW(plain))) {
    w->packed = px_backend_try_alloc(p->be, l->bytes);
    if (w->packed && reorder(p, VIEW(plain), w->data, VIEW(l->desc), w->packed)) {
      px_backend_free(p->be, w->packed);
      w->packed = NULL;
    }
  }
  desc_free(&plain);
}

static weight *find_weight(px_product *p, const px_gemm_args *a) {
  weight **first = &p->weights[bucket_of(&a->b, sizeof a->b)];
  for (weight *w = *first; w; w = w->next)
    if (w->data == a->b && w->n == a->n && w->k == a->k && w->ld == a->ldb && w->type == a->type &&
        w->trans == a->trans_b)
      return w;
  weight *w = calloc(1, sizeof *w);
  if (!w) return NULL;
  *w = (weight){.data = a->b, .n = a->n, .k = a->k, .ld = a->ldb, .type = a->type, .trans = a->trans_b, .next = *first};
  *first = w;
  return w;
}

/* The weight, packed at its first use where the backend packs. NULL: as the caller has it. Whether a weight is packed
 * never depends on what was computed before: packing may change bits, and a resumed run must repeat them. */
static const weight *packed_weight(px_product *p, const px_gemm_args *a) {
  px_pack which = p->be->pack_weights;
  bool packed =
      a->b_frozen && (which == PX_PACK_ALL || (which == PX_PACK_TRANSPOSED && a->trans_b && a->n <= WIDEST_PACKED));
  weight *w = packed ? find_weight(p, a) : NULL;
  if (!w) return NULL;
  if (!w->tried) pack(p, w, a);
  return w->packed ? w : NULL;
}

void px_product_forget(px_product *p, const void *from, size_t bytes) {
  uintptr_t start = (uintptr_t)from;
  for (int i = 0; i < BUCKETS; i++) {
    for (weight **link = &p->weights[i]; *link;) {
      weight *w = *link;
      uintptr_t at = (uintptr_t)w->data;
      if (at < start || at - start >= bytes) {
        link = &w->next;
        continue;
      }
      *link = w->next;
      weight_free(p, w);
    }
  }
}

/* ---- the product ---- */

static int start(px_product *p) {
  if (!p->engine) DNNL_TRY(dnnl_engine_create(&p->engine, dnnl_cpu, 0));
  if (!p->stream) DNNL_TRY(dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags));
  return 0;
}

/* At least `bytes` at *at, of which *have are there; what they held is lost. */
static int need(px_product *p, void **at, size_t *have, size_t bytes) {
  if (bytes <= *have) return 0;
  px_backend_free(p->be, *at);
  *at = px_backend_try_alloc(p->be, bytes);
  *have = *at ? bytes : 0;
  return *at ? 0 : (int)dnnl_out_of_memory;
}

static int execute(px_product *p, const entry *e, const px_gemm_args *a, const void *b) {
  dnnl_exec_arg_t args[5] = {{DNNL_ARG_SRC, e->a}, {DNNL_ARG_WEIGHTS, e->b}, {DNNL_ARG_DST, e->c}};
  int count = 3;
  DNNL_TRY(dnnl_memory_set_data_handle(e->a, (void *)(uintptr_t)a->a));
  DNNL_TRY(dnnl_memory_set_data_handle(e->b, (void *)(uintptr_t)b));
  DNNL_TRY(dnnl_memory_set_data_handle(e->c, a->c));
  if (e->bias) {
    DNNL_TRY(dnnl_memory_set_data_handle(e->bias, (void *)(uintptr_t)a->bias));
    args[count++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, e->bias};
  }
  if (e->scratch) {
    DNNL_TRY(dnnl_memory_set_data_handle(e->scratch, p->scratch));
    args[count++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, e->scratch};
  }
  DNNL_TRY(dnnl_primitive_execute(e->primitive, p->stream, count, args));
  return (int)dnnl_stream_wait(p->stream);
}

static int plain_product(px_product *p, const px_gemm_args *a, bool *warned, const char *why) {
  if (!*warned) px_log_message(&p->be->log, PX_LOG_WARN, "%s: products go through plain C, which is slower", why);
  *warned = true;
  return px_gemm_plain_cpu(a);
}

static int product(px_product *p, const px_gemm_args *a) {
  int code = start(p);
  if (code) return code;
  const weight *w = packed_weight(p, a);
  entry *e = NULL;
  code = find_primitive(p, a, w ? w->layout : PLAIN, &e);
  if (code && w) {
    w = NULL;
    code = find_primitive(p, a, PLAIN, &e);
  }
  if (code == (int)dnnl_unimplemented)
    return plain_product(p, a, &p->warned_shape, "oneDNN does not implement a product of this model");
  px_gemm_args d;
  if (!code) code = need(p, &p->scratch, &p->scratch_bytes, e->scratch_bytes);
  if (!code && px_dense_open(p->be, &p->dense, a, !w, &d)) code = (int)dnnl_out_of_memory;
  if (code) return code;
  e->used = ++p->clock;
  code = execute(p, e, &d, w ? w->packed : d.b);
  if (!code) px_dense_close(a, &d);
  return code;
}

/* The row, as the first of two; the second is zeros. Time goes into reading b, as for one. */
static int product_of_one_row(px_product *p, const px_gemm_args *a) {
  size_t size = px_dtype_bytes(a->type, 1), k = (size_t)a->k;
  size_t a_bytes = size * k, c_bytes = px_dtype_bytes(a->c_type, (size_t)a->n);
  size_t c_at = (2 * a_bytes + 63) / 64 * 64;
  int code = need(p, &p->pair, &p->pair_bytes, c_at + 2 * c_bytes);
  if (code) return code;
  char *row = p->pair, *c = row + c_at;
  px_gemm_args two = *a;
  two.m = 2, two.lda = a->k, two.ldc = a->n, two.trans_a = false, two.a = row, two.c = c;
  if (!a->trans_a) memcpy(row, a->a, a_bytes);
  for (size_t i = 0; a->trans_a && i < k; i++)
    memcpy(row + i * size, (const char *)a->a + i * (size_t)a->lda * size, size);
  memset(row + a_bytes, 0, a_bytes);
  if (a->accumulate) memcpy(c, a->c, c_bytes);
  memset(c + c_bytes, 0, c_bytes);
  code = product(p, &two);
  if (!code) memcpy(a->c, c, c_bytes);
  return code;
}

int px_product_gemm(px_product *p, const px_gemm_args *a) {
  if (a->m == 0 || a->n == 0) return 0;
  if (a->k == 0) return px_gemm_plain_cpu(a);
  if (a->type == PX_BF16 && !p->has_bf16)
    return plain_product(p, a, &p->warned_bf16,
                         "this processor has no bfloat16 arithmetic (AVX512-BF16 or AMX), f32 is faster here");
  if (DNNL_VERSION_MAJOR >= 3 && a->n == 1) return px_gemm_plain_cpu(a);
  if (DNNL_VERSION_MAJOR >= 3 && a->m == 1) return product_of_one_row(p, a);
  return product(p, a);
}
