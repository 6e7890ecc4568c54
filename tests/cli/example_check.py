#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The examples, on the shared library: what they print, and how minimal.c fails. $PFX_BUILD_DIR has them."""
import math
import os
import subprocess
import unittest

import command
from command import GOLDEN, add_tokenizer, copy_model

EXAMPLE = os.path.join(os.environ.get("PFX_BUILD_DIR", os.path.dirname(command.PFX)), "examples/example_minimal")


@unittest.skipUnless(os.path.exists(EXAMPLE), "the example is not built here")
class Minimal(command.CommandTest):
    def setUp(self):
        super().setUp()
        copy_model("qwen2")
        add_tokenizer("model", 136)
        self.adapter = f"{GOLDEN}/qwen2/adapter"

    def run_example(self, *args):
        done = subprocess.run([EXAMPLE, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def test_it_generates_what_the_command_does(self):
        out, err = self.pfx("generate", "--model", "model", "--adapter", self.adapter, "--prompt", "The capital", "--max-tokens",
                            "32")
        self.assertEqual(self.run_example("model", self.adapter, "The capital"), (0, out, ""))
        self.assertGreater(len(out), 20)

    def test_it_fails_in_one_line(self):
        self.assertEqual(self.run_example("nowhere", self.adapter, "x"), (1, "", "minimal: nowhere: no such file or folder\n"))
        self.assertEqual(self.run_example("model", f"{GOLDEN}/llama_f16/adapter", "x"),
                         (1, "", f"minimal: {GOLDEN}/llama_f16/adapter/adapter_model.safetensors is for a model of 2 layers, this "
                                 "one has 3\n"))
        self.assertEqual(self.run_example("model"), (2, "", "usage: minimal MODEL ADAPTER PROMPT\n"))


@unittest.skipUnless(os.path.exists(os.path.join(os.path.dirname(EXAMPLE), "example_attention")), "the example is not built here")
class Attention(command.CommandTest):
    def test_the_first_output_follows_the_formula(self):
        done = subprocess.run([os.path.join(os.path.dirname(EXAMPLE), "example_attention")], capture_output=True, text=True, timeout=60)
        number = lambda i: ((i * 2654435761) % 1000) / 1000 - 0.5  # noqa: E731
        key = [number(i) for i in range(64)]  # the first query, its own key and its value begin with the same numbers
        keys = [[number(row * 128 + i) for i in range(64)] for row in range(20)] + [key]
        weights = [math.exp(sum(a * b for a, b in zip(key, other, strict=True)) / 8) for other in keys]
        first = sum(w * other[0] for w, other in zip(weights, keys, strict=True)) / sum(weights)
        self.assertRegex(done.stdout, rf"^o\[0\] {first:.4f}, d segment key\[0\] -?\d\.\d{{4}}, value\[0\] -?\d\.\d{{4}}\n$")
        self.assertEqual((done.returncode, done.stderr), (0, ""))


if __name__ == "__main__":
    command.main()
