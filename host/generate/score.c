/* SPDX-License-Identifier: MIT
 * The metrics. An n-gram is a suffix seen up to its n-th element: one sort of a text's suffixes by their first elements
 * puts equal n-grams of every order side by side, and two texts are compared by walking both lists. */
#include "generate/score.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "generate/score_text.h"
#include "text/space.h"

enum { BLEU_ORDER = PX_BLEU_ORDER, CHRF_ORDER = PX_CHRF_ORDER };

/* A run of numbers and its suffixes in order of their first elements. */
typedef struct sequence {
  const uint32_t *data;
  size_t count, cap;
  size_t *suffixes; /* [count] */
} sequence;

/* One per thread. */
typedef struct scratch {
  px_words words;
  uint32_t *points;
  size_t point_cap;
  sequence hypothesis, reference;
  size_t *starts; /* where the words of text i start; hypothesis, references, end */
  size_t start_cap;
  uint32_t *best; /* BLEU: largest count in a reference, for each hypothesis suffix that starts a group */
  size_t best_cap;
  uint32_t *lengths; /* ROUGE: a row of the table */
  size_t length_cap;
} scratch;

static void scratch_free(scratch *s) {
  px_words_free(&s->words);
  free(s->points);
  free(s->hypothesis.suffixes);
  free(s->reference.suffixes);
  free(s->starts);
  free(s->best);
  free(s->lengths);
}

/* --- n-grams --- */

/* Compares two suffixes by at most `order` elements; an end comes before any element. */
static int compare_suffixes(const sequence *x, size_t i, const sequence *y, size_t k, size_t order) {
  for (size_t n = 0; n < order; n++) {
    bool x_ends = i + n >= x->count, y_ends = k + n >= y->count;
    if (x_ends || y_ends) return (int)y_ends - (int)x_ends;
    uint32_t a = x->data[i + n], b = y->data[k + n];
    if (a != b) return a < b ? -1 : 1;
  }
  return 0;
}

static int compare_bleu(const void *a, const void *b, void *arg) {
  return compare_suffixes(arg, *(const size_t *)a, arg, *(const size_t *)b, BLEU_ORDER);
}

static int compare_chrf(const void *a, const void *b, void *arg) {
  return compare_suffixes(arg, *(const size_t *)a, arg, *(const size_t *)b, CHRF_ORDER);
}

static int sort_suffixes(sequence *s, const uint32_t *data, size_t count,
                         int (*compare)(const void *, const void *, void *)) {
  s->data = data;
  s->count = count;
  if (px_reserve(&s->suffixes, &s->cap, count, sizeof *s->suffixes) != 0) return -1;
  for (size_t i = 0; i < count; i++) s->suffixes[i] = i;
  if (count > 1) qsort_r(s->suffixes, count, sizeof *s->suffixes, compare, s);
  return 0;
}

/* The end of the group of equal n-grams that starts at suffixes[from]; *size is how many of them are whole n-grams. */
static size_t group_end(const sequence *s, size_t from, size_t order, size_t *size) {
  size_t end = from + 1;
  while (end < s->count && compare_suffixes(s, s->suffixes[from], s, s->suffixes[end], order) == 0) end++;
  *size = s->suffixes[from] + order <= s->count ? end - from : 0;
  return end;
}

/* Calls for each n-gram of `x` that stands in `y` too: *at is where its group starts in x. */
typedef struct walk {
  size_t x, y, x_size, y_size, at;
} walk;

static bool next_common(const sequence *x, const sequence *y, size_t order, walk *w) {
  while (w->x < x->count && w->y < y->count) {
    int c = compare_suffixes(x, x->suffixes[w->x], y, y->suffixes[w->y], order);
    size_t x_end = w->x, y_end = w->y;
    w->at = w->x;
    if (c <= 0) x_end = group_end(x, w->x, order, &w->x_size);
    if (c >= 0) y_end = group_end(y, w->y, order, &w->y_size);
    w->x = x_end;
    w->y = y_end;
    if (c == 0 && w->x_size) return true;
  }
  return false;
}

static uint64_t ngrams(size_t count, size_t order) { return count >= order ? count - order + 1 : 0; }

/* --- BLEU --- */

