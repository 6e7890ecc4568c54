/* SPDX-License-Identifier: MIT
 * oneDNN 2.x and 3.x under one set of names: a description of memory is a struct in 2.x, a handle in 3.x. */
#ifndef PX_BACKEND_ONEDNN_VERSIONS_H
#define PX_BACKEND_ONEDNN_VERSIONS_H

#include <dnnl.h>

#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t desc_view;
#define VIEW(desc) (desc)
#define desc_strided dnnl_memory_desc_create_with_strides
#define desc_tagged dnnl_memory_desc_create_with_tag
static inline dnnl_status_t desc_copy(dnnl_memory_desc_t *out, desc_view from) {
  return dnnl_memory_desc_clone(out, from);
}
static inline void desc_free(dnnl_memory_desc_t *desc) {
  if (*desc) dnnl_memory_desc_destroy(*desc);
  *desc = NULL;
}
static inline dnnl_status_t append_sum(dnnl_post_ops_t ops) {
  return dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
}
#else
typedef const dnnl_memory_desc_t *desc_view;
#define VIEW(desc) (&(desc))
#define desc_strided dnnl_memory_desc_init_by_strides
#define desc_tagged dnnl_memory_desc_init_by_tag
static inline dnnl_status_t desc_copy(dnnl_memory_desc_t *out, desc_view from) {
  *out = *from;
  return dnnl_success;
}
static inline void desc_free(dnnl_memory_desc_t *desc) { (void)desc; }
static inline dnnl_status_t append_sum(dnnl_post_ops_t ops) { return dnnl_post_ops_append_sum(ops, 1.0f); }
#endif

#endif
