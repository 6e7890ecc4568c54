/* SPDX-License-Identifier: MIT
 * Whether an adapter fits a model: shapes and modules of every part, and the weights it was trained on. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "text/chat.h"
#include "tune/adapter.h"
#include "tune/modules.h"

static const char *meta(const px_adapter_part *p, const char *key) { return px_meta_get(p->metadata, p->metadata_count, key); }

/* --- shapes --- */

static px_status prefix_fits(const px_adapter_part *p, const px_config *c, px_error *err) {
  const px_adapter_config *f = &p->config;
  if (f->layers != c->layers)
    return px_fail(err, PX_MISMATCH, "%s is for a model of %lld layers, this one has %d", p->file, (long long)f->layers, c->layers);
  if (f->token_dim != (int64_t)c->kv_heads * c->head_dim)
    return px_fail(err, PX_MISMATCH, "%s holds keys and values of %lld numbers a layer, this model's have %lld (%d heads of %d)", p->file,
                   (long long)f->token_dim, (long long)c->kv_heads * c->head_dim, c->kv_heads, c->head_dim);
  if (f->heads != c->kv_heads)
    return px_fail(err, PX_MISMATCH, "%s is for %lld key/value heads, this model has %d", p->file, (long long)f->heads, c->kv_heads);
  return PX_OK;
}

static px_status prompt_fits(const px_adapter_part *p, const px_config *c, px_error *err) {
  if (p->config.token_dim != c->dim)
    return px_fail(err, PX_MISMATCH, "%s holds prompt rows of %lld numbers, this model's embeddings have %d", p->file,
                   (long long)p->config.token_dim, c->dim);
  return PX_OK;
}

/* What a part of modules is held against. */
typedef struct fitter {
  const px_adapter_part *part;
  const px_config *config;
  const px_modules *modules;
  px_error *err;
} fitter;

static void shape_text(char text[64], int dims, const int64_t *shape) {
  if (dims == 2)
    snprintf(text, 64, "[%" PRId64 ", %" PRId64 "]", shape[0], shape[1]);
  else
    snprintf(text, 64, "[%" PRId64 "]", shape[0]);
}

static px_status wrong_shape(const fitter *f, const px_part_tensor *t, int dims, const int64_t *shape) {
  char want[64], have[64];
  shape_text(want, dims, shape);
  shape_text(have, t->dims, t->shape);
  return px_fail(f->err, PX_MISMATCH, "%s: %s of %s has shape %s, this model's must be %s", f->part->file, t->role, t->module, have, want);
}

/* The module's own shape of a tensor of this role; 0 dimensions: the module cannot have it. */
static int role_shape(const fitter *f, const px_module *m, const px_part_tensor *t, int64_t shape[2]) {
  switch (f->part->kind) {
    case PX_PART_LORA:
      shape[0] = t->role[5] == 'A' ? f->part->config.rank : m->out;
      shape[1] = t->role[5] == 'A' ? m->in : f->part->config.rank;
      return m->kind == PX_MODULE_LINEAR ? 2 : 0;
    case PX_PART_IA3: {
      bool input = t->shape[0] == 1 && (t->shape[1] != 1 || m->in == 1);
      shape[0] = input ? 1 : m->out;
      shape[1] = input ? m->in : 1;
      return m->kind == PX_MODULE_LINEAR ? 2 : 0;
    }
    default:
      break;
  }
  if (strcmp(t->role, "bias") == 0) {
    shape[0] = m->out;
    shape[1] = 1;
    return f->part->kind == PX_PART_BIAS ? m->may_bias : m->bias;
  }
  if (f->part->kind == PX_PART_NORM && m->kind != PX_MODULE_NORM) return 0;
  return px_module_weight_shape(m, shape);
}

static px_status tensor_fits(const fitter *f, const px_part_tensor *t) {
  const px_module *m = px_module_find(f->modules, t->module);
  if (!m)
    return px_fail(f->err, PX_MISMATCH, "%s: %s is for a module %s, which this model (%s) does not have", f->part->file, t->role, t->module,
                   f->config->family);
  int64_t shape[2] = {0, 0};
  int dims = role_shape(f, m, t, shape);
  if (dims == 0)
    return px_fail(f->err, PX_MISMATCH, "%s: %s cannot have %s in this model (%s)", f->part->file, t->module, t->role, f->config->family);
  if (dims != t->dims || shape[0] != t->shape[0] || (dims == 2 && shape[1] != t->shape[1])) return wrong_shape(f, t, dims, shape);
  return PX_OK;
}

