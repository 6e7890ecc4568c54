/* SPDX-License-Identifier: MIT */
#include "format/gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Arrays of arrays are walked, so that a file which has them opens; nothing reads them. */
enum { NESTING_LIMIT = 8, NAME_LIMIT_BYTES = 65535, DEFAULT_ALIGNMENT = 32, ALIGNMENT_LIMIT = 1 << 30 };

/* The reader's place in the file. */
typedef struct cursor {
  const char *name;
  const uint8_t *bytes;
  size_t at, count;
  px_gguf *gguf;
  px_error *err;
} cursor;

/* --- ggml's tensor types --- */

static const struct {
  uint32_t number;
  const char *name;
  int type; /* px_dtype; -1: pfx does not read it */
} ggml_types[] = {
    {0, "F32", PX_F32},     {1, "F16", PX_F16},     {2, "Q4_0", PX_Q4_0},   {3, "Q4_1", PX_Q4_1},
    {4, "Q4_2", -1},        {5, "Q4_3", -1},        {6, "Q5_0", PX_Q5_0},   {7, "Q5_1", PX_Q5_1},
    {8, "Q8_0", PX_Q8_0},   {9, "Q8_1", -1},        {10, "Q2_K", -1},       {11, "Q3_K", -1},
    {12, "Q4_K", PX_Q4_K},  {13, "Q5_K", PX_Q5_K},  {14, "Q6_K", PX_Q6_K},  {15, "Q8_K", -1},
    {16, "IQ2_XXS", -1},    {17, "IQ2_XS", -1},     {18, "IQ3_XXS", -1},    {19, "IQ1_S", -1},
    {20, "IQ4_NL", -1},     {21, "IQ3_S", -1},      {22, "IQ2_S", -1},      {23, "IQ4_XS", -1},
    {24, "I8", -1},         {25, "I16", -1},        {26, "I32", PX_I32},    {27, "I64", PX_I64},
    {28, "F64", -1},        {29, "IQ1_M", -1},      {30, "BF16", PX_BF16},  {31, "Q4_0_4_4", -1},
    {32, "Q4_0_4_8", -1},   {33, "Q4_0_8_8", -1},   {34, "TQ1_0", -1},      {35, "TQ2_0", -1},
    {36, "IQ4_NL_4_4", -1}, {37, "IQ4_NL_4_8", -1}, {38, "IQ4_NL_8_8", -1}, {39, "MXFP4", -1},
    {40, "NVFP4", -1},      {41, "Q1_0", -1},
};

static px_status read_ggml_type(const cursor *c, const char *tensor, uint32_t number, px_dtype *type) {
  static const char supported[] = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K";
  for (size_t i = 0; i < sizeof ggml_types / sizeof *ggml_types; i++) {
    if (ggml_types[i].number != number) continue;
    *type = (px_dtype)ggml_types[i].type;
    if (ggml_types[i].type >= 0) return PX_OK;
    return px_fail(
        c->err, PX_BAD_FILE,
        "%s: tensor %s has type %s, which pfx does not read (it reads %s); quantise the model to one of these", c->name,
        tensor, ggml_types[i].name, supported);
  }
  return px_fail(c->err, PX_BAD_FILE,
                 "%s: tensor %s has the unknown type number %" PRIu32
                 " (pfx reads %s); the file is damaged or newer "
                 "than pfx",
                 c->name, tensor, number, supported);
}

/* --- bytes --- */

static size_t left(const cursor *c) { return c->count - c->at; }

static px_status cut_short(const cursor *c, const char *what) {
  return px_fail(c->err, PX_BAD_FILE, "%s: ends at byte %zu within %s; the file is cut short: get it again", c->name,
                 c->count, what);
}

static px_status read_bytes(cursor *c, void *out, size_t bytes, const char *what) {
  if (left(c) < bytes) return cut_short(c, what);
  memcpy(out, c->bytes + c->at, bytes);
  c->at += bytes;
  return PX_OK;
}

