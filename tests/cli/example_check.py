#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""examples/minimal.c, on the shared library: what it prints, and how it fails. $PFX_BUILD_DIR has it."""
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


if __name__ == "__main__":
    command.main()
