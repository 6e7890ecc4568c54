/* SPDX-License-Identifier: MIT
 * Adapters of every kind on disk: what PEFT wrote (tests/golden/parts) is read and written again byte for byte, hybrids
 * hold together or are refused, and what cannot be is not written. Damaged folders: bad_files_test.c. */
#include "format/adapter_folder.h"

#include <limits.h>
#include <math.h>
#include <unistd.h>

#include "format/json.h"
#include "helpers/test.h"

static px_error err;
static char dir[64], golden[PATH_MAX];

static int make_dir(void **state) {
  (void)state;
  if (!realpath(TEST_SOURCE_DIR, golden)) return -1;
  strcat(golden, "/tests/golden/parts");
  strcpy(dir, "/tmp/pfx_parts_XXXXXX");
  return mkdtemp(dir) && chdir(dir) == 0 ? 0 : -1;
}

static int remove_dir(void **state) {
  (void)state;
  char command[96];
  snprintf(command, sizeof command, "rm -rf %s", dir);
  return chdir("/") || system(command);
}

static const char *const families[] = {"gpt2", "llama", "mistral", "qwen2", "qwen3"};
enum { FAMILIES = sizeof families / sizeof *families };

static const char *path_of(const char *family, const char *folder, char path[PATH_MAX]) {
  snprintf(path, PATH_MAX, "%.200s/%s/%s", golden, family, folder);
  return path;
}

static void open_golden(const char *family, const char *folder, px_adapter_folder *f) {
  char path[PATH_MAX];
  ASSERT_OK(px_adapter_folder_open(path_of(family, folder, path), f, &err));
}

static px_buf bytes_of(const char *folder, const char *file) {
  char path[PATH_MAX + 64];
  px_buf all = {0};
  snprintf(path, sizeof path, "%s/%s", folder, file);
  ASSERT_OK(px_file_read(path, 1 << 20, &all, &err));
  return all;
}

static void same_file(const char *one, const char *other, const char *file) {
  px_buf x = bytes_of(one, file), y = bytes_of(other, file);
  if (x.len != y.len || memcmp(x.data, y.data, x.len) != 0)
    fail_msg("%s/%s is not that of %s:\n%s", one, file, other, x.data);
  px_buf_free(&x);
  px_buf_free(&y);
}

/* --- PEFT's bytes --- */

static void peft_s_folders_are_rewritten_byte_for_byte(void **state) {
  (void)state;
  static const char *const folders[] = {"prompt", "cartridge",     "lora",          "lora_all",      "ia3",
                                        "norm",   "prefix_layers", "hybrid/prefix", "hybrid/prompt", "hybrid/lora"};
  for (int f = 0; f < FAMILIES; f++)
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
      char path[PATH_MAX];
      px_adapter_folder read;
      open_golden(families[f], folders[i], &read);
      assert_int_equal(read.count, 1);
      assert_int_equal(read.parts[0].metadata_count, 0);
      ASSERT_OK(px_adapter_part_write("again", read.parts, NULL, 0, &err));
      path_of(families[f], folders[i], path);
      same_file("again", path, "adapter_config.json");
      same_file("again", path, "adapter_model.safetensors");
      px_adapter_folder_close(&read);
    }
}

static void deltas_are_rewritten_byte_for_byte(void **state) {
  (void)state;
  for (int f = 0; f < FAMILIES; f++)
    for (int i = 0; i < 2; i++) {
      const char *folder = i ? "top" : "bias";
      if (!i && strcmp(families[f], "mistral") == 0) continue; /* has none */
      char path[PATH_MAX], to[64];
      px_adapter_folder read;
      open_golden(families[f], folder, &read);
      assert_int_equal(read.parts[0].kind, i ? PX_PART_TOP : PX_PART_BIAS);
      assert_int_equal(read.parts[0].config.top_layers, i);
      snprintf(to, sizeof to, "delta_%d_%d", f, i);
      ASSERT_OK(px_adapter_part_write(to, read.parts, NULL, 0, &err));
      path_of(families[f], folder, path);
      same_file(to, path, "pfx.json");
      same_file(to, path, "pfx_delta.safetensors");
      px_adapter_folder_close(&read);
    }
}

