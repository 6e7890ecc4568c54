#!/bin/sh
# SPDX-License-Identifier: MIT
# cuda_binary_check.sh <pfx>: the program with the CUDA backend starts where nothing of CUDA is, needs none of its
# libraries to do so, and says what it lacks only when a device is asked for.
set -eu
pfx=$1
if [ -e /dev/nvidiactl ]; then
  echo "skipped: this machine has an NVIDIA driver"
  exit 77
fi
if ldd "$pfx" | grep -Ei 'cuda|cublas|cudnn|nccl|nvidia'; then
  echo "the program is linked to these" >&2
  exit 1
fi
"$pfx" --version
model=$PFX_SOURCE_DIR/tests/golden/llama_tied
said=$("$pfx" probe --model "$model" --data /dev/null --out /dev/null --device cuda 2>&1) && code=0 || code=$?
echo "$code: $said"
[ "$code" = 5 ]
[ "$said" = "pfx: no NVIDIA driver is loaded on this machine; use --device cpu, or install one" ]
