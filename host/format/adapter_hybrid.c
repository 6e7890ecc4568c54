/* SPDX-License-Identifier: MIT
 * Hybrids: a folder for each part, and pfx.json, which names them in order with the digests of their files. */
#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "format/adapter_internal.h"

/* SHA-256 of a file. */
static px_status digest(const char *path, char hex[65], px_error *err) {
  px_map map;
  PX_TRY(px_map_open(path, &map, err));
  px_sha256_of(map.data, map.bytes, hex);
  px_map_close(&map);
  return PX_OK;
}

/* --- reading --- */

typedef struct entry {
  const char *part, *folder;
  const json_t *files;
  px_part_kind kind;
} entry;

/* One item of "parts", its fields checked. */
static px_status read_entry(const json_t *item, const char *name, size_t index, entry *out, px_error *err) {
  static const char *const fields[] = {"part", "folder", "files"};
  if (!json_is_object(item))
    return px_fail(err, PX_BAD_FILE, "%s: \"parts\": item %zu must be a JSON object", name, index);
  PX_TRY(px_adapter_refuse_unknown(item, name, fields, sizeof fields / sizeof *fields, PX_PART_FULL, err));
  PX_TRY(px_json_str(item, name, "part", "", &out->part, err));
  PX_TRY(px_json_str(item, name, "folder", "", &out->folder, err));
  out->files = json_object_get(item, "files");
  if (!px_part_kind_find(out->part, &out->kind))
    return px_fail(err, PX_BAD_FILE,
                   "%s: \"parts\": item %zu: \"part\" must be prefix, prompt, lora, ia3, norm, bias, top or full", name,
                   index);
  /* A folder beside pfx.json, nothing else. */
  if (!*out->folder || out->folder[0] == '.' || strchr(out->folder, '/') ||
      !px_name_is_plain(out->folder, strlen(out->folder)))
    return px_fail(err, PX_BAD_FILE, "%s: part %s: \"folder\" must be the name of a folder beside pfx.json", name,
                   out->part);
  if (json_object_size(out->files) != 2)
    return px_fail(err, PX_BAD_FILE, "%s: part %s: \"files\" must name its two files and their SHA-256", name,
                   out->part);
  return PX_OK;
}

/* The file is there, and is the one that was written with pfx.json. */
static px_status check_file(const char *folder, const char *name, const entry *e, const char *file, px_error *err) {
  const char *want;
  char hex[65], path[4096];
  PX_TRY(px_json_str(e->files, name, file, NULL, &want, err));
  if (!want) return px_fail(err, PX_BAD_FILE, "%s: part %s: \"files\" must hold %s", name, e->part, file);
  if (snprintf(path, sizeof path, "%s/%s/%s", folder, e->folder, file) >= (int)sizeof path)
    return px_fail(err, PX_BAD_FILE, "%s: part %s: its path is too long", name, e->part);
  if (!px_file_exists(path))
    return px_fail(err, PX_BAD_FILE,
                   "%s: is missing; it belongs to part %s of a hybrid adapter: get the whole folder again", path,
                   e->part);
  PX_TRY(digest(path, hex, err));
  if (strcmp(hex, want) != 0)
    return px_fail(
        err, PX_BAD_FILE,
        "%s: is not the file that pfx.json names (SHA-256 differs): part %s was exchanged or damaged, or writing it "
        "was interrupted; get the whole folder again, or write it again",
        path, e->part);
  return PX_OK;
}

static px_status read_one(const char *folder, const char *name, const entry *e, px_adapter_folder *out, px_error *err) {
  PX_TRY(check_file(folder, name, e, px_adapter_config_name(e->kind), err));
  PX_TRY(check_file(folder, name, e, px_adapter_model_name(e->kind), err));
  for (size_t i = 0; i < out->count; i++)
    if (out->parts[i].kind == e->kind) return px_fail(err, PX_BAD_FILE, "%s: part %s is there twice", name, e->part);
  const char *below = px_arena_printf(&out->arena, "%s/%s", folder, e->folder);
  if (!below) return px_fail(err, PX_NO_MEMORY, "%s: no memory to read it", name);
  px_adapter_part *part = &out->parts[out->count];
  PX_TRY(px_part_read(below, &out->arena, part, err));
  if (part->kind != e->kind)
    return px_fail(err, PX_BAD_FILE, "%s: part %s: %s holds a part of the kind %s", name, e->part, below,
                   px_part_kind_name(part->kind));
  out->count++;
  return PX_OK;
}

