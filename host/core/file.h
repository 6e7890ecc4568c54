/* SPDX-License-Identifier: MIT
 * Files: read-only maps, whole-file reads, and writes that appear whole or not at all. */
#ifndef PX_CORE_FILE_H
#define PX_CORE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "core/memory.h"

/* A whole file mapped read-only. An empty file has bytes == 0 and a non-NULL data. */
typedef struct px_map {
  const uint8_t *data;
  size_t bytes;
} px_map;

px_status px_map_open(const char *path, px_map *map, px_error *err);
void px_map_close(px_map *map);
/* Bytes of a map that will not be read again soon: their pages no longer count as this process's memory, and come back
 * from the file if they are read after all. */
void px_map_forget(const void *bytes, size_t count);

/* Reads a file into *out (appended). Refuses more than limit_bytes. */
px_status px_file_read(const char *path, size_t limit_bytes, px_buf *out, px_error *err);
bool px_file_exists(const char *path);
bool px_file_is_dir(const char *path);
/* Brings a rename to `path` to disk: syncs the folder that holds it. */
void px_file_sync_folder(const char *path);
/* Makes the folder and its missing parents. */
px_status px_dir_make(const char *path, px_error *err);

/* An output file: bytes go to a temporary file in the same folder; commit flushes it to disk and renames
 * it to `path`; abort (also after a failed write) removes it. Nothing half-written ever has the final name. */
typedef struct px_out {
  int fd; /* -1 when closed */
  char *path, *temporary;
  uint64_t written_bytes;
} px_out;

px_status px_out_open(const char *path, px_out *out, px_error *err);
px_status px_out_check(const char *path, px_error *err); /* whether it could be opened; leaves nothing */
px_status px_out_write(px_out *out, const void *bytes, size_t count, px_error *err);
px_status px_out_commit(px_out *out, px_error *err); /* closes in any case */
void px_out_abort(px_out *out);                      /* no-op when closed */
/* All of the above for a buffer that is already there. */
px_status px_file_write(const char *path, const void *bytes, size_t count, px_error *err);

#endif
