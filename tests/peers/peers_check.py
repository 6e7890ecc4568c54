# SPDX-License-Identifier: MIT
"""pfx against the libraries that others use, through the command as a user runs it.

    peers_check.py PFX_BINARY [--only WORD] [--smollm FILE.gguf]

Prints a line for each check; exit code 1 when one failed. Checks that need the model of `make demo` are skipped, and
counted as skipped, where it is absent.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GOLDEN = ROOT / "tests/golden"
sys.path[:0] = [str(GOLDEN), str(ROOT / "bench/peers")]
import e2e_rows  # noqa: E402
import folder_checks  # noqa: E402
import make_golden  # noqa: E402
import parts_peers  # noqa: E402
import seeing_peers  # noqa: E402
from golden_lib import check_pins, make_float64, read_safetensors, relative_l2, torch  # noqa: E402
from make_text_golden import measure  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

check_pins(["sacrebleu", "rouge_score", "tensorboard"])
LOGITS, LOSS, GRADIENT = 2e-5, 2e-6, 1e-5  # of the largest; relative; relative L2


class Skipped(Exception):
    pass


class Checks:
    """Where to run and what to run."""
    Skipped = Skipped

    golden = GOLDEN

    def __init__(self, binary, smollm, scratch):
        self.binary, self.smollm, self.scratch = Path(binary).resolve(), smollm, Path(scratch)

    def pfx(self, *args):
        """Standard output of a command that must succeed."""
        command = [str(self.binary), *(str(arg) for arg in args)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"exit {done.returncode} of {' '.join(command)}: {done.stderr.strip()[-600:]}"
        return done.stdout

    def pfx_lines(self, *args, lines):
        """What a command prints for lines on its standard input."""
        command = [str(self.binary), *(str(arg) for arg in args)]
        text = "".join(f"{line}\n" for line in lines).encode()
        return subprocess.run(command, input=text, stdout=subprocess.PIPE, check=True).stdout.decode().splitlines()

    def train(self, model, rows, out, *more):
        self.pfx("train", "--model", model, "--data", rows, "--out", out, "--device", "cpu", "--dtype", "f32", "--threads", 2,
                 "--seed", 1, "--batch-rows", 2, "--lr", 0.05, "--quiet", *more)

    def golden_rows(self, case):
        """The rows of a golden case as a data file."""
        tensors, _ = read_safetensors(GOLDEN / case / "golden.safetensors")
        path = self.scratch / f"{case}.jsonl"
        with path.open("w") as file:
            for begin, end in zip(tensors["offsets"][:-1], tensors["offsets"][1:]):
                row = {key: [int(i) for i in tensors[key][begin:end]] for key in ("ids", "labels")}
                file.write(json.dumps(row) + "\n")
        return path, tuple(tensors[key] for key in ("ids", "labels", "offsets"))


def same_logits(checks, case, adapter, path, rows, reference=None):
    """PEFT in float64 with an adapter that pfx wrote, and `pfx probe` with it."""
    probe = checks.scratch / f"{adapter.name}.probe.safetensors"
    checks.pfx("probe", "--model", GOLDEN / case, "--adapter", adapter, "--data", path, "--out", probe, "--device", "cpu",
               "--threads", 2, "--quiet")
    mine = load_file(probe)
    model = reference or make_float64(make_golden.load_model(GOLDEN / case, torch.float64))
    peft_model = make_golden.load_peft(model, adapter)
    peft_model.prompt_encoder.double()
    logits, loss = make_golden.run_rows(
        lambda row: peft_model(input_ids=row, attention_mask=torch.ones_like(row)).logits, *rows)
    loss.backward()
    logits, gradient = logits.detach(), peft_model.prompt_encoder["default"].embedding.weight.grad
    assert mine["ids"].tolist() == rows[0].tolist() and mine["offsets"].tolist() == rows[2].tolist()
    error = float((mine["logits"].double() - logits).abs().max() / logits.abs().max())
    loss_error = abs(float(mine["loss"][0]) - loss.item()) / loss.item()
    gradient_error = relative_l2(mine["grad.prompt_embeddings"], gradient)
    words = f"logits {error:.1e}, loss {loss_error:.1e}, gradient {gradient_error:.1e}"
    assert error <= LOGITS and loss_error <= LOSS and gradient_error <= GRADIENT, words
    return words


def check_trained(case, *options):
    """An adapter that pfx trained computes the same in PEFT."""
    def check(checks):
        path, rows = checks.golden_rows(case)
        adapter = checks.scratch / ("-".join([case, *(str(o).strip("-") for o in options)]))
        checks.train(GOLDEN / case, path, adapter, "--tune", "prefix:4", "--steps", 4, *options)
        return same_logits(checks, case, adapter, path, rows)
    return check


def check_bytes(checks):
    """Without fingerprint the files are those that safetensors and PEFT themselves write."""
    path, _ = checks.golden_rows("qwen3")
    adapter, again = checks.scratch / "bytes", checks.scratch / "bytes_again"
    checks.train(GOLDEN / "qwen3", path, adapter, "--tune", "prefix:5", "--steps", 2, "--no-fingerprint")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(tensors, checks.scratch / "plain.safetensors", metadata={"format": "pt"})
    mine = (adapter / "adapter_model.safetensors").read_bytes()
    assert mine == (checks.scratch / "plain.safetensors").read_bytes(), "safetensors writes other bytes"
    config = json.loads((adapter / "adapter_config.json").read_text())
    model = make_golden.load_model(GOLDEN / "qwen3", torch.float32)
    PeftModel.from_pretrained(model, adapter).save_pretrained(again)
    assert mine == (again / "adapter_model.safetensors").read_bytes(), "PEFT writes another adapter_model.safetensors"
    ours, theirs = ((f / "adapter_config.json").read_bytes() for f in (adapter, again))
    assert ours == theirs, f"PEFT writes another adapter_config.json: {ours} {theirs}"
    return f"{len(mine)} bytes, base model {config['base_model_name_or_path']!r}"


def check_fingerprint(checks):
    """With fingerprint only the header grows, and PEFT does not mind."""
    path, _ = checks.golden_rows("qwen3")
    for name, more in (("marked", ()), ("unmarked", ("--no-fingerprint",))):
        checks.train(GOLDEN / "qwen3", path, checks.scratch / name, "--tune", "prefix:5", "--steps", 2, *more)
    (marked, notes), (plain, none) = (read_safetensors(checks.scratch / name / "adapter_model.safetensors")
                                      for name in ("marked", "unmarked"))
    assert (marked["prompt_embeddings"] == plain["prompt_embeddings"]).all()
    assert none == {"format": "pt"} and notes["format"] == "pt" and "pfx.base" in notes and "pfx.arch" in notes, notes
    model = make_golden.load_model(GOLDEN / "qwen3", torch.float32)
    PeftModel.from_pretrained(model, checks.scratch / "marked")
    return f"{len(notes) - 1} pfx keys"


def check_sizes(checks):
    """The sizes of two adapters that PEFT published for Llama-3.2-3B, with a thin model of the same 28 layers and 8 x 128."""
    folder = checks.scratch / "thin"
    LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=28, head_dim=128,
                                 num_attention_heads=8, num_key_value_heads=8)).save_pretrained(folder)
    rows = checks.scratch / "thin.jsonl"
    rows.write_text(json.dumps({"ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}) + "\n")
    for prefix, size in ((50, 11468928), (200, 45875328)):
        out = checks.scratch / f"thin{prefix}"
        checks.train(folder, rows, out, "--tune", f"prefix:{prefix}", "--steps", 1, "--no-fingerprint")
        got = (out / "adapter_model.safetensors").stat().st_size
        assert got == size, f"[{prefix}, 57344] has {got} bytes, not {size}"
    return "11,468,928 and 45,875,328 bytes"


def check_eval(checks):
    """Loss and perplexity of `pfx eval`, frozen and with an adapter of PEFT's, against the golden float64 loss."""
    path, _ = checks.golden_rows("llama_tied")
    _, golden = read_safetensors(GOLDEN / "llama_tied/golden.safetensors")
    lines = checks.pfx("eval", "--model", GOLDEN / "llama_tied", "--data", path, "--adapter", GOLDEN / "llama_tied/adapter",
                       "--device", "cpu", "--dtype", "f32", "--threads", 2, "--json", "--quiet").splitlines()
    frozen, adapted = (json.loads(line) for line in lines)
    assert frozen["adapter"] is None
    for got, want in ((frozen["loss"], golden["loss"]), (adapted["loss"], golden["adapter.loss"])):
        assert abs(got / float(want) - 1) < LOSS, f"loss {got}, not {want}"
    assert abs(frozen["perplexity"] / math.exp(float(golden["loss"])) - 1) < 1e-4
    return f"loss {adapted['loss']}"


