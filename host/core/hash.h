/* SPDX-License-Identifier: MIT
 * SHA-256 (libcrypto) and base64, for fingerprints and data digests. */
#ifndef PX_CORE_HASH_H
#define PX_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "core/memory.h"

typedef struct px_sha256 {
  void *state; /* NULL after a failed start: the digest is then all zero */
} px_sha256;

void px_sha256_start(px_sha256 *h);
void px_sha256_add(px_sha256 *h, const void *bytes, size_t count);
void px_sha256_end(px_sha256 *h, char hex[65]); /* 64 lower-case digits and NUL; releases */
void px_sha256_of(const void *bytes, size_t count, char hex[65]);

void px_base64_append(px_buf *out, const void *bytes, size_t count);
/* Appends the decoded bytes; returns -1 on a character that base64 lacks or a broken length. */
int px_base64_decode(px_buf *out, const char *text);

#endif
