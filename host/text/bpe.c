/* SPDX-License-Identifier: MIT */
#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

enum { SHORT_WORD = 32 };
#define NO_RANK UINT32_MAX
#define NO_PAIR UINT64_MAX

typedef struct px_bpe_merge {
  uint64_t pair; /* left << 32 | right, NO_PAIR when free */
  uint32_t rank;
  int32_t result;
} merge;

/* A symbol of a long word; `next` and `previous` are indices, -1 at the ends. */
typedef struct px_bpe_node {
  int32_t id, previous, next;
  uint32_t rank; /* of the pair this node forms with the next one */
} node;

static uint64_t pair_of(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

static size_t hash_of(uint64_t pair) {
  uint64_t h = pair * 0x9E3779B97F4A7C15u;
  return (size_t)(h ^ (h >> 29) ^ (h >> 47));
}

static const merge *find_merge(const px_bpe *bpe, int32_t left, int32_t right) {
  uint64_t pair = pair_of(left, right);
  for (size_t i = hash_of(pair) & bpe->slot_mask;; i = (i + 1) & bpe->slot_mask) {
    const merge *m = &bpe->slots[i];
    if (m->pair == pair) return m;
    if (m->pair == NO_PAIR) return NULL;
  }
}

static bool can_join(const px_bpe *bpe, int32_t left, int32_t right) {
  uint64_t pair = pair_of(left, right);
  for (size_t i = hash_of(pair) & bpe->join_mask;; i = (i + 1) & bpe->join_mask) {
    if (bpe->joins[i] == pair) return true;
    if (bpe->joins[i] == NO_PAIR) return false;
  }
}

/* A power of two that keeps a table of `count` entries at most half full. */
static size_t table_size(size_t count) {
  size_t size = 16;
  while (size < 2 * count) size *= 2;
  return size;
}

static bool build_joins(px_bpe *bpe, const px_bpe_join *joins, size_t count) {
  size_t size = 16, used = 0;
  bpe->joins = malloc(size * sizeof *bpe->joins);
  if (!bpe->joins) return false;
  memset(bpe->joins, 0xff, size * sizeof *bpe->joins);
  bpe->join_mask = size - 1;
  for (size_t i = 0; i < count; i++) { /* most of the list repeats: the table grows with what is distinct */
    if (can_join(bpe, joins[i].left, joins[i].right)) continue;
    if (2 * (used + 1) > size) {
      uint64_t *old = bpe->joins, *fresh = malloc(2 * size * sizeof *fresh);
      if (!fresh) return false;
      memset(fresh, 0xff, 2 * size * sizeof *fresh);
      for (size_t k = 0; k < size; k++) {
        if (old[k] == NO_PAIR) continue;
        size_t at = hash_of(old[k]) & (2 * size - 1);
        while (fresh[at] != NO_PAIR) at = (at + 1) & (2 * size - 1);
        fresh[at] = old[k];
      }
      free(old);
      bpe->joins = fresh;
      size *= 2;
      bpe->join_mask = size - 1;
    }
    uint64_t pair = pair_of(joins[i].left, joins[i].right);
    size_t at = hash_of(pair) & bpe->join_mask;
    while (bpe->joins[at] != NO_PAIR) at = (at + 1) & bpe->join_mask;
    bpe->joins[at] = pair;
    used++;
  }
  return true;
}

px_status px_bpe_build(px_bpe *bpe, const px_bpe_rule *rules, size_t rule_count, const px_bpe_join *joins,
                       size_t join_count, px_error *err) {
  *bpe = (px_bpe){0};
  if (rule_count >= NO_RANK / 4)
    return px_fail(err, PX_BAD_FILE, "%zu merges are more than a tokenizer can have", rule_count);
  size_t size = table_size(rule_count);
  bpe->slots = malloc(size * sizeof *bpe->slots);
  if (!bpe->slots || !build_joins(bpe, joins, join_count)) {
    px_bpe_free(bpe);
    return px_fail(err, PX_NO_MEMORY, "no memory for %zu merges", rule_count);
  }
  memset(bpe->slots, 0xff, size * sizeof *bpe->slots);
  bpe->slot_mask = size - 1;
  for (size_t i = 0; i < rule_count; i++) {
    uint64_t pair = pair_of(rules[i].left, rules[i].right);
    size_t at = hash_of(pair) & bpe->slot_mask;
    while (bpe->slots[at].pair != NO_PAIR && bpe->slots[at].pair != pair) at = (at + 1) & bpe->slot_mask;
    bpe->slots[at] = (merge){.pair = pair, .rank = (uint32_t)i, .result = rules[i].result};
  }
  return PX_OK;
}

static int by_rank(const void *a, const void *b) {
  uint32_t x = ((const merge *)a)->rank, y = ((const merge *)b)->rank;
  return (x > y) - (x < y);
}

px_status px_bpe_rules(const px_bpe *bpe, px_bpe_rule **rules, size_t *count, px_error *err) {
  size_t size = bpe->slots ? bpe->slot_mask + 1 : 0, n = 0;
  merge *sorted = px_calloc(size, sizeof *sorted);
  *rules = px_calloc(size, sizeof **rules);
  if (!sorted || !*rules) {
    free(sorted);
    free(*rules);
    return px_fail(err, PX_NO_MEMORY, "no memory for the merges");
  }
  for (size_t i = 0; i < size; i++)
    if (bpe->slots[i].pair != NO_PAIR) sorted[n++] = bpe->slots[i];
  qsort(sorted, n, sizeof *sorted, by_rank);
  for (size_t i = 0; i < n; i++)
    (*rules)[i] = (px_bpe_rule){(int32_t)(sorted[i].pair >> 32), (int32_t)(uint32_t)sorted[i].pair, sorted[i].result};
  *count = n;
  free(sorted);
  return PX_OK;
}

void px_bpe_free(px_bpe *bpe) {
  free(bpe->slots);
  free(bpe->joins);
  *bpe = (px_bpe){0};
}

void px_bpe_work_free(px_bpe_work *work) {
  free(work->nodes);
  free(work->heap);
  *work = (px_bpe_work){0};
}

/* Words of ordinary text have a few symbols: repeated search for the lowest rank in an array beats any heap. */
static px_status merge_short(const px_bpe *bpe, const int32_t *symbols, size_t count, px_ids *ids, px_error *err) {
  int32_t id[SHORT_WORD], result[SHORT_WORD];
  uint32_t rank[SHORT_WORD];
  size_t n = count;
  for (size_t i = 0; i < n; i++) id[i] = symbols[i];
  for (size_t i = 0; i + 1 < n; i++) {
    const merge *m = find_merge(bpe, id[i], id[i + 1]);
    rank[i] = m ? m->rank : NO_RANK;
    result[i] = m ? m->result : -1;
  }
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; i++)
      if (rank[i] < rank[best]) best = i;
    if (rank[best] == NO_RANK) break;
    id[best] = result[best];
    n--;
    for (size_t i = best + 1; i < n; i++) id[i] = id[i + 1];
    for (size_t i = best + 1; i + 1 < n; i++) rank[i] = rank[i + 1], result[i] = result[i + 1];
    if (best + 1 < n) {
      const merge *m = find_merge(bpe, id[best], id[best + 1]);
      rank[best] = m ? m->rank : NO_RANK;
      result[best] = m ? m->result : -1;
    }
    if (best > 0) {
      const merge *m = find_merge(bpe, id[best - 1], id[best]);
      rank[best - 1] = m ? m->rank : NO_RANK;
      result[best - 1] = m ? m->result : -1;
    }
  }
  for (size_t i = 0; i < n; i++) PX_TRY(px_ids_push(ids, id[i], err));
  return PX_OK;
}

