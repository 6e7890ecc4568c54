/* SPDX-License-Identifier: MIT
 * Keeps the helper library non-empty. */
extern int px_test_anchor;
int px_test_anchor;
