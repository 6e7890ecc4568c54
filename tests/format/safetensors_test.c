/* SPDX-License-Identifier: MIT
 * Writing against bytes that the Python package wrote; reading; model folders. Damaged files: bad_files_test.c. */
#include "format/safetensors.h"

#include <sys/stat.h>
#include <unistd.h>

#include "helpers/test.h"

static px_error err;
static char dir[64];

static int make_dir(void **state) {
  (void)state;
  strcpy(dir, "/tmp/pfx_safetensors_XXXXXX");
  return mkdtemp(dir) && chdir(dir) == 0 ? 0 : -1;
}

static int remove_dir(void **state) {
  (void)state;
  char command[96];
  snprintf(command, sizeof command, "rm -rf %s", dir);
  return chdir("/") || system(command);
}

static void file_is(const char *path, const char *wanted, size_t bytes) {
  px_buf got = {0};
  ASSERT_OK(px_file_read(path, 1 << 20, &got, &err));
  assert_int_equal(got.len, bytes);
  assert_memory_equal(got.data, wanted, bytes);
  px_buf_free(&got);
}

static px_tensor_view view(const char *name, px_dtype dtype, const void *data, int dims, int64_t a, int64_t b) {
  px_tensor_view t = {.name = name, .dtype = dtype, .dims = dims, .shape = {a, b}, .data = data};
  t.bytes = px_dtype_bytes(dtype, (size_t)px_tensor_elements(&t));
  return t;
}

/* Made with safetensors 0.8.0: save_file({"b": f32 [1, 2], "a": bf16 1, "c": i32 7, "e": f32 of shape [0, 4], "y": i64
 * [5], "x": f16 [1], "d": u8 [1, 2, 3]}, metadata={"format": "pt"}). The order is by type, then name. */
static const char golden[] =
    "\xa0\x01\0\0\0\0\0\0"
    "{\"__metadata__\":{\"format\":\"pt\"},\"y\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]},"
    "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]},"
    "\"e\":{\"dtype\":\"F32\",\"shape\":[0,4],\"data_offsets\":[16,16]},"
    "\"c\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[16,20]},"
    "\"a\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[20,22]},"
    "\"x\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[22,24]},"
    "\"d\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[24,27]}} "
    "\5\0\0\0\0\0\0\0\0\0\x80?\0\0\0@\7\0\0\0\x80?\0<\1\2\3";

static const float two[] = {1, 2};
static const int32_t seven = 7;
static const int64_t five = 5;
static const uint16_t bf16_one = 0x3f80, f16_one = 0x3c00;
static const uint8_t bytes3[] = {1, 2, 3};

static void writes_what_the_python_package_writes(void **state) {
  (void)state;
  px_tensor_view tensors[] = {view("b", PX_F32, two, 1, 2, 0),    view("a", PX_BF16, &bf16_one, 0, 0, 0),
                              view("c", PX_I32, &seven, 1, 1, 0), view("e", PX_F32, NULL, 2, 0, 4),
                              view("y", PX_I64, &five, 1, 1, 0),  view("x", PX_F16, &f16_one, 1, 1, 0),
                              view("d", PX_U8, bytes3, 1, 3, 0)};
  const px_meta meta = {"format", "pt"};
  ASSERT_OK(px_safetensors_write("out.safetensors", tensors, 7, &meta, 1, &err));
  file_is("out.safetensors", golden, sizeof golden - 1);
  ASSERT_OK(px_safetensors_write("none.safetensors", NULL, 0, NULL, 0, &err));
  file_is("none.safetensors", "\x8\0\0\0\0\0\0\0{}      ", 16);
  ASSERT_OK(px_safetensors_write("meta.safetensors", NULL, 0, &meta, 1, &err));
  file_is("meta.safetensors", "\x20\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"}}", 40);
}

