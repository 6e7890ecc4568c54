/* SPDX-License-Identifier: MIT
 * The white space that Python's str.strip, str.split and Jinja's trim know, in UTF-8: what the reference programs of
 * the data rules, the chat templates and the text metrics cut at. */
#ifndef PX_TEXT_SPACE_H
#define PX_TEXT_SPACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the white-space character at the start of s[0, count); 0 when there is none. */
static inline size_t px_space_at(const char *s, size_t count) {
  const unsigned char *u = (const unsigned char *)s;
  if (count == 0) return 0;
  if (u[0] < 0x80) return (u[0] >= 0x09 && u[0] <= 0x0d) || (u[0] >= 0x1c && u[0] <= 0x20);
  if (u[0] == 0xc2) return count >= 2 && (u[1] == 0x85 || u[1] == 0xa0) ? 2 : 0; /* U+0085 U+00A0 */
  if (u[0] < 0xe1 || u[0] > 0xe3 || count < 3) return 0;
  uint32_t c = (uint32_t)(u[0] & 0x0f) << 12 | (uint32_t)(u[1] & 0x3f) << 6 | (u[2] & 0x3f);
  if ((u[1] & 0xc0) != 0x80 || (u[2] & 0xc0) != 0x80) return 0;
  bool space = c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
               c == 0x205f || c == 0x3000;
  return space ? 3 : 0;
}

/* Bytes of the white-space character at the end of s[0, count); 0 when there is none. */
static inline size_t px_space_before(const char *s, size_t count) {
  for (size_t n = 1; n <= 3 && n <= count; n++)
    if (px_space_at(s + count - n, n) == n) return n;
  return 0;
}

/* Narrows *s, *count to the text without white space at its ends. */
static inline void px_space_trim(const char **s, size_t *count) {
  for (size_t n; (n = px_space_at(*s, *count)) > 0;) *s += n, *count -= n;
  for (size_t n; (n = px_space_before(*s, *count)) > 0;) *count -= n;
}

#endif
