/* SPDX-License-Identifier: MIT
 * Model folders: what is written computes what its base computes, bit for bit; changed tensors, types, shards; folders that
 * cannot be written, and what a failure leaves behind. */
#include "helpers/test.h"

#include <dirent.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/folder_out.h"
#include "helpers/golden.h"
#include "helpers/run_folder.h"
#include "model/model.h"
#include "model/model_write.h"
#include "train/evaluate.h"

static const char *const folders[] = {"gpt2",        "gpt2_wide",  "llama3_new", "llama3_old", "llama_bf16", "llama_f16",
                                      "llama_linear", "llama_tied", "mistral",    "qwen2",      "qwen2_window", "qwen3"};
static const char *const ggufs[] = {"gpt2", "llama3_old", "llama_bf16", "llama_linear", "qwen2", "qwen3"};
enum { FOLDERS = sizeof folders / sizeof *folders, GGUFS = sizeof ggufs / sizeof *ggufs };

static px_error err;
static char root[64], dir[96];

static int make_root(void **state) {
  (void)state;
  strcpy(root, "/tmp/pfx_model_write_XXXXXX");
  if (!mkdtemp(root)) return -1;
  snprintf(dir, sizeof dir, "%s/model", root);
  return 0;
}

static int remove_root(void **state) {
  (void)state;
  run_remove(root);
  return 0;
}

/* Entries of a folder. */
static int entries(const char *path) {
  int count = 0;
  DIR *d = opendir(path);
  for (struct dirent *e; d && (e = readdir(d));) count += e->d_name[0] != '.';
  if (d) closedir(d);
  return count;
}

static px_model *open_model(const char *path) {
  px_model *m = NULL;
  ASSERT_OK(px_model_open(path, &(px_model_options){.dtype = PX_F32}, &m, &err));
  return m;
}

/* Logits of the golden rows of `name`. */
static void probe(const px_model *m, const char *name, px_tensor_list *out) {
  char path[512], file[80];
  px_tensor_list golden;
  px_rows rows;
  snprintf(file, sizeof file, "%s/probe", root);
  ASSERT_OK(px_safetensors_open(golden_path(name, "golden.safetensors", path), &golden, NULL, NULL, &err));
  golden_rows(&golden, &rows);
  ASSERT_OK(px_probe(m, m->be, &rows, NULL, NULL, file, &err));
  ASSERT_OK(px_safetensors_open(file, out, NULL, NULL, &err));
  unlink(file);
  px_rows_free(&rows);
  px_tensor_list_close(&golden);
}

static bool same_logits(const px_model *a, const px_model *b, const char *name) {
  px_tensor_list x, y;
  probe(a, name, &x);
  probe(b, name, &y);
  const px_tensor_view *p = px_tensor_find(&x, "logits"), *q = px_tensor_find(&y, "logits");
  bool same = p->bytes == q->bytes && memcmp(p->data, q->data, p->bytes) == 0;
  if (!same) golden_near_largest(name, &y, "logits", &x, "", 1e-6);
  px_tensor_list_close(&x);
  px_tensor_list_close(&y);
  return same;
}

static void check_written(const char *path, const char *name, bool bits) {
  px_model *m = open_model(path);
  px_model_written w;
  ASSERT_OK(px_model_write(dir, &m->source, NULL, NULL, NULL, &w, &err));
  px_model *again = open_model(dir);
  assert_string_equal(m->fingerprint.base, again->fingerprint.base);
  assert_int_equal(w.files, 1);
  if (!same_logits(m, again, name) && bits) fail_msg("%s: other logits", path);
  px_model_close(m);
  px_model_close(again);
  run_remove(dir);
  assert_int_equal(entries(root), 0);
}

static void folders_compute_the_same(void **state) {
  (void)state;
  char path[512];
  for (size_t i = 0; i < FOLDERS; i++) check_written(golden_path(folders[i], "", path), folders[i], true);
}

