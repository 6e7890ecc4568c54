/* SPDX-License-Identifier: MIT */
#include "helpers/test.h"

#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/file.h"
#include "core/free_memory.h"
#include "core/hash.h"
#include "core/random.h"

static void half_conversions_round_to_nearest_even(void **state) {
  (void)state;
  for (uint32_t h = 0; h < 0x10000; h++) {
    float f = px_f16_to_f32((uint16_t)h);
    if (isnan(f))
      assert_true(isnan(px_f16_to_f32(px_f32_to_f16(f))));
    else
      assert_int_equal(px_f32_to_f16(f), h);
    float b = px_bf16_to_f32((uint16_t)h);
    if (isnan(b))
      assert_true(isnan(px_bf16_to_f32(px_f32_to_bf16(b))));
    else
      assert_int_equal(px_f32_to_bf16(b), h);
  }
  /* Halfway between two neighbours goes to the even one; one step more goes up. */
  assert_int_equal(px_f32_to_bf16(1.00390625f), 0x3f80);
  assert_int_equal(px_f32_to_bf16(1.01171875f), 0x3f82);
  assert_int_equal(px_f32_to_f16(1.00048828125f), 0x3c00);
  assert_int_equal(px_f32_to_f16(1.0005f), 0x3c01);
  assert_int_equal(px_f32_to_f16(65520.0f), 0x7c00);
  assert_int_equal(px_f32_to_f16(65519.0f), 0x7bff);
  assert_int_equal(px_f32_to_f16(2.98023224e-8f), 0);
  assert_int_equal(px_f32_to_f16(2.98023260e-8f), 1);
}

static void philox_gives_the_published_vectors(void **state) {
  (void)state;
  /* Known answers of Random123's philox4x32-10: all-zero input, and all-ones input. */
  px_u32x4 r = px_philox(0, 0, 0, 0);
  assert_int_equal(r.v[0], 0x6627e8d5);
  assert_int_equal(r.v[1], 0xe169c58d);
  assert_int_equal(r.v[2], 0xbc57ac4c);
  assert_int_equal(r.v[3], 0x9b00dbd8);
  r = px_philox(UINT64_MAX, UINT32_MAX, UINT32_MAX, UINT64_MAX);
  assert_int_equal(r.v[0], 0x408f276d);
  assert_int_equal(r.v[1], 0x41c83b0e);
  assert_int_equal(r.v[2], 0xa20bc7c6);
  assert_int_equal(r.v[3], 0x6d5451fd);
}

static void normal_numbers_have_unit_variance(void **state) {
  (void)state;
  double sum = 0, squares = 0;
  enum { N = 100000 };
  for (int i = 0; i < N; i++) {
    double x = px_normal(7, PX_STREAM_INIT, 0, (uint64_t)i);
    sum += x;
    squares += x * x;
  }
  assert_true(fabs(sum / N) < 0.02);
  assert_true(fabs(squares / N - 1) < 0.02);
}

static void sha256_and_base64_known_answers(void **state) {
  (void)state;
  char hex[65];
  px_sha256_of("abc", 3, hex);
  assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  px_buf b = {0}, raw = {0};
  px_base64_append(&b, "pfx!", 4);
  assert_string_equal(b.data, "cGZ4IQ==");
  assert_int_equal(px_base64_decode(&raw, b.data), 0);
  assert_int_equal(raw.len, 4);
  assert_memory_equal(raw.data, "pfx!", 4);
  assert_int_equal(px_base64_decode(&raw, "a"), -1);
  px_buf_free(&b);
  px_buf_free(&raw);
}

