/* SPDX-License-Identifier: MIT
 * Inside the emulator: work in streams, device memory, and what went wrong. */
#ifndef PX_EMU_H
#define PX_EMU_H

#include <cuda_runtime_api.h>

#include <functional>

namespace px_emu {

/* A bug of the program under test that a real device would answer with anything at all: said, then abort. */
[[noreturn]] void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The sticky kind (asynchronous failures): every later call returns it. */
void stick(cudaError_t error);
cudaError_t set_error(cudaError_t error); /* the last error; returns it */

/* Work at the end of a stream, or of the graph that it captures. */
void enqueue(cudaStream_t stream, const char *name, std::function<void()> work);

/* ---- device memory: a range of its own that only work in streams can touch ---- */
void *memory_alloc(size_t bytes);               /* NULL: out of memory; filled with NaN */
bool memory_free(void *p);                      /* false: nothing was allocated there */
bool memory_holds(const void *p, size_t bytes); /* inside one allocation */
bool memory_is_device(const void *p);
void memory_open();
void memory_close();
size_t memory_used();
size_t memory_total();

/* ---- grids ---- */
void run_grid(const char *name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &body);

/* Numbers from PX_EMU_SEED (0 where unset: threads, blocks and streams in their natural order). */
unsigned seed();
unsigned draw(unsigned below);
long setting(const char *name, long otherwise); /* of the environment */
/* Time passes only where work says how much it takes; events tell it. */
void spend(double ms);

}  // namespace px_emu

#endif
