/* SPDX-License-Identifier: MIT */
#include "kernels/sample.h"

#include "helpers/kernel.h"

static const px_sample_row PLAIN = {.temperature = 1, .top_p = 1, .repetition_penalty = 1};

/* One row, on a copy of the logits. */
static int32_t sample(px_sample_row p, const float *logits, int64_t vocab) {
  float *z = guarded((size_t)vocab * sizeof *z);
  memcpy(z, logits, (size_t)vocab * sizeof *z);
  int32_t id = -2;
  px_sample_args a = {.rows = 1, .vocab = vocab, .stride = vocab, .logits = z, .params = &p, .ids = &id};
  assert_null(px_sample_check(&a));
  assert_null(px_sample_check_arrays(&a));
  assert_int_equal(px_sample_cpu(&a), 0);
  guarded_free(z);
  return id;
}

/* --- the reference: sorted, masses in float64 --- */

typedef struct candidate {
  float d;
  int32_t id;
} candidate;

static int by_rank(const void *x, const void *y) {
  const candidate *a = x, *b = y;
  return a->d != b->d ? (a->d < b->d) - (a->d > b->d) : (a->id > b->id) - (a->id < b->id);
}

/* The first place at which the running mass reaches `wanted` (exceeds it where `beyond`); *close: another rounding of
 * float32's exp could have ended elsewhere. */
static int64_t reach(const candidate *c, int64_t count, double wanted, bool beyond, double all, bool *close) {
  double sum = 0;
  int64_t at = -1;
  for (int64_t i = 0; i < count; i++) {
    sum += exp((double)c[i].d);
    *close |= fabs(sum - wanted) < TOL_F32_FUNCTION * all && exp((double)c[i].d) > 0;
    if (at < 0 && (beyond ? sum > wanted : sum >= wanted)) at = i;
  }
  return at < 0 ? count - 1 : at;
}

static double mass(const candidate *c, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += exp((double)c[i].d);
  return sum;
}

static void penalise(const px_sample_row *p, float *z, int64_t vocab) {
  for (int32_t h = 0; h < p->history_count; h++) {
    int32_t id = p->history[h];
    bool again = id < 0 || id >= vocab;
    for (int32_t before = 0; before < h; before++) again |= p->history[before] == id;
    if (!again) z[id] = z[id] > 0 ? z[id] / p->repetition_penalty : z[id] * p->repetition_penalty;
  }
}

static int32_t reference(px_sample_row p, const float *logits, int64_t vocab, bool *close) {
  float *z = malloc((size_t)vocab * sizeof *z), best = -INFINITY;
  candidate *c = malloc((size_t)vocab * sizeof *c);
  memcpy(z, logits, (size_t)vocab * sizeof *z);
  penalise(&p, z, vocab);
  for (int64_t i = 0; i < vocab; i++) best = fmaxf(best, z[i]);
  for (int64_t i = 0; i < vocab; i++)
    c[i] = (candidate){p.temperature > 0 ? (z[i] - best) / p.temperature : z[i], (int32_t)i};
  qsort(c, (size_t)vocab, sizeof *c, by_rank);
  int64_t left = vocab;
  *close = false;
  if (p.temperature > 0) {
    if (p.top_k > 0 && p.top_k < left) left = p.top_k;
    double all = mass(c, left);
    if (p.top_p < 1) left = reach(c, left, (double)p.top_p * all, false, all, close) + 1;
    for (int64_t i = 0; i < left && p.min_p > 0; i++) {
      double over = (double)c[i].d - log((double)p.min_p);
      *close |= p.min_p < 1 && fabs(over) < 1e-5;
      if (over < 0) left = i;
    }
    all = mass(c, left);
    double u = (double)px_uniform(px_philox(p.seed, PX_STREAM_SAMPLE, p.position, p.row).v[0]);
    left = reach(c, left, u * all, true, all, close);
  } else {
    left = 0;
  }
  int32_t id = c[left].id;
  free(z);
  free(c);
  return id;
}

