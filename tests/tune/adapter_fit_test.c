/* SPDX-License-Identifier: MIT
 * Whether an adapter fits a model: the modules of every family are those of its files, golden adapters fit their own model
 * and no other, a part that is missing something or has another base is refused. */
#include "helpers/test.h"

#include <ftw.h>
#include <unistd.h>

#include "helpers/golden.h"
#include "tune/adapter.h"
#include "tune/modules.h"

static char root[] = "/tmp/pfx_fit_XXXXXX";
static const char *const families[] = {"parts/gpt2", "parts/llama", "parts/mistral", "parts/qwen2", "parts/qwen3"};
enum { FAMILIES = sizeof families / sizeof *families };
static px_model *models[FAMILIES];
static px_error err;

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
  (void)st, (void)type, (void)walk;
  return remove(path);
}

static int set_up(void **state) {
  (void)state;
  char path[512];
  assert_non_null(mkdtemp(root));
  for (int i = 0; i < FAMILIES; i++)
    ASSERT_OK(px_model_open(golden_path(families[i], "", path), &(px_model_options){.dtype = PX_F32, .threads = 1}, &models[i], &err));
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  for (int i = 0; i < FAMILIES; i++) px_model_close(models[i]);
  return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static px_adapter *open_golden(int family, const char *folder) {
  char path[512];
  px_adapter *a = NULL;
  ASSERT_OK(px_adapter_open(golden_path(families[family], folder, path), &a, &err));
  return a;
}

/* --- modules --- */

static void has(const px_named_tensor *all, size_t count, const char *module, const char *role, int dims, const int64_t *shape) {
  char name[128];
  snprintf(name, sizeof name, "%s.%s", module, role);
  for (size_t i = 0; i < count; i++) {
    if (strcmp(all[i].name, name) != 0) continue;
    assert_int_equal(all[i].tensor.dims, dims);
    assert_int_equal(all[i].tensor.cols, shape[dims - 1]);
    if (dims == 2) assert_int_equal(all[i].tensor.rows, shape[0]);
    return;
  }
  fail_msg("the model has no %s", name);
}

static void modules_are_those_of_the_files(void **state) {
  (void)state;
  static const char *const cases[] = {"gpt2", "gpt2_wide", "llama_tied", "llama3_new", "mistral", "qwen2", "qwen2_window", "qwen3"};
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    px_source source;
    px_named_tensor *all;
    px_modules modules;
    size_t count, found = 0;
    char path[512];
    ASSERT_OK(px_source_open(golden_path(cases[k], "", path), &source, &err));
    ASSERT_OK(px_source_tensors(&source, &all, &count, &err));
    ASSERT_OK(px_modules_of(&source.config, &modules, &err));
    for (size_t i = 0; i < modules.count; i++) {
      const px_module *m = &modules.items[i];
      int64_t shape[2];
      int dims = px_module_weight_shape(m, shape);
      has(all, count, m->name, "weight", dims, shape);
      if (m->bias) has(all, count, m->name, "bias", 1, &m->out);
      assert_true(m->may_bias || !m->bias);
      found += m->bias ? 2 : 1;
      assert_ptr_equal(px_module_find(&modules, m->name), m);
    }
    assert_int_equal(found, count);
    px_modules_free(&modules);
    px_source_close(&source);
  }
}

/* --- golden adapters --- */

