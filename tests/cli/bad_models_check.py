#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Model files and adapters that cannot be used: every case ends with the exact line a user must see and the right code,
and leaves nothing behind."""
import os
import shutil

import command
from command import BAD, GOLDEN, change_weights, copy_model, files, read, write

UP = "model.layers.1.mlp.up_proj.weight"
GGUF_TYPES = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K"


class BadModels(command.CommandTest):
    def setUp(self):
        super().setUp()
        command.write_rows("rows.jsonl", command.id_rows(8, 60))

    def unusable(self, message, model="model"):
        """Training, measuring and generating all refuse the model, in the same words, and write nothing."""
        before = files(".")
        self.refused(["train", "--model", model, "--data", "rows.jsonl", "--out", "run"], 3, message)
        self.refused(["eval", "--model", model, "--data", "rows.jsonl"], 3, message)
        self.refused(["generate", "--model", model, "--prompt", "x"], 3, message)
        self.assertEqual(files("."), before)
        self.assertFalse(os.path.exists("run"))

    def bad_weights(self, name):
        copy_model("llama_f16")
        shutil.copy(f"{BAD}/safetensors/{name}.safetensors", "model/model.safetensors")

    def test_missing_file(self):
        self.unusable("nowhere: no such file or folder", "nowhere")
        self.unusable("nowhere.gguf: no such file or folder", "nowhere.gguf")
        self.refused(["inspect", "nowhere"], 3, "nowhere: no such file or folder")

    def test_folder_without_config(self):
        os.mkdir("model")
        self.unusable("model has no config.json: it is no model folder")
        self.refused(["inspect", "model"], 3,
                     "model holds no model (config.json), adapter (adapter_config.json, pfx.json), run (run.json) or tokenizer")

    def test_folder_without_weights(self):
        copy_model("llama_f16")
        os.remove("model/model.safetensors")
        self.unusable("model: holds no *.safetensors file")

    def test_shard_missing(self):
        copy_model("llama3_new")
        os.remove("model/model-00004-of-00006.safetensors")
        self.unusable("model/model.safetensors.index.json: names model-00004-of-00006.safetensors, which is missing; get the "
                      "folder again")

    def test_truncated_safetensors(self):
        copy_model("llama_f16")
        write("model/model.safetensors", read("model/model.safetensors")[:-100])
        self.unusable('model/model.safetensors: tensor "model.layers.1.self_attn.v_proj.weight" ends at byte 39168 of the '
                      "data, but only 39132 are there; the file is cut short: get it again")

    def test_truncated_gguf(self):
        content = read(f"{GOLDEN}/gguf/qwen2.gguf")
        write("cut.gguf", content[:-1000])
        self.unusable("cut.gguf: tensor blk.2.attn_v.weight needs 12288 bytes at byte 892032 of the data, but the data has "
                      "903704; the file is cut short: get it again", "cut.gguf")
        write("cut.gguf", content[:300])
        self.unusable("cut.gguf: ends at byte 300 within a key; the file is cut short: get it again", "cut.gguf")

    def test_header_larger_than_the_file(self):
        self.bad_weights("header_longer_than_file")
        self.unusable("model/model.safetensors: the header should be 3 bytes long, but only 2 follow; the file is no "
                      "safetensors, or cut short: get it again")
        self.bad_weights_again("header_length_all_ones")
        self.unusable("model/model.safetensors: the header should be 18446744073709551615 bytes long, but only 2 follow; "
                      "the file is no safetensors, or cut short: get it again")

    def bad_weights_again(self, name):
        shutil.rmtree("model")
        self.bad_weights(name)

    def test_overlapping_tensors(self):
        self.bad_weights("tensors_overlap")
        self.unusable('model/model.safetensors: tensors "a" and "b" overlap')
        shutil.copy(f"{BAD}/gguf/tensors_overlap.gguf", "overlap.gguf")
        self.unusable("overlap.gguf: tensors a and b overlap", "overlap.gguf")

    def test_wrong_shape(self):
        copy_model("llama_f16")
        change_weights("model", lambda t: t.update({UP: ("F16", [32, 48], t[UP][2])}))
        self.unusable(f"model/model.safetensors: tensor {UP} has shape [32, 48], the model needs [48, 32]")

    def test_wrong_type(self):
        copy_model("llama_f16")
        change_weights("model", lambda t: t.update({UP: ("I32", [48, 32], t[UP][2] * 2)}))
        self.unusable(f"model/model.safetensors: tensor {UP} has type i32, weights must be f32, f16, bf16 or a GGUF block "
                      "type")
        change_weights("model", lambda t: t.update({UP: ("F64", [48, 32], t[UP][2] * 2)}))
        self.unusable(f'model/model.safetensors: tensor "{UP}" has dtype F64, which pfx does not read (it reads F32, F16, '
                      "BF16, I32, I64, U8, BOOL); convert it to F32")

    def test_tensor_missing(self):
        copy_model("llama_f16")
        change_weights("model", lambda t: t.pop(UP))
        self.unusable(f"model: tensor {UP} is missing; the model is incomplete, get it again")

    def spoil(self, model, bits):
        def change(tensors):
            dtype, shape, data = tensors[UP]
            tensors[UP] = dtype, shape, data[:20] + bits + data[20 + len(bits):]
        change_weights(model, change)

    def test_nan_where_load_converts(self):
        copy_model("llama_f16")
        self.spoil("model", b"\x00\x7e")
        line = (f"model/model.safetensors: tensor {UP} holds a value that is not finite (first at element 10); the file is "
                "damaged, get it again")
        self.unusable(line)
        self.pfx("inspect", "model")  # headers alone
        self.refused(["inspect", "--verify", "model"], 3, line)

    def test_nan_in_mapped_weights(self):
        copy_model("llama_tied")
        self.spoil("model", b"\x00\x00\x80\x7f")
        line = (f"model/model.safetensors: tensor {UP} holds a value that is not finite (first at element 5); the file is "
                "damaged, get it again")
        self.refused(["train", "--model", "model", "--dtype", "f32", "--data", "rows.jsonl", "--out", "run"], 3, line)
        self.assertFalse(os.path.exists("run"))
        self.refused(["inspect", "--verify", "model"], 3, line)

    def test_unknown_family(self):
        copy_model("llama_f16", model_type="mamba")
        self.unusable('model/config.json: model type "mamba" is not supported (gpt2, llama, mistral, qwen2, qwen3 are)')

    def test_unknown_rotary_type(self):
        copy_model("llama_f16", rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0})
        self.unusable('model/config.json: rotary type "yarn" is not supported (default, linear, llama3 are)')

    def test_unknown_gguf_type(self):
        shutil.copy(f"{BAD}/gguf/type_unknown.gguf", "new.gguf")
        self.unusable(f"new.gguf: tensor w has the unknown type number 999 (pfx reads {GGUF_TYPES}); the file is damaged "
                      "or newer than pfx", "new.gguf")
        shutil.copy(f"{BAD}/gguf/type_iq2_xs.gguf", "iq2.gguf")
        self.unusable(f"iq2.gguf: tensor blk.0.ffn_up.weight has type IQ2_XS, which pfx does not read (it reads "
                      f"{GGUF_TYPES}); quantise the model to one of these", "iq2.gguf")

    def test_pickle_weights(self):
        self.bad_weights("pickle_zip")
        self.unusable("model/model.safetensors: is a PyTorch pickle, not safetensors; save it again with safetensors")


class BadAdapters(command.CommandTest):
    def setUp(self):
        super().setUp()
        command.write_rows("rows.jsonl", command.id_rows(8, 60))
        copy_model("llama_f16")
        command.add_tokenizer("model", 64)

    def unusable(self, code, message, adapter="adapter"):
        for args in (["check"], ["generate", "--prompt", "-"], ["eval", "--data", "rows.jsonl", "--json"],
                     ["probe", "--data", "rows.jsonl", "--out", "probe.safetensors"]):
            out, err = self.pfx(*args, "--model", "model", "--adapter", adapter, code=code)
            self.assertEqual(err, f"pfx: {message}\n")
            if args[0] == "eval":  # the frozen model comes first, and was measured
                self.assertTrue(out.startswith('{"adapter": null, "loss": ') and out.count("\n") == 1, out)
            else:
                self.assertEqual(out, "")
        self.assertFalse(os.path.exists("probe.safetensors"))

    def train(self, out):
        self.pfx("train", "--model", "model", "--data", "rows.jsonl", "--tune", "prefix:2", "--steps", "1", "--out", out,
                 "--dtype", "f32", "--threads", "1", "--quiet")

    def test_missing(self):
        self.unusable(3, "cannot open the adapter folder nowhere: No such file or directory", "nowhere")
        os.mkdir("empty")
        self.unusable(3, "empty: holds no adapter_config.json, nor does a folder in it; is it an adapter?", "empty")

    def test_pickle(self):
        shutil.copytree(f"{BAD}/adapter/model_is_pickle", "adapter")
        line = ("adapter/adapter_model.bin: is a pickle, which can run code and which pfx does not read; load it with PEFT and "
                "save it again with save_pretrained(..., safe_serialization=True)")
        self.unusable(3, line)
        self.refused(["inspect", "adapter"], 3, line)

    def test_another_shape(self):
        shutil.copytree(f"{GOLDEN}/llama_linear/adapter", "adapter")
        self.unusable(4, "adapter/adapter_model.safetensors is for 2 key/value heads, this model has 4")

    def test_another_width(self):
        shutil.copytree(f"{GOLDEN}/llama3_old/adapter", "adapter")
        self.unusable(4, "adapter/adapter_model.safetensors holds keys and values of 64 numbers a layer, this model's have 32 "
                         "(4 heads of 8)")

    def test_more_layers(self):
        shutil.copytree(f"{GOLDEN}/llama_tied/adapter", "adapter")
        self.unusable(4, "adapter/adapter_model.safetensors is for a model of 3 layers, this one has 2")

    def test_same_shape_other_weights(self):
        self.train("run")
        command.change_weights("model", lambda t: t.update({UP: ("F16", [48, 32], bytes(t[UP][2][2:] + t[UP][2][:2]))}))
        out, err = self.pfx("check", "--model", "model", "--adapter", "run", code=4)
        self.assertEqual(out, "")
        self.assertRegex(err, r"^pfx: run/adapter_model.safetensors was trained on other weights than model: sampled weights "
                              r"differ by 0\.\d+ \(relative L2\), likely .*; --force uses it all the same\n$")
        self.unusable(4, err[len("pfx: "):-1], "run")
        out, err = self.pfx("generate", "--model", "model", "--adapter", "run", "--prompt", "-", "--max-tokens", "3", "--force")
        self.assertEqual(err, "pfx: warning: run was trained on other weights; used because of --force\n")
        out, err = self.pfx("check", "--model", "model", "--adapter", "run", "--force")
        self.assertEqual(out, "run fits in shape; it was trained on other weights (--force)\n")

    def test_unverified(self):
        shutil.copytree(f"{GOLDEN}/llama_f16/adapter", "adapter")
        out, err = self.pfx("check", "--model", "model", "--adapter", "adapter")
        self.assertEqual(out, "adapter fits in shape; it carries no fingerprint, so which base it was trained on is "
                              "unverified\n")
        out, err = self.pfx("eval", "--model", "model", "--adapter", "adapter", "--data", "rows.jsonl")
        self.assertEqual(err, "pfx: note: adapter carries no fingerprint: it fits in shape, which base it was trained on is "
                              "unverified\n")

    def test_another_tokenizer(self):
        self.train("run")
        command.add_tokenizer("model", 63)
        out, err = self.pfx("check", "--model", "model", "--adapter", "run")
        self.assertEqual(out, "run fits: it was trained on exactly these weights\n")
        self.assertEqual(err, "pfx: warning: run: the adapter was trained with another tokenizer than this model's\n")


if __name__ == "__main__":
    command.main()