static px_status read_string(cursor *c, px_gguf_string *out, const char *what) {
  uint64_t len = 0;
  PX_TRY(read_bytes(c, &len, sizeof len, what));
  if (len > left(c)) return cut_short(c, what);
  *out = (px_gguf_string){(const char *)c->bytes + c->at, (size_t)len};
  c->at += (size_t)len;
  return PX_OK;
}

/* A key or a tensor's name, copied and ended with NUL. */
static px_status read_name(cursor *c, const char **out, const char *what) {
  px_gguf_string s = {0};
  PX_TRY(read_string(c, &s, what));
  if (s.len > NAME_LIMIT_BYTES || !px_name_is_plain(s.data, s.len))
    return px_fail(c->err, PX_BAD_FILE, "%s: %s at byte %zu is no UTF-8 text of at most %d bytes; the file is damaged",
                   c->name, what, c->at - s.len, NAME_LIMIT_BYTES);
  *out = px_arena_strndup(&c->gguf->tensors.arena, s.data, s.len);
  return *out ? PX_OK : px_fail(c->err, PX_NO_MEMORY, "%s: no memory to read it", c->name);
}

static px_status check_booleans(const cursor *c, const px_gguf_value *v) {
  for (size_t i = 0; i < v->count; i++)
    if (v->raw[i] > 1)
      return px_fail(c->err, PX_BAD_FILE, "%s: key %s: %d is no truth value (0 or 1)", c->name, v->key, v->raw[i]);
  return PX_OK;
}

/* --- metadata --- */

/* Bytes of a type of fixed size; 0 for strings, arrays and what is no type. */
static size_t size_of(px_gguf_type type) {
  switch (type) {
    case PX_GGUF_U8:
    case PX_GGUF_I8:
    case PX_GGUF_BOOL:
      return 1;
    case PX_GGUF_U16:
    case PX_GGUF_I16:
      return 2;
    case PX_GGUF_U32:
    case PX_GGUF_I32:
    case PX_GGUF_F32:
      return 4;
    case PX_GGUF_U64:
    case PX_GGUF_I64:
    case PX_GGUF_F64:
      return 8;
    default:
      return 0;
  }
}

static px_status read_type(cursor *c, const char *key, px_gguf_type *type) {
  uint32_t number = 0;
  PX_TRY(read_bytes(c, &number, sizeof number, "a value's type"));
  if (number > PX_GGUF_F64)
    return px_fail(c->err, PX_BAD_FILE, "%s: key %s has the unknown value type %" PRIu32 "; the file is damaged",
                   c->name, key, number);
  *type = (px_gguf_type)number;
  return PX_OK;
}

static px_status read_strings(cursor *c, px_gguf_value *v) {
  if (v->count > left(c) / sizeof(uint64_t)) return cut_short(c, v->key);
  v->strings = px_arena_alloc(&c->gguf->tensors.arena, v->count, sizeof *v->strings);
  if (!v->strings) return px_fail(c->err, PX_NO_MEMORY, "%s: no memory for key %s", c->name, v->key);
  for (size_t i = 0; i < v->count; i++) PX_TRY(read_string(c, &v->strings[i], v->key));
  return PX_OK;
}

static px_status read_array(cursor *c, px_gguf_value *v, int depth) {
  if (depth > NESTING_LIMIT)
    return px_fail(c->err, PX_BAD_FILE, "%s: key %s: arrays are nested deeper than %d levels", c->name, v->key,
                   NESTING_LIMIT);
  uint64_t count = 0;
  PX_TRY(read_type(c, v->key, &v->element_type));
  PX_TRY(read_bytes(c, &count, sizeof count, v->key));
  size_t bytes = size_of(v->element_type);
  /* The smallest element is 1 byte, a string 8, an array 12: a count beyond the file ends here. */
  if (count > left(c) / (bytes ? bytes : sizeof(uint64_t))) return cut_short(c, v->key);
  v->count = (size_t)count;
  v->raw = c->bytes + c->at;
  if (bytes) {
    c->at += v->count * bytes;
    return v->element_type == PX_GGUF_BOOL ? check_booleans(c, v) : PX_OK;
  }
  if (v->element_type == PX_GGUF_STRING) {
    if (depth == 1) return read_strings(c, v);
    px_gguf_string skipped;
    for (size_t i = 0; i < v->count; i++) PX_TRY(read_string(c, &skipped, v->key));
    return PX_OK;
  }
  for (size_t i = 0; i < v->count; i++) {
    px_gguf_value inner = {.key = v->key};
    PX_TRY(read_array(c, &inner, depth + 1));
  }
  return PX_OK;
}

