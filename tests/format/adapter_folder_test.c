/* SPDX-License-Identifier: MIT
 * Adapter folders: PEFT's bytes are written, PEFT's folders are read. Damaged folders: bad_files_test.c. */
#include "format/adapter_folder.h"

#include <glob.h>
#include <limits.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helpers/test.h"

static px_error err;
static char dir[64], golden[PATH_MAX];

static int make_dir(void **state) {
  (void)state;
  if (!realpath(TEST_SOURCE_DIR, golden)) return -1;
  strcat(golden, "/tests/golden");
  strcpy(dir, "/tmp/pfx_adapter_XXXXXX");
  return mkdtemp(dir) && chdir(dir) == 0 ? 0 : -1;
}

static int remove_dir(void **state) {
  (void)state;
  char command[96];
  snprintf(command, sizeof command, "rm -rf %s", dir);
  return chdir("/") || system(command);
}

static void file_is(const char *path, const char *wanted, size_t bytes) {
  px_buf got = {0};
  ASSERT_OK(px_file_read(path, 1 << 20, &got, &err));
  assert_int_equal(got.len, bytes);
  assert_memory_equal(got.data, wanted, bytes);
  px_buf_free(&got);
}

static px_adapter_config small(void) {
  return (px_adapter_config){.peft_type = "PREFIX_TUNING",
                             .base_model =
                                 "../m\xc3\xb6"
                                 "del \xf0\x9f\x98\x80 \"x\"\\/\x7f\t",
                             .task_type = "CAUSAL_LM",
                             .virtual_tokens = 3,
                             .layers = 2,
                             .heads = 2,
                             .token_dim = 16,
                             .hidden_size = 16};
}

/* As peft 0.21.2 wrote it for a llama of 2 layers, 4 heads, 2 key/value heads, width 32. */
static const char peft_config[] =
    "{\n"
    "  \"auto_mapping\": null,\n"
    "  \"base_model_name_or_path\": \"../m\\u00f6del \\ud83d\\ude00 \\\"x\\\"\\\\/\\u007f\\t\",\n"
    "  \"encoder_hidden_size\": 16,\n"
    "  \"inference_mode\": true,\n"
    "  \"init_weights\": null,\n"
    "  \"modules_to_save\": null,\n"
    "  \"num_attention_heads\": 2,\n"
    "  \"num_layers\": 2,\n"
    "  \"num_transformer_submodules\": 1,\n"
    "  \"num_virtual_tokens\": 3,\n"
    "  \"peft_type\": \"PREFIX_TUNING\",\n"
    "  \"peft_version\": \"0.21.2\",\n"
    "  \"prefix_projection\": false,\n"
    "  \"revision\": null,\n"
    "  \"task_type\": \"CAUSAL_LM\",\n"
    "  \"token_dim\": 16\n"
    "}";

static const char peft_header[] =
    "\x70\0\0\0\0\0\0\0"
    "{\"__metadata__\":{\"format\":\"pt\"},\"prompt_embeddings\":{\"dtype\":\"F32\",\"shape\":[3,64],"
    "\"data_offsets\":[0,768]}}      ";

static px_status write_prefix(const char *path, const px_adapter_config *c, const float *values, const px_meta *meta,
                              size_t count) {
  px_part_tensor t = {.module = "", .role = "prompt_embeddings", .dims = 2, .values = values};
  t.shape[0] = c->virtual_tokens;
  t.shape[1] = 2 * c->layers * c->token_dim;
  px_adapter_part part = {.kind = PX_PART_PREFIX, .config = *c, .tensors = &t, .tensor_count = 1};
  return px_adapter_part_write(path, &part, meta, count, &err);
}

static void writes_what_peft_writes(void **state) {
  (void)state;
  char file[sizeof peft_header - 1 + 768];
  float values[192];
  for (int i = 0; i < 192; i++) values[i] = (float)i / 7;
  memcpy(file, peft_header, sizeof peft_header - 1);
  memcpy(file + sizeof peft_header - 1, values, 768);
  px_adapter_config c = small();
  ASSERT_OK(write_prefix("new/deep/a", &c, values, NULL, 0));
  file_is("new/deep/a/adapter_config.json", peft_config, sizeof peft_config - 1);
  file_is("new/deep/a/adapter_model.safetensors", file, sizeof file);
}