static int bleu_item(const px_score_item *item, scratch *s, px_score_parts *out) {
  px_words_clear(&s->words);
  if (px_reserve(&s->starts, &s->start_cap, item->reference_count + 2, sizeof *s->starts) != 0) return -1;
  s->starts[0] = 0;
  if (px_words_add_13a(&s->words, item->hypothesis) != 0) return -1;
  for (size_t i = 0; i < item->reference_count; i++) {
    s->starts[i + 1] = s->words.count;
    if (px_words_add_13a(&s->words, item->references[i]) != 0) return -1;
  }
  s->starts[item->reference_count + 1] = s->words.count;
  if (px_words_number(&s->words) != 0) return -1;
  size_t n = s->starts[1], closest = 0;
  if (sort_suffixes(&s->hypothesis, s->words.numbers, n, compare_bleu) != 0) return -1;
  if (px_reserve(&s->best, &s->best_cap, BLEU_ORDER * n, sizeof *s->best) != 0) return -1;
  if (n) memset(s->best, 0, BLEU_ORDER * n * sizeof *s->best);
  for (size_t i = 0; i < item->reference_count; i++) {
    size_t start = s->starts[i + 1], count = s->starts[i + 2] - start;
    size_t diff = count > n ? count - n : n - count, least = closest > n ? closest - n : n - closest;
    if (i == 0 || diff < least || (diff == least && count < closest)) closest = count;
    const uint32_t *numbers = count ? s->words.numbers + start : NULL;
    if (sort_suffixes(&s->reference, numbers, count, compare_bleu) != 0) return -1;
    for (size_t order = 1; order <= BLEU_ORDER; order++) {
      uint32_t *best = s->best + (order - 1) * n;
      for (walk w = {0}; next_common(&s->hypothesis, &s->reference, order, &w);) {
        size_t matched = w.x_size < w.y_size ? w.x_size : w.y_size;
        if (matched <= best[w.at]) continue;
        out->matched_words[order - 1] += matched - best[w.at];
        best[w.at] = (uint32_t)matched;
      }
    }
  }
  for (size_t order = 1; order <= BLEU_ORDER; order++) out->words[order - 1] = ngrams(n, order);
  out->hypothesis_words = n;
  out->reference_words = closest;
  return 0;
}

static double bleu(const px_score_parts *items, size_t count) {
  px_score_parts sum = {0};
  for (size_t i = 0; i < count; i++) {
    sum.hypothesis_words += items[i].hypothesis_words;
    sum.reference_words += items[i].reference_words;
    for (int n = 0; n < BLEU_ORDER; n++) {
      sum.matched_words[n] += items[i].matched_words[n];
      sum.words[n] += items[i].words[n];
    }
  }
  if (sum.matched_words[0] == 0 || sum.words[BLEU_ORDER - 1] == 0) return 0;
  double smooth = 1, logs = 0;
  for (int n = 0; n < BLEU_ORDER; n++) {
    double total = (double)sum.words[n];
    if (sum.matched_words[n] == 0) smooth *= 2;
    logs += log(sum.matched_words[n] ? 100.0 * (double)sum.matched_words[n] / total : 100.0 / (smooth * total));
  }
  double ratio = (double)sum.reference_words / (double)sum.hypothesis_words;
  return (ratio > 1 ? exp(1 - ratio) : 1) * exp(logs / BLEU_ORDER);
}

/* --- chrF --- */

static double chrf_of(const uint64_t counts[CHRF_ORDER][3]) {
  const double factor = 4; /* beta 2, squared */
  double precision = 0, recall = 0;
  int orders = 0;
  for (int n = 0; n < CHRF_ORDER; n++) {
    if (counts[n][0] == 0 || counts[n][1] == 0) continue;
    precision += (double)counts[n][2] / (double)counts[n][0];
    recall += (double)counts[n][2] / (double)counts[n][1];
    orders++;
  }
  if (orders == 0 || precision + recall == 0) return 0;
  precision /= orders;
  recall /= orders;
  return 100 * ((1 + factor) * precision * recall / (factor * precision + recall));
}

static int chrf_item(const px_score_item *item, scratch *s, px_score_parts *out) {
  double best = -1;
  for (size_t i = 0; i < item->reference_count; i++) {
    size_t count = 0;
    /* both texts in one array, which may move while it grows */
    if (px_characters_add(&s->points, &count, &s->point_cap, item->hypothesis) != 0) return -1;
    size_t n = count;
    if (px_characters_add(&s->points, &count, &s->point_cap, item->references[i]) != 0) return -1;
    size_t m = count - n;
    if (i == 0 && sort_suffixes(&s->hypothesis, s->points, n, compare_chrf) != 0) return -1;
    s->hypothesis.data = s->points;
    if (sort_suffixes(&s->reference, m ? s->points + n : NULL, m, compare_chrf) != 0) return -1;
    uint64_t counts[CHRF_ORDER][3] = {{0}};
    for (size_t order = 1; order <= CHRF_ORDER; order++) {
      uint64_t *c = counts[order - 1];
      c[1] = ngrams(m, order);
      c[0] = c[1] ? ngrams(n, order) : 0; /* hits do not count where the reference has no n-gram */
      for (walk w = {0}; next_common(&s->hypothesis, &s->reference, order, &w);)
        c[2] += w.x_size < w.y_size ? w.x_size : w.y_size;
    }
    double score = chrf_of((const uint64_t(*)[3])counts);
    if (score > best) {
      best = score;
      memcpy(out->characters, counts, sizeof counts);
    }
  }
  return 0;
}

