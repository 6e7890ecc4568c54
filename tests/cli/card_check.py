#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""README.md beside a trained adapter: what it says is true, awkward names do not break it, a person's own text stays."""
import hashlib
import json
import os
import re

import command
from command import add_tokenizer, copy_model, files, id_rows, metrics, read, write, write_rows

MARK = "<!-- written by pfx train: remove this line to keep your own text -->"


def front_matter(card):
    """The mapping at the top; its only quoted value is a double-quoted YAML scalar, which is JSON but for \\x."""
    lines = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL).group(1).splitlines()
    tags = [line[2:] for line in lines if line.startswith("- ")]
    fields = dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith("- "))
    fields["base_model"] = json.loads(re.sub(r"\\x(..)", r"\\u00\1", fields["base_model"]))
    return fields, tags


class Card(command.CommandTest):
    def setUp(self):
        super().setUp()
        copy_model("llama_f16")
        self.rows, self.valid = id_rows(24, 60), id_rows(7, 50)
        write_rows("rows.jsonl", self.rows)
        write_rows("valid.jsonl", self.valid)

    def train(self, *more, model="model", out="run", data="rows.jsonl", loud=False, plain=True, **how):
        return self.pfx("train", "--model", model, "--data", data, "--out", out, *(["--tune", "prefix:2"] if plain else []), "--dtype",
                        "f32", "--threads", "1", *([] if loud else ["--quiet"]), *more, **how)

    def card(self, out="run"):
        return read(f"{out}/README.md").decode()

    def test_what_it_says(self):
        self.train("--valid", "valid.jsonl", "--steps", "9", "--eval-every", "3", "--lr", "0.5", "--seed", "7")
        card, run = self.card(), json.loads(read("run/run.json"))
        self.assertEqual(front_matter(card), ({"base_model": os.path.realpath("model"), "library_name": "peft",
                                               "pipeline_tag": "text-generation"}, ["prefix-tuning", "pfx"]))
        self.assertEqual(card.count(MARK), 1)
        for name in ("model_arch", "model_base"):
            self.assertIn(run["digests"][name], card)
        for what, name, rows in (("learned from", "rows.jsonl", self.rows), ("validated on", "valid.jsonl", self.valid)):
            tokens, labelled = sum(len(r["ids"]) for r in rows), sum(label != -100 for r in rows for label in r["labels"][1:])
            self.assertIn(f"- {what}: `{name}`, {len(rows)} rows, {tokens} tokens, {labelled} labelled (with a loss); SHA-256 "
                          f"`{hashlib.sha256(read(name)).hexdigest()}`\n", card)
        best = min((line for line in metrics("run") if "valid_loss" in line), key=lambda line: line["valid_loss"])
        step, loss = re.search(r"the best so far: (\S+) \(step (\d+)\)", card).group(2, 1)
        self.assertEqual((int(step), f"{best['valid_loss']:.6g}"), (best["step"], loss))
        self.assertIn(f"- after step {best['step']} of 9, ", card)
        settings = json.loads(re.search(r"```json\n(.*?)\n```", card, re.DOTALL).group(1))
        for place in ("model", "data", "valid", "out", "tensorboard"):
            del run["settings"][place]
        self.assertEqual(settings, run["settings"])
        self.assertIn(f"pfx {run['environment']['version']}, ", card)
        self.assertIn("- The first real token has position 2; at most ", card)
        self.assertNotRegex(card, r"\d\d:\d\d|20\d\d-\d\d")  # no time of day, no date
        self.pfx("check", "--model", "model", "--adapter", "run")

    def test_without_validation(self):
        self.train("--steps", "2")
        self.assertIn("- validation loss: not measured\n", self.card())
        self.assertIn("- Not tested at all: the run had no validation rows.\n", self.card())
        self.assertNotIn("sliding window", self.card())
        self.assertEqual([name for name in files("run") if name.endswith("README.md")], ["README.md"])

    def test_sliding_window(self):
        copy_model("mistral", "windowed")
        self.train("--steps", "1", model="windowed")
        self.assertIn("- The model has a sliding window of 24 tokens. In pfx it counts real tokens only and the prefix stays visible; "
                      "PEFT with transformers loses sight of the prefix once 2 virtual and the real tokens exceed the window.\n", self.card())

    def test_awkward_names(self):
        name = 'mo"del \\ `` é\u2028: # [x] | *y*\n- z'
        os.rename("model", name)
        os.rename("rows.jsonl", "ro`ws|.jsonl")
        self.train("--steps", "1", model=name, data="ro`ws|.jsonl")
        fields, _ = front_matter(self.card())
        self.assertEqual(fields["base_model"], os.path.realpath(name))
        body = self.card().split(MARK)[1]
        self.assertIn('# `prefix:2` for ``` mo"del \\ `` é\u2028: # [x] | *y* - z ```\n', body)
        self.assertIn("- learned from: `` ro`ws|.jsonl ``, ", body)
        self.assertNotIn("\n- z", body)

    def test_own_text_stays(self):
        os.mkdir("run")
        write("run/README.md", "# Mine\n")
        self.train("--steps", "2", code=2)  # the folder holds something
        out, err = self.train("--steps", "4", "--save-every", "2", "--force", loud=True)
        self.assertEqual(self.card(), "# Mine\n")
        self.assertEqual(err.count("run/README.md was not written by pfx: it stays as it is"), 1)
        self.train("--steps", "2", out="again")
        write("again/README.md", self.card("again").replace(MARK, "") + "\nApproved.\n")
        self.pfx("train", "--resume", "again", "--steps", "4", "--quiet")
        self.assertTrue(self.card("again").endswith("\nApproved.\n"))
        self.assertIn("after step 2 of 2", self.card("again"))

    def test_replaced_with_the_run(self):
        self.train("--steps", "2")
        write("run/README.md.tmp.abcdef", "half")
        first = self.card()
        self.train("--steps", "3", "--force")
        self.assertNotEqual(self.card(), first)
        self.assertIn("- after step 3 of 3, ", self.card())
        self.assertNotIn("README.md.tmp.abcdef", files("run"))

    def test_resumed_bytes(self):
        """The same bytes as without the stop (runs_check compares all files of many such runs)."""
        more = ("--valid", "valid.jsonl", "--steps", "12", "--eval-every", "3")
        self.train(*more, "--stop-after", "7", out="stopped")
        self.pfx("train", "--resume", "stopped", "--quiet")
        self.train(*more, out="whole")
        self.assertEqual(read("stopped/README.md"), read("whole/README.md"))

    def test_every_kind_of_part(self):
        """Only what PEFT can load alone is called PEFT's."""
        for tune, library, tags, loading in (
                ("prompt:2", "peft", ["prompt-tuning"], None), ("lora:2", "peft", ["lora"], None), ("ia3", "peft", ["ia3"], None),
                ("norm", "peft", ["ln-tuning"], None), ("bias", "pfx", ["bias-tuning"], "- bias: pfx alone has it\n"),
                ("top:1", "pfx", ["last-layers"], "- top: pfx alone has it\n"),
                ("full", "transformers", ["full"], "This folder is a model of its own:\n"),
                ("prefix:2:layers=1", "pfx", ["prefix-tuning"], "- prefix on chosen layers: pfx alone has it\n"),
                ("prefix:2+lora:2+bias", "pfx", ["prefix-tuning", "lora", "bias-tuning"],
                 "- prefix: PEFT loads it, from its own folder and without the others\n"
                 "- lora: PEFT loads it, from its own folder and without the others\n- bias: pfx alone has it\n")):
            with self.subTest(tune):
                self.train("--steps", "1", "--tune", tune, "--force", plain=False)
                card = self.card()
                fields, found = front_matter(card)
                self.assertEqual((fields["library_name"], found), (library, [*tags, "pfx"]))
                self.assertIn(f"\n# `{tune}` for `model`\n", card)
                self.assertEqual("PeftModel" in card, loading is None)
                self.assertEqual("- The first real token has position 2; " in card, "prefix" in tune or "prompt" in tune)
                if loading:
                    self.assertIn("\n\n" + loading, card)

    def test_tokenizer(self):
        add_tokenizer("model", json.loads(read("model/config.json"))["vocab_size"])
        write_rows("rows.jsonl", [{"prompt": "12", "completion": "34"}])
        self.train("--steps", "1")
        self.assertRegex(self.card(), r"- tokenizer digest: `[0-9a-f]{64}`\n")


if __name__ == "__main__":
    command.main()
