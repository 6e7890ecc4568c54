/* SPDX-License-Identifier: MIT
 * GGUF files made here byte by byte, and the real one where it is. Damaged files: bad_files_test.c. */
#include "format/gguf.h"

#include <math.h>
#include <time.h>

#include "helpers/test.h"

static px_error err;

static void put_u32(px_buf *b, uint32_t v) { px_buf_append(b, &v, sizeof v); }
static void put_u64(px_buf *b, uint64_t v) { px_buf_append(b, &v, sizeof v); }
static void put_text(px_buf *b, const char *text) {
  put_u64(b, strlen(text));
  px_buf_puts(b, text);
}
static void put_key(px_buf *b, const char *key, px_gguf_type type) {
  put_text(b, key);
  put_u32(b, type);
}
static void put_start(px_buf *b, uint32_t version, uint64_t tensors, uint64_t values) {
  px_buf_puts(b, "GGUF");
  put_u32(b, version);
  put_u64(b, tensors);
  put_u64(b, values);
}
static void put_number(px_buf *b, const char *key, px_gguf_type type, const void *value, size_t bytes) {
  put_key(b, key, type);
  px_buf_append(b, value, bytes);
}
static void put_info(px_buf *b, const char *name, uint32_t type, uint64_t offset, uint32_t dims, const uint64_t *ne) {
  put_text(b, name);
  put_u32(b, dims);
  for (uint32_t i = 0; i < dims; i++) put_u64(b, ne[i]);
  put_u32(b, type);
  put_u64(b, offset);
}

static void open_bytes(const px_buf *b, px_gguf *g) {
  ASSERT_OK(px_gguf_parse("m.gguf", (const uint8_t *)b->data, b->len, g, &err));
}

/* One value of every type, 13 keys. */
static void put_every_type(px_buf *out) {
  px_buf b = *out;
  uint8_t u8 = 200;
  int8_t i8 = -5;
  uint16_t u16 = 65535;
  int16_t i16 = -300;
  uint32_t u32 = 4000000000u;
  int32_t i32 = -70000;
  float f32 = 0.25f;
  uint64_t u64 = UINT64_MAX;
  int64_t i64 = INT64_MIN;
  double f64 = 1e-5;
  put_number(&b, "u8", PX_GGUF_U8, &u8, 1);
  put_number(&b, "i8", PX_GGUF_I8, &i8, 1);
  put_number(&b, "u16", PX_GGUF_U16, &u16, 2);
  put_number(&b, "i16", PX_GGUF_I16, &i16, 2);
  put_number(&b, "u32", PX_GGUF_U32, &u32, 4);
  put_number(&b, "i32", PX_GGUF_I32, &i32, 4);
  put_number(&b, "f32", PX_GGUF_F32, &f32, 4);
  put_number(&b, "bool", PX_GGUF_BOOL, "\1", 1);
  put_key(&b, "string", PX_GGUF_STRING);
  put_text(&b, "text");
  put_number(&b, "u64", PX_GGUF_U64, &u64, 8);
  put_number(&b, "i64", PX_GGUF_I64, &i64, 8);
  put_number(&b, "f64", PX_GGUF_F64, &f64, 8);
  put_key(&b, "nested", PX_GGUF_ARRAY); /* [["a"], []] */
  put_u32(&b, PX_GGUF_ARRAY);
  put_u64(&b, 2);
  put_u32(&b, PX_GGUF_STRING);
  put_u64(&b, 1);
  put_text(&b, "a");
  put_u32(&b, PX_GGUF_I32);
  put_u64(&b, 0);
  *out = b;
}

