/* SPDX-License-Identifier: MIT */
#include "helpers/test.h"

#include "backend/product_choices.h"

static px_choice choice_of(int64_t seed) {
  px_choice c;
  for (int i = 0; i < PX_CHOICE_KEY; i++) c.key[i] = seed * 100 + i;
  for (int i = 0; i < PX_CHOICE_ALGO; i++) c.algo[i] = UINT64_MAX - (uint64_t)(seed * 10 + i);
  return c;
}

static void same_after_printing(void **state) {
  (void)state;
  px_choices c = {0}, again = {0};
  px_buf text = {0};
  for (int64_t i = 0; i < 40; i++) {
    px_choice choice = choice_of(i % 30); /* ten of them twice */
    assert_int_equal(px_choices_put(&c, &choice), PX_OK);
  }
  assert_int_equal(c.count, 30);
  px_choices_print(&c, "one device, library 1.2.3", &text);
  assert_int_equal(px_choices_read(&again, text.data, "one device, library 1.2.3"), PX_OK);
  assert_int_equal(again.count, 30);
  for (int64_t i = 0; i < 30; i++) {
    px_choice want = choice_of(i);
    const px_choice *have = px_choices_find(&again, want.key);
    assert_non_null(have);
    assert_memory_equal(have, &want, sizeof want);
  }
  px_choice none = choice_of(31);
  assert_null(px_choices_find(&again, none.key));
  px_choices_free(&c);
  px_choices_free(&again);
  px_buf_free(&text);
}

static void another_identity_gives_nothing(void **state) {
  (void)state;
  px_choices c = {0}, none = {0};
  px_buf text = {0};
  px_choice choice = choice_of(1);
  px_choices_put(&c, &choice);
  px_choices_print(&c, "one device, library 1.2.3", &text);
  static const char *const others[] = {"one device, library 1.2.4", "one device, library 1.2", "", "one device, library 1.2.33"};
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    assert_int_equal(px_choices_read(&none, text.data, others[i]), PX_OK);
    assert_int_equal(none.count, 0);
  }
  assert_int_equal(px_choices_read(&none, "", "x"), PX_OK);
  assert_int_equal(none.count, 0);
  px_choices_free(&c);
  px_buf_free(&text);
}

/* Cut anywhere, the whole lines before the cut are read and nothing else. */
static void a_damaged_line_is_passed_over(void **state) {
  (void)state;
  px_choices c = {0};
  px_buf text = {0};
  for (int64_t i = 0; i < 3; i++) {
    px_choice choice = choice_of(i);
    px_choices_put(&c, &choice);
  }
  px_choices_print(&c, "x", &text);
  for (size_t cut = 0; cut <= text.len; cut++) {
    px_choices part = {0};
    px_buf piece = {0};
    px_buf_append(&piece, text.data, cut);
    size_t lines = 0;
    for (size_t i = 0; i < cut; i++) lines += text.data[i] == '\n';
    assert_int_equal(px_choices_read(&part, piece.data ? piece.data : "", "x"), PX_OK);
    assert_int_equal(part.count, lines ? lines - 1 : 0);
    px_choices_free(&part);
    px_buf_free(&piece);
  }
  static const char *const bad[] = {"pfx products 1: x\n1 2 3 4 5 6 7 8 0 0 0 0 0 0 0\n",
                                    "pfx products 1: x\n1 2 3 4 5 6 7 8 0 0 0 0 0 0 0 0 0\n",
                                    "pfx products 1: x\n1 2 3 4 5 6 7 8  0 0 0 0 0 0 0 0\n",
                                    "pfx products 1: x\n1 2 3 4 5 6 7 x 0 0 0 0 0 0 0 0\n"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    px_choices part = {0};
    assert_int_equal(px_choices_read(&part, bad[i], "x"), PX_OK);
    assert_int_equal(part.count, 0);
    px_choices_free(&part);
  }
  px_choices_free(&c);
  px_buf_free(&text);
}

/* One process after another: what the first chose stays, what is new is added; a file that cannot be read holds nothing. */
static void kept_in_a_file(void **state) {
  (void)state;
  char folder[] = "/tmp/pfx-choices-XXXXXX", path[64];
  assert_non_null(mkdtemp(folder));
  snprintf(path, sizeof path, "%s/a/b/c.txt", folder);
  px_error err;
  px_choices first = {0}, second = {0}, both = {0};
  px_choice one = choice_of(1), two = choice_of(2), other = choice_of(1);
  other.algo[3] = 77;
  assert_int_equal(px_choices_load(&first, path, "x"), PX_OK);
  assert_int_equal(first.count, 0);
  px_choices_put(&first, &one);
  px_choices_put(&second, &other);
  px_choices_put(&second, &two);
  ASSERT_OK(px_choices_save(&first, path, "x", &err));
  ASSERT_OK(px_choices_save(&second, path, "x", &err));
  assert_int_equal(px_choices_load(&both, path, "x"), PX_OK);
  assert_int_equal(both.count, 2);
  assert_memory_equal(px_choices_find(&both, one.key), &one, sizeof one);
  assert_memory_equal(px_choices_find(&both, two.key), &two, sizeof two);
  px_choices_free(&both);
  ASSERT_OK(px_choices_save(&first, path, "y", &err)); /* another library's: the file begins anew */
  assert_int_equal(px_choices_load(&both, path, "x"), PX_OK);
  assert_int_equal(both.count, 0);
  assert_int_equal(px_choices_load(&both, folder, "x"), PX_OK);
  assert_int_equal(both.count, 0);
  assert_int_equal(px_choices_save(&first, "/proc/none/c.txt", "x", &err), PX_IO);
  px_choices_free(&first);
  px_choices_free(&second);
  char command[96];
  snprintf(command, sizeof command, "rm -r %s", folder);
  assert_int_equal(system(command), 0);
}

static void where_they_are_kept(void **state) {
  (void)state;
  px_arena arena = {0};
  setenv("HOME", "/home/somebody", 1);
  unsetenv("XDG_CACHE_HOME");
  assert_string_equal(px_choices_path("A device/1, lib 1.2", &arena), "/home/somebody/.cache/pfx/products/A-device-1--lib-1.2.txt");
  setenv("XDG_CACHE_HOME", "/cache", 1);
  assert_string_equal(px_choices_path("A", &arena), "/cache/pfx/products/A.txt");
  setenv("XDG_CACHE_HOME", "", 1);
  unsetenv("HOME");
  assert_null(px_choices_path("A", &arena));
  px_arena_free(&arena);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(same_after_printing),
      cmocka_unit_test(another_identity_gives_nothing),
      cmocka_unit_test(a_damaged_line_is_passed_over),
      cmocka_unit_test(kept_in_a_file),
      cmocka_unit_test(where_they_are_kept),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
