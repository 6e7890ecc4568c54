/* SPDX-License-Identifier: MIT
 * One line of a data file -> its row (or rows) of tokens. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format/json.h"
#include "text/rows_internal.h"
#include "text/space.h"

#define LINE "%s: line %" PRIu64

enum { MAX_COMMAS = 1 << 24 };

typedef enum row_kind { ROW_PROMPT, ROW_TEXT, ROW_MESSAGES, ROW_IDS } row_kind;

void px_row_reader_free(px_row_reader *r) {
  px_ids_free(&r->ids);
  px_ids_free(&r->part);
  free(r->scores);
  r->scores = NULL;
  px_arena_free(&r->arena);
}

static px_status no_memory(const px_row_reader *r, uint64_t line, px_error *err) {
  return px_fail(err, PX_NO_MEMORY, LINE ": no memory for the row", r->path, line);
}

/* --- what every kind of row ends with --- */

/* Marks the tokens from `from` on (up to the end of r->ids). */
static px_status mark(px_row_reader *r, uint64_t line, size_t from, uint8_t value, px_error *err) {
  if (px_reserve(&r->scores, &r->score_cap, r->ids.len, 1) != 0) return no_memory(r, line, err);
  if (r->ids.len > from) memset(r->scores + from, value, r->ids.len - from);
  return PX_OK;
}

static px_status check_vocabulary(const px_row_reader *r, uint64_t line, row_kind kind, px_error *err) {
  for (size_t i = 0; i < r->ids.len; i++) {
    int32_t id = r->ids.data[i];
    if (id >= 0 && (r->vocab_size == 0 || id < r->vocab_size)) continue;
    if (kind == ROW_IDS)
      return px_fail(err, PX_BAD_FILE, LINE ": ids[%zu] is %d, outside the vocabulary of %d tokens", r->path, line, i,
                     id, r->vocab_size);
    const char *token = px_tokenizer_token(r->tok, id);
    return px_fail(err, PX_BAD_FILE, LINE ": token \"%.40s\" is %d, outside the model's vocabulary of %d tokens",
                   r->path, line, token ? token : "", id, r->vocab_size);
  }
  return PX_OK;
}

static px_status too_long(const px_row_reader *r, uint64_t line, row_kind kind, size_t prompt_len, px_error *err) {
  size_t n = r->ids.len;
  int limit = r->options->max_row_tokens;
  if (kind == ROW_TEXT)
    return px_fail(err, PX_BAD_FILE,
                   LINE
                   ": the row has %zu tokens, the limit is %d; --on-long cut makes consecutive rows of it, "
                   "--on-long drop leaves it out",
                   r->path, line, n, limit);
  return px_fail(err, PX_BAD_FILE,
                 LINE
                 ": the row has %zu tokens (%zu before the first that scores), the limit is %d; "
                 "--on-long cut shortens its end, --on-long drop leaves it out",
                 r->path, line, n, prompt_len, limit);
}

/* Appends `lead` (a begin token, or -1) and ids[from, to) as one row. */
static px_status append_row(px_row_reader *r, px_row_chunk *c, uint64_t line, int32_t lead, size_t from, size_t to,
                            size_t prompt_len, px_error *err) {
  size_t n = to - from + (lead >= 0);
  if (n > INT32_MAX) return px_fail(err, PX_BAD_FILE, LINE ": the row has %zu tokens", r->path, line, n);
  if (px_reserve(&c->tokens, &c->token_cap, c->token_count + n, sizeof *c->tokens) != 0 ||
      px_reserve(&c->records, &c->record_cap, c->count + 1, sizeof *c->records) != 0)
    return no_memory(r, line, err);
  uint32_t *out = c->tokens + c->token_count;
  if (lead >= 0) *out++ = (uint32_t)lead;
  for (size_t i = from; i < to; i++) {
    bool scores = r->options->loss_all || r->scores[i];
    *out++ = (uint32_t)r->ids.data[i] | (scores ? PX_ROW_SCORES : 0);
  }
  c->tokens[c->token_count] &= ~PX_ROW_SCORES; /* nothing stands before the first token */
  c->token_count += n;
  c->records[c->count++] = (px_row_record){.line = line, .len = (uint32_t)n, .prompt_len = (uint32_t)prompt_len};
  return PX_OK;
}