static void hybrids_are_rewritten_byte_for_byte(void **state) {
  (void)state;
  static const px_part_kind kinds[] = {PX_PART_PREFIX, PX_PART_PROMPT, PX_PART_LORA};
  for (int f = 0; f < FAMILIES; f++) {
    char path[PATH_MAX];
    px_adapter_folder read;
    open_golden(families[f], "hybrid", &read);
    assert_int_equal(read.count, 3);
    for (int i = 0; i < 3; i++) assert_int_equal(read.parts[i].kind, kinds[i]);
    ASSERT_OK(px_adapter_hybrid_write("hybrid", read.parts, read.count, NULL, 0, &err));
    path_of(families[f], "hybrid", path);
    same_file("hybrid", path, "pfx.json");
    same_file("hybrid", path, "lora/adapter_model.safetensors");
    px_adapter_folder_close(&read);
    ASSERT_OK(px_adapter_folder_open("hybrid", &read, &err));
    px_adapter_folder_close(&read);
  }
}

static void p_tuning_is_read_as_a_prompt(void **state) {
  (void)state;
  px_adapter_folder f, again;
  open_golden("llama", "p_tuning", &f);
  assert_int_equal(f.parts[0].kind, PX_PART_PROMPT);
  assert_string_equal(f.parts[0].config.peft_type, "P_TUNING");
  assert_int_equal(f.parts[0].config.virtual_tokens, 2);
  ASSERT_OK(px_adapter_part_write("p", f.parts, NULL, 0, &err));
  ASSERT_OK(px_adapter_folder_open("p", &again, &err));
  assert_string_equal(again.parts[0].config.peft_type, "PROMPT_TUNING");
  assert_memory_equal(again.parts[0].tensors[0].values, f.parts[0].tensors[0].values, 2 * 24 * sizeof(float));
  px_adapter_folder_close(&f);
  px_adapter_folder_close(&again);
}

/* --- what is in memory --- */

static void tensors_are_named_by_module_and_role(void **state) {
  (void)state;
  px_adapter_folder f;
  open_golden("gpt2", "lora_all", &f);
  const px_adapter_part *p = f.parts;
  assert_int_equal(p->kind, PX_PART_LORA);
  assert_int_equal(p->config.rank, 2);
  assert_true(p->config.alpha == 3 && p->config.dropout == 0.1 && p->config.rank_stabilised &&
              p->config.fan_in_fan_out);
  assert_int_equal(p->config.target_modules.count, 3);
  assert_int_equal(p->tensor_count, 16);
  const px_part_tensor *a = px_part_find(p, "transformer.h.1.mlp.c_proj", "lora_A"),
                       *b = px_part_find(p, "transformer.h.0.attn.c_attn", "lora_B");
  assert_true(a && a->dims == 2 && a->shape[0] == 2 && a->shape[1] == 64);
  assert_true(b && b->dims == 2 && b->shape[0] == 48 && b->shape[1] == 2);
  assert_null(px_part_find(p, "transformer.h.2.attn.c_attn", "lora_B"));
  assert_true(px_name_list_matches(p->config.target_modules, "transformer.h.0.mlp.c_proj"));
  assert_false(px_name_list_matches(p->config.target_modules, "transformer.h.0.mlp.xc_proj"));
  px_adapter_folder_close(&f);
  open_golden("gpt2", "ia3", &f);
  a = px_part_find(f.parts, "transformer.h.0.mlp.c_proj", "ia3_l");
  b = px_part_find(f.parts, "transformer.h.0.attn.c_attn", "ia3_l");
  assert_true(a && a->shape[0] == 1 && a->shape[1] == 64 && b && b->shape[0] == 48 && b->shape[1] == 1);
  px_adapter_folder_close(&f);
  open_golden("gpt2", "norm", &f);
  a = px_part_find(f.parts, "transformer.ln_f", "bias");
  assert_true(a && a->dims == 1 && a->shape[0] == 16);
  px_adapter_folder_close(&f);
  open_golden("qwen2", "bias", &f);
  a = px_part_find(f.parts, "model.layers.1.self_attn.k_proj", "bias");
  assert_true(a && a->dims == 1 && a->shape[0] == 8);
  px_adapter_folder_close(&f);
  open_golden("llama", "prefix_layers", &f);
  assert_int_equal(f.parts[0].config.chosen_count, 1);
  assert_int_equal(f.parts[0].config.chosen_layers[0], 1);
  px_adapter_folder_close(&f);
}

