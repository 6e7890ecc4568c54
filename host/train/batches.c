/* SPDX-License-Identifier: MIT */
#include "train/batches.h"

#include <stdlib.h>

#include "core/random.h"

px_status px_batches_open(const px_rows *rows, const px_batch_options *options, px_batches *b, px_error *err) {
  *b = (px_batches){.rows = rows, .options = *options, .order_epoch = -1};
  b->order = px_calloc(rows->count, sizeof *b->order);
  b->row_labels = px_calloc(rows->count, sizeof *b->row_labels);
  if (!b->order || !b->row_labels) {
    px_batches_close(b);
    return px_fail(err, PX_NO_MEMORY, "no memory for the order of %zu rows", rows->count);
  }
  for (size_t r = 0; r < rows->count; r++)
    for (uint64_t i = rows->offsets[r]; i < rows->offsets[r + 1]; i++) b->row_labels[r] += px_row_scores(rows, i);
  return PX_OK;
}

void px_batches_close(px_batches *b) {
  free(b->order);
  free(b->row_labels);
  free(b->memory);
  free(b->batch_rows);
  *b = (px_batches){0};
}

/* Fisher-Yates from (seed, epoch). */
static void make_order(px_batches *b, uint32_t epoch) {
  if (b->order_epoch == (int64_t)epoch || (!b->options.shuffle && b->order_epoch >= 0)) return;
  size_t n = b->rows->count;
  for (size_t i = 0; i < n; i++) b->order[i] = (uint32_t)i;
  for (size_t i = n; b->options.shuffle && i > 1; i--) {
    size_t j = (size_t)px_below(b->options.seed, PX_STREAM_SHUFFLE, epoch, i, i);
    uint32_t swap = b->order[i - 1];
    b->order[i - 1] = b->order[j];
    b->order[j] = swap;
  }
  b->order_epoch = epoch;
}

static int64_t row_tokens(const px_batches *b, uint32_t row) { return (int64_t)(b->rows->offsets[row + 1] - b->rows->offsets[row]); }

/* The batch at *cursor: how many rows of the order, tokens and labels; moves the cursor behind it. */
static void take(px_batches *b, px_cursor *cursor, uint64_t *first, int64_t *rows, int64_t *tokens, int64_t *labels) {
  if (cursor->row >= b->rows->count) *cursor = (px_cursor){.epoch = cursor->epoch + 1};
  make_order(b, cursor->epoch);
  *first = cursor->row;
  *rows = *tokens = *labels = 0;
  while (cursor->row < b->rows->count) {
    uint32_t row = b->order[cursor->row];
    int64_t more = row_tokens(b, row);
    if (b->options.batch_rows ? *rows >= b->options.batch_rows : *rows && *tokens + more > b->options.batch_tokens) break;
    *tokens += more;
    *labels += b->row_labels[row];
    ++*rows;
    cursor->row++;
  }
}

px_batch_extent px_batches_walk(px_batches *b, px_cursor cursor, uint64_t count) {
  px_batch_extent e = {0};
  for (uint64_t i = 0; i < count; i++) {
    uint64_t first;
    int64_t rows, tokens, labels;
    take(b, &cursor, &first, &rows, &tokens, &labels);
    e.tokens += tokens;
    e.rows += rows;
    e.labels += labels;
    if (tokens > e.most_tokens) e.most_tokens = tokens;
    if (rows > e.most_rows) e.most_rows = rows;
    if (labels > e.most_labels) e.most_labels = labels;
  }
  return e;
}

static int largest_first(const void *x, const void *y) {
  uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;
  return a < b ? 1 : a > b ? -1 : 0;
}

/* The sum of the `count` largest. */
static int64_t sum_of_largest(uint32_t *values, uint64_t rows, int64_t count) {
  qsort(values, rows, sizeof *values, largest_first);
  int64_t sum = 0;
  for (int64_t i = 0; i < count && (uint64_t)i < rows; i++) sum += values[i];
  return sum;
}

