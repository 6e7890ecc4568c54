# SPDX-License-Identifier: MIT
"""A model folder of random bfloat16 weights at the shape of Llama 3 8B, for benchmarks of decode: the standard library
alone, so that it runs where PyTorch is missing.

    random_model.py FOLDER [--tiny]

Numbers are normal with a deviation of 0.02, cut out of one block at another place for every tensor; norms are ones."""
import argparse
import array
import json
import random
import struct
from pathlib import Path

BLOCK = 1 << 20  # numbers
LLAMA = dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
             num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0)
TINY = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=300, max_position_embeddings=128, rope_theta=10000.0)


def tensors(c):
    """(name, shape) of every weight, as Hugging Face names them."""
    width, inner = c["hidden_size"], c["intermediate_size"]
    shared = width // c["num_attention_heads"] * c["num_key_value_heads"]
    yield "model.embed_tokens.weight", (c["vocab_size"], width)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, shape in (("self_attn.q_proj", (width, width)), ("self_attn.k_proj", (shared, width)),
                            ("self_attn.v_proj", (shared, width)), ("self_attn.o_proj", (width, width)),
                            ("mlp.gate_proj", (inner, width)), ("mlp.up_proj", (inner, width)),
                            ("mlp.down_proj", (width, inner)), ("input_layernorm", (width,)),
                            ("post_attention_layernorm", (width,))):
            yield f"{layer}{name}.weight", shape
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (c["vocab_size"], width)


def bfloat16(value):
    return struct.unpack("<I", struct.pack("<f", value))[0] >> 16


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    shape = TINY if args.tiny else LLAMA
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "config.json").write_text(json.dumps(dict(
        shape, architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", rms_norm_eps=1e-5,
        tie_word_embeddings=False, torch_dtype="bfloat16", attention_bias=False, mlp_bias=False)))
    header, at = {}, 0
    for name, sides in tensors(shape):
        count = sides[0] * (sides[1] if len(sides) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": list(sides), "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    source = random.Random(1)
    block = memoryview(array.array("H", (bfloat16(source.gauss(0, 0.02)) for _ in range(BLOCK))).tobytes())
    ones = array.array("H", [bfloat16(1.0)] * shape["hidden_size"]).tobytes()
    with (args.folder / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, entry in header.items():
            if len(entry["shape"]) == 1:
                out.write(ones)
                continue
            left, at = entry["data_offsets"][1] - entry["data_offsets"][0], 2 * source.randrange(BLOCK)
            while left > 0:
                piece = block[at:at + left]
                out.write(piece)
                left, at = left - len(piece), 0


main()
