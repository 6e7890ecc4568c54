# SPDX-License-Identifier: MIT
"""Model folders that `pfx merge` writes, opened by transformers: the same logits and the same ids. Part of peers_check.py."""
import importlib.util
import json
import os
from pathlib import Path

import make_golden
from golden_lib import make_float64, np, read_safetensors, rng, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"
SHARED = Path(os.environ.get("PFX_SHARED_DIR") or ROOT.parent / "shared")
LOGITS = 2e-5  # of the largest
VOCABULARIES = ("gpt-2", "llama-spm", "starcoder")
# tokenizer.json -> its digests, what a GGUF file calls its split rule
SPLITS = {GOLDEN / "tokenizers/small_llama3.json": ("small_llama3", "llama-bpe"),
          SHARED / "tokenizers/qwen3/tokenizer.json": ("qwen3", "qwen2"),
          SHARED / "tokenizers/gpt-neox/20B_tokenizer.json": ("gpt-neox", "gpt-neox")}


def check_full(case):
    """What a run of all weights leaves is a model for transformers: its logits with the run's own rows."""
    def check(checks):
        model, out = GOLDEN / f"gguf/{case}.gguf", checks.scratch / f"full-{case}"
        path, rows = checks.golden_rows(case)
        checks.train(model, path, out, "--tune", "full", "--steps", 3, "--lr", 1e-3)
        opened, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert not any(info.values()), info
        return same_as_probe(checks, model, out, path, float64_logits(out, rows))
    return check


def same_as_probe(checks, model, run, path, theirs):
    """`pfx probe` with the run as an adapter of its base, and with it as a model."""
    worst = 0.0
    for how in (("--model", model, "--adapter", run), ("--model", run)):
        probe = checks.scratch / "full.safetensors"
        checks.pfx("probe", *how, "--data", path, "--out", probe, "--device", "cpu", "--threads", 2, "--quiet")
        worst = max(worst, distance(load_file(probe)["logits"], theirs))
    assert worst <= LOGITS, f"logits {worst:.1e}"
    return f"logits {worst:.1e}"


def check_full_smollm(checks):
    """The same on a real model that was quantised: its folder has bfloat16 weights."""
    if not checks.smollm.exists():
        raise checks.Skipped(f"no {checks.smollm}")
    rows, out = checks.scratch / "two.jsonl", checks.scratch / "full-smollm"
    rows.write_text("".join(json.dumps({"prompt": f"{word}:", "completion": f" {kind}"}) + "\n"
                            for word, kind in (("cat", "animal"), ("oak", "tree"))))
    checks.train(checks.smollm, rows, out, "--tune", "full", "--steps", 2, "--save-every", -1)
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), AutoTokenizer.from_pretrained(out)
    rows = [tokenizer(f"{text}<|im_end|>").input_ids for text in ("cat: animal", "oak: tree")]
    with torch.no_grad():
        theirs = torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in rows])
    path = checks.scratch / "two_ids.jsonl"
    path.write_text("".join(json.dumps({"ids": row, "labels": row}) + "\n" for row in rows))
    return same_as_probe(checks, checks.smollm, out, path, theirs)


