/* SPDX-License-Identifier: MIT
 * pfx_adapter_write_kv: every layout of a server's cache, value by value, nothing beside it touched, and what is
 * refused. */
#include "format/safetensors.h"
#include "helpers/api.h"
#include "helpers/golden.h"

/* llama_tied: 3 layers, 3 key/value heads of 12. */
enum { LAYERS = 3, HEADS = 3, DIM = 12, MOST = 8192 };

typedef struct prefix {
  pfx_adapter *adapter;
  px_tensor_list file;
  const void *values; /* [tokens, 2 * LAYERS * HEADS * DIM] in the file's type */
  int tokens;
} prefix;

static void open_prefix(const char *folder, prefix *p) {
  pfx_error err = {0};
  char path[512], name[128];
  pfx_adapter_info info;
  API_OK(pfx_adapter_open(golden_path("llama_tied", folder, path), &p->adapter, &err));
  snprintf(name, sizeof name, "%s/adapter_model.safetensors", folder);
  assert_int_equal(px_safetensors_open(golden_path("llama_tied", name, path), &p->file, NULL, NULL, NULL), PX_OK);
  p->values = px_tensor_find(&p->file, "prompt_embeddings")->data;
  pfx_adapter_info_get(p->adapter, &info);
  p->tokens = info.virtual_tokens;
  assert_int_equal(info.layers, LAYERS);
  assert_int_equal(info.kv_heads, HEADS);
  assert_int_equal(info.head_dim, DIM);
}

static void close_prefix(prefix *p) {
  pfx_adapter_close(p->adapter);
  px_tensor_list_close(&p->file);
}

/* Place of (token, layer, key 0 or value 1, head, dim) in PEFT's tensor. */
static int64_t place(int token, int layer, int kv, int head, int dim) {
  return (((int64_t)token * 2 * LAYERS + 2 * layer + kv) * HEADS + head) * DIM + dim;
}

static int64_t slot_of(const pfx_kv_target *t, int token) {
  return t->block_table ? (int64_t)t->block_table[token / t->block_tokens] * t->block_tokens + token % t->block_tokens
                        : token;
}

/* Writes every layer into poisoned memory; each element must be the file's, bit for bit, and all others untouched. The
 * target's type is the file's. */
static void check_layout(const prefix *p, pfx_kv_target t) {
  static uint8_t k[MOST * 4], v[MOST * 4], want_k[MOST * 4], want_v[MOST * 4];
  pfx_error err = {0};
  size_t bytes = t.type == PFX_KV_F32 ? 4 : 2;
  const uint8_t *values = p->values;
  for (int layer = 0; layer < LAYERS; layer++) {
    uint8_t *const all[] = {k, v, want_k, want_v};
    for (int i = 0; i < 4; i++) memset(all[i], 0xa5, sizeof k);
    for (int token = 0; token < p->tokens; token++)
      for (int h = 0; h < t.head_count; h++)
        for (int d = 0; d < DIM; d++) {
          int64_t at = slot_of(&t, token) * t.token_stride + h * t.head_stride + d;
          int key_dim = t.rotary == PFX_ROTARY_HALVES ? d : d % 2 ? DIM / 2 + d / 2 : d / 2;
          assert_in_range(at, 0, MOST - 1);
          memcpy(want_k + (size_t)at * bytes,
                 values + (size_t)place(token, layer, 0, t.first_head + h, key_dim) * bytes, bytes);
          memcpy(want_v + (size_t)at * bytes, values + (size_t)place(token, layer, 1, t.first_head + h, d) * bytes,
                 bytes);
        }
    t.k = k;
    t.v = v;
    API_OK(pfx_adapter_write_kv(p->adapter, layer, &t, NULL, &err));
    assert_memory_equal(k, want_k, sizeof k);
    assert_memory_equal(v, want_v, sizeof v);
  }
}

