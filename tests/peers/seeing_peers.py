# SPDX-License-Identifier: MIT
"""What pfx shows of a run and of an adapter, held against the programs that people look with: TensorBoard reads the event
files, transformers gives the attention that `pfx inspect` measures."""
import json
import math
import shutil


def tensorboard_points(folder):
    """{tag: {step: value}} as TensorBoard has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    points = {tag: {p.step: p.value for p in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    counts = {tag: len(events.Scalars(tag)) for tag in points}
    assert counts == {tag: len(values) for tag, values in points.items()}, f"a step stands there twice: {counts}"
    return points


def check_tensorboard(checks):
    """TensorBoard shows metrics.jsonl's numbers, each step once, through an interruption and steps that are done again."""
    path, _ = checks.golden_rows("qwen3")
    out, board = checks.scratch / "watched", checks.scratch / "board"
    checks.train(checks.golden / "qwen3", path, out, "--valid", path, "--tune", "prefix:3", "--steps", 12, "--eval-every", 3,
                 "--save-every", 4, "--stop-after", 6, "--tensorboard", board)
    # What a kill leaves: event files ahead of the checkpoint.
    state = (out / "checkpoint/pfx_state.safetensors").read_bytes()
    checks.pfx("train", "--resume", out, "--stop-after", 9, "--quiet")
    (out / "checkpoint/pfx_state.safetensors").write_bytes(state)
    checks.pfx("train", "--resume", out, "--quiet")
    points = tensorboard_points(board)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sorted(points) == ["grad_norm", "loss", "lr", "peak_bytes", "tokens_per_s", "valid_loss"], sorted(points)
    for tag, values in points.items():
        wanted = {line["step"]: line[tag] for line in lines if tag in line}
        before = [0] if tag == "valid_loss" else []  # the validation before the first step
        assert sorted(values) == before + sorted(wanted), (tag, values)
        for step, value in wanted.items():
            assert math.isclose(values[step], value, rel_tol=1e-6, abs_tol=0.06 if tag == "tokens_per_s" else 1e-12), (tag, step)
    return f"{len(list(board.iterdir()))} files, {sum(map(len, points.values()))} points"


def check_card(checks):
    """The hub's own reader takes the model card, a base with an awkward name included."""
    from huggingface_hub import ModelCard
    path, _ = checks.golden_rows("qwen3")
    base, out = checks.scratch / 'mo"del: \\ é\u2028#', checks.scratch / "carded"
    shutil.copytree(checks.golden / "qwen3", base)
    checks.train(base, path, out, "--tune", "prefix:3", "--steps", 1)
    data = ModelCard.load(out / "README.md").data.to_dict()
    assert data == {"base_model": str(base.resolve()), "library_name": "peft", "pipeline_tag": "text-generation",
                    "tags": ["prefix-tuning", "pfx"]}, data
    return f"base model {base.name!r}"


def check_attention(case):
    """The attention that transformers computes with the prefix in PEFT, by layer, head and virtual token."""
    def check(checks):
        import make_golden
        import torch
        path, (ids, labels, offsets) = checks.golden_rows(case)
        seen = json.loads(checks.pfx("inspect", checks.golden / case / "adapter", "--model", checks.golden / case, "--data", path,
                                     "--tokens", "all", "--sample-tokens", 0, "--dtype", "f32", "--threads", 2, "--json", "--quiet"))
        model = make_golden.load_model(checks.golden / case, torch.float64)
        model.set_attn_implementation("eager")
        peft_model = make_golden.load_peft(model.double(), checks.golden / case / "adapter").double()
        slots, shares = seen["virtual_tokens"], []
        for begin, end in zip(offsets[:-1], offsets[1:]):
            row = torch.as_tensor(ids[begin:end].astype("int64"))[None]
            with torch.no_grad():
                maps = peft_model(input_ids=row, attention_mask=torch.ones_like(row), output_attentions=True).attentions
            shares.append(torch.stack([m[0, :, :, :slots] for m in maps]))  # [layer, head, query, slot]
        shares = torch.cat(shares, 2)
        assert seen["queries"] == shares.shape[2]
        errors = []
        for name, wanted in (("mass", shares.sum(3).mean(2)), ("token_share", shares.mean((1, 2))), ("token_peak", shares.amax((1, 2)))):
            got = torch.tensor(seen[name], dtype=torch.float64)
            errors.append(float((got - wanted).abs().max()))
            assert got.shape == wanted.shape and errors[-1] < 2e-5, (name, errors[-1])
        return f"{shares.shape[2]} queries, largest difference {max(errors):.1e}"
    return check


CHECKS = {"TensorBoard reads the event files": check_tensorboard, "the hub reads the model card": check_card}
CHECKS |= {f"transformers has the attention of inspect for {case}": check_attention(case) for case in ("gpt2", "llama_tied", "qwen2", "qwen3")}