static void reads_back_what_it_wrote(void **state) {
  (void)state;
  float values[192];
  for (int i = 0; i < 192; i++) values[i] = (float)-i;
  px_adapter_config c = small();
  c.revision = "v1";
  c.init_weights = "zero";
  c.hidden_size = 0;
  const px_meta meta[] = {{"pfx.base", "2\n"}, {"pfx.arch", "1"}};
  ASSERT_OK(write_prefix("b/default", &c, values, meta, 2));
  px_adapter_folder f;
  ASSERT_OK(px_adapter_folder_open("b", &f, &err)); /* finds the only sub-folder */
  assert_int_equal(f.count, 1);
  const px_adapter_part *p = f.parts;
  assert_int_equal(p->kind, PX_PART_PREFIX);
  assert_string_equal(p->config.peft_type, "PREFIX_TUNING");
  assert_string_equal(p->config.base_model, c.base_model);
  assert_string_equal(p->config.revision, "v1");
  assert_string_equal(p->config.task_type, "CAUSAL_LM");
  assert_string_equal(p->config.init_weights, "zero");
  assert_int_equal(p->config.virtual_tokens, 3);
  assert_int_equal(p->config.layers, 2);
  assert_int_equal(p->config.heads, 2);
  assert_int_equal(p->config.token_dim, 16);
  assert_int_equal(p->config.hidden_size, 0);
  assert_int_equal(p->config.frozen_tokens, 0);
  assert_int_equal(p->tensors[0].shape[0], 3);
  assert_int_equal(p->tensors[0].shape[1], 64);
  assert_memory_equal(p->tensors[0].values, values, sizeof values);
  assert_int_equal(p->metadata_count, 2);
  assert_string_equal(p->metadata[0].key, "pfx.arch");
  assert_string_equal(px_meta_get(p->metadata, p->metadata_count, "pfx.base"), "2\n");
  px_adapter_folder_close(&f);
  ASSERT_OK(write_prefix("b/other", &c, values, meta, 2));
  assert_int_equal(px_adapter_folder_open("b", &f, &err), PX_BAD_FILE);
  if (strcmp(err.message, "b: holds 2 adapters (default, other); give the path of one of them") != 0)
    assert_string_equal(err.message, "b: holds 2 adapters (other, default); give the path of one of them");
  ASSERT_OK(px_adapter_folder_open("b/other/", &f, &err));
  px_adapter_folder_close(&f);
  px_adapter_folder_close(&f);
}

static int64_t size_of(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 ? (int64_t)st.st_size : -1;
}

/* The sizes of files that PEFT's users published. */
static void published_sizes_come_out(void **state) {
  (void)state;
  px_adapter_config c = small();
  c.layers = 28, c.heads = 8, c.token_dim = 1024;
  float *values = calloc((size_t)200 * 57344, sizeof *values);
  assert_non_null(values);
  c.virtual_tokens = 50;
  ASSERT_OK(write_prefix("size", &c, values, NULL, 0));
  assert_int_equal(size_of("size/adapter_model.safetensors"), 11468928);
  c.virtual_tokens = 200;
  ASSERT_OK(write_prefix("size", &c, values, NULL, 0));
  assert_int_equal(size_of("size/adapter_model.safetensors"), 45875328);
  const px_meta format = {"format", "pt"};
  px_tensor_view t = {.name = "prompt_embeddings", .dtype = PX_F32, .dims = 2, .shape = {200, 3072}, .data = values};
  t.bytes = 200 * 3072 * 4;
  ASSERT_OK(px_safetensors_write("size/prompt", &t, 1, &format, 1, &err));
  assert_int_equal(size_of("size/prompt"), 2457728);
  t.shape[0] = 20;
  t.bytes = 20 * 3072 * 4;
  ASSERT_OK(px_safetensors_write("size/prompt", &t, 1, &format, 1, &err));
  assert_int_equal(size_of("size/prompt"), 245880);
  free(values);
}

/* A config as PEFT writes it, with `extra` fields last, beside a [2, 4] tensor of `dtype`. */
static void put_folder(const char *extra, const char *dtype, const void *data, size_t bytes) {
  px_buf json = {0}, model = {0}, header = {0};
  px_buf_printf(&json,
                "{\"peft_type\": \"PREFIX_TUNING\", \"num_virtual_tokens\": 2, \"num_layers\": 1, "
                "\"num_attention_heads\": 1, \"token_dim\": 2%s}",
                extra);
  px_buf_printf(&header, "{\"prompt_embeddings\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%zu]}}", dtype,
                bytes);
  px_buf_append(&model, &(uint64_t){header.len}, 8);
  px_buf_append(&model, header.data, header.len);
  px_buf_append(&model, data, bytes);
  ASSERT_OK(px_dir_make("v", &err));
  ASSERT_OK(px_file_write("v/adapter_config.json", json.data, json.len, &err));
  ASSERT_OK(px_file_write("v/adapter_model.safetensors", model.data, model.len, &err));
  px_buf_free(&json);
  px_buf_free(&model);
  px_buf_free(&header);
}

