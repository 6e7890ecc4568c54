#!/bin/sh
# SPDX-License-Identifier: MIT
# What only a GPU can show, in one run without a network: correctness first, then the benchmarks.
#
#   bench/gpu_check.sh [--part correct|ops|steps|model|all] [--budget-s 540] [--continue] [--tiny]
#
# correct  every operation test, the golden models and training, resume and generation on the device; then
#          compute-sanitizer on the small ones, where it is there
# ops      ops_bench (percent of the measured ceilings), PyTorch's attention at the same shapes, and ours with cuDNN
# steps    whole training steps on three models' shapes with random weights, 256 to 16k tokens a step, against PEFT and
#          hand-written PyTorch (bench/peers/steps.py)
# model    SmolLM2 from end to end (bench/end_to_end.py): train, evaluate and generate as on the CPU, tokens a second; decode
#          in batches against the memory's rate, of SmolLM2 and of random weights at the shape of Llama 3 8B
#
# Programs come from build/gpu-bundle (make gpu-bundle), or are built in build/cuda where the packages allow it; CUDA's
# libraries from the loader or from PyTorch's Python packages; SmolLM2 from PFX_MODEL, the bundle or the cache. Results go
# to ${OUT:-bench/results/<device>}: check.log, *.csv (machine.csv: what ran them; summary.csv: the table), *.next (where
# --continue goes on). What is missing is skipped and counted. --tiny: sizes that prove the script on a machine without a
# GPU, with PFX_BUILD naming a build whose device is emulated.
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
    *) sed -n '5,22s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done
start=$(date +%s)
left() { echo $((budget - ($(date +%s) - start))); }
passed=0 failed=0 skipped=0 failures= again=

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
[ -f "$out/checks.csv" ] || echo part,check,result,seconds >"$out/checks.csv"

