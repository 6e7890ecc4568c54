/* SPDX-License-Identifier: MIT
 * Reading tests/golden: paths, rows, comparisons. */
#ifndef PX_TESTS_GOLDEN_H
#define PX_TESTS_GOLDEN_H

#include "format/safetensors.h"
#include "text/rows.h"

/* "<source>/tests/golden/<name>/<file>" into path[512]; returns path. */
const char *golden_path(const char *name, const char *file, char *path);
/* The ids, labels and offsets of a golden file as rows; px_rows_free releases. */
void golden_rows(const px_tensor_list *golden, px_rows *out);
const float *golden_floats(const px_tensor_list *list, const char *name);
/* max |got - want| <= tolerance * max |want|; want is called prefix + name. */
void golden_near_largest(const char *what, const px_tensor_list *got, const char *name, const px_tensor_list *want,
                         const char *prefix, double tolerance);
double golden_relative_l2(const px_tensor_list *got, const char *name, const px_tensor_list *want,
                          const char *want_name);

#endif
