#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""pfx compare as a user runs it: methods trained and measured, what is written, a comparison that is interrupted or killed
and goes on, versions with --fail-if-worse, and everything that it refuses."""
import csv
import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import time

import command
from command import add_tokenizer, copy_model, files, id_rows, read, read_safetensors, write, write_rows

F32 = ("--dtype", "f32", "--threads", "1")
HOSTILE = "</pre><script>x()</script>&\"'<b>"


def pairs(count, seed):
    """Four letters, and the same in capitals."""
    draw = random.Random(seed)
    words = ["".join(draw.choice("abcdefgh") for _ in range(4)) for _ in range(count)]
    return [{"prompt": word + "=", "completion": word.upper()} for word in words]


def steady(value):
    """The numbers of results.json without what a clock or the system decides."""
    drop = ("seconds", "seconds_to_best", "seconds_to_zero_shot", "tokens_per_s", "peak_bytes", "token_ms", "token_ms_added", "verdict",
            "folder", "tune")
    if isinstance(value, dict):
        return {key: steady(each) for key, each in value.items() if key not in drop}
    return [steady(each) for each in value] if isinstance(value, list) else value


class CompareCase(command.CommandTest):
    def setUp(self):
        super().setUp()
        self.folder = os.path.realpath(self.folder)
        copy_model("llama_tied")
        add_tokenizer("model", 128)
        for name, count, seed in (("train", 60, 1), ("valid", 12, 2), ("test", 20, 3), ("other", 10, 4)):
            write_rows(f"{name}.jsonl", pairs(count, seed))
        self.args = ["compare", "--model", "model", "--data", "train.jsonl", "--valid", "valid.jsonl", "--test", "test.jsonl", *F32]
        self.quick = [*self.args, "--tune", "prefix:2", "--lr", "usual", "--seeds", "1", "--max-tokens", "3", "--shots", "2", "--out", "which"]

    def results(self, folder="which"):
        return json.loads(read(f"{folder}/results.json"))

    def loss(self, *more, data="test.jsonl"):
        out, err = self.pfx("eval", "--model", "model", "--data", data, *F32, *more, "--json", "--quiet")
        return json.loads(out.splitlines()[-1])


    @staticmethod
    def child_of(process):
        return int(read(f"/proc/{process.pid}/task/{process.pid}/children").split()[0])

    def wait_for_steps(self, process, run, steps=3):
        deadline = time.monotonic() + 120
        while not os.path.exists(f"{run}/metrics.jsonl") or read(f"{run}/metrics.jsonl").count(b"\n") < steps:
            self.assertIsNone(process.poll(), "it ended by itself")
            self.assertLess(time.monotonic(), deadline, "it does not get ahead")
            time.sleep(0.01)


class Methods(CompareCase):
    def test_all_of_it(self):
        args = [*self.args, "--tune", "prefix:1,3", "--tune", "prefix:2:lr=0.02", "--retain", "other.jsonl", "--budget", "20steps", "--seeds",
                "2", "--max-tokens", "4", "--shots", "3", "--out", "which"]
        out, err = self.pfx(*args)
        self.assertIn("pfx: plan: 20 steps a run\n", err)
        self.assertIn("report: which/report.html\n", out)
        r = self.results()
        methods = {m["method"]: m for m in r["methods"]}
        self.assertEqual(list(methods), ["zero-shot", "in-context", "prefix:1", "prefix:3", "prefix:2:lr=0.02"])
        self.assertEqual(r["plan"]["steps"], 20)
        self.assertIn(f"Take {r['pick']}" if r["pick"].startswith("prefix") else "", r["verdict"][0])
        self.check_methods(methods)
        self.check_rates(methods)
        self.check_files(r, methods)
        # The same command finds everything done; another metric needs nothing measured anew.
        before = read("which/results.json")
        again, err = self.pfx(*args)
        self.assertEqual(err, "")
        self.assertEqual(read("which/results.json"), before)
        out, err = self.pfx(*args, "--metric", "chrf", "--json", "--quiet")
        self.assertEqual((json.loads(out)["metric"], json.loads(out)["methods"][2]["runs"]), ("chrf", methods["prefix:1"]["runs"]))

    def check_methods(self, methods):
        """Every number is that of pfx eval on the adapter that is there."""
        zero = self.loss("--generate", "--max-tokens", "4")
        for name in ("loss", "bleu", "chrf", "rouge_l", "exact_match"):
            self.assertAlmostEqual(methods["zero-shot"][name], zero[name], 6)
        shots = self.loss("--shots-from", "train.jsonl", "--shots", "3")
        self.assertEqual((methods["in-context"]["loss"], methods["in-context"]["shots"]), (shots["loss"], 3))
        retained = self.loss(data="other.jsonl")["loss"]
        for name in ("prefix:1", "prefix:3", "prefix:2:lr=0.02"):
            m, chosen = methods[name], [run for run in methods[name]["runs"] if run["chosen"]]
            self.assertEqual([run["seed"] for run in chosen], [0, 1])
            for run in chosen:
                own = self.loss("--adapter", run["folder"], "--no-frozen", "--generate", "--max-tokens", "4")
                for metric in ("loss", "bleu", "chrf", "rouge_l", "exact_match"):
                    self.assertAlmostEqual(run[metric], own[metric], 6, f"{name} {metric}")
                self.assertEqual(run["retain_loss"], self.loss("--adapter", run["folder"], "--no-frozen", data="other.jsonl")["loss"])
            mean = sum(run["loss"] for run in chosen) / 2
            self.assertAlmostEqual(m["loss"], mean, 9)
            self.assertTrue(m["loss_low"] <= mean <= m["loss_high"])
            self.assertAlmostEqual(m["damage"], sum(run["retain_loss"] for run in chosen) / 2 - retained, 9)
            self.assertEqual(m["trainable"], int(name[7]) * 2 * 3 * 36)
            kept = [os.path.join(chosen[0]["folder"], name) for name in ("adapter_model.safetensors", "adapter_config.json")]
            self.assertEqual(m["disk_bytes"], sum(map(os.path.getsize, kept)))  # what using it needs; the card is for people
            for key in ("seconds", "seconds_to_best", "tokens_per_s", "peak_bytes", "token_ms"):
                self.assertGreater(m[key], 0, key)

    def check_rates(self, methods):
        """A third, once and three times with the first seed; the other seed uses the best of them by validation."""
        runs = methods["prefix:3"]["runs"]
        self.assertEqual([(run["tune"], run["seed"]) for run in runs[:3]],
                         [("prefix:3:lr=0.01", 0), ("prefix:3:lr=0.03", 0), ("prefix:3:lr=0.09", 0)])
        best = min(runs[:3], key=lambda run: run["valid_loss"])
        self.assertEqual([(run["tune"], run["seed"]) for run in runs[3:]], [(best["tune"], 1)])
        self.assertEqual([run["chosen"] for run in runs], [run is best for run in runs[:3]] + [True])
        self.assertEqual([run["tune"] for run in methods["prefix:2:lr=0.02"]["runs"]], ["prefix:2:lr=0.02"] * 2)  # a rate that is given stays
        orders = set()
        for run in runs:  # equal rows in equal order: the first loss of a seed is that of the same untrained batch
            orders.add((run["seed"], command.metrics(run["folder"])[0]["tokens"]))
        self.assertEqual(len(orders), 2)

    def check_files(self, r, methods):
        lines = list(csv.DictReader(read("which/results.csv").decode().splitlines()))
        self.assertEqual(len(lines), 2 + 4 + 4 + 2)
        for line in lines:
            runs = [run for run in methods[line["method"]]["runs"] if (run.get("tune", ""), str(run.get("seed", ""))) == (line["tune"], line["seed"])]
            self.assertEqual(len(runs), 1)
            self.assertEqual(line["loss"], f"{runs[0]['loss']:.9g}" if "loss" in runs[0] else "")
        page = read("which/report.html").decode()
        self.assertEqual(re.findall(r"<script|<link|<img|@import|url\((?!#)|https?:", page), [])
        for sentence in r["verdict"]:
            self.assertIn(sentence.replace("'", "&#39;"), page)
        self.assertEqual(page.count("<svg"), 4)
        for name in methods:
            self.assertIn(name, page)
        state = json.loads(read("which/compare.json"))
        self.assertEqual((state["plan"]["steps"], state["settings"]["seeds"]), (20, 2))
        self.assertEqual(state["chosen"]["prefix:2:lr=0.02"], "prefix:2:lr=0.02")

    def test_every_part(self):
        """Each, and a hybrid whose parts are searched together; --lr auto writes a rate into every part that has none."""
        tunes = ("prefix:2", "prompt:2", "lora:2", "ia3", "norm", "bias", "top:1", "full", "prefix:2+lora:2:lr=0.002")
        self.pfx(*self.args, *(word for tune in tunes for word in ("--tune", tune)), "--seeds", "1", "--budget", "2steps", "--max-tokens", "3",
                 "--out", "which", "--quiet")
        methods = {m["method"]: m for m in self.results()["methods"]}
        self.assertEqual(list(methods)[2:], list(tunes))
        for tune in tunes:
            m = methods[tune]
            self.assertIsNone(m["failure"], tune)
            for key in ("loss", "trainable", "disk_bytes", "peak_bytes", "token_ms", "seconds"):
                self.assertGreater(m[key], 0, f"{tune} {key}")
            chosen, = [run for run in m["runs"] if run["chosen"]]
            self.assertAlmostEqual(m["loss"], self.loss("--adapter", chosen["folder"], "--no-frozen")["loss"], 9)
        # Equal rows in equal order: what begins as the untouched model has the same loss in its first step, before any update.
        first = [command.metrics(methods[tune]["runs"][0]["folder"])[0]["loss"] for tune in tunes[2:8]]
        self.assertLess(max(first) - min(first), 1e-5, first)
        self.assertEqual([run["tune"] for run in methods[tunes[-1]]["runs"]], [f"prefix:2:lr={lr}+lora:2:lr=0.002" for lr in ("0.01", "0.03", "0.09")])
        self.assertEqual(methods["full"]["trainable"], 247860)

    def test_shots_are_the_examples_in_front(self):
        """Rows of ids with the examples written out by hand have the same losses."""
        write_rows("one.jsonl", [{"ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}])
        write_rows("rows.jsonl", [{"ids": [9, 10, 11], "labels": [-100, -100, 11]}, {"ids": [12, 13], "labels": [-100, 13]}])
        gap = [int(word) for word in self.pfx("tokenize", "--model", "model", "--json", stdin='"\\n\\n"\n')[0].split()]
        shot = [5, 6, 7, 8] + gap
        write_rows("written.jsonl", [{"ids": shot + [9, 10, 11], "labels": [-100] * (len(shot) + 2) + [11]},
                                     {"ids": shot + [12, 13], "labels": [-100] * (len(shot) + 1) + [13]}])
        got = self.loss("--shots-from", "one.jsonl", "--shots", "5", data="rows.jsonl")
        self.assertEqual((got["loss"], got["tokens"], got["shots"]), (self.loss(data="written.jsonl")["loss"], 2, 1))
        # As many as fit: the context of 128 holds no example beside a row of 126.
        write_rows("rows.jsonl", [{"ids": [9] * 126, "labels": [9] * 126}])
        got = self.loss("--shots-from", "one.jsonl", data="rows.jsonl")
        self.assertEqual((got["shots"], got["loss"]), (0, self.loss(data="rows.jsonl")["loss"]))
        write_rows("rows.jsonl", [{"prompt": "ab", "completion": "cd"}])
        first = self.loss("--shots-from", "train.jsonl", "--shots", "2", data="rows.jsonl")["loss"]
        self.assertEqual(self.loss("--shots-from", "train.jsonl", "--shots", "2", data="rows.jsonl")["loss"], first)
        self.assertNotEqual(self.loss("--shots-from", "train.jsonl", "--shots", "2", "--seed", "1", data="rows.jsonl")["loss"], first)

    def test_rows_of_ids(self):
        """No texts: losses alone, and a report all the same."""
        for name, count in (("train", 40), ("valid", 6), ("test", 9)):
            write_rows(f"{name}.jsonl", id_rows(count, 60))
        out, err = self.pfx(*self.quick, "--budget", "3steps", "--json", "--quiet")
        r = json.loads(out)
        self.assertEqual([m["bleu"] for m in r["methods"]], [None] * 3)
        self.assertIsNone(r["methods"][2]["damage"])
        self.assertTrue(any("not measured" in line for line in r["verdict"]))
        self.assertIn(">not measured<", read("which/report.html").decode())

    def test_hostile_text(self):
        """Nothing in a row or a name becomes markup, and a cell of the table stays one."""
        for name in ("train", "valid", "test"):
            write_rows(f"{name}.jsonl", [{"prompt": f"{HOSTILE}{i}", "completion": HOSTILE, "references": [HOSTILE, "b"]} for i in range(9)])
        os.rename("test.jsonl", "te<b>st.jsonl")
        args = [word if word != "test.jsonl" else "te<b>st.jsonl" for word in self.quick]
        self.pfx(*args, "--budget", "2steps", "--quiet")
        page = read("which/report.html").decode()
        for mark in ("<script", "<b>s", "</pre><", "x()</"):
            self.assertNotIn(mark, page.replace("</pre></dd>", "").replace("</pre><dl>", ""))
        self.assertIn("&lt;/pre&gt;&lt;script&gt;x()&lt;/script&gt;&amp;&quot;&#39;&lt;b&gt;0", page)

    def test_how_it_is_trained(self):
        """What is said holds for every run, what is not is the command's default."""
        self.pfx(*self.quick, "--budget", "4steps", "--no-generate", "--schedule", "constant", "--weight-decay", "0.1", "--batch-rows", "7",
                 "--accumulate", "2", "--seed", "5", "--quiet")
        settings = json.loads(read("which/runs/prefix-2_usual_seed5/run.json"))["settings"]
        wanted = {"schedule": "constant", "weight_decay": 0.1, "batch_rows": 7, "accumulate": 2, "seed": "5", "clip": 1.0, "steps": 4}
        self.assertEqual({key: settings[key] for key in wanted}, wanted)

    def test_rows_that_were_trained_on(self):
        write_rows("test.jsonl", pairs(20, 3)[:5] + pairs(60, 1)[:3])
        write("valid.jsonl", read("train.jsonl"))
        self.pfx(*self.quick, "--budget", "2steps", "--no-generate", "--quiet")
        said = "\n".join(self.results()["verdict"])
        self.assertIn("3 of the test rows stand in --data too: ", said)
        self.assertIn("60 of the validation rows stand in --data too: ", said)

    def test_a_time(self):
        out, err = self.pfx(*self.quick, "--budget", "12s", "--no-generate")
        match = re.search(r"pfx: plan: (\d+) steps a run, about (\S+ \w+) in all \((\S+ \w+) are spent\)\n", err)
        self.assertTrue(match, err)
        plan = json.loads(read("which/compare.json"))["plan"]
        self.assertEqual(plan["steps"], int(match.group(1)))
        self.assertTrue(plan["steps"] > 6 and 8 < plan["expected_seconds"] <= 12, plan)
        self.assertEqual(self.results()["methods"][2]["runs"][0]["steps"], plan["steps"])
        self.assertEqual(self.pfx(*self.quick, "--budget", "12s", "--no-generate")[1], "")  # what was planned is kept


