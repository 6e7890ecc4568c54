/* SPDX-License-Identifier: MIT
 * Where a prefix starts: the keys and values of the first training rows or of a text, random numbers, zeros, or another
 * adapter. */
#include <math.h>
#include <stdlib.h>

#include "core/file.h"
#include "core/random.h"
#include "tune/prefix.h"

/* Standard deviation of random keys and values; see docs/performance.md, "Where a prefix starts". */
static const float RANDOM_SCALE = 0.02f;
enum { INIT_FILE_BYTES = 16 << 20 };

/* Keys or values of one layer, [count, width] of the model's type, as float32. */
static void read_back(px_backend *be, px_dtype type, const void *from, int64_t count, void *host, float *out) {
  px_backend_read(be, host, from, px_dtype_bytes(type, (size_t)count));
  for (int64_t i = 0; i < count; i++)
    out[i] = type == PX_F32 ? ((float *)host)[i] : px_bf16_to_f32(((uint16_t *)host)[i]);
}

/* One forward pass over a text, every layer's keys and values read back. */
px_status px_prefix_of_text(const px_model *model, px_backend *be, const int32_t *ids, int32_t count, float *out,
                            px_error *err) {
  const px_config *c = px_model_config(model);
  int64_t slice = (int64_t)count * c->kv_heads * c->head_dim;
  if (count > c->context)
    return px_fail(err, PX_INVALID, "the initial text has %d tokens, the model's context is %d", count, c->context);
  px_plan_request request = {.dtype = model->dtype,
                             .tokens = count,
                             .seqs = 1,
                             .labels = 1,
                             .positions = count,
                             .logit_rows = 1,
                             .keep_kv = true};
  px_buffers buffers;
  PX_TRY(px_buffers_open(c, be, &request, &buffers, err));
  int32_t *positions = px_calloc((size_t)count, sizeof *positions), offsets[2] = {0, count};
  void *host = px_calloc((size_t)slice, sizeof(float));
  px_status status = positions && host ? PX_OK : px_fail(err, PX_NO_MEMORY, "no memory");
  if (status == PX_OK) {
    for (int32_t i = 0; i < count; i++) positions[i] = i;
    px_stack s = {.be = be, .config = c, .weights = &model->weights, .buffers = &buffers};
    status = px_stack_begin(
        &s, &(px_batch){.tokens = count, .seqs = 1, .ids = ids, .positions = positions, .offsets = offsets}, err);
    if (status == PX_OK) px_stack_fwd(&s);
  }
  for (int l = 0; status == PX_OK && l < c->layers; l++) {
    read_back(be, model->dtype, buffers.layers[l].k, slice, host, out + 2 * l * slice);
    read_back(be, model->dtype, buffers.layers[l].v, slice, host, out + (2 * l + 1) * slice);
  }
  if (status == PX_OK) status = px_backend_status(be, err);
  free(host);
  free(positions);
  px_buffers_close(&buffers, be);
  return status;
}

px_status px_part_text_ids(px_part *part, const px_part_start *start, px_ids *ids, px_error *err) {
  const px_part_spec *spec = part->spec;
  const px_tokenizer *tok = start->tok;
  if (!tok) return px_fail(err, PX_INVALID, "--init text needs the model's tokenizer, and the model has none");
  const px_tokenizer_info *info = px_tokenizer_info_get(tok);
  px_buf text = {0};
  px_status status = spec->init_file ? px_file_read(spec->init_value, INIT_FILE_BYTES, &text, err) : PX_OK;
  if (status == PX_OK && !spec->init_file) px_buf_puts(&text, spec->init_value);
  if (status == PX_OK && text.failed) status = px_fail(err, PX_NO_MEMORY, "no memory");
  if (status == PX_OK && info->add_bos && info->bos >= 0) status = px_ids_push(ids, info->bos, err);
  if (status == PX_OK && text.len) status = px_tokenizer_encode(tok, text.data, text.len, 0, ids, err);
  px_buf_free(&text);
  if (status == PX_OK && ids->len == 0) status = px_fail(err, PX_INVALID, "the initial text is empty");
  const char *name = px_part_kind_name(spec->kind);
  if (status == PX_OK && spec->size && (size_t)spec->size != ids->len)
    status = px_fail(
        err, PX_INVALID,
        "%s:%d does not fit its initial text, which has %zu tokens: write %s:%zu, or leave the number out",
        name, spec->size, ids->len, name, ids->len);
  const px_config *c = part->tune->config;
  for (size_t i = 0; status == PX_OK && i < ids->len; i++)
    if (ids->data[i] < 0 || ids->data[i] >= c->vocab)
      status = px_fail(err, PX_INVALID,
                       "the initial text has a token with id %d, outside the model's vocabulary of %d tokens",
                       ids->data[i], c->vocab);
  return status;
}