/* A number below n from the case's own stream. */
static int pick(int trial, int what, int n) {
  return (int)px_below(11, 78, (uint32_t)trial, (uint64_t)what, (uint64_t)n);
}

/* Every option, alone and with the others: which of its values a trial takes is drawn. */
static void draws_equal_a_sorted_float64_reference(void **state) {
  (void)state;
  static const int64_t vocabs[] = {1, 2, 7, 100, 1000, 70000};
  static const float temperatures[] = {0, 1e-3f, 0.7f, 1, 5}, top_ps[] = {1e-6f, 0.3f, 0.9f, 0.999f, 1},
                     min_ps[] = {0, 0, 1e-3f, 0.1f, 0.7f, 1}, penalties[] = {1, 1, 1.3f, 0.6f, 5};
  static const int32_t top_ks[] = {0, 1, 2, 5, 64, 100000};
  int undecided = 0, distinct = 0;
  int32_t before = -1;
  enum { TRIALS = 3000 / SLOWER, HISTORY = 9 };
  float *z = malloc(70000 * sizeof *z);
  for (int trial = 0; trial < TRIALS; trial++) {
    int64_t vocab = vocabs[trial % 100 == 0 ? 5 : trial % 5];
    int32_t history[HISTORY];
    for (int h = 0; h < HISTORY; h++) history[h] = pick(trial, 20 + h, h < 6 ? (int)vocab : 100000) - (h == 8);
    px_sample_row p = {.temperature = temperatures[pick(trial, 0, 5)],
                       .top_p = top_ps[pick(trial, 1, 5)],
                       .min_p = min_ps[pick(trial, 2, 6)],
                       .repetition_penalty = penalties[pick(trial, 3, 5)],
                       .top_k = top_ks[pick(trial, 4, 6)],
                       .seed = (uint64_t)trial << 33 | 5,
                       .row = (uint64_t)pick(trial, 5, 1000) << 30,
                       .position = (uint32_t)pick(trial, 6, 5000),
                       .history = history,
                       .history_count = pick(trial, 7, 2) * HISTORY};
    int coarse = pick(trial, 8, 3); /* 1: ties; 2: many tokens that cannot be drawn */
    for (int64_t i = 0; i < vocab; i++) {
      z[i] = 6 * number((uint64_t)trial, i);
      if (coarse) z[i] = rintf(z[i]);
      if (coarse == 2 && i % 3 != 1 && vocab > 1) z[i] = -INFINITY;
    }
    bool close;
    int32_t want = reference(p, z, vocab, &close), got = sample(p, z, vocab);
    undecided += close;
    distinct += got != before;
    before = got;
    if (!close && got != want)
      fail_msg("trial %d: %d, not %d (vocab %d, temperature %g, top-k %d, top-p %g, min-p %g, penalty %g of %d)", trial,
               got, want, (int)vocab, (double)p.temperature, p.top_k, (double)p.top_p, (double)p.min_p,
               (double)p.repetition_penalty, p.history_count);
  }
  free(z);
  assert_in_range(undecided, 0, TRIALS / 50);
  assert_in_range(distinct, TRIALS / 2, TRIALS);
}

static void temperature_0_takes_the_largest_and_the_first_of_equals(void **state) {
  (void)state;
  const float z[] = {-1, 3, 2.5f, 3, -INFINITY, 3};
  px_sample_row p = PLAIN;
  p.temperature = 0;
  for (uint64_t seed = 0; seed < 20; seed++) {
    p.seed = seed;
    assert_int_equal(sample(p, z, 6), 1);
  }
  assert_int_equal(sample(p, (float[]){-INFINITY, -3e38f}, 2), 1);
  assert_int_equal(sample(p, (float[]){-0.0f, 0.0f}, 2), 0);
  assert_int_equal(sample(p, (float[]){-5}, 1), 0);
  const int32_t history[] = {1, 1, 1, 3};
  p.history = history, p.history_count = 4, p.repetition_penalty = 1.5f; /* 3 / 1.5 once: below 2.5 */
  assert_int_equal(sample(p, z, 5), 2);
  p.repetition_penalty = 1.1f; /* 3 / 1.1 > 2.5 is still the largest; thrice it would not be */
  assert_int_equal(sample(p, z, 5), 1);
}

