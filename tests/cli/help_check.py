#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the command says of itself: help, manual page, completion, refusals of what it does not know, JSON, exit codes."""
import json
import os
import re
import shutil
import subprocess
import unittest

import command
from command import COMMANDS, GOLDEN, add_tokenizer, copy_model, id_rows, write, write_rows

LATER = ("serve", "export", "pull")


def completion_words():
    """{command: options} as the shell completion offers them."""
    script = subprocess.run([command.PFX, "--completion", "bash"], check=True, stdout=subprocess.PIPE).stdout.decode()
    return {name: words.split() for name, words in re.findall(r"^    (\w+)\) words='([^']*)';;$", script, re.MULTILINE)}


class Help(command.CommandTest):
    def test_overview(self):
        out, err = self.pfx("--help")
        self.assertEqual(err, "")
        for name in COMMANDS:
            self.assertRegex(out, rf"(?m)^  {name} +\w")
        for name in LATER:
            self.assertNotRegex(out, rf"(?m)^  {name} ")
        self.assertEqual(self.pfx("-h")[0], out)
        self.assertEqual(self.pfx("help")[0], out)
        self.assertEqual(self.pfx(code=2), ("", out))  # asked for nothing: usage, on standard error

    def test_version(self):
        out, err = self.pfx("--version")
        self.assertRegex(out, r"^pfx \d+\.\d+\.\d+ \(.*PCRE2 .*\)\n$")

    def test_every_command_lists_every_option(self):
        offered = completion_words()
        self.assertEqual(sorted(offered), sorted(COMMANDS))
        for name in COMMANDS:
            out, err = self.pfx(name, "--help")
            self.assertEqual(err, "")
            self.assertIn(f"Usage: pfx {name} ", out)
            self.assertIn("\nExamples:\n", out)
            listed = re.findall(r"(?m)^  (--[a-z-]+)", out)
            self.assertEqual(sorted(listed), sorted(offered[name]))
            self.assertEqual(len(set(listed)), len(listed))
            self.assertEqual(self.pfx(name, "-h")[0], out)
            self.assertLessEqual(max(len(line) for line in out.split("\nExamples:")[0].splitlines()), 100)

    def test_every_listed_option_is_parsed(self):
        for name, options in completion_words().items():
            for option in options:
                if option == "--config" or (name, option) == ("inspect", "--model"):  # are opened at once
                    continue
                out, err = self.pfx(name, option, "--no-such-option", "x", code=0 if option == "--help" else 2)
                # A flag leaves the next word to be refused; an option with a value takes it.
                if err.startswith(f"pfx: {option} "):
                    self.assertRegex(err, f"^pfx: {option} (needs|must be) .*not \"--no-such-option\"\n")
                elif option != "--help":
                    self.assertRegex(err, rf"^pfx: {name} (has no option --no-such-option|takes no argument \"x\"|needs )")

    def test_options_of_the_issue(self):
        """Names that were promised; one word means one thing everywhere."""
        offered = completion_words()
        train = ("model data valid out tune steps epochs stop-after max-time lr warmup schedule batch-rows batch-tokens accumulate "
                 "weight-decay clip eval-every save-every patience init reparam prefix-dropout loss max-row-tokens on-long template "
                 "no-bos no-end no-fingerprint resume config force seed device dtype threads json quiet verbose")
        generate = ("model adapter prompt prompts max-tokens temperature top-k top-p min-p repetition-penalty stop chat seed force "
                    "device dtype threads json quiet verbose")
        for name, words in (("train", train), ("generate", generate), ("check", "model adapter force"),
                            ("eval", "model data adapter generate predictions rows force json"), ("inspect", "verify json"),
                            ("compare", "model data valid test retain tune lr seeds budget out adapter fail-if-worse metric shots json"),
                            ("tokenize", "model decode json"), ("probe", "model data out adapter tune seed force")):
            missing = [word for word in words.split() if f"--{word}" not in offered[name]]
            self.assertEqual(missing, [], name)


