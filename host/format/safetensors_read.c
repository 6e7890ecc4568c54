/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format/json.h"
#include "format/safetensors.h"

enum { LENGTH_BYTES = 8, HEADER_LIMIT_BYTES = 100000000 /* the reference reader's own limit */ };

/* One file being read. */
typedef struct source {
  const char *name;
  const uint8_t *data; /* first byte behind the header */
  size_t data_bytes;
  px_tensor_list *list;
} source;

static bool starts_with(const uint8_t *bytes, size_t count, const char *text) {
  return count >= strlen(text) && memcmp(bytes, text, strlen(text)) == 0;
}

/* Other things that carry the name model.safetensors surprisingly often. The ninth byte decides: a good file has the
 * header's brace there, and the length before it may look like anything (80 02 is 640 bytes, and how a pickle begins).
 */
static px_status refuse_foreign(const char *name, const uint8_t *bytes, size_t count, px_error *err) {
  if (count > LENGTH_BYTES && bytes[LENGTH_BYTES] == '{') return PX_OK;
  if (starts_with(bytes, count, "version https://git-lfs"))
    return px_fail(err, PX_BAD_FILE, "%s: is a git-lfs pointer, not the file itself; run git lfs pull", name);
  if (starts_with(bytes, count, "PK\x03\x04") || starts_with(bytes, count, "\x80\x02"))
    return px_fail(err, PX_BAD_FILE, "%s: is a PyTorch pickle, not safetensors; save it again with safetensors", name);
  if (starts_with(bytes, count, "GGUF"))
    return px_fail(err, PX_BAD_FILE, "%s: is a GGUF file, not safetensors; give it a name that ends in .gguf", name);
  return PX_OK;
}

/* Finds the header's JSON. */
static px_status find_header(const char *name, const uint8_t *bytes, size_t count, size_t *header_bytes,
                             px_error *err) {
  PX_TRY(refuse_foreign(name, bytes, count, err));
  if (count < LENGTH_BYTES)
    return px_fail(err, PX_BAD_FILE, "%s: has only %zu bytes, too few for safetensors; get the file again", name,
                   count);
  uint64_t length;
  memcpy(&length, bytes, sizeof length);
  if (length > count - LENGTH_BYTES)
    return px_fail(err, PX_BAD_FILE,
                   "%s: the header should be %" PRIu64
                   " bytes long, but only %zu follow; the file is no safetensors, "
                   "or cut short: get it again",
                   name, length, count - LENGTH_BYTES);
  if (length > HEADER_LIMIT_BYTES)
    return px_fail(err, PX_BAD_FILE,
                   "%s: the header is %" PRIu64 " bytes long, more than the %d that the format allows", name, length,
                   HEADER_LIMIT_BYTES);
  if (length == 0 || bytes[LENGTH_BYTES] != '{')
    return px_fail(err, PX_BAD_FILE, "%s: the header does not start with \"{\"; the file is no safetensors", name);
  *header_bytes = (size_t)length;
  return PX_OK;
}

static px_status read_dtype(const source *s, const char *name, const json_t *entry, px_dtype *dtype, px_error *err) {
  static const struct {
    const char *name;
    px_dtype type;
  } known[] = {{"F32", PX_F32}, {"F16", PX_F16}, {"BF16", PX_BF16}, {"I32", PX_I32},
               {"I64", PX_I64}, {"U8", PX_U8},   {"BOOL", PX_U8}};
  const char *text = json_string_value(json_object_get(entry, "dtype"));
  if (!text) return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\": field \"dtype\" must be a string", s->name, name);
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (strcmp(known[i].name, text) == 0) {
      *dtype = known[i].type;
      return PX_OK;
    }
  if (!px_name_is_plain(text, strlen(text))) text = "with control characters";
  return px_fail(err, PX_BAD_FILE,
                 "%s: tensor \"%s\" has dtype %s, which pfx does not read (it reads F32, F16, BF16, I32, I64, U8, "
                 "BOOL); convert it to F32",
                 s->name, name, text);
}

