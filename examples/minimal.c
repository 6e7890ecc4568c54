/* SPDX-License-Identifier: MIT
 * Opens a model and an adapter and generates:  minimal MODEL ADAPTER 'PROMPT' */
#include <pfx/pfx.h>
#include <stdio.h>

static void print(void *user, uint64_t row, const char *bytes, size_t count, pfx_finish finish) {
  (void)user;
  (void)row;
  fwrite(bytes, 1, count, stdout);
  if (finish != PFX_FINISH_NONE) putchar('\n');
}

int main(int argc, char **argv) {
  pfx_error err = {0};
  pfx_model *model = NULL;
  pfx_tokenizer *tokenizer = NULL;
  pfx_adapter *adapter = NULL;
  pfx_generator *generator = NULL;
  pfx_fit fit;
  pfx_request request = pfx_request_init();
  if (argc != 4) {
    fprintf(stderr, "usage: minimal MODEL ADAPTER PROMPT\n");
    return 2;
  }
  request.prompt = argv[3];
  request.max_tokens = 32;
  request.text = print;
  pfx_status status = pfx_model_open(argv[1], NULL, &model, &err);
  if (status == PFX_OK) status = pfx_tokenizer_open(argv[1], &tokenizer, &err);
  if (status == PFX_OK) status = pfx_adapter_open(argv[2], &adapter, &err);
  if (status == PFX_OK) status = pfx_adapter_check(adapter, model, tokenizer, false, &fit, NULL, &err);
  if (status == PFX_OK) status = pfx_generator_create(model, tokenizer, NULL, &generator, &err);
  if (status == PFX_OK) status = pfx_generator_add_adapter(generator, adapter, &request.adapter, &err);
  if (status == PFX_OK) status = pfx_generator_add(generator, &request, &err);
  if (status == PFX_OK) status = pfx_generator_run_wait(generator, NULL, NULL, &err);
  if (status != PFX_OK) fprintf(stderr, "minimal: %s\n", err.message);
  pfx_generator_destroy(generator);
  pfx_adapter_close(adapter);
  pfx_tokenizer_close(tokenizer);
  pfx_model_close(model);
  return status == PFX_OK ? 0 : 1;
}
