#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs that are stopped, killed, gone on with, repeated and made longer: what they print, how they end, and that their
bytes are those of a run that was never disturbed."""
import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
import time

import command
from command import change_weights, copy_model, files, id_rows, metrics, read, read_safetensors, write, write_rows

SMALL = ("--tune", "prefix:2", "--dtype", "f32", "--threads", "1", "--quiet")
ENDLESS = ("--steps", "100000", "--save-every", "-1")


class Runs(command.CommandTest):
    def setUp(self):
        super().setUp()
        copy_model("llama_f16")
        write_rows("rows.jsonl", id_rows(24, 60))
        write_rows("valid.jsonl", id_rows(7, 50))
        self.args = ["train", "--model", "model", "--data", "rows.jsonl", *SMALL]

    def train(self, *more, out="run", **how):
        return self.pfx(*self.args, "--out", out, *more, **how)

    def start_training(self, *more):
        """A run that has done some steps; standard output and error are pipes."""
        process = self.start(*self.args, "--out", "run", *more)
        deadline = time.monotonic() + 120
        while not os.path.exists("run/metrics.jsonl") or read("run/metrics.jsonl").count(b"\n") < 3:
            self.assertIsNone(process.poll(), "the run ended by itself")
            self.assertLess(time.monotonic(), deadline, "the run does not get ahead")
            time.sleep(0.005)
        return process

    def same_result(self, run, other):
        """All bytes but what names the folder or comes from a clock."""
        self.assertEqual(files(run), files(other))
        for name in files(run):
            if name not in ("run.json", "metrics.jsonl"):
                self.assertEqual(read(f"{run}/{name}"), read(f"{other}/{name}"), name)
        self.assertEqual(metrics(run), metrics(other))
        settings = [json.loads(read(f"{folder}/run.json")) for folder in (run, other)]
        for each in settings:
            del each["settings"]["out"]
        self.assertEqual(*settings)

    def step_saved(self, run="run"):
        return int(read_safetensors(f"{run}/checkpoint/pfx_state.safetensors")[1]["step"])


class Stopping(Runs):
    def stopped_by(self, number):
        process = self.start_training(*ENDLESS)
        process.send_signal(number)
        out, err = (stream.decode() for stream in process.communicate(timeout=120))
        self.assertEqual(process.returncode, 130, err)
        self.assertEqual(out, "")
        match = re.fullmatch(r"pfx: stopped after step (\d+) of 100000; the state is saved\n"
                             r"pfx: go on with: pfx train --resume run\n", err)
        self.assertTrue(match, err)
        step = int(match.group(1))
        self.assertEqual(self.step_saved(), step)
        self.assertEqual(metrics("run")[-1]["step"], step)
        out, err = self.pfx("train", "--resume", "run", "--stop-after", str(step + 3), "--quiet")
        self.assertRegex(out, rf"^stopped after {step + 3} of 100000 steps, .*\nadapter: run\n"
                              r"go on with: pfx train --resume run\n$")
        self.assertEqual(err, "")
        self.train(*ENDLESS, "--stop-after", str(step + 3), out="undisturbed")
        self.same_result("run", "undisturbed")

    def test_interrupt(self):
        self.stopped_by(signal.SIGINT)

    def test_terminate(self):
        self.stopped_by(signal.SIGTERM)

    def test_user_signal(self):
        self.stopped_by(signal.SIGUSR1)

    def test_kill(self):
        process = self.start_training("--steps", "100000", "--save-every", "2")
        process.kill()
        process.communicate()
        done = self.step_saved()
        self.pfx("train", "--resume", "run", "--stop-after", str(done + 3), "--quiet")
        self.train("--steps", "100000", "--save-every", "2", "--stop-after", str(done + 3), out="undisturbed")
        self.same_result("run", "undisturbed")

    def test_a_second_signal_does_not_wait(self):
        """Nobody polls while standard input is read, and none is caught before somebody does."""
        copy_model("llama_f16", "named")
        command.add_tokenizer("named", 60)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            process = self.start("generate", "--model", "named", stdin=command.subprocess.PIPE)
            time.sleep(0.5)
            process.send_signal(number)
            self.assertEqual(process.wait(20), -number)
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()

    def test_max_time(self):
        out, err = self.train(*ENDLESS, "--max-time", "0.2s")
        match = re.match(r"stopped after (\d+) of 100000 steps", out)
        self.assertTrue(match and out.endswith("adapter: run\ngo on with: pfx train --resume run\n"), out)
        self.assertEqual(self.step_saved(), int(match.group(1)))

    def test_not_finite(self):
        out, err = self.train("--steps", "50", "--lr", "1e38", "--clip", "-1", "--warmup", "0", code=1)
        match = re.fullmatch(r"pfx: step (\d+): the (loss|gradient norm) is not finite; no tensor was changed. Try a smaller "
                             r"--lr, more --warmup, or --dtype f32\n", err)
        self.assertTrue(match, err)
        self.assertEqual(self.step_saved(), int(match.group(1)) - 1)

    def test_patience(self):
        out, err = self.train("--steps", "200", "--valid", "valid.jsonl", "--eval-every", "1", "--patience", "2", "--lr", "5")
        match = re.match(r"stopped early after (\d+) of 200 steps", out)
        self.assertTrue(match, out)
        losses = [line["valid_loss"] for line in metrics("run")]
        self.assertEqual(len(losses), int(match.group(1)))
        self.assertGreaterEqual(min(losses[-2:]), min(losses[:-2]))
        out, err = self.pfx("train", "--resume", "run", "--quiet")  # nothing is left to do
        self.assertRegex(out, rf"^stopped early after {match.group(1)} of 200 steps")


class Telling(Runs):
    """What a run says while it goes: results on standard output, the rest on standard error."""

    def setUp(self):
        super().setUp()
        self.args.remove("--quiet")

    def test_elsewhere_a_line_now_and_then(self):
        out, err = self.train("--steps", "4", "--valid", "valid.jsonl", "--eval-every", "2")
        lines = err.splitlines()
        self.assertRegex(lines[0], r"^step 0/4  validation loss \d+\.\d{4}  \(before training\)$")
        self.assertRegex(lines[-1], r"^step 4/4  validation loss \d+\.\d{4}(  \(best so far\))?$")
        for line in lines:
            self.assertRegex(line, r"^step \d/4  (validation loss|loss \d+\.\d{4}  lr \d\.\d\de-\d\d  \d+ tokens/s  \d+:\d\d left$)")

    def test_on_a_terminal_one_line(self):
        main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        out, err = b"", b""
        process = self.start(*self.args, "--out", "run", *ENDLESS, "--max-time", "0.5s", stderr=side)
        os.close(side)
        while True:
            try:
                chunk = os.read(main, 4096)
            except OSError:  # how a terminal ends on Linux
                break
            if not chunk:
                break
            err += chunk
        os.close(main)
        process.communicate()
        self.assertEqual(process.returncode, 0)
        shown = err.split(b"\r\x1b[K")
        self.assertGreater(len(shown), 2)
        self.assertEqual(shown[0], b"")
        for line in shown[1:]:
            self.assertRegex(line, rb"^step \d+/100000")
            self.assertLess(len(line.rstrip()), 40)

    def test_plan(self):
        out, err = self.train("--steps", "1", "--verbose")
        self.assertRegex(err, r"(?m)^pfx: buffer plan for up to \d+ tokens, 16 rows, \d+ labelled:$")
        self.assertRegex(err, r"(?m)^pfx:   +\d+\.\d MB  in all, beside \d+\.\d MB of weights$")

    def test_quiet(self):
        out, err = self.train("--steps", "2", "--valid", "valid.jsonl", "--quiet")
        self.assertEqual(err, "")

    def test_no_fingerprint(self):
        self.train("--steps", "1")
        self.assertIn("pfx.base", read_safetensors("run/adapter_model.safetensors")[1])
        self.train("--steps", "1", "--no-fingerprint", out="plain")
        tensors, meta = read_safetensors("plain/adapter_model.safetensors")
        self.assertEqual(meta, {"format": "pt"})
        self.assertEqual(tensors, read_safetensors("run/adapter_model.safetensors")[0])
        self.assertIn("unverified", self.pfx("check", "--model", "model", "--adapter", "plain")[0])


class GoingOn(Runs):
    def test_stop_after(self):
        self.train("--steps", "8", "--valid", "valid.jsonl", out="whole")
        out, err = self.train("--steps", "8", "--valid", "valid.jsonl", "--stop-after", "3")
        self.assertRegex(out, r"^stopped after 3 of 8 steps")
        out, err = self.pfx("train", "--resume", "run")
        self.assertTrue(err.startswith("pfx: going on from step 3 of 8\n"), err)
        self.assertRegex(out, r"^done after 8 of 8 steps, .*\nvalidation loss \d+\.\d+ before, \d+\.\d+ best \(step \d\), "
                              r"\d+\.\d+ last\nadapter: run\n$")
        self.same_result("run", "whole")

    def test_in_another_place(self):
        self.train("--steps", "6", out="whole")
        self.train("--steps", "6", "--stop-after", "3")
        os.mkdir("else")
        os.rename("run", "else/moved")
        os.chdir("else")
        self.pfx("train", "--resume", "moved", "--quiet")
        os.chdir("..")
        self.same_result("else/moved", "whole")

    def test_auto(self):
        arguments = ("--steps", "6", "--resume", "auto")
        self.train("--steps", "6", out="whole")
        out, err = self.train(*arguments, "--stop-after", "2")
        self.assertRegex(out, r"^stopped after 2 of 6 steps")
        out, err = self.train(*arguments, "--verbose")
        self.assertRegex(out, r"^done after 6 of 6 steps")
        self.same_result("run", "whole")
        out, err = self.train(*arguments)
        self.assertRegex(out, r"^done after 6 of 6 steps")
        self.same_result("run", "whole")
        self.misused(["train", "--resume", "auto", "--model", "model", "--data", "rows.jsonl"], "--resume auto needs --out")

    def test_auto_is_the_same_command_again(self):
        # The best is the first: what training never asks for gets less likely with each step.
        write_rows("never.jsonl", [{"ids": [i, 1, 1], "labels": [-100, 1, 1]} for i in range(3, 10)])
        early = ["--valid", "never.jsonl", "--steps", "60", "--eval-every", "5", "--save-every", "5", "--patience", "2", "--lr", "0.5"]
        out, err = self.train(*early, "--resume", "auto", out="whole")
        self.assertRegex(out, r"^stopped early after 15 of 60 steps")
        before = {name: read(f"whole/{name}") for name in files("whole")}
        self.train(*early, "--resume", "auto", out="whole")
        self.assertEqual({name: read(f"whole/{name}") for name in files("whole")}, before)
        self.train(*early, "--stop-after", "7")
        self.assertNotIn("new schedule", self.train(*early, "--resume", "auto")[1])
        self.same_result("run", "whole")
        for args, name in ((["--lr", "4"], "lr"), (["--seed", "9"], "seed"), (["--data", "valid.jsonl"], "data")):
            self.misused([*self.args, "--out", "run", "--resume", "auto", *early, *args],
                         f"--{name} is not what run began with: --resume auto goes on with the settings of its run.json; leave it "
                         "out, or name another --out")

    def test_a_lost_adapter_is_made_again(self):
        self.train("--valid", "valid.jsonl", "--steps", "60", "--eval-every", "5", "--patience", "2", "--lr", "5")
        good = read("run/checkpoint/adapter_model.safetensors")
        os.remove("run/checkpoint/adapter_model.safetensors")
        self.pfx("train", "--resume", "run", "--quiet")
        self.assertEqual(read("run/checkpoint/adapter_model.safetensors"), good)

    def test_a_killed_writer_leaves_the_folder_free(self):
        os.makedirs("run/checkpoint")
        write("run/run.json.tmp.abcdef", b"{")
        write("run/checkpoint/pfx_state.safetensors.tmp.abcdef", b"")
        self.train("--steps", "2", "--resume", "auto")
        self.assertEqual([name for name in files("run") if "tmp" in name], [])

    def test_a_start_that_fails_costs_no_run(self):
        self.train("--steps", "2")
        before = {name: read(f"run/{name}") for name in files("run")}
        os.rename("rows.jsonl", b"rows\xff.jsonl")
        done = command.subprocess.run([command.PFX, "train", "--model", "model", "--data", b"rows\xff.jsonl", *SMALL, "--out", "run",
                                       "--force"], capture_output=True)
        self.assertEqual((done.returncode, done.stderr), (1, b"pfx: a path of this run is no UTF-8 and cannot be recorded\n"))
        self.assertEqual({name: read(f"run/{name}") for name in files("run")}, before)

    def test_folders_that_were_made_for_nothing_go(self):
        write("empty.jsonl", b"")
        os.makedirs("a")
        self.refused([*self.args[:3], "--data", "empty.jsonl", *SMALL, "--out", "a/b/c"], 3,
                     f"{os.getcwd()}/empty.jsonl: no rows, the file is empty; a data file holds one row in a line")
        self.assertEqual(os.listdir("a"), [])

    def test_rows_from_a_pipe(self):
        reader, writer = os.pipe()
        os.write(writer, read("valid.jsonl"))
        os.close(writer)
        piped = self.pfx("eval", "--model", "model", "--data", f"/dev/fd/{reader}", "--json", "--dtype", "f32", pass_fds=(reader,))
        os.close(reader)
        self.assertEqual(piped, self.pfx("eval", "--model", "model", "--data", "valid.jsonl", "--json", "--dtype", "f32"))

    def test_one_process_a_folder(self):
        process = self.start_training(*ENDLESS)
        self.refused(["train", "--resume", "run", "--quiet"], 2, "another process trains in run: wait for it, or name another folder")
        process.kill()
        process.communicate()

    def test_a_long_schedule_begins_at_once(self):
        out, err = self.train("--steps", "900000000", "--max-time", "0.2s")
        self.assertIn("of 900000000 steps", out)

    def test_damaged_settings(self):
        self.train("--steps", "2")
        good = read("run/run.json").decode()
        for key, value, message in (
                ("accumulate", "-1", "--batch-rows and --batch-tokens must not be negative, --accumulate must be in 1 .. 1000000"),
                ("max_row_tokens", "5000000000", 'run/run.json: field "max_row_tokens" is out of range')):
            write("run/run.json", re.sub(rf'"{key}": -?\d+', f'"{key}": {value}', good).encode())
            code = 3 if "run.json" in message else 2
            self.refused(["train", "--resume", "run", "--quiet"], code, message)

    def test_killed_before_the_first_checkpoint(self):
        self.train("--steps", "6", out="whole")
        self.train("--steps", "6", "--stop-after", "2")
        for name in files("run"):
            if name != "run.json" and name != "metrics.jsonl":
                os.remove(f"run/{name}")
        out, err = self.pfx("train", "--resume", "run")
        self.assertTrue(err.startswith("pfx: no checkpoint yet: beginning at step 0 of 6\n"), err)
        self.same_result("run", "whole")

    def test_longer(self):
        self.train("--steps", "4")
        out, err = self.pfx("train", "--resume", "run", "--steps", "8", "--quiet")
        self.assertEqual(err, "pfx: warning: the run's length is given again (it was 4 steps): the learning rate follows a new "
                              "schedule from here\n")
        self.assertRegex(out, r"^done after 8 of 8 steps")
        self.assertEqual([line["step"] for line in metrics("run")], list(range(1, 9)))
        self.assertEqual(json.loads(read("run/run.json"))["settings"]["steps"], 8)

    def test_other_settings_are_refused(self):
        self.train("--steps", "4", "--stop-after", "2")
        for option in (["--lr", "1"], ["--seed=3"], ["--data", "valid.jsonl"], ["--out", "x"], ["--no-fingerprint"]):
            name = option[0].split("=")[0]
            self.misused(["train", "--resume", "run", *option],
                         f"{name} cannot be given again: --resume takes it from run/run.json (--steps, --epochs, --patience, "
                         "--eval-every and --save-every may change)")
        self.pfx("train", "--resume", "run", "--eval-every", "1", "--save-every", "1", "--patience", "3", "--json", "--quiet")

    def test_changed_data(self):
        self.train("--steps", "4", "--stop-after", "2", "--valid", "valid.jsonl")
        where = os.path.realpath(".")
        for name in ("valid.jsonl", "rows.jsonl"):
            write(name, read(name) + read(name))
            self.refused(["train", "--resume", "run"], 4, f"{where}/{name} has changed since run began (its digest differs): an "
                         "exact resume needs the same data")

    def test_changed_model(self):
        self.train("--steps", "4", "--stop-after", "2")
        before = {name: read(f"run/{name}") for name in files("run")}
        change_weights("model", lambda t: t.update({"model.norm.weight": ("F16", [32], b"\x00\x3c" * 32)}))
        self.refused(["train", "--resume", "run"], 4,
                     f"{os.path.realpath('model')} holds other weights than the ones that run began with")
        self.assertEqual({name: read(f"run/{name}") for name in files("run")}, before)

    def test_other_threads_are_not_bit_exact(self):
        self.train("--steps", "4", "--stop-after", "2")
        out, err = self.pfx("train", "--resume", "run", "--threads", "2", "--quiet")
        self.assertRegex(err, r"^pfx: warning: not bit-exact: the run began with pfx [^,]*, .*, 1 threads, f32; this is pfx "
                              r"[^,]*, .*, 2 threads, f32\n$")

    def test_no_run_to_go_on_with(self):
        self.refused(["train", "--resume", "nowhere"], 3, "nowhere: no such file or folder")
        self.refused(["train", "--resume", "model"], 3, "model has no run.json: it is no training folder")
        self.train("--steps", "2")
        self.refused(["train", "--resume", "run/run.json"], 2, "run/run.json is a file: --resume takes the folder of a run")

    def test_damaged_state(self):
        self.train("--steps", "4", "--stop-after", "2")
        state = "run/checkpoint/pfx_state.safetensors"
        content = read(state)
        write(state, content[:-10])
        out, err = self.pfx("train", "--resume", "run", code=3)
        self.assertRegex(err, rf'^pfx: {state}: tensor "prefix[^"]*" ends at byte \d+ of the data, but only \d+ are there; the '
                              r"file is cut short: get it again\n$")
        self.assertEqual(read(state), content[:-10])


class Repeating(Runs):
    SETTINGS = ("--valid", "valid.jsonl", "--steps", "7", "--tune", "prefix:3", "--reparam", "8", "--lr", "0.01", "--schedule",
                "cosine", "--warmup", "2", "--batch-rows", "4", "--accumulate", "2", "--weight-decay", "0.1", "--clip", "0.5",
                "--prefix-dropout", "0.1", "--seed", "7", "--eval-every", "3", "--save-every", "2", "--max-row-tokens", "9",
                "--on-long", "cut", "--loss", "all")

    def setUp(self):
        super().setUp()
        self.args = ["train", "--model", "model", "--data", "rows.jsonl", "--dtype", "f32", "--threads", "1", "--quiet"]

    def test_config(self):
        self.train(*self.SETTINGS)
        self.pfx("train", "--config", "run/run.json", "--out", "again", "--quiet")
        self.same_result("run", "again")
        os.rename("again/run.json", "kept.json")  # the settings alone, under another name
        self.pfx("train", "--config", "kept.json", "--out", "third", "--quiet")
        self.same_result("run", "third")

    def test_options_beside_it_win(self):
        self.train("--steps", "5", "--tune", "prefix:2", "--loss", "all")
        self.pfx("train", "--config", "run/run.json", "--out", "seed", "--seed", "8", "--quiet")
        self.assertNotEqual(read("seed/adapter_model.safetensors"), read("run/adapter_model.safetensors"))
        self.pfx("train", "--config", "run/run.json", "--out", "loss", "--loss", "completion", "--quiet")
        self.train("--steps", "5", "--tune", "prefix:2", out="direct")
        self.same_result("loss", "direct")
        out, err = self.pfx("train", "--config", "run/run.json", "--out", "epochs", "--epochs", "4", "--quiet")
        self.assertRegex(out, r"^done after 8 of 8 steps")  # 24 rows, 16 a batch
        self.pfx("train", "--config", "run/run.json", "--out", "tokens", "--batch-tokens", "40", "--quiet")
        settings = json.loads(read("tokens/run.json"))["settings"]
        self.assertEqual((settings["batch_rows"], settings["batch_tokens"]), (0, 40))

    def test_what_was_not_given_is_found_anew(self):
        self.train("--steps", "40", out="first")
        self.pfx("train", "--config", "first/run.json", "--steps", "3", "--tune", "prefix:5", "--out", "second", "--quiet")
        settings = json.loads(read("second/run.json"))["settings"]
        self.assertEqual((settings["warmup"], settings["eval_every"], settings["max_row_tokens"]), (0, 1, 123))
        self.pfx("train", "--config", "first/run.json", "--reparam", "4", "--steps", "3", "--out", "third", "--quiet")
        self.assertEqual(json.loads(read("third/run.json"))["settings"]["lr"], 1e-3)

    def test_no_out(self):
        self.train("--steps", "2")
        self.misused(["train", "--config", "run/run.json"], "train needs --model, --data and --out")

    def test_missing_config(self):
        self.refused(["train", "--config", "kept.json", "--out", "x"], 3, "kept.json: no such file or folder")

    def test_damaged_config(self):
        write("kept.json", '{"settings": {"steps": "many"}}')
        self.refused(["train", "--config", "kept.json", "--out", "x"], 3,
                     'kept.json: fields "settings", "environment" and "digests" are needed')
        self.train("--steps", "2")
        run = json.loads(read("run/run.json"))
        run["settings"]["steps"] = "many"
        write("kept.json", json.dumps(run))
        self.refused(["train", "--config", "kept.json", "--out", "x"], 3, 'kept.json: field "steps" must be an integer')
        run["settings"]["steps"] = 2
        del run["settings"]["model"]
        write("kept.json", json.dumps(run))
        self.refused(["train", "--config", "kept.json", "--out", "x"], 3, "kept.json: a field that every run has is missing")


if __name__ == "__main__":
    command.main()
