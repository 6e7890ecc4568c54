/* SPDX-License-Identifier: MIT
 * What a model is prompted with: chat pieces as ids, a prompt as ids, prompts of a file, rows grouped by prompt. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "text/rows_internal.h"

/* --- chat pieces -> ids --- */

/* Text from here on is encoded as if it stood alone: added tokens are cut out before anything else happens. */
static bool starts_with_special(const px_tokenizer *tok, const px_chat_piece *piece) {
  const px_tokenizer_info *info = px_tokenizer_info_get(tok);
  const char *marks[] = {"<|im_start|>", "<|start_header_id|>",
                         info->bos >= 0 ? px_tokenizer_token(tok, info->bos) : NULL};
  for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++) {
    size_t bytes = marks[i] ? strlen(marks[i]) : 0;
    if (bytes == 0 || piece->bytes < bytes || memcmp(piece->text, marks[i], bytes) != 0) continue;
    int32_t id = px_tokenizer_id(tok, marks[i]);
    if (id >= 0 && px_tokenizer_is_special(tok, id)) return true;
  }
  return false;
}

/* How many tokens of ids[from, len) lie wholly inside the first `bytes` bytes of the segment's text: those that the
 * beginning alone is encoded to as well. A token across the border belongs to what follows. */
static px_status tokens_before(const px_tokenizer *tok, const char *text, size_t bytes, const px_ids *ids, size_t from,
                               px_ids *part, size_t *count, px_error *err) {
  part->len = 0;
  *count = 0;
  PX_TRY(px_tokenizer_encode(tok, text, bytes, 0, part, err));
  size_t n = ids->len - from;
  while (*count < n && *count < part->len && part->data[*count] == ids->data[from + *count]) ++*count;
  return PX_OK;
}

static px_status encode_segment(const px_tokenizer *tok, const px_chat_piece *pieces, size_t count, px_buf *text,
                                px_ids *ids, uint8_t **scores, size_t *score_cap, px_ids *part, px_error *err) {
  size_t from = ids->len;
  text->len = 0;
  for (size_t i = 0; i < count; i++) px_buf_append(text, pieces[i].text, pieces[i].bytes);
  if (text->failed) return px_fail(err, PX_NO_MEMORY, "no memory for a conversation");
  PX_TRY(px_tokenizer_encode(tok, text->data, text->len, 0, ids, err));
  if (!scores) return PX_OK;
  if (px_reserve(scores, score_cap, ids->len, 1) != 0)
    return px_fail(err, PX_NO_MEMORY, "no memory for a conversation");
  memset(*scores + from, 0, ids->len - from);
  for (size_t i = 0, at = 0; i < count; at += pieces[i++].bytes) {
    if (!pieces[i].assistant) continue;
    size_t first, end = ids->len - from;
    PX_TRY(tokens_before(tok, text->data, at, ids, from, part, &first, err));
    if (i + 1 < count) PX_TRY(tokens_before(tok, text->data, at + pieces[i].bytes, ids, from, part, &end, err));
    if (end > first) memset(*scores + from + first, 1, end - first);
  }
  return PX_OK;
}

px_status px_chat_encode(const px_tokenizer *tok, const px_chat_piece *pieces, size_t count, px_ids *ids,
                         uint8_t **scores, size_t *score_cap, px_ids *part, px_error *err) {
  px_buf text = {0};
  px_status status = PX_OK;
  for (size_t i = 0, end; i < count && status == PX_OK; i = end) {
    for (end = i + 1; end < count && !starts_with_special(tok, &pieces[end]); end++) continue;
    status = encode_segment(tok, pieces + i, end - i, &text, ids, scores, score_cap, part, err);
  }
  px_buf_free(&text);
  return status;
}

/* --- one prompt --- */

static px_status chat_prompt(const px_tokenizer *tok, px_template chat, const char *prompt, px_ids *out,
                             px_error *err) {
  px_arena arena = {0};
  px_chat_piece *pieces;
  size_t count;
  const px_chat_message message = {.role = "user", .content = prompt};
  px_status status = px_chat_render(chat, tok, &message, 1, true, &arena, &pieces, &count, err);
  if (status == PX_OK) status = px_chat_encode(tok, pieces, count, out, NULL, NULL, NULL, err);
  px_arena_free(&arena);
  return status;
}

px_status px_prompt_ids(const px_tokenizer *tok, const px_row_options *options, const char *prompt, bool chat,
                        px_ids *out, px_error *err) {
  const px_tokenizer_info *info = px_tokenizer_info_get(tok);
  size_t start = out->len;
  int32_t bos = info->add_bos && !options->no_bos && !chat ? info->bos : -1;
  if (bos >= 0) PX_TRY(px_ids_push(out, bos, err));
  if (chat) {
    PX_TRY(chat_prompt(tok, options->chat, prompt, out, err));
  } else {
    PX_TRY(px_tokenizer_encode(tok, prompt, strlen(prompt), 0, out, err));
  }
  size_t n = out->len - start;
  bool twice = bos >= 0 && n > 1 && out->data[start + 1] == bos; /* the text (a rendered template) wrote it already */
  bool unwanted = chat && options->no_bos && n && info->bos >= 0 && out->data[start] == info->bos;
  if (twice || unwanted) {
    memmove(out->data + start, out->data + start + 1, (n - 1) * sizeof *out->data);
    out->len--;
  }
  return PX_OK;
}

/* --- prompts of a file --- */