static px_status read_value(cursor *c, px_gguf_value *v) {
  PX_TRY(read_name(c, &v->key, "a key"));
  PX_TRY(read_type(c, v->key, &v->type));
  v->element_type = v->type;
  if (v->type == PX_GGUF_ARRAY) return read_array(c, v, 1);
  v->count = 1;
  v->raw = c->bytes + c->at;
  if (v->type == PX_GGUF_STRING) return read_string(c, &v->string, v->key);
  size_t bytes = size_of(v->type);
  if (left(c) < bytes) return cut_short(c, v->key);
  c->at += bytes;
  return v->type == PX_GGUF_BOOL ? check_booleans(c, v) : PX_OK;
}

static int by_key(const void *a, const void *b) {
  return strcmp(((const px_gguf_value *)a)->key, ((const px_gguf_value *)b)->key);
}

static px_status read_values(cursor *c, uint64_t count) {
  px_gguf *g = c->gguf;
  enum { LEAST_BYTES = 8 + 4 + 1 }; /* a key without letters and a one-byte value */
  if (count > left(c) / LEAST_BYTES)
    return px_fail(c->err, PX_BAD_FILE,
                   "%s: %" PRIu64 " keys cannot stand in %zu bytes; the file is damaged or cut short", c->name, count,
                   left(c));
  g->values = px_arena_alloc(&g->tensors.arena, (size_t)count, sizeof *g->values);
  if (!g->values) return px_fail(c->err, PX_NO_MEMORY, "%s: no memory for its metadata", c->name);
  for (; g->value_count < count; g->value_count++) PX_TRY(read_value(c, &g->values[g->value_count]));
  if (count) qsort(g->values, (size_t)count, sizeof *g->values, by_key);
  for (size_t i = 1; i < count; i++)
    if (strcmp(g->values[i].key, g->values[i - 1].key) == 0)
      return px_fail(c->err, PX_BAD_FILE, "%s: key %s is there twice", c->name, g->values[i].key);
  return PX_OK;
}

/* --- tensors --- */

/* t->data is left NULL; the offset goes to *offset. */
static px_status read_tensor_info(cursor *c, px_tensor_view *t, uint64_t *offset) {
  uint32_t dims = 0, type = 0;
  t->file = c->name;
  PX_TRY(read_name(c, &t->name, "a tensor's name"));
  PX_TRY(read_bytes(c, &dims, sizeof dims, t->name));
  if (dims > PX_MAX_DIMS)
    return px_fail(c->err, PX_BAD_FILE, "%s: tensor %s has %" PRIu32 " dimensions; pfx reads at most %d", c->name,
                   t->name, dims, PX_MAX_DIMS);
  t->dims = (int)dims;
  for (uint32_t i = 0; i < dims; i++) { /* GGUF's first dimension is the innermost */
    uint64_t size = 0;
    PX_TRY(read_bytes(c, &size, sizeof size, t->name));
    if (size > INT64_MAX) size = INT64_MAX; /* too large in any case: said below */
    t->shape[dims - 1 - i] = (int64_t)size;
  }
  PX_TRY(read_bytes(c, &type, sizeof type, t->name));
  PX_TRY(read_ggml_type(c, t->name, type, &t->dtype));
  PX_TRY(read_bytes(c, offset, sizeof *offset, t->name));
  int64_t row = dims ? t->shape[dims - 1] : 1, block = px_dtype_get(t->dtype)->block_elements;
  if (row % block)
    return px_fail(c->err, PX_BAD_FILE, "%s: tensor %s has rows of %" PRId64 " elements, no multiple of %s's %" PRId64,
                   c->name, t->name, row, px_dtype_name(t->dtype), block);
  if (!px_tensor_bytes(t->dtype, t->dims, t->shape, &t->bytes))
    return px_fail(c->err, PX_BAD_FILE, "%s: tensor %s: the shape is too large for any file", c->name, t->name);
  return PX_OK;
}

