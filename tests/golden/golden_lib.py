# SPDX-License-Identifier: MIT
"""What the golden scripts share: pinned versions, files with fixed bytes, and a float64 transformers model."""
import importlib.metadata
import json
import math
import os
import struct
import sys
import types
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may depend on a hub


def check_pins(names):
    """Stops when an installed version differs from requirements.txt: other versions may give other bytes."""
    pins = dict(line.split("==") for line in (HERE / "requirements.txt").read_text().split() if "==" in line)
    wrong = []
    for name in names:
        have = importlib.metadata.version(name).split("+")[0]
        if have != pins[name]:
            wrong.append(f"{name} {have} (pinned: {pins[name]})")
    if wrong:
        sys.exit(f"these fixtures are made with other versions: {', '.join(wrong)}; "
                 f"pip install -r {HERE / 'requirements.txt'}")


check_pins(["numpy", "safetensors", "torch", "transformers", "peft"])

import numpy as np  # noqa: E402
import safetensors.numpy  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(2)


def rng(seed, name):
    """A generator for one named thing: adding a case or a tensor changes no other."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def write_safetensors(path, tensors, metadata):
    """safetensors' own bytes, but with the metadata keys sorted (the library's order is random per process)."""
    blob = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in tensors.items()})
    size = struct.unpack("<Q", blob[:8])[0]
    header = {"__metadata__": dict(sorted(metadata.items()))} | json.loads(blob[8 : 8 + size])
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob[8 + size :])


def read_safetensors(path):
    """(tensors, metadata) of a small file."""
    blob = path.read_bytes()
    size = struct.unpack("<Q", blob[:8])[0]
    return safetensors.numpy.load(blob), json.loads(blob[8 : 8 + size]).get("__metadata__", {})


def split_float64(value):
    """A float64 as two float32 whose sum is right to 2^-48."""
    high = np.float32(value)
    return np.array([high, np.float32(value - float(high))], dtype=np.float32)


def rope_inverse_frequencies(config):
    """float64 inverse frequencies [head_dim/2] of the rotary types that pfx supports."""
    rope = config.rope_parameters
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    freq = 1.0 / rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope["rope_type"] == "linear":
        return freq / rope["factor"]
    if rope["rope_type"] == "llama3":
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        turns = rope["original_max_position_embeddings"] * freq / (2 * math.pi)
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        return freq * (smooth + (1 - smooth) / factor)
    assert rope["rope_type"] == "default"
    return freq


def make_float64(model):
    """Makes every step of a transformers model float64. RMS norms and rotary embeddings compute in float32 whatever
    the model's type; they are replaced by the same equations in float64. Attention must be sdpa: `eager` has a float32
    softmax."""
    assert model.config._attn_implementation == "sdpa"
    model.double()

    def norm(self, x):
        x = x.double()
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        angles = position_ids[..., None].double() * self.frequencies64
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = types.MethodType(norm, module)
        elif kind.endswith("RotaryEmbedding"):
            module.frequencies64 = rope_inverse_frequencies(model.config)
            assert torch.allclose(module.frequencies64, module.inv_freq.double(), rtol=1e-6)
            module.forward = types.MethodType(rotary, module)
    return model.eval()


def relative_l2(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())
