#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every trainable part and two hybrids as a user has them: trained, stopped with Ctrl-C, gone on with, measured, generated
with, checked, looked into; and what is refused, with nothing lost."""
import hashlib
import json
import os
import shutil
import signal
import time

import command
from command import GOLDEN, change_weights, files, id_rows, metrics, read, write, write_rows

PARTS = f"{GOLDEN}/parts"
PEFT, DELTA = ("adapter_config.json", "adapter_model.safetensors"), ("pfx.json", "pfx_delta.safetensors")
WHOLE = ("config.json", "model.safetensors", "pfx.json", "tokenizer.json", "tokenizer_config.json")
# --tune -> the adapter's own files in the run's folder, its kind in inspect.
EVERY = {"prefix:2": (PEFT, "PREFIX_TUNING"), "prefix:3:layers=1": (PEFT, "PFX_PREFIX_LAYERS"), "prefix:3:frozen=1": (PEFT, "CARTRIDGE"),
         "prompt:2": (PEFT, "PROMPT_TUNING"),
         "lora:2": (PEFT, "LORA"), "ia3": (PEFT, "IA3"), "norm": (PEFT, "LN_TUNING"), "bias": (DELTA, "PFX_DELTA"),
         "top:1": (DELTA, "PFX_DELTA"), "full": (WHOLE, "PFX_DELTA"),
         "prefix:2+lora:2": ([f"{part}/{name}" for part in ("lora", "prefix") for name in PEFT] + ["pfx.json"], "PREFIX_TUNING+LORA"),
         "prompt:2+top:1+norm": ([f"{part}/{name}" for part in ("norm", "prompt") for name in PEFT] +
                                 [f"top/{name}" for name in DELTA] + ["pfx.json"],
                                 "PROMPT_TUNING+PFX_DELTA+LN_TUNING")}


class Parts(command.CommandTest):
    def setUp(self):
        super().setUp()
        self.folder = os.path.realpath(self.folder)
        self.model("llama")
        write_rows("rows.jsonl", id_rows(6, 40))

    @staticmethod
    def model(family, to="model"):
        shutil.copytree(f"{PARTS}/{family}", to,
                        ignore=lambda _, names: [n for n in names if "golden" in n or "." not in n or n == "generation_config.json"])
        command.add_tokenizer(to, json.loads(read(f"{to}/config.json"))["vocab_size"])
        return to

    def args(self, tune, out="run", model="model"):
        return ["train", "--model", model, "--data", "rows.jsonl", "--out", out, "--tune", tune, "--dtype", "f32", "--threads", "1",
                "--batch-rows", "2", "--quiet"]

    def train(self, tune, *more, out="run", model="model"):
        return self.pfx(*self.args(tune, out, model), *(more or ("--steps", "2")))

    def uses(self, adapter="run", model="model"):
        """The commands that take an adapter."""
        base = ["--model", model, "--adapter", adapter]
        return {"check": ["check", *base], "eval": ["eval", *base, "--data", "rows.jsonl", "--dtype", "f32", "--threads", "1", "--json", "--quiet"],
                "generate": ["generate", *base, "--prompt", "$%", "--max-tokens", "4", "--dtype", "f32", "--threads", "1", "--quiet"],
                "probe": ["probe", *base, "--data", "rows.jsonl", "--out", "probe.safetensors", "--threads", "1", "--quiet"]}


class Lives(Parts):
    def interrupted(self, tune):
        """Ctrl-C in the middle of a run; the step that was done last."""
        process = self.start(*self.args(tune), "--steps", "100000", "--save-every", "-1")
        deadline = time.monotonic() + 120
        while not os.path.exists("run/metrics.jsonl") or read("run/metrics.jsonl").count(b"\n") < 2:
            self.assertIsNone(process.poll(), "the run ended by itself")
            self.assertLess(time.monotonic(), deadline, "the run does not get ahead")
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = (stream.decode() for stream in process.communicate(timeout=120))
        self.assertEqual(process.returncode, 130, err)
        self.assertRegex(err, r"^pfx: stopped after step \d+ of 100000; the state is saved\npfx: go on with: pfx train --resume run\n$")
        return int(err.split()[4])

    def live(self, tune, own, kind):
        step = self.interrupted(tune) + 2
        self.pfx("train", "--resume", "run", "--stop-after", str(step), "--quiet")
        self.train(tune, "--steps", "100000", "--save-every", "-1", "--stop-after", str(step), out="undisturbed")
        beside = [] if tune == "full" else [f"checkpoint/{name}" for name in own]  # of a whole model the state is enough
        self.assertEqual(files("run"), sorted([*own, *beside, "README.md", "checkpoint/pfx_state.safetensors", "metrics.jsonl", "run.json"]))
        for name in files("run"):
            if name not in ("run.json", "metrics.jsonl", "README.md"):
                self.assertEqual(read(f"run/{name}"), read(f"undisturbed/{name}"), name)
        self.assertEqual(metrics("run"), metrics("undisturbed"))
        uses = self.uses()
        self.assertEqual(self.pfx(*uses["check"]), ("run fits: it was trained on exactly these weights\n", ""))
        frozen, tuned = (json.loads(line) for line in self.pfx(*uses["eval"])[0].splitlines())
        self.assertEqual((frozen["adapter"], tuned["adapter"]), (None, "run"))
        self.assertNotEqual(frozen["loss"], tuned["loss"])
        self.assertEqual(self.pfx(*uses["generate"]), self.pfx(*uses["generate"]))
        self.pfx(*uses["probe"])
        seen = json.loads(self.pfx("inspect", "run", "--json")[0])
        self.assertEqual((seen["holds"], seen["tune"], seen["step"]), ("training run", tune, step))
        for name in own:  # the adapter alone, as it is handed on
            os.makedirs(os.path.dirname(f"alone/{name}"), exist_ok=True)
            shutil.copy(f"run/{name}", f"alone/{name}")
        seen = json.loads(self.pfx("inspect", "alone", "--json")[0])
        self.assertEqual((seen["holds"], seen["kind"]), ("adapter", kind))
        self.assertEqual(json.loads(self.pfx(*self.uses("alone")["eval"])[0].splitlines()[1])["loss"], tuned["loss"])

    def test_every_part(self):
        for tune, (own, kind) in EVERY.items():
            with self.subTest(tune):
                self.live(tune, own, kind)
            for folder in ("run", "undisturbed", "alone"):
                shutil.rmtree(folder, ignore_errors=True)


class Refusals(Parts):
    def contents(self):
        return {name: read(name) for name in files(".")}

    def test_parts_that_there_are_not(self):
        known = "prefix:N, prompt:N, lora:R, ia3, norm, bias, top:K and full are known"
        self.train("lora:2")
        before = self.contents()
        for tune, message in (
                ("lor:8", f'--tune lor:8: there is no part "lor"; did you mean "lora"? {known}'),
                ("prefix:2+tip:1", f'--tune prefix:2+tip:1: there is no part "tip"; did you mean "top"? {known}'),
                ("lora:8:alfa=2", '--tune lora:8:alfa=2: lora has no option "alfa"; did you mean "alpha"? Known: lr, alpha, rslora, dropout, targets'),
                ("prompt:3:layers=1", '--tune prompt:3:layers=1: prompt has no option "layers"; did you mean "lr"? Known: lr, init'),
                ("norm:targets=q", '--tune norm:targets=q: norm has no option "targets"; did you mean "lr"? Known: lr'),
                ("ia3:4", "--tune ia3:4: ia3 takes no number"), ("top", "--tune top: how many layers? Write top:2"),
                ("lora:2+lora:4", "--tune lora:2+lora:4: lora is there twice"),
                ("full+norm", "--tune full+norm: full trains every weight already: leave norm out"),
                ("lora:2:targets=c_attn", 'lora: llama has no projection "c_attn": q, k, v, o, gate, up, down and all are known'),
                ("ia3:targets=qkv", 'ia3: llama has no projection "qkv": q, k, v, o, gate, up, down and all are known'),
                ("lora:25", "lora:25: the rank is more than the 24 x 24 matrix of llama has"),
                ("top:3", "top:3: this model has 2 layers"), ("top:2+norm", "norm: another part trains all that it names"),
                ("prefix:3:layers=0-2", "layers=0-2: this model has layers 0 to 1"),
                ("prompt:200", "200 virtual tokens leave no room in the model's context of 128"),
                ("prefix:2+", "--tune prefix:2+: a part is missing at a +")):
            with self.subTest(tune):
                for out in ("run", "other"):
                    self.refused([*self.args(tune, out), "--force"], 2, message)
                self.assertEqual(self.contents(), before)

    def test_what_a_family_lacks(self):
        self.model("mistral", "mistral")
        self.model("gpt2", "gpt2")
        before = self.contents()
        for model, tune, message in (
                ("mistral", "bias", "bias: a model of the family mistral has none, and transformers has no place for any"),
                ("gpt2", "lora:2:targets=q", "lora: targets=q: gpt2 holds q, k and v in one matrix, as PEFT sees it too: write targets=qkv"),
                ("gpt2", "lora:2:targets=gate", 'lora: gpt2 has no projection "gate": qkv, o, up, down and all are known')):
            self.refused(self.args(tune, model=model), 2, message)
        self.assertEqual(self.contents(), before)

    def refused_everywhere(self, code, message, adapter="run", model="model"):
        for name, args in self.uses(adapter, model).items():
            with self.subTest(name):
                out, err = self.pfx(*args, code=code)
                self.assertEqual(err, f"pfx: {message}\n")

    def test_another_base(self):
        self.model("llama", "other")
        change_weights("other", lambda tensors: tensors.update(
            {name: (dtype, shape, data[:-4] + b"\0\0\x80\x3f") for name, (dtype, shape, data) in tensors.items()}))
        self.model("gpt2", "gpt2")
        for tune, file in (("lora:2", "adapter_model.safetensors"), ("top:1", "pfx_delta.safetensors")):
            self.train(tune, out=tune, model="model")
            for args in self.uses(tune, "other").values():
                out, err = self.pfx(*args, code=4)
                self.assertRegex(err, rf"^pfx: {tune}/{file} was trained on other weights than other: sampled weights differ by .* "
                                      r"--force uses it all the same\n$")
                self.pfx(*args, "--force")
                self.assertIn("for a module" if tune == "lora:2" else "model.", self.pfx(*args[:2], "gpt2", *args[3:], code=4)[1])

    def test_a_part_of_another_base(self):
        """The digests in pfx.json see that a part was exchanged; where somebody changed them too, the fingerprints do."""
        self.model("llama", "other")
        change_weights("other", lambda tensors: tensors.update(
            {name: (dtype, shape, data[:-4] + b"\0\0\x80\x3f") for name, (dtype, shape, data) in tensors.items()}))
        self.train("prefix:2+lora:2")
        self.train("prefix:2+lora:2", out="run2", model="other")
        shutil.copytree("run2/lora", "run/lora", dirs_exist_ok=True)
        self.refused_everywhere(3, "run/lora/adapter_config.json: is not the file that pfx.json names (SHA-256 differs): part lora was exchanged or "
                                   "damaged, or writing it was interrupted; get the whole folder again, or write it again")
        note = json.loads(read("run/pfx.json"))
        for part in note["parts"]:
            for name in part["files"]:
                part["files"][name] = hashlib.sha256(read(f"run/{part['folder']}/{name}")).hexdigest()
        write("run/pfx.json", json.dumps(note))
        self.refused_everywhere(4, "run/prefix/adapter_model.safetensors and run/lora/adapter_model.safetensors were trained on different base "
                                   "models; the parts of an adapter must have one")

    def test_a_part_is_missing(self):
        self.train("prefix:2+top:1")
        before = self.contents()
        for name in ("top/pfx_delta.safetensors", "top/pfx.json", "prefix/adapter_model.safetensors"):
            os.rename(f"run/{name}", "kept")
            self.refused_everywhere(3, f"run/{name}: is missing; it belongs to part {name.split('/')[0]} of a hybrid adapter: get the whole "
                                       "folder again")
            os.rename("kept", f"run/{name}")
        self.assertEqual(self.contents(), before)
        shutil.rmtree("run/top")
        shutil.rmtree("run/checkpoint/top")  # made from the state, which is there: a run goes on and writes it again
        self.pfx("train", "--resume", "run", "--steps", "3", "--quiet")
        self.assertEqual(files("run"), sorted(name[4:] for name in before if name.startswith("run/")))
        self.pfx(*self.uses()["check"])


if __name__ == "__main__":
    command.main()
