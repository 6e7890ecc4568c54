# SPDX-License-Identifier: MIT
"""pfx and PEFT train the same prefix on the same rows of the same model, one after the other, several times.

    cpu_vs_peft.py --pfx BINARY --rate ONEDNN_RATE [--e2e DIR] [--results DIR]

Model: SmolLM2-135M, dequantised to a float32 folder that both read. Rows: the E2E task's (--e2e, a folder with train.txt
and valid.txt) or generated ones like them, tokenised once, given to both as ids. A prefix of 20 from one initial value,
16 rows a step, the same rows in each step, AdamW 1e-2 with 10 steps of warm-up and linear decay, clipping at 1. Peak memory is the kernel's figure
(ru_maxrss) of the whole process, loading included. In the first round each trains all --steps and its validation loss
is taken (`pfx eval`, for both); later rounds are short. The first steps of a run are not counted.
"""
import argparse
import csv
import json
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests/golden")]
import e2e_rows  # noqa: E402

SKIPPED, BATCH_ROWS = 3, 16
DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def dequantise(gguf, model):
    from make_smollm2_golden import from_gguf, open_model
    open_model(gguf).save_pretrained(model)
    from_gguf(gguf).save(str(model / "tokenizer.json"))


def prepare(args, folder):
    """The dequantised model, the rows as ids, the initial prefix. Small: a process inherits its parent's peak memory."""
    model = folder / "smollm2-f32"
    maker = multiprocessing.get_context("spawn").Process(target=dequantise, args=(args.smollm, model))
    maker.start()
    maker.join()
    if maker.exitcode:
        sys.exit("cpu_vs_peft: the model was not dequantised")
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    if args.e2e:
        train, valid = e2e_rows.read(args.e2e / "train.txt"), e2e_rows.read(args.e2e / "valid.txt")
        count = args.steps * BATCH_ROWS
        train, valid = train[:: len(train) // count][:count], valid[:: len(valid) // 128][:128]
    else:
        train, valid = e2e_rows.generate(args.steps * BATCH_ROWS, seed=1), e2e_rows.generate(128, seed=2)
    for name, rows in (("train", train), ("valid", valid)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for prompt, completion in rows:
                asked, told = (tokenizer.encode(text, add_special_tokens=False).ids for text in (prompt, completion))
                told.append(2)  # the end token
                file.write(json.dumps({"ids": asked + told, "labels": [-100] * len(asked) + told}) + "\n")
    run([sys.executable, HERE / "peft_train.py", "--model", model, "--rows", folder / "train.jsonl", "--init",
         folder / "start"])
    return model


def run(command, **more):
    """Runs to the end; returns its peak memory in bytes."""
    process = subprocess.Popen([str(part) for part in command], env=os.environ | {"OMP_NUM_THREADS": "2"}, **more)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"cpu_vs_peft: exit {process.returncode} of {' '.join(str(part) for part in command)}")
    return usage.ru_maxrss * 1024


def contender(args, engine, dtype, model, folder, out, steps):
    if engine == "peft":
        command = [sys.executable, HERE / "peft_train.py", "--model", model, "--start", folder / "start", "--rows",
                   folder / "train.jsonl", "--out", out, "--dtype", DTYPES[dtype], "--steps", args.steps, "--stop-after", steps]
    else:
        command = [args.pfx, "train", "--model", model, "--data", folder / "train.jsonl", "--out", out, "--device", "cpu",
                   "--dtype", dtype, "--threads", 2, "--tune", "prefix:20", "--init", f"adapter:{folder / 'start'}",
                   "--batch-rows", BATCH_ROWS, "--steps", args.steps, "--stop-after", steps, "--lr", 1e-2, "--warmup", 10,
                   "--schedule", "linear", "--weight-decay", 0, "--clip", 1, "--seed", 1, "--save-every", args.steps,
                   "--force", "--quiet"]
    peak = run(command)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    counted = lines[SKIPPED:]
    times = [line["tokens"] / line["tokens_per_s"] for line in counted]
    return {"engine": engine, "dtype": dtype, "steps": len(lines), "tokens": sum(line["tokens"] for line in counted),
            "tokens_per_s": round(sum(line["tokens"] for line in counted) / sum(times), 1),
            "step_ms": round(1e3 * statistics.median(times), 1), "peak_mib": round(peak / 2**20, 1)}


def valid_losses(args, model, folder, dtype):
    """Frozen, pfx's and PEFT's adapter after all steps, all measured by `pfx eval`."""
    out = subprocess.run([args.pfx, "eval", "--model", model, "--data", folder / "valid.jsonl", "--device", "cpu", "--dtype",
                          dtype, "--threads", "2", "--json", "--quiet", "--force", "--adapter", folder / f"pfx-{dtype}-0",
                          "--adapter", folder / f"peft-{dtype}-0"], check=True, capture_output=True, text=True).stdout
    return [json.loads(line)["loss"] for line in out.splitlines()]


def processor():
    """(name for people, name of a folder)"""
    info = Path("/proc/cpuinfo").read_text()
    field = lambda name: re.search(rf"^{name}\s*: (.*)$", info, re.M).group(1)  # noqa: E731
    name = f"{field('model name')} family {field('cpu family')} model {field('model')}"
    return name, re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pfx"
    parser.add_argument("--pfx", type=Path, required=True)
    parser.add_argument("--rate", type=Path, required=True)
    parser.add_argument("--smollm", type=Path, default=cache / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--e2e", type=Path)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results")
    parser.add_argument("--steps", type=int, default=60, help="of the first round, and of the schedule")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", type=int, default=12, help="steps of the rounds after the first")
    parser.add_argument("--dtypes", default="f32,bf16")
    args = parser.parse_args()
    name, place = processor()
    rates = list(csv.DictReader(subprocess.run([args.rate], check=True, capture_output=True, text=True,
                                               env=os.environ | {"OMP_NUM_THREADS": "2"}).stdout.splitlines()))
    rows = []
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        folder = Path(temporary)
        model = prepare(args, folder)
        for number in range(args.rounds):
            for dtype in args.dtypes.split(","):
                for engine in ("pfx", "peft") if number % 2 == 0 else ("peft", "pfx"):
                    out = folder / f"{engine}-{dtype}-{number}"
                    row = {"round": number} | contender(args, engine, dtype, model, folder, out,
                                                        args.short if number else args.steps)
                    rows.append(row)
                    print(row, flush=True)
                    if number:
                        shutil.rmtree(out)
        losses = {dtype: valid_losses(args, model, folder, dtype) for dtype in args.dtypes.split(",")}
    report(args, name, args.results / place, rates, rows, losses)


def report(args, name, folder, rates, rows, losses):
    from importlib.metadata import version
    versions = {"date": time.strftime("%Y-%m-%d"), "processor": name, "threads": 2, "system": platform.platform(terse=True),
                "commit": subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True,
                                         text=True).stdout.strip(), "torch": version("torch"), "peft": version("peft"),
                "rows": "E2E" if args.e2e else "generated"}
    for row in rows:
        frozen, pfx, theirs = losses[row["dtype"]]
        learned = pfx if row["engine"] == "pfx" else theirs
        row |= {"frozen_valid_loss": frozen, "valid_loss": "" if row["round"] else learned}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cpu_vs_peft.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *versions], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | versions for row in rows)
    with (folder / "onednn_rate.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rates[0], *versions], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rate | versions for rate in rates)
    print(f"\n{name}, 2 threads; oneDNN alone reaches (GFLOP/s):")
    for rate in rates:
        print(f"  {rate['dtype']:5} {rate['m']:>5} x {rate['n']:>6} x {rate['k']:>6}  {rate['gflops']:>7}")
    print(f"\n{'dtype':6} {'engine':6} {'ms/step':>9} {'tokens/s':>9} {'spread':>13} {'peak MiB':>9} {'valid loss':>11}")
    for dtype in losses:
        best = {}
        for engine in ("pfx", "peft"):
            mine = [row for row in rows if row["dtype"] == dtype and row["engine"] == engine]
            speeds = [row["tokens_per_s"] for row in mine]
            best[engine] = (statistics.median(speeds), max(row["peak_mib"] for row in mine), float(mine[0]["valid_loss"]))
            print(f"{dtype:6} {engine:6} {statistics.median(row['step_ms'] for row in mine):9.1f} {best[engine][0]:9.1f} "
                  f"{min(speeds):6.1f}-{max(speeds):.1f} {best[engine][1]:9.1f} {best[engine][2]:11.4f}")
        print(f"{dtype:6} ratio: {best['pfx'][0] / best['peft'][0]:.2f} x the tokens/s, {best['pfx'][1] / best['peft'][1]:.2f} of "
              f"the memory, validation loss {best['pfx'][2] - best['peft'][2]:+.4f} (frozen: {losses[dtype][0]:.4f})")


if __name__ == "__main__":
    main()
