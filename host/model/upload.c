/* SPDX-License-Identifier: MIT */
#include "model/upload.h"

void px_upload_open(px_upload *u, px_backend *be) {
  *u = (px_upload){.be = be};
  for (int i = 0; i < PX_UPLOAD_SLOTS; i++) {
    u->slots[i] = px_backend_host_alloc(be, PX_UPLOAD_BYTES);
    u->sent[i] = px_backend_event(be);
  }
}

void *px_upload_piece(px_upload *u) {
  u->turn = (u->turn + 1) % PX_UPLOAD_SLOTS;
  px_backend_reach(u->be, u->sent[u->turn]);
  return u->be->failure.status == PX_OK ? u->slots[u->turn] : NULL;
}

void px_upload_send(px_upload *u, void *dst, size_t bytes) {
  px_backend_send(u->be, PX_QUEUE_COPY, dst, u->slots[u->turn], bytes);
  px_backend_mark(u->be, PX_QUEUE_COPY, u->sent[u->turn]);
}

void px_upload_close(px_upload *u) {
  if (!u->be) return;
  px_backend_wait(u->be);
  for (int i = 0; i < PX_UPLOAD_SLOTS; i++) {
    px_backend_event_free(u->be, u->sent[i]);
    px_backend_host_free(u->be, u->slots[i]);
  }
  *u = (px_upload){0};
}
