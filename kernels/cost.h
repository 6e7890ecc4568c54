/* SPDX-License-Identifier: MIT
 * What an operation costs at least: every input read once, every output written once (read too where it accumulates),
 * and the arithmetic operations of the contract's formula, a function such as exp counted as one. Benchmarks divide by
 * it. */
#ifndef PX_KERNELS_COST_H
#define PX_KERNELS_COST_H

typedef struct px_cost {
  double bytes, operations;
} px_cost;

#endif
