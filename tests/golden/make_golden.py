# SPDX-License-Identifier: MIT
"""Makes tiny random models of every family and their golden results in float64 (see README.md).

    make_golden.py            writes the folders of all cases beside this file
    make_golden.py --check    makes them elsewhere and compares with the committed ones
    make_golden.py --only A,B the named cases alone
"""
import argparse
import json
import shutil
import tempfile
import warnings
from pathlib import Path

from golden_lib import (HERE, make_float64, np, read_safetensors, relative_l2, rng, split_float64, torch,
                        write_safetensors)
from peft import CartridgeConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache
from transformers import (GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)
from transformers.utils import logging as transformers_logging

warnings.filterwarnings("ignore", module="peft|transformers")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

SEED = 20260101
GREEDY_TOKENS = 12
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)


def llama(**kw):
    return LlamaConfig(**(dict(bos_token_id=1, eos_token_id=2, max_position_embeddings=128, rms_norm_eps=1e-5) | kw))


def rope(theta, **kw):
    return dict(rope_type="default", rope_theta=theta) | kw


# name -> config, prefix length, and what is particular. dtype: of the stored weights. old: config.json is rewritten in
# the dialect before transformers 5. shard: size of a shard. window: rows that reach beyond the sliding window as well.
CASES = {
    "gpt2": dict(config=lambda: GPT2Config(vocab_size=97, n_positions=48, n_embd=24, n_layer=2, n_head=3,
                                           bos_token_id=0, eos_token_id=0), prefix=5),
    "gpt2_wide": dict(config=lambda: GPT2Config(vocab_size=120, n_positions=64, n_embd=72, n_layer=3, n_head=3,
                                                n_inner=200, bos_token_id=0, eos_token_id=0), prefix=3),
    "llama_tied": dict(config=lambda: llama(vocab_size=128, hidden_size=108, intermediate_size=144, num_hidden_layers=3,
                                            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
                                            rope_parameters=rope(100000.0)), prefix=4),
    "llama3_new": dict(config=lambda: llama(vocab_size=160, hidden_size=96, intermediate_size=160, num_hidden_layers=2,
                                            num_attention_heads=3, num_key_value_heads=1, rope_parameters=LLAMA3),
                       prefix=6, shard="150KB"),
    "llama3_old": dict(config=lambda: llama(vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                            num_attention_heads=2, num_key_value_heads=2, rope_parameters=LLAMA3),
                       prefix=2, old="rope_type"),
    "llama_linear": dict(config=lambda: llama(vocab_size=96, hidden_size=64, intermediate_size=112, num_hidden_layers=2,
                                              num_attention_heads=4, num_key_value_heads=2,
                                              rope_parameters=rope(10000.0, rope_type="linear", factor=2.5)),
                         prefix=7, old="type"),
    "llama_bf16": dict(config=lambda: llama(vocab_size=112, hidden_size=80, intermediate_size=128, num_hidden_layers=2,
                                            num_attention_heads=5, num_key_value_heads=1,
                                            rope_parameters=rope(10000.0)), prefix=4, dtype=torch.bfloat16),
    "llama_f16": dict(config=lambda: llama(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                           num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
                                           rope_parameters=rope(10000.0)), prefix=1, dtype=torch.float16),
    "mistral": dict(config=lambda: MistralConfig(vocab_size=104, hidden_size=56, intermediate_size=96, head_dim=64,
                                                 num_hidden_layers=2, num_attention_heads=7, num_key_value_heads=1,
                                                 max_position_embeddings=128, sliding_window=24, rms_norm_eps=1e-5,
                                                 rope_parameters=rope(10000.0)), prefix=4, window=True),
    "qwen2": dict(config=lambda: Qwen2Config(vocab_size=136, hidden_size=96, intermediate_size=160, num_hidden_layers=3,
                                             num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True,
                                             max_position_embeddings=128, rms_norm_eps=1e-6,
                                             rope_parameters=rope(1000000.0)), prefix=5),
    "qwen2_window": dict(config=lambda: Qwen2Config(vocab_size=72, hidden_size=48, intermediate_size=64,
                                                    num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3,
                                                    max_position_embeddings=128, use_sliding_window=True,
                                                    sliding_window=26, max_window_layers=1,
                                                    rope_parameters=rope(1000000.0)), prefix=5, window=True),
    "qwen3": dict(config=lambda: Qwen3Config(vocab_size=144, hidden_size=64, intermediate_size=96, head_dim=128,
                                             num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                             tie_word_embeddings=True, max_position_embeddings=128,
                                             rope_parameters=rope(1000000.0)), prefix=4),
}


