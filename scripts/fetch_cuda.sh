#!/bin/sh
# SPDX-License-Identifier: MIT
# fetch_cuda.sh headers|toolkit|tools|frontend: prints a folder of CUDA's: the installed toolkit, or else what NVIDIA's Python
# packages hold, fetched once into the cache folder.
#   headers   include/ of the runtime (2 MB): all that the emulated backend needs
#   toolkit   bin/nvcc, include/, lib/libcudart_static.a (100 MB): what a build with PFX_CUDA=ON needs
#   frontend  include/cudnn_frontend.h (2 MB): cuDNN's front end, with which cuDNN's attention is built in
#   tools     bin/cuobjdump and bin/nvdisasm (5 MB): what the check of the compiled kernels reads them with
set -eu

version=13.0
inside=nvidia/cu13
case ${1:-} in
  headers) probe=include/cuda_runtime_api.h; packages="nvidia-cuda-runtime==$version.* nvidia-cuda-crt==$version.*"; size="2 MB" ;;
  toolkit) probe=bin/nvcc; size="100 MB"
    packages="nvidia-cuda-nvcc==$version.* nvidia-cuda-crt==$version.* nvidia-nvvm==$version.* nvidia-cuda-runtime==$version.*" ;;
  tools) probe=bin/nvdisasm; packages="nvidia-cuda-cuobjdump==13.2.* nvidia-cuda-nvdisasm==13.2.*"; size="5 MB" ;;
  frontend) probe=include/cudnn_frontend.h; packages="nvidia-cudnn-frontend==1.18.0"; size="2 MB"; inside=. ;;
  *) echo "usage: fetch_cuda.sh headers|toolkit|tools|frontend" >&2; exit 2 ;;
esac

for folder in ${CUDA_HOME:-} /usr/local/cuda /usr/local /usr; do
  if [ -f "$folder/$probe" ] && { [ "$1" != toolkit ] || [ -n "$(find -L "$folder"/lib* -maxdepth 3 -name libcudart_static.a -print -quit)" ]; }; then
    echo "$folder"
    exit 0
  fi
done
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pfx
folder=$cache/cuda-$version/$1
mkdir -p "$cache"
exec 9>"$cache/.cuda.lock"
flock 9
if [ ! -f "$folder/$probe" ]; then
  scratch=$(mktemp -d "$cache/.cuda.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  echo "pfx: fetching CUDA's $1 ($size)" >&2
  for attempt in 1 2 3; do
    # shellcheck disable=SC2086
    python3 -m pip download -q --no-deps --no-cache-dir -d "$scratch" $packages >&2 && break
    sleep $((attempt * 2))
  done
  python3 - "$scratch" >&2 <<'PYTHON' || { echo "pfx: cannot fetch CUDA's $1 from the Python package index" >&2; exit 1; }
import glob, os, sys, zipfile
scratch = sys.argv[1]
for name in glob.glob(scratch + "/*.whl"):
    with zipfile.ZipFile(name) as wheel:
        wheel.extractall(scratch)
for folder, _, names in os.walk(scratch):
    if os.path.basename(folder) == "bin":
        for name in names:
            os.chmod(os.path.join(folder, name), 0o755)
PYTHON
  [ -f "$scratch/$inside/$probe" ] || { echo "pfx: the packages came without $probe" >&2; exit 1; }
  mkdir -p "$cache/cuda-$version"
  rm -rf "$folder"
  if [ "$1" = frontend ]; then # of the package only the headers
    mkdir "$scratch/kept"
    mv "$scratch/include" "$scratch/kept"
    inside=kept
  fi
  mv "$scratch/$inside" "$folder"
fi
echo "$folder"
