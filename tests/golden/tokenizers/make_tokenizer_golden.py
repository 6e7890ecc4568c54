# SPDX-License-Identifier: MIT
"""Digests of what the `tokenizers` library makes of 20,000 generated strings, for every tokenizer at hand.

    make_tokenizer_golden.py [--check] [--shared DIR] [--smollm FILE.gguf]

--shared is the folder with tokenizers/ (gpt2, qwen3, gpt-neox, gguf-vocab); --smollm the model of `make demo`. Files
that are not there are skipped and named. --check compares with the committed digests and trained tokenizers.
README.md says what a digest is and how a `tokenizers` object is made from a GGUF file.
"""
import argparse
import collections
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE.parent))
from golden_lib import check_pins  # noqa: E402

check_pins(["tokenizers", "gguf"])
import gguf  # noqa: E402
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,  # noqa: E402
                        processors, trainers)

SEED, TRAIN_SEED, COUNT, GROUP = 1, 2, 20000, 100
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # GGUF's token types


def generated(seed, count):
    """The strings of tests/helpers/strings.c, from that very file, as text (invalid bytes replaced)."""
    with tempfile.TemporaryDirectory() as temporary:
        program = Path(temporary) / "print_strings"
        sources = [HERE / "print_strings.c", ROOT / "tests/helpers/strings.c",
                   *(ROOT / "host/core" / name for name in ("memory.c", "error.c"))]
        subprocess.run([os.environ.get("CC", "cc"), "-std=gnu11", "-O1", "-D_GNU_SOURCE", f"-I{ROOT}/tests",
                        f"-I{ROOT}/host", "-o", program, *sources], check=True)
        blob = subprocess.run([program, str(seed), str(count)], check=True, stdout=subprocess.PIPE).stdout
    texts, at = [], 0
    while at < len(blob):
        size = struct.unpack_from("<I", blob, at)[0]
        raw = blob[at + 4 : at + 4 + size]
        assert b"\0" not in raw
        texts.append(raw.decode("utf-8", errors="replace"))
        at += 4 + size
    assert len(texts) == count
    if unicodedata.unidata_version == "14.0.0":
        assert all(unicodedata.category(c) not in ("Cn", "Cs", "Co") for text in texts for c in text)
    return texts


def gguf_field(reader, name):
    field = reader.fields.get(name)
    if field is None:
        return None
    return field.contents()


def from_gguf(path):
    """A `tokenizers` object for a GGUF vocabulary."""
    reader = gguf.GGUFReader(path)
    tokens = gguf_field(reader, "tokenizer.ggml.tokens")
    types = gguf_field(reader, "tokenizer.ggml.token_type")
    vocab = {token: i for i, token in enumerate(tokens)}
    if gguf_field(reader, "tokenizer.ggml.model") == "llama":
        scores = gguf_field(reader, "tokenizer.ggml.scores")
        model = models.BPE(vocab=vocab, merges=sentencepiece_merges(tokens, scores, types), fuse_unk=True,
                           byte_fallback=True, unk_token=tokens[0])
        tokenizer = sentencepiece_style(Tokenizer(model))
    else:
        merges = [tuple(merge.split(" ")) for merge in gguf_field(reader, "tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        split = gguf_field(reader, "tokenizer.ggml.pre")
        if split == "gpt-2":
            tokenizer.pre_tokenizer = byte_level
        else:
            assert split in ("smollm", "starcoder"), split
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                               byte_level])
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)
                                  for token, kind in zip(tokens, types) if kind in (UNKNOWN, CONTROL)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in zip(tokens, types)
                          if kind == USER_DEFINED])
    return tokenizer


def sentencepiece_merges(tokens, scores, types):
    """SentencePiece joins the neighbours whose union has the best score; as a list of merges: every way to cut a normal
    token into two tokens, best score of the union first, then (for equal scores) in the order of ids."""
    known = {token: i for i, token in enumerate(tokens) if types[i] == NORMAL}
    merges = []
    for token, i in known.items():
        cuts = [(token[:k], token[k:]) for k in range(1, len(token)) if token[:k] in known and token[k:] in known]
        cuts.sort(key=lambda cut: (known[cut[0]], known[cut[1]]))
        merges += [(-scores[i], i, cut) for cut in cuts]
    merges.sort(key=lambda merge: merge[:2])
    return [cut for _, _, cut in merges]


def sentencepiece_style(tokenizer):
    """As the Llama-2 tokenizer.json has it."""
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    return tokenizer