static void golden_adapters_fit_their_model(void **state) {
  (void)state;
  static const struct {
    const char *folder, *kind;
    int tokens;
    bool values;
  } cases[] = {{"prompt", "PROMPT_TUNING", 3, false},
               {"p_tuning", "P_TUNING", 2, false},
               {"cartridge", "CARTRIDGE", 3, true},
               {"prefix_layers", "PFX_PREFIX_LAYERS", 3, true},
               {"lora", "LORA", 0, false},
               {"lora_all", "LORA", 0, false},
               {"ia3", "IA3", 0, false},
               {"norm", "LN_TUNING", 0, false},
               {"bias", "PFX_DELTA", 0, false},
               {"top", "PFX_DELTA", 0, false},
               {"hybrid", "PREFIX_TUNING+PROMPT_TUNING+LORA", 5, true}};
  for (int f = 0; f < FAMILIES; f++)
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
      if (strcmp(cases[i].folder, "bias") == 0 && strcmp(families[f], "parts/mistral") == 0) continue; /* has none */
      px_adapter *a = open_golden(f, cases[i].folder);
      px_fit fit = PX_FIT_VERIFIED;
      ASSERT_OK(px_adapter_fits(a, models[f], NULL, false, &fit, NULL, &err));
      ASSERT_OK(px_adapter_attaches(a, models[f], &err));
      assert_int_equal(fit, PX_FIT_UNVERIFIED);
      assert_string_equal(a->kind, cases[i].kind);
      assert_int_equal(a->tokens, cases[i].tokens);
      assert_true((a->values != NULL) == cases[i].values);
      bool plain = a->part_count == 1 && cases[i].values && a->parts[0].config.chosen_count == 0;
      assert_int_equal(px_adapter_must_be_prefix(a, &err), plain ? PX_OK : PX_INVALID);
      px_adapter_close(a);
    }
}

static void misfit(int family, const char *folder, int model, const char *message) {
  px_adapter *a = open_golden(family, folder);
  px_fit fit;
  for (int force = 0; force < 2; force++) {
    assert_int_equal(px_adapter_fits(a, models[model], NULL, force, &fit, NULL, &err), PX_MISMATCH);
    const char *text = strstr(err.message, message);
    if (!text || strlen(text) != strlen(message)) fail_msg("got: %s", err.message);
  }
  px_adapter_close(a);
}

static void they_fit_no_other_model(void **state) {
  (void)state;
  enum { GPT2, LLAMA, MISTRAL, QWEN2, QWEN3 };
  misfit(GPT2, "lora", LLAMA, "adapter_model.safetensors: lora_A is for a module transformer.h.0.attn.c_attn, which this model (llama) does not have");
  misfit(LLAMA, "lora", MISTRAL, "adapter_model.safetensors: lora_A of model.layers.0.self_attn.q_proj has shape [3, 24], this model's must be [3, 16]");
  misfit(LLAMA, "ia3", QWEN2, "adapter_model.safetensors: ia3_l of model.layers.0.mlp.down_proj has shape [1, 40], this model's must be [1, 32]");
  misfit(QWEN3, "norm", MISTRAL, "is for a module model.layers.0.self_attn.k_norm, which this model (mistral) does not have");
  misfit(LLAMA, "norm", MISTRAL, "weight of model.layers.0.input_layernorm has shape [24], this model's must be [16]");
  misfit(LLAMA, "prompt", GPT2, "adapter_model.safetensors holds prompt rows of 24 numbers, this model's embeddings have 16");
  misfit(LLAMA, "bias", QWEN2, "pfx_delta.safetensors: model.layers.0.mlp.down_proj cannot have bias in this model (qwen2)");
  misfit(QWEN2, "bias", MISTRAL, "pfx_delta.safetensors: model.layers.0.self_attn.k_proj cannot have bias in this model (mistral)");
  misfit(LLAMA, "top", GPT2, "pfx_delta.safetensors: weight is for a module model.layers.1.input_layernorm, which this model (gpt2) does not have");
  misfit(LLAMA, "hybrid", MISTRAL, "prefix/adapter_model.safetensors holds keys and values of 8 numbers a layer, this model's have 16 (1 heads of 16)");
}

/* --- what was changed --- */

static px_adapter *rewrite(const px_adapter_part *part, const char *name) {
  char path[128];
  px_adapter *a = NULL;
  snprintf(path, sizeof path, "%s/%s", root, name);
  ASSERT_OK(px_adapter_part_write(path, part, NULL, 0, &err));
  ASSERT_OK(px_adapter_open(path, &a, &err));
  return a;
}

static void refused(px_adapter *a, const char *message) {
  px_fit fit;
  char expected[512];
  snprintf(expected, sizeof expected, "%s%s", a->parts[0].file, message);
  ASSERT_FAILS(px_adapter_fits(a, models[1], NULL, true, &fit, NULL, &err), PX_MISMATCH, expected);
  px_adapter_close(a);
}

