/* SPDX-License-Identifier: MIT */
#include "backend/cudnn_graph.h"

#include <cudnn_frontend.h>
#include <dlfcn.h>

namespace fe = cudnn_frontend;
using tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

struct px_cudnn {
  cudnnHandle_t handle;
  std::shared_ptr<const fe::DeviceProperties> properties;
  bool check_only;
};

struct px_cudnn_graph {
  fe::graph::Graph graph;
  px_cudnn_shape shape;
  int64_t workspace;
};

/* ---- the library's calls ----
 * The front end calls cuDNN by name, and the program must start without it: these stand for the names and pass on to the
 * library that was opened. They are set once, by the first px_cudnn_open, and hidden, so that the library itself calls its own. */

#define PX_CUDNN_CALLS(X)                                                                                                            \
  X(size_t, cudnnGetVersion, (void), (), 0)                                                                                          \
  X(const char *, cudnnGetErrorString, (cudnnStatus_t status), (status), "cuDNN is not there")                                       \
  X(void, cudnnGetLastErrorString, (char *text, size_t room), (text, room), (void)0)                                                 \
  X(cudnnStatus_t, cudnnCreate, (cudnnHandle_t * handle), (handle), CUDNN_STATUS_NOT_INITIALIZED)                                     \
  X(cudnnStatus_t, cudnnDestroy, (cudnnHandle_t handle), (handle), CUDNN_STATUS_NOT_INITIALIZED)                                      \
  X(cudnnStatus_t, cudnnSetStream, (cudnnHandle_t handle, cudaStream_t stream), (handle, stream), CUDNN_STATUS_NOT_INITIALIZED)       \
  X(cudnnStatus_t, cudnnGetStream, (cudnnHandle_t handle, cudaStream_t * stream), (handle, stream), CUDNN_STATUS_NOT_INITIALIZED)     \
  X(cudnnStatus_t, cudnnBackendCreateDescriptor, (cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t * d), (type, d),        \
    CUDNN_STATUS_NOT_INITIALIZED)                                                                                                    \
  X(cudnnStatus_t, cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t d), (d), CUDNN_STATUS_NOT_INITIALIZED)                    \
  X(cudnnStatus_t, cudnnBackendFinalize, (cudnnBackendDescriptor_t d), (d), CUDNN_STATUS_NOT_INITIALIZED)                             \
  X(cudnnStatus_t, cudnnBackendSetAttribute,                                                                                         \
    (cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void *v),   \
    (d, name, type, count, v), CUDNN_STATUS_NOT_INITIALIZED)                                                                         \
  X(cudnnStatus_t, cudnnBackendGetAttribute,                                                                                         \
    (cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t room, int64_t *count,    \
     void *v),                                                                                                                       \
    (d, name, type, room, count, v), CUDNN_STATUS_NOT_INITIALIZED)                                                                   \
  X(cudnnStatus_t, cudnnBackendExecute, (cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack),          \
    (handle, plan, pack), CUDNN_STATUS_NOT_INITIALIZED)

