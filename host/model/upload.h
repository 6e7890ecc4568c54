/* SPDX-License-Identifier: MIT
 * Bytes that the host makes, on their way to a device: while one piece travels on the copy queue, the next is made. */
#ifndef PX_MODEL_UPLOAD_H
#define PX_MODEL_UPLOAD_H

#include "backend/backend.h"

enum { PX_UPLOAD_BYTES = 8 << 20, PX_UPLOAD_SLOTS = 2 };

typedef struct px_upload {
  px_backend *be;
  void *slots[PX_UPLOAD_SLOTS]; /* pinned, PX_UPLOAD_BYTES each */
  px_event *sent[PX_UPLOAD_SLOTS];
  int turn;
} px_upload;

/* Failures stick to the backend, as everywhere. */
void px_upload_open(px_upload *u, px_backend *be);
/* Host memory for the next piece, free to be written; NULL after a failure. */
void *px_upload_piece(px_upload *u);
/* Sends what was written to the last piece. dst belongs to the copy queue until close. */
void px_upload_send(px_upload *u, void *dst, size_t bytes);
/* Waits until all has arrived. {0} is fine. */
void px_upload_close(px_upload *u);

#endif
