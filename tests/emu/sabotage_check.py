#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sabotage_check.py <build/emu>: the emulated device must be able to fail. Copies of sources lose a barrier, an index
check, an event, a leading dimension, an initialisation, a wait for asynchronous copies; each is compiled, linked in front of the
library, and the test beside it must fail, in one of a few thread orders. An unchanged copy must pass."""
import json
import os
import shlex
import subprocess
import sys
import tempfile

SOURCE = os.environ["PFX_SOURCE_DIR"]
BUILD = os.path.abspath(sys.argv[1])

# (what is lost, file changed, file compiled, from, to, test, thread orders)
CASES = (
    ("nothing", "kernels/norm.cu", "kernels/norm.cu", "", "", "norm_cuda_test", (0, 1)),
    ("a barrier", "kernels/device.cuh", "kernels/optimizer.cu",
     "  if (lane == 0) scratch[warp] = x;\n  __syncthreads();\n  x = px_warp_sum(lane",
     "  if (lane == 0) scratch[warp] = x;\n  x = px_warp_sum(lane", "optimizer_cuda_test", (0, 1, 2, 3)),
    ("an index check", "kernels/attention_bwd.cu", "kernels/attention_bwd.cu",
     "  if (row >= a.shape.q_rows) return;\n", "", "attention_property_cuda_test", (0,)),
    ("an event", "host/backend/cuda_queue.c", "host/backend/cuda_queue.c",
     "  return (int)cudaStreamWaitEvent(stream_of(be, queue), (cudaEvent_t)event, 0);", "  return (void)queue, (void)event, (void)be, 0;",
     "queue_test", (0, 1, 2, 3, 4, 5)),
    ("a leading dimension", "host/backend/gemm_cublaslt.c", "host/backend/gemm_cublaslt.c",
     "(uint64_t)a->m, a->ldc));", "(uint64_t)a->m, a->n));", "device_product_test", (0,)),
    ("an initialisation", "kernels/attention_mma_decode.cu", "kernels/attention_mma_decode.cu",
     "    px_copy16(tile + j * tile_of<DIM>::STRIDE + d, there ? rows + at + d : NULL, there);",
     "    if (there) px_copy16(tile + j * tile_of<DIM>::STRIDE + d, rows + at + d, true);", "attention_decode_cuda_test", (0,)),
    ("a wait for asynchronous copies", "kernels/attention_mma_decode.cu", "kernels/attention_mma_decode.cu",
     "    px_wait_copies<STAGES - 2>();\n", "", "attention_decode_cuda_test", (0,)),
)


def compile_command(source):
    for entry in json.load(open(os.path.join(BUILD, "compile_commands.json"))):
        if entry["file"] == os.path.join(SOURCE, source):
            return shlex.split(entry["command"])
    sys.exit(f"{source} is not compiled in {BUILD}")


def link_command(program):
    lines = subprocess.run(["ninja", "-C", BUILD, "-t", "commands", f"tests/{program}"], capture_output=True, text=True,
                           check=True).stdout.splitlines()
    return shlex.split(lines[-1].removeprefix(": && ").removesuffix(" && :"))


def build(scratch, changed, compiled, before, after, program):
    for name in {changed, compiled}:
        to = os.path.join(scratch, name)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        text = open(os.path.join(SOURCE, name)).read()
        if name == changed and before:
            if text.count(before) != 1:
                sys.exit(f"{name}: what is to be sabotaged is there {text.count(before)} times")
            text = text.replace(before, after)
        open(to, "w").write(text)
    command = compile_command(compiled)
    command[command.index("-o") + 1] = obj = os.path.join(scratch, "sabotaged.o")
    command[-1] = os.path.join(scratch, compiled)
    subprocess.run([command[0], f"-I{scratch}", *command[1:], "-Wno-error"], cwd=BUILD, check=True)
    link = link_command(program)
    at = link.index("-o")
    link[at + 1] = exe = os.path.join(scratch, program)
    link.insert(at, obj)
    subprocess.run(link, cwd=BUILD, check=True)
    return exe


def main():
    wrong = []
    for what, changed, compiled, before, after, program, seeds in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            exe = build(scratch, changed, compiled, before, after, program)
            caught = None
            for seed in seeds:
                env = dict(os.environ, PX_EMU_SEED=str(seed), OMP_NUM_THREADS="1", PFX_BUILD_DIR=BUILD,
                           LD_LIBRARY_PATH=os.path.join(BUILD, "standin"))
                done = subprocess.run([exe], env=env, capture_output=True, text=True, errors="replace")
                if done.returncode:
                    caught = seed
                    break
            print(f"without {what}: {program} " + ("passes" if caught is None else f"fails (thread order {caught})"), flush=True)
            if (caught is None) != (what == "nothing"):
                wrong.append(what)
                print((done.stdout + done.stderr)[-2000:])
    sys.exit(f"not as it should be: {', '.join(wrong)}" if wrong else 0)


main()
