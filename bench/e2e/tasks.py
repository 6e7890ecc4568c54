# SPDX-License-Identifier: MIT
"""The tasks of measure_methods.py as files of rows: train, valid (chooses the learning rate), test (decides), retain (other text,
for what a method forgets). Always the same rows for the same sources."""
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
E2E_FILES = ("train.txt", "valid.txt", "test.txt")
E2E_TEXT = """the folder of the E2E task as the prefix-tuning paper has it: train.txt, valid.txt and test.txt, a line
    name : Blue Spice | Type : coffee shop | area : city centre||A coffee shop in the city centre area called Blue Spice .
for every text; lines of one meaning stand one after the other. Name it with --data DIR"""


class TaskError(Exception):
    pass


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def fair_sample(items, count, key):
    """The `count` that come first in the order of their digests, in their own order."""
    chosen = set(sorted((digest(key(item)) for item in items))[:count])
    return [item for item in items if digest(key(item)) in chosen]


def write_rows(path, rows):
    part = Path(f"{path}.part")
    part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(part, path)


def e2e_rows(path):
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            source, separator, target = line.rstrip("\n").partition("||")
            if not separator or not source.strip() or not target.strip():
                raise TaskError(f"{path}:{number}: not MEANING||TEXT")
            rows.append({"prompt": source.strip() + "\n", "completion": target.strip()})
    if not rows:
        raise TaskError(f"{path}: no rows")
    return rows


def wordnet_rows(folder, valid_rows, wordnet):
    """The rows of scripts/wordnet_data.py: (train, valid), or None where there is no dictionary."""
    done = subprocess.run([sys.executable, ROOT / "scripts/wordnet_data.py", folder, "--valid-rows", str(valid_rows), "--wordnet", wordnet],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    return [[json.loads(line) for line in open(os.path.join(folder, name), encoding="utf-8")] for name in ("train.jsonl", "valid.jsonl")]


def prepare_e2e(out, options):
    data = Path(options.data) if options.data else None
    missing = [name for name in E2E_FILES if not data or not (data / name).is_file()]
    if missing:
        raise TaskError(f"{data or '--data'}: {', '.join(missing)} missing; wanted is {E2E_TEXT}")
    train, valid, test = (e2e_rows(data / name) for name in E2E_FILES)
    prompts = list(dict.fromkeys(row["prompt"] for row in test))
    chosen = set(fair_sample(prompts, options.prompts, str))
    words = wordnet_rows(out / "wordnet", options.retain_rows, options.wordnet)
    return {"train": train, "valid": fair_sample(valid, options.valid_rows, json.dumps), "test": [row for row in test if row["prompt"] in chosen],
            "retain": words[1] if words else [], "all_prompts": len(prompts), "retain_text": "glosses of WordNet"}


def prepare_wordnet(out, options):
    words = wordnet_rows(out / "wordnet", options.valid_rows + options.prompts, options.wordnet)
    if not words:
        raise TaskError(f"{options.wordnet}: no dictionary of WordNet there; install wordnet-base or name its folder with --wordnet")
    train, held = words
    other = []
    if options.data and (Path(options.data) / "valid.txt").is_file():
        other = fair_sample(e2e_rows(Path(options.data) / "valid.txt"), options.retain_rows, json.dumps)
    return {"train": train, "valid": held[:options.valid_rows], "test": held[options.valid_rows:], "retain": other,
            "all_prompts": len({row["prompt"] for row in held[options.valid_rows:]}), "retain_text": "validation rows of the E2E task"}


def prepare_quick(out, options):
    """A dozen made-up rows in the E2E task's own files."""
    folder = out / "quick"
    folder.mkdir(exist_ok=True)
    wordings = ("{0} is by the {1} .", "By the {1} there is {0} .")
    for name, places in (("train.txt", ("Aromi", "Cotto", "Zizzi")), ("valid.txt", ("Mill", "Eagle")), ("test.txt", ("Punter", "Giraffe"))):
        lines = [f"name : {place} | area : {area}||{words.format(place, area)} \n" for place in places for area in ("river", "park") for words in wordings]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    options.data, options.wordnet = folder, folder
    return {**prepare_e2e(out, options), "retain": [{"prompt": "stone:", "completion": " a lump"}, {"prompt": "heron:", "completion": " a bird"}],
            "retain_text": "something else"}


PREPARE = {"e2e": prepare_e2e, "wordnet": prepare_wordnet, "quick": prepare_quick}


def prepare(name, out, options):
    """Writes OUT/data/*.jsonl; returns what the report says about them, with a digest of every file."""
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    task = PREPARE[name](out, options)
    facts = {"train_rows": len(task["train"]), "prompts": len({row["prompt"] for row in task["test"]}), "all_prompts": task["all_prompts"],
             "test_rows": len(task["test"]), "valid_rows": len(task["valid"]), "retain_rows": len(task["retain"]), "retain_text": task["retain_text"]}
    for part in ("train", "valid", "test", "retain"):
        write_rows(folder / f"{part}.jsonl", task[part])
        facts[f"{part}_sha256"] = hashlib.sha256((folder / f"{part}.jsonl").read_bytes()).hexdigest()
    return facts