px_status px_part_row_ids(px_part *part, const px_part_start *start, px_ids *ids, px_error *err) {
  int32_t tokens = part->spec->size;
  if (tokens < 1 || start->spec->data_tokens < 1) return px_fail(err, PX_INVALID, "--init data needs rows and %s:N", px_part_kind_name(part->spec->kind));
  for (int32_t i = 0; i < tokens; i++) PX_TRY(px_ids_push(ids, start->spec->data_ids[i % start->spec->data_tokens], err));
  return PX_OK;
}

/* The keys and values of ids, which it frees. */
static px_status from_ids(px_part *part, px_ids *ids, px_status status, float **values, px_error *err) {
  const px_config *c = part->tune->config;
  if (status == PX_OK) {
    part->tokens = (int32_t)ids->len;
    *values = px_calloc(ids->len * 2 * (size_t)c->layers * (size_t)c->kv_heads * (size_t)c->head_dim, sizeof(float));
    status = *values ? px_prefix_of_text(part->tune->model, part->tune->be, ids->data, part->tokens, *values, err)
                     : px_fail(err, PX_NO_MEMORY, "no memory for a prefix of %d tokens", part->tokens);
  }
  px_ids_free(ids);
  return status;
}

static px_status from_adapter(px_part *part, const px_part_start *start, float **values, px_error *err) {
  const px_part_spec *spec = part->spec;
  const px_config *c = part->tune->config;
  int64_t width = (int64_t)c->kv_heads * c->head_dim, slices = 2 * (int64_t)c->layers;
  const px_adapter_part *there = px_adapter_find(start->adapter, PX_PART_PREFIX);
  if (!there) return px_fail(err, PX_INVALID, "--init adapter:%s: it is %s and has no prefix to start from", spec->init_value, start->adapter->kind);
  int32_t tokens = (int32_t)there->config.virtual_tokens;
  if (spec->size && spec->size != tokens)
    return px_fail(err, PX_INVALID, "prefix:%d does not fit its initial adapter %s, which has %d virtual tokens", spec->size, spec->init_value, tokens);
  part->tokens = tokens;
  *values = px_calloc((size_t)(tokens * slices * width), sizeof(float));
  if (!*values) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t s = 0; s < slices; s++)
      memcpy(*values + (s * tokens + t) * width, there->tensors[0].values + px_peft_index(t, s, 0, slices, width), (size_t)width * sizeof(float));
  return PX_OK;
}

px_status px_prefix_initial(px_part *part, const px_part_start *start, float **values, px_error *err) {
  px_ids ids = {0};
  part->tokens = part->spec->size;
  *values = NULL;
  px_status status = PX_OK;
  if (start->spec->restored) return PX_OK;
  if (part->spec->init == PX_INIT_TEXT) status = from_ids(part, &ids, px_part_text_ids(part, start, &ids, err), values, err);
  if (part->spec->init == PX_INIT_DATA) status = from_ids(part, &ids, px_part_row_ids(part, start, &ids, err), values, err);
  if (part->spec->init == PX_INIT_ADAPTER) status = from_adapter(part, start, values, err);
  if (status == PX_OK && part->tokens < 1) status = px_fail(err, PX_INVALID, "a prefix needs at least one virtual token");
  return status;
}

/* Uniform in [-1, 1), for the network's linear layers; `index` runs over all of a part's numbers. */
static float symmetric(uint64_t seed, uint64_t index) {
  return 2 * px_uniform(px_philox(seed, PX_STREAM_INIT, 1, index).v[0]) - 1;
}

