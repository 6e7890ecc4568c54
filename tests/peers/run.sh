#!/bin/sh
# SPDX-License-Identifier: MIT
# Holds pfx against PEFT, transformers, sacrebleu, rouge-score and TensorBoard, and makes the golden files again.
#     tests/peers/run.sh [PFX_BINARY] [peers_check.py's options]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
binary=$here/../../build/release/pfx
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  binary=$1
  shift
fi
python=$("$here/environment.sh")
exec "$python" "$here/peers_check.py" "$binary" "$@"
