# SPDX-License-Identifier: MIT
"""Whole training steps of a prefix against PyTorch, on models of random weights: same weights, same rows, same prefix.

    steps.py --bench build/gpu-bundle/bin/step_bench [--csv F] [--from POINT] [--budget-s S] [--device cuda|cpu] [--tiny]

pfx       step_bench, as `pfx train` takes its steps
pfx-plain the same without recorded steps
peft      PEFT as its users run it: masked attention over concatenated keys, all logits, AdamW, clipping
hand      what PyTorch can do by hand: keys concatenated, lower-right causal flash attention, the loss in chunks whose
          logits become their gradient in place, the whole step (AdamW included) in one CUDA graph
All in bfloat16 (tiny: float32). Loss and prefix gradient of the first step are held against pfx's before anything is
timed; who differs is recorded as wrong and not timed. The floor is the step's operations at the rate of a large product,
measured first."""
import argparse
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()
warnings.filterwarnings("ignore")

MODELS = {
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16, n_positions=4096, resid_pdrop=0, embd_pdrop=0,
                              attn_pdrop=0),
    "qwen2.5-0.5b": Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                                num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=4096,
                                rope_theta=1e6, tie_word_embeddings=True),
    "llama-3-8b": LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                              num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
                              rope_theta=5e5, tie_word_embeddings=False),
}
TINY = {
    "gpt2-medium": GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0, embd_pdrop=0,
                              attn_pdrop=0),
    "qwen2.5-0.5b": Qwen2Config(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64),
    "llama-3-8b": LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                              num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                              tie_word_embeddings=False),
}
# (model, tokens of a row, rows, prefix), the most telling first; a model's points stand together, its weights are made once.
POINTS = [("gpt2-medium", 1024, 16, 100), ("gpt2-medium", 1024, 1, 100), ("gpt2-medium", 256, 1, 100),
          ("gpt2-medium", 64, 64, 100), ("llama-3-8b", 1024, 16, 100), ("llama-3-8b", 1024, 1, 100),
          ("llama-3-8b", 256, 1, 100), ("qwen2.5-0.5b", 1024, 16, 100), ("qwen2.5-0.5b", 1024, 1, 100),
          ("qwen2.5-0.5b", 256, 1, 100)]
MOST_SAMPLES, LEAST_SAMPLES, SECONDS, CHUNK = 100, 5, 3, 2048


class Wrong(Exception):
    pass


# ---- what every contender gets ----

def sizes(config):
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return config.num_hidden_layers, heads, kv_heads, config.hidden_size // heads


def make_model(name, folder, args):
    """Random weights, in a folder that both engines open."""
    torch.manual_seed(1)
    config = (TINY if args.tiny else MODELS)[name]
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=args.dtype)
    model.save_pretrained(folder, max_shard_size="5GB")
    return model.eval().requires_grad_(False)


def make_case(folder, model, length, rows, prefix):
    """Rows of ids and a prefix in PEFT's format below `folder`; the ids and the prefix."""
    layers, _, kv_heads, dim = sizes(model.config)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, model.config.vocab_size, (rows, length), generator=generator)
    with (folder / "rows.jsonl").open("w") as file:
        for row in ids.tolist():
            file.write(json.dumps({"ids": row, "labels": row}) + "\n")
    values = torch.randn(prefix, layers * 2 * kv_heads * dim, generator=generator) * 0.5
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    save_file({"prompt_embeddings": values}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({
        "peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": prefix, "token_dim": kv_heads * dim,
        "num_layers": layers, "num_attention_heads": kv_heads, "num_transformer_submodules": 1,
        "prefix_projection": False, "encoder_hidden_size": kv_heads * dim, "inference_mode": False,
        "base_model_name_or_path": None}))
    return ids, values


def samples(step, args):
    """Median and number of the seconds of step(), which waits for itself."""
    taken, begin = [], time.perf_counter()
    while len(taken) < LEAST_SAMPLES or (len(taken) < MOST_SAMPLES and time.perf_counter() - begin < SECONDS):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
        if args.tiny and len(taken) == 2:
            break
    return sorted(taken)[len(taken) // 2], len(taken)


def synchronize(args):
    if args.device == "cuda":
        torch.cuda.synchronize()


# ---- the contenders: (loss, gradient [N, ...] of the first step on the CPU in float32, step()) ----

def run_pfx(folder, rows, prefix, args, *more):
    gradient = folder / "gradient.bin"
    command = [args.bench, folder / "model", folder / "rows.jsonl", "--device", args.device, "--rows", str(rows),
               "--prefix", str(prefix), "--init", f"adapter:{folder / 'adapter'}", "--gradient", gradient, "--json",
               "--dtype", "f32" if args.dtype == torch.float32 else "bf16", *more]
    if args.tiny:
        command += ["--steps", "2", "--seconds", "0"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise Wrong(done.stderr.strip()[-200:] or f"exit code {done.returncode}")
    result = json.loads(done.stdout)
    return result, torch.frombuffer(bytearray(gradient.read_bytes()), dtype=torch.float32).view(prefix, -1)


def peft_contender(model, ids, values, args):
    from peft import PrefixTuningConfig, get_peft_model
    model.set_attn_implementation("sdpa")
    wrapped = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=values.shape[0]))
    weight = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(values)
    weight.requires_grad_()
    wrapped.train()
    optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.0)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    def forward_backward():
        loss = wrapped(**batch).loss
        loss.backward()
        return loss

    def step():
        forward_backward()
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        synchronize(args)

    loss = forward_backward().item()
    gradient = weight.grad.float().cpu().clone()
    optimizer.zero_grad()
    return loss, gradient, step


