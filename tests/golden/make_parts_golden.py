# SPDX-License-Identifier: MIT
"""Makes adapters of every kind with PEFT and their golden results in float64 (see README.md, "Parts").

    make_parts_golden.py            writes parts/ beside this file
    make_parts_golden.py --check    makes it elsewhere and compares with the committed one
    make_parts_golden.py --only A,B the named families alone
"""
import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from golden_lib import HERE, make_float64, np, relative_l2, rng, split_float64, torch, write_safetensors
from make_golden import SEED, check, check_derivative, fill_weights, llama, load_model, make_rows, rope, run_rows
from peft import (CartridgeConfig, IA3Config, LNTuningConfig, LoraConfig, PeftModel, PrefixTuningConfig,
                  PromptEncoderConfig, PromptTuningConfig, get_peft_model)
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers import GPT2Config, MistralConfig, Qwen2Config, Qwen3Config

ROWS = (7, 12, 1, 10)
LLAMA_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA_NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]
ROPE = rope(10000.0)

# family -> config; what PEFT targets there; the biases that transformers can hold beyond those that exist.
CASES = {
    "gpt2": dict(config=lambda: GPT2Config(vocab_size=41, n_positions=48, n_embd=16, n_layer=2, n_head=2,
                                           bos_token_id=0, eos_token_id=0),
                 lora=["c_attn"], linear=["c_attn", "c_fc", "c_proj"], ia3=(["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
                 norms=["ln_1", "ln_2", "ln_f"], bias={}),
    "llama": dict(config=lambda: llama(vocab_size=44, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                                       num_attention_heads=3, num_key_value_heads=1, rope_parameters=ROPE),
                  lora=["q_proj", "v_proj"], linear=LLAMA_LINEAR, ia3=(["k_proj", "v_proj", "down_proj"], ["down_proj"]),
                  norms=LLAMA_NORMS, bias=dict(attention_bias=True, mlp_bias=True)),
    "mistral": dict(config=lambda: MistralConfig(vocab_size=40, hidden_size=16, intermediate_size=24, head_dim=16,
                                                 num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                                                 max_position_embeddings=128, sliding_window=40, rms_norm_eps=1e-5,
                                                 rope_parameters=ROPE),
                    lora=["q_proj", "v_proj"], linear=LLAMA_LINEAR,
                    ia3=(["k_proj", "v_proj", "down_proj"], ["down_proj"]), norms=LLAMA_NORMS, bias=None),
    "qwen2": dict(config=lambda: Qwen2Config(vocab_size=44, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
                                             num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True,
                                             max_position_embeddings=128, rms_norm_eps=1e-6, rope_parameters=ROPE),
                  lora=["q_proj", "v_proj"], linear=LLAMA_LINEAR, ia3=(["q_proj", "v_proj", "down_proj"], ["down_proj"]),
                  norms=LLAMA_NORMS, bias={}),
    "qwen3": dict(config=lambda: Qwen3Config(vocab_size=48, hidden_size=16, intermediate_size=24, head_dim=16,
                                             num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                                             tie_word_embeddings=True, max_position_embeddings=128,
                                             rope_parameters=ROPE),
                  lora=["q_proj", "v_proj"], linear=LLAMA_LINEAR, ia3=(["q_proj", "v_proj", "down_proj"], ["down_proj"]),
                  norms=LLAMA_NORMS + ["q_norm", "k_norm"], bias=dict(attention_bias=True)),
}


def peft_parts(spec):
    """Folder -> what PEFT makes there. prompt-like kinds first, then those that change modules."""
    causal = dict(task_type="CAUSAL_LM")
    out_in = dict(fan_in_fan_out="c_attn" in spec["linear"])
    targets, feed_forward = spec["ia3"]
    return {
        "prompt": PromptTuningConfig(num_virtual_tokens=3, **causal),
        "p_tuning": PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=10, **causal),
        "cartridge": CartridgeConfig(num_virtual_tokens=3, num_frozen_tokens=1, **causal),
        "lora": LoraConfig(r=3, lora_alpha=6, target_modules=spec["lora"], **out_in, **causal),
        "lora_all": LoraConfig(r=2, lora_alpha=3, use_rslora=True, lora_dropout=0.1, target_modules=spec["linear"],
                               **out_in, **causal),
        "ia3": IA3Config(target_modules=targets, feedforward_modules=feed_forward, **out_in, **causal),
        "norm": LNTuningConfig(target_modules=spec["norms"], **causal),
    }


def hybrid_parts(spec):
    causal = dict(task_type="CAUSAL_LM")
    return {"prefix": PrefixTuningConfig(num_virtual_tokens=3, **causal),
            "prompt": PromptTuningConfig(num_virtual_tokens=2, **causal),
            "lora": LoraConfig(r=2, lora_alpha=2, target_modules=spec["lora"],
                               fan_in_fan_out="c_attn" in spec["linear"], **causal)}


def save_part(case, folder, target, config):
    """An adapter with random values as PEFT writes it, less its model card. PEFT keeps module names in a Python set,
    whose order differs from run to run: they are sorted afterwards."""
    model = load_model(folder, torch.float32)
    model.name_or_path = f"pfx-golden/parts/{case}"
    peft_model = get_peft_model(model, config)
    prompt_like = hasattr(peft_model, "prompt_encoder") and len(peft_model.prompt_encoder) > 0
    values = peft_model.prompt_encoder["default"] if prompt_like else peft_model
    with torch.no_grad():
        for key, value in values.named_parameters():
            if not prompt_like and not value.requires_grad:
                continue
            noise = rng(SEED, f"{case}/{target.name}/{key}").standard_normal(tuple(value.shape))
            around_one = "ia3_l" in key or ("ln_tuning" in key and key.endswith("weight"))
            value.copy_(torch.from_numpy(1 + 0.3 * noise if around_one else (0.8 if prompt_like else 0.2) * noise))
    peft_model.save_pretrained(target)
    (target / "README.md").unlink()
    path = target / "adapter_config.json"
    fields = json.loads(path.read_text())
    for key in ("target_modules", "feedforward_modules"):
        if key in fields:
            fields[key] = sorted(fields[key])
    path.write_text(json.dumps(fields, indent=2, sort_keys=True))


def double(model, dtype):
    return make_float64(model) if dtype == torch.float64 else model.eval()


def load_prompt_like(folder, target, dtype):
    """(forward, trained tensors). Rows of a prompt stand before the real tokens in PEFT's logits."""
    model = PeftModel.from_pretrained(load_model(folder, dtype), target)
    encoder = model.prompt_encoder.requires_grad_()
    if dtype == torch.float64:
        encoder.double()
    double(model.base_model, dtype)

    def forward(row):
        logits = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        return logits[:, logits.shape[1] - row.shape[1] :].to(torch.promote_types(dtype, torch.float32))

    trained = getattr(encoder["default"], "trainable_embedding", None)  # CARTRIDGE: the rows that are not frozen
    return forward, {"prompt_embeddings": encoder["default"].embedding.weight if trained is None else trained}


def load_tuner(folder, target, dtype):
    model = PeftModel.from_pretrained(load_model(folder, dtype), target, is_trainable=True)
    double(model, dtype)
    trained = {name.replace(".default", ""): value for name, value in model.named_parameters() if value.requires_grad}
    return lambda row: model(input_ids=row).logits.to(torch.promote_types(dtype, torch.float32)), trained


def load_with_delta(folder, delta, dtype, settings=None):
    """The model itself with some of its tensors replaced; `delta` None: all of them are trained as they are."""
    config = AutoConfig.from_pretrained(folder)
    for key, value in (settings or {}).items():
        setattr(config, key, value)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.zero_()
    missing = model.load_state_dict(load_model(folder, torch.float32).state_dict(), strict=False)
    assert not missing.unexpected_keys and all(name.endswith("bias") for name in missing.missing_keys)
    trained = dict(model.named_parameters())
    if delta is not None:
        trained = {name: trained[name] for name in delta}
        with torch.no_grad():
            for name, value in delta.items():
                trained[name].copy_(torch.from_numpy(value))
    model.requires_grad_(False)
    model.to(dtype)
    for value in trained.values():
        value.requires_grad_()
    double(model, dtype)
    return lambda row: model(input_ids=row).logits.to(torch.promote_types(dtype, torch.float32)), trained


def prefix_cache(config, values, layers=None):
    """The rows [P, 2*L*kv] as transformers' cache."""
    count, heads = config.num_hidden_layers, getattr(config, "num_key_value_heads", config.num_attention_heads)
    blocks = values.view(values.shape[0], 2 * count, heads, -1).permute(1, 2, 0, 3)[:, None]
    return DynamicCache([(blocks[2 * i], blocks[2 * i + 1]) for i in range(count)])


def causal_mask(prefix, tokens):
    return torch.ones(tokens, prefix + tokens, dtype=torch.bool).tril(prefix)[None, None]


def load_hybrid(folder, target, dtype):
    """Prefix at positions 0..P-1, prompt rows behind it, then the real tokens; LoRA in all layers."""
    tuner = PeftModel.from_pretrained(load_model(folder, dtype), target / "lora", is_trainable=True)
    double(tuner, dtype)
    trained = {f"lora.{name.replace('.default', '')}": value for name, value in tuner.named_parameters()
               if value.requires_grad}
    masters = torch.promote_types(dtype, torch.float32)
    for part in ("prefix", "prompt"):
        values = torch.from_numpy(read_tensors(target / part / "adapter_model.safetensors")["prompt_embeddings"].copy())
        trained[f"{part}.prompt_embeddings"] = values.to(masters).requires_grad_()
    base = tuner.base_model.model

    def forward(row):
        prefix, prompt = (trained[f"{part}.prompt_embeddings"] for part in ("prefix", "prompt"))
        embeddings = torch.cat((prompt[None].to(dtype), base.get_input_embeddings()(row)), 1)
        first, tokens = prefix.shape[0], embeddings.shape[1]
        logits = base(inputs_embeds=embeddings, past_key_values=prefix_cache(base.config, prefix.to(dtype)),
                      position_ids=first + torch.arange(tokens)[None],
                      attention_mask=torch.ones(1, first + tokens, dtype=torch.long)).logits
        return logits[:, prompt.shape[0] :].to(masters)

    return forward, trained


def load_prefix_layers(folder, target, dtype):
    """A prefix on the last layer alone: the others see no prefix at all, though positions start behind it."""
    model = load_model(folder, dtype)
    double(model, dtype)
    masters = torch.promote_types(dtype, torch.float32)
    values = torch.from_numpy(read_tensors(target / "adapter_model.safetensors")["prompt_embeddings"].copy())
    values = values.to(masters).requires_grad_()
    prefix, layers = values.shape[0], model.config.num_hidden_layers

    def hide_prefix(module, args, kwargs):
        kwargs["attention_mask"] = kwargs["attention_mask"].clone()
        kwargs["attention_mask"][..., :prefix] = False
        return args, kwargs

    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    for block in blocks[: layers - 1]:
        attention = block.attn if hasattr(block, "attn") else block.self_attn
        attention.register_forward_pre_hook(hide_prefix, with_kwargs=True)

    def forward(row):
        tokens = row.shape[1]
        return model(input_ids=row, past_key_values=prefix_cache(model.config, values.to(dtype)),
                     position_ids=prefix + torch.arange(tokens)[None],
                     attention_mask=causal_mask(prefix, tokens)).logits.to(masters)

    return forward, {"prompt_embeddings": values}


def read_tensors(path):
    import safetensors.numpy
    return safetensors.numpy.load(path.read_bytes())


def write_results(case, name, folder, rows, load, frozen_rows=0):
    """golden_<name>.safetensors: logits, loss and every gradient in float64, and what torch loses in bfloat16."""
    forward, trained = load(torch.float64)
    logits, loss = run_rows(forward, *rows)
    loss.backward()
    for key, value in trained.items():
        assert value.grad is not None and value.dtype == torch.float64, f"{case}/{name}: {key}"
    for value in (sorted(trained.items())[0][1], sorted(trained.items())[-1][1]):
        with torch.no_grad():
            check_derivative(lambda: run_rows(forward, *rows)[1], value, f"{case}/{name}")
    with torch.no_grad():
        plain = load_model(folder, torch.float64)
        base, _ = run_rows(lambda row: make_float64(plain)(input_ids=row).logits, *rows)
    distance = relative_l2(logits.detach(), base)
    assert distance < 1e-12 if name == "full" else distance > 0.02, f"{case}/{name}: {distance}"
    grads = {key: value.grad for key, value in trained.items()}
    low, low_trained = load(torch.bfloat16)
    low_logits, low_loss = run_rows(low, *rows)
    low_loss.backward()
    ours = torch.cat([low_trained[key].grad.double().flatten() for key in sorted(grads)])
    want = torch.cat([grads[key].flatten() for key in sorted(grads)])
    metadata = {"adapter.loss": f"{loss.item():.17g}",
                "bf16.logits_error": f"{relative_l2(low_logits.detach(), logits.detach()):.2e}",
                "bf16.loss_error": f"{abs(low_loss.item() - loss.item()) / loss.item():.2e}",
                "bf16.grad_error": f"{relative_l2(ours, want):.2e}"}
    tensors = {"ids": rows[0], "labels": rows[1], "offsets": rows[2],
               "adapter.logits": logits.detach().float().numpy(), "adapter.loss": split_float64(loss.item())}
    if frozen_rows:
        rows_there = grads["prompt_embeddings"]
        grads["prompt_embeddings"] = torch.cat((torch.zeros(frozen_rows, rows_there.shape[1]), rows_there))
    tensors |= {f"grad.{key}": value.float().numpy() for key, value in grads.items()}
    write_safetensors(folder / f"golden_{name}.safetensors", tensors, metadata)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True))


