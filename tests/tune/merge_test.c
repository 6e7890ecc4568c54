/* SPDX-License-Identifier: MIT
 * Adapters in the weights: a merged folder computes what PEFT computes in float64 with the adapter beside its base. */
#include "helpers/test.h"

#include <math.h>
#include <unistd.h>

#include "helpers/golden.h"
#include "helpers/run_folder.h"
#include "train/evaluate.h"
#include "tune/merge.h"
#include "tune/tune.h"

static const double LOGITS = 2e-5; /* of the largest, as everywhere against float64 */

static px_error err;
static char root[64], dir[96];

static int make_root(void **state) {
  (void)state;
  strcpy(root, "/tmp/pfx_merge_XXXXXX");
  if (!mkdtemp(root)) return -1;
  snprintf(dir, sizeof dir, "%s/model", root);
  return 0;
}

static int remove_root(void **state) {
  (void)state;
  run_remove(root);
  return 0;
}

static px_model *open_model(const char *path) {
  px_model *m = NULL;
  ASSERT_OK(px_model_open(path, &(px_model_options){.dtype = PX_F32}, &m, &err));
  return m;
}

static px_adapter *open_adapter(const char *family, const char *part) {
  char path[512], file[96];
  px_adapter *a = NULL;
  snprintf(file, sizeof file, "parts/%s", family);
  ASSERT_OK(px_adapter_open(golden_path(file, part, path), &a, &err));
  return a;
}

/* Logits of the model in `dir`, which has no adapter any more, against those with the adapter. */
static void check_logits(const char *family, const char *part) {
  char path[512], name[96], file[96];
  px_tensor_list golden, probe;
  px_rows rows;
  px_model *m = open_model(dir);
  snprintf(name, sizeof name, "parts/%s", family);
  snprintf(file, sizeof file, "golden_%s.safetensors", part);
  ASSERT_OK(px_safetensors_open(golden_path(name, file, path), &golden, NULL, NULL, &err));
  golden_rows(&golden, &rows);
  snprintf(path, sizeof path, "%s/probe", root);
  ASSERT_OK(px_probe(m, m->be, &rows, NULL, NULL, path, &err));
  ASSERT_OK(px_safetensors_open(path, &probe, NULL, NULL, &err));
  snprintf(name, sizeof name, "%s/%s", family, part);
  golden_near_largest(name, &probe, "logits", &golden, "adapter.", LOGITS);
  px_tensor_list_close(&golden);
  px_tensor_list_close(&probe);
  px_rows_free(&rows);
  px_model_close(m);
}

static void check_family(const char *family, bool biases) {
  static const char *const parts[] = {"lora", "lora_all", "ia3", "norm", "top", "bias"};
  char path[512], name[96];
  snprintf(name, sizeof name, "parts/%s", family);
  px_model *base = open_model(golden_path(name, "", path));
  for (size_t i = 0; i < sizeof parts / sizeof *parts - !biases; i++) {
    px_adapter *a = open_adapter(family, parts[i]);
    px_model_written w;
    ASSERT_OK(px_merge(a, &base->source, NULL, dir, NULL, &w, &err));
    assert_true(w.changed > 0 && w.changed < w.tensors);
    px_adapter_close(a);
    check_logits(family, parts[i]);
    run_remove(dir);
  }
  px_model_close(base);
}

static void gpt2(void **state) {
  (void)state;
  check_family("gpt2", true);
}
static void llama(void **state) {
  (void)state;
  check_family("llama", true);
}
static void mistral(void **state) { /* transformers has no place for its biases */
  (void)state;
  check_family("mistral", false);
}
static void qwen2(void **state) {
  (void)state;
  check_family("qwen2", true);
}
static void qwen3(void **state) {
  (void)state;
  check_family("qwen3", true);
}

