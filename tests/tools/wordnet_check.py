#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""wordnet_check.py SOURCE_DIR: the demo's rows, from a small dictionary made here and, where it is installed, from WordNet 3.0."""
import json
import os
import subprocess
import sys
import tempfile

WORDNET = "/usr/share/wordnet"
# Licence lines, a plain entry, one with an example, an underscore, a capital letter, an adjective's marker, a long gloss.
SMALL = {
    "noun": ["  1 This software is a licence", "01 00 n 02 heron 0 crane 0 000 | a long-legged bird  ",
             '02 00 n 01 stone 0 000 | a lump of mineral; "he threw a stone at me"  ',
             "03 00 n 01 white_heron 0 000 | a white bird  ", "04 00 n 01 Paris 0 000 | a city  ",
             "05 00 n 01 endless 0 000 | " + "x" * 121 + "  ", "06 00 n 01 limit 0 000 | " + "y" * 120 + "  "],
    "verb": ["01 00 v 01 stone 0 000 | kill by throwing stones at; remove the pits  "],
    "adj": ["01 00 a 01 galore(ip) 0 000 | in great numbers  "],
    "adv": ["01 00 r 01 gladly 0 000 | with pleasure  "],
}


def rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def make(source, out, *options):
    result = subprocess.run([sys.executable, source + "/scripts/wordnet_data.py", out, *options], capture_output=True, text=True)
    return result.returncode, result.stdout, result.stderr


def expect(condition, what):
    if not condition:
        sys.exit("wordnet_check: " + what)


def small(source, folder):
    for part, lines in SMALL.items():
        with open(f"{folder}/data.{part}", "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    code, out, err = make(source, folder + "/out", "--wordnet", folder, "--held-out", "stone")
    expect(code == 0 and out.startswith("6 entries"), f"small dictionary: {code} {out}{err}")
    seen = rows(folder + "/out/train.jsonl") + rows(folder + "/out/valid.jsonl")
    expect(sorted((row["prompt"], row["completion"]) for row in seen) ==
           [("galore (adjective):", " in great numbers"), ("gladly (adverb):", " with pleasure"),
            ("heron (noun):", " a long-legged bird"), ("limit (noun):", " " + "y" * 120)], f"rows {seen}")
    expect(rows(folder + "/out/held_out.jsonl") == [{"prompt": "stone (noun):", "completion": " a lump of mineral"}], "held out")
    code, _, err = make(source, folder + "/out", "--wordnet", folder, "--held-out", "stone,unheard")
    expect(code == 1 and "unheard" in err, "a word that the dictionary lacks was held out")
    code, _, err = make(source, folder + "/out", "--wordnet", folder + "/none")
    expect(code == 1 and "install wordnet-base" in err, "no dictionary: " + err)


def whole(source, folder):
    code, out, err = make(source, folder + "/a")
    expect(code == 0 and out.startswith("71066 entries"), f"WordNet 3.0 has 71,066 entries, not: {out}{err}")
    make(source, folder + "/b")
    for name in ("train", "valid", "held_out"):
        with open(f"{folder}/a/{name}.jsonl", "rb") as a, open(f"{folder}/b/{name}.jsonl", "rb") as b:
            expect(a.read() == b.read(), name + " differs between two runs")
    words = [{row["prompt"].split(" (")[0] for row in rows(f"{folder}/a/{name}.jsonl")} for name in ("train", "valid", "held_out")]
    expect(not words[0] & words[1] and not (words[0] | words[1]) & words[2], "a word is in two files")
    expect(len(words[2]) == 5 and len(words[1]) > 200, "too few words")


def main():
    with tempfile.TemporaryDirectory() as folder:
        small(sys.argv[1], folder)
        if not os.path.exists(WORDNET + "/data.noun"):
            print("skipped the rest: wordnet-base is not installed")
            return 77
        whole(sys.argv[1], folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