static px_status read_shape(const source *s, const json_t *entry, px_tensor_view *t, px_error *err) {
  const json_t *shape = json_object_get(entry, "shape");
  if (!json_is_array(shape))
    return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\": field \"shape\" must be an array", s->name, t->name);
  size_t dims = json_array_size(shape);
  if (dims > PX_MAX_DIMS)
    return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\" has %zu dimensions; pfx reads at most %d", s->name, t->name,
                   dims, PX_MAX_DIMS);
  for (size_t i = 0; i < dims; i++) {
    const json_t *dim = json_array_get(shape, i);
    if (!json_is_integer(dim) || json_integer_value(dim) < 0)
      return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\": dimension %zu must be an integer of 0 or more", s->name,
                     t->name, i);
    t->shape[i] = json_integer_value(dim);
  }
  t->dims = (int)dims;
  return PX_OK;
}

static px_status read_place(const source *s, const json_t *entry, px_tensor_view *t, px_error *err) {
  const json_t *offsets = json_object_get(entry, "data_offsets");
  const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
  if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
    return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\": field \"data_offsets\" must be two integers", s->name,
                   t->name);
  int64_t begin = json_integer_value(first), end = json_integer_value(last);
  if (begin < 0 || end < begin)
    return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\" ends (%" PRId64 ") before it begins (%" PRId64 ")", s->name,
                   t->name, end, begin);
  if ((uint64_t)end > s->data_bytes)
    return px_fail(err, PX_BAD_FILE,
                   "%s: tensor \"%s\" ends at byte %" PRId64
                   " of the data, but only %zu are there; the file is cut "
                   "short: get it again",
                   s->name, t->name, end, s->data_bytes);
  size_t bytes = 0;
  if (!px_tensor_bytes(t->dtype, t->dims, t->shape, &bytes))
    return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\": the shape is too large for any file", s->name, t->name);
  if (bytes != (uint64_t)(end - begin))
    return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\" needs %zu bytes for its shape, but its offsets span %" PRId64,
                   s->name, t->name, bytes, end - begin);
  t->data = s->data + begin;
  t->bytes = bytes;
  return PX_OK;
}

static px_status read_tensor(const source *s, const char *name, const json_t *entry, px_tensor_view *t, px_error *err) {
  if (!px_name_is_plain(name, strlen(name)))
    return px_fail(err, PX_BAD_FILE, "%s: a tensor's name holds control characters", s->name);
  if (!json_is_object(entry))
    return px_fail(err, PX_BAD_FILE, "%s: tensor \"%s\": its entry must be a JSON object", s->name, name);
  t->file = s->name;
  t->name = px_arena_strdup(&s->list->arena, name);
  if (!t->name) return px_fail(err, PX_NO_MEMORY, "%s: no memory for the tensors' names", s->name);
  PX_TRY(read_dtype(s, t->name, entry, &t->dtype, err));
  PX_TRY(read_shape(s, entry, t, err));
  return read_place(s, entry, t, err);
}

static int by_place(const void *a, const void *b) {
  const px_tensor_view *x = a, *y = b;
  if (x->data != y->data) return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
  return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first: they end where they begin */
}

/* The data is covered exactly once: no hole in which something could hide, no byte with two meanings. */
static px_status check_packing(const source *s, px_error *err) {
  const px_tensor_list *list = s->list;
  if (list->count) qsort(list->items, list->count, sizeof *list->items, by_place);
  const uint8_t *at = s->data;
  for (size_t i = 0; i < list->count; i++) {
    const px_tensor_view *t = &list->items[i];
    const uint8_t *begin = t->data;
    if (begin < at)
      return px_fail(err, PX_BAD_FILE, "%s: tensors \"%s\" and \"%s\" overlap", s->name, list->items[i - 1].name,
                     t->name);
    if (begin > at)
      return px_fail(err, PX_BAD_FILE, "%s: %zu bytes before tensor \"%s\" belong to no tensor", s->name,
                     (size_t)(begin - at), t->name);
    at = begin + t->bytes;
  }
  size_t rest = (size_t)(s->data + s->data_bytes - at);
  if (rest) return px_fail(err, PX_BAD_FILE, "%s: %zu bytes at the end belong to no tensor", s->name, rest);
  return PX_OK;
}

static int by_key(const void *a, const void *b) { return strcmp(((const px_meta *)a)->key, ((const px_meta *)b)->key); }