/* A GGUF file has the divisors of llama3 scaling in float32 where config.json has the settings: equal to rounding. */
static void ggufs_compute_the_same(void **state) {
  (void)state;
  char path[512], file[64];
  for (size_t i = 0; i < GGUFS; i++) {
    snprintf(file, sizeof file, "%s.gguf", ggufs[i]);
    check_written(golden_path("gguf", file, path), ggufs[i], strcmp(ggufs[i], "llama3_old") != 0);
  }
}

/* The settings of llama3 scaling come back from the divisors; where no frequency lies between its ends, or one, others that
 * divide the same. */
static void llama3_from_divisors(void **state) {
  (void)state;
  static const struct {
    double theta, factor, low, high, context;
    int head_dim;
    bool exact;
  } cases[] = {{500000, 8, 1, 4, 8192, 128, true},   {500000, 32, 1, 4, 8192, 64, true}, {10000, 8, 1, 4, 64, 32, false},
               {10000, 4, 1, 4, 8192, 8, false},     {10000, 8, 1, 1.5, 8192, 16, false}, {500000, 8, 1, 4, 400, 4, false},
               {10000, 8, 1, 4, 100000, 64, false}};
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    float divisors[128], plain[128], scaled[128], again[128];
    int half = cases[k].head_dim / 2;
    px_config c = {.family = "llama", .layers = 1, .dim = 64, .heads = 1, .kv_heads = 1, .head_dim = cases[k].head_dim, .norm_eps = 1e-5,
                   .rope = {.type = PX_ROPE_DEFAULT, .theta = cases[k].theta}};
    px_rope_frequencies(&c, plain);
    c.rope = (px_rope_config){.type = PX_ROPE_LLAMA3, .theta = cases[k].theta, .factor = cases[k].factor, .low_freq_factor = cases[k].low,
                              .high_freq_factor = cases[k].high, .original_context = cases[k].context};
    px_rope_frequencies(&c, scaled);
    for (int i = 0; i < half; i++) divisors[i] = plain[i] / scaled[i];
    c.rope.divisors = divisors;
    json_t *json = NULL;
    ASSERT_OK(px_config_to_json(&c, "x.gguf", NULL, PX_F32, &json, &err));
    const json_t *s = json_object_get(json, "rope_scaling");
    c.rope = (px_rope_config){.type = PX_ROPE_LLAMA3, .theta = json_number_value(json_object_get(json, "rope_theta")),
                              .factor = json_number_value(json_object_get(s, "factor")),
                              .low_freq_factor = json_number_value(json_object_get(s, "low_freq_factor")),
                              .high_freq_factor = json_number_value(json_object_get(s, "high_freq_factor")),
                              .original_context = json_number_value(json_object_get(s, "original_max_position_embeddings"))};
    px_rope_frequencies(&c, again);
    for (int i = 0; i < half; i++)
      if (fabsf(again[i] - scaled[i]) > 2e-6f * scaled[i]) fail_msg("case %zu: frequency %d is %g, not %g", k, i, (double)again[i], (double)scaled[i]);
    if (cases[k].exact)
      assert_true(c.rope.factor == cases[k].factor && c.rope.low_freq_factor == 1 && c.rope.high_freq_factor == 4 && c.rope.original_context == 8192);
    json_decref(json);
  }
}

static void divisors_of_no_llama3(void **state) {
  (void)state;
  const float divisors[] = {1, 2, 8, 3};
  px_config c = {.family = "llama", .head_dim = 8, .rope = {.type = PX_ROPE_LLAMA3, .theta = 10000, .divisors = divisors}};
  json_t *json = NULL;
  ASSERT_FAILS(px_config_to_json(&c, "x.gguf", NULL, PX_F32, &json, &err), PX_BAD_FILE,
               "x.gguf: its rope_freqs.weight are not those of llama3 scaling, which config.json cannot express");
  assert_null(json);
}