/* --- every type of tensor --- */

static const px_part_tensor biases[] = {
    {.module = "a.b", .role = "bias", .dims = 1, .shape = {3}, .values = (const float[]){1, -2.5f, 0.1f}},
    {.module = "a", .role = "bias", .dims = 1, .shape = {1}, .values = (const float[]){65504}}};

static void deltas_keep_their_type(void **state) {
  (void)state;
  static const px_dtype types[] = {PX_F32, PX_F16, PX_BF16};
  static const float rounded[] = {0.1f, 0.0999755859375f, 0.10009765625f};
  px_adapter_part part = {
      .kind = PX_PART_BIAS, .tensors = biases, .tensor_count = 2, .config = {.task_type = "CAUSAL_LM"}};
  for (int i = 0; i < 3; i++) {
    px_adapter_folder f;
    part.dtype = types[i];
    const px_meta meta = {"pfx.base", "x"};
    ASSERT_OK(px_adapter_part_write("typed", &part, &meta, 1, &err));
    ASSERT_OK(px_adapter_folder_open("typed", &f, &err));
    assert_int_equal(f.parts[0].dtype, types[i]);
    assert_string_equal(f.parts[0].metadata[0].key, "pfx.base");
    assert_string_equal(f.parts[0].config.peft_type, "PFX_DELTA");
    assert_true(px_part_find(f.parts, "a.b", "bias")->values[2] == rounded[i]);
    assert_true(px_part_find(f.parts, "a.b", "bias")->values[1] == -2.5f);
    px_adapter_folder_close(&f);
  }
  px_part_tensor large = {.module = "a", .role = "bias", .dims = 1, .shape = {2}, .values = (const float[]){0, 7e4f}};
  part.tensors = &large;
  part.tensor_count = 1;
  part.dtype = PX_F16;
  ASSERT_FAILS(px_adapter_part_write("large", &part, NULL, 0, &err), PX_NOT_FINITE,
               "large: the bias of a is not finite at row 1, column 0; it is not written");
  large.values = (const float[]){0, NAN};
  part.dtype = PX_F32;
  ASSERT_FAILS(px_adapter_part_write("large", &part, NULL, 0, &err), PX_NOT_FINITE,
               "large: the bias of a is not finite at row 1, column 0; it is not written");
  assert_false(px_file_exists("large"));
}

static void a_full_delta_and_the_last_layers_say_so(void **state) {
  (void)state;
  px_part_tensor weight = {
      .module = "n", .role = "weight", .dims = 2, .shape = {1, 2}, .values = (const float[]){1, 2}};
  px_adapter_part part = {
      .kind = PX_PART_FULL, .tensors = &weight, .tensor_count = 1, .config = {.task_type = "CAUSAL_LM"}};
  px_adapter_folder f;
  ASSERT_OK(px_adapter_part_write("full", &part, NULL, 0, &err));
  ASSERT_OK(px_adapter_folder_open("full", &f, &err));
  assert_int_equal(f.parts[0].kind, PX_PART_FULL);
  px_adapter_folder_close(&f);
  part.kind = PX_PART_TOP;
  ASSERT_FAILS(px_adapter_part_write("last", &part, NULL, 0, &err), PX_INVALID, "last: the last 0 layers cannot be");
  part.config.top_layers = 12;
  ASSERT_OK(px_adapter_part_write("last", &part, NULL, 0, &err));
  ASSERT_OK(px_adapter_folder_open("last", &f, &err));
  assert_int_equal(f.parts[0].config.top_layers, 12);
  px_adapter_folder_close(&f);
}