class Interrupted(CompareCase):
    def setUp(self):
        super().setUp()
        self.long = [*self.quick, "--no-generate", "--tune", "prefix:3", "--budget", "300steps"]

    def test_a_method_that_fails_is_a_result(self):
        """The system kills it, as it does when memory runs out: the others are compared, and another time it may work."""
        process = self.start(*self.long, "--quiet")
        self.wait_for_steps(process, "which/runs/prefix-2_usual_seed0")
        os.kill(self.child_of(process), signal.SIGKILL)
        out, err = (stream.decode() for stream in process.communicate(timeout=120))
        self.assertEqual(process.returncode, 0, err)
        why = "was killed: most likely the system had no memory left for it"
        self.assertIn(f"prefix:2    failed: {why}\n", out)
        methods = {m["method"]: m for m in self.results()["methods"]}
        self.assertEqual((methods["prefix:2"]["failure"], methods["prefix:2"]["loss"]), (why, None))
        self.assertGreater(methods["prefix:3"]["loss"], 0)
        self.assertIn(f"prefix:2 has no result: {why}.", self.results()["verdict"])
        self.assertIn("no result</span>", read("which/report.html").decode())
        self.assertIn(why, read("which/results.csv").decode())
        self.pfx(*self.long, "--quiet")
        self.assertGreater(self.results()["methods"][2]["loss"], 0)

    def same_as_undisturbed(self):
        self.pfx(*self.long, "--quiet")
        self.pfx(*[word if word != "which" else "calm" for word in self.long], "--quiet")
        self.assertEqual(steady(self.results()), steady(self.results("calm")))
        for run in ("prefix-2_usual_seed0", "prefix-3_usual_seed0"):
            self.assertEqual(read(f"which/runs/{run}/adapter_model.safetensors"), read(f"calm/runs/{run}/adapter_model.safetensors"))

    def test_interrupt(self):
        process = self.start(*self.long)
        self.wait_for_steps(process, "which/runs/prefix-3_usual_seed0", 5)
        process.send_signal(signal.SIGINT)
        out, err = (stream.decode() for stream in process.communicate(timeout=60))
        self.assertEqual((process.returncode, out), (130, ""))
        self.assertTrue(err.endswith("pfx: stopped; what is done is kept in which\npfx: go on with the same command\n"), err)
        state = read_safetensors("which/runs/prefix-3_usual_seed0/checkpoint/pfx_state.safetensors")[1]
        self.assertGreater(int(state["step"]), 0)  # the run was told to save
        done = os.stat("which/jobs/prefix-2_usual_seed0.json").st_mtime_ns
        self.same_as_undisturbed()
        self.assertEqual(os.stat("which/jobs/prefix-2_usual_seed0.json").st_mtime_ns, done)  # nothing is done twice

    def test_kill(self):
        process = self.start(*self.long)
        self.wait_for_steps(process, "which/runs/prefix-2_usual_seed0", 5)
        child = self.child_of(process)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while os.path.exists(f"/proc/{child}") and b"\nState:\tZ" not in read(f"/proc/{child}/status"):
            self.assertLess(time.monotonic(), deadline, "the training goes on without anyone to want it")
            time.sleep(0.02)
        self.same_as_undisturbed()


