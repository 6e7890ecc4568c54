/* SPDX-License-Identifier: MIT */
#include "format/json.h"

#include <math.h>

#include "helpers/test.h"

static px_error err;

static json_t *parse(const char *text) {
  json_t *value = NULL;
  ASSERT_OK(px_json_parse("x.json", text, strlen(text), &value, &err));
  return value;
}

static void dump_equals(const char *text, const char *wanted) {
  json_t *value = parse(text);
  px_buf out = {0};
  ASSERT_OK(px_json_dump(value, &out, &err));
  assert_string_equal(out.data, wanted);
  px_buf_free(&out);
  json_decref(value);
}

static void refuses(const char *text, const char *message) {
  json_t *value = NULL;
  ASSERT_FAILS(px_json_parse("x.json", text, strlen(text), &value, &err), PX_BAD_FILE, message);
  assert_null(value);
}

/* All wanted bytes below were printed by Python's json.dumps(json.loads(text), indent=2, sort_keys=True). */
static void dump_is_what_python_writes(void **state) {
  (void)state;
  dump_equals(
      "{\"b\": [1, [], {}, [2]], \"a\": {\"z\": null, \"y\": true}, \"B\": false}",
      "{\n  \"B\": false,\n  \"a\": {\n    \"y\": true,\n    \"z\": null\n  },\n  \"b\": [\n    1,\n    [],\n    {},\n"
      "    [\n      2\n    ]\n  ]\n}");
  dump_equals("[]", "[]");
  dump_equals("{}", "{}");
  dump_equals(
      "\"m\xc3\xb6"
      "del \xe2\x82\xac \xf0\x9f\x98\x80 \xf4\x8f\xbf\xbf\"",
      "\"m\\u00f6del \\u20ac \\ud83d\\ude00 \\udbff\\udfff\"");
  dump_equals("\"\\\" \\\\ \\/ \\b\\f\\n\\r\\t \\u0001\\u001f\\u007f\\u0080 '\"",
              "\"\\\" \\\\ / \\b\\f\\n\\r\\t \\u0001\\u001f\\u007f\\u0080 '\"");
  dump_equals("-9223372036854775808", "-9223372036854775808");
}

static void dump_writes_floats_as_python_does(void **state) {
  (void)state;
  static const char *const same[] = {"0.0",
                                     "-0.0",
                                     "1.0",
                                     "0.1",
                                     "-2.5",
                                     "123.456",
                                     "100000.0",
                                     "1e-05",
                                     "0.0001",
                                     "1e+16",
                                     "1.5e+16",
                                     "1e+22",
                                     "0.00012",
                                     "1234567890123456.0",
                                     "5e-324",
                                     "1e-06",
                                     "0.3",
                                     "2e-05",
                                     "1e+300",
                                     "1.7976931348623157e+308",
                                     "0.30000000000000004",
                                     "9007199254740993.0" /* reads back as ...992.0 */};
  for (size_t i = 0; i + 1 < sizeof same / sizeof *same; i++) dump_equals(same[i], same[i]);
  dump_equals("9007199254740993.0", "9007199254740992.0");
  dump_equals("1e5", "100000.0");
}

static void errors_name_file_line_and_column(void **state) {
  (void)state;
  refuses("{\n \"a\": 1,\n}", "x.json: line 3, column 1: string or '}' expected near '}'");
  refuses("", "x.json: line 1, column 0: unexpected token near end of file");
  refuses("{\"a\": 1} x", "x.json: line 1, column 10: end of file expected near 'x'");
  refuses("{\"a\": 1, \"a\": 2}", "x.json: line 1, column 12: duplicate object key near '\"a\"'");
  refuses("\"\xff\"", "x.json: line 1, column 1: unable to decode byte 0xff near '\"'");
  refuses("[\"\\u0000\"]", "x.json: line 1, column 9: \\u0000 is not supported");
  refuses("[1, NaN]", "x.json: line 1, column 7: invalid token near 'NaN'");
}

