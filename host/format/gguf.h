/* SPDX-License-Identifier: MIT
 * GGUF versions 2 and 3: typed metadata and tensors, mapped. Split and big-endian files are refused by name. */
#ifndef PX_FORMAT_GGUF_H
#define PX_FORMAT_GGUF_H

#include "format/tensors.h"

typedef enum px_gguf_type {
  PX_GGUF_U8 = 0, PX_GGUF_I8, PX_GGUF_U16, PX_GGUF_I16, PX_GGUF_U32, PX_GGUF_I32, PX_GGUF_F32, PX_GGUF_BOOL,
  PX_GGUF_STRING, PX_GGUF_ARRAY, PX_GGUF_U64, PX_GGUF_I64, PX_GGUF_F64
} px_gguf_type;

typedef struct px_gguf_string {
  const char *data; /* not NUL-terminated, borrowed from the map */
  size_t len;
} px_gguf_string;

typedef struct px_gguf_value {
  const char *key;
  px_gguf_type type;         /* PX_GGUF_ARRAY: element_type and count hold; else count is 1 */
  px_gguf_type element_type;
  size_t count;
  const uint8_t *raw;        /* first byte of the value or of the array's elements */
  px_gguf_string string;     /* PX_GGUF_STRING */
  px_gguf_string *strings;   /* arrays of strings, `count` of them */
} px_gguf_value;

typedef struct px_gguf {
  uint32_t version;
  px_tensor_list tensors; /* owns the map and all memory below */
  px_gguf_value *values;  /* sorted by key */
  size_t value_count;
  const char *path;
} px_gguf;

/* Metadata and tensor infos are bounds-checked completely before return; unknown tensor types are refused by
 * name ("tensor blk.0.ffn_up.weight has type IQ2_XS ..."). */
px_status px_gguf_open(const char *path, px_gguf *gguf, px_error *err);
/* The same for bytes in memory, which must outlive the gguf. `name` stands in messages. */
px_status px_gguf_parse(const char *name, const uint8_t *bytes, size_t count, px_gguf *gguf, px_error *err);
void px_gguf_close(px_gguf *gguf);
const px_gguf_value *px_gguf_find(const px_gguf *gguf, const char *key);
/* As px_json_*: fallback when absent, PX_BAD_FILE when the type is wrong. Integers of any width convert.
 * Strings are copied into the gguf's arena, NUL-terminated. */
px_status px_gguf_int(px_gguf *gguf, const char *key, int64_t fallback, int64_t *out, px_error *err);
px_status px_gguf_num(px_gguf *gguf, const char *key, double fallback, double *out, px_error *err);
px_status px_gguf_str(px_gguf *gguf, const char *key, const char *fallback, const char **out, px_error *err);
/* Elements of a numeric array (or, at index 0, a single value) as int64 / double; index < count is the caller's duty.
 * What int64 cannot hold is cut to its nearest value; 0 where the elements are no numbers. */
int64_t px_gguf_array_int(const px_gguf_value *value, size_t index);
double px_gguf_array_num(const px_gguf_value *value, size_t index);

#endif
