#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`pfx inspect ADAPTER --model M` on parts that change weights, against the same lengths and scales in plain float64."""
import json
import math
import os
import re
import shutil
import struct

import command
from command import GOLDEN, copy_model, numbers, read, read_safetensors, write, write_rows
from inspect_check import Page, matrix

FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
F32 = ("--dtype", "f32", "--threads", "1", "--quiet")


def length(values):
    return math.sqrt(sum(v * v for v in values))


def bf16(value):
    """The nearest bfloat16, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return struct.unpack("<f", struct.pack("<I", (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000))[0]


def layer_of(name):
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def lora_length(folder, module, tensors):
    """|scale B A| with the whole product formed, entry by entry."""
    config = json.loads(read(f"{folder}/adapter_config.json"))
    a, b = (matrix(tensors[f"base_model.model.{module}.lora_{which}.weight"]) for which in "AB")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    return length(scale * sum(row[k] * a[k][i] for k in range(len(a))) for row in b for i in range(len(a[0])))


def expected(folder, part, base):
    """{(module, role): numbers} of one part's folder beside the tensors of its base."""
    delta = os.path.exists(f"{folder}/pfx_delta.safetensors")
    tensors = read_safetensors(f"{folder}/{'pfx_delta' if delta else 'adapter_model'}.safetensors")[0]
    out = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("base_model.model.").replace(".ln_tuning_layers.", ".")
        if part == "ia3":
            values = numbers(tensor)
            out[name.removesuffix(".ia3_l"), "weight"] = {
                "mean": sum(values) / len(values), "smallest": min(values), "largest": max(values),
                "far": sum(abs(v - 1) > 0.1 for v in values) / len(values)}
            continue
        if part == "lora":
            module, role = name.split(".lora_")[0], "weight"
            change, old = lora_length(folder, module, tensors), base[f"{module}.weight"]
        else:
            module, role = name.rsplit(".", 1)
            new = numbers(tensor)
            old = base.get(name) or [0.0] * len(new)
            change = length(n - o for n, o in zip(new, old, strict=True))
        out[module, role] = {"length": change, "base_length": length(old), "relative": change / length(old) if any(old) else None}
    return out


