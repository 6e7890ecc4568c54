# SPDX-License-Identifier: MIT
"""What parts_peers.py compares with: PEFT and transformers in float64 with an adapter, and pfx beside them."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import make_golden
import make_parts_golden as golden_parts
from golden_lib import make_float64, read_safetensors, relative_l2, torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
PARTS = ROOT / "tests/golden/parts"
LOGITS, LOSS, GRADIENT = 2e-5, 2e-6, 1e-5  # of the largest; relative; relative L2
END, NEW_TOKENS, PROMPT = 2, 8, 5
sys.path.append(str(ROOT / "tests/cli"))
import command  # noqa: E402


def family_rows(checks, family):
    """A family's golden rows as a data file, and as arrays."""
    tensors, _ = read_safetensors(PARTS / family / "golden_lora.safetensors")
    path = checks.scratch / f"parts-{family}.jsonl"
    rows = tuple(tensors[key] for key in ("ids", "labels", "offsets"))
    command.write_rows(path, [{"ids": rows[0][a:b].tolist(), "labels": rows[1][a:b].tolist()} for a, b in zip(rows[2][:-1], rows[2][1:])])
    return path, rows


def named_model(checks, family):
    """The family's model with a tokenizer whose text says its ids, made once."""
    model = checks.scratch / f"named-{family}"
    if not model.exists():
        shutil.copytree(PARTS / family, model, ignore=lambda _, names: [n for n in names if "golden" in n or "." not in n or "generation" in n])
        config = json.loads((model / "config.json").read_text())
        command.add_tokenizer(str(model), config["vocab_size"])
    return model


def train(checks, model, rows, out, tune, rate):
    """Three steps, every part at the same high rate."""
    parts = "+".join(f"{part}:lr={rate}" for part in tune.split("+"))
    checks.pfx("train", "--model", model, "--data", rows, "--out", out, "--tune", parts, "--steps", 3, "--warmup", 0, "--seed", 1,
               "--batch-rows", 2, "--device", "cpu", "--dtype", "f32", "--threads", 1, "--quiet")


def probe(checks, model, rows, adapter):
    out = checks.scratch / "exchange.probe.safetensors"
    checks.pfx("probe", "--model", model, "--adapter", adapter, "--data", rows, "--out", out, "--device", "cpu", "--threads", 1, "--quiet")
    return load_file(out)


def distance(ours, theirs):
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def loader(peft_type):
    """How PEFT is asked: (forward, trained tensors under the names of the adapter's file)."""
    tuner = peft_type in ("LORA", "IA3", "LN_TUNING")
    return golden_parts.load_tuner if tuner else golden_parts.load_prompt_like


def differences(mine, rows, forward, trained, what):
    """Largest differences of logits, loss and gradients (of the tensors that the reference names); an error where one is too
    large."""
    logits, loss = make_golden.run_rows(forward, *rows)
    if trained:
        loss.backward()
    logits = logits.detach()
    found = {"logits": distance(mine["logits"], logits),
             "loss": abs(float(mine["loss"][0]) / loss.item() - 1)}
    named = {key[5:]: value for key, value in mine.items() if key.startswith("grad.")}
    if trained:
        assert set(trained) <= set(named), f"{what}: pfx has no gradient of {sorted(set(trained) - set(named))}"
        pairs = []
        for key, value in trained.items():
            ours, theirs = named[key].double(), value.grad.double()
            frozen = ours.shape[0] - theirs.shape[0]  # CARTRIDGE: rows that are not trained come first
            assert not frozen or not ours[:frozen].any(), f"{what}: a frozen row has a gradient"
            pairs.append((ours[frozen:].reshape(theirs.shape).flatten(), theirs.flatten()))
        found["gradients"] = relative_l2(*(torch.cat(side) for side in zip(*pairs)))
    words = f"{what}: " + ", ".join(f"{key} {value:.1e}" for key, value in found.items())
    assert found["logits"] <= LOGITS and found["loss"] <= LOSS and found.get("gradients", 0) <= GRADIENT, words
    return found


def keep_worst(worst, found):
    for key, value in found.items():
        worst[key] = max(value, worst.get(key, 0))


def listed(worst):
    return ", ".join(f"{key} {value:.1e}" for key, value in worst.items())


def open_peft(model, adapter):
    """PEFT's model to generate with, in float64."""
    peft_model = PeftModel.from_pretrained(make_golden.load_model(model, torch.float64), adapter)
    if getattr(peft_model, "prompt_encoder", None):
        peft_model.prompt_encoder.double()
    golden_parts.double(peft_model.base_model, torch.float64)
    return peft_model.eval()