static void in_shards(void **state) {
  (void)state;
  char path[512];
  px_model *m = open_model(golden_path("llama_tied", "", path));
  px_model_written w;
  ASSERT_OK(px_model_write(dir, &m->source, NULL, NULL, &(px_model_write_options){.dtype = -1, .shard_bytes = 60000}, &w, &err));
  assert_true(w.files > 2);
  snprintf(path, sizeof path, "%s/model-%05zu-of-%05zu.safetensors", dir, w.files, w.files);
  assert_true(px_file_exists(path));
  snprintf(path, sizeof path, "%s/model.safetensors", dir);
  assert_false(px_file_exists(path));
  json_t *index = NULL;
  snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
  ASSERT_OK(px_json_read(path, &index, &err));
  assert_int_equal(json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")), w.bytes);
  assert_int_equal(json_object_size(json_object_get(index, "weight_map")), w.tensors);
  json_decref(index);
  px_model *again = open_model(dir);
  assert_string_equal(m->fingerprint.base, again->fingerprint.base);
  px_model_close(m);
  px_model_close(again);
}

/* ---- changes ---- */

static const px_tensor_view *tensor_of(const px_model *m, const char *name) {
  const px_tensor_view *t = px_tensor_find(&m->source.list, name);
  if (!t) fail_msg("no tensor %s", name);
  return t;
}

static void tensors_replaced(void **state) {
  (void)state;
  static const char up[] = "model.layers.1.mlp.up_proj.weight";
  char path[512];
  px_model *m = open_model(golden_path("llama_tied", "", path));
  const px_tensor_view *base = tensor_of(m, up);
  int64_t count = px_tensor_elements(base);
  float *values = malloc((size_t)count * sizeof *values);
  for (int64_t i = 0; i < count; i++) values[i] = 0.25f * (float)(i % 17) - 2;
  ASSERT_OK(px_model_write_with(dir, &m->source, NULL, &(px_override){up, values, count}, 1, NULL, NULL, &err));
  px_model *again = open_model(dir);
  assert_memory_equal(tensor_of(again, up)->data, values, (size_t)count * sizeof *values);
  for (size_t i = 0; i < again->source.list.count; i++) {
    const px_tensor_view *t = &again->source.list.items[i];
    if (strcmp(t->name, up) != 0) assert_memory_equal(t->data, tensor_of(m, t->name)->data, t->bytes);
  }
  px_model_close(m);
  px_model_close(again);
  free(values);
}

/* A bias that the model lacked: config.json says so, and its like get zeros, as transformers has all of a group or none. */
static void bias_added(void **state) {
  (void)state;
  static const char *const cases[] = {"llama_tied", "qwen3"};
  for (int k = 0; k < 2; k++) {
    char path[512], name[80] = "model.layers.1.self_attn.k_proj.bias";
    px_model *m = open_model(golden_path(cases[k], "", path));
    int64_t count = (int64_t)m->source.config.kv_heads * m->source.config.head_dim;
    float *values = malloc((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++) values[i] = 0;
    ASSERT_OK(px_model_write_with(dir, &m->source, NULL, &(px_override){name, values, count}, 1, NULL, NULL, &err));
    px_model *again = open_model(dir);
    assert_true(again->source.config.qkv_bias && again->source.config.o_bias && !again->source.config.mlp_bias);
    assert_int_equal(px_tensor_elements(tensor_of(again, "model.layers.0.self_attn.o_proj.bias")), m->source.config.dim);
    assert_true(same_logits(m, again, cases[k])); /* zeros change nothing */
    px_model_close(again);
    run_remove(dir);
    for (int64_t i = 0; i < count; i++) values[i] = 0.5f * (float)(i % 3);
    ASSERT_OK(px_model_write_with(dir, &m->source, NULL, &(px_override){name, values, count}, 1, NULL, NULL, &err));
    again = open_model(dir);
    assert_memory_equal(tensor_of(again, name)->data, values, (size_t)count * sizeof *values);
    px_model_close(again);
    run_remove(dir);
    px_model_close(m);
    free(values);
  }
}

static void overrides_without_a_tensor(void **state) {
  (void)state;
  static const float values[4096];
  char path[512];
  const struct {
    const char *model, *name, *message;
  } cases[] = {
      {"llama_tied", "model.layers.0.mlp.up_proj.wait", "model.layers.0.mlp.up_proj.wait is no tensor of this model with 5 values"},
      {"llama_tied", "model.norm.weight", "model.norm.weight is no tensor of this model with 5 values"},
      {"mistral", "model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_proj.bias is no tensor of this model with 5 values"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    px_model *m = open_model(golden_path(cases[i].model, "", path));
    ASSERT_FAILS(px_model_write_with(dir, &m->source, NULL, &(px_override){cases[i].name, values, 5}, 1, NULL, NULL, &err), PX_INVALID,
                 cases[i].message);
    assert_int_equal(entries(root), 0);
    px_model_close(m);
  }
}

/* ---- types ---- */

static void in_another_type(void **state) {
  (void)state;
  char path[512];
  px_model *m = open_model(golden_path("llama_tied", "", path));
  const px_tensor_view *base = tensor_of(m, "model.embed_tokens.weight");
  for (int k = 0; k < 2; k++) {
    px_dtype type = k ? PX_F16 : PX_BF16;
    ASSERT_OK(px_model_write(dir, &m->source, NULL, NULL, &(px_model_write_options){.dtype = (int)type}, NULL, &err));
    px_model *again = open_model(dir);
    for (size_t i = 0; i < again->source.list.count; i++) assert_int_equal(again->source.list.items[i].dtype, type);
    const uint16_t *got = tensor_of(again, base->name)->data;
    for (int64_t i = 0; i < px_tensor_elements(base); i++) {
      float value = ((const float *)base->data)[i];
      assert_int_equal(got[i], k ? px_f32_to_f16(value) : px_f32_to_bf16(value));
    }
    json_t *config = NULL;
    snprintf(path, sizeof path, "%s/config.json", dir);
    ASSERT_OK(px_json_read(path, &config, &err));
    assert_string_equal(json_string_value(json_object_get(config, "dtype")), k ? "float16" : "bfloat16");
    json_decref(config);
    px_model_close(again);
    run_remove(dir);
  }
  px_model_close(m);
}

static void too_large_for_the_type(void **state) {
  (void)state;
  static const char norm[] = "model.norm.weight";
  char path[512];
  px_model *m = open_model(golden_path("llama_tied", "", path));
  int64_t count = m->source.config.dim;
  float *values = calloc((size_t)count, sizeof *values);
  values[3] = 70000;
  ASSERT_FAILS(px_model_write_with(dir, &m->source, NULL, &(px_override){norm, values, count}, 1, &(px_model_write_options){.dtype = PX_F16}, NULL,
                                   &err),
               PX_INVALID, "model.norm.weight holds values that are too large for f16 (element 3): write bf16 or f32");
  values[3] = NAN;
  ASSERT_FAILS(px_model_write_with(dir, &m->source, NULL, &(px_override){norm, values, count}, 1, NULL, NULL, &err), PX_NOT_FINITE,
               "the new value of model.norm.weight is not finite (element 3)");
  assert_int_equal(entries(root), 0);
  free(values);
  px_model_close(m);
}

/* ---- folders ---- */

static void folders_that_cannot_be_written(void **state) {
  (void)state;
  char path[512], message[512];
  px_model *m = open_model(golden_path("llama_tied", "", path));
  ASSERT_OK(px_file_write(dir, "x", 1, &err));
  snprintf(message, sizeof message, "%s is a file: name another folder", dir);
  ASSERT_FAILS(px_model_write(dir, &m->source, NULL, NULL, NULL, NULL, &err), PX_INVALID, message);
  unlink(dir);
  mkdir(dir, 0777);
  snprintf(path, sizeof path, "%s/notes.txt", dir);
  ASSERT_OK(px_file_write(path, "x", 1, &err));
  snprintf(message, sizeof message, "%s exists and is not empty: name another folder", dir);
  ASSERT_FAILS(px_model_write(dir, &m->source, NULL, NULL, NULL, NULL, &err), PX_INVALID, message);
  ASSERT_FAILS(px_model_write("", &m->source, NULL, NULL, NULL, NULL, &err), PX_INVALID, "the output folder has no name");
  assert_int_equal(entries(dir), 1);
  unlink(path);
  snprintf(path, sizeof path, "%s/", dir); /* empty now, and named with a slash */
  ASSERT_OK(px_model_write(path, &m->source, NULL, NULL, NULL, NULL, &err));
  assert_int_equal(entries(root), 1);
  snprintf(path, sizeof path, "%s/a/b/c", root); /* parents are made */
  ASSERT_OK(px_model_write(path, &m->source, NULL, NULL, NULL, NULL, &err));
  snprintf(path, sizeof path, "%s/a/b", root);
  assert_int_equal(entries(path), 1);
  px_model_close(m);
}

/* What a killed writer leaves has no config.json, and goes with the next writer; what somebody still writes stays. */
static void leftovers_of_killed_writers(void **state) {
  (void)state;
  char path[512];
  px_folder_out busy;
  px_model *m = open_model(golden_path("llama_tied", "", path));
  ASSERT_OK(px_folder_out_open(dir, false, &busy, &err));
  snprintf(path, sizeof path, "%s.tmp.killed", dir);
  mkdir(path, 0777);
  snprintf(path, sizeof path, "%s.tmp.killed/model.safetensors", dir);
  ASSERT_OK(px_file_write(path, "half", 4, &err));
  snprintf(path, sizeof path, "%s.tmp.notes.txt", dir);
  ASSERT_OK(px_file_write(path, "x", 1, &err));
  assert_int_equal(entries(root), 3);
  ASSERT_OK(px_model_write(dir, &m->source, NULL, NULL, NULL, NULL, &err));
  assert_int_equal(entries(root), 3); /* the model, the one that is written, the notes */
  assert_true(px_file_is_dir(busy.temporary) && px_file_exists(path));
  px_folder_out_abort(&busy);
  px_folder_out_abort(&busy);
  assert_int_equal(entries(root), 2);
  px_model_close(m);
}

/* A run of all weights keeps its best model in its own folder: other files stay, other weights go. */
static void into_a_folder_that_holds_things(void **state) {
  (void)state;
  char path[512];
  px_model *m = open_model(golden_path("llama_tied", "", path)), *other = open_model(golden_path("qwen3", "", path));
  px_model_write_options o = {.dtype = -1, .into = true, .shard_bytes = 60000};
  mkdir(dir, 0777);
  snprintf(path, sizeof path, "%s/run.json", dir);
  ASSERT_OK(px_file_write(path, "{}", 2, &err));
  ASSERT_OK(px_model_write(dir, &m->source, NULL, NULL, &o, NULL, &err));
  assert_true(px_file_exists(path));
  int sharded = entries(dir);
  o.shard_bytes = 0;
  ASSERT_OK(px_model_write(dir, &other->source, NULL, NULL, &o, NULL, &err));
  assert_true(px_file_exists(path));
  assert_true(entries(dir) < sharded);
  assert_int_equal(entries(dir), 4); /* run.json, config.json, generation_config.json, model.safetensors */
  assert_int_equal(entries(root), 1);
  px_model *again = open_model(dir);
  assert_string_equal(again->fingerprint.base, other->fingerprint.base);
  px_model_close(again);
  snprintf(path, sizeof path, "%s/new", root); /* also where there is none yet */
  ASSERT_OK(px_model_write(path, &m->source, NULL, NULL, &o, NULL, &err));
  snprintf(path, sizeof path, "%s/new/config.json", root);
  assert_true(px_file_exists(path));
  /* What cannot take its place leaves a folder without config.json, and no temporary one. */
  unlink(path);
  mkdir(path, 0777);
  snprintf(path, sizeof path, "%s/new", root);
  assert_int_equal(px_model_write(path, &m->source, NULL, NULL, &o, NULL, &err), PX_IO);
  assert_int_equal(entries(root), 2);
  px_model_close(m);
  px_model_close(other);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_root, remove_root)
  const struct CMUnitTest tests[] = {
      TEST(folders_compute_the_same), TEST(ggufs_compute_the_same),
      TEST(llama3_from_divisors),     TEST(divisors_of_no_llama3),
      TEST(in_shards),                TEST(tensors_replaced),
      TEST(bias_added),               TEST(overrides_without_a_tensor),
      TEST(in_another_type),          TEST(too_large_for_the_type),
      TEST(folders_that_cannot_be_written),
      TEST(leftovers_of_killed_writers),
      TEST(into_a_folder_that_holds_things),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