static px_status need(const fitter *f, const px_module *m, const char *role) {
  if (px_part_find(f->part, m->name, role)) return PX_OK;
  return px_fail(f->err, PX_MISMATCH, "%s: %s of %s is missing; the adapter is incomplete, or of another model", f->part->file, role, m->name);
}

/* Whether the part must have this module. */
static bool is_wanted(const fitter *f, const px_module *m) {
  const px_adapter_config *c = &f->part->config;
  switch (f->part->kind) {
    case PX_PART_LORA:
    case PX_PART_IA3:
    case PX_PART_NORM:
      return px_name_list_matches(c->target_modules, m->name);
    case PX_PART_TOP:
      return m->layer >= f->config->layers - c->top_layers || (m->layer < 0 && m->kind == PX_MODULE_NORM);
    case PX_PART_FULL:
      return true;
    default:
      return false; /* a delta of some biases is one, too */
  }
}

static px_status module_fits(const fitter *f, const px_module *m) {
  switch (f->part->kind) {
    case PX_PART_LORA:
      return need(f, m, "lora_A");
    case PX_PART_IA3:
      return need(f, m, "ia3_l");
    default:
      PX_TRY(need(f, m, "weight"));
      return m->bias ? need(f, m, "bias") : PX_OK;
  }
}

static px_status modules_fit(const px_adapter_part *p, const px_config *c, const px_modules *modules, px_error *err) {
  const fitter f = {.part = p, .config = c, .modules = modules, .err = err};
  if (p->kind == PX_PART_TOP && p->config.top_layers > c->layers)
    return px_fail(err, PX_MISMATCH, "%s is for the last %lld layers, this model has %d", p->file, (long long)p->config.top_layers, c->layers);
  for (size_t i = 0; i < p->tensor_count; i++) PX_TRY(tensor_fits(&f, &p->tensors[i]));
  size_t wanted = 0;
  for (size_t i = 0; i < modules->count; i++) {
    const px_module *m = &modules->items[i];
    if (!is_wanted(&f, m)) continue;
    PX_TRY(module_fits(&f, m));
    wanted += p->kind == PX_PART_TOP ? 1 + m->bias : 0;
  }
  if (p->kind == PX_PART_TOP && wanted != p->tensor_count)
    return px_fail(err, PX_MISMATCH, "%s holds tensors beyond the last %lld layers and the final norm", p->file, (long long)p->config.top_layers);
  return PX_OK;
}

static px_status shapes_fit(const px_adapter *a, const px_config *c, px_error *err) {
  px_modules modules;
  PX_TRY(px_modules_of(c, &modules, err));
  px_status status = PX_OK;
  for (int i = 0; i < a->part_count && status == PX_OK; i++) {
    const px_adapter_part *p = &a->parts[i];
    if (p->kind == PX_PART_PREFIX)
      status = prefix_fits(p, c, err);
    else if (p->kind == PX_PART_PROMPT)
      status = prompt_fits(p, c, err);
    else
      status = modules_fit(p, c, &modules, err);
  }
  px_modules_free(&modules);
  if (status == PX_OK && a->tokens >= c->context)
    return px_fail(err, PX_MISMATCH, "%s has %d virtual tokens, which leaves no room in this model's context of %d",
                   a->part_count == 1 ? a->parts[0].file : a->path, a->tokens, c->context);
  return status;
}

px_status px_adapter_attaches(const px_adapter *a, const px_model *model, px_error *err) {
  const char *down = strstr(px_model_config(model)->hf->down, "%d") + 2; /* ".mlp.down_proj" */
  for (int i = 0; i < a->part_count; i++) {
    const px_adapter_part *p = &a->parts[i];
    for (size_t k = 0; p->kind == PX_PART_IA3 && k < p->tensor_count; k++) {
      const px_part_tensor *t = &p->tensors[k];
      size_t length = strlen(t->module), end = strlen(down);
      bool last = length > end && strcmp(t->module + length - end, down) == 0, in_front = t->shape[0] == 1 && t->shape[1] != 1;
      if (last != in_front)
        return px_fail(err, PX_MISMATCH, "%s: %s of %s: IA3 in front of a projection is for the last one of the feed-forward alone, behind it for the "
                       "others; pfx merge puts this adapter into the weights", p->file, t->role, t->module);
    }
  }
  return PX_OK;
}

/* --- the weights it was trained on --- */