/* Binary heap of rank << 32 | position: the smallest is the next merge, the leftmost one among equal ranks. */
static void heap_sink(uint64_t *heap, size_t count, size_t at) {
  uint64_t key = heap[at];
  for (size_t child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && heap[child + 1] < heap[child]) child++;
    if (heap[child] >= key) break;
    heap[at] = heap[child];
  }
  heap[at] = key;
}

static void heap_push(uint64_t *heap, size_t *count, uint64_t key) {
  size_t at = (*count)++;
  for (size_t parent; at > 0 && heap[parent = (at - 1) / 2] > key; at = parent) heap[at] = heap[parent];
  heap[at] = key;
}

static uint64_t heap_pop(uint64_t *heap, size_t *count) {
  uint64_t top = heap[0];
  heap[0] = heap[--*count];
  if (*count > 1) heap_sink(heap, *count, 0);
  return top;
}

/* Sets the rank of node i's pair and queues it. An entry whose rank is no longer the node's is stale. */
static void queue_pair(const px_bpe *bpe, node *nodes, int32_t i, uint64_t *heap, size_t *count) {
  const merge *m = nodes[i].next < 0 ? NULL : find_merge(bpe, nodes[i].id, nodes[nodes[i].next].id);
  nodes[i].rank = m ? m->rank : NO_RANK;
  if (m) heap_push(heap, count, (uint64_t)m->rank << 32 | (uint32_t)i);
}

