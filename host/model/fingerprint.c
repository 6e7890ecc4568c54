/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/hash.h"
#include "model/model.h"

/* Canonical JSON: fixed keys in sorted order, numbers as %.6g of float32, so that config.json's decimal and GGUF's binary
 * spelling agree. Mistral's tensors and mathematics are llama's (its window is recorded with the adapter, and a GGUF file of
 * it calls itself llama), so both have one name here. llama3 scaling stands by name: a GGUF file holds only its divisors. */
static void arch_digest(const px_config *c, char hex[65]) {
  static const char *const rope_names[] = {"none", "default", "linear", "llama3"};
  const char *family = strcmp(c->family, "mistral") == 0 ? "llama" : c->family;
  px_buf text = {0};
  px_buf_printf(&text, "{\"D\":%d,\"Dh\":%d,\"F\":%d,\"Hkv\":%d,\"Hq\":%d,\"L\":%d,\"V\":%d,\"eps\":%.6g,\"family\":\"%s\",\"rotary\":", c->dim,
                c->head_dim, c->ffn_dim, c->kv_heads, c->heads, c->layers, c->vocab, (double)(float)c->norm_eps, family);
  if (c->rope.type == PX_ROPE_LINEAR)
    px_buf_printf(&text, "{\"factor\":%.6g,\"theta\":%.6g,\"type\":\"linear\"}}", (double)(float)c->rope.factor, (double)(float)c->rope.theta);
  else
    px_buf_printf(&text, "{\"theta\":%.6g,\"type\":\"%s\"}}", (double)(float)c->rope.theta, rope_names[c->rope.type]);
  px_sha256_of(text.data, text.len, hex);
  px_buf_free(&text);
}

px_status px_fingerprint_make(px_source *source, px_fingerprint *out, px_error *err) {
  enum { PER = PX_FINGERPRINT_PER_TENSOR };
  px_named_tensor *tensors = NULL;
  size_t count = 0;
  PX_TRY(px_source_tensors(source, &tensors, &count, err));
  float *values = malloc(count * PER * sizeof *values);
  if (!values) return px_fail(err, PX_NO_MEMORY, "no memory");
  arch_digest(&source->config, out->arch);
  px_sha256 hash;
  px_sha256_start(&hash);
  px_sha256_add(&hash, out->arch, 64);
  for (size_t i = 0; i < count; i++) {
    const px_canonical *t = &tensors[i].tensor;
    int64_t last = t->rows * t->cols - 1;
    for (int k = 0; k < PER; k++) values[i * PER + (size_t)k] = px_canonical_value(t, (int64_t)((__int128)last * k / (PER - 1)));
    px_map_forget(t->view->data, t->view->bytes); /* each sample has brought in its neighbourhood */
    char shape[64];
    int bytes = t->dims == 1 ? snprintf(shape, sizeof shape, "[%lld]", (long long)t->cols)
                             : snprintf(shape, sizeof shape, "[%lld,%lld]", (long long)t->rows, (long long)t->cols);
    px_sha256_add(&hash, tensors[i].name, strlen(tensors[i].name) + 1);
    px_sha256_add(&hash, shape, (size_t)bytes + 1);
    px_sha256_add(&hash, values + i * PER, PER * sizeof *values);
  }
  px_sha256_end(&hash, out->base);
  for (size_t j = 0; j < PX_FINGERPRINT_SAMPLES; j++) out->samples[j] = values[j * (count * PER) / PX_FINGERPRINT_SAMPLES];
  free(values);
  return PX_OK;
}

double px_fingerprint_distance(const float *a, const float *b, int count) {
  double difference = 0, norm = 0;
  for (int i = 0; i < count; i++) {
    difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    norm += (double)b[i] * b[i];
  }
  return norm > 0 ? sqrt(difference / norm) : (difference > 0 ? INFINITY : 0);
}
