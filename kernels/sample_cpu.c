/* SPDX-License-Identifier: MIT */
#include "core/random.h"
#include "kernels/math_cpu.h"
#include "kernels/sample.h"

const char *px_sample_check(const px_sample_args *a) {
  if (a->rows < 0 || a->vocab < 1) return "rows or vocab is out of range";
  if (a->stride < a->vocab) return "the stride is shorter than a row";
  if (a->rows && (!a->logits || !a->params || !a->ids)) return "a pointer is missing";
  for (int64_t t = 0; t < a->rows; t++) {
    const px_sample_row *p = &a->params[t];
    if (!(p->temperature >= 0) || !(p->top_p > 0) || !(p->min_p >= 0 && p->min_p <= 1) || !(p->repetition_penalty > 0) || p->top_k < 0)
      return "a sampling parameter is out of range";
  }
  return NULL;
}

/* The best remaining token: largest logit, then smallest id. */
static int64_t best(const float *z, int64_t n) {
  int64_t at = 0;
  for (int64_t i = 1; i < n; i++)
    if (z[i] > z[at]) at = i;
  return at;
}

static void penalise(const px_sample_row *p, float *z, int64_t vocab) {
  for (int32_t h = 0; p->repetition_penalty != 1.0f && h < p->history_count; h++) {
    int32_t id = p->history[h];
    bool seen = id < 0 || id >= vocab;
    for (int32_t e = 0; !seen && e < h; e++) seen = p->history[e] == id;
    if (!seen) z[id] = z[id] > 0 ? z[id] / p->repetition_penalty : z[id] * p->repetition_penalty;
  }
}

/* Draws by taking tokens in descending order; what is taken becomes -inf. A draw looks at few tokens, since they are taken
 * only until the cumulative probability exceeds u. */
static int32_t draw(const px_sample_row *p, float *z, int64_t vocab) {
  int64_t top = best(z, vocab);
  float peak = z[top];
  double total = 0;
  for (int64_t i = 0; i < vocab; i++) {
    z[i] = px_exp((z[i] - peak) / p->temperature); /* now relative probabilities, the best is 1 */
    total += (double)z[i];
  }
  /* What the filters leave: its count and mass, found in the same descending order as the draw itself. */
  double u = (double)px_uniform(px_philox(p->seed, PX_STREAM_SAMPLE, p->position, p->row).v[0]);
  bool filtered = p->top_k > 0 || p->top_p < 1.0f || p->min_p > 0;
  double mass = total;
  if (filtered) {
    mass = 0;
    float least = 1;
    int64_t least_id = -1, taken = 0;
    for (;;) { /* next in (value descending, id ascending) order after (least, least_id) */
      int64_t next = -1;
      for (int64_t i = 0; i < vocab; i++)
        if ((taken == 0 || z[i] < least || (z[i] == least && i > least_id)) && (next < 0 || z[i] > z[next])) next = i;
      if (next < 0 || (p->top_k > 0 && taken >= p->top_k) || (taken > 0 && (z[next] < p->min_p || mass >= (double)p->top_p * total))) break;
      mass += (double)z[next];
      least = z[next];
      least_id = next;
      taken++;
    }
  }
  double sum = 0;
  float least = 1;
  int64_t least_id = -1;
  for (bool first = true;; first = false) {
    int64_t next = -1;
    for (int64_t i = 0; i < vocab; i++)
      if ((first || z[i] < least || (z[i] == least && i > least_id)) && (next < 0 || z[i] > z[next])) next = i;
    if (next < 0) return (int32_t)least_id;
    sum += (double)z[next];
    least = z[next];
    least_id = next;
    if (sum > u * mass || sum >= mass) return (int32_t)next;
  }
}

int px_sample_cpu(const px_sample_args *a) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < a->rows; t++) {
    float *z = a->logits + t * a->stride;
    bool nan = false;
    for (int64_t i = 0; i < a->vocab; i++) nan |= z[i] != z[i];
    if (nan) {
      a->ids[t] = -1;
      continue;
    }
    penalise(&a->params[t], z, a->vocab);
    a->ids[t] = a->params[t].temperature > 0 ? draw(&a->params[t], z, a->vocab) : (int32_t)best(z, a->vocab);
  }
  return 0;
}
