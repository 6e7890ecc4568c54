# SPDX-License-Identifier: MIT
"""gguf/: some of the tiny models as GGUF files, named and permuted as llama.cpp's converter does it (written with the
`gguf` package), and blocks of every quantised type with the values that the package reads from them.

    make_gguf_golden.py [--check]      run make_golden.py first: the models are read from its folders
"""
import argparse
import tempfile
from pathlib import Path

from golden_lib import HERE, check_pins, np, rng, rope_inverse_frequencies, torch, write_safetensors
from make_golden import load_model

check_pins(["gguf"])
from gguf import GGMLQuantizationType as Type  # noqa: E402
from gguf import GGUFWriter, quants  # noqa: E402

SEED = 11
CASES = {"gpt2": Type.F32, "llama3_old": Type.F32, "llama_linear": Type.F32,
         "llama_bf16": Type.BF16, "qwen2": Type.F32, "qwen3": Type.F32}
LLAMA = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm", "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
GPT2 = {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
        "ln_1": "attn_norm", "ln_2": "ffn_norm", "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
QUANTISED = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K)
# Where a block of these types keeps its float16 scales.
SCALES = {Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q5_0: (0,), Type.Q5_1: (0, 2), Type.Q8_0: (0,), Type.Q4_K: (0, 2),
          Type.Q5_K: (0, 2), Type.Q6_K: (208,)}


def gguf_name(name, names):
    """model.layers.1.mlp.up_proj.weight -> blk.1.ffn_up.weight"""
    parts = name.removeprefix("model.").removeprefix("transformer.").split(".")
    kind = parts.pop()
    layer = f"blk.{parts[1]}." if parts[0] in ("layers", "h") else ""
    return f"{layer}{names['.'.join(parts[2:] if layer else parts)]}.{kind}"


def permuted(value, heads):
    """llama.cpp's order of the rows of q and k: the two halves of each head interleaved."""
    return value.reshape(heads, 2, value.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)


def write_model(case, kind, path):
    model = load_model(HERE / case, torch.float32)
    config = model.config
    arch = "llama" if config.model_type == "mistral" else config.model_type
    writer = GGUFWriter(path, arch)
    writer.add_name(case)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if arch == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        if arch == "llama":
            writer.add_rope_dimension_count(head_dim)
            writer.add_vocab_size(config.vocab_size)
        rotary = config.rope_parameters["rope_type"]
        if rotary == "linear":
            writer.add_string(f"{arch}.rope.scaling.type", "linear")
            writer.add_rope_scaling_factor(config.rope_parameters["factor"])
        if rotary == "llama3":  # divisors of the plain frequencies
            plain = config.rope_parameters["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
            divisors = plain / rope_inverse_frequencies(config).numpy()
            writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    for name, tensor in sorted(model.state_dict().items()):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = tensor.numpy()
        if arch == "gpt2" and "c_" in name and value.ndim == 2:
            value = np.ascontiguousarray(value.T)
        if arch == "llama" and (".q_proj" in name or ".k_proj" in name):
            value = permuted(value, config.num_attention_heads if ".q_" in name else config.num_key_value_heads)
        stored = Type.F32 if value.ndim == 1 else kind
        writer.add_tensor(gguf_name(name, GPT2 if arch == "gpt2" else LLAMA),
                          quants.quantize(value, stored) if stored != Type.F32 else value, raw_dtype=stored)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_quantised(folder):
    """Random blocks with sensible scales, and two with scales that are negative, tiny, or zero."""
    writer, values = GGUFWriter(folder / "quants.gguf", "llama"), {}
    for kind in QUANTISED:
        random = rng(SEED, kind.name)
        block = {Type.Q4_K: 144, Type.Q5_K: 176, Type.Q6_K: 210}.get(kind)
        per_row = 2 if block else 16
        block = block or {Type.Q4_0: 18, Type.Q4_1: 20, Type.Q5_0: 22, Type.Q5_1: 24, Type.Q8_0: 34}[kind]
        data = random.integers(0, 256, (3, per_row, block), dtype=np.uint8)
        scales = random.uniform(-0.05, 0.05, (3, per_row, len(SCALES[kind]))).astype(np.float16)
        scales[0, 0], scales[1, 1] = 0, 6e-8  # zero; the smallest float16
        for i, at in enumerate(SCALES[kind]):
            data[:, :, at : at + 2] = scales[:, :, i : i + 1].view(np.uint8)
        data = data.reshape(3, -1)
        values[kind.name.lower()] = quants.dequantize(data, kind).astype(np.float32)
        assert values[kind.name.lower()].shape == (3, 512) and np.isfinite(values[kind.name.lower()]).all()
        writer.add_tensor(kind.name.lower(), data, raw_dtype=kind)
    finish(writer)
    write_safetensors(folder / "quants.safetensors", values, {"format": "pt"})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    committed, ok = HERE / "gguf", True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if args.check else committed
        folder.mkdir(exist_ok=True)
        for case, kind in CASES.items():
            write_model(case, kind, folder / f"{case}.gguf")
        write_quantised(folder)
        for path in sorted(folder.iterdir()):
            same = not args.check or (committed / path.name).read_bytes() == path.read_bytes()
            print(f"gguf/{path.name}: {('equal' if same else 'differs') if args.check else path.stat().st_size}")
            ok &= same
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
