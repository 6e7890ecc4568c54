/* SPDX-License-Identifier: MIT */
#include "generate/row.h"

#include <stdlib.h>

px_row *px_row_new(const px_request *request, const px_tokenizer *tok, px_error *err) {
  px_row *row = px_calloc(1, sizeof *row);
  if (!row) {
    px_fail(err, PX_NO_MEMORY, "no memory");
    return NULL;
  }
  row->request = *request;
  row->prompt_len = request->count;
  for (int32_t i = 0; i < request->count; i++)
    if (px_ids_push(&row->ids, request->ids[i], err) != PX_OK) {
      px_row_free(row);
      return NULL;
    }
  row->decoder = (px_decoder){.tok = tok, .skip_special = true};
  return row;
}

void px_row_free(px_row *row) {
  if (!row) return;
  px_ids_free(&row->ids);
  free(row->pages);
  px_buf_free(&row->decoder.pending);
  px_buf_free(&row->text);
  free(row);
}

/* Where the first stop text begins in the waiting text, or -1; *hold gets how many bytes at the end may begin one. */
static int64_t find_stop(const px_row *row, size_t *hold) {
  const px_sampling *s = &row->request.sampling;
  int64_t first = -1;
  *hold = 0;
  for (int32_t i = 0; i < s->stop_count; i++) {
    size_t len = strlen(s->stop[i]);
    if (len == 0 || row->text.len == 0) continue;
    char *at = memmem(row->text.data, row->text.len, s->stop[i], len);
    if (at && (first < 0 || at - row->text.data < first)) first = at - row->text.data;
    for (size_t n = len - 1; n > *hold; n--)
      if (n <= row->text.len && memcmp(row->text.data + row->text.len - n, s->stop[i], n) == 0) {
        *hold = n;
        break;
      }
  }
  return first;
}

static void show(px_row *row, size_t count) {
  bool end = row->finish != PX_FINISH_NONE;
  if (row->request.text && (count || end)) row->request.text(row->request.user, row->request.row, count ? row->text.data : "", count, row->finish);
  if (count) memmove(row->text.data, row->text.data + count, row->text.len - count);
  row->text.len -= count;
}

static bool is_stop(const px_tokenizer *tok, int32_t id) {
  const px_tokenizer_info *info = px_tokenizer_info_get(tok);
  for (int i = 0; i < info->stop_count; i++)
    if (info->stop_ids[i] == id) return true;
  return id == info->eos;
}

px_status px_row_take(px_row *row, const px_tokenizer *tok, int32_t id, int32_t limit, px_error *err) {
  size_t hold = 0;
  if (tok && is_stop(tok, id)) {
    row->finish = PX_FINISH_STOP_TOKEN;
  } else {
    PX_TRY(px_ids_push(&row->ids, id, err));
    if (row->request.token) row->request.token(row->request.user, row->request.row, id);
    if (tok) PX_TRY(px_decoder_put(&row->decoder, id, &row->text, err));
    int32_t made = (int32_t)row->ids.len - row->prompt_len, most = row->request.sampling.max_tokens;
    if (made >= most) row->finish = PX_FINISH_LENGTH;
    else if ((int32_t)row->ids.len >= limit) row->finish = PX_FINISH_CONTEXT;
  }
  if (tok && row->finish != PX_FINISH_NONE) PX_TRY(px_decoder_end(&row->decoder, &row->text, err));
  if (row->text.failed) return px_fail(err, PX_NO_MEMORY, "no memory");
  int64_t stop = find_stop(row, &hold);
  if (stop >= 0) {
    row->finish = PX_FINISH_STOP_TEXT;
    row->text.len = (size_t)stop;
  }
  show(row, row->finish != PX_FINISH_NONE ? row->text.len : row->text.len - hold);
  return PX_OK;
}