static void every_layout_holds_the_files_values(void **state) {
  (void)state;
  static const struct {
    const char *folder;
    pfx_kv_type type;
  } types[] = {{"adapter", PFX_KV_F32}, {"adapter_f16", PFX_KV_F16}, {"adapter_bf16", PFX_KV_BF16}};
  static const int32_t blocks[] = {5, 0, 9, 2};
  for (size_t i = 0; i < 3; i++)
    for (int rotary = PFX_ROTARY_HALVES; rotary <= PFX_ROTARY_INTERLEAVED; rotary++) {
      prefix p;
      open_prefix(types[i].folder, &p);
      pfx_kv_target t = pfx_kv_target_init();
      t.type = types[i].type;
      t.rotary = (pfx_rotary_layout)rotary;
      t.head_count = HEADS;
      t.token_stride = HEADS * DIM, t.head_stride = DIM; /* [token, head, dim] */
      check_layout(&p, t);
      t.token_stride = DIM, t.head_stride = 40 * DIM; /* [head, token, dim] in a longer cache */
      check_layout(&p, t);
      t.token_stride = 2 * HEADS * DIM + 5, t.head_stride = DIM + 1; /* keys and values side by side, padded */
      check_layout(&p, t);
      t.block_table = blocks;
      t.block_tokens = 2;
      t.token_stride = HEADS * DIM, t.head_stride = DIM; /* pages of two tokens, out of order */
      check_layout(&p, t);
      t.block_tokens = 16; /* a page longer than the prefix */
      check_layout(&p, t);
      t.first_head = 1, t.head_count = 2, t.token_stride = 2 * DIM; /* a part of the heads */
      check_layout(&p, t);
      t.first_head = 2, t.head_count = 1, t.token_stride = DIM, t.head_stride = 0;
      check_layout(&p, t);
      close_prefix(&p);
    }
}

/* float32 values of every exponent, rounded by the target's type: to nearest, ties to even. */
static void narrower_types_round(void **state) {
  (void)state;
  prefix p;
  pfx_error err = {0};
  float wide[4 * HEADS * DIM], ignored[4 * HEADS * DIM];
  uint16_t k[4 * HEADS * DIM], v[4 * HEADS * DIM];
  pfx_kv_target t = pfx_kv_target_init();
  open_prefix("adapter", &p);
  t.head_count = HEADS, t.token_stride = HEADS * DIM, t.head_stride = DIM;
  t.k = wide, t.v = ignored;
  API_OK(pfx_adapter_write_kv(p.adapter, 1, &t, NULL, &err));
  t.k = k, t.v = v;
  t.type = PFX_KV_BF16;
  API_OK(pfx_adapter_write_kv(p.adapter, 1, &t, NULL, &err));
  for (int i = 0; i < p.tokens * HEADS * DIM; i++) {
    uint32_t bits, kept = (uint32_t)k[i] << 16;
    float rounded;
    memcpy(&bits, &wide[i], 4);
    memcpy(&rounded, &kept, 4);
    uint32_t below = bits & 0xffff0000u, rest = bits & 0xffffu; /* the two neighbours in bfloat16 */
    uint32_t nearest = rest > 0x8000u || (rest == 0x8000u && (below & 0x10000u)) ? below + 0x10000u : below;
    assert_int_equal(kept, nearest);
  }
  t.type = PFX_KV_F16;
  API_OK(pfx_adapter_write_kv(p.adapter, 1, &t, NULL, &err));
  for (int i = 0; i < p.tokens * HEADS * DIM; i++) {
    int exponent = (k[i] >> 10 & 31) - 15;
    double value =
        (1 + (k[i] & 1023) / 1024.0) * (exponent < 0 ? 1.0 / (1 << -exponent) : 1 << exponent) * (k[i] >> 15 ? -1 : 1);
    double half_step = (exponent < 0 ? 1.0 / (1 << -exponent) : 1 << exponent) / 2048.0;
    if (exponent > -15) assert_true(value - wide[i] <= half_step && wide[i] - value <= half_step);
  }
  close_prefix(&p);
}

