/* SPDX-License-Identifier: MIT
 * What the files that read and write adapters share. */
#ifndef PX_FORMAT_ADAPTER_INTERNAL_H
#define PX_FORMAT_ADAPTER_INTERNAL_H

#include "format/adapter_folder.h"
#include "format/json.h"

/* The format of pfx.json. */
enum { PX_ADAPTER_FORMAT = 1 };

/* The names of a part's two files. */
const char *px_adapter_config_name(px_part_kind kind);
const char *px_adapter_model_name(px_part_kind kind);
/* False: no such kind. "top:2" is `name` "top" for a delta, which has the number apart. */
bool px_part_kind_find(const char *name, px_part_kind *kind);

/* Reads adapter_config.json, or the object of a delta's pfx.json. `name` is the file's, for messages. */
px_status px_adapter_config_read(const json_t *object, const char *name, px_arena *arena, px_part_kind *kind,
                                 px_adapter_config *config, px_error *err);
px_status px_delta_config_read(const json_t *object, const char *name, px_arena *arena, px_part_kind *kind,
                               px_adapter_config *config, px_error *err);
/* Refuses fields that are set and not among `known`. */
px_status px_adapter_refuse_unknown(const json_t *object, const char *name, const char *const *known, size_t count,
                                    px_part_kind kind, px_error *err);
/* "1" is the only format. */
px_status px_adapter_format_check(const json_t *object, const char *name, px_error *err);

/* The tensors of an opened file as those of `part`, whose kind and config are there: names, types, values that are not
 * finite are checked, and then px_part_check. */
px_status px_part_tensors_read(const px_tensor_list *list, const char *file, px_arena *arena, px_adapter_part *part,
                               px_error *err);
/* Holds the tensors against the config and each other, `refusal` being the status of what it finds. */
px_status px_part_check(const px_adapter_part *part, const char *file, px_status refusal, px_error *err);
/* PFX_PREFIX_LAYERS: zeros in the layers that have no prefix. */
px_status px_part_check_layers(const px_adapter_part *part, const char *file, px_status refusal, px_error *err);

/* Appends what stands in the part's JSON file. */
px_status px_part_config_make(const char *path, const px_adapter_part *part, px_buf *out, px_error *err);

/* Reads the part that stands in `folder` (one without its own parts). */
px_status px_part_read(const char *folder, px_arena *arena, px_adapter_part *part, px_error *err);
/* Reads the parts that pfx.json names. */
px_status px_hybrid_read(const char *folder, const json_t *object, const char *name, px_adapter_folder *out,
                         px_error *err);

#endif
