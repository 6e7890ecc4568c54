# SPDX-License-Identifier: MIT
"""The rows of measure_methods.py as CSV, as a short table and as a page."""
import csv
import io
import platform
import subprocess

COLUMNS = ("task", "method", "rate", "lr", "seed", "steps", "batch_rows", "rows_seen", "epoch_share", "train_loss", "valid_loss_before", "valid_loss",
           "best_step", "test_loss", "test_tokens", "prompts", "e2e_bleu", "e2e_nist", "e2e_rouge_l", "e2e_cider", "bleu", "chrf", "rouge_l",
           "exact_match", "retain_loss_before", "retain_loss", "damage", "train_seconds", "gone_on", "eval_seconds", "new_tokens", "peak_bytes",
           "trained_numbers", "disk_bytes", "model", "device", "dtype", "threads", "products", "processor", "pfx_version", "commit", "failed")
TITLES = {"method": "method", "lr": "rate", "valid_loss": "loss, validation", "test_loss": "loss, test", "e2e_bleu": "e2e_bleu", "e2e_nist": "e2e_nist",
          "e2e_rouge_l": "e2e_rouge_l", "e2e_cider": "e2e_cider", "bleu": "BLEU", "chrf": "chrF", "rouge_l": "ROUGE-L", "damage": "damage",
          "train_seconds": "training, s", "peak_bytes": "peak memory", "trained_numbers": "trained numbers", "disk_bytes": "on disk"}


def processor(device):
    """What computed, by name."""
    if (device or "").startswith("cuda"):
        found = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False)
        return found.stdout.strip().split("\n")[0] or "unknown GPU"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            fields = dict(map(str.strip, line.split(":", 1)) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
        if "model name" in fields:
            return f"{fields['model name']} family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def complete(rows, settings):
    """Adds what no program printed. A damage is there only where both losses were measured."""
    before = rows[0].get("retain_loss")
    seen = settings["steps"] * settings["batch_rows"]
    for row in rows:
        trained = row["method"] not in ("frozen", "in-context")
        row.update(task=settings["task"], seed=settings["seed"] if trained else "", model=settings["model"].rstrip("/").split("/")[-1])
        if trained:
            row.update(steps=settings["steps"], batch_rows=settings["batch_rows"], rows_seen=seen, epoch_share=seen / settings["train_rows"])
        if before is not None and row.get("retain_loss") is not None:
            row.update(retain_loss_before=before, damage=row["retain_loss"] - before)


def csv_text(rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})
    return out.getvalue()


def shown(key, row):
    value = row.get(key)
    if value is None or value == "":
        return "-"
    if key in ("peak_bytes", "disk_bytes"):
        return f"{value / 1e6:,.1f} MB"
    if key == "trained_numbers":
        return f"{value:,}"
    if key == "train_seconds":
        return f"{value:.0f}"
    if key in ("bleu", "chrf", "rouge_l"):
        return f"{value:.1f}"
    return f"{value:+.4f}" if key == "damage" else f"{value:.4f}" if isinstance(value, float) else str(value)


def chosen(rows):
    """Of each method the rate with the lower loss on validation rows; never by the test rows."""
    best = {}
    for row in rows:
        loss = row.get("valid_loss")
        if row["failed"]:
            continue
        other = best.get(row["method"])
        if other is None or (loss is not None and loss < other["valid_loss"]):
            best[row["method"]] = row
    return list(best.values())


def table(rows, settings, keys):
    texts = ("bleu", "chrf", "rouge_l") if settings["task"] == "wordnet" else ("e2e_bleu", "e2e_nist", "e2e_rouge_l", "e2e_cider")
    columns = [key for group in keys for key in (texts if group == "texts" else (group,))]
    lines = ["| " + " | ".join(TITLES[key] for key in columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(shown(key, row) for key in columns) + " |" for row in rows]) + "\n"


def short_table(rows, settings):
    return table(chosen(rows), settings, ("method", "lr", "test_loss", "texts", "damage", "train_seconds"))


def page(rows, settings, planned):
    finished = [row for row in rows if not row["failed"]]
    lost = [row for row in rows if row["failed"]]
    seen = settings["steps"] * settings["batch_rows"]
    machine = next((row for row in finished if row.get("products")), None)
    where = f"{machine['processor']}, {machine['device']}, {machine['dtype']}, {machine['threads']} threads, {machine['products']}" if machine else "-"
    commits = sorted({row["commit"] for row in rows})
    parts = [f"# Methods on the task {settings['task']}\n",
             f"{len(finished)} of {planned} runs are measured. Model: `{settings['model'].rstrip('/').split('/')[-1]}`. Machine: {where}. "
             f"Commit: {', '.join(commits)}.\n",
             f"Every run is {settings['steps']} steps of {settings['batch_rows']} rows, {seen:,} rows: **{100 * seen / settings['train_rows']:.1f} % of an "
             f"epoch** of {settings['train_rows']:,} rows, one seed ({settings['seed']}), the same rows in the same order. What follows holds for this length, "
             "this model and this seed; longer runs may order the methods otherwise, and with one seed small differences say nothing.\n",
             f"Test: {settings['prompts']} of {settings['all_prompts']} prompts (the first in the order of their digests), {settings['test_rows']:,} rows, greedy "
             f"texts of at most {settings['max_tokens']} tokens. Each method was trained at two rates where it has two rows below; the table has the one "
             f"with the lower loss on {settings['valid_rows']} validation rows. Nothing was chosen on test rows.\n",
             damage_text(settings),
             "## Each method at its better rate\n",
             table(chosen(rows), settings, ("method", "lr", "valid_loss", "test_loss", "texts", "damage", "trained_numbers", "disk_bytes", "peak_bytes", "train_seconds")),
             "## Every run\n",
             table(finished, settings, ("method", "lr", "valid_loss", "test_loss", "texts", "damage", "train_seconds"))]
    if lost:
        parts.append("## Without a result\n\n" + "".join(f"- {row['name']}: {row['failed']}\n" for row in lost))
    if any(row.get("gone_on") for row in rows):
        parts.append("Interrupted and gone on with (their seconds leave out what was done twice): "
                     + ", ".join(row["name"] for row in rows if row.get("gone_on")) + ".\n")
    parts.append(metrics_text(settings))
    return "\n".join(parts)


def damage_text(settings):
    if not settings["retain_rows"]:
        return "Damage (what a method forgets) was not measured: the other text was not at hand.\n"
    return f"Damage is what the loss on other text rises by while the adapter is on: {settings['retain_rows']} rows of {settings['retain_text']}.\n"


def metrics_text(settings):
    if settings["task"] == "wordnet":
        return "BLEU, chrF and ROUGE-L are those of `pfx eval`.\n"
    return ("e2e_bleu and e2e_nist are counted as mteval-v13a does, e2e_rouge_l and e2e_cider as coco-caption does (`bench/e2e/metrics.py`); on a part of "
            "the test prompts they are not those of the whole test set. METEOR is not measured. `runs.csv` has every column, and BLEU, chrF and ROUGE-L of "
            "`pfx eval`, which are defined otherwise.\n")
