#!/bin/sh
# SPDX-License-Identifier: MIT
# Prints a folder with the headers of the CUDA runtime: the toolkit's, or else those of NVIDIA's Python packages (2 MB),
# fetched once into the cache folder. The emulated CUDA backend needs them and nothing else of CUDA.
set -eu

for folder in /usr/local/cuda/include /usr/include; do
  if [ -f "$folder/cuda_runtime_api.h" ]; then
    echo "$folder"
    exit 0
  fi
done
version=13.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pfx
folder=$cache/cuda-$version/include
mkdir -p "$cache"
exec 9>"$cache/.cuda.lock"
flock 9
if [ ! -f "$folder/cuda_runtime_api.h" ]; then
  scratch=$(mktemp -d "$cache/.cuda.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  echo "pfx: fetching the headers of the CUDA runtime (2 MB)" >&2
  for attempt in 1 2 3; do
    python3 -m pip download -q --no-deps --no-cache-dir -d "$scratch" "nvidia-cuda-runtime==$version.*" \
      "nvidia-cuda-crt==$version.*" >&2 && break
    sleep $((attempt * 2))
  done
  python3 - "$scratch" >&2 <<'PYTHON' || { echo "pfx: cannot fetch the headers of the CUDA runtime" >&2; exit 1; }
import glob, sys, zipfile
wheels = glob.glob(sys.argv[1] + "/*.whl")
if len(wheels) != 2:
    sys.exit("pfx: nvidia-cuda-runtime and nvidia-cuda-crt did not come")
for name in wheels:
    with zipfile.ZipFile(name) as wheel:
        wheel.extractall(sys.argv[1], [f for f in wheel.namelist() if "/include/" in f])
PYTHON
  mkdir -p "$cache/cuda-$version"
  rm -rf "$folder"
  mv "$scratch/nvidia/cu13/include" "$folder"
fi
echo "$folder"
