/* SPDX-License-Identifier: MIT
 * Any bytes as an adapter of pfx's own: pfx.json up to the first NUL, pfx_delta.safetensors behind it, beside a good part
 * that a manifest may name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "format/adapter_folder.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64], paths[5][96];

static void remove_folder(void) {
  for (int i = 0; i < 4; i++) unlink(paths[i]);
  rmdir(paths[4]);
  rmdir(folder);
}

static void make_folder(void) {
  static const char *const names[] = {"pfx.json", "pfx_delta.safetensors", "prompt/adapter_config.json",
                                      "prompt/adapter_model.safetensors", "prompt"};
  strcpy(folder, "/dev/shm/pfx_fuzz_XXXXXX");
  if (!mkdtemp(folder)) {
    strcpy(folder, "/tmp/pfx_fuzz_XXXXXX");
    if (!mkdtemp(folder)) abort();
  }
  for (int i = 0; i < 5; i++) snprintf(paths[i], sizeof paths[i], "%s/%s", folder, names[i]);
  atexit(remove_folder);
  static const float values[2] = {1, 2};
  px_part_tensor t = {.module = "", .role = "prompt_embeddings", .dims = 2, .shape = {1, 2}, .values = values};
  px_adapter_part part = {.kind = PX_PART_PROMPT, .tensors = &t, .tensor_count = 1};
  part.config = (px_adapter_config){.virtual_tokens = 1, .token_dim = 2, .task_type = "CAUSAL_LM"};
  if (px_adapter_part_write(paths[4], &part, NULL, 0, NULL) != PX_OK) abort();
}

static void put_file(const char *path, const uint8_t *data, size_t size) {
  FILE *f = fopen(path, "wb");
  if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!folder[0]) make_folder();
  const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
  size_t json_bytes = nul ? (size_t)(nul - data) : size;
  put_file(paths[0], data, json_bytes);
  put_file(paths[1], nul ? nul + 1 : data, nul ? size - json_bytes - 1 : 0);
  px_adapter_folder f;
  px_error err = {0};
  px_status status = px_adapter_folder_open(folder, &f, &err);
  if (status != PX_OK) {
    if (status != PX_BAD_FILE || !err.message[0] || strchr(err.message, '\n') || f.arena.last) abort();
    return 0;
  }
  for (size_t i = 0; i < f.count; i++) {
    const px_adapter_part *p = &f.parts[i];
    if ((unsigned)p->kind >= PX_PART_KINDS || !p->file || p->tensor_count == 0) abort();
    for (size_t k = 0; k < p->tensor_count; k++)
      if (!p->tensors[k].module || !p->tensors[k].role || p->tensors[k].dims < 1 || p->tensors[k].dims > 2) abort();
  }
  px_adapter_folder_close(&f);
  return 0;
}