static void what_does_not_fit_is_refused(void **state) {
  (void)state;
  prefix p;
  pfx_error err = {0};
  static float k[4 * HEADS * DIM], v[4 * HEADS * DIM];
  static const int32_t blocks[4];
  open_prefix("adapter", &p);
  pfx_kv_target good = pfx_kv_target_init(), t;
  good.k = k, good.v = v, good.head_count = HEADS, good.token_stride = HEADS * DIM, good.head_stride = DIM;
  API_OK(pfx_adapter_write_kv(p.adapter, 0, &good, NULL, &err));
  API_FAILS(pfx_adapter_write_kv(p.adapter, 0, &good, k, &err), PFX_INVALID, "stream must be NULL on the CPU");
  API_FAILS(pfx_adapter_write_kv(p.adapter, -1, &good, NULL, &err), PFX_INVALID, "layer -1 is out of range (0 to 2)");
  API_FAILS(pfx_adapter_write_kv(p.adapter, 3, &good, NULL, &err), PFX_INVALID, "layer 3 is out of range (0 to 2)");
  API_FAILS(pfx_adapter_write_kv(p.adapter, 0, NULL, NULL, &err), PFX_INVALID,
            "the target has no memory for keys or values");
  t = good, t.v = NULL;
  API_FAILS(pfx_adapter_write_kv(p.adapter, 0, &t, NULL, &err), PFX_INVALID,
            "the target has no memory for keys or values");
  t = good, t.type = (pfx_kv_type)3;
  API_FAILS(pfx_adapter_write_kv(p.adapter, 0, &t, NULL, &err), PFX_INVALID,
            "the target's type or rotary layout is not known");
  t = good, t.rotary = (pfx_rotary_layout)-1;
  API_FAILS(pfx_adapter_write_kv(p.adapter, 0, &t, NULL, &err), PFX_INVALID,
            "the target's type or rotary layout is not known");
  t = good, t.first_head = 1;
  API_FAILS(pfx_adapter_write_kv(p.adapter, 0, &t, NULL, &err), PFX_INVALID,
            "3 heads from head 1 on are out of range (the prefix has 3)");
  t = good, t.head_count = 0;
  API_FAILS(pfx_adapter_write_kv(p.adapter, 0, &t, NULL, &err), PFX_INVALID,
            "0 heads from head 0 on are out of range (the prefix has 3)");
  t = good, t.first_head = -1, t.head_count = 1;
  API_FAILS(pfx_adapter_write_kv(p.adapter, 0, &t, NULL, &err), PFX_INVALID,
            "1 heads from head -1 on are out of range (the prefix has 3)");
  t = good, t.first_head = INT32_MAX, t.head_count = INT32_MAX;
  API_FAILS(pfx_adapter_write_kv(p.adapter, 0, &t, NULL, &err), PFX_INVALID,
            "2147483647 heads from head 2147483647 on are out of range (the prefix has 3)");
  t = good, t.block_table = blocks;
  API_FAILS(pfx_adapter_write_kv(p.adapter, 0, &t, NULL, &err), PFX_INVALID, "a block table needs block_tokens");
  assert_int_equal(pfx_adapter_write_kv(p.adapter, 3, &good, NULL, NULL), PFX_INVALID); /* no error record */
  close_prefix(&p);
}

static void what_an_adapter_says_of_itself(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_adapter *adapter = NULL;
  pfx_adapter_info info;
  char path[512];
  API_OK(pfx_adapter_open(golden_path("llama_tied", "adapter_cartridge", path), &adapter, &err));
  pfx_adapter_info_get(adapter, &info);
  assert_string_equal(info.kind, "CARTRIDGE");
  assert_int_equal(info.virtual_tokens, 5);
  assert_null(info.base);
  assert_null(info.training);
  pfx_adapter_close(adapter);
  API_FAILS(pfx_adapter_open("nowhere", &adapter, &err), PFX_BAD_FILE,
            "cannot open the adapter folder nowhere: No such file or directory");
  assert_null(adapter);
  assert_int_equal(err.native, 2); /* ENOENT */
}

static void fit_of_an_adapter(void **state) {
  (void)state;
  pfx_error err = {0};
  pfx_adapter *adapter = NULL;
  pfx_model *model = NULL, *other = NULL;
  pfx_fit fit;
  char path[512], *warning = path;
  API_OK(pfx_model_open(golden_path("llama_tied", "", path), NULL, &model, &err));
  API_OK(pfx_model_open(golden_path("qwen2", "", path), NULL, &other, &err));
  API_OK(pfx_adapter_open(golden_path("llama_tied", "adapter", path), &adapter, &err));
  API_OK(pfx_adapter_check(adapter, model, NULL, false, &fit, &warning, &err));
  assert_int_equal(fit, PFX_FIT_UNVERIFIED);
  assert_null(warning);
  API_OK(pfx_adapter_check(adapter, model, NULL, false, &fit, NULL, NULL));
  assert_int_equal(pfx_adapter_check(adapter, other, NULL, false, &fit, &warning, &err), PFX_MISMATCH);
  assert_non_null(
      strstr(err.message, "holds keys and values of 36 numbers a layer, this model's have 32 (2 heads of 16)"));
  assert_int_equal(pfx_adapter_check(adapter, other, NULL, true, &fit, NULL, NULL),
                   PFX_MISMATCH); /* a shape cannot be forced */
  pfx_adapter_close(adapter);
  pfx_model_close(model);
  pfx_model_close(other);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_layout_holds_the_files_values),
      cmocka_unit_test(narrower_types_round),
      cmocka_unit_test(what_does_not_fit_is_refused),
      cmocka_unit_test(what_an_adapter_says_of_itself),
      cmocka_unit_test(fit_of_an_adapter),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