static void the_penalty_draws_towards_what_is_less_likely(void **state) {
  (void)state;
  px_sample_row p = PLAIN;
  p.temperature = 0;
  p.repetition_penalty = 2;
  const int32_t low[] = {0}, outside[] = {-1, INT32_MIN, 3, INT32_MAX}, far[] = {69999, 65536, 65535, 69999};
  p.history = low, p.history_count = 1;
  assert_int_equal(sample(p, (float[]){-1, -1.5f, -3}, 3), 1); /* -2 */
  assert_int_equal(sample(p, (float[]){0, -0.1f, -3}, 3), 0);  /* 0 stays */
  assert_int_equal(sample(p, (float[]){-INFINITY, -9, -3}, 3), 2);
  p.repetition_penalty = 0.5f; /* the other way */
  assert_int_equal(sample(p, (float[]){-1, -0.7f, -3}, 3), 0);
  p.repetition_penalty = 2;
  p.history = outside, p.history_count = 4;
  assert_int_equal(sample(p, (float[]){1, 1.5f, 1}, 3), 1);
  float *z = calloc(70000, sizeof *z);
  z[69999] = 4, z[65536] = 3.9f, z[65535] = 3.8f, z[7] = 2.5f;
  p.history = far, p.history_count = 4;
  assert_int_equal(sample(p, z, 70000), 7);
  free(z);
}

/* Which of four tokens with probabilities 0.4, 0.3, 0.2 and 0.1 (ids 2, 0, 3, 1) are ever drawn, as bits. */
static unsigned support(px_sample_row p) {
  const float z[] = {logf(0.3f), logf(0.1f), logf(0.4f), logf(0.2f)};
  unsigned seen = 0;
  for (p.seed = 0; p.seed < 300 / (SLOWER > 1 ? 4 : 1); p.seed++) seen |= 1u << sample(p, z, 4);
  return seen;
}

static void filters_keep_exactly_what_they_say(void **state) {
  (void)state;
  enum { B40 = 4, B30 = 1, B20 = 8, B10 = 2 };
  const struct {
    px_sample_row p;
    unsigned kept;
  } cases[] = {
      {{.temperature = 1, .top_p = 1}, B40 | B30 | B20 | B10},
      {{.temperature = 1, .top_p = 1, .top_k = 4}, B40 | B30 | B20 | B10},
      {{.temperature = 1, .top_p = 1, .top_k = 3}, B40 | B30 | B20},
      {{.temperature = 1, .top_p = 1, .top_k = 1}, B40},
      {{.temperature = 1, .top_p = 0.95f}, B40 | B30 | B20 | B10},
      {{.temperature = 1, .top_p = 0.75f}, B40 | B30 | B20},
      {{.temperature = 1, .top_p = 0.5f}, B40 | B30},
      {{.temperature = 1, .top_p = 0.39f}, B40},
      {{.temperature = 1, .top_p = 1e-30f}, B40},
      {{.temperature = 1, .top_p = 1, .min_p = 0.2f}, B40 | B30 | B20 | B10},
      {{.temperature = 1, .top_p = 1, .min_p = 0.3f}, B40 | B30 | B20},
      {{.temperature = 1, .top_p = 1, .min_p = 0.6f}, B40 | B30},
      {{.temperature = 1, .top_p = 1, .min_p = 1}, B40},
      /* top-p of what top-k left: 0.4 of 0.7 */
      {{.temperature = 1, .top_p = 0.55f, .top_k = 2}, B40},
      /* after the temperature: 0.16, 0.09, 0.04, 0.01 of 0.3; min-p 0.3 of 0.16 */
      {{.temperature = 0.5f, .top_p = 0.6f}, B40 | B30},
      {{.temperature = 0.5f, .top_p = 0.5f}, B40},
      {{.temperature = 0.5f, .top_p = 1, .min_p = 0.3f}, B40 | B30},
      {{.temperature = 1, .top_p = 0.75f, .top_k = 4, .min_p = 0.6f}, B40 | B30},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    px_sample_row p = cases[i].p;
    p.repetition_penalty = 1;
    unsigned kept = support(p);
    if (kept != cases[i].kept) fail_msg("case %zu keeps %x, not %x", i, kept, cases[i].kept);
  }
}