static void names_and_metadata_are_escaped_as_python_does(void **state) {
  (void)state;
  px_tensor_view t = view("c/\xc3\xa9\"\\\xf0\x9f\x98\x80", PX_U8, bytes3, 1, 3, 0);
  const px_meta meta[] = {{"a", "\"\\/\b\f\n\r\t\x01\x1f\x7f"}};
  ASSERT_OK(px_safetensors_write("escape.safetensors", &t, 1, meta, 1, &err));
  static const char wanted[] =
      "\x78\0\0\0\0\0\0\0"
      "{\"__metadata__\":{\"a\":\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\"},\"c/\xc3\xa9\\\"\\\\\xf0\x9f\x98\x80\":"
      "{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}    \1\2\3";
  file_is("escape.safetensors", wanted, sizeof wanted - 1);
  px_tensor_list list;
  px_meta *got;
  size_t count;
  ASSERT_OK(px_safetensors_open("escape.safetensors", &list, &got, &count, &err));
  assert_non_null(px_tensor_find(&list, t.name));
  assert_string_equal(px_meta_get(got, count, "a"), meta[0].value);
  assert_null(px_meta_get(got, count, "b"));
  px_tensor_list_close(&list);
}

static void reads_back_every_tensor(void **state) {
  (void)state;
  px_tensor_list list;
  px_meta *meta;
  size_t count;
  ASSERT_OK(px_safetensors_parse("g", (const uint8_t *)golden, sizeof golden - 1, &list, &meta, &count, &err));
  assert_int_equal(list.count, 7);
  assert_int_equal(count, 1);
  assert_string_equal(px_meta_get(meta, count, "format"), "pt");
  for (size_t i = 1; i < list.count; i++) assert_true(strcmp(list.items[i - 1].name, list.items[i].name) < 0);
  const px_tensor_view *t = px_tensor_find(&list, "b");
  assert_int_equal(t->dtype, PX_F32);
  assert_int_equal(t->dims, 1);
  assert_int_equal(t->shape[0], 2);
  assert_memory_equal(t->data, two, sizeof two);
  assert_int_equal(px_tensor_find(&list, "a")->dims, 0);
  assert_int_equal(px_tensor_find(&list, "e")->bytes, 0);
  assert_int_equal(px_tensor_elements(px_tensor_find(&list, "e")), 0);
  assert_int_equal(*(const uint8_t *)px_tensor_find(&list, "d")->data, 1);
  assert_null(px_tensor_find(&list, "absent"));
  px_tensor_list_close(&list);
}

static void every_cut_and_every_extra_byte_is_refused(void **state) {
  (void)state;
  px_tensor_list list;
  for (size_t cut = 0; cut < sizeof golden; cut++) { /* the last round has the literal's NUL as a byte too many */
    size_t count = cut < sizeof golden - 1 ? cut : sizeof golden;
    uint8_t *exact = malloc(count ? count : 1);
    assert_non_null(exact);
    memcpy(exact, golden, count);
    assert_int_equal(px_safetensors_parse("g", exact, count, &list, NULL, NULL, &err), PX_BAD_FILE);
    free(exact);
  }
}

static void a_header_beyond_the_formats_limit_is_refused(void **state) {
  (void)state;
  const uint64_t length = 100000001;
  ASSERT_OK(px_file_write("huge.safetensors", &length, 8, &err));
  assert_int_equal(truncate("huge.safetensors", 8 + (off_t)length), 0); /* a hole: takes no space on disk */
  px_tensor_list list;
  ASSERT_FAILS(px_safetensors_open("huge.safetensors", &list, NULL, NULL, &err), PX_BAD_FILE,
               "huge.safetensors: the header is 100000001 bytes long, more than the 100000000 that the format allows");
}

/* The length is the file's first bytes: no value of it may be taken for another format (640 begins as a pickle does).
 */
static void headers_of_every_length_are_read(void **state) {
  (void)state;
  char text[1200] = "";
  for (size_t pad = 0; pad < 1100; pad += 8) {
    memset(text, 'x', pad);
    text[pad] = 0;
    px_buf b = {0};
    px_buf_append(&b, &(uint64_t){0}, 8);
    px_buf_printf(&b, "{\"__metadata__\":{\"pad\":\"%s\"}}", text);
    while (b.len % 8) px_buf_puts(&b, " ");
    memcpy(b.data, &(uint64_t){b.len - 8}, 8);
    px_tensor_list list;
    ASSERT_OK(px_safetensors_parse("g", (const uint8_t *)b.data, b.len, &list, NULL, NULL, &err));
    px_tensor_list_close(&list);
    px_buf_free(&b);
  }
}

