# SPDX-License-Identifier: MIT
"""adamw.safetensors: two tensors through twenty steps of torch's AdamW in float64, clipped by torch's clip_grad_norm_.

    make_adamw_golden.py [--check]
"""
import argparse
import tempfile
from pathlib import Path

from golden_lib import HERE, check_pins, np, rng, torch, write_safetensors

check_pins(["torch"])
STEPS, LR, DECAY, CLIP, TOKENS = 20, 3e-2, 0.1, 1.0, 37


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file instead of writing it")
    args = parser.parse_args()
    random = rng(5, "adamw")
    starts = [random.standard_normal(shape).astype("float32") for shape in (40, 7)]
    grads = [random.standard_normal((STEPS, start.size)).astype("float32") * 20 for start in starts]
    grads[0][3] *= 1e-3  # a step that is not clipped
    grads[1][3] *= 1e-3
    params = [torch.nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in starts]
    optimizer = torch.optim.AdamW([{"params": params[:1], "weight_decay": DECAY}, {"params": params[1:], "weight_decay": 0.0}],
                                  lr=LR, betas=(0.9, 0.999), eps=1e-8)
    values, norms = [[], []], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / STEPS)
        for param, grad in zip(params, grads):
            param.grad = torch.tensor(grad[step], dtype=torch.float64) / TOKENS
        norms.append(float(torch.nn.utils.clip_grad_norm_(params, CLIP)))
        optimizer.step()
        for kept, param in zip(values, params):
            kept.append(param.detach().float().clone())
    tensors = {"norms": np.array(norms, dtype="float32")}
    for i in range(2):
        tensors |= {f"start.{i}": starts[i], f"grads.{i}": grads[i], f"values.{i}": torch.stack(values[i]).numpy()}
    committed = HERE / "adamw.safetensors"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / committed.name if args.check else committed
        write_safetensors(path, tensors, {})
        same = committed.read_bytes() == path.read_bytes()
        print(f"{committed.name}: {'equal' if same else 'differs'}" if args.check else f"{committed.name}: {path.stat().st_size}")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
