#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The command's numbers and texts are those of the golden files, made by PEFT on transformers in float64; and generate
keeps its promises: a batch equals its prompts alone, stop texts, limits, chat, text as it appears."""
import json
import os
import shutil
import signal
import time

import command
from command import GOLDEN, add_tokenizer, copy_model, ids_text, numbers, read, read_safetensors, write, write_rows

CASES = {"gpt2": 97, "llama_tied": 128, "llama3_new": 160, "llama_bf16": 112, "mistral": 104, "qwen2": 136, "qwen3": 144}
F32 = ("--dtype", "f32", "--threads", "1")


def golden_rows(golden):
    ids, labels, offsets = (numbers(golden[name]) for name in ("ids", "labels", "offsets"))
    return [{"ids": ids[a:b], "labels": labels[a:b]} for a, b in zip(offsets, offsets[1:])]


class Golden(command.CommandTest):
    def setUp(self):
        super().setUp()
        self.tensors, self.meta = {}, {}

    def each_case(self):
        for case in CASES:
            with self.subTest(case):
                self.tensors, self.meta = read_safetensors(f"{GOLDEN}/{case}/golden.safetensors")
                yield case, ("--model", copy_model(case, case), *F32), ("--adapter", f"{GOLDEN}/{case}/adapter")

    def test_greedy_text(self):
        for case, model, adapter in self.each_case():
            add_tokenizer(case, CASES[case])
            prompts, offsets = numbers(self.tensors["greedy.prompts"]), numbers(self.tensors["greedy.offsets"])
            write_rows("prompts.jsonl", [{"prompt": ids_text(prompts[a:b])} for a, b in zip(offsets, offsets[1:])])
            for name, more in (("greedy.ids", ()), ("adapter.greedy.ids", adapter)):
                ids = numbers(self.tensors[name])
                out, err = self.pfx("generate", *model, *more, "--prompts", "prompts.jsonl", "--max-tokens", "12", "--json",
                                    "--quiet")
                self.assertEqual([json.loads(line)["text"] for line in out.splitlines()],
                                 [ids_text(ids[at:at + 12]) for at in range(0, len(ids), 12)])

    def test_loss(self):
        for case, model, adapter in self.each_case():
            write_rows("rows.jsonl", golden_rows(self.tensors))
            out, err = self.pfx("eval", *model, *adapter, "--data", "rows.jsonl", "--json", "--quiet")
            for line, name in zip(map(json.loads, out.splitlines()), ("loss", "adapter.loss")):
                wanted = float(self.meta[name])
                self.assertLess(abs(line["loss"] - wanted), 2e-6 * wanted, name)

    def test_probe(self):
        for case, model, adapter in self.each_case():
            write_rows("rows.jsonl", golden_rows(self.tensors))
            self.pfx("probe", *model, *adapter, "--data", "rows.jsonl", "--out", "probe.safetensors", "--quiet")
            probe, _ = read_safetensors("probe.safetensors")
            self.assertEqual(sorted(probe), ["grad.prompt_embeddings", "ids", "labels", "logits", "loss", "offsets"])
            for name in ("ids", "offsets"):
                self.assertEqual(numbers(probe[name]), numbers(self.tensors[name]), name)
            got, wanted = numbers(probe["logits"]), numbers(self.tensors["adapter.logits"])
            self.assertEqual(probe["logits"][1], self.tensors["adapter.logits"][1])
            self.assertLess(max(abs(a - b) for a, b in zip(got, wanted)), 2e-5 * max(map(abs, wanted)))
            got, wanted = numbers(probe["grad.prompt_embeddings"]), numbers(self.tensors["adapter.grad"])
            error = sum((a - b) ** 2 for a, b in zip(got, wanted)) ** 0.5
            self.assertLess(error, 1e-5 * sum(b * b for b in wanted) ** 0.5)
            self.pfx("probe", *model, "--data", "rows.jsonl", "--out", "probe.safetensors", "--quiet")
            self.assertNotIn("grad.prompt_embeddings", read_safetensors("probe.safetensors")[0])


class Eval(command.CommandTest):
    def setUp(self):
        super().setUp()
        copy_model("qwen2")
        self.args = ["eval", "--model", "model", *F32]

    def test_rows_and_predictions(self):
        add_tokenizer("model", 136)
        for name in ("first", "second"):
            shutil.copytree(f"{GOLDEN}/qwen2/adapter", name)
        tensors, meta = read_safetensors("second/adapter_model.safetensors")
        dtype, shape, data = tensors["prompt_embeddings"]
        command.write_safetensors("second/adapter_model.safetensors", {"prompt_embeddings": (dtype, shape, bytes(len(data)))}, meta)
        write_rows("rows.jsonl", [{"prompt": "ab", "completion": "cd"}, {"prompt": "x", "completion": "yz"},
                                  {"prompt": "ab", "completion": "ef"}])
        out, err = self.pfx(*self.args, "--data", "rows.jsonl", "--adapter", "first", "--adapter", "second", "--generate",
                            "--max-tokens", "6", "--rows", "out.rows", "--predictions", "out.texts", "--json", "--quiet")
        scores = {line["adapter"]: line for line in map(json.loads, out.splitlines())}
        self.assertEqual(list(scores), [None, "first", "second"])
        rows = [json.loads(line) for line in read("out.rows").splitlines()]
        texts = [json.loads(line) for line in read("out.texts").splitlines()]
        for name in ("first", "second"):
            own = [row for row in rows if row["adapter"] == name]
            self.assertEqual([row["line"] for row in own], [1, 2, 3])
            self.assertEqual([row["text"] for row in own], ["cd", "yz", "ef"])
            loss = sum(row["loss"] * row["tokens"] for row in own) / sum(row["tokens"] for row in own)
            self.assertLess(abs(loss - scores[name]["loss"]), 1e-6 * loss)
            own = [text for text in texts if text["adapter"] == name]
            self.assertEqual([(text["prompt"], text["references"]) for text in own], [("ab", ["cd", "ef"]), ("x", ["yz"])])
            for text in own:
                out, err = self.pfx("generate", "--model", "model", *F32, "--adapter", name, "--prompt", text["prompt"],
                                    "--max-tokens", "6", "--quiet")
                self.assertEqual(out, text["prediction"] + "\n")
        self.assertEqual(len(rows) + len(texts), 6 + 4)
        self.assertNotEqual(scores["first"]["loss"], scores["second"]["loss"])
        self.refused([*self.args, "--data", "rows.jsonl", "--predictions", "p"], 2, "--predictions needs --generate")
        self.refused([*self.args, "--data", "rows.jsonl", "--generate", "--max-tokens", "0"], 2,
                     "max_tokens is 0, must be at least 1")

    def test_bytes_that_are_no_text(self):
        command.add_tokenizer("model", json.loads(read("model/config.json"))["vocab_size"])
        write("pair.txt", b"w1\xe9 w2||w3\n")
        self.pfx("eval", "--model", "model", "--data", "pair.txt", "--generate", "--max-tokens", "2", "--predictions", "p.jsonl",
                 "--quiet")
        line = json.loads(read("p.jsonl"))
        self.assertIn("\ufffd", line["prompt"])
        self.assertEqual(list(line), ["adapter", "prompt", "prediction", "references"])
        self.refused(["generate", "--model", "model"], 2, "the prompt on standard input holds a NUL byte: it is no text",
                     stdin=b"w1\0w2")

    def test_a_place_that_cannot_be_written_is_known_first(self):
        command.add_tokenizer("model", json.loads(read("model/config.json"))["vocab_size"])
        write("pair.txt", b"w1 w2||w3\n")
        for option in ("--predictions", "--rows"):
            self.refused(["eval", "--model", "model", "--data", "pair.txt", "--generate", option, "none/p"], 1,
                         "cannot write none/p: No such file or directory")

    def test_interrupt_ends_it(self):
        """There is nothing to save: one Ctrl-C is enough, also while losses are summed."""
        write("rows.jsonl", json.dumps({"ids": [5] * 120, "labels": [5] * 120}) + "\n")
        write("rows.jsonl", read("rows.jsonl") * 20000)
        process = self.start(*self.args, "--data", "rows.jsonl")
        time.sleep(0.5)
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        self.assertEqual((process.returncode, out), (-signal.SIGINT, b""))


class Generate(command.CommandTest):
    PROMPTS = ["abc", "The capital", "x" * 60, "zz9", "q", "name[Blue]", "abc"]

    def setUp(self):
        super().setUp()
        self.model = copy_model("qwen2")
        add_tokenizer(self.model, 134, special=("<|im_start|>", "<|im_end|>"))

    def generate(self, *more, **how):
        return self.pfx("generate", "--model", self.model, *F32, *more, **how)[0]

    def alone(self, prompt, *more):
        out = self.generate("--prompt", prompt, *more)
        self.assertEqual(out[-1:], "\n")
        return out[:-1]

    def test_a_batch_equals_its_prompts_alone(self):
        adapter = ("--adapter", f"{GOLDEN}/qwen2/adapter", "--quiet")
        write_rows("prompts.jsonl", [{"prompt": text, "completion": "ignored"} for text in self.PROMPTS])
        for more in ((), adapter):
            wanted = [self.alone(text, "--max-tokens", "30", *more) for text in self.PROMPTS]
            self.assertGreater(len(set(wanted)), 4)
            for rows in ("1", "3", "16"):
                out = self.generate("--prompts", "prompts.jsonl", "--max-tokens", "30", "--batch-rows", rows, *more)
                self.assertEqual(out, "\n---\n".join(wanted) + "\n")
        self.assertEqual(out, self.generate("--prompts", "prompts.jsonl", "--max-tokens", "30", *adapter, "--threads", "2"))

    def test_prompts_of_lines_and_of_standard_input(self):
        write("prompts.txt", "abc\nThe capital\n\nzz9")
        wanted = [self.alone(text, "--max-tokens", "8") for text in ("abc", "The capital", "zz9")]
        self.assertEqual(self.generate("--prompts", "prompts.txt", "--max-tokens", "8"), "\n---\n".join(wanted) + "\n")
        self.assertEqual(self.generate("--max-tokens", "8", stdin="The capital\n"), wanted[1] + "\n")
        self.refused(["generate", "--model", self.model, "--max-tokens", "8"], 2,
                     "the prompt is empty and the model has no begin token: give it some text")
        write("empty.txt", "")
        self.refused(["generate", "--model", self.model, "--prompts", "empty.txt"], 3, "empty.txt: no prompts in it")

    def test_stop_texts(self):
        text = self.alone("The capital", "--max-tokens", "40")
        for stop in (text[5:8], text[17:18], text[:2]):
            self.assertEqual(self.alone("The capital", "--max-tokens", "40", "--stop", stop), text[:text.index(stop)])
        first = min((text.index(stop), stop) for stop in (text[20:23], text[9:13]))
        self.assertEqual(self.alone("The capital", "--max-tokens", "40", "--stop", text[20:23], "--stop", text[9:13]),
                         text[:first[0]])
        self.assertEqual(self.alone("The capital", "--max-tokens", "40", "--stop", text[-1] * 50), text)
        result = json.loads(self.generate("--prompt", "The capital", "--max-tokens", "40", "--stop", text[5:8], "--json"))
        self.assertEqual((result["text"], result["finish"]), (text[:text.index(text[5:8])], "stop_text"))

    def test_limits(self):
        for count in (1, 2, 7):
            ids = self.pfx("tokenize", "--model", self.model, stdin=self.alone("abc", "--max-tokens", str(count)))[0]
            self.assertEqual(len(ids.split()), count)
        result = json.loads(self.generate("--prompt", "abc", "--max-tokens", "1000", "--json"))
        self.assertEqual(result["finish"], "context")
        ids = self.pfx("tokenize", "--model", self.model, stdin=result["text"])[0]
        self.assertEqual(len(ids.split()), 125)
        self.refused(["generate", "--model", self.model, "--prompt", "x" * 128], 2,
                     "a prompt of 128 tokens leaves no room in the model's context of 128 (0 of it taken by the prefix)")

    def test_sampling(self):
        hot = ("--max-tokens", "20", "--temperature", "1.5", "--top-p", "0.95")
        text = self.alone("abc", *hot, "--seed", "1")
        self.assertEqual(self.alone("abc", *hot, "--seed", "1"), text)
        self.assertNotEqual(self.alone("abc", *hot, "--seed", "2"), text)
        greedy = self.alone("abc", "--max-tokens", "20")
        self.assertEqual(self.alone("abc", *hot, "--top-k", "1"), greedy)
        self.assertEqual(self.alone("abc", *hot, "--min-p", "1"), greedy)
        write("prompts.txt", "abc\nabc\nabc\n")  # the random stream belongs to (seed, row, position)
        texts = self.generate("--prompts", "prompts.txt", *hot, "--seed", "1").split("\n---\n")
        self.assertEqual(texts[0], text)
        self.assertEqual(len(set(texts)), 3)
        self.assertEqual(self.generate("--prompts", "prompts.txt", *hot, "--seed", "1", "--batch-rows", "1").split("\n---\n"), texts)
        self.refused(["generate", "--model", self.model, "--prompt", "x", "--top-p", "2"], 2,
                     "temperature and top-k must not be negative, top-p must be in (0, 1], min-p in [0, 1], the repetition "
                     "penalty positive")

    def test_chat(self):
        self.refused(["generate", "--model", self.model, "--prompt", "Hi", "--chat"], 2,
                     "the model has no chat template: name one with --template")
        written = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        chat = self.generate("--prompt", "Hi", "--chat", "--template", "chatml", "--max-tokens", "16")
        self.assertEqual(chat, self.generate("--prompt", written, "--max-tokens", "16"))
        self.assertNotEqual(chat, self.generate("--prompt", "Hi", "--max-tokens", "16"))

    def test_text_appears_as_it_is_made(self):
        """Long before the end there is text, and Ctrl-C keeps it."""
        self.model = copy_model("llama_f16", "long", max_position_embeddings=1 << 20, eos_token_id=None)
        add_tokenizer(self.model, 64)
        os.remove("long/generation_config.json")  # nothing ends the text
        write("long/tokenizer_config.json", "{}")
        process = self.start("generate", "--model", "long", *F32, "--prompt", "<|5|>", "--max-tokens", "1000000")
        begin = b""
        while len(begin) < 1000:
            begin += os.read(process.stdout.fileno(), 100)
            self.assertIsNone(process.poll(), "a million tokens cannot be done")
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=120)
        self.assertEqual((process.returncode, err.decode()), (130, "pfx: generation was stopped\n"))
        self.assertEqual(rest[-1:], b"\n")
        wanted = self.alone("<|5|>", "--max-tokens", "300")
        self.assertEqual((begin + rest).decode()[:300], wanted[:300])


if __name__ == "__main__":
    command.main()
