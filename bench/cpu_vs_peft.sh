#!/bin/sh
# SPDX-License-Identifier: MIT
# Trains the same prefix with pfx and with PEFT on PyTorch, interleaved, on two threads, and prints the ratios with the
# processor's product rate beside them; keeps CSV below bench/results/. Takes about 25 minutes.
#     bench/cpu_vs_peft.sh [options of bench/peers/cpu_vs_peft.py]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
pfx=${PFX:-$root/build/release/pfx}
[ -x "$pfx" ] || { echo "cpu_vs_peft: no $pfx; run make first" >&2; exit 1; }
python=$("$root/tests/peers/environment.sh")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${CC:-cc}" -std=gnu11 -O2 -o "$scratch/onednn_rate" "$root/bench/onednn_rate.c" -ldnnl
"$python" "$root/bench/peers/cpu_vs_peft.py" --pfx "$pfx" --rate "$scratch/onednn_rate" "$@"
