#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the damaged files of this folder, one fault each, named after it, and messages.txt: the path of each and, after
a tab, the exact message that a user must see. bad_files_test.c opens every one. Needs Python alone."""
import hashlib
import json
import os
import shutil
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
messages = []


def put(path, content):
    full = os.path.join(HERE, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as f:
        f.write(content)


def case(path, content, message):
    put(path, content)
    messages.append((path, message.replace("FILE", path)))


# --- safetensors ---

def tensors(header, data=b"", length=None):
    if not isinstance(header, bytes):
        header = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def safetensors(name, content, message):
    case(f"safetensors/{name}.safetensors", content, message)


def make_safetensors():
    four, eight = b"\0" * 4, b"\0" * 8
    a = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    no_file = "the file is no safetensors"
    safetensors("empty", b"", "FILE: has only 0 bytes, too few for safetensors; get the file again")
    safetensors("seven_bytes", b"\0" * 7, "FILE: has only 7 bytes, too few for safetensors; get the file again")
    safetensors("header_longer_than_file", tensors(b"{}", length=3),
                "FILE: the header should be 3 bytes long, but only 2 follow; the file is no safetensors, or cut short: "
                "get it again")
    safetensors("header_length_all_ones", tensors(b"{}", length=2**64 - 1),
                "FILE: the header should be 18446744073709551615 bytes long, but only 2 follow; the file is no "
                "safetensors, or cut short: get it again")
    safetensors("header_empty", tensors(b""), f'FILE: the header does not start with "{{"; {no_file}')
    safetensors("header_starts_with_space", tensors(b" {}"), f'FILE: the header does not start with "{{"; {no_file}')
    safetensors("header_is_array", tensors(b"[]"), f'FILE: the header does not start with "{{"; {no_file}')
    safetensors("header_not_json", tensors(b'{"a":}'), "FILE: line 1, column 6: unexpected token near '}'")
    safetensors("header_not_utf8", tensors(b'{"a\xff":' + a + b"}", four),
                "FILE: line 1, column 3: unable to decode byte 0xff near '\"a'")
    safetensors("header_two_objects", tensors(b"{}{}"), "FILE: line 1, column 3: end of file expected near '{'")
    safetensors("header_nested_deeply", tensors(b'{"a":' + b"[" * 3000),
                "FILE: line 1, column 2053: maximum parsing depth reached near '['")
    safetensors("tensor_twice", tensors(b'{"a":' + a + b',"a":' + a + b"}", four),
                "FILE: line 1, column 57: duplicate object key near '\"a\"'")
    safetensors("field_twice", tensors(b'{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', four),
                "FILE: line 1, column 27: duplicate object key near '\"dtype\"'")
    safetensors("metadata_is_string", tensors({"__metadata__": "pt"}), 'FILE: "__metadata__" must be a JSON object')
    safetensors("metadata_value_is_number", tensors({"__metadata__": {"step": 1}}),
                'FILE: "__metadata__": field "step" must be a string')
    safetensors("metadata_key_with_newline", tensors({"__metadata__": {"a\n": "1"}}),
                'FILE: a key of "__metadata__" holds control characters')
    safetensors("name_with_newline", tensors({"a\n": entry()}, four), "FILE: a tensor's name holds control characters")
    safetensors("name_with_nul", tensors(b'{"a\\u0000":' + a + b"}", four),
                "FILE: line 1, column 10: NUL byte in object key not supported near '\"a\\u0000\"'")
    safetensors("metadata_with_nul", tensors(b'{"__metadata__":{"a":"\\u0000"}}'),
                "FILE: line 1, column 29: \\u0000 is not supported")
    safetensors("tensor_is_number", tensors({"a": 1}), 'FILE: tensor "a": its entry must be a JSON object')
    dtypes = "which pfx does not read (it reads F32, F16, BF16, I32, I64, U8, BOOL); convert it to F32"
    safetensors("dtype_f64", tensors({"a": entry("F64", (1,), (0, 8))}, eight),
                f'FILE: tensor "a" has dtype F64, {dtypes}')
    safetensors("dtype_unknown", tensors({"a": entry("Q9")}, four), f'FILE: tensor "a" has dtype Q9, {dtypes}')
    safetensors("dtype_with_newline", tensors({"a": entry("F\n")}, four),
                f'FILE: tensor "a" has dtype with control characters, {dtypes}')
    safetensors("dtype_missing", tensors({"a": {"shape": [1], "data_offsets": [0, 4]}}, four),
                'FILE: tensor "a": field "dtype" must be a string')
    safetensors("shape_missing", tensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, four),
                'FILE: tensor "a": field "shape" must be an array')
    whole = "must be an integer of 0 or more"
    safetensors("dimension_negative", tensors({"a": entry(shape=(1, -1))}, four),
                f'FILE: tensor "a": dimension 1 {whole}')
    safetensors("dimension_fractional", tensors({"a": entry(shape=(1.0,))}, four),
                f'FILE: tensor "a": dimension 0 {whole}')
    safetensors("dimension_beyond_int64", tensors({"a": entry(shape=(2**64 + 1,))}, four),
                f'FILE: tensor "a": dimension 0 {whole}')
    safetensors("five_dimensions", tensors({"a": entry(shape=(1, 1, 1, 1, 1))}, four),
                'FILE: tensor "a" has 5 dimensions; pfx reads at most 4')
    large = 'FILE: tensor "a": the shape is too large for any file'
    safetensors("shape_overflows_count", tensors({"a": entry(shape=(2**32, 2**32))}, four), large)
    safetensors("shape_overflows_bytes", tensors({"a": entry(shape=(2**62 + 1,))}, four), large)
    safetensors("shape_overflows_beside_zero", tensors({"a": entry(shape=(2**32, 2**32, 0), offsets=(0, 0))}), large)
    safetensors("shape_needs_more_than_offsets", tensors({"a": entry(shape=(2,))}, four),
                'FILE: tensor "a" needs 8 bytes for its shape, but its offsets span 4')
    safetensors("shape_needs_less_than_offsets", tensors({"a": entry(offsets=(0, 8))}, eight),
                'FILE: tensor "a" needs 4 bytes for its shape, but its offsets span 8')
    two = 'FILE: tensor "a": field "data_offsets" must be two integers'
    safetensors("offsets_missing", tensors({"a": {"dtype": "F32", "shape": [1]}}, four), two)
    safetensors("offsets_three", tensors({"a": entry(offsets=(0, 4, 8))}, four), two)
    safetensors("offsets_fractional", tensors({"a": entry(offsets=(0, 4.5))}, four), two)
    safetensors("offsets_beyond_int64", tensors({"a": entry(offsets=(0, 2**64))}, four), two)
    safetensors("offsets_reversed", tensors({"a": entry(offsets=(4, 0))}, four),
                'FILE: tensor "a" ends (0) before it begins (4)')
    safetensors("offset_negative", tensors({"a": entry(offsets=(-4, 0))}, four),
                'FILE: tensor "a" ends (0) before it begins (-4)')
    safetensors("offset_beyond_file", tensors({"a": entry(offsets=(2**62, 2**62 + 4))}, four),
                'FILE: tensor "a" ends at byte 4611686018427387908 of the data, but only 4 are there; the file is cut '
                "short: get it again")
    safetensors("data_cut_short", tensors({"a": entry(shape=(2,), offsets=(0, 8))}, b"\0" * 7),
                'FILE: tensor "a" ends at byte 8 of the data, but only 7 are there; the file is cut short: get it again')
    safetensors("tensors_overlap", tensors({"a": entry(), "b": entry(offsets=(2, 6))}, b"\0" * 6),
                'FILE: tensors "a" and "b" overlap')
    safetensors("tensors_share_bytes", tensors({"a": entry(), "b": entry()}, four), 'FILE: tensors "a" and "b" overlap')
    safetensors("gap_between_tensors", tensors({"a": entry(), "b": entry(offsets=(8, 12))}, b"\0" * 12),
                'FILE: 4 bytes before tensor "b" belong to no tensor')
    safetensors("gap_at_start", tensors({"a": entry(offsets=(1, 5))}, b"\0" * 5),
                'FILE: 1 bytes before tensor "a" belong to no tensor')
    safetensors("bytes_after_last_tensor", tensors({"a": entry()}, b"\0" * 6),
                "FILE: 2 bytes at the end belong to no tensor")
    safetensors("bytes_without_tensors", tensors({}, four), "FILE: 4 bytes at the end belong to no tensor")
    safetensors("git_lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
                "FILE: is a git-lfs pointer, not the file itself; run git lfs pull")
    pickle = "FILE: is a PyTorch pickle, not safetensors; save it again with safetensors"
    safetensors("pickle", b"\x80\x02}q\0.", pickle)
    safetensors("pickle_zip", b"PK\x03\x04" + b"\0" * 26, pickle)
    safetensors("gguf", b"GGUF\3\0\0\0" + b"\0" * 16,
                "FILE: is a GGUF file, not safetensors; give it a name that ends in .gguf")


# --- GGUF ---

U8, U32, BOOL, STRING, ARRAY, U64 = 0, 4, 7, 8, 9, 10


def text(t):
    t = t.encode() if isinstance(t, str) else t
    return struct.pack("<Q", len(t)) + t


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def info(name="w", shape=(4,), kind=0, offset=0):
    return text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape) + struct.pack(
        "<IQ", kind, offset)


def model(keys=(), infos=(), data=b"", version=3, key_count=None, tensor_count=None, alignment=32):
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos) if tensor_count is None else tensor_count,
                                 len(keys) if key_count is None else key_count) + b"".join(keys) + b"".join(infos)
    return head + (b"\0" * (-len(head) % alignment) + data if infos else b"")


def gguf(name, content, message):
    case(f"gguf/{name}.gguf", content, message)


def make_gguf_values():
    cut = "the file is cut short: get it again"
    no_gguf = 'FILE: does not start with "GGUF"; the file is no GGUF model'
    gguf("empty", b"", no_gguf)
    gguf("three_bytes", b"GGU", no_gguf)
    gguf("old_ggml", b"lmgg" + b"\0" * 20, no_gguf)
    gguf("four_bytes", b"GGUF", f"FILE: ends at byte 4 within its first bytes; {cut}")
    gguf("cut_in_counts", b"GGUF\3\0\0\0" + b"\0" * 12, f"FILE: ends at byte 20 within its first bytes; {cut}")
    gguf("version_0", model(version=0), "FILE: has GGUF version 0; pfx reads versions 2 and 3")
    gguf("version_1", model(version=1), "FILE: has GGUF version 1; pfx reads versions 2 and 3")
    gguf("version_4", model(version=4), "FILE: has GGUF version 4; pfx reads versions 2 and 3")
    gguf("big_endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
         "FILE: is a big-endian GGUF, which pfx does not read; convert it again without --bigendian")
    gguf("keys_too_many", model(key_count=2**60),
         "FILE: 1152921504606846976 keys cannot stand in 0 bytes; the file is damaged or cut short")
    gguf("tensors_too_many", model(tensor_count=2**63),
         "FILE: 9223372036854775808 tensors cannot stand in 0 bytes; the file is damaged or cut short")
    gguf("key_beyond_file", model([struct.pack("<QI", 2**40, 0) + b"\0" * 8]), f"FILE: ends at byte 44 within a key; {cut}")
    gguf("key_not_utf8", model([key(b"\xff", U8, b"\0")]),
         "FILE: a key at byte 32 is no UTF-8 text of at most 65535 bytes; the file is damaged")
    gguf("key_with_nul", model([key(b"a\0", U8, b"\0")]),
         "FILE: a key at byte 32 is no UTF-8 text of at most 65535 bytes; the file is damaged")
    gguf("key_twice", model([key("a", U8, b"\0"), key("b", U8, b"\0"), key("a", U8, b"\1")]), "FILE: key a is there twice")
    gguf("value_type_unknown", model([key("a", 13, b"\0")]),
         "FILE: key a has the unknown value type 13; the file is damaged")
    gguf("element_type_unknown", model([key("a", ARRAY, struct.pack("<IQ", 99, 0))]),
         "FILE: key a has the unknown value type 99; the file is damaged")
    gguf("value_cut", model([key("a" * 8, U64, b"\0" * 7)]), f"FILE: ends at byte 51 within aaaaaaaa; {cut}")
    gguf("boolean_is_two", model([key("a", BOOL, b"\2")]), "FILE: key a: 2 is no truth value (0 or 1)")
    gguf("boolean_array_with_255", model([key("a", ARRAY, struct.pack("<IQ", BOOL, 3) + b"\0\1\xff")]),
         "FILE: key a: 255 is no truth value (0 or 1)")
    gguf("string_beyond_file", model([key("a", STRING, struct.pack("<Q", 2**64 - 1))]), f"FILE: ends at byte 45 within a; {cut}")
    gguf("array_count_wraps", model([key("a", ARRAY, struct.pack("<IQ", U64, 2**61) + b"\0" * 8)]),
         f"FILE: ends at byte 57 within a; {cut}")
    gguf("array_of_strings_too_many", model([key("a", ARRAY, struct.pack("<IQ", STRING, 3) + text("x") + text("y"))]),
         f"FILE: ends at byte 67 within a; {cut}")
    gguf("array_of_strings_cut", model([key("a", ARRAY, struct.pack("<IQ", STRING, 2) + text("x" * 9) + struct.pack("<Q", 1))]),
         f"FILE: ends at byte 74 within a; {cut}")
    gguf("arrays_nested_deeply", model([key("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9 + struct.pack("<IQ", U8, 0))]),
         "FILE: key a: arrays are nested deeper than 8 levels")
    split = [key("split.count", 2, b"\3\0"), key("split.no", 2, b"\1\0")]
    gguf("split", model(split),
         "FILE: is part 2 of 3 of a split GGUF, which pfx does not read; join the parts with llama-gguf-split --merge")
    gguf("split_count_is_string", model([key("split.count", STRING, text("3"))]),
         "FILE: key split.count must be an integer below 2^63")


def make_gguf_tensors():
    sixteen = b"\0" * 16
    reads = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K"
    quantise = f"which pfx does not read (it reads {reads}); quantise the model to one of these"
    gguf("type_iq2_xs", model((), [info("blk.0.ffn_up.weight", (256,), 17)], b"\0" * 74),
         f"FILE: tensor blk.0.ffn_up.weight has type IQ2_XS, {quantise}")
    gguf("type_q4_2_of_old", model((), [info(kind=4)], sixteen), f"FILE: tensor w has type Q4_2, {quantise}")
    gguf("type_unknown", model((), [info(kind=999)], sixteen),
         f"FILE: tensor w has the unknown type number 999 (pfx reads {reads}); the file is damaged or newer than pfx")
    gguf("five_dimensions", model((), [info(shape=(1, 1, 1, 1, 4))], sixteen),
         "FILE: tensor w has 5 dimensions; pfx reads at most 4")
    gguf("shape_overflows", model((), [info(shape=(2**32, 2**32))], sixteen),
         "FILE: tensor w: the shape is too large for any file")
    gguf("shape_overflows_beside_zero", model((), [info(shape=(2**32, 2**32, 0))], sixteen),
         "FILE: tensor w: the shape is too large for any file")
    gguf("dimension_beyond_int64", model((), [info(shape=(2**64 - 1,))], sixteen),
         "FILE: tensor w: the shape is too large for any file")
    gguf("row_no_multiple_of_block", model((), [info(shape=(33, 2), kind=8)], sixteen),
         "FILE: tensor w has rows of 33 elements, no multiple of q8_0's 32")
    gguf("tensor_twice", model((), [info(), info(offset=32)], b"\0" * 48), 'FILE: tensor "w" is there twice')
    gguf("name_with_newline", model((), [info("w\n")], sixteen),
         "FILE: a tensor's name at byte 32 is no UTF-8 text of at most 65535 bytes; the file is damaged")
    gguf("info_cut", model(tensor_count=1) + info()[:-1] + b"", "FILE: ends at byte 56 within w; the file is cut short: "
         "get it again")
    gguf("offset_not_aligned", model((), [info(offset=16)], b"\0" * 32),
         "FILE: tensor w begins at byte 16, no multiple of the alignment 32")
    gguf("offset_beyond_file", model((), [info(offset=64)], sixteen),
         "FILE: tensor w needs 16 bytes at byte 64 of the data, but the data has 16; the file is cut short: get it again")
    gguf("offset_wraps", model((), [info(shape=(16,), offset=2**64 - 32)], b"\0" * 64),
         "FILE: tensor w needs 64 bytes at byte 18446744073709551584 of the data, but the data has 64; the file is cut "
         "short: get it again")
    gguf("data_cut_short", model((), [info()], b"\0" * 15),
         "FILE: tensor w needs 16 bytes at byte 0 of the data, but the data has 15; the file is cut short: get it again")
    gguf("data_missing", model((), [info()])[:57],
         "FILE: tensor w needs 16 bytes at byte 0 of the data, but the data has 0; the file is cut short: get it again")
    gguf("tensors_overlap", model((), [info("a", (12,)), info("b", offset=32)], b"\0" * 48), "FILE: tensors a and b overlap")
    for name, value in (("alignment_0", 0), ("alignment_48", 48), ("alignment_2_31", 2**31)):
        gguf(name, model([key("general.alignment", U32, struct.pack("<I", value))]),
             f"FILE: general.alignment is {value}, but must be a power of two up to 1073741824")
    gguf("alignment_is_string", model([key("general.alignment", STRING, text("32"))]),
         "FILE: key general.alignment must be an integer below 2^63")


# --- adapter folders ---

CONFIG = {"auto_mapping": None, "base_model_name_or_path": None, "encoder_hidden_size": 2, "inference_mode": True,
          "init_weights": None, "modules_to_save": None, "num_attention_heads": 1, "num_layers": 1,
          "num_transformer_submodules": 1, "num_virtual_tokens": 2, "peft_type": "PREFIX_TUNING",
          "peft_version": "0.21.2", "prefix_projection": False, "revision": None, "task_type": "CAUSAL_LM",
          "token_dim": 2}
GOOD = tensors({"prompt_embeddings": entry("F32", (2, 4), (0, 32))}, struct.pack("<8f", *range(8)))


def adapter(name, message, config=None, prefix=GOOD, **fields):
    folder = f"adapter/{name}"
    if config is None:
        config = json.dumps({k: v for k, v in {**CONFIG, **fields}.items() if v != "left out"}).encode()
    put(f"{folder}/adapter_config.json", config)
    if prefix is not None:
        put(f"{folder}/adapter_model.safetensors", prefix)
    messages.append((folder, message.replace("CONFIG", f"{folder}/adapter_config.json").replace(
        "MODEL", f"{folder}/adapter_model.safetensors").replace("FOLDER", folder)))


def make_adapter_configs():
    adapter("config_not_json", "CONFIG: line 1, column 1: '[' or '{' expected near 'x'".replace(
        "'[' or '{' expected", "invalid token"), config=b"x")
    adapter("config_is_array", "CONFIG: must hold a JSON object", config=b"[]")
    adapter("config_empty", "CONFIG: line 1, column 0: unexpected token near end of file", config=b"")
    adapter("type_missing", 'CONFIG: field "peft_type" is missing; is it an adapter of PEFT?', peft_type="left out")
    adapter("type_is_number", 'CONFIG: field "peft_type" must be a string', peft_type=7)
    adapter("type_loha", 'CONFIG: field "peft_type" is "LOHA"; pfx reads PREFIX_TUNING, CARTRIDGE, PROMPT_TUNING, P_TUNING, '
            "LORA, IA3 and LN_TUNING", peft_type="LOHA")
    adapter("task_seq_2_seq", 'CONFIG: field "task_type" is "SEQ_2_SEQ_LM"; pfx reads CAUSAL_LM', task_type="SEQ_2_SEQ_LM")
    adapter("two_submodules", 'CONFIG: field "num_transformer_submodules" is 2; pfx reads 1: a prefix for an '
            "encoder-decoder model does not fit its models", num_transformer_submodules=2)
    adapter("modules_to_save", 'CONFIG: field "modules_to_save" is set; pfx does not read modules that were trained '
            "beside a prefix", modules_to_save=["lm_head"])
    adapter("unknown_field_set", 'CONFIG: field "rank_pattern" is set, and pfx does not know what it means; remove it, '
            "or set it to null, if the adapter does not depend on it", rank_pattern={"a": 1})
    sizes = "must be an integer from 1 to 1048576"
    adapter("layers_missing", f'CONFIG: field "num_layers" {sizes}', num_layers="left out")
    adapter("tokens_zero", f'CONFIG: field "num_virtual_tokens" {sizes}', num_virtual_tokens=0)
    adapter("tokens_negative", f'CONFIG: field "num_virtual_tokens" {sizes}', num_virtual_tokens=-2)
    adapter("token_dim_huge", f'CONFIG: field "token_dim" {sizes}', token_dim=2**62)
    adapter("heads_is_string", 'CONFIG: field "num_attention_heads" must be an integer', num_attention_heads="1")
    adapter("token_dim_no_multiple_of_heads", "CONFIG: token_dim 2 is no multiple of num_attention_heads 3",
            num_attention_heads=3)
    adapter("frozen_more_than_tokens", "CONFIG: num_frozen_tokens 3 is more than num_virtual_tokens 2",
            peft_type="CARTRIDGE", num_frozen_tokens=3)


def make_adapter_models():
    adapter("model_missing", "MODEL: is missing", prefix=None)
    adapter("model_is_pickle", "FOLDER/adapter_model.bin: is a pickle, which can run code and which pfx does not read; "
            "load it with PEFT and save it again with save_pretrained(..., safe_serialization=True)", prefix=None)
    put("adapter/model_is_pickle/adapter_model.bin", b"\x80\x02}q\0.")
    adapter("model_cut_short", 'MODEL: tensor "prompt_embeddings" ends at byte 32 of the data, but only 31 are there; '
            "the file is cut short: get it again", prefix=GOOD[:-1])
    adapter("tensor_missing", 'MODEL: holds no tensor "prompt_embeddings"', prefix=tensors({}))
    adapter("tensor_extra", 'MODEL: holds tensor "x"; pfx reads "prompt_embeddings" and nothing else',
            prefix=tensors({"prompt_embeddings": entry("F32", (2, 4), (0, 32)), "x": entry("U8", (1,), (32, 33))}, b"\0" * 33))
    shape = 'MODEL: tensor "prompt_embeddings" has shape [2, 4], but adapter_config.json says'
    sizes = "(num_virtual_tokens, 2 * num_layers * token_dim)"
    adapter("tokens_differ", f"{shape} [3, 4] {sizes}", num_virtual_tokens=3)
    adapter("layers_differ", f"{shape} [2, 8] {sizes}", num_layers=2)
    adapter("tensor_of_one_dimension", 'MODEL: tensor "prompt_embeddings" has 1 dimensions; it must have 2',
            prefix=tensors({"prompt_embeddings": entry("F32", (8,), (0, 32))}, b"\0" * 32))
    adapter("tensor_of_integers", 'MODEL: tensor "prompt_embeddings" has type i32; it must be f32, f16 or bf16',
            prefix=tensors({"prompt_embeddings": entry("I32", (2, 4), (0, 32))}, b"\0" * 32))
    for name, value in (("not_a_number", float("nan")), ("infinite", float("-inf"))):
        adapter(f"value_{name}", 'MODEL: tensor "prompt_embeddings" is not finite at row 1, column 3; its training failed, '
                "train it again", prefix=GOOD[:-4] + struct.pack("<f", value))


# What every file of PEFT's says.
COMMON = {"auto_mapping": None, "base_model_name_or_path": None, "inference_mode": True, "modules_to_save": None,
          "peft_version": "0.21.2", "revision": None, "task_type": "CAUSAL_LM"}
LORA = {**COMMON, "peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q"], "bias": "none", "rank_pattern": {},
        "init_lora_weights": True, "use_dora": False, "layers_to_transform": None}
IA3 = {**COMMON, "peft_type": "IA3", "target_modules": ["k", "down"], "feedforward_modules": ["down"]}
NORM = {**COMMON, "peft_type": "LN_TUNING", "target_modules": ["norm"]}
PROMPT = {**COMMON, "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "token_dim": 4, "num_layers": 1,
          "num_attention_heads": 1, "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM"}


def model_of(shapes, last=1.0, dtype="F32"):
    """Tensors name -> shape, numbered values, the last one as given."""
    header, count = {}, 0
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = entry(dtype, shape, (count, count + size))
        count += size
    return tensors(header, struct.pack(f"<{count // 4}f", *range(count // 4 - 1), last))


A, B = "base_model.model.x.q.lora_A.weight", "base_model.model.x.q.lora_B.weight"
GOOD_LORA = {A: (1, 3), B: (2, 1)}


def part(name, message, config, shapes, **fields):
    adapter(name, message, json.dumps({**config, **fields}).encode(), shapes if isinstance(shapes, bytes) else model_of(shapes))


def make_lora():
    def field(key, value, reason):
        part(f"lora_{key}", f'CONFIG: field "{key}" is set; {reason}', LORA, GOOD_LORA, **{key: value})

    field("use_dora", True, "pfx does not scale weights by their norms, as DoRA does")
    field("rank_pattern", {"q": 4}, "pfx has one rank for all modules")
    field("alpha_pattern", {"q": 4}, "pfx has one lora_alpha for all modules")
    field("layers_to_transform", [1], "pfx adapts a module in all layers; name single modules in target_modules instead")
    field("modules_to_save", ["lm_head"], "pfx does not read modules that were trained beside an adapter")
    field("bias", "all", 'pfx does not read biases that were trained beside LoRA, only "none"')
    field("exclude_modules", ["y"], "pfx takes the modules that target_modules names and no exceptions; name those that are "
          "adapted")
    field("trainable_token_indices", [3], "pfx trains no single rows of the vocabulary")
    field("target_parameters", ["x"], "pfx adapts modules, not single parameters")
    field("use_qalora", True, "pfx has plain LoRA alone")
    part("lora_start_pissa", 'CONFIG: field "init_lora_weights" is "pissa", a start that changes the base model\'s weights, '
         "which the adapter does not hold; convert it with PEFT's save_pretrained(..., "
         "path_initial_model_for_weight_conversion)", LORA, GOOD_LORA, init_lora_weights="pissa")
    part("lora_unknown_field", 'CONFIG: field "use_warp" is set, and pfx does not know what it means; remove it, or set it to '
         "null, if the adapter does not depend on it", LORA, GOOD_LORA, use_warp=True)
    part("lora_rank_zero", 'CONFIG: field "r" must be an integer from 1 to 1048576', LORA, GOOD_LORA, r=0)
    part("lora_alpha_is_text", 'CONFIG: field "lora_alpha" must be a number', LORA, GOOD_LORA, lora_alpha="x")
    part("lora_dropout_one", 'CONFIG: field "lora_dropout" must be from 0 to below 1', LORA, GOOD_LORA, lora_dropout=1.0)
    part("lora_targets_null", 'CONFIG: field "target_modules" must be a list of module names, at least one', LORA, GOOD_LORA,
         target_modules=None)
    part("lora_targets_pattern", 'CONFIG: field "target_modules" is a pattern; pfx reads a list of names: write the modules '
         "that it matches", LORA, GOOD_LORA, target_modules=".*q")
    part("lora_target_is_number", 'CONFIG: field "target_modules": item 1 must be the name of a module', LORA, GOOD_LORA,
         target_modules=["q", 3])
    part("lora_no_tensors", "MODEL: holds no tensors", LORA, tensors({}))
    part("lora_b_missing", f'MODEL: tensor "{A}" is there, but no lora_B of that module; the adapter is incomplete, get it '
         "again", LORA, {A: (1, 3)})
    part("lora_a_missing", f'MODEL: tensor "{B}" is there, but no lora_A of that module; the adapter is incomplete, get it '
         "again", LORA, {B: (2, 1)})
    part("lora_other_rank", f'MODEL: tensor "{A}" has shape [1, 3]; with r 2 it must be [r, in]', LORA, GOOD_LORA, r=2)
    part("lora_b_transposed", f'MODEL: tensor "{B}" has shape [1, 2]; with r 1 it must be [out, r]', LORA,
         {A: (1, 3), B: (1, 2)})
    part("lora_one_dimension", f'MODEL: tensor "{A}" has 1 dimensions; it must have 2', LORA, {A: (3,), B: (2, 1)})
    part("lora_of_integers", f'MODEL: tensor "{A}" has type i32; it must be f32, f16 or bf16', LORA,
         model_of(GOOD_LORA, dtype="I32"))
    part("lora_not_a_number", f'MODEL: tensor "{B}" is not finite at row 1, column 0; its training failed, train it again', LORA,
         model_of(GOOD_LORA, float("nan")))
    part("lora_cut_short", f'MODEL: tensor "{B}" ends at byte 20 of the data, but only 16 are there; the file is cut short: '
         "get it again", LORA, model_of(GOOD_LORA)[:-4])
    part("lora_on_embedding", 'MODEL: holds tensor "base_model.model.x.q.lora_embedding_A"; pfx reads '
         "base_model.model.<module>.lora_A.weight and .lora_B.weight here and nothing else", LORA,
         {**GOOD_LORA, "base_model.model.x.q.lora_embedding_A": (1, 3)})
    part("lora_without_prefix", 'MODEL: holds tensor "x.q.lora_A.weight"; pfx reads base_model.model.<module>.lora_A.weight '
         "and .lora_B.weight here and nothing else", LORA, {"x.q.lora_A.weight": (1, 3)})
    part("lora_beyond_targets", f'MODEL: tensor "{A}" is of a module that target_modules does not name'.replace(".x.q.", ".x.o."),
         LORA, {**GOOD_LORA, A.replace("x.q", "x.o"): (1, 3), B.replace("x.q", "x.o"): (2, 1)})
    part("lora_target_without_tensor", 'MODEL: holds no tensor for "v", which target_modules names', LORA, GOOD_LORA,
         target_modules=["q", "v"])


def make_other_parts():
    k, down, norm = (f"base_model.model.x.{name}" for name in ("k.ia3_l", "down.ia3_l", "norm.ln_tuning_layers"))
    part("ia3_output_as_input", f'MODEL: tensor "{k}" has shape [1, 3]; outside feedforward_modules it must be [out, 1]', IA3,
         {k: (1, 3), down: (1, 3)})
    part("ia3_input_as_output", f'MODEL: tensor "{down}" has shape [3, 1]; in feedforward_modules it must be [1, in]', IA3,
         {k: (3, 1), down: (3, 1)})
    part("ia3_feedforward_is_text", 'CONFIG: field "feedforward_modules" is a pattern; pfx reads a list of names: write the '
         "modules that it matches", IA3, {k: (3, 1), down: (1, 3)}, feedforward_modules="down")
    part("norm_of_two_dimensions", f'MODEL: tensor "{norm}.weight" has 2 dimensions; it must have 1', NORM,
         {f"{norm}.weight": (1, 2)})
    part("norm_weight_missing", f'MODEL: tensor "{norm}.bias" is there, but no weight of that norm; the adapter is incomplete, '
         "get it again", NORM, {f"{norm}.bias": (2,)})
    part("norm_infinite", f'MODEL: tensor "{norm}.weight" is not finite at 1; its training failed, train it again', NORM,
         model_of({f"{norm}.weight": (2,)}, float("inf")))
    part("prompt_of_other_width", 'MODEL: tensor "prompt_embeddings" has shape [2, 3], but adapter_config.json says [2, 4] '
         "(num_virtual_tokens, token_dim)", PROMPT, {"prompt_embeddings": (2, 3)})
    part("prompt_two_submodules", 'CONFIG: field "num_transformer_submodules" is 2; pfx reads 1: a prefix for an '
         "encoder-decoder model does not fit its models", PROMPT, {"prompt_embeddings": (2, 4)}, num_transformer_submodules=2)
    layers = {**CONFIG, "peft_type": "PFX_PREFIX_LAYERS", "num_layers": 2}
    part("layers_descending", 'CONFIG: field "layers" must list layers from 0 to 1, ascending', layers,
         {"prompt_embeddings": (2, 8)}, layers=[1, 0])
    part("layers_beyond", 'CONFIG: field "layers" must list layers from 0 to 1, ascending', layers,
         {"prompt_embeddings": (2, 8)}, layers=[2])
    part("layers_left_out_not_zero", 'MODEL: tensor "prompt_embeddings" is not zero in layer 1, which "layers" leaves out',
         layers, {"prompt_embeddings": (2, 8)}, layers=[0])
    part("prefix_with_layers", 'CONFIG: field "layers" is set, and pfx does not know what it means; remove it, or set it to '
         "null, if the adapter does not depend on it", CONFIG, {"prompt_embeddings": (2, 4)}, layers=[0])


def delta(name, message, shapes, **fields):
    folder = f"adapter/{name}"
    put(f"{folder}/pfx.json", json.dumps({"format": 1, "part": "bias", "task_type": "CAUSAL_LM", **fields}).encode())
    if shapes is not None:
        put(f"{folder}/pfx_delta.safetensors", shapes if isinstance(shapes, bytes) else model_of(shapes))
    messages.append((folder, message.replace("CONFIG", f"{folder}/pfx.json").replace(
        "MODEL", f"{folder}/pfx_delta.safetensors")))


def make_deltas():
    good, kinds = {"x.bias": (2,)}, 'CONFIG: field "part" must be "bias", "top:K" or "full"'
    delta("delta_of_the_future", 'CONFIG: field "format" is 2; this pfx reads 1', good, format=2)
    delta("delta_without_part", kinds, good, part=None)
    delta("delta_top_without_number", kinds, good, part="top")
    delta("delta_top_zero", kinds, good, part="top:0")
    delta("delta_top_with_rest", kinds, good, part="top:2x")
    delta("delta_top_huge", kinds, good, part="top:99999999999999999999999")
    delta("delta_is_lora", kinds, good, part="lora")
    delta("delta_unknown_field", 'CONFIG: field "scale" is set, and pfx does not know what it means; remove it, or set it to '
          "null, if the adapter does not depend on it", good, scale=2)
    delta("delta_model_missing", "MODEL: is missing", None)
    delta("delta_bias_with_weight", 'MODEL: holds tensor "x.weight"; pfx reads <module>.bias here and nothing else',
          {"x.bias": (2,), "x.weight": (2,)})
    delta("delta_bias_of_two_dimensions", 'MODEL: tensor "x.bias" has 2 dimensions; it must have 1', {"x.bias": (1, 2)})
    delta("delta_of_three_dimensions", 'MODEL: tensor "x.weight" has 3 dimensions; it must have 1 or 2',
          {"x.weight": (1, 2, 1)}, part="full")
    delta("delta_without_module", 'MODEL: holds tensor ".bias"; pfx reads <module>.bias here and nothing else', {".bias": (2,)})
    delta("delta_not_finite", 'MODEL: tensor "x.bias" is not finite at 1; its training failed, train it again',
          model_of(good, float("nan")))


def hybrid(name, message, parts, **fields):
    """A manifest over one good prompt, in prompt/, with what is changed in each of its entries."""
    folder = f"adapter/{name}"
    files = {"adapter_config.json": json.dumps(PROMPT).encode(),
             "adapter_model.safetensors": model_of({"prompt_embeddings": (2, 4)})}
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    for file, content in files.items():
        put(f"{folder}/prompt/{file}", content)
    entries = [{"folder": "prompt", "part": "prompt", "files": digests, **change} for change in parts]
    put(f"{folder}/pfx.json", json.dumps({"format": 1, "parts": entries, **fields}).encode())
    messages.append((folder, message.replace("CONFIG", f"{folder}/pfx.json").replace("FOLDER", folder)))
    return folder


def make_hybrids():
    whole = "get the whole folder again"
    differs = ("is not the file that pfx.json names (SHA-256 differs): part prompt was exchanged or damaged, or writing it was "
               f"interrupted; {whole}, or write it again")
    hybrid("hybrid_empty", 'CONFIG: field "parts" must be a list of 1 to 8 parts', [])
    hybrid("hybrid_part_twice", "CONFIG: part prompt is there twice", [{}, {}])
    hybrid("hybrid_part_unknown", 'CONFIG: "parts": item 0: "part" must be prefix, prompt, lora, ia3, norm, bias, top or full',
           [{"part": "vera"}])
    hybrid("hybrid_other_kind", "CONFIG: part lora: FOLDER/prompt holds a part of the kind prompt", [{"part": "lora"}])
    hybrid("hybrid_folder_above", 'CONFIG: part prompt: "folder" must be the name of a folder beside pfx.json',
           [{"folder": "../prompt"}])
    hybrid("hybrid_folder_is_itself", 'CONFIG: part prompt: "folder" must be the name of a folder beside pfx.json',
           [{"folder": "."}])
    hybrid("hybrid_without_digests", 'CONFIG: part prompt: "files" must name its two files and their SHA-256', [{"files": {}}])
    hybrid("hybrid_of_the_future", 'CONFIG: field "format" is 7; this pfx reads 1', [{}], format=7)
    hybrid("hybrid_unknown_field", 'CONFIG: field "gate" is set, and pfx does not know what it means; remove it, or set it to '
           "null, if the adapter does not depend on it", [{}], gate=0.5)
    hybrid("hybrid_part_missing", f"FOLDER/lora/adapter_config.json: is missing; it belongs to part lora of a hybrid adapter: "
           f"{whole}", [{}, {"part": "lora", "folder": "lora"}])
    folder = hybrid("hybrid_part_exchanged", f"FOLDER/prompt/adapter_model.safetensors: {differs}", [{}])
    put(f"{folder}/prompt/adapter_model.safetensors", model_of({"prompt_embeddings": (2, 4)}, 2.0))
    folder = hybrid("hybrid_config_exchanged", f"FOLDER/prompt/adapter_config.json: {differs}", [{}])
    put(f"{folder}/prompt/adapter_config.json", json.dumps({**PROMPT, "revision": "x"}).encode())


def main():
    for room in ("safetensors", "gguf", "adapter"):
        shutil.rmtree(os.path.join(HERE, room), ignore_errors=True)
    make_safetensors()
    make_gguf_values()
    make_gguf_tensors()
    make_adapter_configs()
    make_adapter_models()
    make_lora()
    make_other_parts()
    make_deltas()
    make_hybrids()
    with open(os.path.join(HERE, "messages.txt"), "w") as f:
        f.writelines(f"{path}\t{message}\n" for path, message in messages)


main()
