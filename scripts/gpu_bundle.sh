#!/bin/sh
# SPDX-License-Identifier: MIT
# gpu_bundle.sh [MODEL.gguf]: puts what build/gpu holds, and the libraries it is linked to, into build/gpu-bundle:
#   bin/       the command, the tests that run on a device, the benchmarks
#   lib/       pfx's own code, and the libraries that a bare machine lacks (not the C library, not CUDA's)
#              oneDNN's is compressed
#   include/   the headers of those libraries, for building again there
#   model/     MODEL.gguf, for gpu_check.sh's last part
# The programs find lib/ beside themselves.
set -eu
cd "$(dirname "$0")/.."
from=build/gpu to=build/gpu-bundle
rm -rf "$to"
mkdir -p "$to/bin" "$to/lib" "$to/include"
cp "$from"/pfx "$from"/tests/*_cuda_test "$from"/tests/golden_test "$from"/tests/generator_test "$from"/tests/parts_golden_test "$from"/tests/device_*_test \
  "$from"/tests/queue_test "$from"/tests/api_attention_test "$from"/bench/*_bench "$to/bin/"
cp -L "$from"/libpfx_all.so "$to/lib/"
# Two rounds: oneDNN brings libraries of its own.
for round in 1 2; do
  for file in "$to"/bin/* "$to"/lib/*; do
    ldd "$file" | awk '$2 == "=>" && $3 ~ /^\// {print $3}'
  done | sort -u | grep -Ev '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*|libpfx_all|libstdc\+\+|libgcc_s)\.so' | while read -r library; do
    [ -e "$to/lib/$(basename "$library")" ] || cp -L "$library" "$to/lib/"
  done
done
strip --strip-unneeded "$to"/bin/* "$to"/lib/libpfx_all.so
for header in jansson.h jansson_config.h pcre2.h utf8proc.h cmocka.h oneapi openssl; do
  for place in /usr/include /usr/include/x86_64-linux-gnu; do
    [ ! -e "$place/$header" ] || cp -rL "$place/$header" "$to/include/"
  done
done
xz -T0 -6 "$to/lib/libdnnl.so.2" # 40 MB; gpu_check.sh unpacks it
git rev-parse HEAD >"$to/commit" 2>/dev/null || echo unknown >"$to/commit"
size=$(du -sm "$to" | cut -f1)
echo "$to: $size MiB"
[ "$size" -le 55 ] || { echo "pfx: $to is larger than 55 MiB" >&2; exit 1; }
if [ $# -gt 0 ]; then
  mkdir "$to/model"
  cp "$1" "$to/model/"
  echo "$to/model: $(du -sm "$to/model" | cut -f1) MiB"
fi
