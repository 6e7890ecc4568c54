/* SPDX-License-Identifier: MIT
 * A grid on the calling thread: block after block, a fiber per thread. A fiber runs until it waits for others (a
 * barrier, a warp's meeting) or ends; with a seed, threads and blocks run in another order each time. */
#include <boost/context/detail/fcontext.hpp>

#include <stdlib.h>
#include <sys/mman.h>

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "emu.h"
#include "px_emulated_device.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define PX_EMU_ASAN 1
#else
#define PX_EMU_ASAN 0
#endif

namespace px_emu {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

thread *now;

namespace {

enum { STACK_BYTES = 256 * 1024, WARP = 32 };

struct warp {
  unsigned arrived, mask, generation;
  const char *what;
  alignas(16) unsigned char slots[2][WARP * SLOT];
};

struct copy {
  unsigned char *to;
  const unsigned char *from;
  size_t bytes, zeros;
};

struct fiber {
  thread state;
  std::vector<copy> copies;    /* not yet committed */
  std::deque<std::vector<copy>> groups; /* committed, oldest first */
  fcontext_t context;
  void *fake_stack;
  bool started, done;
  unsigned barrier; /* generation it waits for to pass; */
  warp *meeting;    /* or the meeting of its warp */
  unsigned meeting_generation;
  bool at_barrier;
};

struct block_run {
  const std::function<void()> *body;
  const char *name;
  std::vector<fiber> fibers;
  std::vector<warp> warps;
  std::map<const void *, std::unique_ptr<unsigned char[]>> shared;
  std::unique_ptr<unsigned char[]> dynamic;
  size_t live, arrived, dynamic_bytes;
  unsigned generation;
  fiber *running;
  fcontext_t scheduler;
  void *scheduler_fake;
  const void *scheduler_stack;
  size_t scheduler_bytes;
};

block_run *run;
std::vector<unsigned char *> stacks;

unsigned char *stack_of(size_t i) {
  while (stacks.size() <= i) {
    void *p = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fatal("no memory for a thread's stack");
    stacks.push_back(static_cast<unsigned char *>(p));
  }
  return stacks[i];
}

size_t index_of(const fiber *f) { return (size_t)(f - run->fibers.data()); }
warp *warp_of(const fiber *f) { return &run->warps[index_of(f) / WARP]; }

void to_scheduler(fiber *f, bool last) {
#if PX_EMU_ASAN
  __sanitizer_start_switch_fiber(last ? NULL : &f->fake_stack, run->scheduler_stack, run->scheduler_bytes);
#endif
  (void)last;
  transfer_t t = jump_fcontext(run->scheduler, NULL);
  run->scheduler = t.fctx;
#if PX_EMU_ASAN
  __sanitizer_finish_switch_fiber(f->fake_stack, &run->scheduler_stack, &run->scheduler_bytes);
#endif
}

void entry(transfer_t t) {
  fiber *f = static_cast<fiber *>(t.data);
  run->scheduler = t.fctx;
#if PX_EMU_ASAN
  __sanitizer_finish_switch_fiber(NULL, &run->scheduler_stack, &run->scheduler_bytes);
#endif
  (*run->body)();
  f->done = true;
  to_scheduler(f, true);
  abort();
}

void resume(fiber *f) {
  size_t i = index_of(f);
  if (!f->started) {
    f->started = true;
    f->context = make_fcontext(stack_of(i) + STACK_BYTES, STACK_BYTES, entry);
  }
  run->running = f;
  now = &f->state;
#if PX_EMU_ASAN
  __sanitizer_start_switch_fiber(&run->scheduler_fake, stack_of(i), STACK_BYTES);
#endif
  transfer_t t = jump_fcontext(f->context, f);
  f->context = t.fctx;
#if PX_EMU_ASAN
  __sanitizer_finish_switch_fiber(run->scheduler_fake, NULL, NULL);
#endif
  now = NULL;
}

bool waits(const fiber *f) {
  if (f->meeting) return f->meeting->generation == f->meeting_generation;
  return f->at_barrier && run->generation == f->barrier;
}

/* A thread that has ended no longer counts at the block's barrier. */
void pass_barrier_if_complete() {
  if (run->arrived == 0 || run->arrived < run->live) return;
  run->arrived = 0;
  run->generation++;
}

void one_block(const std::vector<size_t> &order) {
  while (run->live > 0) {
    bool progress = false;
    for (size_t i : order) {
      fiber *f = &run->fibers[i];
      if (f->done || waits(f)) continue;
      f->meeting = NULL;
      f->at_barrier = false;
      resume(f);
      progress = true;
      if (!f->done) continue;
      run->live--;
      pass_barrier_if_complete();
    }
    if (progress) continue;
    size_t barrier = 0, meeting = 0;
    for (const fiber &f : run->fibers) {
      barrier += !f.done && f.at_barrier;
      meeting += !f.done && f.meeting;
    }
    fatal("%s: threads wait for each other for ever: %zu of a block of %zu at __syncthreads, %zu at a warp's %s",
          run->name, barrier, run->fibers.size(), meeting, meeting ? "meeting" : "meeting (none)");
  }
}

std::vector<size_t> shuffled(size_t count) {
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; i++) order[i] = i;
  if (seed())
    for (size_t i = count; i > 1; i--) std::swap(order[i - 1], order[draw((unsigned)i)]);
  return order;
}

}  // namespace

