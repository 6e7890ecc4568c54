/* SPDX-License-Identifier: MIT
 * What the race check must tell apart. With the argument `race`, two threads add to one number without care; without
 * it, they share memory only across the barriers, reductions and critical sections that the kernels use. */
#include <stdio.h>
#include <string.h>

enum { COUNT = 20000 };
static double parts[COUNT];

static double careful(void) {
  double sum = 0, late = 0;
#pragma omp parallel num_threads(2)
  {
#pragma omp for schedule(static)
    for (int i = 0; i < COUNT; i++) parts[i] = i;
#pragma omp for schedule(dynamic, 64) reduction(+ : sum)
    for (int i = 0; i < COUNT; i++) sum += parts[COUNT - 1 - i];
#pragma omp critical
    late += sum;
#pragma omp barrier
#pragma omp single
    late += parts[0];
  }
#pragma omp parallel for num_threads(2)
  for (int i = 0; i < COUNT; i++) parts[i] += late;
  return sum + parts[COUNT - 1];
}

static double careless(void) {
  double sum = 0;
#pragma omp parallel for num_threads(2)
  for (int i = 0; i < COUNT; i++) sum += i; /* the planted race */
  return sum;
}

int main(int argc, char **argv) {
  int race = argc > 1 && !strcmp(argv[1], "race");
  printf("%g\n", race ? careless() : careful());
  return 0;
}