static void equals_stand_by_id(void **state) {
  (void)state;
  float z[300];
  for (int i = 0; i < 300; i++) z[i] = 2.5f;
  for (int i = 0; i < 4; i++) {
    px_sample_row p = PLAIN;
    if (i == 0) p.top_k = 3;
    if (i == 1) p.top_p = 2.5f / 300;
    if (i == 2) p.top_k = 200, p.top_p = 2.5f / 200;
    if (i == 3) p.min_p = 1;
    int seen[300] = {0}, distinct = 0;
    for (; p.position < (i == 3 ? 3000 : 3000 / SLOWER); p.position++) seen[sample(p, z, 300)]++;
    for (int id = 0; id < 300; id++) distinct += seen[id] > 0;
    assert_int_equal(distinct, i == 3 ? 300 : 3);
    assert_true(seen[0] && seen[1] && seen[2]);
  }
}

/* More of them than a list in a device's shared memory takes, and others between them. */
static void many_equals(void **state) {
  (void)state;
  enum { VOCAB = 5000, EVERY = 3 };
  float *z = malloc(VOCAB * sizeof *z);
  for (int i = 0; i < VOCAB; i++) z[i] = i % EVERY ? 1.5f : -20;
  px_sample_row p = PLAIN;
  for (int n = 1; n <= 3001; n += 1500) { /* the nth of the equals is id n / 2 * 3 + 1 or 2 */
    p.top_k = n;
    int last = (n - 1) / 2 * EVERY + 1 + (n - 1) % 2, most = 0;
    for (p.seed = 0; p.seed < 2000 / SLOWER; p.seed++) {
      int id = sample(p, z, VOCAB);
      assert_true(id <= last && id % EVERY);
      most = id > most ? id : most;
    }
    assert_true(most >= last * 9 / 10);
  }
  p.top_k = 0, p.min_p = 1;
  for (p.seed = 0; p.seed < 100 / SLOWER + 10; p.seed++) assert_true(sample(p, z, VOCAB) % EVERY);
  for (int i = 0; i < VOCAB; i++) z[i] = (float)-i; /* nearly all of them out of reach */
  p = PLAIN, p.top_k = 4000;
  for (p.seed = 0; p.seed < 100 / SLOWER + 10; p.seed++) assert_in_range(sample(p, z, VOCAB), 0, 20);
  free(z);
}

static void rows_that_give_no_token(void **state) {
  (void)state;
  static const float bad[] = {NAN, -NAN, INFINITY};
  float z[100];
  px_sample_row p = PLAIN;
  for (int temperature = 0; temperature < 2; temperature++) {
    p.temperature = (float)temperature;
    for (int at = 0; at < 100; at += 33)
      for (int b = 0; b < 3; b++) {
        for (int i = 0; i < 100; i++) z[i] = number(3, i);
        z[at] = bad[b];
        assert_int_equal(sample(p, z, 100), -1);
      }
    for (int i = 0; i < 100; i++) z[i] = -INFINITY;
    assert_int_equal(sample(p, z, 100), -1);
    assert_int_equal(sample(p, z, 1), -1);
    z[57] = -3e38f; /* anything above -inf is a token, however the others look */
    p.top_k = 90, p.top_p = 0.9f, p.min_p = 0.5f;
    assert_int_equal(sample(p, z, 100), 57);
    p = PLAIN;
  }
  const int32_t history[] = {0};
  p.history = history, p.history_count = 1,
  p.repetition_penalty = 0.1f; /* a product that leaves the range of float32 */
  assert_int_equal(sample(p, (float[]){3e38f, 1}, 2), -1);
  p.repetition_penalty = 10;
  assert_int_equal(sample(p, (float[]){-3e38f, 1}, 2), 1);
}

