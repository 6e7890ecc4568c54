# SPDX-License-Identifier: MIT
"""A model from end to end through the command: train, evaluate, generate, on the CPU and on the device.

    end_to_end.py --pfx build/gpu-bundle/bin/pfx --model FILE.gguf [--csv F] [--from POINT] [--budget-s S] [--tiny]

Losses of float32 training on the device are held against the CPU's step by step, `pfx eval` with one adapter and greedy
text against each other; bfloat16 then shows the speed: tokens a second of the median step after the first ten. --tiny
makes a small model of its own out of the golden ones. Exit code 1 where something differed or failed."""
import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = "river stone lamp quiet market bridge winter garden letter engine".split()
COLUMNS = ("point", "what", "device", "dtype", "steps", "median_ms", "tokens_per_s", "first_loss", "last_loss", "valid_loss",
           "peak_mb", "seconds", "difference")


class Failed(Exception):
    pass


def write_texts(folder):
    """Rows of a small task: two words that depend on each other."""
    for name, count in (("train", 1024), ("valid", 64)):
        with (folder / f"{name}.jsonl").open("w") as out:
            for i in range(count):
                a, b = WORDS[i % 10], WORDS[(7 * i + i // 10) % 10]
                out.write(json.dumps({"prompt": f"{a} (noun):", "completion": f" a {b} that is near a {a}"}) + "\n")
    return "river (noun):"


def write_tiny(folder):
    """A golden model with a tokenizer whose text says its ids."""
    sys.path.insert(0, str(ROOT / "tests/cli"))
    import command
    command.copy_model("llama_tied", str(folder / "model"))
    vocab = json.loads((folder / "model/config.json").read_text())["vocab_size"]
    command.add_tokenizer(str(folder / "model"), vocab)
    for name, count in (("train", 24), ("valid", 6)):
        command.write_rows(str(folder / f"{name}.jsonl"), command.id_rows(count, vocab))
    return command.ids_text([40, 50, 60])


class Run:
    """What the points share."""

    def __init__(self, args, folder):
        self.args, self.folder, self.tiny = args, folder, args.tiny
        self.prompt = write_tiny(folder) if args.tiny else write_texts(folder)
        self.model = folder / "model" if args.tiny else args.model
        self.losses = {}

    def pfx(self, *words):
        done = subprocess.run([str(self.args.pfx), *(str(word) for word in words)], capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"pfx {words[0]}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def train(self, device, dtype, steps, rows):
        out, begin = self.folder / f"{device}-{dtype}".replace(":", "-"), time.monotonic()
        steps, rows = (4, 4) if self.tiny else (steps, rows)
        self.pfx("train", "--model", self.model, "--data", self.folder / "train.jsonl", "--valid", self.folder / "valid.jsonl",
                 "--tune", "prefix:4" if self.tiny else "prefix:16", "--steps", steps, "--batch-rows", rows, "--dtype", dtype,
                 "--device", device, "--out", out, "--force", "--quiet")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        self.losses[device, dtype] = [line["loss"] for line in lines]
        late = lines[min(10, len(lines) // 2):]
        rate = statistics.median(line["tokens_per_s"] for line in late)
        tokens = statistics.median(line["tokens"] for line in late)
        return {"device": device, "dtype": dtype, "steps": len(lines), "tokens_per_s": f"{rate:.0f}",
                "median_ms": f"{1e3 * tokens / rate:.3f}", "first_loss": lines[0]["loss"], "last_loss": lines[-1]["loss"],
                "valid_loss": next((line["valid_loss"] for line in reversed(lines) if "valid_loss" in line), ""),
                "peak_mb": f"{max(line['peak_bytes'] for line in lines) / 1e6:.0f}", "seconds": f"{time.monotonic() - begin:.1f}"}

    def adapter(self):
        """The adapter of the CPU's run, trained here where an earlier call trained it."""
        if not (self.folder / "cpu-f32").exists():
            self.train("cpu", "f32", 40, 16)
        return self.folder / "cpu-f32"


def train_float32(run):
    """The same run on both: their losses agree as long as rounding has not grown."""
    yield dict(run.train("cpu", "f32", 40, 16), what="train")
    row = run.train(run.args.device, "f32", 40, 16)
    here, there = run.losses[run.args.device, "f32"], run.losses["cpu", "f32"]
    difference = max(abs(a - b) / abs(b) for a, b in zip(here[:10], there[:10], strict=True))
    yield dict(row, what="train", difference=f"{difference:.1e}")
    if not difference < 1e-3:
        raise Failed(f"losses of the first ten steps differ by {difference:.1e}")


def train_bfloat16(run):
    for rows in (4,) if run.tiny else (16, 128):
        yield dict(run.train(run.args.device, "bf16", 100, rows), what=f"train, {rows} rows")


def evaluate(run):
    losses = {}
    for device in ("cpu", run.args.device):
        begin = time.monotonic()
        lines = run.pfx("eval", "--model", run.model, "--data", run.folder / "valid.jsonl", "--adapter", run.adapter(),
                        "--dtype", "f32", "--device", device, "--json", "--quiet").splitlines()
        losses[device] = json.loads(lines[-1])["loss"]
        difference = abs(losses[device] / losses["cpu"] - 1)
        yield {"what": "evaluate", "device": device, "dtype": "f32", "valid_loss": losses[device],
               "seconds": f"{time.monotonic() - begin:.1f}", "difference": f"{difference:.1e}"}
        if not difference < 1e-4:
            raise Failed(f"losses differ by {difference:.1e}")


def generate(run):
    texts = {}
    for device in ("cpu", run.args.device):
        begin = time.monotonic()
        texts[device] = run.pfx("generate", "--model", run.model, "--adapter", run.adapter(), "--prompt", run.prompt,
                                "--max-tokens", 24, "--dtype", "f32", "--device", device, "--quiet")
        yield {"what": "generate", "device": device, "dtype": "f32", "seconds": f"{time.monotonic() - begin:.1f}",
               "difference": "same text" if texts[device] == texts["cpu"] else "other text"}
    if len(set(texts.values())) != 1:
        raise Failed(f"greedy texts differ: {texts}")


POINTS = (train_float32, train_bfloat16, evaluate, generate)


def shown(number, row):
    words = [f"{number:3} {row['what']:16} {row['device']:7} {row['dtype']:4}"]
    if "tokens_per_s" in row:
        words.append(f"{row['median_ms']} ms a step, {row['tokens_per_s']} tokens/s, loss {row['first_loss']:.4f} to "
                     f"{row['last_loss']:.4f},")
    words.append(f"{row['seconds']} s")
    return " ".join(words + ([f"difference {row['difference']}"] if "difference" in row else []))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pfx", required=True, type=lambda path: Path(path).resolve())
    parser.add_argument("--model", type=lambda path: Path(path).resolve())
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--csv")
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--budget-s", type=float, default=1e9)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if not args.tiny and not args.model:
        parser.error("--model is missing")
    begin, failed, following = time.monotonic(), 0, None
    out = csv.DictWriter(open(args.csv or os.devnull, "a" if args.first else "w"), COLUMNS, lineterminator="\n")
    if not args.first:
        out.writeheader()
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(args, Path(scratch))
        for number, point in enumerate(POINTS):
            if number < args.first:
                continue
            if time.monotonic() - begin > args.budget_s:
                following = number if following is None else following
                print(f"left out {number:3} {point.__name__}")
                continue
            try:
                for row in point(run):
                    print(shown(number, row), flush=True)
                    out.writerow(dict(row, point=number))
            except Failed as why:
                failed += 1
                print(f"{number:3} {point.__name__}: FAILED: {why}", flush=True)
    if following is not None:
        print(f"next {following}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
