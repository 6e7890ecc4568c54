# SPDX-License-Identifier: MIT
"""Every trainable part, exchanged with PEFT and transformers while both run: what `pfx train` writes they compute with, and
what PEFT trains pfx checks, measures and continues texts with. Part of peers_check.py."""
import json
import zlib

import make_golden
import peers_exchange as exchange
from golden_lib import torch
from make_parts_golden import CASES, peft_parts
from peft import IA3Config, LNTuningConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peers_exchange import PARTS, differences, family_rows, keep_worst, listed, loader, named_model, probe, same_text
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# What is trained: --tune -> PEFT's name of it.
WRITTEN = {"prefix:3": "PREFIX_TUNING", "prefix:3:reparam=8": "PREFIX_TUNING", "prefix:3:frozen=1": "CARTRIDGE",
           "prompt:3": "PROMPT_TUNING", "lora:3": "LORA", "lora:2:alpha=3:rslora=1:dropout=0.1:targets=all": "LORA",
           "ia3": "IA3", "ia3:targets=all": "IA3", "norm": "LN_TUNING"}
# GPT-2's feed-forward is in front of its last projection and its q, k and v one matrix: both have names of their own.
HYBRIDS = ("prefix:3+lora:2", "prompt:2+norm", "lora:2+ia3+norm", "prefix:2+prompt:2+lora:2", "prompt:2+top:1", "prefix:2+lora:2+bias",
           "top:1+norm+bias", "norm+bias")
DELTAS = ("bias", "top:1", "top:2", "full", "top:1+lora:2", "lora:2+bias")


def lacks(family, tune):
    """Mistral's classes have no place for a bias."""
    return "bias" in tune and CASES[family]["bias"] is None


def check_written(family):
    """PEFT loads every kind of part that pfx trained, in float64, and pfx's probe has its logits, loss and gradients."""
    def check(checks):
        path, rows = family_rows(checks, family)
        worst = {}
        for tune, peft_type in WRITTEN.items():
            out = checks.scratch / f"written-{family}-{tune.replace(':', '-').replace('=', '')}"
            exchange.train(checks, PARTS / family, path, out, tune, 0.05)
            config = json.loads((out / "adapter_config.json").read_text())
            assert config["peft_type"] == peft_type, (tune, config["peft_type"])
            reference = loader(peft_type)(PARTS / family, out, torch.float64)
            found = differences(probe(checks, PARTS / family, path, out), rows, *reference, tune)
            keep_worst(worst, found)
        out = checks.scratch / f"written-{family}-layers"
        exchange.train(checks, PARTS / family, path, out, "prefix:3:layers=1", 0.05)
        exchange.peft_refuses(out, PARTS / family)
        return f"{len(WRITTEN)} parts: " + listed(worst)
    return check


def trained_by_peft(family, model, name, config, rows, target):
    """Random values, three steps of AdamW on the rows, saved as PEFT saves."""
    torch.manual_seed(zlib.crc32(f"{family}/{name}".encode()))
    peft_model = get_peft_model(make_golden.load_model(model, torch.float32), config)
    trained = [value for value in peft_model.parameters() if value.requires_grad]
    with torch.no_grad():
        for value in trained:
            value += 0.2 * torch.randn_like(value)
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    for _ in range(3):
        peft_model.train()
        optimizer.zero_grad()

        def forward(row):
            logits = peft_model(input_ids=row, attention_mask=torch.ones_like(row)).logits
            return logits[:, logits.shape[1] - row.shape[1]:]

        make_golden.run_rows(forward, *rows)[1].backward()
        optimizer.step()
    peft_model.save_pretrained(target)