/* y = s (x (W + scale B A)^T + b), b replaced first: parts merged in one go, whatever their order in the adapter. */
static void parts_together(void **state) {
  (void)state;
  enum { LORA, IA3, TOP, BIAS, PARTS };
  static const char *const names[] = {"lora_all", "ia3", "top", "bias"};
  static const char *const families[] = {"llama", "gpt2"};
  for (int f = 0; f < 2; f++) {
    char path[512], name[96];
    snprintf(name, sizeof name, "parts/%s", families[f]);
    px_model *base = open_model(golden_path(name, "", path));
    px_adapter *apart[PARTS];
    px_adapter_part parts[PARTS];
    for (int i = 0; i < PARTS; i++) apart[i] = open_adapter(families[f], names[i]);
    for (int turn = 0; turn < 2; turn++) {
      for (int i = 0; i < PARTS; i++) parts[turn ? PARTS - 1 - i : i] = apart[i]->parts[0];
      px_adapter all = {.parts = parts, .part_count = PARTS, .path = "all"};
      snprintf(name, sizeof name, "%s/turn%d", root, turn);
      if (turn) { /* top and bias both have the last layer's biases: the later part's count; here the bias part's in both turns */
        px_adapter_part swap = parts[0];
        parts[0] = parts[1];
        parts[1] = swap;
      }
      ASSERT_OK(px_merge(&all, &base->source, NULL, name, NULL, NULL, &err));
    }
    px_buf one = {0}, other = {0};
    snprintf(name, sizeof name, "%s/turn0", root);
    run_read(name, "model.safetensors", &one);
    snprintf(name, sizeof name, "%s/turn1", root);
    run_read(name, "model.safetensors", &other);
    assert_true(one.len == other.len && memcmp(one.data, other.data, one.len) == 0);
    px_buf_free(&one);
    px_buf_free(&other);

    /* One element by hand: the last layer's down projection, which every part but bias changes. */
    px_tensor_list merged;
    snprintf(path, sizeof path, "%s/model.safetensors", name);
    ASSERT_OK(px_safetensors_open(path, &merged, NULL, NULL, &err));
    const char *module = f ? "transformer.h.1.mlp.c_proj" : "model.layers.1.mlp.down_proj";
    const px_part_tensor *w = px_part_find(&apart[TOP]->parts[0], module, "weight"), *a = px_part_find(&apart[LORA]->parts[0], module, "lora_A"),
                         *b = px_part_find(&apart[LORA]->parts[0], module, "lora_B"), *s = px_part_find(&apart[IA3]->parts[0], module, "ia3_l");
    const px_adapter_config *c = &apart[LORA]->parts[0].config;
    assert_true(w && a && b && s && s->shape[0] == 1 && c->rank_stabilised);
    int64_t in = s->shape[1], out = b->shape[0], i = 5, o = 3;
    double sum = 0;
    for (int64_t r = 0; r < c->rank; r++) sum += (double)b->values[o * c->rank + r] * (double)a->values[r * in + i];
    double want = ((double)w->values[f ? i * out + o : o * in + i] + c->alpha / sqrt((double)c->rank) * sum) * (double)s->values[i];
    snprintf(name, sizeof name, "%s.weight", module);
    const px_tensor_view *v = px_tensor_find(&merged, name);
    assert_non_null(v);
    double got = (double)((const float *)v->data)[f ? i * out + o : o * in + i];
    if (fabs(got - want) > 1e-6 * fabs(want)) fail_msg("%s is %.9g, not %.9g", name, got, want);
    px_tensor_list_close(&merged);
    for (int k = 0; k < PARTS; k++) px_adapter_close(apart[k]);
    px_model_close(base);
    snprintf(name, sizeof name, "%s/turn0", root);
    run_remove(name);
    snprintf(name, sizeof name, "%s/turn1", root);
    run_remove(name);
  }
}

/* A part that is no weight is refused by name, alone and in a hybrid, and nothing is written. */
static void no_weights(void **state) {
  (void)state;
  static const struct {
    const char *part, *message;
  } cases[] = {
      {"prompt", "holds a prompt (PROMPT_TUNING): rows in front of a text are no weights, so no model folder can hold them; use it with --adapter"},
      {"p_tuning", "holds a prompt (P_TUNING): rows in front of a text are no weights, so no model folder can hold them; use it with --adapter"},
      {"cartridge",
       "holds a prefix (CARTRIDGE): keys and values in front of a text are no weights, so no model folder can hold them; use it with --adapter"},
      {"prefix_layers", "holds a prefix (PFX_PREFIX_LAYERS): keys and values in front of a text are no weights, so no model folder can hold them; use "
                        "it with --adapter"},
      {"hybrid", "holds a prefix (PREFIX_TUNING): keys and values in front of a text are no weights, so no model folder can hold them; use it with "
                 "--adapter"},
  };
  char path[512], message[1000];
  px_model *base = open_model(golden_path("parts/llama", "", path));
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    px_adapter *a = open_adapter("llama", cases[i].part);
    snprintf(message, sizeof message, "%s %s", a->path, cases[i].message);
    ASSERT_FAILS(px_merge(a, &base->source, NULL, dir, NULL, NULL, &err), PX_INVALID, message);
    assert_false(px_file_exists(dir));
    px_adapter_close(a);
  }
  px_model_close(base);
}

