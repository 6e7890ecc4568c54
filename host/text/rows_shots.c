/* SPDX-License-Identifier: MIT
 * In-context examples in front of rows. */
#include <stdlib.h>

#include "core/random.h"
#include "text/rows.h"

/* Tokens of the examples, one after the other, and where each ends. */
typedef struct shot_list {
  px_ids ids;
  size_t *ends; /* [count] */
  int32_t count;
  bool gaps;
} shot_list;

static bool is_closed(const px_tokenizer_info *info, const int32_t *ids, size_t count) {
  for (size_t i = count > 2 ? count - 2 : 0; i < count; i++) /* a template may write a newline behind its end token */
    for (int k = 0; k < info->stop_count; k++)
      if (ids[i] == info->stop_ids[k]) return true;
  return false;
}

/* `wanted` different numbers below `count`, in the order in which they are drawn. */
static px_status draw(size_t count, int32_t wanted, uint64_t seed, size_t **out, px_error *err) {
  size_t *all = px_calloc(count, sizeof *all);
  if (!all) return px_fail(err, PX_NO_MEMORY, "no memory for examples");
  for (size_t i = 0; i < count; i++) all[i] = i;
  for (size_t i = 0; i < (size_t)wanted; i++) {
    size_t k = i + (size_t)px_below(seed, PX_STREAM_SHOTS, 0, i, count - i), kept = all[i];
    all[i] = all[k];
    all[k] = kept;
  }
  *out = all;
  return PX_OK;
}

static px_status collect(const px_rows *from, int32_t shots, uint64_t seed, const px_tokenizer *tok, shot_list *out, px_error *err) {
  size_t *chosen = NULL;
  px_ids gap = {0};
  if ((size_t)shots > from->count) shots = (int32_t)from->count;
  out->ends = px_calloc((size_t)shots, sizeof *out->ends);
  px_status status = out->ends ? draw(from->count, shots, seed, &chosen, err) : px_fail(err, PX_NO_MEMORY, "no memory for examples");
  if (status == PX_OK && tok) status = px_tokenizer_encode(tok, "\n\n", 2, PX_ENCODE_NO_DUMMY_SPACE, &gap, err);
  for (int32_t i = 0; status == PX_OK && i < shots; i++) {
    const int32_t *ids = from->ids + from->offsets[chosen[i]];
    size_t count = from->offsets[chosen[i] + 1] - from->offsets[chosen[i]];
    bool open = tok && !is_closed(px_tokenizer_info_get(tok), ids, count);
    for (size_t t = 0; status == PX_OK && t < count; t++) status = px_ids_push(&out->ids, ids[t], err);
    for (size_t t = 0; status == PX_OK && open && t < gap.len; t++) status = px_ids_push(&out->ids, gap.data[t], err);
    out->gaps = out->gaps || open;
    out->ends[i] = out->ids.len;
    out->count = i + 1;
  }
  px_ids_free(&gap);
  free(chosen);
  return status;
}

/* Tokens that a row of so many gets. */
static size_t fitting(const shot_list *shots, uint64_t row_tokens, int64_t room, int32_t *count) {
  int64_t left = room - (int64_t)row_tokens;
  *count = 0;
  while (*count < shots->count && (int64_t)shots->ends[*count] <= left) ++*count;
  return *count ? shots->ends[*count - 1] : 0;
}

/* The rows again, each with its examples behind its begin token. */
static px_status insert(px_rows *rows, const shot_list *shots, int64_t room, int32_t bos, double *used, px_error *err) {
  uint64_t total = rows->offsets[rows->count], at = 0, taken = 0;
  int32_t count;
  for (size_t r = 0; r < rows->count; r++) total += fitting(shots, rows->offsets[r + 1] - rows->offsets[r], room, &count);
  int32_t *ids = px_calloc(total, sizeof *ids);
  uint8_t *scores = px_calloc(total / 8 + 1, 1);
  if (!ids || !scores) {
    free(ids);
    free(scores);
    return px_fail(err, PX_NO_MEMORY, "no memory for the examples of %zu rows", rows->count);
  }
  rows->longest = 0;
  uint64_t begin = 0;
  for (size_t r = 0; r < rows->count; r++) {
    uint64_t end = rows->offsets[r + 1], lead = begin < end && bos >= 0 && rows->ids[begin] == bos;
    size_t added = fitting(shots, end - begin, room, &count), start = at;
    taken += (uint64_t)count;
    if (lead) ids[at++] = rows->ids[begin];
    for (size_t t = 0; t < added; t++) ids[at++] = shots->ids.data[t];
    for (uint64_t i = begin + lead; i < end; i++, at++) {
      ids[at] = rows->ids[i];
      if (px_row_scores(rows, i)) scores[at >> 3] |= (uint8_t)(1u << (at & 7));
    }
    begin = end;
    rows->offsets[r + 1] = at;
    rows->prompt_len[r] += (uint32_t)added;
    if (at - start > rows->longest) rows->longest = at - start;
  }
  free(rows->ids);
  free(rows->scores);
  rows->ids = ids;
  rows->scores = scores;
  *used = (double)taken / (double)rows->count;
  return PX_OK;
}

px_status px_rows_add_shots(px_rows *rows, const char *path, int32_t shots, uint64_t seed, int64_t room, const px_tokenizer *tok,
                            const px_row_options *options, const px_log *log, px_shots *out, px_error *err) {
  px_row_options how = *options;
  px_rows from = {0};
  shot_list list = {0};
  *out = (px_shots){0};
  if (shots < 1) return px_fail(err, PX_INVALID, "--shots must be at least 1");
  how.no_bos = how.no_end = true;
  how.keep_text = false;
  how.max_row_tokens = 0; /* what does not fit is left out row by row */
  PX_TRY(px_rows_read(path, tok, &how, log, &from, err));
  px_status status = collect(&from, shots, seed, tok, &list, err);
  if (status == PX_OK) status = insert(rows, &list, room, tok ? px_tokenizer_info_get(tok)->bos : -1, &out->used, err);
  out->gaps = list.gaps;
  px_ids_free(&list.ids);
  free(list.ends);
  px_rows_free(&from);
  return status;
}
