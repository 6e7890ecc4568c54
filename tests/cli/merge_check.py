#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""pfx merge: what it writes and says, what it refuses, and what is left behind when it is stopped or the disk is full."""
import json
import os
import resource
import shutil
import signal
import time
import unittest

import command
from command import GOLDEN, SMOLLM2, copy_model, files, read, read_safetensors, write, write_rows

PARTS = f"{GOLDEN}/parts"
UP = "model.layers.1.mlp.up_proj.weight"


def disk_of(size):
    """Files may grow to this many bytes: what a full disk does to a program, on any machine."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class Merge(command.CommandTest):
    def setUp(self):
        super().setUp()
        command.write_rows("rows.jsonl", command.id_rows(6, 40))
        shutil.copytree(f"{PARTS}/llama", "model", ignore=lambda _, names: [n for n in names if "golden" in n or "." not in n])

    def copy_part(self, name):
        shutil.copytree(f"{PARTS}/llama/{name}", name)

    def refuses(self, code, message, *args, **how):
        """In exactly these words, and nothing is written."""
        before = files("."), os.listdir(".")
        self.refused(["merge", *args], code, message, **how)
        self.assertEqual((files("."), os.listdir(".")), before)

    def test_lora(self):
        self.copy_part("lora")
        out, err = self.pfx("merge", "--model", "model", "--adapter", "lora", "--out", "merged")
        self.assertEqual(out, "merged holds 21 tensors, 4 of them changed, 44.3 kB in f32\n")
        self.assertEqual(err, "pfx: note: lora carries no fingerprint: it fits in shape, which base it was trained on is unverified\n")
        self.assertEqual(files("merged"), ["config.json", "generation_config.json", "model.safetensors"])
        (base, _), (merged, meta) = (read_safetensors(f"{m}/model.safetensors") for m in ("model", "merged"))
        self.assertEqual(meta, {"format": "pt"})
        changed = sorted(name for name in base if base[name] != merged[name])
        self.assertEqual(changed, [f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "qv"])
        self.assertEqual(json.loads(read("merged/config.json")), json.loads(read("model/config.json")))
        self.assertEqual(read("merged/generation_config.json"), read("model/generation_config.json"))
        self.pfx("probe", "--model", "merged", "--data", "rows.jsonl", "--out", "probe.safetensors")

    def test_json_and_type(self):
        self.copy_part("norm")
        out, err = self.pfx("merge", "--model", "model", "--adapter", "norm", "--out", "a/b/merged", "--out-dtype", "bf16", "--json", "--quiet")
        self.assertEqual(err, "")
        merged, _ = read_safetensors("a/b/merged/model.safetensors")
        self.assertEqual({dtype for dtype, _, _ in merged.values()}, {"BF16"})
        size = sum(len(data) for _, _, data in merged.values())
        self.assertEqual(json.loads(out), {"out": "a/b/merged", "tensors": 21, "changed": 5, "files": 1, "bytes": size, "dtype": "bf16"})
        self.assertEqual(json.loads(read("a/b/merged/config.json"))["dtype"], "bfloat16")

    def test_bias_that_the_model_lacked(self):
        self.copy_part("bias")
        self.pfx("merge", "--model", "model", "--adapter", "bias", "--out", "merged", "--quiet")
        config = json.loads(read("merged/config.json"))
        self.assertTrue(config["attention_bias"] and config["mlp_bias"])
        self.assertFalse(json.loads(read("model/config.json"))["attention_bias"])

    def test_without_adapter(self):
        """The base itself: the same bytes, its tokenizer too."""
        command.add_tokenizer("model", 40)
        write("model/LICENSE", "free")
        write("model/README.md", "what the base is")
        out, _ = self.pfx("merge", "--model", "model", "--out", "copy")
        self.assertEqual(out, "copy holds 21 tensors, 0 of them changed, 44.3 kB in f32\n")
        self.assertEqual(files("copy"), ["LICENSE", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                                         "tokenizer_config.json"])
        for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "LICENSE"):
            self.assertEqual(read(f"copy/{name}"), read(f"model/{name}"))

    def test_gguf_without_tokenizer(self):
        out, err = self.pfx("merge", "--model", f"{GOLDEN}/gguf/qwen3.gguf", "--out", "folder")
        self.assertEqual(err, f'pfx: warning: no tokenizer is written: {GOLDEN}/gguf/qwen3.gguf: there is no tokenizer in it (field '
                              '"tokenizer.ggml.model")\n')
        self.assertEqual(files("folder"), ["config.json", "model.safetensors"])
        for model, name in ((f"{GOLDEN}/gguf/qwen3.gguf", "a"), ("folder", "b")):
            self.pfx("probe", "--model", model, "--data", "rows.jsonl", "--out", f"{name}.safetensors")
        self.assertEqual(read("a.safetensors"), read("b.safetensors"))

    def test_usage(self):
        self.misused(["merge"], "merge needs --model and --out")
        self.misused(["merge", "--model", "model"], "merge needs --model and --out")
        self.misused(["merge", "model"], 'merge takes no argument "model"')
        self.misused(["merge", "--model", "model", "--out", "x", "--out-dtype", "f64"], '--out-dtype must be base, f32, bf16 or f16, not "f64"')

    def test_no_weights(self):
        for name, what in (("prompt", "a prompt (PROMPT_TUNING): rows"), ("p_tuning", "a prompt (P_TUNING): rows"),
                           ("hybrid", "a prefix (PREFIX_TUNING): keys and values")):
            self.copy_part(name)
            self.refuses(2, f"{name} holds {what} in front of a text are no weights, so no model folder can hold them; use it with --adapter",
                         "--model", "model", "--adapter", name, "--out", "merged")

    def test_bad_model_and_adapter(self):
        self.refuses(3, "nowhere: no such file or folder", "--model", "nowhere", "--out", "merged")
        self.refuses(3, "cannot open the adapter folder nowhere: No such file or directory", "--model", "model", "--adapter", "nowhere",
                     "--out", "merged")
        shutil.copytree(f"{PARTS}/qwen3/lora", "lora")
        out, err = self.pfx("merge", "--model", "model", "--adapter", "lora", "--out", "merged", code=4)
        self.assertIn("has shape", err)
        self.assertFalse(os.path.exists("merged"))

    def test_other_weights(self):
        """The fingerprint decides, as in pfx check."""
        self.copy_part("norm")
        self.pfx("train", "--model", "model", "--data", "rows.jsonl", "--tune", "prefix:1", "--steps", "1", "--out", "run", "--quiet",
                 "--device", "cpu", "--dtype", "f32")
        tensors, _ = read_safetensors("norm/adapter_model.safetensors")
        command.write_safetensors("norm/adapter_model.safetensors", tensors, read_safetensors("run/adapter_model.safetensors")[1])
        self.pfx("merge", "--model", "model", "--adapter", "norm", "--out", "same")
        command.change_weights("model", lambda t: t.update({UP: ("F32", t[UP][1], t[UP][2][4:] + t[UP][2][:4])}))
        out, err = self.pfx("merge", "--model", "model", "--adapter", "norm", "--out", "other", code=4)
        self.assertRegex(err, r"^pfx: norm/adapter_model.safetensors was trained on other weights than model: sampled weights differ by ")
        self.assertFalse(os.path.exists("other"))
        out, err = self.pfx("merge", "--model", "model", "--adapter", "norm", "--out", "other", "--force")
        self.assertEqual(err, "pfx: warning: norm was trained on other weights; used because of --force\n")
        self.assertEqual(files("other"), files("same"))

    def test_folder_that_holds_something(self):
        os.mkdir("full")
        write("full/notes.txt", "mine")
        write("file", "mine")
        for out, why in (("full", "full exists and is not empty: name another folder"), ("file", "file is a file: name another folder"),
                         ("model", "model exists and is not empty: name another folder"),
                         ("file/merged", "cannot make the folder file: it is a file; name another folder")):
            self.refuses(1 if "cannot" in why else 2, why, "--model", "model", "--out", out)

    def test_full_disk(self):
        before = os.listdir(".")
        out, err = self.pfx("merge", "--model", "model", "--out", "merged", code=1, preexec_fn=disk_of(4000))
        self.assertRegex(err, r"^pfx: cannot write merged\.tmp\.\w{6}/model\.safetensors: File too large\n$")
        self.assertEqual((out, os.listdir(".")), ("", before))

    def test_killed(self):
        """It waits for a file that never comes, and is killed: no folder of that name; the next one clears up."""
        os.mkfifo("model/LICENSE")
        process = self.start("merge", "--model", "model", "--out", "merged")
        deadline = time.monotonic() + 60
        while not [n for n in os.listdir(".") if n.startswith("merged.tmp.") and os.path.exists(f"{n}/generation_config.json")]:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = [n for n in os.listdir(".") if n.startswith("merged")]
        self.assertEqual(len(left), 1)
        self.refused(["inspect", left[0]], 3,
                     f"{left[0]} holds no model (config.json), adapter (adapter_config.json, pfx.json), run (run.json) or tokenizer")
        os.remove("model/LICENSE")
        self.pfx("merge", "--model", "model", "--out", "merged")
        self.assertEqual([n for n in os.listdir(".") if n.startswith("merged")], ["merged"])

    def test_too_large_for_the_type(self):
        copy_model("llama_tied", "big")
        command.change_weights("big", lambda t: t.update({"model.norm.weight": ("F32", t["model.norm.weight"][1],
                                                                                 b"\x00\x00\x80\x47" * t["model.norm.weight"][1][0])}))
        self.refuses(2, "model.norm.weight holds values that are too large for f16 (element 0): write bf16 or f32", "--model", "big", "--out",
                     "merged", "--out-dtype", "f16")


@unittest.skipUnless(os.path.exists(SMOLLM2), f"{SMOLLM2} is not there")
class SmolLM2(command.CommandTest):
    def test_folder(self):
        """A GGUF becomes a folder: the same ids, template, text and logits."""
        out, err = self.pfx("merge", "--model", SMOLLM2, "--out", "folder", "--json")
        self.assertEqual(err, "")
        said = json.loads(out)
        self.assertEqual((said["tensors"], said["bytes"], said["dtype"]), (272, 269100288, "bf16"))
        looks = [json.loads(self.pfx("inspect", model, "--json")[0]) for model in (SMOLLM2, "folder")]
        for key in ("arch", "tokenizer_digest", "split", "begin_token", "end_token", "chat_template", "rows_begin_with_begin_token",
                    "tied_embedding", "parameters", "context"):
            self.assertEqual(looks[0][key], looks[1][key], key)
        text = "The capital of France is\n 1234 x  y\n<|im_start|>user\n"
        self.assertEqual(*(self.pfx("tokenize", "--model", model, stdin=text)[0] for model in (SMOLLM2, "folder")))
        write_rows("rows.jsonl", [{"text": "The capital of France is Paris."}])
        for model, name in ((SMOLLM2, "a"), ("folder", "b")):  # the matrices were rounded to bf16, as this arithmetic does
            self.pfx("probe", "--model", model, "--dtype", "bf16", "--data", "rows.jsonl", "--out", name)
        self.assertEqual(read("a"), read("b"))
        self.assertEqual(self.pfx("generate", "--model", "folder", "--dtype", "f32", "--prompt", "The capital of France is", "--max-tokens",
                                  "2")[0], " Paris.\n")


if __name__ == "__main__":
    command.main()
