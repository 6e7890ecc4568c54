#!/bin/sh
# SPDX-License-Identifier: MIT
# What only a GPU can show, in one run without a network: correctness first, then the benchmarks.
#
#   bench/gpu_check.sh [--part correct|ops|steps|model|all] [--budget-s 540] [--continue] [--tiny]
#
# correct  every operation test, the golden models and training, resume and generation on the device; then
#          compute-sanitizer on the small ones, where it is there
# ops      ops_bench (percent of the measured ceilings) and PyTorch's attention at the same shapes
# steps    whole training steps on three models' shapes with random weights, 256 to 16k tokens a step, against PEFT and
#          hand-written PyTorch (bench/peers/steps.py)
# model    SmolLM2 end to end: train, evaluate, generate; decode
#
# Programs come from build/gpu-bundle (make gpu-bundle), or are built in build/cuda where the packages allow it; CUDA's
# libraries from the loader or from PyTorch's Python packages. Results go to ${OUT:-bench/results/<device>}: check.log,
# *.csv, *.next (where --continue goes on). What is missing is skipped and counted. --tiny: sizes that prove the script
# on a machine without a GPU, with PFX_BIN naming programs whose device is emulated.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1
part=all budget=540 continued= tiny=
while [ $# -gt 0 ]; do
  case $1 in
    --part) part=$2; shift ;;
    --budget-s) budget=$2; shift ;;
    --continue) continued=yes ;;
    --tiny) tiny=--tiny ;;
    *) sed -n '5,18s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done
start=$(date +%s)
left() { echo $((budget - ($(date +%s) - start))); }
passed=0 failed=0 skipped=0 failures=

python=${PYTHON:-python3}
have_torch() { "$python" -c 'import torch' 2>/dev/null; }
if have_torch; then # the libraries that PyTorch brought
  folders=$("$python" - <<'PYTHON'
import glob, os, site, sys
found = {os.path.dirname(f) for p in sys.path for f in glob.glob(os.path.join(p, "nvidia", "*", "lib", "*.so*"))}
print(":".join(sorted(found)))
PYTHON
)
  export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folders"
fi
device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr ' ' '-' | tr 'A-Z' 'a-z')
out=${OUT:-bench/results/${device:-none}}
mkdir -p "$out"
log=$out/check.log
[ -n "$continued" ] || : >"$log"

