#!/bin/sh
# SPDX-License-Identifier: MIT
# header_check.sh INCLUDE_DIR: every public header stands alone and is clean C11 and C++11.
set -eu
for header in "$1"/pfx/*.h; do
  printf '#include "%s"\n' "$header" | cc -std=c11 -Wall -Wextra -Wpedantic -Wstrict-prototypes -Werror -fsyntax-only -I "$1" -x c -
  printf '#include "%s"\n' "$header" | c++ -std=c++11 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I "$1" -x c++ -
done