void run_grid(const char *name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &body) {
  size_t threads = (size_t)block.x * block.y * block.z;
  block_run r = {};
  r.body = &body;
  r.name = name;
  r.dynamic_bytes = shared_bytes;
  r.fibers.resize(threads);
  r.warps.resize((threads + WARP - 1) / WARP);
  run = &r;
  std::vector<size_t> blocks = shuffled((size_t)grid.x * grid.y * grid.z);
  for (size_t b : blocks) {
    for (size_t i = 0; i < threads; i++) {
      fiber f = {};
      f.state.block_dim = block;
      f.state.grid_dim = grid;
      f.state.thread = {(unsigned)(i % block.x), (unsigned)(i / block.x % block.y), (unsigned)(i / block.x / block.y)};
      f.state.block = {(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)};
      r.fibers[i] = std::move(f);
    }
    for (warp &w : r.warps) w = {};
    r.shared.clear();
    /* Exactly as large as asked for, so that AddressSanitizer sees what lies beyond. */
    r.dynamic.reset(shared_bytes ? new unsigned char[shared_bytes] : NULL);
    if (shared_bytes) memset(r.dynamic.get(), 0xff, shared_bytes);
    r.live = threads;
    r.arrived = 0;
    one_block(shuffled(threads));
  }
  run = NULL;
}

void *static_shared(const void *key, size_t bytes) {
  std::unique_ptr<unsigned char[]> &p = run->shared[key];
  if (!p) {
    p.reset(new unsigned char[bytes]);
    memset(p.get(), 0xff, bytes);
  }
  return p.get();
}

void *dynamic_shared() {
  if (!run->dynamic) fatal("%s: dynamic shared memory is used and the launch gave none", run->name);
  return run->dynamic.get();
}

void sync_threads() {
  fiber *f = run->running;
  f->at_barrier = true;
  f->barrier = run->generation;
  run->arrived++;
  pass_barrier_if_complete();
  if (run->generation == f->barrier) to_scheduler(f, false);
  f->at_barrier = false;
}

void async_copy(void *to, const void *from, size_t bytes, size_t zeros) {
  copy c = {static_cast<unsigned char *>(to), static_cast<const unsigned char *>(from), bytes, zeros};
  if ((uintptr_t)to % 16 || (bytes && (uintptr_t)from % 16)) fatal("%s: an asynchronous copy is not aligned", run->name);
  memset(c.to, 0xff, bytes + zeros);
  run->running->copies.push_back(c);
}

void async_commit() {
  fiber *f = run->running;
  f->groups.push_back(std::move(f->copies));
  f->copies.clear();
}

void async_wait(int groups_left) {
  fiber *f = run->running;
  while ((int)f->groups.size() > groups_left) {
    for (const copy &c : f->groups.front()) {
      if (c.bytes) memcpy(c.to, c.from, c.bytes);
      memset(c.to + c.bytes, 0, c.zeros);
    }
    f->groups.pop_front();
  }
}

const unsigned char *meet(const char *what, unsigned mask, const void *mine, size_t bytes) {
  fiber *f = run->running;
  warp *w = warp_of(f);
  size_t lane = index_of(f) % WARP, first = index_of(f) - lane;
  if (bytes > SLOT) fatal("%s: %s of %zu bytes", run->name, what, bytes);
  if (!(mask >> lane & 1)) fatal("%s: %s: lane %zu is not in its own mask %08x", run->name, what, lane, mask);
  if (w->arrived == 0) {
    w->mask = mask;
    w->what = what;
    for (size_t i = 0; i < WARP; i++)
      if (mask >> i & 1 && (first + i >= run->fibers.size() || run->fibers[first + i].done))
        fatal("%s: %s: mask %08x names lane %zu, which has ended or is not there", run->name, what, mask, i);
  } else if (w->mask != mask || strcmp(w->what, what) != 0) {
    fatal("%s: lanes of one warp meet at %s with mask %08x and at %s with mask %08x", run->name, w->what, w->mask, what,
          mask);
  }
  unsigned generation = w->generation;
  unsigned char *slots = w->slots[generation & 1];
  memcpy(slots + SLOT * lane, mine, bytes);
  w->arrived |= 1u << lane;
  if (w->arrived == mask) {
    w->arrived = 0;
    w->generation++;
    return slots;
  }
  f->meeting = w;
  f->meeting_generation = generation;
  to_scheduler(f, false);
  f->meeting = NULL;
  return slots;
}

}  // namespace px_emu
