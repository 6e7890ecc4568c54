# SPDX-License-Identifier: MIT
"""One short table of what gpu_check.sh measured, from the files in its folder, and the same as summary.csv with the
machine in every row.

    gpu_table.py FOLDER"""
import csv
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

MACHINE = ("device", "driver", "commit", "pfx", "torch")


def rows(folder, name):
    path = folder / name
    return list(csv.DictReader(path.open())) if path.exists() else []


def family(operation):
    """The operation of a point without its model and sizes: the words before the model's name."""
    return re.split(r" (?=gpt2-|llama-|qwen|prefix|all of|\d)", re.sub(r"^product .*", "product", operation))[0]


def operations(folder):
    """(what, value, unit) of every operation: the median over its points of the share of the nearer limit."""
    shares = defaultdict(list)
    for name, engine in (("ops.csv", ""), ("ops_cudnn.csv", " with cuDNN")):
        for row in rows(folder, name):
            shares[family(row["operation"]) + engine].append((max(float(row["percent_of_product"]), float(row["percent_of_copy"])),
                                                              row["operation"]))
    for name, points in shares.items():
        least, where = min(points)
        yield name, statistics.median(share for share, _ in points), f"% of its limit; least {least:.0f} % at {where}"


def own_attention(folder, name):
    """Microseconds of pfx's attention by model, length, prefix and direction."""
    times = {}
    for row in rows(folder, name):
        if match := re.match(r"attention (forward|backward) (\S+) N(\d+) T(\d+) ", row["operation"]):
            times[match[2], match[4], match[3], match[1]] = float(row["median_us"])
    return times


def attention(folder):
    """pfx beside PyTorch's attention, where both measured a shape."""
    mine, split = own_attention(folder, "ops.csv"), own_attention(folder, "ops_cudnn.csv")
    peers = defaultdict(dict)
    for row in rows(folder, "peers_attention.csv"):
        if row["what"] == "forward and backward":
            peers[row["model"], row["length"], row["prefix"]][row["contender"]] = float(row["median_us"])
    for shape, others in list(peers.items())[:6]:
        both = [mine.get((*shape, way)) for way in ("forward", "backward")]
        if None in both:
            continue
        with_cudnn = [split.get((*shape, way)) for way in ("forward", "backward")]
        if None not in with_cudnn:
            others = {"pfx with cuDNN": sum(with_cudnn), **others}
        words = ", ".join(f"{name} {time:.0f}" for name, time in others.items())
        yield f"attention both ways {shape[0]} T{shape[1]} N{shape[2]}", sum(both), f"us; {words}"


def steps(folder):
    points = defaultdict(dict)
    for row in rows(folder, "steps.csv"):
        if row["median_ms"]:
            points[row["model"], row["length"], row["rows"], row["prefix"]][row["contender"]] = row
    for shape, found in points.items():
        if "pfx" not in found:
            continue
        words = ", ".join(f"{name} {float(row['median_ms']):.2f}" for name, row in found.items() if name != "pfx")
        yield (f"step {shape[0]} T{shape[1]} x{shape[2]} N{shape[3]}", float(found["pfx"]["median_ms"]),
               f"ms, {found['pfx']['percent_of_floor']} % of the floor's rate; {words}")


def models(folder):
    for row in rows(folder, "end_to_end.csv"):
        if row["tokens_per_s"]:
            yield (f"{row['what']} {row['device']} {row['dtype']}", float(row["tokens_per_s"]),
                   f"tokens/s, loss {float(row['first_loss']):.3f} to {float(row['last_loss']):.3f}")
    for name in ("decode.csv", "decode_8b.csv"):
        for row in rows(folder, name):
            yield (f"decode {row['model']} x{row['rows']} after {row['prompt']}", float(row["percent_of_memory"]),
                   f"% of {float(row['memory_gb_s']):.0f} GB/s, {row['tokens_per_s']} tokens/s")


def main():
    folder = Path(sys.argv[1])
    machine = {row["key"]: row["value"] for row in rows(folder, "machine.csv")}
    lines = [(part.__name__, *line) for part in (operations, attention, steps, models) for line in part(folder)]
    with (folder / "summary.csv").open("w") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow((*MACHINE, "part", "what", "value", "unit"))
        for part, what, value, unit in lines:
            out.writerow((*(machine.get(key, "") for key in MACHINE), part, what, f"{value:.6g}", unit))
    print(", ".join(f"{key} {machine[key]}" for key in MACHINE if machine.get(key)))
    for _, what, value, unit in lines:
        print(f"{what[:44]:44} {value:10.1f} {unit}")


main()
