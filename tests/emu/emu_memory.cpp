/* SPDX-License-Identifier: MIT
 * Device memory: one range of addresses that is inaccessible but while work runs, so that host code that follows a
 * device pointer crashes. Fresh memory is NaN; what is freed, and the space between allocations, is filled and under
 * AddressSanitizer poisoned. */
#include <string.h>
#include <sys/mman.h>

#include <deque>
#include <map>

#include "emu.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace px_emu {
namespace {

enum { ALIGNMENT = 256, RED_ZONE = 256 };

unsigned char *base;
size_t reserved, touched, used;           /* touched: bytes from base that were ever handed out */
std::map<unsigned char *, size_t> blocks; /* start -> bytes asked for */
std::map<unsigned char *, size_t> holes;  /* start -> bytes, red zones included; neighbours are joined */
int opened;

size_t span_of(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + RED_ZONE; }

void start() {
  if (base) return;
  reserved = (size_t)setting("PX_EMU_MEMORY_MB", 1024) << 20;
  void *p = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fatal("cannot reserve %zu MB of device memory", reserved >> 20);
  base = static_cast<unsigned char *>(p);
}

unsigned char *take(size_t span) {
  for (auto hole = holes.begin(); hole != holes.end(); ++hole) {
    if (hole->second < span) continue;
    unsigned char *p = hole->first;
    size_t left = hole->second - span;
    holes.erase(hole);
    if (left) holes[p + span] = left;
    return p;
  }
  if (reserved - touched < span) return NULL;
  unsigned char *p = base + touched;
  touched += span;
  return p;
}

void give(unsigned char *p, size_t span) {
  auto next = holes.lower_bound(p);
  if (next != holes.end() && p + span == next->first) {
    span += next->second;
    next = holes.erase(next);
  }
  if (next != holes.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == p) {
      before->second += span;
      return;
    }
  }
  holes[p] = span;
}

}  // namespace

void memory_open() {
  start();
  if (opened++ == 0 && touched && mprotect(base, touched, PROT_READ | PROT_WRITE)) fatal("mprotect failed");
}

void memory_close() {
  if (--opened == 0 && touched && mprotect(base, touched, PROT_NONE)) fatal("mprotect failed");
}

void *memory_alloc(size_t bytes) {
  start();
  size_t span = span_of(bytes);
  unsigned char *p = bytes > reserved ? NULL : take(span);
  if (!p) return NULL;
  blocks[p] = bytes;
  used += bytes;
  bool was_open = opened > 0;
  if (was_open && mprotect(base, touched, PROT_READ | PROT_WRITE)) fatal("mprotect failed");
  memory_open();
  ASAN_UNPOISON_MEMORY_REGION(p, span);
  memset(p, 0xff, span);
  ASAN_POISON_MEMORY_REGION(p + bytes, span - bytes);
  memory_close();
  return p;
}

bool memory_free(void *at) {
  unsigned char *p = static_cast<unsigned char *>(at);
  auto block = blocks.find(p);
  if (block == blocks.end()) return false;
  size_t span = span_of(block->second);
  used -= block->second;
  blocks.erase(block);
  memory_open();
  ASAN_UNPOISON_MEMORY_REGION(p, span);
  memset(p, 0xfe, span);
  ASAN_POISON_MEMORY_REGION(p, span);
  memory_close();
  give(p, span);
  return true;
}

bool memory_holds(const void *at, size_t bytes) {
  unsigned char *p = static_cast<unsigned char *>(const_cast<void *>(at));
  auto block = blocks.upper_bound(p);
  if (block == blocks.begin()) return false;
  --block;
  return p + bytes <= block->first + block->second;
}

bool memory_is_device(const void *at) {
  const unsigned char *p = static_cast<const unsigned char *>(at);
  return base && p >= base && p < base + reserved;
}

size_t memory_used() { return used; }
size_t memory_total() {
  start();
  return reserved;
}

}  // namespace px_emu