def check_metrics(checks):
    """What `pfx eval --generate` prints, against sacrebleu and rouge-score on the texts that it kept."""
    if not checks.smollm.exists():
        raise Skipped(f"no {checks.smollm}")
    data, texts = checks.scratch / "e2e.txt", checks.scratch / "predictions.jsonl"
    real = Path(os.environ.get("PFX_SHARED_DIR") or ROOT.parent / "shared") / "data/e2e/test.txt"
    rows = e2e_rows.read(real, 200) if real.exists() else e2e_rows.generate(60, seed=3)
    data.write_text("".join(f"{source.strip()}||{target} \n" for source, target in rows), encoding="utf-8")
    line = checks.pfx("eval", "--model", checks.smollm, "--data", data, "--generate", "--max-tokens", 24, "--predictions",
                      texts, "--device", "cpu", "--dtype", "f32", "--threads", 2, "--json", "--quiet").splitlines()[0]
    printed = json.loads(line, parse_float=str)
    items = [json.loads(row) for row in texts.read_text(encoding="utf-8").splitlines()]
    meanings = {}
    for source, target in rows:
        meanings.setdefault(source.strip(), []).append(target)
    assert [item["prompt"].strip() for item in items] == list(meanings), "items are not the meanings in order"
    assert [item["references"] for item in items] == list(meanings.values()), "references differ"
    wanted, words = measure(items), []
    for key in ("bleu", "chrf", "rouge_l", "exact_match"):
        text = str(printed[key])
        digits = len(text.partition(".")[2])
        assert abs(float(text) - wanted[key]) <= 0.5 * 10.0**-digits + 1e-9, f"{key} {text}, not {wanted[key]}"
        words.append(f"{key} {text}")
    return f"{len(items)} items of {real if real.exists() else 'generated rows'}: " + ", ".join(words)


