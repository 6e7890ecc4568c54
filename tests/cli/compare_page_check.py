#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The report of pfx compare in a real browser: on a desk, on a phone, in the dark, on paper. Nothing is blank, nothing lies
over something else, nothing runs out of the page, and it loads nothing. Skipped where there is no Chromium."""
import html
import json
import os
import random
import re
import shutil
import struct
import subprocess
import unittest
import zlib

import command
from command import add_tokenizer, copy_model, read, write, write_rows

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# What the page looks like from inside: sizes, what sticks out, what lies over what.
LOOK = """
const doc = frame.contentDocument, found = [], round = r => [r.left, r.top, r.right, r.bottom].map(Math.round);
const meet = (a, b, slack) => a.left < b.right - slack && b.left < a.right - slack && a.top < b.bottom - slack && b.top < a.bottom - slack;
const name = e => e.tagName + '.' + (e.getAttribute('class') || '') + ' "' + e.textContent.trim().slice(0, 40) + '"';
const overlaps = (list, what, slack) => list.forEach((a, i) => list.slice(i + 1).forEach(b => {
  if (meet(a.getBoundingClientRect(), b.getBoundingClientRect(), slack)) found.push(what + ': ' + name(a) + ' lies over ' + name(b));
}));
const visible = e => e.checkVisibility();
const all = s => [...doc.querySelectorAll(s)].filter(visible);
const width = doc.documentElement.clientWidth;
if (doc.documentElement.scrollWidth > width) found.push('the page is ' + doc.documentElement.scrollWidth + ' wide, not ' + width);
overlaps([...doc.querySelector('main').children].filter(visible), 'parts', 1);
overlaps(all('figure'), 'figures', 1);
overlaps(all('.tile'), 'tiles', 1);
overlaps(all('.card'), 'cards', 1);
doc.querySelectorAll('svg').forEach(svg => {
  const texts = [...svg.querySelectorAll('text')];
  overlaps(texts, 'texts', 2);
  if (!svg.querySelector('circle, polyline')) found.push('an empty picture: ' + svg.getAttribute('aria-label'));
  texts.forEach(t => { const a = t.getBoundingClientRect(), b = svg.parentElement.getBoundingClientRect();
    if (a.left < b.left || a.right > b.right || a.bottom > b.bottom) found.push('sticks out of its figure: ' + name(t)); });
  if (texts.some(t => /NaN|inf/.test(t.textContent)) || /NaN|inf/.test(svg.innerHTML.replace(/<text.*?<\\/text>/g, ''))) found.push('no number in a picture');
});
all('h1, h2, h3, p, li, .tile, figure, td, th, pre').forEach(e => { const r = e.getBoundingClientRect(), scrolls = e.closest('.wide');
  if (r.height < 8 || r.width < 8) { if (e.textContent.trim()) found.push('has no size: ' + name(e)); }
  if (!scrolls && (r.right > width + 1 || r.left < 0)) found.push('runs out of the page: ' + name(e)); });
all('p, li, td, th, pre, b, span, dt').forEach(e => { if (parseFloat(frame.contentWindow.getComputedStyle(e).fontSize) < 11) found.push('too small to read: ' + name(e)); });
const bars = all('.bar u').map(e => e.getBoundingClientRect().width);
document.body.textContent = 'SEEN' + JSON.stringify({found, bars, height: doc.documentElement.scrollHeight, figures: all('figure').length,
  pictures: all('svg').length, dark: frame.contentWindow.getComputedStyle(doc.body).backgroundColor}) + 'END';