px_status px_hybrid_read(const char *folder, const json_t *object, const char *name, px_adapter_folder *out,
                         px_error *err) {
  static const char *const fields[] = {"format", "parts"};
  const json_t *parts = json_object_get(object, "parts");
  PX_TRY(px_adapter_format_check(object, name, err));
  PX_TRY(px_adapter_refuse_unknown(object, name, fields, sizeof fields / sizeof *fields, PX_PART_FULL, err));
  size_t count = json_array_size(parts);
  if (count < 1 || count > PX_PART_KINDS)
    return px_fail(err, PX_BAD_FILE, "%s: field \"parts\" must be a list of 1 to %d parts", name, PX_PART_KINDS);
  out->parts = px_arena_alloc(&out->arena, count, sizeof *out->parts);
  if (!out->parts) return px_fail(err, PX_NO_MEMORY, "%s: no memory to read it", name);
  for (size_t i = 0; i < count; i++) {
    entry e;
    PX_TRY(read_entry(json_array_get(parts, i), name, i, &e, err));
    PX_TRY(read_one(folder, name, &e, out, err));
  }
  return PX_OK;
}

/* --- writing --- */

static px_status add_entry(const char *folder, px_part_kind kind, json_t *list, px_error *err) {
  const char *part = px_part_kind_name(kind);
  const char *const files[] = {px_adapter_config_name(kind), px_adapter_model_name(kind)};
  json_t *digests = json_object();
  px_status status = PX_OK;
  for (int i = 0; i < 2 && status == PX_OK; i++) {
    char hex[65];
    px_buf path = {0};
    px_buf_printf(&path, "%s/%s", folder, files[i]);
    status =
        path.failed ? px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", folder) : digest(path.data, hex, err);
    if (status == PX_OK && json_object_set_new(digests, files[i], json_string(hex)) != 0)
      status = px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", folder);
    px_buf_free(&path);
  }
  if (status != PX_OK) {
    json_decref(digests);
    return status;
  }
  json_t *item = json_pack("{s:o, s:s, s:s}", "files", digests, "folder", part, "part", part);
  return json_array_append_new(list, item) == 0 ? PX_OK
                                                : px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", folder);
}

static px_status write_parts(const char *path, const px_adapter_part *parts, size_t count, const px_meta *metadata,
                             size_t metadata_count, json_t *list, px_error *err) {
  for (size_t i = 0; i < count; i++) {
    px_buf folder = {0};
    px_buf_printf(&folder, "%s/%s", path, px_part_kind_name(parts[i].kind));
    px_status status = folder.failed ? px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", path)
                                     : px_adapter_part_write(folder.data, &parts[i], metadata, metadata_count, err);
    if (status == PX_OK) status = add_entry(folder.data, parts[i].kind, list, err);
    px_buf_free(&folder);
    PX_TRY(status);
  }
  return PX_OK;
}

static px_status check(const char *path, const px_adapter_part *parts, size_t count, px_error *err) {
  if (count < 1 || count > PX_PART_KINDS)
    return px_fail(err, PX_INVALID, "%s: a hybrid has 1 to %d parts", path, PX_PART_KINDS);
  for (size_t i = 0; i < count; i++)
    for (size_t k = 0; k < i; k++)
      if (parts[i].kind == parts[k].kind)
        return px_fail(err, PX_INVALID, "%s: part %s is given twice", path, px_part_kind_name(parts[i].kind));
  return PX_OK;
}

px_status px_adapter_hybrid_write(const char *path, const px_adapter_part *parts, size_t count, const px_meta *metadata,
                                  size_t metadata_count, px_error *err) {
  PX_TRY(check(path, parts, count, err));
  px_buf text = {0}, file = {0};
  px_buf_printf(&file, "%s/adapter_config.json", path);
  if (!file.failed && px_file_exists(file.data)) {
    px_buf_free(&file);
    return px_fail(err, PX_INVALID, "%s: holds an adapter of one part; write the hybrid to another folder", path);
  }
  json_t *list = json_array(), *object = json_pack("{s:i, s:O}", "format", PX_ADAPTER_FORMAT, "parts", list);
  px_status status = object ? write_parts(path, parts, count, metadata, metadata_count, list, err)
                            : px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", path);
  if (status == PX_OK) status = px_json_dump(object, &text, err);
  file.len = 0;
  px_buf_printf(&file, "%s/pfx.json", path);
  if (status == PX_OK && (file.failed || text.failed))
    status = px_fail(err, PX_NO_MEMORY, "%s: no memory to write it", path);
  if (status == PX_OK) status = px_file_write(file.data, text.data, text.len, err);
  json_decref(object);
  json_decref(list);
  px_buf_free(&text);
  px_buf_free(&file);
  return status;
}
