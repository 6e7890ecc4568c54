#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes rows "word (noun):" -> " gloss" from WordNet's dictionary files (Debian package wordnet-base).

  wordnet_data.py OUT_FOLDER [--wordnet FOLDER] [--valid-rows N] [--held-out WORD,WORD,...]

A row is made of the first word of every set of synonyms, where it has no underscore and no capital first letter, and of
its gloss up to the first example, where that has at most 120 characters. OUT_FOLDER/train.jsonl and valid.jsonl never
share a word: a word's digest decides where all its rows go. valid.jsonl is limited to the N rows (256) that come first in
the order of their digests, so that it is a fair sample. Words to be held out are in neither file; their prompts and glosses are in
OUT_FOLDER/held_out.jsonl. The same dictionary always gives the same bytes.
"""
import argparse
import hashlib
import json
import os
import sys

PARTS = (("noun", "noun"), ("verb", "verb"), ("adj", "adjective"), ("adv", "adverb"))
LONGEST_GLOSS = 120
VALID_PERCENT = 2


def entries(folder):
    """(word, part of speech, gloss) in the order of the files."""
    for file_part, part in PARTS:
        path = os.path.join(folder, "data." + file_part)
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.startswith("  "):  # the licence
                    continue
                head, _, gloss = line.partition("|")
                word = head.split()[4].split("(")[0]  # adjectives carry their place in the sentence, as in "galore(ip)"
                gloss = gloss.split('; "')[0].strip()
                if "_" not in word and not word[0].isupper() and len(gloss) <= LONGEST_GLOSS:
                    yield word, part, gloss


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def row(word, part, gloss):
    return {"prompt": f"{word} ({part}):", "completion": " " + gloss}


def write_rows(path, rows):
    with open(path + ".part", "w", encoding="utf-8") as file:
        for item in rows:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    os.replace(path + ".part", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--wordnet", default="/usr/share/wordnet")
    parser.add_argument("--valid-rows", type=int, default=256)
    parser.add_argument("--held-out", default="glacier,violinist,shout,fragile,carefully")
    options = parser.parse_args()
    held_words = [word for word in options.held_out.split(",") if word]

    try:
        everything = list(entries(options.wordnet))
    except OSError as error:
        sys.exit(f"wordnet_data.py: {error.filename}: {error.strerror}; install wordnet-base or name its folder with --wordnet")
    train, valid, held = [], [], {}
    for word, part, gloss in everything:
        if word in held_words:
            held.setdefault(word, row(word, part, gloss))
        elif int(digest(word)[:8], 16) % 100 < VALID_PERCENT:
            valid.append(row(word, part, gloss))
        else:
            train.append(row(word, part, gloss))
    absent = [word for word in held_words if word not in held]
    if absent:
        sys.exit("wordnet_data.py: not in the dictionary: " + ", ".join(absent))
    valid.sort(key=lambda item: digest(item["prompt"] + item["completion"]))

    os.makedirs(options.out, exist_ok=True)
    write_rows(os.path.join(options.out, "train.jsonl"), train)
    write_rows(os.path.join(options.out, "valid.jsonl"), valid[:options.valid_rows])
    write_rows(os.path.join(options.out, "held_out.jsonl"), [held[word] for word in held_words])
    print(f"{len(everything)} entries: {len(train)} rows to train on, {min(len(valid), options.valid_rows)} to validate, "
          f"{len(held)} words held out")


if __name__ == "__main__":
    main()
