/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format/safetensors.h"

/* The reference writer's order of types: its enumeration, highest first, which puts large alignments first. */
static const struct {
  px_dtype type;
  const char *name;
} order[] = {{PX_I64, "I64"}, {PX_F32, "F32"}, {PX_I32, "I32"}, {PX_BF16, "BF16"}, {PX_F16, "F16"}, {PX_U8, "U8"}};
enum { ORDER_COUNT = sizeof order / sizeof *order };

static size_t rank_of(px_dtype type) {
  size_t i = 0;
  while (i < ORDER_COUNT && order[i].type != type) i++;
  return i;
}

static int by_rank_and_name(const void *a, const void *b) {
  const px_tensor_view *x = *(const px_tensor_view *const *)a, *y = *(const px_tensor_view *const *)b;
  size_t i = rank_of(x->dtype), j = rank_of(y->dtype);
  return i != j ? (i > j) - (i < j) : strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b) {
  return strcmp((*(const px_tensor_view *const *)a)->name, (*(const px_tensor_view *const *)b)->name);
}

static bool is_utf8(const char *text) { return px_name_is_plain(text, strlen(text)); }

/* Metadata values may hold newlines and tabs; what must hold is UTF-8. */
static bool value_is_utf8(const char *text) {
  const char *line = text;
  for (const char *at = text;; at++) {
    if ((unsigned char)*at >= 0x20 && *at != 0x7f) continue;
    if (!px_name_is_plain(line, (size_t)(at - line))) return false;
    if (!*at) return true;
    line = at + 1;
  }
}

static void put_string(px_buf *out, const char *text) {
  px_buf_puts(out, "\"");
  for (const char *at = text; *at; at++) {
    unsigned char c = (unsigned char)*at;
    const char *escape = c < 0x20 ? strchr("\bb\ff\nn\rr\tt", c) : NULL; /* pairs: character, its escape */
    if (c == '"' || c == '\\')
      px_buf_printf(out, "\\%c", c);
    else if (escape)
      px_buf_printf(out, "\\%c", escape[1]);
    else if (c < 0x20)
      px_buf_printf(out, "\\u%04x", c);
    else
      px_buf_append(out, at, 1);
  }
  px_buf_puts(out, "\"");
}

static px_status put_metadata(px_buf *out, const char *path, const px_meta *metadata, size_t count, px_error *err) {
  px_buf_puts(out, "\"__metadata__\":{");
  for (size_t i = 0; i < count; i++) {
    if (!is_utf8(metadata[i].key) || !value_is_utf8(metadata[i].value))
      return px_fail(err, PX_INVALID, "%s: metadata \"%s\" is not UTF-8", path, metadata[i].key);
    for (size_t k = 0; k < i; k++)
      if (strcmp(metadata[k].key, metadata[i].key) == 0)
        return px_fail(err, PX_INVALID, "%s: metadata \"%s\" is given twice", path, metadata[i].key);
    if (i) px_buf_puts(out, ",");
    put_string(out, metadata[i].key);
    px_buf_puts(out, ":");
    put_string(out, metadata[i].value);
  }
  px_buf_puts(out, "}");
  return PX_OK;
}

static px_status check_tensor(const char *path, const px_tensor_view *t, px_error *err) {
  if (!is_utf8(t->name) || strcmp(t->name, "__metadata__") == 0)
    return px_fail(err, PX_INVALID, "%s: \"%s\" cannot be a tensor's name", path, t->name);
  if (rank_of(t->dtype) == ORDER_COUNT)
    return px_fail(err, PX_INVALID, "%s: tensor \"%s\" has type %s, which safetensors cannot hold", path, t->name,
                   px_dtype_name(t->dtype));
  size_t bytes = 0;
  if (t->dims < 0 || t->dims > PX_MAX_DIMS || !px_tensor_bytes(t->dtype, t->dims, t->shape, &bytes) ||
      bytes != t->bytes)
    return px_fail(err, PX_INVALID, "%s: tensor \"%s\" has %zu bytes, which do not match its shape", path, t->name,
                   t->bytes);
  return PX_OK;
}