class Pages(command.CommandTest):
    def test_manual_page(self):
        out, err = self.pfx("--man")
        for name, options in completion_words().items():
            self.assertIn(f'.SH "PFX {name}"', out)
            for option in options:
                if option != "--help":
                    self.assertIn(option.replace("-", "\\-"), out)
        if not shutil.which("man"):
            self.skipTest("no man")
        write("pfx.1", out)
        done = subprocess.run(["man", "--warnings=w", "-l", "pfx.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=dict(os.environ, MANWIDTH="100", LC_ALL="C.UTF-8"))
        if b"minimized" in done.stdout:
            self.skipTest("man is a stand-in of a minimized system")
        self.assertEqual((done.returncode, done.stderr.decode()), (0, ""))
        self.assertIn("pfx train", done.stdout.decode())

    def complete(self, *words):
        """What bash offers after these words."""
        script = ('source ./pfx.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _pfx; printf "%s\\n" "${COMPREPLY[@]}"')
        done = subprocess.run(["bash", "-c", script, "bash", *words], check=True, stdout=subprocess.PIPE)
        return done.stdout.decode().split()

    @unittest.skipUnless(shutil.which("bash"), "no bash")
    def test_bash_completion(self):
        write("pfx.bash", self.pfx("--completion", "bash")[0])
        subprocess.run(["bash", "-n", "pfx.bash"], check=True)
        self.assertEqual(self.complete("pfx", "tr"), ["train"])
        self.assertEqual(self.complete("pfx", ""), [*COMMANDS, "--help", "--version"])
        self.assertEqual(self.complete("pfx", "train", "--res"), ["--resume"])
        self.assertEqual(self.complete("pfx", "generate", "--tempe"), ["--temperature"])
        write("rows.jsonl", "")
        self.assertEqual(self.complete("pfx", "train", "--data", "row"), ["rows.jsonl"])

    def test_other_completions(self):
        for shell, check in (("zsh", ["zsh", "-n"]), ("fish", ["fish", "--no-execute"])):
            script = self.pfx("--completion", shell)[0]
            for name, options in completion_words().items():
                for option in options:
                    self.assertTrue(option == "--help" or option in script or f"-l {option[2:]}" in script, (shell, option))
            write(f"pfx.{shell}", script)
            if shutil.which(shell):
                subprocess.run([*check, f"pfx.{shell}"], check=True)
        self.misused(["--completion", "tcsh"], 'completion is there for bash, zsh and fish, not for "tcsh"')


class Usage(command.CommandTest):
    def test_unknown(self):
        self.misused(["trian"], 'there is no command "trian"; did you mean train?')
        self.misused(["frobnicate"], 'there is no command "frobnicate"')
        for name in LATER:
            self.misused([name], f'the command "{name}" is not part of this release')
        self.misused(["train", "--stepz", "3"], "train has no option --stepz; did you mean --steps?")
        self.misused(["train", "--stepz=3"], "train has no option --stepz; did you mean --steps?")
        self.misused(["generate", "--frobnicate"], "generate has no option --frobnicate")
        self.misused(["eval", "-m", "x"], 'eval: options begin with two dashes, not "-m"')

    def test_missing_and_surplus(self):
        self.misused(["train"], "train needs --model, --data and --out")
        self.misused(["train", "--model", "m", "--data", "d"], "train needs --model, --data and --out")
        self.misused(["train", "x"], 'train takes no argument "x"')
        self.misused(["generate"], "generate needs --model")
        self.misused(["generate", "--model", "m", "hello"], 'generate takes no argument "hello": prompts go into --prompt')
        self.misused(["generate", "--model", "m", "--prompt", "x", "--prompts", "y"], "--prompt and --prompts exclude each other")
        self.misused(["eval", "--model", "m"], "eval needs --model and --data")
        self.misused(["inspect"], "inspect needs a path")
        self.misused(["check", "--model", "m"], "check needs --model and --adapter")
        self.misused(["check", "x"], 'check takes no argument "x"')
        self.misused(["tokenize"], "tokenize needs --model")
        self.misused(["tokenize", "x"], 'tokenize takes no argument "x"')
        self.misused(["probe", "--model", "m"], "probe needs --model, --data and --out")
        self.misused(["probe", "x"], 'probe takes no argument "x"')

    def test_values(self):
        for args, message in (
                (["--steps"], "--steps needs a value: N"),
                (["--steps", "many"], '--steps needs a whole number, not "many"'),
                (["--steps", "1.5"], '--steps needs a whole number, not "1.5"'),
                (["--steps", ""], '--steps needs a whole number, not ""'),
                (["--threads", "99999999999"], '--threads needs a whole number, not "99999999999"'),
                (["--lr", "fast"], '--lr needs a finite number, not "fast"'),
                (["--lr", "nan"], '--lr needs a finite number, not "nan"'),
                (["--seed", "-1"], '--seed needs a whole number that is not negative, not "-1"'),
                (["--max-time", "soon"], '--max-time needs a time such as 90s, 30m or 2h, not "soon"'),
                (["--max-time", "2hours"], '--max-time needs a time such as 90s, 30m or 2h, not "2hours"'),
                (["--schedule", "step"], '--schedule must be linear, cosine or constant, not "step"'),
                (["--dtype", "f64"], '--dtype must be auto, f32 or bf16, not "f64"'),
                (["--force=yes"], "--force takes no value"),
                (["--tune", "prefix:2", "--tune", "prefix:3"],
                 "--tune is given twice: one part can be trained at a time in this release")):
            with self.subTest(args):
                self.misused(["train", *args], message)

    def test_values_that_only_the_run_can_judge(self):
        copy_model("llama_f16")
        write_rows("rows.jsonl", id_rows(8, 60))
        for args, message in (
                (["--lr", "-1"], "--lr, --weight-decay and --clip must be finite numbers, the first two not negative, "
                                 "--prefix-dropout must be in [0, 1)"),
                (["--steps", "9223372036854775807"], "--steps must be in 0 .. 1000000000 and --epochs in 0 .. 100000"),
                (["--epochs", "1e30"], "--steps must be in 0 .. 1000000000 and --epochs in 0 .. 100000"),
                (["--accumulate", "2000000000"], "--batch-rows and --batch-tokens must not be negative, --accumulate must be in "
                                                 "1 .. 1000000"),
                (["--threads", "-1"], "--threads must not be negative"),
                (["--threads", "100000"], "--threads must be 1024 at most"),
                *((args, "--warmup, --eval-every, --save-every, --clip and --patience must not be negative (but -1 where the help "
                         "says so)") for args in (["--warmup", "-5"], ["--eval-every", "-7"], ["--save-every", "-3"],
                                                  ["--clip", "-0.5"])),
                (["--batch-rows", "2", "--batch-tokens", "9"], "--batch-rows and --batch-tokens exclude each other"),
                (["--steps", "3", "--warmup", "3"], "--warmup 3 leaves nothing of a run of 3 steps"),
                (["--tune", "prefix"], "--tune prefix: how many virtual tokens? Write prefix:20"),
                (["--tune", "prefix:0"], '--tune prefix:0: the number of virtual tokens must be a whole number from 1 to 1048576, '
                                         'not "0"'),
                (["--tune", "lorra:8"], '--tune lorra:8: there is no part "lorra"; did you mean "lora"? prefix:N, prompt:N, lora:R, ia3, norm, '
                                         'bias, top:K and full are known'),
                (["--tune", "lora:8:rank=2"], '--tune lora:8:rank=2: lora has no option "rank"; did you mean "lr"? Known: lr, alpha, rslora, dropout, '
                                              'targets'),
                (["--tune", "lora:2++ia3"], "--tune lora:2++ia3: a part is missing at a +"),
                (["--tune", "lora:2+prefix:4", "--lr", "1e-2"],
                 "--tune lora:2+prefix:4: --lr is the rate of a single part: write lr= at each of these"),
                (["--tune", "lora:2", "--prefix-dropout", "0.1"], "--prefix-dropout: --tune lora:2 has no prefix"),
                (["--tune", "lora:2", "--reparam", "8"], "--tune lora:2: no part of it takes --reparam: a prefix does"),
                (["--tune", "top:9"], "top:9: this model has 2 layers"),
                (["--tune", "prefix:4+prefix:8"], "--tune prefix:4+prefix:8: prefix is there twice"),
                (["--tune", "prefix:127"], "127 virtual tokens leave no room in the model's context of 128"),
                (["--init", "magic"], '--init "magic" is not known: data, random, zero, vocab, text:TEXT, text-file:FILE, adapter:FOLDER are'),
                (["--init", "text:Hello"], "--init text needs the model's tokenizer, and the model has none"),
                (["--max-row-tokens", "127"], "--max-row-tokens 127 and 20 virtual tokens exceed the model's context of 128"),
                (["--template", "vicuna"], 'unknown chat template "vicuna"; known: chatml, smollm2, llama-2, llama-3, mistral, '
                                           'none')):
            with self.subTest(args):
                self.refused(["train", "--model", "model", "--data", "rows.jsonl", "--out", "run", *args], 2, message)
                self.assertFalse(os.path.exists("run"))
        self.refused(["eval", "--model", "model", "--data", "rows.jsonl", "--device", "cuda"], 5,
                     'device cuda:0: this build of pfx has no CUDA; use --device cpu, or build with cmake -D PFX_CUDA=ON')
        self.refused(["eval", "--model", "model", "--data", "rows.jsonl", "--device", "gpu"], 2,
                     'device "gpu" is not known: cpu, cuda, or cuda:N for the Nth GPU')

    def test_options_after_two_dashes(self):
        self.misused(["train", "--", "--steps"], 'train takes no argument "--steps"')


class Json(command.CommandTest):
    """--json: nothing but JSON on standard output, an object a line, also where names and texts are odd."""

    def setUp(self):
        super().setUp()
        copy_model("llama3_new", to='mo"del')
        add_tokenizer('mo"del', 160)
        write_rows("rows.jsonl", id_rows(8, 150))
        self.common = ("--model", 'mo"del', "--dtype", "f32", "--threads", "1")

    def json(self, *args, code=0, **how):
        out, err = self.pfx(*args, "--json", code=code, **how)
        return [json.loads(line) for line in out.splitlines()]

    def test_train(self):
        args = ("train", *self.common, "--data", "rows.jsonl", "--valid", "rows.jsonl", "--tune", "prefix:2", "--steps", "3")
        result, = self.json(*args, "--out", "r\\un\n1", "--stop-after", "2")
        self.assertEqual((result["out"], result["step"], result["steps"], result["finished"]), ("r\\un\n1", 2, 3, False))
        result, = self.json("train", "--resume", "r\\un\n1")
        self.assertEqual((result["step"], result["finished"], result["best_step"]), (3, True, result["best_step"]))
        for key in ("loss", "valid_loss_before", "valid_loss", "best_valid_loss", "seconds", "tokens_per_s", "peak_bytes"):
            self.assertGreater(result[key], 0, key)
        result, = self.json(*args[:-4], "--tune", "prefix:2", "--steps", "1", "--out", "run2", "--eval-every", "-1")
        self.assertIsNone(result["valid_loss"])

    def test_eval(self):
        shutil.copytree(f"{GOLDEN}/llama3_new/adapter", "ad\tapter")
        frozen, adapted = self.json("eval", *self.common, "--data", "rows.jsonl", "--adapter", "ad\tapter", "--quiet")
        self.assertIsNone(frozen["adapter"])
        self.assertEqual(adapted["adapter"], "ad\tapter")
        self.assertEqual(frozen["rows"], 8)
        self.assertNotEqual(frozen["loss"], adapted["loss"])
        write_rows("pairs.jsonl", [{"prompt": "ab", "completion": "cd"}, {"prompt": "x", "completion": "y", "references": ["z"]}])
        scored, = self.json("eval", *self.common, "--data", "pairs.jsonl", "--generate", "--max-tokens", "4")
        for key in ("bleu", "chrf", "rouge_l", "exact_match"):
            self.assertTrue(0 <= scored[key] <= 100, key)
        self.assertEqual(scored["items"], 2)

    def test_inspect(self):
        self.pfx("train", *self.common, "--data", "rows.jsonl", "--tune", "prefix:2", "--steps", "1", "--out", "run")
        write("text.jsonl", '{"text": "hello"}\n\n{"text": "you"}\n')
        write("e2e.txt", "name : Blue || eat here\n")
        cases = (('mo"del', "model", {"family": "llama", "layers": 2, "vocabulary": 160, "tokenizer": "byte-level BPE"}),
                 (f"{GOLDEN}/gguf/qwen3.gguf", "model", {"format": "GGUF", "family": "qwen3"}),
                 ('mo"del/tokenizer.json', "tokenizer", {"tokens": 160}),
                 (f"{GOLDEN}/llama3_new/adapter", "adapter", {"kind": "PREFIX_TUNING", "virtual_tokens": 6}),
                 ("run", "training run", {"step": 1, "steps": 1, "dtype": "f32"}),
                 ("run/checkpoint", "adapter", {"virtual_tokens": 2}),
                 ("rows.jsonl", "data", {"rows_hold": "ids and labels", "rows": 8, "longest_row": 11}),
                 ("text.jsonl", "data", {"rows_hold": "text", "rows": 2}),
                 ("e2e.txt", "data", {"rows_hold": "source||target", "rows": 1}))
        for path, holds, fields in cases:
            with self.subTest(path):
                result, = self.json("inspect", path)
                self.assertEqual((result["path"], result["holds"]), (path, holds))
                self.assertEqual({key: result.get(key) for key in fields}, fields)
        self.assertEqual(len(self.json("inspect", *[path for path, _, _ in cases])), len(cases))
        lines, err = self.pfx("inspect", "run", 'mo"del')
        self.assertRegex(lines, r"(?m)^holds +training run$[^$]*^holds +model$")

    def test_check(self):
        self.pfx("train", *self.common, "--data", "rows.jsonl", "--tune", "prefix:2", "--steps", "1", "--out", "run")
        for adapter, code, fits, fingerprint in (("run", 0, True, "verified"),
                                                 (f"{GOLDEN}/llama3_new/adapter", 0, True, "unverified"),
                                                 (f"{GOLDEN}/qwen2/adapter", 4, False, "mismatch")):
            result, = self.json("check", *self.common, "--adapter", adapter, code=code)
            self.assertEqual((result["fits"], result["fingerprint"]), (fits, fingerprint))
            self.assertTrue(result["message"])

    def test_generate(self):
        write("prompts.txt", b'say "hi"\nba\xffd\n')
        first, second = self.json("generate", *self.common, "--prompts", "prompts.txt", "--max-tokens", "5")
        self.assertEqual((first["prompt"], second["prompt"]), ('say "hi"', "ba\ufffdd"))
        self.assertEqual(first["finish"], "length")
        one, = self.json("generate", *self.common, "--prompt", 'say "hi"', "--max-tokens", "5")
        self.assertEqual(one, first)

    def test_tokenize(self):
        text = 'a"b\\c<|31|>'
        out, err = self.pfx("tokenize", "--model", 'mo"del', "--json", stdin=json.dumps(text) + "\n")
        self.assertEqual(out, "97 34 98 92 99 31\n")
        self.assertEqual(self.json("tokenize", "--model", 'mo"del', "--decode", stdin=out), [text])


class Tokenize(command.CommandTest):
    def setUp(self):
        super().setUp()
        self.model = f"{GOLDEN}/tokenizers/small_llama3.json"

    def tokenize(self, text, *more):
        return self.pfx("tokenize", "--model", self.model, *more, stdin=text)[0]

    def test_there_and_back(self):
        lines = "Hello, wörld!\n\n  two  spaces\n日本語 🙂\nno end of line"
        self.assertEqual(self.tokenize(self.tokenize(lines), "--decode"), lines + "\n")

    def test_json_strings(self):
        for text in ("tab\there", "line\nbreak", "quote\" back\\slash", "é 日本 🙂", "", "\x01"):
            ids = self.tokenize(json.dumps(text) + "\n", "--json")
            self.assertEqual(ids, self.tokenize(json.dumps(text, ensure_ascii=False) + "\r\n", "--json"))
            self.assertEqual(json.loads(self.tokenize(ids, "--json", "--decode")), text)
        self.assertEqual(self.tokenize('"\\ud83d x"\n', "--json"), self.tokenize('"\ufffd x"\n', "--json"))

    def test_lines_that_are_none(self):
        for line in ("hello", '"open', '"a" b', '"\\x"', '"\\u12', '"\\u-001"', '"\\ud83d\\u', '"\\', '"a\tb"'):
            with self.subTest(line):
                out, err = self.pfx("tokenize", "--model", self.model, "--json", stdin=f'"ok"\n{line}\n', code=3)
                self.assertEqual(err, "pfx: standard input: line 2: no JSON string\n")
                self.assertEqual(out.count("\n"), 1)

    def test_ids_that_are_none(self):
        for number in (100000, 99999999999999999999999):
            out, err = self.pfx("tokenize", "--model", self.model, "--decode", stdin=f"5\n{number}\n", code=3)
            self.assertRegex(err, r"^pfx: standard input: line 2: token id \d+ is not in the tokenizer's vocabulary of \d+\n$")


if __name__ == "__main__":
    command.main()
