#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""SmolLM2-135M-Instruct through the command: ids and text that are known from its own tokenizer and from transformers.
Skipped where the model is not (scripts/fetch_model.sh brings it)."""
import json
import os
import unittest

import command
from command import SMOLLM2, write, write_rows

F32 = ("--model", SMOLLM2, "--dtype", "f32")


@unittest.skipUnless(os.path.exists(SMOLLM2), f"{SMOLLM2} is not there")
class SmolLM2(command.CommandTest):
    def test_ids(self):
        text = "The capital of France is\n"
        ids = self.pfx("tokenize", "--model", SMOLLM2, stdin=text)[0]
        self.assertEqual(ids, "504 3575 282 4649 314\n")
        self.assertEqual(self.pfx("tokenize", "--model", SMOLLM2, "--decode", stdin=ids)[0], text)

    def test_text(self):
        out, err = self.pfx("generate", *F32, "--prompt", "The capital of France is", "--max-tokens", "2")
        self.assertEqual((out, err), (" Paris.\n", ""))

    def test_chat(self):
        """The model's own template, with its default system message, and its end token."""
        written = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                   "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n")
        write_rows("prompts.jsonl", [{"prompt": written}])
        batch = json.loads(self.pfx("generate", *F32, "--prompts", "prompts.jsonl", "--max-tokens", "40", "--json", "--quiet")[0])
        chat = json.loads(self.pfx("generate", *F32, "--prompt", "Say hello.", "--chat", "--max-tokens", "40", "--json")[0])
        self.assertEqual(chat["text"], batch["text"])
        self.assertTrue(chat["text"])

    def test_training_on_text(self):
        """A few steps on prompts and completions, text for a start: what was learned is used."""
        words = [("cat", "animal"), ("oak", "tree"), ("carp", "fish"), ("rose", "flower")]
        write_rows("rows.jsonl", [{"prompt": f"{word}:", "completion": f" {kind}"} for word, kind in words] * 2)
        write("start.txt", "Word: kind.")
        count = len(self.pfx("tokenize", "--model", SMOLLM2, stdin="Word: kind.")[0].split())
        out, err = self.pfx("train", *F32, "--data", "rows.jsonl", "--out", "run", "--tune", f"prefix:{count}", "--init",
                            "text-file:start.txt", "--steps", "8", "--batch-rows", "8", "--save-every", "-1", "--quiet")
        self.assertEqual(err, "")
        losses = [line["loss"] for line in command.metrics("run")]
        self.assertLess(losses[-1], 0.5 * losses[0])
        self.assertEqual(self.pfx("check", "--model", SMOLLM2, "--adapter", "run")[0],
                         "run fits: it was trained on exactly these weights\n")
        write("prompts.txt", "".join(f"{word}:\n" for word, _ in words))
        out, err = self.pfx("generate", *F32, "--adapter", "run", "--prompts", "prompts.txt", "--max-tokens", "4", "--json",
                            "--quiet")
        self.assertEqual([json.loads(line)["text"] for line in out.splitlines()], [f" {kind}" for _, kind in words])


if __name__ == "__main__":
    command.main()
