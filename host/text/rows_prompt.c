/* SPDX-License-Identifier: MIT
 * What a model is prompted with: chat pieces as ids, a prompt as ids, prompts of a file, rows grouped by prompt. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "text/rows_internal.h"

/* --- chat pieces -> ids --- */

typedef struct chat_text {
  const px_tokenizer *tok;
  const px_chat_piece *pieces;
  size_t count;
  px_buf text; /* joined */
  px_ids *ids; /* of the joined text, from `first` on */
  size_t first;
  uint8_t *scores; /* [ids->len] */
  px_ids *part;    /* scratch */
} chat_text;

/* Encodes text[at, end) alone and counts how many of its ids stand at ids[from, ...): where text[at, end) begins there,
 * the tokens that lie wholly inside it. A token across its end belongs to what follows. */
static px_status count_common(const chat_text *c, size_t at, size_t end, int flags, size_t from, size_t *common,
                              px_error *err) {
  c->part->len = 0;
  *common = 0;
  PX_TRY(px_tokenizer_encode(c->tok, c->text.data + at, end - at, flags, c->part, err));
  size_t n = c->ids->len - from;
  while (*common < n && *common < c->part->len && c->part->data[*common] == c->ids->data[from + *common]) ++*common;
  return PX_OK;
}

/* The tokens of an assistant piece text[middle, end), which end at ids[stop), score. They are the piece's own ids, or,
 * where its first bytes share a token with what stands before, all that the text before it does not account for. */
static px_status mark_piece(const chat_text *c, size_t at, size_t middle, size_t end, int flags, size_t from,
                            size_t stop, px_error *err) {
  c->part->len = 0;
  PX_TRY(px_tokenizer_encode(c->tok, c->text.data + middle, end - middle, PX_ENCODE_NO_DUMMY_SPACE, c->part, err));
  size_t n = c->part->len, begin = from;
  if (n <= stop - from && (n == 0 || memcmp(c->part->data, c->ids->data + stop - n, n * sizeof *c->part->data) == 0)) {
    begin = stop - n;
  } else {
    PX_TRY(count_common(c, at, middle, flags, from, &n, err));
    begin = from + n;
  }
  if (begin < stop) memset(c->scores + begin, 1, stop - begin);
  return PX_OK;
}

/* Turn by turn, in time linear in the text: a turn is what stands up to the end of an assistant piece. That end is an
 * end token as a rule, so that the next turn's ids are those of its text alone; *aligned is false where they are not.
 */
static px_status mark_by_turn(const chat_text *c, bool *aligned, px_error *err) {
  size_t from = c->first, at = 0;
  *aligned = false;
  for (size_t i = 0; i < c->count;) {
    size_t middle = at, end, common;
    while (i < c->count && !c->pieces[i].assistant) middle += c->pieces[i++].bytes;
    end = middle + (i < c->count ? c->pieces[i].bytes : 0);
    int flags = 0;
    PX_TRY(count_common(c, at, end, flags, from, &common, err));
    if (common < c->part->len && at > 0) { /* some tokenizers put a space in front of the first turn only */
      flags = PX_ENCODE_NO_DUMMY_SPACE;
      PX_TRY(count_common(c, at, end, flags, from, &common, err));
    }
    if (common < c->part->len) return PX_OK;
    if (i < c->count) PX_TRY(mark_piece(c, at, middle, end, flags, from, from + common, err));
    i++;
    from += common;
    at = end;
  }
  *aligned = from == c->ids->len;
  return PX_OK;
}

/* For any tokenizer, but in time that grows with turns times text: each border against the text from the start. */
static px_status mark_by_prefix(const chat_text *c, px_error *err) {
  memset(c->scores + c->first, 0, c->ids->len - c->first);
  for (size_t i = 0, at = 0; i < c->count; at += c->pieces[i++].bytes) {
    if (!c->pieces[i].assistant) continue;
    size_t end = at + c->pieces[i].bytes, tokens;
    PX_TRY(count_common(c, 0, end, 0, c->first, &tokens, err));
    PX_TRY(mark_piece(c, 0, at, end, 0, c->first, c->first + tokens, err));
  }
  return PX_OK;
}

static px_status encode_chat(chat_text *c, uint8_t **scores, size_t *score_cap, px_error *err) {
  for (size_t i = 0; i < c->count; i++) px_buf_append(&c->text, c->pieces[i].text, c->pieces[i].bytes);
  if (c->text.failed) return px_fail(err, PX_NO_MEMORY, "no memory for a conversation");
  if (c->text.len == 0) return PX_OK;
  PX_TRY(px_tokenizer_encode(c->tok, c->text.data, c->text.len, 0, c->ids, err));
  if (!scores || c->ids->len == c->first) return PX_OK;
  if (px_reserve(scores, score_cap, c->ids->len, 1) != 0)
    return px_fail(err, PX_NO_MEMORY, "no memory for a conversation");
  c->scores = *scores;
  memset(c->scores + c->first, 0, c->ids->len - c->first);
  bool aligned;
  PX_TRY(mark_by_turn(c, &aligned, err));
  return aligned ? PX_OK : mark_by_prefix(c, err);
}

px_status px_chat_encode(const px_tokenizer *tok, const px_chat_piece *pieces, size_t count, px_ids *ids,
                         uint8_t **scores, size_t *score_cap, px_ids *part, px_error *err) {
  chat_text c = {.tok = tok, .pieces = pieces, .count = count, .ids = ids, .first = ids->len, .part = part};
  px_status status = encode_chat(&c, scores, score_cap, err);
  px_buf_free(&c.text);
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
  size_t *members = px_arena_alloc(arena, rows->count, sizeof *members);
  if (!order || !*items || !list || !members) {
    free(order);
    return px_fail(err, PX_NO_MEMORY, "no memory for %zu prompts", rows->count);
  }
  qsort_r(order, n, sizeof *order, by_prompt, rows->prompts);
  for (size_t i = 0; i < n; i++) {
    if (i == 0 || strcmp(rows->prompts[order[i]], rows->prompts[order[i - 1]]) != 0)
      (*items)[(*count)++] = (px_row_item){.prompt = rows->prompts[order[i]], .references = list, .row = order[i], .rows = members + i};
    px_row_item *item = &(*items)[*count - 1];
    members[i] = order[i];
    item->row_count++;
    for (char **r = rows->references[order[i]]; *r; r++) item->references[item->reference_count++] = *r;
    list = item->references + item->reference_count;
  }
  qsort(*items, *count, sizeof **items, by_row);
  free(order);
  return PX_OK;
}