static void what_is_missing_is_named(void **state) {
  (void)state;
  px_adapter *whole = open_golden(1, "lora");
  px_adapter_part part = whole->parts[0];
  part.tensor_count -= 2;
  refused(rewrite(&part, "lora"), ": lora_A of model.layers.1.self_attn.v_proj is missing; the adapter is incomplete, or of another model");
  px_adapter_close(whole);
  whole = open_golden(1, "norm");
  part = whole->parts[0];
  part.tensors++;
  part.tensor_count--;
  refused(rewrite(&part, "norm"), ": weight of model.layers.0.input_layernorm is missing; the adapter is incomplete, or of another model");
  px_adapter_close(whole);
  whole = open_golden(1, "top");
  part = whole->parts[0];
  part.tensor_count--;
  refused(rewrite(&part, "top"), ": weight of model.norm is missing; the adapter is incomplete, or of another model");
  part.tensor_count++;
  part.config.top_layers = 3;
  refused(rewrite(&part, "top_3"), " is for the last 3 layers, this model has 2");
  px_part_tensor more[32];
  memcpy(more, part.tensors, part.tensor_count * sizeof *more);
  more[part.tensor_count] = part.tensors[0];
  more[part.tensor_count].module = "model.layers.0.input_layernorm";
  part.tensors = more;
  part.tensor_count++;
  part.config.top_layers = 1;
  refused(rewrite(&part, "top_more"), " holds tensors beyond the last 1 layers and the final norm");
  px_adapter_close(whole);
}

static void lora_belongs_to_projections(void **state) {
  (void)state;
  static const float values[64];
  const char *const targets[] = {"norm"};
  const px_part_tensor t[] = {{.module = "model.norm", .role = "lora_A", .dims = 2, .shape = {1, 24}, .values = values},
                              {.module = "model.norm", .role = "lora_B", .dims = 2, .shape = {24, 1}, .values = values}};
  px_adapter_part part = {.kind = PX_PART_LORA, .tensors = t, .tensor_count = 2};
  part.config = (px_adapter_config){.rank = 1, .alpha = 1, .target_modules = {targets, 1}, .task_type = "CAUSAL_LM"};
  refused(rewrite(&part, "lora_norm"), ": model.norm cannot have lora_A in this model (llama)");
}

static void scales_that_can_only_be_merged(void **state) {
  (void)state;
  static const char *const targets[] = {"up_proj", "down_proj"};
  static float ones[40];
  for (int i = 0; i < 40; i++) ones[i] = 1;
  px_fit fit;
  for (int down = 0; down < 2; down++)
    for (int in_front = 0; in_front < 2; in_front++) {
      px_part_tensor t[2];
      for (int l = 0; l < 2; l++)
        t[l] = (px_part_tensor){.module = down ? l ? "model.layers.1.mlp.down_proj" : "model.layers.0.mlp.down_proj"
                                               : l ? "model.layers.1.mlp.up_proj" : "model.layers.0.mlp.up_proj",
                                .role = "ia3_l", .dims = 2, .shape = {in_front ? 1 : down ? 24 : 40, !in_front ? 1 : down ? 40 : 24}, .values = ones};
      px_adapter_part part = {.kind = PX_PART_IA3, .tensors = t, .tensor_count = 2};
      part.config = (px_adapter_config){.target_modules = {targets + down, 1}, .feedforward_modules = {targets + down, (size_t)in_front},
                                        .task_type = "CAUSAL_LM"};
      px_adapter *a = rewrite(&part, in_front ? down ? "down_in" : "up_in" : down ? "down_out" : "up_out");
      ASSERT_OK(px_adapter_fits(a, models[1], NULL, false, &fit, NULL, &err));
      if (down == in_front) {
        ASSERT_OK(px_adapter_attaches(a, models[1], &err));
      } else {
        assert_int_equal(px_adapter_attaches(a, models[1], &err), PX_MISMATCH);
        assert_non_null(strstr(err.message, "pfx merge puts this adapter into the weights"));
      }
      px_adapter_close(a);
    }
}

