#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""demo_table.py ROWS BEFORE [AFTER]: prints prompts beside what was generated for them (JSON Lines of `pfx generate`)."""
import json
import shutil
import sys
import textwrap


def load(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def texts(path):
    return [" ".join(item["text"].split()) for item in load(path)]


def main():
    rows = load(sys.argv[1])
    columns = [[row["prompt"] for row in rows]] + [texts(path) for path in sys.argv[2:4]]
    heads = ["prompt", "frozen model", "with the prefix"][:len(columns)]
    first = max(len(text) for text in columns[0]) + 2
    rest = (min(shutil.get_terminal_size((110, 24)).columns, 130) - first) // (len(columns) - 1)
    widths = [first] + [rest] * (len(columns) - 1)
    print("".join(head.ljust(width) for head, width in zip(heads, widths)))
    for cells in zip(*columns):
        wrapped = [textwrap.wrap(cell, width - 2) or [""] for cell, width in zip(cells, widths)]
        for number in range(max(map(len, wrapped))):
            print("".join((lines[number] if number < len(lines) else "").ljust(width)
                          for lines, width in zip(wrapped, widths)).rstrip())


if __name__ == "__main__":
    main()
