#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Data, folders, disks and memory that a run cannot use: the exact line, the code, and what is left behind."""
import json
import os
import resource
import struct
import subprocess

import command
from command import copy_model, files, id_rows, read, write, write_rows

SMALL = ("--tune", "prefix:2", "--steps", "3", "--dtype", "f32", "--threads", "1", "--quiet")


def disk_of(size):
    """Files may grow to this many bytes: what a full disk does to a program, on any machine."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def as_nobody():
    if os.geteuid() == 0:  # for root every folder is writable
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


class RunCase(command.CommandTest):
    def setUp(self):
        super().setUp()
        self.folder = os.path.realpath(self.folder)
        copy_model("llama_f16")
        write_rows("rows.jsonl", id_rows(24, 60))

    def train(self, *more, out="run", data="rows.jsonl", **how):
        return self.pfx("train", "--model", "model", "--data", data, "--out", out, *SMALL, *more, **how)

    def train_refused(self, code, message, *more, out="run", data="rows.jsonl", **how):
        self.refused(["train", "--model", "model", "--data", data, "--out", out, *SMALL, *more], code, message, **how)


class BadData(RunCase):
    def unusable(self, message, *more):
        """Training says it with the whole path; nothing is left, and --force does not cost the run that is there."""
        self.train_refused(3, f"{self.folder}/bad.jsonl: {message}", *more, data="bad.jsonl")
        self.assertFalse(os.path.exists("run"))
        self.train()
        before = {name: read(f"run/{name}") for name in files("run")}
        self.train_refused(3, f"{self.folder}/bad.jsonl: {message}", "--force", *more, data="bad.jsonl")
        self.assertEqual({name: read(f"run/{name}") for name in files("run")}, before)

    def measured(self, message, *more):
        self.refused(["eval", "--model", "model", "--data", "bad.jsonl", *more], 3, f"bad.jsonl: {message}")

    def test_missing(self):
        self.train_refused(3, "cannot open nowhere.jsonl: No such file or directory", data="nowhere.jsonl")
        self.train_refused(3, "cannot open valid.jsonl: No such file or directory", "--valid", "valid.jsonl")
        self.train_refused(3, f"{self.folder}/model is a folder, a file is needed", data="model")
        self.assertFalse(os.path.exists("run"))

    def test_empty(self):
        write("bad.jsonl", "")
        self.unusable("no rows, the file is empty; a data file holds one row in a line")
        self.measured("no rows, the file is empty; a data file holds one row in a line")
        write("bad.jsonl", "\n \n\n")
        self.measured("no rows, the file is blank; a data file holds one row in a line")

    def test_bad_json_on_line_7(self):
        lines = read("rows.jsonl").decode().splitlines()
        lines[6] = lines[6][:-2]
        write("bad.jsonl", "\n".join(lines))
        message = f"line 7, column {len(lines[6])}: ']' expected near end of file"
        self.unusable(message)
        self.measured(message)
        lines[6] = '{"ids": [5, 6], "lables": [5, 6]}'
        write("bad.jsonl", "\n".join(lines))
        self.measured('line 7: fields "ids" and "labels" must be lists of integers')
        lines[6] = '{"ids": [5, 64], "labels": [5, 6]}'
        write("bad.jsonl", "\n".join(lines))
        self.measured("line 7: ids[1] is 64, outside the vocabulary of 64 tokens")
        lines[6] = "just text"
        write("bad.jsonl", "\n".join(lines))
        self.measured("line 7, column 4: invalid token near 'just'")

    def test_row_longer_than_the_context(self):
        rows = id_rows(3, 60)
        rows.insert(1, {"ids": [5] * 127, "labels": [-100] * 3 + [5] * 124})
        write_rows("bad.jsonl", rows)
        message = ("line 2: the row has 127 tokens (3 before the first that scores), the limit is 126; --on-long cut shortens "
                   "its end, --on-long drop leaves it out")
        self.unusable(message)
        out, err = self.train("--on-long", "drop", out="dropped", data="bad.jsonl")
        self.assertEqual(err, f"pfx: warning: {self.folder}/bad.jsonl: 1 rows left out, longer than 126 tokens\n")
        out, err = self.train("--on-long", "cut", out="cut", data="bad.jsonl")
        self.assertEqual(err, f"pfx: warning: {self.folder}/bad.jsonl: 1 rows cut, longer than 126 tokens\n")
        self.pfx("eval", "--model", "model", "--data", "bad.jsonl")  # without a prefix the context takes it

    def test_nothing_scores(self):
        write_rows("bad.jsonl", [{"ids": [5, 6], "labels": [5, -100]}])
        self.unusable("no token scores in 1 rows: there is nothing to learn or to measure (the first token of a row never "
                      "scores)")

    def test_text_without_a_tokenizer(self):
        write_rows("bad.jsonl", [{"text": "hello"}])
        self.unusable("line 1: a row of text needs a tokenizer; without one only ids and labels")


class BadEngines(RunCase):
    def test_of_the_processor(self):
        args = ["train", "--model", "model", "--data", "rows.jsonl", "--out", "run"]
        self.refused([*args, "--attention", "cudnn"], 2, "--attention cudnn is for --device cuda: the CPU has auto and fused")
        self.misused([*args, "--attention", "flash"], '--attention must be auto, fused or cudnn, not "flash"')
        self.assertFalse(os.path.exists("run"))

    def test_another_one_given_again(self):
        self.train("--attention", "fused")
        self.misused(["train", "--resume", "run", "--attention", "auto"],
                     "--attention cannot be given again: --resume takes it from run/run.json (--steps, --epochs, --patience, --eval-every and "
                     "--save-every may change)")
        out, err = self.pfx("train", "--model", "model", "--data", "rows.jsonl", "--out", "run", "--resume", "auto", "--attention", "auto", code=2)
        self.assertIn("--attention is not what run began with", err)


class BadFolders(RunCase):
    def test_output_folder_that_exists(self):
        os.mkdir("run")
        write("run/thesis.tex", "x")
        self.train_refused(2, "run exists and is not empty: name another folder, or --force to write into it")
        self.assertEqual(files("run"), ["thesis.tex"])
        self.train("--force")
        self.assertEqual(read("run/thesis.tex"), b"x")

    def test_output_folder_that_holds_a_run(self):
        self.train()
        before = {name: read(f"run/{name}") for name in files("run")}
        self.train_refused(2, "run holds a run: --resume run goes on with it, --force replaces it")
        self.assertEqual({name: read(f"run/{name}") for name in files("run")}, before)

    def test_file_in_place_of_the_folder(self):
        write("file", "x")
        self.train_refused(1, "cannot make the folder file: it is a file; name another folder", out="file")
        self.train_refused(1, "cannot make the folder file: it is a file; name another folder", out="file/run")
        self.assertEqual(read("file"), b"x")

    def test_unwritable(self):
        os.chmod(".", 0o755)
        os.mkdir("locked", 0o555)
        try:
            subprocess.run([command.PFX, "--version"], check=True, stdout=subprocess.DEVNULL, preexec_fn=as_nobody)
        except (PermissionError, subprocess.SubprocessError):
            self.skipTest("an unprivileged user cannot run the command from where it is")
        self.train_refused(1, "cannot make the folder locked/run: Permission denied", out="locked/run", preexec_fn=as_nobody)
        self.train_refused(1, "cannot write locked/run.json: Permission denied", out="locked", preexec_fn=as_nobody)
        self.refused(["probe", "--model", "model", "--data", "rows.jsonl", "--out", "locked/probe.safetensors"], 1,
                     "cannot write locked/probe.safetensors: Permission denied", preexec_fn=as_nobody)
        self.assertEqual(files("locked"), [])


class FullDisk(RunCase):
    def test_before_anything(self):
        self.train_refused(1, "cannot write run/run.json: File too large", preexec_fn=disk_of(1000))
        self.assertFalse(os.path.exists("run"))

    def test_at_the_checkpoint(self):
        """The run goes on once there is room, and ends as if nothing had been."""
        self.train(out="whole")
        for out, file, left in (("first", "pfx_state.safetensors", []),
                                ("second", "adapter_model.safetensors", ["checkpoint/pfx_state.safetensors"])):
            room = os.path.getsize(f"whole/checkpoint/{file}") - 1
            self.train_refused(1, f"cannot write {out}/checkpoint/{file}: File too large", out=out, preexec_fn=disk_of(room))
            self.assertEqual(files(out), left + ["metrics.jsonl", "run.json"])
            self.pfx("train", "--resume", out)
            for name in files("whole"):
                if name not in ("run.json", "metrics.jsonl"):
                    self.assertEqual(read(f"{out}/{name}"), read(f"whole/{name}"), name)
            self.assertEqual(command.metrics(out), command.metrics("whole"))

    def test_old_files_stay_whole(self):
        write("probe.safetensors", "old")
        self.refused(["probe", "--model", "model", "--data", "rows.jsonl", "--out", "probe.safetensors"], 1,
                     "cannot write probe.safetensors: File too large", preexec_fn=disk_of(5000))
        write("lines.jsonl", "old")
        self.refused(["eval", "--model", "model", "--data", "rows.jsonl", "--rows", "lines.jsonl"], 1,
                     "cannot write lines.jsonl: File too large", preexec_fn=disk_of(500))
        self.assertEqual((read("probe.safetensors"), read("lines.jsonl")), (b"old", b"old"))
        self.assertEqual([name for name in files(".") if "tmp" in name], [])

    def test_standard_output(self):
        command.add_tokenizer("model", 64)
        for args in (["--help"], ["inspect", "model"], ["eval", "--model", "model", "--data", "rows.jsonl"],
                     ["check", "--model", "model", "--adapter", f"{command.GOLDEN}/llama_f16/adapter"],
                     ["generate", "--model", "model", "--prompt", "-", "--max-tokens", "2"],
                     ["tokenize", "--model", "model"]):
            with self.subTest(args), open("/dev/full", "w") as full:
                out, err = self.pfx(*args, stdout=full, stdin="-\n", code=1)
                self.assertEqual(err, "pfx: cannot write to standard output: No space left on device\n")


class OutOfMemory(RunCase):
    def wide_model(self, width):
        """One layer with a feed-forward that is `width` wide, its zeros a hole in the file."""
        config = json.loads(read("model/config.json"))
        config.update(hidden_size=4, intermediate_size=width, num_attention_heads=1, num_key_value_heads=1, head_dim=4,
                      num_hidden_layers=1)
        write("model/config.json", json.dumps(config))
        layer = "model.layers.0."
        shapes = {"model.embed_tokens.weight": [64, 4], "model.norm.weight": [4], layer + "input_layernorm.weight": [4],
                  layer + "post_attention_layernorm.weight": [4], layer + "mlp.down_proj.weight": [4, width]}
        shapes.update({f"{layer}self_attn.{name}_proj.weight": [4, 4] for name in "qkvo"})
        shapes.update({f"{layer}mlp.{name}_proj.weight": [width, 4] for name in ("gate", "up")})
        header, end = {}, 0
        for name, shape in shapes.items():
            begin, end = end, end + 4 * shape[0] * (shape + [1])[1]
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open("model/model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)

    def test_by_the_plan(self):
        self.wide_model(1 << 19)
        write_rows("rows.jsonl", [{"ids": [5] * 120, "labels": [5] * 120}] * 4096)
        out, err = self.pfx("train", "--model", "model", "--data", "rows.jsonl", "--out", "run", *SMALL, "--batch-rows", "4096",
                            code=5)
        self.assertEqual(out, "")
        self.assertRegex(err, r"^pfx: the step needs \d{4,}\.\d\d GB for 491520 tokens a batch and \d+\.\d\d GB are free, enough for \d+: use "
                              r"fewer --batch-rows or --batch-tokens, shorter rows, or --accumulate\n$")
        self.assertFalse(os.path.exists("run"))


if __name__ == "__main__":
    command.main()