class HeadLoss(torch.autograd.Function):
    """Sum of the losses over a frozen head in chunks of rows; their logits become the gradient of the rows."""

    @staticmethod
    def forward(ctx, rows, weight, targets):
        total, gradient = rows.new_zeros((), dtype=torch.float32), torch.empty_like(rows)
        for at in range(0, rows.shape[0], CHUNK):
            piece, wanted = rows[at : at + CHUNK], targets[at : at + CHUNK, None]
            logits = (piece @ weight.T).float()
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, wanted)).sum()
            logits.sub_(norm).exp_().scatter_add_(1, wanted, torch.full_like(norm, -1.0))
            gradient[at : at + CHUNK] = logits.to(rows.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, scale):
        return ctx.saved_tensors[0] * scale.to(ctx.saved_tensors[0].dtype), None, None


class ByHand:
    prefix = None  # [layers, 2, 1, kv_heads, N, dim] in the model's type

    @classmethod
    def attention(cls, module, query, key, value, attention_mask, scaling=None, **_):
        own = cls.prefix[module.layer_idx]
        rows, length, count = query.shape[0], query.shape[2], own.shape[3]
        key = torch.cat([own[0].expand(rows, -1, -1, -1), key], 2)
        value = torch.cat([own[1].expand(rows, -1, -1, -1), value], 2)
        grouped = query.shape[1] != key.shape[1]
        if query.is_cuda:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                out = F.scaled_dot_product_attention(query, key, value, causal_lower_right(length, count + length),
                                                     scale=scaling, enable_gqa=grouped)
        else:
            mask = torch.ones(length, count + length, dtype=torch.bool).tril(count)
            out = F.scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("prefix_by_hand", ByHand.attention)


def hand_contender(model, ids, values, args):
    layers, _, kv_heads, dim = sizes(model.config)
    count = values.shape[0]
    master = values.to(args.device).clone().requires_grad_()
    optimizer = torch.optim.AdamW([master], lr=1e-3, weight_decay=0.0, fused=True, capturable=args.device == "cuda")
    model.set_attn_implementation("prefix_by_hand")
    positions = torch.arange(count, count + ids.shape[1], device=args.device)[None]
    targets = ids[:, 1:].reshape(-1)

    def forward_backward():
        # PEFT's layout: [N, layer and kind, head, dim]
        ByHand.prefix = master.view(count, layers, 2, 1, kv_heads, dim).permute(1, 2, 3, 4, 0, 5).to(args.dtype)
        hidden = model.base_model(input_ids=ids, position_ids=positions.expand(ids.shape[0], -1),
                                  use_cache=False).last_hidden_state
        rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        loss = HeadLoss.apply(rows, model.lm_head.weight, targets) / targets.numel()
        loss.backward()
        return loss

    def eager():
        forward_backward()
        torch.nn.utils.clip_grad_norm_([master], 1.0, foreach=True)
        optimizer.step()
        master.grad.zero_()

    loss = forward_backward().item()
    gradient = master.grad.float().cpu().clone()
    master.grad.zero_()
    step = eager
    if args.device == "cuda":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                eager()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            eager()
        step = graph.replay

    def timed():
        step()
        synchronize(args)

    return loss, gradient, timed


# ---- points ----

def product_rate(args):
    """Operations a second of a large product."""
    n = 256 if args.tiny else 8192
    a, b = (torch.randn(n, n, device=args.device, dtype=args.dtype) for _ in range(2))

    def product():
        a @ b
        synchronize(args)

    product()
    return 2 * n**3 / samples(product, args)[0]


def operations(model, length, prefix):
    """Per token, frozen weights, by the formulas of docs/performance.md."""
    c, (layers, heads, kv_heads, dim) = model.config, sizes(model.config)
    width, own, shared = c.hidden_size, heads * dim, kv_heads * dim
    inner = getattr(c, "intermediate_size", None) or 4 * width
    linear = layers * (width * (2 * own + 2 * shared) + (2 if c.model_type == "gpt2" else 3) * width * inner)
    pairs = (length + 1) / 2 + prefix
    return (4 * linear - 2 * width * (own + 2 * shared) + 4 * width * c.vocab_size * (length - 1) / length
            + 4 * own * pairs * layers + 10 * own * pairs * (layers - 1) + 8 * own * prefix)


