/* SPDX-License-Identifier: MIT */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/adapter_internal.h"

/* --- which folder --- */

static char *join(const char *folder, const char *name) {
  px_buf path = {0};
  px_buf_printf(&path, "%s/%s", folder, name);
  if (path.failed) px_buf_free(&path);
  return path.data;
}

static bool holds(const char *folder, const char *name) {
  char *path = join(folder, name);
  bool found = path && px_file_exists(path);
  free(path);
  return found;
}

static bool holds_adapter(const char *folder) {
  return holds(folder, "adapter_config.json") || holds(folder, "pfx.json");
}

/* Looks for adapters below `path`: the first one's folder (to free), their number, and their names for a message. */
static char *find_below(const char *path, DIR *dir, size_t *count, px_buf *names) {
  char *first = NULL;
  for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
    if (e->d_name[0] == '.') continue;
    char *folder = join(path, e->d_name);
    if (folder && holds_adapter(folder)) {
      if (names->len < 200) px_buf_printf(names, "%s%s", *count ? ", " : "", e->d_name);
      if ((*count)++ == 0) {
        first = folder;
        continue;
      }
    }
    free(folder);
  }
  return first;
}

/* *folder is the caller's: free(). */
static px_status find_folder(const char *path, char **folder, px_error *err) {
  *folder = NULL;
  if (px_file_exists(path) && !px_file_is_dir(path))
    return px_fail(err, PX_BAD_FILE, "%s: is a file; an adapter is the folder that holds adapter_config.json", path);
  if (holds_adapter(path)) {
    *folder = strdup(path);
    return *folder ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory for a path");
  }
  DIR *dir = opendir(path);
  if (!dir) return px_fail_errno(err, PX_BAD_FILE, errno, "cannot open the adapter folder %s", path);
  size_t count = 0;
  px_buf names = {0};
  char *first = find_below(path, dir, &count, &names);
  closedir(dir);
  px_status status = PX_OK;
  if (count == 0)
    status =
        px_fail(err, PX_BAD_FILE, "%s: holds no adapter_config.json, nor does a folder in it; is it an adapter?", path);
  else if (count > 1)
    status = px_fail(err, PX_BAD_FILE, "%s: holds %zu adapters (%s); give the path of one of them", path, count,
                     names.data ? names.data : "");
  px_buf_free(&names);
  if (status != PX_OK) {
    free(first);
    return status;
  }
  *folder = first;
  return PX_OK;
}

/* --- what is in it --- */

static px_status read_model(const char *folder, px_arena *arena, px_adapter_part *part, px_error *err) {
  /* Every weight, trained: a model folder is such an adapter as well. */
  bool whole = part->kind == PX_PART_FULL && (holds(folder, "model.safetensors") || holds(folder, "config.json"));
  part->file = px_arena_printf(arena, "%s/%s", folder, whole ? "model.safetensors" : px_adapter_model_name(part->kind));
  if (!part->file) return px_fail(err, PX_NO_MEMORY, "no memory for a path");
  if (!px_file_exists(part->file) && part->kind < PX_PART_BIAS && holds(folder, "adapter_model.bin"))
    return px_fail(err, PX_BAD_FILE,
                   "%s/adapter_model.bin: is a pickle, which can run code and which pfx does not read; load it with "
                   "PEFT and save it again with save_pretrained(..., safe_serialization=True)",
                   folder);
  if (!px_file_exists(part->file)) return px_fail(err, PX_BAD_FILE, "%s: is missing", part->file);
  px_tensor_list list;
  px_meta *all = NULL;
  size_t count = 0, kept = 0;
  PX_TRY(px_safetensors_open(part->file, &list, &all, &count, err));
  px_status status = px_part_tensors_read(&list, part->file, arena, part, err);
  px_meta *own = px_arena_alloc(arena, count, sizeof *own);
  for (size_t i = 0; own && status == PX_OK && i < count; i++) {
    if (strncmp(all[i].key, "pfx.", 4) != 0) continue;
    own[kept] = (px_meta){px_arena_strdup(arena, all[i].key), px_arena_strdup(arena, all[i].value)};
    if (!own[kept].key || !own[kept].value) own = NULL;
    kept++;
  }
  px_tensor_list_close(&list);
  if (status == PX_OK && !own) status = px_fail(err, PX_NO_MEMORY, "%s: no memory to read it", part->file);
  part->metadata = own;
  part->metadata_count = kept;
  return status;
}