"""


def pixels(path):
    """Rows of (r, g, b) of a PNG of 8 bits a channel."""
    data, at, packed = read(path), 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IHDR":
            width, height, _, color = struct.unpack(">IIBB", data[at + 8:at + 18])
        if kind == b"IDAT":
            packed += data[at + 8:at + 8 + size]
        at += size + 12
    step, raw, before, rows = {2: 3, 6: 4}[color], zlib.decompress(packed), bytearray(0), []
    line = width * step
    before = bytearray(line)
    for y in range(height):
        kind, row = raw[y * (line + 1)], bytearray(raw[y * (line + 1) + 1:(y + 1) * (line + 1)])
        for i in range(line):
            a, b, c = row[i - step] if i >= step else 0, before[i], before[i - step] if i >= step else 0
            if kind == 4:
                p = a + b - c
                pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
                row[i] = (row[i] + (a if pa <= pb and pa <= pc else b if pb <= pc else c)) & 255
            elif kind:
                row[i] = (row[i] + (a if kind == 1 else b if kind == 2 else (a + b) // 2)) & 255
        rows.append([tuple(row[i:i + 3]) for i in range(0, line, step)])
        before = row
    return rows


@unittest.skipUnless(BROWSER, "no Chromium")
class Page(command.CommandTest):
    report = None

    def setUp(self):
        super().setUp()
        self.folder = os.path.realpath(self.folder)

    def make(self, *more, retain=True):
        copy_model("llama_tied")
        add_tokenizer("model", 128)
        draw = random.Random(5)
        for name, count in (("train", 40), ("valid", 8), ("test", 16), ("other", 6)):
            words = ["".join(draw.choice("abcdefgh") for _ in range(6)) for _ in range(count)]
            write_rows(f"{name}.jsonl", [{"prompt": word + "=", "completion": word.upper() + "<i>" * 30} for word in words])
        self.pfx("compare", "--model", "model", "--data", "train.jsonl", "--valid", "valid.jsonl", "--test", "test.jsonl",
                 *(("--retain", "other.jsonl") if retain else ()), "--lr", "usual", "--seeds", "1", "--budget", "12steps", "--max-tokens", "100",
                 "--dtype", "f32", "--threads", "1", "--quiet", "--out", "which", *more)
        return read("which/report.html").decode()

    def browser(self, *args):
        flags = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={self.folder}/browser"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")
        done = subprocess.run([BROWSER, *flags, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return done.stdout.decode()

    def look(self, page, width):
        """The page in a frame of this width. Its own rule forbids every script, so it is left out here for ours outside."""
        bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        self.assertNotEqual(bare, page)
        write("frame.html", f'<!doctype html><body style="margin:0"><iframe id="frame" style="border:0;width:{width}px;height:2000px" '
                            f'srcdoc="{html.escape(bare, quote=True)}"></iframe><script>frame.onload = () => {{ {LOOK} }}</script>')
        dom = self.browser("--window-size=1400,1200", "--virtual-time-budget=4000", "--dump-dom", f"file://{self.folder}/frame.html")
        seen = re.search(r"SEEN(\{.*\})END", dom, re.DOTALL)
        self.assertTrue(seen, dom[-2000:])
        return json.loads(html.unescape(seen.group(1)))

    def test_it_can_be_read_everywhere(self):
        page = self.make("--tune", "prefix:1,2,3,4,6,8", "--tune", "prefix:2:init=zero:lr=0.01")
        tall = {}
        for width in (1200, 768, 390, 320):
            seen = self.look(page, width)
            self.assertEqual(seen["found"], [], f"{width} pixels wide")
            self.assertEqual((seen["figures"], seen["pictures"]), (7, 4))
            self.assertTrue(min(seen["bars"]) >= 3, seen["bars"])
            tall[width] = seen["height"]
        self.assertLess(tall[1200], tall[390])

    def test_the_look_can_fail(self):
        """What it finds is planted."""
        page = self.make("--tune", "prefix:1", retain=False)
        self.assertEqual(self.look(page, 390)["found"], [])
        for change, wanted in (((r"</main>", '<div style="width:900px">x</div></main>'), "the page is"),
                               ((r"</main>", '<p style="margin-top:-300px">over it</p></main>'), "lies over"),
                               ((r"</svg>", '<text x="60" y="100">one</text><text x="62" y="101">two</text></svg>'), "texts: "),
                               ((r"<circle[^>]*>", ""), "an empty picture"),
                               ((r"</main>", '<p style="font-size:6px">small</p></main>'), "too small to read")):
            found = self.look(re.sub(*change, page), 390)["found"]
            self.assertTrue(any(wanted in line for line in found), f"{wanted}: {found}")

    def test_versions(self):
        self.make("--tune", "prefix:2")
        runs = "which/runs/prefix-2_usual_seed0"
        shutil.copytree(runs, "an_adapter_with_a_very_long_name_that_says_everything_about_it_v2")
        self.pfx("compare", "--model", "model", "--test", "test.jsonl", "--adapter", runs, "--adapter",
                 "an_adapter_with_a_very_long_name_that_says_everything_about_it_v2", "--max-tokens", "20", "--dtype", "f32", "--threads", "1",
                 "--quiet", "--out", "seen")
        for width in (1200, 390):
            self.assertEqual(self.look(read("seen/report.html").decode(), width)["found"], [], f"{width} pixels wide")

    def test_light_dark_and_paper(self):
        self.make("--tune", "prefix:1,2")
        light = {}
        for name, flags in (("light", ("--blink-settings=preferredColorScheme=1",)), ("dark", ("--blink-settings=preferredColorScheme=0",))):
            self.browser(*flags, "--window-size=600,700", f"--screenshot={self.folder}/{name}.png", f"file://{self.folder}/which/report.html")
            rows = pixels(f"{name}.png")
            flat = [sum(p) / 3 for row in rows for p in row]
            light[name] = sum(flat) / len(flat)
            self.assertGreater(max(flat) - min(flat), 150, name)  # letters stand out from the page
            blank = sum(len(set(row)) == 1 for row in rows) / len(rows)
            self.assertLess(blank, 0.35, f"{name}: {blank:.0%} of the lines are blank")
        self.assertTrue(light["light"] > 200 and light["dark"] < 70, light)
        self.browser(f"--print-to-pdf={self.folder}/page.pdf", "--no-pdf-header-footer", f"file://{self.folder}/which/report.html")
        self.assertGreater(os.path.getsize("page.pdf"), 20000)

    def test_it_loads_nothing(self):
        """Its own rule forbids it, also what text from a row might ask for."""
        page = self.make("--tune", "prefix:1", retain=False)
        self.assertIn("default-src 'none'; style-src 'unsafe-inline'", page)
        self.assertEqual(re.findall(r"<script|<link|<img|<iframe|@import|url\((?!#)|(?:src|href)=", page), [])


if __name__ == "__main__":
    command.main()
