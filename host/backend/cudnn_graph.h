/* SPDX-License-Identifier: MIT
 * cuDNN's attention behind plain C: cudnn_graph.cpp is the one C++ file beside the kernels, because cuDNN's front end is
 * headers of C++. A graph is one pass over ragged batches of up to so many sequences and rows; it is made once for its
 * shape and run any number of times. */
#ifndef PX_BACKEND_CUDNN_GRAPH_H
#define PX_BACKEND_CUDNN_GRAPH_H

#include "core/types.h"

PX_C_BEGIN

/* Tensors of a pass; forward has those up to STATS (log-sum-exp, [rows, heads] float32). */
enum {
  PX_CUDNN_Q,
  PX_CUDNN_K,
  PX_CUDNN_V,
  PX_CUDNN_O,
  PX_CUDNN_STATS,
  PX_CUDNN_DOUT,
  PX_CUDNN_DQ,
  PX_CUDNN_DK,
  PX_CUDNN_DV,
  PX_CUDNN_TENSORS
};

/* What a graph is made for; compared byte by byte, so it is zeroed before it is filled. */
typedef struct px_cudnn_shape {
  int64_t seqs, longest, rows;       /* at most: sequences, tokens of one, tokens of all */
  int64_t strides[PX_CUDNN_TENSORS]; /* elements from one row to the next */
  int32_t heads, kv_heads, head_dim;
  int32_t causal, window; /* causal: queries and keys of a sequence are of one length; window 0: none */
  int32_t dtype;          /* PX_BF16 or PX_F16 */
  int32_t backward;
  float scale;
} px_cudnn_shape;

typedef struct px_cudnn px_cudnn;
typedef struct px_cudnn_graph px_cudnn_graph;

/* Failures return false and leave a line in `why`. */
typedef struct px_cudnn_text {
  char text[400];
} px_cudnn_text;

enum { PX_CUDNN_OLDEST = 91002 }; /* grouped heads of ragged batches, without the faults of 9.10.0 and 9.10.1 */

/* library: of dlopen. With properties (what px_cudnn_properties gave on some device) graphs are made for that device, as far
 * as cuDNN's kernels for them, and cannot be run; without, for the current one. check_only: they are only looked at for mistakes. One library in a process. */
bool px_cudnn_open(void *library, const void *properties, size_t bytes, bool check_only, px_cudnn **out, px_cudnn_text *why);
void px_cudnn_close(px_cudnn *c); /* NULL is fine; after its graphs */
long px_cudnn_version(const px_cudnn *c); /* 91900 */
/* What plans for the current device need to know about it, as text; free(). */
bool px_cudnn_properties(px_cudnn *c, int device, char **out, size_t *bytes, px_cudnn_text *why);

/* false: cuDNN, or the device, does not have it. */
bool px_cudnn_graph_make(px_cudnn *c, const px_cudnn_shape *shape, px_cudnn_graph **out, px_cudnn_text *why);
void px_cudnn_graph_free(px_cudnn_graph *g);
size_t px_cudnn_graph_workspace(const px_cudnn_graph *g);
/* tensors[i] is read or written in rows; its sequence s begins at element starts[i * (seqs + 1) + s] (int64, device), and
 * has lens[s] rows (int32, device): kernels/attention_merge.h. Enqueues only. */
bool px_cudnn_graph_run(px_cudnn *c, px_cudnn_graph *g, void *const tensors[PX_CUDNN_TENSORS], int64_t *starts, int32_t *lens, void *workspace,
                        void *stream, px_cudnn_text *why);

PX_C_END

#endif
