/* SPDX-License-Identifier: MIT
 * Products without oneDNN: the plain C product, which computes bfloat16 as widened float32. */
#include <stdlib.h>

#include "backend/gemm_product.h"

struct px_product {
  px_backend *be;
  bool warned;
};

px_product *px_product_open(px_backend *be) {
  px_product *p = calloc(1, sizeof *p);
  if (p) p->be = be;
  return p;
}

void px_product_close(px_product *p) { free(p); }

int px_product_gemm(px_product *p, const px_gemm_args *a) {
  if (!p->warned)
    px_log_message(&p->be->log, PX_LOG_INFO, "built without oneDNN: matrix products are plain C and slow");
  p->warned = true;
  return px_gemm_plain_cpu(a);
}

void px_product_forget(px_product *p, const void *from, size_t bytes) {
  (void)p;
  (void)from;
  (void)bytes;
}

bool px_product_is_no_memory(int code) {
  (void)code;
  return false;
}

const char *px_product_error_text(int code) {
  (void)code;
  return "unknown error";
}

const char *px_product_name(const px_product *p) {
  (void)p;
  return "plain C";
}

bool px_product_has_bf16(const px_product *p) {
  (void)p;
  return false;
}