/* `object` is that of pfx.json; NULL where adapter_config.json has yet to be read. */
static px_status read_part(const char *folder, const json_t *object, const char *name, px_arena *arena,
                           px_adapter_part *part, px_error *err) {
  *part = (px_adapter_part){0};
  if (object) {
    PX_TRY(px_delta_config_read(object, name, arena, &part->kind, &part->config, err));
    return read_model(folder, arena, part, err);
  }
  const char *path = px_arena_printf(arena, "%s/adapter_config.json", folder);
  if (!path) return px_fail(err, PX_NO_MEMORY, "no memory for a path");
  json_t *read = NULL;
  PX_TRY(px_json_read(path, &read, err));
  px_status status = px_adapter_config_read(read, path, arena, &part->kind, &part->config, err);
  json_decref(read);
  PX_TRY(status);
  return read_model(folder, arena, part, err);
}

/* pfx.json of `folder`, where it has one; *object is the caller's. */
static px_status read_manifest(const char *folder, px_arena *arena, const char **name, json_t **object, px_error *err) {
  *object = NULL;
  *name = px_arena_printf(arena, "%s/pfx.json", folder);
  if (!*name) return px_fail(err, PX_NO_MEMORY, "no memory for a path");
  if (!px_file_exists(*name)) return PX_OK;
  if (holds(folder, "adapter_config.json"))
    return px_fail(
        err, PX_BAD_FILE,
        "%s: holds pfx.json and adapter_config.json, two adapters; move one of them, with its tensors, to another "
        "folder",
        folder);
  PX_TRY(px_json_read(*name, object, err));
  return json_is_object(*object) ? PX_OK : px_fail(err, PX_BAD_FILE, "%s: must hold a JSON object", *name);
}

px_status px_part_read(const char *folder, px_arena *arena, px_adapter_part *part, px_error *err) {
  json_t *object = NULL;
  const char *name;
  px_status status = read_manifest(folder, arena, &name, &object, err);
  if (status == PX_OK) status = read_part(folder, object, name, arena, part, err);
  json_decref(object);
  return status;
}

static px_status open_folder(const char *folder, px_adapter_folder *out, px_error *err) {
  json_t *object = NULL;
  const char *name;
  px_status status = read_manifest(folder, &out->arena, &name, &object, err);
  if (status == PX_OK && json_object_get(object, "parts")) {
    status = px_hybrid_read(folder, object, name, out, err);
  } else if (status == PX_OK) {
    out->parts = px_arena_alloc(&out->arena, 1, sizeof *out->parts);
    out->count = 1;
    status = out->parts ? read_part(folder, object, name, &out->arena, out->parts, err)
                        : px_fail(err, PX_NO_MEMORY, "%s: no memory to read it", folder);
  }
  json_decref(object);
  return status;
}

px_status px_adapter_folder_open(const char *path, px_adapter_folder *out, px_error *err) {
  *out = (px_adapter_folder){0};
  char *folder = NULL;
  PX_TRY(find_folder(path, &folder, err));
  px_status status = open_folder(folder, out, err);
  free(folder);
  if (status != PX_OK) px_adapter_folder_close(out);
  return status;
}

void px_adapter_folder_close(px_adapter_folder *folder) {
  px_arena_free(&folder->arena);
  *folder = (px_adapter_folder){0};
}
