/* SPDX-License-Identifier: MIT
 * A folder that appears whole or not at all: files go into a temporary one beside it, which is renamed at the end. */
#ifndef PX_CORE_FOLDER_OUT_H
#define PX_CORE_FOLDER_OUT_H

#include <stdbool.h>

#include "core/error.h"

/* `temporary` takes the files. {.lock_fd = -1} is closed. */
typedef struct px_folder_out {
  char *path, *temporary;
  int lock_fd; /* held while the folder is written: what nobody holds was left by a killed writer */
} px_folder_out;

/* `path` must not exist, or be an empty folder (`into`: or any folder, and the temporary one lies in it): PX_INVALID otherwise.
 * Makes missing parents, and removes what killed writers of the same path left. */
px_status px_folder_out_open(const char *path, bool into, px_folder_out *out, px_error *err);
/* Gives it its name; closes in any case. The files in it are on disk already (px_out_commit). */
px_status px_folder_out_commit(px_folder_out *out, px_error *err);
/* Where `path` is a folder that holds other things: the new files take the place of those of their names, and those that
 * `stale` names go. Without its file `last` such a folder counts for nothing: that goes first and comes last, so that a kill
 * leaves no mixture. Where it is absent: as commit. */
px_status px_folder_out_commit_into(px_folder_out *out, const char *last, bool (*stale)(const char *name), px_error *err);
/* Removes it and the files in it; no-op when closed. */
void px_folder_out_abort(px_folder_out *out);

#endif