static void key_order_does_not_matter_to_readers(void **state) {
  (void)state;
  static const char h[] =
      "{\"b\":{\"data_offsets\":[3,7],\"shape\":[1,1,1,1],\"dtype\":\"F32\"},"
      "\"a\":{\"data_offsets\":[0,3],\"dtype\":\"BOOL\",\"shape\":[3],\"new_field\":null}, \"__metadata__\":null}";
  px_buf b = {0};
  uint64_t length = sizeof h - 1;
  px_buf_append(&b, &length, 8);
  px_buf_append(&b, h, length);
  px_buf_append(&b, "\1\0\1\0\0\x80?", 7);
  px_tensor_list list;
  ASSERT_OK(px_safetensors_parse("g", (const uint8_t *)b.data, b.len, &list, NULL, NULL, &err));
  assert_int_equal(px_tensor_find(&list, "a")->dtype, PX_U8);
  assert_int_equal(px_tensor_find(&list, "b")->dims, 4);
  px_tensor_list_close(&list);
  px_buf_free(&b);
}

static void what_cannot_be_written_is_refused(void **state) {
  (void)state;
  px_tensor_view t[] = {view("a", PX_F32, two, 1, 2, 0), view("a", PX_U8, bytes3, 1, 3, 0)};
  ASSERT_FAILS(px_safetensors_write("f", t, 2, NULL, 0, &err), PX_INVALID, "f: tensor \"a\" is given twice");
  t[0].bytes = 4;
  ASSERT_FAILS(px_safetensors_write("f", t, 1, NULL, 0, &err), PX_INVALID,
               "f: tensor \"a\" has 4 bytes, which do not match its shape");
  t[0] = view("q", PX_Q8_0, two, 1, 32, 0);
  ASSERT_FAILS(px_safetensors_write("f", t, 1, NULL, 0, &err), PX_INVALID,
               "f: tensor \"q\" has type q8_0, which safetensors cannot hold");
  t[0] = view("__metadata__", PX_F32, two, 1, 2, 0);
  ASSERT_FAILS(px_safetensors_write("f", t, 1, NULL, 0, &err), PX_INVALID,
               "f: \"__metadata__\" cannot be a tensor's name");
  const px_meta bad = {"k", "\xff"}, twice[] = {{"k", "1"}, {"k", "2"}};
  ASSERT_FAILS(px_safetensors_write("f", NULL, 0, &bad, 1, &err), PX_INVALID, "f: metadata \"k\" is not UTF-8");
  ASSERT_FAILS(px_safetensors_write("f", NULL, 0, twice, 2, &err), PX_INVALID, "f: metadata \"k\" is given twice");
  assert_int_not_equal(access("f", F_OK), 0);
  t[0] = view("a", PX_F32, two, 1, 2, 0);
  ASSERT_FAILS(px_safetensors_write("no/such/f", t, 1, NULL, 0, &err), PX_IO,
               "cannot write no/such/f: No such file or directory");
}

static void put_file(const char *path, const char *text) { ASSERT_OK(px_file_write(path, text, strlen(text), &err)); }

static void put_shard(const char *path, const char *a, const char *b) {
  px_tensor_view t[] = {view(a, PX_F32, two, 1, 2, 0), view(b ? b : "", PX_U8, bytes3, 1, 3, 0)};
  ASSERT_OK(px_safetensors_write(path, t, b ? 2 : 1, NULL, 0, &err));
}

static void opens_a_folder_by_its_index(void **state) {
  (void)state;
  ASSERT_OK(px_dir_make("m", &err));
  put_shard("m/model-1.safetensors", "a", "b");
  put_shard("m/model-2.safetensors", "c", "extra");
  put_file("m/model.safetensors.index.json",
           "{\"metadata\": {}, \"weight_map\": {\"a\": \"model-1.safetensors\", \"b\": \"model-1.safetensors\", "
           "\"c\": \"model-2.safetensors\"}}");
  px_tensor_list list;
  ASSERT_OK(px_safetensors_open_folder("m", &list, &err));
  assert_int_equal(list.count, 4);
  assert_int_equal(list.map_count, 2);
  assert_string_equal(px_tensor_find(&list, "c")->file, "m/model-2.safetensors");
  assert_memory_equal(px_tensor_find(&list, "c")->data, two, sizeof two);
  px_tensor_list_close(&list);
}