def check_again(script):
    """A golden script with --check."""
    def check(checks):
        done = subprocess.run([sys.executable, GOLDEN / script, "--check"], capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-600:]
        skips = [line for line in done.stdout.splitlines() if "skipped" in line]
        return "the committed files again" + "".join(f"; {line}" for line in skips)
    return check


def check_gpu_peers(checks):
    """The contenders of ops_bench, on the CPU with tiny shapes: no GPU's time goes to a slip of the pen."""
    script = Path(__file__).parents[2] / "bench/peers/attention.py"
    out = subprocess.run([sys.executable, script, "--tiny", "--device", "cpu"], capture_output=True, text=True)
    lines = out.stdout.splitlines()
    refused = {line.split()[4] for line in lines if " refused " in line}
    if out.returncode or len(lines) != 36 or refused != {"cudnn", "flex"} or "wrong by" in out.stdout:
        raise AssertionError(f"{out.stdout}{out.stderr}"[-800:])
    return f"{len(lines)} measurements and refusals"


CHECKS = {f"PEFT computes the same with a prefix trained on {case}": check_trained(case)
          for case in ("gpt2", "llama_tied", "llama3_new", "llama_bf16", "mistral", "qwen2", "qwen3")}
CHECKS |= {"PEFT computes the same with a prefix trained through an encoder": check_trained("llama_tied", "--reparam", 24),
           "bytes without fingerprint": check_bytes, "fingerprint": check_fingerprint, "published sizes": check_sizes,
           "loss of eval": check_eval, "BLEU, chrF, ROUGE-L, exact match": check_metrics}


def check_gpu_steps(checks):
    """Whole steps of pfx, PEFT and hand-written PyTorch on tiny models: steps.py holds loss and gradient together."""
    root = Path(__file__).parents[2]
    bench = Path(checks.binary).parent / "bench/step_bench"
    if not bench.exists():
        raise Skipped(f"no {bench}")
    out = subprocess.run([sys.executable, root / "bench/peers/steps.py", "--bench", bench, "--tiny", "--device", "cpu"],
                         capture_output=True, text=True)
    lines = out.stdout.splitlines()
    if out.returncode or len(lines) != 12 or "refused" in out.stdout:
        raise AssertionError(f"{out.stdout}{out.stderr}"[-800:])
    return f"{len(lines)} measurements"


CHECKS |= folder_checks.CHECKS | parts_peers.CHECKS
CHECKS["PyTorch's attention runs for gpu_check.sh"] = check_gpu_peers
CHECKS["steps of PEFT, PyTorch by hand and pfx agree for gpu_check.sh"] = check_gpu_steps
CHECKS |= seeing_peers.CHECKS
CHECKS |= {script: check_again(script) for script in (
    "make_golden.py", "make_parts_golden.py", "make_gguf_golden.py", "make_text_golden.py", "make_smollm2_golden.py",
    "make_adamw_golden.py", "tokenizers/make_tokenizer_golden.py")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("binary")
    parser.add_argument("--only", default="", help="checks whose name holds this word")
    parser.add_argument("--smollm", type=Path, default=cache / "pfx/SmolLM2-135M-Instruct.Q4_1.gguf")
    args = parser.parse_args()
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    with tempfile.TemporaryDirectory() as scratch:
        checks = Checks(args.binary, args.smollm, scratch)
        for name, check in CHECKS.items():
            if args.only not in name:
                continue
            try:
                result, words = "passed", check(checks)
            except Skipped as reason:
                result, words = "skipped", str(reason)
            except Exception as problem:  # one failure must not hide the others
                result, words = "failed", f"{type(problem).__name__}: {problem}"
            counts[result] += 1
            print(f"{result}: {name}: {words}", flush=True)
    print(", ".join(f"{count} {result}" for result, count in counts.items()))
    return 1 if counts["failed"] or not counts["passed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
