/* SPDX-License-Identifier: MIT
 * Typed, checked access to JSON (jansson does the parsing). Messages name the file and the field. */
#ifndef PX_FORMAT_JSON_H
#define PX_FORMAT_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"
#include "core/memory.h"

/* Parses a file (limit 256 MiB) or bytes. *out is the caller's: json_decref. `name` stands in messages:
 * "DIR/config.json: line 3, column 7: unexpected token". Depth and size are bounded. */
px_status px_json_read(const char *path, json_t **out, px_error *err);
px_status px_json_parse(const char *name, const char *bytes, size_t count, json_t **out, px_error *err);
/* Two spaces of indent, sorted keys, ASCII only, final newline none: the bytes Python's
 * json.dumps(x, indent=2, sort_keys=True) makes. Appends to *out. */
/* A string of any bytes: what is no UTF-8 becomes U+FFFD. NULL: no memory. */
json_t *px_json_text(const char *bytes, size_t count);
px_status px_json_dump(const json_t *value, px_buf *out, px_error *err);

/* Field readers. A missing (or null) field takes the fallback; a field of another type is PX_BAD_FILE
 * "<name>: field "<key>" must be <type>". Strings are borrowed from the object. */
px_status px_json_int(const json_t *object, const char *name, const char *key, int64_t fallback, int64_t *out, px_error *err);
px_status px_json_num(const json_t *object, const char *name, const char *key, double fallback, double *out, px_error *err);
px_status px_json_bool(const json_t *object, const char *name, const char *key, bool fallback, bool *out, px_error *err);
px_status px_json_str(const json_t *object, const char *name, const char *key, const char *fallback, const char **out, px_error *err);

#endif
