/* SPDX-License-Identifier: MIT */
#include "format/json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "core/file.h"

enum { FILE_LIMIT_BYTES = 256 << 20, DUMP_DEPTH = 2048 };

/* --- reading --- */

static bool is_number_char(char c) {
  return (c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E';
}

static bool overflows_int64(const char *text, size_t count) {
  char copy[32];
  if (memchr(text, '.', count) || memchr(text, 'e', count) || memchr(text, 'E', count)) return false;
  if (count >= sizeof copy) return true;
  memcpy(copy, text, count);
  copy[count] = 0;
  errno = 0;
  (void)strtoll(copy, NULL, 10);
  return errno == ERANGE;
}

/* Copies JSON text and appends ".0" to integers beyond int64, which jansson refuses. Tokenizer configurations are
 * full of them: transformers writes "no limit" as 1000000000000000019884624838656. */
static void widen_integers(const char *bytes, size_t count, px_buf *out) {
  bool in_string = false;
  for (size_t i = 0; i < count;) {
    size_t end = i + 1;
    if (in_string) {
      if (bytes[i] == '\\' && end < count) end++;
      in_string = bytes[i] != '"';
    } else if (bytes[i] == '"') {
      in_string = true;
    } else if (is_number_char(bytes[i])) {
      while (end < count && is_number_char(bytes[end])) end++;
      if (overflows_int64(bytes + i, end - i)) {
        px_buf_append(out, bytes + i, end - i);
        px_buf_puts(out, ".0");
        i = end;
        continue;
      }
    }
    px_buf_append(out, bytes + i, end - i);
    i = end;
  }
}

px_status px_json_parse(const char *name, const char *bytes, size_t count, json_t **out, px_error *err) {
  const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY;
  json_error_t e;
  *out = json_loadb(count ? bytes : "", count, flags, &e);
  if (!*out && json_error_code(&e) == json_error_numeric_overflow) {
    px_buf widened = {0};
    widen_integers(bytes, count, &widened);
    if (!widened.failed) *out = json_loadb(widened.data, widened.len, flags, &e);
    px_buf_free(&widened);
  }
  if (*out) return PX_OK;
  if (json_error_code(&e) == json_error_out_of_memory)
    return px_fail(err, PX_NO_MEMORY, "%s: no memory to parse it", name);
  if (json_error_code(&e) == json_error_null_character) snprintf(e.text, sizeof e.text, "\\u0000 is not supported");
  for (char *c = e.text; *c; c++) /* jansson quotes the input: keep the message on one line */
    if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
  return px_fail(err, PX_BAD_FILE, "%s: line %d, column %d: %s", name, e.line, e.column, e.text);
}

px_status px_json_read(const char *path, json_t **out, px_error *err) {
  *out = NULL;
  px_buf text = {0};
  px_status status = px_file_read(path, FILE_LIMIT_BYTES, &text, err);
  if (status == PX_OK) status = px_json_parse(path, text.data, text.len, out, err);
  px_buf_free(&text);
  return status;
}

/* *field is NULL when the fallback holds. A missing object has no fields. */
static px_status find_field(const json_t *object, const char *name, const char *key, json_t **field, px_error *err) {
  *field = NULL;
  if (object && !json_is_object(object))
    return px_fail(err, PX_BAD_FILE, "%s: must be a JSON object to hold the field \"%s\"", name, key);
  json_t *found = json_object_get(object, key);
  if (!json_is_null(found)) *field = found;
  return PX_OK;
}

static px_status wrong_type(const char *name, const char *key, const char *type, px_error *err) {
  return px_fail(err, PX_BAD_FILE, "%s: field \"%s\" must be %s", name, key, type);
}

px_status px_json_int(const json_t *object, const char *name, const char *key, int64_t fallback, int64_t *out,
                      px_error *err) {
  json_t *field;
  *out = fallback;
  PX_TRY(find_field(object, name, key, &field, err));
  if (field && !json_is_integer(field)) return wrong_type(name, key, "an integer", err);
  if (field) *out = json_integer_value(field);
  return PX_OK;
}

px_status px_json_num(const json_t *object, const char *name, const char *key, double fallback, double *out,
                      px_error *err) {
  json_t *field;
  *out = fallback;
  PX_TRY(find_field(object, name, key, &field, err));
  if (field && !json_is_number(field)) return wrong_type(name, key, "a number", err);
  if (field) *out = json_number_value(field);
  return PX_OK;
}

px_status px_json_bool(const json_t *object, const char *name, const char *key, bool fallback, bool *out,
                       px_error *err) {
  json_t *field;
  *out = fallback;
  PX_TRY(find_field(object, name, key, &field, err));
  if (field && !json_is_boolean(field)) return wrong_type(name, key, "true or false", err);
  if (field) *out = json_is_true(field);
  return PX_OK;
}

px_status px_json_str(const json_t *object, const char *name, const char *key, const char *fallback, const char **out,
                      px_error *err) {
  json_t *field;
  *out = fallback;
  PX_TRY(find_field(object, name, key, &field, err));
  if (field && !json_is_string(field)) return wrong_type(name, key, "a string", err);
  if (field) *out = json_string_value(field);
  return PX_OK;
}

/* --- writing: jansson's own dump differs from Python's in hex digits, DEL and floats --- */

static void dump_string(const char *text, size_t count, px_buf *out) {
  const unsigned char *s = (const unsigned char *)text;
  px_buf_puts(out, "\"");
  for (size_t i = 0; i < count;) {
    unsigned c = s[i];
    const char *plain = strchr("\"\"\\\\\bb\ff\nn\rr\tt", (int)c); /* pairs: character, its escape */
    if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
      px_buf_append(out, s + i++, 1);
      continue;
    }
    if (c < 0x7f && c != 0 && plain) {
      px_buf_printf(out, "\\%c", plain[1]);
      i++;
      continue;
    }
    /* jansson holds valid UTF-8 only: the lead byte tells the length. */
    int more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    uint32_t point = more ? c & (0x3fu >> more) : c;
    for (i++; more && i < count; more--, i++) point = (point << 6) | (s[i] & 0x3fu);
    if (point >= 0x10000)
      px_buf_printf(out, "\\u%04x\\u%04x", (unsigned)(0xd7c0 + (point >> 10)), (unsigned)(0xdc00 + (point & 0x3ff)));
    else
      px_buf_printf(out, "\\u%04x", (unsigned)point);
  }
  px_buf_puts(out, "\"");
}

