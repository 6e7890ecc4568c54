/* SPDX-License-Identifier: MIT */
#include "core/hash.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

void px_sha256_start(px_sha256 *h) {
  h->state = EVP_MD_CTX_new();
  if (h->state && EVP_DigestInit_ex(h->state, EVP_sha256(), NULL) != 1) {
    EVP_MD_CTX_free(h->state);
    h->state = NULL;
  }
}

void px_sha256_add(px_sha256 *h, const void *bytes, size_t count) {
  if (h->state) EVP_DigestUpdate(h->state, bytes, count);
}

void px_sha256_end(px_sha256 *h, char hex[65]) {
  unsigned char digest[32] = {0};
  if (h->state) {
    EVP_DigestFinal_ex(h->state, digest, NULL);
    EVP_MD_CTX_free(h->state);
    h->state = NULL;
  }
  for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

void px_sha256_of(const void *bytes, size_t count, char hex[65]) {
  px_sha256 h;
  px_sha256_start(&h);
  px_sha256_add(&h, bytes, count);
  px_sha256_end(&h, hex);
}

void px_base64_append(px_buf *out, const void *bytes, size_t count) {
  size_t len = (count + 2) / 3 * 4;
  /* EVP_EncodeBlock also writes the NUL that a px_buf keeps behind its end. */
  unsigned char *at = px_buf_grow(out, len);
  if (at) EVP_EncodeBlock(at, bytes, (int)count);
}

int px_base64_decode(px_buf *out, const char *text) {
  size_t len = strlen(text);
  if (len % 4) return -1;
  if (len == 0) return 0;
  px_buf raw = {0};
  unsigned char *at = px_buf_grow(&raw, len / 4 * 3);
  int got = at ? EVP_DecodeBlock(at, (const unsigned char *)text, (int)len) : -1;
  if (got < 0) {
    px_buf_free(&raw);
    return -1;
  }
  if (text[len - 1] == '=') got--;
  if (text[len - 2] == '=') got--;
  px_buf_append(out, raw.data, (size_t)got);
  px_buf_free(&raw);
  return 0;
}