# --- the programs ---
find_programs() {
  if [ -n "${PFX_BIN:-}" ]; then bin=$PFX_BIN; return; fi
  bundle=build/gpu-bundle
  if [ -x $bundle/bin/pfx ]; then
    if [ -f $bundle/lib/libdnnl.so.2.xz ]; then
      "$python" -c "import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[1][:-3], 'wb'))" \
        $bundle/lib/libdnnl.so.2.xz && rm $bundle/lib/libdnnl.so.2.xz
    fi
    bin=$bundle/bin
    return
  fi
  cmake --preset cuda >>"$log" 2>&1 && cmake --build --preset cuda >>"$log" 2>&1 || {
    echo "gpu_check: no build/gpu-bundle, and build/cuda does not build: see $log" >&2
    exit 1
  }
  bin=build/cuda/programs
  mkdir -p $bin
  for program in build/cuda/pfx build/cuda/tests/*_cuda_test build/cuda/tests/golden_test build/cuda/tests/device_product_test \
    build/cuda/tests/queue_test build/cuda/tests/api_attention_test build/cuda/bench/*_bench; do
    ln -sf "$root/$program" $bin/
  done
}
find_programs
export PFX_SOURCE_DIR="$root" PFX_BINARY="$root/$bin/pfx" PFX_BUILD_DIR="$root/${bin%/bin}"
case $bin in /*) export PFX_BINARY="$bin/pfx" ;; esac

{
  echo "commit $(cat build/gpu-bundle/commit 2>/dev/null || git rev-parse HEAD 2>/dev/null)"
  nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader 2>/dev/null
  "$PFX_BINARY" --version
  have_torch && "$python" -c 'import torch; print("torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())'
} >>"$log" 2>&1

# check NAME SECONDS COMMAND...: one counted check; exit code 77 is a skip.
check() {
  name=$1 limit=$2
  shift 2
  now=$(left)
  if [ "$now" -le 5 ]; then
    echo "left out   $name (no time left)"
    return
  fi
  [ "$limit" -le "$now" ] || limit=$now
  echo "=== $name" >>"$log"
  timeout -k 5 "$limit" "$@" >"$out/last.log" 2>&1
  code=$?
  cat "$out/last.log" >>"$log"
  case $code in
    0) passed=$((passed + 1)); echo "ok         $name" ;;
    77) skipped=$((skipped + 1)); echo "skipped    $name" ;;
    *) failed=$((failed + 1)); failures="$failures $name"; echo "FAILED $code  $name"; tail -n 15 "$out/last.log" ;;
  esac
}
skip() { skipped=$((skipped + 1)); echo "skipped    $1: $2"; }

part_correct() {
  for test in "$bin"/*_cuda_test; do check "$(basename "$test")" 120 "$test"; done
  for test in device_product_test queue_test api_attention_test golden_test; do check $test 120 "$bin/$test"; done
  check training 180 "$python" tests/emu/cuda_check.py Training.test_as_on_the_cpu Training.test_stopped_and_resumed
  check generation 120 "$python" tests/emu/cuda_check.py Using
  if ! command -v compute-sanitizer >/dev/null; then
    skip sanitizer "no compute-sanitizer here"
    return
  fi
  for tool in memcheck racecheck initcheck; do
    for test in attention norm loss sample optimizer; do
      check "$tool-$test" 90 compute-sanitizer --tool $tool --error-exitcode 9 "$bin/${test}_cuda_test"
    done
  done
}

# resumable NAME COMMAND...: a benchmark that prints "next N" when its budget ends it; goes on from there.
resumable() {
  name=$1
  shift
  from=0
  [ -z "$continued" ] || from=$(cat "$out/$name.next" 2>/dev/null || echo 0)
  [ "$from" != done ] || { echo "done       $name"; return; }
  seconds=$(($(left) - 20))
  [ "$seconds" -gt 10 ] || { echo "left out   $name (no time left)"; return; }
  check "$name" "$(left)" "$@" --csv "$out/$name.csv" --from "$from" --budget-s "$((seconds / 2))" $tiny
  [ "$code" = 0 ] || return
  cat "$out/last.log"
  next=$(sed -n 's/^next //p' "$out/last.log")
  echo "${next:-done}" >"$out/$name.next"
}

part_ops() {
  resumable ops "$bin/ops_bench" --device cuda
  if have_torch; then
    resumable peers_attention "$python" bench/peers/attention.py
  else
    skip peers_attention "no PyTorch here"
  fi
}

part_steps() {
  if ! have_torch || ! "$python" -c 'import transformers, peft' 2>/dev/null; then
    skip steps "no PyTorch with transformers and peft here"
    return
  fi
  resumable steps "$python" bench/peers/steps.py --bench "$bin/step_bench"
}

part_model() {
  model=${XDG_CACHE_HOME:-$HOME/.cache}/pfx/SmolLM2-135M-Instruct.Q4_1.gguf
  for place in "${PFX_MODEL:-$model}" "$root"/.carry/*.gguf; do [ ! -f "$place" ] || model=$place; done
  if [ ! -f "$model" ]; then
    skip model "no SmolLM2 here: PFX_MODEL names its GGUF file"
    return
  fi
  scratch=$(mktemp -d)
  "$python" - "$scratch" <<'PYTHON'
import json, sys
words = "river stone lamp quiet market bridge winter garden letter engine".split()
for name, count in (("train", 512), ("valid", 64)):
    with open(f"{sys.argv[1]}/{name}.jsonl", "w") as out:
        for i in range(count):
            a, b = words[i % 10], words[(7 * i + i // 10) % 10]
            out.write(json.dumps({"prompt": f"{a} (noun):", "completion": f" a {b} that is near a {a}"}) + "\n")
PYTHON
  for place in cpu cuda; do
    check "train-$place" 240 "$bin/pfx" train --model "$model" --data "$scratch/train.jsonl" --valid "$scratch/valid.jsonl" \
      --tune prefix:16 --steps 40 --batch-rows 16 --dtype f32 --device $place --out "$scratch/$place"
    check "eval-$place" 120 "$bin/pfx" eval --model "$model" --data "$scratch/valid.jsonl" --adapter "$scratch/cuda" --device $place
    cat "$out/last.log"
  done
  check generate 120 "$bin/pfx" generate --model "$model" --adapter "$scratch/cuda" --prompt "river (noun):" --max-tokens 24 --device cuda
  cat "$out/last.log"
  check decode 120 "$bin/decode_bench" "$model"
  rm -rf "$scratch"
}

case $part in
  all) part_correct; part_ops; part_steps; part_model ;;
  correct | ops | steps | model) "part_$part" ;;
  *) echo "gpu_check: no part $part" >&2; exit 2 ;;
esac
echo "---"
echo "$passed passed, $failed failed, $skipped skipped on ${device:-no device} in $(($(date +%s) - start)) s; log: $log"
[ -z "$failures" ] || echo "failed:$failures"
[ "$failed" = 0 ]