def compare(loss, gradient, result, reference, args):
    """Relative differences from pfx: of the loss, and L2 of the gradient."""
    of_loss = abs(loss - result["loss"]) / abs(result["loss"])
    of_gradient = ((gradient - reference).norm() / reference.norm()).item()
    exact = args.dtype == torch.float32
    # bfloat16: two roundings of the same sums; 2e-2 and 1e-1 tell a mistake from them on every shape here
    if not (of_loss < (1e-5 if exact else 2e-2) and of_gradient < (1e-4 if exact else 1e-1)):
        raise Wrong(f"loss off by {of_loss:.1e}, gradient by {of_gradient:.1e}")
    return of_loss, of_gradient


def run_point(folder, model, point, args):
    """(contender, ms or None, samples, loss difference, gradient difference, words) of each contender."""
    _, length, rows, prefix = point
    ids, values = make_case(folder, model, length, rows, prefix)
    try:
        result, reference = run_pfx(folder, rows, prefix, args)
        yield "pfx", result["ms"], result["steps"], 0.0, 0.0, ""
    except Wrong as why:
        yield "pfx", None, 0, math.nan, math.nan, str(why)
        return
    ids = ids.to(args.device)
    contenders = [("peft", peft_contender), ("hand", hand_contender)]
    if args.device == "cuda":
        plain, gradient = run_pfx(folder, rows, prefix, args, "--no-graph")
        yield "pfx-plain", plain["ms"], plain["steps"], *compare(plain["loss"], gradient, result, reference, args), ""
    for name, make in contenders:
        step = None
        try:
            loss, gradient, step = make(model, ids, values, args)
            differences = compare(loss, gradient, result, reference, args)
            for _ in range(1 if args.tiny else 3):
                step()
            seconds, count = samples(step, args)
            yield name, seconds * 1e3, count, *differences, ""
        except (Wrong, RuntimeError, NotImplementedError, TypeError) as why:
            yield name, None, 0, math.nan, math.nan, str(why).split("\n")[0][:120]
        finally:
            del step  # and all that it holds
            ByHand.prefix = None
            if args.device == "cuda":
                torch.cuda.empty_cache()


def shrink(point):
    model, length, rows, prefix = point
    return model, min(length, 12), min(rows, 3), min(prefix, 5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, type=Path)
    parser.add_argument("--csv")
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--budget-s", type=float, default=1e9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    args.dtype = torch.float32 if args.tiny else torch.bfloat16
    points = [p for p in POINTS if p[1] in (256, 64)] if args.tiny else POINTS
    begin, rate, summary = time.monotonic(), product_rate(args), []
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    out = csv.writer(open(args.csv, "a" if args.first else "w") if args.csv else open(os.devnull, "w"), lineterminator="\n")
    if not args.first:
        out.writerow(("point", "model", "length", "rows", "prefix", "contender", "median_ms", "samples", "tokens_per_s",
                      "percent_of_floor", "loss_difference", "gradient_difference", "refused", "product_tflops", "device", "torch"))
    made, model, failed, following = None, None, 0, None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number, point in enumerate(points):
            if number < args.first:
                continue
            if following is not None or time.monotonic() - begin > args.budget_s:
                following = number if following is None else following
                print(f"left out {number:3} {point[0]} T{point[1]} x{point[2]} N{point[3]}")
                continue
            if args.tiny:
                point = shrink(point)
            if made != point[0]:
                model = None
                shutil.rmtree(folder / "model", ignore_errors=True)
                model, made = make_model(point[0], folder / "model", args), point[0]
            tokens = point[1] * point[2]
            floor = operations(model, point[1], point[3]) * tokens / rate * 1e3
            line = f"{point[0]:14} {tokens:6} tokens N{point[3]:<4} floor {floor:8.2f} ms"
            for who, ms, count, loss, gradient, why in run_point(folder, model, point, args):
                failed += ms is None and who.startswith("pfx")
                print(f"{number:3} {point[0]:14} T{point[1]:<5} x{point[2]:<3} N{point[3]:<4} {who:10} "
                      + (f"{ms:9.2f} ms, loss {loss:.0e} gradient {gradient:.0e}" if ms else f"refused: {why}"), flush=True)
                row = (f"{ms:.4f}", count, f"{tokens / ms * 1e3:.0f}", f"{100 * floor / ms:.1f}") if ms else ("", 0, "", "")
                out.writerow((number, *point, who, *row, f"{loss:.2e}", f"{gradient:.2e}", why, f"{rate / 1e12:.1f}", name,
                              torch.__version__))
                line += f"  {who} {ms:.2f}" if ms else f"  {who} -"
            summary.append(line)
    if following is not None:
        print(f"next {following}")
    print("\n".join(summary), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