static void deep_nesting_is_refused_not_a_crash(void **state) {
  (void)state;
  enum { N = 1000000 };
  char *text = malloc(N);
  assert_non_null(text);
  memset(text, '[', N);
  json_t *value = NULL;
  ASSERT_FAILS(px_json_parse("x.json", text, N, &value, &err), PX_BAD_FILE,
               "x.json: line 1, column 2049: maximum parsing depth reached near '['");
  free(text);
}

static void integers_beyond_int64_become_numbers(void **state) {
  (void)state;
  json_t *o = parse(
      "{\"model_max_length\": 1000000000000000019884624838656, \"s\": \"9999999999999999999999 \\\" 1\", "
      "\"max\": 9223372036854775807, \"min\": [-9223372036854775808, -9223372036854775809]}");
  double number;
  int64_t whole;
  const char *text;
  ASSERT_OK(px_json_num(o, "x.json", "model_max_length", 0, &number, &err));
  assert_true(number == 1e30);
  ASSERT_FAILS(px_json_int(o, "x.json", "model_max_length", 0, &whole, &err), PX_BAD_FILE,
               "x.json: field \"model_max_length\" must be an integer");
  ASSERT_OK(px_json_str(o, "x.json", "s", NULL, &text, &err));
  assert_string_equal(text, "9999999999999999999999 \" 1");
  ASSERT_OK(px_json_int(o, "x.json", "max", 0, &whole, &err));
  assert_true(whole == INT64_MAX);
  assert_true(json_integer_value(json_array_get(json_object_get(o, "min"), 0)) == INT64_MIN);
  json_decref(o);
}

static void fields_are_typed_and_null_is_missing(void **state) {
  (void)state;
  json_t *o = parse("{\"i\": 3, \"d\": 0.5, \"b\": true, \"s\": \"x\", \"n\": null}");
  int64_t i;
  double d;
  bool b;
  const char *s;
  ASSERT_OK(px_json_int(o, "f", "i", 7, &i, &err));
  assert_int_equal(i, 3);
  ASSERT_OK(px_json_int(o, "f", "n", 7, &i, &err));
  assert_int_equal(i, 7);
  ASSERT_OK(px_json_int(o, "f", "absent", 7, &i, &err));
  assert_int_equal(i, 7);
  ASSERT_OK(px_json_num(o, "f", "i", 0, &d, &err));
  assert_true(d == 3);
  ASSERT_OK(px_json_num(o, "f", "d", 0, &d, &err));
  assert_true(d == 0.5);
  ASSERT_OK(px_json_bool(o, "f", "b", false, &b, &err));
  assert_true(b);
  ASSERT_OK(px_json_str(o, "f", "n", "fallback", &s, &err));
  assert_string_equal(s, "fallback");
  ASSERT_FAILS(px_json_int(o, "f", "d", 0, &i, &err), PX_BAD_FILE, "f: field \"d\" must be an integer");
  ASSERT_FAILS(px_json_num(o, "f", "s", 0, &d, &err), PX_BAD_FILE, "f: field \"s\" must be a number");
  ASSERT_FAILS(px_json_bool(o, "f", "i", 0, &b, &err), PX_BAD_FILE, "f: field \"i\" must be true or false");
  ASSERT_FAILS(px_json_str(o, "f", "b", 0, &s, &err), PX_BAD_FILE, "f: field \"b\" must be a string");
  ASSERT_FAILS(px_json_str(json_object_get(o, "i"), "f", "b", 0, &s, &err), PX_BAD_FILE,
               "f: must be a JSON object to hold the field \"b\"");
  json_decref(o);
}

static void a_missing_file_is_named(void **state) {
  (void)state;
  json_t *value = NULL;
  ASSERT_FAILS(px_json_read("no/such.json", &value, &err), PX_BAD_FILE,
               "cannot open no/such.json: No such file or directory");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(dump_is_what_python_writes),
      cmocka_unit_test(dump_writes_floats_as_python_does),
      cmocka_unit_test(errors_name_file_line_and_column),
      cmocka_unit_test(deep_nesting_is_refused_not_a_crash),
      cmocka_unit_test(integers_beyond_int64_become_numbers),
      cmocka_unit_test(fields_are_typed_and_null_is_missing),
      cmocka_unit_test(a_missing_file_is_named),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