/* --- what cannot be written --- */

static void lora_must_be_whole(void **state) {
  (void)state;
  static const float values[64];
  px_part_tensor t[] = {{.module = "x.q", .role = "lora_A", .dims = 2, .shape = {2, 8}, .values = values},
                        {.module = "x.q", .role = "lora_B", .dims = 2, .shape = {4, 2}, .values = values}};
  const char *const targets[] = {"q", "v"};
  px_adapter_part part = {.kind = PX_PART_LORA, .tensors = t, .tensor_count = 2};
  part.config = (px_adapter_config){.rank = 2, .alpha = 0.5, .target_modules = {targets, 1}, .task_type = "CAUSAL_LM"};
  ASSERT_OK(px_adapter_part_write("lora", &part, NULL, 0, &err));
  px_buf json = bytes_of("lora", "adapter_config.json");
  assert_non_null(strstr(json.data, "\"lora_alpha\": 0.5,\n"));
  px_buf_free(&json);
  part.tensor_count = 1;
  ASSERT_FAILS(
      px_adapter_part_write("no", &part, NULL, 0, &err), PX_INVALID,
      "no: tensor \"base_model.model.x.q.lora_A.weight\" is there, but no lora_B of that module; the adapter is "
      "incomplete, get it again");
  part.tensor_count = 2;
  part.config.target_modules.count = 2;
  ASSERT_FAILS(px_adapter_part_write("no", &part, NULL, 0, &err), PX_INVALID,
               "no: holds no tensor for \"v\", which target_modules names");
  part.config.target_modules.count = 1;
  t[1].shape[1] = 3;
  ASSERT_FAILS(px_adapter_part_write("no", &part, NULL, 0, &err), PX_INVALID,
               "no: tensor \"base_model.model.x.q.lora_B.weight\" has shape [4, 3]; with r 2 it must be [out, r]");
  part.config.rank = 0;
  ASSERT_FAILS(px_adapter_part_write("no", &part, NULL, 0, &err), PX_INVALID,
               "no: LoRA of rank 0, alpha 0.5 and dropout 0 cannot be");
  assert_false(px_file_exists("no"));
}

static void a_prefix_on_chosen_layers_is_zero_elsewhere(void **state) {
  (void)state;
  float values[2 * 12] = {0};
  const int32_t chosen[] = {2, 0};
  px_part_tensor t = {.module = "", .role = "prompt_embeddings", .dims = 2, .shape = {2, 12}, .values = values};
  px_adapter_part part = {.kind = PX_PART_PREFIX, .tensors = &t, .tensor_count = 1};
  part.config = (px_adapter_config){
      .virtual_tokens = 2, .layers = 3, .heads = 1, .token_dim = 2, .chosen_layers = chosen, .chosen_count = 1};
  part.config.task_type = "CAUSAL_LM";
  values[23] = 1;
  ASSERT_OK(px_adapter_part_write("layers", &part, NULL, 0, &err));
  values[19] = 1;
  ASSERT_FAILS(px_adapter_part_write("no", &part, NULL, 0, &err), PX_INVALID,
               "no: tensor \"prompt_embeddings\" is not zero in layer 1, which \"layers\" leaves out");
  part.config.chosen_count = 2;
  ASSERT_FAILS(px_adapter_part_write("no", &part, NULL, 0, &err), PX_INVALID,
               "no: the layers of a prefix must be ascending and below 3");
}

/* --- hybrids --- */

static px_adapter_part bias_part(void) {
  return (px_adapter_part){
      .kind = PX_PART_BIAS, .tensors = biases, .tensor_count = 2, .config = {.task_type = "CAUSAL_LM"}};
}