def golden_tokenizers():
    """tests/golden/tokenizers/make_tokenizer_golden.py as a module: its texts and digests."""
    spec = importlib.util.spec_from_file_location("make_tokenizer_golden", GOLDEN / "tokenizers/make_tokenizer_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def distance(ours, theirs):
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def float64_logits(folder, rows):
    """transformers' logits of rows in float64, norms and rotary embedding included."""
    model = make_float64(make_golden.load_model(folder, torch.float64))
    with torch.no_grad():
        return make_golden.run_rows(lambda row: model(input_ids=row).logits, *rows)[0]


def written(checks, model, *more):
    """The folder that `pfx merge` makes of a model."""
    out = checks.scratch / f"folder-{len(list(checks.scratch.iterdir()))}"
    checks.pfx("merge", "--model", model, "--out", out, "--quiet", *more)
    return out


def check_model(case, gguf):
    """transformers opens the folder and computes the golden logits, which are those of the model it was made of."""
    def check(checks):
        folder = written(checks, GOLDEN / f"gguf/{case}.gguf" if gguf else GOLDEN / case)
        _, rows = checks.golden_rows(case)
        golden, _ = read_safetensors(GOLDEN / case / "golden.safetensors")
        opened, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        says = json.loads((GOLDEN / case / "config.json").read_text())
        assert str(opened.dtype) == "torch." + (says.get("dtype") or says["torch_dtype"]), opened.dtype
        error = distance(float64_logits(folder, rows), torch.from_numpy(golden["logits"].copy()))
        assert error <= LOGITS, f"logits {error:.1e}"
        return f"logits {error:.1e}"
    return check


def check_merged(family):
    """transformers computes with the merged folder what it and PEFT computed with the adapter beside the base."""
    def check(checks):
        worst, folder = 0.0, GOLDEN / "parts" / family
        parts = [part for part in ("lora", "lora_all", "ia3", "norm", "top", "bias") if (folder / part).exists()]
        for part in parts:
            golden, _ = read_safetensors(folder / f"golden_{part}.safetensors")
            merged = written(checks, folder, "--adapter", folder / part)
            _, info = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
            assert not any(info.values()), (part, info)
            error = distance(float64_logits(merged, tuple(golden[key] for key in ("ids", "labels", "offsets"))),
                             torch.from_numpy(golden["adapter.logits"].copy()))
            assert error <= LOGITS, f"{part}: logits {error:.1e}"
            worst = max(worst, error)
        return f"{', '.join(parts)}: logits {worst:.1e}"
    return check


def same_tokenizer(digests, folder, pfx_model, checks):
    """Ids and texts of the golden strings (20,000, as digests), through AutoTokenizer too, and what stands in front."""
    golden = golden_tokenizers()
    texts = golden.generated(golden.SEED, golden.COUNT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert golden.digests(tokenizer.backend_tokenizer, texts) == (GOLDEN / f"tokenizers/{digests}.digests").read_text()
    some = [text for text in texts[:3000] if "\n" not in text and "\r" not in text]
    ours = checks.pfx_lines("tokenize", "--model", pfx_model, lines=some)
    theirs = tokenizer(some, add_special_tokens=False).input_ids
    assert [[int(i) for i in line.split()] for line in ours] == theirs
    says = json.loads(checks.pfx("inspect", pfx_model, "--json"))
    front = [says["begin_token"]] if says["rows_begin_with_begin_token"] else []
    assert tokenizer("a").input_ids == front + tokenizer("a", add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id == (says["end_token"] if says["end_token"] >= 0 else None)
    return f"{len(texts)} strings, {len(some)} of them through AutoTokenizer"


def from_vocabulary(writer, path):
    """The tokenizer of another GGUF file; the number of its tokens."""
    import gguf
    reader = gguf.GGUFReader(path)
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    return len(reader.fields["tokenizer.ggml.tokens"].contents())


def from_json(writer, path, split):
    """A byte-level tokenizer.json as llama.cpp's converter puts it; the number of its tokens."""
    data = json.loads(path.read_text())
    spelled = {i: text for text, i in data["model"]["vocab"].items()}
    kinds = dict.fromkeys(spelled, 1)
    for token in data["added_tokens"]:
        spelled[token["id"]], kinds[token["id"]] = token["content"], 3 if token["special"] else 4
    count = max(spelled) + 1
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([spelled.get(i, f"[PAD{i}]") for i in range(count)])
    writer.add_token_types([kinds.get(i, 5) for i in range(count)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]])
    return count


def tiny_gguf(path, add_tokenizer):
    """A GGUF file with a tokenizer and a model of one thin layer."""
    import gguf
    writer = gguf.GGUFWriter(path, "llama")
    tokens = add_tokenizer(writer)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_feed_forward_length(16)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd": (tokens, 16), "output_norm": (16,), "blk.0.attn_norm": (16,), "blk.0.ffn_norm": (16,)}
    shapes |= {f"blk.0.{part}": (16, 16) for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng(1, name).standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_vocabulary(source, digests, add_tokenizer):
    def check(checks):
        if not source.exists():
            raise checks.Skipped(f"no {source}")
        model = checks.scratch / f"{digests}.gguf"
        tiny_gguf(model, lambda writer: add_tokenizer(writer, source))
        return same_tokenizer(digests, written(checks, model), model, checks)
    return check


def check_smollm(checks):
    """The model of `make demo`: ids, chat, logits in float32, and in the type that a user gets."""
    if not checks.smollm.exists():
        raise checks.Skipped(f"no {checks.smollm}")
    folder, as_usual = written(checks, checks.smollm, "--out-dtype", "f32"), written(checks, checks.smollm)
    words = same_tokenizer("gguf_smollm", as_usual, checks.smollm, checks)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Say hello."}], tokenize=False, add_generation_prompt=True)
    assert chat == ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                    "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"), chat
    rows, probe = checks.scratch / "smollm.jsonl", checks.scratch / "smollm.safetensors"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("The capital of France is Paris, and 1999 was a year.",
                                                                           "def f(x):\n    return x * 42")))
    checks.pfx("probe", "--model", checks.smollm, "--data", rows, "--out", probe, "--device", "cpu", "--threads", 2, "--quiet")
    ours = load_file(probe)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32 and AutoModelForCausalLM.from_pretrained(as_usual).dtype == torch.bfloat16
    with torch.no_grad():
        theirs = torch.cat([model(input_ids=ours["ids"][a:b].long()[None]).logits[0]
                            for a, b in zip(ours["offsets"][:-1], ours["offsets"][1:])])
    error = distance(ours["logits"], theirs)
    assert error <= LOGITS, f"logits {error:.1e}"
    ids = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=2, do_sample=False)[0])
    assert text == "The capital of France is Paris.", text
    return f"{words}; logits {error:.1e}"


CHECKS = {f"transformers opens the folder made of {case}.gguf": check_model(case, True)
          for case in ("gpt2", "llama3_old", "llama_bf16", "llama_linear", "qwen2", "qwen3")}
CHECKS |= {f"transformers opens the folder made of {case}": check_model(case, False)
           for case in ("gpt2", "llama3_new", "llama_f16", "llama_tied", "mistral", "qwen2_window", "qwen3")}
CHECKS |= {f"transformers opens merged folders of {family}": check_merged(family)
           for family in ("gpt2", "llama", "mistral", "qwen2", "qwen3")}
CHECKS |= {f"transformers opens what a run of all weights of {case}.gguf leaves": check_full(case)
           for case in ("gpt2", "llama_linear", "qwen2", "qwen3")}
CHECKS |= {f"transformers reads the tokenizer made of {name}": check_vocabulary(
    SHARED / f"tokenizers/gguf-vocab/ggml-vocab-{name}.gguf", f"gguf_{name}", from_vocabulary) for name in VOCABULARIES}
CHECKS |= {f"transformers reads the tokenizer made of {digests} in a GGUF": check_vocabulary(
    path, digests, lambda writer, source, split=split: from_json(writer, source, split)) for path, (digests, split) in SPLITS.items()}
CHECKS["transformers opens the folder made of SmolLM2"] = check_smollm
CHECKS["transformers opens what a run of all weights of SmolLM2 leaves"] = check_full_smollm