#define PX_CUDNN_PASS_ON(result, name, parameters, arguments, otherwise) \
  static result(*name##_found) parameters;                               \
  extern "C" result name parameters {                                    \
    if (name##_found) return name##_found arguments;                     \
    return otherwise;                                                    \
  }
PX_CUDNN_CALLS(PX_CUDNN_PASS_ON)
#undef PX_CUDNN_PASS_ON

static bool find_calls(void *library, px_cudnn_text *why) {
#define PX_CUDNN_FIND(result, name, parameters, arguments, otherwise)                                    \
  name##_found = reinterpret_cast<result(*) parameters>(dlsym(library, #name));                          \
  if (!name##_found) {                                                                                   \
    snprintf(why->text, sizeof why->text, "libcudnn has no " #name ": cuDNN 9.10.2 or later is needed");  \
    return false;                                                                                        \
  }
  PX_CUDNN_CALLS(PX_CUDNN_FIND)
#undef PX_CUDNN_FIND
  return true;
}

/* Numbers by which a run names what it passes: tensors from 1, their sequences' starts from 101. */
enum { TENSOR_ID = 1, STARTS_ID = 101, LENS_ID = 201 };

static bool ok(fe::error_t e, px_cudnn_text *why) {
  if (e.is_good()) return true;
  std::string line = e.get_message();
  for (char &c : line)
    if (c == '\n') c = ' ';
  snprintf(why->text, sizeof why->text, "%s", line.c_str());
  return false;
}

/* ---- a graph ---- */

static tensor array(px_cudnn_graph *g, const char *name, int64_t count, fe::DataType_t type, int64_t id) {
  return g->graph.tensor(fe::graph::Tensor_attributes().set_name(name).set_dim({count, 1, 1, 1}).set_stride({1, 1, 1, 1}).set_data_type(type).set_uid(id));
}

/* Rows of a ragged tensor: [sequences, heads, longest, columns], of which each sequence has its own start. */
static void describe(px_cudnn_graph *g, fe::graph::Tensor_attributes &t, int which, int64_t heads, int64_t columns, fe::DataType_t type) {
  const px_cudnn_shape &s = g->shape;
  static const char *const names[] = {"q", "k", "v", "o", "stats", "do", "dq", "dk", "dv"};
  int64_t stride = which == PX_CUDNN_STATS ? heads : s.strides[which];
  t.set_name(names[which]).set_data_type(type).set_uid(TENSOR_ID + which);
  t.set_dim({s.seqs, heads, s.longest, columns}).set_stride({s.longest * stride, columns, stride, 1});
  t.set_ragged_offset(array(g, "starts", s.seqs + 1, fe::DataType_t::INT64, STARTS_ID + which));
}

static tensor rows(px_cudnn_graph *g, int which) {
  const px_cudnn_shape &s = g->shape;
  fe::graph::Tensor_attributes t;
  bool keys = which == PX_CUDNN_K || which == PX_CUDNN_V, statistics = which == PX_CUDNN_STATS;
  fe::DataType_t type = statistics ? fe::DataType_t::FLOAT : s.dtype == PX_BF16 ? fe::DataType_t::BFLOAT16 : fe::DataType_t::HALF;
  describe(g, t, which, keys ? s.kv_heads : s.heads, statistics ? 1 : s.head_dim, type);
  return g->graph.tensor(t);
}

static void result(px_cudnn_graph *g, const tensor &t, int which) {
  const px_cudnn_shape &s = g->shape;
  bool keys = which == PX_CUDNN_DK || which == PX_CUDNN_DV, statistics = which == PX_CUDNN_STATS;
  fe::DataType_t type = statistics ? fe::DataType_t::FLOAT : s.dtype == PX_BF16 ? fe::DataType_t::BFLOAT16 : fe::DataType_t::HALF;
  t->set_output(true);
  describe(g, *t, which, keys ? s.kv_heads : s.heads, statistics ? 1 : s.head_dim, type);
}

/* What both passes are told about the mask. A sequence has as many queries as keys, so that the diagonal may begin at the
 * first of them. */
template <typename A>
static void mask(A &a, const px_cudnn_shape &s, const tensor &lens) {
  a.set_attn_scale(s.scale).set_padding_mask(true).set_seq_len_q(lens).set_seq_len_kv(lens);
  if (!s.causal) return;
  a.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT).set_diagonal_band_right_bound(0);
  if (s.window) a.set_diagonal_band_left_bound(s.window);
}

static void forward(px_cudnn_graph *g, const tensor &lens) {
  fe::graph::SDPA_attributes a;
  a.set_name("forward").set_generate_stats(true);
  mask(a, g->shape, lens);
  auto [o, stats] = g->graph.sdpa(rows(g, PX_CUDNN_Q), rows(g, PX_CUDNN_K), rows(g, PX_CUDNN_V), a);
  result(g, o, PX_CUDNN_O);
  result(g, stats, PX_CUDNN_STATS);
}

static void backward(px_cudnn_graph *g, const tensor &lens) {
  fe::graph::SDPA_backward_attributes a;
  a.set_name("backward").set_max_total_seq_len_q(g->shape.rows).set_max_total_seq_len_kv(g->shape.rows);
  mask(a, g->shape, lens);
  auto [dq, dk, dv] = g->graph.sdpa_backward(rows(g, PX_CUDNN_Q), rows(g, PX_CUDNN_K), rows(g, PX_CUDNN_V), rows(g, PX_CUDNN_O),
                                             rows(g, PX_CUDNN_DOUT), rows(g, PX_CUDNN_STATS), a);
  result(g, dq, PX_CUDNN_DQ);
  result(g, dk, PX_CUDNN_DK);
  result(g, dv, PX_CUDNN_DV);
}

static bool plan(px_cudnn *c, px_cudnn_graph *g, px_cudnn_text *why) {
  fe::DataType_t io = g->shape.dtype == PX_BF16 ? fe::DataType_t::BFLOAT16 : fe::DataType_t::HALF;
  g->graph.set_io_data_type(io).set_intermediate_data_type(fe::DataType_t::FLOAT).set_compute_data_type(fe::DataType_t::FLOAT);
  if (c->properties) g->graph.set_device_properties(c->properties);
  tensor lens = array(g, "lens", g->shape.seqs, fe::DataType_t::INT32, LENS_ID);
  if (g->shape.backward) backward(g, lens);
  else forward(g, lens);
  if (!ok(g->graph.validate(), why)) return false;
  if (c->check_only) return true;
  if (!ok(c->properties ? g->graph.build_operation_graph() : g->graph.build_operation_graph(c->handle), why)) return false;
  if (!ok(g->graph.create_execution_plans({fe::HeurMode_t::A}), why)) return false;
  if (!ok(c->properties ? g->graph.check_support() : g->graph.check_support(c->handle), why)) return false;
  if (c->properties) return true; /* its code would be loaded by the driver, and there is none */
  if (!ok(g->graph.build_plans(c->handle), why)) return false;
  return ok(g->graph.get_workspace_size(g->workspace), why);
}

/* ---- behind C ---- */

/* No exception of the front end's passes the border. */
#define GUARDED(...)                                                  \
  try {                                                               \
    __VA_ARGS__                                                       \
  } catch (const std::exception &e) {                                 \
    snprintf(why->text, sizeof why->text, "cuDNN: %.380s", e.what()); \
    return false;                                                     \
  }

static bool start(px_cudnn *c, void *library, const void *properties, size_t bytes, px_cudnn_text *why) {
  if (!find_calls(library, why)) return false;
  long version = px_cudnn_version(c);
  if (version < PX_CUDNN_OLDEST) {
    snprintf(why->text, sizeof why->text, "cuDNN %ld.%ld.%ld is too old: 9.10.2 or later is needed", version / 10000, version / 100 % 100, version % 100);
    return false;
  }
  if (properties) {
    const uint8_t *text = static_cast<const uint8_t *>(properties);
    auto made = std::make_shared<fe::DeviceProperties>();
    if (!ok(made->deserialize(std::vector<uint8_t>(text, text + bytes)), why)) return false;
    c->properties = made;
    return true;
  }
  if (c->check_only) return true;
  cudnnStatus_t status = cudnnCreate(&c->handle);
  if (status != CUDNN_STATUS_SUCCESS) snprintf(why->text, sizeof why->text, "cuDNN does not start: %s", cudnnGetErrorString(status));
  return status == CUDNN_STATUS_SUCCESS;
}

bool px_cudnn_open(void *library, const void *properties, size_t bytes, bool check_only, px_cudnn **out, px_cudnn_text *why) {
  *out = nullptr;
  GUARDED({
    std::unique_ptr<px_cudnn> c(new px_cudnn{nullptr, nullptr, check_only});
    if (!start(c.get(), library, properties, bytes, why)) return false;
    *out = c.release();
    return true;
  })
}

void px_cudnn_close(px_cudnn *c) {
  if (c && c->handle) cudnnDestroy(c->handle);
  delete c;
}

long px_cudnn_version(const px_cudnn *) { return (long)cudnnGetVersion(); }

bool px_cudnn_properties(px_cudnn *c, int device, char **out, size_t *bytes, px_cudnn_text *why) {
  *out = nullptr;
  GUARDED({
    fe::DeviceProperties properties;
    std::vector<uint8_t> text;
    if (!ok(properties.set_handle(c->handle).set_device_id(device).build(), why) || !ok(properties.serialize(text), why)) return false;
    *bytes = text.size();
    *out = static_cast<char *>(malloc(text.size() + 1));
    if (*out) memcpy(*out, text.data(), text.size());
    return *out != nullptr;
  })
}

bool px_cudnn_graph_make(px_cudnn *c, const px_cudnn_shape *shape, px_cudnn_graph **out, px_cudnn_text *why) {
  *out = nullptr;
  GUARDED({
    std::unique_ptr<px_cudnn_graph> g(new px_cudnn_graph{{}, *shape, 0});
    if (!plan(c, g.get(), why)) return false;
    *out = g.release();
    return true;
  })
}

void px_cudnn_graph_free(px_cudnn_graph *g) { delete g; }
size_t px_cudnn_graph_workspace(const px_cudnn_graph *g) { return (size_t)g->workspace; }

bool px_cudnn_graph_run(px_cudnn *c, px_cudnn_graph *g, void *const tensors[PX_CUDNN_TENSORS], int64_t *starts, int32_t *lens, void *workspace,
                        void *stream, px_cudnn_text *why) {
  GUARDED({
    std::unordered_map<int64_t, void *> pack = {{LENS_ID, lens}};
    int count = g->shape.backward ? PX_CUDNN_TENSORS : PX_CUDNN_STATS + 1;
    for (int i = 0; i < count; i++) {
      pack[TENSOR_ID + i] = tensors[i];
      pack[STARTS_ID + i] = starts + i * (g->shape.seqs + 1);
    }
    if (cudnnSetStream(c->handle, static_cast<cudaStream_t>(stream)) != CUDNN_STATUS_SUCCESS) {
      snprintf(why->text, sizeof why->text, "cuDNN does not take the stream");
      return false;
    }
    return ok(g->graph.execute(c->handle, pack, workspace), why);
  })
}
