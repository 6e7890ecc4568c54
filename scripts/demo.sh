#!/bin/sh
# SPDX-License-Identifier: MIT
# The whole of prefix tuning in a few minutes: a frozen chat model of 135M parameters learns to answer a word with its
# dictionary gloss, by 16 trained positions of keys and values in front of every text.
# Run it with `make demo`. Everything it writes is in build/demo.
set -eu
cd "$(dirname "$0")/.."

pfx=build/release/pfx
out=build/demo
train_rows=$out/data/train.jsonl
valid_rows=$out/data/valid.jsonl
words=$out/data/held_out.jsonl

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }
answers() { "$pfx" generate --model "$model" --prompts "$words" --max-tokens 24 --quiet --json "$@"; }

say "1. The model and the data"
model=$(scripts/fetch_model.sh)
echo "model   $model"
mkdir -p "$out"
printf 'data    '
python3 scripts/wordnet_data.py "$out/data"

say "2. What the frozen model says for five words that training will not see"
answers >"$out/before.jsonl"
python3 scripts/demo_table.py "$words" "$out/before.jsonl"

say "3. Training a prefix of 16 positions; the model itself stays as it is"
rm -rf "$out/adapter"
"$pfx" train --model "$model" --data "$train_rows" --valid "$valid_rows" --tune prefix:16 --steps 240 --batch-rows 16 \
  --eval-every 80 --out "$out/adapter"

say "4. Loss on words that were not trained on, before and after"
"$pfx" eval --model "$model" --data "$valid_rows" --adapter "$out/adapter"

say "5. The same five words again"
answers --adapter "$out/adapter" >"$out/after.jsonl"
python3 scripts/demo_table.py "$words" "$out/before.jsonl" "$out/after.jsonl"

say "6. Does the adapter belong to this model?"
"$pfx" check --model "$model" --adapter "$out/adapter"

say "Next"
cat <<END
  $pfx generate --model $model --adapter $out/adapter --prompt 'lantern (noun):'
  $pfx inspect $out/adapter
  $pfx train --resume $out/adapter --steps 480   # a longer run from where this one stopped
  $pfx train --help                              # your own rows: {"prompt": ..., "completion": ...} a line
END
