# SPDX-License-Identifier: MIT
"""Logits and greedy text of SmolLM2-135M-Instruct, dequantised from its GGUF file, by transformers in float64.

    make_smollm2_golden.py [--check] [--smollm FILE.gguf] [--folder DIR]

--folder DIR also leaves the dequantised model there as a Hugging Face folder in float32 (for the benchmarks).
"""
import argparse
import os
import sys
from pathlib import Path

from golden_lib import (HERE, check_pins, make_float64, np, read_safetensors, split_float64, torch,
                        write_safetensors)

check_pins(["gguf", "tokenizers"])
import gguf  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

sys.path.insert(0, str(HERE / "tokenizers"))
from make_tokenizer_golden import from_gguf  # noqa: E402

TEXTS = ["The capital of France is",
         "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
         "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
         "name : The Punter | Type : restaurant | food : Italian | price range : cheap\n",
         "def fibonacci(n):\n    ", "lantern (noun):", "3.14159 is", "Grüße aus Zürich! 你好"]
LAST, BEST, FIXED, GREEDY = 3, 256, 512, 24
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def unpermute(weight, heads):
    """GGUF keeps the rows of q and k with the two halves of each head interleaved; transformers has them apart."""
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def open_model(path):
    """A transformers model in float32 with the dequantised weights of a llama GGUF file."""
    reader = gguf.GGUFReader(path)
    field = lambda name: reader.fields[f"llama.{name}"].contents()  # noqa: E731
    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data), hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"), num_hidden_layers=field("block_count"),
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=True,
        max_position_embeddings=field("context_length"), rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters=dict(rope_type="default", rope_theta=field("rope.freq_base")), bos_token_id=1, eos_token_id=2)
    weights = {}
    for tensor in reader.tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            value = unpermute(value, heads) if parts[2] == "attn_q" else value
            value = unpermute(value, kv_heads) if parts[2] == "attn_k" else value
            weights[f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"] = torch.from_numpy(np.ascontiguousarray(value))
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[parts[0]]
            weights[f"{name}.weight"] = torch.from_numpy(value)
    model = LlamaForCausalLM(config)
    missing = model.load_state_dict(weights, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"]) and not missing.unexpected_keys
    model.tie_weights()
    model.set_attn_implementation("sdpa")
    return model.eval()


def greedy(model, ids):
    """Greedy ids and the smallest distance between the two best logits on the way."""
    ids, gap, cache, step = list(ids), float("inf"), None, torch.tensor([ids])
    with torch.no_grad():
        for _ in range(GREEDY):
            out = model(input_ids=step, past_key_values=cache, use_cache=True)
            best, cache = out.logits[0, -1].topk(2), out.past_key_values
            gap = min(gap, float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
            step = torch.tensor([ids[-1:]])
    return ids[-GREEDY:], gap


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--smollm", type=Path, default=cache / "pfx/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if not args.smollm.exists():
        print(f"smollm2: skipped, no {args.smollm}")
        return 0
    tokenizer, model = from_gguf(args.smollm), open_model(args.smollm)
    rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    with torch.no_grad():
        float32 = [model(input_ids=torch.tensor([ids])).logits[0, -LAST:].double() for ids in rows]
    if args.folder:
        model.save_pretrained(args.folder)
        tokenizer.save(str(args.folder / "tokenizer.json"))
    make_float64(model)
    with torch.no_grad():
        full = [model(input_ids=torch.tensor([ids])).logits[0] for ids in rows]
    logits = torch.cat([row[-LAST:] for row in full])
    losses = [torch.nn.functional.cross_entropy(row[:-1], torch.tensor(ids[1:]), reduction="sum").item()
              for row, ids in zip(full, rows)]
    loss = sum(losses) / sum(len(ids) - 1 for ids in rows)
    best = logits.topk(BEST)
    fixed = torch.arange(FIXED) * model.config.vocab_size // FIXED
    texts, kept = [], []
    for row, ids in enumerate(rows):
        made, gap = greedy(model, ids)
        print(f"{TEXTS[row]!r} -> {tokenizer.decode(made, skip_special_tokens=False)!r} (closest call {gap:.4f})")
        if gap > 1e-3:
            texts += made
            kept.append(row)
    assert logits.shape[0] == LAST * len(rows)
    tensors = {"ids": np.array(sum(rows, []), dtype=np.int32), "labels": np.array(sum(rows, []), dtype=np.int32),
               "loss": split_float64(loss),
               "offsets": np.cumsum([0] + [len(ids) for ids in rows]).astype(np.int32),
               "best.ids": best.indices.numpy().astype(np.int32), "best.logits": best.values.float().numpy(),
               "fixed.ids": fixed.numpy().astype(np.int32), "fixed.logits": logits[:, fixed].float().numpy(),
               "largest": logits.abs().amax(1).float().numpy(),
               "greedy.rows": np.array(kept, dtype=np.int32),
               "greedy.ids": np.array(texts, dtype=np.int32).reshape(-1, GREEDY)}
    error = float((torch.cat(float32) - logits).abs().max() / logits.abs().max())
    print(f"transformers in float32 is within {error:.1e} of the largest logit")
    path = HERE / "smollm2/golden.safetensors"
    if not args.check:
        path.parent.mkdir(exist_ok=True)
        write_safetensors(path, tensors, {"texts": "\x1f".join(TEXTS), "loss": f"{loss:.17g}",
                                          "transformers_float32_error": f"{error:.1e}"})
        return 0
    known, _ = read_safetensors(path)
    same = known.keys() == tensors.keys() and all(
        np.array_equal(known[k], v) if v.dtype == np.int32 and k != "best.ids" else
        np.allclose(known[k], v, rtol=2.0**-22, atol=1e-6) for k, v in tensors.items())
    print(f"smollm2/golden.safetensors: {'equal' if same else 'differs'}")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