# --- the programs ---
link_programs() { # BUILD: bin/ of links, as the bundle has one
  bin=$1/programs
  mkdir -p "$bin"
  for program in "$1"/pfx "$1"/tests/*_cuda_test "$1"/tests/golden_test "$1"/tests/generator_test "$1"/tests/parts_golden_test "$1"/tests/device_*_test \
    "$1"/tests/queue_test "$1"/tests/api_attention_test "$1"/bench/*_bench; do
    [ ! -x "$program" ] || ln -sf "$program" "$bin/"
  done
}
find_programs() {
  bundle=$root/build/gpu-bundle
  commit=$(git rev-parse HEAD 2>/dev/null)
  if [ -n "${PFX_BUILD:-}" ]; then
    link_programs "$(cd "$PFX_BUILD" && pwd)"
    return
  fi
  if [ -x "$bundle/bin/pfx" ]; then
    if [ -f "$bundle/lib/libdnnl.so.2.xz" ]; then
      "$python" -c "import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[1][:-3], 'wb'))" \
        "$bundle/lib/libdnnl.so.2.xz" && rm "$bundle/lib/libdnnl.so.2.xz"
    fi
    bin=$bundle/bin commit=$(cat "$bundle/commit")
    return
  fi
  cmake --preset cuda >>"$log" 2>&1 && cmake --build --preset cuda >>"$log" 2>&1 || {
    echo "gpu_check: no build/gpu-bundle, and build/cuda does not build: see $log" >&2
    exit 1
  }
  link_programs "$root/build/cuda"
}
find_programs
export PFX_SOURCE_DIR="$root" PFX_BINARY="$bin/pfx" PFX_BUILD_DIR="${bin%/*}"

# What measures, for every table.
asked() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
{
  echo key,value
  echo "device,${device:-none}"
  for key in driver_version memory.total compute_cap; do echo "${key%%_version},$(asked $key)"; done
  echo "commit,$commit"
  echo "pfx,$("$PFX_BINARY" --version | tr '\n,' '  ' | sed 's/^pfx //')"
  have_torch && "$python" -c 'import torch; print(f"torch,{torch.__version__} cuDNN {torch.backends.cudnn.version()}")'
  echo "date,$(date -u +%Y-%m-%dT%H:%M:%SZ)"
} >"$out/machine.csv" 2>>"$log"
cat "$out/machine.csv" >>"$log"

# check NAME SECONDS COMMAND...: one counted check; exit code 77 is a skip. --continue takes up those that did not pass.
check() {
  name=$1 limit=$2
  shift 2
  code=left
  if [ -n "$continued" ] && [ -z "$again" ] && grep -q "^$current,$name,ok," "$out/checks.csv"; then
    echo "done       $name"
    return
  fi
  now=$(left)
  if [ "$now" -le 5 ]; then
    echo "left out   $name (no time left)"
    return
  fi
  [ "$limit" -le "$now" ] || limit=$now
  echo "=== $name" >>"$log"
  began=$(date +%s)
  timeout -k 5 "$limit" "$@" >"$out/last.log" 2>&1
  code=$?
  cat "$out/last.log" >>"$log"
  case $code in
    0) result=ok passed=$((passed + 1)); echo "ok         $name" ;;
    77) result=skipped skipped=$((skipped + 1)); echo "skipped    $name" ;;
    *) result=failed failed=$((failed + 1)) failures="$failures $name"; echo "FAILED $code  $name"; tail -n 15 "$out/last.log" ;;
  esac
  echo "$current,$name,$result,$(($(date +%s) - began))" >>"$out/checks.csv"
}
skip() { skipped=$((skipped + 1)); echo "skipped    $1: $2"; }

part_correct() {
  if [ -n "$tiny" ]; then # the emulated device has its own tests; here the script is on trial
    for test in rope_cuda_test kv_write_cuda_test; do check $test 60 "$bin/$test"; done
    check generation 60 "$python" tests/emu/cuda_check.py Using.test_eval
    return
  fi
  for test in "$bin"/*_cuda_test; do check "$(basename "$test")" 120 "$test"; done
  for test in device_product_test queue_test api_attention_test golden_test generator_test parts_golden_test; do check $test 120 "$bin/$test"; done
  # With cuDNN where it is, which also says what it must know of the device to make plans elsewhere.
  check device_attention_split_test 120 env PX_DEVICE_PROPERTIES="$out/device_properties.json" "$bin/device_attention_split_test"
  check training 180 "$python" tests/emu/cuda_check.py Training.test_as_on_the_cpu Training.test_stopped_and_resumed \
    Steps.test_replayed_or_one_by_one Failing.test_a_loss_that_is_not_finite
  check parts 120 "$python" tests/emu/cuda_check.py Parts
  check generation 120 "$python" tests/emu/cuda_check.py Using
  if ! command -v compute-sanitizer >/dev/null; then
    skip sanitizer "no compute-sanitizer here"
    return
  fi
  for tool in memcheck racecheck initcheck; do
    for test in attention norm loss sample optimizer lora elementwise; do
      check "$tool-$test" 90 compute-sanitizer --tool $tool --error-exitcode 9 "$bin/${test}_cuda_test"
    done
  done
}

# Whether a benchmark that goes on from there is not yet through.
pending() {
  [ -z "$continued" ] || [ "$(cat "$out/$1.next" 2>/dev/null)" != done ] || { echo "done       $1"; return 1; }
}

# resumable NAME COMMAND...: a benchmark that names the points it leaves out when its budget, half of what is left, ends it,
# and prints "next N": there it goes on.
resumable() {
  name=$1
  shift
  pending "$name" || return 0
  from=0
  [ -z "$continued" ] || from=$(cat "$out/$name.next" 2>/dev/null || echo 0)
  seconds=$(($(left) - 20))
  [ "$seconds" -gt 10 ] || { echo "left out   $name from point $from (no time left)"; return; }
  again=yes
  check "$name from $from" "$(left)" "$@" --csv "$out/$name.csv" --from "$from" --budget-s "$((seconds / 2))" $tiny
  again=
  [ "$code" = 0 ] || return
  cat "$out/last.log"
  next=$(sed -n 's/^next //p' "$out/last.log")
  echo "${next:-done}" >"$out/${name%% *}.next"
}

part_ops() {
  resumable ops "$bin/ops_bench" --device cuda
  if have_torch; then
    resumable peers_attention "$python" bench/peers/attention.py
  else
    skip peers_attention "no PyTorch here"
  fi
  resumable ops_cudnn "$bin/ops_bench" --device cuda --attention cudnn --only attention
}

part_steps() {
  if ! have_torch || ! "$python" -c 'import transformers, peft' 2>/dev/null; then
    skip steps "no PyTorch with transformers and peft here"
    return
  fi
  resumable steps "$python" bench/peers/steps.py --bench "$bin/step_bench"
}

part_model() {
  model=
  for place in "${PFX_MODEL:-}" build/gpu-bundle/model/*.gguf .carry/*.gguf \
    "${XDG_CACHE_HOME:-$HOME/.cache}/pfx/SmolLM2-135M-Instruct.Q4_1.gguf"; do
    [ -n "$model" ] || [ ! -f "$place" ] || model=$place
  done
  [ -z "$tiny" ] || model=tests/golden/llama_tied
  if [ -z "$model" ]; then
    skip end_to_end "no SmolLM2 here: PFX_MODEL names its GGUF file"
    skip decode "no SmolLM2 here"
  else
    resumable end_to_end "$python" bench/end_to_end.py --pfx "$bin/pfx" --model "$model"
    resumable decode "$bin/decode_bench" "$model" --name smollm2-135m --device cuda
  fi
  pending decode_8b || return 0
  scratch=$(mktemp -d)
  if [ -z "$tiny" ] && [ "$(df -Pk "$scratch" | awk 'END {print $4}')" -lt 18000000 ]; then
    skip decode_8b "no 18 GB in $scratch for random weights"
  else
    again=yes
    check weights_8b 180 "$python" bench/peers/random_model.py "$scratch/model" $tiny
    again=
    [ "$code" != 0 ] || resumable decode_8b "$bin/decode_bench" "$scratch/model" --name llama-3-8b --prefix 100 --device cuda
  fi
  rm -rf "$scratch"
}

case $part in
  all) parts="correct ops steps model" ;;
  correct | ops | steps | model) parts=$part ;;
  *) echo "gpu_check: no part $part" >&2; exit 2 ;;
esac
for current in $parts; do
  if [ -z "$continued" ]; then
    sed -i "/^$current,/d" "$out/checks.csv"
  fi
  "part_$current"
done
echo "---"
"$python" bench/gpu_table.py "$out"
echo "$passed passed, $failed failed, $skipped skipped on ${device:-no device} in $(($(date +%s) - start)) s; log: $log"
[ -z "$failures" ] || echo "failed:$failures"
[ "$failed" = 0 ]