/* Differences that overflow, temperatures at both ends of float32. */
static void extremes(void **state) {
  (void)state;
  const float wide[] = {3e38f, -3e38f, 2.9e38f}, near[] = {1, 1.0000001f, 0.5f};
  px_sample_row p = PLAIN;
  for (p.seed = 0; p.seed < 50; p.seed++) {
    assert_int_equal(sample(p, wide, 3), 0);
    p.temperature = 1e-45f;
    assert_int_equal(sample(p, near, 3), 1);
    p.temperature = 1;
  }
  unsigned seen = 0;
  p.temperature = 3e38f; /* flat */
  for (p.seed = 0; p.seed < 50; p.seed++) seen |= 1u << sample(p, near, 3);
  assert_int_equal(seen, 7);
}

/* Chi-square of many draws of 8 tokens against their probabilities, which must lie in the middle 99.8 %: draws that fit
 * too well would not be independent. */
static void shares_are_the_probabilities(void **state) {
  (void)state;
  enum { VOCAB = 8, DRAWS = SLOWER > 1 ? 1000 : 40000 };
  const float z[VOCAB] = {0.3f, -1, 2, 0, 1.2f, -2.5f, 0.9f, 1.9f};
  static const double upper[] = {0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32},
                      lower[] = {0, 1.6e-6, 0.002, 0.0243, 0.0908, 0.210, 0.381, 0.599};
  for (int option = 0; option < 4; option++)
    for (int axis = 0; axis < 3; axis++) { /* what differs from draw to draw: seed, position or row */
      if (SLOWER > 1 && axis != option % 3) continue; /* each of them, and each option, once */
      px_sample_row p = PLAIN;
      p.seed = 1234;
      double want[VOCAB], all = 0, chi = 0;
      int kept = 0, seen[VOCAB] = {0};
      if (option == 1) p.temperature = 0.6f;
      if (option == 2) p.top_k = 4;
      if (option == 3) p.temperature = 2, p.min_p = 0.4f;
      for (int i = 0; i < VOCAB; i++) {
        bool in = option == 2 ? z[i] > 1 || i == 6 : option == 3 ? z[i] - 2 > 2 * log(0.4) : true;
        all += want[i] = in ? exp((double)z[i] / (double)p.temperature) : 0;
        kept += in;
      }
      for (int n = 0; n < DRAWS; n++) {
        if (axis == 0) p.seed = (uint64_t)n;
        if (axis == 1) p.position = (uint32_t)n;
        if (axis == 2) p.row = (uint64_t)n;
        seen[sample(p, z, VOCAB)]++;
      }
      for (int i = 0; i < VOCAB; i++) {
        double expected = want[i] / all * DRAWS;
        if (expected > 0)
          chi += (seen[i] - expected) * (seen[i] - expected) / expected;
        else
          assert_int_equal(seen[i], 0);
      }
      if (chi > upper[kept - 1] || chi < lower[kept - 1])
        fail_msg("option %d, axis %d: chi-square %g with %d degrees of freedom", option, axis, chi, kept - 1);
    }
}

