# SPDX-License-Identifier: MIT
"""What PyTorch does for attention over a shared prefix, at ops_bench's shapes: the contenders of docs/performance.md.

    attention.py [--csv F] [--from POINT] [--budget-s S] [--device cuda|cpu] [--tiny]

masked    what PEFT gets: keys concatenated per row, a mask of [T, N + T], scaled_dot_product_attention
flash     keys concatenated per row, lower-right causal flash attention
flash-det the same, torch.use_deterministic_algorithms in backward
cudnn     keys concatenated per row, cuDNN's kernel by its lower-right mask
flex      FlexAttention with the same mask, compiled
Each is checked against float32 masked attention first (relative L2 below 2e-2); a contender that refuses a shape is
recorded as refused, never left out in silence. On the CPU, where the script is on trial, cuDNN and FlexAttention's
backward pass are refused."""
import argparse
import csv
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

MODELS = (("gpt2-medium", 16, 16, 64), ("llama-3-8b", 32, 8, 128), ("qwen2.5-0.5b", 14, 2, 64))
FIRST = [(m, 1024, 100) for m in MODELS] + [(m, 55, 100) for m in MODELS[:2]]
REST = [(m, t, n) for t in (1024, 55, 512, 2048) for n in (100, 10, 50, 200, 2048) for m in MODELS]


def mask_of(length, prefix, device):
    return torch.ones(length, prefix + length, dtype=torch.bool, device=device).tril(prefix)


def together(k, prefix):
    """The prefix expanded to every row and concatenated, as PEFT does: [rows, heads, N + T, dim]."""
    return torch.cat([prefix.expand(k.shape[0], -1, -1, -1), k], dim=2)


def contenders(length, prefix, device):
    mask = mask_of(length, prefix, device)
    lower_right = causal_lower_right(length, prefix + length)

    def with_backend(backend, bias):
        def run(q, k, v):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=q.shape[1] != k.shape[1])
        return run

    yield "masked", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask,
                                                                  enable_gqa=q.shape[1] != k.shape[1])
    yield "flash", with_backend(SDPBackend.FLASH_ATTENTION, lower_right)
    yield "flash-det", with_backend(SDPBackend.FLASH_ATTENTION, lower_right)
    yield "cudnn", with_backend(SDPBackend.CUDNN_ATTENTION, lower_right)
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    blocks = create_block_mask(lambda b, h, i, j: j <= i + prefix, None, None, length, prefix + length, device=device)
    compiled = torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention
    yield "flex", lambda q, k, v: compiled(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])


def seconds_of(run, device, tiny):
    """Median seconds and the number of samples: until 100 or 3 s, 5 at least."""
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    for _ in range(1 if tiny else 4):
        run()
    sync()
    taken, begin = [], time.perf_counter()
    while len(taken) < (1 if tiny else 5) or (not tiny and len(taken) < 100 and time.perf_counter() - begin < 3):
        t = time.perf_counter()
        run()
        sync()
        taken.append(time.perf_counter() - t)
    return statistics.median(taken), len(taken)


def point(model, length, prefix, args):
    """(contender, direction, microseconds or why not, samples) of a shape."""
    name, heads, kv_heads, dim = model
    tokens = 16384
    if args.tiny:
        length, prefix, tokens, heads, kv_heads = min(length, 12), min(prefix, 3), 24, heads // kv_heads * 2, 2
    rows = tokens // length
    make = lambda h, t: torch.randn(rows, h, t, dim, device=args.device, dtype=torch.bfloat16)
    q, k, v = (make(h, length).requires_grad_() for h in (heads, kv_heads, kv_heads))
    pk, pv = (torch.randn(1, kv_heads, prefix, dim, device=args.device, dtype=torch.bfloat16).requires_grad_()
              for _ in range(2))
    dout = make(heads, length)
    with torch.no_grad():
        few = [x[:1].float() for x in (q, together(k, pk), together(v, pv))]
        group = heads // kv_heads
        want = F.scaled_dot_product_attention(few[0], few[1].repeat_interleave(group, 1),
                                              few[2].repeat_interleave(group, 1),
                                              attn_mask=mask_of(length, prefix, args.device))
    for contender, run in contenders(length, prefix, args.device):
        torch.use_deterministic_algorithms(contender == "flash-det", warn_only=True)

        def forward(q, k, v, pk, pv):
            return run(q, together(k, pk), together(v, pv))

        inputs = q, k, v, pk, pv
        values = [x.detach() for x in inputs]
        try:
            error = (forward(*values)[:1].float() - want).norm() / want.norm()
            if not error < 2e-2:
                raise RuntimeError(f"wrong by {error:.1e}")
            yield contender, "forward", *seconds_of(lambda: forward(*values), args.device, args.tiny)
            both, count = seconds_of(lambda: torch.autograd.grad(forward(*inputs), inputs, dout), args.device, args.tiny)
            yield contender, "forward and backward", both, count
        except (RuntimeError, NotImplementedError, TypeError, AssertionError) as why:
            yield contender, "refused", str(why).split("\n")[0][:90], 0
    torch.use_deterministic_algorithms(False)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv")
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--budget-s", type=float, default=1e9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    begin, points = time.monotonic(), FIRST + REST
    if args.tiny:
        points = points[:4]
    out = csv.writer(open(args.csv, "a" if args.first else "w") if args.csv else open(os.devnull, "w"), lineterminator="\n")
    if not args.first:
        out.writerow(("point", "model", "length", "prefix", "contender", "what", "median_us", "samples", "torch"))
    following = None
    for number, (model, length, prefix) in enumerate(points):
        if number < args.first:
            continue
        if following is not None or time.monotonic() - begin > args.budget_s:
            following = number if following is None else following
            print(f"left out {number:3} {model[0]} N{prefix} T{length}")
            continue
        for contender, what, result, samples in point(model, length, prefix, args):
            shown = f"{result * 1e6:.1f}" if samples else result
            print(f"{number:3} {model[0]:14} N{prefix:<5}T{length:<5} {contender:10} {what:22} {shown}", flush=True)
            out.writerow((number, model[0], length, prefix, contender, what, shown, samples, torch.__version__))
    if following is not None:
        print(f"next {following}")


main()
