# SPDX-License-Identifier: MIT
"""Prefix tuning with PEFT on PyTorch as its users do it, for cpu_vs_peft.py: padded batches, the model's own loss, AdamW.

    peft_train.py --init DIR --model FOLDER                        makes PEFT's random initial prefix
    peft_train.py --start DIR --model FOLDER --rows F --out DIR    trains from it; metrics.jsonl has a line a step
"""
import argparse
import json
import random
import time
import warnings
from pathlib import Path

import torch
from peft import PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()
warnings.filterwarnings("ignore", module="peft|transformers")

PREFIX = 20


def open_model(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    torch.manual_seed(1)
    return get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PREFIX))


def batches(rows, batch_rows, seed):
    """Endless shuffled batches, padded to their longest row."""
    draw = random.Random(seed)
    while True:
        order = list(range(len(rows)))
        draw.shuffle(order)
        for at in range(0, len(order) - batch_rows + 1, batch_rows):
            chosen = [rows[i] for i in order[at : at + batch_rows]]
            width = max(len(row["ids"]) for row in chosen)
            pad = lambda values, filler: torch.tensor([v + [filler] * (width - len(v)) for v in values])  # noqa: E731
            yield {"input_ids": pad([row["ids"] for row in chosen], 0),
                   "attention_mask": pad([[1] * len(row["ids"]) for row in chosen], 0),
                   "labels": pad([row["labels"] for row in chosen], -100)}


def train(args):
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    model = open_model(args.model, getattr(torch, args.dtype))
    encoder = model.prompt_encoder["default"]
    with torch.no_grad():
        encoder.embedding.weight.copy_(load_file(args.start / "adapter_model.safetensors")["prompt_embeddings"])
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=args.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / args.warmup, max(0.0, (args.steps - step) / (args.steps - args.warmup))))
    model.train()
    args.out.mkdir(parents=True)
    source = batches(rows, args.batch_rows, seed=1)
    with (args.out / "metrics.jsonl").open("w") as file:
        for step in range(args.stop_after or args.steps):
            batch = next(source)
            start = time.perf_counter()
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            seconds, tokens = time.perf_counter() - start, int(batch["attention_mask"].sum())
            file.write(json.dumps({"step": step + 1, "loss": loss.item(), "tokens": tokens, "seconds": seconds,
                                   "tokens_per_s": tokens / seconds}) + "\n")
            file.flush()
    model.save_pretrained(args.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    for name in ("--init", "--start", "--rows", "--out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=60, help="of the schedule")
    parser.add_argument("--stop-after", type=int, default=0)
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.init:
        open_model(args.model, torch.float32).save_pretrained(args.init)
    else:
        train(args)


if __name__ == "__main__":
    main()