/* Li and Liang's network as PyTorch initialises it: embedding N(0, 1), linear layers uniform within 1 / sqrt(in). With
 * an offset the last layer starts at zero, so that the run starts exactly at the offset. */
static void fill_network(const px_part *part, uint64_t seed, float *host) {
  const px_prefix_part *p = part->own;
  uint64_t index = 0;
  for (int i = 0; i < 5; i++) {
    const px_param *param = &part->tune->params[p->first_param + i];
    float *to = host + (param->value - p->values);
    bool last = i >= 3;
    double bound = 1.0 / sqrt((double)(last ? part->spec->reparam_hidden : p->width));
    for (int64_t j = 0; j < param->count; j++, index++)
      to[j] = i == 0                  ? px_normal(seed, PX_STREAM_INIT, 0, index)
              : last && p->has_offset ? 0
                                      : (float)bound * symmetric(seed, index);
  }
}

/* Layers without a prefix stay zero. */
static void clear_layers(const px_prefix_part *p, float *host) {
  for (int64_t s = 0; s < p->slices; s++)
    if (!p->layers[s / 2]) memset(host + s * p->slice, 0, (size_t)p->slice * sizeof *host);
}

px_status px_prefix_fill(px_part *part, const float *initial, uint64_t seed, px_error *err) {
  const px_prefix_part *p = part->own;
  int64_t all = p->slices * p->slice, floats = p->param_floats > all ? p->param_floats : all;
  if (part->tune->spec.restored) return PX_OK; /* zeros until the checkpoint is read */
  float *host = px_calloc((size_t)floats, sizeof *host);
  if (!host) return px_fail(err, PX_NO_MEMORY, "no memory");
  if (part->spec->reparam_hidden) {
    fill_network(part, seed, host);
    px_part_write(part, p->values, host, p->param_floats);
    if (p->has_offset) px_part_write(part, p->offset, initial, all);
  } else if (initial || part->spec->init == PX_INIT_RANDOM) {
    if (initial) memcpy(host, initial, (size_t)all * sizeof *host);
    for (int64_t i = 0; !initial && i < all; i++) host[i] = RANDOM_SCALE * px_normal(seed, PX_STREAM_INIT, 0, (uint64_t)i);
    clear_layers(p, host);
    px_part_write(part, p->flat, host, all);
  }
  free(host);
  return px_backend_status(part->tune->be, err);
}

px_status px_prefix_to_peft(px_part *part, const float *source, int64_t apart, bool reversed, float *values, px_error *err) {
  const px_prefix_part *p = part->own;
  int64_t all = p->slices * apart;
  float *host = px_calloc((size_t)all, sizeof *host);
  if (!host) return px_fail(err, PX_NO_MEMORY, "no memory");
  px_backend_read(part->tune->be, host, source, (size_t)all * sizeof *host);
  for (int64_t s = 0; s < p->slices; s++) {
    int64_t from = reversed ? 2 * (part->tune->config->layers - 1 - s / 2) + s % 2 : s;
    for (int64_t token = 0; token < part->tokens; token++)
      memcpy(values + px_peft_index(token, s, 0, p->slices, p->width), host + from * apart + token * p->width,
             (size_t)p->width * sizeof *host);
  }
  free(host);
  return px_backend_status(part->tune->be, err);
}

px_status px_prefix_from_peft(px_part *part, const float *values, px_error *err) {
  const px_prefix_part *p = part->own;
  int64_t all = p->slices * p->slice;
  float *host = px_calloc((size_t)all, sizeof *host);
  if (!host) return px_fail(err, PX_NO_MEMORY, "no memory");
  for (int64_t s = 0; s < p->slices; s++)
    for (int64_t token = 0; token < part->tokens; token++)
      memcpy(host + s * p->slice + token * p->width, values + px_peft_index(token, s, 0, p->slices, p->width), (size_t)p->width * sizeof *host);
  px_backend_write(part->tune->be, p->flat, host, (size_t)all * sizeof *host);
  free(host);
  return px_backend_status(part->tune->be, err);
}