px_batch_extent px_batches_bound(px_batches *b, px_cursor cursor, uint64_t count) {
  enum { WALKED = 1000000 };
  uint64_t rows = b->rows->count;
  uint32_t *values = count > WALKED ? malloc(rows * sizeof *values) : NULL;
  px_batch_extent e = px_batches_walk(b, cursor, values ? WALKED : count);
  if (!values) return e;
  uint32_t shortest = UINT32_MAX, longest = 0;
  for (uint64_t i = 0; i < rows; i++) {
    values[i] = (uint32_t)(b->rows->offsets[i + 1] - b->rows->offsets[i]);
    if (values[i] < shortest) shortest = values[i];
    if (values[i] > longest) longest = values[i];
  }
  int64_t most = b->options.batch_rows > 0 ? b->options.batch_rows : b->options.batch_tokens / (shortest ? shortest : 1) + 1;
  e.most_rows = most < (int64_t)rows ? most : (int64_t)rows;
  e.most_tokens = sum_of_largest(values, rows, e.most_rows);
  if (b->options.batch_rows == 0 && e.most_tokens > b->options.batch_tokens)
    e.most_tokens = b->options.batch_tokens > longest ? b->options.batch_tokens : longest;
  memcpy(values, b->row_labels, rows * sizeof *values);
  e.most_labels = sum_of_largest(values, rows, e.most_rows);
  if (e.most_labels > e.most_tokens) e.most_labels = e.most_tokens;
  free(values);
  return e;
}

uint64_t px_batches_per_epoch(px_batches *b, uint32_t epoch) {
  uint64_t count = 0, first;
  int64_t rows, tokens, labels;
  px_cursor cursor = {.epoch = epoch};
  while (cursor.epoch == epoch && cursor.row < b->rows->count) {
    take(b, &cursor, &first, &rows, &tokens, &labels);
    count++;
  }
  return count;
}

/* One allocation for all arrays of a batch. */
static px_status make_room(px_batches *b, int64_t rows, int64_t tokens, int64_t labels, px_error *err) {
  size_t need = (size_t)(2 * tokens + 2 * rows + 1 + 2 * labels);
  if (px_reserve(&b->memory, &b->capacity, need, sizeof *b->memory) != 0 ||
      px_reserve(&b->batch_rows, &b->rows_capacity, (size_t)rows, sizeof *b->batch_rows) != 0)
    return px_fail(err, PX_NO_MEMORY, "no memory for a batch of %lld tokens", (long long)tokens);
  return PX_OK;
}

px_status px_batches_next(px_batches *b, px_cursor *cursor, int32_t first_position, int32_t adapter, px_error *err) {
  uint64_t first;
  int64_t rows, tokens, labels;
  take(b, cursor, &first, &rows, &tokens, &labels);
  PX_TRY(make_room(b, rows, tokens, labels, err));
  int32_t *ids = b->memory, *positions = ids + tokens, *offsets = positions + tokens, *adapters = offsets + rows + 1;
  int32_t *label_rows = adapters + rows, *targets = label_rows + labels;
  int32_t t = 0, l = 0;
  for (int64_t s = 0; s < rows; s++) {
    uint32_t row = b->order[first + (uint64_t)s];
    b->batch_rows[s] = row;
    offsets[s] = t;
    adapters[s] = adapter;
    for (uint64_t i = b->rows->offsets[row]; i < b->rows->offsets[row + 1]; i++, t++) {
      ids[t] = b->rows->ids[i];
      positions[t] = first_position + (t - offsets[s]);
      if (px_row_scores(b->rows, i)) { /* the row before predicts it; a row's first token never scores */
        label_rows[l] = t - 1;
        targets[l++] = ids[t];
      }
    }
  }
  offsets[rows] = t;
  b->batch = (px_batch){.tokens = t, .seqs = (int32_t)rows, .labels = l, .ids = ids, .positions = positions, .offsets = offsets,
                        .adapter = adapters, .label_rows = label_rows, .targets = targets};
  return PX_OK;
}
