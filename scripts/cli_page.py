#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""docs/cli.md, made of the help texts of the command.

  cli_page.py PFX > docs/cli.md
  cli_page.py PFX --check docs/cli.md    exit code 1 when the page is not what the command says now
"""
import re
import subprocess
import sys

HEAD = """# The command

Made by `scripts/cli_page.py` from the help texts of `pfx`; the manual page and the shell completions come from the same tables.
"""


def text_of(*arguments):
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.rstrip("\n")


def section(title, text):
    return f"\n## {title}\n\n```\n{text}\n```\n"


def page(pfx):
    overview = text_of(pfx, "--help")
    listed = re.findall(r"^  ([a-z]+)  +\S", overview, flags=re.MULTILINE)
    if "train" not in listed:
        sys.exit("cli_page.py: `pfx --help` lists no commands in the form expected")
    return HEAD + section("pfx", overview) + "".join(section("pfx " + name, text_of(pfx, name, "--help")) for name in listed)


def main():
    if len(sys.argv) == 2:
        print(page(sys.argv[1]), end="")
        return 0
    if len(sys.argv) == 4 and sys.argv[2] == "--check":
        with open(sys.argv[3], encoding="utf-8") as file:
            if file.read() == page(sys.argv[1]):
                return 0
        print(f"{sys.argv[3]} is out of date; run: scripts/cli_page.py {sys.argv[1]} > {sys.argv[3]}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