static px_status read_alignment(const cursor *c, uint64_t *alignment) {
  int64_t value = 0;
  PX_TRY(px_gguf_int(c->gguf, "general.alignment", DEFAULT_ALIGNMENT, &value, c->err));
  if (value <= 0 || value > ALIGNMENT_LIMIT || (value & (value - 1)))
    return px_fail(c->err, PX_BAD_FILE, "%s: general.alignment is %" PRId64 ", but must be a power of two up to %d",
                   c->name, value, ALIGNMENT_LIMIT);
  *alignment = (uint64_t)value;
  return PX_OK;
}

static int by_place(const void *a, const void *b) {
  const px_tensor_view *x = a, *y = b;
  if (x->data != y->data) return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
  return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static px_status check_overlap(const cursor *c) {
  px_tensor_list *list = &c->gguf->tensors;
  if (list->count) qsort(list->items, list->count, sizeof *list->items, by_place);
  for (size_t i = 1; i < list->count; i++) {
    const px_tensor_view *a = &list->items[i - 1], *b = &list->items[i];
    if ((const uint8_t *)b->data < (const uint8_t *)a->data + a->bytes)
      return px_fail(c->err, PX_BAD_FILE, "%s: tensors %s and %s overlap", c->name, a->name, b->name);
  }
  return PX_OK;
}

/* Turns offsets into pointers, once the infos' end and with it the data's begin is known. */
static px_status place_tensors(const cursor *c, const uint64_t *offsets) {
  px_tensor_list *list = &c->gguf->tensors;
  uint64_t alignment = 0;
  PX_TRY(read_alignment(c, &alignment));
  uint64_t start = ((uint64_t)c->at + alignment - 1) & ~(alignment - 1);
  uint64_t data_bytes = start < c->count ? c->count - start : 0;
  for (size_t i = 0; i < list->count; i++) {
    px_tensor_view *t = &list->items[i];
    if (offsets[i] % alignment)
      return px_fail(c->err, PX_BAD_FILE,
                     "%s: tensor %s begins at byte %" PRIu64 ", no multiple of the alignment %" PRIu64, c->name,
                     t->name, offsets[i], alignment);
    if (t->bytes == 0)
      t->data = c->bytes;
    else if (offsets[i] > data_bytes || t->bytes > data_bytes - offsets[i])
      return px_fail(c->err, PX_BAD_FILE,
                     "%s: tensor %s needs %zu bytes at byte %" PRIu64 " of the data, but the data has %" PRIu64
                     "; the file is cut short: get it again",
                     c->name, t->name, t->bytes, offsets[i], data_bytes);
    else
      t->data = c->bytes + start + offsets[i];
  }
  PX_TRY(check_overlap(c));
  return px_tensor_list_sort(list, c->err);
}

static px_status read_tensors(cursor *c, uint64_t count) {
  px_tensor_list *list = &c->gguf->tensors;
  enum { LEAST_BYTES = 8 + 4 + 4 + 8 };
  if (count > left(c) / LEAST_BYTES)
    return px_fail(c->err, PX_BAD_FILE,
                   "%s: %" PRIu64 " tensors cannot stand in %zu bytes; the file is damaged or cut short", c->name,
                   count, left(c));
  list->items = px_arena_alloc(&list->arena, (size_t)count, sizeof *list->items);
  uint64_t *offsets = px_calloc((size_t)count, sizeof *offsets);
  px_status status = PX_OK;
  if (!list->items || !offsets)
    status = px_fail(c->err, PX_NO_MEMORY, "%s: no memory for its list of tensors", c->name);
  for (; status == PX_OK && list->count < count; list->count++)
    status = read_tensor_info(c, &list->items[list->count], &offsets[list->count]);
  if (status == PX_OK) status = place_tensors(c, offsets);
  free(offsets);
  return status;
}

/* --- the file --- */

static px_status read_start(cursor *c, uint64_t *tensors, uint64_t *values) {
  char magic[4];
  uint32_t version = 0;
  if (left(c) < sizeof magic || memcmp(c->bytes, "GGUF", sizeof magic) != 0)
    return px_fail(c->err, PX_BAD_FILE, "%s: does not start with \"GGUF\"; the file is no GGUF model", c->name);
  PX_TRY(read_bytes(c, magic, sizeof magic, "its first bytes"));
  PX_TRY(read_bytes(c, &version, sizeof version, "its first bytes"));
  if ((version & 0xffff) == 0 && version)
    return px_fail(c->err, PX_BAD_FILE,
                   "%s: is a big-endian GGUF, which pfx does not read; convert it again without --bigendian", c->name);
  if (version != 2 && version != 3)
    return px_fail(c->err, PX_BAD_FILE, "%s: has GGUF version %" PRIu32 "; pfx reads versions 2 and 3", c->name,
                   version);
  c->gguf->version = version;
  PX_TRY(read_bytes(c, tensors, sizeof *tensors, "its first bytes"));
  return read_bytes(c, values, sizeof *values, "its first bytes");
}

static px_status refuse_split(const cursor *c) {
  int64_t count = 0, number = 0;
  PX_TRY(px_gguf_int(c->gguf, "split.count", 0, &count, c->err));
  PX_TRY(px_gguf_int(c->gguf, "split.no", 0, &number, c->err));
  if (count <= 1) return PX_OK;
  return px_fail(c->err, PX_BAD_FILE,
                 "%s: is part %" PRIu64 " of %" PRId64
                 " of a split GGUF, which pfx does not read; join the parts with llama-gguf-split --merge",
                 c->name, (uint64_t)number + 1, count);
}

static px_status read_all(cursor *c) {
  uint64_t tensors = 0, values = 0;
  c->name = px_arena_strdup(&c->gguf->tensors.arena, c->name);
  c->gguf->path = c->name;
  if (!c->name) return px_fail(c->err, PX_NO_MEMORY, "no memory to read a GGUF file");
  PX_TRY(read_start(c, &tensors, &values));
  PX_TRY(read_values(c, values));
  PX_TRY(refuse_split(c));
  return read_tensors(c, tensors);
}

px_status px_gguf_parse(const char *name, const uint8_t *bytes, size_t count, px_gguf *gguf, px_error *err) {
  *gguf = (px_gguf){0};
  cursor c = {.name = name, .bytes = bytes, .count = count, .gguf = gguf, .err = err};
  px_status status = read_all(&c);
  if (status != PX_OK) px_gguf_close(gguf);
  return status;
}

px_status px_gguf_open(const char *path, px_gguf *gguf, px_error *err) {
  *gguf = (px_gguf){0};
  px_map map;
  PX_TRY(px_map_open(path, &map, err));
  px_status status = px_gguf_parse(path, map.data, map.bytes, gguf, err);
  px_map *maps = status == PX_OK ? px_arena_alloc(&gguf->tensors.arena, 1, sizeof map) : NULL;
  if (!maps) {
    px_map_close(&map);
    px_gguf_close(gguf);
    return status != PX_OK ? status : px_fail(err, PX_NO_MEMORY, "%s: no memory to read it", path);
  }
  maps[0] = map;
  gguf->tensors.maps = maps;
  gguf->tensors.map_count = 1;
  return PX_OK;
}

void px_gguf_close(px_gguf *gguf) {
  px_tensor_list_close(&gguf->tensors);
  *gguf = (px_gguf){0};
}