static double chrf(const px_score_parts *items, size_t count) {
  uint64_t sum[CHRF_ORDER][3] = {{0}};
  for (size_t i = 0; i < count; i++)
    for (int n = 0; n < CHRF_ORDER; n++)
      for (int k = 0; k < 3; k++) sum[n][k] += items[i].characters[n][k];
  return chrf_of((const uint64_t(*)[3])sum);
}

/* --- ROUGE-L --- */

/* Length of the longest common subsequence, with one row of the table. */
static int common_length(scratch *s, const uint32_t *a, size_t n, const uint32_t *b, size_t m, size_t *length) {
  if (px_reserve(&s->lengths, &s->length_cap, m + 1, sizeof *s->lengths) != 0) return -1;
  uint32_t *row = s->lengths;
  memset(row, 0, (m + 1) * sizeof *row);
  for (size_t i = 0; i < n; i++) {
    uint32_t diagonal = 0;
    for (size_t k = 0; k < m; k++) {
      uint32_t above = row[k + 1];
      row[k + 1] = a[i] == b[k] ? diagonal + 1 : above > row[k] ? above : row[k];
      diagonal = above;
    }
  }
  *length = row[m];
  return 0;
}

static int rouge_item(const px_score_item *item, scratch *s, px_score_parts *out) {
  for (size_t i = 0; i < item->reference_count; i++) {
    px_words_clear(&s->words);
    if (px_words_add_rouge(&s->words, item->hypothesis) != 0) return -1;
    size_t n = s->words.count, common;
    if (px_words_add_rouge(&s->words, item->references[i]) != 0) return -1;
    size_t m = s->words.count - n;
    if (n == 0 || m == 0) continue;
    if (px_words_number(&s->words) != 0) return -1;
    if (common_length(s, s->words.numbers, n, s->words.numbers + n, m, &common) != 0) return -1;
    double precision = (double)common / (double)n, recall = (double)common / (double)m;
    double f = common ? 2 * precision * recall / (precision + recall) : 0;
    if (f > out->rouge_l) out->rouge_l = f;
  }
  return 0;
}

/* --- exact match, and all of it --- */

static bool equal_trimmed(const char *a, const char *b) {
  size_t n = strlen(a), m = strlen(b);
  px_space_trim(&a, &n);
  px_space_trim(&b, &m);
  return n == m && memcmp(a, b, n) == 0;
}

static int score_item(const px_score_item *item, scratch *s, px_score_parts *out) {
  for (size_t i = 0; i < item->reference_count; i++)
    out->exact = out->exact || equal_trimmed(item->hypothesis, item->references[i]);
  if (bleu_item(item, s, out) != 0 || chrf_item(item, s, out) != 0) return -1;
  return rouge_item(item, s, out);
}

px_status px_score_texts(const px_score_item *items, size_t count, px_score_parts *parts, px_scores *out,
                         px_error *err) {
  *out = (px_scores){0};
  if (count == 0) return px_fail(err, PX_INVALID, "no texts to score");
  for (size_t i = 0; i < count; i++)
    if (items[i].reference_count == 0) return px_fail(err, PX_INVALID, "text %zu to score has no reference", i + 1);
  px_score_parts *scores = px_calloc(count, sizeof *scores);
  if (!scores) return px_fail(err, PX_NO_MEMORY, "no memory to score %zu texts", count);
  int failed = 0;
#pragma omp parallel reduction(| : failed)
  {
    scratch s = {0};
#pragma omp for schedule(dynamic, 16)
    for (size_t i = 0; i < count; i++) failed |= score_item(&items[i], &s, &scores[i]) != 0;
    scratch_free(&s);
  }
  if (!failed) {
    double rouge = 0, exact = 0;
    for (size_t i = 0; i < count; i++) {
      rouge += scores[i].rouge_l;
      exact += scores[i].exact;
    }
    out->bleu = bleu(scores, count);
    out->chrf = chrf(scores, count);
    out->rouge_l = 100 * rouge / (double)count;
    out->exact_match = 100 * exact / (double)count;
    if (parts) memcpy(parts, scores, count * sizeof *parts);
  }
  free(scores);
  return failed ? px_fail(err, PX_NO_MEMORY, "no memory to score %zu texts", count) : PX_OK;
}