static px_status prompt_of_row(const char *path, uint64_t line, const json_t *row, px_arena *arena, char **prompt,
                               px_error *err) {
  const json_t *text = json_object_get(row, "prompt"), *list = json_object_get(row, "messages");
  const char *found = json_string_value(text);
  if (!text && list) {
    px_chat_message *messages;
    size_t count;
    PX_TRY(px_row_messages(path, line, list, arena, &messages, &count, err));
    if (count != 1 || strcmp(messages[0].role, "user") != 0)
      return px_fail(err, PX_BAD_FILE,
                     "%s: line %" PRIu64 ": as a prompt \"messages\" holds one message of the role user", path, line);
    found = messages[0].content;
  } else if (!found) {
    return px_fail(err, PX_BAD_FILE, "%s: line %" PRIu64 ": field \"prompt\" %s", path, line,
                   text ? "must be a string" : "is missing");
  }
  *prompt = px_arena_strdup(arena, found);
  return *prompt ? PX_OK : px_fail(err, PX_NO_MEMORY, "%s: no memory for its prompts", path);
}

static px_status prompt_of_line(const char *path, uint64_t number, const char *line, size_t bytes, bool json,
                                px_arena *arena, char **prompt, px_error *err) {
  if (json) {
    json_t *row;
    PX_TRY(px_row_parse(path, number, line, bytes, &row, err));
    px_status status = prompt_of_row(path, number, row, arena, prompt, err);
    json_decref(row);
    return status;
  }
  if (memchr(line, 0, bytes))
    return px_fail(err, PX_BAD_FILE, "%s: line %" PRIu64 ": a NUL byte; the file is not text", path, number);
  *prompt = px_arena_strndup(arena, line, bytes);
  return *prompt ? PX_OK : px_fail(err, PX_NO_MEMORY, "%s: no memory for its prompts", path);
}

px_status px_prompts_read(const char *path, char ***prompts, size_t *count, px_arena *arena, px_error *err) {
  px_map map;
  *prompts = NULL;
  *count = 0;
  PX_TRY(px_map_open(path, &map, err));
  const char *data = (const char *)map.data, *end = data + map.bytes;
  if (map.bytes >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0) data += 3;
  char **list = NULL;
  size_t cap = 0, n = 0;
  bool json = false;
  px_status status = PX_OK;
  uint64_t number = 1;
  for (const char *at = data; at < end && status == PX_OK; number++) {
    size_t bytes;
    const char *line = px_row_next_line(&at, end, &bytes);
    if (px_row_is_blank(line, bytes)) continue;
    if (n == 0) json = line[strspn(line, " \t")] == '{'; /* a line that is not blank ends the search */
    if (px_reserve(&list, &cap, n + 1, sizeof *list) != 0)
      status = px_fail(err, PX_NO_MEMORY, "%s: no memory for its prompts", path);
    else
      status = prompt_of_line(path, number, line, bytes, json, arena, &list[n++], err);
  }
  if (status == PX_OK && n == 0) status = px_fail(err, PX_BAD_FILE, "%s: no prompts in it", path);
  if (status == PX_OK) {
    *prompts = px_arena_alloc(arena, n, sizeof **prompts);
    if (*prompts) memcpy(*prompts, list, n * sizeof *list);
    *count = n;
    if (!*prompts) status = px_fail(err, PX_NO_MEMORY, "%s: no memory for its prompts", path);
  }
  free(list);
  px_map_close(&map);
  return status;
}

/* --- rows grouped by prompt --- */

static int by_prompt(const void *a, const void *b, void *prompts) {
  size_t i = *(const size_t *)a, k = *(const size_t *)b;
  int order = strcmp(((char **)prompts)[i], ((char **)prompts)[k]);
  return order ? order : (i > k) - (i < k);
}

static int by_row(const void *a, const void *b) {
  size_t i = ((const px_row_item *)a)->row, k = ((const px_row_item *)b)->row;
  return (i > k) - (i < k);
}

static size_t reference_count(const px_rows *rows, size_t row) {
  size_t n = 0;
  while (rows->references[row][n]) n++;
  return n;
}

px_status px_rows_items(const px_rows *rows, px_arena *arena, px_row_item **items, size_t *count, px_error *err) {
  size_t *order = px_calloc(rows->count, sizeof *order), n = 0, references = 0;
  *items = px_arena_alloc(arena, rows->count, sizeof **items);
  *count = 0;
  for (size_t i = 0; order && rows->prompts && i < rows->count; i++) {
    if (!rows->prompts[i]) continue;
    order[n++] = i;
    references += reference_count(rows, i) + 1;
  }
  const char **list = px_arena_alloc(arena, references, sizeof *list);
  if (!order || !*items || !list) {
    free(order);
    return px_fail(err, PX_NO_MEMORY, "no memory for %zu prompts", rows->count);
  }
  qsort_r(order, n, sizeof *order, by_prompt, rows->prompts);
  for (size_t i = 0; i < n; i++) {
    if (i == 0 || strcmp(rows->prompts[order[i]], rows->prompts[order[i - 1]]) != 0)
      (*items)[(*count)++] = (px_row_item){.prompt = rows->prompts[order[i]], .references = list, .row = order[i]};
    px_row_item *item = &(*items)[*count - 1];
    for (char **r = rows->references[order[i]]; *r; r++) item->references[item->reference_count++] = *r;
    list = item->references + item->reference_count;
  }
  qsort(*items, *count, sizeof **items, by_row);
  free(order);
  return PX_OK;
}
