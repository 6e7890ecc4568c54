/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>

#include <jansson.h>
#include <openssl/crypto.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include "api/handles.h"
#include "core/version.h"

/* The public error and status are the internal ones under another name. */
#define SAME(a, b) _Static_assert((int)(a) == (int)(b), "pinned")
SAME(PFX_OK, PX_OK);
SAME(PFX_FAILED, PX_FAILED);
SAME(PFX_INVALID, PX_INVALID);
SAME(PFX_BAD_FILE, PX_BAD_FILE);
SAME(PFX_MISMATCH, PX_MISMATCH);
SAME(PFX_NO_MEMORY, PX_NO_MEMORY);
SAME(PFX_NO_DEVICE, PX_NO_DEVICE);
SAME(PFX_IO, PX_IO);
SAME(PFX_CANCELLED, PX_CANCELLED);
SAME(PFX_NOT_FINITE, PX_NOT_FINITE);
SAME(PFX_FIT_VERIFIED, PX_FIT_VERIFIED);
SAME(PFX_FIT_FORCED, PX_FIT_FORCED);
SAME(PFX_FINISH_CONTEXT, PX_FINISH_CONTEXT);
SAME(PFX_LONG_DROP, PX_LONG_DROP);
SAME(PFX_SCHEDULE_CONSTANT, PX_SCHEDULE_CONSTANT);
_Static_assert(sizeof(pfx_error) == sizeof(px_error) && offsetof(pfx_error, message) == offsetof(px_error, message), "same layout");

const char *pfx_version(void) { return PX_VERSION; }

const char *pfx_libraries(void) {
  static _Thread_local char text[300];
  char pcre[64] = "?";
  px_backend *be = NULL;
  pcre2_config(PCRE2_CONFIG_VERSION, pcre);
  const char *products = px_backend_open_cpu(&(px_backend_options){0}, &be, NULL) == PX_OK ? be->products : "?";
  snprintf(text, sizeof text, "%s, PCRE2 %s, utf8proc %s, jansson %s, %s", products, pcre, utf8proc_version(), JANSSON_VERSION,
           OpenSSL_version(OPENSSL_VERSION));
  px_backend_close(be);
  return text;
}

const char *pfx_status_name(pfx_status status) {
  static const char *const names[] = {"PFX_OK",        "PFX_FAILED",    "PFX_INVALID", "PFX_BAD_FILE",  "PFX_MISMATCH",
                                      "PFX_NO_MEMORY", "PFX_NO_DEVICE", "PFX_IO",      "PFX_CANCELLED", "PFX_NOT_FINITE"};
  return (size_t)status < sizeof names / sizeof *names ? names[status] : "unknown status";
}

void pfx_free(void *pointer) { free(pointer); }

pfx_status px_api_options(void *into, size_t known_bytes, const void *from, const char *what, pfx_error *err) {
  size_t theirs;
  if (!from) return PFX_OK;
  memcpy(&theirs, from, sizeof theirs);
  if (theirs < sizeof theirs || theirs > 65536)
    return px_api_status(px_fail(px_api_error(err), PX_INVALID, "%s: struct_bytes is not set: begin with %s_init()", what, what));
  memcpy(into, from, theirs < known_bytes ? theirs : known_bytes);
  return PFX_OK;
}

px_status px_api_row_options(const pfx_data_options *from, const px_tokenizer *tok, const px_config *config, px_row_options *out, px_error *err) {
  *out = (px_row_options){.max_row_tokens = from->max_row_tokens, .on_long = (px_on_long)from->on_long, .loss_all = from->loss_all,
                          .no_bos = from->no_bos, .no_end = from->no_end, .vocab_size = config ? config->vocab : 0};
  if ((unsigned)from->on_long > PFX_LONG_DROP) return px_fail(err, PX_INVALID, "on_long %d is not known", (int)from->on_long);
  if (from->chat_template) return px_template_parse(from->chat_template, &out->chat, err);
  /* A template that pfx does not know is only an error for rows that need it. */
  if (tok && px_template_detect(tok, &out->chat, NULL) != PX_OK) out->chat = PX_TEMPLATE_NONE;
  return PX_OK;
}
