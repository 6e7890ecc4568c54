# SPDX-License-Identifier: MIT
"""Prefix tuning with PEFT on PyTorch as its users do it, for cpu_vs_peft.py: padded batches, the model's own loss, AdamW.
The batches hold the same rows in the same order as those of `pfx train --seed 1`.

    peft_train.py --init DIR --model FOLDER --rows F                      makes an initial prefix, as pfx's default
    peft_train.py --start DIR --model FOLDER --rows F --out DIR    trains from it; metrics.jsonl has a line a step
"""
import argparse
import itertools
import json
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

PREFIX, SEED = 20, 1
SHUFFLE = 2  # px_stream


def open_model(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    torch.manual_seed(SEED)
    return get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PREFIX))


def philox(seed, stream, step, index):
    """64 random bits as pfx draws them: Philox 4x32-10 (host/core/random.h)."""
    low = 0xFFFFFFFF
    counter, key = [index & low, index >> 32, step, stream], [seed & low, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [p1 >> 32 ^ counter[1] ^ key[0], p1 & low, p0 >> 32 ^ counter[3] ^ key[1], p0 & low]
        key = [key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low]
    return counter[1] << 32 | counter[0]


def order_of(epoch, count):
    order = list(range(count))
    for i in range(count, 1, -1):
        j = philox(SEED, SHUFFLE, epoch, i) * i >> 64
        order[i - 1], order[j] = order[j], order[i - 1]
    return order


def batches(rows, batch_rows):
    """Endless shuffled batches, padded to their longest row."""
    for epoch in itertools.count():
        order = order_of(epoch, len(rows))
        for at in range(0, len(order), batch_rows):
            chosen = [rows[i] for i in order[at : at + batch_rows]]
            width = max(len(row["ids"]) for row in chosen)
            pad = lambda values, filler: torch.tensor([v + [filler] * (width - len(v)) for v in values])  # noqa: E731
            yield {"input_ids": pad([row["ids"] for row in chosen], 0),
                   "attention_mask": pad([[1] * len(row["ids"]) for row in chosen], 0),
                   "labels": pad([row["labels"] for row in chosen], -100)}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def init(args):
    """PEFT's folder with the keys and values of the first tokens of the rows, which is where pfx starts. (From PEFT's
    own normal numbers neither learns much in 60 steps.)"""
    model = open_model(args.model, torch.float32)
    ids = torch.tensor([[i for row in read(args.rows)[:PREFIX] for i in row["ids"]][:PREFIX]])
    with torch.no_grad():
        cache = model.get_base_model()(input_ids=ids, use_cache=True).past_key_values
        slices = [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)]
        model.prompt_encoder["default"].embedding.weight.copy_(torch.stack(slices, 1).flatten(1))
    model.save_pretrained(args.init)


def train(args):
    rows = read(args.rows)
    model = open_model(args.model, getattr(torch, args.dtype))
    encoder = model.prompt_encoder["default"]
    with torch.no_grad():
        encoder.embedding.weight.copy_(load_file(args.start / "adapter_model.safetensors")["prompt_embeddings"])
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=args.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / args.warmup, max(0.0, (args.steps - step) / (args.steps - args.warmup))))
    model.train()
    args.out.mkdir(parents=True)
    source = batches(rows, args.batch_rows)
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
        init(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
