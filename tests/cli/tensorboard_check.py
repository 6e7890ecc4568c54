#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Event files of --tensorboard, read back by a small reader of our own: framing, checksums, fields, and the numbers of
metrics.jsonl; through an interruption, a kill, and a folder that cannot be written."""
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import time

import command
from command import copy_model, id_rows, read, write, write_rows

TABLE = []
for index in range(256):
    for _ in range(8):
        index = index >> 1 ^ (0x82F63B78 if index & 1 else 0)
    TABLE.append(index)


def masked_crc(content):
    crc = 0xFFFFFFFF
    for byte in content:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(content, at):
    value = shift = 0
    while True:
        value |= (content[at] & 127) << shift
        shift += 7
        at += 1
        if content[at - 1] < 128:
            return value, at


def message(content):
    """{field: [values]}: numbers of fixed size and lengths as bytes, varints as int."""
    fields, at = {}, 0
    while at < len(content):
        key, at = varint(content, at)
        if key & 7 == 0:
            value, at = varint(content, at)
        else:
            size, at = {1: (8, at), 5: (4, at)}[key & 7] if key & 7 != 2 else varint(content, at)
            value, at = content[at:at + size], at + size
            assert len(value) == size
        fields.setdefault(key >> 3, []).append(value)
    return fields


def events(path):
    content, at, found = read(path), 0, []
    while at < len(content):
        length, = struct.unpack_from("<Q", content, at)
        assert struct.unpack_from("<I", content, at + 8)[0] == masked_crc(content[at:at + 8])
        data = content[at + 12:at + 12 + length]
        assert struct.unpack_from("<I", content, at + 12 + length)[0] == masked_crc(data)
        found.append(message(data))
        at += 16 + length
    return found


def event_files(folder):
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]


def scalars(folder):
    """What a viewer shows: {tag: {step: value}}; a START forgets what comes at its step or later."""
    shown = {}
    for path in event_files(folder):
        for event in events(path):
            step = event.get(2, [0])[0]
            if 7 in event and message(event[7][0]) == {1: [1]}:
                shown = {tag: {s: v for s, v in values.items() if s < step} for tag, values in shown.items()}
            for summary in event.get(5, []):
                for value in message(summary).get(1, []):
                    fields = message(value)
                    shown.setdefault(fields[1][0].decode(), {})[step] = struct.unpack("<f", fields[2][0])[0]
    return shown


class TensorBoard(command.CommandTest):
    def setUp(self):
        super().setUp()
        self.assertEqual(masked_crc(b"123456789"), ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF)
        copy_model("llama_f16")
        write_rows("rows.jsonl", id_rows(24, 60))
        write_rows("valid.jsonl", id_rows(7, 50))
        self.args = ["train", "--model", "model", "--data", "rows.jsonl", "--out", "run", "--tune", "prefix:2", "--dtype", "f32",
                     "--threads", "1", "--quiet", "--tensorboard", "board/of/run"]

    def same_as_metrics(self):
        lines = [json.loads(line) for line in read("run/metrics.jsonl").splitlines()]
        shown = scalars("board/of/run")
        self.assertEqual(sorted(shown), sorted({"loss", "lr", "grad_norm", "tokens_per_s", "peak_bytes"} |
                                               ({"valid_loss"} if any("valid_loss" in line for line in lines) else set())))
        for tag, values in shown.items():
            first = values.pop(0, None)
            self.assertEqual(first is not None, tag == "valid_loss", tag)
            self.assertEqual(sorted(values), [line["step"] for line in lines if tag in line], tag)
            for line in lines:
                if tag in line:
                    tolerance = 0.06 if tag == "tokens_per_s" else 0  # metrics.jsonl rounds it to a tenth
                    self.assertLessEqual(abs(values[line["step"]] - line[tag]), tolerance + 1e-6 * abs(line[tag]), tag)

    def test_a_run(self):
        before = time.time()
        self.pfx(*self.args, "--valid", "valid.jsonl", "--steps", "9", "--eval-every", "4")
        self.same_as_metrics()
        path, = event_files("board/of/run")
        self.assertRegex(os.path.basename(path), r"^events\.out\.tfevents\.\d{10}\..+\.\d+\.pfx$")
        first, second, *rest = events(path)
        self.assertEqual(first[3], [b"brain.Event:2"])
        self.assertEqual((second[2], message(second[7][0])), ([0], {1: [1]}))
        self.assertEqual([event[2][0] for event in rest], list(range(10)))
        for event in (first, second, *rest):
            self.assertTrue(before - 1 < struct.unpack("<d", event[1][0])[0] < time.time() + 1)
        settings = json.loads(read("run/run.json"))["settings"]
        self.assertEqual(settings["tensorboard"], os.path.realpath("board/of/run"))

    def test_going_on_writes_another_file(self):
        self.pfx(*self.args, "--valid", "valid.jsonl", "--steps", "12", "--eval-every", "4", "--stop-after", "5")
        self.pfx("train", "--resume", "run", "--quiet")
        one, two = event_files("board/of/run")
        self.assertEqual(events(two)[1][2], [6])
        self.same_as_metrics()
        self.pfx("train", "--resume", "run", "--steps", "14", "--tensorboard", "other", "--quiet")
        self.assertEqual(sorted(scalars("other")["loss"]), [13, 14])
        self.assertEqual(json.loads(read("run/run.json"))["settings"]["tensorboard"], os.path.realpath("other"))
        self.assertEqual(len(event_files("board/of/run")), 2)

    def test_killed(self):
        """Steps that are done again are shown once, and none is lost."""
        process = self.start(*self.args, "--steps", "100000", "--save-every", "50")
        deadline = time.monotonic() + 120
        while not os.path.exists("run/checkpoint/pfx_state.safetensors") or read("run/metrics.jsonl").count(b"\n") < 70:
            self.assertIsNone(process.poll())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        ahead = max(scalars("board/of/run")["loss"])
        self.pfx("train", "--resume", "run", "--stop-after", str(ahead + 20), "--quiet")
        self.same_as_metrics()

    def test_a_folder_that_cannot_be_written(self):
        write("board", "a file\n")
        out, err = self.pfx(*self.args, "--steps", "3")
        self.assertRegex(err, r"^pfx: warning: .*board.*; training goes on without event files for TensorBoard\n$")
        self.assertEqual(read("run/metrics.jsonl").count(b"\n"), 3)
        self.assertTrue(math.isfinite(json.loads(read("run/metrics.jsonl").splitlines()[-1])["loss"]))

    def test_a_device_that_fills_up(self):
        """A page of memory takes the first steps; the run goes on, and what was written can be read."""
        os.makedirs("board/of/run")
        inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=4k none board/of/run && "$@"']
        if not shutil.which("unshare") or subprocess.run([*inside, "sh", "true"], capture_output=True).returncode:
            self.skipTest("no file system of a test's own here")
        keep = 'code=$?; cp board/of/run/events* kept; exit $code'
        inside[-1] += f"; {keep}"
        done = subprocess.run([*inside, "sh", command.PFX, *self.args, "--steps", "60"], capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"^pfx: warning: .*/events\.out\.tfevents\..*: No space left on device; training goes on without event "
                                      r"files for TensorBoard\n$")
        self.assertEqual(read("run/metrics.jsonl").count(b"\n"), 60)
        content = read("kept")
        self.assertEqual(len(content), 4096)
        at = 0
        while at + 12 <= len(content) and at + 16 + struct.unpack_from("<Q", content, at)[0] <= len(content):
            at += 16 + struct.unpack_from("<Q", content, at)[0]
        write("whole", content[:at])
        self.assertGreater(len(events("whole")), 20)


if __name__ == "__main__":
    command.main()
