#!/bin/sh
# SPDX-License-Identifier: MIT
# cudnn_check.sh BUILD SOURCE: what cuDNN says of the graphs that attention asks it for, where the library is. With the
# toolkit's stand-in for the driver also which of its kernels it takes for an H100, of which h100_properties.json has the
# numbers of the data sheet.
set -eu
program=$1/cudnn_check source=$2
[ -x "$program" ] || { echo "skipped: $program was not built (no headers of cuDNN's)"; exit 77; }
library=
for place in /usr/local/cuda/lib64 /usr/lib/x86_64-linux-gnu /usr/lib/python3*/*-packages/nvidia/cudnn/lib \
  /usr/local/lib/python3*/*-packages/nvidia/cudnn/lib /opt/*/lib/python3*/site-packages/nvidia/cudnn/lib; do
  [ -n "$library" ] || [ ! -f "$place/libcudnn.so.9" ] || library=$place/libcudnn.so.9
done
[ -n "$library" ] || { echo "skipped: no libcudnn.so.9 here"; exit 77; }
"$program" "$library"
stub=/usr/local/cuda/lib64/stubs/libcuda.so
[ -f "$stub" ] || { echo "the kernels are not looked for: no $stub"; exit 0; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
ln -s "$stub" "$scratch/libcuda.so.1"
LD_LIBRARY_PATH="$scratch:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$program" "$library" "$source/tests/tools/h100_properties.json" 90
