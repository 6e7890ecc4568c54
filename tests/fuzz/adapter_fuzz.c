/* SPDX-License-Identifier: MIT
 * Any bytes as an adapter folder: adapter_config.json up to the first NUL, adapter_model.safetensors behind it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "format/adapter_folder.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64], config_path[96], model_path[96];

static void remove_folder(void) {
  unlink(config_path);
  unlink(model_path);
  rmdir(folder);
}

static void make_folder(void) {
  strcpy(folder, "/dev/shm/pfx_fuzz_XXXXXX");
  if (!mkdtemp(folder)) {
    strcpy(folder, "/tmp/pfx_fuzz_XXXXXX");
    if (!mkdtemp(folder)) abort();
  }
  snprintf(config_path, sizeof config_path, "%s/adapter_config.json", folder);
  snprintf(model_path, sizeof model_path, "%s/adapter_model.safetensors", folder);
  atexit(remove_folder);
}

static void put_file(const char *path, const uint8_t *data, size_t size) {
  FILE *f = fopen(path, "wb");
  if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!folder[0]) make_folder();
  const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
  size_t config_bytes = nul ? (size_t)(nul - data) : size;
  put_file(config_path, data, config_bytes);
  put_file(model_path, nul ? nul + 1 : data, nul ? size - config_bytes - 1 : 0);
  px_adapter_folder f;
  px_error err = {0};
  px_status status = px_adapter_folder_open(folder, &f, &err);
  if (status != PX_OK) {
    if (status != PX_BAD_FILE || !err.message[0] || strchr(err.message, '\n') || f.arena.last) abort();
    return 0;
  }
  if (f.count != 1 || f.parts[0].kind >= PX_PART_BIAS || f.parts[0].tensor_count == 0) abort();
  const px_adapter_part *p = f.parts;
  const px_adapter_config *c = &p->config;
  if (p->kind == PX_PART_PREFIX && (c->token_dim % c->heads || p->tensors[0].shape[1] != 2 * c->layers * c->token_dim))
    abort();
  if (p->kind <= PX_PART_PROMPT && p->tensors[0].shape[0] != c->virtual_tokens) abort();
  /* What was read can be written, and read again. */
  px_adapter_folder again;
  if (px_adapter_part_write(folder, p, p->metadata, p->metadata_count, &err) != PX_OK) abort();
  if (px_adapter_folder_open(folder, &again, &err) != PX_OK) abort();
  if (again.parts[0].kind != p->kind || again.parts[0].tensor_count != p->tensor_count) abort();
  px_adapter_folder_close(&again);
  px_adapter_folder_close(&f);
  return 0;
}
