#!/bin/sh
# SPDX-License-Identifier: MIT
# install_check.sh BUILD_DIR SOURCE_DIR: installs the build into a scratch folder and uses it as a stranger would: by
# pkg-config (shared and static), by find_package, and by the command with its pages.
set -eu
build=$1
source=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
prefix=$scratch/prefix
fail() { echo "install_check: $*" >&2; exit 1; }

cmake --install "$build" --prefix "$prefix" >"$scratch/log" || { cat "$scratch/log"; fail "cmake --install failed"; }
pc=$(dirname "$(find "$prefix" -name pfx.pc)")
lib=$(dirname "$pc")
export PKG_CONFIG_PATH="$pc" LD_LIBRARY_PATH="$lib"

for file in bin/pfx include/pfx/pfx.h share/man/man1/pfx.1 share/bash-completion/completions/pfx \
  share/zsh/site-functions/_pfx share/fish/vendor_completions.d/pfx.fish; do
  [ -s "$prefix/$file" ] || fail "$file is not installed"
done
"$prefix/bin/pfx" --help >/dev/null || fail "the installed command does not run"
bash -n "$prefix/share/bash-completion/completions/pfx" || fail "the bash completion has a syntax error"

abi=$(sed -n 's/^#define PFX_ABI *\([0-9]*\).*/\1/p' "$source/include/pfx/pfx.h")
readelf -d "$lib/libpfx.so" | grep -q "SONAME.*\[libpfx\.so\.$abi\]" || fail "the soname is not libpfx.so.$abi"

cc "$source/examples/minimal.c" $(pkg-config --cflags --libs pfx) -o "$scratch/shared"
cc "$source/examples/minimal.c" $(pkg-config --cflags pfx) "$lib/libpfx.a" \
  $(pkg-config --libs --static pfx | sed 's/-lpfx//') -o "$scratch/static"
for program in shared static; do
  "$scratch/$program" 2>/dev/null && fail "minimal without arguments must fail" || [ $? -lt 126 ] || fail "$program does not start"
done
readelf -d "$scratch/static" | grep -q 'libpfx' && fail "the static program needs the shared library"

cmake -S "$source/examples" -B "$scratch/examples" -D CMAKE_PREFIX_PATH="$prefix" >"$scratch/log" 2>&1 &&
  cmake --build "$scratch/examples" >>"$scratch/log" 2>&1 || { cat "$scratch/log"; fail "find_package(pfx) failed"; }
echo "installed, linked by pkg-config (shared, static) and by find_package"
