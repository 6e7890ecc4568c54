/* SPDX-License-Identifier: MIT
 * Inside the api room: an inspection as it is made, and the page about it. */
#ifndef PX_API_LOOK_H
#define PX_API_LOOK_H

#include "api/handles.h"

/* What pfx_inspection_free releases: the public part is its first field. */
typedef struct px_inspection {
  pfx_inspection seen;
  px_arena arena;
} px_inspection;

/* A self-contained HTML page, appended. data NULL: the built-in sentences. */
void px_look_page(const pfx_inspection *i, const px_model *model, const px_adapter *adapter, const char *data, px_buf *out);

/* look_page_changes.c: a section for each part without virtual tokens. */
void px_look_page_changes(const pfx_inspection *i, px_buf *out);

/* Text into HTML: markup written out, control characters shown. */
void px_look_text(px_buf *out, const char *text);
/* The end of a scale, no less than the value: a number whose quarters are short, too. */
double px_look_round_up(double value);

#endif