def check_read(family):
    """pfx takes what PEFT trained: check, probe, eval, and greedy text."""
    def check(checks):
        path, rows = family_rows(checks, family)
        model, worst, texts = named_model(checks, family), {}, 0
        prefix = dict(num_virtual_tokens=3, task_type="CAUSAL_LM")
        configs = peft_parts(CASES[family]) | {
            "prefix": PrefixTuningConfig(**prefix), "encoded": PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=8, **prefix)}
        for name, config in configs.items():
            target = checks.scratch / f"read-{family}-{name}"
            trained_by_peft(family, model, name, config, rows, target)
            said = checks.pfx("check", "--model", model, "--adapter", target)
            assert "fits" in said, said
            reference = loader(config.peft_type.value)(model, target, torch.float64)
            found = differences(probe(checks, model, path, target), rows, *reference, name)
            lines = checks.pfx("eval", "--model", model, "--data", path, "--adapter", target, "--device", "cpu", "--dtype", "f32",
                               "--threads", 1, "--json", "--quiet").splitlines()
            loss = make_golden.run_rows(reference[0], *rows)[1].item()
            found["eval"] = abs(json.loads(lines[-1])["loss"] / loss - 1)
            assert found["eval"] < exchange.LOSS, f"{name}: eval {found['eval']:.1e}"
            keep_worst(worst, found)
            texts += same_text(checks, model, target, rows, exchange.open_peft(model, target))
        return f"{len(configs)} parts, {texts} texts: " + listed(worst)
    return check


def check_hybrid(family):
    """Each part of a hybrid alone in PEFT, and all of them: deltas merged by pfx, LoRA, IA3 and norms by PEFT, the prefix or
    prompt in front of it."""
    def check(checks):
        path, rows = family_rows(checks, family)
        model, worst, alone, texts, done = named_model(checks, family), {}, 0, 0, 0
        for number, tune in enumerate(HYBRIDS):
            out = checks.scratch / f"hybrid-{family}-{number}"
            if lacks(family, tune):
                exchange.refused(checks, model, path, tune, out)
                continue
            exchange.train(checks, model, path, out, tune, 0.05)
            kinds = [part.split(":")[0] for part in tune.split("+")]
            for kind in kinds:
                if (out / kind / "adapter_config.json").exists():
                    peft_type = json.loads((out / kind / "adapter_config.json").read_text())["peft_type"]
                    reference = loader(peft_type)(PARTS / family, out / kind, torch.float64)
                    differences(probe(checks, PARTS / family, path, out / kind), rows, *reference, f"{tune}: {kind}")
                    alone += 1
            reference = exchange.open_hybrid(checks, family, out, kinds)
            keep_worst(worst, differences(probe(checks, model, path, out), rows, *reference, tune))
            texts += same_text(checks, model, out, rows, reference[0])
            done += 1
        return f"{done} of {len(HYBRIDS)} hybrids, {alone} parts alone, {texts} texts: " + listed(worst)
    return check


def check_delta(family):
    """transformers opens the folder that pfx merge makes of a trained delta; of `full` the run itself is one."""
    def check(checks):
        path, rows = family_rows(checks, family)
        model, worst, texts, done = named_model(checks, family), {}, 0, 0
        for number, tune in enumerate(DELTAS):
            out, merged = (checks.scratch / f"{what}-{family}-{number}" for what in ("delta", "merged"))
            if lacks(family, tune):
                exchange.refused(checks, model, path, tune, out)
                continue
            exchange.train(checks, model, path, out, tune, 0.01)
            checks.pfx("merge", "--model", model, "--adapter", out, "--out", merged, "--quiet")
            done += 1
            for folder in (merged, out) if tune == "full" else (merged,):
                delta = None if tune == "full" else out / "pfx_delta.safetensors"
                forward, trained = exchange.open_folder(folder, delta if "+" not in tune else None)
                found = differences(probe(checks, model, path, out), rows, forward, {} if "+" in tune else trained, tune)
                keep_worst(worst, found)
                texts += same_text(checks, model, out, rows, make_golden.load_model(folder, torch.float64))
                exchange.same_ids(folder, model)
        return f"{done} of {len(DELTAS)} parts, {texts} texts: " + listed(worst)
    return check


