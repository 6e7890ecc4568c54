/* SPDX-License-Identifier: MIT
 * One row of generation: its ids, its pages, the text that has become certain. */
#ifndef PX_GENERATE_ROW_H
#define PX_GENERATE_ROW_H

#include "generate/generator.h"

typedef struct px_row {
  px_request request;      /* ids are the row's own copy; stop texts stay the caller's */
  px_ids ids;              /* prompt, then what was generated */
  int32_t prompt_len;
  int32_t cached;          /* tokens whose keys and values are in the cache */
  int32_t *pages;
  int32_t page_count;
  px_decoder decoder;
  px_buf text;             /* generated text that is not shown yet: it may begin a stop text */
  px_finish finish;
  struct px_row *next;
} px_row;

px_row *px_row_new(const px_request *request, const px_tokenizer *tok, px_error *err);
void px_row_free(px_row *row);
/* Takes a new token: ends the row or shows what is certain. `limit` is the most tokens the row may have in all. */
px_status px_row_take(px_row *row, const px_tokenizer *tok, int32_t id, int32_t limit, px_error *err);

#endif