/* A tensor that finds no place in the weights is an error, not left out. */
static void no_place(void **state) {
  (void)state;
  char path[512], message[1000];
  px_model *base = open_model(golden_path("parts/mistral", "", path));
  px_adapter *a = open_adapter("llama", "bias");
  snprintf(message, sizeof message, "%s: bias of model.layers.0.mlp.down_proj has no place in the weights of %s (mistral)", a->parts[0].file,
           base->source.path);
  ASSERT_FAILS(px_merge(a, &base->source, NULL, dir, NULL, NULL, &err), PX_MISMATCH, message);
  assert_false(px_file_exists(dir));
  px_adapter_close(a);
  px_model_close(base);
}

/* What a run of all weights has trained, as a folder: it computes what the run computes. */
static void trained_weights(void **state) {
  (void)state;
  static const struct {
    const char *model, *file, *tune;
    bool bits; /* the folder keeps its matrices as the run does */
  } cases[] = {{"parts/llama", "", "full", true},   {"parts/gpt2", "", "full", true},       {"gguf", "gpt2.gguf", "full", false},
               {"parts/qwen3", "", "full", true},   {"parts/llama", "", "bias+norm", true}, {"parts/llama", "", "top:1", true},
               {"gguf", "llama3_old.gguf", "full", false}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char path[512], file[96];
    px_tune_spec spec;
    px_tune *tune = NULL;
    px_tensor_list golden, ours, theirs;
    px_rows rows;
    px_model *base = open_model(golden_path(cases[i].model, cases[i].file, path));
    ASSERT_OK(px_tune_parse(cases[i].tune, NULL, 0, &spec, &err));
    ASSERT_OK(px_tune_open(base, base->be, NULL, &spec, 1, &tune, &err));
    for (int k = 0; k < tune->param_count; k++) {
      px_param *q = &tune->params[k];
      float *values = calloc((size_t)q->count, sizeof *values);
      px_backend_read(base->be, values, q->value, (size_t)q->count * sizeof *values);
      for (int64_t j = 0; j < q->count; j++) values[j] += 0.02f * sinf((float)(j + k));
      px_backend_write(base->be, q->value, values, (size_t)q->count * sizeof *values);
      free(values);
    }
    px_tune_begin_step(tune, 0, NULL);
    ASSERT_OK(px_tune_save_model(tune, dir, NULL, NULL, NULL, &err));
    px_model *saved = open_model(dir);
    ASSERT_OK(px_safetensors_open(golden_path("parts/mistral", "golden_top.safetensors", path), &golden, NULL, NULL, &err));
    golden_rows(&golden, &rows);
    snprintf(file, sizeof file, "%s/probe", root);
    ASSERT_OK(px_probe(base, base->be, &rows, NULL, tune, file, &err));
    ASSERT_OK(px_safetensors_open(file, &ours, NULL, NULL, &err));
    unlink(file);
    ASSERT_OK(px_probe(saved, saved->be, &rows, NULL, NULL, file, &err));
    ASSERT_OK(px_safetensors_open(file, &theirs, NULL, NULL, &err));
    const px_tensor_view *a = px_tensor_find(&ours, "logits"), *b = px_tensor_find(&theirs, "logits");
    assert_int_equal(a->bytes, b->bytes);
    snprintf(file, sizeof file, "%s %s %s", cases[i].model, cases[i].file, cases[i].tune);
    if (cases[i].bits && memcmp(a->data, b->data, a->bytes) != 0) fail_msg("%s: other bits", file);
    golden_near_largest(file, &theirs, "logits", &ours, "", 2e-6);
    px_tensor_list_close(&golden);
    px_tensor_list_close(&ours);
    px_tensor_list_close(&theirs);
    px_rows_free(&rows);
    px_tune_close(tune);
    px_tune_spec_free(&spec);
    px_model_close(base);
    px_model_close(saved);
    run_remove(dir);
  }
}

static void a_run_of_no_weights(void **state) {
  (void)state;
  char path[512];
  px_tune_spec spec;
  px_tune *tune = NULL;
  px_model *base = open_model(golden_path("parts/llama", "", path));
  ASSERT_OK(px_tune_parse("lora:2", NULL, 0, &spec, &err));
  ASSERT_OK(px_tune_open(base, base->be, NULL, &spec, 1, &tune, &err));
  ASSERT_FAILS(px_tune_save_model(tune, dir, NULL, NULL, NULL, &err), PX_INVALID,
               "lora.model.layers.0.self_attn.q_proj.A is no weight: only full, top, norm and bias make a model folder");
  assert_false(px_file_exists(dir));
  px_tune_close(tune);
  px_tune_spec_free(&spec);
  px_model_close(base);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_root, remove_root)
  const struct CMUnitTest tests[] = {TEST(gpt2),  TEST(llama),          TEST(mistral),    TEST(qwen2),
                                     TEST(qwen3), TEST(parts_together), TEST(no_weights), TEST(no_place),
                                     TEST(trained_weights), TEST(a_run_of_no_weights)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