static void a_full_disk_leaves_no_file(void **state) {
  (void)state;
  px_error err = {0};
  char path[] = "/tmp/pfx_core_XXXXXX", file[64], bytes[5000] = {0};
  assert_non_null(mkdtemp(path));
  snprintf(file, sizeof file, "%s/x", path);
  struct rlimit old, small;
  getrlimit(RLIMIT_FSIZE, &old);
  small = old;
  small.rlim_cur = 1000;
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  px_status s = px_file_write(file, bytes, sizeof bytes, &err);
  setrlimit(RLIMIT_FSIZE, &old);
  assert_int_equal(s, PX_IO);
  assert_non_null(strstr(err.message, "File too large"));
  assert_int_equal(rmdir(path), 0); /* empty: neither the file nor its temporary is left */
}

static void put_file(const char *root, const char *path, const char *text) {
  char name[512];
  px_error err;
  snprintf(name, sizeof name, "%s%s", root, path);
  *strrchr(name, '/') = 0;
  ASSERT_OK(px_dir_make(name, &err));
  snprintf(name, sizeof name, "%s%s", root, path);
  ASSERT_OK(px_file_write(name, text, strlen(text), &err));
}

static void free_memory_heeds_groups_and_limits(void **state) {
  (void)state;
  char root[] = "/tmp/pfx_memory_XXXXXX", command[64];
  assert_non_null(mkdtemp(root));
  assert_int_equal(px_free_memory(root), -1);
  put_file(root, "/proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n");
  assert_int_equal(px_free_memory(root), 5000 * 1024);
  put_file(root, "/proc/self/cgroup", "5:cpu:/other\n4:memory:/jobs/one\n");
  assert_int_equal(px_free_memory(root), 5000 * 1024);
  put_file(root, "/sys/fs/cgroup/memory/jobs/one/memory.limit_in_bytes", "9223372036854771712\n");
  put_file(root, "/sys/fs/cgroup/memory/jobs/one/memory.usage_in_bytes", "1000\n");
  assert_int_equal(px_free_memory(root), 5000 * 1024);
  put_file(root, "/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "3000000\n"); /* a parent's limit */
  put_file(root, "/sys/fs/cgroup/memory/jobs/memory.usage_in_bytes", "2000000\n");
  assert_int_equal(px_free_memory(root), 1000000);
  put_file(root, "/sys/fs/cgroup/memory/jobs/memory.stat",
           "active_file 7\ntotal_inactive_file 300000\ntotal_active_file 5\n");
  assert_int_equal(px_free_memory(root), 1300005);
  put_file(root, "/proc/self/cgroup", "0::/\n");
  put_file(root, "/sys/fs/cgroup/memory.max", "max\n");
  put_file(root, "/sys/fs/cgroup/memory.current", "77\n");
  assert_int_equal(px_free_memory(root), 5000 * 1024);
  put_file(root, "/sys/fs/cgroup/memory.max", "70\n"); /* already above it */
  assert_int_equal(px_free_memory(root), 0);
  put_file(root, "/sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 9\n");
  assert_int_equal(px_free_memory(root), 2);
  struct rlimit old, low;
  getrlimit(RLIMIT_AS, &old);
  put_file(root, "/proc/self/cgroup", "");
  put_file(root, "/proc/self/statm", "1 2 3\n");
  put_file(root, "/proc/meminfo", "MemAvailable: 999999999999999 kB\n");
  low = (struct rlimit){(rlim_t)1 << 47, old.rlim_max}; /* more than AddressSanitizer's shadow */
  assert_int_equal(setrlimit(RLIMIT_AS, &low), 0);
  int64_t left = px_free_memory(root);
  setrlimit(RLIMIT_AS, &old);
  assert_true(left == ((int64_t)1 << 47) - sysconf(_SC_PAGESIZE));
  snprintf(command, sizeof command, "rm -r %s", root);
  assert_int_equal(system(command), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(half_conversions_round_to_nearest_even),
      cmocka_unit_test(philox_gives_the_published_vectors),
      cmocka_unit_test(normal_numbers_have_unit_variance),
      cmocka_unit_test(sha256_and_base64_known_answers),
      cmocka_unit_test(a_full_disk_leaves_no_file),
      cmocka_unit_test(free_memory_heeds_groups_and_limits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