/* A row's token is its own: whatever the batch, its place in it, the stride and the threads. */
static void tokens_do_not_depend_on_batch_or_threads(void **state) {
  (void)state;
  enum { ROWS = 9, VOCAB = 5003, GAP = 5 };
  _Static_assert(ROWS * VOCAB >= PX_PARALLEL_MIN, "enough for threads");
  px_sample_row p[ROWS];
  int32_t alone[ROWS], ids[ROWS], history[] = {1, 2, 3, 5000};
  for (int t = 0; t < ROWS; t++) {
    p[t] = PLAIN;
    p[t].temperature = t == 4 ? 0 : 1.5f;
    p[t].top_k = t % 3 * 400;
    p[t].top_p = t % 2 ? 1 : 0.95f;
    p[t].repetition_penalty = 1.2f;
    p[t].history = history, p[t].history_count = t % 5;
    p[t].seed = 7, p[t].row = (uint64_t)t, p[t].position = 33;
  }
  for (int threads = 0; threads < 4; threads++) {
    float *z = numbers(PX_F32, ROWS, VOCAB, VOCAB + GAP, 1, 4);
    z[6 * (VOCAB + GAP) + 17] = NAN; /* its neighbours must not notice */
    px_sample_args a = {.rows = ROWS, .vocab = VOCAB, .stride = VOCAB + GAP, .logits = z, .params = p, .ids = ids};
    if (threads == 0)
      for (int t = 0; t < ROWS; t++) alone[t] = sample(p[t], z + t * (VOCAB + GAP), VOCAB);
    omp_set_num_threads(threads ? threads : 2);
    assert_int_equal(px_sample_cpu(&a), 0);
    assert_memory_equal(ids, alone, sizeof ids);
    for (int t = 0; t < ROWS; t++)
      for (int i = 0; i < GAP; i++) {
        uint32_t bits;
        memcpy(&bits, &z[t * (VOCAB + GAP) + VOCAB + i], 4);
        assert_int_equal(bits, UINT32_MAX);
      }
    guarded_free(z);
  }
  omp_set_num_threads(2);
  assert_int_equal(alone[6], -1);
  assert_int_not_equal(alone[0], alone[3]);
}

static void refusals(void **state) {
  (void)state;
  float z[8] = {0};
  int32_t ids[2];
  px_sample_row rows[2] = {PLAIN, PLAIN};
  px_sample_args a = {.rows = 2, .vocab = 4, .stride = 4, .logits = z, .params = rows, .ids = ids};
  assert_null(px_sample_check(&a));
  REFUSED(px_sample_check, a, px_sample_args, b->rows = -1);
  REFUSED(px_sample_check, a, px_sample_args, b->vocab = 0);
  REFUSED(px_sample_check, a, px_sample_args, b->vocab = b->stride = INT64_C(1) << 31);
  REFUSED(px_sample_check, a, px_sample_args, b->stride = 3);
  REFUSED(px_sample_check, a, px_sample_args, b->logits = NULL);
  REFUSED(px_sample_check, a, px_sample_args, b->params = NULL);
  REFUSED(px_sample_check, a, px_sample_args, b->ids = NULL);
#define ROW_REFUSED(change)                                                  \
  do {                                                                       \
    px_sample_row bad_row[2] = {PLAIN, PLAIN}, *r = &bad_row[1];             \
    change;                                                                  \
    REFUSED(px_sample_check_arrays, a, px_sample_args, b->params = bad_row); \
  } while (0)
  ROW_REFUSED(r->temperature = -0.1f);
  ROW_REFUSED(r->temperature = NAN);
  ROW_REFUSED(r->temperature = INFINITY);
  ROW_REFUSED(r->top_p = 0);
  ROW_REFUSED(r->top_p = NAN);
  ROW_REFUSED(r->min_p = -0.1f);
  ROW_REFUSED(r->min_p = 1.1f);
  ROW_REFUSED(r->min_p = NAN);
  ROW_REFUSED(r->repetition_penalty = 0);
  ROW_REFUSED(r->repetition_penalty = NAN);
  ROW_REFUSED(r->repetition_penalty = INFINITY);
  ROW_REFUSED(r->top_k = -1);
  ROW_REFUSED(r->history_count = -1);
  ROW_REFUSED(r->history_count = 1);
  a.rows = 0, a.logits = NULL, a.params = NULL, a.ids = NULL;
  assert_null(px_sample_check(&a));
  assert_int_equal(px_sample_cpu(&a), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(draws_equal_a_sorted_float64_reference),
      cmocka_unit_test(temperature_0_takes_the_largest_and_the_first_of_equals),
      cmocka_unit_test(the_penalty_draws_towards_what_is_less_likely),
      cmocka_unit_test(filters_keep_exactly_what_they_say),
      cmocka_unit_test(equals_stand_by_id),
      cmocka_unit_test(many_equals),
      cmocka_unit_test(rows_that_give_no_token),
      cmocka_unit_test(extremes),
      cmocka_unit_test(shares_are_the_probabilities),
      cmocka_unit_test(tokens_do_not_depend_on_batch_or_threads),
      cmocka_unit_test(refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
