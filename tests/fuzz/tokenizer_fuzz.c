/* SPDX-License-Identifier: MIT
 * Any bytes as a tokenizer file (GGUF, or tokenizer.json with a text behind a NUL): refused with a message, or a
 * tokenizer that encodes any text into ids of its own and streams what it decodes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char sample[] =
    " Hello world, it's 2024!\r\n\t ab  abc <s></s> na\xC3\xAFve e\xCC\x81\xCC\xA7 \xE4\xBD\xA0\xE5\xA5\xBD "
    "\xF0\x9F\x99\x82 "
    "\xFF\xC3 \xE2\x96\x81 <0x0A> a-b--c [INST] x";

static void must(bool condition) {
  if (!condition) abort();
}

static void check_decode(const px_tokenizer *tok, const px_ids *ids, bool skip) {
  px_error err;
  px_buf whole = {0}, parts = {0};
  px_decoder d = {.tok = tok, .skip_special = skip};
  must(px_tokenizer_decode(tok, ids->data, ids->len, skip, &whole, &err) == PX_OK);
  for (size_t i = 0; i < ids->len; i++) must(px_decoder_put(&d, ids->data[i], &parts, &err) == PX_OK);
  must(px_decoder_end(&d, &parts, &err) == PX_OK);
  must(whole.len == parts.len && (!whole.len || memcmp(whole.data, parts.data, whole.len) == 0));
  px_buf_free(&whole);
  px_buf_free(&parts);
}

static void check_text(const px_tokenizer *tok, const char *text, size_t count, int flags) {
  px_error err = {0};
  px_ids ids = {0};
  px_status status = px_tokenizer_encode(tok, text, count, flags, &ids, &err);
  must(status == PX_OK || (status == PX_BAD_FILE && strstr(err.message, "split pattern"))); /* one that is too slow */
  for (size_t i = 0; i < ids.len; i++) must(px_tokenizer_token(tok, ids.data[i]) != NULL);
  if (status == PX_OK) check_decode(tok, &ids, flags & 1);
  px_ids_free(&ids);
}

static void check_tokenizer(const px_tokenizer *tok, const char *text, size_t count) {
  const px_tokenizer_info *info = px_tokenizer_info_get(tok);
  must(info->vocab_size > 0 && info->kind && info->split && strlen(info->digest) == 64);
  must(info->bos < info->vocab_size && info->eos < info->vocab_size && info->pad < info->vocab_size);
  must(!info->add_bos || info->bos >= 0);
  for (int flags = 0; flags < 4; flags++) {
    check_text(tok, sample, sizeof sample - 1, flags);
    check_text(tok, text, count, flags);
  }
  px_ids all = {0};
  px_error err;
  for (int32_t id = 0; id < info->vocab_size && all.len < 3000; id++)
    if (px_tokenizer_token(tok, id)) must(px_ids_push(&all, id, &err) == PX_OK);
  check_decode(tok, &all, false);
  check_decode(tok, &all, true);
  px_ids_free(&all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  bool gguf = size >= 4 && memcmp(data, "GGUF", 4) == 0;
  const uint8_t *nul = gguf || !size ? NULL : memchr(data, 0, size);
  size_t file = nul ? (size_t)(nul - data) : size;
  int fd = memfd_create("tokenizer", MFD_CLOEXEC);
  char path[40];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  must(fd >= 0 && write(fd, data, file) == (ssize_t)file);
  px_error err = {0};
  px_tokenizer *tok;
  px_status status = px_tokenizer_open(path, &tok, &err);
  close(fd);
  must(status == PX_OK ? tok != NULL : status == PX_BAD_FILE && err.message[0] && !strchr(err.message, '\n') && !tok);
  if (status != PX_OK) return 0;
  check_tokenizer(tok, nul ? (const char *)nul + 1 : "", nul ? size - file - 1 : 0);
  px_tokenizer_close(tok);
  return 0;
}