def unusual(family):
    """What PEFT offers beside the usual: its own choice of modules, single ones, other starts; (what pfx says where it refuses)."""
    gpt2, causal = family == "gpt2", dict(task_type="CAUSAL_LM")
    one = ["h.1.attn.c_attn"] if gpt2 else ["layers.1.self_attn.k_proj", "layers.0.mlp.up_proj"]
    up, down = (["c_fc"], ["mlp.c_proj"]) if gpt2 else (["up_proj"], ["down_proj"])
    out_in = dict(fan_in_fan_out=gpt2)
    elsewhere = "IA3 in front of a projection is for the last one of the feed-forward alone"
    return {"usual modules": (LoraConfig(r=3, **causal), None), "usual scales": (IA3Config(**causal), None),
            "usual norms": (LNTuningConfig(**causal), None), "every module": (LoraConfig(r=3, target_modules="all-linear", **causal), None),
            "single modules": (LoraConfig(r=2, lora_alpha=2, target_modules=one, init_lora_weights="gaussian", **out_in, **causal), None),
            "a single scale": (IA3Config(target_modules=one[:1], feedforward_modules=[], **out_in, **causal), None),
            "a single norm": (LNTuningConfig(target_modules=["h.1.ln_2" if gpt2 else "layers.1.input_layernorm"], **causal), None),
            "sampled rows": (PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="SAMPLE_VOCAB", **causal), None),
            "biases beside": (LoraConfig(r=3, bias="lora_only", **causal), 'field "bias" is set'),
            "a head": (LoraConfig(r=3, target_modules=["lm_head"], **causal), "lm_head.base_layer.weight"),
            "some layers": (LoraConfig(r=3, layers_to_transform=[1], **causal), 'field "layers_to_transform" is set'),
            "scales in front": (IA3Config(target_modules=up, feedforward_modules=up, **out_in, **causal), elsewhere),
            "scales behind": (IA3Config(target_modules=down, feedforward_modules=[], **out_in, **causal), elsewhere)}


def check_unusual(family):
    """pfx computes the same, or says in `pfx check` already what it cannot do."""
    def check(checks):
        path, rows = family_rows(checks, family)
        model, worst, refused = named_model(checks, family), {}, 0
        for name, (config, message) in unusual(family).items():
            target = checks.scratch / f"unusual-{family}-{name.replace(' ', '-')}"
            trained_by_peft(family, model, name, config, rows, target)
            if message:
                refused += exchange.check_refuses(checks, model, target, message)
                continue
            checks.pfx("check", "--model", model, "--adapter", target)
            reference = loader(config.peft_type.value)(model, target, torch.float64)
            keep_worst(worst, differences(probe(checks, model, path, target), rows, *reference, name))
        return f"{len(unusual(family)) - refused} parts, {refused} refused: " + listed(worst)
    return check


def check_smollm(checks):
    """Every weight of SmolLM2 trained for two steps: transformers opens the run, with the base's ids and pfx's logits."""
    if not checks.smollm.exists():
        raise checks.Skipped(f"no {checks.smollm}")
    run, base, rows = (checks.scratch / f"smollm-{name}" for name in ("full", "base.safetensors", "rows.jsonl"))
    rows.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in (
        ("The capital of France is", " Paris."), ("def f(x):", "\n    return x * 42"))))
    model = ("--model", checks.smollm, "--data", rows, "--device", "cpu", "--threads", 2, "--quiet")
    checks.pfx("train", *model, "--tune", "full", "--lr", 1e-4, "--steps", 2, "--warmup", 0, "--batch-rows", 2, "--save-every", -1,
               "--dtype", "f32", "--out", run)
    checks.pfx("probe", *model, "--out", base)
    logits = load_file(base)["logits"]
    mine = probe(checks, checks.smollm, rows, run)
    assert exchange.distance(logits, mine["logits"]) > 0.01, "training changed nothing"
    opened, info = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    spans = list(zip(mine["offsets"][:-1], mine["offsets"][1:]))
    with torch.no_grad():
        theirs = torch.cat([opened(input_ids=mine["ids"][a:b].long()[None]).logits[0] for a, b in spans])
    error = exchange.distance(mine["logits"], theirs)
    tokenizer = AutoTokenizer.from_pretrained(run)
    ids = tokenizer("The capital of France is").input_ids
    assert ids == [504, 3575, 282, 4649, 314] == mine["ids"][:5].tolist(), ids
    assert error <= exchange.LOGITS, f"logits {error:.1e}"
    return f"logits {error:.1e}"


CHECKS = {f"PEFT computes the same with every part trained on {family}": check_written(family) for family in CASES}
CHECKS |= {f"pfx computes the same with every part that PEFT trained on {family}": check_read(family) for family in CASES}
CHECKS |= {f"PEFT computes the same with hybrids trained on {family}": check_hybrid(family) for family in CASES}
CHECKS |= {f"transformers opens weights trained on {family}": check_delta(family) for family in CASES}
CHECKS |= {f"pfx computes the same with unusual adapters of PEFT's for {family}": check_unusual(family) for family in ("gpt2", "llama")}
CHECKS["transformers opens SmolLM2 with every weight trained"] = check_smollm