/* r->ids and r->scores hold a row; obeys the limit and appends what is left of it. *kept: rows that came of it. */
static px_status finish_row(px_row_reader *r, px_row_chunk *c, uint64_t line, row_kind kind, size_t prompt_len,
                            size_t *kept, px_error *err) {
  size_t n = r->ids.len, limit = (size_t)r->options->max_row_tokens, before = c->count;
  *kept = 0;
  if (n == 0) return px_fail(err, PX_BAD_FILE, LINE ": the row is empty, it has no token", r->path, line);
  PX_TRY(check_vocabulary(r, line, kind, err));
  if (limit == 0 || n <= limit) {
    PX_TRY(append_row(r, c, line, -1, 0, n, prompt_len, err));
  } else if (r->options->on_long == PX_LONG_ERROR) {
    return too_long(r, line, kind, prompt_len, err);
  } else if (r->options->on_long == PX_LONG_DROP || (kind != ROW_TEXT && prompt_len >= limit)) {
    c->dropped++;
  } else if (kind != ROW_TEXT) {
    PX_TRY(append_row(r, c, line, -1, 0, limit, prompt_len, err));
    c->cut++;
  } else { /* consecutive rows, each with the begin token in front */
    size_t lead = r->bos >= 0, step = limit - lead;
    for (size_t from = lead; from < n; from += step)
      PX_TRY(append_row(r, c, line, r->bos, from, from + step < n ? from + step : n, 0, err));
    c->cut++;
  }
  *kept = c->count - before;
  return PX_OK;
}

/* Keeps the texts of the last row. */
static px_status keep_texts(px_row_reader *r, px_row_chunk *c, uint64_t line, const char *prompt, size_t prompt_bytes,
                            const char *target, size_t target_bytes, const json_t *references, px_error *err) {
  px_row_record *record = &c->records[c->count - 1];
  px_buf_append(&c->texts, prompt, prompt_bytes);
  px_buf_append(&c->texts, "", 1);
  px_buf_append(&c->texts, target, target_bytes);
  px_buf_append(&c->texts, "", 1);
  record->has_text = true;
  record->reference_count = (uint32_t)json_array_size(references);
  for (size_t i = 0; i < record->reference_count; i++) {
    const json_t *reference = json_array_get(references, i);
    px_buf_append(&c->texts, json_string_value(reference), json_string_length(reference) + 1);
  }
  return c->texts.failed ? no_memory(r, line, err) : PX_OK;
}

/* --- the kinds --- */

static px_status encode(px_row_reader *r, uint64_t line, const char *text, size_t bytes, int flags, px_error *err) {
  px_status status = px_tokenizer_encode(r->tok, text, bytes, flags, &r->ids, err);
  return status == PX_OK ? PX_OK : px_fail_in(err, status, LINE, r->path, line);
}

static px_status push(px_row_reader *r, int32_t id, px_error *err) {
  return id >= 0 ? px_ids_push(&r->ids, id, err) : PX_OK;
}

static px_status read_prompt_row(px_row_reader *r, px_row_chunk *c, uint64_t line, const char *prompt,
                                 size_t prompt_bytes, const char *completion, size_t completion_bytes,
                                 const json_t *references, px_error *err) {
  size_t kept;
  PX_TRY(push(r, r->bos, err));
  PX_TRY(encode(r, line, prompt, prompt_bytes, 0, err));
  /* A text that spells the begin token itself has it once all the same. */
  if (r->bos >= 0 && r->ids.len > 1 && r->ids.data[1] == r->bos)
    memmove(r->ids.data, r->ids.data + 1, --r->ids.len * sizeof *r->ids.data);
  size_t prompt_len = r->ids.len;
  PX_TRY(mark(r, line, 0, 0, err));
  PX_TRY(encode(r, line, completion, completion_bytes, PX_ENCODE_NO_DUMMY_SPACE, err));
  PX_TRY(push(r, r->eos, err));
  PX_TRY(mark(r, line, prompt_len, 1, err));
  PX_TRY(finish_row(r, c, line, ROW_PROMPT, prompt_len, &kept, err));
  if (!kept || !r->options->keep_text) return PX_OK;
  return keep_texts(r, c, line, prompt, prompt_bytes, completion, completion_bytes, references, err);
}

static px_status read_text_row(px_row_reader *r, px_row_chunk *c, uint64_t line, const char *text, size_t bytes,
                               px_error *err) {
  size_t kept;
  if (bytes == 0) return px_fail(err, PX_BAD_FILE, LINE ": field \"text\" is empty", r->path, line);
  PX_TRY(push(r, r->bos, err));
  PX_TRY(encode(r, line, text, bytes, 0, err));
  if (r->bos >= 0 && r->ids.len > 1 && r->ids.data[1] == r->bos)
    memmove(r->ids.data, r->ids.data + 1, --r->ids.len * sizeof *r->ids.data);
  PX_TRY(mark(r, line, 0, 1, err));
  return finish_row(r, c, line, ROW_TEXT, 0, &kept, err);
}