class Refused(CompareCase):
    def test_settings(self):
        base = ["compare", "--model", "model", "--data", "train.jsonl", "--test", "test.jsonl", "--out", "which"]
        tune = ["--tune", "prefix:2"]
        for args, message in (
                (base, "compare needs --tune, once for each method, or --adapter, once for each version"),
                (["compare", *tune, "--model", "model"], "compare needs --model, --data, --test and --out"),
                ([*base, *tune], "--lr auto chooses on --valid, which is missing: give it, or --lr usual"),
                ([*base, *tune, "--lr", "usual", "--budget", "200"],
                 'pfx: --budget needs a number of steps or a time, such as 200steps, 90s, 30m or 2h, not "200"'[5:]),
                ([*base, *tune, "--lr", "usual", "--budget", "0steps"],
                 '--budget needs a number of steps or a time, such as 200steps, 90s, 30m or 2h, not "0steps"'),
                ([*base, *tune, "--lr", "usual", "--seeds", "0"], "--seeds must be from 1 to 32"),
                ([*base, *tune, "--lr", "usual", "--shots", "-1"], "--shots must not be negative"),
                ([*base, *tune, *tune, "--lr", "usual"], "--tune prefix:2 is given twice"),
                ([*base, "--tune", "prefix:2,3+lora:1,4:targets=q,v", "--tune", "prefix:3+lora:4:targets=q,v", "--lr", "usual"],
                 "--tune prefix:3+lora:4:targets=q,v is given twice"),
                ([*base, "--tune", "prefix:2,,3", "--lr", "usual"], "--tune prefix:2,,3: the list of sizes has an empty place"),
                ([*base, *tune, "--lr", "usual", "--fail-if-worse"], "--fail-if-worse is for versions: it needs --adapter"),
                ([*base, *tune, "--lr", "usual", "--no-generate", "--metric", "bleu"], "--metric bleu needs texts: leave --no-generate out"),
                ([*base, "--adapter", "a", "--adapter", "b"], "--data has no meaning with --adapter: nothing is trained"),
                (["compare", "--model", "model", "--test", "test.jsonl", "--adapter", "a"],
                 "--adapter is needed twice: what is compared, oldest first")):
            with self.subTest(message):
                self.misused(args, message)
        self.assertFalse(os.path.exists("which"))

    def test_parts(self):
        out, err = self.pfx(*self.args, "--tune", "wonder:3", "--out", "which", code=2)
        self.assertRegex(err, r'^pfx: --tune wonder:3: there is no part "wonder"; did you mean ')
        self.assertFalse(os.path.exists("which"))

    def test_files(self):
        args = [*self.quick, "--budget", "2steps", "--quiet"]
        self.refused([word if word != "test.jsonl" else "none.jsonl" for word in args], 3, "none.jsonl: no such file or folder")
        self.refused([*args, "--retain", "none.jsonl"], 3, "cannot open none.jsonl: No such file or directory")
        write("empty.jsonl", "")
        self.refused([*args, "--retain", "empty.jsonl"], 3,
                     "measuring zero-shot.retain: empty.jsonl: no rows, the file is empty; a data file holds one row in a line")
        write_rows("ids.jsonl", id_rows(4, 60))
        ids = [word if word != "test.jsonl" else "ids.jsonl" for word in args[:-1]]
        self.misused([*ids, "--metric", "bleu"], "--metric bleu needs texts and references, and the rows of ids.jsonl hold ids and labels: "
                                                 "give rows with prompt and completion, or take --metric loss")

    def test_folders(self):
        args = [*self.quick, "--budget", "2steps", "--no-generate", "--quiet"]
        self.pfx(*args)
        kept = {name: read(f"which/{name}") for name in files("which")}
        again = "give the same settings to go on with it, or name another --out"
        self.misused([*args, "--tune", "prefix:4"], f"which holds another comparison: --tune is not what it began with; {again}")
        self.misused([*args, "--seed", "3"], f"which holds another comparison: --seed is not what it began with; {again}")
        self.misused([*args, "--budget", "3steps"], f"which holds another comparison: --budget is not what it began with; {again}")
        write_rows("valid.jsonl", pairs(13, 9))
        self.refused(args, 4, "which holds a comparison on another --valid: the file has changed since; name another --out")
        self.assertEqual({name: read(f"which/{name}") for name in files("which")}, kept)
        os.mkdir("full")
        write("full/mine.txt", "mine")
        self.misused([*args[:-5], "full", *args[-4:]] if args[-5] == "which" else [word if word != "which" else "full" for word in args],
                     "full exists, is not empty and holds no comparison: name another folder")
        self.assertEqual(files("full"), ["mine.txt"])
        write_rows("valid.jsonl", pairs(12, 2))
        with open("which/compare.json") as _, open("/dev/null"):
            lock = os.open("which", os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.refused(args, 2, "another process compares in which: wait for it, or name another folder")
            os.close(lock)
        write("which/compare.json", "{}")
        self.refused(args, 3, 'which/compare.json: fields "pfx_compare": 1, "settings" and "digests" are needed; name another --out')

    def test_a_budget_that_is_too_small(self):
        """What was measured stays, and a larger one goes on with it."""
        args = [*self.quick, "--no-generate"]
        out, err = self.pfx(*args, "--budget", "0.01s", code=2)
        match = re.search(r"pfx: --budget 0.01s is too small for one step: measuring the frozen model and timing the methods took \S+ \w+, and one "
                          r"step of every run with its evaluation takes about \S+ \w+ more; give at least (\d+)s, or fewer methods or seeds\n$", err)
        self.assertTrue(match, err)
        measured = os.stat("which/jobs/zero-shot.test.json").st_mtime_ns
        self.pfx(*args, "--budget", f"{int(match.group(1)) + 5}s", "--quiet")
        self.assertEqual(os.stat("which/jobs/zero-shot.test.json").st_mtime_ns, measured)

    def test_results_that_were_damaged(self):
        args = [*self.quick, "--budget", "2steps", "--quiet"]
        self.pfx(*args)
        before = steady(self.results())
        write("which/jobs/zero-shot.test.items.jsonl", read("which/jobs/zero-shot.test.items.jsonl")[:-40])
        self.refused(args, 3, "which/jobs/zero-shot.test.items.jsonl is damaged; remove it and its .json to measure again")
        os.remove("which/jobs/zero-shot.test.json")
        write("which/jobs/zero-shot.valid.json", "{")  # a result that cannot be read is none
        self.pfx(*args)
        self.assertEqual(steady(self.results()), before)

    def test_a_disk_that_is_full(self):
        out, err = self.pfx(*self.quick, "--budget", "2steps", "--quiet", code=1,
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)))
        self.assertRegex(err, "cannot write")
        self.pfx(*self.quick, "--budget", "2steps", "--quiet")


