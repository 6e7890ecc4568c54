/* SPDX-License-Identifier: MIT
 * Products without oneDNN: the plain C product. */
#include <stdlib.h>

#include "backend/gemm_product.h"

struct px_product {
  int threads;
};

px_product *px_product_open(int threads) {
  px_product *p = calloc(1, sizeof *p);
  if (p) p->threads = threads;
  return p;
}
void px_product_close(px_product *p) { free(p); }
int px_product_gemm(px_product *p, const px_gemm_args *a) {
  (void)p;
  return px_gemm_plain_cpu(a);
}
const char *px_product_name(const px_product *p) {
  (void)p;
  return "plain C";
}
bool px_product_has_bf16(const px_product *p) {
  (void)p;
  return false;
}