def fill_weights(model, case):
    """Random weights with useful spread: biases and norms not trivial, logits of a few units."""
    width, tied = model.config.hidden_size, model.config.tie_word_embeddings
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = rng(SEED, f"{case}/{name}").standard_normal(tuple(value.shape))
            if name.endswith("bias"):
                noise *= 0.2
            elif value.dim() == 1:
                noise = 1 + 0.2 * noise
            elif "lm_head" in name or (tied and ("embed_tokens" in name or "wte" in name)):
                noise *= 2.5 / width**0.5
            elif "embed_tokens" in name or "wpe" in name:
                noise *= 0.5
            else:  # Conv1D of GPT-2 is [in, out], everything else [out, in]
                noise *= 1.2 / value.shape[0 if "c_" in name else 1] ** 0.5
            value.copy_(torch.from_numpy(noise))


def save_model(case, spec, folder):
    model = AutoModelForCausalLM.from_config(spec["config"]())
    fill_weights(model, case)
    model.to(spec.get("dtype", torch.float32))
    model.save_pretrained(folder, max_shard_size=spec.get("shard", "50GB"))
    if "old" in spec:  # transformers before 5: rope_theta beside rope_scaling, torch_dtype
        path = folder / "config.json"
        config = json.loads(path.read_text())
        parameters = config.pop("rope_parameters")
        config["rope_theta"] = parameters.pop("rope_theta")
        config["rope_scaling"] = {spec["old"]: parameters.pop("rope_type")} | parameters
        config["torch_dtype"] = config.pop("dtype")
        config["transformers_version"] = "4.45.0"
        path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def load_model(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()


def save_adapter(case, folder, target, config, name="default", dtype=torch.float32):
    """An adapter with random values exactly as PEFT writes it. PEFT's model card (README.md) is left out."""
    model = load_model(folder, torch.float32)
    model.name_or_path = f"pfx-golden/{case}"  # what base_model_name_or_path becomes; no path of this machine
    peft_model = get_peft_model(model, config, adapter_name=name)
    with torch.no_grad():
        for key, value in peft_model.prompt_encoder[name].named_parameters():
            noise = 0.8 * rng(SEED, f"{case}/{target.name}/{key}").standard_normal(tuple(value.shape))
            value.copy_(torch.from_numpy(noise))
    peft_model.prompt_encoder.to(dtype)
    peft_model.save_pretrained(target)
    for card in target.rglob("README.md"):
        card.unlink()


def load_peft(model, folder, name="default"):
    """PEFT loads a saved prefix for inference only; its values are the embedding, whose gradient we ask for."""
    peft_model = PeftModel.from_pretrained(model, folder, adapter_name=name)
    peft_model.prompt_encoder.requires_grad_()
    return peft_model


def make_rows(case, vocab, lengths):
    """Ragged rows: flat ids, labels (-100: no loss), offsets. Row 1 scores all its tokens and carries a label on its
    first token, which must not count; row 2 scores nothing when there are more than four rows; the others score a
    completion, with one hole."""
    random = rng(SEED, f"{case}/rows/{lengths}")
    ids, labels, offsets = [], [], [0]
    for row, length in enumerate(lengths):
        tokens = random.integers(0, vocab, length)
        marks = tokens.copy()
        if row == 2 and len(lengths) > 4:
            marks[:] = -100
        elif row != 1:
            marks[: max(1, length // 3)] = -100
            if length > 8:
                marks[length - 3] = -100
        ids += list(tokens)
        labels += list(marks)
        offsets.append(len(ids))
    return (np.array(v, dtype=np.int32) for v in (ids, labels, offsets))


def sum_loss(logits, labels):
    """Sum of cross entropies and number of scored tokens of one row; the first token never scores."""
    target = torch.from_numpy(labels[1:].astype(np.int64))
    loss = torch.nn.functional.cross_entropy(logits[:-1], target, ignore_index=-100, reduction="sum")
    return loss, int((target != -100).sum())


def run_rows(forward, ids, labels, offsets):
    """Runs rows one by one; returns all logits and the mean loss over all scored tokens."""
    logits, total, count = [], 0.0, 0
    for begin, end in zip(offsets[:-1], offsets[1:]):
        row = forward(torch.from_numpy(ids[begin:end].astype(np.int64))[None])[0]
        loss, scored = sum_loss(row, labels[begin:end])
        logits.append(row)
        total, count = total + loss, count + scored
    return torch.cat(logits), total / count


def window_masks(window, prefix, tokens):
    """[1, 1, T, P+T] of query x key: the prefix is seen by all, the window counts real tokens only."""
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)[None]
    full = key <= query
    near = full & (query - key < window)
    seen = torch.ones(tokens, prefix, dtype=torch.bool)
    return tuple(torch.cat((seen, mask), 1)[None, None] for mask in (full, near))


def masked_forward(model, prefix_values, layers):
    """A forward function with explicit masks and an explicit prefix (None: no prefix)."""
    config, prefix = model.config, 0 if prefix_values is None else prefix_values.shape[0]

    def forward(row):
        cache = None
        if prefix:
            heads = config.num_key_value_heads
            # [P, 2L, H, Dh] -> per layer a pair of [1, H, P, Dh]; a cache without config drops nothing
            blocks = prefix_values.view(prefix, 2 * layers, heads, -1).permute(1, 2, 0, 3)[:, None]
            cache = DynamicCache([(blocks[2 * i], blocks[2 * i + 1]) for i in range(layers)])
        full, near = window_masks(config.sliding_window, prefix, row.shape[1])
        masks = near if config.model_type == "mistral" else {"full_attention": full, "sliding_attention": near}
        positions = prefix + torch.arange(row.shape[1])[None]
        return model(input_ids=row, attention_mask=masks, position_ids=positions, past_key_values=cache).logits

    return forward


def greedy(forward, prompt):
    """Greedy continuation and the smallest distance between the two best logits on the way."""
    ids, gap = list(prompt), float("inf")
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            best = forward(torch.tensor([ids]))[0, -1].topk(2)
            gap = min(gap, float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
    return ids[len(prompt) :], gap


def pick_greedy(case, vocab, plain, adapted):
    """Three prompts whose continuations are decided by more than 1e-3 at every step and never end; of 24 the most
    varied."""
    random, found = rng(SEED, f"{case}/greedy"), []
    for attempt in range(24):
        prompt = [int(i) for i in random.integers(0, vocab, 1 + attempt % 4)]
        runs = [greedy(plain, prompt), greedy(adapted, prompt)]
        stops = any(end in ids for ids, _ in runs for end in (0, 2))  # ids that end generation in some family
        if not stops and min(gap for _, gap in runs) > 1e-3:
            found.append((sum(len(set(ids)) for ids, _ in runs), prompt, runs[0][0], runs[1][0]))
    found = sorted(found, key=lambda f: -f[0])[:3]
    assert len(found) == 3, f"{case}: too few prompts with clear winners"
    return [list(part) for part in zip(*found)][1:]


def bfloat16_errors(folder, adapter, rows, logits, loss, grad):
    """What torch itself loses in bfloat16 (weights and activations; the prefix has float32 masters)."""
    model = load_peft(load_model(folder, torch.bfloat16), adapter)
    mine, my_loss = run_rows(lambda row: model(input_ids=row, attention_mask=torch.ones_like(row)).logits.float(),
                             *rows)
    my_loss.backward()
    my_grad = model.prompt_encoder["default"].embedding.weight.grad
    return {"bf16.logits_error": f"{relative_l2(mine.detach(), logits):.2e}",
            "bf16.loss_error": f"{abs(my_loss.item() - loss) / loss:.2e}",
            "bf16.grad_error": f"{relative_l2(my_grad, grad):.2e}"}


def check_derivative(loss, values, case):
    """A central difference along one direction: it has this many digits only if every step is float64."""
    direction = torch.from_numpy(rng(SEED, f"{case}/direction").standard_normal(tuple(values.shape)))
    want, step, ends = float((values.grad * direction).sum()), 1e-5, []
    with torch.no_grad():
        for sign in (1, -1):
            values += sign * step * direction
            ends.append(loss().item())
            values -= sign * step * direction
    got = (ends[0] - ends[1]) / (2 * step)
    assert abs(got - want) < 1e-6 * abs(want), f"{case}: derivative {got}, gradient {want}"


def golden_case(case, spec, folder):
    prefix, layers = spec["prefix"], spec["config"]().num_hidden_layers
    save_model(case, spec, folder)
    save_adapter(case, folder, folder / "adapter",
                 PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prefix))
    model = make_float64(load_model(folder, torch.float64))
    vocab = model.config.vocab_size
    rows = ids, labels, offsets = tuple(make_rows(case, vocab, (9, 20, 5, 1, 16) if prefix > 3 else (7, 20, 1, 12)))

    with torch.no_grad():
        logits, loss = run_rows(lambda row: model(input_ids=row).logits, *rows)
    plain = lambda row: model(input_ids=row).logits  # noqa: E731
    prompts_model = make_float64(load_model(folder, torch.float64))
    peft_model = load_peft(prompts_model, folder / "adapter")
    peft_model.prompt_encoder.double()
    adapted = lambda row: peft_model(input_ids=row, attention_mask=torch.ones_like(row)).logits  # noqa: E731
    adapter_logits, adapter_loss = run_rows(adapted, *rows)
    adapter_loss.backward()
    grad = peft_model.prompt_encoder["default"].embedding.weight.grad
    assert relative_l2(adapter_logits.detach(), logits) > 0.05, f"{case}: the prefix hardly matters"

    check_derivative(lambda: run_rows(adapted, *rows)[1], peft_model.prompt_encoder["default"].embedding.weight, case)

    # The definition of the loss is the library's own (which rounds logits to float32).
    row = torch.from_numpy(ids[offsets[1] : offsets[2]].astype(np.int64))[None]
    marks = torch.from_numpy(labels[offsets[1] : offsets[2]].astype(np.int64))[None]
    theirs = peft_model(input_ids=row, attention_mask=torch.ones_like(row), labels=marks).loss.item()
    mine = sum_loss(adapted(row)[0], labels[offsets[1] : offsets[2]])
    assert abs(theirs - mine[0].item() / mine[1]) < 1e-5 * theirs

    prompts, plain_ids, adapter_ids = pick_greedy(case, vocab, plain, adapted)
    # transformers' own generate, with its cache, agrees.
    start = torch.tensor([prompts[0]])
    made = peft_model.generate(input_ids=start, attention_mask=torch.ones_like(start), do_sample=False,
                               max_new_tokens=GREEDY_TOKENS, min_new_tokens=GREEDY_TOKENS, eos_token_id=None,
                               pad_token_id=0)
    assert made[0, -GREEDY_TOKENS:].tolist() == adapter_ids[0], f"{case}: generate differs"

    tensors = result_tensors(rows, logits, loss, adapter_logits, adapter_loss, grad)
    tensors |= {"greedy.prompts": np.array(sum(prompts, []), dtype=np.int32),
                "greedy.offsets": np.cumsum([0] + [len(p) for p in prompts]).astype(np.int32),
                "greedy.ids": np.array(plain_ids, dtype=np.int32),
                "adapter.greedy.ids": np.array(adapter_ids, dtype=np.int32)}
    metadata = {"loss": f"{loss.item():.17g}", "adapter.loss": f"{adapter_loss.item():.17g}"}
    metadata |= bfloat16_errors(folder, folder / "adapter", rows, adapter_logits.detach(), adapter_loss.item(), grad)
    write_safetensors(folder / "golden.safetensors", tensors, metadata)
    if spec.get("window"):
        golden_window(case, model, peft_model, layers, folder)


def result_tensors(rows, logits, loss, adapter_logits, adapter_loss, grad):
    return {"ids": rows[0], "labels": rows[1], "offsets": rows[2],
            "logits": logits.float().numpy(), "loss": split_float64(loss.item()),
            "adapter.logits": adapter_logits.detach().float().numpy(),
            "adapter.loss": split_float64(adapter_loss.item()), "adapter.grad": grad.float().numpy()}


def golden_window(case, model, peft_model, layers, folder):
    """Rows longer than the sliding window, with explicit masks. Within the window this equals PEFT."""
    values = peft_model.prompt_encoder["default"].embedding.weight.detach().clone().requires_grad_()
    short = torch.arange(10)[None]
    with torch.no_grad():
        same = masked_forward(model, values, layers)(short)
        peft = peft_model(input_ids=short, attention_mask=torch.ones_like(short)).logits
    assert relative_l2(same, peft) < 1e-12, f"{case}: explicit masks differ from PEFT within the window"
    rows = tuple(make_rows(case + "/window", model.config.vocab_size, (model.config.sliding_window + 1, 40, 23, 60)))
    with torch.no_grad():
        logits, loss = run_rows(masked_forward(model, None, layers), *rows)
        plain, _ = run_rows(lambda row: model(input_ids=row).logits, *rows)
    assert relative_l2(logits, plain) < 1e-12, f"{case}: explicit masks differ from transformers without a prefix"
    adapter_logits, adapter_loss = run_rows(masked_forward(model, values, layers), *rows)
    adapter_loss.backward()
    write_safetensors(folder / "golden_window.safetensors",
                      result_tensors(rows, logits, loss, adapter_logits, adapter_loss, values.grad),
                      {"loss": f"{loss.item():.17g}", "adapter.loss": f"{adapter_loss.item():.17g}"})


def golden_variants(folder):
    """More kinds of adapter folder, all on llama_tied: results beside each as golden_<adapter>.safetensors."""
    case, tokens = "llama_tied", dict(task_type="CAUSAL_LM")
    variants = {
        "adapter_named": (PrefixTuningConfig(num_virtual_tokens=3, **tokens), "gloss", torch.float32),
        "adapter_projection": (PrefixTuningConfig(num_virtual_tokens=6, prefix_projection=True, encoder_hidden_size=20,
                                                  **tokens), "default", torch.float32),
        "adapter_cartridge": (CartridgeConfig(num_virtual_tokens=5, num_frozen_tokens=2, **tokens), "default",
                              torch.float32),
        "adapter_zero": (PrefixTuningConfig(num_virtual_tokens=1, init_weights="zero", **tokens), "default",
                         torch.float32),
        "adapter_bf16": (PrefixTuningConfig(num_virtual_tokens=4, **tokens), "default", torch.bfloat16),
        "adapter_f16": (PrefixTuningConfig(num_virtual_tokens=2, **tokens), "default", torch.float16),
    }
    rows = tuple(make_rows(case, 128, (9, 20, 5, 1, 16)))
    for variant, (config, name, dtype) in variants.items():
        save_adapter(case, folder, folder / variant, config, name, dtype)
        where = folder / variant if name == "default" else folder / variant / name
        model = load_peft(make_float64(load_model(folder, torch.float64)), where, name)
        model.prompt_encoder.double()
        with torch.no_grad():
            logits, loss = run_rows(
                lambda row: model(input_ids=row, attention_mask=torch.ones_like(row)).logits, *rows)
        write_safetensors(folder / f"golden_{variant}.safetensors",
                          {"ids": rows[0], "labels": rows[1], "offsets": rows[2],
                           "adapter.logits": logits.float().numpy(), "adapter.loss": split_float64(loss.item())},
                          {"adapter.loss": f"{loss.item():.17g}"})


def same_results(made, committed):
    """Golden files hold float64 results rounded to float32, and figures of bfloat16 arithmetic, which another
    processor may round differently. Everything else must be equal."""
    (mine, my_meta), (theirs, their_meta) = read_safetensors(made), read_safetensors(committed)
    if mine.keys() != theirs.keys() or my_meta.keys() != their_meta.keys():
        return False
    for name, value in mine.items():
        other = theirs[name]
        if value.shape != other.shape or value.dtype != other.dtype:
            return False
        if value.dtype == np.int32:
            if not np.array_equal(value, other):
                return False
        elif np.abs(value - other).max() > 2.0**-23 * np.abs(other).max():
            return False
    return all(0.5 < float(my_meta[k]) / float(their_meta[k]) < 2 if k.startswith("bf16.") else
               abs(float(my_meta[k]) / float(their_meta[k]) - 1) < 1e-12 for k in my_meta)


def check(made, committed):
    """Compares one case's folders file by file; returns the differences in words."""
    problems, equal = [], 0
    mine = {p.relative_to(made) for p in made.rglob("*") if p.is_file()}
    theirs = {p.relative_to(committed) for p in committed.rglob("*") if p.is_file()}
    problems += [f"{committed.name}/{p}: not made by the script" for p in sorted(theirs - mine)]
    problems += [f"{committed.name}/{p}: not committed" for p in sorted(mine - theirs)]
    for path in sorted(mine & theirs):
        if (made / path).read_bytes() == (committed / path).read_bytes():
            equal += 1
        elif not (path.name.startswith("golden") and same_results(made / path, committed / path)):
            problems.append(f"{committed.name}/{path}: differs")
    print(f"{committed.name}: {equal} of {len(mine | theirs)} files equal byte for byte, {len(problems)} problems")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default=",".join(CASES))
    args = parser.parse_args()
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        for case in args.only.split(","):
            folder = (Path(temporary) if args.check else HERE) / case
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            golden_case(case, CASES[case], folder)
            if case == "llama_tied":
                golden_variants(folder)
            if args.check:
                problems += check(folder, HERE / case)
            else:
                print(case, sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()), "bytes", flush=True)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
