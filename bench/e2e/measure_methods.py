#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every way to tune on one real task: trains each method at two learning rates, measures loss, texts, what the model forgets, time,
memory and size, and writes OUT/runs.csv and OUT/report.md.

    measure_methods.py --data DIR                                    the E2E task, SmolLM2-135M, 300 steps of 16 rows, 200 prompts
    measure_methods.py --task wordnet                                the task of `make demo`, 240 steps of 16 rows
    measure_methods.py --data DIR --device cuda --model FOLDER --out build/e2e-cuda
    measure_methods.py --quick                                       a tiny model and made-up rows: does all of it work?

Stopped or killed, the same command goes on where it was: a training at its last checkpoint, everything else at the next run.
Exit code 0: all measured; 1: something failed (its row says what; the same command tries it again); 2: wrong usage or data;
130: stopped."""
import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import methods_report  # noqa: E402
import metrics  # noqa: E402
import tasks  # noqa: E402

ROOT = tasks.ROOT
# What a part usually learns at (host/tune/spec.c; a test holds the two together). Two rates: this and a third of it.
USUAL_RATES = {"prefix": 3e-2, "prompt": 3e-2, "lora": 3e-3, "ia3": 1e-2, "norm": 1e-2, "bias": 1e-2, "top": 1e-4, "full": 5e-5}
FACTORS = (("usual", 1.0), ("third", 1 / 3))
METHODS = ("prefix:20", "prompt:20", "lora:8", "ia3", "norm", "bias", "top:2", "full", "prefix:20+lora:8", "prompt:20+top:2", "prefix:10+bias")
TASKS = {"e2e": {"steps": 300, "max_tokens": 80, "methods": METHODS},
         "wordnet": {"steps": 240, "max_tokens": 24, "methods": ("prefix:16", *METHODS[1:])},
         "quick": {"steps": 3, "max_tokens": 12, "methods": ("prefix:2", "lora:2+norm", "full")}}
KEPT_BYTES = 64 << 20  # adapters beyond are removed once they are measured


class Stopped(Exception):
    pass


class Failed(Exception):
    pass


def put(path, value):
    part = Path(f"{path}.part")
    part.write_text(value if isinstance(value, str) else json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def with_rate(method, factor):
    """The method with the rate of each of its parts written out: (parts for --tune, rate of the first)."""
    rates = [USUAL_RATES[part.split(":")[0]] * factor for part in method.split("+")]
    return "+".join(f"{part}:lr={rate:.3g}" for part, rate in zip(method.split("+"), rates)), "+".join(f"{rate:.3g}" for rate in rates)


def die_with_parent():
    """In the child: when this program is killed, nobody may be left writing in its folder."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Bench:
    """What the jobs share."""

    def __init__(self, options, out):
        self.options, self.out, self.child, self.stopping = options, out, None, False
        self.data, self.jobs, self.runs = out / "data", out / "jobs", out / "runs"
        for folder in (self.jobs, self.runs):
            folder.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)

    def stop(self, number, _frame):
        """Passes the signal on; pfx finishes its step and saves. What waits for it sees the mark."""
        self.stopping = True
        if self.child and self.child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child.pid, number)

    def pfx(self, *words):
        """Runs pfx and returns the objects that it printed."""
        command = [str(self.options.pfx), *map(str, words), "--model", str(self.options.model), "--json", "--quiet"]
        for name in ("device", "dtype", "threads"):
            if getattr(self.options, name):
                command += [f"--{name}", str(getattr(self.options, name))]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              start_new_session=True, preexec_fn=die_with_parent) as self.child:
            if self.stopping:  # it came before there was a child to tell
                self.child.terminate()
            printed, said = self.child.communicate()
        if self.stopping or self.child.returncode == 130:
            raise Stopped
        if self.child.returncode:
            raise Failed(f"exit code {self.child.returncode}: {said.strip().splitlines()[-1] if said.strip() else 'no message'}")
        return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]

    def train(self, name, tune):
        """Trains, or goes on; what of it the row holds."""
        folder, o = self.runs / name, self.options
        interrupted = self.jobs / f"{name}.interrupted"
        if (folder / "run.json").exists() and len(metric_lines(folder)) < o.steps:
            interrupted.touch()
        result = self.pfx("train", "--data", self.data / "train.jsonl", "--valid", self.data / "valid.jsonl", "--tune", tune, "--steps", o.steps,
                          "--batch-rows", o.batch_rows, "--seed", o.seed, "--eval-every", max(1, o.steps // 3), "--save-every", max(1, o.steps // 3),
                          "--max-row-tokens", o.max_row_tokens, "--on-long", "drop", "--out", folder, "--resume", "auto")[-1]
        if not result["finished"]:
            raise Stopped
        lines = metric_lines(folder)
        environment = json.loads((folder / "run.json").read_text())["environment"]
        return {"train_loss": lines[-1]["loss"], "valid_loss": result["best_valid_loss"], "valid_loss_before": result["valid_loss_before"],
                "best_step": result["best_step"], "train_seconds": lines[-1]["seconds"], "gone_on": int(interrupted.exists()),
                "peak_bytes": max([result["peak_bytes"], *(line["peak_bytes"] for line in lines)]), "trained_numbers": result["trainable"],
                "disk_bytes": adapter_bytes(folder), "device": environment["device"], "dtype": environment["dtype"], "threads": environment["threads"],
                "products": environment["products"], "pfx_version": environment["version"]}

    def measure(self, name, *more):
        """Loss and texts on the test rows, loss on the other text. `more`: an adapter, or examples in the prompt."""
        o, texts = self.options, self.jobs / f"{name}.texts.jsonl"
        limits = ("--max-row-tokens", o.max_row_tokens, "--on-long", "drop") if "--shots" not in more else ()
        words = ("eval", *limits, *more, *(("--no-frozen",) if "--adapter" in more else ()))
        result = self.pfx(*words, "--data", self.data / "test.jsonl", "--generate", "--max-tokens", o.max_tokens, "--predictions", texts, "--costs")[-1]
        items = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
        row = {"test_loss": result["loss"], "test_tokens": result["tokens"], "prompts": len(items),
               "eval_seconds": result["loss_seconds"] + result["prefill_seconds"] + result["decode_seconds"],
               "new_tokens": result["new_tokens"], **{key: result[key] for key in ("bleu", "chrf", "rouge_l", "exact_match")}}
        if o.task != "wordnet":
            row.update(metrics.scores([item["prediction"].strip() for item in items], [item["references"] for item in items]))
        if "--shots" not in more and (self.data / "retain.jsonl").stat().st_size:
            row["retain_loss"] = self.pfx(*words, "--data", self.data / "retain.jsonl")[-1]["loss"]
        return row

    def job(self, name, method, tune, factor, rate):
        """One row, or what was written of it before."""
        path = self.jobs / f"{name}.json"
        if path.exists() and not json.loads(path.read_text()).get("failed"):
            return json.loads(path.read_text())
        row = {"name": name, "method": method, "tune": tune, "rate": factor, "lr": rate, "commit": self.options.commit, "failed": ""}
        try:
            if tune:
                row.update(self.train(name, tune))
                row.update(self.measure(name, "--adapter", self.runs / name))
            else:
                more = ("--shots-from", self.data / "train.jsonl", "--shots", self.options.shots) if method == "in-context" else ()
                row.update(self.measure(name, *more))
        except Failed as failure:
            row["failed"] = str(failure)
        row["device"] = row.get("device", self.options.device)
        row["processor"] = methods_report.processor(row["device"])
        put(path, row)
        if tune and not row["failed"]:
            self.tidy(self.runs / name)
        return row

    @staticmethod
    def tidy(folder):
        """A finished run needs no checkpoint; a copy of all weights has served once it is measured."""
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        for path in folder.rglob("*.safetensors"):
            if path.stat().st_size > KEPT_BYTES:
                path.unlink()


def metric_lines(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def adapter_bytes(folder):
    """What has to be kept to use the adapter."""
    aside = {"run.json", "metrics.jsonl", "README.md"}
    return sum(path.stat().st_size for path in folder.rglob("*")
               if path.is_file() and "checkpoint" not in path.relative_to(folder).parts and path.name not in aside)


def jobs(options):
    """(name, method, parts for --tune, which rate, the rate)"""
    yield "frozen", "frozen", "", "", ""
    if options.shots:
        yield "in-context", "in-context", "", "", ""
    for factor, number in FACTORS[:options.rates]:
        for method in options.methods:
            tune, rate = with_rate(method, number)
            yield f"{method.replace(':', '-')}.{factor}", method, tune, factor, rate


def read_options(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("e2e", "wordnet"), default="e2e")
    parser.add_argument("--data", help="folder of the E2E task's train.txt, valid.txt, test.txt")
    parser.add_argument("--wordnet", default="/usr/share/wordnet", help="folder of WordNet's dictionary files (wordnet-base)")
    parser.add_argument("--out", type=Path, help="default: build/bench-TASK")
    parser.add_argument("--pfx", type=Path, default=ROOT / "build/release/pfx")
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, by scripts/fetch_model.sh")
    parser.add_argument("--device", default="cpu", help="as pfx takes it")
    parser.add_argument("--dtype", help="as pfx takes it")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--methods", help="parts of --tune, separated by blanks")
    parser.add_argument("--rates", type=int, choices=(1, 2), default=2, help="1: the usual learning rate alone")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--valid-rows", type=int, default=256)
    parser.add_argument("--retain-rows", type=int, default=256)
    parser.add_argument("--max-row-tokens", type=int, default=256)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--shots", type=int, default=4, help="examples of the in-context row; 0: without it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    if options.quick:
        options.task, options.max_row_tokens, options.shots = "quick", 64, min(options.shots, 1)
    usual = TASKS[options.task]
    options.steps, options.max_tokens = options.steps or usual["steps"], options.max_tokens or usual["max_tokens"]
    options.methods = tuple(options.methods.split()) if options.methods else usual["methods"]
    unknown = [part for method in options.methods for part in method.split("+") if part.split(":")[0] not in USUAL_RATES]
    if unknown:
        parser.error(f"--methods: {unknown[0]} is none of {', '.join(USUAL_RATES)}")
    if min(options.steps, options.batch_rows, options.prompts, options.valid_rows, options.retain_rows, options.max_tokens) < 1:
        parser.error("--steps, --batch-rows, --prompts, --valid-rows, --retain-rows and --max-tokens begin at 1")
    options.out = options.out or ROOT / f"build/bench-{options.task}"
    if not os.access(options.pfx, os.X_OK):
        parser.error(f"{options.pfx}: no such program; run make, or name it with --pfx")
    return options


def tiny_model(folder):
    """A golden model whose tokens are single characters, blank and line break too."""
    sys.path.insert(0, str(ROOT / "tests/cli"))
    import command  # the tests' maker of tiny models
    if not folder.exists():
        part = folder.with_name("model.part")
        shutil.rmtree(part, ignore_errors=True)
        command.copy_model("llama_tied", str(part))
        command.add_tokenizer(str(part), 128)
        path = part / "tokenizer.json"
        put(path, path.read_text().replace('"<|32|>"', '" "').replace('"<|10|>"', json.dumps("\n")))
        part.rename(folder)
    return folder


def find_model(options):
    if options.quick:
        options.model = tiny_model(options.out / "model")
    elif not options.model:
        done = subprocess.run([ROOT / "scripts/fetch_model.sh"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise tasks.TaskError("scripts/fetch_model.sh found no model; name one with --model")
        options.model = done.stdout.strip()
    options.model = os.path.realpath(options.model)
    if not os.path.exists(options.model):
        raise tasks.TaskError(f"{options.model}: no such model")


def settle(options, facts):
    """OUT belongs to one set of conditions; methods and rates may be added."""
    keys = ("task", "model", "device", "dtype", "threads", "steps", "batch_rows", "max_row_tokens", "max_tokens", "shots", "seed")
    settings = {**{key: getattr(options, key) for key in keys}, **facts}
    path = options.out / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        other = [key for key in settings if before.get(key) != settings[key]]
        if other:
            raise tasks.TaskError(f"{options.out}: holds measurements with {other[0]} {before.get(other[0])}, not {settings[other[0]]}; give another --out")
    put(path, settings)
    return settings


def commit():
    done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def run_all(options):
    find_model(options)
    settings = settle(options, tasks.prepare(options.task, options.out, options))
    options.commit = commit()
    bench, todo, rows = Bench(options, options.out), list(jobs(options)), []
    for number, job in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {job[0]}", file=sys.stderr, flush=True)
        rows.append(bench.job(*job))
        if rows[-1]["failed"]:
            print(f"  failed: {rows[-1]['failed']}", file=sys.stderr, flush=True)
        methods_report.complete(rows, settings)
        put(options.out / "runs.csv", methods_report.csv_text(rows))
        put(options.out / "report.md", methods_report.page(rows, settings, len(todo)))
    print(methods_report.short_table(rows, settings))
    return 1 if any(row["failed"] for row in rows) else 0


def main(argv=None):
    options = read_options(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"measure_methods.py: {options.out}: another process is measuring there", file=sys.stderr)
            return 2
        try:
            return run_all(options)
        except (tasks.TaskError, OSError) as error:
            print(f"measure_methods.py: {error}", file=sys.stderr)
            return 2
        except Stopped:
            print("measure_methods.py: stopped; the same command goes on", file=sys.stderr)
            return 130


if __name__ == "__main__":
    sys.exit(main())
