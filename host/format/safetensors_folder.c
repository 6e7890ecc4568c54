/* SPDX-License-Identifier: MIT
 * A model folder's safetensors: one file, or an index and its shards. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/json.h"
#include "format/safetensors.h"

/* Moves the tensors of `count` lists into one; the lists are empty afterwards, whatever happens. */
static px_status merge(px_tensor_list *parts, size_t count, px_tensor_list *out, px_error *err) {
  size_t tensors = 0;
  for (size_t i = 0; i < count; i++) tensors += parts[i].count;
  out->items = px_arena_alloc(&out->arena, tensors, sizeof *out->items);
  out->maps = px_arena_alloc(&out->arena, count, sizeof *out->maps);
  bool ok = out->items && out->maps;
  for (size_t i = 0; i < count && ok; i++) {
    const char *file = NULL;
    for (size_t k = 0; k < parts[i].count && ok; k++) {
      px_tensor_view t = parts[i].items[k];
      if (!file) file = px_arena_strdup(&out->arena, t.file);
      t.file = file;
      t.name = px_arena_strdup(&out->arena, t.name);
      out->items[out->count++] = t;
      ok = t.name && t.file;
    }
    for (size_t k = 0; k < parts[i].map_count && ok; k++) out->maps[out->map_count++] = parts[i].maps[k];
    if (ok) parts[i].map_count = 0; /* the maps have moved */
  }
  for (size_t i = 0; i < count; i++) px_tensor_list_close(&parts[i]);
  if (!ok) return px_fail(err, PX_NO_MEMORY, "no memory for the model's list of tensors");
  return px_tensor_list_sort(out, err);
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* The shards that the index names, each once; borrowed from the JSON. */
static px_status list_shards(const char *index_path, const json_t *weight_map, const char **shards, size_t *count,
                             px_error *err) {
  const char *name;
  json_t *value;
  size_t all = 0;
  json_object_foreach((json_t *)(uintptr_t)weight_map, name, value) {
    const char *shard = json_string_value(value);
    if (!px_name_is_plain(name, strlen(name)))
      return px_fail(err, PX_BAD_FILE, "%s: a tensor's name holds control characters", index_path);
    if (!shard) return px_fail(err, PX_BAD_FILE, "%s: the file of tensor \"%s\" must be a string", index_path, name);
    if (!*shard || strchr(shard, '/') || !px_name_is_plain(shard, strlen(shard)))
      return px_fail(err, PX_BAD_FILE, "%s: the file of tensor \"%s\" must be a plain file name in the same folder",
                     index_path, name);
    shards[all++] = shard;
  }
  if (all) qsort(shards, all, sizeof *shards, by_text);
  *count = 0;
  for (size_t i = 0; i < all; i++)
    if (i == 0 || strcmp(shards[i], shards[i - 1]) != 0) shards[(*count)++] = shards[i];
  return PX_OK;
}

/* Every tensor that the index names must be there. A tensor that only a shard names stays: it is data all the same. */
static px_status check_index(const char *index_path, const json_t *weight_map, const px_tensor_list *list,
                             px_error *err) {
  const char *name;
  json_t *value;
  json_object_foreach((json_t *)(uintptr_t)weight_map, name, value) {
    const px_tensor_view *t = px_tensor_find(list, name);
    const char *shard = json_string_value(value), *file = t ? strrchr(t->file, '/') : NULL;
    if (!t || strcmp(file ? file + 1 : t->file, shard) != 0)
      return px_fail(err, PX_BAD_FILE, "%s: names tensor \"%s\" in %s, which lacks it; get the folder again",
                     index_path, name, shard);
  }
  return PX_OK;
}

static px_status open_shards(const char *folder, const char *index_path, const char **shards, size_t count,
                             px_tensor_list *list, px_error *err) {
  px_tensor_list *parts = px_calloc(count, sizeof *parts);
  if (!parts) return px_fail(err, PX_NO_MEMORY, "no memory for the model's list of tensors");
  px_status status = PX_OK;
  for (size_t i = 0; i < count && status == PX_OK; i++) {
    px_buf path = {0};
    px_buf_printf(&path, "%s/%s", folder, shards[i]);
    if (path.failed)
      status = px_fail(err, PX_NO_MEMORY, "no memory for a path");
    else if (!px_file_exists(path.data))
      status = px_fail(err, PX_BAD_FILE, "%s: names %s, which is missing; get the folder again", index_path, shards[i]);
    else
      status = px_safetensors_open(path.data, &parts[i], NULL, NULL, err);
    px_buf_free(&path);
  }
  if (status == PX_OK) status = merge(parts, count, list, err);
  for (size_t i = 0; i < count; i++) px_tensor_list_close(&parts[i]);
  free(parts);
  return status;
}

static px_status open_index(const char *folder, const char *index_path, px_tensor_list *list, px_error *err) {
  json_t *index = NULL;
  PX_TRY(px_json_read(index_path, &index, err));
  const json_t *weight_map = json_object_get(index, "weight_map");
  size_t count = 0;
  const char **shards = px_calloc(json_object_size(weight_map), sizeof *shards);
  px_status status = PX_OK;
  if (!shards)
    status = px_fail(err, PX_NO_MEMORY, "no memory for the model's list of files");
  else if (json_object_size(weight_map) == 0)
    status = px_fail(err, PX_BAD_FILE, "%s: field \"weight_map\" must be an object that names tensors and their files",
                     index_path);
  if (status == PX_OK) status = list_shards(index_path, weight_map, shards, &count, err);
  if (status == PX_OK) status = open_shards(folder, index_path, shards, count, list, err);
  if (status == PX_OK) status = check_index(index_path, weight_map, list, err);
  free(shards);
  json_decref(index);
  return status;
}

/* The folder's only *.safetensors. */
static px_status find_only_file(const char *folder, char *name, size_t name_bytes, px_error *err) {
  DIR *dir = opendir(folder);
  if (!dir) return px_fail_errno(err, PX_BAD_FILE, errno, "cannot open the folder %s", folder);
  size_t found = 0;
  bool pickle = false;
  for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
    const char *dot = strrchr(e->d_name, '.');
    pickle |= strncmp(e->d_name, "pytorch_model", 13) == 0 && dot && strcmp(dot, ".bin") == 0;
    if (!dot || strcmp(dot, ".safetensors") != 0) continue;
    found++;
    snprintf(name, name_bytes, "%s", e->d_name);
  }
  closedir(dir);
  if (found == 1) return PX_OK;
  if (found > 1)
    return px_fail(err, PX_BAD_FILE,
                   "%s: holds %zu *.safetensors files but neither model.safetensors nor model.safetensors.index.json; "
                   "remove or rename the ones that are not the model",
                   folder, found);
  if (pickle)
    return px_fail(err, PX_BAD_FILE,
                   "%s: holds only pickled weights (pytorch_model*.bin), which pfx does not read because a pickle can "
                   "run code; save the model again with save_pretrained(..., safe_serialization=True)",
                   folder);
  return px_fail(err, PX_BAD_FILE, "%s: holds no *.safetensors file", folder);
}

px_status px_safetensors_open_folder(const char *folder, px_tensor_list *list, px_error *err) {
  *list = (px_tensor_list){0};
  px_buf path = {0};
  px_buf_printf(&path, "%s/model.safetensors.index.json", folder);
  bool indexed = !path.failed && px_file_exists(path.data);
  px_status status = PX_OK;
  if (!indexed) {
    char name[256] = "model.safetensors";
    path.len = 0;
    px_buf_printf(&path, "%s/%s", folder, name);
    if (!path.failed && !px_file_exists(path.data)) status = find_only_file(folder, name, sizeof name, err);
    path.len = 0;
    px_buf_printf(&path, "%s/%s", folder, name);
  }
  if (path.failed) status = px_fail(err, PX_NO_MEMORY, "no memory for a path");
  if (status == PX_OK)
    status = indexed ? open_index(folder, path.data, list, err) : px_safetensors_open(path.data, list, NULL, NULL, err);
  if (status != PX_OK) px_tensor_list_close(list);
  px_buf_free(&path);
  return status;
}
