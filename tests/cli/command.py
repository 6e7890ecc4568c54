# SPDX-License-Identifier: MIT
"""What the tests of the command share: running it as a user does, exact refusals, tiny models and their files.

A test program is unittest with one case a promise; it ends with command.main(). The command is $PFX_BINARY, the source
tree $PFX_SOURCE_DIR. Every case runs in an empty folder of its own, so that the paths in messages are short and exact.
"""
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import unittest

SOURCE = os.path.realpath(os.environ.get("PFX_SOURCE_DIR", os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")))
PFX = os.path.realpath(os.environ.get("PFX_BINARY", os.path.join(SOURCE, "build/release/pfx")))
GOLDEN = os.path.join(SOURCE, "tests/golden")
BAD = os.path.join(SOURCE, "tests/bad")
SMOLLM2 = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
                       "pfx/SmolLM2-135M-Instruct.Q4_1.gguf")
COMMANDS = ("train", "generate", "eval", "compare", "inspect", "check", "tokenize", "probe", "merge")


class CommandTest(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="pfx-cli-")
        self.addCleanup(shutil.rmtree, self.folder)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)

    def start(self, *args, **how):
        """The command as a process with pipes; it does not outlive the case."""
        process = subprocess.Popen([PFX, *args], stdin=how.pop("stdin", subprocess.DEVNULL), stdout=subprocess.PIPE,
                                   stderr=how.pop("stderr", subprocess.PIPE), **how)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()

    def pfx(self, *args, code=0, stdin=None, **how):
        """Runs the command to its end: (standard output, standard error), both text."""
        done = subprocess.run([PFX, *args], input=stdin.encode() if isinstance(stdin, str) else stdin or b"",
                              stdout=how.pop("stdout", subprocess.PIPE), stderr=subprocess.PIPE, timeout=300, **how)
        out, err = (done.stdout or b"").decode(), done.stderr.decode()
        if done.returncode != code:
            self.fail(f"pfx {' '.join(args)}\nended with {done.returncode}, not {code}\n{out}{err}")
        return out, err

    def refused(self, args, code, message, **how):
        """It fails with exactly this line, this code, and nothing on standard output."""
        out, err = self.pfx(*args, code=code, **how)
        self.assertEqual(err, f"pfx: {message}\n")
        self.assertEqual(out, "")

    def misused(self, args, message, **how):
        """Wrong usage: code 2, and a line that says where the help is."""
        command = args[0] + " " if args and args[0] in COMMANDS else ""
        self.refused(args, 2, f"{message}\nTry: pfx {command}--help", **how)


def files(folder):
    """Every file below the folder, sorted."""
    return sorted(os.path.relpath(os.path.join(where, name), folder)
                  for where, _, names in os.walk(folder) for name in names)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, content):
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_rows(path, rows):
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def id_rows(count, vocab, longest=12):
    """Rows of ids with some regularity to learn."""
    rows = []
    for i in range(count):
        ids = [(7 * i + 3 * j) % (vocab - 3) + 3 for j in range(4 + i % (longest - 3))]
        rows.append({"ids": ids, "labels": [-100, -100] + ids[2:]})
    return rows


def read_safetensors(path):
    """{name: (dtype, shape, bytes)}, metadata"""
    content = read(path)
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + size])
    meta = header.pop("__metadata__", {})
    data = content[8 + size:]
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for name, t in header.items()}, meta


def write_safetensors(path, tensors, meta=None):
    header, data = {"__metadata__": meta or {"format": "pt"}}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write(path, struct.pack("<Q", len(text)) + text + data)


def numbers(tensor):
    """The values of an F32 or I32 tensor as a list."""
    dtype, _, content = tensor
    return list(struct.unpack(f"<{len(content) // 4}{'f' if dtype == 'F32' else 'i'}", content))


def copy_model(case, to="model", **config):
    """A golden model without its results and adapters, with other settings in config.json where given."""
    shutil.copytree(os.path.join(GOLDEN, case), to, ignore=shutil.ignore_patterns("golden*", "adapter*"))
    path = os.path.join(to, "config.json")
    settings = json.loads(read(path))
    settings.update(config)
    write(path, json.dumps(settings))
    return to


def change_weights(model, change):
    """Applies change(tensors) to the model's only safetensors file."""
    path = os.path.join(model, "model.safetensors")
    tensors, meta = read_safetensors(path)
    change(tensors)
    write_safetensors(path, tensors, meta)


def token_text(token):
    """The text of a token of add_tokenizer: a printable character, or <|ID|>."""
    return chr(token) if 33 <= token <= 126 else f"<|{token}|>"


def ids_text(ids):
    return "".join(token_text(token) for token in ids)


def add_tokenizer(model, vocab, special=(), **config):
    """A tokenizer whose text says its ids, one token a character; `special`: more tokens, from `vocab` on."""
    added = [{"id": i, "content": token_text(i), "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": False} for i in range(vocab) if len(token_text(i)) > 1]
    added += [dict(added[0], id=vocab + i, content=text, special=True) for i, text in enumerate(special)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    write(os.path.join(model, "tokenizer.json"), json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {token_text(i): i for i in range(vocab)}, "merges": []}}))
    write(os.path.join(model, "tokenizer_config.json"), json.dumps(dict({"eos_token": token_text(2)}, **config)))


def metrics(run):
    """The lines of metrics.jsonl without what a clock or the system decides."""
    lines = [json.loads(line) for line in read(os.path.join(run, "metrics.jsonl")).splitlines()]
    for line in lines:
        for key in ("seconds", "tokens_per_s", "peak_bytes"):
            del line[key]
    return lines


def main():
    if not os.access(PFX, os.X_OK):
        sys.exit(f"{PFX}: no such program; build it, or name it in PFX_BINARY")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told its background jobs to ignore it
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    result = unittest.main(exit=False, verbosity=2).result
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(77 if result.testsRun == len(result.skipped) else 0)