def open_hybrid(checks, family, run, kinds):
    """(forward, trained tensors that can be named) of all parts at once."""
    folder = PARTS / family
    if {"prefix", "prompt", "lora"} <= set(kinds):  # PEFT knows no two prompts: put together by hand
        return golden_parts.load_hybrid(folder, run, torch.float64)
    for kind in ("full", "top", "bias"):
        if kind in kinds:
            merged = checks.scratch / f"{run.name}-{kind}"
            checks.pfx("merge", "--model", folder, "--adapter", run / kind, "--out", merged, "--force", "--quiet")
            folder = merged
    model = make_golden.load_model(folder, torch.float64)
    for kind in ("lora", "ia3", "norm"):
        if kind in kinds:
            tuner = PeftModel.from_pretrained(model, run / kind)
            model = make_float64(tuner).merge_and_unload()
    make_float64(model)
    for kind in ("prefix", "prompt"):
        if kind in kinds:
            peft_model = PeftModel.from_pretrained(model, run / kind)
            encoder = peft_model.prompt_encoder.requires_grad_().double()

            def forward(row):
                logits = peft_model(input_ids=row, attention_mask=torch.ones_like(row)).logits
                return logits[:, logits.shape[1] - row.shape[1]:]

            return forward, {f"{kind}.prompt_embeddings": encoder["default"].embedding.weight}
    return lambda row: model(input_ids=row).logits, {}


def open_folder(folder, delta=None):
    """(forward, trained tensors) of a model folder; `delta`: the file that names these, all where there is none."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa", output_loading_info=True)
    assert not any(info.values()), info
    make_float64(model).requires_grad_()
    trained = dict(model.named_parameters())
    if delta:
        trained = {name: trained[name] for name in load_file(delta)}
    return lambda row: model(input_ids=row).logits, trained


def generated(model, ids, ends):
    """What transformers' generate adds, with its cache."""
    row = torch.tensor([ids])
    made = model.generate(input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends,
                          pad_token_id=END)[0].tolist()
    return made[len(ids):] if made[:len(ids)] == ids else made  # behind a prompt PEFT returns the new tokens alone


def stepped(forward, ids, ends):
    """The likeliest token, one after the other, each from the whole row."""
    made = []
    while len(made) < NEW_TOKENS and not set(made) & set(ends):
        made.append(int(forward(torch.tensor([ids + made]))[0, -1].argmax()))
    return made


def same_text(checks, model, adapter, rows, reference):
    """Greedy texts of pfx are those of the reference, a model or a function of rows; returns how many."""
    starts = [rows[0][a:min(b, a + PROMPT)].tolist() for a, b in zip(rows[2][:-1], rows[2][1:])]
    prompts = checks.scratch / "prompts.jsonl"
    command.write_rows(prompts, [{"prompt": command.ids_text(ids)} for ids in starts])
    out = checks.pfx("generate", "--model", model, "--adapter", adapter, "--prompts", prompts, "--max-tokens", NEW_TOKENS, "--device", "cpu",
                     "--dtype", "f32", "--threads", 1, "--json", "--quiet")
    ours = [json.loads(line)["text"] for line in out.splitlines()]
    assert len(ours) == len(starts)
    end = json.loads((model / "config.json").read_text()).get("eos_token_id")
    ends = [END] if end is None else [END, end]
    for ids, text in zip(starts, ours):
        with torch.no_grad():
            more = (generated if hasattr(reference, "generate") else stepped)(reference, ids, ends)
        more = more[:next((i for i, token in enumerate(more) if token in ends), None)]
        assert text == command.ids_text(more), f"{adapter.name}: {ids} goes on with {text!r}, not {command.ids_text(more)!r}"
    return len(starts)


def same_ids(folder, model):
    """The tokenizer of a written folder is the base's."""
    text = command.ids_text(range(3, 40))
    ours, theirs = (AutoTokenizer.from_pretrained(path)(text).input_ids for path in (folder, model))
    assert ours == theirs == list(range(3, 40)), (ours, theirs)


def refused(checks, model, rows, tune, out):
    """A bias that transformers' class cannot hold is refused by name, and nothing is written."""
    done = subprocess.run([checks.binary, "train", "--model", model, "--data", rows, "--out", out, "--tune", tune, "--steps", "1", "--quiet"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and "bias" in done.stderr and not out.exists(), (done.returncode, done.stderr)


def check_refuses(checks, model, adapter, message):
    done = subprocess.run([checks.binary, "check", "--model", model, "--adapter", adapter], capture_output=True, text=True)
    assert done.returncode in (3, 4) and message in done.stderr, (adapter.name, done.returncode, done.stderr)
    return 1


def peft_refuses(adapter, model):
    """A prefix on some layers is nothing that PEFT could compute: it must not load it as if it were."""
    try:
        PeftModel.from_pretrained(make_golden.load_model(model, torch.float32), adapter)
    except (KeyError, ValueError, TypeError) as problem:
        assert "PFX_PREFIX_LAYERS" in str(problem), problem
        return
    raise AssertionError("PEFT loads PFX_PREFIX_LAYERS")