class InspectChanges(command.CommandTest):
    def inspect(self, adapter, model, *more):
        return json.loads(self.pfx("inspect", adapter, "--model", model, "--json", *(more or F32))[0])

    def compare(self, seen, wanted, part):
        """Every tensor once, none besides, layers ascending, numbers near."""
        got = [c for c in seen["changes"] if c["part"] == part]
        self.assertEqual({(c["module"], c["role"]) for c in got}, set(wanted))
        self.assertEqual(len(got), len(wanted))
        layers = [c["layer"] for c in got if c["layer"] is not None]
        self.assertEqual(layers, sorted(layers))
        for change in got:
            want = wanted[change["module"], change["role"]]
            self.assertEqual(set(change), {"part", "layer", "module", "role", "column"} | set(want))
            self.assertEqual(change["layer"], layer_of(change["module"]))
            for key, value in want.items():
                if value is None:
                    self.assertIsNone(change[key], change)
                else:
                    self.assertLess(abs(change[key] - value), 1e-6 * max(1, abs(value)), (key, change, value))
        columns = {(c["layer"], c["column"]) for c in got}
        self.assertEqual(len(columns), len(got), "a column of a layer is one tensor")

    def test_against_plain_float64(self):
        for family in FAMILIES:
            tensors = read_safetensors(f"{GOLDEN}/parts/{family}/model.safetensors")[0]
            base, model = {name: numbers(t) for name, t in tensors.items()}, copy_model(f"parts/{family}", family)
            for kind in ("lora", "lora_all", "ia3", "norm", "bias", "top"):
                folder = f"{GOLDEN}/parts/{family}/{kind}"
                if not os.path.exists(folder):  # a family without biases
                    self.assertEqual((family, kind), ("mistral", "bias"))
                    continue
                with self.subTest(family=family, kind=kind):
                    part, seen = kind.removesuffix("_all"), self.inspect(folder, model)
                    self.assertEqual((seen["virtual_tokens"], seen["far_from_one"]), (0, 0.1))
                    self.assertNotIn("mass", seen)
                    self.compare(seen, expected(folder, part, base), part)

    def test_scale_of_rank_stabilised(self):
        folder = shutil.copytree(f"{GOLDEN}/parts/llama/lora_all", "rs")
        config = json.loads(read("rs/adapter_config.json"))
        write("rs/adapter_config.json", json.dumps(dict(config, use_rslora=True)))
        base = {name: numbers(t) for name, t in read_safetensors(f"{GOLDEN}/parts/llama/model.safetensors")[0].items()}
        self.compare(self.inspect(folder, copy_model("parts/llama")), expected(folder, "lora", base), "lora")

    def test_base_in_bfloat16(self):
        """The base as it computes: rounded, norms apart."""
        base = {name: numbers(t) for name, t in read_safetensors(f"{GOLDEN}/parts/qwen2/model.safetensors")[0].items()}
        base = {name: values if "norm" in name else [bf16(v) for v in values] for name, values in base.items()}
        folder = f"{GOLDEN}/parts/qwen2/top"
        seen = self.inspect(folder, copy_model("parts/qwen2"), "--dtype", "bf16", "--threads", "1", "--quiet")
        self.compare(seen, expected(folder, "top", base), "top")

    def test_matrices_that_are_kept_turned(self):
        """GPT-2 from a GGUF file has its matrices turned: the same change in it as in its folder."""
        tensors = read_safetensors(f"{GOLDEN}/gpt2/model.safetensors")[0]
        base = {"transformer." + name.removeprefix("transformer."): t for name, t in tensors.items()}
        last = max(layer_of(name) for name in base if ".h." in name)
        names = [name for name in base if f".h.{last}." in name and ".attn.bias" not in name and "masked" not in name or ".ln_f." in name]
        new = {name: [v + 0.001 * (i % 17) for i, v in enumerate(numbers(base[name]))] for name in names}
        os.mkdir("delta")
        command.write_safetensors("delta/pfx_delta.safetensors",
                                  {name: ("F32", base[name][1], struct.pack(f"<{len(v)}f", *v)) for name, v in sorted(new.items())})
        write("delta/pfx.json", json.dumps(dict(json.loads(read(f"{GOLDEN}/parts/gpt2/top/pfx.json")), part="top:1")))
        wanted = expected("delta", "top", {name: numbers(t) for name, t in base.items()})
        for model in (f"{GOLDEN}/gguf/gpt2.gguf", copy_model("gpt2")):
            self.compare(self.inspect("delta", model), wanted, "top")

    def test_every_weight_and_large_ones(self):
        """`full`, of a model with an embedding that is read in more than one piece (2^18 numbers)."""
        model, rows = copy_model("parts/llama", vocab_size=11000), 11000
        base = {}

        def larger(tensors):
            for name, (dtype, shape, content) in tensors.items():
                if shape[0] * 24 == len(content) // 4 and name in ("model.embed_tokens.weight", "lm_head.weight"):
                    tensors[name] = (dtype, [rows, 24], struct.pack(f"<{rows * 24}f", *(i * 7919 % 1013 / 1000 + i / 1e5 for i in range(rows * 24))))
            base.update({name: numbers(t) for name, t in tensors.items()})
            new = {name: ("F32", t[1], struct.pack(f"<{len(base[name])}f", *(v + i % 11 / 100 for i, v in enumerate(base[name]))))
                   for name, t in sorted(tensors.items())}
            os.mkdir("delta")
            command.write_safetensors("delta/pfx_delta.safetensors", new)

        command.change_weights(model, larger)
        write("delta/pfx.json", json.dumps(dict(json.loads(read(f"{GOLDEN}/parts/llama/top/pfx.json")), part="full")))
        self.assertGreater(len(base["model.embed_tokens.weight"]), 1 << 18)
        self.compare(self.inspect("delta", model), expected("delta", "full", base), "full")

    def test_hybrid_has_each_part(self):
        """Virtual tokens measured, and the other part's changes beside them; a prefix alone has none."""
        write_rows("rows.jsonl", [{"ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}])
        folder, model = f"{GOLDEN}/parts/llama/hybrid", copy_model("parts/llama")
        base = {name: numbers(t) for name, t in read_safetensors(f"{GOLDEN}/parts/llama/model.safetensors")[0].items()}
        seen = self.inspect(folder, model, "--data", "rows.jsonl", *F32)
        self.assertGreater(seen["virtual_tokens"], 0)
        self.assertEqual(len(seen["mass"]), 2)
        self.compare(seen, expected(f"{folder}/lora", "lora", base), "lora")
        self.assertEqual({c["part"] for c in seen["changes"]}, {"lora"})
        text = self.pfx("inspect", folder, "--model", model, "--data", "rows.jsonl", *F32)[0]
        self.assertIn("Virtual tokens: ", text)
        self.assertIn("\n\nlora: length of scale B A", text)
        alone = self.inspect(f"{folder}/prefix", model, "--data", "rows.jsonl", *F32)
        self.assertEqual(alone["changes"], [])

    def test_tables(self):
        """The text's cells are the numbers of --json."""
        model = copy_model("parts/gpt2")
        for kind, of in (("lora", r"lora: length of scale B A in percent"), ("ia3", r"ia3: .* further than 0\.1 from one"),
                         ("top", r"top: length of the change in percent")):
            folder = f"{GOLDEN}/parts/gpt2/{kind}"
            lines = self.pfx("inspect", folder, "--model", model, *F32)[0].splitlines()
            self.assertRegex(lines[0], "^" + of)
            changes = self.inspect(folder, model)["changes"]
            inner = [c for c in changes if c["layer"] is not None]
            columns = list(dict.fromkeys(c["column"] for c in inner))
            self.assertEqual(lines[1].split(), ["layer", *columns])
            for line, layer in zip(lines[2:], sorted({c["layer"] for c in inner})):
                cells = re.split(r" {2,}", line.strip()) if kind != "ia3" else [line.split()[0], *re.findall(r"\S+ \S+\.\.\S+ +\S+%", line)]
                row = {c["column"]: c for c in inner if c["layer"] == layer}
                self.assertEqual(int(cells[0]), layer)
                for column, cell in zip(columns, cells[1:], strict=True):
                    c = row[column]
                    want = (f"{c['mean']:.3f} {c['smallest']:.2f}..{c['largest']:.2f} {100 * c['far']:3.0f}%" if kind == "ia3"
                            else f"{100 * c['relative']:.3g}")
                    self.assertEqual(cell, want)
            tail = [c for c in changes if c["layer"] is None]
            self.assertEqual(lines[2 + len({c["layer"] for c in inner}):], [f"{c['column']}  {100 * c['relative']:.3g}" for c in tail])
        self.assertIn("attn.c_proj", columns)  # where c_proj alone would be two
        self.assertIn("mlp.c_proj", columns)

    def test_biases_that_the_model_lacks(self):
        out = self.pfx("inspect", f"{GOLDEN}/parts/llama/bias", "--model", copy_model("parts/llama"), *F32)[0]
        self.assertRegex(out.splitlines()[2], r"^ +0( +\(\d+\.?\d*\)){7}$")

    def test_page(self):
        for kind in ("lora_all", "ia3", "top", "bias"):
            model = copy_model("parts/llama", f"{kind}.model")
            out = self.pfx("inspect", f"{GOLDEN}/parts/llama/{kind}", "--model", model, "--html", "page.html", "--json", *F32)[0]
            page, changes = Page(), json.loads(out)["changes"]
            page.feed(read("page.html").decode())
            page.close()
            self.assertEqual((page.open, page.fetched), ([], []))
            self.assertNotRegex(page.text, r"\b(nan|inf)\b")
            self.assertNotIn("virtual tokens are dead", page.text)
            inner = [c for c in changes if c["layer"] is not None]
            self.assertEqual(page.classes.count("cell"), len(inner))
            for c in changes:
                what = (f"mean {c['mean']:.4g}, from " if kind == "ia3" else f"length {c['length']:.4g}, the model has none" if c["relative"] is None
                        else f"{100 * c['relative']:.3g} % (length {c['length']:.4g}, the model\u2019s {c['base_length']:.4g})")
                self.assertIn(f"{c['module']}.{c['role']}: {what}", page.text)

    def test_data_is_not_read(self):
        model = copy_model("parts/llama")
        out, err = self.pfx("inspect", f"{GOLDEN}/parts/llama/lora", "--model", model, "--data", "nowhere.jsonl", "--dtype", "f32")
        self.assertIn("has no virtual tokens (a prefix or a prompt has) whose attention could be measured: nowhere.jsonl is not read", err)
        out, err = self.pfx("inspect", f"{GOLDEN}/parts/qwen3/lora_all", "--model", model, "--quiet", code=4)
        self.assertEqual(out, "")


if __name__ == "__main__":
    command.main()