class Versions(CompareCase):
    def setUp(self):
        super().setUp()
        for name, steps in (("good", 60), ("bad", 1)):
            self.pfx("train", "--model", "model", "--data", "train.jsonl", "--tune", "prefix:3:lr=0.09", "--steps", str(steps), "--out", name,
                     "--quiet", *F32)
        self.versions = ["compare", "--model", "model", "--test", "test.jsonl", "--max-tokens", "4", *F32, "--quiet"]

    def test_worse_and_better(self):
        args = [*self.versions, "--fail-if-worse"]
        out, err = self.pfx(*args, "--adapter", "good", "--adapter", "bad", code=6)
        self.assertIn("bad is worse than good: loss ", out)
        out, err = self.pfx(*args, "--adapter", "bad", "--adapter", "good", "--json")
        r = json.loads(out)
        change, = r["changes"]
        good, bad = (self.loss("--adapter", name, "--no-frozen")["loss"] for name in ("good", "bad"))
        self.assertAlmostEqual(change["behind"], good - bad, 9)
        self.assertTrue(change["behind_low"] < good - bad < change["behind_high"] < 0)
        self.assertEqual((change["is_better"], change["is_worse"]), (True, False))
        self.assertEqual(change["better"] + change["worse"] + change["equal"], 20)
        self.assertEqual(change["texts"], 20)
        texts = []
        for name in ("bad", "good"):
            self.pfx("eval", "--model", "model", "--data", "test.jsonl", *F32, "--adapter", name, "--no-frozen", "--generate", "--max-tokens", "4",
                     "--predictions", "p", "--quiet")
            texts.append([json.loads(line)["prediction"] for line in read("p").splitlines()])
        self.assertEqual(change["texts_changed"], sum(a != b for a, b in zip(*texts)))
        self.assertEqual(change["differences"], [{"what": "setting eval_every", "before": "1", "after": "12"},
                                                 {"what": "setting steps", "before": "1", "after": "60"},
                                                 {"what": "setting warmup", "before": "0", "after": "3"}])
        self.assertEqual(sorted(os.listdir(".")), sorted(["model", "train.jsonl", "valid.jsonl", "test.jsonl", "other.jsonl", "good", "bad", "p"]))

    def test_no_difference(self):
        shutil.copytree("good", "same")
        out, err = self.pfx(*self.versions, "--fail-if-worse", "--metric", "chrf", "--adapter", "good", "--adapter", "same", "--out", "seen")
        self.assertIn("same shows no difference to good: chrF ", out)
        self.assertIn("0 rows are better, 0 worse, 20 equal", out)
        self.assertIn("0 of 20 generated texts changed", out)
        page = read("seen/report.html").decode()
        self.assertIn("nothing that is recorded", page)
        self.assertNotIn("take this", page)
        self.assertEqual(len(json.loads(read("seen/results.json"))["methods"]), 3)

    def test_refused(self):
        self.misused([*self.versions, "--adapter", "good", "--adapter", "good"], "--adapter good is given twice")
        self.refused([*self.versions, "--adapter", "good", "--adapter", "none"], 3,
                     "cannot open the adapter folder none: No such file or directory")
        copy_model("llama_f16", "other")
        add_tokenizer("other", 64)
        out, err = self.pfx("compare", "--model", "other", *self.versions[3:], "--adapter", "good", "--adapter", "bad", code=4)
        self.assertIn("measuring good.test: ", err)


if __name__ == "__main__":
    command.main()