px_status px_row_messages(const char *path, uint64_t line, const json_t *list, px_arena *arena,
                          px_chat_message **messages, size_t *count, px_error *err) {
  *count = json_array_size(list);
  if (*count == 0)
    return px_fail(err, PX_BAD_FILE, LINE ": field \"messages\" must be a list of {\"role\", \"content\"}", path, line);
  *messages = px_arena_alloc(arena, *count, sizeof **messages);
  if (!*messages) return px_fail(err, PX_NO_MEMORY, LINE ": no memory for the row", path, line);
  for (size_t i = 0; i < *count; i++) {
    const json_t *m = json_array_get(list, i), *role = json_object_get(m, "role"),
                 *content = json_object_get(m, "content");
    if (!json_is_string(role) || !json_is_string(content))
      return px_fail(err, PX_BAD_FILE, LINE ": message %zu must hold the strings \"role\" and \"content\"", path, line,
                     i + 1);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)m, key, value) {
      if (strcmp(key, "role") != 0 && strcmp(key, "content") != 0)
        return px_fail(err, PX_BAD_FILE, LINE ": message %zu: unknown field \"%.40s\"; it holds role and content", path,
                       line, i + 1, key);
    }
    (*messages)[i] = (px_chat_message){.role = json_string_value(role), .content = json_string_value(content)};
  }
  return PX_OK;
}

static px_status keep_messages(px_row_reader *r, px_row_chunk *c, uint64_t line, const px_chat_message *messages,
                               size_t count, const px_chat_piece *pieces, size_t piece_count, px_error *err) {
  size_t last = piece_count, message = count;
  while (last > 0 && !pieces[last - 1].assistant) last--;
  while (message > 0 && strcmp(messages[message - 1].role, "assistant") != 0) message--;
  if (last == 0 || message == 0) return PX_OK;
  px_buf prompt = {0};
  for (size_t i = 0; i + 1 < last; i++) px_buf_append(&prompt, pieces[i].text, pieces[i].bytes);
  const char *target = messages[message - 1].content;
  px_status status = prompt.failed ? no_memory(r, line, err)
                                   : keep_texts(r, c, line, prompt.len ? prompt.data : "", prompt.len, target,
                                                strlen(target), NULL, err);
  px_buf_free(&prompt);
  return status;
}

static px_status read_messages_row(px_row_reader *r, px_row_chunk *c, uint64_t line, const json_t *list,
                                   px_error *err) {
  px_chat_message *messages;
  px_chat_piece *pieces;
  size_t count, piece_count, kept;
  if (r->options->chat == PX_TEMPLATE_NONE)
    return px_fail(err, PX_BAD_FILE,
                   LINE ": messages need a chat template and the tokenizer has none; name one with --template", r->path,
                   line);
  PX_TRY(px_row_messages(r->path, line, list, &r->arena, &messages, &count, err));
  px_status status =
      px_chat_render(r->options->chat, r->tok, messages, count, false, &r->arena, &pieces, &piece_count, err);
  if (status == PX_OK)
    status = px_chat_encode(r->tok, pieces, piece_count, &r->ids, &r->scores, &r->score_cap, &r->part, err);
  if (status != PX_OK) return px_fail_in(err, status, LINE, r->path, line);
  if (r->options->no_bos && r->ids.len && r->ids.data[0] == px_tokenizer_info_get(r->tok)->bos) {
    memmove(r->ids.data, r->ids.data + 1, --r->ids.len * sizeof *r->ids.data);
    memmove(r->scores, r->scores + 1, r->ids.len);
  }
  size_t prompt_len = 0;
  while (prompt_len < r->ids.len && !r->scores[prompt_len]) prompt_len++;
  if (prompt_len == r->ids.len && !r->options->loss_all)
    return px_fail(err, PX_BAD_FILE, LINE ": no message of the role assistant, nothing to learn", r->path, line);
  PX_TRY(finish_row(r, c, line, ROW_MESSAGES, prompt_len, &kept, err));
  if (!kept || !r->options->keep_text) return PX_OK;
  return keep_messages(r, c, line, messages, count, pieces, piece_count, err);
}