static px_status merge_long(const px_bpe *bpe, px_bpe_work *work, const int32_t *symbols, size_t n, px_ids *ids,
                            px_error *err) {
  /* Every merge queues at most two pairs and takes one node away. */
  if (px_reserve(&work->nodes, &work->node_cap, n, sizeof *work->nodes) ||
      px_reserve(&work->heap, &work->heap_cap, 3 * n, sizeof *work->heap))
    return px_fail(err, PX_NO_MEMORY, "no memory for a word of %zu symbols", n);
  node *nodes = work->nodes;
  uint64_t *heap = work->heap;
  size_t queued = 0;
  for (size_t i = 0; i < n; i++)
    nodes[i] =
        (node){.id = symbols[i], .previous = (int32_t)i - 1, .next = i + 1 < n ? (int32_t)i + 1 : -1, .rank = NO_RANK};
  for (size_t i = 0; i + 1 < n; i++) {
    const merge *m = find_merge(bpe, nodes[i].id, nodes[i + 1].id);
    if (!m) continue;
    nodes[i].rank = m->rank;
    heap[queued++] = (uint64_t)m->rank << 32 | i;
  }
  for (size_t i = queued / 2; i-- > 0;) heap_sink(heap, queued, i);
  while (queued) {
    uint64_t top = heap_pop(heap, &queued);
    int32_t i = (int32_t)(uint32_t)top, right;
    if (nodes[i].rank != (uint32_t)(top >> 32)) continue;
    right = nodes[i].next;
    nodes[i].id = find_merge(bpe, nodes[i].id, nodes[right].id)->result;
    nodes[i].next = nodes[right].next;
    nodes[right].rank = NO_RANK;
    if (nodes[i].next >= 0) nodes[nodes[i].next].previous = i;
    queue_pair(bpe, nodes, i, heap, &queued);
    if (nodes[i].previous >= 0) queue_pair(bpe, nodes, nodes[i].previous, heap, &queued);
  }
  for (int32_t i = 0; i >= 0; i = nodes[i].next) PX_TRY(px_ids_push(ids, nodes[i].id, err));
  return PX_OK;
}

px_status px_bpe_word(const px_bpe *bpe, px_bpe_work *work, const int32_t *symbols, size_t count, px_ids *ids,
                      px_error *err) {
  if (count <= SHORT_WORD) return merge_short(bpe, symbols, count, ids, err);
  for (size_t start = 0, end; start < count; start = end) {
    for (end = start + 1; end < count && can_join(bpe, symbols[end - 1], symbols[end]);) end++;
    if (end - start <= SHORT_WORD)
      PX_TRY(merge_short(bpe, symbols + start, end - start, ids, err));
    else
      PX_TRY(merge_long(bpe, work, symbols + start, end - start, ids, err));
  }
  return PX_OK;
}
