/* SPDX-License-Identifier: MIT
 * Any bytes as a data file, under a few sets of options: an error or rows that keep every promise of rows.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "helpers/byte_tokenizer.h"
#include "text/rows.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const px_tokenizer *tokenizer(void) {
  static px_tokenizer *tok;
  char folder[] = "/tmp/pfx_fuzz_XXXXXX", path[100];
  if (tok) return tok;
  px_error err;
  if (!mkdtemp(folder) || byte_tokenizer_open(folder, (byte_tokenizer_options){.add_bos = true}, &tok, &err) != PX_OK)
    abort();
  snprintf(path, sizeof path, "%s/tokenizer.json", folder);
  unlink(path);
  snprintf(path, sizeof path, "%s/tokenizer_config.json", folder);
  unlink(path);
  rmdir(folder);
  return tok;
}

static void must(bool condition) {
  if (!condition) abort();
}

static void check_rows(const px_rows *rows, const px_row_options *o) {
  size_t scored = 0;
  must(rows->count > 0 && rows->offsets[0] == 0);
  for (size_t i = 0; i < rows->count; i++) {
    uint64_t from = rows->offsets[i], to = rows->offsets[i + 1];
    must(to > from && to - from <= rows->longest && rows->prompt_len[i] <= to - from);
    must(!px_row_scores(rows, from) && rows->line[i] > 0 && (i == 0 || rows->line[i] >= rows->line[i - 1]));
    must(!o->max_row_tokens || to - from <= (uint64_t)o->max_row_tokens);
    for (uint64_t k = from; k < to; k++) {
      must(rows->ids[k] >= 0 && rows->ids[k] < BYTE_VOCAB);
      scored += px_row_scores(rows, k);
    }
    if (o->keep_text && rows->prompts[i]) must(rows->targets[i] && rows->references[i] && rows->references[i][0]);
  }
  must(scored == rows->scored_tokens && scored > 0);
}

static void check_items(const px_rows *rows) {
  px_arena arena = {0};
  px_row_item *items;
  size_t count, total = 0, texts = 0;
  px_error err;
  must(px_rows_items(rows, &arena, &items, &count, &err) == PX_OK);
  for (size_t i = 0; i < count; i++) {
    must(items[i].reference_count > 0 && (i == 0 || items[i].row > items[i - 1].row));
    for (size_t k = 0; k < items[i].reference_count; k++) texts += strlen(items[i].references[k]) < SIZE_MAX;
    total += items[i].reference_count;
  }
  must(total == texts);
  px_arena_free(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const px_row_options options[] = {
      {.keep_text = true, .chat = PX_TEMPLATE_SMOLLM2},
      {.max_row_tokens = 5, .on_long = PX_LONG_CUT, .keep_text = true, .chat = PX_TEMPLATE_LLAMA2},
      {.max_row_tokens = 2, .on_long = PX_LONG_CUT, .no_end = true, .chat = PX_TEMPLATE_CHATML},
      {.max_row_tokens = 30, .on_long = PX_LONG_DROP, .loss_all = true, .no_bos = true, .chat = PX_TEMPLATE_MISTRAL},
  };
  const px_tokenizer *tok = tokenizer();
  int fd = memfd_create("rows", MFD_CLOEXEC);
  char path[40];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  must(fd >= 0 && write(fd, data, size) == (ssize_t)size);
  px_error err;
  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
    px_rows rows;
    px_status status = px_rows_read(path, tok, &options[i], NULL, &rows, &err);
    must(status == PX_OK || (status == PX_BAD_FILE && err.message[0]));
    if (status != PX_OK) continue;
    check_rows(&rows, &options[i]);
    if (options[i].keep_text) check_items(&rows);
    px_rows_free(&rows);
  }
  px_arena arena = {0};
  char **prompts;
  size_t count;
  px_status status = px_prompts_read(path, &prompts, &count, &arena, &err);
  must(status == PX_BAD_FILE || (status == PX_OK && count > 0));
  px_arena_free(&arena);
  close(fd);
  return 0;
}
