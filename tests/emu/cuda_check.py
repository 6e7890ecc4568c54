#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""--device cuda over the emulated device: training, resuming, evaluating and generating, against --device cpu; other
orders of threads, blocks and streams; devices and drivers that do not fit; every call of the runtime failing once."""
import json
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../cli"))
import command  # noqa: E402
from command import GOLDEN, add_tokenizer, copy_model, files, id_rows, metrics, read, write_rows  # noqa: E402

# Calls that fail: each of the first few dozen, later ones (a step is like the one before it) with growing distance; or
# all of them, which takes a quarter of an hour.
EVERY_CALL = os.environ.get("PFX_TEST_EVERY_CALL") == "1"
SMALL = ("--dtype", "f32", "--threads", "1", "--quiet")


def emulated(**settings):
    return dict(os.environ, **{f"PX_EMU_{name.upper()}": str(value) for name, value in settings.items()})


class Cuda(command.CommandTest):
    def setUp(self):
        super().setUp()
        os.environ["XDG_CACHE_HOME"] = os.path.abspath("cache")  # where chosen algorithms are kept
        copy_model("llama_tied")
        self.vocab = json.loads(read("model/config.json"))["vocab_size"]
        write_rows("rows.jsonl", id_rows(24, self.vocab))

    def train(self, *more, out="run", device="cuda", tune="prefix:2", **how):
        return self.pfx("train", "--model", "model", "--data", "rows.jsonl", "--device", device, *SMALL, "--out", out, "--tune",
                        *tune.split(), *more, **how)

    def widen_model(self):
        """22 MB of weights."""
        config = json.loads(read("model/config.json"))
        config["vocab_size"] = 50000
        command.write("model/config.json", json.dumps(config).encode())

        def widen(tensors):
            dtype, (rows, dim), data = tensors["model.embed_tokens.weight"]
            tensors["model.embed_tokens.weight"] = (dtype, [50000, dim], data * (50000 // rows) + data[:50000 % rows * dim * 4])
        command.change_weights("model", widen)

    def same_result(self, run, other):
        self.assertEqual(files(run), files(other))
        for name in files(run):
            if name not in ("run.json", "metrics.jsonl", "README.md"):  # these say how it was made
                self.assertEqual(read(f"{run}/{name}"), read(f"{other}/{name}"), name)
        self.assertEqual(metrics(run), metrics(other))

    def step_saved(self):
        return int(command.read_safetensors("run/checkpoint/pfx_state.safetensors")[1]["step"])


class Training(Cuda):
    def test_as_on_the_cpu(self):
        for tune in ("prefix:2", "prefix:2 --reparam 8", "prefix:3 --prefix-dropout 0.2 --accumulate 2"):
            with self.subTest(tune):
                self.train("--steps", "8", out="gpu", device="cuda:0", tune=tune)
                self.train("--steps", "8", out="cpu", device="cpu", tune=tune)
                for here, there in zip(metrics("gpu"), metrics("cpu"), strict=True):
                    self.assertAlmostEqual(here["loss"], there["loss"], delta=2e-5 * there["loss"])
                    self.assertAlmostEqual(here["grad_norm"], there["grad_norm"], delta=1e-3 * there["grad_norm"])
                for folder in ("gpu", "cpu"):
                    command.shutil.rmtree(folder)

    def test_stopped_and_resumed(self):
        self.train("--steps", "20", "--save-every", "5", out="whole")
        self.train("--steps", "20", "--save-every", "5", "--stop-after", "10", out="parts")
        self.pfx("train", "--resume", "parts", "--quiet")
        self.same_result("whole", "parts")
        losses = [line["loss"] for line in metrics("whole")]
        self.assertLess(sum(losses[-5:]), sum(losses[:5]))

    def test_any_order_of_threads(self):
        self.train("--steps", "4", out="plain")
        for seed in range(1, 11):
            with self.subTest(seed=seed):
                self.train("--steps", "4", out=f"run{seed}", env=emulated(seed=seed))
                self.same_result("plain", f"run{seed}")

    def test_the_engine_is_recorded(self):
        """`auto` is `fused` where nothing was measured; a resumed run repeats what the run has had."""
        self.train("--steps", "2", "--save-every", "1", out="auto")
        self.train("--steps", "2", "--save-every", "1", "--attention", "fused", out="fused")
        self.same_result("auto", "fused")
        for run in ("auto", "fused"):
            record = json.loads(read(f"{run}/run.json"))
            self.assertEqual((record["settings"]["attention"], record["environment"]["attention"]), (run, "fused"))
            self.assertEqual(command.read_safetensors(f"{run}/checkpoint/pfx_state.safetensors")[1]["attention"], "fused")
        self.train("--steps", "2", "--save-every", "1", "--stop-after", "1", out="other")
        record = json.loads(read("other/run.json"))
        record["environment"]["attention"] = "cudnn"
        command.write("other/run.json", json.dumps(record).encode())
        out, err = self.pfx("train", "--resume", "other", "--quiet", code=5)
        self.assertEqual(err, "pfx: warning: not bit-exact: cuDNN does not promise the same bits twice, and this run has its attention\n"
                              "pfx: --attention cudnn: an emulated device has no cuDNN; --attention fused needs nothing\n")
        record["environment"].pop("attention")
        record["settings"].pop("attention")  # as runs from before there was a choice
        command.write("other/run.json", json.dumps(record).encode())
        self.pfx("train", "--resume", "other", "--quiet")
        self.assertEqual(read("other/adapter_model.safetensors"), read("auto/adapter_model.safetensors"))

    def test_where_cublaslt_refuses(self):
        self.train("--steps", "3", out="usual")
        self.train("--steps", "3", out="refused", env=emulated(refuse=1))
        for here, there in zip(metrics("refused"), metrics("usual"), strict=True):
            self.assertAlmostEqual(here["loss"], there["loss"], delta=2e-5 * there["loss"])

    def test_gelu_with_the_product_or_after_it(self):
        command.shutil.rmtree("model")
        copy_model("gpt2")
        write_rows("rows.jsonl", id_rows(24, json.loads(read("model/config.json"))["vocab_size"]))
        self.train("--steps", "3", out="with")
        self.train("--steps", "3", out="after", env=emulated(no_gelu=1))
        self.assertNotEqual(*(read(f"{run}/adapter_model.safetensors") for run in ("with", "after")))  # two ways indeed
        for here, there in zip(metrics("with"), metrics("after"), strict=True):
            self.assertAlmostEqual(here["loss"], there["loss"], delta=2e-5 * there["loss"])

    def test_more_shared_memory(self):
        self.train("--steps", "3", out="usual")
        for size in (163, 227):
            self.train("--steps", "3", out=f"kb{size}", env=emulated(shared_kb=size))
            self.same_result("usual", f"kb{size}")


class Parts(Cuda):
    """Other parts than a prefix: as on the CPU, and resumed bit for bit."""

    def check(self, tune):
        self.train("--steps", "4", out="cpu", device="cpu", tune=tune)
        self.train("--steps", "4", "--save-every", "2", out="whole", tune=tune)
        self.train("--steps", "4", "--save-every", "2", "--stop-after", "2", out="halves", tune=tune)
        self.pfx("train", "--resume", "halves", "--quiet")
        for here, there in zip(metrics("whole"), metrics("cpu"), strict=True):
            self.assertAlmostEqual(here["loss"], there["loss"], delta=1e-4 * there["loss"])
        self.assertEqual(read("whole/checkpoint/pfx_state.safetensors"), read("halves/checkpoint/pfx_state.safetensors"))

    def test_all_together(self):
        """And replayed steps are launched ones."""
        tune = "prefix:2+prompt:2+lora:2:targets=all:dropout=0.2+ia3+norm+bias+top:1"
        self.check(tune)
        self.train("--steps", "4", "--save-every", "2", "--no-graph", out="plain", tune=tune)
        self.assertEqual(read("whole/checkpoint/pfx_state.safetensors"), read("plain/checkpoint/pfx_state.safetensors"))

    def test_all_weights(self):
        self.check("full:lr=1e-3")


class Steps(Cuda):
    def counted(self, *more, out):
        """Allocations, pauses, recordings and replays of a run."""
        _, err = self.train(*more, "--save-every", "-1", out=out, env=emulated(count=1))
        return [int(n) for n in re.fullmatch(r"emulator: (\d+) allocations, (\d+) pauses, (\d+) recordings, (\d+) replays\n", err).groups()]

    def test_replayed_or_one_by_one(self):
        """The same bits, whether operations are recorded and replayed or launched by themselves, also in another order of streams."""
        write_rows("rows.jsonl", id_rows(40, self.vocab))
        for n, tune in enumerate(("prefix:2 --batch-rows 4", "prefix:2 --reparam 8 --batch-rows 9",
                                  "prefix:3 --prefix-dropout 0.2 --accumulate 3 --batch-rows 3 --eval-every 4 --valid rows.jsonl")):
            with self.subTest(tune):
                self.train("--steps", "12", "--no-graph", out=f"plain{n}", tune=tune)
                self.train("--steps", "12", out=f"replayed{n}", tune=tune)
                self.same_result(f"plain{n}", f"replayed{n}")
                self.train("--steps", "12", out=f"shuffled{n}", tune=tune, env=emulated(seed=n + 1))
                self.same_result(f"plain{n}", f"shuffled{n}")

    def test_a_step_asks_for_nothing(self):
        """More steps: no more memory, no more waiting for the device, no more recordings."""
        all_rows = ("--batch-rows", "24", "--eval-every", "-1")
        short, long = (self.counted("--steps", str(steps), *all_rows, out=f"steps{steps}") for steps in (4, 9))
        self.assertEqual(long[:2], short[:2])
        self.assertEqual((short[2:], long[2:]), ([1, 3], [1, 8]))  # all but the first step
        self.assertEqual(self.counted("--steps", "4", *all_rows, "--no-graph", out="plain")[2:], [0, 0])


class Products(Cuda):
    """Which of cuBLASLt's algorithms a run takes: the stand-in's add in other orders, so other ones are other bits."""
    CACHE = "cache/pfx/products/emulated-device--cuBLASLt-13.0.0.txt"

    def setUp(self):
        super().setUp()
        write_rows("rows.jsonl", id_rows(6, self.vocab))  # all of them in every step: one shape

    def steps(self, out, fastest, *more):
        self.train("--steps", "4", "--save-every", "2", "--batch-rows", "6", *more, out=out, env=emulated(candidates=3, fastest=fastest))

    def differ(self, run, other):
        with self.assertRaises(AssertionError):
            self.same_result(run, other)

    def test_the_fastest_is_taken_and_remembered(self):
        self.train("--steps", "4", "--save-every", "2", "--batch-rows", "6", out="first_named")
        os.remove(self.CACHE)
        self.steps("third", 2)
        lines = read(self.CACHE).decode().splitlines()
        self.assertEqual(lines[0], "pfx products 1: emulated device, cuBLASLt 13.0.0")
        self.assertEqual({line.split()[8 + 6] for line in lines[1:]}, {"2"})
        self.steps("remembered", 1)
        self.same_result("third", "remembered")
        os.remove(self.CACHE)
        self.steps("second", 1)
        self.steps("no_graph", 0, "--no-graph")
        self.same_result("second", "no_graph")
        self.differ("second", "third")
        self.differ("second", "first_named")

    def test_a_resumed_run_repeats_the_choice(self):
        self.steps("whole", 2)
        self.steps("parts", 2, "--stop-after", "2")
        for other in ("absent", "different"):
            command.shutil.rmtree("cache", ignore_errors=True)  # what was told and not measured is not kept there
            if other == "different":
                self.steps("of_another_day", 1)
            command.shutil.copytree("parts", other)
            self.pfx("train", "--resume", other, "--quiet", env=emulated(candidates=3, fastest=0))
            self.same_result("whole", other)

    def test_evaluation_takes_what_training_found(self):
        """And measures nothing itself."""
        args = ("eval", "--model", "model", "--data", "rows.jsonl", "--device", "cuda", "--dtype", "f32", "--quiet")
        self.pfx(*args, env=emulated(candidates=4, fastest=2))
        self.assertFalse(os.path.exists("cache"))

    def test_damaged_or_unwritable(self):
        self.steps("good", 2)
        good = read(self.CACHE)
        for n, bad in enumerate((b"", b"\xff\0\n", good[:len(good) // 2], good.replace(b" 2 ", b" 4711 "))):
            with self.subTest(n):
                with open(self.CACHE, "wb") as f:
                    f.write(bad)
                self.steps(f"bad{n}", 2)
                self.same_result("good", f"bad{n}")
                if n < 3:
                    self.assertEqual(read(self.CACHE), good)
        command.shutil.rmtree("cache")
        command.write("cache", b"")
        self.steps("unwritable", 2)
        self.same_result("good", "unwritable")

    def test_measured_once(self):
        counts = []
        for steps in (4, 9):
            counts.append(self.train("--steps", str(steps), "--batch-rows", "6", "--save-every", "-1", out=f"steps{steps}",
                                     env=emulated(count=1, candidates=4))[1])
            command.shutil.rmtree("cache")
        self.assertEqual(*(re.match(r"emulator: \d+ allocations, ", text).group() for text in counts))

    def test_every_call_fails_once(self):
        self.train("--steps", "2", out="good", env=emulated(candidates=2))
        number, refused = 1, 0
        while True:
            command.shutil.rmtree("cache", ignore_errors=True)
            done = command.subprocess.run(
                [command.PFX, "train", "--model", "model", "--data", "rows.jsonl", "--device", "cuda", *SMALL, "--tune", "prefix:2", "--steps", "2",
                 "--out", f"run{number}"], env=emulated(lt_fail=number, candidates=2), capture_output=True, text=True, timeout=300)
            failed, happened, err = done.stderr.partition(f"emulator: call {number} of cuBLASLt fails\n")
            if not happened:
                self.assertEqual((done.returncode, failed), (0, ""))
                break
            if done.returncode:  # else one candidate less
                refused += 1
                self.assertIn(done.returncode, (1, 5), f"call {number}: {done.stderr}")
                self.assertRegex(failed + err, r"\Apfx: [^\n]+cuBLASLt[^\n]+\n\Z", f"call {number}")
            if os.path.exists(f"run{number}"):
                self.assertEqual([name for name in files(f"run{number}") if "tmp" in name], [])
            number += 1 if EVERY_CALL or number < 40 else 1 + number // 6
        self.assertGreater(refused, 30)


class Using(Cuda):
    def test_eval(self):
        args = ("eval", "--model", "model", "--data", "rows.jsonl", "--adapter", f"{GOLDEN}/llama_tied/adapter", "--force",
                "--dtype", "f32", "--json", "--quiet")
        gpu, cpu = ([json.loads(line) for line in self.pfx(*args, "--device", device)[0].splitlines()]
                    for device in ("cuda", "cpu"))
        self.assertEqual(len(gpu), 2)
        for here, there in zip(gpu, cpu, strict=True):
            self.assertAlmostEqual(here["loss"], there["loss"], delta=2e-6 * there["loss"])

    def test_inspect(self):
        """More virtual tokens than a head has dimensions: their shares come in several passes."""
        for dtype, tune, tolerance in (("f32", "prefix:3", 2e-6), ("f32", "prefix:27", 2e-6), ("bf16", "prefix:27", 2e-2)):
            with self.subTest(f"{dtype} {tune}"):
                self.train("--steps", "2", device="cpu", tune=tune, out=f"{dtype}-{tune}")
                seen = {device: json.loads(self.pfx("inspect", f"{dtype}-{tune}", "--model", "model", "--data", "rows.jsonl", "--device", device,
                                                    "--dtype", dtype, "--threads", "1", "--json", "--quiet")[0]) for device in ("cuda", "cpu")}
                for name in ("mass", "token_share", "token_peak"):
                    for here, there in zip(sum(seen["cuda"][name], []), sum(seen["cpu"][name], []), strict=True):
                        self.assertAlmostEqual(here, there, delta=tolerance)
                if dtype == "f32":
                    for here, there in zip(seen["cuda"]["token_summary"], seen["cpu"]["token_summary"], strict=True):
                        self.assertEqual(here["nearest"][0]["id"], there["nearest"][0]["id"])
                        self.assertAlmostEqual(here["usual_cosine"], there["usual_cosine"], delta=1e-5)

    def test_inspect_changes(self):
        """Weights are read back from the device to be measured: the very numbers of the CPU."""
        copy_model("parts/gpt2", "gpt2")
        for dtype in ("f32", "bf16"):
            for kind in ("lora_all", "top", "bias", "norm"):
                gpu, cpu = (json.loads(self.pfx("inspect", f"{GOLDEN}/parts/gpt2/{kind}", "--model", "gpt2", "--device", device, "--dtype", dtype,
                                                "--json", "--quiet")[0])["changes"] for device in ("cuda", "cpu"))
                self.assertGreater(len(gpu), 0)
                self.assertEqual(gpu, cpu)

    def test_too_large_for_an_emulator(self):
        self.widen_model()
        write_rows("rows.jsonl", [{"ids": [5, 6, 7], "labels": [-100, 6, 7]}])
        out, err = self.pfx("eval", "--model", "model", "--data", "rows.jsonl", "--device", "cuda", *SMALL[:4])
        self.assertRegex(err, r"emulated on the CPU, for tests with models below 5M parameters; this one has 5\.\dM: use --device cpu\n")

    def test_generate(self):
        add_tokenizer("model", self.vocab)
        write_rows("prompts.jsonl", [{"prompt": command.ids_text([40 + 3 * i, 50 + i, 60 + i][:1 + i % 3])} for i in range(9)])
        for more in ((), ("--temperature", "0.8", "--seed", "3"), ("--temperature", "0.9", "--top-k", "9", "--top-p", "0.9"),
                     ("--temperature", "1", "--min-p", "0.02"), ("--repetition-penalty", "1.3")):
            with self.subTest(more):
                args = ("generate", "--model", "model", "--prompts", "prompts.jsonl", "--max-tokens", "12", "--dtype", "f32",
                        "--adapter", f"{GOLDEN}/llama_tied/adapter", "--force", "--quiet", *more)
                gpu, cpu = (self.pfx(*args, "--device", device)[0] for device in ("cuda", "cpu"))
                self.assertEqual(gpu, cpu)
                self.assertEqual(self.pfx(*args, "--device", "cuda", env=emulated(seed=5))[0], gpu)


class Failing(Cuda):
    def refused_with(self, code, message, device="cuda", **settings):
        self.refused(["eval", "--model", "model", "--data", "rows.jsonl", "--device", device], code, message,
                     env=emulated(**settings))

    def test_devices(self):
        self.refused_with(5, "no NVIDIA driver is loaded on this machine; use --device cpu, or install one", driver=0)
        out, err = self.pfx("eval", "--model", "model", "--data", "rows.jsonl", "--device", "cuda", code=5,
                            env=emulated(driver=12040))
        self.assertRegex(err, r"^pfx: the NVIDIA driver speaks CUDA 12\.4 and this build needs 1\d\.\d: install a newer driver, or "
                              r"use --device cpu\n$")
        self.refused_with(5, "no CUDA device was found (no CUDA-capable device is detected); use --device cpu", devices=0)
        self.refused_with(5, "there is no device cuda:3: this machine has 1, from cuda:0 on", device="cuda:3")
        self.refused_with(5, "device cuda:0 has compute capability 7.5; 8.0 (Ampere) is the oldest that pfx runs on",
                          capability=75)
        self.refused_with(2, 'device "cuda:x" is not known: cpu, cuda, or cuda:N for the Nth GPU', device="cuda:x")

    def test_an_engine_that_is_missing(self):
        message = "--attention cudnn: an emulated device has no cuDNN; --attention fused needs nothing"
        self.refused(["train", "--model", "model", "--data", "rows.jsonl", "--device", "cuda", "--attention", "cudnn", "--out", "run"], 5, message)
        self.assertFalse(os.path.exists("run"))
        for name in ("eval", "generate"):
            self.refused([name, "--model", "model", "--device", "cuda", "--attention", "cudnn"] + (["--data", "rows.jsonl"] if name == "eval" else []), 5,
                         message)

    def test_a_library_too_old(self):
        """One that has none of the calls, loaded before the stand-in is looked for."""
        command.subprocess.run(["cc", "-shared", "-Wl,-soname,libcublasLt.so.13", "-x", "c", "/dev/null", "-o", "old.so"], check=True)
        self.refused(["eval", "--model", "model", "--data", "rows.jsonl", "--device", "cuda"], 5,
                     "libcublasLt has no cublasLtCreate: version 12 or later is needed",
                     env=dict(os.environ, LD_PRELOAD="./old.so", ASAN_OPTIONS="verify_asan_link_order=0"))

    def where_only(self, folder):
        """An environment in which libcublasLt opens from below `folder` alone, whatever this machine has and the program says."""
        command.write("gone.c", f'''
            #define _GNU_SOURCE
            #include <dlfcn.h>
            #include <string.h>
            void *dlopen(const char *name, int flags) {{
              void *(*real)(const char *, int) = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
              if (name && strstr(name, "cublasLt") && strncmp(name, "{folder}", {len(folder)}) != 0) return NULL;
              return real(name, flags);
            }}''')
        command.subprocess.run(["cc", "-shared", "-fPIC", "gone.c", "-o", "gone.so", "-ldl"], check=True)
        return dict(os.environ, LD_PRELOAD="./gone.so", ASAN_OPTIONS="verify_asan_link_order=0", VIRTUAL_ENV=folder)

    def test_no_library(self):
        args = ["eval", "--model", "model", "--data", "rows.jsonl", "--dtype", "f32", "--quiet", "--device"]
        here = os.path.realpath("packages")
        self.refused([*args, "cuda"], 5, "libcublasLt.so.13 was not found: neither where the loader looks (LD_LIBRARY_PATH), nor in "
                     "/usr/local/cuda/lib64, nor in NVIDIA's Python packages; install it, for example with pip install nvidia-cublas",
                     env=self.where_only(here))
        cpu, _ = self.pfx(*args, "cpu", env=self.where_only(here))
        self.assertEqual(cpu, self.pfx(*args, "cpu")[0])
        for place in ("cu13/lib", "cublas/lib"):  # where NVIDIA's packages have it
            lib = f"{here}/lib/python3.11/site-packages/nvidia/{place}"
            os.makedirs(lib)
            command.shutil.copy(os.path.join(os.path.dirname(command.PFX), "standin/libcublasLt.so.13"), lib)
            found, _ = self.pfx(*args, "cuda", env=self.where_only(here))
            self.assertEqual(found, self.pfx(*args, "cuda")[0])
            command.shutil.rmtree(here)

    def test_out_of_memory(self):
        self.widen_model()
        out, err = self.train("--steps", "2", code=5, env=emulated(memory_mb=20))
        self.assertRegex(err, r"^pfx: cuda backend: cannot allocate \d+\.\d MB \(\d+\.\d MB are in use here, \d+\.\d MB are free\)\n$")

    def test_more_tokens_than_the_device_has_room_for(self):
        """Known before the first step, from the plan; what is said to fit fits."""
        write_rows("long.jsonl", id_rows(400, self.vocab, longest=60))
        base = ("train", "--model", "model", "--device", "cuda", *SMALL, "--tune", "prefix:2", "--out", "run", "--data", "long.jsonl",
                "--steps", "2")
        room = emulated(memory_mb=48)
        out, err = self.pfx(*base, "--batch-rows", "400", code=5, env=room)
        match = re.fullmatch(r"pfx: the step needs \d+\.\d+ [MG]B for (\d+) tokens a batch and \d+\.\d MB are free, enough for (\d+): use "
                             r"fewer --batch-rows or --batch-tokens, shorter rows, or --accumulate\n", err)
        self.assertTrue(match, err)
        self.assertFalse(os.path.exists("run"))
        self.assertLess(int(match[2]), int(match[1]))
        self.pfx(*base, "--batch-tokens", str(int(match[2]) * 9 // 10), env=room)

    def test_a_device_that_breaks_while_training(self):
        """The message names the operation, and the checkpoint goes on to the bytes of a run that was never disturbed."""
        args = ("--steps", "8", "--save-every", "2", "--batch-rows", "3")
        self.train(*args, out="whole")
        for graph, work, blocking in (("--no-graph", 500, 0), ("--no-graph", 700, 1), (None, 600, 0)):
            with self.subTest(graph=graph, work=work):
                command.shutil.rmtree("run", ignore_errors=True)
                out, err = self.train(*args, *([graph] if graph else []), code=5,
                                      env=dict(emulated(break_at=work), CUDA_LAUNCH_BLOCKING=str(blocking)))
                match = re.fullmatch(r"pfx: cuda backend: (\w+) failed: an illegal memory access was encountered \(CUDA_LAUNCH_BLOCKING=1 and "
                                     r"--no-graph name the operation\); the state after step (\d+) is safe: go on with: pfx train "
                                     r"--resume run\n", err)
                self.assertTrue(match, err)
                if blocking:
                    self.assertRegex(match[1], "gemm|norm_fwd|norm_bwd|attn_fwd|attn_bwd|act_fwd|act_bwd|rope|add|loss|adamw|embed_fwd")
                self.assertEqual([name for name in files("run") if "tmp" in name], [])
                self.assertEqual(self.step_saved(), int(match[2]))
                self.pfx("train", "--resume", "run", "--quiet")
                self.same_result("whole", "run")

    def test_a_loss_that_is_not_finite(self):
        """Seen while later steps are under way: they changed nothing, and what is saved is a run that stopped before it."""
        rates = ("--lr", "1e38", "--clip", "-1", "--warmup", "12", "--save-every", "-1", "--steps", "50")
        for graph in ((), ("--no-graph",)):
            with self.subTest(graph):
                command.shutil.rmtree("run", ignore_errors=True)
                command.shutil.rmtree("stopped", ignore_errors=True)
                out, err = self.train(*rates, *graph, code=1)
                match = re.fullmatch(r"pfx: step (\d+): the (?:loss|gradient norm) is not finite; no tensor was changed. Try a smaller --lr, "
                                     r"more --warmup, or --dtype f32\n", err)
                self.assertTrue(match, err)
                self.assertGreater(int(match[1]), 1)
                self.assertEqual(self.step_saved(), int(match[1]) - 1)
                self.assertEqual(self.pfx("train", "--resume", "run", "--quiet", code=1)[1], err)
                self.train(*rates, *graph, "--stop-after", str(int(match[1]) - 1), out="stopped")
                for name in ("adapter_model.safetensors", "checkpoint/pfx_state.safetensors"):  # it knows products of the bad step too
                    self.assertEqual(*(command.read_safetensors(f"{run}/{name}")[0] for run in ("stopped", "run")))

    def test_every_call_fails_once(self):
        """No crash, no leak (the sanitizer looks), a message of one line, no half-written file."""
        self.train("--steps", "2", out="good")
        number = 1
        while True:
            done = command.subprocess.run(
                [command.PFX, "train", "--model", "model", "--data", "rows.jsonl", "--device", "cuda", *SMALL, "--tune", "prefix:2", "--steps", "2",
                 "--out", f"run{number}"], env=emulated(fail=number), capture_output=True, text=True, timeout=300)
            failed, _, err = done.stderr.partition(f"emulator: call {number} fails\n")
            if not _:
                self.assertEqual((done.returncode, failed), (0, ""))
                break
            if done.returncode == 0:  # what it asked for can be missed, a workspace say
                self.assertEqual(failed + err, "", f"call {number}")
                self.assertEqual(read(f"run{number}/adapter_model.safetensors"), read("good/adapter_model.safetensors"))
            else:
                self.assertIn(done.returncode, (1, 5), f"call {number}: {done.stderr}")
                self.assertRegex(failed + err, r"\Apfx: [^\n]+\n\Z", f"call {number}")
            if os.path.exists(f"run{number}"):
                self.assertEqual([name for name in files(f"run{number}") if "tmp" in name], [])
            number += 1 if EVERY_CALL or number < 60 else 1 + number // 20
        self.assertGreater(number, 200)


if __name__ == "__main__":
    command.main()