static void every_value_type_is_read(void **state) {
  (void)state;
  px_buf b = {0};
  px_gguf g;
  put_start(&b, 3, 0, 13);
  put_every_type(&b);
  open_bytes(&b, &g);
  assert_int_equal(g.version, 3);
  assert_int_equal(g.value_count, 13);
  static const struct {
    const char *key;
    int64_t value;
  } ints[] = {{"u8", 200},         {"i8", -5},      {"u16", 65535},    {"i16", -300},
              {"u32", 4000000000}, {"i32", -70000}, {"i64", INT64_MIN}};
  for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
    int64_t got = 0;
    ASSERT_OK(px_gguf_int(&g, ints[i].key, 0, &got, &err));
    assert_true(got == ints[i].value);
  }
  double num;
  ASSERT_OK(px_gguf_num(&g, "f32", 0, &num, &err));
  assert_true(num == 0.25);
  ASSERT_OK(px_gguf_num(&g, "f64", 0, &num, &err));
  assert_true(num == 1e-5);
  ASSERT_OK(px_gguf_num(&g, "u64", 0, &num, &err));
  assert_true(num == 0x1p64);
  ASSERT_OK(px_gguf_num(&g, "absent", 2.5, &num, &err));
  assert_true(num == 2.5);
  const char *text;
  ASSERT_OK(px_gguf_str(&g, "string", NULL, &text, &err));
  assert_string_equal(text, "text");
  ASSERT_OK(px_gguf_str(&g, "absent", "fallback", &text, &err));
  assert_string_equal(text, "fallback");
  int64_t whole;
  ASSERT_FAILS(px_gguf_int(&g, "u64", 0, &whole, &err), PX_BAD_FILE, "m.gguf: key u64 must be an integer below 2^63");
  ASSERT_FAILS(px_gguf_int(&g, "f32", 0, &whole, &err), PX_BAD_FILE, "m.gguf: key f32 must be an integer below 2^63");
  ASSERT_FAILS(px_gguf_num(&g, "string", 0, &num, &err), PX_BAD_FILE, "m.gguf: key string must be a number");
  ASSERT_FAILS(px_gguf_str(&g, "u8", NULL, &text, &err), PX_BAD_FILE, "m.gguf: key u8 must be a string without NUL");
  assert_int_equal(px_gguf_find(&g, "bool")->raw[0], 1);
  assert_int_equal(px_gguf_array_int(px_gguf_find(&g, "string"), 0), 0);
  assert_true(px_gguf_array_num(px_gguf_find(&g, "i16"), 0) == -300);
  assert_int_equal(px_gguf_find(&g, "nested")->count, 2);
  assert_int_equal(px_gguf_find(&g, "nested")->element_type, PX_GGUF_ARRAY);
  px_gguf_close(&g);
  px_buf_free(&b);
}

static void arrays_are_read_and_strings_borrowed(void **state) {
  (void)state;
  px_buf b = {0};
  put_start(&b, 2, 0, 3);
  put_key(&b, "tokens", PX_GGUF_ARRAY);
  put_u32(&b, PX_GGUF_STRING);
  put_u64(&b, 3);
  put_text(&b, "a");
  put_text(&b, "");
  put_text(&b, "ccc");
  put_key(&b, "scores", PX_GGUF_ARRAY);
  put_u32(&b, PX_GGUF_F32);
  put_u64(&b, 3);
  float scores[] = {-1.5f, 1e30f, NAN};
  px_buf_append(&b, scores, sizeof scores);
  put_key(&b, "types", PX_GGUF_ARRAY);
  put_u32(&b, PX_GGUF_I32);
  put_u64(&b, 2);
  int32_t types[] = {1, -7};
  px_buf_append(&b, types, sizeof types);
  px_gguf g;
  open_bytes(&b, &g);
  assert_int_equal(g.version, 2);
  const px_gguf_value *v = px_gguf_find(&g, "tokens");
  assert_int_equal(v->count, 3);
  assert_int_equal(v->strings[1].len, 0);
  assert_int_equal(v->strings[2].len, 3);
  assert_memory_equal(v->strings[2].data, "ccc", 3);
  assert_true((const char *)v->strings[2].data > b.data && (const char *)v->strings[2].data < b.data + b.len);
  v = px_gguf_find(&g, "scores");
  assert_true(px_gguf_array_num(v, 0) == -1.5);
  assert_int_equal(px_gguf_array_int(v, 0), -1);
  assert_true(px_gguf_array_int(v, 1) == INT64_MAX);
  assert_int_equal(px_gguf_array_int(v, 2), 0);
  v = px_gguf_find(&g, "types");
  assert_int_equal(px_gguf_array_int(v, 1), -7);
  assert_true(px_gguf_array_num(v, 1) == -7.0);
  assert_null(px_gguf_find(&g, "absent"));
  px_gguf_close(&g);
  px_buf_free(&b);
}