static void other_versions_and_types_are_read(void **state) {
  (void)state;
  px_adapter_folder f;
  const uint16_t halves[8] = {0x7bff, 0xfbff, 1};
  put_folder(
      ", \"prefix_projection\": true, \"some_future_switch\": false, \"another\": [], \"number\": 0, "
      "\"rate\": 0.0, \"text\": \"\", \"object\": {}, \"none\": null, \"auto_mapping\": {\"a\": 1}",
      "F16", halves, sizeof halves);
  ASSERT_OK(px_adapter_folder_open("v", &f, &err));
  assert_int_equal(f.parts[0].dtype, PX_F16);
  assert_string_equal(f.parts[0].config.task_type, "CAUSAL_LM");
  assert_null(f.parts[0].config.base_model);
  assert_int_equal(f.parts[0].metadata_count, 0);
  px_adapter_folder_close(&f);
  static const char *const set[] = {", \"use_x\": true", ", \"use_x\": 1", ", \"use_x\": 0.5", ", \"use_x\": \"a\"",
                                    ", \"use_x\": [0]"};
  for (size_t i = 0; i < sizeof set / sizeof *set; i++) {
    put_folder(set[i], "F16", halves, sizeof halves);
    ASSERT_FAILS(
        px_adapter_folder_open("v", &f, &err), PX_BAD_FILE,
        "v/adapter_config.json: field \"use_x\" is set, and pfx does not know what it means; remove it, or set "
        "it to null, if the adapter does not depend on it");
  }
  put_folder("", "BF16", halves, sizeof halves);
  ASSERT_OK(px_adapter_folder_open("v", &f, &err));
  px_adapter_folder_close(&f);
}

static void what_is_not_finite_is_refused(void **state) {
  (void)state;
  px_adapter_folder f;
  static const char message[] =
      "v/adapter_model.safetensors: tensor \"prompt_embeddings\" is not finite at row 1, column 2; its training "
      "failed, train it again";
  float values[8] = {0};
  values[6] = NAN;
  put_folder("", "F32", values, sizeof values);
  ASSERT_FAILS(px_adapter_folder_open("v", &f, &err), PX_BAD_FILE, message);
  values[6] = -INFINITY;
  put_folder("", "F32", values, sizeof values);
  ASSERT_FAILS(px_adapter_folder_open("v", &f, &err), PX_BAD_FILE, message);
  uint16_t halves[8] = {0};
  halves[6] = 0x7c01;
  put_folder("", "F16", halves, sizeof halves);
  ASSERT_FAILS(px_adapter_folder_open("v", &f, &err), PX_BAD_FILE, message);
  halves[6] = 0xff80;
  put_folder("", "BF16", halves, sizeof halves);
  ASSERT_FAILS(px_adapter_folder_open("v", &f, &err), PX_BAD_FILE, message);
  px_adapter_config c = small();
  float prefix[192] = {0};
  prefix[65] = NAN;
  ASSERT_FAILS(write_prefix("nan", &c, prefix, NULL, 0), PX_NOT_FINITE,
               "nan: the prefix is not finite at row 1, column 1; it is not written");
  assert_false(px_file_exists("nan"));
}

static void what_cannot_be_written_is_refused(void **state) {
  (void)state;
  px_adapter_config c = small();
  float prefix[192] = {0};
  c.peft_type = "CARTRIDGE";
  c.frozen_tokens = 4;
  ASSERT_FAILS(write_prefix("no", &c, prefix, NULL, 0), PX_INVALID, "no: 4 of 3 tokens cannot be frozen");
  c = small();
  c.heads = 3;
  ASSERT_FAILS(write_prefix("no", &c, prefix, NULL, 0), PX_INVALID,
               "no: a prefix of 3 tokens for 2 layers, 3 heads and token_dim 16 cannot be");
  c = small();
  c.revision = "\xff";
  ASSERT_FAILS(write_prefix("no", &c, prefix, NULL, 0), PX_INVALID, "no: field \"revision\" is not UTF-8");
  assert_false(px_file_exists("no"));
}

static void what_is_no_adapter_is_named(void **state) {
  (void)state;
  px_adapter_folder f;
  ASSERT_FAILS(px_adapter_folder_open("gone", &f, &err), PX_BAD_FILE,
               "cannot open the adapter folder gone: No such file or directory");
  ASSERT_OK(px_dir_make("empty/inner", &err));
  ASSERT_FAILS(px_adapter_folder_open("empty", &f, &err), PX_BAD_FILE,
               "empty: holds no adapter_config.json, nor does a folder in it; is it an adapter?");
  ASSERT_OK(px_file_write("file", "x", 1, &err));
  ASSERT_FAILS(px_adapter_folder_open("file", &f, &err), PX_BAD_FILE,
               "file: is a file; an adapter is the folder that holds adapter_config.json");
}