static void replace_in(const char *file, const char *from, const char *to) {
  px_buf text = {0};
  ASSERT_OK(px_file_read(file, 1 << 20, &text, &err));
  char *at = strstr(text.data, from);
  assert_non_null(at);
  px_buf out = {0};
  px_buf_append(&out, text.data, (size_t)(at - text.data));
  px_buf_puts(&out, to);
  px_buf_puts(&out, at + strlen(from));
  ASSERT_OK(px_file_write(file, out.data, out.len, &err));
  px_buf_free(&text);
  px_buf_free(&out);
}

/* As a crash leaves it that comes after some files of a new version were written over the old ones. */
static void a_hybrid_written_half_is_refused(void **state) {
  (void)state;
  px_adapter_folder prompt, f;
  open_golden("llama", "prompt", &prompt);
  px_adapter_part parts[] = {prompt.parts[0], bias_part()};
  ASSERT_OK(px_adapter_hybrid_write("half", parts, 2, NULL, 0, &err));
  ASSERT_OK(px_adapter_folder_open("half", &f, &err));
  assert_int_equal(f.count, 2);
  assert_int_equal(f.parts[1].kind, PX_PART_BIAS);
  px_adapter_folder_close(&f);
  px_part_tensor other = *prompt.parts[0].tensors;
  float values[3 * 24] = {0};
  other.values = values;
  parts[0].tensors = &other;
  ASSERT_OK(px_adapter_part_write("half/prompt", parts, NULL, 0, &err));
  ASSERT_FAILS(
      px_adapter_folder_open("half", &f, &err), PX_BAD_FILE,
      "half/prompt/adapter_model.safetensors: is not the file that pfx.json names (SHA-256 differs): part prompt was "
      "exchanged or damaged, or writing it was interrupted; get the whole folder again, or write it again");
  ASSERT_OK(px_adapter_hybrid_write("half", parts, 2, NULL, 0, &err));
  ASSERT_OK(px_adapter_folder_open("half", &f, &err));
  px_adapter_folder_close(&f);
  assert_int_equal(unlink("half/bias/pfx.json"), 0);
  ASSERT_FAILS(
      px_adapter_folder_open("half", &f, &err), PX_BAD_FILE,
      "half/bias/pfx.json: is missing; it belongs to part bias of a hybrid adapter: get the whole folder again");
  assert_int_equal(unlink("half/pfx.json"), 0);
  ASSERT_OK(px_adapter_folder_open("half", &f, &err)); /* the prompt alone is still an adapter of PEFT's */
  assert_int_equal(f.parts[0].kind, PX_PART_PROMPT);
  px_adapter_folder_close(&f);
  px_adapter_folder_close(&prompt);
}

