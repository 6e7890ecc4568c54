/* SPDX-License-Identifier: MIT
 * Typed access to a GGUF file's metadata. */
#include <stdlib.h>
#include <string.h>

#include "format/gguf.h"

static int by_key(const void *a, const void *b) {
  return strcmp(((const px_gguf_value *)a)->key, ((const px_gguf_value *)b)->key);
}

const px_gguf_value *px_gguf_find(const px_gguf *gguf, const char *key) {
  if (gguf->value_count == 0) return NULL;
  px_gguf_value wanted = {.key = key};
  return bsearch(&wanted, gguf->values, gguf->value_count, sizeof wanted, by_key);
}

static bool is_float(px_gguf_type type) { return type == PX_GGUF_F32 || type == PX_GGUF_F64; }
static bool is_integer(px_gguf_type type) { return type <= PX_GGUF_I32 || type == PX_GGUF_U64 || type == PX_GGUF_I64; }

#define READ(ctype) \
  ctype read;       \
  memcpy(&read, v->raw + index * sizeof read, sizeof read)

/* false when the element is an integer beyond int64 or no integer at all. */
static bool element_int(const px_gguf_value *v, size_t index, int64_t *out) {
  switch (v->element_type) {
    case PX_GGUF_U8:
    case PX_GGUF_BOOL:
      *out = v->raw[index];
      return true;
    case PX_GGUF_I8:
      *out = (int8_t)v->raw[index];
      return true;
    case PX_GGUF_U16: {
      READ(uint16_t);
      *out = read;
      return true;
    }
    case PX_GGUF_I16: {
      READ(int16_t);
      *out = read;
      return true;
    }
    case PX_GGUF_U32: {
      READ(uint32_t);
      *out = read;
      return true;
    }
    case PX_GGUF_I32: {
      READ(int32_t);
      *out = read;
      return true;
    }
    case PX_GGUF_I64: {
      READ(int64_t);
      *out = read;
      return true;
    }
    case PX_GGUF_U64: {
      READ(uint64_t);
      *out = read > INT64_MAX ? INT64_MAX : (int64_t)read;
      return read <= INT64_MAX;
    }
    default:
      *out = 0;
      return false;
  }
}

double px_gguf_array_num(const px_gguf_value *v, size_t index) {
  if (v->element_type == PX_GGUF_F32) {
    READ(float);
    return (double)read;
  }
  if (v->element_type == PX_GGUF_F64) {
    READ(double);
    return read;
  }
  if (v->element_type == PX_GGUF_U64) {
    READ(uint64_t);
    return (double)read;
  }
  int64_t whole;
  (void)element_int(v, index, &whole);
  return (double)whole;
}

int64_t px_gguf_array_int(const px_gguf_value *v, size_t index) {
  int64_t whole;
  if (!is_float(v->element_type)) {
    (void)element_int(v, index, &whole);
    return whole;
  }
  double value = px_gguf_array_num(v, index);
  if (value >= 0x1p63) return INT64_MAX;
  return value > -0x1p63 ? (int64_t)value : value <= -0x1p63 ? INT64_MIN : 0; /* the last: NaN */
}

px_status px_gguf_int(px_gguf *gguf, const char *key, int64_t fallback, int64_t *out, px_error *err) {
  const px_gguf_value *v = px_gguf_find(gguf, key);
  *out = fallback;
  if (!v) return PX_OK;
  if (!is_integer(v->type) || !element_int(v, 0, out))
    return px_fail(err, PX_BAD_FILE, "%s: key %s must be an integer below 2^63", gguf->path, key);
  return PX_OK;
}

px_status px_gguf_num(px_gguf *gguf, const char *key, double fallback, double *out, px_error *err) {
  const px_gguf_value *v = px_gguf_find(gguf, key);
  *out = fallback;
  if (!v) return PX_OK;
  if (!is_integer(v->type) && !is_float(v->type))
    return px_fail(err, PX_BAD_FILE, "%s: key %s must be a number", gguf->path, key);
  *out = px_gguf_array_num(v, 0);
  return PX_OK;
}

px_status px_gguf_str(px_gguf *gguf, const char *key, const char *fallback, const char **out, px_error *err) {
  const px_gguf_value *v = px_gguf_find(gguf, key);
  *out = fallback;
  if (!v) return PX_OK;
  if (v->type != PX_GGUF_STRING || memchr(v->string.data, 0, v->string.len))
    return px_fail(err, PX_BAD_FILE, "%s: key %s must be a string without NUL", gguf->path, key);
  *out = px_arena_strndup(&gguf->tensors.arena, v->string.data, v->string.len);
  return *out ? PX_OK : px_fail(err, PX_NO_MEMORY, "%s: no memory for key %s", gguf->path, key);
}
