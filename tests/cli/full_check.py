#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A run of all weights: what it leaves is a model folder, and an adapter of its base."""
import json
import os
import shutil

import command
from command import GOLDEN, files, read, read_safetensors, write_rows

RUN = ("--tune", "full", "--lr", "1e-3", "--batch-rows", "4", "--device", "cpu", "--dtype", "f32", "--threads", "1", "--quiet")
MODEL = ["config.json", "generation_config.json", "model.safetensors", "pfx.json", "tokenizer.json", "tokenizer_config.json"]


class Full(command.CommandTest):
    def setUp(self):
        super().setUp()
        write_rows("rows.jsonl", command.id_rows(16, 40))
        shutil.copytree(f"{GOLDEN}/parts/llama", "model", ignore=lambda _, names: [n for n in names if "golden" in n or "." not in n])
        command.add_tokenizer("model", 44)

    def train(self, out, *more, model="model"):
        self.pfx("train", "--model", model, "--data", "rows.jsonl", "--valid", "rows.jsonl", "--steps", "6", "--eval-every", "2", "--out", out, *RUN,
                 *more)

    def loss(self, *args):
        """Of the last line that pfx eval prints."""
        return json.loads(self.pfx("eval", "--data", "rows.jsonl", "--dtype", "f32", "--threads", "1", "--json", "--quiet", *args)[0].splitlines()[-1])["loss"]

    def test_folder(self):
        self.train("run")
        self.assertEqual([name for name in files("run") if "/" not in name], sorted([*MODEL, "README.md", "metrics.jsonl", "run.json"]))
        self.assertEqual([n for n in os.listdir("run") + os.listdir("run/checkpoint") if ".tmp." in n], [])
        best = min(line["valid_loss"] for line in map(json.loads, read("run/metrics.jsonl").splitlines()) if line.get("valid_loss"))
        self.assertAlmostEqual(self.loss("--model", "run"), best, delta=1e-6)
        self.assertEqual(self.loss("--model", "run"), self.loss("--model", "model", "--adapter", "run"))
        self.assertLess(best, self.loss("--model", "model"))
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            self.assertEqual(read(f"run/{name}"), read(f"model/{name}"))
        tensors, meta = read_safetensors("run/model.safetensors")
        base, _ = read_safetensors("model/model.safetensors")
        self.assertEqual({n: t[:2] for n, t in tensors.items()}, {n: t[:2] for n, t in base.items()})
        self.assertEqual(meta["format"], "pt")
        self.assertIn("pfx.base", meta)
        self.assertEqual(self.pfx("check", "--model", "model", "--adapter", "run")[0], "run fits: it was trained on exactly these weights\n")

    def test_merge_makes_it_plain(self):
        self.train("run")
        out, _ = self.pfx("merge", "--model", "model", "--adapter", "run", "--out", "plain")
        self.assertEqual(out, "plain holds 21 tensors, 21 of them changed, 44.3 kB in f32\n")
        self.assertEqual(files("plain"), [name for name in MODEL if name != "pfx.json"])
        self.assertEqual(read_safetensors("plain/model.safetensors")[0], read_safetensors("run/model.safetensors")[0])

    def test_resume(self):
        self.train("whole")
        self.train("halves", "--stop-after", "3")
        self.pfx("train", "--resume", "halves", "--quiet")
        for name in ("model.safetensors", "config.json", "pfx.json", "checkpoint/pfx_state.safetensors"):
            self.assertEqual(read(f"whole/{name}"), read(f"halves/{name}"), name)

    def test_gguf(self):
        """Names, orientation and permutation of a GGUF file are undone; what it lacks is made."""
        for case in ("gpt2", "llama3_old", "qwen3"):
            self.train(f"{case}_run", model=f"{GOLDEN}/gguf/{case}.gguf")
            self.assertEqual(json.loads(read(f"{case}_run/config.json"))["model_type"], case.split("3_")[0])
            self.assertAlmostEqual(self.loss("--model", f"{case}_run"), self.loss("--model", f"{GOLDEN}/gguf/{case}.gguf", "--adapter", f"{case}_run"),
                                   delta=1e-5)

    def test_another_run_takes_the_folder(self):
        """--force removes the model that a run left, not one that somebody else has there."""
        self.train("run")
        self.pfx("train", "--model", "model", "--data", "rows.jsonl", "--tune", "prefix:2", "--steps", "1", "--out", "run", "--force", "--quiet")
        self.assertEqual([name for name in files("run") if "/" not in name],
                         ["README.md", "adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "run.json"])
        shutil.copytree("model", "mine")
        self.pfx("train", "--model", "model", "--data", "rows.jsonl", "--tune", "prefix:2", "--steps", "1", "--out", "mine", "--force", "--quiet")
        self.assertLessEqual(set(files("model")), set(files("mine")))

    def test_its_base_is_safe(self):
        before = {name: read(f"model/{name}") for name in files("model")}
        self.refused(["train", "--model", "model", "--data", "rows.jsonl", "--steps", "1", "--out", "model", "--force", *RUN], 2,
                     "model is the base itself, and a run of all weights leaves a model: name another folder")
        self.assertEqual({name: read(f"model/{name}") for name in files("model")}, before)

    def test_type(self):
        """A type of its own, in the whole run; the run itself computes as before."""
        self.train("run")
        self.train("half", "--out-dtype", "bf16", "--stop-after", "3")
        self.pfx("train", "--resume", "half", "--quiet")
        self.assertEqual({t[0] for t in read_safetensors("half/model.safetensors")[0].values()}, {"BF16"})
        self.assertEqual(os.listdir("half/checkpoint"), ["pfx_state.safetensors"])  # no second model
        self.assertEqual(json.loads(read("half/config.json"))["dtype"], "bfloat16")
        self.assertEqual(json.loads(read("half/run.json"))["settings"]["out_dtype"], "bf16")
        self.assertEqual(read("run/checkpoint/pfx_state.safetensors"), read("half/checkpoint/pfx_state.safetensors"))
        self.assertAlmostEqual(self.loss("--model", "half"), self.loss("--model", "run"), delta=0.02)
        self.refused(["train", "--model", "model", "--data", "rows.jsonl", "--tune", "lora:2", "--steps", "1", "--out", "x", "--out-dtype", "f32"], 2,
                     "--out-dtype is for --tune full, which leaves a model; --tune lora:2 leaves an adapter in float32")
        self.assertFalse(os.path.exists("x"))

    def test_part_missing(self):
        self.train("run")
        os.remove("run/model.safetensors")
        self.refused(["check", "--model", "model", "--adapter", "run"], 3, "run/model.safetensors: is missing")


if __name__ == "__main__":
    command.main()
