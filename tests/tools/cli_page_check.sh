#!/bin/sh
# SPDX-License-Identifier: MIT
# cli_page_check.sh PFX DOCS_DIR: docs/cli.md is what the command's own tables say, and the manual page is sound roff.
set -eu
scratch=$(mktemp)
trap 'rm -f "$scratch"' EXIT
"$1" --help-markdown >"$scratch"
if ! diff -u "$2/cli.md" "$scratch"; then
  echo "docs/cli.md is out of date: make docs" >&2
  exit 1
fi
if command -v groff >/dev/null; then
  "$1" --man | groff -man -Tutf8 -ww -z 2>"$scratch"
  [ ! -s "$scratch" ] || { cat "$scratch" >&2; exit 1; }
fi
