/* SPDX-License-Identifier: MIT
 * An adapter in its base's weights. */
#ifndef PX_TUNE_MERGE_H
#define PX_TUNE_MERGE_H

#include "model/model_write.h"
#include "tune/adapter.h"

/* What stands before B A: alpha / r, or alpha / sqrt(r) where rank-stabilised. */
double px_lora_scale(const px_adapter_config *config);

/* PX_INVALID, by name, when a part of the adapter is no weight: a prefix or a prompt. */
px_status px_merge_check(const px_adapter *adapter, px_error *err);

/* Writes the base with the adapter in its weights as a model folder (px_model_write). Of a projection with everything,
 *   y = s (x (W + scale B A)^T + b)        W and b replaced first, where a part has them
 * becomes one weight: rows times s and b times s, or columns times s where the scale stands in front. Sums of low-rank products
 * in float64, one rounding to float32, one to the type that is written. The adapter must fit the model (px_adapter_fits). */
px_status px_merge(const px_adapter *adapter, const px_source *source, const px_tokenizer *tok, const char *dir,
                   const px_model_write_options *options, px_model_written *written, px_error *err);

struct px_tune;
/* model_save.c. What a run of weights (full, top, norm, bias) has trained, in its base: a model folder. Tensors are read one by one
 * from where they are trained. A part that is no weight is PX_INVALID. options.into lets it stand in the run's own folder. */
px_status px_tune_save_model(struct px_tune *tune, const char *dir, const px_tokenizer *tok, const px_model_write_options *options,
                             px_model_written *written, px_error *err);
/* Whether every weight is trained and nothing else: such a run leaves a model folder. */
bool px_tune_is_whole(const struct px_tune *tune);
/* That folder, into `dir`: transformers and pfx open it as a model, and pfx as an adapter of its base too, by pfx.json and the
 * metadata in model.safetensors. dtype: as in px_model_write_options. */
px_status px_tune_save_whole(struct px_tune *tune, const char *dir, const px_tokenizer *tok, int dtype, const char *base_name,
                             const px_meta *metadata, size_t count, px_error *err);

#endif