static px_status read_ids_row(px_row_reader *r, px_row_chunk *c, uint64_t line, const json_t *ids, const json_t *labels,
                              px_error *err) {
  size_t n = json_array_size(ids), kept;
  if (!json_is_array(ids) || !json_is_array(labels))
    return px_fail(err, PX_BAD_FILE, LINE ": fields \"ids\" and \"labels\" must be lists of integers", r->path, line);
  if (json_array_size(labels) != n)
    return px_fail(err, PX_BAD_FILE, LINE ": %zu ids and %zu labels; labels are not shifted, one for each id", r->path,
                   line, n, json_array_size(labels));
  if (px_reserve(&r->scores, &r->score_cap, n, 1) != 0) return no_memory(r, line, err);
  size_t prompt_len = n;
  for (size_t i = 0; i < n; i++) {
    const json_t *id = json_array_get(ids, i), *label = json_array_get(labels, i);
    if (!json_is_integer(id) || !json_is_integer(label))
      return px_fail(err, PX_BAD_FILE, LINE ": %s[%zu] must be an integer", r->path, line,
                     json_is_integer(id) ? "labels" : "ids", i);
    json_int_t value = json_integer_value(id), wanted = json_integer_value(label);
    if (value < 0 || value > INT32_MAX || (r->vocab_size && value >= r->vocab_size))
      return px_fail(err, PX_BAD_FILE,
                     LINE ": ids[%zu] is %" JSON_INTEGER_FORMAT ", outside the vocabulary of %d tokens", r->path, line,
                     i, value, r->vocab_size ? r->vocab_size : INT32_MAX);
    if (wanted != -100 && wanted != value)
      return px_fail(err, PX_BAD_FILE,
                     LINE ": labels[%zu] is %" JSON_INTEGER_FORMAT ", it must be -100 or the id %" JSON_INTEGER_FORMAT
                          " (labels are not shifted)",
                     r->path, line, i, wanted, value);
    PX_TRY(px_ids_push(&r->ids, (int32_t)value, err));
    r->scores[i] = wanted != -100;
    if (wanted != -100 && prompt_len == n) prompt_len = i;
  }
  return finish_row(r, c, line, ROW_IDS, prompt_len, &kept, err);
}

/* --- lines --- */

/* A list of numbers takes some forty times its text in memory once it is parsed: no line may ask for gigabytes. */
static px_status check_size(const char *path, uint64_t line, const char *text, size_t bytes, px_error *err) {
  size_t commas = 0;
  if (bytes <= MAX_COMMAS) return PX_OK;
  for (const char *p = text, *end = text + bytes; (p = memchr(p, ',', (size_t)(end - p))) != NULL; p++) commas++;
  if (commas <= MAX_COMMAS) return PX_OK;
  return px_fail(err, PX_BAD_FILE, LINE ": the row has %zu commas, more than %d; split it", path, line, commas,
                 MAX_COMMAS);
}

px_status px_row_parse(const char *path, uint64_t line, const char *text, size_t bytes, json_t **out, px_error *err) {
  px_error inner = {0};
  PX_TRY(check_size(path, line, text, bytes, err));
  px_status status = px_json_parse("row", text, bytes, out, &inner);
  if (status != PX_OK) { /* the parser counts lines too, from the start of this one */
    const char *why = inner.message;
    if (strncmp(why, "row: ", 5) == 0) why += 5;
    if (strncmp(why, "line 1, ", 8) == 0) why += 8;
    return px_fail(err, status, LINE ", %s", path, line, why);
  }
  if (json_is_object(*out)) return PX_OK;
  json_decref(*out);
  *out = NULL;
  return px_fail(err, PX_BAD_FILE, LINE ": a row must be a JSON object {...}", path, line);
}

static px_status need_string(const px_row_reader *r, uint64_t line, const char *key, const json_t *value,
                             px_error *err) {
  if (json_is_string(value)) return PX_OK;
  if (!value) return px_fail(err, PX_BAD_FILE, LINE ": field \"%s\" is missing", r->path, line, key);
  return px_fail(err, PX_BAD_FILE, LINE ": field \"%s\" must be a string", r->path, line, key);
}

static px_status check_references(const px_row_reader *r, uint64_t line, const json_t *references, px_error *err) {
  if (!references) return PX_OK;
  bool good = json_array_size(references) > 0;
  for (size_t i = 0; i < json_array_size(references); i++) good = good && json_is_string(json_array_get(references, i));
  if (good) return PX_OK;
  return px_fail(err, PX_BAD_FILE, LINE ": field \"references\" must be a list of strings, at least one", r->path,
                 line);
}