static void tensors_are_placed_and_shapes_reversed(void **state) {
  (void)state;
  px_buf b = {0};
  uint32_t alignment = 64;
  put_start(&b, 3, 5, 1);
  put_number(&b, "general.alignment", PX_GGUF_U32, &alignment, 4);
  put_info(&b, "w", 8, 64, 2, (uint64_t[]){64, 3}); /* Q8_0 [3, 64]: 3 rows of two blocks */
  put_info(&b, "a", 0, 0, 1, (uint64_t[]){2});
  put_info(&b, "scalar", 0, 320, 0, NULL);
  put_info(&b, "none", 1, 0, 2, (uint64_t[]){4, 0});
  put_info(&b, "nothing", 1, 1 << 20, 1, (uint64_t[]){0});
  while (b.len % 64) px_buf_append(&b, "", 1);
  size_t start = b.len;
  for (size_t i = 0; i < 324; i++) px_buf_append(&b, &(uint8_t){(uint8_t)i}, 1);
  px_gguf g;
  open_bytes(&b, &g);
  assert_int_equal(g.tensors.count, 5);
  const px_tensor_view *w = px_tensor_find(&g.tensors, "w");
  assert_int_equal(w->dtype, PX_Q8_0);
  assert_int_equal(w->dims, 2);
  assert_int_equal(w->shape[0], 3);
  assert_int_equal(w->shape[1], 64);
  assert_int_equal(w->bytes, 3 * 2 * 34);
  assert_ptr_equal(w->data, b.data + start + 64);
  assert_int_equal(px_tensor_elements(w), 192);
  assert_string_equal(w->file, "m.gguf");
  assert_ptr_equal(px_tensor_find(&g.tensors, "a")->data, b.data + start);
  assert_int_equal(px_tensor_elements(px_tensor_find(&g.tensors, "scalar")), 1);
  assert_int_equal(px_tensor_find(&g.tensors, "none")->bytes, 0);
  assert_int_equal(px_tensor_elements(px_tensor_find(&g.tensors, "nothing")), 0);
  assert_null(px_tensor_find(&g.tensors, "absent"));
  px_gguf_close(&g);
  px_buf_free(&b);
}

/* No prefix of a whole file opens: each length is refused, and none is read beyond its end (sanitizers). */
static void every_cut_is_refused(void **state) {
  (void)state;
  px_buf b = {0};
  put_start(&b, 3, 1, 2);
  put_key(&b, "general.architecture", PX_GGUF_STRING);
  put_text(&b, "llama");
  put_key(&b, "list", PX_GGUF_ARRAY);
  put_u32(&b, PX_GGUF_STRING);
  put_u64(&b, 2);
  put_text(&b, "a");
  put_text(&b, "b");
  put_info(&b, "w", 0, 0, 2, (uint64_t[]){4, 2});
  while (b.len % 32) px_buf_append(&b, "", 1);
  for (int i = 0; i < 32; i++) px_buf_append(&b, "x", 1);
  px_gguf g;
  for (size_t cut = 0; cut < b.len; cut++) {
    uint8_t *exact = malloc(cut ? cut : 1);
    assert_non_null(exact);
    memcpy(exact, b.data, cut);
    assert_int_equal(px_gguf_parse("m.gguf", exact, cut, &g, &err), PX_BAD_FILE);
    free(exact);
  }
  open_bytes(&b, &g);
  px_gguf_close(&g);
  px_buf_free(&b);
}

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void the_real_model_opens(void **state) {
  (void)state;
  px_buf path = {0};
  const char *cache = test_env("XDG_CACHE_HOME", "");
  px_buf_printf(&path, "%s%s/pfx/SmolLM2-135M-Instruct.Q4_1.gguf", *cache ? cache : test_env("HOME", ""),
                *cache ? "" : "/.cache");
  if (!px_file_exists(path.data)) {
    px_buf_free(&path);
    skip();
  }
  px_gguf g;
  double start = now_ms();
  ASSERT_OK(px_gguf_open(path.data, &g, &err));
  print_message("opened in %.1f ms\n", now_ms() - start);
  assert_int_equal(g.tensors.count, 272);
  assert_int_equal(px_gguf_find(&g, "tokenizer.ggml.tokens")->count, 49152);
  const px_tensor_view *t = px_tensor_find(&g.tensors, "token_embd.weight");
  assert_int_equal(t->dtype, PX_Q8_0);
  assert_int_equal(t->shape[0], 49152);
  assert_int_equal(t->shape[1], 576);
  size_t q4_1 = 0, f32 = 0;
  for (size_t i = 0; i < g.tensors.count; i++) {
    q4_1 += g.tensors.items[i].dtype == PX_Q4_1;
    f32 += g.tensors.items[i].dtype == PX_F32;
  }
  assert_int_equal(q4_1, 210);
  assert_int_equal(f32, 61);
  const char *text;
  ASSERT_OK(px_gguf_str(&g, "general.architecture", NULL, &text, &err));
  assert_string_equal(text, "llama");
  px_gguf_close(&g);
  px_buf_free(&path);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_value_type_is_read),
      cmocka_unit_test(arrays_are_read_and_strings_borrowed),
      cmocka_unit_test(tensors_are_placed_and_shapes_reversed),
      cmocka_unit_test(every_cut_is_refused),
      cmocka_unit_test(the_real_model_opens),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