/* Python's repr: the fewest digits that read back as the same double; a decimal point or an exponent always. */
static void dump_real(double value, px_buf *out) {
  char text[40], digits[20];
  for (int precision = 0; precision < 17; precision++) {
    snprintf(text, sizeof text, "%.*e", precision, value);
    if (strtod(text, NULL) == value) break;
  }
  int count = 0;
  const char *at = text;
  for (; *at && *at != 'e'; at++) /* the locale's decimal point is stepped over, whatever it is */
    if (*at >= '0' && *at <= '9') digits[count++] = *at;
  int exponent = *at ? atoi(at + 1) : 0;
  while (count > 1 && digits[count - 1] == '0') count--;
  if (text[0] == '-') px_buf_puts(out, "-");
  if (exponent >= -4 && exponent < 16) {
    if (exponent < 0) px_buf_printf(out, "0.%.*s", -exponent - 1, "000");
    for (int i = 0; i < count || i <= exponent; i++) {
      if (i && i == exponent + 1) px_buf_puts(out, ".");
      px_buf_append(out, i < count ? &digits[i] : "0", 1);
    }
    if (exponent >= 0 && count <= exponent + 1) px_buf_puts(out, ".0");
  } else {
    px_buf_append(out, digits, 1);
    if (count > 1) px_buf_printf(out, ".%.*s", count - 1, digits + 1);
    px_buf_printf(out, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
  }
}

static px_status dump_value(const json_t *value, int depth, px_buf *out, px_error *err);

static void dump_newline(int depth, px_buf *out) { px_buf_printf(out, "\n%*s", 2 * depth, ""); }

static px_status dump_array(const json_t *array, int depth, px_buf *out, px_error *err) {
  size_t count = json_array_size(array);
  px_buf_puts(out, "[");
  for (size_t i = 0; i < count; i++) {
    if (i) px_buf_puts(out, ",");
    dump_newline(depth + 1, out);
    PX_TRY(dump_value(json_array_get(array, i), depth + 1, out, err));
  }
  if (count) dump_newline(depth, out);
  px_buf_puts(out, "]");
  return PX_OK;
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static px_status dump_object(const json_t *object, int depth, px_buf *out, px_error *err) {
  size_t count = json_object_size(object), at = 0;
  const char **keys = px_calloc(count, sizeof *keys), *key;
  if (!keys) return px_fail(err, PX_NO_MEMORY, "no memory to write JSON");
  json_t *value;
  json_object_foreach((json_t *)(uintptr_t)object, key, value) keys[at++] = key;
  qsort(keys, count, sizeof *keys, by_text);
  px_status status = PX_OK;
  px_buf_puts(out, "{");
  for (size_t i = 0; i < count && status == PX_OK; i++) {
    if (i) px_buf_puts(out, ",");
    dump_newline(depth + 1, out);
    dump_string(keys[i], strlen(keys[i]), out);
    px_buf_puts(out, ": ");
    status = dump_value(json_object_get(object, keys[i]), depth + 1, out, err);
  }
  if (count) dump_newline(depth, out);
  px_buf_puts(out, "}");
  free(keys);
  return status;
}

static px_status dump_value(const json_t *value, int depth, px_buf *out, px_error *err) {
  if (depth > DUMP_DEPTH) return px_fail(err, PX_INVALID, "JSON is nested deeper than %d levels", DUMP_DEPTH);
  switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT:
      return dump_object(value, depth, out, err);
    case JSON_ARRAY:
      return dump_array(value, depth, out, err);
    case JSON_STRING:
      dump_string(json_string_value(value), json_string_length(value), out);
      break;
    case JSON_INTEGER:
      px_buf_printf(out, "%" PRId64, (int64_t)json_integer_value(value));
      break;
    case JSON_REAL:
      dump_real(json_real_value(value), out);
      break;
    case JSON_TRUE:
      px_buf_puts(out, "true");
      break;
    case JSON_FALSE:
      px_buf_puts(out, "false");
      break;
    case JSON_NULL:
      px_buf_puts(out, "null");
      break;
  }
  return PX_OK;
}

px_status px_json_dump(const json_t *value, px_buf *out, px_error *err) {
  PX_TRY(dump_value(value, 0, out, err));
  return out->failed ? px_fail(err, PX_NO_MEMORY, "no memory to write JSON") : PX_OK;
}

json_t *px_json_text(const char *bytes, size_t count) {
  json_t *whole = json_stringn(bytes, count);
  if (whole) return whole;
  px_buf text = {0};
  for (size_t i = 0; i < count;) {
    utf8proc_int32_t c;
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)bytes + i, (utf8proc_ssize_t)(count - i), &c);
    if (n > 0)
      px_buf_append(&text, bytes + i, (size_t)n);
    else
      px_buf_puts(&text, "\xEF\xBF\xBD");
    i += n > 0 ? (size_t)n : 1;
  }
  whole = text.failed ? NULL : json_stringn(text.data, text.len);
  px_buf_free(&text);
  return whole;
}
