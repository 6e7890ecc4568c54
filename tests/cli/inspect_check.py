#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`pfx inspect ADAPTER --model M` against the same measurements in plain float64, and what must hold whatever the model."""
import html.parser
import json
import math
import os
import shutil
import struct

import command
from command import GOLDEN, add_tokenizer, copy_model, numbers, read, read_safetensors, write, write_rows

ROWS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 3, 40, 41, 42, 43, 44, 45, 60, 61], [9, 9]]
LABELS = [[-100, -100, 7, 8, 9, 10, 11], [-100] * 6 + [43, 44, -100, 60, -100], [-100, 9]]
F32 = ("--dtype", "f32", "--threads", "1", "--quiet")


def matrix(tensor):
    dtype, shape, _ = tensor
    flat = numbers(tensor)
    return [flat[r * shape[1]:(r + 1) * shape[1]] for r in range(shape[0])]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def rms(x, weight, eps):
    scale = 1 / math.sqrt(dot(x, x) / len(x) + eps)
    return [v * scale * w for v, w in zip(x, weight)]


class Plain:
    """A llama-like model (llama, mistral, qwen3) in float64, straight from its files."""

    def __init__(self, case):
        self.config = c = json.loads(read(f"{GOLDEN}/{case}/config.json"))
        self.tensors = read_safetensors(f"{GOLDEN}/{case}/model.safetensors")[0]
        self.heads, self.kv_heads, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        self.theta = c.get("rope_theta") or c["rope_parameters"]["rope_theta"]
        self.window = c.get("sliding_window") or 0
        self.embed = matrix(self.tensors["model.embed_tokens.weight"])
        self.cache = {}

    def weight(self, layer, name):
        key = f"model.layers.{layer}.{name}.weight"
        if key not in self.cache:
            tensor = self.tensors[key]
            self.cache[key] = matrix(tensor) if len(tensor[1]) == 2 else numbers(tensor)
        return self.cache[key]

    def project(self, layer, name, x):
        return [dot(row, x) for row in self.weight(layer, name)]

    def norm(self, layer, name, x):
        return rms(x, self.weight(layer, name), self.config["rms_norm_eps"])

    def placed(self, layer, name, heads, x, position):
        """Heads of a query or key, normed where the family does, after the rotary embedding."""
        flat, half, out = self.project(layer, f"self_attn.{name}_proj", x), self.dim // 2, []
        for h in range(heads):
            head = flat[h * self.dim:(h + 1) * self.dim]
            if f"model.layers.{layer}.self_attn.{name}_norm.weight" in self.tensors:
                head = self.norm(layer, f"self_attn.{name}_norm", head)
            turned = [0.0] * self.dim
            for i in range(half):
                angle = position * self.theta ** (-2 * i / self.dim)
                a, b = head[i], head[i + half]
                turned[i], turned[i + half] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
            out.append(turned)
        return out

    def first_keys(self, ids):
        """Layer 0's keys of words at positions 0, 1, ..., all heads of each as one vector."""
        return [sum(self.placed(0, "k", self.kv_heads, self.norm(0, "input_layernorm", self.embed[word]), t), [])
                for t, word in enumerate(ids)]

    def add_lora(self, folder):
        """Its deltas into the weights."""
        tensors = read_safetensors(f"{folder}/adapter_model.safetensors")[0]
        config = json.loads(read(f"{folder}/adapter_config.json"))
        for layer in range(self.config["num_hidden_layers"]):
            for name in config["target_modules"]:
                a, b = (matrix(tensors[f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{which}.weight"]) for which in "AB")
                weight = self.weight(layer, f"self_attn.{name}")
                for o, row in enumerate(weight):
                    for i in range(len(row)):
                        row[i] += config["lora_alpha"] / config["r"] * sum(b[o][k] * a[k][i] for k in range(len(a)))

    def attend(self, layer, prefix, prompt, q, keys, values):
        """(outputs [token][heads * dim], shares of virtual tokens [token][head][slot]); the first `prompt` tokens are virtual."""
        outputs, shares = [], []
        for t, heads in enumerate(q):
            outputs.append([])
            shares.append([])
            first = max(0, t + 1 - self.window) if self.window else 0
            for h, query in enumerate(heads):
                g = h * self.kv_heads // self.heads
                seen = [(k[g], v[g]) for k, v in prefix[layer]] + [(keys[j][g], values[j][g]) for j in range(first, t + 1)]
                scores = [dot(query, k) / math.sqrt(self.dim) for k, _ in seen]
                largest = max(scores)
                weights = [math.exp(s - largest) for s in scores]
                total = sum(weights)
                outputs[-1] += [sum(w / total * v[d] for w, (_, v) in zip(weights, seen)) for d in range(self.dim)]
                shares[-1].append([w / total for w in weights[:len(prefix[layer]) + prompt]])
        return outputs, shares

    def run(self, prefix, ids, prompt=()):
        """[layer] of (shares, mean key length, mean value length) of one row's own tokens, behind rows of a prompt."""
        x, out, first, n_prompt = [list(row) for row in prompt] + [list(self.embed[i]) for i in ids], [], max(map(len, prefix)), len(prompt)
        for layer in range(self.config["num_hidden_layers"]):
            n = [self.norm(layer, "input_layernorm", row) for row in x]
            q = [self.placed(layer, "q", self.heads, row, first + t) for t, row in enumerate(n)]
            keys = [self.placed(layer, "k", self.kv_heads, row, first + t) for t, row in enumerate(n)]
            flat = [self.project(layer, "self_attn.v_proj", row) for row in n]
            values = [[v[g * self.dim:(g + 1) * self.dim] for g in range(self.kv_heads)] for v in flat]
            outputs, shares = self.attend(layer, prefix, n_prompt, q, keys, values)
            lengths = [sum(math.sqrt(dot(h, h)) for t in of[n_prompt:] for h in t) / self.kv_heads for of in (keys, values)]
            out.append((shares[n_prompt:], *lengths))
            for t, row in enumerate(outputs):
                mid = [a + b for a, b in zip(x[t], self.project(layer, "self_attn.o_proj", row))]
                g = self.norm(layer, "post_attention_layernorm", mid)
                act = [a / (1 + math.exp(-a)) * b for a, b in zip(self.project(layer, "mlp.gate_proj", g), self.project(layer, "mlp.up_proj", g))]
                x[t] = [a + b for a, b in zip(mid, self.project(layer, "mlp.down_proj", act))]
        return out


def read_prefix(folder, layers, kv_heads, dim):
    """[layer][token] of (heads of the key, heads of the value)"""
    rows, width = matrix(read_safetensors(f"{folder}/adapter_model.safetensors")[0]["prompt_embeddings"]), kv_heads * dim

    def heads(row, at):
        return [row[at + g * dim:at + (g + 1) * dim] for g in range(kv_heads)]

    return [[(heads(row, 2 * layer * width), heads(row, (2 * layer + 1) * width)) for row in rows] for layer in range(layers)]


def write_prefix(folder, change):
    """Applies change(rows) to the only tensor of an adapter folder."""
    tensors, meta = read_safetensors(f"{folder}/adapter_model.safetensors")
    rows = matrix(tensors["prompt_embeddings"])
    change(rows)
    flat = [v for row in rows for v in row]
    command.write_safetensors(f"{folder}/adapter_model.safetensors",
                              {"prompt_embeddings": ("F32", [len(rows), len(rows[0])], struct.pack(f"<{len(flat)}f", *flat))}, meta)


class Page(html.parser.HTMLParser):
    """Open tags, what would be fetched, classes and text of a page."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.fetched, self.classes, self.text = [], set(), [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        attrs = dict(attrs)
        self.fetched += [attrs[name] for name in ("src", "href", "xlink:href", "data", "action") if name in attrs]
        self.classes += attrs.get("class", "").split()
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            raise AssertionError(f"</{tag}> closes something else: {self.getpos()}")

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            assert "url(" not in data and "@import" not in data
        else:
            self.text += data


class Inspect(command.CommandTest):
    def setUp(self):
        super().setUp()
        write_rows("rows.jsonl", [{"ids": ids, "labels": labels} for ids, labels in zip(ROWS, LABELS)])

    def inspect(self, adapter, model, *more):
        return json.loads(self.pfx("inspect", adapter, "--model", model, "--json", *F32, *more)[0])

    def near(self, got, wanted, what, tolerance=2e-5):
        self.assertEqual(len(got), len(wanted), what)
        for g, w in zip(got, wanted):
            self.assertLess(abs(g - w), tolerance * max(1, abs(w)), what)

    def test_against_plain_float64(self):
        for case in ("llama_tied", "mistral", "qwen3"):
            with self.subTest(case):
                plain, folder = Plain(case), f"{GOLDEN}/{case}/adapter"
                prefix = read_prefix(folder, plain.config["num_hidden_layers"], plain.kv_heads, plain.dim)
                runs = [plain.run(prefix, ids) for ids in ROWS]
                for which in ("labelled", "all"):
                    self.compare(self.inspect(folder, copy_model(case, f"{case}.{which}"), "--data", "rows.jsonl", "--tokens", which),
                                 plain, runs, which)

    def test_every_kind_of_virtual_token(self):
        """A prompt's rows, alone, behind a prefix and beside LoRA; a prefix on chosen layers; P-tuning; PEFT's cartridge."""
        case = "parts/llama"
        base = f"{GOLDEN}/{case}"
        for kind in ("prompt", "p_tuning", "hybrid", "prefix_layers", "cartridge"):
            with self.subTest(kind):
                plain, prompt, prefix = Plain(case), [], [[], []]
                folder = f"{base}/{kind}"
                if kind in ("prompt", "p_tuning", "hybrid"):
                    path = f"{folder}/prompt" if kind == "hybrid" else folder
                    prompt = matrix(read_safetensors(f"{path}/adapter_model.safetensors")[0]["prompt_embeddings"])
                if kind in ("hybrid", "prefix_layers", "cartridge"):
                    prefix = read_prefix(f"{folder}/prefix" if kind == "hybrid" else folder, 2, plain.kv_heads, plain.dim)
                if kind == "hybrid":
                    plain.add_lora(f"{folder}/lora")
                if kind == "prefix_layers":
                    prefix[0] = []
                rows = [[i % 44 for i in ids] for ids in ROWS]
                write_rows("rows.jsonl", [{"ids": ids, "labels": ids} for ids in rows])
                runs = [plain.run(prefix, ids, prompt) for ids in rows]
                for run in runs:  # a layer without a prefix has no shares: as if all were zero
                    for shares, *_ in run:
                        for heads in (h for t in shares for h in t):
                            heads[:0] = [0.0] * (max(map(len, prefix)) + len(prompt) - len(heads))
                seen = self.inspect(folder, copy_model(case, f"{kind}.model"), "--data", "rows.jsonl", "--tokens", "all")
                self.compare(seen, plain, runs, "all")
                of = ["prefix"] * max(map(len, prefix)) + ["prompt"] * len(prompt)
                self.assertEqual([t["of"] for t in seen["token_summary"]], of)
                self.assertEqual([layer["first_token"] for layer in seen["layer_summary"]], [3, 0] if kind == "prefix_layers" else [0, 0])
                for token, row in zip(seen["token_summary"][len(of) - len(prompt):], prompt):
                    cosines = [dot(row, word) / math.sqrt(dot(row, row) * dot(word, word)) for word in plain.embed]
                    self.near([token["nearest"][0]["cosine"], token["usual_cosine"]], [max(cosines), sum(cosines) / len(cosines)], "words")
                    self.assertEqual(token["nearest"][0]["id"], cosines.index(max(cosines)))
                if kind == "prefix_layers":
                    self.assertEqual([t["nearest"] for t in seen["token_summary"]], [[]] * 3)
                self.pfx("inspect", folder, "--model", f"{kind}.model", "--data", "rows.jsonl", "--html", "page.html", "--quiet")
                page = Page()
                page.feed(read("page.html").decode())
                self.assertEqual(page.open, [])

    def compare(self, seen, plain, runs, which):
        queries = [(r, t) for r, labels in enumerate(LABELS) for t in range(len(labels))
                   if which == "all" or t + 1 < len(labels) and labels[t + 1] != -100]
        tokens = sum(map(len, ROWS))
        self.assertEqual((seen["queries"], seen["tokens"], seen["rows"]), (len(queries), tokens, len(ROWS)))
        for layer, mass in enumerate(seen["mass"]):
            shares = [runs[r][layer][0][t] for r, t in queries]  # [query][head][slot]
            self.near(mass, [sum(sum(q[h]) for q in shares) / len(queries) for h in range(plain.heads)], "mass")
            slots = range(seen["virtual_tokens"])
            self.near(seen["token_share"][layer], [sum(h[s] for q in shares for h in q) / len(queries) / plain.heads for s in slots], "share")
            self.near(seen["token_peak"][layer], [max(h[s] for q in shares for h in q) for s in slots], "peak")
            summary = seen["layer_summary"][layer]
            self.near([summary["real_key_length"], summary["real_value_length"]],
                      [sum(run[layer][k] for run in runs) / tokens for k in (1, 2)], "length")
        peaks = [max(column) for column in zip(*seen["token_peak"])]
        self.near([t["largest_share"] for t in seen["token_summary"]], peaks, "largest")
        self.assertEqual([t["dead"] for t in seen["token_summary"]], [p < seen["dead_below"] for p in peaks])

    def test_words_of_first_keys(self):
        for case in ("llama_tied", "qwen3"):
            with self.subTest(case):
                plain, words = Plain(case), [17, 3, 99, 42]
                shutil.copytree(f"{GOLDEN}/{case}/adapter", case)
                width = plain.kv_heads * plain.dim

                def change(rows):
                    for row, key in zip(rows, plain.first_keys(words)):
                        row[:width] = key

                write_prefix(case, change)
                seen = self.inspect(case, copy_model(case, f"{case}.model"), "--data", "rows.jsonl", "--words", "3")
                for token, word in zip(seen["token_summary"], words):
                    nearest = token["nearest"]
                    self.assertEqual(nearest[0]["id"], word)
                    self.assertGreater(nearest[0]["cosine"], 0.9999)
                    self.assertLess(nearest[1]["cosine"], 0.99)
                    self.assertEqual(len(nearest), 3)

    def test_words_with_learned_positions(self):
        """GPT-2: position p is added before the norm, so that the key of a word differs from place to place."""
        tensors = read_safetensors(f"{GOLDEN}/gpt2/model.safetensors")[0]
        name = {key.removeprefix("transformer."): key for key in tensors}
        embed, positions = matrix(tensors[name["wte.weight"]]), matrix(tensors[name["wpe.weight"]])
        weight, bias = (numbers(tensors[name[f"h.0.ln_1.{kind}"]]) for kind in ("weight", "bias"))
        attention, add = matrix(tensors[name["h.0.attn.c_attn.weight"]]), numbers(tensors[name["h.0.attn.c_attn.bias"]])
        words, dim = [30, 30, 8, 96, 1, 2, 3, 4], len(embed[0])

        def change(rows):
            for t, row in enumerate(rows):
                x = [a + b for a, b in zip(embed[words[t]], positions[t])]
                mean = sum(x) / dim
                scale = 1 / math.sqrt(sum((v - mean) ** 2 for v in x) / dim + 1e-5)
                n = [(v - mean) * scale * w + b for v, w, b in zip(x, weight, bias)]
                row[:dim] = [sum(n[i] * attention[i][dim + j] for i in range(dim)) + add[dim + j] for j in range(dim)]

        shutil.copytree(f"{GOLDEN}/gpt2/adapter", "adapter")
        write_prefix("adapter", change)
        seen = self.inspect("adapter", copy_model("gpt2"), "--data", "rows.jsonl")
        self.assertEqual([t["nearest"][0]["id"] for t in seen["token_summary"]], words[:seen["virtual_tokens"]])

    def test_queries_of_zero_spread_evenly(self):
        """Then every key has the same score: P of the P + i + 1 visible ones are the prefix's, whatever its keys are."""
        model = copy_model("llama_tied")

        def no_queries(tensors):
            for name, (dtype, shape, content) in tensors.items():
                if "q_proj" in name:
                    tensors[name] = (dtype, shape, bytes(len(content)))

        command.change_weights(model, no_queries)
        write_rows("rows.jsonl", [{"ids": ids, "labels": ids} for ids in ROWS])
        for dtype, tolerance in (("f32", 1e-6), ("bf16", 4e-3)):
            seen = json.loads(self.pfx("inspect", f"{GOLDEN}/llama_tied/adapter", "--model", model, "--data", "rows.jsonl", "--tokens",
                                       "all", "--json", "--quiet", "--dtype", dtype)[0])
            p, places = seen["virtual_tokens"], [i for ids in ROWS for i in range(len(ids))]
            even = sum(p / (p + i + 1) for i in places) / len(places)
            for layer in range(seen["layers"]):
                self.near(seen["mass"][layer], [even] * seen["heads"], "mass", 1e-6)
                self.near(seen["token_share"][layer], [even / p] * p, "share", tolerance)
                self.near(seen["token_peak"][layer], [1 / (p + 1)] * p, "peak", tolerance)
                self.near([seen["layer_summary"][layer]["even"]], [even], "even", 1e-6)

    def test_bounds_and_samples(self):
        model = copy_model("qwen2")
        seen = self.inspect(f"{GOLDEN}/qwen2/adapter", model, "--data", "rows.jsonl", "--sample-tokens", "1", "--words", "0")
        self.assertEqual(seen["rows_in_data"], 3)
        self.assertNotIn("nearest", seen["token_summary"][0])
        for name in ("mass", "token_share", "token_peak"):
            for value in (v for row in seen[name] for v in row):
                self.assertTrue(0 <= value <= 1, (name, value))
        for mass, share in zip(seen["mass"], seen["token_share"]):
            self.near([sum(share)], [sum(mass) / len(mass)], "shares make the mass")
        seen = self.inspect(f"{GOLDEN}/qwen2/adapter", model, "--data", "rows.jsonl", "--dead-below", "1")
        self.assertEqual(seen["dead"], seen["virtual_tokens"])

    def test_built_in_sentences(self):
        model = copy_model("qwen2")
        self.refused(["inspect", f"{GOLDEN}/qwen2/adapter", "--model", model, "--quiet"], 2,
                     "the model has no tokenizer for the built-in sentences: give --data a file of ids rows")
        add_tokenizer(model, 136)
        out, err = self.pfx("inspect", f"{GOLDEN}/qwen2/adapter", "--model", model, "--quiet")
        self.assertRegex(out, r"tokens in 8 built-in sentences; --data measures on yours\n")
        self.assertEqual(self.inspect(f"{GOLDEN}/qwen2/adapter", model)["data"], None)

    def test_page(self):
        """One file that fetches and runs nothing, closes what it opens, and shows names as they are."""
        model, adapter = copy_model("qwen2"), 'a<script>alert(1)</script>&"\'x'.replace("/", "")
        shutil.copytree(f"{GOLDEN}/qwen2/adapter", adapter)
        add_tokenizer(model, 136)
        path = os.path.join(model, "tokenizer.json")
        tokenizer = json.loads(read(path))
        for token in tokenizer["added_tokens"]:
            if token["id"] != 2:  # the end token, which the settings name
                tokenizer["model"]["vocab"][f"</td>{token['id']}<b>"] = tokenizer["model"]["vocab"].pop(token["content"])
                token["content"] = f"</td>{token['id']}<b>"
        write(path, json.dumps(tokenizer))
        os.rename("rows.jsonl", "r<i>ows.jsonl")
        out, err = self.pfx("inspect", adapter, "--model", model, "--data", "r<i>ows.jsonl", "--html", "page.html", "--words", "40", "--json",
                            *F32)
        page, seen = Page(), json.loads(out)
        page.feed(read("page.html").decode())
        page.close()
        self.assertEqual(page.open, [])
        self.assertFalse(page.tags & {"script", "link", "img", "iframe", "object", "embed", "i"})
        self.assertEqual(page.fetched, [])
        self.assertIn(f"Inside {adapter}", page.text)
        self.assertIn("r<i>ows.jsonl", page.text)
        self.assertRegex(page.text, r"</td>\d+<b>")
        cells = seen["layers"] * (seen["heads"] + seen["virtual_tokens"] + 1)  # and the mean of each layer's heads
        self.assertEqual(page.classes.count("cell"), cells)
        self.assertEqual(page.classes.count("dead"), sum(peak < seen["dead_below"] for row in seen["token_peak"] for peak in row))
        self.assertNotRegex(page.text, "nan|inf")
        for layer, row in enumerate(seen["mass"]):
            for head, mass in enumerate(row):
                self.assertIn(f"layer {layer}, head {head}: {100 * mass:.2f} %", page.text)

    def test_bad_input(self):
        model, adapter = copy_model("qwen2"), f"{GOLDEN}/qwen2/adapter"
        good = ["inspect", adapter, "--model", model, "--quiet"]
        self.misused(["inspect", adapter, "--html", "page.html"], "inspect needs --model for --html: it measures an adapter in a model")
        self.misused([*good, adapter], "with --model, inspect takes one adapter")
        self.misused([*good, "--verify"], "--verify searches a model's weights: pfx inspect model --verify")
        self.refused([*good, "--data", "nowhere"], 3, "cannot open nowhere: No such file or directory")
        self.refused([*good, "--data", "rows.jsonl", "--words", "-1"], 2, "--words is -1, must be from 0 to 1000")
        self.refused([*good, "--data", "rows.jsonl", "--sample-tokens", "-5"], 2, "--sample-tokens must not be negative")
        self.refused([*good, "--data", "rows.jsonl", "--dead-below", "2"], 2, "--dead-below is a share: it must be from 0 to 1")
        out, err = self.pfx(*good, "--data", "rows.jsonl", "--html", "absent/page.html", code=1)
        self.assertIn("absent/page.html", err)
        write("text.jsonl", '{"text": "some text"}\n')
        out, err = self.pfx(*good, "--data", "text.jsonl", code=3)
        self.assertIn("text.jsonl: line 1: ", err)
        out, err = self.pfx("inspect", f"{GOLDEN}/qwen3/adapter", "--model", model, "--quiet", "--data", "rows.jsonl", code=4)
        self.assertRegex(err, r"is for a model of 2 layers, this one has 3\n$")
        out, err = self.pfx("inspect", "rows.jsonl", "--model", model, "--quiet", "--data", "rows.jsonl", code=3)
        self.assertEqual(out, "")


if __name__ == "__main__":
    command.main()