static void put_tensor(px_buf *out, const px_tensor_view *t, uint64_t begin) {
  put_string(out, t->name);
  px_buf_printf(out, ":{\"dtype\":\"%s\",\"shape\":[", order[rank_of(t->dtype)].name);
  for (int i = 0; i < t->dims; i++) px_buf_printf(out, "%s%" PRId64, i ? "," : "", t->shape[i]);
  px_buf_printf(out, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", begin, begin + t->bytes);
}

/* Fills `header`, length included, and sorts the tensors as they follow it. */
static px_status make_header(const char *path, const px_tensor_view **sorted, size_t count, const px_meta *metadata,
                             size_t metadata_count, px_buf *header, px_error *err) {
  for (size_t i = 0; i < count; i++) PX_TRY(check_tensor(path, sorted[i], err));
  if (count) qsort(sorted, count, sizeof *sorted, by_name);
  for (size_t i = 1; i < count; i++)
    if (strcmp(sorted[i]->name, sorted[i - 1]->name) == 0)
      return px_fail(err, PX_INVALID, "%s: tensor \"%s\" is given twice", path, sorted[i]->name);
  if (count) qsort(sorted, count, sizeof *sorted, by_rank_and_name);
  uint64_t length = 0, begin = 0;
  px_buf_append(header, &length, sizeof length); /* filled in below */
  px_buf_puts(header, "{");
  if (metadata_count) PX_TRY(put_metadata(header, path, metadata, metadata_count, err));
  for (size_t i = 0; i < count; i++) {
    if (i || metadata_count) px_buf_puts(header, ",");
    put_tensor(header, sorted[i], begin);
    begin += sorted[i]->bytes;
  }
  px_buf_puts(header, "}");
  while (header->len % 8 && !header->failed) px_buf_puts(header, " ");
  if (header->failed) return px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", path);
  length = header->len - sizeof length;
  memcpy(header->data, &length, sizeof length);
  return PX_OK;
}

static px_status put_data(void *user, const px_tensor_view *t, px_out *out, px_error *err) {
  (void)user;
  return px_out_write(out, t->data, t->bytes, err);
}

px_status px_safetensors_write(const char *path, const px_tensor_view *tensors, size_t count, const px_meta *metadata,
                               size_t metadata_count, px_error *err) {
  return px_safetensors_write_by(path, tensors, count, metadata, metadata_count, put_data, NULL, err);
}

px_status px_safetensors_write_by(const char *path, const px_tensor_view *tensors, size_t count, const px_meta *metadata,
                                  size_t metadata_count, px_safetensors_put put, void *user, px_error *err) {
  const px_tensor_view **sorted = px_calloc(count, sizeof *sorted);
  if (!sorted) return px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", path);
  for (size_t i = 0; i < count; i++) sorted[i] = &tensors[i];
  px_buf header = {0};
  px_out out = {.fd = -1};
  px_status status = make_header(path, sorted, count, metadata, metadata_count, &header, err);
  if (status == PX_OK) status = px_out_open(path, &out, err);
  if (status == PX_OK) status = px_out_write(&out, header.data, header.len, err);
  for (size_t i = 0; i < count && status == PX_OK; i++) {
    uint64_t end = out.written_bytes + sorted[i]->bytes;
    status = put(user, sorted[i], &out, err);
    if (status == PX_OK && out.written_bytes != end)
      status = px_fail(err, PX_FAILED, "%s: tensor \"%s\" did not come with its %zu bytes", path, sorted[i]->name, sorted[i]->bytes);
  }
  if (status == PX_OK) status = px_out_commit(&out, err);
  px_out_abort(&out); /* no-op after a commit */
  px_buf_free(&header);
  free(sorted);
  return status;
}