static void a_context_must_hold_all_virtual_tokens(void **state) {
  (void)state;
  px_adapter *hybrid = open_golden(1, "hybrid"), *a = NULL;
  px_adapter_part parts[3];
  memcpy(parts, hybrid->parts, sizeof parts);
  float *values = calloc(126 * 24, sizeof *values);
  px_part_tensor rows = *parts[1].tensors;
  rows.shape[0] = parts[1].config.virtual_tokens = 126;
  rows.values = values;
  parts[1].tensors = &rows;
  char path[128], message[300];
  px_fit fit;
  snprintf(path, sizeof path, "%s/long", root);
  ASSERT_OK(px_adapter_hybrid_write(path, parts, 3, NULL, 0, &err));
  ASSERT_OK(px_adapter_open(path, &a, &err));
  snprintf(message, sizeof message, "%s has 129 virtual tokens, which leaves no room in this model's context of 128", path);
  ASSERT_FAILS(px_adapter_fits(a, models[1], NULL, true, &fit, NULL, &err), PX_MISMATCH, message);
  px_adapter_close(a);
  px_adapter_close(hybrid);
  free(values);
}

/* --- bases --- */

static void write_part_of(int family, const char *path, const px_adapter_part *part) {
  px_arena arena = {0};
  px_meta *meta = NULL;
  size_t count = 0;
  if (family >= 0) ASSERT_OK(px_adapter_metadata(models[family], NULL, "none", "{}", &arena, &meta, &count, &err));
  ASSERT_OK(px_adapter_part_write(path, part, meta, count, &err));
  px_arena_free(&arena);
}

/* The fingerprints of the parts of a hybrid of llama's: an index of `models`, or -1 for none. */
static px_status fit_of(int prefix, int lora, bool force, px_fit *fit) {
  px_adapter *hybrid = open_golden(1, "hybrid");
  px_adapter a = *hybrid;
  px_adapter *parts[2] = {NULL, NULL};
  px_adapter_part two[2];
  const int bases[2] = {prefix, lora}, from[2] = {0, 2};
  for (int i = 0; i < 2; i++) {
    char path[128];
    snprintf(path, sizeof path, "%s/base_%d", root, i);
    write_part_of(bases[i], path, &hybrid->parts[from[i]]);
    ASSERT_OK(px_adapter_open(path, &parts[i], &err));
    two[i] = parts[i]->parts[0];
  }
  a.parts = two;
  a.part_count = 2;
  px_status status = px_adapter_fits(&a, models[1], NULL, force, fit, NULL, &err);
  for (int i = 0; i < 2; i++) px_adapter_close(parts[i]);
  px_adapter_close(hybrid);
  return status;
}

static void every_part_is_held_against_the_base(void **state) {
  (void)state;
  px_fit fit;
  char message[300];
  assert_int_equal(fit_of(1, 1, false, &fit), PX_OK);
  assert_int_equal(fit, PX_FIT_VERIFIED);
  assert_int_equal(fit_of(1, -1, false, &fit), PX_OK);
  assert_int_equal(fit, PX_FIT_UNVERIFIED);
  assert_int_equal(fit_of(2, 2, false, &fit), PX_MISMATCH);
  assert_non_null(strstr(err.message, "was trained on a model of another architecture than"));
  assert_int_equal(fit_of(2, 2, true, &fit), PX_OK);
  assert_int_equal(fit, PX_FIT_FORCED);
  snprintf(message, sizeof message,
           "%s/base_0/adapter_model.safetensors and %s/base_1/adapter_model.safetensors were trained on different base models; "
           "the parts of an adapter must have one",
           root, root);
  for (int force = 0; force < 2; force++) {
    assert_int_equal(fit_of(1, 2, force, &fit), PX_MISMATCH);
    assert_string_equal(err.message, message);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(modules_are_those_of_the_files),
      cmocka_unit_test(golden_adapters_fit_their_model),
      cmocka_unit_test(they_fit_no_other_model),
      cmocka_unit_test(what_is_missing_is_named),
      cmocka_unit_test(lora_belongs_to_projections),
      cmocka_unit_test(scales_that_can_only_be_merged),
      cmocka_unit_test(a_context_must_hold_all_virtual_tokens),
      cmocka_unit_test(every_part_is_held_against_the_base),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