/* Which kind of row the known fields make; others are not looked at. */
static px_status row_kind_of(const px_row_reader *r, uint64_t line, json_t *row, row_kind *kind, px_error *err) {
  static const struct {
    const char *key;
    row_kind kind;
  } fields[] = {{"prompt", ROW_PROMPT},     {"completion", ROW_PROMPT}, {"references", ROW_PROMPT}, {"text", ROW_TEXT},
                {"messages", ROW_MESSAGES}, {"ids", ROW_IDS},           {"labels", ROW_IDS}};
  const char *first = NULL, *key;
  json_t *value;
  json_object_foreach(row, key, value) {
    size_t i = 0;
    while (i < sizeof fields / sizeof fields[0] && strcmp(key, fields[i].key) != 0) i++;
    if (i == sizeof fields / sizeof fields[0]) continue; /* people keep sources and numbers beside their rows */
    if (first && fields[i].kind != *kind)
      return px_fail(err, PX_BAD_FILE,
                     LINE
                     ": fields \"%s\" and \"%s\" do not go together; a row holds prompt and completion (and "
                     "references), or text, or messages, or ids and labels",
                     r->path, line, first, key);
    first = fields[i].key;
    *kind = fields[i].kind;
  }
  if (first) return PX_OK;
  return px_fail(err, PX_BAD_FILE,
                 LINE
                 ": the row has none of the fields that pfx knows; it needs prompt and completion (and references), or text, or messages, "
                 "or ids and labels",
                 r->path, line);
}

static px_status read_json_row(px_row_reader *r, px_row_chunk *c, uint64_t line, json_t *row, px_error *err) {
  row_kind kind = ROW_TEXT;
  PX_TRY(row_kind_of(r, line, row, &kind, err));
  if (kind != ROW_IDS && !r->tok)
    return px_fail(err, PX_BAD_FILE, LINE ": a row of text needs a tokenizer; without one only ids and labels", r->path,
                   line);
  const json_t *prompt = json_object_get(row, "prompt"), *completion = json_object_get(row, "completion");
  const json_t *references = json_object_get(row, "references"), *text = json_object_get(row, "text");
  switch (kind) {
    case ROW_PROMPT:
      PX_TRY(need_string(r, line, "prompt", prompt, err));
      PX_TRY(need_string(r, line, "completion", completion, err));
      PX_TRY(check_references(r, line, references, err));
      return read_prompt_row(r, c, line, json_string_value(prompt), json_string_length(prompt),
                             json_string_value(completion), json_string_length(completion), references, err);
    case ROW_TEXT:
      PX_TRY(need_string(r, line, "text", text, err));
      return read_text_row(r, c, line, json_string_value(text), json_string_length(text), err);
    case ROW_MESSAGES:
      return read_messages_row(r, c, line, json_object_get(row, "messages"), err);
    default:
      return read_ids_row(r, c, line, json_object_get(row, "ids"), json_object_get(row, "labels"), err);
  }
}

/* The paper's line: the prompt is the trimmed source and a newline, the completion the trimmed target. */
static px_status read_pair(px_row_reader *r, px_row_chunk *c, uint64_t line, const char *text, size_t bytes,
                           px_error *err) {
  const char *bar = memmem(text, bytes, "||", 2);
  if (!bar) return px_fail(err, PX_BAD_FILE, LINE ": no \"||\" between source and target", r->path, line);
  if (memchr(text, 0, bytes))
    return px_fail(err, PX_BAD_FILE, LINE ": a NUL byte; the file is not text", r->path, line);
  if (!r->tok) return px_fail(err, PX_BAD_FILE, LINE ": a row of text needs a tokenizer", r->path, line);
  const char *source = text, *target = bar + 2;
  size_t source_bytes = (size_t)(bar - text), target_bytes = bytes - source_bytes - 2;
  px_space_trim(&source, &source_bytes);
  px_space_trim(&target, &target_bytes);
  char *prompt = px_arena_alloc(&r->arena, source_bytes + 1, 1);
  if (!prompt) return no_memory(r, line, err);
  memcpy(prompt, source, source_bytes);
  prompt[source_bytes] = '\n';
  return read_prompt_row(r, c, line, prompt, source_bytes + 1, target, target_bytes, NULL, err);
}

px_status px_row_read(px_row_reader *r, px_row_chunk *chunk, uint64_t line, const char *text, size_t bytes,
                      px_error *err) {
  r->ids.len = 0;
  px_status status;
  if (r->json) {
    json_t *row;
    PX_TRY(px_row_parse(r->path, line, text, bytes, &row, err));
    status = read_json_row(r, chunk, line, row, err);
    json_decref(row);
  } else {
    status = read_pair(r, chunk, line, text, bytes, err);
  }
  px_arena_free(&r->arena);
  return status;
}