static void a_manifest_must_make_sense(void **state) {
  (void)state;
  static const struct {
    const char *from, *to, *message;
  } cases[] = {
      {"\"format\": 1", "\"format\": 2", "m/pfx.json: field \"format\" is 2; this pfx reads 1"},
      {"\"folder\": \"bias\"", "\"folder\": \"../bias\"",
       "m/pfx.json: part bias: \"folder\" must be the name of a folder beside pfx.json"},
      {"\"part\": \"bias\"", "\"part\": \"biases\"",
       "m/pfx.json: \"parts\": item 0: \"part\" must be prefix, prompt, lora, ia3, norm, bias, top or full"},
      {"\"part\": \"bias\"", "\"part\": \"top\"", "m/pfx.json: part top: m/bias holds a part of the kind bias"},
      {"\"part\": \"bias\"", "\"weight\": 2, \"part\": \"bias\"",
       "m/pfx.json: field \"weight\" is set, and pfx does not know what it means; remove it, or set it to null, if the "
       "adapter does not depend on it"},
      {"\"pfx.json\":", "\"pfx.jso\":", "m/pfx.json: part bias: \"files\" must hold pfx.json"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    px_adapter_folder f;
    px_adapter_part part = bias_part();
    ASSERT_OK(px_adapter_hybrid_write("m", &part, 1, NULL, 0, &err));
    replace_in("m/pfx.json", cases[i].from, cases[i].to);
    ASSERT_FAILS(px_adapter_folder_open("m", &f, &err), PX_BAD_FILE, cases[i].message);
    assert_null(f.arena.last);
  }
}

static void a_part_is_there_once(void **state) {
  (void)state;
  px_adapter_folder f;
  px_adapter_part parts[] = {bias_part(), bias_part()};
  ASSERT_FAILS(px_adapter_hybrid_write("twice", parts, 2, NULL, 0, &err), PX_INVALID,
               "twice: part bias is given twice");
  assert_false(px_file_exists("twice"));
  ASSERT_FAILS(px_adapter_hybrid_write("none", parts, 0, NULL, 0, &err), PX_INVALID, "none: a hybrid has 1 to 8 parts");
  ASSERT_OK(px_adapter_hybrid_write("twice", parts, 1, NULL, 0, &err));
  px_buf text = bytes_of("twice", "pfx.json"), out = {0};
  json_t *object = NULL;
  ASSERT_OK(px_json_parse("x", text.data, text.len, &object, &err));
  json_t *list = json_object_get(object, "parts");
  json_array_append(list, json_array_get(list, 0));
  ASSERT_OK(px_json_dump(object, &out, &err));
  ASSERT_OK(px_file_write("twice/pfx.json", out.data, out.len, &err));
  ASSERT_FAILS(px_adapter_folder_open("twice", &f, &err), PX_BAD_FILE, "twice/pfx.json: part bias is there twice");
  json_decref(object);
  px_buf_free(&text);
  px_buf_free(&out);
}

static void two_adapters_do_not_share_a_folder(void **state) {
  (void)state;
  px_adapter_folder prompt, f;
  px_adapter_part bias = bias_part();
  open_golden("llama", "prompt", &prompt);
  ASSERT_OK(px_adapter_part_write("shared", prompt.parts, NULL, 0, &err));
  ASSERT_FAILS(px_adapter_part_write("shared", &bias, NULL, 0, &err), PX_INVALID,
               "shared: holds adapter_config.json of another adapter; write to another folder");
  ASSERT_FAILS(px_adapter_hybrid_write("shared", &bias, 1, NULL, 0, &err), PX_INVALID,
               "shared: holds an adapter of one part; write the hybrid to another folder");
  ASSERT_OK(px_file_write("shared/pfx.json", "{}", 2, &err));
  ASSERT_FAILS(
      px_adapter_folder_open("shared", &f, &err), PX_BAD_FILE,
      "shared: holds pfx.json and adapter_config.json, two adapters; move one of them, with its tensors, to another "
      "folder");
  ASSERT_FAILS(px_adapter_part_write("shared", prompt.parts, NULL, 0, &err), PX_INVALID,
               "shared: holds pfx.json of another adapter; write to another folder");
  px_adapter_folder_close(&prompt);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(peft_s_folders_are_rewritten_byte_for_byte),
      cmocka_unit_test(deltas_are_rewritten_byte_for_byte),
      cmocka_unit_test(hybrids_are_rewritten_byte_for_byte),
      cmocka_unit_test(p_tuning_is_read_as_a_prompt),
      cmocka_unit_test(tensors_are_named_by_module_and_role),
      cmocka_unit_test(deltas_keep_their_type),
      cmocka_unit_test(a_full_delta_and_the_last_layers_say_so),
      cmocka_unit_test(lora_must_be_whole),
      cmocka_unit_test(a_prefix_on_chosen_layers_is_zero_elsewhere),
      cmocka_unit_test(a_hybrid_written_half_is_refused),
      cmocka_unit_test(a_manifest_must_make_sense),
      cmocka_unit_test(a_part_is_there_once),
      cmocka_unit_test(two_adapters_do_not_share_a_folder),
  };
  return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
