#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bench/e2e/measure_methods.py with --quick: all of it on a tiny model, a run that is stopped or killed and goes on, a method that
fails, and what it refuses. The metrics are held against the published ones in tests/tools/e2e_metrics_check.py."""
import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import command
from command import PFX, SOURCE, read, write

BENCH = os.path.join(SOURCE, "bench/e2e")
CLOCKED = ("train_seconds", "eval_seconds", "peak_bytes", "gone_on")


class MethodsBench(command.CommandTest):
    def begin(self, *args, pfx=PFX):
        process = subprocess.Popen([sys.executable, "-B", os.path.join(BENCH, "measure_methods.py"), "--pfx", pfx, "--threads", "1", *args],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(self.end, process)
        return process

    def measure(self, *args, code=0, **how):
        process = self.begin(*args, **how)
        out, err = process.communicate(timeout=300)
        self.assertEqual(process.returncode, code, err.decode())
        return out.decode(), err.decode()

    @staticmethod
    def rows(folder):
        with open(f"{folder}/runs.csv", encoding="utf-8", newline="") as file:
            return {(row["method"], row["rate"]): row for row in csv.DictReader(file)}

    def refused(self, args, message, **how):
        out, err = self.measure(*args, code=2, **how)
        self.assertIn(message, err)
        self.assertEqual(out, "")

    def wait_for(self, path, process):
        for _ in range(3000):
            if os.path.exists(path):
                return
            self.assertIsNone(process.poll(), f"ended before {path} was there")
            time.sleep(0.02)
        self.fail(f"{path} did not come")

    def test_all_of_it(self):
        out, err = self.measure("--quick", "--out", "q")
        rows = self.rows("q")
        methods = ("prefix:2", "lora:2+norm", "full")
        self.assertEqual(list(rows), [("frozen", ""), ("in-context", "")] + [(method, rate) for rate in ("usual", "third") for method in methods])
        self.assertIn("[8/8] full.third", err)
        frozen = rows["frozen", ""]
        for (method, rate), row in rows.items():
            self.assertEqual((row["task"], row["failed"], row["prompts"], row["device"]), ("quick", "", "4", "cpu"))
            for name in ("test_loss", "e2e_bleu", "e2e_nist", "e2e_rouge_l", "e2e_cider", "bleu", "chrf", "rouge_l", "exact_match", "new_tokens"):
                self.assertGreaterEqual(float(row[name]), 0, (method, name))
            if not rate:
                continue
            self.assertEqual((row["steps"], row["batch_rows"], row["rows_seen"], row["epoch_share"]), ("3", "16", "48", "4.0"))
            self.assertAlmostEqual(float(row["damage"]), float(row["retain_loss"]) - float(frozen["retain_loss"]), delta=2e-6)
            for name in ("train_loss", "valid_loss", "train_seconds", "peak_bytes", "trained_numbers", "disk_bytes", "processor", "commit", "pfx_version"):
                self.assertNotIn(row[name], ("", "0"), (method, name))
            self.assertFalse(os.path.exists(f"q/runs/{method.replace(':', '-')}.{rate}/checkpoint"))
        self.assertEqual(rows["in-context", ""]["damage"], "")
        self.assertEqual(int(rows["prefix:2", "usual"]["disk_bytes"]), sum(os.path.getsize(f"q/runs/prefix-2.usual/{name}") for name in
                                                                          ("adapter_config.json", "adapter_model.safetensors")))
        page = read("q/report.md").decode()
        for text in ("8 of 8 runs are measured", "**400.0 % of an epoch** of 12 rows", "4 of 4 prompts", "METEOR is not measured", "one seed (0)"):
            self.assertIn(text, page)
        self.assertEqual(len(out.strip().splitlines()), 2 + 5)  # each method once
        self.same_as_pfx_eval(rows["prefix:2", "third"])
        self.nothing_is_done_twice()

    def same_as_pfx_eval(self, row):
        printed, _ = self.pfx("eval", "--model", "q/model", "--data", "q/data/test.jsonl", "--adapter", "q/runs/prefix-2.third", "--no-frozen", "--threads", "1",
                              "--generate", "--max-tokens", "12", "--predictions", "texts", "--json", "--quiet")
        self.assertAlmostEqual(json.loads(printed)["loss"], float(row["test_loss"]), delta=1e-6)
        items = [json.loads(line) for line in read("texts").splitlines()]
        self.assertEqual([len(item["references"]) for item in items], [2, 2, 2, 2])
        sys.path.insert(0, BENCH)
        import metrics
        for name, value in metrics.scores([item["prediction"].strip() for item in items], [item["references"] for item in items]).items():
            self.assertAlmostEqual(value, float(row[name]), delta=1e-6)

    def nothing_is_done_twice(self):
        before = read("q/runs.csv"), os.stat("q/jobs/full.usual.json").st_mtime_ns
        self.measure("--quick", "--out", "q", pfx="/bin/false")
        self.assertEqual(before, (read("q/runs.csv"), os.stat("q/jobs/full.usual.json").st_mtime_ns))

    def test_stopped_killed_and_gone_on(self):
        settings = ("--quick", "--methods", "prefix:2", "--rates", "1", "--shots", "0", "--steps", "300")
        self.measure(*settings, "--out", "one")
        process = self.begin(*settings, "--out", "two")
        self.wait_for("two/runs/prefix-2.usual/checkpoint/pfx_state.safetensors", process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
        self.assertEqual(process.returncode, 130, err.decode())
        self.assertIn("stopped; the same command goes on", err.decode())
        done = len(read("two/runs/prefix-2.usual/metrics.jsonl").splitlines())
        process = self.begin(*settings, "--out", "two")
        self.wait_for("two/jobs/prefix-2.usual.texts.jsonl", process)  # it measures already: training is not repeated
        process.kill()
        process.communicate()
        self.measure(*settings, "--out", "two")
        whole, cut = self.rows("one")["prefix:2", "usual"], self.rows("two")["prefix:2", "usual"]
        self.assertLess(done, 300)
        self.assertEqual((whole["gone_on"], cut["gone_on"]), ("0", "1"))
        for row in (whole, cut):
            for name in CLOCKED:
                del row[name]
        self.assertEqual(whole, cut)

    def test_a_method_that_fails(self):
        write("pfx", f"#!/bin/sh\ncase \"$*\" in *--tune\\ full*) echo 'pfx: no memory for it' >&2; exit 5;; esac\nexec '{PFX}' \"$@\"\n")
        os.chmod("pfx", 0o755)
        settings = ("--quick", "--methods", "full prefix:2", "--rates", "1", "--shots", "0", "--out", "q")
        _, err = self.measure(*settings, code=1, pfx=os.path.abspath("pfx"))
        self.assertIn("failed: exit code 5: pfx: no memory for it", err)
        rows = self.rows("q")
        self.assertEqual(rows["full", "usual"]["failed"], "exit code 5: pfx: no memory for it")
        self.assertEqual((rows["full", "usual"]["test_loss"], rows["prefix:2", "usual"]["failed"]), ("", ""))
        self.assertIn("- full.usual: exit code 5", read("q/report.md").decode())
        self.measure(*settings)  # tried again
        self.assertEqual(self.rows("q")["full", "usual"]["failed"], "")

    def test_refusals(self):
        self.refused(["--out", "o"], "--data: train.txt, valid.txt, test.txt missing; wanted is the folder of the E2E task")
        os.mkdir("data")
        for name in ("train", "valid", "test"):
            write(f"data/{name}.txt", "name : A||A is here .\nname : B\n" if name == "valid" else "name : A||A is here .\n")
        self.refused(["--data", "data", "--model", "none", "--out", "o"], "none: no such model")
        self.refused(["--data", "data", "--model", "data", "--out", "o"], "data/valid.txt:2: not MEANING||TEXT")
        self.refused(["--task", "wordnet", "--wordnet", "data", "--model", "data", "--out", "o"], "data: no dictionary of WordNet there; install wordnet-base")
        self.refused(["--quick", "--methods", "prefix:2+lroa:8"], "--methods: lroa:8 is none of prefix, prompt, lora")
        self.refused(["--quick", "--steps", "-1"], "--steps, --batch-rows")
        self.refused(["--quick"], "no such program; run make", pfx="nowhere")
        few = ("--quick", "--methods", "prefix:2", "--rates", "1", "--shots", "0", "--out", "q")
        self.measure(*few)
        self.refused([*few, "--seed", "2"], "q: holds measurements with seed 0, not 2; give another --out")
        with open("q/lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.refused([*few], "q: another process is measuring there")

    def test_rates_are_the_usual_ones(self):
        sys.path.insert(0, BENCH)
        import measure_methods
        self.measure("--quick", "--methods", "prefix:2", "--rates", "1", "--shots", "0", "--out", "q")
        sizes = {"prefix": ":2", "prompt": ":2", "lora": ":2", "top": ":1"}
        for part, rate in measure_methods.USUAL_RATES.items():
            self.pfx("train", "--model", "q/model", "--data", "q/data/train.jsonl", "--tune", part + sizes.get(part, ""), "--steps", "1", "--threads", "1", "--out", part,
                     "--quiet")
            self.assertAlmostEqual(json.loads(read(f"{part}/run.json"))["settings"]["lr"], rate, delta=1e-6 * rate)
        self.assertEqual(measure_methods.with_rate("prefix:2+lora:8", 1 / 3), ("prefix:2:lr=0.01+lora:8:lr=0.001", "0.01+0.001"))


if __name__ == "__main__":
    command.main()