static px_status read_metadata(const source *s, const json_t *object, px_meta **metadata, size_t *count,
                               px_error *err) {
  if (object && !json_is_object(object) && !json_is_null(object))
    return px_fail(err, PX_BAD_FILE, "%s: \"__metadata__\" must be a JSON object", s->name);
  px_arena *arena = &s->list->arena;
  px_meta *items = px_arena_alloc(arena, json_object_size(object), sizeof *items);
  size_t at = 0;
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)(uintptr_t)object, key, value) {
    if (!px_name_is_plain(key, strlen(key)))
      return px_fail(err, PX_BAD_FILE, "%s: a key of \"__metadata__\" holds control characters", s->name);
    if (!json_is_string(value))
      return px_fail(err, PX_BAD_FILE, "%s: \"__metadata__\": field \"%s\" must be a string", s->name, key);
    if (!items) break;
    items[at] = (px_meta){px_arena_strdup(arena, key), px_arena_strdup(arena, json_string_value(value))};
    if (!items[at].key || !items[at].value) items = NULL;
    at++;
  }
  if (!items) return px_fail(err, PX_NO_MEMORY, "%s: no memory for its metadata", s->name);
  if (at) qsort(items, at, sizeof *items, by_key);
  if (metadata) *metadata = items;
  if (metadata) *count = at;
  return PX_OK;
}

static px_status read_entries(source *s, const json_t *header, px_meta **metadata, size_t *metadata_count,
                              px_error *err) {
  px_tensor_list *list = s->list;
  list->items = px_arena_alloc(&list->arena, json_object_size(header), sizeof *list->items);
  if (!list->items) return px_fail(err, PX_NO_MEMORY, "%s: no memory for its list of tensors", s->name);
  PX_TRY(read_metadata(s, json_object_get(header, "__metadata__"), metadata, metadata_count, err));
  const char *key;
  json_t *entry;
  json_object_foreach((json_t *)(uintptr_t)header, key, entry) {
    if (strcmp(key, "__metadata__") == 0) continue;
    PX_TRY(read_tensor(s, key, entry, &list->items[list->count], err));
    list->count++;
  }
  PX_TRY(check_packing(s, err));
  return px_tensor_list_sort(list, err);
}

px_status px_safetensors_parse(const char *name, const uint8_t *bytes, size_t count, px_tensor_list *list,
                               px_meta **metadata, size_t *metadata_count, px_error *err) {
  *list = (px_tensor_list){0};
  if (metadata) *metadata = NULL;
  if (metadata) *metadata_count = 0;
  size_t header_bytes = 0;
  PX_TRY(find_header(name, bytes, count, &header_bytes, err));
  json_t *header = NULL;
  PX_TRY(px_json_parse(name, (const char *)bytes + LENGTH_BYTES, header_bytes, &header, err));
  size_t start = LENGTH_BYTES + header_bytes;
  source s = {.data = bytes + start, .data_bytes = count - start, .list = list};
  s.name = px_arena_strdup(&list->arena, name);
  px_status status = s.name ? read_entries(&s, header, metadata, metadata_count, err)
                            : px_fail(err, PX_NO_MEMORY, "%s: no memory to read it", name);
  json_decref(header);
  if (status == PX_OK) return PX_OK;
  if (metadata) *metadata = NULL;
  if (metadata) *metadata_count = 0;
  px_tensor_list_close(list);
  return status;
}

px_status px_safetensors_open(const char *path, px_tensor_list *list, px_meta **metadata, size_t *metadata_count,
                              px_error *err) {
  *list = (px_tensor_list){0};
  px_map map;
  PX_TRY(px_map_open(path, &map, err));
  px_status status = px_safetensors_parse(path, map.data, map.bytes, list, metadata, metadata_count, err);
  if (status != PX_OK) {
    px_map_close(&map);
    return status;
  }
  list->maps = px_arena_alloc(&list->arena, 1, sizeof map);
  if (!list->maps) {
    px_map_close(&map);
    px_tensor_list_close(list);
    return px_fail(err, PX_NO_MEMORY, "%s: no memory to read it", path);
  }
  list->maps[0] = map;
  list->map_count = 1;
  return PX_OK;
}

const char *px_meta_get(const px_meta *metadata, size_t count, const char *key) {
  for (size_t i = 0; i < count; i++)
    if (strcmp(metadata[i].key, key) == 0) return metadata[i].value;
  return NULL;
}
