/* SPDX-License-Identifier: MIT
 * Every damaged file under tests/bad is refused with its exact message (messages.txt), whatever opens it. Each is a
 * test of its own, named after its path; files come from make_bad.py. */
#include <glob.h>
#include <limits.h>
#include <unistd.h>

#include "format/adapter_folder.h"
#include "format/gguf.h"
#include "helpers/test.h"

enum { MAX_CASES = 1000 };

static px_error err;

static void is_refused(void **state) {
  const char *path = *state, *message = path + strlen(path) + 1;
  if (strncmp(path, "safetensors/", 12) == 0) {
    px_tensor_list list;
    px_meta *metadata;
    size_t count;
    ASSERT_FAILS(px_safetensors_open(path, &list, &metadata, &count, &err), PX_BAD_FILE, message);
    assert_int_equal(list.count + count, 0);
    assert_null(list.arena.last);
  } else if (strncmp(path, "gguf/", 5) == 0) {
    px_gguf g;
    ASSERT_FAILS(px_gguf_open(path, &g, &err), PX_BAD_FILE, message);
    assert_null(g.tensors.arena.last);
  } else if (strncmp(path, "adapter/", 8) == 0) {
    px_adapter_folder f;
    ASSERT_FAILS(px_adapter_folder_open(path, &f, &err), PX_BAD_FILE, message);
    assert_null(f.arena.last);
  } else {
    fail_msg("nothing opens %s", path);
  }
  assert_null(strchr(err.message, '\n'));
}

static size_t expected;

static void every_file_has_its_message(void **state) {
  (void)state;
  glob_t found;
  assert_int_equal(glob("*/*", 0, NULL, &found), 0);
  assert_int_equal(found.gl_pathc, expected);
  globfree(&found);
}

int main(void) {
  static struct CMUnitTest tests[MAX_CASES + 1];
  px_buf text = {0};
  if (chdir(TEST_SOURCE_DIR) != 0 || chdir("tests/bad") != 0) return 1;
  if (px_file_read("messages.txt", 1 << 20, &text, &err) != PX_OK) {
    fprintf(stderr, "%s\n", err.message);
    return 1;
  }
  for (char *line = text.data, *end; line && (end = strchr(line, '\n')) && expected < MAX_CASES; line = end + 1) {
    char *tab = strchr(line, '\t');
    if (!tab || tab > end) return 1;
    *tab = *end = 0; /* the state of a test is its path with its message behind */
    tests[expected++] = (struct CMUnitTest){line, is_refused, NULL, NULL, line};
  }
  tests[expected] = (struct CMUnitTest)cmocka_unit_test(every_file_has_its_message);
  int failed = _cmocka_run_group_tests("bad files", tests, expected + 1, NULL, NULL);
  px_buf_free(&text);
  return failed;
}
