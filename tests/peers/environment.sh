#!/bin/sh
# SPDX-License-Identifier: MIT
# Prints the path of a Python that has torch, transformers, peft, sacrebleu, rouge-score and tensorboard in the pinned versions:
# PFX_PEERS_PYTHON where it is set, else an environment of its own below the cache folder, made on the first call by pip
# from the package index that it is set up for (several GB, unless PIP_EXTRA_INDEX_URL or such offers a CPU build of torch).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
pins=$here/../golden/requirements.txt
if [ -n "${PFX_PEERS_PYTHON:-}" ]; then
  echo "$PFX_PEERS_PYTHON"
  exit 0
fi
folder=${XDG_CACHE_HOME:-$HOME/.cache}/pfx/peers
if ! [ -f "$folder/ready" ] || ! cmp -s "$folder/ready" "$pins"; then
  echo "pfx: making a Python environment with torch and peft in $folder" >&2
  rm -rf "$folder"
  python3 -m venv "$folder"
  "$folder/bin/pip" install -q -r "$pins" >&2
  cp "$pins" "$folder/ready"
fi
echo "$folder/bin/python"