def save_delta(case, target, part, tensors):
    """A folder of pfx's own: the tensors that replace the model's, under its names."""
    target.mkdir()
    write_safetensors(target / "pfx_delta.safetensors", tensors, {"format": "pt"})
    write_json(target / "pfx.json", {"base_model_name_or_path": f"pfx-golden/parts/{case}", "format": 1, "part": part,
                                     "revision": None, "task_type": "CAUSAL_LM"})


def make_deltas(case, spec, folder):
    """bias: every bias that transformers can hold, changed; top:1: the last layer and the final norm, changed."""
    config = AutoConfig.from_pretrained(folder)
    base = {name: value.detach().numpy() for name, value in load_model(folder, torch.float32).named_parameters()}
    bias = None
    if spec["bias"] is not None:
        for key, value in spec["bias"].items():
            setattr(config, key, value)
        holds = AutoModelForCausalLM.from_config(config).named_parameters()
        bias = {name: base.get(name, np.zeros(value.shape)) + 0.3 * rng(SEED, f"{case}/bias/{name}").standard_normal(
            value.shape) for name, value in holds if name.endswith(".bias")}
        bias = {name: value.astype(np.float32) for name, value in bias.items()}
    last = f".{config.num_hidden_layers - 1}."
    top = {name: (value + 0.2 * np.abs(value).mean() * rng(SEED, f"{case}/top/{name}").standard_normal(
        value.shape)).astype(np.float32) for name, value in base.items()
        if last in name or name.startswith(("model.norm.", "transformer.ln_f."))}
    return bias, top