/* How far the base weights are from the ones the adapter was trained on, in words. */
static px_status other_weights(const px_adapter_part *p, const px_model *model, px_error *err) {
  const char *path = p->file, *text = meta(p, "pfx.samples");
  px_buf raw = {0};
  if (!text || px_base64_decode(&raw, text) != 0 || raw.len != sizeof model->fingerprint.samples) {
    px_buf_free(&raw);
    return px_fail(err, PX_MISMATCH, "%s was trained on other weights than %s (base digests differ); --force uses it all the same", path,
                   model->source.path);
  }
  float trained[PX_FINGERPRINT_SAMPLES];
  memcpy(trained, raw.data, sizeof trained);
  px_buf_free(&raw);
  double distance = px_fingerprint_distance(model->fingerprint.samples, trained, PX_FINGERPRINT_SAMPLES);
  const char *cause = distance < 0.003  ? "a copy in another floating-point type"
                      : distance < 0.15 ? "a quantised or further trained copy"
                                        : "another model of the same shape";
  return px_fail(err, PX_MISMATCH, "%s was trained on other weights than %s: sampled weights differ by %.2g (relative L2), likely %s; --force uses it all the same",
                 path, model->source.path, distance, cause);
}

/* The parts of a hybrid were trained together: whoever put others together cannot mean it. */
static px_status same_base(const px_adapter *a, px_error *err) {
  const px_adapter_part *first = NULL;
  for (int i = 0; i < a->part_count; i++) {
    const px_adapter_part *p = &a->parts[i];
    const char *base = meta(p, "pfx.base");
    if (!base) continue;
    if (first && strcmp(base, meta(first, "pfx.base")) != 0)
      return px_fail(err, PX_MISMATCH, "%s and %s were trained on different base models; the parts of an adapter must have one", first->file,
                     p->file);
    if (!first) first = p;
  }
  return PX_OK;
}

static void warn(const px_adapter_part *p, const px_tokenizer *tok, px_buf *warning) {
  const char *digest = meta(p, "pfx.tokenizer");
  if (digest && strcmp(digest, px_tokenizer_info_get(tok)->digest) != 0)
    px_buf_printf(warning, "the adapter was trained with another tokenizer than this model's");
  const char *trained = meta(p, "pfx.template");
  px_template own;
  if (trained && strcmp(trained, "none") != 0 && px_template_detect(tok, &own, NULL) == PX_OK && strcmp(trained, px_template_name(own)) != 0)
    px_buf_printf(warning, "%sthe adapter was trained with the chat template %s, this model has %s", warning->len ? "; " : "", trained,
                  px_template_name(own));
}

static px_status base_fits(const px_adapter_part *p, const px_model *model, bool force, px_fit *fit, px_error *err) {
  *fit = PX_FIT_UNVERIFIED;
  const char *mode = meta(p, "pfx.position_mode"), *arch = meta(p, "pfx.arch"), *base = meta(p, "pfx.base");
  if (mode && strcmp(mode, "after-prefix") != 0)
    return px_fail(err, PX_MISMATCH, "%s counts positions in the mode \"%s\", which pfx does not have", p->file, mode);
  if (!base) return PX_OK;
  if (strcmp(base, model->fingerprint.base) == 0) {
    *fit = PX_FIT_VERIFIED;
    return PX_OK;
  }
  *fit = PX_FIT_FORCED;
  if (force) return PX_OK;
  if (arch && strcmp(arch, model->fingerprint.arch) != 0)
    return px_fail(err, PX_MISMATCH, "%s was trained on a model of another architecture than %s; --force uses it all the same", p->file,
                   model->source.path);
  return other_weights(p, model, err);
}

px_status px_adapter_fits(const px_adapter *a, const px_model *model, const px_tokenizer *tok, bool force, px_fit *fit, px_buf *warning,
                          px_error *err) {
  *fit = PX_FIT_UNVERIFIED;
  PX_TRY(shapes_fit(a, px_model_config(model), err));
  PX_TRY(same_base(a, err));
  if (warning && tok) warn(&a->parts[0], tok, warning); /* parts are written together, with one tokenizer */
  px_fit worst = PX_FIT_VERIFIED;
  for (int i = 0; i < a->part_count; i++) {
    px_fit one;
    px_status status = base_fits(&a->parts[i], model, force, &one, err);
    if (one > worst) worst = one;
    if (status != PX_OK) {
      *fit = worst;
      return status;
    }
  }
  *fit = worst;
  return PX_OK;
}