static void same_bytes(const char *folder, const char *name) {
  char path[PATH_MAX + 64];
  px_buf ours = {0};
  snprintf(path, sizeof path, "rewritten/%s", name);
  ASSERT_OK(px_file_read(path, 1 << 20, &ours, &err));
  snprintf(path, sizeof path, "%s/%s", folder, name);
  file_is(path, ours.data, ours.len);
  px_buf_free(&ours);
}

/* Reads a folder that PEFT saved and writes it again. */
static void rewrite(const char *folder) {
  px_adapter_folder f;
  ASSERT_OK(px_adapter_folder_open(folder, &f, &err));
  assert_int_equal(f.parts[0].dtype, PX_F32);
  ASSERT_OK(px_adapter_part_write("rewritten", f.parts, NULL, 0, &err));
  px_adapter_folder_close(&f);
  same_bytes(folder, "adapter_config.json");
  same_bytes(folder, "adapter_model.safetensors");
}

static void golden_adapters_are_rewritten_byte_for_byte(void **state) {
  (void)state;
  char path[PATH_MAX + 64];
  snprintf(path, sizeof path, "%s/*/adapter", golden);
  glob_t found;
  assert_int_equal(glob(path, 0, NULL, &found), 0);
  assert_true(found.gl_pathc >= 12);
  for (size_t i = 0; i < found.gl_pathc; i++) rewrite(found.gl_pathv[i]);
  globfree(&found);
  snprintf(path, sizeof path, "%s/llama_tied/adapter_named/gloss", golden);
  rewrite(path);
  snprintf(path, sizeof path, "%s/llama_tied/adapter_zero", golden);
  rewrite(path);
}

static void golden_adapters_of_every_kind_are_read(void **state) {
  (void)state;
  static const struct {
    const char *folder, *type;
    px_dtype dtype;
    int tokens, frozen;
  } cases[] = {{"adapter_named", "PREFIX_TUNING", PX_F32, 3, 0},
               {"adapter_projection", "PREFIX_TUNING", PX_F32, 6, 0},
               {"adapter_cartridge", "CARTRIDGE", PX_F32, 5, 2},
               {"adapter_bf16", "PREFIX_TUNING", PX_BF16, 4, 0},
               {"adapter_f16", "PREFIX_TUNING", PX_F16, 2, 0}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/llama_tied/%s", golden, cases[i].folder);
    px_adapter_folder f;
    ASSERT_OK(px_adapter_folder_open(path, &f, &err));
    assert_string_equal(f.parts[0].config.peft_type, cases[i].type);
    assert_int_equal(f.parts[0].dtype, cases[i].dtype);
    assert_int_equal(f.parts[0].config.virtual_tokens, cases[i].tokens);
    assert_int_equal(f.parts[0].config.frozen_tokens, cases[i].frozen);
    px_adapter_folder_close(&f);
  }
}

static void golden_models_open_with_and_without_index(void **state) {
  (void)state;
  char path[PATH_MAX + 64];
  px_tensor_list list;
  snprintf(path, sizeof path, "%s/llama3_new", golden);
  ASSERT_OK(px_safetensors_open_folder(path, &list, &err));
  assert_int_equal(list.map_count, 6);
  assert_non_null(px_tensor_find(&list, "model.layers.1.self_attn.q_proj.weight"));
  px_tensor_list_close(&list);
  snprintf(path, sizeof path, "%s/llama_bf16", golden);
  ASSERT_OK(px_safetensors_open_folder(path, &list, &err));
  assert_int_equal(px_tensor_find(&list, "model.norm.weight")->dtype, PX_BF16);
  px_tensor_list_close(&list);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(writes_what_peft_writes),
      cmocka_unit_test(reads_back_what_it_wrote),
      cmocka_unit_test(published_sizes_come_out),
      cmocka_unit_test(other_versions_and_types_are_read),
      cmocka_unit_test(what_is_not_finite_is_refused),
      cmocka_unit_test(what_cannot_be_written_is_refused),
      cmocka_unit_test(what_is_no_adapter_is_named),
      cmocka_unit_test(golden_adapters_are_rewritten_byte_for_byte),
      cmocka_unit_test(golden_adapters_of_every_kind_are_read),
      cmocka_unit_test(golden_models_open_with_and_without_index),
  };
  return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