def save_prefix_layers(case, folder, target):
    save_part(case, folder, target, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    path = target / "adapter_config.json"
    fields = json.loads(path.read_text())
    last = fields["num_layers"] - 1
    write_json(path, fields | {"layers": [last], "peft_type": "PFX_PREFIX_LAYERS"})
    values = read_tensors(target / "adapter_model.safetensors")["prompt_embeddings"].copy()
    values[:, : 2 * last * fields["token_dim"]] = 0
    write_safetensors(target / "adapter_model.safetensors", {"prompt_embeddings": values}, {"format": "pt"})


def save_hybrid(case, spec, folder, target):
    parts = []
    for name, config in hybrid_parts(spec).items():
        save_part(case, folder, target / name, config)
        parts.append({"files": {file: hashlib.sha256((target / name / file).read_bytes()).hexdigest()
                                for file in ("adapter_config.json", "adapter_model.safetensors")},
                      "folder": name, "part": name})
    write_json(target / "pfx.json", {"format": 1, "parts": parts})


def golden_case(case, spec, folder):
    model = AutoModelForCausalLM.from_config(spec["config"]())
    fill_weights(model, f"parts/{case}")
    model.save_pretrained(folder)
    rows = tuple(make_rows(f"parts/{case}", model.config.vocab_size, ROWS))
    for name, config in peft_parts(spec).items():
        save_part(case, folder, folder / name, config)
        load = load_prompt_like if hasattr(config, "num_virtual_tokens") else load_tuner
        write_results(case, name, folder, rows, lambda dtype: load(folder, folder / name, dtype),
                      getattr(config, "num_frozen_tokens", 0))
    save_prefix_layers(case, folder, folder / "prefix_layers")
    write_results(case, "prefix_layers", folder, rows,
                  lambda dtype: load_prefix_layers(folder, folder / "prefix_layers", dtype))
    save_hybrid(case, spec, folder, folder / "hybrid")
    write_results(case, "hybrid", folder, rows, lambda dtype: load_hybrid(folder, folder / "hybrid", dtype))
    bias, top = make_deltas(case, spec, folder)
    if bias is not None:
        save_delta(case, folder / "bias", "bias", bias)
        write_results(case, "bias", folder, rows, lambda dtype: load_with_delta(folder, bias, dtype, spec["bias"]))
    save_delta(case, folder / "top", "top:1", top)
    write_results(case, "top", folder, rows, lambda dtype: load_with_delta(folder, top, dtype))
    write_results(case, "full", folder, rows, lambda dtype: load_with_delta(folder, None, dtype))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default=",".join(CASES))
    args = parser.parse_args()
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        for case in args.only.split(","):
            folder = (Path(temporary) if args.check else HERE) / "parts" / case
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            golden_case(case, CASES[case], folder)
            if args.check:
                problems += check(folder, HERE / "parts" / case)
            else:
                print(case, sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()), "bytes", flush=True)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