def train_llama3(texts):
    """Byte-level with llama-3's split rule and ignore_merges. Some whole words are in the vocabulary without a merge
    that leads there, so that ignore_merges matters."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.pre_tokenizer = split
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    data = json.loads(tokenizer.to_str())
    vocab = data["model"]["vocab"]
    words = " uncharacteristically| Uncharacteristically| STRASSE|Zurich| SEÑOR|ŁÓDŹ|042|====----####----".split("|")
    words = [split.pre_tokenize_str(word) for word in words]
    words = [word[0][0] for word in words if len(word) == 1 and word[0][0] not in vocab]
    assert len(words) > 4
    vocab |= {word: len(vocab) + i for i, word in enumerate(words)}
    data["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True)
                                  for name in ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")])
    tokenizer.decoder = decoders.ByteLevel()
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                                      special_tokens=[("<|begin_of_text|>", begin)])])
    return tokenizer


def train_sentencepiece(texts):
    """Vocabulary and merges of a byte-fallback BPE as Llama-2 has it: unknown, begin, end, 256 bytes, pieces. Of the
    characters only the 300 most frequent become pieces (the trainer's own limit breaks ties at random)."""
    counts = collections.Counter(c for text in texts for c in text if not c.isspace())
    kept = set(sorted(counts, key=lambda c: (-counts[c], c))[:300])
    texts = ["".join(c if c in kept else " " for c in text) for text in texts]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1100, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get) + ["▁▁", "▁▁▁▁", "▁▁▁"]
    model["merges"] += [("▁", "▁"), ("▁▁", "▁▁"), ("▁▁", "▁")]
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    return {name: i for i, name in enumerate(names)}, [tuple(merge) for merge in model["merges"]]


def byte_fallback(vocab, merges, dialect):
    """The two dialects of tokenizer.json: Prepend + Replace as normaliser, or a Metaspace that does not split."""
    tokenizer = sentencepiece_style(Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True,
                                                         unk_token="<unk>")))
    if dialect == "metaspace":
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.add_tokens([AddedToken("<code>", normalized=False, lstrip=True, rstrip=True)])
    tokenizer.add_special_tokens([AddedToken("[INST]", normalized=False, rstrip=True, special=True),
                                  AddedToken("[/INST]", normalized=False, lstrip=True, special=True)])
    begin = ("<s>", 1)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1",
                                                             special_tokens=[begin])
    return tokenizer


def digest(parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def digests(tokenizer, texts):
    lines = []
    for at in range(0, len(texts), GROUP):
        group = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts[at : at + GROUP]]
        forward = [tokenizer.decode(ids, skip_special_tokens=False) for ids in group]
        backward = [tokenizer.decode(ids[::-1], skip_special_tokens=True) for ids in group]
        lines.append(" ".join([digest(struct.pack(f"<{len(ids) + 1}i", *ids, -1) for ids in group),
                               digest(text.encode() + b"\0" for text in forward),
                               digest(text.encode() + b"\0" for text in backward)]))
    return "\n".join(lines) + "\n"


def check_cases(tokenizer, name, shared):
    """llama.cpp's published cases for this vocabulary."""
    stem = shared / f"tokenizers/gguf-vocab/ggml-vocab-{name}.gguf"
    texts = Path(f"{stem}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{stem}.out").read_text().split("\n")
    wrong = [text for text, line in zip(texts, lines)
             if tokenizer.encode(text, add_special_tokens=False).ids != [int(i) for i in line.split()]]
    print(f"{name}: {len(texts) - len(wrong)} of {len(texts)} published cases equal", wrong or "")
    return not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("PFX_SHARED_DIR") or ROOT.parent / "shared"))
    parser.add_argument("--smollm", type=Path, default=cache / "pfx/SmolLM2-135M-Instruct.Q4_1.gguf")
    args = parser.parse_args()
    texts, ok = generated(SEED, COUNT), True

    def keep(path, text):
        nonlocal ok
        if args.check:
            same = path.exists() and path.read_text() == text
            print(f"{path.name}: {'equal' if same else 'differs'}")
            ok &= same
        else:
            path.write_text(text)
            print(f"{path.name}: {len(text)} bytes")

    training = generated(TRAIN_SEED, 6000)
    vocab, merges = train_sentencepiece(training)
    trained = {"small_llama3": train_llama3(training), "small_spm": byte_fallback(vocab, merges, "prepend"),
               "small_metaspace": byte_fallback(vocab, merges, "metaspace")}
    for name, tokenizer in trained.items():
        keep(HERE / f"{name}.json", tokenizer.to_str(pretty=False) + "\n")
        keep(HERE / f"{name}.digests", digests(tokenizer, texts))

    folder = args.shared / "tokenizers"
    sources = {"gpt2": folder / "gpt2/tokenizer.json", "qwen3": folder / "qwen3/tokenizer.json",
               "gpt-neox": folder / "gpt-neox/20B_tokenizer.json"}
    sources |= {f"gguf_{name}": folder / f"gguf-vocab/ggml-vocab-{name}.gguf"
                for name in ("gpt-2", "llama-spm", "starcoder")}
    sources["gguf_smollm"] = args.smollm
    for name, path in sources.items():
        if not path.exists():
            print(f"{name}: skipped, no {path}")
            continue
        tokenizer = from_gguf(path) if path.suffix == ".gguf" else Tokenizer.from_file(str(path))
        if name.startswith("gguf_") and Path(f"{path}.inp").exists():
            ok &= check_cases(tokenizer, name[5:], args.shared)
        if name == "qwen3":
            ok &= check_cases(tokenizer, "qwen2", args.shared)
        keep(HERE / f"{name}.digests", digests(tokenizer, texts))
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
