/* SPDX-License-Identifier: MIT */
#ifndef PX_CORE_FREE_MEMORY_H
#define PX_CORE_FREE_MEMORY_H

#include <stdint.h>

/* Bytes that this process may still take without swapping or being killed: what the machine has available, less where a
 * control group (version 1 or 2, its parents too) or `ulimit -v` allows less. -1 where the system does not say. root: ""
 * (a test's own /proc and /sys elsewhere). */
int64_t px_free_memory(const char *root);

#endif