static void a_wrong_index_is_refused_by_name(void **state) {
  (void)state;
  static const struct {
    const char *index, *message;
  } cases[] = {
      {"{\"weight_map\": {\"a\": \"gone.safetensors\"}}",
       "w/model.safetensors.index.json: names gone.safetensors, which is missing; get the folder again"},
      {"{\"weight_map\": {\"z\": \"one.safetensors\"}}",
       "w/model.safetensors.index.json: names tensor \"z\" in one.safetensors, which lacks it; get the folder again"},
      {"{\"weight_map\": {\"a\": \"one.safetensors\", \"c\": \"one.safetensors\", \"d\": \"two.safetensors\"}}",
       "w/model.safetensors.index.json: names tensor \"c\" in one.safetensors, which lacks it; get the folder again"},
      {"{\"weight_map\": {\"a\": \"one.safetensors\", \"b\": \"three.safetensors\"}}",
       "tensor \"a\" is in both w/one.safetensors and w/three.safetensors; remove one of them"},
      {"{\"weight_map\": {\"a\": \"../w/one.safetensors\"}}",
       "w/model.safetensors.index.json: the file of tensor \"a\" must be a plain file name in the same folder"},
      {"{\"weight_map\": {\"a\\n\": \"one.safetensors\"}}",
       "w/model.safetensors.index.json: a tensor's name holds control characters"},
      {"{\"weight_map\": {\"a\": 1}}", "w/model.safetensors.index.json: the file of tensor \"a\" must be a string"},
      {"{\"weight_map\": []}",
       "w/model.safetensors.index.json: field \"weight_map\" must be an object that names tensors and their files"},
      {"{\"weight_map\": ", "w/model.safetensors.index.json: line 1, column 15: unexpected token near end of file"},
  };
  ASSERT_OK(px_dir_make("w", &err));
  put_shard("w/one.safetensors", "a", NULL);
  put_shard("w/two.safetensors", "c", "d");
  put_shard("w/three.safetensors", "a", "b");
  px_tensor_list list;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    put_file("w/model.safetensors.index.json", cases[i].index);
    ASSERT_FAILS(px_safetensors_open_folder("w", &list, &err), PX_BAD_FILE, cases[i].message);
    assert_int_equal(list.count, 0);
  }
}

static void opens_the_only_file_and_refuses_a_choice(void **state) {
  (void)state;
  px_tensor_list list;
  ASSERT_OK(px_dir_make("f", &err));
  ASSERT_FAILS(px_safetensors_open_folder("f", &list, &err), PX_BAD_FILE, "f: holds no *.safetensors file");
  put_file("f/pytorch_model-00001-of-00002.bin", "x");
  ASSERT_FAILS(px_safetensors_open_folder("f", &list, &err), PX_BAD_FILE,
               "f: holds only pickled weights (pytorch_model*.bin), which pfx does not read because a pickle can run "
               "code; save the model again with save_pretrained(..., safe_serialization=True)");
  put_shard("f/weights.safetensors", "a", NULL);
  ASSERT_OK(px_safetensors_open_folder("f", &list, &err));
  assert_int_equal(list.count, 1);
  px_tensor_list_close(&list);
  put_shard("f/more.safetensors", "b", NULL);
  ASSERT_FAILS(px_safetensors_open_folder("f", &list, &err), PX_BAD_FILE,
               "f: holds 2 *.safetensors files but neither model.safetensors nor model.safetensors.index.json; remove "
               "or rename the ones that are not the model");
  put_shard("f/model.safetensors", "m", NULL);
  ASSERT_OK(px_safetensors_open_folder("f", &list, &err));
  assert_non_null(px_tensor_find(&list, "m"));
  px_tensor_list_close(&list);
  ASSERT_FAILS(px_safetensors_open_folder("gone", &list, &err), PX_BAD_FILE,
               "cannot open the folder gone: No such file or directory");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(writes_what_the_python_package_writes),
      cmocka_unit_test(names_and_metadata_are_escaped_as_python_does),
      cmocka_unit_test(reads_back_every_tensor),
      cmocka_unit_test(every_cut_and_every_extra_byte_is_refused),
      cmocka_unit_test(a_header_beyond_the_formats_limit_is_refused),
      cmocka_unit_test(headers_of_every_length_are_read),
      cmocka_unit_test(key_order_does_not_matter_to_readers),
      cmocka_unit_test(what_cannot_be_written_is_refused),
      cmocka_unit_test(opens_a_folder_by_its_index),
      cmocka_unit_test(a_wrong_index_is_refused_by_name),
      cmocka_unit_test(opens_the_only_file_and_refuses_a_choice),
  };
  return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
