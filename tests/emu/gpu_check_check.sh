#!/bin/sh
# SPDX-License-Identifier: MIT
# gpu_check_check.sh SOURCE_DIR BUILD_DIR: every part of bench/gpu_check.sh over the emulated device with tiny sizes and without
# PyTorch: what it counts, what it writes, that it stops at its budget and goes on from there, and that it can fail.
set -eu
source=$1
export PFX_BUILD=$2 OUT="$2/gpu_check" PYTHON="$source/tests/emu/no_torch.sh" XDG_CACHE_HOME="$2/gpu_check/cache"
rm -rf "$OUT"
mkdir -p "$OUT"
fail() { echo "gpu_check_check: $*" >&2; cat "$OUT/said" >&2; exit 1; }
check() { code=0; "$source/bench/gpu_check.sh" --tiny "$@" >"$OUT/said" 2>&1 || code=$?; }

check --part all --budget-s 240
[ $code = 0 ] || fail "code $code"
grep -q '^8 passed, 0 failed, 3 skipped' "$OUT/said" || fail "not what it counts"
for file in ops end_to_end decode decode_8b summary; do
  [ "$(wc -l <"$OUT/$file.csv")" -gt 2 ] || fail "nothing in $file.csv"
done
for what in norm rope loss AdamW 'train cuda' 'decode llama-3-8b'; do
  grep -q "^$what.* [0-9.]* " "$OUT/said" || fail "nothing of $what in the table"
done
grep -q '^operations,' "$OUT/summary.csv" && fail "summary.csv does not say what measured"

# Through with everything: nothing is done again.
check --part all --continue
grep -q '^0 passed, 0 failed' "$OUT/said" || fail "--continue did something again"

# No time: points are named, and the next call takes them up.
"$PFX_BUILD/bench/ops_bench" --tiny --only rope --csv "$OUT/part.csv" --budget-s 0 >"$OUT/said" && grep -q '^left out  23 rope llama' "$OUT/said" ||
  fail "points left out are not named"
first=$(sed -n 's/^next //p' "$OUT/said")
"$PFX_BUILD/bench/ops_bench" --tiny --only rope --csv "$OUT/part.csv" --from "$first" >"$OUT/said" && [ "$(grep -c ' rope ' "$OUT/said")" = 6 ] ||
  fail "the run did not go on from $first"

# A program that fails is a failure.
mkdir -p "$OUT/broken/bench"
ln -s "$PFX_BUILD/pfx" "$OUT/broken/pfx"
printf '#!/bin/sh\nexit 3\n' >"$OUT/broken/bench/ops_bench"
chmod +x "$OUT/broken/bench/ops_bench"
PFX_BUILD=$OUT/broken
check --part ops
[ $code = 1 ] && grep -q '^failed: ops' "$OUT/said" || fail "a program that failed went unnoticed: code $code"
echo "gpu_check.sh: every part runs, stops, goes on and can fail"
